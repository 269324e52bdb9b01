"""Inverted indexes in bluge's manner: `.seg` and `.snp` files without rename, flocks, mmap.

A commit lists and stats everything, writes a segment (CREAT|RDWR without TRUNC, flock EX,
writes of at most 1 MiB, fsync), maps it, writes a snapshot naming the live segments, then
removes what is obsolete: open CREAT|RDWR, flock EX|NB, unlink while open. A segment still
mapped refuses the lock and is tried again at the next commit. No directory is ever synced.
"""

from __future__ import annotations

import binascii
import json
import mmap
import os
import posixpath
import random
import threading

from workload.content import Known
from workload.files import Files, WrongBytesError

PID = b"4242\n"
_WRITE_MAX = 1 << 20
_TIER = 4
_TIERS_MAX = 3
_KEEP_MAPPED_EVERY = 9


def encode_snapshot(names: list[str], epoch: int) -> bytes:
    """Return a snapshot file: the names of the live segments and a checksum."""
    body = json.dumps({"epoch": epoch, "segments": names})
    return f"{binascii.crc32(body.encode()):08x} {body}\n".encode()


def decode_snapshot(data: bytes) -> list[str] | None:
    """Return the segments that a snapshot names, or None if it is torn."""
    checksum, _, body = data.decode("ascii", "replace").rstrip("\n").partition(" ")
    if not data.endswith(b"\n") or f"{binascii.crc32(body.encode()):08x}" != checksum:
        return None
    names: list[str] = json.loads(body)["segments"]
    return names


class Mapped:
    """One segment file, mapped, with its shared lock."""

    def __init__(self, path: str, known: Known, tier: int) -> None:
        self.path = path
        self.known = known
        self.tier = tier
        self.fd = -1
        self.map: mmap.mmap | None = None

    def open(self, files: Files) -> None:
        """Open RDONLY, lock shared, map; raises `WrongBytesError` if locked by another."""
        self.fd = files.open_read(self.path)
        if not files.flock(self.fd, shared=True):
            message = f"{self.path}: shared lock refused on a file of our own"
            raise WrongBytesError(message)
        files.stats.count("mmap")
        self.map = mmap.mmap(self.fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)

    def close(self) -> None:
        """Unmap and drop the lock."""
        if self.map is not None:
            self.map.close()
            self.map = None
            os.close(self.fd)


