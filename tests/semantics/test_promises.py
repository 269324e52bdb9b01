"""Promises of `docs/semantics.md` that no other test covers, each quoted word for word."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from tests.hygiene.tree import ROOT
from tests.kernel.conftest import MakeMount
from tests.kernel.mounts import Mount, Volume

F = TypeVar("F", bound=Callable[..., None])

_QUOTED: list[str] = []
_AT_FDCWD = -100
_RENAME_WHITEOUT = 4
_libc = ctypes.CDLL(None, use_errno=True)


def quotes(sentence: str) -> Callable[[F], F]:
    """Say which words of the document a test holds the code to."""
    _QUOTED.append(sentence)
    return lambda test: test


def test_every_quoted_promise_stands_in_the_document() -> None:
    """A promise that was taken back, or bent, is no longer tested by its test."""
    text = (ROOT / "docs/semantics.md").read_text(encoding="utf-8")
    assert [sentence for sentence in _QUOTED if sentence not in text] == []


def refused(call: Callable[[], object]) -> int:
    """Return the errno with which a call was refused."""
    try:
        call()
    except OSError as error:
        return error.errno or 0
    pytest.fail("it was not refused")


def names(directory: Path) -> list[str]:
    """Return the names in a directory, in order."""
    return sorted(path.name for path in directory.iterdir())


# --- names -------------------------------------------------------------------------------

_READER = """
import sys
while True:
    with open(sys.argv[1], "rb") as file:
        assert len(set(file.read())) == 1, "a mixture"
    print(flush=True)
"""


@quotes("At every moment the name means the old file or the new one, for every process")
def test_a_name_that_is_replaced_is_never_missing(tree: Path) -> None:
    """BanyanDB reads a part list while the next one takes its name."""
    target = tree / "list"
    target.write_bytes(b"0" * 5000)
    reader = subprocess.Popen(
        [sys.executable, "-c", _READER, str(target)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert reader.stdout is not None
    try:
        reader.stdout.readline()
        for number in range(300):
            (tree / "list.tmp").write_bytes(b"%d" % (number % 10) * 5000)
            (tree / "list.tmp").rename(target)
        assert reader.poll() is None
    finally:
        reader.kill()
        _, said = reader.communicate()
    assert said == b""


@quotes("No file of another name appears, and the directory can be removed.")
def test_a_directory_of_unlinked_open_files_can_be_removed(tree: Path) -> None:
    """A hidden leftover would make rmdir fail, and BanyanDB panic."""
    directory = tree / "part"
    directory.mkdir()
    with (directory / "file").open("w+b", buffering=0) as file:
        file.write(b"still here")
        (directory / "file").unlink()
        assert names(directory) == []
        directory.rmdir()
        assert os.pread(file.fileno(), 20, 0) == b"still here"


@quotes("two names of one inode: nothing happens")
def test_renaming_one_name_of_a_file_to_its_other_name_keeps_both(tree: Path) -> None:
    """rename(2) says so; a file must not lose its last name that way."""
    (tree / "a").write_bytes(b"one")
    os.link(tree / "a", tree / "b")
    (tree / "a").rename(tree / "b")
    assert names(tree) == ["a", "b"]
    assert (tree / "a").stat().st_nlink == 2


@quotes("EINVAL (`RENAME_WHITEOUT`)")
def test_a_whiteout_is_refused(tree: Path) -> None:
    """Overlay file systems ask for it; half of it would be worse than none."""
    (tree / "a").write_bytes(b"one")
    old, new = os.fsencode(tree / "a"), os.fsencode(tree / "b")
    assert _libc.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, _RENAME_WHITEOUT) == -1
    assert ctypes.get_errno() == errno.EINVAL
    assert names(tree) == ["a"]


@quotes("the inode number is stable and never used again")
def test_an_inode_number_is_not_used_again(tree: Path) -> None:
    """Who remembers files by their number must not find another one there."""
    seen = set()
    for _ in range(20):
        (tree / "file").write_bytes(b"x")
        seen.add((tree / "file").stat().st_ino)
        (tree / "file").unlink()
    assert len(seen) == 20


# --- bytes -------------------------------------------------------------------------------


@quotes("bytes cut off never come back")
def test_bytes_that_were_cut_off_do_not_come_back(volume: Volume, make_mount: MakeMount) -> None:
    """Neither at once, nor after a commit, a death, or the loss of the machine."""
    mount = make_mount(volume).start()
    path = mount.path / "file"
    path.write_bytes(b"x" * 100_000)
    os.truncate(path, 50_000)
    os.truncate(path, 100_000)
    with path.open("r+b") as file:
        file.seek(60_000)
        file.write(b"y" * 1000)
    expected = b"x" * 50_000 + bytes(10_000) + b"y" * 1000 + bytes(39_000)
    assert path.read_bytes() == expected
    mount.sync()
    mount.kill()
    mount.start()
    assert path.read_bytes() == expected
    mount.kill()
    mount.wipe_cache()
    mount.start("--takeover")
    assert path.read_bytes() == expected
    mount.umount()


@quotes("copy the bytes, through the daemon")
def test_copy_file_range_copies(tree: Path) -> None:
    """Go's io.Copy uses it; BanyanDB's backup is made of such copies."""
    data = os.urandom(300_000)
    (tree / "source").write_bytes(data)
    with (tree / "source").open("rb") as source, (tree / "target").open("wb") as target:
        left = len(data)
        while left:
            left -= os.copy_file_range(source.fileno(), target.fileno(), left)
    assert (tree / "target").read_bytes() == data


@quotes("EOPNOTSUPP. glibc's `posix_fallocate` then writes the range itself")
def test_fallocate_is_refused_and_its_replacement_works(tree: Path) -> None:
    """Databases that reserve room go on with the library's replacement."""
    with (tree / "file").open("w+b", buffering=0) as file:
        file.write(b"kept")
        length = ctypes.c_long(100_000)
        assert _libc.fallocate(file.fileno(), 0, ctypes.c_long(0), length) == -1
        assert ctypes.get_errno() == errno.EOPNOTSUPP
        os.posix_fallocate(file.fileno(), 0, 10_000)
    assert (tree / "file").read_bytes() == b"kept" + bytes(9996)


