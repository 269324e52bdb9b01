"""Reading a journal back: what belongs to the chain, where it ends, and what the marks say."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3fs_banyan.errors import UnsupportedVersion
from s3fs_banyan.format.checksum import xxh3
from s3fs_banyan.format.record import (
    RECORD_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    SegmentHeader,
    encode_record,
    encode_segment_header,
)
from s3fs_banyan.journal.replay import ReplayEnd, replay, segment_files
from s3fs_banyan.model import Cut, Operation, Write
from tests.unit.memory_disk import MemoryDisk

DIRECTORY = Path("journal")
VOLUME_ID = b"v" * 16


class Log:
    """Builds segments record by record, as several lives may leave them."""

    def __init__(self) -> None:
        self.disk = MemoryDisk()
        self.chain = 0
        self.op_seq = 0
        self.synced = 0
        self.number = 0
        self.chains = {0: 0}
        self.positions: dict[int, tuple[Path, int]] = {}
        self._path = Path()
        self._end = 0

    def segment(self, path: str | None = None) -> Log:
        """Begin a segment; over an old file's bytes if `path` names one."""
        self.number += 1
        self._path = DIRECTORY / (path or f"segment-{self.number:06d}")
        file = self.disk.open(self._path, create=True)
        header = SegmentHeader(self.number, self.op_seq + 1, self.chain, self.synced, VOLUME_ID)
        file.pwritev((encode_segment_header(header),), 0)
        self._end = SEGMENT_HEADER_BYTES
        return self

    def add(self, *ops: Operation) -> Log:
        """Append operations."""
        for op in ops:
            self.op_seq += 1
            head, data, self.chain = encode_record(op, self.op_seq, 0, self.synced, self.chain)
            self.disk.open(self._path).pwritev((head, data), self._end)
            self.positions[self.op_seq] = (self._path, self._end)
            self._end += len(head) + len(data)
            self.chains[self.op_seq] = self.chain
        return self

    def sync(self) -> Log:
        """Note that everything so far is on the disk."""
        self.synced = self.op_seq
        return self

    def rewind(self, op_seq: int) -> Log:
        """Go on after an earlier operation, as after a power cut."""
        self.op_seq, self.chain = op_seq, self.chains[op_seq]
        self.synced = min(self.synced, op_seq)
        return self

    def flip(self, op_seq: int, at: int) -> None:
        """Damage one bit of a record."""
        path, position = self.positions[op_seq]
        self.disk.files[path].data[position + at] ^= 1

    def replay(self, base: int = 0, chain: int | None = None) -> tuple[list[Operation], ReplayEnd]:
        """Return what a start would replay behind `base`."""
        end = ReplayEnd(op_seq=0, chain=0)
        found = segment_files(self.disk, DIRECTORY, VOLUME_ID)
        base_chain = self.chains[base] if chain is None else chain
        return [r.op for _, _, r in replay(self.disk, found, base, base_chain, end)], end


def cuts(first: int, last: int) -> list[Operation]:
    """Return distinguishable operations."""
    return [Cut(number) for number in range(first, last + 1)]


@pytest.mark.parametrize("base", range(10))
def test_replay_begins_right_behind_any_base(base: int) -> None:
    """A record replayed twice is a name made twice; one left out is a lost call."""
    log = Log().segment().add(*cuts(1, 3)).segment().add(*cuts(4, 6)).segment().add(*cuts(7, 9))
    ops, end = log.replay(base)
    assert ops == cuts(base + 1, 9)
    assert (end.op_seq, end.chain, end.base_found) == (9, log.chain, True)


def test_a_base_that_the_journal_does_not_know_yields_nothing() -> None:
    """Another's commit, or a chain of another life: this journal does not go on from there."""
    log = Log().segment().add(*cuts(1, 5))
    for base, chain in ((3, 12345), (50, 1), (0, 7)):
        ops, end = log.replay(base, chain)
        assert ops == []
        assert not end.base_found
        assert (end.op_seq, end.chain) == (base, chain)


@pytest.mark.parametrize("at", [0, 9, 16, 24, 40, 50])
def test_replay_ends_before_a_damaged_record(at: int) -> None:
    """Whatever field it hits: what follows is not used, even if it is intact."""
    log = Log().segment().add(*cuts(1, 6))
    log.flip(4, at)
    ops, end = log.replay()
    assert ops == cuts(1, 3)
    assert end.op_seq == 3


def test_damaged_data_ends_the_replay_and_the_marks_behind_it_are_read() -> None:
    """Only so can rot be told from a power cut."""
    log = Log().segment().add(Cut(1), Write(2, 0, False, 1, b"data" * 50), Cut(3)).sync()
    log.add(*cuts(4, 5))
    log.flip(2, RECORD_HEADER_BYTES + 30)
    ops, end = log.replay()
    assert ops == [Cut(1)]
    assert end.synced_mark == 3 > end.op_seq


