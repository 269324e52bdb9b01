"""The contract of the block cache, and its twins that use no disk and no thread.

A block is `block_bytes` of a store object as stored, the last block of an object what remains.
`MemoryBlockCache` is `data/cache.py`'s deterministic twin for the simulation; both pass
`tests/contract/test_cache.py`. `NullBlockCache` keeps nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from s3fs_banyan.format.checksum import Bytes, xxh3

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK_BYTES: Final = 256 * 1024
BLOCK_BYTES_MAX: Final = 16 * 1024 * 1024

_FILE_UNIT_BYTES: Final = 4096
_ROW_BYTES: Final = 512
"""A row and its entries in three indexes, at the usual fill of SQLite's pages."""

_SEPARATOR: Final = "\x1f"
_AFTER_SEPARATOR: Final = "\x20"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStats:
    """`bytes` and `entries` are of the directory, the counters of this process since its start."""

    bytes: int
    """Local disk that the entries take: files in units of 4 KiB, and the index."""
    entries: int
    """Files: blocks, and strips of blocks that were put together."""
    limit: int
    hits: int
    misses: int
    evictions: int
    damaged: int
    """Blocks that failed their check."""
    refused: int
    """Blocks not kept because the disk was full or the database not to be had."""
    rebuilds: int
    """Times that the database was found unusable or gone, and was made anew."""


class BlockCache(Protocol):
    """Blocks of store objects. Calls block: they belong in worker threads, any number at once."""

    @property
    def block_bytes(self) -> int: ...

    def get(self, key: str, index: int) -> bytes | None:
        """Return block `index` of the object, verified, or None."""
        ...

    def put(self, key: str, index: int, data: bytes | memoryview) -> None:
        """Keep one block, of 1 to `block_bytes` bytes; the newest put of a block wins."""
        ...

    def put_object(self, key: str, data: Bytes) -> None:
        """Keep all blocks of an object whose bytes are at hand."""
        ...

    def put_run(self, key: str, first: int, data: Bytes) -> None:
        """Keep the neighbouring blocks from number `first` on whose bytes are `data`."""
        ...

    def forget(self, key: str) -> None:
        """Drop all blocks of an object."""
        ...

    def flush_use(self) -> None:
        """Write the noted uses; a few times a minute is often enough."""
        ...

    def stats(self) -> CacheStats: ...

    def close(self) -> None:
        """Write the noted uses and let go. Afterwards every `get` misses."""
        ...


