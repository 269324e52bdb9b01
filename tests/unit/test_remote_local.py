"""The directory store: where files go, what is synced, and what the file system may say."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from s3fs_banyan.errors import (
    AlreadyExists,
    Denied,
    Misconfigured,
    ObjectMissing,
    StoreError,
    Unavailable,
)
from s3fs_banyan.remote.local import TEMPORARY_NAME, LocalStore


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The directory of the store."""
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> LocalStore:
    """An empty store in a new directory."""
    return LocalStore(root, create=True)


def test_object_is_a_file_that_a_person_can_find(store: LocalStore, root: Path) -> None:
    store.write("volume.json", b"{}")
    store.write("pack/7/12-0123", b"0123")
    assert (root / "volume.json").read_bytes() == b"{}"
    assert (root / "pack+" / "7+" / "12-0123").read_bytes() == b"0123"


def test_nothing_is_left_in_the_private_directory(store: LocalStore, root: Path) -> None:
    store.write("x", b"0123")
    store.write("x", b"4567", if_absent=False)
    with pytest.raises(StoreError):
        store.write("x", b"", if_absent=True)
    assert list((root / TEMPORARY_NAME).iterdir()) == []


def test_what_a_dead_writer_left_is_removed_after_a_day(store: LocalStore, root: Path) -> None:
    store.write("x", b"")
    old, young = root / TEMPORARY_NAME / "old", root / TEMPORARY_NAME / "young"
    old.write_bytes(b"")
    young.write_bytes(b"")
    day_ago = young.stat().st_mtime - 25 * 3600
    os.utime(old, (day_ago, day_ago))
    LocalStore(root).write("x", b"")
    assert list((root / TEMPORARY_NAME).iterdir()) == [young]


def test_files_that_are_not_ours_are_not_objects(store: LocalStore, root: Path) -> None:
    store.write("d/x", b"")
    (root / "no path").write_bytes(b"")
    (root / "directory").mkdir()
    (root / "directory" / "x").write_bytes(b"")
    (root / "link").symlink_to("/etc/hostname")
    (root / "linked+").symlink_to("/etc")
    os.mkfifo(root / "fifo")
    assert [meta.path for meta in store.list()] == ["d/x"]
    with pytest.raises(Misconfigured, match="symbolic link"):
        store.read("link")


