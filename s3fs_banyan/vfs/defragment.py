"""Defragmentation: files that were written in small pieces across many commits.

Each commit freezes its chunks, so a file that grows by a few KiB between commits ends up as many
small chunks: many rows, many places, many frames to fetch. Now and then such files are read and
their bytes journaled again as one REWRITE per MiB, which changes no time and no size; the old
chunks die with the next commit.
"""

from __future__ import annotations

import logging
from typing import Final

import trio

from s3fs_banyan.commit.state import EngineState
from s3fs_banyan.errors import FSError
from s3fs_banyan.model import CHUNK_BYTES_MAX, Rewrite
from s3fs_banyan.vfs.filesystem import FileSystem

log = logging.getLogger(__name__)

ROUND_BYTES_MAX: Final = 64 << 20
"""At most so many bytes are rewritten in one round."""
_EXTENTS_MIN: Final = 8
_EXTENT_BYTES_MEAN_MAX: Final = 64 * 1024
_QUIET_NS: Final = 60 * 10**9
"""Files written to within this time are left alone."""


class Defragmenter:
    """One round after each round of reclaim. One event loop."""

    def __init__(self, state: EngineState, filesystem: FileSystem) -> None:
        self._state = state
        self._fs = filesystem
        self.rewritten_bytes = 0

    async def run(self, every_s: float) -> None:
        """A round every so often; ends only by cancellation."""
        while True:
            await trio.sleep(every_s)
            if not self._state.read_only_reason:
                await self.round()

    async def round(self) -> int:
        """Rewrite the most fragmented files; returns the bytes rewritten. Safe to cancel."""
        done = 0
        candidates = await self._state.ctx.runtime.in_thread(self._candidates)
        for ino in candidates:
            if done >= ROUND_BYTES_MAX or self._state.read_only_reason:
                break
            done += await self._rewrite(ino, ROUND_BYTES_MAX - done)
        if done:
            self.rewritten_bytes += done
            log.info("defragmentation rewrote %d bytes", done)
        return done

    def _candidates(self) -> list[int]:
        with self._state.committed.view() as view:
            return view.fragmented(_EXTENTS_MIN, _EXTENT_BYTES_MEAN_MAX)

    async def _rewrite(self, ino: int, budget: int) -> int:
        """Rewrite a file window by window; a window that changes meanwhile is left alone."""
        done = start = 0
        while done < budget:
            attributes = self._state.live.tree.attributes(ino)
            if attributes is None or start >= attributes.size or attributes.nlink == 0:
                break
            if self._state.ctx.runtime.wall_ns() - attributes.mtime_ns < _QUIET_NS:
                break
            end = min(start + CHUNK_BYTES_MAX, attributes.size)
            done += await self._rewrite_window(ino, start, end)
            start = end
            await trio.lowlevel.checkpoint()
        return done

    async def _rewrite_window(self, ino: int, start: int, end: int) -> int:
        extents = self._state.live.extents
        before = extents.overlapping(ino, start, end)
        is_whole = extents.covered_bytes(ino, start, end) == end - start
        if len(before) < _EXTENTS_MIN or not is_whole:
            return 0  # whole enough, or with holes, which a rewrite would fill
        watermark = self._state.live.tree.counter("watermark")
        if any(extent.chunk >= watermark for extent in before):
            return 0  # young bytes change in place: equal extents would not tell
        try:
            data = bytes(await self._fs.read(ino, start, end - start))
            if not self._state.has_room(len(data)):
                await self._state.wait_room(len(data))
        except FSError as error:
            log.warning("inode %d is not defragmented: %s", ino, error)
            return 0
        if extents.overlapping(ino, start, end) != before or len(data) != end - start:
            return 0
        self._state.append(Rewrite(ino, start, data))
        return len(data)
