"""Server-side encryption on real servers: on every object of a volume's life, on every verb."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import trio

from s3fs_banyan.app.volume import make_volume
from s3fs_banyan.commit import sealing
from s3fs_banyan.commit.context import Context
from s3fs_banyan.errors import Denied, Misconfigured, Unavailable
from s3fs_banyan.format.keys import (
    CHECKPOINT_PIECE_PREFIX,
    CHECKPOINT_PREFIX,
    DELTA_PREFIX,
    LOG_PREFIX,
    PACK_PREFIX,
    PROBE_PREFIX,
    VOLUME,
    WRITER,
)
from s3fs_banyan.remote.layers import RetryLayer
from s3fs_banyan.remote.multipart import upload_file_multipart
from s3fs_banyan.remote.options import StoreOptions
from s3fs_banyan.remote.s3 import PART_SIZE_MIN, S3Store
from tests.contract.recording_proxy import RecordingProxy, Request, recording
from tests.contract.remote_broken_server import ANSWERS, serving
from tests.contract.remote_stores import options_for
from tests.servers import MotoServer, ObjectServer, SeaweedServer
from tests.unit.engine_kit import (
    ROOT,
    World,
    engine_settings,
    names,
    read_file,
    running,
    write_file,
)
from tests.unit.engine_kit import (
    VOLUME as DESCRIPTOR,
)

KEY = base64.b64encode(bytes(range(32))).decode()
OTHER_KEY = base64.b64encode(bytes(range(1, 33))).decode()
KEY_MD5 = base64.b64encode(hashlib.md5(bytes(range(32)), usedforsecurity=False).digest()).decode()
CONTEXT = base64.b64encode(b'{"volume":"test"}').decode()

SSE_S3 = {"encryption": "sse-s3"}
SSE_KMS = {
    "encryption": "sse-kms",
    "encryption_key_id": "key-1",
    "encryption_bucket_key": True,
    "encryption_context": {"volume": "test"},
}
SSE_C = {"encryption": "sse-c", "encryption_key": KEY}

_SSE = "x-amz-server-side-encryption"
_CUSTOMER = {
    f"{_SSE}-customer-algorithm": "AES256",
    f"{_SSE}-customer-key": KEY,
    f"{_SSE}-customer-key-md5": KEY_MD5,
}

KINDS = (
    VOLUME,
    WRITER,
    PROBE_PREFIX,
    LOG_PREFIX,
    DELTA_PREFIX,
    PACK_PREFIX,
    CHECKPOINT_PIECE_PREFIX,
    CHECKPOINT_PREFIX,
)
"""Every kind of object that a volume has; `kind_of` takes the first that fits."""


@pytest.fixture
def proxied(request: pytest.FixtureRequest) -> Iterator[tuple[ObjectServer, RecordingProxy]]:
    """The server that the parameter names, and a proxy before it that remembers."""
    server: ObjectServer = request.getfixturevalue(request.param)
    with recording(server) as proxy:
        yield server, proxy


def kind_of(path: str) -> str:
    return next(kind for kind in KINDS if path == kind or path.startswith(kind))


async def live(store: S3Store, root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[bytes, bytes]:
    """Lead a volume from mkfs to reclaim, with every kind of object; returns what is in it."""
    monkeypatch.setattr(sealing, "COMMIT_BYTES_MAX", 4000)
    world = World(root)
    make_volume(store, DESCRIPTOR, world.runtime)
    world.runtime.now_ns = store.stat(VOLUME).modified_ns
    settings = engine_settings(reclaim_window_s=0, reclaim_hourly_s=0, reclaim_grace_s=0)
    ctx: Context = world.context(store=RetryLayer(store, deadline_s=20), settings=settings)
    async with running(ctx) as engine:
        await engine.become_writer()
        for number in range(3):
            await write_file(engine, b"small-%d" % number, b"s" * 100)
            await write_file(engine, b"large-%d" % number, os.urandom(900_000))
            await engine.committer.commit_once()
            await engine.checkpointer.write_now()
        for number in range(60):  # a delta too large for its commit
            await write_file(engine, b"many-%d" % number, b"x")
        await engine.committer.commit_once()
        attributes = engine.filesystem.lookup(1, b"small-0")
        engine.filesystem.forget(attributes.ino, 1)
        await engine.filesystem.unlink(1, b"small-0", ROOT)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.committer.run)
            await engine.reclaimer.round()
            nursery.cancel_scope.cancel()
        return {name: await read_file(engine, name) for name in names(engine)}


def upload(store: S3Store, directory: Path) -> bytes:
    """Upload a file in two parts, as a large pack is."""
    file = directory / "pack"
    file.write_bytes(os.urandom(PART_SIZE_MIN + 1000))
    upload_file_multipart(
        store,
        "pack/1/large",
        file,
        part_size=PART_SIZE_MIN,
        save_state=lambda _: None,
    )
    return file.read_bytes()


def assert_headers(
    request: Request, *, new: Mapping[str, str], touching: Mapping[str, str]
) -> None:
    """A request that makes an object has the headers `new`, one for its bytes `touching`."""
    sent = {name: value for name, value in request.headers.items() if name.startswith(_SSE)}
    plain_bytes = request.method in {"PUT", "GET", "HEAD"} and not (
        "list-type" in request.path or "uploads" in request.path
    )
    if request.writes:
        assert sent == new, request.line
    elif plain_bytes or "uploadId=" in request.path:
        assert sent == (touching if request.method != "DELETE" else {}), request.line
    else:
        assert sent == {}, request.line
    if request.method == "PUT":
        assert "content-md5" in request.headers, request.line


@pytest.mark.parametrize("proxied", ["moto"], indirect=True)
@pytest.mark.parametrize(
    ("options", "headers", "head"),
    [
        (SSE_S3, {_SSE: "AES256"}, {"ServerSideEncryption": "AES256"}),
        (
            SSE_KMS,
            {
                _SSE: "aws:kms",
                f"{_SSE}-aws-kms-key-id": "key-1",
                f"{_SSE}-bucket-key-enabled": "true",
                f"{_SSE}-context": CONTEXT,
            },
            {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "key-1"},
        ),
    ],
    ids=["sse-s3", "sse-kms"],
)
async def test_every_object_of_a_volume_is_encrypted(
    proxied: tuple[MotoServer, RecordingProxy],
    options: dict[str, object],
    headers: dict[str, str],
    head: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One kind of object that was forgotten is one that lies in clear, for ever."""
    server, proxy = proxied
    bucket = server.bucket()
    store = S3Store(bucket, "volume", options_for(proxy, **options))
    await live(store, tmp_path, monkeypatch)
    upload(store, tmp_path)
    made = [request for request in proxy.requests if request.writes]
    paths = [request.path.partition("?")[0].removeprefix(f"/{bucket}/volume/") for request in made]
    assert {kind_of(path) for path in paths} == set(KINDS)
    assert "pack/1/large" in paths
    for request in proxy.requests:
        assert_headers(request, new=headers, touching={})
    client = server.client()
    found = [meta.path for meta in store.list()]
    assert found
    for path in found:
        answer = client.head_object(Bucket=bucket, Key=f"volume/{path}")
        assert head.items() <= answer.items(), path
    client.close()
    store.close()


