"""Azure and Google behind a proxy that trickles or cuts: the SDKs would take what comes."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator

import pytest

from s3fs_banyan.errors import TransferCorrupt, Unavailable
from s3fs_banyan.remote.azure import AzureStore
from s3fs_banyan.remote.base import RemoteFileSystem
from s3fs_banyan.remote.gcs import GoogleStore
from s3fs_banyan.remote.options import StoreOptions
from s3fs_banyan.remote.verification import VerificationObserver
from tests.unit.scripted_http import Drip, Exchange, Script, serving
from tests.verdicts import Verdicts

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
def store_at(
    cloud: str, script: Script, observer: VerificationObserver | None = None
) -> Iterator[RemoteFileSystem]:
    """Give a store of the cloud at a server with this script, without layers."""
    with serving(script) as url:
        store: RemoteFileSystem
        if cloud == "azure":
            key = base64.b64encode(b"k" * 32).decode()
            at = StoreOptions(endpoint_url=f"{url}/account", account_key=key, read_timeout_s=0.3)
            store = AzureStore("account", "box", "", at, observer)
        else:
            at = StoreOptions(endpoint_url=url, read_timeout_s=0.3)
            store = GoogleStore("bucket", "", at, observer)
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


def keeping(body: bytes) -> Script:
    """Return a script: a gateway that answers an upload without its MD5, and keeps these bytes."""
    described = {"name": "x", "size": str(len(body)), "etag": "e", "generation": "1"}
    described["updated"] = "2026-11-30T10:00:00+00:00"
    headers = {name: value for name, value in HEADERS.items() if name != "Content-Range"}

    def script(exchange: Exchange) -> None:
        if exchange.command == "GET":
            asked = exchange.headers.get("x-ms-range")  # Azure's SDK asks for a range always
            part = {"Content-Range": f"bytes 0-{len(body) - 1}/{len(body)}"} if asked else {}
            exchange.begin(
                206 if asked else 200, {**headers, **part, "Content-Length": str(len(body))}
            )
            exchange.wfile.write(body)
            return
        exchange.body()
        told = json.dumps(described).encode() if exchange.command == "POST" else b""
        kind = {"Content-Type": "application/json"} if told else {}
        exchange.begin(200 if told else 201, {**headers, **kind, "Content-Length": str(len(told))})
        exchange.wfile.write(told)

    return script


@every_cloud
def test_an_answer_without_an_md5_is_not_believed(cloud: str) -> None:
    """A gateway may check nothing: the object is read back."""
    verdicts = Verdicts()
    with store_at(cloud, keeping(b"some bytes"), verdicts) as store:
        assert store.write("x", b"some bytes").size == 10
    with (
        store_at(cloud, keeping(b"other bits"), verdicts) as store,
        pytest.raises(TransferCorrupt, match="MD5"),
    ):
        store.write("x", b"some bytes")
    assert verdicts.seen == [("read_back", True), ("read_back", False)]
