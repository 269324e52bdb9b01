"""A store with a scripted capacity and callers that are never idle, on a virtual clock.

The store serves all requests at the same speed: each gets `rate_bytes` at most, and all together
`total_bytes`. Beyond `at_once` requests in flight it refuses. Time goes in steps of two
milliseconds; jitter and sizes come from a seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from s3fs_banyan.remote.limiter import Outcome
from s3fs_banyan.remote.pacer import Pacer, Started
from s3fs_banyan.remote.traffic import Traffic

STEP_S = 0.002


@dataclass(slots=True, kw_only=True)
class Capacity:
    """What the store can do just now."""

    total_bytes: float = 100e6
    rate_bytes: float = 10e6
    latency_s: float = 0.02
    at_once: int = 1000
    is_storm: bool = False
    is_away: bool = False

    @property
    def best_bytes(self) -> float:
        """Bytes a second that the best caller would get."""
        return min(self.total_bytes, self.at_once * self.rate_bytes)


@dataclass(slots=True, kw_only=True)
class _Request:
    started: Started
    size: int
    left: float
    wait_s: float
    refused: bool = False


@dataclass(slots=True, kw_only=True)
class Seen:
    """What happened in one second."""

    bytes_done: dict[Traffic, int] = field(default_factory=lambda: dict.fromkeys(Traffic, 0))
    answers: int = 0
    refusals: int = 0
    latencies: dict[Traffic, list[float]] = field(
        default_factory=lambda: {traffic: [] for traffic in Traffic}
    )
    limits: list[int] = field(default_factory=list)


class PacingWorld:
    """Runs a pacer against the store for some seconds."""

    def __init__(
        self, pacer: Pacer, *, seed: int, size: int = 1 << 20, jitter: float = 0.2
    ) -> None:
        self.pacer = pacer
        self.capacity = Capacity()
        self.now_s = 100.0
        self.seconds: list[Seen] = []
        self._rng = Random(seed)
        self._size = size
        self._jitter = jitter
        self._in_flight: list[_Request] = []
        self._retry_at: list[float] = []

    def run(
        self,
        seconds: int,
        *,
        uploads: int = 64,
        demand_every_s: float = 0.0,
        change: Callable[[Capacity], None] | None = None,
    ) -> list[Seen]:
        """Let `uploads` callers upload without a pause, and one reader read now and then."""
        if change is not None:
            change(self.capacity)
        first = len(self.seconds)
        next_read_s = self.now_s
        for _ in range(seconds):
            seen = Seen()
            self.seconds.append(seen)
            for _ in range(round(1 / STEP_S)):
                self._answer(seen)
                reading = any(r.started.traffic is Traffic.DEMAND for r in self._in_flight)
                is_due = demand_every_s and self.now_s >= next_read_s and not reading
                if is_due and self.pacer.wait_s(Traffic.DEMAND, self.now_s) == 0:
                    self._begin(Traffic.DEMAND, 64 << 10)
                    next_read_s = self.now_s + demand_every_s
                self._retry_at = [at for at in self._retry_at if at > self.now_s]
                idle = (
                    uploads
                    - len(self._retry_at)
                    - sum(r.started.traffic is Traffic.UPLOAD for r in self._in_flight)
                )
                for _ in range(idle):
                    if self.pacer.wait_s(Traffic.UPLOAD, self.now_s) > 0:
                        break
                    self._begin(Traffic.UPLOAD, self._size)
                self.now_s += STEP_S
            seen.limits.append(self.pacer.limiters[Traffic.UPLOAD].limit)
        return self.seconds[first:]

    def _begin(self, traffic: Traffic, size: int) -> None:
        capacity = self.capacity
        sends = size if traffic is Traffic.UPLOAD else 0
        started = self.pacer.start(traffic, self.now_s, sends, size - sends)
        admitted = sum(not r.refused for r in self._in_flight)
        refused = capacity.is_storm or admitted >= capacity.at_once
        latency_s = capacity.latency_s * (1 + self._jitter * self._rng.expovariate(1.0))
        if refused:
            latency_s = 0.005
        if capacity.is_away:
            latency_s = 1.0
        self._in_flight.append(
            _Request(
                started=started, size=size, left=float(size), wait_s=latency_s, refused=refused
            )
        )

    def _answer(self, seen: Seen) -> None:
        capacity = self.capacity
        active = [r for r in self._in_flight if r.wait_s <= 0 and not r.refused]
        rate = min(capacity.rate_bytes, capacity.total_bytes / max(1, len(active)))
        for request in self._in_flight:
            if request.wait_s > 0:
                request.wait_s -= STEP_S
            elif not request.refused:
                request.left -= rate * STEP_S
        for request in [r for r in self._in_flight if self._is_over(r)]:
            self._in_flight.remove(request)
            self._finish(request, seen)

    def _is_over(self, request: _Request) -> bool:
        if request.refused or self.capacity.is_away:
            return request.wait_s <= 0
        return request.left <= 0

    def _finish(self, request: _Request, seen: Seen) -> None:
        traffic = request.started.traffic
        ok = request.left <= 0
        seen.answers += 1
        outcome = Outcome.OK if ok else Outcome.THROTTLED
        if not ok and self.capacity.is_away:
            outcome = Outcome.TIMED_OUT
        if outcome is Outcome.OK:
            seen.bytes_done[traffic] += request.size
            seen.latencies[traffic].append(self.now_s - request.started.started_s)
        else:
            seen.refusals += outcome is Outcome.THROTTLED
            self._retry_at.append(self.now_s + self._rng.random() * 0.1)
        received = request.size if traffic is not Traffic.UPLOAD and ok else 0
        self.pacer.end(
            request.started, self.now_s, size=request.size, received=received, outcome=outcome
        )
