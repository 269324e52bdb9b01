"""Sealing: the young chunks of a cut become frames, packs, and the body of a commit.

Synchronous code on plain values: it runs in the worker process of a mount, and inline in the
simulation. It writes to `outbox/` and the block cache only, and never publishes.

    plan        read the list that the cut's snapshot left; take from packs of an earlier attempt
                what is in them already; divide the rest into packs and what stays inline
    seal_pack   one pack: read pieces (each journal record verified), compress, checksum, write
    upload      send it, verified, and record where what lies; put it into the cache; remove it
    finish      the rest inline, the placements, the delta: the body of the commit

An earlier attempt may be one of a former life. A chunk behind a cut never changes and ids are a
function of the fold, so a chunk of equal id and length, sealed behind a cut of this journal, is
the same bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from s3fs_banyan.commit.outbox import Outbox, PackedChunk, PackRecord
from s3fs_banyan.commit.sending import Multipart, PackSender, SendPolicy
from s3fs_banyan.data.blocks import BlockCache
from s3fs_banyan.errors import Corrupt, ObjectMissing, StoreError, UnsupportedVersion
from s3fs_banyan.format.blob import encode_blob
from s3fs_banyan.format.checksum import Bytes, sha256_hex
from s3fs_banyan.format.chunk import (
    decode_chunk_header,
    decode_frame,
    decode_frame_table,
    encode_chunk,
)
from s3fs_banyan.format.keys import log_delta_key, log_key, pack_hash_of, pack_key
from s3fs_banyan.format.pack import PackEntry, decode_pack_tail, encode_pack_tail
from s3fs_banyan.journal.disk import Disk, DiskFile
from s3fs_banyan.journal.log import read_write_record
from s3fs_banyan.meta.committed import PlacementRow, write_placements
from s3fs_banyan.meta.seal_list import SealItem, SealList
from s3fs_banyan.remote.base import RemoteFileSystem
from s3fs_banyan.remote.transfers import InlineTransfers, Transfers
from s3fs_banyan.runtime import monotonic_s

_RECORDS_CACHED: Final = 16
COMMIT_BYTES_MAX: Final = 8 << 20
"""Delta and inline data of a commit stay below this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SealJob:
    """What to seal; plain values, so that it can cross to another process."""

    seal_db: str
    delta_db: str
    outbox: str
    segments: dict[int, str]
    epoch: int
    seq: int
    pack_bytes: int
    inline_bytes_max: int
    keep_in_outbox: bool = True
    """False where the local disk has no room: packs go from RAM."""
    chain: int = 0
    """Journal checksum of the cut that is sealed."""
    chains: tuple[int, ...] = ()
    """The same of all cuts in this journal behind the newest commit."""
    multipart: Multipart = "never"
    part_bytes: int = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedPack:
    """A pack ready to be sent."""

    number: int
    key: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitBody:
    """All of a commit but its footer."""

    path: str
    inline_length: int
    delta_length: int
    placements_length: int
    delta_hash: str
    unmovable: tuple[str, ...]
    """Objects whose living chunks could not be moved: missing or damaged."""
    damaged: tuple[int, ...]
    """Chunks whose journal records rotted: published without a place, their bytes are lost."""
    reused_packs: int = 0
    """Packs of an earlier attempt that were neither sealed nor, perhaps, sent again."""
    resumed_parts: int = 0
    """Parts of packs that an earlier attempt had sent."""


