"""The journal: append, group sync, recycled segments. Rules: architecture, section 5.

    call:    wait for room -> check -> append -> apply          (no schedule point between)
    barrier: sync every segment written since the last barrier, oldest first; share it
    failed:  never sync that segment again; rewrite what was not synced to a fresh one
    recycle: only behind the cut of a published commit that committed.db holds, synced

It owns the sequence numbers of operations and the chain of checksums. It does not know what an
operation means. All methods belong to the event loop; only the syncs and the preparation of new
segments (`spares.py`) run in threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import trio

from s3fs_banyan.format.checksum import Bytes
from s3fs_banyan.format.record import (
    RECORD_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    SegmentHeader,
    encode_record,
    encode_segment_header,
)
from s3fs_banyan.journal.disk import Disk, datasync_all
from s3fs_banyan.journal.replay import FoundSegment, RawRecord
from s3fs_banyan.journal.segment import (
    JournalObserver,
    JournalSettings,
    Segment,
    read_write_record,
)
from s3fs_banyan.journal.spares import SpareSegments
from s3fs_banyan.model import Operation
from s3fs_banyan.runtime import Runtime

_INLINE_SYNC_BYTES_MAX = 256 * 1024
_INLINE_SYNC_NS_MAX = 700_000
_UNSYNCED_BYTES_MAX = 64 << 20
_COMMIT_BYTES = 32_768  # of the last segment, for the records without which nothing is freed
_HEAD_BYTES_MAX = 8192  # a symbolic link of the longest name and target takes 4,450
_GATHER_NS = 1_000_000


class Appended(NamedTuple):
    """Where a record went."""

    op_seq: int
    segment: int
    position: int


class PieceGone(Exception):  # no error: the segment was recycled, the place is known
    """The segment was recycled: the bytes are sealed and placed by now."""


class _Unsynced(NamedTuple):
    op_seq: int
    chain_before: int
    head: bytes
    data: Bytes


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
        self.spares = SpareSegments(
            disk=disk,
            directory=directory,
            settings=settings,
            runtime=runtime,
            observer=observer,
            in_use=lambda: len(self._segments),
            on_change=self._notify,
        )
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
        self._segments: dict[int, Segment] = {}
        self._current: Segment | None = None
        self._dirty: list[Segment] = []
        self._unsynced: deque[_Unsynced] = deque()
        self._unsynced_bytes = 0
        self._sync_ns = float(_INLINE_SYNC_NS_MAX // 2)
        self._sync_running: trio.Event | None = None
        self._sync_wanted = trio.Event()
        self._changed = trio.Event()
        self._is_awaited = False
        """Whether anyone may wait for `_changed`; a new event for every sync is not free."""
        self._stuck = False
        self._failure: OSError | None = None
        """What was not synced could not be rewritten either: nothing is ever synced any more."""
        self.backlog_bytes = 0
        """Bytes of records in segments that no commit has freed yet."""
        self.rewrites = 0
        """How often records were rewritten elsewhere: a snapshot from before has old positions."""

    # --- start ---------------------------------------------------------------------------

    def adopt(self, found: Sequence[FoundSegment], used: Sequence[FoundSegment]) -> None:
        """Take over the files of an earlier life: those in use are kept, others are spare."""
        in_use = {segment.path for segment in used}
        for segment in found:
            self.spares.note_name(segment.path)
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
                self.spares.add((segment.path, file))
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
        while len(self.spares) < self._segments_for_unsynced():
            self.spares.make_now()
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
        if left >= (0 if commits or self.spares else _COMMIT_BYTES):
            return True
        return len(self.spares) > (0 if use_reserve or commits else 1)

    async def wait_changed(self) -> None:
        """Wait until room, syncs or spares may have changed. Safe to cancel."""
        self.spares.note_pouring()
        self._is_awaited = True
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
            self.spares.note_pouring()
        self.last_seq, self.chain = op_seq, checksum
        return Appended(op_seq, current.number, position)

    def _roll(self, first_op_seq: int, chain: int) -> Segment:
        """Begin a segment in a spare file."""
        path, file = self.spares.take()
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
        if self._failure is not None:
            raise self._failure
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

        So the segments are never trusted again; what was not synced goes to a fresh one. Raises
        `OSError` if that fails, too; so does every later sync, which would find no dirty page.
        """
        self._stuck = True
        done = self._sync_running = trio.Event()
        try:
            with trio.CancelScope(shield=True):
                for segment in batch:
                    segment.bad = True
                    self._observer.journal_sync_failed(segment.path)
                self._dirty = []  # what was appended meanwhile is rewritten, too
                await self.spares.wait_for(self._segments_for_unsynced())
                self._copy_unsynced()
            self._stuck = False
        except OSError as error:
            self._failure = error
            raise
        finally:
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

    def _notify(self) -> None:
        if self._is_awaited:
            self._is_awaited = False
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
            spare = segment.path, segment.file
            # One of an earlier life may have been made for another size.
            if segment.bad or segment.file.size() != self._settings.segment_bytes:
                self.spares.remove(spare)
            else:
                self.spares.add(spare)
        self.spares.trim()
        self._notify()

    def freed_by_next_cut(self, cut_op_seq: int) -> int:
        """Return the bytes of the backlog that came after a cut and that another one would free."""
        later = (s for s in self._segments.values() if s.last_op_seq > cut_op_seq)
        return sum(s.end - SEGMENT_HEADER_BYTES for s in later if s is not self._current)

    @property
    def freeable_bytes(self) -> int:
        """Bytes on the disk that the next cut of everything frees: all but the current segment."""
        return self._settings.segment_bytes * max(0, len(self._segments) - 1)

    @property
    def segment_counts(self) -> tuple[int, int]:
        """(in use, spare)."""
        return len(self._segments), len(self.spares)

    def segment_paths(self) -> list[Path]:
        """Return the files in use, for setting them aside."""
        return [segment.path for segment in self._segments.values()]

    def close(self) -> None:
        """Close the files; nothing is synced here."""
        for segment in self._segments.values():
            segment.file.close()
        self._segments.clear()
        self.spares.close()
        self._current = None


def _nobody_waits() -> bool:
    return False


def _ignore_moves(_moved: Sequence[Appended]) -> None:
    """Nothing holds positions yet."""
