"""The floor is a correct file system: a yardstick that loses bytes would measure nothing."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchlib.floor_data import DataFile, Extents
from benchlib.mounts import mount_device, unmount
from hypothesis import given
from hypothesis import strategies as st

FLOORFS = Path(__file__).resolve().parents[2] / "scripts" / "floorfs"

STEP = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 300), st.binary(min_size=1, max_size=120)),
    st.tuples(st.just("truncate"), st.integers(0, 400), st.just(b"")),
)


@given(steps=st.lists(STEP, max_size=25))
def test_extents_read_back_what_a_byte_array_holds(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, bytes]]
) -> None:
    """Overwrites, holes and truncations in any order would otherwise show old bytes."""
    data_file = DataFile(tmp_path_factory.mktemp("floor") / "data")
    extents, model = Extents(), bytearray()
    try:
        for kind, offset, data in steps:
            if kind == "write":
                extents.write(data_file, offset, data)
                model.extend(bytes(max(0, offset + len(data) - len(model))))
                model[offset : offset + len(data)] = data
            else:
                extents.truncate(offset)
                del model[offset:]
                model.extend(bytes(offset - len(model)))
            for begin in range(0, len(model), 37):
                size = min(64, len(model) - begin)
                assert extents.read(data_file, begin, size) == model[begin : begin + size]
    finally:
        data_file.close()


@pytest.fixture
def floor(tmp_path: Path) -> Iterator[Path]:
    """Yield a mounted floor; at the end it must leave no mount and exit with 0."""
    mount_point = tmp_path / "mnt"
    mount_point.mkdir()
    process = subprocess.Popen([sys.executable, FLOORFS, mount_point, tmp_path / "data"])
    try:
        while mount_device(mount_point) is None:
            assert process.poll() is None, "floorfs ended before it was mounted"
            time.sleep(0.02)
        yield mount_point
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        assert mount_device(mount_point) is None
    finally:
        unmount(mount_point)
        process.kill()
        process.wait()


def test_floor_keeps_names_data_and_links(floor: Path) -> None:
    """What the loads rely on: create, rename over, links, unlink while open, listing."""
    first, second = floor / "first", floor / "second"
    first.write_bytes(b"one")
    second.write_bytes(b"two")
    with second.open("rb") as replaced:
        first.rename(second)
        assert second.read_bytes() == b"one"
        assert replaced.read() == b"two"
    assert not first.exists()

    os.link(second, floor / "hard")
    assert second.stat().st_nlink == 2
    assert second.stat().st_ino == (floor / "hard").stat().st_ino
    second.unlink()
    assert (floor / "hard").read_bytes() == b"one"
    (floor / "soft").symlink_to("hard")
    assert (floor / "soft").read_bytes() == b"one"

    directory = floor / "directory"
    directory.mkdir(mode=0o700)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    names = {f"n{index:04}" for index in range(700)}
    for name in names:
        (directory / name).touch()
    assert set(os.listdir(directory)) == names  # noqa: PTH208
    with pytest.raises(OSError, match="not empty"):
        directory.rmdir()
    for name in names:
        (directory / name).unlink()
    directory.rmdir()
    assert sorted(os.listdir(floor)) == ["hard", "soft"]  # noqa: PTH208


def test_floor_keeps_sizes_modes_and_times(floor: Path) -> None:
    """Truncation must not bring old bytes back, O_TRUNC comes inside open."""
    path = floor / "file"
    path.write_bytes(b"x" * 100_000)
    os.truncate(path, 50_000)
    os.truncate(path, 60_000)
    assert path.read_bytes() == b"x" * 50_000 + bytes(10_000)
    path.write_bytes(b"short")
    assert path.stat().st_size == 5
    path.chmod(0o640)
    os.utime(path, ns=(1_000_000_001, 2_000_000_002))
    seen = path.stat()
    assert stat.S_IMODE(seen.st_mode) == 0o640
    assert seen.st_mtime_ns == 2_000_000_002
    assert os.statvfs(floor).f_namemax == 255


def test_floor_reads_back_from_disk_what_was_dropped_from_the_page_cache(floor: Path) -> None:
    """A cold read must come from the daemon and be right, in pieces of any size."""
    path = floor / "file"
    data = os.urandom(3_000_001)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.write(descriptor, data)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        assert path.read_bytes() == data
        os.pwrite(descriptor, b"patched", 1_000_000)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        assert (
            os.pread(descriptor, 9, 999_999)
            == data[999_999:1_000_000] + b"patched" + (data[1_000_007:1_000_008])
        )
    finally:
        os.close(descriptor)
