"""Frames that were stored as they are, verified where they lie."""

from __future__ import annotations

import os

import pytest

from s3fs_banyan.errors import Corrupt
from s3fs_banyan.format.chunk import (
    Frame,
    are_plain,
    decode_frame_table,
    encode_chunk,
    verify_plain,
)
from s3fs_banyan.format.encryption import Cipher
from s3fs_banyan.model import FRAME_BYTES

CHUNK = 77
LENGTH = 3 * FRAME_BYTES + 1234


def stored_frames(data: bytes, cipher: Cipher | None = None) -> tuple[list[Frame], bytes]:
    """Return the frames of a chunk, and the run of their stored bytes."""
    stored, table = encode_chunk(CHUNK, data, cipher)
    frames = decode_frame_table(CHUNK, len(data), table)
    return frames, stored[frames[0].offset :]


@pytest.mark.parametrize("first", range(4))
def test_every_run_of_a_chunk_is_its_own_bytes(first: int) -> None:
    data = os.urandom(LENGTH)
    frames, stored = stored_frames(data)
    assert are_plain(frames)
    for end in range(first + 1, 5):
        run = frames[first:end]
        part = data[first * FRAME_BYTES : end * FRAME_BYTES]
        verify_plain(CHUNK, first, run, part, "pack")
        begin = run[0].offset - frames[0].offset
        assert stored[begin : begin + len(part)] == part


@pytest.mark.parametrize("position", [0, FRAME_BYTES - 1, FRAME_BYTES, LENGTH - 1])
def test_a_flipped_bit_is_found_wherever_it_is(position: int) -> None:
    frames, stored = stored_frames(os.urandom(LENGTH))
    broken = bytearray(stored)
    broken[position] ^= 1
    with pytest.raises(Corrupt, match=f"frame {position // FRAME_BYTES} differs"):
        verify_plain(CHUNK, 0, frames, broken, "pack")


def test_bytes_of_another_place_or_too_few_are_refused() -> None:
    """The checksum is bound to chunk and number; a short object is no shorter file."""
    frames, stored = stored_frames(os.urandom(LENGTH))
    with pytest.raises(Corrupt, match="differs"):
        verify_plain(CHUNK + 1, 0, frames, stored, "pack")
    with pytest.raises(Corrupt, match="differs"):
        verify_plain(CHUNK, 1, frames, stored, "pack")
    with pytest.raises(Corrupt, match="frame 3 is 1233 bytes"):
        verify_plain(CHUNK, 0, frames, stored[:-1], "pack")


def test_what_was_compressed_is_not_plain() -> None:
    """One frame that has to be decoded sends the whole run the other way."""
    frames, _ = stored_frames(os.urandom(FRAME_BYTES) + bytes(FRAME_BYTES))
    assert [are_plain([frame]) for frame in frames] == [True, False]
    assert not are_plain(frames)


def test_what_was_encrypted_is_not_plain() -> None:
    """Its stored bytes are nobody's to hand out."""
    frames, _ = stored_frames(os.urandom(LENGTH), Cipher(bytes(range(32)), bytes(16)))
    assert not any(are_plain([frame]) for frame in frames)
