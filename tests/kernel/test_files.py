"""Open files on a real mount: unlinked, mapped, shared, locked, many at once."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.kernel.mounts import Mount

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_HANDLE_BYTES_MAX = 128
MIB = 1 << 20


def test_an_unlinked_file_lives_until_it_is_closed(tree: Path) -> None:
    """BanyanDB unlinks segments that queries still read."""
    path = tree / "file"
    path.write_bytes(b"before")
    with path.open("r+b", buffering=0) as file:
        path.unlink()
        assert os.fstat(file.fileno()).st_nlink == 0
        path.write_bytes(b"another file of that name")
        assert file.read() == b"before"
        file.write(b" and after")
        file.truncate(9)
        assert os.pread(file.fileno(), 100, 0) == b"before an"
        file.truncate(12)
        assert os.pread(file.fileno(), 100, 0) == b"before an\0\0\0"
    assert path.read_bytes() == b"another file of that name"


def test_a_file_renamed_over_lives_until_it_is_closed(tree: Path) -> None:
    """Readers of an old part list go on with it while the new one takes its name."""
    (tree / "old").write_bytes(b"old")
    (tree / "new").write_bytes(b"new")
    with (tree / "old").open("rb") as file:
        (tree / "new").rename(tree / "old")
        assert os.fstat(file.fileno()).st_nlink == 0
        assert file.read() == b"old"
    assert (tree / "old").read_bytes() == b"new"


def test_hard_links_are_one_file(tree: Path) -> None:
    """A snapshot made of hard links shares its bytes and its inode number."""
    (tree / "a").write_bytes(b"one")
    os.link(tree / "a", tree / "b")
    first, second = (tree / "a").stat(), (tree / "b").stat()
    assert (first.st_ino, first.st_nlink) == (second.st_ino, 2)
    (tree / "b").write_bytes(b"two")
    assert (tree / "a").read_bytes() == b"two"
    (tree / "a").unlink()
    assert (tree / "b").stat().st_nlink == 1


def test_a_shared_mapping_writes_the_file(tree: Path) -> None:
    """What is stored through a mapping and synced is in the file, for all readers."""
    path = tree / "mapped"
    path.write_bytes(bytes(3 * mmap.PAGESIZE))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[5000:5004] = b"here"
        mapping.flush()
        assert os.pread(file.fileno(), 4, 5000) == b"here"
        os.pwrite(file.fileno(), b"there", 100)
        assert mapping[100:105] == b"there"
    assert path.read_bytes()[5000:5004] == b"here"


def test_a_mapping_of_one_file_is_written_to_another(tree: Path) -> None:
    """bluge writes a segment out of the mapping of another: a deadlock trap of FUSE."""
    source, target = tree / "source", tree / "target"
    content = os.urandom(2 * MIB)
    source.write_bytes(content)
    with (
        source.open("rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping,
        target.open("wb", buffering=0) as out,
    ):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert out.write(mapping) == len(content)
    assert target.read_bytes() == content


def test_a_mapping_outlives_its_file(tree: Path) -> None:
    """A mapped segment is read after it was unlinked and its descriptor closed."""
    path = tree / "mapped"
    content = os.urandom(MIB)
    path.write_bytes(content)
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    path.unlink()
    with mapping:
        assert mapping[:] == content


def test_appends_of_two_processes_do_not_overwrite_each_other(tree: Path) -> None:
    """O_APPEND: each line of each writer is in the file, whole."""
    path = tree / "log"
    code = (
        "import os, sys\n"
        "fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
        "for _ in range(300): os.write(fd, (sys.argv[2] * 99 + '\\n').encode())\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(path), letter]) for letter in "abcd"
    ]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    lines = path.read_bytes().splitlines()
    assert sorted(lines) == sorted(letter * 99 for letter in (b"a", b"b", b"c", b"d") * 300)


def test_a_thousand_files_are_open_at_once(tree: Path) -> None:
    """Every part of every shard is open in BanyanDB."""
    fds = [os.open(tree / f"{n}", os.O_CREAT | os.O_RDWR) for n in range(1000)]
    try:
        for number, fd in enumerate(fds):
            os.pwrite(fd, f"{number}".encode(), number)
        for number, fd in enumerate(fds):
            assert os.pread(fd, 10, number) == f"{number}".encode()
    finally:
        for fd in fds:
            os.close(fd)


def test_a_hole_reads_as_zeros_and_takes_no_room(tree: Path) -> None:
    """A sparse file of 1 TiB costs what was written."""
    path = tree / "sparse"
    with path.open("wb", buffering=0) as file:
        os.pwrite(file.fileno(), b"end", 1 << 40)
        os.pwrite(file.fileno(), b"middle", 1 << 30)
    with path.open("rb") as file:
        assert os.pread(file.fileno(), 8192, (1 << 30) - 4096) == (
            bytes(4096) + b"middle" + bytes(4090)
        )
        assert os.pread(file.fileno(), 10, 1 << 40) == b"end"
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) in {0, 1 << 30}
        assert os.lseek(file.fileno(), 1 << 40, os.SEEK_HOLE) == (1 << 40) + 3


def test_direct_io_is_taken_or_refused_cleanly(tree: Path) -> None:
    """O_DIRECT either works with the right bytes or says EINVAL at open."""
    path = tree / "direct"
    content = os.urandom(64 * 1024)
    path.write_bytes(content)
    try:
        fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return
    try:
        with mmap.mmap(-1, len(content)) as buffer:
            assert os.preadv(fd, [buffer], 0) == len(content)
            assert buffer[:] == content
            buffer[:4] = b"over"
            assert os.pwritev(fd, [buffer], 0) == len(content)
    finally:
        os.close(fd)
    assert path.read_bytes() == b"over" + content[4:]


def test_times_keep_their_nanoseconds(tree: Path) -> None:
    """`make`, `rsync` and backups compare times exactly."""
    path = tree / "file"
    path.touch()
    os.utime(path, ns=(1_600_000_000_123_456_789, 1_700_000_000_987_654_321))
    status = path.stat()
    assert status.st_atime_ns == 1_600_000_000_123_456_789
    assert status.st_mtime_ns == 1_700_000_000_987_654_321
    before = status.st_mtime_ns
    path.write_bytes(b"now")
    assert path.stat().st_mtime_ns > before


def test_truncating_an_empty_file_for_reading_moves_its_times(tree: Path) -> None:
    """open(2): O_TRUNC changes mtime and ctime whatever the size and the mode of access."""
    path = tree / "file"
    path.touch()
    before = path.stat()
    os.close(os.open(path, os.O_RDONLY | os.O_TRUNC))
    after = path.stat()
    assert after.st_mtime_ns > before.st_mtime_ns
    assert after.st_ctime_ns > before.st_ctime_ns


def test_statfs_tells_capacity_and_use(shared: Mount) -> None:
    """BanyanDB stops ingesting by what statfs says; deleting must show."""
    before = os.statvfs(shared.path)
    assert before.f_blocks * before.f_frsize == 1 << 40
    path = shared.path / "big"
    path.write_bytes(bytes(8 * MIB))
    during = os.statvfs(shared.path)
    assert (before.f_bfree - during.f_bfree) * before.f_frsize >= 8 * MIB
    path.unlink()

    def freed() -> bool:
        return os.statvfs(shared.path).f_bfree >= before.f_bfree

    shared.wait_until(freed, 10, "the space of an unlinked file was not free")


def test_large_xattrs_are_kept_and_larger_ones_refused(tree: Path) -> None:
    """64 KiB is Linux's own limit."""
    value = os.urandom(65_536)
    (tree / "file").touch()
    os.setxattr(tree / "file", "user.large", value)
    assert os.getxattr(tree / "file", "user.large") == value
    with pytest.raises(FileExistsError):
        os.setxattr(tree / "file", "user.large", b"", os.XATTR_CREATE)
    with pytest.raises(OSError, match="No data available"):
        os.setxattr(tree / "file", "user.other", b"", os.XATTR_REPLACE)


