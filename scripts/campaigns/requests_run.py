"""What 10,000 files of 4 KiB and one file of 1 GiB cost in requests, at default settings."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import tempfile
import time
from pathlib import Path

from campaigns.session import Results, options
from tests.kernel.mounts import Mount, s3_volume
from tests.kernel.proxy import Proxy
from tests.servers import SeaweedServer

SMALL_FILES = 10_000
SMALL_PUTS_MAX = 12
LARGE_PUTS_MAX = 20
BLOCK_BYTES = 1 << 20


def main() -> int:
    """Write both through a proxy that counts, and read them back through an empty cache."""
    chosen = options(__doc__ or "", megabytes=1024, seed=1)
    results = Results(title="Requests at default settings on SeaweedFS", out=chosen.out)
    directory = Path(tempfile.mkdtemp(prefix="campaign-", dir=chosen.directory))
    try:
        with (
            SeaweedServer(directory / "server") as server,
            Proxy(server.endpoint_url) as proxy,
            Mount(
                s3_volume(server, directory, small=False, endpoint_url=proxy.endpoint_url)
            ) as mount,
        ):
            mount.start()
            draw = random.Random(chosen.seed)
            _small_files(mount, proxy, results, draw)
            _large_file(mount, proxy, results, draw, chosen.megabytes)
    except Exception as error:  # noqa: BLE001  # it is the result
        results.failure = f"{type(error).__name__}: {error}"
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return results.finish()


def _small_files(mount: Mount, proxy: Proxy, results: Results, draw: random.Random) -> None:
    before = len(proxy.requests("PUT", "POST"))
    begin = time.monotonic()
    digest = hashlib.sha256()
    for number in range(SMALL_FILES):
        data = draw.randbytes(4096)
        digest.update(data)
        fd = os.open(mount.path / f"file-{number:05}", os.O_WRONLY | os.O_CREAT)
        os.write(fd, data)
        os.close(fd)
    mount.sync()
    puts = len(proxy.requests("PUT", "POST")) - before
    results.event("small files are in the store", seconds=round(time.monotonic() - begin, 1))
    results.check(f"PUT for {SMALL_FILES} files of 4 KiB", puts, SMALL_PUTS_MAX)
    _remount(mount)
    gets = len(proxy.requests("GET"))
    back = hashlib.sha256()
    for number in range(SMALL_FILES):
        back.update((mount.path / f"file-{number:05}").read_bytes())
    if back.digest() != digest.digest():
        raise AssertionError("the small files came back with other bytes")
    results.facts["GET to read the small files back"] = len(proxy.requests("GET")) - gets


def _large_file(
    mount: Mount, proxy: Proxy, results: Results, draw: random.Random, megabytes: int
) -> None:
    before = len(proxy.requests("PUT", "POST"))
    begin = time.monotonic()
    digest = hashlib.sha256()
    with (mount.path / "large").open("wb", buffering=0) as file:
        for _ in range(megabytes):
            block = draw.randbytes(BLOCK_BYTES)
            digest.update(block)
            file.write(block)
    mount.sync()
    puts = len(proxy.requests("PUT", "POST")) - before
    spent = time.monotonic() - begin
    results.event("the large file is in the store", seconds=round(spent, 1))
    results.check(f"PUT for {megabytes} MiB", puts, LARGE_PUTS_MAX)
    _remount(mount)
    back = hashlib.sha256()
    with (mount.path / "large").open("rb", buffering=0) as file:
        while block := file.read(BLOCK_BYTES):
            back.update(block)
    if back.digest() != digest.digest():
        raise AssertionError("the large file came back with other bytes")
    results.event("both came back bit-exact through an empty cache")


def _remount(mount: Mount) -> None:
    mount.umount()
    mount.wipe_cache()
    mount.start()
