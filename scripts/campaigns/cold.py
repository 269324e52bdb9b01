"""Files whose bytes are known, read from the store again and again while the load runs.

The load's own reads are mostly answered by the caches. Here there is more than the block cache
holds, and the kernel's pages are dropped before each read, so that nearly every read is one of
the store. Large files come and go meanwhile: packs, and uploads in parts.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1 << 20
FILE_BYTES = MIB
LARGE_EVERY_S = 20.0
LARGE_KEPT = 3


class ColdError(Exception):
    """A read gave other bytes than were written."""


@dataclass(slots=True, kw_only=True)
class ColdFiles:
    """Writes, reads and compares; a thread for each of the two."""

    directory: Path
    seed: int
    count: int = 96
    large_bytes: int = 24 * MIB
    pause_s: float = 0.1
    reads: int = 0
    large_written: int = 0
    longest_read_s: float = 0.0
    failure: Exception | None = None
    _sums: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ended: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def prepare(self) -> None:
        """Write the small files."""
        self.directory.mkdir()
        rng = random.Random(f"cold {self.seed}")
        for number in range(self.count):
            self._write(f"small-{number}", rng.randbytes(FILE_BYTES))

    def start(self) -> None:
        """Begin to read, and to write large files."""
        for body in (self._read_some, self._write_large):
            thread = threading.Thread(target=self._guarded, args=(body,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self, within_s: float = 120.0) -> None:
        """End; raises what went wrong meanwhile."""
        self._ended.set()
        for thread in self._threads:
            thread.join(within_s)
            if thread.is_alive():
                raise ColdError(f"a read or write did not end within {within_s:.0f} s")
        if self.failure is not None:
            raise self.failure

    def verify(self) -> None:
        """Read everything and compare."""
        for name in sorted(self._sums):
            self._compare(name, 0, None)

    # --- inside --------------------------------------------------------------------------

    def _guarded(self, body: Callable[[], None]) -> None:
        try:
            body()
        except (OSError, ColdError) as error:
            self.failure = error
            self._ended.set()

    def _read_some(self) -> None:
        rng = random.Random(f"reads {self.seed}")
        while not self._ended.wait(self.pause_s):
            with self._lock:
                names = sorted(self._sums)
            begin = time.monotonic()
            name = rng.choice(names)
            try:
                self._compare(name, rng.randrange(2), rng)
            except FileNotFoundError:
                if name in self._sums:
                    raise
            self.reads += 1
            self.longest_read_s = max(self.longest_read_s, time.monotonic() - begin)

    def _write_large(self) -> None:
        rng = random.Random(f"large {self.seed}")
        names: list[str] = []
        while not self._ended.wait(LARGE_EVERY_S):
            name = f"large-{self.large_written}"
            self._write(name, rng.randbytes(self.large_bytes))
            names.append(name)
            self.large_written += 1
            if len(names) > LARGE_KEPT:
                old = names.pop(0)
                with self._lock:
                    del self._sums[old]
                (self.directory / old).unlink()

    def _write(self, name: str, data: bytes) -> None:
        with (self.directory / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with self._lock:
            self._sums[name] = hashlib.sha256(data).hexdigest()

    def _compare(self, name: str, part: int, rng: random.Random | None) -> None:
        """Read a file past the kernel's pages, in one go or from the middle first."""
        wanted = self._sums.get(name)
        if wanted is None:
            return
        with (self.directory / name).open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            size = os.fstat(file.fileno()).st_size
            middle = rng.randrange(size) if rng is not None and part else 0
            tail = _read(file.fileno(), middle, size - middle)
            head = _read(file.fileno(), 0, middle)
        if hashlib.sha256(head + tail).hexdigest() != wanted:
            raise ColdError(f"{name}: wrong bytes of {size}")


def _read(fd: int, offset: int, length: int) -> bytes:
    pieces = []
    while length:
        piece = os.pread(fd, min(length, MIB), offset)
        if not piece:
            raise ColdError(f"the file ends at byte {offset}")
        pieces.append(piece)
        offset += len(piece)
        length -= len(piece)
    return b"".join(pieces)