@pytest.mark.parametrize("name", ["bogus", "bogus.x", "system.x", "com.apple.x", "User.x"])
def test_an_attribute_of_no_known_namespace_is_refused(name: str, tree: Path) -> None:
    """As on a local disk: programs that probe for a namespace must not believe in it."""
    (tree / "file").touch()
    with pytest.raises(OSError, match="not supported") as caught:
        os.setxattr(tree / "file", name, b"value")
    assert caught.value.errno == errno.EOPNOTSUPP
    assert os.listxattr(tree / "file") == []


def test_an_attribute_without_a_name_is_refused(tree: Path) -> None:
    """A namespace alone names nothing."""
    (tree / "file").touch()
    with pytest.raises(OSError, match="Invalid argument"):
        os.setxattr(tree / "file", "user.", b"value")
    assert os.listxattr(tree / "file") == []


@pytest.mark.parametrize("name", ["d/file", "d"])
def test_a_file_handle_outlives_the_kernels_cache(name: str, tree: Path, shared: Mount) -> None:
    """NFS servers keep handles; the kernel then asks for "." and ".." of an inode number."""
    (tree / "d").mkdir()
    (tree / "d/file").write_bytes(b"bytes")
    expected = (tree / name).stat()
    path = os.fsencode(tree / name)
    # struct file_handle: the room for the bytes that follow, their kind, these bytes.
    head = struct.pack("=Ii", _HANDLE_BYTES_MAX, 0)
    handle = ctypes.create_string_buffer(head, len(head) + _HANDLE_BYTES_MAX)
    mount_id = ctypes.c_int()
    at = os.open(tree, os.O_RDONLY)
    try:
        found = _libc.name_to_handle_at(_AT_FDCWD, path, handle, ctypes.byref(mount_id), 0)
        assert found == 0, errno.errorcode[ctypes.get_errno()]
        # A remount drops the dentries that nobody uses, of this file system only.
        subprocess.run(["mount", "-i", "-o", "remount", str(shared.path)], check=True)
        fd = _libc.open_by_handle_at(at, handle, os.O_RDONLY)
        assert fd >= 0, errno.errorcode[ctypes.get_errno()]
    finally:
        os.close(at)
    try:
        assert os.path.samestat(os.fstat(fd), expected)
    finally:
        os.close(fd)


