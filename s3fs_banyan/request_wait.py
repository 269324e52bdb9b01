"""How the daemon waits for the kernel's next request: it looks for one first, then it sleeps."""

from __future__ import annotations

import os
import select
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from s3fs_banyan.runtime import let_others_run, monotonic_ns

_SPIN_NS: Final = 200_000
"""How long the next request is looked for at most, if looking pays, before the task sleeps."""
_SPIN_NS_MIN: Final = 20_000
_CROWD: Final = 0.4
"""Above this share many callers are at work: they need the processor, and the queue is full."""
_YIELD_NS: Final = 1_000_000
"""Other tasks and threads get a turn at least this often while requests keep coming."""
_HAND_OVER_NS: Final = 50_000
"""Who slept for so long let threads have the interpreter's lock meanwhile."""


class RequestWait(trio.abc.Instrument):
    """How the library's tasks wait for the next request: look first, then sleep.

    `pyfuse3` goes through trio's whole scheduler for every request (epoll, lock, wake-up), which
    costs more than most requests do, and on an idle virtual processor the wake-up alone takes
    50 us and more. While requests keep coming, the next one is already there, or comes as soon
    as its caller has got the last answer. So this looks at the descriptor for a while, the
    longer the more often looking paid of late, and only then waits as the library does. One task
    does so; others wait as the library does, which keeps count of them and would begin another
    task for every request if it saw none. Every task looks again before it reads: another one
    may have taken the request, and the read would block.

    Everything else that the event loop does waits meanwhile, a finished sync included. So all
    tasks together serve requests for no more than a millisecond between two of its looks at its
    descriptors, of which it tells this instrument. (Each for a millisecond was tried: hundreds of
    tasks made pauses of 90 ms.)
    """

    def __init__(
        self, fd: int, sleep: Callable[[], Awaitable[bool]], on_request: Callable[[], None]
    ) -> None:
        """Wait at `fd`; `sleep` is how the library does, `on_request` is told of each request."""
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        self._poll = poller.poll
        self._sleep = sleep
        self._on_request = on_request
        self._is_searched = False
        """Whether a task looks for requests."""
        self._looks_ns = 0
        self._handed_over_ns = 0
        """When threads last had a chance to take the interpreter's lock."""
        self._looked_ns = 0
        """When the event loop last looked for what else there is to do."""
        self._paid = 0.0
        """Share of the last searches that found a request: 0 to 1."""
        self._crowd = 0.0
        """Share of the last requests that were there before anyone looked: 0 to 1."""

    async def __call__(self) -> bool:
        """Return true if a request is there now, false if the session has ended."""
        while True:
            if not self._is_searched:
                # By far the most frequent case: the next request is there already.
                if monotonic_ns() - self._looked_ns <= _YIELD_NS and self._poll(0):
                    self._crowd += (1.0 - self._crowd) / 32
                    self._on_request()
                    return True
                self._is_searched = True
                try:
                    if await self._search():
                        self._on_request()
                        return True
                finally:
                    self._is_searched = False
            if not await self._sleep():
                return False
            if self._poll(0):
                self._on_request()
                return True

    async def _search(self) -> bool:
        """Tell whether a request is there, or came while it paid to look for one."""
        poll = self._poll
        while True:
            now_ns = monotonic_ns()
            if now_ns - self._looked_ns > _YIELD_NS:
                await trio.lowlevel.checkpoint()
                continue
            if poll(0):
                self._crowd += (1.0 - self._crowd) / 32
                return True
            self._crowd -= self._crowd / 32
            return self._crowd < _CROWD and self._look(now_ns)

    def before_io_wait(self, timeout: float) -> None:
        """The loop is about to look, for no longer than `timeout` seconds."""
        del timeout
        self._looks_ns = monotonic_ns()

    def after_io_wait(self, timeout: float) -> None:
        """The loop has looked: serve requests again, after threads had a chance to run."""
        del timeout
        now_ns = monotonic_ns()
        if now_ns - self._looks_ns > _HAND_OVER_NS:
            self._handed_over_ns = now_ns
        elif now_ns - self._handed_over_ns > _YIELD_NS:
            let_others_run()
            self._handed_over_ns = now_ns = monotonic_ns()
        self._looked_ns = now_ns

    def is_request_there(self) -> bool:
        """Tell whether a request waits to be read."""
        return bool(self._poll(0))

    def _look(self, begin_ns: int) -> bool:
        """Look for the next request; gives up the sooner the less often it paid."""
        poll = self._poll
        until_ns = begin_ns + _SPIN_NS_MIN + int(self._paid * _SPIN_NS)
        now_ns = begin_ns
        while now_ns < until_ns:
            if poll(0):
                self._paid += (1.0 - self._paid) / 16
                return True
            os.sched_yield()  # whoever will send the next request may need this processor
            now_ns = monotonic_ns()
        self._paid -= self._paid / 16
        return False
