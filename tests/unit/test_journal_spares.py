"""Spare segments: filled beforehand, allocated where somebody waits, kept in hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from s3fs_banyan.journal.replay import ReplayEnd, replay, segment_files
from tests.unit.engine_kit import SECOND_NS
from tests.unit.journal_kit import DIRECTORY, SEGMENT, VOLUME_ID, Bench, write


def test_the_last_spare_is_kept_for_what_frees_space() -> None:
    """On a full disk an unlink must still be possible, or nothing ever frees anything."""
    bench = Bench()
    journal = bench.begin(spares=1)
    segment = journal._current
    assert segment is not None
    segment.end = SEGMENT - 1000
    assert not journal.has_room(0)
    assert journal.has_room(0, use_reserve=True)
    journal.spares.make_now()
    assert journal.has_room(0)


async def test_the_preparer_keeps_spares_ready_and_tells_of_a_full_disk(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Segments are filled before use; a disk that others filled is said, not run into."""
    del autojump_clock
    bench = Bench()
    journal = bench.begin(spares=0)
    bench.disk.free = SEGMENT - 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.spares.run)
        await trio.sleep(5)
        assert journal.spares.disk_full
        assert journal.segment_counts == (1, 0)
        bench.disk.free = 1 << 40
        await trio.sleep(5)
        assert not journal.spares.disk_full
        assert journal.segment_counts == (1, 2)
        nursery.cancel_scope.cancel()
    for file in bench.disk.files.values():
        assert file.size() == SEGMENT
        assert len(file.durable) == SEGMENT


async def test_on_a_tight_disk_the_two_that_are_needed_take_nearly_all(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """With one segment and no spare nothing could be changed any more, unlink included."""
    del autojump_clock
    bench = Bench(spares=8, free_bytes_min=100 * SEGMENT, free_bytes_least=SEGMENT)
    journal = bench.begin(spares=0)
    bench.disk.free = 2 * SEGMENT
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.spares.run)
        await trio.sleep(5)
        assert journal.segment_counts == (1, 2)
        assert not journal.spares.disk_full
        bench.disk.free = 1 << 40
        await trio.sleep(5)
        assert journal.segment_counts == (1, 8)
        bench.disk.free = 99 * SEGMENT
        journal.recycle(0)
        assert journal.segment_counts == (1, 2)
        nursery.cancel_scope.cancel()


async def test_spares_that_a_commit_freed_end_a_full_disk(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """`status` said so for hours, and in an outage a writer that had to wait got ENOSPC."""
    del autojump_clock
    bench = Bench(spares=2)
    journal = bench.begin(spares=0)
    bench.disk.free = SEGMENT - 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.spares.run)
        await trio.sleep(5)
        assert journal.spares.disk_full
        journal.spares.make_now()
        journal.spares.make_now()
        await trio.sleep(5)
        assert not journal.spares.disk_full
        nursery.cancel_scope.cancel()


async def test_a_segment_that_somebody_waits_for_is_allocated_not_filled(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """To fill it takes the disk as long as the writer's own bytes; a replay sees no difference."""
    del autojump_clock
    bench = Bench(segment_bytes=8 << 20)
    journal = bench.begin(spares=0)
    piece = 1 << 20
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.spares.run)  # has its first turn when the writer waits
        for number in range(1, 21):
            while not journal.has_room(piece):
                await journal.wait_changed()
            journal.append(write(number, piece))
        nursery.cancel_scope.cancel()
    await journal.wait_synced(20)
    assert sum(file.allocations for file in bench.disk.files.values()) >= 2
    assert {file.size() for file in bench.disk.files.values()} == {8 << 20}
    bench.disk.power_cut()
    assert bench.replayed() == [write(number, piece) for number in range(1, 21)]


