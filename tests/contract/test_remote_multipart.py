"""The multipart part of the store contract, and the upload of whole files on top of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from s3fs_banyan.errors import Misconfigured, ObjectMissing, TransferCorrupt, Unavailable
from s3fs_banyan.remote.azure import AzureStore
from s3fs_banyan.remote.base import RemoteFileSystem
from s3fs_banyan.remote.layers import multipart_of
from s3fs_banyan.remote.multipart import UploadState, expected_etag, upload_file_multipart
from tests.contract.remote_stores import MULTIPART, in_threads, on, store

__all__ = ["store"]

MIB = 1 << 20
PART = 5 * MIB


def _part(number: int, size: int = PART) -> bytes:
    return bytes([number]) * size


@on(MULTIPART)
def test_parts_become_one_object_in_the_order_of_their_numbers(store: RemoteFileSystem) -> None:
    parts = multipart_of(store)
    upload = parts.begin_upload("pack/1")
    with pytest.raises(ObjectMissing):
        store.read("pack/1")

    etags: dict[int, str] = {}

    def send(index: int) -> None:
        number = (3, 1, 2)[index]
        size = 1000 if number == 3 else PART
        etags[number] = parts.upload_part("pack/1", upload, number, _part(number, size))

    assert in_threads(3, send) == [None] * 3
    assert parts.list_parts("pack/1", upload) == {
        1: (PART, etags[1]),
        2: (PART, etags[2]),
        3: (1000, etags[3]),
    }
    assert list(store.list()) == []
    meta = parts.complete_upload("pack/1", upload, etags)
    whole = _part(1) + _part(2) + _part(3, 1000)
    assert (meta.path, meta.size) == ("pack/1", len(whole))
    assert store.read("pack/1") == whole
    assert store.read("pack/1", offset=PART - 1, length=2) == b"\1\2"
    assert store.stat("pack/1").etag == meta.etag
    assert list(parts.list_uploads()) == []


@on(MULTIPART)
def test_part_sent_again_replaces_the_first(store: RemoteFileSystem) -> None:
    parts = multipart_of(store)
    upload = parts.begin_upload("x")
    parts.upload_part("x", upload, 1, b"first")
    etag = parts.upload_part("x", upload, 1, b"second!")
    assert list(parts.list_parts("x", upload)) == [1]  # SeaweedFS may still tell of the first
    parts.complete_upload("x", upload, {1: etag})
    assert store.read("x") == b"second!"


@on(MULTIPART)
def test_part_etag_is_its_md5(store: RemoteFileSystem) -> None:
    parts = multipart_of(store)
    upload = parts.begin_upload("x")
    digest = hashlib.md5(b"some bytes", usedforsecurity=False).hexdigest()
    assert parts.upload_part("x", upload, 1, b"some bytes") == digest


@on(MULTIPART)
def test_unfinished_uploads_are_listed_until_aborted(store: RemoteFileSystem) -> None:
    parts = multipart_of(store)
    first = parts.begin_upload("pack/1")
    second = parts.begin_upload("other/2")
    assert {(path, upload) for path, upload, _ in parts.list_uploads()} == {
        ("pack/1", first),
        ("other/2", second),
    }
    assert [path for path, _, _ in parts.list_uploads("pack/")] == ["pack/1"]
    assert all(started_ns > 1_200_000_000 * 10**9 for _, _, started_ns in parts.list_uploads())
    parts.abort_upload("pack/1", first)
    parts.abort_upload("pack/1", first)  # gone already: no error
    assert [path for path, _, _ in parts.list_uploads()] == ["other/2"]
    with pytest.raises(ObjectMissing):
        parts.list_parts("pack/1", first)
    if isinstance(store, AzureStore):  # it takes the block, and nobody can name it any more
        parts.upload_part("pack/1", first, 1, b"late")
        with pytest.raises(ObjectMissing):
            parts.list_parts("pack/1", first)
        assert [path for path, _, _ in parts.list_uploads()] == ["other/2"]
    else:
        with pytest.raises((ObjectMissing, Unavailable)):  # moto answers 500
            parts.upload_part("pack/1", first, 1, b"late")
    assert list(store.list()) == []


@on(MULTIPART)
def test_upload_of_a_bad_path_or_part_is_refused(store: RemoteFileSystem) -> None:
    parts = multipart_of(store)
    with pytest.raises(ValueError, match="store path"):
        parts.begin_upload("../x")
    upload = parts.begin_upload("x")
    with pytest.raises(ValueError, match="store path"):
        parts.upload_part("../x", upload, 1, b"")
    with pytest.raises(ValueError, match="part number 0"):
        parts.upload_part("x", upload, 0, b"")
    with pytest.raises(Misconfigured):
        parts.complete_upload("x", upload, {})
    parts.upload_part("x", upload, 1, b"some bytes")
    with pytest.raises(Misconfigured):
        parts.complete_upload("x", upload, {1: "0" * 32})
    with pytest.raises(ObjectMissing):
        store.read("x")


@on(("local", "local+layers"))
def test_store_without_multipart_says_so(store: RemoteFileSystem) -> None:
    assert not store.capabilities.multipart
    with pytest.raises(Misconfigured, match="multipart"):
        multipart_of(store)


CONTENT = _part(1) + _part(2) + _part(3) + b"the last part"

# --- whole files -----------------------------------------------------------------------------


class Saved:
    """Keeps every state that an upload saves."""

    def __init__(self) -> None:
        self.states: list[UploadState] = []

    def __call__(self, state: UploadState) -> None:
        assert UploadState.decode(state.encode(), "state") == state
        self.states.append(state)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of three and a bit parts, all different."""
    path = tmp_path / "pack"
    path.write_bytes(CONTENT)
    return path