class Sealing:
    """One commit's sealing, from plan to body."""

    def __init__(
        self,
        job: SealJob,
        *,
        disk: Disk,
        store: RemoteFileSystem,
        cache: BlockCache,
        transfers: Transfers | None = None,
        clock: Callable[[], float] = monotonic_s,
    ) -> None:
        self._outbox = Outbox(Path(job.outbox))
        self._sender = PackSender(
            store,
            self._outbox,
            policy=SendPolicy(multipart=job.multipart, part_bytes=job.part_bytes),
            transfers=transfers or InlineTransfers(),
            clock=clock,
        )
        self._ready: list[PackRecord] = []
        self._pack_records: dict[str, PackRecord] = {}
        self._chunks: dict[str, tuple[PackedChunk, ...]] = {}
        self._reused = 0
        self._job = job
        self._disk = disk
        self._store = store
        self._cache = cache
        self._list = SealList(Path(job.seal_db))
        self._groups: list[list[SealItem]] = []
        self._inline: list[SealItem] = []
        self._packs: list[tuple[int, str, str, int]] = []
        self._places: list[PlacementRow] = []
        self._damaged: list[int] = []
        self._unmovable: set[str] = set()
        self._in_ram: dict[int, bytes] = {}
        self._files: dict[int, DiskFile] = {}
        self._records: OrderedDict[tuple[int, int], bytes] = OrderedDict()

    def plan(self) -> int:
        """Divide the chunks into packs; returns how many packs there are to seal.

        What is small in all goes inline; of more, full packs are made, and a small remainder
        goes inline, too. The pack size counts raw bytes, so that 1 GiB is sixteen packs.
        """
        group: list[SealItem] = []
        size = 0
        wanted = {item.chunk: item for item in self._list.items()}
        self._reuse(wanted)
        for item in wanted.values():
            if size + item.length > self._job.pack_bytes and group:
                self._groups.append(group)
                group, size = [], 0
            group.append(item)
            size += item.length
        if size <= self._job.inline_bytes_max:
            self._inline = group
        elif group:
            self._groups.append(group)
        return len(self._ready) + len(self._groups)

    # --- packs ---------------------------------------------------------------------------

    def seal_pack(self, number: int) -> SealedPack | None:
        """Make pack `number` and write it to the outbox; None if nothing of it was intact."""
        if number < len(self._ready):
            ready = self._ready[number]
            return SealedPack(number=number, key=ready.key, size=ready.size)
        group = self._groups[number - len(self._ready)]
        chunks: list[PackedChunk] = []
        bodies: list[bytes] = []
        offset = 0
        for item, stored, frames in self._encoded(group):
            chunks.append(PackedChunk(item.chunk, offset, len(stored), item.length, frames))
            bodies.append(stored)
            offset += len(stored)
        group.clear()
        if not chunks:
            return None
        bodies.append(encode_pack_tail([PackEntry(*chunk[:4]) for chunk in chunks]))
        data = b"".join(bodies)
        bodies.clear()
        key = pack_key(self._job.epoch, self._next_pack_id(), sha256_hex(data))
        if self._job.keep_in_outbox:
            record = PackRecord(key=key, size=len(data), chain=self._job.chain)
            self._pack_records[key] = record
            self._outbox.store(record)
            self._outbox.pack_path(key).write_bytes(data)
        else:
            self._in_ram[number] = data
        self._name(key, len(data), chunks, chunks)
        return SealedPack(number=number, key=key, size=len(data))

    def upload(self, pack: SealedPack) -> None:
        """Send a sealed pack and verify it; then it is in the block cache, not in the outbox.

        Raises the store's errors; the same call may be made again. A pack that is there already
        (the same bytes have the same key) is not sent twice, in this life or the next.
        """
        data = self._in_ram.get(pack.number)
        if data is not None:
            self._sender.send_bytes(pack.key, data)
            self._cache.put_object(pack.key, data)
            del self._in_ram[pack.number]
            return
        record = self._pack_records[pack.key]
        if record.chunks is None:
            self._sender.send_file(record)
            record = replace(record, chunks=self._chunks.pop(pack.key))
            self._sender.note_sent(record)
            self._pack_records[pack.key] = record
        path = self._outbox.pack_path(pack.key)
        self._cache.put_object(pack.key, path.read_bytes())
        path.unlink()

    def _next_pack_id(self) -> int:
        return self._job.seq << 16 | (len(self._packs) + 1)

    def _name(
        self, key: str, size: int, chunks: Sequence[PackedChunk], used: Sequence[PackedChunk]
    ) -> None:
        """Let the commit name a pack, under an id of its own, for the chunks that it uses."""
        pack = self._next_pack_id()
        self._packs.append((pack, key, "", size))
        self._places += [
            PlacementRow(chunk.chunk, pack, chunk.offset, chunk.stored_length, chunk.frames)
            for chunk in used
        ]
        self._chunks[key] = tuple(chunks)

    # --- packs of an earlier attempt -----------------------------------------------------

    def _reuse(self, wanted: dict[int, SealItem]) -> None:
        """Take out of `wanted` what lies in packs that were sealed or sent before.

        Raises the store's errors. A pack of which less than half is wanted is not worth its
        place; it is dropped here, and what was sent of it is left to reclaim.
        """
        for record in self._outbox.records():
            chunks = self._usable(record, wanted)
            if chunks is None:
                self._sender.give_up(record)
                self._outbox.forget(record.key)
                continue
            self._pack_records[record.key] = record
            used = [chunk for chunk in chunks if _is_wanted(chunk, wanted)]
            self._name(record.key, record.size, chunks, used)
            if record.chunks is None:
                self._sender.expect(record.key)
                self._ready.append(record)
            for chunk in used:
                del wanted[chunk.chunk]
            self._reused += 1

    def _usable(
        self, record: PackRecord, wanted: dict[int, SealItem]
    ) -> Sequence[PackedChunk] | None:
        """Return what lies in a pack if it is to be reused and can be relied on, else None."""
        if record.chain not in self._job.chains:
            return None
        chunks: Sequence[PackedChunk] | None = record.chunks
        if chunks is None:
            try:
                chunks = read_pack(self._outbox.pack_path(record.key), record)
            except (FileNotFoundError, Corrupt, UnsupportedVersion):
                return None
        stored = sum(chunk.stored_length for chunk in chunks if _is_wanted(chunk, wanted))
        if 2 * stored < record.size:
            return None
        if record.chunks is not None:
            try:
                if self._store.stat(record.key).size != record.size:
                    return None
            except ObjectMissing:
                return None
        return chunks

    # --- chunks --------------------------------------------------------------------------

    def _encoded(self, items: list[SealItem]) -> Iterator[tuple[SealItem, bytes, bytes]]:
        """Give (item, stored chunk, frame table); damaged chunks are left out and named."""
        for item in items:
            try:
                if item.source_key:
                    stored = self._moved(item)
                    frames = decode_chunk_header(stored, item.source_key)[2]
                else:
                    stored, frames = encode_chunk(item.chunk, self._young_bytes(item))
            except (Corrupt, UnsupportedVersion, StoreError) as error:
                if item.source_key:
                    # It stays where it is: `check` and a read of it will name it. A store that
                    # does not answer now may do so at the next commit, which need not wait.
                    if not (isinstance(error, StoreError) and error.retryable):
                        self._unmovable.add(item.source_key)
                    continue
                self._damaged.append(item.chunk)
                continue
            yield item, stored, frames

    def _young_bytes(self, item: SealItem) -> bytes:
        """Put a young chunk together from its pieces, each record verified."""
        parts = []
        position = 0
        for piece in self._list.pieces(item.chunk):
            if piece.offset != position:
                raise Corrupt("chunk", str(item.chunk), f"no piece at byte {position}")
            data = self._record(piece.segment, piece.position, piece.op_seq)
            take = min(piece.length, item.length - position)
            parts.append(data[piece.record_offset : piece.record_offset + take])
            position += take
        if position != item.length:
            raise Corrupt(
                "chunk", str(item.chunk), f"{position} of {item.length} bytes have pieces"
            )
        return b"".join(parts)

    def _record(self, segment: int, position: int, op_seq: int) -> bytes:
        data = self._records.get((segment, position))
        if data is None:
            file = self._files.get(segment)
            path = Path(self._job.segments[segment])
            if file is None:
                file = self._files[segment] = self._disk.open(path)
            data = read_write_record(file, path, position, op_seq)
            self._records[segment, position] = data
            if len(self._records) > _RECORDS_CACHED:
                self._records.popitem(last=False)
        return data

    def _moved(self, item: SealItem) -> bytes:
        """Return a living chunk as stored, for its new place; every frame is verified."""
        block_bytes = self._cache.block_bytes
        first = item.source_offset // block_bytes
        last = (item.source_offset + item.stored_length - 1) // block_bytes
        blocks = [self._cache.get(item.source_key, index) for index in range(first, last + 1)]
        if all(block is not None for block in blocks):
            run = b"".join(block for block in blocks if block is not None)
            skip = item.source_offset - first * block_bytes
            stored = run[skip : skip + item.stored_length]
        else:
            stored = self._store.read(
                item.source_key, offset=item.source_offset, length=item.stored_length
            )
        chunk, length, _ = verify_chunk(stored, item.source_key)
        if chunk != item.chunk or length != item.length or len(stored) != item.stored_length:
            raise Corrupt("chunk", item.source_key, f"chunk {item.chunk} is not at its place")
        return stored

    # --- the commit ----------------------------------------------------------------------

    def finish(self) -> CommitBody:
        """Write the commit's body to the outbox: inline chunks, delta, placements."""
        job = self._job
        bodies: list[bytes] = []
        offset = 0
        rows: list[tuple[int, int, int, bytes]] = []
        for item, stored, frames in self._encoded(self._inline):
            rows.append((item.chunk, offset, len(stored), frames))
            bodies.append(stored)
            offset += len(stored)
        delta = encode_blob(Path(job.delta_db).read_bytes())
        delta_hash = ""
        if offset + len(delta) > COMMIT_BYTES_MAX:
            delta_hash = sha256_hex(delta)
            self._store.write(log_delta_key(job.seq, delta_hash), delta)
            delta = b""
        packs = list(self._packs)
        if rows:
            # The size is not known before the placements are written; it is a bound for
            # read-ahead and a number for people, so the inline part is what counts.
            packs.append((job.seq << 16, log_key(job.seq), "", offset))
            self._places += [PlacementRow(row[0], job.seq << 16, *row[1:]) for row in rows]
        placements_path = Path(job.outbox) / f"placements-{job.seq}.db"
        placements_path.unlink(missing_ok=True)
        write_placements(placements_path, packs, self._places)
        placements = encode_blob(placements_path.read_bytes())
        path = Path(job.outbox) / f"commit-{job.seq}"
        path.write_bytes(b"".join((*bodies, delta, placements)))
        return CommitBody(
            path=str(path),
            inline_length=offset,
            delta_length=len(delta),
            placements_length=len(placements),
            delta_hash=delta_hash,
            unmovable=tuple(sorted(self._unmovable)),
            damaged=tuple(self._damaged),
            reused_packs=self._reused,
            resumed_parts=self._sender.parts_resumed,
        )

    def close(self) -> None:
        """Close files; nothing of the outbox is removed here."""
        for file in self._files.values():
            file.close()
        self._list.close()


