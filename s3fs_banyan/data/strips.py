"""Strips: neighbouring blocks that were put together share one file of the block cache.

To make a file costs as much as to write 256 KiB, or several times as much where the file system
looks long for a free inode, so what arrives in ranges of 4 MiB is kept in files of 4 MiB.

A strip begins at a block whose number is a multiple of the strip's length, and has two blocks or
more, as many as were at hand. Its row has the checksum of each block, one behind the other: a
block is read and verified alone. Strips are evicted whole. A block may lie in a row of its own
beside a strip that has it, too; then the block is the newer one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from s3fs_banyan.data.blocks import blocks_of, checksum_of, row_key_of, strip_key_of
from s3fs_banyan.format.checksum import Bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

STRIP_BYTES: Final = 4 << 20
SUM_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """What becomes one row and one file."""

    row_key: str
    sums: bytes
    data: Bytes
    strip_key: str
    """Of the strip that the first block belongs to; the row key itself if this is one."""
    position: int
    """Of the first block in that strip, in blocks."""
    block_keys: tuple[str, ...]
    """Row keys of the blocks in it, as they are when each has a row of its own."""

    @property
    def is_strip(self) -> bool:
        return self.row_key == self.strip_key


class Strips:
    """The arithmetic of strips, for one size of blocks and one of strips."""

    def __init__(self, block_bytes: int, strip_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._blocks = max(1, strip_bytes // block_bytes)
        """In a whole strip; with 1 there are none."""

    def key_of(self, key: str, index: int) -> str:
        """Return the row key of the strip that has block `index`."""
        return strip_key_of(key, index // self._blocks)

    def sum_in(self, sums: object, index: int) -> bytes:
        """Return the checksum of block `index` in those of its strip; empty if it is not in it."""
        begin = index % self._blocks * SUM_BYTES
        return sums[begin : begin + SUM_BYTES] if isinstance(sums, bytes) else b""

    def offset_of(self, index: int) -> int:
        """Return where block `index` is in the file of its strip."""
        return index % self._blocks * self._block_bytes

    def entries(self, key: str, first: int, data: Bytes, *, whole: bool) -> Iterator[Entry]:
        """Yield what to keep of neighbouring blocks; without `whole` every block alone."""
        blocks = [(first + i, block) for i, block in blocks_of(data, self._block_bytes)]
        view = memoryview(data).cast("B")
        at = 0
        while at < len(blocks):
            index, block = blocks[at]
            count = min(self._blocks, len(blocks) - at) if index % self._blocks == 0 else 1
            if count > 1 and whole:
                begin = at * self._block_bytes
                part = view[begin : begin + count * self._block_bytes]
                yield self._entry(key, blocks[at : at + count], part)
                at += count
            else:
                yield self._entry(key, [(index, block)], block)
                at += 1

    def entry(self, key: str, index: int, data: Bytes) -> Entry:
        """Return what to keep of one block."""
        return self._entry(key, [(index, memoryview(data))], data)

    def _entry(self, key: str, blocks: list[tuple[int, memoryview]], data: Bytes) -> Entry:
        first = blocks[0][0]
        block_keys = tuple(row_key_of(key, index) for index, _ in blocks)
        sums = b"".join(
            checksum_of(block_key, block)
            for block_key, (_, block) in zip(block_keys, blocks, strict=True)
        )
        strip_key = self.key_of(key, first)
        row_key = strip_key if len(blocks) > 1 else block_keys[0]
        return Entry(row_key, sums, data, strip_key, first % self._blocks, block_keys)
