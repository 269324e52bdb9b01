"""Flipped bits: in a cached block, in an object of the store, in the journal. None is served."""

from __future__ import annotations

import os
import random
import urllib.request
from pathlib import Path

import pytest

from tests.kernel.conftest import MakeMount
from tests.kernel.mounts import Mount, MountError, Settings, Volume, file_volume
from tests.servers import free_port

CONTENT = random.Random(9).randbytes(3 << 20)


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    """A volume whose mounts keep no frames in RAM, commit on demand, and tell their metrics."""
    settings: Settings = {
        "commit": {"interval": "1h"},
        "cache": {"ram_size": "0"},
        "metrics": {"address": f"127.0.0.1:{free_port()}"},
    }
    return file_volume(tmp_path, settings)


def test_a_flipped_bit_in_the_block_cache_heals(volume: Volume, make_mount: MakeMount) -> None:
    """The block is dropped, counted, and fetched again; the reader sees nothing of it."""
    mount = mount_with_file(volume, make_mount)
    mount.umount()  # Until a commit is over, which is after `sync`, the journal is read instead.
    mount.start()
    blocks = [p for p in (mount.cache_dir / "blocks").rglob("*") if is_large(p)]
    assert blocks
    for path in blocks:
        flip(path, path.stat().st_size // 2)
    assert read_uncached(mount) == CONTENT
    assert damage_counted(mount) >= 1
    assert "damaged" in mount.log_text()
    mount.umount()
    volume.check()


def test_a_flipped_bit_in_an_object_is_an_error_and_names_the_object(
    volume: Volume, make_mount: MakeMount
) -> None:
    """Wrong bytes are never served; EIO, the object's name in the log, a metric, and `check`."""
    mount = mount_with_file(volume, make_mount)
    mount.umount()
    mount.wipe_cache()
    store = Path(volume.url.removeprefix("file://"))
    victim = max((p for p in store.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    flip(victim, 300_000)
    mount.start()
    with pytest.raises(OSError, match="Input/output error"):
        read_uncached(mount)
    assert victim.name in mount.log_text()
    assert damage_counted(mount) >= 1
    (mount.path / "other").write_bytes(b"the rest of the volume works")
    assert (mount.path / "other").read_bytes() == b"the rest of the volume works"
    mount.umount()
    with pytest.raises(MountError, match=victim.name):
        volume.check()
    flip(victim, 300_000)
    volume.check()


def test_a_flipped_bit_in_young_data_is_never_served_nor_uploaded(
    volume: Volume, make_mount: MakeMount
) -> None:
    """A journal record is verified before its bytes are read, or get a fresh checksum."""
    mount = make_mount(volume).start()
    write_file(mount, sync=False)
    flip_in_journal(mount, CONTENT[1_500_000:1_500_064])
    with pytest.raises(OSError, match="Input/output error"):
        read_uncached(mount)
    assert damage_counted(mount) >= 1
    assert "journal" in mount.log_text()


def test_a_mount_refuses_a_rotten_journal_and_keeps_it(
    volume: Volume, make_mount: MakeMount
) -> None:
    """Rot in the middle must not pass for the end of a power cut; --accept-loss is a decision."""
    mount = make_mount(volume).start()
    write_file(mount, sync=False)
    fd = os.open(mount.path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    (mount.path / "later").write_bytes(b"its record says what was synced before")
    mount.kill()
    flip_in_journal(mount, CONTENT[1_500_000:1_500_064])
    (mount.cache_dir / "live.db").unlink()
    for _ in range(2):
        mount.start(ready=False)
        assert mount.wait_end() != 0
        assert "--accept-loss" in mount.log_text()
    mount.start("--accept-loss")
    assert not (mount.path / "later").exists()
    mount.umount()
    volume.check()


# --- tools -------------------------------------------------------------------------------


def mount_with_file(volume: Volume, make_mount: MakeMount) -> Mount:
    """Mount, write a file, bring it into the store."""
    mount = make_mount(volume).start()
    write_file(mount, sync=True)
    return mount


def write_file(mount: Mount, *, sync: bool) -> None:
    """Write the file."""
    (mount.path / "file").write_bytes(CONTENT)
    if sync:
        mount.sync()


def read_uncached(mount: Mount) -> bytes:
    """Read the file without the kernel's pages."""
    fd = os.open(mount.path / "file", os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        found = b""
        while data := os.read(fd, 1 << 20):
            found += data
        return found
    finally:
        os.close(fd)


def flip(path: Path, position: int) -> None:
    """Flip one bit of a file in place."""
    with path.open("r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 4]))


def flip_in_journal(mount: Mount, wanted: bytes) -> None:
    """Flip a bit of these bytes wherever the journal has them."""
    for path in (mount.cache_dir / "journal").iterdir():
        position = path.read_bytes().find(wanted)
        if position >= 0:
            flip(path, position)
            return
    raise AssertionError("the journal does not hold these bytes")


def is_large(path: Path) -> bool:
    """Tell a cached value from the index."""
    return path.is_file() and path.suffix == ".val" and path.stat().st_size > 100_000


def damage_counted(mount: Mount) -> float:
    """Return how many damaged things the daemon has counted."""
    address = mount.volume.settings["metrics"]["address"]
    with urllib.request.urlopen(f"http://{address}/metrics") as answer:
        text = answer.read().decode()
    return sum(
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith("s3fs_banyan_corruption_detected_total")
    )
