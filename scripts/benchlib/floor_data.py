"""Bytes of the floor's files: extents in one local file, handed out at its end.

Owns the data file and each file's map from offsets to places. New bytes go to the end of the
data file, old bytes are overwritten where they lie, space is never taken back. Knows nothing
of names, attributes or FUSE.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from pathlib import Path


class DataFile:
    """The one local file; `tail` is where the next new bytes go."""

    __slots__ = ("fd", "tail")

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self.tail = 0

    def append(self, data: bytes | memoryview) -> int:
        """Write `data` at the end and return its place."""
        place = self.tail
        self.overwrite(place, data)
        self.tail = place + len(data)
        return place

    def overwrite(self, place: int, data: bytes | memoryview) -> None:
        """Write all of `data` at `place`."""
        written = os.pwrite(self.fd, data, place)
        while written < len(data):
            written += os.pwrite(self.fd, memoryview(data)[written:], place + written)

    def sync(self) -> None:
        """Return when all written bytes are on the disk."""
        os.fdatasync(self.fd)

    def close(self) -> None:
        """Close the file; its bytes are of no use to anyone afterwards."""
        os.close(self.fd)


class Extents:
    """Where one file's bytes lie: three parallel lists, ordered by offset, never overlapping."""

    __slots__ = ("lengths", "places", "starts")

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.lengths: list[int] = []
        self.places: list[int] = []

    def write(self, data_file: DataFile, offset: int, data: bytes) -> None:
        """Write `data` at `offset`: old bytes where they lie, new ones at the data file's end."""
        if not self.starts or offset >= self.starts[-1] + self.lengths[-1]:
            self._append(data_file, offset, data)
        else:
            self._overlay(data_file, offset, data)

    def _append(self, data_file: DataFile, offset: int, data: bytes) -> None:
        place = data_file.append(data)
        if (
            self.starts
            and offset == self.starts[-1] + self.lengths[-1]
            and place == self.places[-1] + self.lengths[-1]
        ):
            self.lengths[-1] += len(data)
            return
        self._insert(len(self.starts), offset, len(data), place)

    def _overlay(self, data_file: DataFile, offset: int, data: bytes) -> None:
        view = memoryview(data)
        index = bisect_right(self.starts, offset) - 1
        while view:
            stop = self.starts[index] + self.lengths[index] if index >= 0 else 0
            following = self.starts[index + 1] if index + 1 < len(self.starts) else None
            if offset < stop:
                count = min(len(view), stop - offset)
                data_file.overwrite(self.places[index] + offset - self.starts[index], view[:count])
            elif following == offset:
                index += 1
                continue
            else:
                count = len(view) if following is None else min(len(view), following - offset)
                index += 1
                self._insert(index, offset, count, data_file.append(view[:count]))
            offset += count
            view = view[count:]

    def _insert(self, index: int, start: int, length: int, place: int) -> None:
        self.starts.insert(index, start)
        self.lengths.insert(index, length)
        self.places.insert(index, place)

    def read(self, data_file: DataFile, offset: int, size: int) -> bytes:
        """Return the `size` bytes from `offset`, zeros where nothing was ever written."""
        index = bisect_right(self.starts, offset) - 1
        if index >= 0:
            within = offset - self.starts[index]
            if within + size <= self.lengths[index]:
                return os.pread(data_file.fd, size, self.places[index] + within)
        return self._gather(data_file, max(index, 0), offset, size)

    def _gather(self, data_file: DataFile, index: int, offset: int, size: int) -> bytes:
        result = bytearray(size)
        while index < len(self.starts) and self.starts[index] < offset + size:
            begin = max(offset, self.starts[index])
            end = min(offset + size, self.starts[index] + self.lengths[index])
            if begin < end:
                place = self.places[index] + begin - self.starts[index]
                result[begin - offset : end - offset] = os.pread(data_file.fd, end - begin, place)
            index += 1
        return bytes(result)

    def truncate(self, size: int) -> None:
        """Forget every byte at or behind `size`, so that growing again shows zeros."""
        while self.starts and self.starts[-1] >= size:
            self.starts.pop()
            self.lengths.pop()
            self.places.pop()
        if self.starts:
            self.lengths[-1] = min(self.lengths[-1], size - self.starts[-1])
