"""Queries: index page faults, then many tiny reads over young and large parts, all checked."""

from __future__ import annotations

import random
import time

from workload.files import Files
from workload.index import Index
from workload.parts import Part
from workload.shard import Shard

_PRIMARY_CACHED_S = 120.0
_PRIMARY_BYTES = 30 << 10
_YOUNG = 7
_LARGE = 3
_COLUMNS = 10
_READS_PER_COLUMN = 6


def _length(rng: random.Random) -> int:
    """Draw the length of a read: 56 % below 32 bytes, 4 % above 4 KiB, as measured."""
    draw = rng.random()
    if draw < 0.56:
        return rng.randint(8, 31)
    if draw < 0.72:
        return rng.randint(32, 127)
    if draw < 0.96:
        return rng.randint(128, 4096)
    return rng.randint(4097, 40 << 10)


def _read_part(files: Files, part: Part, rng: random.Random) -> None:
    held = [(path, fd) for path, fd in part.held.items() if part.files[path].size]
    now = time.monotonic()
    if now - part.primary_read_at > _PRIMARY_CACHED_S:
        part.primary_read_at = now
        for path, fd in held:
            if path.endswith("primary.bin"):
                known = part.files[path]
                files.pread(fd, path, known, 0, min(_PRIMARY_BYTES, known.size))
    columns = rng.sample(held, min(len(held), _COLUMNS))
    for path, fd in columns:
        known = part.files[path]
        starts = sorted(rng.randrange(known.size) for _ in range(_READS_PER_COLUMN))
        for start in starts:
            length = min(_length(rng), known.size - start)
            files.pread(fd, path, known, start, length)


def run_query(files: Files, shard: Shard, index: Index, rng: random.Random) -> None:
    """Run one query on a shard of an open segment."""
    index.search(rng, 4)
    parts = shard.acquire()
    try:
        by_age = sorted(parts, key=lambda part: part.number, reverse=True)
        chosen = by_age[:_YOUNG]
        older = sorted(by_age[_YOUNG:], key=lambda part: part.size, reverse=True)
        chosen += older[: rng.randint(1, _LARGE)]
        for part in sorted(chosen, key=lambda part: part.number):
            _read_part(files, part, rng)
    finally:
        shard.release(parts)
