"""A line slower than a pack in the time that a connection may take: the pack gets through."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from s3fs_banyan.remote.azure import AzureStore
from s3fs_banyan.remote.base import RemoteFileSystem
from s3fs_banyan.remote.gcs import GoogleStore
from s3fs_banyan.remote.http_body import PIECE_BYTES, PiecewiseBody, in_pieces
from s3fs_banyan.remote.options import StoreOptions
from s3fs_banyan.remote.s3 import S3Store
from tests.contract.remote_stores import azure_options, options_for
from tests.kernel.proxy import Proxy
from tests.servers import AzuriteServer, GcsServer, ObjectServer

MIB = 1 << 20
BODY_MIB = 24
RATE = 8 * MIB
CONNECT_S = 1.0
"""A third of what the body takes, and sixty times what a piece of it does."""


def _store_behind(line: str, server: ObjectServer) -> RemoteFileSystem:
    """Return a store of the server that is reached by another address."""
    bucket = server.bucket()
    if isinstance(server, AzuriteServer):
        options = azure_options(server, endpoint_url=line + urlsplit(server.endpoint_url).path)
        options = replace(options, connect_timeout_s=CONNECT_S)
        return AzureStore(server.account, bucket, "p", options)
    if isinstance(server, GcsServer):
        options = StoreOptions(endpoint_url=line, connect_timeout_s=CONNECT_S, read_timeout_s=60.0)
        return GoogleStore(bucket, "p", options)
    options = options_for(server, endpoint_url=line, connect_timeout_s=CONNECT_S)
    return S3Store(bucket, "p", options)


@pytest.mark.parametrize("name", ["seaweed", "moto", "azurite", "gcs"])
def test_a_body_may_take_longer_than_a_connection(
    name: str, request: pytest.FixtureRequest
) -> None:
    """The time-out was for all of the body: packs came again and again and never arrived."""
    server: ObjectServer = request.getfixturevalue(name)
    body = bytearray(random.Random(7).randbytes(BODY_MIB * MIB))  # what packs are filled into
    with Proxy(server.endpoint_url) as proxy:
        store = _store_behind(proxy.endpoint_url, server)
        proxy.slow(RATE)
        store.write("x", body)
        proxy.slow(0)
        found = hashlib.sha256(store.read("x")).digest()
        store.close()
        assert found == hashlib.sha256(body).digest()
        assert not proxy.unserved("PUT", "POST")


@pytest.mark.parametrize("size", [PIECE_BYTES + 1, 3 * PIECE_BYTES, 3 * PIECE_BYTES + 5])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_pieces_are_the_body(size: int, kind: type) -> None:
    """Each time that it is sent; and a body that may be sent as a whole is left as it is."""
    body = random.Random(size).randbytes(size)
    pieces = in_pieces(kind(body))
    assert isinstance(pieces, PiecewiseBody)
    assert len(pieces) == size
    for _ in range(2):
        assert b"".join(pieces) == body
        assert max(len(piece) for piece in pieces) == PIECE_BYTES
    small = body[:PIECE_BYTES]
    assert in_pieces(small) is small
    assert in_pieces(None) is None
