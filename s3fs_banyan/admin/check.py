"""Check of a volume: every object, every reference, every frame; nothing is changed.

    list       all objects
    load       the newest state, from the newest checkpoint and the commits behind it
    references what the state's tables say of each other
    objects    each one is read whole and decoded; chunks are compared with their places
    missing    what the state or another object names and the store has not

The list is taken before the state is loaded, so a writer at work makes no false findings: what
it deleted meanwhile is asked for once more before it is called missing. It must not print.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from s3fs_banyan.admin.check_chunks import ExpectedChunk, check_chunks, check_pack
from s3fs_banyan.admin.check_state import check_state, count_inodes
from s3fs_banyan.commit.log_store import CommitLog
from s3fs_banyan.errors import Corrupt, DataError, ObjectMissing
from s3fs_banyan.format.blob import PIECE_PLACE, decode_blob, delta_place, placements_place
from s3fs_banyan.format.checkpoint import CHECKPOINT_PIECE_BYTES, CheckpointManifest
from s3fs_banyan.format.checksum import sha256_hex
from s3fs_banyan.format.commit import NO_DIGEST, CommitFooter, commit_sections
from s3fs_banyan.format.encryption import Cipher
from s3fs_banyan.format.keyring import decode_keyring
from s3fs_banyan.format.keys import (
    CHECKPOINT_PIECE_PREFIX,
    PROBE_PREFIX,
    VOLUME,
    WRITER,
    checkpoint_key,
    log_delta_key,
    log_key,
    parse_checkpoint_key,
    parse_keyring_key,
    parse_log_delta_key,
    parse_log_key,
    parse_pack_key,
)
from s3fs_banyan.format.volume import VolumeDescriptor, decode_heartbeat, decode_volume
from s3fs_banyan.meta.committed import Committed, Head, check_commit, restore_committed
from s3fs_banyan.remote.base import FileMeta, RemoteFileSystem

Kind = Literal["missing", "damaged", "orphan"]
OnProgress = Callable[[int, int, str], None]
"""Called with (bytes done, bytes in all, key of the object that comes next)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it should be. Orphans cost money and do no harm."""

    kind: Kind
    key: str
    why: str


@dataclass(slots=True, kw_only=True)
class Summary:
    """What was looked at; filled while the check runs."""

    objects: int = 0
    size_bytes: int = 0
    commits: int = 0
    checkpoints: int = 0
    packs: int = 0
    chunks: int = 0
    inodes: int = 0
    seq: int = 0


@dataclass(slots=True)
class _Log:
    """What the commits that were read say, for the chain."""

    digests: dict[int, bytes] = field(default_factory=dict)
    footers: dict[int, CommitFooter] = field(default_factory=dict)
    deltas: dict[str, str] = field(default_factory=dict)
    """Key of a delta of its own -> its SHA-256."""


class Check:
    """One check of one volume. Blocks; for a thread, or for a command."""

    def __init__(
        self,
        store: RemoteFileSystem,
        volume: VolumeDescriptor,
        scratch: Path,
        cipher: Cipher | None,
        on_progress: OnProgress = lambda done, total, key: None,
    ) -> None:
        """`scratch` is an empty directory for the state's database.

        `cipher` is None for a volume that is not encrypted.
        """
        self.summary = Summary()
        self._store = store
        self._volume = volume
        self._scratch = scratch
        self._on_progress = on_progress
        self._cipher = cipher
        self._log_store = CommitLog(store, scratch, cipher)
        self._keyring = ""
        self._log = _Log()
        self._manifests: dict[int, CheckpointManifest] = {}
        self._listed: dict[str, FileMeta] = {}
        self._expected: dict[str, list[ExpectedChunk]] = {}
        self._pack_keys: set[str] | None = None
        """Objects with chunks in them that the state knows; None without a state."""

    def run(self) -> Iterator[Finding]:
        """Yield what is wrong. Raises the store's errors: what cannot be read is not judged."""
        self._listed = {meta.path: meta for meta in self._store.list()}
        head: Head | None = None
        try:
            committed = self._log_store.load(
                self._scratch / "committed.db", vfs=None, volume=self._volume
            )
        except (DataError, ObjectMissing) as error:
            yield Finding(kind="damaged", key=_key_of(error), why=f"no state to load: {error}")
        else:
            try:
                head = committed.head
                yield from self._check_state(committed)
            finally:
                committed.close()
        yield from self._check_objects()
        yield from self._check_chain(head)
        yield from self._check_checkpoints(head)
        yield from self._check_missing()

    # --- the state -----------------------------------------------------------------------

    def _check_state(self, committed: Committed) -> Iterator[Finding]:
        self.summary.seq = committed.head.seq
        reader = committed.reader()
        self.summary.inodes = count_inodes(reader)
        where = f"state as of {log_key(committed.head.seq)}"
        for why in check_state(reader):
            yield Finding(kind="damaged", key=where, why=why)
        with committed.view() as view:
            self._pack_keys = {row.key for row in view.packs()}
            for chunk, length, key, offset, stored_length, frames in view.all_chunks():
                self.summary.chunks += 1
                if key is None:
                    yield Finding(kind="missing", key=where, why=f"chunk {chunk} has no place")
                    continue
                expected = ExpectedChunk(chunk, length, offset, stored_length, frames)
                self._expected.setdefault(key, []).append(expected)

    # --- each object ---------------------------------------------------------------------

    def _check_objects(self) -> Iterator[Finding]:
        done, total = 0, sum(meta.size for meta in self._listed.values())
        for key, meta in self._listed.items():
            self._on_progress(done, total, key)
            try:
                yield from self._check_object(key)
            except ObjectMissing:
                # Deleted since it was listed; `_check_missing` asks again if it is needed.
                pass
            except DataError as error:
                yield Finding(kind="damaged", key=key, why=_why(error))
            done += meta.size
            self.summary.objects += 1
            self.summary.size_bytes += meta.size
        self._on_progress(total, total, "")

    def _check_object(self, key: str) -> Iterator[Finding]:
        if parse_log_key(key) is not None:
            yield from self._check_commit(key)
        elif parse_log_delta_key(key) is not None:
            yield from self._check_delta(key)
        elif parse_pack_key(key) is not None:
            self.summary.packs += 1
            for why in check_pack(
                bytes(self._store.read(key)), key, self._expected.get(key, []), self._cipher
            ):
                yield Finding(kind="damaged", key=key, why=why)
            if self._pack_keys is not None and key not in self._pack_keys:
                yield Finding(kind="orphan", key=key, why="no commit names it (yet)")
        elif parse_checkpoint_key(key) is not None:
            yield from self._check_manifest(key)
        elif key.startswith(CHECKPOINT_PIECE_PREFIX):
            yield from self._check_piece(key)
        elif key == VOLUME:
            decode_volume(self._store.read(key), key)
        elif key == WRITER:
            decode_heartbeat(self._store.read(key), key)
        elif parse_keyring_key(key) is not None:
            yield from self._check_keyring(key)
        elif not key.startswith((PROBE_PREFIX, "snapshot/", "pin/")):
            yield Finding(kind="orphan", key=key, why="it is no object of a volume")

    def _check_commit(self, key: str) -> Iterator[Finding]:
        self.summary.commits += 1
        seq = parse_log_key(key) or 0
        stored = self._log_store.read(seq)
        footer = stored.footer
        self._log.digests[seq] = stored.digest
        self._log.footers[seq] = footer
        if footer.delta_hash:
            self._log.deltas[log_delta_key(seq, footer.delta_hash)] = footer.delta_hash
        inline = memoryview(stored.data)[: footer.inline_length]
        for why in check_chunks(inline, key, self._expected.get(key, []), self._cipher):
            yield Finding(kind="damaged", key=key, why=why)
        if footer.is_fence:
            return
        delta, placements = commit_sections(stored.data, footer)
        if not footer.delta_hash:
            self._check_database(delta, key, "delta", seq)
        self._check_database(placements, key, "placements", seq)

    def _check_delta(self, key: str) -> Iterator[Finding]:
        """A delta that lies beside its commit; its commit comes first in the list."""
        data = bytes(self._store.read(key))
        wanted = self._log.deltas.get(key)
        if wanted is None:
            yield Finding(kind="orphan", key=key, why="no commit names it")
        elif sha256_hex(data) != wanted:
            yield Finding(
                kind="damaged", key=key, why="its hash differs from the one in its commit"
            )
        self._check_database(data, key, "delta", parse_log_delta_key(key) or 0)

    def _check_database(
        self, blob: bytes | memoryview, key: str, section: Literal["delta", "placements"], seq: int
    ) -> None:
        """Decode one section of a commit and open the database in it; raises `Corrupt`."""
        path = self._scratch / "section.read"
        place = delta_place(seq) if section == "delta" else placements_place(seq)
        path.write_bytes(decode_blob(blob, key, self._cipher, place=place))
        try:
            check_commit(
                path if section == "delta" else None, path if section == "placements" else None, key
            )
        finally:
            path.unlink(missing_ok=True)

    def _check_manifest(self, key: str) -> Iterator[Finding]:
        """The database that a checkpoint's pieces make is opened and checked as a whole."""
        self.summary.checkpoints += 1
        seq = parse_checkpoint_key(key) or 0
        manifest = self._manifests[seq] = self._log_store.read_manifest(seq)
        source, target = self._scratch / "checkpoint.read", self._scratch / "checkpoint.db"
        digest = hashlib.sha256()
        try:
            with source.open("wb") as file:
                for piece in self._log_store.read_pieces(manifest):
                    digest.update(piece)
                    file.write(piece)
            if self._log_store.hash_name(digest.hexdigest()) != manifest.database_hash:
                raise Corrupt("checkpoint", key, "its pieces do not make its database")
            restored = restore_committed(
                target, source, vfs=None, volume_id=self._volume.volume_id, key=key
            )
            try:
                if restored.head.seq != seq or restored.head.digest.hex() != manifest.digest:
                    yield Finding(kind="damaged", key=key, why="its database is of another commit")
            finally:
                restored.close()
        except ObjectMissing as error:
            yield Finding(kind="missing", key=_key_of(error), why=f"a piece of {key}")
        finally:
            for path in (source, target, *self._scratch.glob("checkpoint.db-*")):
                path.unlink(missing_ok=True)

    def _check_piece(self, key: str) -> Iterator[Finding]:
        data = self._store.read(key)
        if sha256_hex(data) != key.removeprefix(CHECKPOINT_PIECE_PREFIX):
            yield Finding(kind="damaged", key=key, why="its bytes differ from its name")
        else:
            decode_blob(
                data,
                key,
                self._cipher,
                place=PIECE_PLACE,
                raw_bytes_max=CHECKPOINT_PIECE_BYTES,
            )

    def _check_keyring(self, key: str) -> Iterator[Finding]:
        keyring = decode_keyring(self._store.read(key), key)
        if not self._volume.is_encrypted or keyring.volume_id != self._volume.volume_id:
            yield Finding(kind="orphan", key=key, why="it is another volume's, made by mkfs")
        elif keyring.generation != parse_keyring_key(key):
            yield Finding(kind="damaged", key=key, why="it is of another generation")
        else:  # they are listed in ascending order
            if self._keyring:
                why = "a newer one counts: rekey deletes it"
                yield Finding(kind="orphan", key=self._keyring, why=why)
            self._keyring = key

    # --- what objects say of each other --------------------------------------------------

    def _check_chain(self, head: Head | None) -> Iterator[Finding]:
        """Every commit names the one before; from `dense_from` on all of them are there."""
        log = self._log
        for seq, footer in sorted(log.footers.items()):
            before = NO_DIGEST if seq == 1 else log.digests.get(seq - 1)
            if before is not None and footer.predecessor != before:
                why = f"it does not follow {log_key(seq - 1)} as that is in the store"
                yield Finding(kind="damaged", key=log_key(seq), why=why)
            earlier = log.footers.get(seq - 1)
            if earlier is not None and (earlier.epoch, earlier.op_seq) > (
                footer.epoch,
                max(footer.op_seq, earlier.op_seq),
            ):
                yield Finding(kind="damaged", key=log_key(seq), why="epoch or operation goes back")
        if head is None:
            return
        for seq in [*head.kept, *range(max(1, head.dense_from), head.seq + 1)]:
            if log_key(seq) not in self._listed and self._is_missing(log_key(seq)):
                yield Finding(kind="missing", key=log_key(seq), why="a commit that is kept")

    def _check_checkpoints(self, head: Head | None) -> Iterator[Finding]:
        named = {piece for manifest in self._manifests.values() for piece in manifest.pieces}
        for seq, manifest in self._manifests.items():
            digest = self._log.digests.get(seq)
            if digest is not None and digest.hex() != manifest.digest:
                why = f"it is of another commit than {log_key(seq)}"
                yield Finding(kind="damaged", key=checkpoint_key(seq), why=why)
        for key in self._listed:
            name = key.removeprefix(CHECKPOINT_PIECE_PREFIX)
            if name != key and name not in named:
                yield Finding(kind="orphan", key=key, why="no checkpoint names it")
        if head is None:
            return
        needed = set(head.kept) | ({head.dense_from} if head.dense_from > 1 else set())
        for seq in sorted(needed - self._manifests.keys()):
            key = checkpoint_key(seq)
            if key not in self._listed and self._is_missing(key):
                yield Finding(
                    kind="missing", key=key, why="the checkpoint of a commit that is kept"
                )

    def _check_missing(self) -> Iterator[Finding]:
        for key, chunks in self._expected.items():
            if key not in self._listed and self._is_missing(key):
                yield Finding(kind="missing", key=key, why=f"{len(chunks)} living chunks lie in it")
        for key in self._log.deltas:
            if key not in self._listed and self._is_missing(key):
                yield Finding(kind="missing", key=key, why="the delta of its commit")

    def _is_missing(self, key: str) -> bool:
        try:
            self._store.stat(key)
        except ObjectMissing:
            return True
        return False


def _key_of(error: DataError | ObjectMissing) -> str:
    return error.key if isinstance(error, Corrupt) else str(error)


def _why(error: DataError) -> str:
    return f"{error.kind}: {error.why}" if isinstance(error, Corrupt) else str(error)
