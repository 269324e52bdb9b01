"""The daemon's and the worker's places at the processors, and at the disk.

A call to a file system in the kernel runs at its caller's priority; a daemon that answers it stands
in line with everybody who computes something, unless it goes first. Two things decide who does:
niceness, by which time is shared out, and the slice, the time that a thread asks for at a turn.
Of those that have not had their share, Linux takes the thread whose slice would end first, and a
thread that wakes up with a shorter one interrupts another's turn (since 6.12; earlier kernels do
not look at what is asked for). Requests take less than a millisecond, a pack's checksum much more.
Measured: docs/decisions/0017-processors-kept-awake.md and 0024-a-short-turn.md.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import struct
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

_AUTOGROUP: Final = Path("/proc/self/autogroup")
_CALLS: Final = {"x86_64": (314, 251), "aarch64": (274, 30)}
"""Machine -> numbers of sched_setattr, ioprio_set. Not every C library has names for them."""
_SCHED_ATTR: Final = struct.Struct("=IIQiIQQQ")
"""size, policy, flags, nice, priority, runtime, deadline, period (sched_setattr(2))"""
_TURN_NS: Final = 100_000
"""The shortest slice that Linux gives."""
_USUAL_TURN_NS: Final = 0
"""The slice that the kernel gives to whoever does not ask."""
_IOPRIO_CLASS_NONE: Final = 0
"""The usual one, by niceness."""
_IOPRIO_CLASS_IDLE: Final = 3
_IOPRIO_CLASS_SHIFT: Final = 13
_IOPRIO_WHO_PROCESS: Final = 1


def go_first(nice: int) -> None:
    """Let this thread, and those it begins from now on, answer soon: `nice`, and short turns.

    Where sessions are scheduled as groups (sched(7), autogroup), niceness counts only within one:
    a session that this process leads gets it as well. What the kernel refuses (niceness below 0
    needs CAP_SYS_NICE) stays as it was; that is logged.
    """
    _set_niceness(nice)
    _set_turn(_TURN_NS)


def step_back(nice: int) -> None:
    """Let others go first: at the processors, and where the disk is waited for.

    Undoes what was inherited from a parent that goes first. The idle class of input and output
    (ioprio_set(2)) means something to the schedulers bfq and mq-deadline only. A kernel that
    refuses any of it costs latency and nothing else; that is logged.
    """
    _set_niceness(nice)
    _set_turn(_USUAL_TURN_NS)
    _set_disk_class(_IOPRIO_CLASS_IDLE)


def step_forward() -> None:
    """Stand in line like everybody else again, after `step_back`, for as long as somebody waits.

    Where niceness cannot be taken back (that needs CAP_SYS_NICE), that of the session can.
    """
    _set_niceness(0)
    _set_disk_class(_IOPRIO_CLASS_NONE)


def _set_disk_class(number: int) -> None:
    _, ioprio_set = _CALLS.get(platform.machine(), (None, None))
    if not _call(ioprio_set, _IOPRIO_WHO_PROCESS, 0, number << _IOPRIO_CLASS_SHIFT):
        log.info("the disk does not know whether this process can wait")


def _set_niceness(nice: int) -> None:
    try:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    except OSError as error:
        log.info("niceness %d: %s", nice, error)
    try:
        if os.getsid(0) == os.getpid() and _AUTOGROUP.exists():
            _AUTOGROUP.write_text(str(nice), encoding="ascii")
    except OSError as error:
        log.info("niceness %d of the session: %s", nice, error)


def _set_turn(nanoseconds: int) -> None:
    """Ask for turns of this length; niceness, which the same call sets, stays as it is."""
    if os.sched_getscheduler(0) != os.SCHED_OTHER:
        return  # somebody chose another policy for this process, where slices mean other things
    sched_setattr, _ = _CALLS.get(platform.machine(), (None, None))
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    attributes = _SCHED_ATTR.pack(_SCHED_ATTR.size, os.SCHED_OTHER, 0, nice, 0, nanoseconds, 0, 0)
    if not _call(sched_setattr, 0, attributes, 0):
        log.info("the kernel gives turns of its usual length")


def _call(number: int | None, *arguments: int | bytes) -> bool:
    """Make a system call that returns nothing; tell whether it was carried out."""
    return number is not None and not ctypes.CDLL(None).syscall(number, *arguments)
