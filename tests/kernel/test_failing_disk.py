"""A journal whose disk refuses to sync: nobody is told of a sync that was none, nothing is lost."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.conftest import MakeMount
from tests.kernel.failing_disk import ALWAYS, FailingDisk
from tests.kernel.mounts import Mount, Volume, file_volume

RECORDS = 40
STUCK_FOR_S = 3.0


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    """A volume whose journal waits long for its commit."""
    return file_volume(tmp_path, {"commit": {"interval": "1h"}})


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FailingDisk]:
    """A disk for the journal alone."""
    with FailingDisk(tmp_path / "disk", tmp_path / "mount.cache" / "journal") as disk:
        yield disk


def append_synced(mount: Mount, first: int = 0) -> None:
    """Append records to a file, each synced before the next."""
    with (mount.path / "log").open("ab", buffering=0) as file:
        for number in range(first, first + RECORDS):
            file.write(b"%04d" % number * 1024)
            os.fsync(file.fileno())


def expect_records(mount: Mount, count: int) -> None:
    """Every record is there, and no other byte."""
    wanted = b"".join(b"%04d" % number * 1024 for number in range(count))
    assert (mount.path / "log").read_bytes() == wanted


def failures(mount: Mount) -> int:
    """Return how often the journal wrote that a sync was refused."""
    return mount.log_text().count("the disk refused to sync")


@pytest.mark.parametrize("call", ["sync", "write"])
def test_what_one_segment_refuses_goes_to_another(
    volume: Volume, make_mount: MakeMount, disk: FailingDisk, call: str
) -> None:
    """The caller sees nothing of it, and kill -9 takes nothing."""
    mount = make_mount(volume).start()
    append_synced(mount)
    disk.fail(**{call: 1})
    append_synced(mount, RECORDS)
    assert failures(mount) == 1
    mount.kill()
    mount.start()
    expect_records(mount, 2 * RECORDS)
    append_synced(mount, 2 * RECORDS)
    mount.umount()
    volume.check()


def test_who_syncs_waits_while_nothing_can_be_synced(
    volume: Volume, make_mount: MakeMount, disk: FailingDisk
) -> None:
    """No answer before the disk has taken it, no error either; it goes on when the disk does."""
    mount = make_mount(volume).start()
    append_synced(mount)
    disk.fail(sync=ALWAYS, create=ALWAYS)
    waiting = threading.Thread(target=append_synced, args=(mount, RECORDS), daemon=True)
    waiting.start()
    waiting.join(STUCK_FOR_S)
    assert waiting.is_alive()
    assert (mount.path / "log").stat().st_size >= RECORDS * 4096
    disk.fail()
    waiting.join(30)
    assert not waiting.is_alive(), mount.error("the sync never came back")
    mount.kill()
    mount.start()
    expect_records(mount, 2 * RECORDS)
    mount.umount()
    volume.check()


@pytest.mark.parametrize("calls", [{"sync": 3}, {"sync": 2, "write": 1, "create": 2}])
def test_umount_saves_what_a_dying_disk_holds(
    volume: Volume, make_mount: MakeMount, disk: FailingDisk, calls: dict[str, int]
) -> None:
    """As docs/operations.md says: unmount, replace the disk, mount with an empty directory."""
    mount = make_mount(volume).start()
    append_synced(mount)
    disk.fail(**calls)
    with (mount.path / "log").open("ab", buffering=0) as file:
        for number in range(RECORDS, 2 * RECORDS):
            file.write(b"%04d" % number * 1024)
    mount.umount()
    assert failures(mount) >= 2
    other = make_mount(volume, "other").start()
    expect_records(other, 2 * RECORDS)
    other.umount()
    volume.check()
