"""A compressed, checksummed run of bytes: deltas, placements, pieces of checkpoints.

Byte table: `docs/format/commit.md`. For data that is always read whole; file data lies in
chunks, whose frames can be read one by one. In an encrypted volume the compressed bytes are
sealed (`encryption.py`), and the checksum is of the sealed ones.
"""

from __future__ import annotations

import struct
from typing import Final

import snappy

from s3fs_banyan.errors import Corrupt, UnsupportedVersion
from s3fs_banyan.format.checksum import Bytes, xxh3
from s3fs_banyan.format.encryption import CIPHER_AES256GCM, CIPHER_NONE, Cipher

BLOB_MAGIC: Final = b"BYNB"
BLOB_VERSION: Final = 1
BLOB_VERSION_ENCRYPTED: Final = 2
BLOB_BYTES_MAX: Final = 1 << 31
_CODEC_RAW: Final = 0
_CODEC_SNAPPY: Final = 1
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
    packed: bytes = snappy.compress(bytes(raw))
    codec = _CODEC_SNAPPY
    if len(packed) >= len(raw):
        packed, codec = bytes(raw), _CODEC_RAW
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


def decode_blob(stored: Bytes, key: str, cipher: Cipher | None = None, *, place: str = "") -> bytes:
    """Return the bytes, verified; `key` names the object for the error.

    With a cipher the blob must be sealed with it, for this place. Raises `Corrupt` or
    `UnsupportedVersion`.
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
    if len(packed) != packed_length or raw_length > BLOB_BYTES_MAX:
        raise Corrupt("blob", key, f"{len(packed)} bytes, its header says {packed_length}")
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
    if codec == _CODEC_RAW:
        raw = packed
    elif codec == _CODEC_SNAPPY:
        try:
            raw = bytes(snappy.uncompress(packed))
        except Exception as error:  # the binding raises several unrelated classes
            raise Corrupt("blob", key, str(error)) from error
    else:
        raise UnsupportedVersion("blob codec", codec, _CODEC_SNAPPY)
    if len(raw) != raw_length:
        raise Corrupt("blob", key, f"decodes to {len(raw)} bytes, its header says {raw_length}")
    return raw
