"""What can be seen of a daemon from outside: processor time, memory, status, its log, the store."""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from s3fs_banyan.remote.local import LocalStore
from tests.kernel.mounts import Mount
from tests.servers import SeaweedServer

_TICKS = os.sysconf("SC_CLK_TCK")
_COMMIT = re.compile(r"^(\S+Z) INFO \S+committer: commit \d+: .* in ([\d.]+) s$", re.MULTILINE)


def percentile(values: Sequence[float], share: float) -> float:
    """Return a percentile by nearest rank; 0 of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def processor_s(pid: int) -> float:
    """Return the processor time of a process and of its children, the living ones."""
    total = 0.0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(stat.parent.name) == pid or int(fields[1]) == pid:
            total += (int(fields[11]) + int(fields[12])) / _TICKS
    return total


def resident_mib(pid: int) -> float:
    """Return the resident memory of one process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


@dataclass(slots=True, kw_only=True)
class FsyncProbe:
    """Appends 4 KiB and syncs, a few times a second, and notes when and how long it took."""

    path: Path
    pause_s: float = 0.1
    seconds: list[tuple[float, float]] = field(default_factory=list)
    """(Unix time of the answer, latency in seconds)."""
    failure: OSError | None = None
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End; raises what went wrong meanwhile."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(60)
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        block = os.urandom(4096)
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            while not self._ended.wait(self.pause_s):
                os.write(fd, block)
                begin = time.perf_counter()
                os.fsync(fd)
                self.seconds.append((time.time(), time.perf_counter() - begin))
            os.close(fd)
        except OSError as error:
            self.failure = error


def commit_windows(log_text: str) -> list[tuple[float, float]]:
    """Return (begin, end) of each commit in Unix time, from a daemon's log."""
    found = []
    for stamp, spent in _COMMIT.findall(log_text):
        end = datetime.fromisoformat(stamp).timestamp()
        found.append((end - float(spent), end))
    return found


def during(probe: FsyncProbe, windows: Sequence[tuple[float, float]]) -> list[float]:
    """Return the latencies of the syncs that overlapped one of the windows."""
    return [
        spent
        for at, spent in probe.seconds
        if any(begin <= at and at - spent <= end for begin, end in windows)
    ]


def objects(server: SeaweedServer, mount: Mount) -> dict[str, tuple[int, int]]:
    """Return (count, bytes) of the volume's objects by the first part of their key."""
    found: dict[str, tuple[int, int]] = {}
    for kind, size in _keys(server, mount.volume.url):
        count, total = found.get(kind, (0, 0))
        found[kind] = (count + 1, total + size)
    return found


def _keys(server: SeaweedServer, url: str) -> Iterator[tuple[str, int]]:
    """Yield (first part of the key, bytes) of each object of a volume."""
    if url.startswith("file://"):
        for found in LocalStore(Path(url.removeprefix("file://"))).list():
            yield found.path.split("/")[0], found.size
        return
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    client = server.client()
    try:
        for page in client.get_paginator("list_objects_v2").paginate(
            Bucket=bucket, Prefix=f"{prefix}/"
        ):
            for item in page.get("Contents", []):
                yield item["Key"].removeprefix(f"{prefix}/").split("/")[0], item["Size"]
    finally:
        client.close()
