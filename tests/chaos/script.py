"""What goes wrong on the way to the store, and when: drawn from a seed, injected by the proxy.

Time is cut into *weathers* of 8 to 25 s; each cycle has every one of them once, in an order from
the seed. A weather says how many requests are hit, and by what. Blackouts lie between them at
given moments. Of the kinds that fit a request the one that requests like it have had least
is the likeliest, so even a short run has all of them. Pure: no clock, no socket.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import parse_qs, urlsplit

BLACKOUT_KINDS: Final = ("refused", "black-holed")
_RATE_OF_CHANGES: Final = 1.5

Mode = Literal["open", "refused", "black-holed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the script needs to know of a request."""

    method: str
    target: str
    body_bytes: int

    @property
    def category(self) -> str:
        """First part of the key below the volume's prefix, or what it is instead."""
        parts = urlsplit(self.target)
        keys = parts.path.split("/")[3:]  # after "", bucket and prefix
        if len(keys) > 1:
            return keys[0]
        return keys[0] if keys and keys[0] else "bucket"

    @property
    def line(self) -> str:
        """Method and category, under which it is counted."""
        return f"{self.method} {self.category}"

    @property
    def names_object(self) -> bool:
        """Whether it is about the bytes of one object, and not a list or an upload's state."""
        query = parse_qs(urlsplit(self.target).query, keep_blank_values=True)
        return not query.keys() & {"list-type", "uploads", "delete", "location"} and not (
            "uploadId" in query and "partNumber" not in query
        )


def _any(_: Request) -> bool:
    return True


def _has_body(request: Request) -> bool:
    return request.body_bytes > 0


def _puts_object(request: Request) -> bool:
    """A body whose Content-MD5 every server checks: SeaweedFS does not for a batch delete."""
    return request.method == "PUT" and request.body_bytes > 0


def _changes(request: Request) -> bool:
    return request.method in {"PUT", "POST", "DELETE"}


def _reads_object(request: Request) -> bool:
    return request.method == "GET" and request.names_object


def _tells_etag(request: Request) -> bool:
    query = parse_qs(urlsplit(request.target).query, keep_blank_values=True)
    completes = request.method == "POST" and "uploadId" in query
    return completes or (request.method in {"PUT", "GET", "HEAD"} and request.names_object)


KINDS: Final = {
    "slow_down": _any,
    "slow_down_retry_after": _any,
    "too_many_requests": _any,
    "internal_error": _any,
    "stalled": _any,
    "stalled_answer": _changes,
    "late": _changes,
    "request_reset": _has_body,
    "request_flipped": _puts_object,
    "answer_reset": _reads_object,
    "answer_truncated": _reads_object,
    "answer_flipped": _reads_object,
    "wrong_etag": _tells_etag,
    "lost_answer": _changes,
}
"""Kind -> which requests it fits. `stalled`: not passed on, no answer. `stalled_answer`: carried
out, no answer until the client gives up. `late`: carried out after the client has given up.
`lost_answer`: carried out, and the connection is closed instead of the answer."""

DELAY: Final = "delayed"
"""Added latency; it comes on top of the others."""

THROTTLES: Final = ("slow_down", "slow_down_retry_after", "too_many_requests")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """How many requests are hit, by which kinds, and by how much all are delayed."""

    name: str
    rate: float
    kinds: tuple[str, ...] = tuple(KINDS)
    delay_s: tuple[float, float] = (0.0, 0.0)


