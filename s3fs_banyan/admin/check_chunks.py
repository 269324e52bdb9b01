"""Check of the chunks in one object, against its own index and against the state's places."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

from s3fs_banyan.errors import Corrupt, DataError
from s3fs_banyan.format.chunk import (
    decode_chunk_header,
    decode_frame,
    decode_frame_table,
    header_bytes,
)
from s3fs_banyan.format.encryption import Cipher
from s3fs_banyan.format.pack import decode_pack_tail, tail_bytes


class ExpectedChunk(NamedTuple):
    """A living chunk as the state's tables have it."""

    chunk: int
    length: int
    offset: int
    stored_length: int
    frames: bytes


class FoundChunk(NamedTuple):
    """A chunk as its header describes it."""

    chunk: int
    length: int
    stored_length: int
    frames: bytes


def check_pack(
    data: bytes, key: str, expected: Sequence[ExpectedChunk], cipher: Cipher | None
) -> Iterator[str]:
    """Yield what is wrong with a pack. Raises `Corrupt` if its index cannot be read."""
    entries = decode_pack_tail(data, len(data), key)
    body = memoryview(data)[: len(data) - tail_bytes(len(entries))]
    found = yield from check_chunks(body, key, expected, cipher)
    indexed = {(e.offset, e.chunk, e.length, e.stored_length) for e in entries}
    there = {(offset, c.chunk, c.length, c.stored_length) for offset, c in found.items()}
    for offset, chunk, *_ in sorted(indexed ^ there):
        yield f"index and content differ at {offset} (chunk {chunk})"


def check_chunks(
    data: memoryview, key: str, expected: Sequence[ExpectedChunk], cipher: Cipher | None
) -> Generator[str, None, dict[int, FoundChunk]]:
    """Yield what is wrong with the chunks that fill `data`; return them by offset.

    `data` is the beginning of the object `key`. Chunks lie one behind the other without gaps,
    so every byte is covered by one of their checksums. One with a damaged header ends the walk,
    unless the state knows where the next one is.
    """
    found: dict[int, FoundChunk] = {}
    known = sorted(expected, key=lambda chunk: chunk.offset)
    offset = 0
    while offset < len(data):
        try:
            chunk = _decode_header(data[offset:], key)
        except DataError as error:
            yield f"at {offset}: {_why(error)}"
            behind = (e.offset for e in known if e.offset > offset)
            offset = next(behind, len(data))
            continue
        found[offset] = chunk
        yield from _decode_frames(chunk, data[offset : offset + chunk.stored_length], key, cipher)
        offset += chunk.stored_length
    if offset > len(data):
        yield f"the last chunk ends {offset - len(data)} bytes behind the end"
    for one in known:
        chunk_there = found.get(one.offset)
        if chunk_there is None:
            yield f"no chunk begins at {one.offset}, where chunk {one.chunk} should be"
        elif chunk_there != FoundChunk(one.chunk, one.length, one.stored_length, one.frames):
            yield f"the chunk at {one.offset} is not chunk {one.chunk} as the state has it"
    return found


def _decode_header(stored: memoryview, key: str) -> FoundChunk:
    chunk, length, table = decode_chunk_header(stored, key)
    frames = decode_frame_table(chunk, length, table)
    stored_length = header_bytes(len(frames)) + sum(frame.stored_length for frame in frames)
    return FoundChunk(chunk, length, stored_length, table)


def _decode_frames(
    chunk: FoundChunk, stored: memoryview, key: str, cipher: Cipher | None
) -> Iterator[str]:
    for index, frame in enumerate(decode_frame_table(chunk.chunk, chunk.length, chunk.frames)):
        end = frame.offset + frame.stored_length
        try:
            decode_frame(chunk.chunk, index, frame, stored[frame.offset : end], key, cipher)
        except DataError as error:
            yield _why(error)


def _why(error: DataError) -> str:
    return error.why if isinstance(error, Corrupt) else str(error)
