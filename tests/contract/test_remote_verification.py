"""Uploads whose bytes or answers are spoiled on the way: no wrong object stays believed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from s3fs_banyan.app.volume import make_volume
from s3fs_banyan.commit.log_store import CommitLog
from s3fs_banyan.errors import AlreadyExists, TransferCorrupt, Unavailable
from s3fs_banyan.observe.metrics import Metrics
from s3fs_banyan.remote.layers import RetryLayer
from s3fs_banyan.remote.multipart import UploadState, upload_file_multipart
from s3fs_banyan.remote.open import open_store
from s3fs_banyan.remote.s3 import PART_SIZE_MIN, S3Store
from s3fs_banyan.remote.verification import How
from tests.contract.recording_proxy import Fault, RecordingProxy, recording
from tests.contract.remote_stores import azure_store, gcs_store, options_for
from tests.servers import AzuriteServer, GcsServer, MotoServer, ObjectServer, SeaweedServer
from tests.unit.engine_kit import VOLUME, World, names, read_file, running, write_file
from tests.verdicts import Verdicts

DATA = b"0123456789" * 100
KMS = {"encryption": "sse-kms", "encryption_key_id": "key-1"}
PUT = r"^PUT [^?]*/x$"


@dataclass
class Line:
    """A store, the proxy that it is reached through, and the store as it really is."""

    proxy: RecordingProxy
    bucket: str

    def store(self, **options: object) -> tuple[S3Store, Verdicts]:
        verdicts = Verdicts()
        made = S3Store(self.bucket, "v", options_for(self.proxy, **options), observer=verdicts)
        return made, verdicts

    def spoil(self, pattern: str, spoil: str, times: int = 1) -> Fault:
        fault = self.proxy.fault = Fault(pattern=pattern, spoil=spoil, times=times)  # type: ignore[arg-type]
        return fault


def _line(server: ObjectServer) -> Iterator[Line]:
    with recording(server) as proxy:
        yield Line(proxy, server.bucket())


@pytest.fixture
def line(moto: MotoServer) -> Iterator[Line]:
    """Before moto, which takes whatever bytes come: it does not check Content-MD5."""
    yield from _line(moto)


@pytest.fixture
def checked_line(seaweed: SeaweedServer) -> Iterator[Line]:
    """Before SeaweedFS, which checks."""
    yield from _line(seaweed)


# --- plain writes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "how"),
    [({}, "etag"), (KMS, "read_back"), ({"verify": "read-back"}, "read_back")],
    ids=["etag", "sse-kms", "read-back"],
)
def test_a_write_that_arrived_wrong_is_made_again(
    line: Line, options: dict[str, object], how: How
) -> None:
    """The server keeps wrong bytes and says that all is well: its answer gives it away."""
    store, verdicts = line.store(**options)
    line.spoil(PUT, "flip a byte")
    with pytest.raises(TransferCorrupt):
        store.write("x", DATA)
    line.spoil(PUT, "flip a byte", times=2)
    RetryLayer(store, deadline_s=20).write("x", DATA)
    assert store.read("x") == DATA
    assert verdicts.seen == [(how, False), (how, False), (how, False), (how, True)]
    store.close()


def test_without_verification_nobody_notices(line: Line) -> None:
    """Why `none` is not the default, and that the faults here are real ones."""
    store, verdicts = line.store(verify="none")
    line.spoil(PUT, "flip a byte")
    store.write("x", DATA)
    assert store.read("x") != DATA
    assert verdicts.seen == [("content_md5", True)]
    store.close()


def test_a_store_that_checks_never_has_the_wrong_object(checked_line: Line) -> None:
    store, verdicts = checked_line.store()
    checked_line.spoil(PUT, "flip a byte")
    with pytest.raises(TransferCorrupt, match="BadDigest"):
        store.write("x", DATA)
    assert list(store.list()) == []
    assert verdicts.seen == []
    store.close()


def test_the_stores_checksum_is_compared(checked_line: Line) -> None:
    """SeaweedFS answers with the SHA-256 that it was sent, after it has checked it."""
    store, verdicts = checked_line.store(verify="checksum")
    store.write("x", DATA)
    store.write("x", DATA + b"1")
    store.write("y", DATA, if_absent=True)
    assert verdicts.seen == [("checksum", True)] * 3
    store.close()


def test_a_read_back_that_cannot_be_made_proves_nothing(line: Line) -> None:
    store, _ = line.store(verify="read-back")
    line.spoil(r"^GET [^?]*/x$", "lose the answer")
    with pytest.raises(Unavailable):
        store.write("x", DATA)
    line.spoil(r"^GET [^?]*/x$", "answer other bytes")
    with pytest.raises(TransferCorrupt):
        store.write("x", DATA)
    store.close()


def test_verifications_are_a_metric(moto: MotoServer) -> None:
    """Through all layers, as a mount opens its store."""
    metrics = Metrics()
    url = f"s3://{moto.bucket()}/v"
    for options in (options_for(moto), options_for(moto, **KMS), options_for(moto, verify="none")):
        store = open_store(url, options, observer=metrics.store, verified=metrics.store)
        store.write("x", DATA)
        store.close()
    metrics.store.verified("etag", good=False)
    text = metrics.render()
    name = "s3fs_banyan_store_verifications_total"
    for how in ("etag", "read_back", "content_md5"):
        assert f'{name}{{how="{how}",outcome="good"}} 1.0' in text
    assert f'{name}{{how="checksum",outcome="good"}} 0.0' in text
    assert f'{name}{{how="etag",outcome="wrong"}} 1.0' in text


# --- creates -----------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, KMS], ids=["etag", "sse-kms"])
@pytest.mark.parametrize("times", [1, 3])
def test_a_created_object_that_arrived_wrong_is_replaced(
    line: Line, options: dict[str, object], times: int
) -> None:
    """Made again it would find itself there, wrong, for ever."""
    store, verdicts = line.store(**options)
    fault = line.spoil(PUT, "flip a byte", times=times)
    meta = store.write("x", DATA, if_absent=True)
    assert fault.done == times
    assert store.read("x") == DATA
    assert meta.etag == store.stat("x").etag
    assert [good for how, good in verdicts.seen if how == "read_back"].count(False) == times
    assert verdicts.seen[-1][1]
    puts = [request for request in line.proxy.requests if request.line.endswith("/v/x")]
    sent = [("if-none-match" in r.headers, "if-match" in r.headers) for r in puts if r.writes]
    assert sent == [(True, False)] + [(False, True)] * times
    store.close()


def test_a_created_object_that_stays_wrong_is_an_error(line: Line) -> None:
    store, _ = line.store()
    line.spoil(PUT, "flip a byte", times=100)
    with pytest.raises(TransferCorrupt):
        store.write("x", DATA, if_absent=True)
    store.close()


def test_an_answer_with_a_wrong_etag_does_not_spoil_a_good_object(line: Line) -> None:
    """The object is looked at, and left as it is."""
    store, verdicts = line.store()
    line.spoil(PUT, "forge the etag")
    meta = store.write("x", DATA, if_absent=True)
    assert verdicts.seen == [("etag", False), ("read_back", True)]
    assert meta.etag == store.stat("x").etag
    assert sum(request.writes for request in line.proxy.requests) == 1
    with pytest.raises(AlreadyExists):
        store.write("x", b"others", if_absent=True)
    store.close()


def test_nothing_is_replaced_that_is_not_ours(line: Line) -> None:
    """Between the look and the replacement somebody may have deleted it and made another."""
    store, _ = line.store()
    other, _ = line.store()
    line.spoil(PUT, "flip a byte")
    put_over = store._put_over

    def meanwhile(*args: object) -> object:
        other.write("x", b"another's")
        return put_over(*args)  # type: ignore[arg-type]

    store._put_over = meanwhile  # type: ignore[method-assign, assignment]
    with pytest.raises(TransferCorrupt, match="and then another"):
        store.write("x", DATA, if_absent=True)
    assert store.read("x") == b"another's"
    store.close()
    other.close()


# --- answers that are lost ---------------------------------------------------------------


@pytest.mark.parametrize("server", ["moto", "seaweed"])
@pytest.mark.allow_log_warnings
async def test_a_commit_whose_answer_is_lost_is_published_once(
    server: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Neither success nor conflict: the object's digest tells that it is this very commit."""
    upstream: ObjectServer = request.getfixturevalue(server)
    with recording(upstream) as proxy:
        line = Line(proxy, upstream.bucket())
        store, _ = line.store()
        world = World(tmp_path)
        make_volume(store, VOLUME, world.runtime)
        layered = RetryLayer(store, deadline_s=20)
        async with running(world.context(store=layered)) as engine:
            fence = line.spoil(r"^PUT [^?]*/log/", "lose the answer")
            with pytest.raises(Unavailable):
                await engine.committer.take_epoch()
            await engine.committer.take_epoch()
            assert fence.done == 1
            await write_file(engine, b"a", b"one")
            commit = line.spoil(r"^PUT [^?]*/log/", "lose the answer", times=2)
            await engine.committer.commit_once()
            assert commit.done == 2
            head = engine.state.committed.head
            assert head.epoch == 2, "the first fence was this mount's own, and stays"
        log = CommitLog(store, tmp_path, None)
        assert log.sequence_numbers(0) == list(range(1, head.seq + 1))
        assert log.read(head.seq).digest == head.digest
        async with running(world.context("fresh", store=layered), takeover=True) as other:
            assert {name: await read_file(other, name) for name in names(other)} == {b"a": b"one"}
        store.close()


