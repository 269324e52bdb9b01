"""Packs in memory that is used again: the right bytes, their sums, and nothing of the last one."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from s3fs_banyan.commit.pack_buffers import PackBuffer, PackBuffers


def fill(buffer: PackBuffer, data: bytes, piece_bytes: int) -> None:
    """Put `data` in, piece by piece."""
    for position in range(0, len(data), piece_bytes):
        buffer.add(data[position : position + piece_bytes])
    buffer.finish()


@pytest.mark.parametrize("sizes", [(0, 10, 0), (3_000_000, 5, 2_999_999), (7, 3_000_000, 8)])
def test_a_buffer_holds_the_newest_pack_and_nothing_else(sizes: tuple[int, ...]) -> None:
    """Whatever was in it before, longer or shorter."""
    buffer = PackBuffer()
    for size in sizes:
        data = os.urandom(size)
        buffer.begin()
        fill(buffer, data, 70_001)
        assert bytes(buffer) == data
        assert buffer.md5 == hashlib.md5(data, usedforsecurity=False).digest()
        assert buffer.sha256 == hashlib.sha256(data).digest()


def test_a_pack_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    """In whatever pieces the file comes."""
    data = os.urandom((2 << 20) + 77)
    path = tmp_path / "pack"
    path.write_bytes(data)
    buffer = PackBuffers().take()
    buffer.load(path)
    assert bytes(buffer) == data
    assert buffer.sha256 == hashlib.sha256(data).digest()
    with pytest.raises(FileNotFoundError):
        buffer.load(tmp_path / "missing")


def test_a_buffer_that_was_given_back_is_taken_again() -> None:
    """Its memory is what it is kept for; one that is still looked at is nobody else's."""
    buffers = PackBuffers()
    first, second = buffers.take(), buffers.take()
    assert first is not second
    fill(first, b"x" * 1000, 100)
    buffers.give_back(first)
    again = buffers.take()
    assert again is first
    fill(again, b"new", 1)
    assert bytes(again) == b"new"


def test_a_buffer_without_sums_does_not_keep_those_of_the_pack_before() -> None:
    """They would be believed: nobody looks at the bytes again before they are sent."""
    buffer = PackBuffer()
    buffer.begin()
    buffer.add(b"first")
    buffer.finish()
    buffer.begin(summed=False)
    buffer.add(b"second")
    buffer.finish()
    assert (bytes(buffer), buffer.md5, buffer.sha256) == (b"second", b"", b"")
