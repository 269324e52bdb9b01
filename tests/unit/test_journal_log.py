"""The journal while it runs: append, group sync, failed syncs, room, recycling."""

from __future__ import annotations

import pytest
import trio

from s3fs_banyan.errors import Corrupt
from s3fs_banyan.format.record import SEGMENT_HEADER_BYTES, WRITE_DATA_OFFSET
from s3fs_banyan.journal.log import Appended, PieceGone
from s3fs_banyan.journal.replay import ReplayEnd, replay, segment_files
from s3fs_banyan.journal.segment import PAGE_BYTES
from s3fs_banyan.model import (
    NAME_BYTES_MAX,
    SYMLINK_BYTES_MAX,
    XATTR_VALUE_BYTES_MAX,
    Cut,
    Make,
    Operation,
    Rename,
    SetXattr,
    Unlink,
)
from tests.unit.journal_kit import DIRECTORY, SEGMENT, VOLUME_ID, Bench, write
from tests.unit.memory_disk import MemoryFile


async def test_what_was_appended_is_replayed_and_read_back() -> None:
    """Everything rests on this: an answered call is in the journal, byte for byte."""
    bench = Bench()
    journal = bench.begin()
    ops: list[Operation] = [write(1), Cut(5), Unlink(1, b"x", 9), write(4, 0x10000)]
    appended = [journal.append(op, tid=7) for op in ops]
    assert [a.op_seq for a in appended] == [1, 2, 3, 4]
    assert bench.replayed() == ops
    last = appended[3]
    assert journal.read_write_data(last.segment, last.position, 4) == write(4, 0x10000).data


async def test_records_roll_into_the_next_segment_and_replay_across_it() -> None:
    """The chain crosses segments: a roll must be invisible to a replay."""
    bench = Bench()
    journal = bench.begin(spares=3)
    ops = [write(n, 60_000) for n in range(12)]
    used = {journal.append(op).segment for op in ops}
    assert len(used) == 3
    assert bench.replayed() == ops


async def test_waiters_share_one_datasync() -> None:
    """Sixteen fsyncs at once must not be sixteen disk syncs."""
    bench = Bench()
    journal = bench.begin()
    journal._sync_ns = 10.0**9  # a slow disk: by thread
    await journal.wait_synced(0)
    before = bench.disk.syncs
    async with trio.open_nursery() as nursery:
        for number in range(16):
            journal.append(write(number))
            nursery.start_soon(journal.wait_synced, journal.last_seq)
    assert bench.disk.syncs == before + 1
    assert bench.runtime.thread_calls == ["fsync"]
    assert journal.synced_seq == 16


async def test_small_syncs_run_inline_on_a_fast_disk_and_large_ones_in_a_thread() -> None:
    """A thread hop costs as much as a fast disk's sync; a large one would hold the loop."""
    bench = Bench(segment_bytes=4 << 20)
    journal = bench.begin()
    journal.append(write(1))
    await journal.wait_synced(1)
    assert bench.runtime.thread_calls == []
    for number in range(2, 8):
        journal.append(write(number, 100_000))
    await journal.wait_synced(journal.last_seq)
    assert bench.runtime.thread_calls == ["fsync"]


async def test_a_barrier_syncs_every_segment_written_since_the_last_one() -> None:
    """An older segment left unsynced is a hole in the chain after a power cut."""
    bench = Bench()
    journal = bench.begin(spares=3)
    ops = [write(n, 60_000) for n in range(12)]
    for op in ops:
        journal.append(op)
    await journal.wait_synced(12)
    bench.disk.power_cut()
    assert bench.replayed() == ops


async def test_unsynced_records_are_lost_as_a_suffix() -> None:
    """After a power cut the state is a prefix that holds every acknowledged sync."""
    bench = Bench()
    journal = bench.begin()
    journal.append(write(1))
    await journal.wait_synced(1)
    journal.append(write(2))
    bench.disk.power_cut()
    assert bench.replayed() == [write(1)]


# --- failed syncs ------------------------------------------------------------------------


async def test_a_failed_sync_is_answered_from_a_fresh_segment() -> None:
    """The kernel calls the pages clean after an error: syncing again would be a lie."""
    bench = Bench()
    journal = bench.begin()
    moved: list[Appended] = []
    journal.on_moved = moved.extend
    journal.append(write(1))
    await journal.wait_synced(1)
    bad = bench.current()
    for number in (2, 3):
        journal.append(write(number))
    bad.failures_left = 1
    syncs = bad.syncs
    await journal.wait_synced(3)
    assert bad.syncs == syncs + 1, "the segment that failed was synced again"
    assert [m.op_seq for m in moved] == [2, 3]
    for at, number in zip(moved, (2, 3), strict=True):
        data = journal.read_write_data(at.segment, at.position, at.op_seq)
        assert data == write(number).data
    assert len(bench.observer.failed) == 1
    journal.append(write(4))
    await journal.wait_synced(4)
    bench.disk.power_cut()
    assert bench.replayed() == [write(n) for n in (1, 2, 3, 4)]


