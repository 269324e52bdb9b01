"""The full standalone mix at default settings: latency, backlog, requests, processor, memory."""

from __future__ import annotations

import argparse
import json
import time
from datetime import UTC, datetime

from campaigns.measure import (
    FsyncProbe,
    commit_windows,
    during,
    objects,
    percentile,
    processor_s,
    resident_mib,
)
from campaigns.session import Session, options, session

MIB = 1 << 20
FSYNC_P50_MS, FSYNC_P99_MS = 1.0, 5.0
PARTS_MAX = {"measure": 16, "trace": 30}
SAMPLE_S = 5.0
SLOWEST = 20


def main() -> int:
    """Run, measure, verify; returns the exit code."""
    chosen = options(__doc__ or "", duration=600.0, seed=1)
    report_path = chosen.out.with_suffix(".load.json")
    load_options = ("--duration", str(chosen.duration), "--json", str(report_path))
    place = "in a directory" if chosen.store_directory else "on SeaweedFS"
    title = f"Full mix for {chosen.duration:.0f} s at default settings {place}"
    with session(title, chosen, *load_options, "--seed", str(chosen.seed)) as running:
        samples = _run(running, chosen)
        _judge(running, samples, json.loads(report_path.read_text(encoding="utf-8")), chosen)
        _verify(running)
    return running.results.finish()


def _run(running: Session, chosen: argparse.Namespace) -> list[dict[str, float]]:
    """Let the load run; returns one sample every few seconds."""
    mount, load = running.mount, running.load
    probe = FsyncProbe(path=mount.path / "probe")
    plain = FsyncProbe(path=mount.cache_dir.with_name("probe"))
    pid = mount.process.pid
    before, begun = processor_s(pid), time.monotonic()
    load.start()
    probe.start()
    plain.start()
    samples = []
    while load.running:
        time.sleep(SAMPLE_S)
        sample = {
            "at_s": time.monotonic() - begun,
            "rss_mib": resident_mib(pid),
            "backlog_mib": mount.number("journal", "backlog_bytes") / MIB,
            "lag_s": mount.number("lag", "seconds"),
        }
        samples.append(sample)
        rounded = {name: round(value, 1) for name, value in sample.items()}
        running.results.event("sample", **rounded)
    spent_s = time.monotonic() - begun
    running.results.facts["daemon and worker, share of a core"] = round(
        (processor_s(pid) - before) / spent_s, 3
    )
    load.wait(0)
    probe.stop()
    plain.stop()
    _judge_fsync(running, probe)
    everything = [spent for _, spent in plain.seconds]
    beside = during(plain, commit_windows(mount.log_text()))
    for name, values in (("meanwhile", everything), ("beside a commit", beside)):
        p50_ms, p99_ms = (percentile(values, share) * 1e3 for share in (0.5, 0.99))
        found = f"p50 {p50_ms:.2f} ms, p99 {p99_ms:.2f} ms"
        running.results.facts[f"fsync of the plain disk {name}"] = found
    return samples


def _judge_fsync(running: Session, probe: FsyncProbe) -> None:
    results = running.results
    everything = [spent for _, spent in probe.seconds]
    cutting = during(probe, commit_windows(running.mount.log_text()))
    results.facts["fsyncs of the probe"] = f"{len(everything)}, {len(cutting)} beside a commit"
    slow = sorted((spent, at) for at, spent in probe.seconds if spent * 1e3 > FSYNC_P99_MS)
    for spent, at in reversed(slow[-SLOWEST:]):
        when = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
        results.event("slow fsync of the probe", at=when, ms=round(spent * 1e3, 1))
    for name, values in (("probe", everything), ("probe beside a commit", cutting)):
        results.check(f"fsync p50, {name}", percentile(values, 0.5) * 1e3, FSYNC_P50_MS, "ms")
        results.check(f"fsync p99, {name}", percentile(values, 0.99) * 1e3, FSYNC_P99_MS, "ms")


def _judge(
    running: Session,
    samples: list[dict[str, float]],
    report: dict[str, dict[str, dict[str, float]]],
    chosen: argparse.Namespace,
) -> None:
    results = running.results
    results.facts["failure of the load"] = report["failure"]
    fsync = report["latencies"]["fsync"]
    results.check("fsync p50, load", fsync["p50_ms"], FSYNC_P50_MS, "ms")
    results.check("fsync p99, load", fsync["p99_ms"], FSYNC_P99_MS, "ms")
    for engine, flush in report["flush_share_of_interval"].items():
        results.check(f"flush p99 {engine}, share of interval", flush["p99_share"], 0.2)
    for path, count in report["live_parts_max"].items():
        limit = PARTS_MAX.get(path.split("/")[0])
        if limit is not None:
            results.check(f"live parts {path}", float(str(count)), limit)
    share = results.facts["daemon and worker, share of a core"]
    results.check("daemon and worker, share of a core", float(str(share)), 0.7)
    results.check("daemon RSS", max(s["rss_mib"] for s in samples), 300.0, "MiB")
    _judge_backlog(running, samples)
    _judge_requests(running, chosen.duration / 60)


def _judge_backlog(running: Session, samples: list[dict[str, float]]) -> None:
    """The backlog's highest value must not grow from the second third of the run to the last."""
    third = len(samples) // 3
    middle = max((s["backlog_mib"] for s in samples[third : 2 * third]), default=0.0)
    last = max((s["backlog_mib"] for s in samples[2 * third :]), default=0.0)
    running.results.check("journal backlog, last third", last, max(2 * middle, 64.0), "MiB")
    lag_s = max(s["lag_s"] for s in samples)
    running.results.check("lag behind the store", lag_s, 60.0, "s")


def _judge_requests(running: Session, minutes: float) -> None:
    """Nothing is reclaimed within the hour, so the objects are the PUTs that made them."""
    found = objects(running.server, running.mount)
    for kind, (count, size) in sorted(found.items()):
        running.results.facts[f"objects {kind}"] = f"{count}, {size / MIB:.1f} MiB"
    commits, _ = found.get("log", (0, 0))
    packs, pack_bytes = found.get("pack", (0, 0))
    allowed = 4 * minutes + pack_bytes / (32 * MIB) + 2
    running.results.check("PUT of commits and packs", commits + packs, allowed)


def _verify(running: Session) -> None:
    mount, load, results = running.mount, running.load, running.results
    load.verify("answered")
    results.event("verified on the mount")
    mount.umount()
    mount.wipe_cache()
    mount.start()
    load.verify("answered")
    results.event("verified through an empty cache")
    mount.umount()
    mount.volume.check()
    results.event("checked")