WEATHERS: Final = (
    Weather(name="calm", rate=0.02),
    Weather(name="changeable", rate=0.3, delay_s=(0.0, 0.1)),
    Weather(name="throttle storm", rate=0.9, kinds=THROTTLES),
    Weather(name="rough", rate=0.5, delay_s=(0.0, 0.3)),
    Weather(name="slow", rate=0.1, delay_s=(0.2, 2.0)),
)
CLEAR: Final = Weather(name="clear", rate=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blackout:
    """The store is gone from `start_s` on, for `length_s`."""

    start_s: float
    length_s: float
    kind: Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens to one request. `at` in [0, 1) is where in a body it happens."""

    kind: str = ""
    delay_s: float = 0.0
    at: float = 0.0


@dataclass(slots=True, kw_only=True)
class Script:
    """The faults of one run. Not safe for several threads at once."""

    seed: int
    duration_s: float
    blackouts: tuple[Blackout, ...] = ()
    fixed: str = ""
    """Name of the one weather of the whole run, for short ones."""
    only: str = ""
    """A test's way: every request that it fits gets this kind."""
    injected: Counter[str] = field(default_factory=Counter)
    by_target: Counter[str] = field(default_factory=Counter)
    """`KIND METHOD CATEGORY` -> how often."""
    _rng: random.Random = field(init=False)
    _weathers: list[tuple[float, Weather]] = field(init=False)

    def __post_init__(self) -> None:
        """Draw the weathers of the whole run."""
        self._rng = random.Random(f"requests {self.seed}")
        rng = random.Random(f"weathers {self.seed}")
        self._weathers = []
        at_s = 0.0
        while at_s < self.duration_s:
            for weather in rng.sample(_wanted(self.fixed), len(_wanted(self.fixed))):
                self._weathers.append((at_s, weather))
                at_s += rng.uniform(8.0, 25.0)

    def weather(self, at_s: float) -> Weather:
        """Return the weather at a moment of the run; clear after its end."""
        if at_s >= self.duration_s:
            return CLEAR
        index = bisect_right(self._weathers, at_s, key=lambda entry: entry[0])
        return self._weathers[index - 1][1]

    def mode(self, at_s: float) -> Mode:
        """Return whether there is a line to the store at all."""
        for blackout in self.blackouts:
            if blackout.start_s <= at_s < blackout.start_s + blackout.length_s:
                return blackout.kind
        return "open"

    def draw(self, request: Request, at_s: float) -> Fault:
        """Decide what happens to a request. `note` tells that it did happen."""
        if self.only:
            fits = self.only == DELAY or KINDS[self.only](request)
            kind = self.only if fits and self.only != DELAY else ""
            delay_s = 0.05 if self.only == DELAY else 0.0
            return Fault(kind=kind, delay_s=delay_s, at=self._rng.random())
        weather = self.weather(at_s)
        delay_s = self._rng.uniform(*weather.delay_s)
        at = self._rng.random()
        kind = ""
        # Reads are many, so what changes the store is hit more often.
        rate = min(0.9, weather.rate * (_RATE_OF_CHANGES if _changes(request) else 1.0))
        if self._rng.random() < rate:
            fitting = [name for name in weather.kinds if KINDS[name](request)]
            had = [self.by_target[f"{name} {request.line}"] for name in fitting]
            weights = [1.0 / (1 + count) ** 2 for count in had]
            kind = self._rng.choices(fitting, weights)[0]
        return Fault(kind=kind, delay_s=delay_s, at=at)

    def note(self, kind: str, request: Request | None = None) -> None:
        """Count a fault that was injected."""
        self.injected[kind] += 1
        if request is not None:
            self.by_target[f"{kind} {request.line}"] += 1

    def missing(self) -> list[str]:
        """Return the kinds that were never injected, blackouts that the script has included."""
        wanted = [*KINDS, DELAY, *{blackout.kind for blackout in self.blackouts}]
        return [kind for kind in wanted if not self.injected[kind]]


def _wanted(name: str) -> tuple[Weather, ...]:
    return tuple(weather for weather in WEATHERS if name in {"", weather.name})


def spread_blackouts(seed: int, duration_s: float, lengths_s: Iterable[float]) -> list[Blackout]:
    """Spread blackouts over a run, the kinds in turn, none over the end or over another."""
    lengths = [*lengths_s]
    if not lengths:
        return []
    slot_s = duration_s / len(lengths)
    if any(length > slot_s * 0.9 for length in lengths):
        raise ValueError(f"blackouts of {sum(lengths):.0f} s do not fit into {duration_s:.0f} s")
    rng = random.Random(f"blackouts {seed}")
    return [
        Blackout(
            start_s=number * slot_s + rng.uniform(0.0, slot_s * 0.95 - length),
            length_s=length,
            kind="refused" if number % 2 == 0 else "black-holed",
        )
        for number, length in enumerate(lengths)
    ]
