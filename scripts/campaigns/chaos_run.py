"""An hour of everything that can go wrong between mount and store, under the full mix."""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from pathlib import Path
from urllib.request import urlopen

from campaigns.cold import ColdFiles
from campaigns.session import Session, options, session
from s3fs_banyan.errors import ExitCode
from tests.chaos.client import ChaosProxy, Report
from tests.chaos.script import spread_blackouts
from tests.kernel.mounts import Mount, MountError
from tests.servers import SeaweedServer

SAMPLE_S = 15.0
DRAINED_WITHIN_S = 900.0
MOUNT_ATTEMPTS = 30
STORE_AWAY = f"the daemon ended with {ExitCode.STORE.value}"
"""A mount without local state may fail while the store is away, with this and nothing else."""

SETTINGS: dict[str, dict[str, object]] = {
    "commit": {"interval": "5s"},
    "cache": {"size": "1536MiB", "ram_size": "8MiB"},
    "heartbeat": {"interval": "5s", "stale_after": "30s"},
    "reclaim": {"window": "60s", "hourly": "0s", "grace": "60s", "every": "20s"},
}
"""Many commits, reads that reach the store, and much to reclaim: more requests to spoil.

The cache holds what the load works on, but not the cold files as well. With one of 64 MiB the
merges of a blackout wait for the store, and after four minutes the load has as many live parts as
it may have files open.
"""
COLD_FILES = 1200
REMOTE: dict[str, object] = {"connect_timeout": "2s", "read_timeout": "5s", "retry_deadline": "10s"}
"""What stalls costs less time, so more can go wrong in an hour."""

_SAMPLE_LINE = re.compile(r"^s3fs_banyan_(\w+)(\{[^}]*\})? ([\d.e+-]+)$", re.MULTILINE)
_SHOWN = re.compile(r"store_requests_total|store_retries|corruption_detected|commit_failures_total")


def main() -> int:
    """Run the chaos, let the weather clear, verify; returns the exit code."""
    chosen = options(__doc__ or "", duration=3600.0, seed=1, blackouts="300,300")
    lengths = [float(text) for text in str(chosen.blackouts).split(",") if text]
    title = f"{chosen.duration:.0f} s of seeded chaos before SeaweedFS under the full mix"

    def proxy(server: SeaweedServer) -> ChaosProxy:
        return ChaosProxy(
            server.endpoint_url,
            seed=chosen.seed,
            duration_s=chosen.duration,
            blackouts=spread_blackouts(chosen.seed, chosen.duration, lengths),
            log=chosen.out.with_suffix(".faults.log"),
        )

    load_options = ("--duration", str(2 * chosen.duration + 600), "--seed", str(chosen.seed))
    with session(
        title, chosen, *load_options, settings=SETTINGS, remote=REMOTE, proxy=proxy
    ) as running:
        cold = ColdFiles(directory=running.mount.path / "cold", seed=chosen.seed, count=COLD_FILES)
        cold.prepare()
        running.mount.sync()
        running.load.start()
        cold.start()
        try:
            _work(running, cold, chosen)
            _verify(running, cold)
        finally:
            _tell(running, cold, chosen.out)
        running.mount.umount()
        running.mount.volume.check()
        running.results.event("checked")
    return running.results.finish()


def _work(running: Session, cold: ColdFiles, chosen: argparse.Namespace) -> None:
    """Let the load work under the faults; it must not see an error."""
    running.proxy.begin()
    deadline = time.monotonic() + chosen.duration
    while (left_s := deadline - time.monotonic()) > 0:
        time.sleep(min(SAMPLE_S, left_s))
        if not running.load.running:
            running.load.wait(0)
        if cold.failure is not None:
            raise cold.failure
        report, mount = running.proxy.report(), running.mount
        running.results.event(
            "sample",
            weather=report.weather.replace(" ", "-"),
            faults=sum(report.injected.values()),
            online=mount.status()["online"],
            backlog_mib=round(mount.number("journal", "backlog_bytes") / (1 << 20)),
            lag_s=round(mount.number("lag", "seconds"), 1),
            cold_reads=cold.reads,
        )
    running.load.stop()
    cold.stop()
    running.proxy.begin()
    _die(running)
    running.proxy.calm()
    running.results.event("the weather clears")
    begin = time.monotonic()
    running.mount.ask("sync", DRAINED_WITHIN_S)
    running.results.event("everything is in the store", drain_s=round(time.monotonic() - begin, 1))


