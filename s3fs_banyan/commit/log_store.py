"""The log and the checkpoints in the store, read and applied to committed.db.

Blocking code for threads. What is read is verified before it is applied: footer, sections,
the databases in them, and that each commit names the digest of the one before.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from s3fs_banyan.errors import Corrupt, DataError, ObjectMissing, UnsupportedVersion
from s3fs_banyan.format.blob import (
    PIECE_PLACE,
    decode_blob,
    delta_place,
    encode_blob,
    placements_place,
)
from s3fs_banyan.format.checkpoint import (
    CHECKPOINT_PIECE_BYTES,
    CheckpointManifest,
    decode_manifest,
    encode_manifest,
)
from s3fs_banyan.format.checksum import Bytes, sha256_hex
from s3fs_banyan.format.commit import (
    CommitFooter,
    commit_digest,
    commit_sections,
    decode_footer,
)
from s3fs_banyan.format.encryption import Cipher
from s3fs_banyan.format.keys import (
    CHECKPOINT_PREFIX,
    LOG_PREFIX,
    checkpoint_key,
    checkpoint_piece_key,
    log_delta_key,
    log_key,
    parse_checkpoint_key,
    parse_log_key,
)
from s3fs_banyan.format.volume import VolumeDescriptor
from s3fs_banyan.meta.committed import (
    Committed,
    Head,
    check_commit,
    create_committed,
    restore_committed,
)
from s3fs_banyan.remote.base import RemoteFileSystem

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCommit:
    """A commit as read from the store."""

    key: str
    data: bytes
    footer: CommitFooter
    digest: bytes


class CommitLog:
    """Reads `log/` and `checkpoint/`, writes checkpoints."""

    def __init__(self, store: RemoteFileSystem, scratch: Path, cipher: Cipher | None) -> None:
        """`scratch` is a directory for files that live no longer than a call.

        `cipher` is None for a volume that is not encrypted.
        """
        self.store = store
        self._scratch = scratch
        self._cipher = cipher

    def tidy(self) -> None:
        """Remove the scratch files of a process that was killed; nobody may be using them."""
        for kind in ("delta", "placements", "checkpoint"):
            for left in self._scratch.glob(f"{kind}-*.read*"):
                left.unlink()

    # --- commits -------------------------------------------------------------------------

    def sequence_numbers(self, after: int) -> list[int]:
        """Return the numbers of the commits behind `after` that are in the store, ascending."""
        metas = self.store.list(LOG_PREFIX, start_after=log_key(after))
        return [seq for meta in metas if (seq := parse_log_key(meta.path)) is not None]

    def read(self, seq: int) -> StoredCommit:
        """Return a commit, verified; raises `ObjectMissing`, `Corrupt`, `UnsupportedVersion`."""
        key = log_key(seq)
        data = bytes(self.store.read(key))
        footer = decode_footer(data, key, self._cipher)
        if footer.seq != seq:
            raise Corrupt("commit", key, f"it says that it is commit {footer.seq}")
        return StoredCommit(key=key, data=data, footer=footer, digest=commit_digest(data))

    def apply(self, committed: Committed, commit: StoredCommit, head: Head) -> Head:
        """Apply a commit that follows `head` to committed.db; durable on return.

        Raises as `read` and `Committed.apply_commit` do.
        """
        footer = commit.footer
        if footer.seq != head.seq + 1 or footer.predecessor != head.digest:
            raise Corrupt("commit", commit.key, f"it does not follow commit {head.seq}")
        if footer.is_fence:
            return committed.apply_commit(None, None, footer, commit.digest)
        delta = self._scratch / f"delta-{footer.seq}.read"
        placements = self._scratch / f"placements-{footer.seq}.read"
        try:
            self._unpack(commit, delta, placements)
            return committed.apply_commit(delta, placements, footer, commit.digest)
        finally:
            for path in (delta, placements):
                path.unlink(missing_ok=True)

    def _unpack(self, commit: StoredCommit, delta: Path, placements: Path) -> None:
        footer = commit.footer
        delta_blob: Bytes
        delta_blob, placements_blob = commit_sections(commit.data, footer)
        if footer.delta_hash:
            key = log_delta_key(footer.seq, footer.delta_hash)
            delta_blob = self.store.read(key)
            if sha256_hex(delta_blob) != footer.delta_hash:
                raise Corrupt("delta", key, "its hash differs from the one in its commit")
        seq, cipher = footer.seq, self._cipher
        delta.write_bytes(decode_blob(delta_blob, commit.key, cipher, place=delta_place(seq)))
        placements.write_bytes(
            decode_blob(placements_blob, commit.key, cipher, place=placements_place(seq))
        )
        check_commit(delta, placements, commit.key)

    def follow(self, committed: Committed, head: Head, most: int | None = None) -> Head:
        """Apply the commits behind `head`, at most so many; `committed.head` moves with each.

        Raises `ObjectMissing` if the next one was reclaimed, and as `apply` does.
        """
        numbers = self.sequence_numbers(head.seq)
        for seq in numbers[:most]:
            if seq != head.seq + 1:
                raise ObjectMissing(f"{log_key(head.seq + 1)} is not in the store any more")
            head = committed.head = self.apply(committed, self.read(seq), head)
        return head

    # --- checkpoints ---------------------------------------------------------------------

    def checkpoints(self) -> list[int]:
        """Return the commits that have a checkpoint, newest first."""
        metas = self.store.list(CHECKPOINT_PREFIX)
        found = [seq for meta in metas if (seq := parse_checkpoint_key(meta.path)) is not None]
        return sorted(found, reverse=True)

    def read_manifest(self, seq: int) -> CheckpointManifest:
        """Return a checkpoint's manifest, verified."""
        key = checkpoint_key(seq)
        manifest = decode_manifest(self.store.read(key), key)
        if manifest.seq != seq:
            raise Corrupt("checkpoint", key, f"it says that it is checkpoint {manifest.seq}")
        return manifest

    def read_pieces(self, manifest: CheckpointManifest) -> Iterator[bytes]:
        """Give the pieces of a checkpoint's database, each verified against its name."""
        for name in manifest.pieces:
            key = checkpoint_piece_key(name)
            stored = self.store.read(key)
            if sha256_hex(stored) != name:
                raise Corrupt("checkpoint piece", key, "its bytes differ from its name")
            yield decode_blob(
                stored,
                key,
                self._cipher,
                place=PIECE_PLACE,
                raw_bytes_max=CHECKPOINT_PIECE_BYTES,
            )

    def load(self, path: Path, *, vfs: str | None, volume: VolumeDescriptor) -> Committed:
        """Make committed.db from the newest checkpoint that is whole, and the commits behind it.

        A writer may reclaim what is being loaded: then it has made a newer checkpoint first, from
        which this begins again. Raises the last checkpoint's error if none is whole although some
        exist, `ObjectMissing` if a commit behind it is gone, and as `apply` does; `LocalDiskFull`
        and `OSError`.
        """
        for is_last in (False, False, True):
            newest = max(self.checkpoints(), default=-1)
            try:
                return self._load(path, vfs=vfs, volume=volume)
            except UnsupportedVersion:
                raise
            except (DataError, ObjectMissing) as error:
                is_reclaimed = max(self.checkpoints(), default=-1) > newest
                if is_reclaimed and not is_last:
                    log.info("there is a newer checkpoint, loading begins again: %s", error)
                    continue
                raise
        raise AssertionError("the last one returns or raises")

    def _load(self, path: Path, *, vfs: str | None, volume: VolumeDescriptor) -> Committed:
        """Load once; raises what `load` does."""
        try:
            loaded = self.load_newest(path, vfs=vfs, volume=volume)
        except UnsupportedVersion:
            raise
        except (DataError, ObjectMissing):
            if 1 not in self.sequence_numbers(0)[:1]:
                raise
            loaded = None
        committed = loaded or create_committed(path, vfs=vfs, volume=volume)
        try:
            committed.head = self.follow(committed, committed.head)
        except BaseException:
            committed.close()
            raise
        return committed

    def load_newest(
        self, path: Path, *, vfs: str | None, volume: VolumeDescriptor, above: int = -1
    ) -> Committed | None:
        """Make committed.db from the newest checkpoint that is whole, of those above a commit.

        Returns None if there are none; raises the last one's error if none of them is whole, and
        `LocalDiskFull` and `OSError`.
        """
        failure: DataError | ObjectMissing | None = None
        for seq in self.checkpoints():
            if seq <= above:
                break
            try:
                return self._load_checkpoint(seq, path, vfs=vfs, volume=volume)
            except UnsupportedVersion:
                raise
            except (DataError, ObjectMissing) as error:
                log.error("checkpoint %d cannot be used: %s", seq, error)
                failure = error
        if failure is not None:
            raise failure
        return None

    def _load_checkpoint(
        self, seq: int, path: Path, *, vfs: str | None, volume: VolumeDescriptor
    ) -> Committed:
        manifest = self.read_manifest(seq)
        source = self._scratch / f"checkpoint-{seq}.read"
        try:
            with source.open("wb") as file:
                for piece in self.read_pieces(manifest):
                    file.write(piece)
            if self.hash_name(_hash_of(source)) != manifest.database_hash:
                raise Corrupt(
                    "checkpoint", checkpoint_key(seq), "its pieces do not make its database"
                )
            committed = restore_committed(
                path, source, vfs=vfs, volume_id=volume.volume_id, key=checkpoint_key(seq)
            )
            head = committed.head
            if (head.seq, head.digest.hex()) != (manifest.seq, manifest.digest):
                committed.close()
                raise Corrupt("checkpoint", checkpoint_key(seq), f"it holds commit {head.seq}")
            return committed
        finally:
            source.unlink(missing_ok=True)

    def hash_name(self, digest_hex: str) -> str:
        """Return the SHA-256 of a database as a manifest has it: keyed where it is encrypted."""
        return self._cipher.hash_hex(digest_hex) if self._cipher else digest_hex

    def write_checkpoint(
        self, copy: Path, head: Head, known_pieces: set[str]
    ) -> CheckpointManifest:
        """Upload a copy of committed.db as the checkpoint of `head`; the manifest goes last.

        `known_pieces` are names that are surely in the store; new ones are added to it.
        """
        names = []
        with copy.open("rb") as file:
            while raw := file.read(CHECKPOINT_PIECE_BYTES):
                stored = encode_blob(raw, self._cipher, place=PIECE_PLACE)
                name = sha256_hex(stored)
                if name not in known_pieces:
                    self.store.write(checkpoint_piece_key(name), stored)
                    known_pieces.add(name)
                names.append(name)
        manifest = CheckpointManifest(
            seq=head.seq,
            digest=head.digest.hex(),
            database_bytes=copy.stat().st_size,
            database_hash=self.hash_name(_hash_of(copy)),
            pieces=tuple(names),
        )
        self.store.write(checkpoint_key(head.seq), encode_manifest(manifest))
        return manifest


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
