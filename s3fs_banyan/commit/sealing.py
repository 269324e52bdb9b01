"""Sealing: the young chunks of a cut become frames, packs, and the body of a commit.

Synchronous code on plain values: it runs in the worker process of a mount, and inline in the
simulation. It writes to `outbox/` and the block cache only, and never publishes.

    plan          read the list that the cut's snapshot left; take from packs of an earlier attempt
                  what is in them already; divide the rest into packs and what stays inline
    seal_pack     one pack: read pieces (each journal record verified), compress, checksum; into
                  the outbox with it where sending it takes its time
    upload        send it, verified, and record where what lies; put it into the cache meanwhile;
                  remove it. What could not be sent goes into the outbox now
    finish        the rest inline, the placements, the delta: the body of the commit
    finish_local  of a local cut: the placements; its packs are base packs and stay here

An earlier attempt may be one of a former life. A chunk behind a cut never changes and ids are a
function of the fold, so a chunk of equal id and length, sealed behind a cut of this journal, is
the same bytes.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from s3fs_banyan.commit.base_packs import BasePacks
from s3fs_banyan.commit.classes import ClassPolicy
from s3fs_banyan.commit.grouping import Group, Limits, divide
from s3fs_banyan.commit.outbox import Outbox, PackedChunk, PackRecord
from s3fs_banyan.commit.pack_buffers import PackBuffer, PackBuffers
from s3fs_banyan.commit.pack_reading import read_pack, verify_chunk
from s3fs_banyan.commit.seal_job import CommitBody, LocalBody, SealedPack, SealingLost, SealJob
from s3fs_banyan.commit.sending import PackSender, SendPolicy
from s3fs_banyan.data.blocks import BlockCache
from s3fs_banyan.data.rereads import Rereads
from s3fs_banyan.errors import (
    Corrupt,
    ObjectMissing,
    StoreError,
    UnsupportedVersion,
)
from s3fs_banyan.format.blob import delta_place, encode_blob, placements_place
from s3fs_banyan.format.checksum import sha256_hex
from s3fs_banyan.format.chunk import decode_chunk_header, encode_chunk
from s3fs_banyan.format.encryption import Cipher
from s3fs_banyan.format.keys import is_base_pack, log_delta_key, log_key, pack_hash_of, pack_key
from s3fs_banyan.format.pack import PackEntry, encode_pack_tail
from s3fs_banyan.gentle_io import read_gently, write_gently
from s3fs_banyan.journal.disk import Disk, DiskFile
from s3fs_banyan.journal.segment import read_write_record
from s3fs_banyan.meta.committed import PlacementRow, write_placements
from s3fs_banyan.meta.seal_list import SealItem, SealList
from s3fs_banyan.prices import STANDARD
from s3fs_banyan.remote.base import RemoteFileSystem
from s3fs_banyan.remote.transfers import InlineTransfers, Transfers
from s3fs_banyan.runtime import monotonic_s

log = logging.getLogger(__name__)

_RECORDS_CACHED: Final = 16
_READ_BYTES: Final = 1 << 20
COMMIT_BYTES_MAX: Final = 8 << 20
"""Delta and inline data of a commit stay below this."""


class Sealing:
    """One commit's sealing, from plan to body."""

    def __init__(
        self,
        job: SealJob,
        *,
        disk: Disk,
        store: RemoteFileSystem,
        cache: BlockCache,
        cipher: Cipher | None,
        transfers: Transfers | None = None,
        beside: Transfers | None = None,
        proved: set[str] | None = None,
        clock: Callable[[], float] = monotonic_s,
    ) -> None:
        """`cipher` is None for a volume that is not encrypted.

        `beside` has room for two calls of each upload: it is sent and cached at the same time.
        `proved` goes from one sealing to the next of a process: packs of the outbox that are in
        the store, so that in bad weather not all of them are asked for again and again.
        """
        self._outbox = Outbox(Path(job.outbox))
        self._sender = PackSender(
            store,
            self._outbox,
            policy=SendPolicy(multipart=job.multipart, part_bytes=job.part_bytes),
            transfers=transfers or InlineTransfers(),
            clock=clock,
        )
        self._beside = beside or InlineTransfers()
        self._proved = set() if proved is None else proved
        self._ready: list[PackRecord] = []
        self._pack_records: dict[str, PackRecord] = {}
        self._chunks: dict[str, tuple[PackedChunk, ...]] = {}
        self._reused = 0
        self._job = job
        self._disk = disk
        self._store = store
        self._cache = cache
        self._cipher = cipher
        self._list = SealList(Path(job.seal_db))
        self._policy = ClassPolicy.from_plain(job.policy)
        self._groups: list[Group] = []
        self._inline: list[SealItem] = []
        self._packs: list[tuple[int, str, str, int]] = []
        self._places: list[PlacementRow] = []
        self._damaged: list[int] = []
        self._unmovable: set[str] = set()
        self._buffers = PackBuffers()
        self._in_ram: dict[str, PackBuffer] = {}
        """Key -> a pack that is not in the outbox, or on its way from there."""
        self._files: dict[int, DiskFile] = {}
        self._records: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._base = BasePacks(disk, Path(job.base_packs))

    def plan(self) -> int:
        """Divide the chunks into packs; returns how many packs there are to seal."""
        job = self._job
        limits = Limits(pack_bytes=job.pack_bytes, inline_bytes_max=job.inline_bytes_max)
        wanted = {item.chunk: item for item in self._list.items()}
        if not job.first_base_pack:
            self._reuse(wanted)
        self._groups, self._inline = divide(
            [*wanted.values()], self._list.directories(), self._policy, limits, job.now_ns
        )
        return len(self._ready) + len(self._groups)

    # --- packs ---------------------------------------------------------------------------

    def seal_pack(self, number: int) -> SealedPack | None:
        """Make pack `number`, in RAM or in the outbox; None if nothing of it was intact."""
        if number < len(self._ready):
            ready = self._ready[number]
            return SealedPack(number=number, key=ready.key, size=ready.size)
        group = self._groups[number - len(self._ready)]
        buffer = self._buffers.take(summed=not self._job.first_base_pack)
        chunks = self._fill(buffer, group.items)
        self._groups[number - len(self._ready)] = Group(items=[])
        size = len(buffer)
        if not chunks:
            self._buffers.give_back(buffer)
            return None
        if self._job.first_base_pack:
            pack = self._job.first_base_pack + number
            key = self._base.write(pack, buffer)
            self._buffers.give_back(buffer)
            self._name(PackRecord(key=key, size=size), chunks, chunks, pack)
            return SealedPack(number=number, key=key, size=size)
        verdict = self._policy.judge(group.rule, size, group.age_s)
        record = PackRecord(
            key=pack_key(self._job.epoch, self._next_pack_id(), buffer.sha256.hex()),
            size=size,
            chain=self._job.chain,
            storage_class="" if verdict.storage_class == STANDARD else verdict.storage_class,
        )
        self._pack_records[record.key] = record
        self._in_ram[record.key] = buffer
        if self._job.keep_in_outbox:
            self._outbox.store(record)
            if not self._sender.is_quick(size):
                self._lay_down(record.key)
        self._name(record, chunks, chunks, self._next_pack_id())
        return SealedPack(number=number, key=record.key, size=size)

    def _fill(self, buffer: PackBuffer, items: list[SealItem]) -> list[PackedChunk]:
        """Put a pack together; returns what lies in it, nothing if no chunk was intact."""
        chunks: list[PackedChunk] = []
        offset = 0
        for item, stored, frames in self._encoded(items):
            chunks.append(PackedChunk(item.chunk, offset, len(stored), item.length, frames))
            buffer.add(stored)
            offset += len(stored)
        if chunks:
            buffer.add(encode_pack_tail([PackEntry(*chunk[:4]) for chunk in chunks]))
        buffer.finish()
        return chunks

    def _lay_down(self, key: str) -> None:
        """Put a pack into the outbox, where it waits, and outlives this process."""
        write_gently(self._outbox.pack_path(key), self._in_ram[key])
        self._buffers.give_back(self._in_ram.pop(key))

    def upload(self, pack: SealedPack) -> None:
        """Send a sealed pack and verify it; then it is in the block cache, not in the outbox.

        Raises the store's errors; the same call may be made again. Raises `SealingLost` if the
        pack has rotted in the outbox, or is gone. A pack of which the store
        proves that it is there already is not sent twice, in this life or the next. What could
        not be sent may be in the cache all the same, where nobody asks for it by that name.
        """
        key = pack.key
        record = self._pack_records[key]
        if record.chunks is None and key not in self._in_ram and self._sender.goes_in_parts(record):
            with _unreadable_is_lost(key):
                self._check_waiting(key)
            self._sender.send_parts(record)
            record = self._note_sent(record)
        if key not in self._in_ram:
            with _unreadable_is_lost(key):
                self._in_ram[key] = self._loaded(key, summed=record.chunks is None)
        if record.chunks is None:
            self._send_whole(record)
        else:
            self._cache.put_object(key, self._in_ram[key])
        self._buffers.give_back(self._in_ram.pop(key))
        self._outbox.drop_pack(key)

    def _send_whole(self, record: PackRecord) -> None:
        """Send a pack from RAM, and put it into the cache meanwhile.

        One that could not be sent waits in the outbox, if there is room for it.
        """
        key = record.key
        buffer = self._in_ram[key]

        def send() -> None:
            self._sender.send_whole(record, buffer)
            self._note_sent(record)

        try:
            for _ in self._beside.results((send, partial(self._cache.put_object, key, buffer))):
                pass
        except StoreError:
            if self._outbox.pack_path(key).exists():
                self._buffers.give_back(self._in_ram.pop(key))
            elif self._job.keep_in_outbox:
                try:
                    self._lay_down(key)
                except OSError as error:
                    log.warning("%s waits in memory, not in the outbox: %s", key, error)
                    self._outbox.drop_pack(key)
            raise

    def _note_sent(self, record: PackRecord) -> PackRecord:
        """Record that a pack is in the store, and what lies in it."""
        record = replace(record, chunks=self._chunks.pop(record.key))
        self._proved.add(record.key)
        if self._job.keep_in_outbox:
            self._sender.note_sent(record)
        self._pack_records[record.key] = record
        return record

    def _loaded(self, key: str, *, summed: bool) -> PackBuffer:
        buffer = self._buffers.take()
        buffer.load(self._outbox.pack_path(key), summed=summed)
        if summed:
            self._expect_hash(key, buffer.sha256.hex())
        return buffer

    def _check_waiting(self, key: str) -> None:
        """Look at a pack in the outbox before it is sent in parts: their sums prove nothing."""
        digest = hashlib.sha256()
        with self._outbox.pack_path(key).open("rb", buffering=0) as file:
            while piece := file.read(_READ_BYTES):
                digest.update(piece)
        self._expect_hash(key, digest.hexdigest())

    def _expect_hash(self, key: str, found: str) -> None:
        if not found.startswith(pack_hash_of(key)):
            log.error("%s has rotted in the outbox: it is sealed again", key)
            raise SealingLost(f"{key} does not have the hash in its name any more")

    def _next_pack_id(self) -> int:
        return self._job.seq << 16 | (len(self._packs) + 1)

    def _name(
        self,
        record: PackRecord,
        chunks: Sequence[PackedChunk],
        used: Sequence[PackedChunk],
        pack: int,
    ) -> None:
        """Let the commit name a pack, under an id of its own, for the chunks that it uses."""
        self._packs.append((pack, record.key, record.storage_class, record.size))
        self._places += [
            PlacementRow(chunk.chunk, pack, chunk.offset, chunk.stored_length, chunk.frames)
            for chunk in used
        ]
        self._chunks[record.key] = tuple(chunks)

    # --- packs of an earlier attempt -----------------------------------------------------

    def _reuse(self, wanted: dict[int, SealItem]) -> None:
        """Take out of `wanted` what lies in packs that were sealed or sent before.

        Raises the store's errors. A pack of which less than half is wanted is not worth its
        place; it is dropped here, and what was sent of it is left to reclaim.
        """
        records = self._outbox.records()
        self._proved &= {record.key for record in records}
        for record in records:
            chunks = self._usable(record, wanted)
            if chunks is None:
                self._sender.give_up(record)
                self._outbox.forget(record.key)
                continue
            self._pack_records[record.key] = record
            used = [chunk for chunk in chunks if _is_wanted(chunk, wanted)]
            self._name(record, chunks, used, self._next_pack_id())
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
                chunks = read_pack(self._outbox.pack_path(record.key), record, self._cipher)
            except (OSError, Corrupt, UnsupportedVersion):
                return None  # a hint that cannot be read is none
        stored = sum(chunk.stored_length for chunk in chunks if _is_wanted(chunk, wanted))
        if 2 * stored < record.size:
            return None
        if record.chunks is not None and not self._is_in_store(record):
            return None
        return chunks

    def _is_in_store(self, record: PackRecord) -> bool:
        """Tell whether a pack that was sent is there. Raises the store's errors."""
        if record.key in self._proved:
            return True
        try:
            if self._store.stat(record.key).size != record.size:
                return False
        except ObjectMissing:
            return False
        self._proved.add(record.key)
        return True

    # --- chunks --------------------------------------------------------------------------

    def _encoded(self, items: list[SealItem]) -> Iterator[tuple[SealItem, bytes, bytes]]:
        """Give (item, stored chunk, frame table); damaged chunks are left out and named."""
        for item in items:
            try:
                if item.source_key:
                    stored = self._moved(item)
                    frames = decode_chunk_header(stored, item.source_key)[2]
                else:
                    young = self._young_bytes(item)
                    stored, frames = encode_chunk(item.chunk, young, self._cipher)
            except (Corrupt, UnsupportedVersion, StoreError) as error:
                if item.source_key and not self._lost_if_left(item):
                    # It stays where it is: `check` and a read of it will name it. A store that
                    # does not answer now may do so at the next commit, which need not wait.
                    if not (isinstance(error, StoreError) and error.retryable):
                        log.warning("chunk %d stays where it is: %s", item.chunk, error)
                        self._unmovable.add(item.source_key)
                    continue
                self._damaged.append(item.chunk)
                continue
            yield item, stored, frames

    def _lost_if_left(self, item: SealItem) -> bool:
        """Tell whether a chunk lies where it cannot stay: its base pack goes with this commit."""
        return is_base_pack(item.source_key) and not self._job.first_base_pack

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
            # A disk that refuses to read may read again: the commit waits, nothing is given up.
            data = read_write_record(file, path, position, op_seq)
            self._records[segment, position] = data
            if len(self._records) > _RECORDS_CACHED:
                self._records.popitem(last=False)
        return data

    def _moved(self, item: SealItem) -> bytes:
        """Return a living chunk as stored, for its new place; every frame is verified.

        A bit that flipped on the way, now or when the block was cached, is no damage: look again.
        """
        rereads = Rereads()
        use_cache = True
        while True:
            stored = self._stored(item, use_cache=use_cache)
            rereads.note(stored)
            try:
                self._check_moved(item, stored)
            except (Corrupt, UnsupportedVersion):  # a flip in the version's own bits, too
                if rereads.prove_damage():
                    raise
            else:
                return stored
            use_cache = False

    def _check_moved(self, item: SealItem, stored: bytes) -> None:
        chunk, length, _ = verify_chunk(stored, item.source_key, self._cipher)
        if chunk != item.chunk or length != item.length or len(stored) != item.stored_length:
            raise Corrupt("chunk", item.source_key, f"chunk {item.chunk} is not at its place")

    def _stored(self, item: SealItem, *, use_cache: bool) -> bytes:
        """Return the bytes of a chunk's place: in a base pack, in the block cache, in the store."""
        if is_base_pack(item.source_key):
            return self._base.read(item.source_key, item.source_offset, item.stored_length)
        block_bytes = self._cache.block_bytes
        first = item.source_offset // block_bytes
        last = (item.source_offset + item.stored_length - 1) // block_bytes
        blocks = [self._cache.get(item.source_key, index) for index in range(first, last + 1)]
        if use_cache and all(block is not None for block in blocks):
            run = b"".join(block for block in blocks if block is not None)
            skip = item.source_offset - first * block_bytes
            return run[skip : skip + item.stored_length]
        return bytes(
            self._store.read(item.source_key, offset=item.source_offset, length=item.stored_length)
        )

    # --- the end -------------------------------------------------------------------------

    def finish_local(self) -> LocalBody:
        """Write the placements of a local cut."""
        placements = Path(self._job.outbox) / f"placements-local-{self._job.first_base_pack}.db"
        placements.unlink(missing_ok=True)
        write_placements(placements, self._packs, self._places)
        return LocalBody(
            placements=str(placements),
            pack_count=len(self._groups),
            damaged=tuple(self._damaged),
        )

    def finish(self) -> CommitBody:
        """Write the commit's body to the outbox: inline chunks, delta, placements.

        Raises the store's errors and `OSError`; the same call may be made again.
        """
        of_packs = [*self._damaged]
        try:
            return self._finish()
        except BaseException:
            self._damaged = of_packs
            raise

    def _finish(self) -> CommitBody:
        job = self._job
        bodies: list[bytes] = []
        offset = 0
        rows: list[tuple[int, int, int, bytes]] = []
        for item, stored, frames in self._encoded(self._inline):
            rows.append((item.chunk, offset, len(stored), frames))
            bodies.append(stored)
            offset += len(stored)
        delta_bytes = read_gently(Path(job.delta_db))
        delta = encode_blob(delta_bytes, self._cipher, place=delta_place(job.seq))
        delta_hash = ""
        if offset + len(delta) > COMMIT_BYTES_MAX:
            delta_hash = sha256_hex(delta)
            self._store.write(log_delta_key(job.seq, delta_hash), delta)
            delta = b""
        packs = [
            (pack, key, "" if key in self._sender.refused else chosen, size)
            for pack, key, chosen, size in self._packs
        ]
        if rows:
            # The size is not known before the placements are written; it is a bound for
            # read-ahead and a number for people, so the inline part is what counts.
            packs.append((job.seq << 16, log_key(job.seq), "", offset))
        placements_path = Path(job.outbox) / f"placements-{job.seq}.db"
        placements_path.unlink(missing_ok=True)
        inline = [PlacementRow(row[0], job.seq << 16, *row[1:]) for row in rows]
        write_placements(placements_path, packs, self._places + inline)
        placements = encode_blob(
            read_gently(placements_path), self._cipher, place=placements_place(job.seq)
        )
        path = Path(job.outbox) / f"commit-{job.seq}"
        write_gently(path, b"".join((*bodies, delta, placements)))
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


@contextmanager
def _unreadable_is_lost(key: str) -> Iterator[None]:
    """A pack that waits only saves work: the journal has its bytes."""
    try:
        yield
    except OSError as error:
        raise SealingLost(f"{key} cannot be read in the outbox: {error}") from error


def _is_wanted(chunk: PackedChunk, wanted: dict[int, SealItem]) -> bool:
    item = wanted.get(chunk.chunk)
    return item is not None and item.length == chunk.length
