"""Ranges of store objects through the block cache: single-flight, with read-ahead.

Blocks are kept as stored, so ten thousand small files of one commit are a handful of entries.
A small object is fetched whole at the first miss (a cold start opens 50,000 small files: it
must not become 50,000 GETs); a large one is read ahead while it is read in sequence, in several
ranges at once, each in the cache as soon as it is there, so that nothing is fetched twice. A store
that is slow or away is waited for: it is never an error to the application.
The blocks used last stay in RAM, verified: small files lie side by side in them, and each would
otherwise cost a thread, a read and a checksum of the whole block.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import trio

from s3fs_banyan.data.blocks import BlockCache
from s3fs_banyan.errors import ObjectMissing, StoreError
from s3fs_banyan.format.checksum import Bytes
from s3fs_banyan.observe.metrics import Metrics
from s3fs_banyan.remote.base import RemoteFileSystem
from s3fs_banyan.runtime import Runtime

WHOLE_OBJECT_BYTES: Final = 8 << 20
_RUN_BYTES_FIRST: Final = 1 << 20
_RUN_BYTES_MAX: Final = 8 << 20
_RANGE_BYTES_FIRST: Final = 4 << 20
_RANGE_BYTES: Final = 8 << 20
"""Once a stream is read far ahead. Ranges end at multiples of their size: where the cache's files
of several blocks begin, so that these are whole."""
_RETRY_S: Final = 1.0
_STREAMS_MAX: Final = 1024
_RAM_BYTES: Final = 8 << 20

log = logging.getLogger(__name__)


class _Range(NamedTuple):
    """Neighbouring blocks that came together: block `first`, and what is behind it."""

    first: int
    data: memoryview
    half_read: set[int]
    """Blocks that a read began or ended in: another one will want the rest."""


@dataclass(slots=True)
class _Stream:
    """A large object that is read in sequence, in blocks."""

    at: int
    """Behind the last block that was read."""
    ahead: int
    """The first block that was not asked for."""
    run_bytes: int
    """How far ahead of its reader it is fetched."""
    reads: int
    """Reads that went on where the one before had ended."""
    is_ending: bool = False
    """All of it was asked for."""


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
        ranges_max: int = 4,
    ) -> None:
        """`is_patient`: wait for a store that is away or refuses, as a mount must.

        `ranges_max`: how many ranges of 8 MiB are read ahead at once.
        """
        self._is_patient = is_patient
        self._store = store
        self._cache = cache
        self._runtime = runtime
        self._metrics = metrics
        self.nursery: trio.Nursery | None = None
        """Where read-ahead runs; without one nothing is fetched that nobody waits for."""
        self._ranges_max = ranges_max
        self._ranges = 0
        """Ranges on their way ahead of their readers."""
        self.ahead_bytes_max = ranges_max * _RANGE_BYTES
        """So far ahead of its reader an object is read."""
        self._arrived_bytes_max = self.ahead_bytes_max + WHOLE_OBJECT_BYTES
        self._in_flight: dict[tuple[str, int], trio.Event] = {}
        self._streams: dict[str, _Stream] = {}
        self.ending: set[str] = set()
        """Objects read ahead to their end just now: whoever knows what comes next says so."""
        self._next: tuple[str, int] | None = None
        """What comes next, key and size, while nobody has read it yet."""
        self._arrived: dict[tuple[str, int], _Range] = {}
        """Blocks that nobody has read to their end since they came, the oldest first."""
        self._used_last: OrderedDict[tuple[str, int], Bytes] = OrderedDict()

    async def read(self, key: str, offset: int, length: int, size: int) -> Bytes:
        """Return bytes [offset, offset + length) of an object of `size` bytes.

        Uncopied, as a view, where they are of several blocks that came together.
        Raises `ObjectMissing`. Waits for as long as the store is away or refuses (expired keys
        can be renewed, and nothing is lost meanwhile); an impatient reader raises. Safe to cancel.
        """
        block_bytes = self._cache.block_bytes
        first = offset // block_bytes
        last = (offset + length - 1) // block_bytes
        start = offset - first * block_bytes
        while True:
            arrived = self._of_one_range(key, first, last, start, length)
            if arrived is not None:
                self._read_ahead(key, first, last, size)
                self._let_go(key, first, last)
                return arrived
            blocks = [self._in_ram(key, index) for index in range(first, last + 1)]
            if all(blocks):
                break
            waiting = [
                event
                for i, block in enumerate(blocks)
                if block is None and (event := self._in_flight.get((key, first + i))) is not None
            ]
            if waiting:
                await waiting[0].wait()
                continue
            blocks = await self._runtime.in_thread(self._cached, key, first, last)
            missing = [first + i for i, block in enumerate(blocks) if block is None]
            if not missing:
                self._metrics.read_hits["disk"].add()
                break
            if any((key, i) in self._in_flight for i in missing):
                continue
            fetched = await self._fetch(key, missing[0], missing[-1], size)
            for i in missing:
                blocks[i - first] = fetched.get(i, b"")
            break
        self._read_ahead(key, first, last, size)
        for index in {first, last}:
            if first == last or (key, index) not in self._arrived:
                self._keep_in_ram(key, index, blocks[index - first] or b"")
        self._let_go(key, first, last)
        return _cut(blocks, start, start + length)

    async def read_afresh(self, key: str, offset: int, length: int) -> Bytes:
        """Return what the store says now, past every cache; raises and waits as `read` does.

        After damage this is the last word: another reader may have put the damaged block that it
        was waiting for back into RAM since it was forgotten.
        """
        return await self._read_store(key, offset, length)

    def _of_one_range(
        self, key: str, first: int, last: int, start: int, length: int
    ) -> memoryview | None:
        """Return the bytes from `start` of block `first` on if these blocks came together."""
        came = self._arrived.get((key, first))
        if first == last or came is None or self._arrived.get((key, last)) is not came:
            return None
        begin = (first - came.first) * self._cache.block_bytes + start
        return came.data[begin : begin + length]

    def _let_go(self, key: str, first: int, last: int) -> None:
        """Drop what was read whole, by one read or by two: the kernel has it now.

        The kernel may ask for the later bytes first.
        """
        for index in range(first, last + 1):
            came = self._arrived.get((key, index))
            if came is None:
                continue
            if first < index < last or index in came.half_read:
                del self._arrived[key, index]
            else:
                came.half_read.add(index)

    def _in_ram(self, key: str, index: int) -> Bytes | None:
        used = self._used_last.get((key, index))
        came = self._arrived.get((key, index))
        if used is not None or came is None:
            return used
        begin = (index - came.first) * self._cache.block_bytes
        return came.data[begin : begin + self._cache.block_bytes]

    def _keep_in_ram(self, key: str, index: int, block: Bytes) -> None:
        self._arrived.pop((key, index), None)
        # Of bytes of its own: a view would keep the whole range that it came in.
        used = self._used_last
        used[key, index] = bytes(block)
        used.move_to_end((key, index))
        while len(used) * self._cache.block_bytes > _RAM_BYTES:
            used.popitem(last=False)

    def _drop_oldest_ranges(self) -> None:
        """Keep the memory of what arrived bounded: one block that is left holds its whole range."""
        ranges = {id(came): came for came in self._arrived.values()}
        held = sum(len(came.data) for came in ranges.values())
        for oldest in ranges.values():
            if held <= self._arrived_bytes_max:
                return
            held -= len(oldest.data)
            for name in [name for name, came in self._arrived.items() if came is oldest]:
                del self._arrived[name]

    def _cached(self, key: str, first: int, last: int) -> list[Bytes | None]:
        return [self._cache.get(key, index) for index in range(first, last + 1)]

    # --- fetching ------------------------------------------------------------------------

    async def _fetch(self, key: str, first: int, last: int, size: int) -> dict[int, Bytes]:
        """Fetch a run of blocks, a little more than asked for, and put it into the cache."""
        first, last = self._run_of(key, first, last, size)
        numbers = [i for i in range(first, last + 1) if (key, i) not in self._in_flight]
        first, last = numbers[0], _end_of_run(numbers)
        blocks = await self._fetch_run(key, first, last, size, self._begin(key, first, last))
        for i in blocks:  # read ahead by nobody: the cache has them
            self._arrived.pop((key, i), None)
        return blocks

    def _begin(self, key: str, first: int, last: int) -> trio.Event:
        """Note that these blocks are on their way: who wants one waits for the event."""
        event = trio.Event()
        for i in range(first, last + 1):
            self._in_flight[key, i] = event
        return event

    async def _fetch_run(
        self, key: str, first: int, last: int, size: int, event: trio.Event
    ) -> dict[int, Bytes]:
        """Fetch blocks that were begun; who waits has them from RAM before they are cached."""
        block_bytes = self._cache.block_bytes
        try:
            start = first * block_bytes
            length = min((last + 1) * block_bytes, size) - start
            data = await self._read_store(key, start, length)
            view = memoryview(data)
            blocks: dict[int, Bytes] = {
                first + i: view[i * block_bytes : (i + 1) * block_bytes]
                for i in range(-(-len(data) // block_bytes))
            }
            came = _Range(first, view, set())
            for i in blocks:
                self._arrived.pop((key, i), None)
                self._arrived[key, i] = came
            self._drop_oldest_ranges()
        finally:
            self._end(key, first, last, event)
        if data:
            await self._runtime.in_thread(self._cache.put_run, key, first, data)
        return blocks

    def _end(self, key: str, first: int, last: int, event: trio.Event) -> None:
        for i in range(first, last + 1):
            del self._in_flight[key, i]
        event.set()

    def _run_of(self, key: str, first: int, last: int, size: int) -> tuple[int, int]:
        """Return which blocks to fetch for a miss, and note where a stream may begin."""
        block_bytes = self._cache.block_bytes
        blocks_in_object = max(1, -(-size // block_bytes))
        if size <= WHOLE_OBJECT_BYTES:
            return 0, blocks_in_object - 1
        stream = self._streams.get(key)
        if stream is None or first != stream.ahead:
            reads, run_bytes = 0, _RUN_BYTES_FIRST
        else:
            reads, run_bytes = stream.reads, min(stream.run_bytes * 2, _RUN_BYTES_MAX)
        fetched = _RUN_BYTES_FIRST if self.nursery is not None else run_bytes
        last = max(last, first + max(1, fetched // block_bytes) - 1)
        last = min(last, blocks_in_object - 1)
        if len(self._streams) >= _STREAMS_MAX:
            self._streams.clear()
            self.ending.clear()
        self._drop_stream(key)
        self._streams[key] = _Stream(first, last + 1, run_bytes, reads)
        return first, last

    def _drop_stream(self, key: str) -> None:
        """Forget a stream, and that it was ending: each read looks at what is."""
        self._streams.pop(key, None)
        self.ending.discard(key)

    # --- ahead of a reader ---------------------------------------------------------------

    def _read_ahead(self, key: str, first: int, last: int, size: int) -> None:
        """Have the next ranges fetched side by side while an object is read in sequence.

        What is on its way and has arrived unread is at most so many ranges in all, of whatever
        streams, so demand finds connections and memory. A stream begins with a miss: where
        everything is cached none does.
        """
        stream = self._streams.get(key)
        if self.nursery is None or stream is None:
            return
        block_bytes = self._cache.block_bytes
        if not stream.at - _RANGE_BYTES // block_bytes <= first <= stream.ahead:
            return
        if self._next is not None and self._next[0] == key:
            self._next = None
        stream.reads += last >= stream.at
        stream.at = max(stream.at, last + 1)
        if stream.at * block_bytes >= size:
            self._drop_stream(key)
        elif stream.reads > 1:
            self._begin_ranges(key, stream, size)
        self._begin_next()

    def go_on(self, key: str, offset: int, size: int) -> None:
        """Read an object ahead from `offset` on: a file that is read in sequence goes on there.

        Does nothing if it is read already, or so small that it is fetched whole.
        """
        if size <= WHOLE_OBJECT_BYTES or key in self._streams:
            return
        first = offset // self._cache.block_bytes
        self._streams[key] = _Stream(first, first, self.ahead_bytes_max, reads=2)
        self._next = key, size
        self._begin_next()

    def _begin_next(self) -> None:
        """Begin ranges of what comes next, in the room that what is read now leaves."""
        if self._next is None:
            return
        stream = self._streams.get(self._next[0])
        if stream is None:  # it is cached
            self._next = None
            return
        blocks = sum(index not in came.half_read for (_, index), came in self._arrived.items())
        unread = blocks * self._cache.block_bytes // _RANGE_BYTES
        self._begin_ranges(self._next[0], stream, self._next[1], unread)

    def _begin_ranges(self, key: str, stream: _Stream, size: int, unread: int = 0) -> None:
        """Begin as many ranges as the stream is to be ahead of its reader, and as there may be."""
        if self.nursery is None:
            return
        block_bytes = self._cache.block_bytes
        end = -(-size // block_bytes)
        while stream.ahead < end and self._ranges + unread < self._ranges_max:
            if stream.ahead - stream.at >= stream.run_bytes // block_bytes:
                return
            is_far = stream.run_bytes >= 2 * _RANGE_BYTES
            range_blocks = max(1, (_RANGE_BYTES if is_far else _RANGE_BYTES_FIRST) // block_bytes)
            begin = stream.ahead
            stream.ahead = min(end, (begin // range_blocks + 1) * range_blocks)
            numbers = [i for i in range(begin, stream.ahead) if (key, i) not in self._in_flight]
            if not numbers:
                continue
            stream.ahead = _end_of_run(numbers) + 1
            stream.run_bytes = min(stream.run_bytes * 2, self.ahead_bytes_max)
            self._ranges += 1
            event = self._begin(key, numbers[0], stream.ahead - 1)
            self.nursery.start_soon(
                self._fetch_ahead, key, numbers[0], stream.ahead - 1, size, event
            )
        if stream.ahead >= end and not stream.is_ending:
            stream.is_ending = True
            self.ending.add(key)

    async def _fetch_ahead(
        self, key: str, first: int, last: int, size: int, event: trio.Event
    ) -> None:
        """Fetch a range that nobody waits for yet; a failure is met by whoever needs it."""
        try:
            is_cached = True
            try:
                is_cached = await self._is_cached(key, first)
            finally:
                if is_cached:
                    self._drop_stream(key)
                    self._end(key, first, last, event)
            if not is_cached:
                await self._fetch_run(key, first, last, size, event)
        except StoreError as error:
            log.info("no read-ahead of %s: %s", key, error)
        finally:
            self._ranges -= 1
            self._begin_next()

    async def _is_cached(self, key: str, index: int) -> bool:
        """Tell whether a block is in the cache: then what follows is likely to be, too."""
        return await self._runtime.in_thread(self._cache.get, key, index) is not None

    async def _read_store(self, key: str, start: int, length: int) -> Bytes:
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

    def _read_range(self, key: str, start: int, length: int) -> Bytes:
        return self._store.read(key, offset=start, length=length)

    async def forget(self, key: str) -> None:
        """Drop what the cache holds of an object: it was damaged, or it is gone."""
        for kept in (self._used_last, self._arrived):
            for known in [known for known in kept if known[0] == key]:
                del kept[known]
        await self._runtime.in_thread(self._cache.forget, key)


def _cut(blocks: Sequence[Bytes | None], start: int, end: int) -> bytes:
    """Return bytes [start, end) of neighbouring blocks, each copied once."""
    parts = []
    for block in blocks:
        size = len(block) if block is not None else 0
        if block is not None and start < size and end > 0:
            parts.append(memoryview(block)[max(start, 0) : end])
        start, end = start - size, end - size
    return b"".join(parts)


def _end_of_run(numbers: Sequence[int]) -> int:
    """Return the last number of the unbroken run that the sequence begins with."""
    last = numbers[0]
    for number in numbers[1:]:
        if number != last + 1:
            break
        last = number
    return last
