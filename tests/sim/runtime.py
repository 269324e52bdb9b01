"""The simulated `Runtime`, and what ends a life: virtual time, seeded luck, sudden death."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

BASE_NS = 1_800_000_000 * 10**9

_FOREVER_S = 1e6
"""Longer than any delay: a bound that only the linter asks for."""


class SimCrash(BaseException):
    """The daemon dies here. No `except Exception` of the engine may see it."""


def now_s() -> float:
    """Return the world's virtual time in seconds."""
    return trio.current_time()


def wall_ns() -> int:
    """Return the world's Unix time, which is everybody's here: the store's, too."""
    return BASE_NS + int(now_s() * 1e9)


@dataclass(slots=True)
class Life:
    """Whether one life of a daemon goes on, and where it is to end."""

    name: str
    dead: bool = False
    on_death: Callable[[], None] = lambda: None
    crash_at: str = ""
    """Failpoint at which it dies, "" for none."""
    crash_passes: int = 1
    died_at: str = ""

    def die(self) -> None:
        """End this life; raises `SimCrash`."""
        if not self.dead:
            self.dead = True
            self.on_death()
        raise SimCrash(self.name)

    def alive(self) -> None:
        """Raise `SimCrash` if this life is over: what runs on must have no effect."""
        if self.dead:
            raise SimCrash(self.name)


class SimRuntime:
    """`Runtime` without threads: `fn` runs inline, after and before a seeded delay."""

    def __init__(
        self,
        life: Life,
        *,
        rng: Random,
        boot_id: str,
        on_event: Callable[[str], None],
        crash_chance: float = 0.0,
    ) -> None:
        self._life = life
        self._rng = rng
        self._boot_id = boot_id
        self._on_event = on_event
        self._crash_chance = crash_chance
        self._spent_ns = 0
        self.passed: dict[str, int] = {}

    def wall_ns(self) -> int:
        return wall_ns()

    def monotonic_ns(self) -> int:
        return int(now_s() * 1e9) + self._spent_ns

    def spend(self) -> None:
        """Let some time pass that no clock of trio's sees: a sync on the event loop."""
        self._spent_ns += self._rng.choice((50_000, 200_000, 5_000_000))

    def random_bytes(self, count: int) -> bytes:
        return self._rng.randbytes(count)

    def boot_id(self) -> str:
        return self._boot_id

    async def in_thread(self, fn: Callable[[*Ts], T], *args: *Ts, pool: str = "disk") -> T:
        """Run inline between delays; a cancelled caller waits, as for a real thread."""
        life, rng = self._life, self._rng
        await trio.lowlevel.checkpoint_if_cancelled()
        life.alive()
        before, after = self._delay(pool), self._delay(pool)
        luck = rng.random()
        with trio.CancelScope(shield=True):
            await self._pass(before)
            if luck < self._crash_chance:
                life.die()
            life.alive()
            try:
                result = fn(*args)
            finally:
                if luck > 1.0 - self._crash_chance:
                    life.die()
                if after:
                    with trio.move_on_after(_FOREVER_S, shield=True):
                        await self._pass(after)
                life.alive()
        return result

    def _delay(self, pool: str) -> float:
        luck = self._rng.random()
        if luck < 0.6:
            return 0.0
        return self._rng.expovariate(1.0) * (0.2 if pool in {"store", "question"} else 0.01)

    async def _pass(self, delay_s: float) -> None:
        if delay_s:
            await trio.sleep(delay_s)
        else:
            await trio.lowlevel.cancel_shielded_checkpoint()

    def failpoint(self, name: str) -> None:
        life = self._life
        life.alive()
        self.passed[name] = self.passed.get(name, 0) + 1
        self._on_event(f"{life.name} passes {name}")
        if name == life.crash_at:
            life.crash_passes -= 1
            if life.crash_passes == 0:
                life.died_at = name
                life.die()
