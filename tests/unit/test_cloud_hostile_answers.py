"""Azure and Google behind a proxy that trickles or cuts: the SDKs would take what comes."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator

import pytest

from s3fs_banyan.errors import Unavailable
from s3fs_banyan.remote.azure import AzureStore
from s3fs_banyan.remote.base import RemoteFileSystem
from s3fs_banyan.remote.gcs import GoogleStore
from s3fs_banyan.remote.options import StoreOptions
from tests.unit.scripted_http import Drip, Exchange, Script, serving

WHOLE = bytes(range(250)) * 4
BEGIN, LENGTH = 10, 50
HEADERS = {
    "x-ms-request-id": "1",
    "x-ms-blob-type": "BlockBlob",
    "x-goog-generation": "1",
    "ETag": '"0x1"',
    "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT",
    "Content-Type": "application/octet-stream",
    "Content-Range": f"bytes {BEGIN}-{BEGIN + LENGTH - 1}/{len(WHOLE)}",
}
"""What either service says with a part of an object."""

every_cloud = pytest.mark.parametrize("cloud", ["azure", "google"])


@contextlib.contextmanager
def store_at(cloud: str, script: Script) -> Iterator[RemoteFileSystem]:
    """Give a store of the cloud at a server with this script, without layers."""
    with serving(script) as url:
        store: RemoteFileSystem
        if cloud == "azure":
            key = base64.b64encode(b"k" * 32).decode()
            at = StoreOptions(endpoint_url=f"{url}/account", account_key=key, read_timeout_s=0.3)
            store = AzureStore("account", "box", "", at)
        else:
            at = StoreOptions(endpoint_url=url, read_timeout_s=0.3)
            store = GoogleStore("bucket", "", at)
        try:
            yield store
        finally:
            store.close()


def chunked(count: int) -> Script:
    """Return a script: a proxy that ends its chunks properly after so many bytes of the range."""

    def script(exchange: Exchange) -> None:
        exchange.begin(206, {**HEADERS, "Transfer-Encoding": "chunked"})
        exchange.chunk(WHOLE[BEGIN : BEGIN + count])
        exchange.chunk(b"")

    return script


@every_cloud
def test_a_body_that_trickles_is_given_up(cloud: str) -> None:
    """No single wait for bytes is long; their sum is, and a reader waits for it."""
    headers = {**HEADERS, "Content-Length": str(LENGTH)}
    drip = Drip(status=206, headers=headers, pause_s=0.2, pieces_max=LENGTH - 1)
    with store_at(cloud, drip) as store, pytest.raises(Unavailable, match="too slowly"):
        store.read("x", offset=BEGIN, length=LENGTH)
    assert not drip.ran_out


@every_cloud
def test_a_range_in_chunks_is_returned_if_it_is_whole(cloud: str) -> None:
    """Without a length in its head it is as good as any."""
    with store_at(cloud, chunked(LENGTH)) as store:
        assert store.read("x", offset=BEGIN, length=LENGTH) == WHOLE[BEGIN : BEGIN + LENGTH]


@every_cloud
@pytest.mark.parametrize("count", [20, 90])
def test_a_range_of_another_length_is_not_returned(cloud: str, count: int) -> None:
    """A proxy that hands on in chunks ends them properly where the line behind it broke."""
    with (
        store_at(cloud, chunked(count)) as store,
        pytest.raises(Unavailable, match="was asked for"),
    ):
        store.read("x", offset=BEGIN, length=LENGTH)
