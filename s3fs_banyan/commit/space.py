"""Room on the local disk: a ballast keeps SQLite and the committer working when others fill it.

The journal's segments are made in advance, but live.db, committed.db and the outbox grow. So a
file of bytes lies in the local directory. When the disk runs low it is given up: its room is the
databases' then, and calls that need more space wait, or get ENOSPC where no commit would free
enough, until there is room for a new one.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

from s3fs_banyan.journal.disk import Disk
from s3fs_banyan.runtime import Runtime

log = logging.getLogger(__name__)

BALLAST: Final = "ballast"
BALLAST_BYTES_MAX: Final = 64 << 20
LOW_BYTES: Final = 16 << 20
_LOOK_NS: Final = 50_000_000


def ballast_bytes(free_bytes: int) -> int:
    """Return the size of the ballast on a disk with so much free space."""
    return min(BALLAST_BYTES_MAX, free_bytes // 8)


class LocalSpace:
    """Watches the disk of one local directory. One event loop."""

    def __init__(self, disk: Disk, root: Path, runtime: Runtime) -> None:
        """Make the ballast; a disk that is low already starts as low."""
        self._disk = disk
        self._root = root
        self._path = root / BALLAST
        self._runtime = runtime
        self._bytes = ballast_bytes(disk.free_bytes(root))
        self._looked_ns = 0
        self.is_low = False
        """Nothing may grow."""
        self._make_ballast()

    def look(self) -> bool:
        """Tell whether the disk is low; looks at it a few times a second at most."""
        now_ns = self._runtime.monotonic_ns()
        if now_ns - self._looked_ns < _LOOK_NS:
            return self.is_low
        return self.look_now()

    def look_now(self) -> bool:
        """The same without a thought for what a look costs: before a database grows."""
        self._looked_ns = self._runtime.monotonic_ns()
        free = self._disk.free_bytes(self._root)
        if not self.is_low and free < LOW_BYTES:
            self.is_low = True
            self._path.unlink(missing_ok=True)
            log.error("the disk of %s is full: calls that need space wait, or fail", self._root)
        elif self.is_low and free > self._enough:
            self.is_low = False
            self._make_ballast()
            log.warning("the disk of %s has room again", self._root)
        return self.is_low

    def would_do(self, freed_bytes: int) -> bool:
        """Tell whether there were room for one more segment, if so many bytes more were free."""
        free = self._disk.free_bytes(self._root) + freed_bytes
        return free > (self._enough if self.is_low else LOW_BYTES)

    @property
    def _enough(self) -> int:
        """Free bytes with which a new ballast does not make the disk low again at once."""
        return self._bytes + 2 * LOW_BYTES

    def _make_ballast(self) -> None:
        """Reserve the bytes; on a file system that cannot, there is no ballast."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if self._bytes:
                os.posix_fallocate(fd, 0, self._bytes)
        except OSError as error:
            log.warning("no reserve on the disk of %s: %s", self._root, error)
        finally:
            os.close(fd)
