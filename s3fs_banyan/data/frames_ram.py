"""Decoded frames in RAM, least recently used first out. For the event loop: no lock, no I/O.

Frames are verified before they come here; what is here is served as it is.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from s3fs_banyan.model import ChunkId

_ENTRY_BYTES: Final = 256
"""What Python keeps for an entry beside the bytes: tuple, dict slots, headers."""


class RamFrames:
    """(chunk, frame index) -> bytes of the frame, up to `size_bytes` in all."""

    def __init__(self, size_bytes: int) -> None:
        self._limit = size_bytes
        self._frames: OrderedDict[tuple[ChunkId, int], bytes] = OrderedDict()
        self._of_chunk: dict[ChunkId, set[int]] = {}
        self._used = 0
        self.hits = 0
        self.misses = 0
        self.evictions = 0

    def __len__(self) -> int:
        """Return the count of frames."""
        return len(self._frames)

    @property
    def used_bytes(self) -> int:
        """RAM taken: the frames and what Python keeps beside each."""
        return self._used

    def get(self, chunk_id: ChunkId, frame_index: int) -> bytes | None:
        """Return a frame, now the most recently used one, or None."""
        key = (chunk_id, frame_index)
        data = self._frames.get(key)
        if data is None:
            self.misses += 1
            return None
        self._frames.move_to_end(key)
        self.hits += 1
        return data

    def put(self, chunk_id: ChunkId, frame_index: int, data: bytes) -> None:
        """Keep a frame; one larger than the whole limit is not kept."""
        self._remove((chunk_id, frame_index))
        if len(data) + _ENTRY_BYTES > self._limit:
            return
        self._frames[chunk_id, frame_index] = data
        self._of_chunk.setdefault(chunk_id, set()).add(frame_index)
        self._used += len(data) + _ENTRY_BYTES
        while self._used > self._limit:
            self._remove(next(iter(self._frames)))
            self.evictions += 1

    def drop_chunk(self, chunk_id: ChunkId) -> None:
        """Drop all frames of a chunk."""
        for frame_index in tuple(self._of_chunk.get(chunk_id, ())):
            self._remove((chunk_id, frame_index))

    def clear(self) -> None:
        """Drop everything."""
        self._frames.clear()
        self._of_chunk.clear()
        self._used = 0

    def _remove(self, key: tuple[ChunkId, int]) -> None:
        data = self._frames.pop(key, None)
        if data is None:
            return
        self._used -= len(data) + _ENTRY_BYTES
        chunk_id, frame_index = key
        indexes = self._of_chunk[chunk_id]
        indexes.discard(frame_index)
        if not indexes:
            del self._of_chunk[chunk_id]
