"""Random programs of real system calls, carried out step by step on two directories.

A `World` is one directory with a table of open files. `Program` makes steps from a seed; every
step is carried out on both worlds, and what it answered (value or errno) must be equal, as must
be what can be seen of the tree. Only what POSIX leaves open is left out of the comparison: inode
and block numbers, sizes of directories, access times.
"""
# The system calls themselves, on names of bytes, are the point here.
# ruff: noqa: PTH101, PTH102, PTH106, PTH108, PTH115, PTH116, PTH208, PTH211

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

NOBODY = 65534
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
AT_FDCWD = -100
SLOTS = 4

Step = tuple[object, ...]
Answer = tuple[object, ...]

_libc = ctypes.CDLL(None, use_errno=True)
_LONG = b"n" * 255
_NAMES = (b"a", b"b", b"c", b"d\xff\xfe", b"e f")
_MODES = (0o600, 0o644, 0o755, 0o4755, 0o2755, 0o6777, 0o1777, 0o2775, 0o000)
_FLAGS = (
    os.O_RDONLY,
    os.O_WRONLY,
    os.O_RDWR,
    os.O_RDWR | os.O_CREAT,
    os.O_RDWR | os.O_CREAT,
    os.O_RDWR | os.O_CREAT | os.O_EXCL,
    os.O_RDWR | os.O_CREAT | os.O_TRUNC,
    os.O_RDWR | os.O_TRUNC,
    os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    os.O_RDWR | os.O_APPEND,
    os.O_RDONLY | os.O_DIRECTORY,
    os.O_RDONLY | os.O_NOFOLLOW,
    os.O_RDONLY | os.O_TRUNC,
)


def renameat2(source: bytes, target: bytes, flags: int) -> None:
    """renameat2(2), which Python does not offer."""
    if _libc.renameat2(AT_FDCWD, source, AT_FDCWD, target, flags):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def without_set_id(mode: int) -> int:
    """Return a mode as a write leaves it; set-gid without execution is mandatory locking's."""
    mode &= ~stat.S_ISUID
    return mode & ~stat.S_ISGID if mode & stat.S_IXGRP else mode


@contextlib.contextmanager
def acting_as(user: int) -> Iterator[None]:
    """Do something as another user of another group."""
    was = os.geteuid()
    _become(user)
    try:
        yield
    finally:
        _become(was)


def _become(user: int) -> None:
    os.seteuid(0)
    os.setegid(user)
    os.seteuid(user)