def _die(running: Session) -> None:
    """kill -9, and a start from the local state, whatever the store does meanwhile."""
    running.mount.kill()
    begin = time.monotonic()
    running.mount.start()
    running.results.event("killed and mounted again", mount_s=round(time.monotonic() - begin, 1))


def _recover(running: Session, cold: ColdFiles) -> None:
    """The machine is lost, and another one takes over in the same weather."""
    mount = running.mount
    mount.kill()
    mount.wipe_cache()
    running.proxy.begin()
    begin = time.monotonic()
    for attempt in range(1, MOUNT_ATTEMPTS + 1):
        try:
            mount.start("--takeover")
            break
        except MountError as error:
            if STORE_AWAY not in str(error) or attempt == MOUNT_ATTEMPTS:
                raise
            time.sleep(1.0)
    mounted_s = round(time.monotonic() - begin, 1)
    running.results.event("another machine took over", mount_s=mounted_s, attempts=attempt)
    cold.verify()
    running.proxy.calm()
    running.results.event("verified under faults, through an empty cache")


def _tell(running: Session, cold: ColdFiles, out: Path) -> None:
    """Write down what was injected and what the daemon counted, of a failed run as well."""
    report, results = running.proxy.report(), running.results
    results.facts["faults injected"] = sum(report.injected.values())
    results.facts |= {f"injected: {kind}": n for kind, n in report.injected.items()}
    results.facts["requests through the proxy"] = _requests(report)
    results.facts["cold reads"] = cold.reads
    results.facts["longest cold read"] = f"{cold.longest_read_s:.1f} s"
    results.facts["large files written"] = cold.large_written
    results.facts |= _counters(running.mount)
    results.check("kinds of fault that were never injected", len(report.missing), 0)
    if report.missing:
        results.facts["never injected"] = ", ".join(report.missing)
    faults = "".join(f"{count:6d} {line}\n" for line, count in report.by_target.items())
    out.with_suffix(".faults.txt").write_text(faults, encoding="utf-8")
    levels = Counter(re.findall(r"^\S+Z (WARNING|ERROR) ", running.mount.log_text(), re.MULTILINE))
    results.facts["log lines of the daemon"] = dict(levels)


def _requests(report: Report) -> str:
    return ", ".join(f"{line} {counts['requests']}" for line, counts in report.traffic.items())


def _counters(mount: Mount) -> dict[str, object]:
    """Return the daemon's own counts of requests, retries and damage; not those of its worker."""
    if not mount.alive:
        return {}
    address = mount.volume.settings["metrics"]["address"]
    try:
        with urlopen(f"http://{address}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    except OSError as error:  # of a run that has failed: the failure itself must be told
        return {"metrics of the daemon": f"not to be had: {error}"}
    return {
        f"metric {name}{labels}": float(value)
        for name, labels, value in _SAMPLE_LINE.findall(text)
        if _SHOWN.match(name) and float(value)
    }


def _verify(running: Session, cold: ColdFiles) -> None:
    mount, load, results = running.mount, running.load, running.results
    load.verify("answered")
    cold.verify()
    results.event("verified on the mount")
    mount.umount()
    mount.wipe_cache()
    mount.start()
    load.verify("answered")
    cold.verify()
    results.event("verified through an empty cache")
    _recover(running, cold)
    load.verify("answered")
    results.event("verified once more")
