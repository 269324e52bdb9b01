"""The two checksums of every format: XXH3-64 against accidents, SHA-256 as identity."""

from __future__ import annotations

import hashlib
from typing import Final

import xxhash

Bytes = bytes | bytearray | memoryview

_PIECE_BYTES: Final = 64 * 1024
"""For what is longer xxhash lets go of the interpreter's lock, for some microseconds of work, and
whoever computes beside it keeps the lock for as long as the switch interval."""
_IN_PIECES_MAX: Final = 1 << 20
"""Beyond that the lock is let go: it takes longer than a hand-over."""


def xxh3(data: Bytes, seed: int = 0) -> int:
    """Return the XXH3-64 of `data`: 39 GB/s here, against 1.9 GB/s of zlib's CRC-32.

    Up to 1 MiB without letting go of the interpreter's lock.
    """
    if not _PIECE_BYTES < len(data) <= _IN_PIECES_MAX:
        return xxhash.xxh3_64_intdigest(data, seed)
    view = memoryview(data)
    digest = xxhash.xxh3_64(seed=seed)
    for start in range(0, len(view), _PIECE_BYTES):
        digest.update(view[start : start + _PIECE_BYTES])
    return digest.intdigest()


def sha256_hex(data: Bytes) -> str:
    """Return the SHA-256 of `data` in lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
