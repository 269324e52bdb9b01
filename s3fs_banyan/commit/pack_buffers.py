"""Memory for packs, used again: a pack is put together in it, summed, and sent from it.

The pages of a fresh buffer of 64 MiB cost the kernel as much time as sending it to a machine next
door, so buffers are kept until the sealing ends. There are as many as packs are under way.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from threading import Lock  # noqa: TID251 - a lock between worker threads; no thread is started

from s3fs_banyan.format.checksum import Bytes
from s3fs_banyan.gentle_io import read_into
from s3fs_banyan.remote.base import Summed

_READ_BYTES = 1 << 20


class PackBuffer(Summed):
    """One pack in memory. Its sums grow with it, so that each byte is looked at once."""

    __slots__ = ("_end", "_md5", "_sha256", "_summed")

    def begin(self, *, summed: bool = True) -> None:
        """Begin a new pack; the memory of the one before is used again.

        Without sums it is not to be sent: they would cost more than all else that is done to it.
        """
        self._end = 0
        self.abandoned = False
        self._summed = summed
        self.md5 = self.sha256 = b""  # not those of the pack before
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._sha256 = hashlib.sha256()

    def add(self, piece: Bytes) -> None:
        """Append to the pack."""
        end = self._end + len(piece)
        self[self._end : end] = piece
        self._end = end
        if self._summed:
            self._md5.update(piece)
            self._sha256.update(piece)

    def finish(self) -> None:
        """End the pack: from now on the buffer is exactly it, with its sums."""
        del self[self._end :]
        if self._summed:
            self.md5 = self._md5.digest()
            self.sha256 = self._sha256.digest()

    def load(self, path: Path, *, summed: bool = True) -> None:
        """Make it the pack that lies there. Raises `OSError`. Blocks."""
        self.begin(summed=summed)
        piece = bytearray(_READ_BYTES)
        with path.open("rb", buffering=0) as file:
            while got := read_into(file.fileno(), piece, self._end):
                self.add(memoryview(piece)[:got])
        self.finish()


class PackBuffers:
    """The buffers of one sealing. Safe in several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._free: list[PackBuffer] = []

    def take(self, *, summed: bool = True) -> PackBuffer:
        """Return a buffer, begun; give it back when nobody looks at it any more."""
        with self._lock:
            buffer = self._free.pop() if self._free else PackBuffer()
        buffer.begin(summed=summed)
        return buffer

    def give_back(self, buffer: PackBuffer) -> None:
        """Keep a buffer for the next pack."""
        if buffer.abandoned:
            return  # a request that was given up may still send from it
        with self._lock:
            self._free.append(buffer)
