"""Whether the store is there, by a question of its own.

Attempts that fail do not tell it: in bad weather whole transfers break for minutes while the
store answers, and a commit goes on where it was. A store that does not answer the cheapest
question in time is away, and who holds bytes for it must look for room elsewhere.

One question is not evidence either: in the same weather it may be the one that is stalled. So
another is asked beside those that are open, and each is a single attempt, past retries and their
waits, past the queue for slots, in threads of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import trio

from s3fs_banyan.commit.context import Context
from s3fs_banyan.errors import ObjectMissing, StoreError, Throttled, Unavailable
from s3fs_banyan.format.keys import WRITER
from s3fs_banyan.remote.layers import single_attempts

_AGAIN_S: Final = 0.5
"""So long after a question another one is asked, unless there was an answer."""
_AT_ONCE: Final = 6
"""Open questions: each may hold a thread until the store's time-outs end it."""
_DOUBT_S: Final = 1.0
"""After so long without an answer the store is likely to be away: three questions are open."""
_KNOWN_AWAY_S: Final = 1.0
"""So long an answer is waited for if the last one did not come either."""
_LATE_S: Final = 10.0
"""So long an answer that came between two waits counts: or a slow store would stay away."""


class StoreWatch:
    """Asks while somebody wants to know. One event loop."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._store = single_attempts(ctx.store)
        self._waiting: set[trio.Event] = set()
        self._wanted = trio.Event()
        self._open = 0
        self._answered = trio.Event()
        self._failure: StoreError | None = None
        """How a question of those that are waited for just now was refused last."""
        self._is_away = False
        self._late_s = -math.inf
        """When an answer of a store that was away came, for which nobody waited any more."""

    async def run(self) -> None:
        """Ask for as long as somebody waits for an answer; ends only by cancellation.

        Cancelling waits for the questions that are open.
        """
        async with trio.open_nursery() as nursery:
            while True:
                if not self._waiting:
                    await self._wanted.wait()
                    self._failure = None
                self._wanted = trio.Event()
                self._answered = trio.Event()
                if self._open < _AT_ONCE:
                    self._open += 1
                    nursery.start_soon(self._ask)
                with trio.move_on_after(_AGAIN_S):
                    await self._answered.wait()

    async def _ask(self) -> None:
        """Read the smallest object there is, once; tell who waits if there is an answer.

        Not its metadata: a HEAD has no body, so a 503 does not tell a store that is busy from
        a proxy whose store is away.
        """
        try:
            await self._ctx.runtime.in_thread(self._store.read, WRITER, pool="question")
        except (ObjectMissing, Throttled):
            self._note_answer()  # a store that has no such object, or is busy, is there
        except StoreError as error:
            self._failure = error
        else:
            self._note_answer()
        finally:
            self._open -= 1

    def _note_answer(self) -> None:
        if self._is_away and not self._waiting:
            self._late_s = trio.current_time()
        self._failure, self._is_away = None, False
        self._answered.set()
        for answered in self._waiting:
            answered.set()
        self._waiting.clear()

    async def expect_answer(
        self, within_s: float, *, in_doubt: Callable[[], None] | None = None
    ) -> None:
        """Return when the store has answered; raise `StoreError` if it has not after `within_s`.

        `in_doubt` is called after a second without an answer.
        A store that is known to be away is given a second only: the caller has other things to
        do, and asks again. Safe to cancel; questions that were asked go on, and whoever asks
        next waits for the same ones.
        """
        if trio.current_time() - self._late_s < _LATE_S:
            self._late_s = -math.inf
            await trio.lowlevel.checkpoint()
            return
        answered = trio.Event()
        self._waiting.add(answered)
        self._wanted.set()
        limit_s = min(within_s, _KNOWN_AWAY_S) if self._is_away else within_s
        try:
            with trio.move_on_after(limit_s):
                with trio.move_on_after(_DOUBT_S):
                    await answered.wait()
                    return
                if in_doubt is not None:
                    in_doubt()
                await answered.wait()
                return
        finally:
            self._waiting.discard(answered)
        self._is_away = True
        raise self._failure or Unavailable(
            f"{self._ctx.store.url}: no answer to {self._open} questions in {limit_s:.0f} s"
        )
