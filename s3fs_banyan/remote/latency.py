"""How long requests take lately, by verb and size: when to give one up, when to ask twice.

Pure: times go in, times come out. For each verb and size class (powers of four) the last 128
answers are kept, those of attempts included that were given up meanwhile: so a store that has
become slow is learnt as slow, and not given up for ever.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final

WINDOW: Final = 128
ANSWERS_MIN: Final = 32
"""With fewer answers nothing is given up and nothing is asked twice."""

CUT_QUANTILE: Final = 0.95
CUT_FACTOR: Final = 8.0
CUT_S_MIN: Final = 2.0
CUT_DOUBLINGS_MAX: Final = 4
_CUTS_KEPT: Final = 256
HEDGE_QUANTILE: Final = 0.97
HEDGE_S_MIN: Final = 0.01
HEDGE_BYTES_MAX: Final = 1 << 20
HEDGE_SHARE: Final = 0.03
HEDGES_SAVED_MAX: Final = 4.0


@dataclass(slots=True)
class _Kind:
    """One verb and size class."""

    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    ordered: list[float] = field(default_factory=list)

    def quantile(self, share: float) -> float | None:
        if len(self.seconds) < ANSWERS_MIN:
            return None
        if not self.ordered:
            self.ordered = sorted(self.seconds)
        return self.ordered[int(share * (len(self.ordered) - 1))]


class LatencyBook:
    """What is known of the time of requests. Not safe for threads: its owner holds a lock."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, int], _Kind] = {}
        self._cuts: OrderedDict[str | tuple[str, int], int] = OrderedDict()
        self._hedges = 0.0

    def answered(self, verb: str, size: int, seconds: float) -> None:
        """Note an answer with the object's bytes or a plain yes."""
        kind = self._kind(verb, size)
        kind.seconds.append(seconds)
        if len(kind.seconds) % 8 == 0 or len(kind.seconds) == WINDOW:
            kind.ordered = []

    def cut(self, verb: str, size: int, path: str) -> None:
        """Note that a request was given up: the next for this object gets twice the time.

        So does the next of the kind, until one is answered in time: the store may be slow.
        """
        for key in (path, self._key(verb, size)):
            self._cuts[key] = min(self._cuts.get(key, 0) + 1, CUT_DOUBLINGS_MAX)
            self._cuts.move_to_end(key)
        while len(self._cuts) > _CUTS_KEPT:
            self._cuts.popitem(last=False)

    def in_time(self, verb: str, size: int, path: str) -> None:
        """Note that a caller got its answer before it gave up."""
        if self._cuts:
            self._cuts.pop(path, None)
            self._cuts.pop(self._key(verb, size), None)

    def cut_after_s(self, verb: str, size: int, path: str) -> float | None:
        """Return after how long a request counts as stalled; None if too little is known.

        Eight times what all but one in twenty stay below, and two seconds at least: a slow
        answer is awaited, a lost one is not.
        """
        kind = self._kind(verb, size)
        usual_s = kind.quantile(CUT_QUANTILE)
        if usual_s is None:
            return None
        doublings = max(self._cuts.get(path, 0), self._cuts.get(self._key(verb, size), 0))
        return float(max(CUT_S_MIN, CUT_FACTOR * usual_s) * 2**doublings)

    def hedge_after_s(self, verb: str, size: int) -> float | None:
        """Return after how long a second request is worth its price; None if it never is."""
        if verb != "read" or size > HEDGE_BYTES_MAX:
            return None
        usual_s = self._kind(verb, size).quantile(HEDGE_QUANTILE)
        return None if usual_s is None else max(HEDGE_S_MIN, usual_s)

    def earn_hedge(self) -> None:
        """Note a read: three in a hundred may be asked for twice, a few saved ones at once."""
        self._hedges = min(self._hedges + HEDGE_SHARE, HEDGES_SAVED_MAX)

    def take_hedge(self) -> bool:
        """Tell whether a second request may be made, and count it."""
        if self._hedges < 1.0:
            return False
        self._hedges -= 1.0
        return True

    def forbid_hedges(self) -> None:
        """The store refuses requests: what was saved for second ones is gone."""
        self._hedges = 0.0

    def _kind(self, verb: str, size: int) -> _Kind:
        return self._kinds.setdefault(self._key(verb, size), _Kind())

    @staticmethod
    def _key(verb: str, size: int) -> tuple[str, int]:
        return verb, size.bit_length() // 2