def _is_wanted(chunk: PackedChunk, wanted: dict[int, SealItem]) -> bool:
    item = wanted.get(chunk.chunk)
    return item is not None and item.length == chunk.length


def read_pack(path: Path, record: PackRecord) -> list[PackedChunk]:
    """Return what lies in a sealed pack of the outbox, every frame of it verified.

    Raises `FileNotFoundError`, `Corrupt` or `UnsupportedVersion`: then it is sealed again.
    """
    data = path.read_bytes()
    if pack_hash_of(record.key) != sha256_hex(data)[: len(pack_hash_of(record.key))]:
        raise Corrupt("pack", str(path), "it does not have the hash in its name")
    chunks = []
    for entry in decode_pack_tail(data, len(data), str(path)):
        stored = memoryview(data)[entry.offset : entry.offset + entry.stored_length]
        chunk, length, frames = verify_chunk(stored, str(path))
        if (chunk, length) != (entry.chunk, entry.length):
            raise Corrupt("pack", str(path), f"chunk {entry.chunk} is not at its place")
        chunks.append(PackedChunk(chunk, entry.offset, entry.stored_length, length, frames))
    return chunks


def verify_chunk(stored: Bytes, key: str) -> tuple[int, int, bytes]:
    """Return (chunk id, length, frame table) of a stored chunk of which every frame is intact.

    Raises `Corrupt` or `UnsupportedVersion`.
    """
    chunk, length, table = decode_chunk_header(stored, key)
    for index, frame in enumerate(decode_frame_table(chunk, length, table)):
        body = memoryview(stored)[frame.offset : frame.offset + frame.stored_length]
        decode_frame(chunk, index, frame, body, key)
    return chunk, length, table