@pytest.mark.parametrize("proxied", ["seaweed"], indirect=True)
async def test_a_customers_key_goes_with_every_request_for_bytes(
    proxied: tuple[SeaweedServer, RecordingProxy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the volume is read with it from an empty disk, and with no other."""
    server, proxy = proxied
    bucket = server.bucket()
    store = S3Store(bucket, "volume", options_for(proxy, **SSE_C))
    want = await live(store, tmp_path, monkeypatch)
    assert upload(store, tmp_path) == store.read("pack/1/large")
    for request in proxy.requests:
        if not request.path.endswith(f"/{bucket}"):  # a HEAD of the bucket itself
            assert_headers(request, new=_CUSTOMER, touching=_CUSTOMER)
    async with running(World(tmp_path / "fresh").context(store=store), takeover=True) as other:
        assert {name: await read_file(other, name) for name in names(other)} == want
    other_key = S3Store(
        bucket, "volume", options_for(server, **(SSE_C | {"encryption_key": OTHER_KEY}))
    )
    without = S3Store(bucket, "volume", options_for(server))
    for wrong in (other_key, without):
        for call in (wrong.read, wrong.stat):
            with pytest.raises((Denied, Misconfigured), match=r"encryption|400") as caught:
                call(VOLUME)
            assert KEY not in str(caught.value)
            assert OTHER_KEY not in str(caught.value)
        wrong.close()
    store.close()


@pytest.mark.parametrize("options", [SSE_C], ids=["sse-c"])
def test_a_server_that_ignores_the_request_is_refused(
    moto: MotoServer, options: dict[str, object]
) -> None:
    """moto takes a customer's key and does nothing with it: nobody shall rely on that."""
    store = S3Store(moto.bucket(), "volume", options_for(moto, **options))
    with pytest.raises(Misconfigured, match="sse-c was asked for"):
        store.write("x", b"0123456789")
    upload = store.begin_upload("y")
    etag = store.upload_part("y", upload, 1, b"0123456789")
    with pytest.raises(Misconfigured, match="sse-c was asked for"):
        store.complete_upload("y", upload, {1: etag})
    store.close()


def test_an_upload_begun_by_an_earlier_process_is_finished(seaweed: SeaweedServer) -> None:
    """All parts have a check sum or none. SeaweedFS wants them at the end, and lists none."""
    bucket = seaweed.bucket()
    data = os.urandom(PART_SIZE_MIN)
    plain: dict[str, object] = {}
    for first, second in ((SSE_C, SSE_C), (SSE_C | {"verify": "none"}, SSE_C), (plain, plain)):
        before = S3Store(bucket, "volume", options_for(seaweed, **first))
        upload_id = before.begin_upload("x")
        etags = {1: before.upload_part("x", upload_id, 1, data)}
        before.close()
        after = S3Store(bucket, "volume", options_for(seaweed, **second))
        if after.list_parts("x", upload_id) != {1: (len(data), etags[1])}:
            assert first
            etags[1] = after.upload_part("x", upload_id, 1, data)
        etags[2] = after.upload_part("x", upload_id, 2, b"rest")
        after.complete_upload("x", upload_id, etags)
        assert after.read("x") == data + b"rest"
        after.close()


def test_a_strangers_answer_is_no_word_about_encryption() -> None:
    """A proxy's own page is a failure that passes, and not a store that cannot encrypt."""
    with serving(ANSWERS["answers with a page of its own"]) as url:
        options = StoreOptions(endpoint_url=url, access_key="a", secret_key="s", **SSE_S3)  # type: ignore[arg-type]
        store = S3Store("bucket", "v", options)
        with pytest.raises(Unavailable):
            store.write("x", b"0123456789")
        store.close()


def test_sums_that_the_store_lists_go_with_the_completion() -> None:
    """Amazon lists them, so an upload goes on in another process without a part sent twice."""
    part = (
        b"<PartNumber>1</PartNumber><Size>10</Size><ETag>e</ETag>"
        b"<ChecksumSHA256>c3VtIG9mIHRoZSBwYXJ0</ChecksumSHA256>"
    )
    body = (
        b"<ListPartsResult><UploadId>id</UploadId><ChecksumAlgorithm>SHA256</ChecksumAlgorithm>"
        b"<Part>" + part + b"</Part></ListPartsResult>"
    )
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
    sent: list[bytes] = []
    with serving(answer + body) as url:
        options = StoreOptions(endpoint_url=url, access_key="a", secret_key="s", **SSE_C)  # type: ignore[arg-type]
        store = S3Store("bucket", "v", options)
        assert store.list_parts("x", "id") == {1: (10, "e")}
        events = store._client.meta.events
        events.register(
            "before-call.s3.CompleteMultipartUpload",
            lambda params, **_: sent.append(params["body"]),
        )
        with pytest.raises(Unavailable):  # this server has one answer only
            store.complete_upload("x", "id", {1: "e"})
        store.close()
    assert b"<ChecksumSHA256>c3VtIG9mIHRoZSBwYXJ0</ChecksumSHA256>" in sent[0]
