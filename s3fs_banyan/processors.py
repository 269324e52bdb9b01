"""Keeps idle processors from halting while requests follow each other closely.

A call to a FUSE mount is a conversation between two sleepers: the caller sleeps while the daemon
works, the daemon while the caller does. A virtual processor that goes idle halts, which hands it
back to the host, and to wake it again takes 50 us and more, longer than most requests. Linux has
an interface for exactly this, `/dev/cpu_dma_latency` (Documentation/power/pm_qos_interface.rst):
while a process holds the file open with a 0 written to it, idle processors poll instead.

Polling costs the host a whole processor each, so it is done in bursts only, only in guests whose
kernel says that halting is what it would do (the cpuidle driver `haltpoll`), and for no more than
a share of the time. The kernel drops the request when the descriptor is closed, by a kill as well.
Measured: docs/decisions/0017-processors-kept-awake.md.
"""

from __future__ import annotations

import logging
import os
import struct
from pathlib import Path
from typing import Final

import trio

from s3fs_banyan.runtime import monotonic_ns

log = logging.getLogger(__name__)

DEVICE: Final = Path("/dev/cpu_dma_latency")
DRIVER: Final = Path("/sys/devices/system/cpu/cpuidle/current_driver")
GUEST_DRIVER: Final = "haltpoll"
MOST_PROCESSORS: Final = 8
"""All processors of a machine poll, also those that have no part in it: not on big ones."""

_CLOSE_NS: Final = 1_000_000
"""Requests no further apart than this belong to one burst."""
_BURST: Final = 8
"""So many of them make one."""
_ASK_AGAIN: Final = 64
"""In a burst that has spent its time: see after so many requests whether there is more."""
_QUIET_NS: Final = 2_000_000
"""Without a request for so long the burst is over."""
_LOOK_S: Final = 0.003
_SAVED_NS: Final = 2_000_000_000
"""So much time awake can be saved up at most."""
_WORTHWHILE_NS: Final = 20_000_000

_AWAKE: Final = struct.pack("=i", 0)
_AT_EASE: Final = struct.pack("=i", 2_000_000_000)
"""PM_QOS_CPU_LATENCY_DEFAULT_VALUE: nothing is asked for."""


class Processors:
    """Whether idle processors may halt: in a burst of requests they may not.

    `request` is told of every request; `run` ends bursts and must run beside it.
    """

    def __init__(self, fd: int, share: float) -> None:
        """Take `fd`, the opened device, over; `share` of the time at most is spent awake."""
        self._fd = fd
        self._share = share
        self._last_ns = 0
        self._count = 0
        self._saved_ns = float(_SAVED_NS)
        self._booked_ns = monotonic_ns()
        self._begun = trio.Event()
        self.awake = False
        """Whether processors are kept awake now."""
        self.awake_s = 0.0
        """Seconds spent awake so far."""

    def request(self) -> None:
        """Note that a request has come."""
        now_ns = monotonic_ns()
        if now_ns - self._last_ns > _CLOSE_NS:
            self._count = 0
        self._last_ns = now_ns
        self._count += 1
        if not self.awake and self._count % _ASK_AGAIN == _BURST:
            self._begin(now_ns)

    async def run(self) -> None:
        """End each burst when requests cease or its time is spent; ends only by cancellation."""
        try:
            while True:
                await self._begun.wait()
                while self.awake:
                    await trio.sleep(_LOOK_S)
                    self._look(monotonic_ns())
        finally:
            self._end()
            os.close(self._fd)

    def _begin(self, now_ns: int) -> None:
        self._book(now_ns)
        if self._saved_ns >= _WORTHWHILE_NS:
            os.write(self._fd, _AWAKE)
            self.awake = True
            self._begun.set()

    def _look(self, now_ns: int) -> None:
        self._book(now_ns)
        if now_ns - self._last_ns > _QUIET_NS or self._saved_ns <= 0:
            self._end()

    def _end(self) -> None:
        if self.awake:
            os.write(self._fd, _AT_EASE)
            self.awake = False
            self._begun = trio.Event()

    def _book(self, now_ns: int) -> None:
        """Save up the share of the time that has passed, and spend what was awake of it."""
        passed_ns = now_ns - self._booked_ns
        self._booked_ns = now_ns
        self._saved_ns = min(self._saved_ns + passed_ns * self._share, _SAVED_NS)
        if self.awake:
            self._saved_ns -= passed_ns
            self.awake_s += passed_ns / 1e9


def open_processors(
    share: float, *, device: Path = DEVICE, driver: Path = DRIVER
) -> Processors | None:
    """Return what keeps processors awake for `share` of the time at most, or None.

    None where nothing is to be had: a share of 0, a machine of many processors, one that is no
    guest or whose kernel polls by itself, a container without the device.
    """
    processors = os.cpu_count() or 1
    if not share or processors > MOST_PROCESSORS:
        return None
    try:
        if driver.read_text(encoding="ascii").strip() != GUEST_DRIVER:
            return None
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        log.info("idle processors halt between two requests: %s", error)
        return None
    return Processors(fd, share)
