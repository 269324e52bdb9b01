"""fdatasync(2) carried out by the kernel beside the event loop, without a thread of ours.

A thread that syncs needs the interpreter's lock before and after. While requests pour in, the
event loop lets go of that lock for microseconds at a time only, more often than the waiter can
wake up, and so a sync of 2 ms was seen to take 98 ms. The kernel's own asynchronous interface
(io_submit(2), IOCB_CMD_FDSYNC, linux/aio_abi.h) needs no thread: a worker of the kernel syncs,
and an eventfd(2) says when. Measured: docs/decisions/0016-who-waits-for-the-event-loop.md.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Sequence
from typing import Final

import trio

from s3fs_banyan.runtime import others_at_work

_CALLS: Final = {"x86_64": (206, 208, 209), "aarch64": (0, 4, 2)}
"""Machine -> numbers of io_setup, io_getevents, io_submit. glibc wraps none of them."""
_FDSYNC: Final = 3
_FLAG_RESFD: Final = 1
_IOCB: Final = struct.Struct("<QIIHhIQQqQII")
"""aio_data, aio_key, aio_rw_flags, aio_lio_opcode, aio_reqprio, aio_fildes, aio_buf,
aio_nbytes, aio_offset, aio_reserved2, aio_flags, aio_resfd"""
_EVENT: Final = struct.Struct("<QQqq")
"""data, obj, res, res2"""
_MOST: Final = 64

_libc = ctypes.CDLL(None, use_errno=True)


class KernelSync:
    """Syncs files asynchronously. For one event loop, one batch at a time."""

    def __init__(self) -> None:
        """Raises `OSError` where the kernel or a sandbox refuses, or knows it not."""
        calls = _CALLS.get(platform.machine())
        if calls is None:
            raise OSError(f"the numbers of io_submit are not known for {platform.machine()}")
        setup, self._getevents, self._submit = calls
        self._context = ctypes.c_ulong(0)
        _call(setup, _MOST, ctypes.byref(self._context))
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._events = ctypes.create_string_buffer(_EVENT.size * _MOST)

    async def datasync(self, descriptors: Sequence[int]) -> None:
        """Return when every byte written to the files before is durable.

        Raises `OSError` if one sync failed; nothing is known then. Raises `BlockingIOError` if
        the kernel had no room for all of them and none failed: sync them in another way. The
        caller shields it: what was submitted cannot be taken back.
        """
        for begin in range(0, len(descriptors), _MOST):
            await self._datasync(descriptors[begin : begin + _MOST])

    async def _datasync(self, descriptors: Sequence[int]) -> None:
        failed = 0
        submitted = self._submit_all(descriptors)
        left = submitted
        with others_at_work():
            while left:
                await trio.lowlevel.wait_readable(self._eventfd)
                for result in self._results():
                    left -= 1
                    failed = failed or min(result, 0)
        if failed:
            raise OSError(-failed, os.strerror(-failed))
        if submitted != len(descriptors):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def _submit_all(self, descriptors: Sequence[int]) -> int:
        blocks = [
            ctypes.create_string_buffer(
                _IOCB.pack(0, 0, 0, _FDSYNC, 0, fd, 0, 0, 0, 0, _FLAG_RESFD, self._eventfd),
                _IOCB.size,
            )
            for fd in descriptors
        ]
        pointers = (ctypes.c_void_p * len(blocks))(*map(ctypes.addressof, blocks))
        return _call(self._submit, self._context, ctypes.c_long(len(blocks)), pointers)

    def _results(self) -> list[int]:
        try:
            os.eventfd_read(self._eventfd)
        except BlockingIOError:
            return []
        taken = _call(
            self._getevents,
            self._context,
            ctypes.c_long(0),
            ctypes.c_long(_MOST),
            self._events,
            None,
        )
        fields = _EVENT.iter_unpack(self._events.raw[: taken * _EVENT.size])
        return [result for _, _, result, _ in fields]


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
