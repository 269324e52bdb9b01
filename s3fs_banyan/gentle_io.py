"""Reading and writing much without making others wait: a little in one call, and not all at once.

Where the kernel does not preempt itself (`PREEMPT_NONE`, what servers have), whoever wants a
processor waits until the system call on it ends, whatever its priority: one read of a pack of
64 MiB into fresh memory took 90 ms, and an fsync beside it as long. So every call is short here.

What a process writes lies in memory until the kernel sends all of it to the disk at once, half a
minute later or when somebody asks for durability, and whoever then syncs 4 KiB of the journal
waits behind it. It waits as well behind what the disk took into its own write cache, since to
flush that is part of each sync, and behind the blocks that a removed file gives back. Here the
writer waits instead, in its own class of input and output, for all three. Nothing is promised:
who needs durability syncs.

Measured: docs/decisions/0018-short-system-calls.md.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
from collections import deque
from pathlib import Path
from typing import Final

Bytes = bytes | bytearray | memoryview

CALL_BYTES: Final = 1 << 18
"""Copied within a tenth of a millisecond or two, the memory that it needs included."""
_PIECE_BYTES: Final = 1 << 20
LARGE_BYTES: Final = 1 << 20
"""From here on it pays to write past the page cache."""
_SECTOR_BYTES: Final = 4096
_ALL_OF_IT: Final = 7
"""SYNC_FILE_RANGE_WAIT_BEFORE, _WRITE and _WAIT_AFTER."""

_zeros: Final = mmap.mmap(-1, CALL_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
"""Never written to, so all of it is one page of the kernel's."""
_libc: Final = ctypes.CDLL(None)
_aligned: Final[deque[mmap.mmap]] = deque()
"""Memory that lies as disks want it, for the next writer: at most one for each of them."""


class Writeback:
    """Brings many small files to the disk, one after the other; several threads may share it."""

    def __init__(self) -> None:
        self._unflushed_bytes = 0

    def write_back(self, descriptor: int, byte_count: int) -> None:
        """Bring a file that was just written to the disk, and wait for it. Blocks.

        The disk's own cache is flushed once in a MiB. A failure is no matter here: the file's
        own sync, or its reader, will find it.
        """
        self._unflushed_bytes += byte_count
        if self._unflushed_bytes >= _PIECE_BYTES:
            self._unflushed_bytes = 0
            with contextlib.suppress(OSError):
                os.fdatasync(descriptor)
        else:
            _libc.sync_file_range(descriptor, ctypes.c_int64(0), ctypes.c_int64(0), _ALL_OF_IT)


def write_all(descriptor: int, data: Bytes) -> None:
    """Write all of `data` where the file stands, in short calls. Raises `OSError`. Blocks."""
    view = memoryview(data)
    position = 0
    while position < len(view):
        position += os.write(descriptor, view[position : position + CALL_BYTES])


def write_past_cache(descriptor: int, data: Bytes, *, gently: bool = False) -> None:
    """Write all of `data` to a new file, past the page cache where the file system can do so.

    For files that are large and read later, if at all: the kernel need not find memory for them,
    nor send them to the disk all at once some time later. `gently`: in smaller calls, the disk's
    own cache flushed once in a MiB, so that whoever syncs beside it waits for little. Not durable
    on return. Raises `OSError`. Blocks.
    """
    view = memoryview(data).cast("B")
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    position = 0
    with contextlib.suppress(_NotDirect):
        _set_flags(descriptor, flags | os.O_DIRECT)
        try:
            position = _write_aligned(descriptor, view, gently=gently)
        finally:
            _set_flags(descriptor, flags)
    os.lseek(descriptor, position, os.SEEK_SET)
    write_all(descriptor, view[position:])


def write_zeros(descriptor: int, begin: int, end: int) -> None:
    """Write zeros from `begin` to `end` of a file, in short calls, past the page cache if possible.

    It is where both are multiples of a page and the file system can do so. Nobody else may write
    to the file meanwhile. Not durable on return. Raises `OSError`. Blocks.
    """
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    position = begin
    with memoryview(_zeros) as zeros:
        with contextlib.suppress(_NotDirect):
            _set_flags(descriptor, flags | os.O_DIRECT)
            try:
                position = _write_repeated(descriptor, zeros, begin, end)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            finally:
                _set_flags(descriptor, flags)
        _write_repeated(descriptor, zeros, position, end)


