"""A run: the threads of all engines, their rhythm, and how the run ends.

Threads: a flusher and a merger per shard, a remover per group, an index thread per group and
per element index, one for properties, one for queries, one for maintenance (rotation,
snapshots, re-open storms). The first failure of any of them stops all; an `OSError` means
that the volume is gone, which a database would not survive either.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from workload.files import Files, WrongBytesError
from workload.index import Index
from workload.oplog import LogError
from workload.query import run_query
from workload.segments import Group
from workload.shapes import (
    ELEMENT_BYTES,
    ELEMENT_COMMIT_S,
    ENGINES,
    PROPERTY_BYTES,
    PROPERTY_S,
)

_JOIN_S = 120.0
_SETUP_S = 600.0
_BURST_S = 15.0
_BURST_SHARE = 0.34
_MEET_FACTOR = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run and for how long."""

    duration_s: float
    seed: int
    scale: float
    pace: float
    shards: dict[str, int]
    properties: bool
    queries_per_s: float
    snapshot_s: float
    rotate_s: float
    reopen_s: float
    keep_snapshots: int
    keep_segments: int
    bursty: bool
    stop_file: Path | None = None
    meet: tuple[str, ...] = ()
    """The run goes on beyond its duration, to at most twelve times, until it has met these."""


@dataclass(slots=True)
class Failure:
    """Why a run ended early."""

    kind: str
    text: str
    code: int
    at: float = field(default_factory=time.monotonic)


