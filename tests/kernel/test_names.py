"""Names and directories on a real mount: limits, odd bytes, depth, size, removal while in use."""
# The system calls themselves, on names of bytes, are the point here.
# ruff: noqa: PTH108, PTH208

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

MANY = 10_000


def test_names_may_be_any_255_bytes_but_no_more(tree: Path) -> None:
    """Storage code makes names from hashes and user input; none may be bent or refused."""
    for name in (b"n" * 255, b"\xff\xfe\x80", b"new\nline", b" ", b"-rf", "ü".encode(), b"..."):
        path = os.fsencode(tree) + b"/" + name
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        assert name in os.listdir(os.fsencode(tree))
        os.unlink(path)
    with pytest.raises(OSError, match="File name too long"):
        (tree / ("n" * 256)).touch()
    assert os.listdir(tree) == []


def test_deep_paths_work(tree: Path) -> None:
    """A path of 200 levels is found from its start, and the whole of it can be removed."""
    path = tree
    for level in range(200):
        path /= f"level{level}"
        path.mkdir()
    (path / "file").write_bytes(b"deep")
    assert (path / "file").read_bytes() == b"deep"
    (path / "file").unlink()
    while path != tree:
        path.rmdir()
        path = path.parent


def test_a_directory_of_many_names_is_read_whole_while_it_changes(tree: Path) -> None:
    """Names that are there all the time appear exactly once, whatever comes and goes meanwhile."""
    steady = {f"steady-{number:05}" for number in range(MANY)}
    for name in steady:
        os.close(os.open(tree / name, os.O_CREAT | os.O_WRONLY))
    ended = threading.Event()

    def churn() -> None:
        number = 0
        while not ended.is_set():
            path = tree / f"passing-{number % 50}"
            path.touch()
            path.rename(tree / f"moved-{number % 50}")
            if number % 3:
                (tree / f"moved-{number % 50}").unlink()
            number += 1

    other = threading.Thread(target=churn)
    other.start()
    try:
        for _ in range(3):
            found = [entry.name for entry in os.scandir(tree)]
            lasting = [name for name in found if name.startswith("steady-")]
            assert len(lasting) == MANY
            assert set(lasting) == steady
    finally:
        ended.set()
        other.join()
    for entry in list(os.scandir(tree)):
        os.unlink(entry.path)
    assert os.listdir(tree) == []


def test_a_directory_can_be_emptied_while_it_is_read(tree: Path) -> None:
    """`rm -r` reads and removes by turns: no name may be jumped over."""
    for number in range(1000):
        (tree / f"{number}").touch()
    for _ in range(2):
        for entry in os.scandir(tree):
            os.unlink(entry.path)
    assert os.listdir(tree) == []


def test_seekdir_positions_stay_valid(tree: Path) -> None:
    """A directory handle that goes back to its start sees what is there now."""
    (tree / "one").touch()
    fd = os.open(tree, os.O_RDONLY)
    try:
        assert os.listdir(fd) == ["one"]
        (tree / "two").touch()
        assert sorted(os.listdir(fd)) == ["one", "two"]
    finally:
        os.close(fd)


def test_a_directory_counts_its_subdirectories(tree: Path) -> None:
    """`find` trusts the link count of a directory; a wrong one hides whole subtrees."""
    assert tree.stat().st_nlink == 2
    for name in ("a", "b", "c"):
        (tree / name).mkdir()
    assert tree.stat().st_nlink == 5
    (tree / "a").rename(tree / "b" / "a")
    assert (tree.stat().st_nlink, (tree / "b").stat().st_nlink) == (4, 3)
    (tree / "c").rename(tree / "b" / "a")
    assert (tree.stat().st_nlink, (tree / "b").stat().st_nlink) == (3, 3)


def test_a_removed_directory_that_is_open_is_empty_and_takes_no_names(tree: Path) -> None:
    """A handle on a removed directory must not bring it back."""
    (tree / "gone").mkdir()
    fd = os.open(tree / "gone", os.O_RDONLY | os.O_DIRECTORY)
    try:
        (tree / "gone").rmdir()
        assert os.listdir(fd) == []
        assert os.fstat(fd).st_nlink == 0
        with pytest.raises(FileNotFoundError):
            os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    finally:
        os.close(fd)


def test_a_directory_cannot_be_moved_below_itself(tree: Path) -> None:
    """A loop in the tree would be unreachable for ever."""
    (tree / "a" / "b").mkdir(parents=True)
    with pytest.raises(OSError, match="Invalid argument") as caught:
        (tree / "a").rename(tree / "a" / "b" / "c")
    assert caught.value.errno == errno.EINVAL


def test_sticky_directories_protect_the_files_of_others(tree: Path) -> None:
    """In a directory like /tmp nobody removes what belongs to somebody else."""
    tree.chmod(0o1777)
    (tree / "of-root").touch()
    directory = os.open(tree, os.O_RDONLY)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgid(65534)
            os.setuid(65534)
            os.close(os.open("mine", os.O_CREAT | os.O_WRONLY, dir_fd=directory))
            os.unlink("mine", dir_fd=directory)
            try:
                os.unlink("of-root", dir_fd=directory)
            except PermissionError:
                code = 0
        finally:
            os._exit(code)
    os.close(directory)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (tree / "of-root").exists()


def test_devices_keep_their_numbers(tree: Path) -> None:
    """A backup of a root file system must come back with its devices; opening one is refused."""
    os.mknod(tree / "null", 0o20666, os.makedev(1, 3))
    status = os.lstat(tree / "null")
    assert (status.st_mode, status.st_rdev) == (0o20644, os.makedev(1, 3))
    with pytest.raises(PermissionError):
        (tree / "null").read_bytes()
