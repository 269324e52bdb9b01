"""The simulated disk forgets what it should: a disk that keeps everything would prove nothing."""

from __future__ import annotations

from pathlib import Path
from random import Random

import apsw
import pytest

from s3fs_banyan.meta.database import open_database, run_script
from tests.sim.disk import SECTOR, SimDisk, SimDiskHandle
from tests.sim.sqlite import SimVFS

_ROOT = Path("/machine")


def _handle(disk: SimDisk, *, sync_fails: bool = False) -> SimDiskHandle:
    return SimDiskHandle(
        disk, vfs="", alive=lambda: None, sync_fails=lambda: sync_fails, sync_takes=lambda: None
    )


def _written(disk: SimDisk, *, synced: bool, sync_fails: bool = False) -> bytes:
    """Return what a power cut leaves of 64 sectors."""
    handle = _handle(disk, sync_fails=sync_fails)
    file = handle.open(_ROOT / "journal" / "file", create=True)
    file.pwritev((bytes(64 * SECTOR),), 0)
    _handle(disk).open(_ROOT / "journal" / "file").datasync()
    handle.sync_directory(_ROOT / "journal")
    file.pwritev((b"x" * 64 * SECTOR,), 0)
    if synced:
        file.datasync()
    disk.power_cut(Random(3))
    return handle.open(_ROOT / "journal" / "file").pread(64 * SECTOR, 0)


def test_synced_sectors_survive_a_power_cut() -> None:
    """Or every world would fail for no reason."""
    assert _written(SimDisk(_ROOT, on_event=lambda _: None), synced=True) == b"x" * 64 * SECTOR


def test_unsynced_sectors_are_kept_or_lost_one_by_one() -> None:
    """A disk that loses all or nothing would hide a missing sync or a broken chain."""
    found = _written(SimDisk(_ROOT, on_event=lambda _: None), synced=False)
    sectors = {found[at : at + SECTOR] for at in range(0, len(found), SECTOR)}
    assert bytes(SECTOR) in sectors
    assert b"x" * SECTOR in sectors


def test_a_failed_sync_drops_pages_that_a_later_sync_does_not_bring_back() -> None:
    """The kernel calls them clean: whoever syncs again and trusts it loses data."""
    disk = SimDisk(_ROOT, on_event=lambda _: None)
    with pytest.raises(OSError, match="refuses"):
        _written(disk, synced=True, sync_fails=True)
    handle = _handle(disk)
    handle.open(_ROOT / "journal" / "file").datasync()
    disk.power_cut(Random(3))
    assert b"x" * SECTOR not in handle.open(_ROOT / "journal" / "file").pread(64 * SECTOR, 0)


def test_a_name_without_a_synced_directory_may_be_lost() -> None:
    """Or a segment whose directory was never synced would always be found again."""
    lost = 0
    for seed in range(20):
        disk = SimDisk(_ROOT, on_event=lambda _: None)
        handle = _handle(disk)
        handle.open(_ROOT / "journal" / "file", create=True).datasync()
        disk.power_cut(Random(seed))
        lost += not handle.exists(_ROOT / "journal" / "file")
    assert 0 < lost < 20


@pytest.mark.parametrize("seed", range(10))
def test_sqlite_on_it_keeps_committed_transactions_whole(seed: int) -> None:
    """committed.db rests on this VFS: one that broke SQLite's promises would blame the engine."""
    disk = SimDisk(_ROOT, on_event=lambda _: None)
    vfs = SimVFS(disk)
    path = _ROOT / "committed.db"
    database = open_database(path, vfs=vfs.vfs_name, durable=True)
    run_script(database, "CREATE TABLE t (a, b); BEGIN; INSERT INTO t VALUES (1, 2); COMMIT")
    run_script(database, "BEGIN; UPDATE t SET b = randomblob(20000)")
    disk.power_cut(Random(seed))
    again = open_database(path, vfs=vfs.vfs_name, durable=True)
    assert again.execute("SELECT * FROM t").fetchall() == [(1, 2)]
    assert again.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    again.close()
    database.close(force=True)
    assert apsw.vfs_names()
