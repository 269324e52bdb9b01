"""Looking for the next request gives way where somebody else computes on the processor."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from s3fs_banyan import request_wait

MS = 1_000_000


class Clock:
    """Time passes where the processor is given up."""

    def __init__(self, lost_ns: int) -> None:
        self.now_ns = 10**12
        self.lost_ns = lost_ns
        self.yields = 0

    def read(self) -> int:
        self.now_ns += 1_000
        return self.now_ns

    def give_up(self) -> None:
        self.yields += 1
        self.now_ns += self.lost_ns


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A descriptor on which nothing comes, and where to write."""
    ours, theirs = os.pipe()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


async def _never() -> bool:
    raise AssertionError("nobody sleeps here")


def searcher(clock: Clock, fd: int, monkeypatch: pytest.MonkeyPatch) -> request_wait.RequestWait:
    monkeypatch.setattr(request_wait, "monotonic_ns", clock.read)
    monkeypatch.setattr(os, "sched_yield", clock.give_up)
    return request_wait.RequestWait(fd, _never, lambda: None)


def test_an_idle_processor_is_searched_each_time(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To give it up costs a microsecond."""
    clock = Clock(1_000)
    wait = searcher(clock, pipe[0], monkeypatch)
    for _ in range(5):
        before = clock.yields
        assert not wait._look(clock.read())
        assert clock.yields > before


def test_a_lost_processor_is_left_alone_for_a_while_and_longer_each_time(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(3 * MS)
    wait = searcher(clock, pipe[0], monkeypatch)
    for away_ms in (100, 200, 400, 800, 1600, 1600):
        before = clock.yields
        assert not wait._look(clock.read())
        assert clock.yields == before + 1
        clock.now_ns += (away_ms - 1) * MS
        assert not wait._look(clock.read())
        assert clock.yields == before + 1
        clock.now_ns += 2 * MS
    clock.now_ns += 5_000 * MS
    assert not wait._look(clock.read())
    clock.now_ns += 101 * MS
    before = clock.yields
    assert not wait._look(clock.read())
    assert clock.yields == before + 1


def test_a_request_that_came_meanwhile_is_served(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(3 * MS)
    wait = searcher(clock, pipe[0], monkeypatch)

    def give_up() -> None:
        clock.give_up()
        os.write(pipe[1], b"x")

    monkeypatch.setattr(os, "sched_yield", give_up)
    assert wait._look(clock.read())
