"""Which request may start now: the limits of all classes, their courtesy, and the caps.

Pure: fed with times, it decides and never waits. `pacing.py` makes threads wait by it, the tests
a simulated store. On top of one `Limiter` a class there are three rules.

* **Courtesy.** Uploads and prefetch share a line with demand reads. When these take more than
  half again as long as on an idle store, the bulk's share of its limit
  falls by a fifth an answer, down to a quarter; it comes back within a second of quiet. Another
  process of the mount is told the share (`hint`), since it sends what disturbs this one.
* **Retry-After** is kept by the call that was told (retry layer). Only where the store refuses
  half of all answers, the whole class waits for it.
* **Caps** in bytes a second, one each way. A bucket may go into debt, so that an object larger
  than a second's worth can start at all. Control requests pay and do not wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Final

from s3fs_banyan.remote.limiter import Bounds, Limiter, Outcome
from s3fs_banyan.remote.traffic import Traffic

COURTESY_INFLATION: Final = 1.5
COURTESY_FALL: Final = 0.8
COURTESY_RISE: Final = 1.1
COURTESY_LEAST: Final = 0.25
COURTESY_QUIET_S: Final = 1.0
HINT_S: Final = 1.0
"""How long the word of another process holds; it is repeated while it is below 1."""

STORM_SHARE: Final = 0.5
PAUSE_S_MAX: Final = 30.0
CONTROL_AT_ONCE: Final = 16
_BULK: Final = (Traffic.UPLOAD, Traffic.PREFETCH)


@dataclass(frozen=True, slots=True, kw_only=True)
class PacingOptions:
    """What a person may set. A rate of 0 is none."""

    upload: Bounds
    demand: Bounds
    prefetch: Bounds
    upload_rate_bytes: int = 0
    download_rate_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A request in flight."""

    traffic: Traffic
    started_s: float
    received_bytes_paid: int


class TokenBucket:
    """Bytes a second, with a second's worth of burst; debts are paid by waiting."""

    def __init__(self, rate_bytes: int) -> None:
        self._rate = rate_bytes
        self._level = float(rate_bytes)
        self._at_s = 0.0

    def wait_s(self, now_s: float) -> float:
        """Return how long until something may start."""
        if not self._rate:
            return 0.0
        self._fill(now_s)
        return max(0.0, -self._level / self._rate)

    def pay(self, now_s: float, size: int) -> None:
        """Take bytes out, into debt if need be; a negative size gives some back."""
        if self._rate:
            self._fill(now_s)
            self._level -= size

    def _fill(self, now_s: float) -> None:
        level = self._level + (now_s - self._at_s) * self._rate
        self._level = min(level, float(self._rate))
        self._at_s = now_s


class Pacer:
    """Admission for one store in one process. Not safe for threads: its owner holds a lock."""

    def __init__(self, options: PacingOptions) -> None:
        control = Bounds(least=CONTROL_AT_ONCE, most=CONTROL_AT_ONCE, first=CONTROL_AT_ONCE)
        self.limiters = {
            Traffic.UPLOAD: Limiter(options.upload),
            Traffic.DEMAND: Limiter(options.demand),
            Traffic.PREFETCH: Limiter(options.prefetch),
            Traffic.CONTROL: Limiter(control),
        }
        self._sent = TokenBucket(options.upload_rate_bytes)
        self._received = TokenBucket(options.download_rate_bytes)
        self._paused_until_s = dict.fromkeys(Traffic, 0.0)
        self._share = 1.0
        self._demand_inflation = 1.0
        self._calm_inflation = 1.0
        self._demand_answers = 0
        self._demand_end_s = 0.0
        self._hint = 1.0
        self._hint_until_s = 0.0

    def wait_s(self, traffic: Traffic, now_s: float) -> float:
        """Return 0 if a request may start, else after how long to ask again (inf: an answer)."""
        pause_s = self._paused_until_s[traffic] - now_s
        if pause_s > 0:
            return pause_s
        if self.limiters[traffic].in_flight >= self.limit(traffic, now_s):
            return inf
        if traffic is Traffic.CONTROL:
            return 0.0
        bucket = self._sent if traffic is Traffic.UPLOAD else self._received
        return bucket.wait_s(now_s)

    def limit(self, traffic: Traffic, now_s: float) -> int:
        """Return how many requests of a class may be in flight just now, courtesy included."""
        limit = self.limiters[traffic].limit
        if traffic not in _BULK:
            return limit
        hint = self._hint if now_s < self._hint_until_s else 1.0
        return max(1, int(limit * min(self.share(now_s), hint)))

    def share(self, now_s: float) -> float:
        """Return the part of its limit that bulk takes; below 1 while demand reads suffer."""
        if self.limiters[Traffic.DEMAND].in_flight:
            return self._share
        return min(1.0, self._share + (now_s - self._demand_end_s) / COURTESY_QUIET_S)

    def hint(self, share: float, now_s: float) -> None:
        """Take the share that another process of this mount asks for."""
        self._hint = max(COURTESY_LEAST, min(1.0, share))
        self._hint_until_s = now_s + HINT_S

    def start(self, traffic: Traffic, now_s: float, sends: int, receives: int) -> Started:
        """Note that a request starts; the bytes that it is known to move are paid now."""
        self._sent.pay(now_s, sends)
        self._received.pay(now_s, receives)
        if traffic is Traffic.DEMAND:
            self._share = self.share(now_s)
        self.limiters[traffic].start(now_s)
        return Started(traffic=traffic, started_s=now_s, received_bytes_paid=receives)

    def end(
        self,
        started: Started,
        now_s: float,
        *,
        size: int,
        received: int,
        outcome: Outcome,
        retry_after_s: float | None = None,
    ) -> None:
        """Note the answer: `size` bytes went either way, `received` of them came."""
        self._received.pay(now_s, received - started.received_bytes_paid)
        limiter = self.limiters[started.traffic]
        inflation = limiter.end(now_s, started.started_s, size, outcome)
        if retry_after_s and limiter.refused_share >= STORM_SHARE:
            pause_s = min(retry_after_s, PAUSE_S_MAX)
            self._paused_until_s[started.traffic] = now_s + pause_s
        if started.traffic is Traffic.DEMAND:
            if outcome is Outcome.OK:
                self._be_courteous(inflation)
            self._demand_end_s = now_s

    def _be_courteous(self, inflation: float) -> None:
        """Move the share of bulk after a demand read.

        What counts as calm is learnt as well, quickly downwards and slowly upwards: on a store
        whose times vary much, the usual one is well above the minimum without any load.
        """
        self._demand_answers += 1
        now = self._demand_inflation = _toward(self._demand_inflation, inflation, 0.3)
        weight = 0.2 if now < self._calm_inflation else max(0.001, 1 / self._demand_answers)
        self._calm_inflation = max(1.0, _toward(self._calm_inflation, now, weight))
        if now <= COURTESY_INFLATION * self._calm_inflation:
            self._share = min(1.0, self._share * COURTESY_RISE)
        else:
            self._share = max(COURTESY_LEAST, self._share * COURTESY_FALL)


def _toward(value: float, target: float, weight: float) -> float:
    return value + weight * (target - value)
