"""A full local disk: ENOSPC for what needs room, and nothing else is harmed."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.kernel.conftest import MakeMount, MakeVolume
from tests.kernel.mounts import Mount
from tests.kernel.proxy import Proxy

MIB = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A local disk of 96 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96m,mode=0700", "tmpfs", str(path)], check=True
    )
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_disk_filled_by_others_is_enospc_and_heals(
    make_s3_volume: MakeVolume, make_mount: MakeMount, small_disk: Path
) -> None:
    """ENOSPC for writes, while reading and unlinking go on; with room again, writing, too."""
    volume = make_s3_volume({"commit": {"interval": "1s"}})
    mount = make_mount(volume, cache_dir=small_disk / "cache").start()
    (mount.path / "kept").write_bytes(b"kept")
    (mount.path / "extra").write_bytes(b"extra")
    (mount.path / "large").touch()
    mount.sync()
    fill(small_disk / "filler")
    written = write_until_full(mount, 64)
    assert (mount.path / "kept").read_bytes() == b"kept"
    (mount.path / "extra").unlink()
    assert read_back(mount, written)
    (small_disk / "filler").unlink()
    mount.wait_until(lambda: can_write(mount), 30, "writing does not work again")
    mount.umount()
    subprocess.run(["rm", "-rf", str(mount.cache_dir)], check=True)
    mount.start()
    assert (mount.path / "kept").read_bytes() == b"kept"
    assert not (mount.path / "extra").exists()
    assert read_back(mount, written)
    mount.umount()
    volume.check()


def test_a_disk_filled_by_others_during_an_outage_harms_nothing(
    make_s3_volume: MakeVolume, make_mount: MakeMount, small_disk: Path, proxy: Proxy
) -> None:
    """The store is away and others take the disk: what was answered stays, the rest is ENOSPC."""
    volume = make_s3_volume({"commit": {"interval": "1s"}}, proxy.endpoint_url)
    mount = make_mount(volume, cache_dir=small_disk / "cache").start()
    mount.sync()
    proxy.set("refuse")
    (mount.path / "large").touch()
    fill(small_disk / "filler")
    written = write_until_full(mount, 128)
    mount.kill()
    (small_disk / "filler").unlink()
    mount.start()
    assert read_back(mount, written)
    proxy.set("pass")
    mount.wait_until(lambda: can_write(mount), 60, "writing does not work again")
    assert read_back(mount, written)
    mount.umount()
    volume.check()


def test_a_disk_full_of_our_own_backlog_is_waiting(
    make_s3_volume: MakeVolume, make_mount: MakeMount, small_disk: Path, proxy: Proxy
) -> None:
    """The store is away and the disk small: nobody gets an error, and all goes on afterwards."""
    volume = make_s3_volume({"commit": {"interval": "1s"}}, proxy.endpoint_url)
    mount = make_mount(volume, cache_dir=small_disk / "cache").start()
    mount.sync()
    proxy.set("refuse")
    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write_pieces, mount, 128)
        mount.wait_until(lambda: waits_for_room(mount, writer), 60, "nobody waits for room")
        assert read_back(mount, 16 * MIB)
        proxy.set("pass")
        written = writer.result()
    assert written == 128 * MIB
    assert read_back(mount, written)
    mount.umount()
    volume.check()


def write_pieces(mount: Mount, mib: int) -> int:
    """Write so much; any error is the caller's."""
    with (mount.path / "large").open("ab", buffering=0) as file:
        return sum(file.write(bytes([piece % 251]) * MIB) for piece in range(mib))


def waits_for_room(mount: Mount, writer: Future[int]) -> bool:
    """Tell whether a write waits and the disk is full; what has ended waits no more."""
    if writer.done():
        pytest.fail(f"the writer has ended: {writer.result()} bytes")
    return bool(mount.number("journal", "disk_full") and mount.status()["waiting_writers"])


def fill(path: Path) -> None:
    """Take all room of the local disk."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(MIB))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def write_until_full(mount: Mount, mib_max: int) -> int:
    """Write until ENOSPC; returns how many bytes were taken. Other errors fail the test."""
    with (mount.path / "large").open("ab", buffering=0) as file:
        taken = 0
        try:
            while taken < mib_max * MIB:
                taken += file.write(bytes([taken // MIB % 251]) * MIB)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return taken
    pytest.fail(f"{mib_max} MiB were taken by a disk without room")


def read_back(mount: Mount, length: int) -> bool:
    """Compare what was taken. The file may be longer: a write that failed in its middle."""
    with (mount.path / "large").open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        data = file.read(length)
    return len(data) == length and all(
        data[start] == start // MIB % 251 and data[start + 4095] == data[start]
        for start in range(0, length - 4096, MIB)
    )


def can_write(mount: Mount) -> bool:
    """Try to write a small file."""
    try:
        (mount.path / "small").write_bytes(b"small")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    return True


def test_a_killed_daemon_starts_again_with_two_mebibytes(
    make_s3_volume: MakeVolume, make_mount: MakeMount, small_disk: Path
) -> None:
    """The ballast is room for the first segment, and what was answered is there."""
    volume = make_s3_volume({"commit": {"interval": "1h"}})
    mount = make_mount(volume, cache_dir=small_disk / "cache").start()
    (mount.path / "kept").write_bytes(b"kept")
    mount.kill()
    fill(small_disk / "filler")
    os.truncate(small_disk / "filler", (small_disk / "filler").stat().st_size - 2 * MIB)
    assert (mount.cache_dir / "ballast").exists()
    mount.start()
    assert (mount.path / "kept").read_bytes() == b"kept"
    (small_disk / "filler").unlink()
    mount.umount()
    volume.check()
