"""Memory for large bodies from the line, used again.

What a process frees goes back to the kernel, which empties each page before it hands it out anew:
an eighth of what a cold read cost both processors. Where a virtual machine's host takes back what
is free, as ours does, each page has to be fetched from there as well (decision 22).
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import weakref
from collections import deque
from typing import Final

_BODY_BYTES: Final = 8 << 20
"""A range of a stream far ahead. Shorter ones share its size, down to half of it."""
_KEPT_MAX: Final = 4
"""As many as arrive at a time; more lie about after a read that was far ahead, and are given up."""

_free: Final[deque[mmap.mmap]] = deque()


def memory_for(length: int) -> memoryview:
    """Return `length` bytes of any value, to write to, beginning with a page.

    Once no view of them is left, whoever dropped it last, they may become those of another body.
    Safe in several threads.
    """
    if not _BODY_BYTES // 2 < length <= _BODY_BYTES:
        return memoryview(_mapped(length))
    try:
        memory = _free.pop()
    except IndexError:
        memory = _mapped(_BODY_BYTES)
    # All views hold the array, and the array's end is told, which that of a view is not.
    array = (ctypes.c_ubyte * _BODY_BYTES).from_buffer(memory)
    weakref.finalize(array, _give_back, memory).atexit = False
    return memoryview(array).cast("B")[:length]


def _give_back(memory: mmap.mmap) -> None:
    if len(_free) < _KEPT_MAX:
        _free.append(memory)


def _mapped(length: int) -> mmap.mmap:
    """Return fresh memory, of large pages if there are: 8 MiB are 2,048 page faults else."""
    memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without large pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
