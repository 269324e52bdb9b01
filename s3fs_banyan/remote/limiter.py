"""How many requests of one class may be in flight: the decision, without a thread or a clock.

The limit is learnt in **rounds**. A round ends when as many requests as the limit allows were
begun and answered in it. It yields

    load       requests in flight, averaged over the time of the round
    inflation  time of a request against the long-term minimum for its size
    speed      load / inflation: how many undisturbed requests the store serves at once

By Little's law `speed` is throughput, whatever the sizes of the objects are. What the law asks
for is then small::

    climb   +1, +2, +4 ... requests, a round each, while the speed grows by at least a quarter of
            what the load grows by; then back to the last limit that did
    hold    at that limit for a second and up to four, then climb again: by one request only, so
            that looking for room costs a throttling store one refusal
    drop    held, and the inflation is above 1.35: to what the store serves without a queue. If
            the speed stays, there was a queue, and it is gone. If it falls, the store itself has
            become slower: back, and the minimum counts as that much more (`_scale`), which
            is doubted every 15 s by a drop to one half

`Throttled` and time-outs act at once: in a climb, back to where it began; else less by the share
of refusals, at most by half, and once per answer time. Before a refusal's cause is tried again,
64 requests are answered, so refusals stay below two in a hundred; while the limit is below half
of what was good before (a storm has passed), eight are enough.

A round in which the callers left slots unused judges nothing: the limit neither grows nor falls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from statistics import fmean, median
from typing import Final

ROUND_S_MIN: Final = 0.1
ROUND_ANSWERS_MIN: Final = 6
GAIN_SHARE: Final = 0.25
GAIN_NOISE: Final = 0.3
"""Of the mean of a round, divided by the root of its answers."""
ANCHOR_GROWTH: Final = 1.25
SATURATION: Final = 0.75
INFLATION_MAX: Final = 1.35
DROP_HEADROOM: Final = 1.2
DROP_SPEED_MIN: Final = 0.9
RELEARN_S: Final = 15.0
HOLD_S_FIRST: Final = 1.0
HOLD_S_MAX: Final = 4.0
ANSWERS_BETWEEN_REFUSALS: Final = 64
ANSWERS_AFTER_STORM: Final = 8
TIMEOUT_SHARE: Final = 0.3
_BATCH: Final = 8
_OVERHEAD_BYTES: Final = 128 << 10
"""What a request costs besides its bytes, in bytes: for comparing sizes within one class."""


class Outcome(Enum):
    """What an answer says about the store's capacity."""

    OK = "ok"
    THROTTLED = "throttled"
    TIMED_OUT = "timed out"
    OTHER = "other"
    """An answer that says nothing of it: a missing object, a refused key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Between which numbers of requests a limit moves, and where it starts."""

    least: int
    most: int
    first: int


class Baseline:
    """The long-term minimum of the time of a request, by size class (powers of two).

    It is the least of the medians of eight requests, so that one lucky request does not count.
    """

    def __init__(self) -> None:
        self._least: dict[int, float] = {}
        self._batches: dict[int, list[float]] = {}

    def inflation(self, size: int, seconds: float) -> float:
        """Note a request; return its time against the minimum (1 for the first of its size)."""
        kind = size.bit_length()
        per_byte = seconds / (size + _OVERHEAD_BYTES)
        batch = self._batches.setdefault(kind, [])
        batch.append(per_byte)
        if kind not in self._least or len(batch) == _BATCH:
            middle = median(batch)
            self._least[kind] = min(middle, self._least.get(kind, middle))
        if len(batch) == _BATCH:
            batch.clear()
        return per_byte / max(self._least[kind], 1e-12)


@dataclass(slots=True)
class _Round:
    """What has been seen since its begin."""

    begin_s: float
    changed_s: float
    area: float = 0.0
    inflations: list[float] = field(default_factory=list)


@dataclass(slots=True)
class _Level:
    """A load and the speed that was seen at it."""

    limit: int
    load: float
    speed: float