async def test_segments_that_nobody_waits_for_are_filled(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What lies in blocks that were never written takes its syncs half as long again."""
    del autojump_clock
    bench = Bench(segment_bytes=8 << 20)
    journal = bench.begin(spares=0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.spares.run)
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    assert journal.segment_counts == (1, 2)
    assert not any(file.allocations for file in bench.disk.files.values())


@pytest.mark.parametrize("when", ["while it runs", "before it runs"])
async def test_what_is_too_many_goes_in_the_background(
    autojump_clock: trio.testing.MockClock, when: str
) -> None:
    """The names go at once, the blocks in a thread: nobody waits on the event loop for a disk."""
    del autojump_clock
    bench = Bench()
    journal = bench.begin(spares=30)
    spares = journal.spares
    files = {path: file for path, file in bench.disk.files.items() if path != current_path(bench)}
    async with trio.open_nursery() as nursery:
        if when == "while it runs":
            nursery.start_soon(spares.run)
            await trio.sleep(1)
        spares.trim()
        gone = files.keys() - bench.disk.files.keys()
        assert len(gone) == 30 - (bench.settings.segments - 1)
        assert not any(files[path].is_freed for path in gone)
        if when == "before it runs":
            nursery.start_soon(spares.run)
        await trio.sleep(1)
        assert {path for path, file in files.items() if file.is_freed} == gone
        nursery.cancel_scope.cancel()


def current_path(bench: Bench) -> Path:
    """Return the segment that is written at present."""
    segment = bench.journal._current
    assert segment is not None
    return segment.path


async def test_a_spare_whose_name_nobody_synced_is_named_before_it_is_used() -> None:
    """Its maker died before it could; a power cut then took the file, and acknowledged calls."""
    bench = Bench()
    path, file = bench.journal.spares._open_new()
    bench.journal.spares._fill(file, 0, SEGMENT)
    journal = bench.open()
    journal.adopt(segment_files(bench.disk, DIRECTORY, VOLUME_ID), [])
    journal.begin(0, 0)
    assert journal.segment_paths() == [path]
    journal.append(write(1))
    await journal.wait_synced(1)
    bench.disk.power_cut()
    assert bench.replayed() == [write(1)]


def _about_to_rewrite_on_a_full_disk() -> Bench:
    """A record whose sync will fail, and no room for the segment that it is to go to then."""
    bench = Bench()
    bench.begin(spares=0).append(write(1))
    bench.current().failures_left = 1
    bench.disk.free = 0
    return bench


async def test_a_rewrite_does_not_wait_for_a_preparer_that_has_ended(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It is shielded from the end of the daemon, which then never came (seed 19923)."""
    del autojump_clock
    bench = _about_to_rewrite_on_a_full_disk()
    journal = bench.journal
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.spares.run)
        await trio.sleep(5)
        nursery.start_soon(journal.wait_synced, 1)
        await trio.sleep(5)
        assert journal.synced_seq == 0
        assert journal.spares.disk_full
        nursery.cancel_scope.cancel()
    await journal.wait_synced(1)
    bench.disk.power_cut()
    assert bench.replayed() == [write(1)]


async def test_a_rewrite_that_waits_for_room_leaves_the_processor_alone(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits and who makes segments woke each other all the time while the disk was full."""
    del autojump_clock
    bench = _about_to_rewrite_on_a_full_disk()
    journal = bench.journal
    looks = 0

    def free_bytes(_directory: Path) -> int:
        nonlocal looks
        looks += 1
        return 0

    monkeypatch.setattr(bench.disk, "free_bytes", free_bytes)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.spares.run)
        nursery.start_soon(journal.wait_synced, 1)
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert 30 <= looks <= 70


async def test_files_in_use_and_spare_together_are_bounded_and_used_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Spares lie on the disk beside what waits for the store; a rhythm makes and removes none."""
    del autojump_clock
    bench = Bench(spares=8, segments=12)
    journal = bench.begin(spares=8)
    written = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.spares.run)
        for in_use in (4, 10, 10, 14, 3, 10):
            while journal.segment_counts[0] < in_use:
                while not journal.has_room(60_000):
                    await journal.wait_changed()
                written += 1
                journal.append(write(written, 60_000))
                bench.runtime.now_ns += SECOND_NS
                await trio.sleep(1)
                used, spare = journal.segment_counts
                assert used + spare <= max(12, used + 2)
                assert spare >= 1
            await journal.wait_synced(written)
            journal.recycle(written)
            await trio.sleep(60)
            assert journal.segment_counts == (1, 11)
        nursery.cancel_scope.cancel()
    assert journal.spares._last_slot == 16, "files were made and removed in turn"


async def test_a_segment_that_cannot_be_removed_keeps_its_bytes(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that has its name still may be read at the next start."""
    del autojump_clock
    bench = Bench()
    spares = bench.begin(spares=1).spares
    path, file = spares.take()

    def refuse(_path: Path) -> None:
        raise OSError("injected: the directory cannot be written")

    monkeypatch.setattr(bench.disk, "unlink", refuse)
    with pytest.raises(OSError, match="cannot be written"):
        spares.remove((path, file))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(spares.run)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert not bench.disk.files[path].is_freed


async def test_a_journal_of_another_segment_size_writes_to_segments_of_that_size() -> None:
    """A recycled file of the size before would grow under its records, and its blocks move."""
    bench = Bench()
    journal = bench.begin(spares=3)
    for number in range(1, 7):
        journal.append(write(number, 60_000))
    await journal.wait_synced(6)
    end = ReplayEnd(op_seq=0, chain=0)
    found = segment_files(bench.disk, DIRECTORY, VOLUME_ID)
    list(replay(bench.disk, found, 0, 0, end))
    bench.settings = replace(bench.settings, segment_bytes=2 * SEGMENT)
    again = bench.journal = bench.open()
    again.adopt(found, end.used)
    again.begin(end.op_seq, end.chain)
    again.recycle(end.op_seq)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(again.spares.run)
        for number in range(7, 40):
            while not again.has_room(60_000):
                await again.wait_changed()
            again.append(write(number, 60_000))
            assert bench.current().size() == 2 * SEGMENT
        nursery.cancel_scope.cancel()
    await again.wait_synced(39)
