"""File operations as BanyanDB's `pkg/fs` and bluge issue them, each one written to the log.

Paths are relative to the volume's directory and hold no blanks. Every call that changes the
volume is logged (begin before, end after) and counted; calls that only read are counted.
An `OSError` passes to the caller: the log then says that the effect is unknown.
"""

# The system calls themselves are the subject here, so pathlib stays out.
# ruff: noqa: PTH102, PTH104, PTH106, PTH108, PTH112, PTH116, PTH208
from __future__ import annotations

import errno
import fcntl
import itertools
import os
import posixpath
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from workload.content import BLOCK, Content, Known
from workload.oplog import Log, encode_spec
from workload.stats import Stats

T = TypeVar("T")


class WrongBytesError(Exception):
    """A read gave bytes that were never written there."""


class Out:
    """A file being written: open descriptor, content id, bytes so far."""

    __slots__ = ("alias", "fd", "fid", "literal", "path", "size")

    def __init__(self, path: str, fd: int, fid: int, literal: bytes | None, alias: int) -> None:
        self.path = path
        self.fd = fd
        self.fid = fid
        self.literal = literal
        self.alias = alias
        self.size = 0

    def known(self) -> Known:
        """Return what the file holds now."""
        return Known(self.fid, self.size, self.literal, self.alias)