class Limiter:
    """The limit of one class. Not safe for threads: its owner holds a lock."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self.limit = max(bounds.least, min(bounds.first, bounds.most))
        self.in_flight = 0
        self.refused_share = 0.0
        """Moving share of refusals among the last answers, about as many as the limit."""
        self._baseline = Baseline()
        self._scale = 1.0
        self._round = _Round(0.0, 0.0)
        self._phase = "climb"
        self._step = 1
        self._good = self.limit
        self._best = self.limit
        self._anchor: _Level | None = None
        self._held: _Level | None = None
        self._reduced_s = -1.0
        self._hold_s = HOLD_S_FIRST
        self._next_climb_s = 0.0
        self._relearn_s = 0.0
        self._answers = ANSWERS_BETWEEN_REFUSALS

    def start(self, now_s: float) -> None:
        """Note that a request was begun."""
        self._integrate(now_s)
        self.in_flight += 1

    def end(self, now_s: float, started_s: float, size: int, outcome: Outcome) -> float:
        """Note an answer; return its inflation against the idle store (1 if it tells nothing)."""
        self._integrate(now_s)
        self.in_flight -= 1
        window = max(_BATCH, self.limit)
        self.refused_share += ((outcome is Outcome.THROTTLED) - self.refused_share) / window
        if outcome in {Outcome.THROTTLED, Outcome.TIMED_OUT}:
            self._refused(now_s, started_s, outcome)
            return 1.0
        self._answers += 1
        if outcome is Outcome.OTHER:
            return 1.0
        inflation = self._baseline.inflation(size, now_s - started_s)
        if started_s >= self._round.begin_s:
            self._round.inflations.append(inflation)
            elapsed_s = now_s - self._round.begin_s
            enough = max(ROUND_ANSWERS_MIN, self.limit)
            if len(self._round.inflations) >= enough and elapsed_s >= ROUND_S_MIN:
                self._judge(now_s)
        return inflation

    # --- rounds --------------------------------------------------------------------------

    def _integrate(self, now_s: float) -> None:
        current = self._round
        current.area += self.in_flight * (now_s - current.changed_s)
        current.changed_s = now_s

    def _new_round(self, now_s: float) -> None:
        self._round = _Round(now_s, now_s)

    def _judge(self, now_s: float) -> None:
        """Decide at the end of a round."""
        current = self._round
        load = current.area / (now_s - current.begin_s)
        inflation = _mean(current.inflations) / self._scale
        if inflation < 1.0 and self._scale > 1.0:
            # The store has become faster again: half of the way at once, for one round may lie.
            self._scale = max(1.0, self._scale * (1.0 + inflation) / 2)
            inflation = 1.0
        inflation = max(inflation, 1e-3)
        level = _Level(self.limit, load, load / inflation)
        if load < SATURATION * self.limit:
            if self._phase != "hold":
                self._hold(now_s, self._good)
        elif self._phase == "climb":
            self._climbed(now_s, level)
        elif self._phase == "drop":
            self._dropped(now_s, level, inflation)
        else:
            self._kept(now_s, level, inflation)
        self._new_round(now_s)

    def _climbed(self, now_s: float, level: _Level) -> None:
        anchor = self._anchor
        if anchor is not None:
            growth = level.load / anchor.load - 1.0
            gain = level.speed / anchor.speed - 1.0
            noise = GAIN_NOISE / len(self._round.inflations) ** 0.5
            if gain < GAIN_SHARE * growth - noise:
                if not self._is_after_storm:
                    self._hold_s = min(2 * self._hold_s, HOLD_S_MAX)
                self._hold(now_s, self._good)
                return
        if anchor is None or level.load >= ANCHOR_GROWTH * anchor.load:
            self._anchor = level
        self._hold_s = HOLD_S_FIRST
        self._good = self.limit
        if self.limit >= self._bounds.most:
            self._hold(now_s, self.limit)
            return
        self.limit = min(self.limit + self._step, self._bounds.most)
        self._step = min(2 * self._step, self.limit)

    def _kept(self, now_s: float, level: _Level, inflation: float) -> None:
        held = self._held
        if held is None:
            self._held = level
        else:
            held.load += 0.3 * (level.load - held.load)
            held.speed += 0.3 * (level.speed - held.speed)
        target = int(level.speed * DROP_HEADROOM) + 1
        if self._scale > 1.0 and now_s >= self._relearn_s:
            # A queue of our own would hide in a minimum that was learnt above one.
            target = min(target, self.limit // 2)
        elif inflation <= INFLATION_MAX:
            target = self.limit
        target = max(self._bounds.least, target)
        if target < self.limit:
            self._relearn_s = now_s + RELEARN_S
            self._phase = "drop"
            self._anchor = level
            self.limit = target
            return
        storm = self._is_after_storm
        needed = ANSWERS_AFTER_STORM if storm else ANSWERS_BETWEEN_REFUSALS
        may_climb = now_s >= self._next_climb_s and self._answers >= needed
        if may_climb and self.limit < self._bounds.most:
            self._phase = "climb"
            self._good = self.limit
            self._anchor = self._held
            self._step = self.limit if storm else 1
            self.limit = min(self.limit + self._step, self._bounds.most)
            self._step *= 2

    @property
    def _is_after_storm(self) -> bool:
        return self.limit < self._best / 2

    def _dropped(self, now_s: float, level: _Level, inflation: float) -> None:
        before = self._anchor
        if before is None or level.speed >= DROP_SPEED_MIN * before.speed:
            self._hold(now_s, self.limit)
            return
        self._scale *= max(1.0, inflation)
        self._hold(now_s, before.limit)

    def _hold(self, now_s: float, limit: int) -> None:
        self.limit = self._good = max(limit, self._bounds.least)
        self._phase = "hold"
        self._anchor = self._held = None
        self._next_climb_s = now_s + self._hold_s
        self._best = max(self.limit, self._best if self.limit < self._best / 2 else 0)
        self._new_round(now_s)

    def _refused(self, now_s: float, started_s: float, outcome: Outcome) -> None:
        if started_s < self._reduced_s:
            return  # begun before the last reduction: it says nothing of the limit since
        self._reduced_s = now_s
        if outcome is Outcome.THROTTLED:
            self._answers = 0
        if self._phase == "climb" and self._good < self.limit and self.refused_share < 0.5:
            self._hold_s = min(2 * self._hold_s, HOLD_S_MAX)
            self._hold(now_s, self._good)
            return
        share = TIMEOUT_SHARE if outcome is Outcome.TIMED_OUT else self.refused_share
        kept = max(0.5, 1.0 - share)
        self._hold_s = HOLD_S_FIRST
        self._hold(now_s, min(self.limit - 1, int(self.limit * kept)))


def _mean(values: Sequence[float]) -> float:
    """Return the mean, a straggler counting as four times the median: it was no queue."""
    cap = 4 * median(values)
    return fmean(min(value, cap) for value in values)
