"""The budget of requests: how long the commit interval must be for commits to stay within it.

After each commit the requests since the one before are counted: its own, and what went on beside
it (heartbeats, checkpoints, reclaim). Commits that cost `c` requests each stay within `b` requests
an hour if they are `c / b` hours apart. What goes on beside them grows with the interval, so the
next measurement corrects the first one; the steps shrink as long as that alone is within `b`.

Only the interval is stretched. Whoever waits for the store (remote fsyncs, sync, umount) and a
backlog that is too large get their commit at once. Pure: numbers in, seconds out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

_WEIGHT: Final = 0.3
"""Of the newest measurement: one large commit must not silence the next ten."""
_HOUR_S: Final = 3600.0


class RequestBudget:
    """Stretches the interval of one mount's commits. One event loop."""

    def __init__(
        self,
        *,
        interval_s: float,
        interval_max_s: float,
        requests_per_hour: int,
        count: Callable[[], float],
    ) -> None:
        """`count` gives the requests so far that count; a budget of 0 sets no limit."""
        self._interval_s = interval_s
        self._interval_max_s = max(interval_s, interval_max_s)
        self._per_hour = requests_per_hour
        self._count = count
        self._counted = 0.0
        self._commit_ns = -1
        self._per_commit: float | None = None
        self.stretched_s = interval_s
        """The interval at present, for status."""

    def interval_s(self, commit_ns: int) -> float:
        """Return the interval after the commit that was begun at `commit_ns`."""
        if self._per_hour and commit_ns != self._commit_ns:
            self._measure(commit_ns)
        return self.stretched_s

    def _measure(self, commit_ns: int) -> None:
        counted = self._count()
        spent = counted - self._counted
        is_first = self._commit_ns < 0
        elapsed_s = (commit_ns - self._commit_ns) / 1e9
        if elapsed_s > self.stretched_s:  # what idle hours have cost is not this commit's
            spent *= self.stretched_s / elapsed_s
        self._counted, self._commit_ns = counted, commit_ns
        if is_first or not spent:
            return  # what the mount itself has cost; a commit that found nothing to be done
        before = self._per_commit
        self._per_commit = spent if before is None else before + _WEIGHT * (spent - before)
        needed_s = self._per_commit * _HOUR_S / self._per_hour
        self.stretched_s = min(max(self._interval_s, needed_s), self._interval_max_s)
