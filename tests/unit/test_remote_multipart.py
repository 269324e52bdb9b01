"""Multipart uploads with a store that fails on purpose."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest

from s3fs_banyan.errors import Corrupt, Unavailable, UnsupportedVersion
from s3fs_banyan.remote.base import FileMeta
from s3fs_banyan.remote.memory import MemoryStore
from s3fs_banyan.remote.multipart import (
    PARTS_MAX,
    PartDone,
    Uploaded,
    UploadState,
    expected_etag,
    upload_file_multipart,
)
from s3fs_banyan.remote.transfers import PooledTransfers

CONTENT = bytes(range(256)) * 4
PART = 100
POOL = PooledTransfers(4)


class Failing(MemoryStore):
    """Fails at part `breaks_at`, and loses the answer of the first `complete_upload` if asked."""

    def __init__(self, *, breaks_at: int = 0, loses: str = "") -> None:
        super().__init__(clock=lambda: 0)
        self.breaks_at = breaks_at
        self.loses = loses
        self.sent: list[int] = []

    def upload_part(self, path: str, upload_id: str, number: int, data: bytes | bytearray) -> str:
        if number == self.breaks_at:
            raise Unavailable("lost")
        self.sent.append(number)
        return super().upload_part(path, upload_id, number, data)

    def complete_upload(self, path: str, upload_id: str, etags: Mapping[int, str]) -> FileMeta:
        if self.loses == "request":
            raise Unavailable("lost")
        meta = super().complete_upload(path, upload_id, etags)
        if self.loses == "answer":
            raise Unavailable("lost")
        return meta


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file to upload."""
    path = tmp_path / "pack"
    path.write_bytes(CONTENT)
    return path


def _upload(
    store: MemoryStore,
    file: Path,
    states: list[UploadState],
    *,
    part_size: int = PART,
) -> Uploaded:
    return upload_file_multipart(
        store,
        "pack/1",
        file,
        part_size=part_size,
        save_state=states.append,
        state=states[-1] if states else None,
        transfers=POOL,
    )


def test_failure_leaves_a_state_that_the_next_attempt_goes_on_from(file: Path) -> None:
    states: list[UploadState] = []
    store = Failing(breaks_at=8)
    with pytest.raises(Unavailable):
        _upload(store, file, states)
    done = [part.number for part in states[-1].parts]
    assert set(done) <= set(store.sent)
    assert 8 not in done
    before = list(store.sent)
    store.breaks_at, store.sent = 0, []
    again = _upload(store, file, states)
    assert (again.parts_sent, again.parts_resumed) == (len(store.sent), len(before))
    assert sorted(before + store.sent) == list(range(1, 12))  # no part is sent twice
    assert store.read("pack/1") == CONTENT


def test_lost_answer_to_the_completion_is_cleared_up(file: Path) -> None:
    """The object is there: sending it all again, or failing, would both be wrong."""
    states: list[UploadState] = []
    done = _upload(Failing(loses="answer"), file, states)
    assert done.meta.etag == expected_etag(states[-1])


def test_completion_that_did_not_take_place_is_an_error(file: Path) -> None:
    states: list[UploadState] = []
    store = Failing(loses="request")
    with pytest.raises(Unavailable):
        _upload(store, file, states)
    store.loses, store.sent = "", []
    _upload(store, file, states)
    assert store.sent == []
    assert store.read("pack/1") == CONTENT


def test_completion_with_another_object_in_place_is_an_error(file: Path) -> None:
    store = Failing(loses="request")
    store.write("pack/1", b"x" * len(CONTENT))  # equal in size only
    with pytest.raises(Unavailable):
        _upload(store, file, [])


