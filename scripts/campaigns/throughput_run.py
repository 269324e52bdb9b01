"""Upload and download of one large file against boto3's transfer manager, side by side.

What an upload through a file system takes that sends as boto3 does is measured, too: the processor
seconds of a write into it (of this mount or of `scripts/floorfs`, which keeps nothing: whichever
takes less), of the MD5 that every upload is to carry, and of boto3's upload, which carries none.
A download through a file system is held against boto3's into a file and one read of the same bytes
out of `scripts/floorfs`, which has them in a local file and checks nothing.

A virtual machine's free memory may be back at its host, and each page of it that is touched again
costs a fault there: 0.2 s a GiB without, over 3 s with (docs/acceptance.md). `--warm MIB` fills so
much of the page cache before each part, so that nothing has to come from the host.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

from benchlib.contenders import Contender, open_floor
from boto3.s3.transfer import TransferConfig

from campaigns.session import Session, options, session
from tests.kernel.mounts import Mount

MIB = 1 << 20
RATIO_AT_LEAST = 0.9
UPLOADS_AT_ONCE = 4
"""What the worker of a mount sends at the same time; the transfer manager gets the same."""
PART_BYTES = 8 * MIB
SYNCED_WITHIN_S = 600.0
BUSY = ", processors"
"""Ends the name of what all processors worked together, in seconds."""

Step = Callable[[dict[str, float]], None]
"""Measures something and notes it."""
Part = Callable[[], Iterator[Step]]
"""What is measured of one contender, and done between."""

_STEP = re.compile(r'^s3fs_banyan_commit_step_seconds_sum\{step="(\w+)"\} (\S+)$', re.MULTILINE)


def main() -> int:
    """Take the rounds in turn; returns the exit code."""
    chosen = options(__doc__ or "", size=1024, rounds=3, seed=1, parallel=UPLOADS_AT_ONCE, warm=0)
    title = f"Throughput of {chosen.size} MiB to and from SeaweedFS beside boto3's"
    settings: dict[str, dict[str, object]] = {"commit": {"interval": "1h"}}
    with session(title, chosen, settings=settings) as running:
        spent: dict[str, list[float]] = defaultdict(list)
        source = running.mount.volume.directory / "source"
        _fill(source, chosen.size, chosen.seed)
        with open_floor(source.parent) as floor:
            for number in range(1, chosen.rounds + 1):
                parts = _parts(running, source, floor, chosen.parallel, number)
                for name, seconds in _round(running, parts, chosen.warm, number).items():
                    spent[name].append(seconds)
        _judge(running, spent, chosen.size)
    return running.results.finish()


def _fill(path: Path, size_mib: int, seed: int) -> None:
    """Write bytes that no compression makes smaller."""
    rng = random.Random(f"throughput {seed}")
    with path.open("wb") as file:
        for _ in range(size_mib):
            file.write(rng.randbytes(MIB))


def _timed(found: dict[str, float], name: str, body: Callable[[], object]) -> None:
    """Note the seconds that a body takes, and what all processors worked meanwhile."""
    begin, busy = time.monotonic(), _busy_s()
    body()
    found[name] = time.monotonic() - begin
    found[name + BUSY] = _busy_s() - busy


def _busy_s() -> float:
    """Return the seconds that all processors have worked so far (proc_stat(5))."""
    words = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
    user, nice, system, _idle, _iowait, irq, softirq = map(int, words[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _warm(directory: Path, size_mib: int) -> None:
    """Fill the page cache with pages that can be given up at once: those of a file's hole."""
    hole = directory / "hole"
    with hole.open("ab") as file:
        file.truncate(size_mib * MIB)
    _read(hole, size_mib * MIB)


def _parts(
    running: Session, source: Path, floor: Contender, parallel: int, number: int
) -> list[Part]:
    """Return what is measured, up before down."""
    return [
        lambda: _by_boto3(running, source, parallel),
        lambda: _by_mount(running, source, number),
        lambda: _by_floor(source, floor),
    ]


def _round(running: Session, parts: list[Part], warm_mib: int, number: int) -> dict[str, float]:
    """Carry out all parts, up and down; who begins changes from round to round."""
    found: dict[str, float] = {}
    for part in parts if number % 2 else parts[::-1]:
        for step in part():
            os.sync()  # what an earlier one left unwritten would be paid for by this one
            if warm_mib:
                _warm(running.mount.volume.directory, warm_mib)
            step(found)
    rounded = {name.replace(" ", "_"): round(seconds, 2) for name, seconds in found.items()}
    running.results.event("round", number=number, **rounded)
    return found


def _by_floor(source: Path, floor: Contender) -> Iterator[Step]:
    """Write into a file system that keeps nothing, and read what it has in a local file."""
    path = floor.directory / "large"
    size = source.stat().st_size
    yield lambda found: _timed(found, "floor write", lambda: _copy(source, path))
    yield lambda found: _timed(found, "md5", lambda: _md5(source))
    _forget_pages(path)
    yield lambda found: _timed(found, "floor read", lambda: _read(path, size))
    path.unlink()


