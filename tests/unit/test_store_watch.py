"""Whether the store is there: what an answer in time means."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import pytest
import trio
import trio.testing

from s3fs_banyan.commit.store_watch import StoreWatch
from s3fs_banyan.errors import ObjectMissing, StoreError, Throttled, Unavailable
from s3fs_banyan.remote.base import FileMeta
from s3fs_banyan.remote.memory import MemoryStore
from tests.unit.engine_kit import StepRuntime, World

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class SlowRuntime(StepRuntime):
    """Questions take their time, or are refused."""

    takes_s = 0.0
    stalled = 0
    """So many questions, from now on, take for ever (a minute)."""
    failure: StoreError | None = None
    asked = 0

    async def in_thread(self, fn: Callable[[*Ts], T], *args: *Ts, pool: str = "disk") -> T:
        assert pool == "question"
        self.asked += 1
        self.stalled -= 1
        await trio.sleep(60 if self.stalled >= 0 else self.takes_s)
        if self.failure is not None:
            raise self.failure
        return fn(*args)


@pytest.fixture
def runtime() -> SlowRuntime:
    """The runtime of the watch."""
    return SlowRuntime()


@asynccontextmanager
async def watching(
    tmp_path: Path, runtime: SlowRuntime, store: MemoryStore | None = None
) -> AsyncIterator[StoreWatch]:
    """Give a watch that runs."""
    watch = StoreWatch(replace(World(tmp_path).context(store=store), runtime=runtime))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        yield watch
        nursery.cancel_scope.cancel()


async def test_a_store_that_answers_is_there_and_is_asked_only_when_somebody_wants_to_know(
    tmp_path: Path, runtime: SlowRuntime, autojump_clock: trio.testing.MockClock
) -> None:
    """An object that is missing is an answer like any other."""
    del autojump_clock
    runtime.failure = ObjectMissing("writer")
    async with watching(tmp_path, runtime) as watch:
        for _ in range(3):
            await watch.expect_answer(5)
        asked = runtime.asked
        await trio.sleep(60)
        assert runtime.asked == asked <= 4


async def test_a_question_that_stays_open_is_a_store_that_is_away(
    tmp_path: Path, runtime: SlowRuntime, autojump_clock: trio.testing.MockClock
) -> None:
    """It is given its time once, then a second: the one who asks has other things to do."""
    del autojump_clock
    runtime.takes_s = 100
    async with watching(tmp_path, runtime) as watch:
        begin_s = trio.current_time()
        with pytest.raises(Unavailable, match="no answer to 6 questions in 5 s"):
            await watch.expect_answer(5)
        assert trio.current_time() - begin_s == pytest.approx(5)
        with pytest.raises(Unavailable):
            await watch.expect_answer(5)
        assert trio.current_time() - begin_s == pytest.approx(6)
        assert runtime.asked == 6  # each may hold a thread
        await trio.sleep(93.5)
        await watch.expect_answer(5)  # the answer to the first, which was open all the time
        assert trio.current_time() - begin_s == pytest.approx(100)


async def test_a_store_that_refuses_is_asked_again_until_the_time_is_over(
    tmp_path: Path, runtime: SlowRuntime, autojump_clock: trio.testing.MockClock
) -> None:
    """One refusal is weather."""
    del autojump_clock
    runtime.failure = Unavailable("connection refused")
    async with watching(tmp_path, runtime) as watch:
        with pytest.raises(Unavailable, match="connection refused"):
            await watch.expect_answer(5)
        assert runtime.asked >= 9
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.expect_answer, 5)
            await trio.sleep(0.2)
            runtime.failure = None


async def test_a_refusal_of_an_earlier_outage_is_not_told_again(
    tmp_path: Path, runtime: SlowRuntime, autojump_clock: trio.testing.MockClock
) -> None:
    """Whoever reads the log looks for what is wrong now."""
    del autojump_clock
    runtime.failure = Unavailable("connection refused")
    async with watching(tmp_path, runtime) as watch:
        with pytest.raises(Unavailable, match="connection refused"):
            await watch.expect_answer(3)
        await trio.sleep(60)
        runtime.takes_s = 100
        with pytest.raises(Unavailable, match="no answer to"):
            await watch.expect_answer(3)


async def test_questions_that_are_stalled_are_no_evidence_if_one_beside_them_is_answered(
    tmp_path: Path, runtime: SlowRuntime, autojump_clock: trio.testing.MockClock
) -> None:
    """In bad weather any single request may stand still."""
    del autojump_clock
    runtime.stalled = 3
    async with watching(tmp_path, runtime) as watch:
        begin_s = trio.current_time()
        await watch.expect_answer(3)
        assert trio.current_time() - begin_s == pytest.approx(1.5)
        assert runtime.asked == 4
        await watch.expect_answer(3)
        assert trio.current_time() - begin_s == pytest.approx(1.5)


@pytest.mark.parametrize(("takes_s", "doubts"), [(0.9, 0), (1.1, 1), (9, 1)])
async def test_whoever_waits_can_do_something_when_doubt_begins(
    tmp_path: Path,
    runtime: SlowRuntime,
    autojump_clock: trio.testing.MockClock,
    takes_s: float,
    doubts: int,
) -> None:
    """What makes room takes time, and the answer may come after all."""
    del autojump_clock
    runtime.takes_s = takes_s
    seen: list[float] = []
    async with watching(tmp_path, runtime) as watch:
        begin_s = trio.current_time()
        with nullcontext() if takes_s < 3 else pytest.raises(Unavailable):
            await watch.expect_answer(
                3, in_doubt=lambda: seen.append(trio.current_time() - begin_s)
            )
    assert seen == [pytest.approx(1)] * doubts


async def test_a_store_that_asks_for_fewer_requests_is_there(
    tmp_path: Path, runtime: SlowRuntime, autojump_clock: trio.testing.MockClock
) -> None:
    """It is busy; the question is one attempt, so that no retry waits the storm out."""
    del autojump_clock
    runtime.failure = Throttled("slow down")
    async with watching(tmp_path, runtime) as watch:
        await watch.expect_answer(3)
        assert runtime.asked == 1


class BusyStore(MemoryStore):
    """Asks for fewer requests where it can say so: an answer to a HEAD has no body."""

    def stat(self, path: str) -> FileMeta:
        raise Unavailable(f"stat {path}: 503")

    def read(self, path: str, *, offset: int = 0, length: int | None = None) -> bytes:
        raise Throttled(f"read {path} {offset} {length}: SlowDown")


async def test_a_store_that_is_busy_is_asked_what_it_can_say_so_to(
    tmp_path: Path, runtime: SlowRuntime, autojump_clock: trio.testing.MockClock
) -> None:
    """Else a throttle storm would be an absence."""
    del autojump_clock
    async with watching(tmp_path, runtime, BusyStore(clock=lambda: 0)) as watch:
        await watch.expect_answer(3)


async def test_an_answer_to_a_store_that_was_there_counts_once(
    tmp_path: Path, runtime: SlowRuntime, autojump_clock: trio.testing.MockClock
) -> None:
    """A stalled question that ends when nobody waits says nothing of later outages."""
    del autojump_clock
    runtime.stalled = 1
    async with watching(tmp_path, runtime) as watch:
        await watch.expect_answer(3)
        await trio.sleep(60)
        runtime.takes_s = 100
        with pytest.raises(Unavailable):
            await watch.expect_answer(3)


async def test_an_answer_that_comes_between_two_waits_counts(
    tmp_path: Path, runtime: SlowRuntime, autojump_clock: trio.testing.MockClock
) -> None:
    """A store whose answers take longer than anybody waits would be away for ever."""
    del autojump_clock
    runtime.takes_s = 7
    async with watching(tmp_path, runtime) as watch:
        for _ in range(3):
            with pytest.raises(Unavailable):
                await watch.expect_answer(5)
            await trio.sleep(8)
            await watch.expect_answer(5)
            await trio.sleep(60)
