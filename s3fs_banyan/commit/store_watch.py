"""Whether the store is there, by a question of its own.

Attempts that fail do not tell it: in bad weather whole transfers break for minutes while the
store answers, and a commit goes on where it was. A store that does not answer the cheapest
question in time is away, and who holds bytes for it must look for room elsewhere.
"""

from __future__ import annotations

import math
from typing import Final

import trio

from s3fs_banyan.commit.context import Context
from s3fs_banyan.errors import ObjectMissing, StoreError, Unavailable
from s3fs_banyan.format.keys import WRITER

_AGAIN_S: Final = 0.5
_KNOWN_AWAY_S: Final = 1.0
"""So long an answer is waited for if the last one did not come either."""
_LATE_S: Final = 10.0
"""So long an answer that came between two waits counts: or a slow store would stay away."""


class StoreWatch:
    """Asks while somebody wants to know, one question at a time. One event loop."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._waiting: set[trio.Event] = set()
        self._wanted = trio.Event()
        self._failure: StoreError | None = None
        self._is_away = False
        self._late_s = -math.inf
        """When an answer came that nobody waited for any more."""

    async def run(self) -> None:
        """Ask for as long as somebody waits for an answer; ends only by cancellation."""
        while True:
            if not self._waiting:
                await self._wanted.wait()
            self._wanted = trio.Event()
            try:
                await self._ask()
            except StoreError as error:
                self._failure = error
                await trio.sleep(_AGAIN_S)
                continue
            self._failure, self._is_away = None, False
            if not self._waiting:
                self._late_s = trio.current_time()
            for answered in self._waiting:
                answered.set()
            self._waiting.clear()

    async def _ask(self) -> None:
        """Ask the cheapest question there is; any answer will do."""
        try:
            await self._ctx.runtime.in_thread(self._ctx.store.stat, WRITER, pool="store")
        except ObjectMissing:
            return

    async def expect_answer(self, within_s: float) -> None:
        """Return when the store has answered; raise `StoreError` if it has not after `within_s`.

        A store that is known to be away is given a second only: the caller has other things to
        do, and asks again. Safe to cancel; a question that was asked goes on, and whoever asks
        next waits for the same one.
        """
        if trio.current_time() - self._late_s < _LATE_S:
            self._late_s = -math.inf
            await trio.lowlevel.checkpoint()
            return
        answered = trio.Event()
        self._waiting.add(answered)
        self._wanted.set()
        try:
            with trio.move_on_after(min(within_s, _KNOWN_AWAY_S) if self._is_away else within_s):
                await answered.wait()
                return
        finally:
            self._waiting.discard(answered)
        self._is_away = True
        raise self._failure or Unavailable(
            f"{self._ctx.store.url}: no answer to a question for {within_s:.0f} s"
        )
