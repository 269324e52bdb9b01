"""Reading sealed packs and stored chunks back, every frame of them verified."""

from __future__ import annotations

from pathlib import Path

from s3fs_banyan.commit.outbox import PackedChunk, PackRecord
from s3fs_banyan.commit.pack_buffers import PackBuffer
from s3fs_banyan.errors import Corrupt
from s3fs_banyan.format.checksum import Bytes
from s3fs_banyan.format.chunk import decode_chunk_header, decode_frame, decode_frame_table
from s3fs_banyan.format.encryption import Cipher
from s3fs_banyan.format.keys import pack_hash_of
from s3fs_banyan.format.pack import decode_pack_tail


def read_pack(path: Path, record: PackRecord, cipher: Cipher | None) -> list[PackedChunk]:
    """Return what lies in a sealed pack of the outbox, every frame of it verified.

    Raises `FileNotFoundError`, `Corrupt` or `UnsupportedVersion`: then it is sealed again.
    """
    data = PackBuffer()
    data.load(path)
    if pack_hash_of(record.key) != data.sha256.hex()[: len(pack_hash_of(record.key))]:
        raise Corrupt("pack", str(path), "it does not have the hash in its name")
    chunks = []
    for entry in decode_pack_tail(data, len(data), str(path)):
        stored = memoryview(data)[entry.offset : entry.offset + entry.stored_length]
        chunk, length, frames = verify_chunk(stored, str(path), cipher)
        if (chunk, length) != (entry.chunk, entry.length):
            raise Corrupt("pack", str(path), f"chunk {entry.chunk} is not at its place")
        chunks.append(PackedChunk(chunk, entry.offset, entry.stored_length, length, frames))
    return chunks


def verify_chunk(stored: Bytes, key: str, cipher: Cipher | None) -> tuple[int, int, bytes]:
    """Return (chunk id, length, frame table) of a stored chunk of which every frame is intact.

    Raises `Corrupt` or `UnsupportedVersion`.
    """
    chunk, length, table = decode_chunk_header(stored, key)
    for index, frame in enumerate(decode_frame_table(chunk, length, table)):
        body = memoryview(stored)[frame.offset : frame.offset + frame.stored_length]
        decode_frame(chunk, index, frame, body, key, cipher)
    return chunk, length, table