async def test_replay_skips_the_doubles_of_a_rewritten_segment() -> None:
    """The records of a failed segment may have reached the disk all the same."""
    bench = Bench()
    journal = bench.begin()
    for number in (1, 2, 3):
        journal.append(write(number))
    bench.current().failures_left = 1
    await journal.wait_synced(3)
    assert bench.replayed() == [write(n) for n in (1, 2, 3)]


async def test_nobody_is_answered_while_a_failed_sync_waits_for_a_segment() -> None:
    """With no spare segment the records are nowhere durable: a second waiter must wait, too."""
    bench = Bench()
    journal = bench.begin(spares=0)
    journal.append(write(1))
    bench.current().failures_left = 1
    answered: list[int] = []

    async def wait(number: int) -> None:
        await journal.wait_synced(1)
        answered.append(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, 1)
        nursery.start_soon(wait, 2)
        await trio.testing.wait_all_tasks_blocked()
        early = [*answered]
        has_room = journal.has_room(0, use_reserve=True)
        journal.spares.make_now()
    assert early == []
    assert not has_room
    bench.disk.power_cut()
    assert bench.replayed() == [write(1)]


async def test_a_segment_that_failed_is_not_synced_with_what_was_appended_meanwhile() -> None:
    """Records that arrive while the sync fails go to the fresh segment as well."""
    bench = Bench()
    journal = bench.begin()
    journal._sync_ns = 10.0**9
    bad = bench.current()
    bad.failures_left = 1
    syncs = bad.syncs
    journal.append(write(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.wait_synced, 1)
        while journal._sync_running is None:
            await trio.lowlevel.checkpoint()
        journal.append(write(2))
    await journal.wait_synced(2)
    assert bad.syncs == syncs + 1
    bench.disk.power_cut()
    assert bench.replayed() == [write(1), write(2)]


async def test_a_rewrite_waits_until_all_of_it_fits() -> None:
    """A rewrite that runs out of segments half-way would leave the journal torn."""
    bench = Bench()
    journal = bench.begin(spares=2)
    ops = [write(n, 60_000) for n in range(10)]
    for op in ops:
        journal.append(op)
    assert len(journal.spares) == 0
    journal.spares.make_now()
    for segment in journal._dirty:
        bench.disk.files[segment.path].failures_left = 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.wait_synced, journal.last_seq)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            journal.spares.make_now()
    bench.disk.power_cut()
    assert bench.replayed() == ops


# --- room --------------------------------------------------------------------------------

_NAME = b"n" * NAME_BYTES_MAX


@pytest.mark.parametrize(
    ("op", "asked"),
    [
        (Make(1, _NAME, 2, 0o120777, 0, 0, 0, b"t" * SYMLINK_BYTES_MAX, 1), 0),
        (Rename(1, _NAME, 1, _NAME, False, 1), 0),
        (SetXattr(2, _NAME, b"x" * XATTR_VALUE_BYTES_MAX, 1), XATTR_VALUE_BYTES_MAX),
        (write(1, 1 << 17), 1 << 17),
    ],
    ids=lambda value: type(value).__name__,
)
def test_room_that_was_promised_is_there(op: Operation, asked: int) -> None:
    """A call that waited for room must not fail for want of it."""
    bench = Bench(spares=1)
    journal = bench.begin(spares=0)
    segment = journal._current
    assert segment is not None
    for left in range(asked, asked + 12_000, 7):
        segment.end = SEGMENT - left
        if journal.has_room(asked, commits=True):
            journal.append(op)
            return
    pytest.fail("there was never room")


async def test_the_syncer_syncs_by_bytes_and_by_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Without it another's data stands before a 4 KiB record when an fsync comes."""
    del autojump_clock
    bench = Bench(segment_bytes=4 << 20, sync_bytes=1 << 20, sync_interval_s=10.0)
    journal = bench.begin()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.run_syncer)
        await trio.sleep(0.1)
        for number in range(11):
            journal.append(write(number, 100_000))
        await trio.testing.wait_all_tasks_blocked()
        assert journal.synced_seq == 11
        journal.append(write(12))
        await trio.sleep(1)
        assert journal.synced_seq == 11
        await trio.sleep(10)
        assert journal.synced_seq == 12
        nursery.cancel_scope.cancel()


# --- recycling and reading ---------------------------------------------------------------


def _filled(bench: Bench) -> list[Appended]:
    journal = bench.begin(spares=4)
    return [journal.append(write(n, 60_000)) for n in range(16)]


async def test_only_segments_behind_the_cut_are_recycled() -> None:
    """A segment recycled too early takes bytes with it that are nowhere else."""
    bench = Bench()
    appended = _filled(bench)
    journal = bench.journal
    await journal.wait_synced(16)
    cut = appended[8].op_seq
    journal.recycle(cut)
    for at in appended:
        last_of_segment = max(a.op_seq for a in appended if a.segment == at.segment)
        assert journal.has_segment(at.segment) == (last_of_segment > cut)
        if not journal.has_segment(at.segment):
            with pytest.raises(PieceGone):
                journal.read_write_data(at.segment, at.position, at.op_seq)
    kept = sum(1 for at in appended if journal.has_segment(at.segment))
    assert journal.backlog_bytes > kept * 60_000
    assert journal.backlog_bytes < (kept + 1) * 60_000


