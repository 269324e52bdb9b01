"""Which error is tried again, how often, and after what delay: the one table.

`docs/store.md` holds what `render` makes of it; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from s3fs_banyan.errors import BrokenBody, StoreError, Throttled, TransferCorrupt, Unavailable

REPEATABLE_VERBS: Final = frozenset(
    {"list", "read", "write", "delete", "stat", "upload_part", "list_parts", "abort_upload",
     "list_uploads"}
)  # fmt: skip
"""Calls that may be made twice. The others are `create` (a write with `if_absent`), whose lost
answer only its caller can read, `begin_upload`, which would leave a second upload behind, and
`complete_upload`, which finds its upload gone when it is made again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRule:
    """How one kind of error is tried again, within the deadline of the call."""

    calls: Literal["every call", "calls that may be repeated", "reads, for the rest of the body"]
    attempts_max: int
    """Attempts after which it counts as lasting; 0: the deadline decides."""
    base_s: float = 0.1
    cap_s: float = 10.0
    """The n-th wait is a random share of min(cap, base x 2^n)."""

    def delay_s(self, attempt: int, jitter: float) -> float:
        """Return the wait before the attempt that follows number `attempt` (from 0)."""
        return jitter * min(self.cap_s, self.base_s * 2.0 ** min(attempt, 30))

    def may_repeat(self, verb: str, attempt: int) -> bool:
        """Tell whether a call that failed in this way in attempt `attempt` is made again."""
        if self.attempts_max and attempt + 1 >= self.attempts_max:
            return False
        return self.calls == "every call" or verb in REPEATABLE_VERBS


RULES: Final[Mapping[type[StoreError], RetryRule]] = {
    # The limit of the pacing layer keeps requests down; longer waits would only make the callers
    # late when the storm is over.
    Throttled: RetryRule(calls="every call", attempts_max=0, cap_s=2.0),
    BrokenBody: RetryRule(
        calls="reads, for the rest of the body", attempts_max=0, base_s=0.02, cap_s=1.0
    ),
    Unavailable: RetryRule(calls="calls that may be repeated", attempts_max=0),
    TransferCorrupt: RetryRule(calls="calls that may be repeated", attempts_max=5),
}
"""Error -> rule. An error that is not here is passed on at once."""

REASONS: Final[Mapping[type[StoreError], str]] = {
    Throttled: "throttled",
    BrokenBody: "broken",
    Unavailable: "unavailable",
    TransferCorrupt: "corrupt",
}
"""Error -> the `reason` that a retry is counted under."""


def render() -> list[str]:
    """Return the rows of the document's table."""
    rows = []
    for kind, rule in RULES.items():
        often = f"{rule.attempts_max} attempts" if rule.attempts_max else "until the deadline"
        delay = f"{rule.base_s:g} s, doubling up to {rule.cap_s:g} s"
        if kind is Throttled:
            delay += ", plus Retry-After"
        rows.append(f"| `{kind.__name__}` | {rule.calls} | {often} | {delay} |")
    return rows
