"""Check of a volume: every object, every reference, every frame; nothing is changed.

    list       all objects
    load       the newest state, from the newest checkpoint and the commits behind it
    references what the state's tables say of each other
    objects    each one is read whole and decoded; chunks are compared with their places
    missing    what a kept commit needs, or another object names, and the store has not

A writer may be at work: the list is taken before the state is loaded, and what was asked for in
vain is called missing only if the newest state, loaded again after that, needs it still. It must
not print.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from s3fs_banyan.admin.check_chunks import ExpectedChunk, check_chunks, check_pack
from s3fs_banyan.admin.check_needed import (
    Absent,
    Named,
    Newest,
    absent_fences,
    needed_objects,
)
from s3fs_banyan.admin.check_state import check_state, count_inodes
from s3fs_banyan.commit.log_store import CommitLog
from s3fs_banyan.errors import Corrupt, DataError, ObjectMissing
from s3fs_banyan.format.blob import PIECE_PLACE, decode_blob, delta_place, placements_place
from s3fs_banyan.format.checkpoint import CHECKPOINT_PIECE_BYTES, CheckpointManifest
from s3fs_banyan.format.checksum import sha256_hex
from s3fs_banyan.format.commit import NO_DIGEST, commit_sections
from s3fs_banyan.format.encryption import Cipher
from s3fs_banyan.format.keyring import decode_keyring
from s3fs_banyan.format.keys import (
    CHECKPOINT_PIECE_PREFIX,
    CHECKPOINT_PREFIX,
    DELTA_PREFIX,
    KEYRING_PREFIX,
    LOG_PREFIX,
    PROBE_PREFIX,
    VOLUME,
    WRITER,
    checkpoint_key,
    checkpoint_piece_key,
    log_delta_key,
    log_key,
    parse_checkpoint_key,
    parse_keyring_key,
    parse_log_delta_key,
    parse_log_key,
    parse_pack_key,
)
from s3fs_banyan.format.volume import VolumeDescriptor, decode_heartbeat, decode_volume
from s3fs_banyan.meta.committed import Committed, PackRow, check_commit, restore_committed
from s3fs_banyan.remote.base import FileMeta, RemoteFileSystem

Kind = Literal["missing", "damaged", "orphan"]
OnProgress = Callable[[int, int, str], None]
"""Called with (bytes done, bytes in all, key of the object that comes next)."""

_LOADS_MAX = 5
_STATE = "state"
"""Key of a finding about the state as a whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it should be. Orphans cost money and do no harm."""

    kind: Kind
    key: str
    """Of the object. `log/FIRST..log/LAST` is one commit that lies between the two."""
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
    loaded: bool = False
    """Whether there was a state to compare the objects with."""


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
        self._loads = 0
        self._load_failure: DataError | ObjectMissing | None = None
        self._keyring = ""
        self._named = Named()
        self._listed: dict[str, FileMeta] = {}
        self._there: set[str] = set()
        """What was listed and could be read."""
        self._harmful: set[str] = set()
        """Keys of what was found, without orphans."""
        self._newest: Newest | None = None
        self._packs: list[PackRow] = []
        self._pack_keys: set[str] | None = None
        """Objects with chunks in them that the first state knows; None without a state."""
        self._expected: dict[str, list[ExpectedChunk]] = {}

    def run(self) -> Iterator[Finding]:
        """Yield what is wrong. Raises the store's errors: what cannot be read is not judged."""
        for finding in self._findings():
            if finding.kind != "orphan":
                self._harmful.add(finding.key)
            yield finding

    def _findings(self) -> Iterator[Finding]:
        self._listed = {meta.path: meta for meta in self._store.list()}
        with self._loaded_state() as committed:
            if committed is not None:
                yield from self._check_state(committed)
        yield from self._check_objects()
        yield from self._check_chain()
        yield from self._check_checkpoints()
        yield from self._check_missing()
        yield from self._check_fences()
        yield from self._check_keys()
        yield from self._check_load()

    # --- the state -----------------------------------------------------------------------

    @contextmanager
    def _loaded_state(self) -> Iterator[Committed | None]:
        """Load the newest state; notes its window and its packs.

        None if the store has no state that can be loaded. Raises `ObjectMissing` if a writer
        deletes faster than it can be read.
        """
        committed = self._load()
        try:
            if committed is None:
                self._newest = self._newest_commit()
            else:
                head = committed.head
                self._newest = Newest(head.seq, head.dense_from, head.kept)
                self._named.epochs.append((head.seq, head.epoch))
                with committed.view() as view:
                    self._packs = view.packs()
            yield committed
        finally:
            if committed is not None:
                committed.close()
            shutil.rmtree(self._state_directory())

    def _load(self) -> Committed | None:
        self._load_failure = None
        loads_max = self._loads + _LOADS_MAX
        while True:
            before = self._sources()
            self._loads += 1
            self._state_directory().mkdir()
            try:
                return self._log_store.load(
                    self._state_directory() / "committed.db", vfs=None, volume=self._volume
                )
            except DataError as error:
                self._load_failure = error
                return None
            except ObjectMissing as error:
                if before <= self._sources():
                    self._load_failure = error
                    return None
                if self._loads == loads_max:
                    raise
            shutil.rmtree(self._state_directory())

    def _state_directory(self) -> Path:
        return self._scratch / f"state-{self._loads}"

    def _sources(self) -> set[str]:
        """Return what a state is loaded from: if some of it went, that was a writer's reclaim."""
        prefixes = (CHECKPOINT_PREFIX, LOG_PREFIX)
        return {
            meta.path
            for prefix in prefixes
            for meta in self._store.list(prefix)
            if not meta.path.startswith(CHECKPOINT_PIECE_PREFIX)
        }

    def _newest_commit(self) -> Newest | None:
        """Return the newest commit's window, None if it cannot be read: only it knows that."""
        numbers = self._log_store.sequence_numbers(0)
        if not numbers:
            return None
        try:
            footer = self._log_store.read(numbers[-1]).footer
        except DataError:
            return None  # the check of that object says why
        return Newest(footer.seq, footer.dense_from, footer.kept)

    def _check_load(self) -> Iterator[Finding]:
        """Something was damaged or missing if no state could be loaded; say so if nobody did."""
        error = self._load_failure
        if isinstance(error, Corrupt):
            is_object = error.key.startswith((CHECKPOINT_PREFIX, DELTA_PREFIX, LOG_PREFIX))
            key = error.key if is_object else _STATE
            if key not in self._harmful:
                yield Finding(kind="damaged", key=key, why=f"no state to load: {error}")
        elif error is not None and not self._harmful:
            yield Finding(kind="damaged", key=_STATE, why=f"none can be loaded: {error}")

    def _check_state(self, committed: Committed) -> Iterator[Finding]:
        self.summary.loaded = True
        self.summary.seq = committed.head.seq
        reader = committed.reader()
        self.summary.inodes = count_inodes(reader)
        where = f"state as of {log_key(committed.head.seq)}"
        for why in check_state(reader):
            yield Finding(kind="damaged", key=where, why=why)
        self._pack_keys = {pack.key for pack in self._packs}
        with committed.view() as view:
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
        # A delta of its own is known by its commit.
        commits_first = sorted(self._listed, key=lambda key: (parse_log_key(key) is None, key))
        for key in commits_first:
            meta = self._listed[key]
            self._on_progress(done, total, key)
            try:
                yield from self._check_object(key)
                self._there.add(key)
            except ObjectMissing:
                # Deleted since it was listed; `_check_missing` asks again if it is needed.
                pass
            except DataError as error:
                self._there.add(key)
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
        self._named.footers[seq] = footer
        if footer.delta_hash:
            self._named.deltas[log_delta_key(seq, footer.delta_hash)] = footer
        inline = memoryview(stored.data)[: footer.inline_length]
        for why in check_chunks(inline, key, self._expected.get(key, []), self._cipher):
            yield Finding(kind="damaged", key=key, why=why)
        if not footer.is_fence:
            delta, placements = commit_sections(stored.data, footer)
            if not footer.delta_hash:
                self._check_database(delta, key, "delta", seq)
            self._check_database(placements, key, "placements", seq)
        # That of a damaged commit would make what names the commit look damaged, too.
        self._named.digests[seq] = stored.digest

    def _check_delta(self, key: str) -> Iterator[Finding]:
        """A delta that lies beside its commit, which was read before."""
        seq = parse_log_delta_key(key) or 0
        data = bytes(self._store.read(key))
        commit = self._named.deltas.get(key)
        if commit is not None and sha256_hex(data) != commit.delta_hash:
            why = "its hash differs from the one in its commit"
            yield Finding(kind="damaged", key=key, why=why)
            return
        # A commit that cannot be read may have named it.
        if commit is None and (seq in self._named.footers or log_key(seq) not in self._listed):
            yield Finding(kind="orphan", key=key, why="no commit names it")
        self._check_database(data, key, "delta", seq)

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
        manifest = self._named.manifests[seq] = self._log_store.read_manifest(seq)
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
                head = restored.head
                if head.seq != seq or head.digest.hex() != manifest.digest:
                    yield Finding(kind="damaged", key=key, why="its database is of another commit")
                else:
                    self._named.epochs.append((seq, head.epoch))
                    with restored.view() as view:
                        packs = view.packs()
                    self._named.living[seq] = [pack.key for pack in packs if pack.live_bytes]
            finally:
                restored.close()
        except ObjectMissing:
            pass  # `_check_missing` asks for every piece that it names
        except Corrupt as error:
            is_piece = error.key.startswith(CHECKPOINT_PIECE_PREFIX)
            if not is_piece or error.key not in self._listed:  # else it is checked by itself
                at = error.key if is_piece else key
                yield Finding(kind="damaged", key=at, why=_why(error))
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

    def _check_chain(self) -> Iterator[Finding]:
        """Every commit names the one before."""
        footers, digests = self._named.footers, self._named.digests
        for seq, footer in sorted(footers.items()):
            before = NO_DIGEST if seq == 1 else digests.get(seq - 1)
            if before is not None and footer.predecessor != before:
                why = f"it does not follow {log_key(seq - 1)} as that is in the store"
                yield Finding(kind="damaged", key=log_key(seq), why=why)
            earlier = footers.get(seq - 1)
            if earlier is not None and (earlier.epoch, earlier.op_seq) > (
                footer.epoch,
                max(footer.op_seq, earlier.op_seq),
            ):
                yield Finding(kind="damaged", key=log_key(seq), why="epoch or operation goes back")

    def _check_checkpoints(self) -> Iterator[Finding]:
        manifests = self._named.manifests
        named = {piece for manifest in manifests.values() for piece in manifest.pieces}
        for seq, manifest in manifests.items():
            digest = self._named.digests.get(seq)
            if digest is not None and digest.hex() != manifest.digest:
                why = f"it is of another commit than {log_key(seq)}"
                yield Finding(kind="damaged", key=checkpoint_key(seq), why=why)
        there = {parse_checkpoint_key(key) for key in self._there} - {None}
        if there - manifests.keys():
            return  # one that cannot be read may name any piece
        for key in self._listed:
            name = key.removeprefix(CHECKPOINT_PIECE_PREFIX)
            if name != key and name not in named:
                yield Finding(kind="orphan", key=key, why="no checkpoint names it")

    # --- what is missing -----------------------------------------------------------------

    def _check_missing(self) -> Iterator[Finding]:
        """What was needed, is not there, and is needed still."""
        needed = needed_objects(self._newest, self._packs, self._named)
        absent = {key for key in needed if key not in self._there and self._is_missing(key)}
        if not absent:
            return
        with self._loaded_state():
            pass
        named = replace(self._named, manifests=self._manifests_again(absent))
        for key, why in needed_objects(self._newest, self._packs, named).items():
            if key in absent:
                yield Finding(kind="missing", key=key, why=why)

    def _manifests_again(self, absent: set[str]) -> dict[int, CheckpointManifest]:
        """Read the manifests again that name a piece which is not there."""
        manifests = dict(self._named.manifests)
        for seq, manifest in self._named.manifests.items():
            if absent.isdisjoint(map(checkpoint_piece_key, manifest.pieces)):
                continue
            try:
                manifests[seq] = self._log_store.read_manifest(seq)
            except ObjectMissing:
                del manifests[seq]
        return manifests

    def _check_fences(self) -> Iterator[Finding]:
        """The first commit of an epoch is never deleted."""
        for absent in absent_fences(self._named, self._packs):
            known = {seq for key in self._harmful if (seq := parse_log_key(key)) is not None}
            if any(absent.first <= seq <= absent.last for seq in known):
                continue  # it may be the one that was found already
            if not self._has_appeared(absent):
                yield Finding(kind="missing", key=absent.key, why=absent.why)

    def _has_appeared(self, absent: Absent) -> bool:
        """Tell whether a commit came to the store while that was being listed."""
        for seq in self._log_store.sequence_numbers(absent.first - 1):
            if seq > absent.last:
                break
            if seq not in self._named.footers:
                try:
                    if self._log_store.read(seq).footer.is_fence:
                        return True
                except ObjectMissing:
                    continue  # reclaim took it: it was no fence
                except DataError:
                    return True
        return False

    def _check_keys(self) -> Iterator[Finding]:
        """An encrypted volume has a keyring; one that is damaged was found already."""
        if not self._volume.is_encrypted or self._keyring:
            return
        is_damaged = any(parse_keyring_key(key) is not None for key in self._harmful)
        if not is_damaged and not self._has_keyring():
            yield Finding(kind="missing", key=KEYRING_PREFIX, why="the encrypted volume has none")

    def _has_keyring(self) -> bool:
        """Look again: `rekey` makes a new one, then deletes the one that was listed."""
        has_vanished = True
        while has_vanished:
            has_vanished = False
            for meta in self._store.list(KEYRING_PREFIX):
                try:
                    keyring = decode_keyring(self._store.read(meta.path), meta.path)
                except ObjectMissing:
                    has_vanished = True
                except DataError:
                    continue
                else:
                    if keyring.volume_id == self._volume.volume_id:
                        return True
        return False

    def _is_missing(self, key: str) -> bool:
        try:
            self._store.stat(key)
        except ObjectMissing:
            return True
        return False


def _why(error: DataError) -> str:
    return f"{error.kind}: {error.why}" if isinstance(error, Corrupt) else str(error)
