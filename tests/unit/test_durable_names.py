"""What is synced in a directory is lost with it if the directory's own name was not synced."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3fs_banyan.commit.local import LocalDirectory
from s3fs_banyan.journal.disk import RealDisk


class Watched(RealDisk):
    """A real disk that notes which directories are synced."""

    def __init__(self) -> None:
        super().__init__()
        self.synced: list[Path] = []

    def sync_directory(self, path: Path) -> None:
        super().sync_directory(path)
        self.synced.append(path)


def test_a_directory_that_is_made_is_named_durably(tmp_path: Path) -> None:
    disk = Watched()
    disk.make_directory(tmp_path / "a" / "b")
    assert sorted(disk.synced) == [tmp_path, tmp_path / "a"]
    disk.make_directory(tmp_path / "a" / "b")
    assert len(disk.synced) == 2


def test_what_an_earlier_life_made_is_named_durably(tmp_path: Path) -> None:
    """It may have died between making its directories and syncing their names."""
    disk = Watched()
    local = LocalDirectory(root=tmp_path / "cache" / "volume")
    local.make()
    local.sync_names(disk)
    assert disk.synced[:3] == [local.root, tmp_path / "cache", tmp_path]
    device = tmp_path.stat().st_dev
    assert all(directory.stat().st_dev == device for directory in disk.synced)


def test_a_directory_that_may_not_be_read_ends_the_way_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Watched()
    local = LocalDirectory(root=tmp_path / "closed" / "volume")
    local.make()

    def refuse(path: Path) -> None:
        if path.name == "closed":
            raise PermissionError(path)
        disk.synced.append(path)

    monkeypatch.setattr(disk, "sync_directory", refuse)
    local.sync_names(disk)
    assert disk.synced == [local.root]
