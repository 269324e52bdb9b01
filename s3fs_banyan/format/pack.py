"""Packs: many chunks in one object, index and footer last. Byte table: `docs/format/pack.md`.

Nothing needs the index in daily work (places are rows of the state); it makes a pack readable
on its own, for `check`, for rescue, and to reuse a pack that was sealed before a crash.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from s3fs_banyan.errors import Corrupt, UnsupportedVersion
from s3fs_banyan.format.checksum import Bytes, xxh3

PACK_MAGIC: Final = b"BYNPACK\n"
PACK_VERSION: Final = 1

_ENTRY = struct.Struct("<QQII")
_FOOTER = struct.Struct("<QII8sQ")
FOOTER_BYTES: Final = _FOOTER.size


class PackEntry(NamedTuple):
    """Where one chunk lies in a pack."""

    chunk: int
    offset: int
    stored_length: int
    length: int


def encode_pack_tail(entries: Sequence[PackEntry]) -> bytes:
    """Return index and footer, to be written after the last chunk."""
    index = b"".join(_ENTRY.pack(*entry) for entry in entries)
    footer = (len(entries), PACK_VERSION, 0, PACK_MAGIC)
    checksum = xxh3(index + _FOOTER.pack(*footer, 0))
    return index + _FOOTER.pack(*footer, checksum)


def decode_pack_tail(tail: Bytes, size: int, key: str) -> list[PackEntry]:
    """Return the index of a pack of `size` bytes, of which `tail` is the end (or all).

    Raises `Corrupt`, `UnsupportedVersion`, or `ValueError` if `tail` is too short to hold the
    index: then call again with more of the pack.
    """
    if len(tail) < FOOTER_BYTES:
        raise Corrupt("pack", key, f"{size} bytes are too few for a footer")
    count, version, flags, magic, checksum = _FOOTER.unpack_from(tail, len(tail) - FOOTER_BYTES)
    if magic != PACK_MAGIC:
        raise Corrupt("pack", key, "no footer at its end")
    if version != PACK_VERSION or flags:
        raise UnsupportedVersion("pack", version, PACK_VERSION)
    index_bytes = count * _ENTRY.size
    if index_bytes + FOOTER_BYTES > size:
        raise Corrupt("pack", key, f"index of {count} chunks does not fit")
    if index_bytes + FOOTER_BYTES > len(tail):
        raise ValueError(f"the tail must be at least {index_bytes + FOOTER_BYTES} bytes")
    index = bytes(tail[len(tail) - FOOTER_BYTES - index_bytes : len(tail) - FOOTER_BYTES])
    if checksum != xxh3(index + _FOOTER.pack(count, version, flags, magic, 0)):
        raise Corrupt("pack", key, "index checksum differs")
    entries = [PackEntry(*fields) for fields in _ENTRY.iter_unpack(index)]
    for entry in entries:
        if entry.offset + entry.stored_length > size - FOOTER_BYTES - index_bytes:
            raise Corrupt("pack", key, f"chunk {entry.chunk} lies outside")
    return entries


def tail_bytes(entry_count: int) -> int:
    """Return how many bytes index and footer of so many chunks take."""
    return entry_count * _ENTRY.size + FOOTER_BYTES