def charge_of(length: int) -> int:
    """Return the bytes of local disk that a block of `length` bytes is counted as."""
    return -(-length // _FILE_UNIT_BYTES) * _FILE_UNIT_BYTES + _ROW_BYTES


def check_block(data: bytes | memoryview, block_bytes: int) -> None:
    """Raise `ValueError` unless `data` can be one block."""
    if not 0 < len(data) <= block_bytes:
        raise ValueError(f"a block has 1 to {block_bytes} bytes, not {len(data)}")


def blocks_of(data: Bytes, block_bytes: int) -> Iterator[tuple[int, memoryview]]:
    """Yield (index, bytes) of each block of an object."""
    view = memoryview(data).cast("B")
    for index, offset in enumerate(range(0, len(view), block_bytes)):
        yield index, view[offset : offset + block_bytes]


def row_key_of(key: str, index: int) -> str:
    """Return the one text that names a block. Raises `ValueError` for what is no block."""
    if _SEPARATOR in key or index < 0:
        raise ValueError(f"no block of an object: {key!r}, {index}")
    return f"{key}{_SEPARATOR}{index}"


def strip_key_of(key: str, number: int) -> str:
    """Return the one text that names a strip of blocks (`data/strips.py`)."""
    return f"{key}{_SEPARATOR}s{number}"


def row_key_range_of(key: str) -> tuple[str, str]:
    """Return the bounds [first, end) of the row keys of an object, its strips' included."""
    return f"{key}{_SEPARATOR}", f"{key}{_AFTER_SEPARATOR}"


def checksum_of(row_key: str, data: bytes | memoryview) -> bytes:
    """Return the XXH3-64 of a block, seeded with its name: no block passes for another."""
    return xxh3(data, xxh3(row_key.encode())).to_bytes(8, "little")


class MemoryBlockCache:
    """`BlockCache` in RAM, exactly least recently used, for one thread."""

    def __init__(self, size_bytes: int, *, block_bytes: int = BLOCK_BYTES) -> None:
        if size_bytes < charge_of(block_bytes):
            raise ValueError(f"size_bytes holds one block at least: {charge_of(block_bytes)}")
        self._limit = size_bytes
        self._block_bytes = block_bytes
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._used = 0
        self._hits = self._misses = self._evictions = self._refused = 0
        self._is_closed = False

    @property
    def block_bytes(self) -> int:
        """Length of every block of an object but the last."""
        return self._block_bytes

    def get(self, key: str, index: int) -> bytes | None:
        """Return block `index` of the object, or None."""
        row_key_of(key, index)
        data = self._blocks.get((key, index))
        if data is None:
            self._misses += 1
            return None
        self._blocks.move_to_end((key, index))
        self._hits += 1
        return data

    def put(self, key: str, index: int, data: bytes | memoryview) -> None:
        """Keep one block, and drop the least recently used ones that no longer fit."""
        check_block(data, self._block_bytes)
        row_key_of(key, index)
        if self._is_closed:
            self._refused += 1
            return
        self._remove(key, index)
        self._blocks[key, index] = bytes(data)
        self._used += charge_of(len(data))
        while self._used > self._limit:
            self._remove(*next(iter(self._blocks)))
            self._evictions += 1

    def put_object(self, key: str, data: Bytes) -> None:
        """Keep all blocks of an object."""
        self.put_run(key, 0, data)

    def put_run(self, key: str, first: int, data: Bytes) -> None:
        """Keep neighbouring blocks."""
        for index, block in blocks_of(data, self._block_bytes):
            self.put(key, first + index, block)

    def forget(self, key: str) -> None:
        """Drop all blocks of an object."""
        for name in [name for name in self._blocks if name[0] == key]:
            self._remove(*name)

    def flush_use(self) -> None:
        """Do nothing: every use is in place at once."""

    def stats(self) -> CacheStats:
        """Return what is held now, and the counters."""
        return CacheStats(
            bytes=self._used,
            entries=len(self._blocks),
            limit=self._limit,
            hits=self._hits,
            misses=self._misses,
            evictions=self._evictions,
            damaged=0,
            refused=self._refused,
            rebuilds=0,
        )

    def close(self) -> None:
        """Let go of everything."""
        self._is_closed = True
        self._blocks.clear()
        self._used = 0

    def _remove(self, key: str, index: int) -> None:
        data = self._blocks.pop((key, index), None)
        if data is not None:
            self._used -= charge_of(len(data))


class NullBlockCache:
    """`BlockCache` that keeps nothing: every `get` misses."""

    def __init__(self, *, block_bytes: int = BLOCK_BYTES) -> None:
        self._block_bytes = block_bytes
        self._misses = 0

    @property
    def block_bytes(self) -> int:
        """Length of every block of an object but the last."""
        return self._block_bytes

    def get(self, key: str, index: int) -> bytes | None:
        """Miss."""
        row_key_of(key, index)
        self._misses += 1
        return None

    def put(self, key: str, index: int, data: bytes | memoryview) -> None:
        """Check the arguments, keep nothing."""
        check_block(data, self._block_bytes)
        row_key_of(key, index)

    def put_object(self, key: str, data: Bytes) -> None:
        """Keep nothing."""

    def put_run(self, key: str, first: int, data: Bytes) -> None:
        """Keep nothing."""

    def forget(self, key: str) -> None:
        """Do nothing: there is nothing to drop."""

    def flush_use(self) -> None:
        """Do nothing: there is nothing to note."""

    def stats(self) -> CacheStats:
        """Return zeros and the count of misses."""
        return CacheStats(
            bytes=0,
            entries=0,
            limit=0,
            hits=0,
            misses=self._misses,
            evictions=0,
            damaged=0,
            refused=0,
            rebuilds=0,
        )

    def close(self) -> None:
        """Do nothing."""