@on(MULTIPART)
def test_file_becomes_an_object(store: RemoteFileSystem, file: Path) -> None:
    saved = Saved()
    done = upload_file_multipart(store, "pack/1", file, part_size=PART, save_state=saved)
    assert done.meta.etag == expected_etag(saved.states[-1])
    assert store.read("pack/1") == CONTENT
    assert [len(state.parts) for state in saved.states] == [0, 1, 2, 3, 4]


@on(MULTIPART)
def test_upload_goes_on_where_it_stopped(store: RemoteFileSystem, file: Path) -> None:
    """After a crash only what the store does not hold is sent: packs are large, links slow."""
    parts = multipart_of(store)
    upload = parts.begin_upload("pack/1")
    parts.upload_part("pack/1", upload, 1, _part(1))
    parts.upload_part("pack/1", upload, 2, _part(9))  # not what is in the file
    state = UploadState(path="pack/1", upload_id=upload, file_size=len(CONTENT), part_size=PART)
    sent = _count_parts(store)
    upload_file_multipart(store, "pack/1", file, part_size=PART, save_state=Saved(), state=state)
    assert sorted(sent) == [2, 3, 4]
    assert store.read("pack/1") == CONTENT


@on(MULTIPART)
def test_upload_completed_before_a_crash_is_recognised(store: RemoteFileSystem, file: Path) -> None:
    saved = Saved()
    first = upload_file_multipart(store, "pack/1", file, part_size=PART, save_state=saved)
    sent = _count_parts(store)
    again = upload_file_multipart(
        store, "pack/1", file, part_size=PART, save_state=saved, state=saved.states[-1]
    )
    assert again.meta.etag == first.meta.etag
    assert sent == []


@on(MULTIPART)
def test_upload_that_somebody_aborted_starts_again(store: RemoteFileSystem, file: Path) -> None:
    parts = multipart_of(store)
    upload = parts.begin_upload("pack/1")
    parts.abort_upload("pack/1", upload)
    state = UploadState(path="pack/1", upload_id=upload, file_size=len(CONTENT), part_size=PART)
    upload_file_multipart(store, "pack/1", file, part_size=PART, save_state=Saved(), state=state)
    assert store.read("pack/1") == CONTENT


@on(("memory",))
def test_object_that_differs_from_the_upload_is_an_error(
    store: RemoteFileSystem, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = store.complete_upload  # type: ignore[attr-defined]

    def complete(path: str, upload_id: str, etags: dict[int, str]) -> object:
        del etags[4]
        return original(path, upload_id, etags)

    monkeypatch.setattr(store, "complete_upload", complete)
    with pytest.raises(TransferCorrupt, match="pack/1"):
        upload_file_multipart(store, "pack/1", file, part_size=PART, save_state=Saved())


def _count_parts(store: RemoteFileSystem) -> list[int]:
    """Note from now on the number of each part that is sent through this store."""
    sent: list[int] = []
    original = store.upload_part  # type: ignore[attr-defined]

    def upload_part(path: str, upload_id: str, number: int, data: bytes | bytearray) -> str:
        sent.append(number)
        etag: str = original(path, upload_id, number, data)
        return etag

    store.upload_part = upload_part  # type: ignore[attr-defined]
    return sent
