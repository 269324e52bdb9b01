"""The report of a run: one value, printed as a table or as JSON."""

from __future__ import annotations

import os
import time
from typing import Any

from workload.runner import Workload
from workload.shapes import ENGINES, MEASURED_PER_S


def build(workload: Workload, *, wall_s: float) -> dict[str, Any]:
    """Return everything a run has to say."""
    stats, plan = workload.files.stats, workload.plan
    totals = stats.totals()
    totals["fsync"] = totals["fsync file"] + totals["fsync dir"]
    latencies = stats.latencies()
    flushes: dict[str, Any] = {}
    for name, shape in ENGINES.items():
        found = latencies.get(f"flush {name}")
        if found:
            interval_ms = shape.interval_s * plan.pace * 1e3
            flushes[name] = {
                "interval_ms": interval_ms,
                "p50_share": round(found["p50_ms"] / interval_ms, 4),
                "p99_share": round(found["p99_ms"] / interval_ms, 4),
            }
    now = time.monotonic()
    times = os.times()
    failure = workload.failure
    return {
        "seconds": round(wall_s, 2),
        "seed": plan.seed,
        "scale": plan.scale,
        "failure": failure.text if failure else None,
        "latencies": latencies,
        "flush_share_of_interval": flushes,
        "counts": dict(sorted(totals.items())),
        "per_second": {name: round(count / wall_s, 3) for name, count in sorted(totals.items())},
        "live_parts": {
            shard.path: len(shard.parts)
            for group in workload.groups
            for shard in group.current.shards
        },
        "live_parts_max": dict(sorted(stats.live_parts_max.items())),
        "last_answer_s_ago": {
            name: round(now - at, 3) for name, at in sorted(stats.last_answer.items())
        },
        "own_cpu_share_of_one_core": round((times.user + times.system) / wall_s, 3),
        "own_user_cpu_share": round(times.user / wall_s, 3),
    }


def table(report: dict[str, Any], *, rates: bool) -> str:
    """Return the report for people."""
    lines = [
        f"{report['seconds']} s, seed {report['seed']}, scale {report['scale']}, "
        f"own processor time {report['own_cpu_share_of_one_core']} of a core "
        f"(user {report['own_user_cpu_share']})",
        "",
        f"{'latency':<24}{'count':>9}{'p50 ms':>11}{'p99 ms':>11}{'max ms':>11}",
    ]
    for name, found in report["latencies"].items():
        numbers = "".join(f"{found[key]:>11.2f}" for key in ("p50_ms", "p99_ms", "max_ms"))
        lines.append(f"{name:<24}{found['count']:>9}{numbers}")
    for name, share in report["flush_share_of_interval"].items():
        lines.append(
            f"flush {name}: p99 is {share['p99_share']:.1%} of its interval "
            f"of {share['interval_ms']:.0f} ms (p50 {share['p50_share']:.1%})"
        )
    lines.append("")
    for path, count in report["live_parts"].items():
        lines.append(f"live parts {path}: {count}, at most {report['live_parts_max'].get(path, 0)}")
    for name, ago in report["last_answer_s_ago"].items():
        lines.append(f"last {name} answered {ago:.2f} s before the end")
    if rates:
        lines += ["", f"{'per second':<24}{'here':>12}{'real server':>14}"]
        for name, wanted in MEASURED_PER_S.items():
            lines.append(f"{name:<24}{report['per_second'].get(name, 0.0):>12.2f}{wanted:>14.2f}")
        for name, rate in report["per_second"].items():
            if name not in MEASURED_PER_S:
                lines.append(f"{name:<24}{rate:>12.2f}{'-':>14}")
    if report["failure"]:
        lines += ["", f"FAILED: {report['failure']}"]
    return "\n".join(lines)