@quotes("the kernel's answer for a file without holes")
def test_holes_are_not_told(tree: Path) -> None:
    """A copy by SEEK_DATA must not leave bytes out."""
    with (tree / "file").open("w+b", buffering=0) as file:
        os.ftruncate(file.fileno(), 1 << 20)
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 0
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 1 << 20


# --- durability --------------------------------------------------------------------------


@quotes("It makes durable the file, its name, all parent directories, and every earlier call")
def test_an_fsync_of_one_file_keeps_what_came_before_on_others(
    volume: Volume, make_mount: MakeMount
) -> None:
    """BanyanDB never syncs the file without which it removes a whole segment."""
    mount = make_mount(volume).start("--durability", "remote")
    segment = mount.path / "group" / "seg-20261124"
    segment.mkdir(parents=True)
    (segment / "metadata").write_bytes(b'{"version":"1.5.0"}')
    (mount.path / "other").mkdir()
    with (mount.path / "other" / "file").open("wb", buffering=0) as file:
        file.write(b"synced")
        os.fsync(file.fileno())
    mount.kill()
    mount.wipe_cache()
    mount.start("--takeover")
    assert (segment / "metadata").read_bytes() == b'{"version":"1.5.0"}'
    assert (mount.path / "other" / "file").read_bytes() == b"synced"
    mount.umount()


@quotes("a stored byte becomes a write when the kernel writes it back, `msync` at the latest")
def test_msync_of_a_mapping_is_the_barrier(volume: Volume, make_mount: MakeMount) -> None:
    """bbolt and its like write through mappings, and rely on msync alone."""
    mount = make_mount(volume).start("--durability", "remote")
    path = mount.path / "file"
    path.write_bytes(bytes(8192))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 8192) as mapping:
        mapping[5000:5006] = b"mapped"
        mapping.flush()
        mount.kill()
    mount.wipe_cache()
    mount.start("--takeover")
    assert path.read_bytes()[5000:5006] == b"mapped"
    mount.umount()


