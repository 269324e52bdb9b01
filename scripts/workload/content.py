"""What the files hold: bytes that are a pure function of (seed, content id, offset).

Every 4 KiB block begins with a 16-byte stamp of content id and block number, so a block that
comes back in the wrong place is noticed, and no two blocks of a run are equal. The rest of
the block is cut from a pool: 7/8 random bytes, 1/8 runs of one repeated byte, which is about
what a file of zstd-compressed columns with some plain headers looks like to a compressor.
Nothing but sizes and ids has to be remembered to check a file.
"""

from __future__ import annotations

import random
import struct
from typing import NamedTuple

BLOCK = 4096
STAMP = struct.Struct("<QII")
_POOL_BYTES = 4 << 20
_PERIOD = 512
_RUN = 64
_MASK = 0xFFFFFFFF


class Known(NamedTuple):
    """What a file is known to hold: the whole content, of which `size` bytes are written."""

    fid: int
    size: int
    literal: bytes | None = None
    alias: int = 0
    """Content id whose bytes these are, if the file is a copy; 0 for its own."""


def make_pool(seed: int) -> bytes:
    """Return the pool of a seed; the same seed gives the same pool for ever."""
    pool = bytearray(random.Random(f"pool {seed}").randbytes(_POOL_BYTES + BLOCK))
    for start in range(_PERIOD - _RUN, len(pool) - _RUN, _PERIOD):
        pool[start : start + _RUN] = pool[start : start + 1] * _RUN
    return bytes(pool)


class Content:
    """The bytes of every file of one seed."""

    def __init__(self, seed: int) -> None:
        self._pool = make_pool(seed)

    def data(self, fid: int, offset: int, length: int) -> bytes:
        """Return `length` bytes of content `fid` from `offset`."""
        pool = self._pool
        parts: list[bytes] = []
        end = offset + length
        while offset < end:
            block, inner = divmod(offset, BLOCK)
            take = min(BLOCK - inner, end - offset)
            start = ((fid * 2654435761 + block * 2246822519) & _MASK) % _POOL_BYTES
            offset += take
            if inner < STAMP.size:
                stamp = STAMP.pack(fid, block, (fid * 40503 + block) & _MASK)
                head = stamp[inner : inner + take]
                parts.append(head)
                inner += len(head)
                take -= len(head)
            if take:
                begin = start + inner - STAMP.size
                parts.append(pool[begin : begin + take])
        return b"".join(parts) if len(parts) != 1 else parts[0]

    def expect(self, known: Known, offset: int, length: int) -> bytes:
        """Return what a read of `known` at `offset` must give, ending at its size."""
        length = max(0, min(length, known.size - offset))
        if known.literal is not None:
            return known.literal[offset : offset + length]
        return self.data(known.alias or known.fid, offset, length)
