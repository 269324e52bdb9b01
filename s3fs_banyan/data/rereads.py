"""When bytes from the store that fail their check are damaged there, and not on the way."""

from __future__ import annotations

from typing import Final

from s3fs_banyan.format.checksum import Bytes, xxh3

_FAILURES_MIN: Final = 5
_FAILURES_MAX: Final = 32


class Rereads:
    """The reads of one place that failed: rot is the same every time, flips on the way differ.

    So after a few reads two that gave the same bytes prove damage; while all differ the line is
    bad, and one more read may be the good one. A line that never gives it ends it as well.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._seen: set[int] = set()

    def note(self, stored: Bytes) -> None:
        """Keep in mind what a read gave, before it is checked."""
        self._seen.add(xxh3(stored))

    def prove_damage(self) -> bool:
        """Count a failed check; True if another read would not help."""
        self._failures += 1
        if self._failures < _FAILURES_MIN:
            return False
        return len(self._seen) < self._failures or self._failures >= _FAILURES_MAX