@quotes("`O_DSYNC` and `O_SYNC` sync each write")
@pytest.mark.parametrize("flag", [os.O_DSYNC, os.O_SYNC])
def test_a_synchronous_write_is_followed_by_the_barrier(
    flag: int, tree: Path, shared: Mount
) -> None:
    """Who opens a file that way never calls fsync."""
    before = fsyncs(shared)
    descriptor = os.open(tree / "file", os.O_WRONLY | os.O_CREAT | flag, 0o600)
    try:
        for _ in range(3):
            os.write(descriptor, b"x")
    finally:
        os.close(descriptor)
    assert fsyncs(shared) == before + 3


@quotes("`sync(2)` and `syncfs(2)` are answered by the kernel without the daemon")
def test_syncfs_does_not_reach_the_daemon(tree: Path, shared: Mount) -> None:
    """If a kernel ever sends it, the document has to promise more."""
    before = fsyncs(shared)
    with (tree / "file").open("wb", buffering=0) as file:
        file.write(b"x")
        assert _libc.syncfs(file.fileno()) == 0
        assert fsyncs(shared) == before
        os.fsync(file.fileno())
    assert fsyncs(shared) == before + 1


def fsyncs(mount: Mount) -> int:
    """Return how many fsyncs the kernel has asked for."""
    latency = mount.status()["latency"]
    assert isinstance(latency, dict)
    return int(latency.get("fuse_request fsync", {"count": 0})["count"])


# --- what is not there -------------------------------------------------------------------


@quotes("EOPNOTSUPP, since nobody would obey them")
@pytest.mark.parametrize("name", ["system.posix_acl_access", "system.posix_acl_default"])
def test_access_control_lists_are_refused(name: str, tree: Path) -> None:
    """A list that is kept and not obeyed lets in whom it was to keep out."""
    acl = bytes.fromhex("0200000001000700ffffffff04000500ffffffff20000500ffffffff")
    code = refused(lambda: os.setxattr(tree, name, acl))
    assert code == errno.EOPNOTSUPP
    assert os.listxattr(tree) == []


@quotes("a write clears them, root's writes too (ext4 keeps them for root)")
def test_a_write_clears_set_id_bits(tree: Path) -> None:
    """Too few privileges, never too many."""
    with (tree / "file").open("wb", buffering=0) as file:
        (tree / "file").chmod(0o6755)
        file.write(b"x")
    assert (tree / "file").stat().st_mode & 0o7777 == 0o755


@quotes("set by `utimensat` only, never by a read")
def test_a_read_leaves_the_access_time_alone(tree: Path) -> None:
    """A query must not be a change that a commit carries."""
    (tree / "file").write_bytes(b"x")
    os.utime(tree / "file", ns=(1, 1))
    assert (tree / "file").read_bytes() == b"x"
    assert (tree / "file").stat().st_atime_ns == 1


@quotes("| `O_TMPFILE` | EOPNOTSUPP |")
def test_a_file_without_a_name_is_refused(tree: Path) -> None:
    """Programs fall back to a file with a name."""
    assert refused(lambda: os.open(tree, os.O_TMPFILE | os.O_RDWR)) == errno.EOPNOTSUPP


@quotes("on a follower: an open file that the writer deleted")
def test_a_follower_loses_files_that_the_writer_deleted(
    volume: Volume, make_mount: MakeMount
) -> None:
    """It sees an error, and not the bytes of something else."""
    writer = make_mount(volume, "writer").start()
    (writer.path / "file").write_bytes(os.urandom(6 << 20))
    writer.sync()
    follower = make_mount(volume, "follower").start("--read-only")
    descriptor = os.open(follower.path / "file", os.O_RDONLY)
    try:
        assert len(os.pread(descriptor, 10, 0)) == 10
        (writer.path / "file").unlink()
        writer.sync()
        follower.wait_until(
            lambda: not (follower.path / "file").exists(), 20, "the deletion did not show"
        )
        assert refused(lambda: os.pread(descriptor, 10, 5 << 20)) == errno.ESTALE
    finally:
        os.close(descriptor)
    follower.umount()
    writer.umount()