# --- parts -------------------------------------------------------------------------------


def _upload(
    store: S3Store, file: Path, states: list[UploadState], state: UploadState | None = None
) -> None:
    upload_file_multipart(
        RetryLayer(store, deadline_s=20),
        "x",
        file,
        part_size=PART_SIZE_MIN,
        save_state=states.append,
        state=state,
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of two parts."""
    made = tmp_path / "file"
    made.write_bytes(os.urandom(PART_SIZE_MIN + 1000))
    return made


async def test_a_part_that_arrived_wrong_is_sent_again(line: Line, file: Path) -> None:
    store, verdicts = line.store()
    line.spoil(r"partNumber=2", "flip a byte")
    _upload(store, file, [])
    assert store.read("x") == file.read_bytes()
    assert sorted(verdicts.seen) == [("etag", False), ("etag", True), ("etag", True)]
    store.close()


async def test_an_upload_that_nothing_else_proves_is_read(line: Line, file: Path) -> None:
    """Under SSE-KMS, on a store without check sums: a wrong part shows when it is read."""
    store, _ = line.store(**KMS)
    states: list[UploadState] = []
    line.spoil(r"partNumber=2", "flip a byte")
    with pytest.raises(TransferCorrupt, match="read back"):
        _upload(store, file, states)
    _upload(store, file, states, states[-1])
    assert store.read("x") == file.read_bytes()
    store.close()


async def test_checksums_prove_the_parts(checked_line: Line, file: Path) -> None:
    """Then nothing has to be read."""
    store, verdicts = checked_line.store(verify="checksum")
    _upload(store, file, [])
    assert verdicts.seen == [("checksum", True)] * 2
    assert not any(
        request.method == "GET" and request.line.endswith("/v/x")
        for request in checked_line.proxy.requests
    )
    assert store.read("x") == file.read_bytes()
    store.close()


@pytest.mark.parametrize("options", [{}, KMS], ids=["etag", "sse-kms"])
async def test_a_completed_upload_whose_answer_is_lost_is_found(
    line: Line, file: Path, options: dict[str, object]
) -> None:
    store, _ = line.store(**options)
    fault = line.spoil(r"^POST .*uploadId=", "lose the answer")
    _upload(store, file, [])
    assert fault.done == 1
    assert store.read("x") == file.read_bytes()
    assert sum("?uploads" in request.path for request in line.proxy.requests) == 1
    store.close()


def test_azure_and_google_answer_with_the_md5_of_what_they_stored(
    azurite: AzuriteServer, gcs: GcsServer
) -> None:
    """Every upload is counted by what it was believed, on every cloud; no second request for it."""
    seen = Verdicts()
    blob = azure_store(azurite, seen)
    blob.write("x", DATA)
    upload = blob.begin_upload("y")
    etag = blob.upload_part("y", upload, 1, DATA)
    blob.complete_upload("y", upload, {1: etag})
    # The mark of an upload is a part, too; azurite answers parts without their MD5.
    assert seen.seen == [("checksum", True), ("content_md5", True), ("content_md5", True)]
    seen.seen.clear()
    gcs_store(gcs, seen).write("x", DATA)
    assert seen.seen == [("checksum", True)]
