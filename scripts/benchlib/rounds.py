"""The rounds: every load on every contender in turn, A B C A B C, so that all share the weather.

A machine's speed drifts over minutes. Contenders are therefore interleaved load by load, and
what is compared are medians over rounds and ratios inside a round.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchlib.contenders import BenchError, Contender
from benchlib.loads import LOADS
from benchlib.measures import Measure

LOAD_TIMEOUT_S = 180
KILL_TIMEOUT_S = 5
WARM_SMALL_MIB = 96
LOADS_PROGRAM = Path(__file__).with_name("loads.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One measure of one contender in one round."""

    contender: str
    measure: str
    round: int
    operations: int
    bytes_moved: int
    seconds: float
    latencies_ns: tuple[int, ...]


def run_rounds(
    contenders: Sequence[Contender],
    measures: Sequence[Measure],
    work: Path,
    *,
    rounds: int,
    settings: dict[str, int],
    tell: Callable[[str], None],
) -> list[Observation]:
    """Run all rounds and return what was seen; `work` is a directory on the local disk.

    Raises `BenchError` if a load fails.
    """
    wanted = {measure.name for measure in measures}
    loads = [name for name in LOADS if any(measure.load == name for measure in measures)]
    homes: dict[tuple[str, str], Path] = {}
    seen: list[Observation] = []
    for number in range(rounds):
        for load in loads:
            for contender in contenders:
                tell(f"round {number + 1} of {rounds}: {load} on {contender.name}")
                try:
                    directory = _directory(homes, contender, load, number)
                    samples = _run_load(load, directory, work, settings)
                except (OSError, BenchError) as error:
                    raise BenchError(f"{load} on {contender.name} failed: {error}") from error
                seen.extend(
                    Observation(
                        contender=contender.name,
                        measure=measure,
                        round=number,
                        operations=sample["operations"],
                        bytes_moved=sample["bytes"],
                        seconds=sample["seconds"],
                        latencies_ns=tuple(sample["latencies_ns"]),
                    )
                    for measure, sample in samples.items()
                    if measure in wanted
                )
    return seen


def _directory(
    homes: dict[tuple[str, str], Path], contender: Contender, load: str, number: int
) -> Path:
    """Return a new directory for one load.

    A load's directories lie together in one of the load's own, except those of `small`: what it
    unlinks in one round must not slow its creates in the next (see `spread_directories`).
    """
    key = (contender.name, load)
    if key not in homes or load == "small":
        homes[key] = contender.directory / f"{load}-{time.time_ns():x}"
        homes[key].mkdir()
    directory = homes[key] / f"round-{number}"
    directory.mkdir()
    return directory


def _run_load(load: str, directory: Path, work: Path, settings: dict[str, int]) -> dict[str, Any]:
    """Run one load in a process of its own, on a disk at rest."""
    # What an earlier load left unwritten would otherwise be paid for by this one.
    os.sync()
    warm_memory(work, 2 * settings["size_mb"] if load == "sequential" else WARM_SMALL_MIB)
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", LOADS_PROGRAM, load, directory, json.dumps(settings)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        output, complaints = process.communicate(timeout=LOAD_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"it took over {LOAD_TIMEOUT_S} s") from error
    finally:
        if process.poll() is None:
            _kill(process)
    if process.returncode != 0:
        last = complaints.decode(errors="replace").strip().splitlines()[-1:]
        raise BenchError("".join(last))
    samples: dict[str, Any] = json.loads(output)
    return samples


def warm_memory(directory: Path, size_mib: int) -> None:
    """Fill and free that much page cache.

    A virtual machine's free memory may have gone back to the host; the first to touch it again
    pays a fault for each page, and a write to the page cache is then up to ten times slower.
    """
    block = bytes(1 << 20)
    descriptor = os.open(directory, os.O_WRONLY | os.O_TMPFILE, 0o600)
    try:
        for _ in range(size_mib):
            os.write(descriptor, block)
    finally:
        os.close(descriptor)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a load with its 16 processes, which are a session of their own."""
    os.killpg(process.pid, signal.SIGKILL)
    # A process in a call to a stuck file system ends only with that file system's daemon, which
    # the contender's own clean-up sees to.
    with suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=KILL_TIMEOUT_S)