class Index:
    """One index directory with its writer lock."""

    def __init__(self, files: Files, path: str) -> None:
        self.files = files
        self.path = path
        self.segments: list[Mapped] = []
        self.obsolete: list[Mapped] = []
        self.snapshot_file: tuple[str, Known] | None = None
        self.next_segment = 1
        self.epoch = 0
        self.lock = threading.Lock()
        self._pid_fd = -1
        self._obsoleted = 0
        self._pipe = os.pipe2(os.O_CLOEXEC)

    # writer lock

    def open_writer(self, *, leftover: Known | None = None) -> None:
        """Take `bluge.pid`, which a kill may have left over: flock, ftruncate 0, write, fsync."""
        path = f"{self.path}/bluge.pid"
        if leftover:
            out = self.files.open_existing(path, leftover._replace(literal=PID))
        else:
            out = self.files.create(path, literal=PID, truncate=False)
        if not self.files.flock(out.fd):
            message = f"{path}: left over lock"
            raise WrongBytesError(message)
        self.files.truncate(out)
        self.files.write_once(out, PID)
        self.files.sync(out)
        self._pid_fd = out.fd

    def close_writer(self) -> None:
        """Unmap everything, unlink the pid file and drop its lock."""
        for mapped in self.segments + self.obsolete:
            mapped.close()
        self.files.unlink(f"{self.path}/bluge.pid")
        os.close(self._pid_fd)
        self._pid_fd = -1

    def release(self) -> None:
        """Close every descriptor without touching the volume."""
        for mapped in self.segments + self.obsolete:
            mapped.close()
        for fd in (*self._pipe, self._pid_fd):
            if fd >= 0:
                os.close(fd)

    # commits

    def commit(self, size: int) -> None:
        """Add a segment of new documents and publish it; then merge a full tier."""
        with self.lock:
            self._list()
            segment = self._write_segment(size, tier=0)
            self._publish([segment], [])
            for tier in range(_TIERS_MAX):
                members = [mapped for mapped in self.segments if mapped.tier == tier]
                wanted = _TIER - 1 if tier == 0 else 10
                if len(members) >= wanted:
                    self._merge(members[:10], tier + 1)

    def _merge(self, members: list[Mapped], tier: int) -> None:
        self._list()
        for mapped in members:
            self.touch(mapped, 0)
        total = sum(mapped.known.size for mapped in members)
        self._publish([self._write_segment(total, tier=tier)], members)
        self.files.stats.count("index merges")

    def _list(self) -> None:
        for name in self.files.listdir(self.path):
            if not self.files.exists(f"{self.path}/{name}"):
                message = f"{self.path}/{name}: listed, but not there"
                raise WrongBytesError(message)

    def _write_segment(self, size: int, *, tier: int) -> Mapped:
        path = f"{self.path}/{self.next_segment:012x}.seg"
        self.next_segment += 1
        out = self.files.create(path, truncate=False)
        try:
            self._lock_new(path, out.fd)
            self.files.append([(out, max(64, size), _WRITE_MAX)])
            self.files.sync(out)
        finally:
            os.close(out.fd)
        mapped = Mapped(path, out.known(), tier)
        mapped.open(self.files)
        self.touch(mapped, out.size - 64)
        self.touch(mapped, 0)
        return mapped

    def _lock_new(self, path: str, fd: int) -> None:
        if not self.files.flock(fd):
            message = f"{path}: exclusive lock refused on a new file"
            raise WrongBytesError(message)

    def _publish(self, added: list[Mapped], dropped: list[Mapped]) -> None:
        live = [mapped for mapped in self.segments if mapped not in dropped] + added
        self.epoch += 1
        names = [posixpath.basename(mapped.path) for mapped in live]
        literal = encode_snapshot(names, self.epoch)
        path = f"{self.path}/{self.epoch:012x}.snp"
        out = self.files.create(path, literal=literal, truncate=False)
        try:
            self._lock_new(path, out.fd)
            self.files.write_once(out, literal)
            self.files.sync(out)
        finally:
            os.close(out.fd)
        previous, self.snapshot_file = self.snapshot_file, (path, out.known())
        self.segments = live
        self.obsolete += dropped
        for mapped in dropped:
            self._obsoleted += 1
            if self._obsoleted % _KEEP_MAPPED_EVERY:
                mapped.close()
        if previous:
            self._remove(previous[0])
        self.obsolete = [mapped for mapped in self.obsolete if not self._retire(mapped)]

    def _retire(self, mapped: Mapped) -> bool:
        """Try to remove an obsolete segment; one that is still mapped is let go for next time."""
        removed = self._remove(mapped.path)
        if removed and mapped.map is not None:
            message = f"{mapped.path}: exclusive lock granted beside a shared one"
            raise WrongBytesError(message)
        if not removed:
            mapped.close()
        return removed

    def _remove(self, path: str) -> bool:
        fd = os.open(self.files.full(path), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        self.files.stats.count("create bluge")
        try:
            if not self.files.flock(fd):
                return False
            self.files.unlink(path)
        finally:
            os.close(fd)
        return True

    # reading

    def touch(self, mapped: Mapped, offset: int, length: int = 64) -> None:
        """Fault in a page of the mapping and check it.

        The bytes are taken by write(2) from the mapping into a pipe: a page that cannot be
        read is then EFAULT and not a SIGBUS, and other threads run during the fault.
        """
        if mapped.map is None:
            return
        offset = max(0, min(offset, mapped.known.size - length))
        with memoryview(mapped.map) as view:
            os.write(self._pipe[1], view[offset : offset + length])
        data = os.read(self._pipe[0], length)
        self.files.stats.count("page faults")
        self.files.check(mapped.path, mapped.known, offset, data)

    def search(self, rng: random.Random, pages: int) -> None:
        """Touch random pages of one to three segments, as a term lookup does."""
        with self.lock:
            chosen = rng.sample(self.segments, min(len(self.segments), rng.randint(1, 3)))
            for mapped in chosen:
                for _ in range(pages):
                    self.touch(mapped, rng.randrange(0, mapped.known.size) & ~4095)

    # start, storm, snapshot

    def reopen(self) -> None:
        """Pid cycle, list, map every segment, let go: what a storm does to a closed index."""
        with self.lock:
            self.open_writer()
            self._list()
            if self.snapshot_file:
                self.files.read_small(*self.snapshot_file)
            for mapped in self.segments:
                mapped.open(self.files)
                self.touch(mapped, mapped.known.size - 64)
            self.close_writer()

    def copy_to(self, target: str) -> None:
        """Copy every live segment and the snapshot file, byte for byte, into a directory."""
        with self.lock:
            self.files.makedirs_synced(target)
            for mapped in self.segments:
                self._copy(mapped, f"{target}/{posixpath.basename(mapped.path)}")
            if self.snapshot_file:
                path, known = self.snapshot_file
                name = f"{target}/{posixpath.basename(path)}"
                out = self.files.create(name, literal=known.literal, truncate=False)
                try:
                    self._lock_new(name, out.fd)
                    self.files.write_once(out, known.literal or b"")
                    self.files.sync(out)
                finally:
                    os.close(out.fd)

    def _copy(self, mapped: Mapped, name: str) -> None:
        """Write a copy out of the mapping itself: one file of the volume into another."""
        if mapped.map is None:
            return
        alias = mapped.known.alias or mapped.known.fid
        out = self.files.create(name, alias=alias, truncate=False)
        try:
            self._lock_new(name, out.fd)
            with memoryview(mapped.map) as view:
                self.files.write_once(out, view)
            self.files.sync(out)
        finally:
            os.close(out.fd)
