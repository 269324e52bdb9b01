"""Bytes on a real mount: large files, small files, overwrites, caches that go away, requests."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
from pathlib import Path

import pytest

from tests.kernel.conftest import MakeMount, MakeVolume
from tests.kernel.mounts import Mount, Volume
from tests.kernel.proxy import Proxy

MIB = 1 << 20
LARGE_MIB = 256
LARGE_PUTS_MAX = 10
"""Four packs of 64 MiB, and commits with what lies between."""
SMALL_FILES = 10_000
SMALL_PUTS_MAX = 12
WIPES = 20
"""How often a directory may fill again while it is removed."""


def test_a_large_file_comes_back_through_an_empty_cache(
    make_s3_volume: MakeVolume, make_mount: MakeMount, proxy: Proxy
) -> None:
    """Bit by bit, from the store alone; and it costs few requests where packs go as a whole.

    Left to itself a busy machine passes for a slow line, and its packs go in parts.
    """
    volume = make_s3_volume(UNTIMED_COMMITS, proxy.endpoint_url)
    remote = volume.settings["storage"]["remote"]
    assert isinstance(remote, dict)
    remote["multipart"] = "never"
    mount = make_mount(volume).start()
    before = puts_answered(proxy)
    written = write_large(mount.path / "large", LARGE_MIB)
    mount.sync()
    assert puts_answered(proxy) - before <= LARGE_PUTS_MAX, "\n".join(proxy.requests("PUT", "POST"))
    mount.umount()
    mount.wipe_cache()
    mount.start()
    assert digest_of(mount.path / "large") == written
    mount.umount()


def puts_answered(proxy: Proxy) -> int:
    """Count what the engine asked for: what a busy server refuses or drops comes once more."""
    return len(proxy.requests("PUT", "POST")) - len(proxy.unserved("PUT", "POST"))


UNTIMED_COMMITS: dict[str, dict[str, object]] = {
    "commit": {"interval": "1h"},
    "heartbeat": {"interval": "1h", "stale_after": "2h"},
    "cache": {"dirty_max": "8GiB", "size": "1GiB"},
    "journal": {"segment_size": "64MiB"},
}
"""Default sizes. What the clock alone begins would be counted on a slow machine only."""


def write_large(path: Path, mib: int) -> bytes:
    """Write a file that does not compress; return its digest."""
    written = hashlib.sha256()
    block = random.Random(3).randbytes(MIB)
    with path.open("wb", buffering=0) as file:
        for number in range(mib):
            data = number.to_bytes(8, "little") + block[8:]
            written.update(data)
            file.write(data)
    return written.digest()


def digest_of(path: Path) -> bytes:
    """Read a file from start to end."""
    found = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while data := file.read(MIB):
            found.update(data)
    return found.digest()


def test_many_small_files_cost_few_requests_and_come_back(
    make_s3_volume: MakeVolume, make_mount: MakeMount, proxy: Proxy
) -> None:
    """10,000 files of 4 KiB: a gateway that maps files to objects would make 10,000 PUT."""
    volume = make_s3_volume(UNTIMED_COMMITS, proxy.endpoint_url)
    mount = make_mount(volume).start()
    before = puts_answered(proxy)
    data = random.Random(5)
    content = {f"file-{number:05}": data.randbytes(4096) for number in range(SMALL_FILES)}
    for name, written in content.items():
        fd = os.open(mount.path / name, os.O_WRONLY | os.O_CREAT)
        os.write(fd, written)
        os.close(fd)
    mount.sync()
    assert puts_answered(proxy) - before <= SMALL_PUTS_MAX, "\n".join(proxy.requests("PUT", "POST"))
    mount.umount()
    mount.wipe_cache()
    mount.start()
    gets = len(proxy.requests("GET"))
    assert {path.name: path.read_bytes() for path in mount.path.iterdir()} == content
    assert len(proxy.requests("GET")) - gets < SMALL_FILES // 50
    mount.umount()


@pytest.mark.parametrize("seed", range(2))
def test_random_overwrites_are_read_back_across_commits_and_lost_caches(
    seed: int, volume: Volume, make_mount: MakeMount
) -> None:
    """Extents, young and sealed chunks, packs and caches must add up to the bytes written."""
    volume.settings = {"commit": {"interval": "1h", "inline_max": "64KiB"}}
    mount = make_mount(volume).start()
    draw = random.Random(seed)
    model = Overwrites(draw)
    for round_number in range(8):
        with (mount.path / "file").open("ab"):
            pass
        with (mount.path / "file").open("r+b", buffering=0) as file:
            for _ in range(40):
                model.change(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(file.fileno(), len(model.bytes) + 1, 0) == bytes(model.bytes)
        match round_number % 4:
            case 0:
                mount.sync()
            case 1:
                wipe_blocks(mount)
            case 2:
                mount.kill()
                mount.start()
            case _:
                mount.umount()
                mount.wipe_cache()
                mount.start()
        assert (mount.path / "file").read_bytes() == model.bytes
    mount.umount()
    volume.check()


class Overwrites:
    """A file as a byte array, and random changes of both."""

    def __init__(self, draw: random.Random) -> None:
        self.bytes = bytearray()
        self._draw = draw

    def change(self, fd: int) -> None:
        """Write, truncate or extend."""
        draw = self._draw
        offset = draw.choice((0, len(self.bytes), draw.randrange(4_000_000)))
        kind = draw.random()
        if kind < 0.08:
            os.ftruncate(fd, offset)
            del self.bytes[offset:]
            self.bytes.extend(bytes(offset - len(self.bytes)))
            return
        data = draw.randbytes(draw.choice((1, 100, 4096, 65_536, 200_000)))
        assert os.pwrite(fd, data, offset) == len(data)
        self.bytes.extend(bytes(max(0, offset - len(self.bytes))))
        self.bytes[offset : offset + len(data)] = data


def wipe_blocks(mount: Mount) -> None:
    """Remove the block cache under the daemon, which closes and opens files in it meanwhile."""

    def gone_meanwhile(_function: object, _path: str, error: tuple[object, ...]) -> None:
        """`rm -rf` does not mind either."""
        if not isinstance(error[1], FileNotFoundError):
            raise error[1] if isinstance(error[1], BaseException) else AssertionError(error)

    for attempt in range(WIPES):
        try:
            shutil.rmtree(mount.cache_dir / "blocks", onerror=gone_meanwhile)
        except OSError as error:  # a block was cached in a directory that had just been emptied
            if error.errno != errno.ENOTEMPTY or attempt == WIPES - 1:
                raise
        else:
            return