class Workload:
    """One run on one volume."""

    def __init__(self, files: Files, plan: Plan) -> None:
        self.files = files
        self.plan = plan
        self.groups: list[Group] = []
        self.property_index: Index | None = None
        self.failure: Failure | None = None
        self.stuck: list[str] = []
        self.stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._fail_lock = threading.Lock()

    # set up

    def make_groups(self) -> list[Group]:
        """Return the groups of the plan as objects; nothing is touched."""
        return [
            Group(self.files, ENGINES[name], shards=count, scale=self.plan.scale)
            for name, count in self.plan.shards.items()
        ]

    def create(self) -> None:
        """Set up an empty volume: every group with one older, closed segment."""
        self.groups = self.make_groups()
        rng = random.Random(f"{self.plan.seed} setup")
        for group in self.groups:
            group.open_group()
            group.rotate(self.plan.keep_segments)
            for shard in group.current.shards:
                shard.flush(rng)
                shard.flush(rng)
            for index in group.current.indexes:
                index.commit(16 << 10)
            group.rotate(self.plan.keep_segments)
            for index in group.current.indexes:
                index.commit(16 << 10)
        if self.plan.properties:
            path = "property/data/sw_property/shard-0"
            self.files.makedirs_synced(path)
            self.property_index = Index(self.files, path)
            self.property_index.open_writer()

    # running

    def guarded(self, body: Callable[[], None]) -> bool:
        """Run a piece of work; note what it raises as the end of the run. True if it did not."""
        try:
            body()
        except OSError as error:
            text = f"the volume failed: {error.strerror or error} ({error.filename or 'open file'})"
            self.fail(Failure("volume", text, 3))
        except WrongBytesError as error:
            self.fail(Failure("bytes", f"wrong bytes: {error}", 1))
        except LogError as error:
            self.fail(Failure("log", str(error), 2))
        except Exception:  # noqa: BLE001 - a thread must not die unseen: reported, exit code 4
            self.fail(Failure("internal", traceback.format_exc(), 4))
        else:
            return True
        return False

    def prepare(self, body: Callable[[], None]) -> bool:
        """Run the set-up for a bounded time; True if it ended well."""
        thread = threading.Thread(target=lambda: self.guarded(body), name="setup", daemon=True)
        thread.start()
        thread.join(_SETUP_S)
        if thread.is_alive():
            self.stuck = [thread.name]
            self.fail(Failure("stuck", f"no set-up within {_SETUP_S:.0f} s", 3))
        return self.failure is None

    def fail(self, failure: Failure) -> None:
        """Keep the first failure and stop."""
        with self._fail_lock:
            self.failure = self.failure or failure
        self.stop.set()

    def _loop(self, name: str, wait_s: Callable[[], float], step: Callable[[], object]) -> None:
        """Start a thread that waits, steps, and waits again, until the run stops."""

        def body() -> None:
            while not self.stop.wait(wait_s()):
                step()

        thread = threading.Thread(
            target=lambda: self.guarded(body), name=name.replace(" ", "-"), daemon=True
        )
        self._threads.append(thread)

    def _rng(self, name: str) -> random.Random:
        return random.Random(f"{self.plan.seed} {name} {time.time_ns()}")

    def _add_shard(self, group: Group, number: int) -> None:
        shape, pace = group.shape, self.plan.pace
        rng = self._rng(f"{shape.catalog} {number}")
        merge_rng = self._rng(f"merge {shape.catalog} {number}")

        def flush() -> None:
            factor = 1.0
            if self.plan.bursty:
                if time.monotonic() % _BURST_S > _BURST_S * _BURST_SHARE:
                    return
                factor = 1.0 / _BURST_SHARE
            with group.use() as segment:
                segment.shards[number].flush(rng, factor=factor)

        def merge() -> None:
            with group.use() as segment:
                shard = segment.shards[number]
                shard.flushed.wait(0.2)
                if shard.flushed.is_set():
                    shard.flushed.clear()
                    shard.merge(merge_rng)

        low, high = shape.pause_s
        name = f"{shape.catalog}-{number}"
        self._loop(f"flush-{name}", lambda: rng.uniform(low, high) * pace, flush)
        self._loop(f"merge-{name}", lambda: 0.01, merge)

    def _add_group(self, group: Group) -> None:
        shape = group.shape
        rng = self._rng(f"index {shape.catalog}")

        def series() -> None:
            with group.use() as segment:
                size = shape.series_bytes * self.plan.scale * rng.uniform(0.5, 1.5)
                segment.series.commit(int(size))

        def element(number: int) -> None:
            with group.use() as segment, self.files.stats.timed("element index commit"):
                size = ELEMENT_BYTES * self.plan.scale * rng.uniform(0.8, 1.2)
                segment.elements[number].commit(int(size))

        element_pause = ELEMENT_COMMIT_S * self.plan.pace
        for number in range(group.shard_count):
            self._add_shard(group, number)
            if shape.element_index:
                self._loop(f"element-{number}", lambda: element_pause, partial(element, number))
        pause_s = shape.series_commit_s * self.plan.pace
        self._loop(f"series-{shape.catalog}", lambda: pause_s, series)
        self._loop(f"remove-{shape.catalog}", lambda: 0.1, group.drain_removals)

    def _property(self, index: Index, rng: random.Random) -> None:
        """One Apply: the new document, then the deletion of the old one, both waited for."""
        with self.files.stats.timed("property write"):
            for _ in range(2):
                index.commit(int(PROPERTY_BYTES * self.plan.scale * rng.uniform(0.5, 1.5)))

    def _query(self, rng: random.Random) -> None:
        group = rng.choice(self.groups)
        with group.use() as segment, self.files.stats.timed("query"):
            number = rng.randrange(group.shard_count)
            index = segment.elements[number] if segment.elements else segment.series
            run_query(self.files, segment.shards[number], index, rng)

    def _add_maintenance(self) -> None:
        plan = self.plan
        due = {"snapshot": plan.snapshot_s, "rotate": plan.rotate_s, "reopen": plan.reopen_s}
        started = time.monotonic()
        next_at = {name: started + period for name, period in due.items() if period > 0}

        def step() -> None:
            for name, at in next_at.items():
                if time.monotonic() < at or self.stop.is_set():
                    continue
                next_at[name] = time.monotonic() + due[name]
                for group in self.groups:
                    if name == "snapshot":
                        group.snapshot(keep=plan.keep_snapshots, min_age_s=plan.snapshot_s)
                    elif name == "rotate":
                        group.rotate(plan.keep_segments)
                    else:
                        group.reopen_closed()

        self._loop("maintenance", lambda: 0.1, step)

    def run(self) -> None:
        """Run until the duration is over, somebody asks to stop, or something fails."""
        self.files.stats.started = time.monotonic()
        for group in self.groups:
            self._add_group(group)
        if self.property_index:
            index, property_rng = self.property_index, self._rng("property")
            pause = PROPERTY_S * self.plan.pace
            self._loop("property", lambda: pause, lambda: self._property(index, property_rng))
        if self.plan.queries_per_s > 0 and self.groups:
            query_rng = self._rng("query")
            wait = 1.0 / self.plan.queries_per_s
            self._loop("query", lambda: wait, lambda: self._query(query_rng))
        self._add_maintenance()
        for thread in self._threads:
            thread.start()
        begun = time.monotonic()
        while not self.stop.wait(0.2):
            asked = self.plan.stop_file is not None and self.plan.stop_file.exists()
            if asked or self._is_over(time.monotonic() - begun):
                break
        self._finish()

    def _is_over(self, elapsed_s: float) -> bool:
        if elapsed_s < self.plan.duration_s:
            return False
        met = self.files.stats.met()
        return met.issuperset(self.plan.meet) or elapsed_s >= _MEET_FACTOR * self.plan.duration_s

    def _finish(self) -> None:
        """Wait for the threads, for a bounded time, then close cleanly."""
        self.stop.set()
        deadline = time.monotonic() + _JOIN_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self.stuck = [thread.name for thread in self._threads if thread.is_alive()]
        if self.stuck:
            text = f"no answer within {_JOIN_S:.0f} s of the stop: {', '.join(self.stuck)}"
            self.fail(Failure("stuck", text, 3))
        elif self.failure is None:
            self.guarded(self._close)

    def _close(self) -> None:
        for group in self.groups:
            group.close()
        if self.property_index:
            self.property_index.close_writer()

    def leave(self, code: int) -> None:
        """End the process; past stuck threads, which no clean exit would get by."""
        sys.stdout.flush()
        sys.stderr.flush()
        if self.stuck:
            os._exit(code)
        sys.exit(code)
