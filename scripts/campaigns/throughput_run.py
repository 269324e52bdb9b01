"""Upload and download of one large file against boto3's transfer manager, side by side."""

from __future__ import annotations

import random
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

from boto3.s3.transfer import TransferConfig

from campaigns.session import Session, options, session
from tests.kernel.mounts import Mount

MIB = 1 << 20
RATIO_AT_LEAST = 0.9
UPLOADS_AT_ONCE = 4
"""What the worker of a mount sends at the same time; the transfer manager gets the same."""
PART_BYTES = 8 * MIB
SYNCED_WITHIN_S = 600.0

_STEP = re.compile(r'^s3fs_banyan_commit_step_seconds_sum\{step="(\w+)"\} (\S+)$', re.MULTILINE)


def main() -> int:
    """Take the rounds in turn; returns the exit code."""
    chosen = options(__doc__ or "", size=1024, rounds=3, seed=1, parallel=UPLOADS_AT_ONCE)
    title = f"Throughput of {chosen.size} MiB to and from SeaweedFS beside boto3's"
    settings: dict[str, dict[str, object]] = {"commit": {"interval": "1h"}}
    with session(title, chosen, settings=settings) as running:
        spent: dict[str, list[float]] = defaultdict(list)
        source = running.mount.volume.directory / "source"
        _fill(source, chosen.size, chosen.seed)
        for number in range(1, chosen.rounds + 1):
            for name, seconds in _round(running, source, chosen.parallel, number).items():
                spent[name].append(seconds)
        _judge(running, spent, chosen.size)
    return running.results.finish()


def _fill(path: Path, size_mib: int, seed: int) -> None:
    """Write bytes that no compression makes smaller."""
    rng = random.Random(f"throughput {seed}")
    with path.open("wb") as file:
        for _ in range(size_mib):
            file.write(rng.randbytes(MIB))


def _timed(body: Callable[[], object]) -> float:
    begin = time.monotonic()
    body()
    return time.monotonic() - begin


def _round(running: Session, source: Path, parallel: int, number: int) -> dict[str, float]:
    """Both, up and down; who begins changes from round to round."""
    parts: list[Callable[[], dict[str, float]]] = [
        lambda: _by_boto3(running, source, parallel),
        lambda: _by_mount(running, source, number),
    ]
    found: dict[str, float] = {}
    for part in parts if number % 2 else parts[::-1]:
        found |= part()
    rounded = {name.replace(" ", "_"): round(seconds, 2) for name, seconds in found.items()}
    running.results.event("round", number=number, **rounded)
    return found


def _by_boto3(running: Session, source: Path, parallel: int) -> dict[str, float]:
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
        found = {"boto3 up": _timed(up), "boto3 down": _timed(down)}
        client.delete_object(Bucket=bucket, Key="large")
        return found
    finally:
        target.unlink(missing_ok=True)
        client.close()


def _by_mount(running: Session, source: Path, number: int) -> dict[str, float]:
    mount = running.mount
    path = mount.path / f"large-{number}"
    before = _steps(mount)
    written = _timed(lambda: _copy(source, path))
    synced = _timed(lambda: mount.ask("sync", SYNCED_WITHIN_S))
    found = {"mount up": written + synced, "mount write": written, "mount sync": synced}
    found["mount seal and upload"] = _steps(mount).get("seal", 0.0) - before.get("seal", 0.0)
    mount.umount()
    # Set aside, as another machine would find none. An ext4 without a journal looks long for a
    # new inode after thousands were removed, which would be measured as well.
    mount.cache_dir.rename(mount.cache_dir.with_name(f"{mount.cache_dir.name}-{number}"))
    mount.start()
    found["mount down"] = _timed(lambda: _read(path, source.stat().st_size))
    path.unlink()
    mount.sync()
    return found


def _copy(source: Path, target: Path) -> None:
    with source.open("rb", buffering=0) as old, target.open("wb", buffering=0) as new:
        while data := old.read(MIB):
            new.write(data)


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
        results.facts[name] = f"median {median:.2f} s, {size_mib / median:.0f} MiB/s ({spread})"
    for way in ("up", "down"):
        ratio = medians[f"mount {way}"] / medians[f"boto3 {way}"]
        results.facts[f"throughput {way} by boto3's"] = f"{1 / ratio:.2f}"
        results.check(f"time {way} by boto3's", ratio, 1 / RATIO_AT_LEAST)
    sending = medians["mount seal and upload"] / medians["boto3 up"]
    results.facts["throughput of seal and upload alone by boto3's"] = f"{1 / sending:.2f}"