async def test_the_current_segment_is_never_recycled() -> None:
    """It is being written: its file must not come back as a spare."""
    bench = Bench()
    journal = bench.begin()
    at = journal.append(write(1))
    await journal.wait_synced(1)
    journal.recycle(1)
    assert journal.has_segment(at.segment)


async def test_stale_records_of_a_recycled_segment_never_follow_new_ones() -> None:
    """The old records stand right behind the new one, intact but for their chain."""
    bench = Bench()
    length = 15 * PAGE_BYTES - WRITE_DATA_OFFSET  # no padding between them
    journal = bench.begin(spares=1)
    for number in range(6):
        journal.append(write(number, length))
    await journal.wait_synced(6)
    chain, cut = journal.chain, journal.last_seq
    journal.append(Cut(1))
    journal.recycle(cut)
    chain, cut = journal.chain, journal.last_seq
    ops = [write(100 + n, length) for n in range(4)]
    for op in ops:
        journal.append(op)
    assert len({segment.path for segment in journal._segments.values()}) == 2
    assert bench.replayed(cut, chain) == ops


async def test_a_page_of_a_recycled_segment_is_written_whole_when_it_is_entered() -> None:
    """A part of it would make the kernel read the rest of the old page from the disk first."""
    bench = Bench()
    journal = bench.begin(spares=1)
    for file in bench.disk.files.values():
        file.data[:] = b"\xff" * SEGMENT
    journal._roll(1, 0)
    ends = []
    for number, length in enumerate((10, 4000, 5000, 3 * PAGE_BYTES, 1, 20_000)):
        journal.append(write(number, length))
        data = bench.current().data
        ends.append(data.rindex(b"\0") + 1)
        assert ends[-1] % PAGE_BYTES == 0
        assert data[ends[-1] :] == b"\xff" * (SEGMENT - ends[-1])
    assert ends == sorted(ends)
    assert ends[0] == SEGMENT_HEADER_BYTES + PAGE_BYTES


def test_a_rotten_record_is_not_served() -> None:
    """A bit that rots in the journal must not become a fresh, valid chunk."""
    bench = Bench()
    journal = bench.begin()
    at = journal.append(write(1, 5000))
    data_at = at.position + 100
    bench.current().data[data_at] ^= 4
    with pytest.raises(Corrupt, match="journal record"):
        journal.read_write_data(at.segment, at.position, 1)
    with pytest.raises(Corrupt):
        journal.read_write_data(at.segment, at.position, 2)


def _flip(file: MemoryFile, position: int) -> None:
    file.data[position] ^= 1


@pytest.mark.parametrize("length", [1, 4096])
def test_no_flipped_bit_of_a_write_record_serves_other_bytes(length: int) -> None:
    """Every bit of the record: damage is named, or the bytes are the right ones."""
    bench = Bench()
    journal = bench.begin()
    at = journal.append(write(1, length))
    file = bench.current()
    served = 0
    for position in range(SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES + 73 + min(length, 64)):
        _flip(file, position)
        try:
            assert journal.read_write_data(at.segment, at.position, 1) == write(1, length).data
            served += 1
        except Corrupt:
            pass
        _flip(file, position)
    # What is not needed to find and verify the bytes may be damaged: kind, thread, fields, chain.
    assert served < 73


async def test_a_start_keeps_used_segments_and_takes_the_others_as_spares() -> None:
    """Every start opens a fresh segment; the bytes of the replayed ones are synced first."""
    bench = Bench()
    ops = [write(n, 60_000) for n in range(6)]
    journal = bench.begin(spares=3)
    for op in ops:
        journal.append(op)
    end = ReplayEnd(op_seq=0, chain=0)
    found = segment_files(bench.disk, DIRECTORY, VOLUME_ID)
    list(replay(bench.disk, found, 0, 0, end))
    again = bench.open()
    again.adopt(found, end.used)
    again.begin(end.op_seq, end.chain)
    assert again.segment_counts == (len(end.used) + 1, 1)
    assert again.last_seq == again.synced_seq == 6
    assert again.backlog_bytes == journal.backlog_bytes
    again.append(write(7))
    await again.wait_synced(7)
    bench.disk.power_cut()
    assert bench.replayed() == [*ops, write(7)]


async def test_what_cannot_be_rewritten_is_never_called_synced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The files that could not be synced look clean to the next sync."""
    bench = Bench()
    journal = bench.begin(spares=1)
    journal.append(write(1))
    bench.current().failures_left = 1
    next_file = bench.disk.files[journal.spares._files[0][0]]

    def refuse(_buffers: object, _position: int) -> None:
        raise OSError("injected: nothing can be written")

    monkeypatch.setattr(next_file, "pwritev", refuse)
    for _ in range(2):
        with pytest.raises(OSError, match="nothing can be written"):
            await journal.wait_synced(1)
    assert journal.synced_seq == 0
    assert not journal.has_room(0, commits=True)
