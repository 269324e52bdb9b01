"""Memory of large bodies is used again, and never while anybody looks at it."""

from __future__ import annotations

import ctypes
import mmap
from collections import deque

import pytest

from s3fs_banyan.remote import body_memory
from s3fs_banyan.remote.body_memory import memory_for

MIB = 1 << 20


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> deque[mmap.mmap]:
    """What is kept for the next body; nothing yet."""
    kept: deque[mmap.mmap] = deque()
    monkeypatch.setattr(body_memory, "_free", kept)
    return kept


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def test_memory_is_used_again_once_no_view_is_left(kept: deque[mmap.mmap]) -> None:
    """A view of a few bytes keeps all of it, as the reader's views of a range do."""
    first = memory_for(8 * MIB)
    at = _address(first)
    first[:] = b"x" * len(first)
    piece = first[5 * MIB : 5 * MIB + 10].toreadonly()
    del first
    second = memory_for(8 * MIB)
    assert _address(second) != at
    second[:] = b"y" * len(second)
    assert bytes(piece) == b"x" * 10
    assert not kept
    del piece
    assert len(kept) == 1
    third = memory_for(6 * MIB)
    assert _address(third) == at
    assert len(third) == 6 * MIB


def test_no_more_is_kept_than_arrives_at_a_time(kept: deque[mmap.mmap]) -> None:
    """A read far ahead holds many bodies; a daemon at rest should not."""
    views = [memory_for(8 * MIB) for _ in range(9)]
    assert len({_address(view) for view in views}) == len(views)
    views.clear()
    assert len(kept) == body_memory._KEPT_MAX


@pytest.mark.parametrize("length", [MIB, 4 * MIB, 8 * MIB + 1, 64 * MIB])
def test_other_lengths_have_memory_of_their_own(length: int, kept: deque[mmap.mmap]) -> None:
    """A short body would hold eight times what it needs."""
    view = memory_for(length)
    assert len(view) == length
    assert not _address(view) % mmap.PAGESIZE
    assert not view.readonly
    del view
    assert not kept