class Files:
    """One volume's directory, its log and its numbers."""

    def __init__(
        self, root: Path, *, log: Log, content: Content, stats: Stats, buffer: int, first_fid: int
    ) -> None:
        self.root = str(root)
        self.content = content
        self.stats = stats
        self.buffer = buffer
        self._log = log
        self._fids = itertools.count(first_fid)
        self._fsyncs = stats.histogram("fsync")

    def full(self, path: str) -> str:
        """Return the absolute path."""
        return f"{self.root}/{path}"

    def _logged(self, text: str, call: Callable[[], T]) -> T:
        op = self._log.begin(text)
        try:
            result = call()
        except OSError as error:
            self._log.fail(op, error.errno)
            raise
        self._log.end(op)
        return result

    # names

    def mkdir(self, path: str) -> None:
        """Make one directory, mode 0700."""
        self._logged(f"mkdir {path}", lambda: os.mkdir(self.full(path), 0o700))
        self.stats.count("mkdir")

    def mkdir_synced(self, path: str) -> None:
        """Make a directory as `pkg/fs` does: stat first, then sync the parent."""
        self.expect_missing(path)
        self.mkdir(path)
        self.sync_dir(posixpath.dirname(path))

    def makedirs_synced(self, path: str) -> None:
        """Make a chain of directories, syncing the parent of each new one."""
        done = ""
        for name in path.split("/"):
            done = f"{done}/{name}" if done else name
            if not self.exists(done):
                self.mkdir(done)
                self.sync_dir(posixpath.dirname(done))

    def rename(self, source: str, target: str) -> None:
        """Rename over whatever `target` is."""
        call = lambda: os.rename(self.full(source), self.full(target))  # noqa: E731
        self._logged(f"rename {source} {target}", call)
        self.stats.count("rename")

    def link(self, source: str, target: str) -> None:
        """Make a hard link, after the lstat that Go's walk does."""
        os.lstat(self.full(source))
        self.stats.count("stat")
        call = lambda: os.link(self.full(source), self.full(target))  # noqa: E731
        self._logged(f"link {source} {target}", call)
        self.stats.count("link")

    def unlink(self, path: str) -> None:
        """Remove a file's name."""
        self._logged(f"unlink {path}", lambda: os.unlink(self.full(path)))
        self.stats.count("unlink")

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        self._logged(f"rmdir {path}", lambda: os.rmdir(self.full(path)))
        self.stats.count("rmdir")

    def rmtree(self, path: str) -> None:
        """Remove a tree in directory order, as Go's RemoveAll."""
        with os.scandir(self.full(path)) as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        self.stats.count("getdents", 2)
        self.stats.count("open dir")
        for name, is_dir in found:
            if is_dir:
                self.rmtree(f"{path}/{name}")
            else:
                self.unlink(f"{path}/{name}")
        self.rmdir(path)

    def expire(self, path: str) -> None:
        """Remove a whole tree, noting the intent first: until it is gone it may be in any state."""
        self._logged(f"expire {path}", lambda: None)
        self.rmtree(path)

    def listdir(self, path: str) -> list[str]:
        """List a directory, sorted."""
        self.stats.count("getdents", 2)
        self.stats.count("open dir")
        return sorted(os.listdir(self.full(path)))

    def exists(self, path: str) -> bool:
        """Stat a path that may be missing."""
        self.stats.count("stat")
        try:
            os.stat(self.full(path))
        except FileNotFoundError:
            self.stats.count("stat ENOENT")
            return False
        return True

    def is_dir(self, path: str) -> bool:
        """Stat a path that is there."""
        self.stats.count("stat")
        return os.path.isdir(self.full(path))

    def expect_missing(self, path: str) -> None:
        """Stat a path that must be missing; raises `WrongBytesError` if it is there."""
        if self.exists(path):
            message = f"{path} exists before it was made"
            raise WrongBytesError(message)

    def statfs(self) -> int:
        """Return the free bytes of the volume."""
        self.stats.count("statfs")
        numbers = os.statvfs(self.root)
        return numbers.f_bavail * numbers.f_frsize

    # writing

    def create(
        self, path: str, *, literal: bytes | None = None, alias: int = 0, truncate: bool = True
    ) -> Out:
        """Create a file, RDWR 0600; with O_TRUNC (pkg/fs) or without (bluge)."""
        fid = next(self._fids)
        flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | (os.O_TRUNC if truncate else 0)
        spec = encode_spec(literal, alias)
        fd = self._logged(
            f"create {path} {fid} {spec}", lambda: os.open(self.full(path), flags, 0o600)
        )
        self.stats.count("create" if truncate else "create bluge")
        return Out(path, fd, fid, literal, alias)

    def open_existing(self, path: str, known: Known) -> Out:
        """Open a file that is there for writing, as bluge does with a left over pid file."""
        fd = os.open(self.full(path), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        self.stats.count("create bluge")
        out = Out(path, fd, known.fid, known.literal, known.alias)
        out.size = known.size
        return out

    def append(self, wanted: Sequence[tuple[Out, int, int]]) -> None:
        """Append (file, bytes, chunk) triples, the files taking turns in proportion.

        One log record covers all of it: after a crash each file may be short by any amount.
        """
        extents = [f"{out.fid}:{out.size}:{length}" for out, length, _ in wanted if length]
        turns: list[tuple[float, int]] = []
        for index, (_, length, chunk) in enumerate(wanted):
            steps = -(-length // chunk)
            turns += [((step + 0.5) / steps, index) for step in range(steps)]
        turns.sort()
        left = [length for _, length, _ in wanted]

        def write_all() -> None:
            for _, index in turns:
                out, _, chunk = wanted[index]
                take = min(chunk, left[index])
                self._write(out, self._bytes(out, take))
                left[index] -= take

        if extents:
            self._logged(f"append {','.join(extents)}", write_all)

    def _bytes(self, out: Out, length: int) -> bytes:
        if out.literal is not None:
            return out.literal[out.size : out.size + length]
        return self.content.data(out.alias or out.fid, out.size, length)

    def _write(self, out: Out, data: bytes | memoryview) -> None:
        written = os.write(out.fd, data)
        if written != len(data):
            raise OSError(errno.EIO, "short write", out.path)
        out.size += written
        self.stats.count("write")
        self.stats.count("write bytes", written)

    def write_once(self, out: Out, data: bytes | memoryview) -> None:
        """Append `data`, which must be the file's content at this place, by one write."""
        text = f"append {out.fid}:{out.size}:{len(data)}"
        self._logged(text, lambda: self._write(out, data))

    def write_nothing(self, out: Out) -> None:
        """Write zero bytes, as an empty column does."""
        os.write(out.fd, b"")
        self.stats.count("write")

    def truncate(self, out: Out) -> None:
        """Cut an open file to nothing."""
        self._logged(f"truncate {out.fid} 0", lambda: os.ftruncate(out.fd, 0))
        out.size = 0
        self.stats.count("ftruncate")

    def sync(self, out: Out, *, large: bool = False) -> None:
        """Sync an open file: fsync, or for a large merge output fdatasync and DONTNEED."""
        begun = time.monotonic()
        call = os.fdatasync if large else os.fsync
        self._logged(f"fsync {out.path}", lambda: call(out.fd))
        self._fsyncs.add(time.monotonic() - begun)
        self.stats.count("fdatasync" if large else "fsync file")
        if large:
            self.forget(out.fd, 0, 0)

    def sync_dir(self, path: str) -> None:
        """Open, fsync and close a directory."""
        begun = time.monotonic()
        fd = os.open(self.full(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._logged(f"fsync {path or '.'}", lambda: os.fsync(fd))
        finally:
            os.close(fd)
        self._fsyncs.add(time.monotonic() - begun)
        self.stats.count("fsync dir")

    def write_atomic(self, path: str, literal: bytes) -> Known:
        """`<name>.tmp`, write, fsync, close, rename, fsync of the directory."""
        self.expect_missing(f"{path}.tmp")
        out = self.create(f"{path}.tmp", literal=literal)
        try:
            self.write_once(out, literal)
            self.sync(out)
        finally:
            os.close(out.fd)
        self.rename(f"{path}.tmp", path)
        self.sync_dir(posixpath.dirname(path))
        return out.known()

    # reading

    def open_read(self, path: str) -> int:
        """Open a file for reading."""
        fd = os.open(self.full(path), os.O_RDONLY | os.O_CLOEXEC)
        self.stats.count("open file")
        return fd

    def forget(self, fd: int, offset: int, length: int) -> None:
        """Tell the kernel that these pages are not needed."""
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)
        self.stats.count("fadvise")

    def check(self, path: str, known: Known, offset: int, data: bytes) -> None:
        """Compare what was read with what was written; raises `WrongBytesError`."""
        expected = self.content.expect(known, offset, len(data))
        if data != expected:
            message = f"{path}: wrong bytes at {offset}, {len(data)} read"
            raise WrongBytesError(message)

    def pread(self, fd: int, path: str, known: Known, offset: int, length: int) -> None:
        """Read an exact range and check it.

        A read that meets an error after its first page gives what it has so far (a volume that
        dies just then), so a short one is asked for its rest: an error then is the volume's.
        """
        data = os.pread(fd, length, offset)
        if len(data) < length:
            data += os.pread(fd, length - len(data), offset + len(data))
        self.stats.count("pread")
        self.stats.count("pread bytes", len(data))
        if len(data) != length:
            message = f"{path}: {len(data)} of {length} bytes at {offset}"
            raise WrongBytesError(message)
        self.check(path, known, offset, data)

    def read_through(self, fd: int, path: str, known: Known, *, records: int = 1) -> None:
        """Read from 0 to the end in buffer-size chunks, checking, forgetting after each.

        `records` is how many small reads of the buffer share a chunk: BanyanDB calls fadvise
        after each of them, and on less than a page that does nothing.
        """
        os.lseek(fd, 0, os.SEEK_SET)
        offset = 0
        while data := os.read(fd, self.buffer):
            self.check(path, known, offset, data)
            self.stats.count("read")
            self.stats.count("read bytes", len(data))
            for record in range(1, records):
                self.forget(fd, offset + record * (BLOCK // records), BLOCK // records)
            self.forget(fd, offset, len(data))
            offset += len(data)
        self.stats.count("read")
        if offset != known.size:
            message = f"{path}: {offset} bytes, {known.size} were written"
            raise WrongBytesError(message)
        self.forget(fd, 0, 0)

    def read_small(self, path: str, known: Known, *, forget: bool = False) -> bytes:
        """Open, read to the end, close; check."""
        fd = self.open_read(path)
        try:
            if forget:
                self.read_through(fd, path, known, records=4)
                return b""
            data = os.read(fd, 1 << 20)
            rest = os.read(fd, 512)
        finally:
            os.close(fd)
        self.stats.count("read", 2)
        self.stats.count("read bytes", len(data))
        if len(data) != known.size or rest:
            message = f"{path}: {len(data)} bytes, {known.size} were written"
            raise WrongBytesError(message)
        self.check(path, known, 0, data)
        return data

    def flock(self, fd: int, *, shared: bool = False) -> bool:
        """Try to lock without waiting; False if another description holds it."""
        self.stats.count("flock")
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            self.stats.count("flock EWOULDBLOCK")
            return False
        return True
