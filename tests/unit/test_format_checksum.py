"""The checksum of every format: the same however long the data is and whatever holds it."""

from __future__ import annotations

import random

import pytest
import xxhash

from s3fs_banyan.format.checksum import xxh3

_KIB = 1024
_SIZES = [
    near + by
    for near in (64 * _KIB, 128 * _KIB, 1024 * _KIB, 2048 * _KIB)
    for by in (-1, 0, 1, 4097)
]


@pytest.mark.parametrize("size", [0, 1, 16, 240, 4096, *_SIZES])
@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1])
def test_taken_in_pieces_it_is_the_checksum_of_the_whole(size: int, seed: int) -> None:
    """Bytes on stores and disks have been checked by xxhash's own call for the whole."""
    data = random.Random(f"{size} {seed}").randbytes(size)
    whole = xxhash.xxh3_64_intdigest(data, seed)
    assert xxh3(data, seed) == whole
    assert xxh3(bytearray(data), seed=seed) == whole
    assert xxh3(memoryview(b"x" + data)[1:], seed) == whole


def test_each_byte_counts_wherever_a_piece_ends() -> None:
    """A piece that were left out or taken twice would be a checksum of something else."""
    data = bytearray(1024 * _KIB)
    seen = {xxh3(data)}
    for position in range(0, len(data), 32 * _KIB):
        for at in (position, position + 32 * _KIB - 1):
            data[at] = 1
            seen.add(xxh3(data))
            data[at] = 0
    assert len(seen) == 1 + 2 * 32