def test_write_is_synced_before_it_is_seen_and_its_name_after(
    store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The durable order: bytes, then the name, then the directory that holds the name."""
    events: list[str] = []
    fsync, link, replace = os.fsync, os.link, Path.replace

    def noting_fsync(fd: int) -> None:
        name = Path(f"/proc/self/fd/{fd}").readlink()
        events.append("sync bytes" if TEMPORARY_NAME in name.parts else f"sync {name.name}")
        fsync(fd)

    def noting_link(source: Path, target: Path) -> None:
        events.append("link")
        link(source, target)

    def noting_replace(source: Path, target: Path) -> Path:
        events.append("rename")
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "link", noting_link)
    monkeypatch.setattr(Path, "replace", noting_replace)
    store.write("log/1", b"0123", if_absent=True)
    private, directory = "sync store", "sync store"
    assert events == [private, directory, "sync bytes", "link", "sync log+"]
    events.clear()
    store.write("log/1", b"4567")
    assert events == ["sync bytes", "rename", "sync log+"]
    events.clear()
    store.delete(["log/1", "log/2"])
    assert events == ["sync log+"]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.EACCES, Denied),
        (errno.EROFS, Misconfigured),
        (errno.ENOSPC, Unavailable),
        (errno.EDQUOT, Unavailable),
        (errno.EIO, Unavailable),
        (errno.ESTALE, Unavailable),
    ],
)
def test_error_of_the_file_system_becomes_one_of_ours(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, code: int, expected: type[StoreError]
) -> None:
    def failing(fd: int) -> None:
        raise OSError(code, os.strerror(code))

    store.write("kept", b"0123")
    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(expected, match=os.strerror(code)):
        store.write("x", b"")
    monkeypatch.undo()
    assert [meta.path for meta in store.list()] == ["kept"]


def test_file_system_without_hard_links_cannot_create_if_absent(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(os, "link", failing)
    with pytest.raises(Misconfigured, match="hard links"):
        store.write("x", b"", if_absent=True)
    assert list(store.list()) == []


def test_link_whose_answer_nfs_lost_is_no_conflict(
    store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client asks again and is told of its own link (link(2)): the writer must not lose."""
    link = os.link

    def lost(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    monkeypatch.setattr(os, "link", lost)
    assert store.write("log/1", b"mine", if_absent=True).size == 4
    assert store.read("log/1") == b"mine"
    assert list((root / TEMPORARY_NAME).iterdir()) == []
    with pytest.raises(AlreadyExists):
        store.write("log/1", b"another's", if_absent=True)


def _refuses_everything(store: LocalStore) -> None:
    with pytest.raises(Unavailable, match=r"is its file system mounted|another one"):
        list(store.list())
    for call in (store.read, store.stat):
        with pytest.raises(Unavailable):
            call("x")
    with pytest.raises(Unavailable):
        store.write("x", b"")
    with pytest.raises(Unavailable):
        store.delete(["x"])


def test_directory_that_went_away_is_an_outage(store: LocalStore, root: Path) -> None:
    """An unmounted disk must not read as a volume without objects, nor get a part of one."""
    store.write("x", b"0123")
    away = root.rename(root.with_name("elsewhere"))
    _refuses_everything(store)
    assert not root.exists()
    root.mkdir()
    _refuses_everything(store)
    (root / "x").write_bytes(b"another")
    _refuses_everything(store)
    assert [path.name for path in root.iterdir()] == ["x"]
    (root / "x").unlink()
    root.rmdir()
    away.rename(root)
    assert store.read("x") == b"0123"


def test_known_store_is_waited_for_and_nothing_is_written_meanwhile(root: Path) -> None:
    """A daemon that starts before its disk is mounted heals when it is."""
    known = LocalStore(root, is_known=True)
    _refuses_everything(known)
    root.mkdir()
    (root / "lost+found").mkdir()
    _refuses_everything(known)
    assert [path.name for path in root.iterdir()] == ["lost+found"]
    LocalStore(root).write("x", b"0123")
    assert known.read("x") == b"0123"


def test_opening_a_store_leaves_nothing_behind(root: Path) -> None:
    """`mkfs` on somebody's directory by mistake must not change it."""
    root.mkdir()
    LocalStore(root, create=True)
    LocalStore(root)
    assert list(root.iterdir()) == []


def test_file_in_the_place_of_the_directory_is_said(root: Path) -> None:
    root.touch()
    for create in (False, True):
        with pytest.raises(Misconfigured, match="is no directory"):
            LocalStore(root, create=create)
    with pytest.raises(Misconfigured, match="no such directory"):
        LocalStore(root.with_name("none"))


def test_directory_that_a_probe_took_away_is_made_again(root: Path) -> None:
    """It may have been another process's just now."""
    probing = LocalStore(root, create=True)
    probing.write("probe/1/x", b"")
    other = LocalStore(root)
    other.write("probe/2", b"")
    probing.delete(["probe/1/x"])
    other.delete(["probe/2"])
    probing.remove_made_directories()
    assert list(root.iterdir()) == []
    other.write("probe/3", b"0123", if_absent=True)
    assert other.read("probe/3") == b"0123"
    probing.write("y", b"")
    probing.remove_made_directories()
    assert {path.name for path in root.iterdir()} == {"probe+", TEMPORARY_NAME, "y"}


def test_store_class_that_a_directory_does_not_have_is_refused(store: LocalStore) -> None:
    with pytest.raises(Misconfigured, match="storage class"):
        store.write("x", b"", storage_class="GLACIER")
    with pytest.raises(ObjectMissing):
        store.stat("x")
