"""The journal: append, group sync, recycled segments. Rules: architecture, section 5.

    call:    wait for room -> check -> append -> apply          (no schedule point between)
    barrier: sync every segment written since the last barrier, oldest first; share it
    failed:  never sync that segment again; rewrite what was not synced to a fresh one
    recycle: only behind the cut of a published commit that committed.db holds, synced

It owns the sequence numbers of operations and the chain of checksums. It does not know what an
operation means. All methods belong to the event loop; only the syncs and the preparation of new
segments run in threads.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import trio

from s3fs_banyan.errors import Corrupt
from s3fs_banyan.format.checksum import Bytes, xxh3
from s3fs_banyan.format.record import (
    RECORD_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    WRITE_DATA_OFFSET,
    SegmentHeader,
    encode_record,
    encode_segment_header,
    peek_record,
)
from s3fs_banyan.gentle_io import CALL_BYTES
from s3fs_banyan.journal.disk import Disk, DiskFile, datasync_all
from s3fs_banyan.journal.replay import FoundSegment, RawRecord
from s3fs_banyan.model import Operation
from s3fs_banyan.runtime import Runtime

PAGE_BYTES = 4096
_PADDING = bytes(PAGE_BYTES)
_FILL_BYTES = 1 << 20
_INLINE_SYNC_BYTES_MAX = 256 * 1024
_INLINE_SYNC_NS_MAX = 700_000
_UNSYNCED_BYTES_MAX = 64 << 20
_COMMIT_BYTES = 32_768  # of the last segment, for the records without which nothing is freed
_HEAD_BYTES_MAX = 8192  # a symbolic link of the longest name and target takes 4,450
_GATHER_NS = 1_000_000
_FILL_PAUSE_S = 0.01
_SPARES_URGENT = 2
_SPARES_LEAN = 4
_BUSY_NS = 200_000_000


class JournalObserver(Protocol):
    """What a metric may want to know."""

    def journal_synced(self, seconds: float, byte_count: int) -> None: ...

    def journal_sync_failed(self, path: Path) -> None: ...


class Appended(NamedTuple):
    """Where a record went."""

    op_seq: int
    segment: int
    position: int


class PieceGone(Exception):  # no error: the segment was recycled, the place is known
    """The segment was recycled: the bytes are sealed and placed by now."""


@dataclass(slots=True, eq=False)
class Segment:
    """One segment in use."""

    path: Path
    file: DiskFile
    number: int
    end: int
    last_op_seq: int
    bad: bool = False
    written_to: int = 0
    """Where what was written ends, padding included: the end of a page."""

    def write(self, *buffers: Bytes) -> int:
        """Write at the end and move it; returns where. Raises `OSError`, and then `end` stays.

        A page that is entered is written to its end. The file's blocks hold old bytes, so for
        a part of a page that is no longer in memory the kernel would read the rest of it from
        the disk first, within the call: once in every 4 KiB of journal.
        """
        position = self.end
        end = position + sum(map(len, buffers))
        if end > self.written_to:
            page_end = -(-end // PAGE_BYTES) * PAGE_BYTES
            self.file.pwritev((*buffers, _PADDING[: page_end - end]), position)
            self.written_to = page_end
        else:
            self.file.pwritev(buffers, position)
        self.end = end
        return position


class _Unsynced(NamedTuple):
    op_seq: int
    chain_before: int
    head: bytes
    data: Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalSettings:
    """Sizes in bytes, times in seconds."""

    segment_bytes: int = 64 << 20
    sync_bytes: int = 4 << 20
    sync_interval_s: float = 1.0
    spares: int = 8
    spares_max: int = 16
    free_bytes_min: int = 256 << 20
    """Local disk space that new segments leave alone."""


class Journal:
    """The one local log. Made by `commit/recovery.py` from what a replay found."""

    def __init__(
        self,
        *,
        disk: Disk,
        directory: Path,
        settings: JournalSettings,
        runtime: Runtime,
        volume_id: bytes,
        observer: JournalObserver,
    ) -> None:
        self._disk = disk
        self._directory = directory
        self._settings = settings
        self._runtime = runtime
        self._volume_id = volume_id
        self._observer = observer
        self.on_moved: Callable[[Sequence[Appended]], None] = _ignore_moves
        """Told where records went whose segment could not be synced."""
        self.has_company: Callable[[], bool] = _nobody_waits
        """Tells whether requests of others wait to be read; set by the kernel's adapter."""
        self.last_seq = 0
        self.synced_seq = 0
        self.chain = 0
        self._number = 0
        self._slot = 0
        self._segments: dict[int, Segment] = {}
        self._current: Segment | None = None
        self._spares: deque[tuple[Path, DiskFile]] = deque()
        self._dirty: list[Segment] = []
        self._unsynced: deque[_Unsynced] = deque()
        self._unsynced_bytes = 0
        self._sync_ns = float(_INLINE_SYNC_NS_MAX // 2)
        self._sync_running: trio.Event | None = None
        self._poured_ns = 0
        self._spares_needed = 0
        self._sync_wanted = trio.Event()
        self._spare_wanted = trio.Event()
        self._changed = trio.Event()
        self._stuck = False
        self.backlog_bytes = 0
        """Bytes of records in segments that no commit has freed yet."""
        self.rewrites = 0
        """How often records were rewritten elsewhere: a snapshot from before has old positions."""
        self.is_lean = False
        """Keep few spare segments: the store is away, and the disk is needed for what lives."""
        self.disk_full = False
        """No new segment can be made: other files fill the local disk."""

    # --- start ---------------------------------------------------------------------------

    def adopt(self, found: Sequence[FoundSegment], used: Sequence[FoundSegment]) -> None:
        """Take over the files of an earlier life: those in use are kept, others are spare."""
        in_use = {segment.path for segment in used}
        for segment in found:
            name = segment.path.name.removeprefix("segment-")
            self._slot = max(self._slot, int(name) if name.isdecimal() else 0)
            if segment.header is not None:
                self._number = max(self._number, segment.header.number)
            file = self._disk.open(segment.path)
            if segment.path in in_use and segment.header is not None:
                kept = Segment(
                    segment.path, file, segment.header.number, segment.end, segment.last_op_seq
                )
                self._segments[kept.number] = kept
                self.backlog_bytes += kept.end - SEGMENT_HEADER_BYTES
                self._dirty.append(kept)
            elif file.size() == self._settings.segment_bytes:
                if segment.header is None:
                    # Records without a header were judged before; they say nothing any more.
                    file.pwritev((bytes(RECORD_HEADER_BYTES),), SEGMENT_HEADER_BYTES)
                self._spares.append((segment.path, file))
            else:
                file.close()
                self._disk.unlink(segment.path)

    def begin(self, op_seq: int, chain: int, unsynced: Iterable[RawRecord] = ()) -> None:
        """Continue after operation `op_seq` in a fresh segment; blocks.

        `unsynced` are the replayed records that the life which wrote them may never have
        synced. A sync of theirs may have failed then, after which the kernel calls the pages
        clean, so they are rewritten and synced here instead of being synced again (replay skips
        the doubles). Raises `OSError` if that cannot be.
        """
        # A file that is there need not be there after a power cut: whoever made it may have died
        # before its name was synced.
        self._disk.sync_directory(self._directory)
        adopted, self._dirty = self._dirty, []
        self.last_seq, self.chain, self.synced_seq = op_seq, chain, op_seq
        self._unsynced.extend(_Unsynced(r.op_seq, r.chain_before, r.data, b"") for r in unsynced)
        self._unsynced_bytes = sum(len(record.head) for record in self._unsynced)
        if self._unsynced:
            self.synced_seq = self._unsynced[0].op_seq - 1
        else:
            datasync_all([segment.file for segment in adopted])
        while len(self._spares) < self._segments_for_unsynced():
            self._spares.append(self._make_segment_now())
        self._copy_unsynced()
        if self._unsynced:
            datasync_all([segment.file for segment in self._dirty])
            self._note_synced(op_seq)

    # --- append --------------------------------------------------------------------------

    def has_room(
        self, byte_count: int, *, use_reserve: bool = False, commits: bool = False
    ) -> bool:
        """Tell whether a record with so many bytes of data can be appended now.

        `use_reserve`: for operations that free space. `commits`: for the committer's own, which
        free the journal itself and so have room even when nothing else has.
        """
        current = self._current
        if current is None or self._stuck or self._unsynced_bytes > _UNSYNCED_BYTES_MAX:
            return False
        left = self._settings.segment_bytes - current.end - byte_count - _HEAD_BYTES_MAX
        if left >= (0 if commits or self._spares else _COMMIT_BYTES):
            return True
        return len(self._spares) > (0 if use_reserve or commits else 1)

    async def wait_changed(self) -> None:
        """Wait until room, syncs or spares may have changed. Safe to cancel."""
        await self._changed.wait()

    def append(self, op: Operation, tid: int = 0) -> Appended:
        """Write one operation; not synced. The caller made sure that there is room.

        Raises `OSError` if the local disk refuses; then nothing was appended.
        """
        current = self._current
        if current is None:
            raise AssertionError("the journal is not open")
        op_seq = self.last_seq + 1
        head, data, checksum = encode_record(op, op_seq, tid, self.synced_seq, self.chain)
        size = len(head) + len(data)
        if current.end + size > self._settings.segment_bytes:
            current = self._roll(op_seq, self.chain)
        try:
            position = current.write(head, data)
        except OSError:
            # What is in this segment may still be synced; what comes next goes elsewhere.
            self._observer.journal_sync_failed(current.path)
            current = self._roll(op_seq, self.chain)
            position = current.write(head, data)
        current.last_op_seq = op_seq
        self.backlog_bytes += size
        if not self._dirty or self._dirty[-1] is not current:
            self._dirty.append(current)
        self._unsynced.append(_Unsynced(op_seq, self.chain, head, data))
        self._unsynced_bytes += size
        if self._unsynced_bytes >= self._settings.sync_bytes:
            self._sync_wanted.set()
            self._poured_ns = self._runtime.monotonic_ns()
        self.last_seq, self.chain = op_seq, checksum
        return Appended(op_seq, current.number, position)

    def _roll(self, first_op_seq: int, chain: int) -> Segment:
        """Begin a segment in a spare file."""
        if not self._spares:
            raise OSError("the journal has no free segment; the caller must wait for room")
        path, file = self._spares.popleft()
        self._spare_wanted.set()
        self._number += 1
        header = SegmentHeader(self._number, first_op_seq, chain, self.synced_seq, self._volume_id)
        segment = Segment(path, file, self._number, 0, first_op_seq - 1)
        segment.write(encode_segment_header(header))
        self._segments[segment.number] = segment
        self._current = segment
        self._dirty.append(segment)
        return segment

    # --- sync ----------------------------------------------------------------------------

    async def wait_synced(self, op_seq: int) -> None:
        """Wait until every operation up to `op_seq` is on the disk. Shared by all who wait.

        Safe to cancel: a sync under way is finished all the same.
        """
        gathered = False
        while self.synced_seq < op_seq:
            if self._sync_running is not None:
                await self._sync_running.wait()
            elif not gathered and self.has_company():
                gathered = True
                await self._gather_and_sync()
            else:
                await self._sync()

    async def _gather_and_sync(self) -> None:
        """Other requests wait to be read: let them append first, and share this sync."""
        done = self._sync_running = trio.Event()
        until_ns = self._runtime.monotonic_ns() + _GATHER_NS
        try:
            try:
                while self.has_company() and self._runtime.monotonic_ns() < until_ns:
                    await trio.lowlevel.checkpoint()
            finally:
                self._sync_running = None
            await self._sync()
        finally:
            done.set()

    async def _sync(self) -> None:
        target, batch, byte_count = self.last_seq, self._dirty, self._unsynced_bytes
        self._dirty = []
        files = [segment.file for segment in batch]
        inline = byte_count <= _INLINE_SYNC_BYTES_MAX and self._sync_ns < _INLINE_SYNC_NS_MAX
        begin_ns = self._runtime.monotonic_ns()
        try:
            if inline:
                datasync_all(files)
            else:
                done = self._sync_running = trio.Event()
                try:
                    with trio.CancelScope(shield=True):
                        await self._disk.datasync(files, self._runtime)
                finally:
                    self._sync_running = None
                    done.set()
        except OSError:
            await self._rewrite_unsynced(batch)
            return
        spent_ns = self._runtime.monotonic_ns() - begin_ns
        if byte_count <= _INLINE_SYNC_BYTES_MAX:
            self._sync_ns += (spent_ns - self._sync_ns) / 16
        self._observer.journal_synced(spent_ns / 1e9, byte_count)
        self._note_synced(target)

    def _note_synced(self, target: int) -> None:
        self.synced_seq = max(self.synced_seq, target)
        unsynced = self._unsynced
        while unsynced and unsynced[0].op_seq <= target:
            gone = unsynced.popleft()
            self._unsynced_bytes -= len(gone.head) + len(gone.data)
        self._notify()

    async def _rewrite_unsynced(self, batch: Sequence[Segment]) -> None:
        """After a failed sync: the kernel has dropped the error and calls the pages clean.

        So the segments are never trusted again; what was not synced goes to a fresh one.
        """
        self._stuck = True
        done = self._sync_running = trio.Event()
        try:
            with trio.CancelScope(shield=True):
                for segment in batch:
                    segment.bad = True
                    self._observer.journal_sync_failed(segment.path)
                self._dirty = []  # what was appended meanwhile is rewritten, too
                self._spares_needed = self._segments_for_unsynced()
                while len(self._spares) < self._spares_needed:
                    self._spare_wanted.set()
                    await self._changed.wait()
                self._copy_unsynced()
        finally:
            self._spares_needed = 0
            self._stuck = False
            self._sync_running = None
            done.set()
        self._notify()

    def _segments_for_unsynced(self) -> int:
        count, end = 1, SEGMENT_HEADER_BYTES
        for record in self._unsynced:
            size = len(record.head) + len(record.data)
            if end + size > self._settings.segment_bytes:
                count, end = count + 1, SEGMENT_HEADER_BYTES
            end += size
        return count

    def _copy_unsynced(self) -> None:
        self.rewrites += 1
        if not self._unsynced:
            self._roll(self.last_seq + 1, self.chain)
            return
        first = self._unsynced[0]
        segment = self._roll(first.op_seq, first.chain_before)
        moved = []
        for record in self._unsynced:
            size = len(record.head) + len(record.data)
            if segment.end + size > self._settings.segment_bytes:
                segment = self._roll(record.op_seq, record.chain_before)
            position = segment.write(record.head, record.data)
            moved.append(Appended(record.op_seq, segment.number, position))
            segment.last_op_seq = record.op_seq
            self.backlog_bytes += size
        self.on_moved(moved)

    # --- services ------------------------------------------------------------------------

    async def run_syncer(self) -> None:
        """Sync in the background every few MiB or every second; ends only by cancellation."""
        while True:
            with trio.move_on_after(self._settings.sync_interval_s):
                await self._sync_wanted.wait()
            self._sync_wanted = trio.Event()
            if self.synced_seq < self.last_seq:
                await self.wait_synced(self.last_seq)
            else:
                await trio.lowlevel.checkpoint()

    async def run_preparer(self) -> None:
        """Keep filled spare segments ready; ends only by cancellation."""
        failed = False
        while True:
            while len(self._spares) < max(self._spares_wanted(), self._spares_needed):
                if len(self._spares) >= _SPARES_URGENT and self._is_busy():
                    await trio.sleep(_BUSY_NS / 1e9)
                    continue
                free = self._disk.free_bytes(self._directory)
                if free < self._settings.segment_bytes + self._settings.free_bytes_min:
                    self.disk_full = True
                    self._notify()
                    break
                try:
                    spare = await self._make_segment()
                except OSError as error:
                    # Any other error is a disk that cannot sync: writers wait, nobody gets ENOSPC.
                    self.disk_full = error.errno in {errno.ENOSPC, errno.EDQUOT}
                    failed = True
                    self._observer.journal_sync_failed(self._directory)
                    self._notify()
                    break
                self.disk_full = failed = False
                self._spares.append(spare)
                self._notify()
            self._spare_wanted = trio.Event()
            with trio.move_on_after(1.0 if self.disk_full or failed else 60.0):
                await self._spare_wanted.wait()

    def _spares_wanted(self) -> int:
        return min(self._settings.spares, _SPARES_LEAN) if self.is_lean else self._settings.spares

    def _is_busy(self) -> bool:
        """Tell whether bytes pour in just now: filling a segment would slow them down."""
        return self._runtime.monotonic_ns() - self._poured_ns < _BUSY_NS

    async def _make_segment(self) -> tuple[Path, DiskFile]:
        """Fill a file with bytes and sync it with its directory: its blocks never move again.

        Piece by piece, each synced: the disk takes all of it as fast as it can, and whoever
        syncs meanwhile waits behind what was handed over.
        """
        path, file = self._new_segment()
        try:
            for begin in range(0, self._settings.segment_bytes, _FILL_BYTES):
                end = min(begin + _FILL_BYTES, self._settings.segment_bytes)
                with trio.CancelScope(shield=True):
                    await self._runtime.in_thread(self._fill, file, begin, end)
                if len(self._spares) >= max(_SPARES_URGENT, self._spares_needed):
                    await trio.sleep(_FILL_PAUSE_S)
            with trio.CancelScope(shield=True):
                await self._runtime.in_thread(self._disk.sync_directory, self._directory)
        except BaseException:
            file.close()
            self._disk.unlink(path)
            raise
        return path, file

    def _make_segment_now(self) -> tuple[Path, DiskFile]:
        """Do the same in one go; blocks."""
        path, file = self._new_segment()
        self._fill(file, 0, self._settings.segment_bytes)
        self._disk.sync_directory(self._directory)
        return path, file

    def _new_segment(self) -> tuple[Path, DiskFile]:
        self._slot += 1
        path = self._directory / f"segment-{self._slot:06d}"
        return path, self._disk.open(path, create=True)

    @staticmethod
    def _fill(file: DiskFile, begin: int, end: int) -> None:
        """Fill a part of a segment file and sync it; blocks."""
        for position in range(begin, end, CALL_BYTES):
            file.pwritev((bytes(min(CALL_BYTES, end - position)),), position)
        file.datasync()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # --- reading and recycling -----------------------------------------------------------

    def has_segment(self, number: int) -> bool:
        """Tell whether a piece in that segment can still be read."""
        return number in self._segments

    def segment_files(self) -> dict[int, str]:
        """Return number -> path of the segments in use, for the worker that seals from them."""
        return {number: str(segment.path) for number, segment in self._segments.items()}

    def read_write_data(self, number: int, position: int, op_seq: int) -> bytes:
        """Return the verified data of the WRITE record there; blocks for one local read.

        Raises `PieceGone` if the segment was recycled, `Corrupt` if the bytes rotted.
        """
        segment = self._segments.get(number)
        if segment is None:
            raise PieceGone
        return read_write_record(segment.file, segment.path, position, op_seq)

    def recycle(self, cut_op_seq: int) -> None:
        """Free the segments whose last record a published, applied and synced cut covers."""
        for segment in [*self._segments.values()]:
            if segment is self._current or segment.last_op_seq > cut_op_seq:
                continue
            if segment in self._dirty or (segment.bad and self._sync_running is not None):
                continue
            del self._segments[segment.number]
            self.backlog_bytes -= segment.end - SEGMENT_HEADER_BYTES
            self._spares.append((segment.path, segment.file))
            if segment.bad:
                self._remove_spare(self._spares.pop())
        most = self._spares_wanted() if self.is_lean else self._settings.spares_max
        while len(self._spares) > most:
            self._remove_spare(self._spares.pop())
        self._notify()

    def _remove_spare(self, spare: tuple[Path, DiskFile]) -> None:
        path, file = spare
        file.close()
        self._disk.unlink(path)

    @property
    def segment_counts(self) -> tuple[int, int]:
        """(in use, spare)."""
        return len(self._segments), len(self._spares)

    def segment_paths(self) -> list[Path]:
        """Return the files in use, for setting them aside."""
        return [segment.path for segment in self._segments.values()]

    def close(self) -> None:
        """Close the files; nothing is synced here."""
        for segment in self._segments.values():
            segment.file.close()
        for _, file in self._spares:
            file.close()
        self._segments.clear()
        self._spares.clear()
        self._current = None


def read_write_record(file: DiskFile, path: Path, position: int, op_seq: int) -> bytes:
    """Return the verified data of the WRITE record at `position`; raises `Corrupt`."""
    head = peek_record(file.pread(WRITE_DATA_OFFSET, position), 0)
    if head is None or head.op_seq != op_seq:
        raise Corrupt("journal record", str(path), f"operation {op_seq} is not at {position}")
    data = file.pread(head.data_length, position + WRITE_DATA_OFFSET)
    if len(data) != head.data_length or xxh3(data) != head.data_sum:
        raise Corrupt("journal record", str(path), f"checksum of operation {op_seq} differs")
    return data


def _nobody_waits() -> bool:
    return False


def _ignore_moves(_moved: Sequence[Appended]) -> None:
    """Nothing holds positions yet."""
