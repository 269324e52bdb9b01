"""A compressed, checksummed run of bytes: deltas, placements, pieces of checkpoints.

Byte table: `docs/format/commit.md`. For data that is always read whole; file data lies in
chunks, whose frames can be read one by one. In an encrypted volume the compressed bytes are
sealed (`encryption.py`), and the checksum is of the sealed ones.
"""

from __future__ import annotations

import struct
from typing import Final

from s3fs_banyan.errors import Corrupt, UnsupportedVersion
from s3fs_banyan.format.checksum import Bytes, xxh3
from s3fs_banyan.format.compression import CODEC_RAW, CODEC_SNAPPY, compress, uncompress
from s3fs_banyan.format.encryption import CIPHER_AES256GCM, CIPHER_NONE, Cipher

BLOB_MAGIC: Final = b"BYNB"
BLOB_VERSION: Final = 1
BLOB_VERSION_ENCRYPTED: Final = 2
BLOB_BYTES_MAX: Final = 1 << 31
_HEAD = struct.Struct("<4sBBHQQQ")


PIECE_PLACE: Final = "checkpoint piece"
"""Pieces are told apart by their names, and what they make together by its keyed hash."""


def delta_place(seq: int) -> str:
    """Return what binds the delta of commit `seq` to it."""
    return f"delta {seq}"


def placements_place(seq: int) -> str:
    """Return what binds the placements of commit `seq` to it."""
    return f"placements {seq}"


def encode_blob(raw: Bytes, cipher: Cipher | None = None, *, place: str = "") -> bytes:
    """Return `raw` compressed and checksummed (raw where compression does not help).

    With a cipher it is sealed, too, and `place` says what it is: it decrypts as nothing else.
    """
    packed, codec = compress(bytes(raw))
    version, sealed_by = BLOB_VERSION, CIPHER_NONE
    if cipher is not None:
        version, sealed_by = BLOB_VERSION_ENCRYPTED, CIPHER_AES256GCM
        packed = cipher.blobs.seal(_sealed_place(place, codec, len(raw)), packed)
    head = (BLOB_MAGIC, version, codec, sealed_by, len(raw), len(packed))
    checksum = xxh3(packed, seed=xxh3(_HEAD.pack(*head, 0)))
    return _HEAD.pack(*head, checksum) + packed


def _sealed_place(place: str, codec: int, raw_length: int) -> bytes:
    if not place:
        raise ValueError("an encrypted blob is bound to a place")
    return f"blob 1 {codec} {raw_length} {place}".encode("ascii")


def decode_blob(
    stored: Bytes,
    key: str,
    cipher: Cipher | None = None,
    *,
    place: str = "",
    raw_bytes_max: int = BLOB_BYTES_MAX,
) -> bytes:
    """Return the bytes, verified; `key` names the object for the error.

    With a cipher the blob must be sealed with it, for this place. Raises `Corrupt` or
    `UnsupportedVersion`, before it takes memory for more than `raw_bytes_max` decoded bytes.
    """
    if len(stored) < _HEAD.size:
        raise Corrupt("blob", key, f"{len(stored)} bytes are too few for a header")
    *head, checksum = _HEAD.unpack_from(stored)
    magic, version, codec, sealed_by, raw_length, packed_length = head
    if magic != BLOB_MAGIC:
        raise Corrupt("blob", key, "no blob begins here")
    if version > BLOB_VERSION_ENCRYPTED or sealed_by > CIPHER_AES256GCM:
        raise UnsupportedVersion("blob", version, BLOB_VERSION_ENCRYPTED)
    packed = bytes(stored[_HEAD.size :])
    if len(packed) != packed_length:
        raise Corrupt("blob", key, f"{len(packed)} bytes, its header says {packed_length}")
    if raw_length > raw_bytes_max:
        raise Corrupt("blob", key, f"{raw_length} bytes when decoded, at most {raw_bytes_max} fit")
    if xxh3(packed, seed=xxh3(_HEAD.pack(*head, 0))) != checksum:
        raise Corrupt("blob", key, "checksum differs")
    if (version, sealed_by) == (BLOB_VERSION_ENCRYPTED, CIPHER_AES256GCM):
        if cipher is None:
            raise Corrupt("blob", key, "it is encrypted")
        packed = cipher.blobs.open(_sealed_place(place, codec, raw_length), packed, "blob", key)
    elif (version, sealed_by) != (BLOB_VERSION, CIPHER_NONE):
        raise Corrupt("blob", key, f"version {version} with cipher {sealed_by}")
    elif cipher is not None:
        raise Corrupt("blob", key, "it is not encrypted")
    return _unpacked(packed, codec, raw_length, key)


def _unpacked(packed: bytes, codec: int, raw_length: int, key: str) -> bytes:
    if codec == CODEC_SNAPPY:
        return uncompress(packed, raw_length, "blob", key)
    if codec != CODEC_RAW:
        raise UnsupportedVersion("blob codec", codec, CODEC_SNAPPY)
    if len(packed) != raw_length:
        raise Corrupt("blob", key, f"{len(packed)} bytes, its header says {raw_length}")
    return packed
