"""Sealing: the young chunks of a cut become frames, packs, and the body of a commit.

Synchronous code on plain values: it runs in the worker process of a mount, and inline in the
simulation. It writes to `outbox/` and the block cache only, and never publishes.

    plan          read the list that the cut's snapshot left; divide it into packs and the rest
    seal_pack     one pack: read pieces (each journal record verified), compress, checksum, write
    upload        send it, verified; put it into the cache; remove it from the outbox
    finish        the rest inline, the placements, the delta: the body of the commit
    finish_local  of a local cut: the placements; its packs are base packs and stay here
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from s3fs_banyan.commit.base_packs import BasePacks
from s3fs_banyan.commit.classes import ClassPolicy
from s3fs_banyan.commit.grouping import Group, Limits, divide
from s3fs_banyan.config.prices import STANDARD
from s3fs_banyan.data.blocks import BlockCache
from s3fs_banyan.errors import Corrupt, Misconfigured, ObjectMissing, StoreError, UnsupportedVersion
from s3fs_banyan.format.blob import delta_place, encode_blob, placements_place
from s3fs_banyan.format.checksum import sha256_hex
from s3fs_banyan.format.chunk import (
    decode_chunk_header,
    decode_frame,
    decode_frame_table,
    encode_chunk,
)
from s3fs_banyan.format.encryption import Cipher
from s3fs_banyan.format.keys import is_base_pack, log_delta_key, log_key, pack_key
from s3fs_banyan.format.pack import PackEntry, encode_pack_tail
from s3fs_banyan.journal.disk import Disk, DiskFile
from s3fs_banyan.journal.log import read_write_record
from s3fs_banyan.meta.committed import PlacementRow, write_placements
from s3fs_banyan.meta.seal_list import SealItem, SealList
from s3fs_banyan.remote.base import RemoteFileSystem

log = logging.getLogger(__name__)

_RECORDS_CACHED: Final = 16
_MOVE_READS: Final = 4
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
    base_packs: str
    """Directory of the base packs."""
    first_base_pack: int = 0
    """For a local cut: the number of its first base pack; 0 for a commit."""
    policy: dict[str, Any] = field(default_factory=dict)
    """`ClassPolicy.plain()`; empty: one class, nothing apart."""
    now_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedPack:
    """A pack ready to be sent."""

    number: int
    key: str
    size: int
    storage_class: str = ""
    """Empty: the store's standard one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalBody:
    """What a local cut has sealed: all of it is on the local disk, synced."""

    placements: str
    pack_count: int
    """How many numbers of base packs were used."""
    damaged: tuple[int, ...]
    """As in `CommitBody`."""


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
    ) -> None:
        """`cipher` is None for a volume that is not encrypted."""
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
        self._refused: set[str] = set()
        self._in_ram: dict[int, bytes] = {}
        self._attempted: set[str] = set()
        self._files: dict[int, DiskFile] = {}
        self._records: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._base = BasePacks(disk, Path(job.base_packs))

    def plan(self) -> int:
        """Divide the chunks into packs; returns how many packs there are to seal."""
        job = self._job
        limits = Limits(pack_bytes=job.pack_bytes, inline_bytes_max=job.inline_bytes_max)
        self._groups, self._inline = divide(
            self._list.items(), self._list.directories(), self._policy, limits, job.now_ns
        )
        return len(self._groups)

    # --- packs ---------------------------------------------------------------------------

    def seal_pack(self, number: int) -> SealedPack | None:
        """Make pack `number` and write it to the outbox; None if nothing of it was intact."""
        entries: list[PackEntry] = []
        bodies: list[bytes] = []
        rows: list[tuple[int, int, int, bytes]] = []
        offset = 0
        group = self._groups[number]
        for item, stored, frames in self._encoded(group.items):
            entries.append(PackEntry(item.chunk, offset, len(stored), item.length))
            rows.append((item.chunk, offset, len(stored), frames))
            bodies.append(stored)
            offset += len(stored)
        self._groups[number] = Group(items=[])
        if not entries:
            return None
        bodies.append(encode_pack_tail(entries))
        data = b"".join(bodies)
        bodies.clear()
        if self._job.first_base_pack:
            pack = self._job.first_base_pack + number
            key = self._base.write(pack, data)
            self._note_pack(pack, key, "", len(data), rows)
            return SealedPack(number=number, key=key, size=len(data))
        pack = self._job.seq << 16 | (number + 1)
        key = pack_key(self._job.epoch, pack, sha256_hex(data))
        if self._job.keep_in_outbox:
            self._outbox_path(key).write_bytes(data)
        else:
            self._in_ram[number] = data
        verdict = self._policy.judge(group.rule, len(data), group.age_s)
        chosen = "" if verdict.storage_class == STANDARD else verdict.storage_class
        self._note_pack(pack, key, chosen, len(data), rows)
        return SealedPack(number=number, key=key, size=len(data), storage_class=chosen)

    def _note_pack(
        self,
        pack: int,
        key: str,
        storage_class: str,
        size: int,
        rows: list[tuple[int, int, int, bytes]],
    ) -> None:
        self._packs.append((pack, key, storage_class, size))
        self._places += [PlacementRow(row[0], pack, *row[1:]) for row in rows]

    def upload(self, pack: SealedPack) -> None:
        """Send a sealed pack and verify it; then it is in the block cache, not in the outbox.

        Raises the store's errors; the same call may be made again. A pack of which the store's
        MD5 proves that it is there already is not sent twice.
        """
        path = self._outbox_path(pack.key)
        data = self._in_ram.get(pack.number)
        if data is None:
            data = path.read_bytes()
        if not (pack.key in self._attempted and self._is_there(pack, data)):
            self._attempted.add(pack.key)
            self._send(pack, data)
        self._cache.put_object(pack.key, data)
        self._in_ram.pop(pack.number, None)
        path.unlink(missing_ok=True)

    def _send(self, pack: SealedPack, data: bytes) -> None:
        """Write a pack; a store that does not know its class must not stop the commit."""
        try:
            self._store.write(pack.key, data, storage_class=pack.storage_class)
        except Misconfigured as error:
            if not pack.storage_class:
                raise
            self._store.write(pack.key, data)
            self._refused.add(pack.key)
            log.warning(
                "the store does not take storage class %s, %s lies in its standard one: %s",
                pack.storage_class,
                pack.key,
                error,
            )

    def _is_there(self, pack: SealedPack, data: bytes) -> bool:
        """Tell whether an attempt whose answer was lost, or wrong, left the right bytes there.

        Its size would prove nothing: what arrived wrong is as long.
        """
        if not self._store.capabilities.etag_is_md5:
            return False
        try:
            etag = self._store.stat(pack.key).etag
        except ObjectMissing:
            return False
        return etag == hashlib.md5(data, usedforsecurity=False).hexdigest()

    def _outbox_path(self, key: str) -> Path:
        return Path(self._job.outbox) / key.replace("/", "-")

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
            data = read_write_record(file, path, position, op_seq)
            self._records[segment, position] = data
            if len(self._records) > _RECORDS_CACHED:
                self._records.popitem(last=False)
        return data

    def _moved(self, item: SealItem) -> bytes:
        """Return a living chunk as stored, for its new place; every frame is verified.

        A bit that flipped on the way, now or when the block was cached, is no damage: look again.
        """
        for left in reversed(range(_MOVE_READS)):
            try:
                return self._moved_once(item, use_cache=left == _MOVE_READS - 1)
            except Corrupt:
                if not left:
                    raise
        raise AssertionError("the last read neither returned nor raised")

    def _moved_once(self, item: SealItem, *, use_cache: bool) -> bytes:
        stored = self._stored(item, use_cache=use_cache)
        chunk, length, table = decode_chunk_header(stored, item.source_key)
        if chunk != item.chunk or length != item.length or len(stored) != item.stored_length:
            raise Corrupt("chunk", item.source_key, f"chunk {item.chunk} is not at its place")
        for index, frame in enumerate(decode_frame_table(chunk, length, table)):
            body = memoryview(stored)[frame.offset : frame.offset + frame.stored_length]
            decode_frame(chunk, index, frame, body, item.source_key, self._cipher)
        return stored

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
        return self._store.read(
            item.source_key, offset=item.source_offset, length=item.stored_length
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
        """Write the commit's body to the outbox: inline chunks, delta, placements."""
        job = self._job
        bodies: list[bytes] = []
        offset = 0
        rows: list[tuple[int, int, int, bytes]] = []
        for item, stored, frames in self._encoded(self._inline):
            rows.append((item.chunk, offset, len(stored), frames))
            bodies.append(stored)
            offset += len(stored)
        delta_bytes = Path(job.delta_db).read_bytes()
        delta = encode_blob(delta_bytes, self._cipher, place=delta_place(job.seq))
        delta_hash = ""
        if offset + len(delta) > COMMIT_BYTES_MAX:
            delta_hash = sha256_hex(delta)
            self._store.write(log_delta_key(job.seq, delta_hash), delta)
            delta = b""
        packs = [
            (pack, key, "" if key in self._refused else chosen, size)
            for pack, key, chosen, size in self._packs
        ]
        if rows:
            # The size is not known before the placements are written; it is a bound for
            # read-ahead and a number for people, so the inline part is what counts.
            packs.append((job.seq << 16, log_key(job.seq), "", offset))
            self._places += [PlacementRow(row[0], job.seq << 16, *row[1:]) for row in rows]
        placements_path = Path(job.outbox) / f"placements-{job.seq}.db"
        placements_path.unlink(missing_ok=True)
        write_placements(placements_path, packs, self._places)
        placements = encode_blob(
            placements_path.read_bytes(), self._cipher, place=placements_place(job.seq)
        )
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
        )

    def close(self) -> None:
        """Close files; nothing of the outbox is removed here."""
        for file in self._files.values():
            file.close()
        self._list.close()
