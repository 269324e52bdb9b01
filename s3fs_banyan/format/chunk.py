"""Chunks: up to 1 MiB of file data as a row of frames. Byte table: `docs/format/chunk.md`.

A frame is 64 KiB of the chunk (the last one shorter), compressed on its own, with a checksum of
its *stored* bytes that is bound to chunk id and frame number, so that a frame found in the wrong
place is noticed. The frame table is in the chunk's header and, as it stands, beside its place.
In an encrypted volume every frame is sealed on its own (`encryption.py`), and the checksum is of
the sealed bytes: whoever moves or checks chunks needs no key for it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from s3fs_banyan.errors import Corrupt, UnsupportedVersion
from s3fs_banyan.format.checksum import Bytes, xxh3
from s3fs_banyan.format.compression import CODEC_RAW, CODEC_SNAPPY, compress, uncompress
from s3fs_banyan.format.encryption import (
    CIPHER_AES256GCM,
    CIPHER_NONE,
    SEALED_EXTRA_BYTES,
    Cipher,
)
from s3fs_banyan.model import CHUNK_BYTES_MAX, FRAME_BYTES

CHUNK_MAGIC: Final = b"BYNC"
CHUNK_VERSION: Final = 1
CHUNK_VERSION_ENCRYPTED: Final = 2

_HEAD = struct.Struct("<4sBBHQI")
_FRAME = struct.Struct("<IBBHQ")
_SUM = struct.Struct("<Q")
_PLACE = struct.Struct("<8sQHBI")
FRAMES_MAX: Final = CHUNK_BYTES_MAX // FRAME_BYTES


class Frame(NamedTuple):
    """One row of a frame table; `offset` counts from the beginning of the stored chunk."""

    offset: int
    stored_length: int
    raw_length: int
    codec: int
    checksum: int
    cipher: int = CIPHER_NONE


def header_bytes(frame_count: int) -> int:
    """Return the length of the header of a chunk with so many frames."""
    return _HEAD.size + frame_count * _FRAME.size + _SUM.size


def frame_seed(chunk_id: int, index: int) -> int:
    """Return the seed that binds a frame's checksum to its chunk and number."""
    return (chunk_id * 31 + index) & 0xFFFF_FFFF_FFFF_FFFF


def frame_place(chunk_id: int, index: int, codec: int, raw_length: int) -> bytes:
    """Return the associated data that binds a sealed frame to where it belongs."""
    return _PLACE.pack(b"frame 1\0", chunk_id, index, codec, raw_length)


def encode_chunk(chunk_id: int, data: Bytes, cipher: Cipher | None = None) -> tuple[bytes, bytes]:
    """Return (stored bytes, frame table) of a chunk. `data` is 1 byte to 1 MiB.

    With a cipher the frames are sealed and the chunk is of the version that says so.
    """
    if not 0 < len(data) <= CHUNK_BYTES_MAX:
        raise ValueError(f"chunk of {len(data)} bytes")
    version, sealed_by = CHUNK_VERSION, CIPHER_NONE
    if cipher is not None:
        version, sealed_by = CHUNK_VERSION_ENCRYPTED, CIPHER_AES256GCM
    table = bytearray()
    bodies = []
    view = memoryview(data)
    for index, start in enumerate(range(0, len(data), FRAME_BYTES)):
        raw = bytes(view[start : start + FRAME_BYTES])
        packed, codec = compress(raw)
        if cipher is not None:
            packed = cipher.frames.seal(frame_place(chunk_id, index, codec, len(raw)), packed)
        bodies.append(packed)
        checksum = xxh3(packed, seed=frame_seed(chunk_id, index))
        table += _FRAME.pack(len(packed), codec, sealed_by, 0, checksum)
    frame_table = bytes(table)
    head = _HEAD.pack(CHUNK_MAGIC, version, 0, len(bodies), chunk_id, len(data)) + frame_table
    return b"".join((head, _SUM.pack(xxh3(head)), *bodies)), frame_table


