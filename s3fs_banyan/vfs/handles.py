"""Who still holds an inode: lookup counts of the kernel, open handles, and orphans.

File handles are inode numbers, so nothing that was answered lives only in this process. An inode
without a name is an orphan while it is held; after the last release and forget it is reaped.
"""

from __future__ import annotations

from collections import deque

import trio


class Handles:
    """Counts per inode. One event loop."""

    def __init__(self) -> None:
        self._lookups: dict[int, int] = {}
        self._opens: dict[int, int] = {}
        self._dead: deque[int] = deque()
        self._dead_set: set[int] = set()
        self.dead_wanted = trio.Event()

    def looked_up(self, ino: int) -> None:
        """The kernel was told of this inode once more."""
        self._lookups[ino] = self._lookups.get(ino, 0) + 1

    def forget(self, ino: int, count: int) -> bool:
        """The kernel forgot `count` of them (perhaps more than this process knows)."""
        left = self._lookups.get(ino, 0) - count
        if left > 0:
            self._lookups[ino] = left
            return False
        self._lookups.pop(ino, None)
        return ino not in self._opens

    def opened(self, ino: int) -> None:
        """A handle was opened."""
        self._opens[ino] = self._opens.get(ino, 0) + 1

    def released(self, ino: int) -> bool:
        """A handle was closed; true if nothing holds the inode any more."""
        left = self._opens.get(ino, 0) - 1
        if left > 0:
            self._opens[ino] = left
            return False
        self._opens.pop(ino, None)
        return ino not in self._lookups

    def is_held(self, ino: int) -> bool:
        """Tell whether the kernel or a handle still refers to the inode."""
        return ino in self._lookups or ino in self._opens

    @property
    def open_count(self) -> int:
        """Number of inodes with open handles."""
        return len(self._opens)

    # --- orphans to be reaped ------------------------------------------------------------

    def bury(self, ino: int) -> None:
        """An orphan that nobody holds: to be reaped."""
        if ino not in self._dead_set:
            self._dead_set.add(ino)
            self._dead.append(ino)
            self.dead_wanted.set()

    def next_dead_nowait(self) -> int | None:
        """Return an orphan to be reaped, if there is one that is still not held."""
        while self._dead:
            ino = self._dead.popleft()
            self._dead_set.discard(ino)
            if not self.is_held(ino):
                return ino
        return None