def free_gently(descriptor: int) -> None:
    """Give a file's blocks back from its end, a little in one call; it is empty then. Blocks.

    A disk that is told of every block that comes free (mount option `discard`) does nothing else
    meanwhile: to remove a file of 64 MiB at once made a sync of another one wait 14 to 20 ms, in
    pieces 1.5 ms (docs/decisions/0023-files-removed-in-pieces.md). Raises `OSError`.
    """
    position = os.fstat(descriptor).st_size
    while position > 0:
        position = max(0, position - _PIECE_BYTES)
        os.ftruncate(descriptor, position)


def remove_gently(path: Path) -> None:
    """Remove a file, if it is there: its name at once, its blocks little by little. Blocks.

    Nobody else may read it any more. Raises `OSError`.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        path.unlink(missing_ok=True)
        if os.fstat(descriptor).st_nlink == 0:
            free_gently(descriptor)
    finally:
        os.close(descriptor)


def _write_repeated(descriptor: int, piece: memoryview, begin: int, end: int) -> int:
    position = begin
    while position < end:
        position += os.pwrite(descriptor, piece[: min(len(piece), end - position)], position)
    return position


class _NotDirect(Exception):  # no error: it is written through the page cache then
    """The file system takes no writes past the page cache."""


def _set_flags(descriptor: int, flags: int) -> None:
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
    except OSError as error:
        raise _NotDirect from error


def _write_aligned(descriptor: int, view: memoryview, *, gently: bool) -> int:
    """Write piece by piece; returns how much was written, all of it or what could be so.

    Bytes that lie as the disk wants them are not copied; others are, a little at a time, since
    no other thread of the interpreter runs meanwhile.
    """
    is_aligned = not view.readonly and not _address(view) % _SECTOR_BYTES
    piece_bytes = _PIECE_BYTES if is_aligned and not gently else CALL_BYTES
    try:
        memory = _aligned.pop()
    except IndexError:
        memory = mmap.mmap(-1, _PIECE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    position = 0
    try:
        while position < len(view):
            length = min(len(view) - position, piece_bytes)
            padded = -(-length // _SECTOR_BYTES) * _SECTOR_BYTES
            if is_aligned and padded == length:
                written = os.pwrite(descriptor, view[position : position + length], position)
            else:
                memory[:length] = view[position : position + length]
                memory[length:padded] = bytes(padded - length)
                with memoryview(memory) as piece:
                    written = os.pwrite(descriptor, piece[:padded], position)
            position += min(written, length)
            if written > length:
                os.ftruncate(descriptor, position)
            if written != padded:
                break
            if gently and not position % _PIECE_BYTES:
                os.fdatasync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        _aligned.append(memory)
    return position


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view)) if view else 0


def read_into(descriptor: int, buffer: bytearray | memoryview, position: int) -> int:
    """Fill `buffer` from `position` of a file in short calls; returns how much there was. Blocks.

    Raises `OSError`.
    """
    view = memoryview(buffer)
    count = 0
    while count < len(view):
        got = os.preadv(descriptor, (view[count : count + CALL_BYTES],), position + count)
        if not got:
            break
        count += got
    return count


def read_gently(path: Path) -> bytes:
    """Return a file's bytes, read in short calls. Raises `OSError`. Blocks."""
    pieces = []
    with path.open("rb", buffering=0) as file:
        while piece := file.read(CALL_BYTES):
            pieces.append(piece)
    return b"".join(pieces)


def write_gently(path: Path, data: Bytes) -> None:
    """Write a file (made new or emptied) piece by piece; not durable on return. Raises `OSError`.

    Blocks.
    """
    view = memoryview(data)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        for position in range(0, len(view), _PIECE_BYTES):
            write_all(descriptor, view[position : position + _PIECE_BYTES])
            os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
