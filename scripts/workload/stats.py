"""Counters and latencies of a run, cheap enough to keep for every call.

Counters live in one dictionary a thread, so no update is lost and none takes a lock;
latencies go into logarithmic buckets of about five percent.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_STEPS = 20.0


class Histogram:
    """Durations in buckets of five percent, with the exact maximum."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count = 0
        self.max_s = 0.0
        self._lock = threading.Lock()

    def add(self, seconds: float) -> None:
        """Count one duration."""
        bucket = int(math.log(seconds * 1e6 + 1.0) * _STEPS)
        with self._lock:
            self._buckets[bucket] += 1
            self.count += 1
            self.max_s = max(self.max_s, seconds)

    def clear(self) -> None:
        """Forget everything counted so far."""
        with self._lock:
            self._buckets.clear()
            self.count = 0
            self.max_s = 0.0

    def quantile(self, share: float) -> float:
        """Return the upper edge of the bucket that holds this share, in seconds."""
        wanted = share * self.count
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= wanted:
                return min(self.max_s, (math.exp((bucket + 1) / _STEPS) - 1.0) / 1e6)
        return 0.0

    def summary(self) -> dict[str, float]:
        """Return count and p50, p99, max in milliseconds."""
        return {
            "count": self.count,
            "p50_ms": round(self.quantile(0.5) * 1e3, 3),
            "p99_ms": round(self.quantile(0.99) * 1e3, 3),
            "max_ms": round(self.max_s * 1e3, 3),
        }


class Stats:
    """All numbers of one run."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._lock = threading.Lock()
        self._counters: list[Counter[str]] = []
        self._histograms: dict[str, Histogram] = {}
        self.started = time.monotonic()
        self.last_answer: dict[str, float] = {}
        self.live_parts_max: dict[str, int] = {}

    def count(self, name: str, amount: int = 1) -> None:
        """Add to a counter of this thread."""
        counts: Counter[str] | None = getattr(self._local, "counts", None)
        if counts is None:
            counts = self._local.counts = Counter()
            with self._lock:
                self._counters.append(counts)
        counts[name] += amount

    def histogram(self, name: str) -> Histogram:
        """Return the histogram of a name, made at first use."""
        with self._lock:
            return self._histograms.setdefault(name, Histogram())

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Time a block that succeeds; what raises is not counted."""
        begun = time.monotonic()
        yield
        now = time.monotonic()
        self.histogram(name).add(now - begun)
        self.last_answer[name] = now

    def note_live(self, shard: str, count: int) -> None:
        """Note how many parts a shard has, for the maximum."""
        self.live_parts_max[shard] = max(count, self.live_parts_max.get(shard, 0))

    def reset(self) -> None:
        """Forget what the set-up counted; nothing else may be running."""
        with self._lock:
            for counts in self._counters:
                counts.clear()
            for histogram in self._histograms.values():
                histogram.clear()
        self.live_parts_max.clear()

    def totals(self) -> Counter[str]:
        """Return the sum of all threads' counters."""
        total: Counter[str] = Counter()
        with self._lock:
            for counts in self._counters:
                total.update(dict(counts))
        return total

    def latencies(self) -> dict[str, Any]:
        """Return the summary of every histogram by name."""
        with self._lock:
            items = sorted(self._histograms.items())
        return {name: histogram.summary() for name, histogram in items if histogram.count}

    def met(self) -> set[str]:
        """Return the names of everything that was counted or timed at least once."""
        return {name for name, count in self.totals().items() if count} | self.latencies().keys()
