"""Looking for the next request: how long, and what is found."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from s3fs_banyan import request_wait


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


def test_the_search_is_the_shorter_the_less_often_it_paid(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that comes makes the next search longer, a vain one shorter again."""
    clock = Clock(1_000)
    wait = searcher(clock, pipe[0], monkeypatch)

    def yields_of_a_vain_search() -> int:
        before = clock.yields
        assert not wait._look(clock.read())
        return clock.yields - before

    shortest = yields_of_a_vain_search()
    assert shortest
    for _ in range(8):
        os.write(pipe[1], b"x")
        assert wait._look(clock.read())
        os.read(pipe[0], 1)
    spent = [yields_of_a_vain_search() for _ in range(300)]
    assert spent[0] > 2 * shortest
    assert spent == sorted(spent, reverse=True)
    assert spent[-1] == shortest


def test_a_request_that_comes_while_the_processor_is_given_up_is_found(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(1_000)
    wait = searcher(clock, pipe[0], monkeypatch)

    def give_up() -> None:
        clock.give_up()
        os.write(pipe[1], b"x")

    monkeypatch.setattr(os, "sched_yield", give_up)
    assert wait._look(clock.read())
    assert clock.yields == 1
