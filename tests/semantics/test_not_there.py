"""Every row of "What is not there" in `docs/semantics.md` is true, and none is without a test."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[2] / "docs" / "semantics.md"
_UNTESTED = {
    "access control lists",
    "file capabilities",
    "`inotify`",
    "locks between machines",
    "leases, `O_PATH` across a restart",
}
"""What needs a second machine or a restart, or is a matter of what nobody obeys."""
_FICLONE = 0x40049409
_FS_IOC_GETFLAGS = 0x80086601

_libc = ctypes.CDLL(None, use_errno=True)


def rows() -> dict[str, str]:
    """Return the table of the section: what -> what happens."""
    section = DOCUMENT.read_text(encoding="utf-8").split("## What is not there", 1)[1]
    cells = re.findall(r"^\| (\S.*?) \| (.*?) \|$", section, re.MULTILINE)
    return dict(cells)


def _errno_of(call: Callable[[], object]) -> int | None:
    with pytest.raises(OSError, match=r"\[Errno") as caught:
        call()
    return caught.value.errno


def _fallocate(tree: Path, says: str) -> None:
    with (tree / "file").open("wb") as file:
        assert _libc.fallocate(file.fileno(), 0, ctypes.c_long(0), ctypes.c_long(4096)) == -1
        assert ctypes.get_errno() == errno.EOPNOTSUPP
        assert "EOPNOTSUPP" in says
        os.posix_fallocate(file.fileno(), 0, 10_000)
        assert os.fstat(file.fileno()).st_size == 10_000


def _seek_holes(tree: Path, says: str) -> None:
    with (tree / "file").open("wb") as file:
        file.truncate(1 << 20)
        assert "without holes" in says
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 0
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 1 << 20


def _copy_file_range(tree: Path, says: str) -> None:
    (tree / "from").write_bytes(b"x" * 5000)
    with (tree / "from").open("rb") as source, (tree / "to").open("wb") as target:
        assert os.copy_file_range(source.fileno(), target.fileno(), 5000) == 5000
        assert "refused" in says
        _errno_of(lambda: fcntl.ioctl(target.fileno(), _FICLONE, source.fileno()))
    assert (tree / "to").read_bytes() == b"x" * 5000


def _tmpfile(tree: Path, says: str) -> None:
    assert "EOPNOTSUPP" in says
    assert _errno_of(lambda: os.open(tree, os.O_TMPFILE | os.O_RDWR)) == errno.EOPNOTSUPP


def _direct(tree: Path, says: str) -> None:
    (tree / "file").write_bytes(b"x")
    assert "opens" in says
    os.close(os.open(tree / "file", os.O_RDWR | os.O_DIRECT))


def _set_id(tree: Path, says: str) -> None:
    assert "clears them" in says
    path = tree / "file"
    path.touch()
    path.chmod(0o6755)
    path.write_bytes(b"x")
    assert path.stat().st_mode & 0o7777 == 0o755


def _set_gid_of_a_stranger(tree: Path, says: str) -> None:
    assert "survives a write, truncate or chown by a stranger to the group" in says
    tree.chmod(0o777)
    path = tree / "file"
    for change in ("printf z 1<>file", ": >file", "truncate -s 3 file", "chown :1000 file"):
        path.write_bytes(b"bytes")
        os.chown(path, 1000, 5)
        path.chmod(0o2666)
        subprocess.run(
            ["sh", "-c", change], cwd=tree, user=1000, group=1000, extra_groups=[], check=True
        )
        assert path.stat().st_mode & 0o7777 == 0o2666, change


def _create_and_replace(tree: Path, says: str) -> None:
    path = tree / "file"
    path.touch()
    both = os.XATTR_CREATE | os.XATTR_REPLACE
    assert "an attribute that is absent is created" in says
    os.setxattr(path, "user.x", b"one", both)
    assert _errno_of(lambda: os.setxattr(path, "user.x", b"two", both)) == errno.EEXIST
    assert os.getxattr(path, "user.x") == b"one"


def _devices(tree: Path, says: str) -> None:
    assert "cannot be opened" in says
    os.mknod(tree / "null", 0o20666, os.makedev(1, 3))
    assert _errno_of((tree / "null").read_bytes) == errno.EACCES


def _access_times(tree: Path, says: str) -> None:
    assert "never by a read" in says
    path = tree / "file"
    path.write_bytes(b"x")
    os.utime(path, ns=(1, 2))
    path.read_bytes()
    assert path.stat().st_atime_ns == 1


def _far_times(tree: Path, says: str) -> None:
    assert "the nearest time in between is kept" in says
    path = tree / "file"
    path.touch()
    first, last = -(1 << 63), (1 << 63) - 1
    for seconds in (1 << 34, 10**12, (1 << 63) - 1, -(10**11), -(1 << 63)):
        os.utime(path, (seconds, seconds))
        kept = first if seconds < 0 else last
        assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (kept, kept), seconds
    for kept in (first, last):
        os.utime(path, ns=(kept, kept))
        assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (kept, kept)


def _blocks(tree: Path, says: str) -> None:
    assert "holes included" in says
    with (tree / "file").open("wb") as file:
        file.truncate(1 << 20)
    assert (tree / "file").stat().st_blocks * 512 == 1 << 20


def _directory_size(tree: Path, says: str) -> None:
    assert str(tree.stat().st_size) == says


def _dot_dot(tree: Path, says: str) -> None:
    assert '`stat("..")` is right' in says
    (tree / "below").mkdir()
    assert (tree / "below" / "..").stat().st_ino == tree.stat().st_ino


def _flags(tree: Path, says: str) -> None:
    assert "ENOTTY" in says
    with (tree / "file").open("wb") as file:
        buffer = bytearray(8)
        found = _errno_of(lambda: fcntl.ioctl(file.fileno(), _FS_IOC_GETFLAGS, buffer))
        assert found == errno.ENOTTY


def _syncfs(tree: Path, says: str) -> None:
    assert "do not reach the daemon" in says
    fd = os.open(tree, os.O_RDONLY)
    try:
        assert _libc.syncfs(fd) == 0
    finally:
        os.close(fd)


_TESTS: dict[str, Callable[[Path, str], None]] = {
    "`fallocate` (also punching holes)": _fallocate,
    "`lseek` with `SEEK_HOLE`, `SEEK_DATA`": _seek_holes,
    "`copy_file_range`": _copy_file_range,
    "`O_TMPFILE`": _tmpfile,
    "`O_DIRECT`": _direct,
    "`XATTR_CREATE` and `XATTR_REPLACE` together": _create_and_replace,
    "set-id bits": _set_id,
    "set-gid without group execution (`02666`)": _set_gid_of_a_stranger,
    "device nodes": _devices,
    "access times": _access_times,
    "times before 1677 or after 2262": _far_times,
    "`st_blocks`": _blocks,
    "`st_size` of a directory": _directory_size,
    "`..` in `readdir`": _dot_dot,
    "`chattr`, `lsattr`, quotas": _flags,
    "`sync(2)`, `syncfs(2)`": _syncfs,
}


@pytest.mark.parametrize("what", sorted(_TESTS))
def test_a_row_says_what_happens(what: str, tree: Path) -> None:
    """A difference from a local disk is as it is written down, or the document is wrong."""
    _TESTS[what](tree, rows()[what])


def test_every_row_has_a_test() -> None:
    """A new row comes with its test, or with a reason for having none."""
    assert set(rows()) - {"", "---"} == set(_TESTS) | _UNTESTED
