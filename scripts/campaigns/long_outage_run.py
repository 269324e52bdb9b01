"""Hours without the store, in minutes: what the local disk holds, and what is sent afterwards.

The full mix flushes ten times as often as BanyanDB does, so a quarter of an hour writes what two
and a half hours would. The daemon is killed in the middle.
"""

from __future__ import annotations

import time
from pathlib import Path

from campaigns.measure import objects
from campaigns.outage_run import verify_all
from campaigns.session import Session, options, session
from tests.kernel.load import VOLUME_FAILED

BEFORE_S = 20.0
SAMPLE_S = 5.0
RECOVERED_WITHIN_S = 900.0
GIB = 1 << 30


def main() -> int:
    """Stop the server, write for long, die in between, start the server, count, verify."""
    chosen = options(__doc__ or "", duration=720.0, seed=1, faster=10.0, hours=2.0)
    title = f"The store away while the full mix writes what it writes in {chosen.hours:g} h"
    load_options = ("--duration", "7200", "--seed", str(chosen.seed),
                    "--flush-interval-scale", str(1 / chosen.faster))  # fmt: skip
    with session(title, chosen, *load_options) as running:
        running.load.start()
        time.sleep(BEFORE_S)
        running.mount.sync()
        watch = _Watch(running)
        running.server.stop()
        running.results.event("the server is stopped")
        watch.work(chosen.duration / 2)
        _die(running)
        watch.work(chosen.duration / 2)
        live = watch.used - watch.used_before
        running.load.stop()
        running.server.start()
        running.results.event("the server is back")
        begin = time.monotonic()
        running.mount.wait_until(
            lambda: running.mount.number("lag", "seconds") == 0.0,
            RECOVERED_WITHIN_S,
            "the backlog is not in the store",
        )
        running.results.facts["until all is in the store"] = f"{time.monotonic() - begin:.0f} s"
        watch.judge(live, chosen.faster)
        verify_all(running)
    return running.results.finish()


class _Watch:
    """Looks every few seconds at the local disk and at how much data is alive."""

    def __init__(self, running: Session) -> None:
        self._running = running
        self._begun = time.monotonic()
        self._worst = 0.0
        self._disk_max = 0
        self._packs = self._sent()
        self.used_before = self.used = int(running.mount.number("usage", "used"))

    def _sent(self) -> tuple[int, int]:
        found = objects(self._running.server, self._running.mount)
        counts = [found.get(kind, (0, 0)) for kind in ("pack", "log")]
        return sum(count for count, _ in counts), sum(size for _, size in counts)

    def work(self, seconds: float) -> None:
        """Let the load work; it must not see an error."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(SAMPLE_S)
            if not self._running.load.running:
                self._running.load.wait(0)
            self._sample()

    def _sample(self) -> None:
        mount = self._running.mount
        self.used = int(mount.number("usage", "used"))
        disk = _disk_bytes(Path(str(mount.status()["cache_dir"])))
        allowed = 2 * max(0, self.used - self.used_before) + GIB
        self._worst = max(self._worst, disk / allowed)
        self._disk_max = max(self._disk_max, disk)
        self._running.results.event(
            "sample",
            disk_mib=disk >> 20,
            allowed_mib=allowed >> 20,
            live_mib=self.used >> 20,
            local_cuts=mount.number("local_cuts", "count"),
            lag_mib=round(mount.number("lag", "bytes") / (1 << 20)),
        )

    def judge(self, live: int, faster: float) -> None:
        """Compare what was found with what was promised."""
        results = self._running.results
        count, size = self._sent()
        packs, sent = count - self._packs[0], size - self._packs[1]
        results.facts["live data grew by"] = f"{live / GIB:.2f} GiB"
        results.facts["largest use of the local disk"] = f"{self._disk_max / GIB:.2f} GiB"
        results.facts["sent afterwards"] = f"{sent / GIB:.2f} GiB in {packs} objects"
        hours = (time.monotonic() - self._begun) * faster / 3600
        results.facts["written as in"] = f"{hours:.1f} h at BanyanDB's own rhythm"
        results.check("local disk, share of 2 x live growth + 1 GiB", self._worst, 1.0)
        results.check("bytes sent, share of the live data", sent / max(live, 1), 1.2)
        results.check("objects sent, per 32 MiB of live data", packs / (live / (32 << 20) + 4), 1.0)


def _disk_bytes(root: Path) -> int:
    """Return what journal, base packs, base.db and outbox occupy."""
    files = [*root.glob("journal/*"), *root.glob("base/*"), *root.glob("outbox/*")]
    return sum(_occupied(path) for path in (*files, *root.glob("base.db*")))


def _occupied(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def _die(running: Session) -> None:
    """kill -9 while the store is away: the mount comes back from the local disk alone."""
    running.mount.kill()
    running.load.wait(VOLUME_FAILED)
    begin = time.monotonic()
    running.mount.start()
    running.results.event("mounted again", mount_s=round(time.monotonic() - begin, 1))
    running.load.verify("answered")
    running.results.event("verified while the store is away")
    running.load.start()
