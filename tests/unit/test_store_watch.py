"""Whether the store is there: what an answer in time means."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import pytest
import trio
import trio.testing

from s3fs_banyan.commit.store_watch import StoreWatch
from s3fs_banyan.errors import ObjectMissing, StoreError, Unavailable
from tests.unit.engine_kit import StepRuntime, World

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class SlowRuntime(StepRuntime):
    """Questions take their time, or are refused."""

    takes_s = 0.0
    failure: StoreError | None = None
    asked = 0

    async def in_thread(self, fn: Callable[[*Ts], T], *args: *Ts, pool: str = "disk") -> T:
        del pool
        self.asked += 1
        await trio.sleep(self.takes_s)
        if self.failure is not None:
            raise self.failure
        return fn(*args)


@pytest.fixture
def runtime() -> SlowRuntime:
    """The runtime of the watch."""
    return SlowRuntime()


@asynccontextmanager
async def watching(tmp_path: Path, runtime: SlowRuntime) -> AsyncIterator[StoreWatch]:
    """Give a watch that runs."""
    watch = StoreWatch(replace(World(tmp_path).context(), runtime=runtime))
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
        with pytest.raises(Unavailable, match="no answer to a question for 5 s"):
            await watch.expect_answer(5)
        assert trio.current_time() - begin_s == pytest.approx(5)
        with pytest.raises(Unavailable):
            await watch.expect_answer(5)
        assert trio.current_time() - begin_s == pytest.approx(6)
        assert runtime.asked == 1
        await trio.sleep(93.5)
        await watch.expect_answer(5)  # the answer to the question that was open all the time
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
