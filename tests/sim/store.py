"""The store of a simulated world, and the unreliable line to it.

What is in the store is decided by `MemoryStore`. Each life of a daemon has a `StoreHandle`: it
injects errors before and after the effect, throttling, outages, writes that land after their
error, flipped bits in ranged reads, and checks on every log object that the writer's order holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from random import Random
from typing import NamedTuple

from s3fs_banyan.errors import AlreadyExists, ObjectMissing, Throttled, Unavailable
from s3fs_banyan.format.commit import CommitFooter, commit_digest, decode_footer
from s3fs_banyan.format.encryption import Cipher
from s3fs_banyan.format.keys import log_key, parse_log_key
from s3fs_banyan.remote.base import Capabilities, FileMeta
from s3fs_banyan.remote.memory import MemoryStore


@dataclass(slots=True, kw_only=True)
class StoreFaults:
    """How bad the line is; chances per call."""

    error_before: float = 0.0
    error_after: float = 0.0
    throttled: float = 0.0
    lands_later: float = 0.0
    flipped_bit: float = 0.0
    later_s_max: float = 20.0


class _Late(NamedTuple):
    due_s: float
    path: str
    data: bytes
    if_absent: bool


@dataclass(slots=True, kw_only=True)
class SimStore:
    """The objects, what is still on its way to them, and the outage, if there is one."""

    now_s: Callable[[], float]
    rng: Random
    on_event: Callable[[str], None]
    on_commit: Callable[[CommitFooter], None]
    faults: StoreFaults
    objects: MemoryStore
    cipher: Cipher | None = None
    outage_from_s: float = 0.0
    outage_until_s: float = 0.0
    outage_every_s: float = 0.0
    """The same outage comes again and again, so often."""
    late: list[_Late] = field(default_factory=list)
    epoch: int = 0
    flipped: set[str] = field(default_factory=set)

    def is_away(self) -> bool:
        """Tell whether there is an outage just now."""
        now_s = self.now_s()
        if self.outage_every_s and now_s > self.outage_from_s:
            now_s = self.outage_from_s + (now_s - self.outage_from_s) % self.outage_every_s
        return self.outage_from_s <= now_s < self.outage_until_s

    def settle(self, *, all_of_them: bool = False) -> None:
        """Let writes land whose time has come."""
        due = [w for w in self.late if all_of_them or w.due_s <= self.now_s()]
        for write in sorted(due, key=lambda w: w.due_s):
            self.late.remove(write)
            self.on_event(f"lands {write.path}")
            try:
                self.put(write.path, write.data, if_absent=write.if_absent)
            except AlreadyExists:
                self.on_event(f"too late {write.path}")

    def put(self, path: str, data: bytes, *, if_absent: bool) -> FileMeta:
        """Store an object; a log object must continue the log, in an epoch that is not over."""
        seq = parse_log_key(path)
        if seq is None:
            return self.objects.write(path, data, if_absent=if_absent)
        assert if_absent, f"{path} would be overwritten"
        meta = self.objects.write(path, data, if_absent=True)
        footer = decode_footer(data, path, self.cipher)
        assert footer.seq == seq
        if seq > 1:
            before = log_key(seq - 1)
            try:
                predecessor = commit_digest(self.objects.read(before))
                assert footer.predecessor == predecessor, f"{path} does not follow {before}"
            except ObjectMissing:
                # Only a write that lands late, of a commit that was there and is reclaimed.
                assert footer.epoch < self.epoch or seq <= self.highest(), f"a gap below {path}"
        if footer.is_fence:
            assert footer.epoch > self.epoch, f"fence {path} of epoch {footer.epoch}"
            self.epoch = footer.epoch
        elif seq >= self.highest():
            assert footer.epoch == self.epoch, (
                f"{path}: a writer of epoch {footer.epoch} published in epoch {self.epoch}"
            )
        self.on_commit(footer)
        return meta

    def highest(self) -> int:
        """Return the number of the newest log object."""
        metas = self.objects.list("log/")
        return max((seq for m in metas if (seq := parse_log_key(m.path)) is not None), default=0)


class StoreHandle:
    """One daemon's way to the store."""

    def __init__(
        self,
        store: SimStore,
        *,
        name: str,
        alive: Callable[[], None],
        rng: Random,
        die: Callable[[], None],
        crash_chance: float,
    ) -> None:
        self._store = store
        self._name = name
        self._alive = alive
        self._rng = rng
        self._die = die
        self._crash_chance = crash_chance

    @property
    def url(self) -> str:
        return self._store.objects.url

    @property
    def capabilities(self) -> Capabilities:
        return self._store.objects.capabilities

    def _begin(self, verb: str, path: str) -> bool:
        """Tell whether the answer of this call shall get lost; raises what comes before it."""
        store, faults = self._store, self._store.faults
        self._alive()
        if self._rng.random() < self._crash_chance:
            store.on_event(f"{self._name} dies at {verb} {path}")
            self._die()
        store.settle()
        draw = store.rng.random()
        if store.is_away():
            store.on_event(f"{self._name} {verb} {path} outage")
            raise Unavailable(f"injected: {path}: the store is away")
        if draw < faults.error_before:
            store.on_event(f"{self._name} {verb} {path} error before")
            raise Unavailable(f"injected: {path}: no connection")
        if draw < faults.error_before + faults.throttled:
            store.on_event(f"{self._name} {verb} {path} throttled")
            raise Throttled(f"injected: {path}: slow down", retry_after_s=1.0)
        lost = draw > 1.0 - faults.error_after
        store.on_event(f"{self._name} {verb} {path}{' answer lost' if lost else ''}")
        return lost

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[FileMeta]:
        lost = self._begin("list", prefix)
        found = list(self._store.objects.list(prefix, start_after=start_after))
        if lost:
            raise Unavailable(f"injected: {prefix}: the answer was lost")
        return iter(found)

    def read(self, path: str, *, offset: int = 0, length: int | None = None) -> bytes:
        lost = self._begin("read", path)
        data = self._store.objects.read(path, offset=offset, length=length)
        if lost:
            raise Unavailable(f"injected: {path}: the answer was lost")
        return data if length is None or not data else self._perhaps_flipped(path, data)

    def _perhaps_flipped(self, path: str, data: bytes) -> bytes:
        """Flip a bit of a ranged read, never twice in a row for one object."""
        store = self._store
        if store.rng.random() >= store.faults.flipped_bit or path in store.flipped:
            store.flipped.discard(path)
            return data
        store.flipped.add(path)
        at = store.rng.randrange(len(data))
        store.on_event(f"flips a bit of {path} at {at}")
        return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]

    def write(
        self,
        path: str,
        data: bytes | bytearray | memoryview,
        *,
        if_absent: bool = False,
        storage_class: str = "",
    ) -> FileMeta:
        del storage_class
        store, stored = self._store, bytes(data)
        lost = self._begin(f"write {sha256(stored).hexdigest()[:8]}", path)
        if store.faults.lands_later and store.rng.random() < store.faults.lands_later:
            due_s = store.now_s() + store.rng.uniform(0, store.faults.later_s_max)
            store.late.append(_Late(due_s, path, stored, if_absent))
            raise Unavailable(f"injected: {path}: no answer in time")
        meta = store.put(path, stored, if_absent=if_absent)
        if lost:
            raise Unavailable(f"injected: {path}: the answer was lost")
        return meta

    def delete(self, paths: Sequence[str]) -> None:
        lost = self._begin("delete", " ".join(sorted(paths)))
        self._store.objects.delete(paths)
        if lost:
            raise Unavailable("injected: delete: the answer was lost")

    def stat(self, path: str) -> FileMeta:
        lost = self._begin("stat", path)
        meta = self._store.objects.stat(path)
        if lost:
            raise Unavailable(f"injected: {path}: the answer was lost")
        return meta

    # --- multipart -----------------------------------------------------------------------

    def begin_upload(self, path: str, *, storage_class: str = "") -> str:
        lost = self._begin("begin upload", path)
        upload_id = self._store.objects.begin_upload(path, storage_class=storage_class)
        if lost:
            raise Unavailable(f"injected: {path}: the answer was lost")
        return upload_id

    def upload_part(self, path: str, upload_id: str, number: int, data: bytes | bytearray) -> str:
        lost = self._begin(f"part {number} of {upload_id}", path)
        etag = self._store.objects.upload_part(path, upload_id, number, data)
        if lost:
            raise Unavailable(f"injected: {path}: the answer was lost")
        return etag

    def list_parts(self, path: str, upload_id: str) -> Mapping[int, tuple[int, str]]:
        lost = self._begin(f"list parts of {upload_id}", path)
        parts = self._store.objects.list_parts(path, upload_id)
        if lost:
            raise Unavailable(f"injected: {path}: the answer was lost")
        return parts

    def complete_upload(self, path: str, upload_id: str, etags: Mapping[int, str]) -> FileMeta:
        lost = self._begin(f"complete {upload_id}", path)
        meta = self._store.objects.complete_upload(path, upload_id, etags)
        if lost:
            raise Unavailable(f"injected: {path}: the answer was lost")
        return meta

    def abort_upload(self, path: str, upload_id: str) -> None:
        lost = self._begin(f"abort {upload_id}", path)
        self._store.objects.abort_upload(path, upload_id)
        if lost:
            raise Unavailable(f"injected: {path}: the answer was lost")

    def list_uploads(self, prefix: str = "") -> Iterator[tuple[str, str, int]]:
        lost = self._begin("list uploads", prefix)
        found = list(self._store.objects.list_uploads(prefix))
        if lost:
            raise Unavailable(f"injected: {prefix}: the answer was lost")
        return iter(found)

    def close(self) -> None:
        """Nothing to release."""
