"""The local directory of a mount: who may not use what is there is told what, and what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from s3fs_banyan.commit.local import (
    Identity,
    LocalDirectory,
    load_identity,
    load_local_volume,
    must_be_usable,
    store_identity,
    store_local_volume,
)
from s3fs_banyan.errors import ExitCode, Refused
from tests.unit.engine_kit import VOLUME

IDENTITY = Identity(volume_id=VOLUME.volume_id, writer="ab" * 16, directory_ino=7)
KEPT = [
    "committed.db", "committed.db-wal", "committed.db-shm", "base.db", "base.db-wal", "live.db",
    "journal/segment-1", "base/000000000001",
]  # fmt: skip
FOR_READING = ["identity.json", "volume.json"]


@pytest.fixture
def local(tmp_path: Path) -> LocalDirectory:
    """A directory as an earlier life has left it."""
    made = LocalDirectory(root=tmp_path / "cache")
    made.make()
    store_identity(made, IDENTITY)
    store_local_volume(made, VOLUME, "s3://bucket/volume")
    for name in KEPT:
        path = made.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    return made


@pytest.fixture
def forbid(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Make the kernel refuse one file, as it does with those of another user: root may all."""
    real_open, real_read = os.open, Path.read_bytes
    forbidden: set[str] = set()

    def check(path: object) -> None:
        if str(path) in forbidden:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    def opened(path: Any, *rest: Any, **options: Any) -> int:  # noqa: ANN401
        check(path)
        return real_open(path, *rest, **options)

    def read_bytes(path: Path) -> bytes:
        check(path)
        return real_read(path)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    return lambda path: forbidden.add(str(path))


def _refused(local: LocalDirectory, use: Callable[[], object], name: str) -> None:
    with pytest.raises(Refused) as caught, must_be_usable(local.root):
        use()
    assert caught.value.exit_code == ExitCode.LOCAL
    assert f"{local.root / name}: Permission denied" in str(caught.value)
    assert "mount as the user whose it is" in str(caught.value)
    assert "--cache-dir" not in str(caught.value)


def test_a_directory_of_our_own_is_used(local: LocalDirectory) -> None:
    """Looking changes nothing."""
    local.check_access()
    assert load_identity(local) == IDENTITY
    assert [(local.root / name).read_bytes() for name in KEPT] == [b"x"] * len(KEPT)
    LocalDirectory(root=local.root / "aside").check_access()


@pytest.mark.parametrize("name", KEPT)
def test_a_database_or_journal_of_another_user_is_named(
    local: LocalDirectory, forbid: Callable[[Path], None], name: str
) -> None:
    """SQLite says "unable to open database file", or opens it for reading and fails later.

    Another --cache-dir would be bad advice: changes that the store does not have are here.
    """
    forbid(local.root / name)
    _refused(local, local.check_access, name)


@pytest.mark.parametrize("name", FOR_READING)
def test_a_small_file_of_another_user_is_named(
    local: LocalDirectory, forbid: Callable[[Path], None], name: str
) -> None:
    """They are read first of all."""
    forbid(local.root / name)
    load = load_identity if name == "identity.json" else load_local_volume
    _refused(local, lambda: load(local), name)


def test_a_place_where_nothing_was_is_to_be_another_one(tmp_path: Path) -> None:
    """Nobody has changes in a directory that cannot be made."""
    new = tmp_path / "new"
    with pytest.raises(Refused, match="give a --cache-dir"), must_be_usable(new):
        raise PermissionError(errno.EACCES, "Permission denied", str(new))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_nobody_is_sent_away_from_changes_on_a_disk_that_is_full(
    local: LocalDirectory, code: int
) -> None:
    """Another --cache-dir, with --takeover, would leave behind what was answered."""
    assert (local.root / "identity.json").exists()
    there = "changes that are not yet in the store may be there"
    with pytest.raises(Refused, match=there) as said, must_be_usable(local.root):
        raise OSError(code, os.strerror(code), str(local.root / "journal"))
    assert "--cache-dir" not in str(said.value)