def test_a_torn_tail_without_marks_is_a_power_cut() -> None:
    """The records behind the last sync were promised to nobody."""
    log = Log().segment().add(*cuts(1, 3)).sync().add(*cuts(4, 6))
    log.flip(5, 3)
    ops, end = log.replay()
    assert ops == cuts(1, 4)
    assert end.synced_mark == 3 <= end.op_seq


def test_a_lost_segment_in_the_middle_is_found_by_the_next_header() -> None:
    """The headers of later segments say what was synced when they were begun."""
    log = Log().segment().add(*cuts(1, 3)).segment().add(*cuts(4, 6)).sync()
    log.segment().add(*cuts(7, 9))
    log.disk.unlink(DIRECTORY / "segment-000002")
    ops, end = log.replay()
    assert ops == cuts(1, 3)
    assert end.synced_mark == 6


def test_a_later_life_goes_on_where_the_power_cut_left_off() -> None:
    """The stale records of the old life stand in a segment of a lower number."""
    log = Log().segment().add(*cuts(1, 3)).sync().segment().add(*cuts(4, 8))
    log.flip(6, 0)
    log.rewind(5).segment().add(Cut(106), Cut(107))
    ops, end = log.replay()
    assert ops == [*cuts(1, 5), Cut(106), Cut(107)]
    assert end.op_seq == 7


def test_stale_records_behind_a_short_new_segment_are_not_its_own() -> None:
    """A recycled file: right behind the new record stands an intact old one."""
    log = Log().segment().add(*cuts(1, 6)).segment().add(*cuts(7, 9))
    log.segment("segment-000001").add(Cut(10))
    ops, end = log.replay(6)
    assert ops == [*cuts(7, 9), Cut(10)]
    assert end.op_seq == 10


def test_doubles_of_a_rewrite_are_skipped_and_the_rest_joined() -> None:
    """Some records of the bad segment reached the disk, the fresh one holds all of them."""
    log = Log().segment().add(*cuts(1, 6))
    log.rewind(2).segment().add(*cuts(3, 8))
    for damaged in (None, 6, 4, 3):
        if damaged is not None:
            path = DIRECTORY / "segment-000001"
            offset = SEGMENT_HEADER_BYTES + (damaged - 1) * (RECORD_HEADER_BYTES + 8)
            log.disk.files[path].data[offset] ^= 1
        ops, end = log.replay()
        assert ops == cuts(1, 8)
        assert end.base_found


def test_marks_that_were_given_up_do_not_come_back() -> None:
    """After an accepted loss a later segment says where the log really ended."""
    log = Log().segment().add(*cuts(1, 9)).sync().add(Cut(10))
    log.flip(4, 0)
    assert log.replay()[1].synced_mark == 0  # lengths behind the damage cannot be followed
    log = Log().segment().add(*cuts(1, 9)).sync().segment().add(Cut(10))
    log.flip(4, 40)
    assert log.replay()[1].synced_mark == 9
    log.rewind(3).segment().add(Cut(104))
    ops, end = log.replay()
    assert ops == [*cuts(1, 3), Cut(104)]
    assert end.synced_mark <= end.op_seq == 4


def test_segments_of_another_volume_count_as_free() -> None:
    """A local directory that was used for another volume must not mix its records in."""
    log = Log().segment().add(*cuts(1, 3))
    found = segment_files(log.disk, DIRECTORY, b"x" * 16)
    assert [segment.header for segment in found] == [None]


def test_a_segment_of_a_newer_release_is_refused() -> None:
    """It may hold anything: going on without it could lose what it holds."""
    log = Log().segment().add(*cuts(1, 3))
    data = log.disk.files[DIRECTORY / "segment-000001"].data
    data[8] = 2
    data[64:72] = xxh3(bytes(data[:64])).to_bytes(8, "little")
    with pytest.raises(UnsupportedVersion, match="journal segment"):
        segment_files(log.disk, DIRECTORY, VOLUME_ID)


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 400), min_size=1, max_size=12),
    rolls=st.sets(st.integers(1, 11)),
    syncs=st.sets(st.integers(0, 11)),
    data=st.data(),
)
def test_any_single_flipped_bit_leaves_a_prefix(
    sizes: list[int], rolls: set[int], syncs: set[int], data: st.DataObject
) -> None:
    """Never another record, never one out of order; and a lost synced one is noticed."""
    log = Log().segment()
    ops: list[Operation] = [Write(2, n, False, n, bytes([n]) * s) for n, s in enumerate(sizes)]
    for number, op in enumerate(ops):
        if number in rolls:
            log.segment()
        log.add(op)
        if number in syncs:
            log.sync()
    path = data.draw(st.sampled_from(sorted(log.disk.files)))
    content = log.disk.files[path].data
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    found, end = log.replay()
    assert found == ops[: len(found)]
    assert end.op_seq == len(found)