# --- locks -------------------------------------------------------------------------------

_HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "r+b")
getattr(fcntl, sys.argv[2])(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["flock", "lockf"])
def test_a_lock_keeps_another_process_out_until_its_holder_is_dead(kind: str, tree: Path) -> None:
    """Two databases on one directory destroy it; a dead one must not block the next."""
    path = tree / "lock"
    path.touch()
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(path), kind], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    with holder.stdout as output:
        assert output.readline() == "held\n"
        lock = getattr(fcntl, kind)
        with path.open("r+b") as file:
            with pytest.raises(BlockingIOError):
                lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            holder.kill()
            holder.wait()
            deadline = time.monotonic() + 10
            while True:
                try:
                    lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    assert time.monotonic() < deadline, "the lock of a dead process stays"
                    time.sleep(0.01)


def test_flock_tells_two_descriptors_of_one_process_apart(tree: Path) -> None:
    """bluge takes an exclusive flock on a file that the same process may hold shared."""
    path = tree / "lock"
    path.touch()
    with path.open("r+b") as one, path.open("r+b") as two:
        fcntl.flock(one, fcntl.LOCK_SH)
        fcntl.flock(two, fcntl.LOCK_SH)
        with pytest.raises(BlockingIOError):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(one, fcntl.LOCK_UN)
        fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_fsync_of_files_and_directories_is_answered(tree: Path) -> None:
    """fsync, fdatasync, sync_file_range and syncfs on anything that can be opened."""
    (tree / "file").write_bytes(b"x")
    for path in (tree / "file", tree):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.fdatasync(fd)
            assert _libc.syncfs(fd) == 0
        finally:
            os.close(fd)
