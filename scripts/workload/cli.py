"""Command line of the workload: a run, a resumed run, or a check against the log.

Exit codes: 0 fine, 1 wrong bytes or a violation, 2 used wrongly or the log failed,
3 the volume failed or did not answer, 4 a fault of this program.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import sys
import time
from pathlib import Path

from workload.content import Content
from workload.files import Files
from workload.oplog import History, Log, LogError, read_log
from workload.report import build, table
from workload.resume import restore
from workload.runner import Plan, Workload
from workload.shapes import ENGINES
from workload.stats import Stats
from workload.verify import verify

_MIXES = ("full", "measure", "stream", "trace", "property")


def parser() -> argparse.ArgumentParser:
    """Return the parser; `docs/workload.md` explains the options."""
    made = argparse.ArgumentParser(
        prog="banyan-workload", description="BanyanDB-shaped load on a directory, and its check."
    )
    made.add_argument("directory", type=Path, metavar="DIR")
    made.add_argument("--log", type=Path, help="oracle log, outside DIR (default DIR.oplog)")
    made.add_argument("--verify", action="store_true", help="check DIR against the log")
    made.add_argument("--at-least", choices=("synced", "answered", "none"), default="answered")
    made.add_argument("--resume", action="store_true", help="go on with DIR and its log")
    made.add_argument("--duration", type=float, default=60.0, metavar="S")
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--scale", type=float, default=1.0, help="factor on all sizes")
    made.add_argument("--flush-interval-scale", type=float, default=1.0, metavar="F")
    made.add_argument("--mix", choices=_MIXES, action="append")
    for name in ENGINES:
        made.add_argument(f"--{name}-shards", type=int, default=2, metavar="N")
    made.add_argument("--buffer", type=int, default=4096, metavar="BYTES")
    made.add_argument("--queries", type=float, default=2.7, metavar="PER_S")
    made.add_argument("--snapshot-every", type=float, default=3600.0, metavar="S")
    made.add_argument("--rotate-every", type=float, default=3600.0, metavar="S")
    made.add_argument("--reopen-every", type=float, default=600.0, metavar="S")
    made.add_argument("--keep-snapshots", type=int, default=10, metavar="N")
    made.add_argument("--keep-segments", type=int, default=4, metavar="N")
    made.add_argument("--bursty", action="store_true", help="rows arrive in bulks every 15 s")
    made.add_argument("--stop-file", type=Path, metavar="PATH", help="end when PATH exists")
    made.add_argument(
        "--meet",
        action="append",
        default=[],
        metavar="NAME",
        help="go on beyond the duration until this of the report was met",
    )
    made.add_argument("--report", choices=("json", "table"), default="table")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the report there as well")
    made.add_argument("--rates", action="store_true", help="print rates beside a real server's")
    return made


def _plan(options: argparse.Namespace) -> Plan:
    mixes = set(options.mix or ["full"])
    everything = "full" in mixes
    wanted = {name: getattr(options, f"{name}_shards") for name in ENGINES}
    return Plan(
        duration_s=options.duration,
        seed=options.seed,
        scale=options.scale,
        pace=options.flush_interval_scale,
        shards={n: c for n, c in wanted.items() if c > 0 and (everything or n in mixes)},
        properties=everything or "property" in mixes,
        queries_per_s=options.queries,
        snapshot_s=options.snapshot_every,
        rotate_s=options.rotate_every,
        reopen_s=options.reopen_every,
        keep_snapshots=options.keep_snapshots,
        keep_segments=options.keep_segments,
        bursty=options.bursty,
        stop_file=options.stop_file,
        meet=tuple(options.meet),
    )


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _open_log(options: argparse.Namespace, path: Path) -> tuple[Log, History | None]:
    """Open the log for a new or a resumed run; raises `LogError` if it is the wrong one."""
    if not options.resume:
        if path.exists() and path.stat().st_size:
            message = f"{path} exists: give --resume, or another --log"
            raise LogError(message)
        return Log(path, seed=options.seed), None
    history = read_log(path)
    options.seed = history.seed
    return Log(path, seed=history.seed, first_op=history.max_op + 1), history


def _run(options: argparse.Namespace, log_path: Path) -> int:
    _raise_descriptor_limit()
    log, history = _open_log(options, log_path)
    stats = Stats()
    files = Files(
        options.directory,
        log=log,
        content=Content(options.seed),
        stats=stats,
        buffer=options.buffer,
        first_fid=history.max_fid + 1 if history else 1,
    )
    workload = Workload(files, _plan(options))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: workload.stop.set())
    prepare = (lambda: restore(workload, log, history)) if history else workload.create
    begun = time.monotonic()
    if workload.prepare(prepare):
        before = time.monotonic()
        print(f"ready after {before - begun:.2f} s", file=sys.stderr, flush=True)
        stats.reset()
        begun = before
        workload.run()
    report = build(workload, wall_s=max(0.001, time.monotonic() - begun))
    text = json.dumps(report, indent=1)
    print(text if options.report == "json" else table(report, rates=options.rates))
    if options.json:
        options.json.write_text(text)
    failure = workload.failure
    if failure:
        print(f"banyan-workload: {failure.text}", file=sys.stderr)
    workload.leave(failure.code if failure else 0)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    options = parser().parse_args(arguments)
    root = options.directory
    log_path = options.log or root.with_name(root.name + ".oplog")
    if not root.is_dir():
        print(f"banyan-workload: {root} is no directory", file=sys.stderr)
        return 2
    if root.resolve() in log_path.resolve().parents:
        print("banyan-workload: the log must lie outside of the directory", file=sys.stderr)
        return 2
    try:
        if options.verify:
            return verify(root, log_path, at_least=options.at_least)
        return _run(options, log_path)
    except LogError as error:
        print(f"banyan-workload: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"banyan-workload: the volume failed: {error}", file=sys.stderr)
        return 3
