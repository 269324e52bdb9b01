"""The kernel's own word on how long a turn at the processors a thread has asked for."""

from __future__ import annotations

import ctypes
import platform
import struct

_SCHED_GETATTR = {"x86_64": 315, "aarch64": 275}
_SCHED_ATTR = struct.Struct("=IIQiIQQQ")
ARE_HEARD = tuple(map(int, platform.release().split("-")[0].split(".")[:2])) >= (6, 12)
"""Whether this kernel lets threads ask."""


def turn_ns(pid: int) -> int:
    """Return the slice of a thread (0: of the caller) in nanoseconds; 0 where none is known."""
    buffer = ctypes.create_string_buffer(_SCHED_ATTR.size)
    number = _SCHED_GETATTR[platform.machine()]
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.syscall(number, pid, buffer, _SCHED_ATTR.size, 0) == 0, ctypes.get_errno()
    _, _, _, _, _, runtime_ns, _, _ = _SCHED_ATTR.unpack(buffer.raw)
    return int(runtime_ns)