class World:
    """One directory and the files that the program holds open in it."""

    def __init__(self, root: Path, *, plain: bool = False) -> None:
        """`plain`: the directory to compare with; it is made to differ where we mean to differ."""
        self._plain = plain
        self.fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        self.slots: list[int | None] = [None] * SLOTS

    def close(self) -> None:
        """Close everything."""
        for fd in self.slots:
            if fd is not None:
                os.close(fd)
        os.close(self.fd)

    def do(self, step: Step) -> Answer:
        """Carry one step out; returns what it answered."""
        user, umask, name, *arguments = step
        os.fchdir(self.fd)
        os.umask(int(str(umask)))
        call: Callable[..., object] = getattr(self, f"_{name}")
        try:
            with acting_as(int(str(user))):
                return ("ok", call(*arguments))
        except OSError as error:
            return ("errno", error.errno)
        finally:
            os.umask(0o022)

    def tree(self) -> dict[bytes, Answer]:
        """Return all that can be compared of everything below the root."""
        os.fchdir(self.fd)
        found: dict[bytes, Answer] = {}
        todo = [b"."]
        while todo:
            path = todo.pop()
            found[path] = self._shown(path)
            if stat.S_ISDIR(os.lstat(path).st_mode):
                todo += [path + b"/" + name for name in os.listdir(path)]
        return found

    def _shown(self, path: bytes) -> Answer:
        status = os.lstat(path)
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = Path(os.fsdecode(path)).read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        attributes = [
            (name, os.getxattr(path, name, follow_symlinks=False))
            for name in sorted(os.listxattr(path, follow_symlinks=False))
        ]
        return (*_fields(status), content, attributes)

    # --- calls ---------------------------------------------------------------------------

    def _open(self, path: bytes, flags: int, mode: int, slot: int) -> None:
        fd = os.open(path, flags | os.O_NONBLOCK, mode)
        self._close_quietly(slot)
        self.slots[slot] = fd

    def _close_quietly(self, slot: int) -> None:
        fd = self.slots[slot]
        self.slots[slot] = None
        if fd is not None:
            os.close(fd)

    def _fd(self, slot: int) -> int:
        fd = self.slots[slot]
        return 999_999 if fd is None else fd

    def _read(self, slot: int, count: int) -> object:
        return os.read(self._fd(slot), count)

    def _write(self, slot: int, data: bytes) -> object:
        return self._changing(slot, lambda fd: os.write(fd, data))

    def _changing(self, slot: int, write: Callable[[int], int]) -> int:
        """Write. Set-id bits go here as for a writer in the file's group, root or not.

        The transport does not tell who writes, so the plain directory is made to do the same.
        """
        fd = self._fd(slot)
        before = os.fstat(fd).st_mode
        count = write(fd)
        if self._plain and count and stat.S_ISREG(before):
            with acting_as(0):
                os.fchmod(fd, stat.S_IMODE(without_set_id(before)))
        return count

    def _pread(self, slot: int, count: int, offset: int) -> object:
        return os.pread(self._fd(slot), count, offset)

    def _pwrite(self, slot: int, data: bytes, offset: int) -> object:
        return self._changing(slot, lambda fd: os.pwrite(fd, data, offset))

    def _lseek(self, slot: int, offset: int, whence: int) -> object:
        fd = self._fd(slot)
        if fd < 999_999 and stat.S_ISDIR(os.fstat(fd).st_mode):
            return None  # positions in directories are the file system's own
        return os.lseek(fd, offset, whence)

    def _ftruncate(self, slot: int, size: int) -> None:
        os.ftruncate(self._fd(slot), size)

    def _fstat(self, slot: int) -> object:
        return _fields(os.fstat(self._fd(slot)))

    def _fchmod(self, slot: int, mode: int) -> None:
        os.fchmod(self._fd(slot), mode)

    def _fsync(self, slot: int) -> None:
        os.fsync(self._fd(slot))

    def _copy_range(self, source: int, target: int, count: int) -> object:
        start = self._fd(source)
        return self._changing(target, lambda fd: os.copy_file_range(start, fd, count, 0, 0))

    def _sendfile(self, source: int, target: int, count: int) -> object:
        start = self._fd(source)
        return self._changing(target, lambda fd: os.sendfile(fd, start, 0, count))

    def _truncate(self, path: bytes, size: int) -> None:
        os.truncate(path, size)

    def _stat(self, path: bytes) -> object:
        return _fields(os.stat(path))

    def _access(self, path: bytes, mode: int) -> object:
        return os.access(path, mode, effective_ids=True)

    def _unlink(self, path: bytes) -> None:
        os.unlink(path)

    def _mkdir(self, path: bytes, mode: int) -> None:
        os.mkdir(path, mode)

    def _rmdir(self, path: bytes) -> None:
        os.rmdir(path)

    def _rename(self, source: bytes, target: bytes, flags: int) -> None:
        renameat2(source, target, flags)

    def _link(self, source: bytes, target: bytes) -> None:
        os.link(source, target, follow_symlinks=False)

    def _symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(target, path)

    def _readlink(self, path: bytes) -> object:
        return os.readlink(path)

    def _mknod(self, path: bytes, mode: int, device: int) -> None:
        os.mknod(path, mode, device)

    def _chmod(self, path: bytes, mode: int) -> None:
        os.chmod(path, mode)

    def _chown(self, path: bytes, uid: int, gid: int) -> None:
        os.chown(path, uid, gid, follow_symlinks=False)

    def _utime(self, path: bytes, atime_ns: int, mtime_ns: int) -> object:
        os.utime(path, ns=(atime_ns, mtime_ns), follow_symlinks=False)
        return os.lstat(path).st_mtime_ns

    def _setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        os.setxattr(path, name, value, flags, follow_symlinks=False)

    def _getxattr(self, path: bytes, name: bytes) -> object:
        return os.getxattr(path, name, follow_symlinks=False)

    def _removexattr(self, path: bytes, name: bytes) -> None:
        os.removexattr(path, name, follow_symlinks=False)

    def _listxattr(self, path: bytes) -> object:
        return sorted(os.listxattr(path, follow_symlinks=False))

    def _listdir(self, path: bytes) -> object:
        return sorted(os.listdir(path))

    def _times(self, path: bytes, call: str, arguments: tuple[object, ...]) -> object:
        """Carry a call out; tell which times of `path` it moved, beside its answer."""
        before = os.lstat(path)
        code = 0
        try:
            getattr(self, f"_{call}")(*arguments)
        except OSError as error:
            code = error.errno or 0
        try:
            after = os.lstat(path)
        except OSError as error:
            return (code, error.errno)
        moved = before.st_mtime_ns < after.st_mtime_ns, before.st_ctime_ns < after.st_ctime_ns
        return (code, *moved)


