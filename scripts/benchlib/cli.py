"""Command line of `scripts/bench`: choose contenders and measures, run, print."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from rich.console import Console

from benchlib.contenders import (
    BenchError,
    Contender,
    open_floor,
    open_given,
    open_ours,
    open_plain,
    open_work,
)
from benchlib.loads import Settings
from benchlib.measures import FLOOR, OURS, PLAIN, Measure, select
from benchlib.mounts import disk_of
from benchlib.report import WIDTH_MIN, document, machine, print_table
from benchlib.rounds import run_rounds
from benchlib.summary import summarise

DESCRIPTION = """\
Measure s3fs-banyan beside a floor and a plain directory, in one run.

  ours   this product, on a volume made for the run
  floor  scripts/floorfs, an empty pyfuse3 file system: names in RAM, data in one local file.
         What it costs, every file system on this adapter pays.
  plain  a directory on the same disk
"""

EPILOG = """\
Only ratios and medians mean anything. Absolute numbers change from machine to machine and
from hour to hour; the contenders are therefore interleaved load by load (A B C A B C), every
value is the median over the rounds, p50 and p99 are those of single operations (the median
over the rounds of each round's), and a ratio is the median of the ratios inside each round.
A table from a machine that was busy, or from fewer than three rounds, proves nothing.

Exit codes: 0 done, 1 --fail-below and a ratio is below what is needed, 2 wrong usage,
3 a contender or a load failed.
"""

EXIT_BELOW = 1
EXIT_USAGE = 2
EXIT_FAILED = 3
TEMPORARY_KINDS = {"tmpfs", "ramfs"}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line; exits with 2 on wrong usage."""
    parser = argparse.ArgumentParser(
        prog="bench",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--contenders", default=f"{OURS},{FLOOR},{PLAIN}", help="default: %(default)s")
    add(
        "--contender",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="a directory mounted already; NAME may be ours. May be repeated",
    )
    add("--ours-dir", type=Path, metavar="DIR", help="short for --contender ours=DIR")
    add("--store", metavar="URL", help="where ours keeps its data (default: a local directory)")
    add(
        "--program",
        type=shlex.split,
        metavar="COMMAND",
        help="how to start ours (default: s3fs-banyan beside this Python or on PATH)",
    )
    add("--only", default="", metavar="NAMES", help="measures or loads, separated by commas")
    add("--rounds", type=_positive, default=5, help="default: %(default)s")
    add("--size-mb", type=_positive, default=128, help="large files, in MiB; default: %(default)s")
    add(
        "--scale",
        type=float,
        default=1.0,
        help="multiplies the number of operations of every load but the large files",
    )
    add("--work-dir", type=Path, default=Path("/var/tmp"), help="on a disk; default: %(default)s")  # noqa: S108 (a default for people, a fresh private directory is made in it)
    add("--json", type=Path, metavar="FILE", help="write all numbers, single operations too")
    add("--fail-below", action="store_true", help="exit with 1 if a ratio is below what is needed")
    parsed = parser.parse_args(arguments)
    try:
        parsed.measures = select([name for name in parsed.only.split(",") if name])
        parsed.given = _given(parsed)
        parsed.chosen = _chosen(parsed)
    except ValueError as error:
        parser.error(str(error))
    return parsed


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _given(parsed: argparse.Namespace) -> dict[str, Path]:
    """Return the contenders that are mounted already."""
    given = {}
    for text in parsed.contender:
        name, separator, directory = text.partition("=")
        if not (name and separator and directory):
            raise ValueError(f"--contender {text}: NAME=DIR is expected")
        if name in {FLOOR, PLAIN}:
            raise ValueError(f"--contender {text}: {name} is made by the run itself")
        given[name] = Path(directory)
    if parsed.ours_dir is not None:
        given[OURS] = parsed.ours_dir
    return given


def _chosen(parsed: argparse.Namespace) -> list[str]:
    """Return the contenders' names in the order of the table."""
    names = [name for name in parsed.contenders.split(",") if name]
    unknown = sorted(set(names) - {OURS, FLOOR, PLAIN} - parsed.given.keys())
    if unknown:
        raise ValueError(f"unknown contender {', '.join(unknown)}: give its directory")
    order = {OURS: 0, FLOOR: 2, PLAIN: 3}
    return sorted(dict.fromkeys([*names, *parsed.given]), key=lambda name: order.get(name, 1))


def _program(parsed: argparse.Namespace) -> list[str]:
    if parsed.program:
        return list(parsed.program)
    beside = Path(sys.executable).with_name("s3fs-banyan")
    found = str(beside) if beside.exists() else shutil.which("s3fs-banyan")
    if found is None:
        raise BenchError("s3fs-banyan is not installed: name it with --program")
    return [found]


def _open_all(stack: ExitStack, parsed: argparse.Namespace, work: Path) -> list[Contender]:
    contenders = []
    for name in parsed.chosen:
        if name in parsed.given:
            opened = open_given(name, parsed.given[name].resolve())
        elif name == OURS:
            opened = open_ours(work, _program(parsed), parsed.store)
        elif name == FLOOR:
            opened = open_floor(work)
        else:
            opened = open_plain(work)
        contenders.append(stack.enter_context(opened))
    return contenders


def settings_for(parsed: argparse.Namespace) -> dict[str, int]:
    """Return the loads' settings; counts by many processes stay multiples of the processes."""
    normal = Settings()
    return {
        "files": max(1, round(normal.files * parsed.scale)),
        "size_mb": parsed.size_mb,
        "synced": max(1, round(normal.synced * parsed.scale)),
        "synced_by_many": 16 * max(1, round(normal.synced_by_many * parsed.scale / 16)),
        "parts": max(1, round(normal.parts * parsed.scale)),
    }


def run(parsed: argparse.Namespace, console: Console, progress: Console) -> int:
    """Run the benchmark and print its table; returns the exit code."""
    measures: tuple[Measure, ...] = parsed.measures
    settings = settings_for(parsed)
    with ExitStack() as stack:
        work = stack.enter_context(open_work(parsed.work_dir.resolve()))
        disk = disk_of(work)
        about = machine(disk)
        if disk.kind in TEMPORARY_KINDS:
            progress.print(f"{work} is in memory: an fsync costs nothing there, see --work-dir")
        contenders = _open_all(stack, parsed, work)
        status = stack.enter_context(progress.status("starting"))
        seen = run_rounds(
            contenders, measures, work, rounds=parsed.rounds, settings=settings, tell=status.update
        )
    rows = summarise(seen, measures)
    caption = (
        f"Medians of {parsed.rounds} interleaved rounds; ratios are medians of the ratios inside "
        f"a round. Compare ratios only.\n{about['cpus']} CPUs, kernel {about['kernel']}, "
        f"{disk.kind}, load before the run {about['load_average']:.1f}, "
        f"large files {parsed.size_mb} MiB."
    )
    print_table(console, rows, parsed.chosen, caption)
    if parsed.json is not None:
        values = document(rows, seen, measures, settings=settings, about=about)
        parsed.json.write_text(json.dumps(values), encoding="utf-8")
    below = [ratio for row in rows for ratio in row.ratios if ratio.verdict == "below"]
    return EXIT_BELOW if parsed.fail_below and below else 0


def _stop(signal_number: int, frame: FrameType | None) -> None:
    """Turn SIGTERM into an exception, so that everything is unmounted and removed."""
    raise SystemExit(128 + signal_number)


def main() -> int:
    """Run as a program; returns the exit code."""
    parsed = parse()
    signal.signal(signal.SIGTERM, _stop)
    console = Console()
    if not console.is_terminal or console.width < WIDTH_MIN:
        console = Console(width=max(console.width, WIDTH_MIN))
    try:
        return run(parsed, console, Console(stderr=True))
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
