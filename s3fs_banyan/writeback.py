"""Writing much without making others wait: a little at a time, each on its way before the next.

What a process writes lies in memory until the kernel sends all of it to the disk at once, half a
minute later or when somebody asks for durability, and whoever then syncs 4 KiB of the journal
waits behind it. Here the caller waits instead (sync_file_range(2)), in its own class of input and
output. Nothing is promised: who needs durability syncs.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

_PIECE_BYTES: Final = 1 << 20
_WAIT_BEFORE: Final = 1
_WRITE: Final = 2
_WAIT_AFTER: Final = 4

_libc: Final = ctypes.CDLL(None)


def write_back(descriptor: int, offset: int = 0, length: int = 0) -> None:
    """Bring written bytes of a file to the disk and wait for it; `length` 0 means to its end.

    A failure is no matter here: the file's own sync, or its reader, will find it. Blocks.
    """
    flags = _WAIT_BEFORE | _WRITE | _WAIT_AFTER
    _libc.sync_file_range(descriptor, ctypes.c_int64(offset), ctypes.c_int64(length), flags)


def write_gently(path: Path, data: bytes) -> None:
    """Write a file (made new or emptied) piece by piece; not durable on return. Raises `OSError`.

    Blocks.
    """
    view = memoryview(data)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        position = 0
        while position < len(view):
            written = os.write(descriptor, view[position : position + _PIECE_BYTES])
            write_back(descriptor, position, written)
            position += written
    finally:
        os.close(descriptor)
