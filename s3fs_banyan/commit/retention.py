"""What must stay in the store. Reclaim deletes by these rules, and the check asks by them.

They are here and nowhere else: what reclaim may delete is never called missing, and what it must
not delete is always asked for.
"""

from __future__ import annotations

from typing import Protocol

from s3fs_banyan.meta.committed import PackRow


class Window(Protocol):
    """Which commits are kept: a head says so, and the footer of every commit."""

    @property
    def dense_from(self) -> int:
        """Commits from here on are all kept."""
        ...

    @property
    def kept(self) -> tuple[int, ...]:
        """Single commits kept below `dense_from`."""
        ...


def is_kept(seq: int, window: Window) -> bool:
    """Tell whether commit `seq`, its delta and its checkpoint must stay."""
    return seq >= window.dense_from or seq in window.kept


def is_needed(pack: PackRow, window: Window) -> bool:
    """Tell whether a kept commit needs a pack, or a commit with chunks in it.

    Commit k needs it if first seq <= k < dead seq.
    """
    if pack.dead_seq is None or pack.dead_seq > window.dense_from:
        return True
    return any(pack.first_seq <= kept < pack.dead_seq for kept in window.kept)
