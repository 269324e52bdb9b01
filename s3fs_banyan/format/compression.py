"""Snappy, for blobs and frames: what is decoded never takes more memory than its bytes justify.

The decoder allocates what the first bytes of the compressed data claim, before it looks at the
rest, and it believes them rather than the header beside it. So the claim is checked first.
"""

from __future__ import annotations

from typing import Final

import snappy

from s3fs_banyan.errors import Corrupt

CODEC_RAW: Final = 0
CODEC_SNAPPY: Final = 1
_LENGTH_BYTES_MAX: Final = 5
"""A varint of 32 bits."""
_COPY_BYTES: Final = 64
"""The densest element of Snappy gives so many bytes..."""
_ELEMENT_BYTES: Final = 3
"""...for so many of its own."""


def compress(raw: bytes) -> tuple[bytes, int]:
    """Return (stored form, codec): raw where compression does not help."""
    packed: bytes = snappy.compress(raw)
    return (raw, CODEC_RAW) if len(packed) >= len(raw) else (packed, CODEC_SNAPPY)


def uncompress(packed: bytes, raw_length: int, kind: str, key: str, what: str = "") -> bytes:
    """Return the `raw_length` bytes that Snappy's `packed` is of.

    Takes memory for `raw_length`, and for no more than 22 times `packed`. Raises `Corrupt` with
    `kind`, `key` and the thing in it (`what`).
    """
    claimed = _claimed_length(packed)
    if claimed != raw_length:
        raise Corrupt(kind, key, f"{what}decodes to {claimed} bytes, its header says {raw_length}")
    if raw_length * _ELEMENT_BYTES > len(packed) * _COPY_BYTES:
        raise Corrupt(kind, key, f"{what}{len(packed)} bytes cannot decode to {raw_length}")
    try:
        raw = bytes(snappy.uncompress(packed))
    except Exception as error:  # the binding raises several unrelated classes
        raise Corrupt(kind, key, f"{what}{error}") from error
    if len(raw) != raw_length:
        raise Corrupt(kind, key, f"{what}decodes to {len(raw)} bytes, not to {raw_length}")
    return raw


def _claimed_length(packed: bytes) -> int | None:
    """Return the length that Snappy's data begins with, None if it begins with none."""
    length = 0
    for position, byte in enumerate(packed[:_LENGTH_BYTES_MAX]):
        length |= (byte & 0x7F) << (7 * position)
        if byte < 0x80:
            return length
    return None