def _by_boto3(running: Session, source: Path, parallel: int) -> Iterator[Step]:
    client = running.server.client()
    bucket = running.server.bucket()
    config = TransferConfig(
        max_concurrency=parallel, multipart_chunksize=PART_BYTES, multipart_threshold=PART_BYTES
    )
    target = source.with_name("downloaded")

    def up() -> None:
        client.upload_file(str(source), bucket, "large", Config=config)

    def down() -> None:
        client.download_file(bucket, "large", str(target), Config=config)

    try:
        yield lambda found: _timed(found, "boto3 up", up)
        yield lambda found: _timed(found, "boto3 down", down)
        client.delete_object(Bucket=bucket, Key="large")
    finally:
        target.unlink(missing_ok=True)
        client.close()


def _by_mount(running: Session, source: Path, number: int) -> Iterator[Step]:
    mount = running.mount
    path = mount.path / f"large-{number}"
    yield lambda found: _up_by_mount(found, mount, source, path)
    mount.umount()
    # Set aside, as another machine would find none. An ext4 without a journal looks long for a
    # new inode after thousands were removed, which would be measured as well.
    mount.cache_dir.rename(mount.cache_dir.with_name(f"{mount.cache_dir.name}-{number}"))
    mount.start()
    size = source.stat().st_size
    yield lambda found: _timed(found, "mount down", lambda: _read(path, size))
    path.unlink()
    mount.sync()


def _up_by_mount(found: dict[str, float], mount: Mount, source: Path, path: Path) -> None:
    before = _steps(mount)
    _timed(found, "mount write", lambda: _copy(source, path))
    _timed(found, "mount sync", lambda: mount.ask("sync", SYNCED_WITHIN_S))
    for what in ("", BUSY):
        found["mount up" + what] = found["mount write" + what] + found["mount sync" + what]
    found["mount seal and upload"] = _steps(mount).get("seal", 0.0) - before.get("seal", 0.0)


def _forget_pages(path: Path) -> None:
    """Have the kernel give up the pages of a file, so that they are asked for again."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb", buffering=0) as old, target.open("wb", buffering=0) as new:
        while data := old.read(MIB):
            new.write(data)


def _md5(source: Path) -> None:
    with source.open("rb") as file:
        hashlib.file_digest(file, "md5")


def _read(path: Path, size: int) -> None:
    with path.open("rb", buffering=0) as file:
        count = 0
        while data := file.read(MIB):
            count += len(data)
    if count != size:
        raise AssertionError(f"{count} bytes were read of {size}")


def _steps(mount: Mount) -> dict[str, float]:
    """Return the seconds that each step of all commits has taken so far."""
    address = mount.volume.settings["metrics"]["address"]
    with urlopen(f"http://{address}/metrics", timeout=10) as answer:  # loopback
        text = answer.read().decode()
    return {step: float(seconds) for step, seconds in _STEP.findall(text)}


def _judge(running: Session, spent: dict[str, list[float]], size_mib: int) -> None:
    results = running.results
    medians = {name: statistics.median(seconds) for name, seconds in spent.items()}
    for name, median in medians.items():
        spread = ", ".join(f"{seconds:.2f}" for seconds in spent[name])
        rate = "" if name.endswith(BUSY) else f", {size_mib / median:.0f} MiB/s"
        results.facts[name] = f"median {median:.2f} s{rate} ({spread})"
    for way in ("up", "down"):
        ratio = medians[f"mount {way}"] / medians[f"boto3 {way}"]
        results.facts[f"throughput {way} by boto3's"] = f"{1 / ratio:.2f}"
        results.check(f"time {way} by boto3's", ratio, 1 / RATIO_AT_LEAST)
    sending = medians["mount seal and upload"] / medians["boto3 up"]
    results.facts["throughput of seal and upload alone by boto3's"] = f"{1 / sending:.2f}"
    processors = os.cpu_count() or 1
    write = min(medians["floor write" + BUSY], medians["mount write" + BUSY])
    least = (write + medians["md5" + BUSY] + medians["boto3 up" + BUSY]) / processors
    results.facts["the way up of one that sends as boto3 does, at least"] = (
        f"{least:.2f} s, {medians['boto3 up'] / least:.2f} of boto3's throughput: a write, MD5 and "
        f"boto3's upload, on {processors} processors that never rest"
    )
    least = (medians["boto3 down" + BUSY] + medians["floor read" + BUSY]) / processors
    results.facts["the way down of one that receives as boto3 does, at least"] = (
        f"{least:.2f} s, {medians['boto3 down'] / least:.2f} of boto3's throughput: boto3's "
        f"download and a read out of a file system, on {processors} processors that never rest"
    )