def decode_frame_table(chunk_id: int, length: int, table: bytes) -> list[Frame]:
    """Return the frames of a chunk of `length` bytes from its frame table.

    Raises `Corrupt` if the table cannot belong to a chunk of that length.
    """
    count = -(-length // FRAME_BYTES)
    if len(table) != count * _FRAME.size or not 0 < count <= FRAMES_MAX:
        raise Corrupt(
            "frame table", f"of chunk {chunk_id}", f"{len(table)} bytes for {count} frames"
        )
    frames = []
    offset = header_bytes(count)
    left = length
    for stored_length, codec, sealed_by, _, checksum in _FRAME.iter_unpack(table):
        raw_length = min(FRAME_BYTES, left)
        extra = SEALED_EXTRA_BYTES if sealed_by else 0
        if not extra < stored_length <= raw_length + extra:
            raise Corrupt("frame table", f"of chunk {chunk_id}", f"frame of {stored_length} bytes")
        frames.append(Frame(offset, stored_length, raw_length, codec, checksum, sealed_by))
        offset += stored_length
        left -= raw_length
    return frames


def decode_frame(
    chunk_id: int,
    index: int,
    frame: Frame,
    stored: Bytes,
    key: str,
    cipher: Cipher | None = None,
) -> bytes:
    """Verify and decode one frame; `key` names the object for the error.

    With a cipher the frame must be sealed with it: a plain one in an encrypted volume was put
    there by someone else. Raises `Corrupt`: not one byte is given that was not verified.
    """
    if len(stored) != frame.stored_length:
        raise Corrupt("frame", key, f"chunk {chunk_id} frame {index} is {len(stored)} bytes short")
    if xxh3(stored, seed=frame_seed(chunk_id, index)) != frame.checksum:
        raise Corrupt("frame", key, f"checksum of chunk {chunk_id} frame {index} differs")
    packed = _unsealed(chunk_id, index, frame, stored, key, cipher)
    if frame.codec == CODEC_SNAPPY:
        where = f"chunk {chunk_id} frame {index}: "
        return uncompress(packed, frame.raw_length, "frame", key, where)
    if frame.codec != CODEC_RAW:
        raise UnsupportedVersion("frame codec", frame.codec, CODEC_SNAPPY)
    if len(packed) != frame.raw_length:
        raise Corrupt(
            "frame", key, f"chunk {chunk_id} frame {index} decodes to {len(packed)} bytes"
        )
    return packed


def are_plain(frames: Sequence[Frame]) -> bool:
    """Tell whether the stored bytes of all these frames are their bytes."""
    return all(
        frame.codec == CODEC_RAW and not frame.cipher and frame.stored_length == frame.raw_length
        for frame in frames
    )


def verify_plain(
    chunk_id: int, first: int, frames: Sequence[Frame], stored: Bytes, key: str
) -> None:
    """Verify the run of neighbouring plain frames from number `first` on, without a copy.

    Raises `Corrupt`.
    """
    view = memoryview(stored)
    start = frames[0].offset
    for index, frame in enumerate(frames, first):
        piece = view[frame.offset - start : frame.offset - start + frame.stored_length]
        if len(piece) != frame.stored_length:
            raise Corrupt("frame", key, f"chunk {chunk_id} frame {index} is {len(piece)} bytes")
        if xxh3(piece, seed=frame_seed(chunk_id, index)) != frame.checksum:
            raise Corrupt("frame", key, f"checksum of chunk {chunk_id} frame {index} differs")


def _unsealed(
    chunk_id: int, index: int, frame: Frame, stored: Bytes, key: str, cipher: Cipher | None
) -> bytes:
    if frame.cipher > CIPHER_AES256GCM:
        raise UnsupportedVersion("frame cipher", frame.cipher, CIPHER_AES256GCM)
    if cipher is None:
        if frame.cipher:
            raise Corrupt("frame", key, f"chunk {chunk_id} frame {index} is encrypted")
        return bytes(stored)
    if not frame.cipher:
        raise Corrupt("frame", key, f"chunk {chunk_id} frame {index} is not encrypted")
    place = frame_place(chunk_id, index, frame.codec, frame.raw_length)
    return cipher.frames.open(place, stored, "frame", key)


def decode_chunk_header(stored: Bytes, key: str) -> tuple[int, int, bytes]:
    """Return (chunk id, length, frame table) of a stored chunk, verified.

    Raises `Corrupt` or `UnsupportedVersion`. Used where the place is not at hand: `check`.
    """
    if len(stored) < _HEAD.size:
        raise Corrupt("chunk", key, f"{len(stored)} bytes are too few for a header")
    magic, version, flags, count, chunk_id, length = _HEAD.unpack_from(stored)
    if magic != CHUNK_MAGIC:
        raise Corrupt("chunk", key, "no chunk begins here")
    if version not in {CHUNK_VERSION, CHUNK_VERSION_ENCRYPTED} or flags:
        raise UnsupportedVersion("chunk", version, CHUNK_VERSION_ENCRYPTED)
    end = _HEAD.size + count * _FRAME.size
    if count > FRAMES_MAX or len(stored) < end + _SUM.size:
        raise Corrupt("chunk", key, f"{count} frames do not fit")
    head = bytes(stored[:end])
    if xxh3(head) != _SUM.unpack_from(stored, end)[0]:
        raise Corrupt("chunk", key, "header checksum differs")
    return chunk_id, length, head[_HEAD.size :]