def test_upload_that_is_aborted_while_it_runs_is_begun_again(file: Path) -> None:
    """Whoever clears up orphans may be wrong about one: it costs time, not the pack."""
    states: list[UploadState] = []
    store = Failing(breaks_at=8)
    with pytest.raises(Unavailable):
        _upload(store, file, states)
    store.breaks_at = 0
    original, aborted = store.upload_part, [False]

    def upload_part(path: str, upload_id: str, number: int, data: bytes | bytearray) -> str:
        if not aborted[0]:
            aborted[0] = True
            store.abort_upload(path, upload_id)
        return original(path, upload_id, number, data)

    store.upload_part = upload_part  # type: ignore[method-assign]
    _upload(store, file, states)
    assert store.read("pack/1") == CONTENT
    assert list(store.list_uploads()) == []


def test_first_error_ends_the_rest_and_keeps_what_was_done() -> None:
    """A store that breaks must not be asked for every other part before anybody hears of it."""
    pool = PooledTransfers(1)
    done: list[int] = []

    def call(number: int) -> int:
        if number == 2:
            raise Unavailable("lost")
        done.append(number)
        return number

    with pytest.raises(Unavailable):
        list(pool.results([partial(call, number) for number in range(50)]))
    pool.close()
    assert done == [0, 1]


def test_file_of_no_bytes_is_one_part(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    store = Failing()
    _upload(store, empty, [])
    assert (store.sent, store.read("pack/1")) == ([1], b"")


def test_parts_are_made_larger_when_there_would_be_too_many(file: Path) -> None:
    states: list[UploadState] = []
    with file.open("r+b") as resized:
        resized.truncate(PARTS_MAX + 1)
    _upload(Failing(), file, states, part_size=1)
    assert states[-1].part_size == 2
    assert len(states[-1].parts) == PARTS_MAX // 2 + 1


def test_state_of_another_file_is_refused(file: Path) -> None:
    state = UploadState(path="pack/2", upload_id="u", file_size=len(CONTENT), part_size=PART)
    with pytest.raises(ValueError, match="pack/2"):
        _upload(Failing(), file, [state])


def test_file_that_shrinks_meanwhile_is_an_error(file: Path) -> None:
    store = Failing()

    def shrink(_: UploadState) -> None:
        with file.open("r+b") as shrunk:
            shrunk.truncate(250)

    with pytest.raises(Corrupt, match=r"it ends at byte \d+"):
        upload_file_multipart(store, "pack/1", file, part_size=PART, save_state=shrink)
    assert list(store.list()) == []


def test_state_survives_its_encoding() -> None:
    state = UploadState(
        path="pack/1",
        upload_id='with "quotes" and \\',
        file_size=1 << 40,
        part_size=1 << 27,
        parts=(PartDone(number=3, size=7, md5="m", etag="e"),),
    )
    assert UploadState.decode(state.encode(), "state") == state


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"7",
        b'{"version": 1}',
        b"\xff",
        b'{"version": "x"}',
        b"[" * 5000,
    ],
)
def test_state_that_cannot_be_read_is_named(data: bytes) -> None:
    with pytest.raises(Corrupt, match="outbox/1"):
        UploadState.decode(data, "outbox/1")


@pytest.mark.parametrize(
    "change",
    [
        {"part_size": 0}, {"part_size": -1}, {"file_size": -1}, {"part_size": 1},
        {"file_size": float("inf")}, {"parts": [[1, float("inf"), "m", "e"]]}, {"version": 1e999},
        {"parts": 7}, {"parts": [[1]]},
    ],
    ids=str,
)  # fmt: skip
def test_state_of_no_upload_is_named(change: dict[str, object]) -> None:
    """Its sizes decide how many parts are made: one of a byte each is a list of a gigabyte."""
    state = UploadState(path="pack/1", upload_id="u", file_size=1 << 20, part_size=1 << 10)
    data = json.dumps(json.loads(state.encode()) | change).encode()
    with pytest.raises(Corrupt, match="outbox/1"):
        UploadState.decode(data, "outbox/1")


def test_state_of_a_newer_release_is_refused() -> None:
    with pytest.raises(UnsupportedVersion):
        UploadState.decode(b'{"version": 2}', "outbox/1")
