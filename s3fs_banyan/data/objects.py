"""Ranges of store objects through the block cache: single-flight, with read-ahead.

Blocks are kept as stored, so ten thousand small files of one commit are a handful of entries.
A small object is fetched whole at the first miss (a cold start opens 50,000 small files: it
must not become 50,000 GETs); in a large one the run that is fetched grows while it is read in
sequence. A store that is slow or away is waited for: it is never an error to the application.
The blocks used last stay in RAM, verified: small files lie side by side in them, and each would
otherwise cost a thread, a read and a checksum of the whole block.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import trio

from s3fs_banyan.data.blocks import BlockCache
from s3fs_banyan.errors import ObjectMissing, StoreError
from s3fs_banyan.observe import Metrics
from s3fs_banyan.remote.base import RemoteFileSystem
from s3fs_banyan.runtime import Runtime

WHOLE_OBJECT_BYTES: Final = 8 << 20
_RUN_BYTES_FIRST: Final = 1 << 20
_RUN_BYTES_MAX: Final = 8 << 20
_RETRY_S: Final = 1.0
_STREAMS_MAX: Final = 1024
_RAM_BYTES: Final = 8 << 20

log = logging.getLogger(__name__)


class ObjectReader:
    """Reads ranges of store objects. One event loop; blocking work runs in threads."""

    def __init__(
        self,
        *,
        store: RemoteFileSystem,
        cache: BlockCache,
        runtime: Runtime,
        metrics: Metrics,
        is_patient: bool = True,
    ) -> None:
        """`is_patient`: wait for a store that is away or refuses, as a mount must."""
        self._is_patient = is_patient
        self._store = store
        self._cache = cache
        self._runtime = runtime
        self._metrics = metrics
        self._in_flight: dict[tuple[str, int], trio.Event] = {}
        self._streams: dict[str, tuple[int, int]] = {}
        self._used_last: OrderedDict[tuple[str, int], bytes] = OrderedDict()

    async def read(self, key: str, offset: int, length: int, size: int) -> bytes:
        """Return bytes [offset, offset + length) of an object of `size` bytes.

        Raises `ObjectMissing`. Waits for as long as the store is away or refuses (expired keys
        can be renewed, and nothing is lost meanwhile); an impatient reader raises. Safe to cancel.
        """
        block_bytes = self._cache.block_bytes
        first = offset // block_bytes
        last = (offset + length - 1) // block_bytes
        while True:
            blocks = [self._in_ram(key, index) for index in range(first, last + 1)]
            if all(blocks):
                break
            blocks = await self._runtime.in_thread(self._cached, key, first, last)
            missing = [first + i for i, block in enumerate(blocks) if block is None]
            if not missing:
                self._metrics.read_hits["disk"].add()
                break
            waiting = [e for i in missing if (e := self._in_flight.get((key, i))) is not None]
            if waiting:
                await waiting[0].wait()
                continue
            fetched = await self._fetch(key, missing[0], missing[-1], size)
            for i in missing:
                blocks[i - first] = fetched.get(i, b"")
            break
        start = offset - first * block_bytes
        for i, block in enumerate(blocks):
            self._keep_in_ram(key, first + i, block or b"")
        if len(blocks) == 1:
            return (blocks[0] or b"")[start : start + length]
        data = b"".join(block or b"" for block in blocks)
        return data[start : start + length]

    async def read_afresh(self, key: str, offset: int, length: int) -> bytes:
        """Return what the store says now, past every cache; raises and waits as `read` does.

        After damage this is the last word: another reader may have put the damaged block that it
        was waiting for back into RAM since it was forgotten.
        """
        return await self._read_store(key, offset, length)

    def _in_ram(self, key: str, index: int) -> bytes | None:
        return self._used_last.get((key, index))

    def _keep_in_ram(self, key: str, index: int, block: bytes) -> None:
        used = self._used_last
        used[key, index] = block
        used.move_to_end((key, index))
        while len(used) * self._cache.block_bytes > _RAM_BYTES:
            used.popitem(last=False)

    def _cached(self, key: str, first: int, last: int) -> list[bytes | None]:
        return [self._cache.get(key, index) for index in range(first, last + 1)]

    async def _fetch(self, key: str, first: int, last: int, size: int) -> dict[int, bytes]:
        """Fetch a run of blocks, a little more than asked for, and put it into the cache."""
        block_bytes = self._cache.block_bytes
        first, last = self._run_of(key, first, last, size)
        numbers = [i for i in range(first, last + 1) if (key, i) not in self._in_flight]
        first, last = numbers[0], _end_of_run(numbers)
        event = trio.Event()
        for i in range(first, last + 1):
            self._in_flight[key, i] = event
        try:
            start = first * block_bytes
            length = min((last + 1) * block_bytes, size) - start
            data = await self._read_store(key, start, length)
            blocks = {
                first + i: data[i * block_bytes : (i + 1) * block_bytes]
                for i in range(-(-len(data) // block_bytes))
            }
            await self._runtime.in_thread(self._put, key, blocks)
            return blocks
        finally:
            for i in range(first, last + 1):
                del self._in_flight[key, i]
            event.set()

    def _run_of(self, key: str, first: int, last: int, size: int) -> tuple[int, int]:
        block_bytes = self._cache.block_bytes
        blocks_in_object = max(1, -(-size // block_bytes))
        if size <= WHOLE_OBJECT_BYTES:
            return 0, blocks_in_object - 1
        expected, run_bytes = self._streams.get(key, (-1, _RUN_BYTES_FIRST // 2))
        run_bytes = min(run_bytes * 2, _RUN_BYTES_MAX) if first == expected else _RUN_BYTES_FIRST
        last = max(last, first + run_bytes // block_bytes - 1)
        last = min(last, blocks_in_object - 1)
        if len(self._streams) >= _STREAMS_MAX:
            self._streams.clear()
        self._streams[key] = (last + 1, run_bytes)
        return first, last

    async def _read_store(self, key: str, start: int, length: int) -> bytes:
        warned = False
        while True:
            try:
                data = await self._runtime.in_thread(
                    self._read_range, key, start, length, pool="store"
                )
            except StoreError as error:
                if isinstance(error, ObjectMissing) or not self._is_patient:
                    raise
                if not warned:
                    level = logging.WARNING if error.retryable else logging.ERROR
                    log.log(level, "a read of %s waits for the store: %s", key, error)
                    warned = True
                await trio.sleep(_RETRY_S)
                continue
            self._metrics.read_hits["store"].add()
            self._metrics.read_bytes["store"].add(len(data))
            return data

    def _read_range(self, key: str, start: int, length: int) -> bytes:
        return self._store.read(key, offset=start, length=length)

    def _put(self, key: str, blocks: dict[int, bytes]) -> None:
        for index, data in blocks.items():
            if data:
                self._cache.put(key, index, data)

    async def forget(self, key: str) -> None:
        """Drop what the cache holds of an object: it was damaged, or it is gone."""
        for known in [known for known in self._used_last if known[0] == key]:
            del self._used_last[known]
        await self._runtime.in_thread(self._cache.forget, key)


def _end_of_run(numbers: Sequence[int]) -> int:
    """Return the last number of the unbroken run that the sequence begins with."""
    last = numbers[0]
    for number in numbers[1:]:
        if number != last + 1:
            break
        last = number
    return last
