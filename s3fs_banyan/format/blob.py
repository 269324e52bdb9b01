"""A compressed, checksummed run of bytes: deltas, placements, pieces of checkpoints.

Byte table: `docs/format/commit.md`. For data that is always read whole; file data lies in
chunks, whose frames can be read one by one.
"""

from __future__ import annotations

import struct
from typing import Final

import snappy

from s3fs_banyan.errors import Corrupt, UnsupportedVersion
from s3fs_banyan.format.checksum import Bytes, xxh3

BLOB_MAGIC: Final = b"BYNB"
BLOB_VERSION: Final = 1
BLOB_BYTES_MAX: Final = 1 << 31
_CODEC_RAW: Final = 0
_CODEC_SNAPPY: Final = 1
_HEAD = struct.Struct("<4sBBHQQQ")


def encode_blob(raw: Bytes) -> bytes:
    """Return `raw` compressed and checksummed (raw where compression does not help)."""
    packed: bytes = snappy.compress(bytes(raw))
    codec = _CODEC_SNAPPY
    if len(packed) >= len(raw):
        packed, codec = bytes(raw), _CODEC_RAW
    head = (BLOB_MAGIC, BLOB_VERSION, codec, 0, len(raw), len(packed))
    checksum = xxh3(packed, seed=xxh3(_HEAD.pack(*head, 0)))
    return _HEAD.pack(*head, checksum) + packed


def decode_blob(stored: Bytes, key: str) -> bytes:
    """Return the bytes, verified; `key` names the object for the error.

    Raises `Corrupt` or `UnsupportedVersion`.
    """
    if len(stored) < _HEAD.size:
        raise Corrupt("blob", key, f"{len(stored)} bytes are too few for a header")
    *head, checksum = _HEAD.unpack_from(stored)
    magic, version, codec, flags, raw_length, packed_length = head
    if magic != BLOB_MAGIC:
        raise Corrupt("blob", key, "no blob begins here")
    if version != BLOB_VERSION or flags:
        raise UnsupportedVersion("blob", version, BLOB_VERSION)
    packed = bytes(stored[_HEAD.size :])
    if len(packed) != packed_length or raw_length > BLOB_BYTES_MAX:
        raise Corrupt("blob", key, f"{len(packed)} bytes, its header says {packed_length}")
    if xxh3(packed, seed=xxh3(_HEAD.pack(*head, 0))) != checksum:
        raise Corrupt("blob", key, "checksum differs")
    if codec == _CODEC_RAW:
        return packed
    if codec != _CODEC_SNAPPY:
        raise UnsupportedVersion("blob codec", codec, _CODEC_SNAPPY)
    try:
        raw = bytes(snappy.uncompress(packed))
    except Exception as error:  # the binding raises several unrelated classes
        raise Corrupt("blob", key, str(error)) from error
    if len(raw) != raw_length:
        raise Corrupt("blob", key, f"decodes to {len(raw)} bytes, its header says {raw_length}")
    return raw
