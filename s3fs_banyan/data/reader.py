"""Reading a file: piece in the journal, RAM, block cache, store, in this order.

Not one byte is served that was not verified when it entered memory. What cannot be verified is
fetched again from the store; damage that is proven is EIO for that range, a log line, a metric.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import trio

from s3fs_banyan.data.frames_ram import RamFrames
from s3fs_banyan.data.objects import ObjectReader
from s3fs_banyan.data.recent import RecentRecords
from s3fs_banyan.data.rereads import Rereads
from s3fs_banyan.errors import Corrupt, ObjectMissing
from s3fs_banyan.format.checksum import Bytes
from s3fs_banyan.format.chunk import (
    Frame,
    are_plain,
    decode_frame,
    decode_frame_table,
    verify_plain,
)
from s3fs_banyan.format.encryption import Cipher
from s3fs_banyan.format.keys import is_base_pack
from s3fs_banyan.model import FRAME_BYTES, ChunkId, Extent, Piece, Place
from s3fs_banyan.observe.metrics import Metrics
from s3fs_banyan.runtime import Runtime

log = logging.getLogger(__name__)

_SEARCH_BYTES = 256 * 1024
"""So exactly is looked for where a file goes on in another object: it is read ahead anyway."""

ExtentAt = Callable[[int], Extent | None]


class ChunkGone(Exception):  # no error: the file has other extents by now
    """The chunk died or shrank while it was read: look the extents up again."""


class ChunkSource(Protocol):
    """What the reader asks about chunks: live.db and committed.db, or a follower's one."""

    def pieces(self, chunk: int, start: int, end: int) -> Sequence[Piece]: ...

    def chunk_length(self, chunk: int) -> int | None: ...

    def place(self, chunk: int) -> Place | None: ...

    def object_size(self, key: str) -> int | None: ...


class RecordSource(Protocol):
    """The journal, as far as the reader knows it."""

    def has_segment(self, number: int) -> bool: ...

    def read_write_data(self, number: int, position: int, op_seq: int) -> bytes: ...


class LocalPacks(Protocol):
    """The base packs of a mount whose store is away."""

    def read(self, key: str, offset: int, length: int) -> bytes: ...