def _fields(status: os.stat_result) -> Answer:
    size = None if stat.S_ISDIR(status.st_mode) else status.st_size
    device = status.st_rdev
    return (oct(status.st_mode), status.st_nlink, status.st_uid, status.st_gid, size, device)


class Program:
    """Steps from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._makers: list[tuple[int, Callable[[], Step]]] = [
            (16, self._open),
            (30, self._on_slot),
            (30, self._on_path),
            (8, self._attribute),
            (6, self._timed),
        ]

    def step(self) -> Step:
        """Return the next step."""
        draw = self._random
        weights, makers = zip(*self._makers, strict=True)
        user = NOBODY if draw.random() < 0.15 else 0
        umask = draw.choice((0o022, 0o022, 0, 0o077))
        return (user, umask, *draw.choices(makers, weights)[0]())

    def _path(self) -> bytes:
        draw = self._random
        depth = draw.choice((1, 1, 1, 2, 2, 3))
        parts = [draw.choice(_NAMES) for _ in range(depth)]
        if draw.random() < 0.03:
            parts[-1] = draw.choice((_LONG, _LONG + b"n", b".", b"..", b""))
        return b"/".join(parts) or b"."

    def _bytes(self) -> bytes:
        draw = self._random
        return draw.randbytes(draw.choice((0, 1, 10, 100, 4096, 5000, 70_000)))

    def _offset(self) -> int:
        return self._random.choice((0, 1, 100, 4095, 4096, 65_536, 100_000, 1_100_000))

    def _open(self) -> Step:
        draw = self._random
        path, flags, mode = self._path(), draw.choice(_FLAGS), draw.choice(_MODES)
        return ("open", path, flags, mode, draw.randrange(SLOTS))

    def _on_slot(self) -> Step:
        draw = self._random
        slot, other = draw.randrange(SLOTS), draw.randrange(SLOTS)
        count = draw.choice((0, 1, 100, 5000, 200_000))
        return draw.choice(
            (
                ("read", slot, count),
                ("write", slot, self._bytes()),
                ("write", slot, self._bytes()),
                ("pread", slot, count, self._offset()),
                ("pwrite", slot, self._bytes(), self._offset()),
                ("pwrite", slot, self._bytes(), self._offset()),
                ("lseek", slot, self._offset(), draw.choice((0, 1, 2))),
                ("ftruncate", slot, self._offset()),
                ("fstat", slot),
                ("fstat", slot),
                ("fchmod", slot, draw.choice(_MODES)),
                ("fsync", slot),
                ("copy_range", slot, other, count),
                ("sendfile", slot, other, count),
                ("close_quietly", slot),
            )
        )

    def _on_path(self) -> Step:
        draw = self._random
        path, other = self._path(), self._path()
        mode = draw.choice(_MODES)
        kind = draw.choice((stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG))
        return draw.choice(
            (
                ("stat", path),
                ("access", path, draw.randrange(8)),
                ("unlink", path),
                ("unlink", path),
                ("mkdir", path, mode),
                ("mkdir", path, mode),
                ("mkdir", path, 0o777),
                ("rmdir", path),
                ("rename", path, other, 0),
                ("rename", path, other, 0),
                ("rename", path, other, draw.choice((RENAME_NOREPLACE, RENAME_EXCHANGE, 3))),
                ("link", path, other),
                ("symlink", other, path),
                ("readlink", path),
                ("mknod", path, kind | mode, 0),
                ("truncate", path, self._offset()),
                ("listdir", path),
            )
        )

    def _attribute(self) -> Step:
        draw = self._random
        path = self._path()
        name = draw.choice((b"user.one", b"user.two", b"trusted.three", b"user." + b"x" * 250))
        when = draw.choice((0, 1, 1_700_000_000_123_456_789, 4_000_000_000_999_999_999))
        return draw.choice(
            (
                ("chmod", path, draw.choice(_MODES)),
                ("chown", path, draw.choice((-1, 0, NOBODY)), draw.choice((-1, 0, NOBODY, 7))),
                ("utime", path, when, when),
                ("setxattr", path, name, draw.randbytes(20), draw.choice((0, 0, 1, 2))),
                ("getxattr", path, name),
                ("removexattr", path, name),
                ("listxattr", path),
            )
        )

    def _timed(self) -> Step:
        """A call, and whether it moved the times of the thing itself or of its directory."""
        draw = self._random
        name, *arguments = draw.choice((self._on_path, self._attribute))()
        path = arguments[0]
        if name == "utime" or not isinstance(path, bytes):
            return ("stat", b".")
        if draw.random() < 0.5:
            path = path.rpartition(b"/")[0] or b"."
        return ("times", path, name, tuple(arguments))
