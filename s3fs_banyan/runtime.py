"""The one door to wall time, randomness, ids and threads.

Everything undetermined that the engine uses comes through a `Runtime`, so that a simulated
world can replace it and a seed replays a run. Time-outs and sleeps are trio's own; under
trio's MockClock they are virtual by themselves. Nothing else in the package imports `time`,
`random`, `os.urandom`, `threading` or `trio.to_thread` (checked by the linter).
"""

from __future__ import annotations

import gc
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol, TypeVar, TypeVarTuple

import trio

log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_HAND_OVER_S = 50e-6
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Runtime(Protocol):
    """What the engine may ask of the world around it."""

    def wall_ns(self) -> int:
        """Unix time in nanoseconds; may jump either way."""
        ...

    def monotonic_ns(self) -> int:
        """Nanoseconds since some fixed moment; never goes back."""
        ...

    def random_bytes(self, count: int) -> bytes: ...

    def boot_id(self) -> str:
        """Identity of this boot of the kernel: the page cache is lost when it changes."""
        ...

    async def in_thread(self, fn: Callable[[*Ts], T], *args: *Ts, pool: str = "disk") -> T:
        """Run `fn(*args)` in a worker thread of the named pool and return its result.

        Pools (`disk`, `store`, `cpu`, `fsync`, `question`) have separate limits, so that a slow
        store can starve neither an fsync nor the question whether it is there. Cancelling waits
        for the thread: a write is never abandoned.
        """
        ...

    def failpoint(self, name: str) -> None:
        """Named point of the durable order; a test may end the process or the world here."""
        ...


FAILPOINTS: dict[str, str] = {}
"""Name -> where it lies in the durable order; filled by `register_failpoint` at import."""


def register_failpoint(name: str, meaning: str) -> str:
    """Declare a failpoint; returns its name. Raises `ValueError` on a double name."""
    if name in FAILPOINTS:
        raise ValueError(f"failpoint {name} is declared twice")
    FAILPOINTS[name] = meaning
    return name


class RealRuntime:
    """The real world: system clocks, the kernel's randomness, trio worker threads."""

    def __init__(self, *, failpoint: str | None = None) -> None:
        """`failpoint` is `NAME` or `NAME:N`: the N-th time it is passed, the process dies."""
        self._limiters = {
            "disk": trio.CapacityLimiter(4),
            "store": trio.CapacityLimiter(24),
            "cpu": trio.CapacityLimiter(2),
            "fsync": trio.CapacityLimiter(1),
            "question": trio.CapacityLimiter(6),
        }
        name, _, nth = (failpoint or "").partition(":")
        self._failpoint = name
        self._failpoint_passes_left = int(nth or 1)

    def wall_ns(self) -> int:
        return time.time_ns()

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def random_bytes(self, count: int) -> bytes:
        return os.urandom(count)

    def boot_id(self) -> str:
        return _BOOT_ID.read_text(encoding="ascii").strip()

    async def in_thread(self, fn: Callable[[*Ts], T], *args: *Ts, pool: str = "disk") -> T:
        with others_at_work():
            return await trio.to_thread.run_sync(fn, *args, limiter=self._limiters[pool])

    def failpoint(self, name: str) -> None:
        if name == self._failpoint:
            self._failpoint_passes_left -= 1
            if self._failpoint_passes_left == 0:
                os._exit(77)


@dataclass(slots=True)
class _Others:
    at_work: int = 0


_others = _Others()


@contextmanager
def others_at_work() -> Iterator[None]:
    """While this is entered, somebody else works for the event loop: a thread, the kernel."""
    _others.at_work += 1
    try:
        yield
    finally:
        _others.at_work -= 1


def let_others_run() -> None:
    """Let go of the interpreter's lock and of the processor for long enough that others get them.

    A busy event loop lets go of the lock at every system call, but for microseconds, and a thread
    that was told so needs 50 us and more to wake up; it then finds the lock taken, and may lose
    this race for tens of milliseconds. A worker of the kernel that is bound to this processor
    waits for the scheduler in the same way. Does nothing when nobody is at work.
    """
    if _others.at_work:
        time.sleep(_HAND_OVER_S)


Sleeper = Callable[[float], Awaitable[None]]


def sleep_blocking(seconds: float) -> None:
    """Sleep in a worker thread (the retry layer's back-off); never on the event loop."""
    time.sleep(seconds)


def keep_objects() -> None:
    """What was made so far stays: collections leave it alone from now on, and come rarely.

    A full one walks through all objects of the SDKs else.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def end_process(code: int) -> NoReturn:
    """End the process now, without waiting for threads that wait for a store."""
    logging.shutdown()
    os._exit(code)


monotonic_ns = time.monotonic_ns
"""The monotonic clock itself, for the adapter's request loop: a wrapper would cost as much."""


monotonic_s = time.monotonic
"""Monotonic seconds: for code in worker threads (deadlines of the retry layer), and the adapter."""


def random_unit() -> float:
    """A number in [0, 1) for jitter; unpredictability is not needed."""
    return int.from_bytes(os.urandom(7)) / 2**56


def start_spare_thread(run: Callable[[], None]) -> None:
    """Run `run`, which must not raise, in a thread that does not keep the process alive.

    For calls that their caller may give up (the hedging layer); threads are used again.
    """
    trio.lowlevel.start_thread_soon(run, lambda outcome: outcome.unwrap())
