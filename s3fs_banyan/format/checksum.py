"""The two checksums of every format: XXH3-64 against accidents, SHA-256 as identity."""

from __future__ import annotations

import hashlib

import xxhash

Bytes = bytes | bytearray | memoryview

xxh3 = xxhash.xxh3_64_intdigest
"""`xxh3(data, seed=0) -> int`: 39 GB/s here, against 1.9 GB/s of zlib's CRC-32."""


def sha256_hex(data: Bytes) -> str:
    """Return the SHA-256 of `data` in lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