class Reader:
    """Serves file bytes from extents. One event loop."""

    def __init__(
        self,
        *,
        chunks: ChunkSource,
        journal: RecordSource | None,
        objects: ObjectReader,
        runtime: Runtime,
        metrics: Metrics,
        ram_bytes: int,
        cipher: Cipher | None,
        local_packs: LocalPacks | None = None,
    ) -> None:
        """`cipher` is None for a volume that is not encrypted."""
        self._chunks = chunks
        self._journal = journal
        self._objects = objects
        self._local_packs = local_packs
        self._runtime = runtime
        self._metrics = metrics
        self._cipher = cipher
        self.recent = RecentRecords(ram_bytes // 2)
        self.frames = RamFrames(ram_bytes // 2)
        self.on_corrupt: Callable[[Corrupt], None] = lambda error: None
        self.is_newest: Callable[[], Awaitable[bool]] = _is_newest
        """Waits until it is known who writes, and tells whether what is known here is the
        volume's newest state: else a missing object proves no damage, it may have been moved."""

    def read_young(self, extents: Sequence[Extent], start: int, end: int) -> bytes | None:
        """Return the bytes if all of them are young (or holes), without waiting; else None.

        Raises `Corrupt` if a journal record rotted.
        """
        parts = []
        position = start
        for extent in extents:
            if extent.offset > position:
                parts.append(bytes(extent.offset - position))
                position = extent.offset
            stop = min(end, extent.offset + extent.length)
            first = extent.chunk_offset + position - extent.offset
            young = self._from_pieces(extent.chunk, first, first + stop - position)
            if young is None:
                return None
            parts += young
            position = stop
        if position < end:
            parts.append(bytes(end - position))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def read(
        self,
        extents: Sequence[Extent],
        start: int,
        end: int,
        extent_at: ExtentAt | None = None,
    ) -> Bytes:
        """Return file bytes [start, end) that `extents` describe; holes read as zeros.

        `extent_at` gives the file's extent at an offset; it is asked where the file goes on when
        an object that it is in was read ahead to its end.
        Waits for a store that is away. Raises `Corrupt`: proven damage. Safe to cancel.
        """
        parts: list[Bytes] = []
        position = start
        for extent in extents:
            if extent.offset > position:
                parts.append(bytes(extent.offset - position))
                position = extent.offset
            stop = min(end, extent.offset + extent.length)
            first = extent.chunk_offset + position - extent.offset
            parts.append(await self._read_chunk(extent.chunk, first, first + stop - position))
            position = stop
        if position < end:
            parts.append(bytes(end - position))
        if self._objects.ending and extents and extent_at is not None:
            self._go_on(extents[-1].chunk, end, extent_at)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _go_on(self, chunk: int, end: int, extent_at: ExtentAt) -> None:
        """Have the object read ahead in which the file goes on behind the one of `chunk`."""
        here = self._chunks.place(chunk)
        if here is None or here.key not in self._objects.ending:
            return
        self._objects.ending.discard(here.key)
        low, high = end, end + self._objects.ahead_bytes_max + _SEARCH_BYTES
        found = None
        while high - low > _SEARCH_BYTES:
            middle = (low + high) // 2
            extent = extent_at(middle)
            place = None if extent is None else self._chunks.place(extent.chunk)
            if place is not None and place.key == here.key:
                low = middle
            else:
                high, found = middle, place
        if found is not None and not is_base_pack(found.key):
            size = self._chunks.object_size(found.key) or 0
            self._objects.go_on(found.key, found.offset, size)

    def _from_pieces(self, chunk: int, start: int, end: int) -> list[bytes] | None:
        """Return a chunk's bytes from the journal, or None if not all of them are there."""
        journal = self._journal
        if journal is None:
            return None
        parts = []
        position = start
        for piece in self._chunks.pieces(chunk, start, end):
            if piece.offset > position or not journal.has_segment(piece.segment):
                return None
            data = self.recent.get(piece.op_seq)
            if data is None:
                try:
                    data = journal.read_write_data(piece.segment, piece.position, piece.op_seq)
                except Corrupt as error:
                    self._report(error)
                    raise
                if end - start < len(data):
                    # A read of the whole record needs it once; keeping it would only cost.
                    self.recent.put(piece.op_seq, data)
                self._metrics.read_hits["journal"].add()
            first = piece.record_offset + position - piece.offset
            stop = min(end, piece.offset + piece.length)
            if first == 0 and stop - position == len(data):
                parts.append(data)
            else:
                parts.append(data[first : first + stop - position])
            position = stop
        return parts if position == end else None

    async def _read_chunk(self, chunk: int, start: int, end: int) -> Bytes:
        for _ in range(3):
            young = self._from_pieces(chunk, start, end)
            if young is not None:
                return b"".join(young)
            place = self._chunks.place(chunk)
            length = self._chunks.chunk_length(chunk)
            if length is None or length < end:
                raise ChunkGone
            if place is None:
                error = Corrupt("chunk", str(chunk), "its bytes are neither here nor in the store")
                self._report(error)
                raise error
            try:
                return await self._read_placed(chunk, length, place, start, end)
            except (Corrupt, ObjectMissing) as error:
                await self._objects.forget(place.key)
                if isinstance(error, Corrupt):
                    self._doubt(error)
                else:
                    await self.is_newest()
                again = self._chunks.place(chunk)
                if again == place:
                    break
        return await self._read_last_time(chunk, start, end)

    async def _read_last_time(self, chunk: int, start: int, end: int) -> Bytes:
        """The cached copy was dropped: what the store itself says now is final.

        Not at the first word, though: bits that flip on the way differ each time, rot does not.
        """
        rereads = Rereads()
        while True:
            place = self._chunks.place(chunk)
            length = self._chunks.chunk_length(chunk)
            if length is None or length < end:
                raise ChunkGone
            if place is None:
                raise Corrupt("chunk", str(chunk), "its bytes are neither here nor in the store")
            try:
                return await self._read_placed(chunk, length, place, start, end, rereads)
            except ObjectMissing as error:
                corrupt = Corrupt("object", place.key, f"it is missing, chunk {chunk} lies in it")
                if await self.is_newest():
                    self._report(corrupt)
                else:
                    log.error("another writer may have moved what cannot be read: %s", corrupt)
                raise corrupt from error
            except Corrupt as error:
                if rereads.prove_damage():
                    self._report(error)
                    raise
                self._doubt(error)
                await self._objects.forget(place.key)

    async def _read_placed(
        self,
        chunk: int,
        length: int,
        place: Place,
        start: int,
        end: int,
        rereads: Rereads | None = None,
    ) -> Bytes:
        """Return verified bytes of a stored chunk; with `rereads` past every cache but RAM."""
        first, last = start // FRAME_BYTES, (end - 1) // FRAME_BYTES
        found = [self.frames.get(ChunkId(chunk), index) for index in range(first, last + 1)]
        missing = [first + i for i, frame in enumerate(found) if frame is None]
        if missing:
            table = decode_frame_table(chunk, length, place.frames)
            low, high = table[missing[0]], table[missing[-1]]
            run = low.offset, high.offset + high.stored_length - low.offset
            stored = await self._read_stored(place, *run, afresh=rereads is not None)
            if rereads is not None:
                rereads.note(stored)
            frames = table[missing[0] : missing[-1] + 1]
            if len(missing) == len(found) > 1 and are_plain(frames) and self._cipher is None:
                # What was stored is what was asked for, and the kernel keeps it.
                verify_plain(chunk, first, frames, stored, place.key)
                skip = start - first * FRAME_BYTES
                return stored[skip : skip + end - start]
            if len(frames) == 1:  # quicker than the way to a thread
                decoded = _decode_run(chunk, missing[0], frames, stored, place.key, self._cipher)
            else:
                decoded = await self._runtime.in_thread(
                    _decode_run, chunk, missing[0], frames, stored, place.key, self._cipher
                )
            for index, raw in decoded.items():
                self.frames.put(ChunkId(chunk), index, raw)
                found[index - first] = raw
        else:
            self._metrics.read_hits["ram"].add()
        data = b"".join(frame for frame in found if frame is not None)
        skip = start - first * FRAME_BYTES
        return data[skip : skip + end - start]

    async def _read_stored(self, place: Place, start: int, length: int, *, afresh: bool) -> Bytes:
        """Return bytes of a stored chunk, unverified, from a base pack or the store."""
        at = place.offset + start
        if is_base_pack(place.key):
            if self._local_packs is None:
                raise ObjectMissing(f"base pack {place.key} belongs to another mount")
            return await self._runtime.in_thread(self._local_packs.read, place.key, at, length)
        if afresh:
            return await self._objects.read_afresh(place.key, at, length)
        size = self._chunks.object_size(place.key) or place.offset + place.stored_length
        return await self._objects.read(place.key, at, length, size)

    def _doubt(self, error: Corrupt) -> None:
        """A bit flipped in the store, on the way, or in the cache: another read will tell."""
        log.warning("%s: it is read again", error)
        self._metrics.corruption_detected("transfer").add()

    def _report(self, error: Corrupt) -> None:
        log.error("corrupt data: %s", error)
        self._metrics.corruption_detected(error.kind.replace(" ", "_")).add()
        self.on_corrupt(error)


async def _is_newest() -> bool:
    await trio.lowlevel.checkpoint()
    return True


def _decode_run(
    chunk: int,
    first: int,
    frames: Sequence[Frame],
    stored: Bytes,
    key: str,
    cipher: Cipher | None,
) -> dict[int, bytes]:
    """Verify and decode neighbouring frames, of which `stored` is the run."""
    view = memoryview(stored)
    start = frames[0].offset
    decoded = {}
    for i, frame in enumerate(frames):
        at = frame.offset - start
        decoded[first + i] = decode_frame(
            chunk, first + i, frame, view[at : at + frame.stored_length], key, cipher
        )
    return decoded
