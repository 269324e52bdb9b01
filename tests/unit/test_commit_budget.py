"""The budget of requests: commits come seldom enough, and who waits is not kept waiting."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio

from s3fs_banyan.commit.budget import RequestBudget
from s3fs_banyan.observe.metrics import Metrics
from s3fs_banyan.prices import EXAMPLE_PRICES
from s3fs_banyan.remote.layers import MeterLayer
from tests.unit.engine_kit import SECOND_NS, World, engine_settings, running, write_file


class Requests:
    """Counts what a mount would send: so many a commit, and some beside it."""

    def __init__(self, per_commit: float, per_hour_beside: float = 0.0) -> None:
        self.per_commit = per_commit
        self.beside = per_hour_beside
        self.total = 0.0

    def run(self, budget: RequestBudget, commits: int) -> tuple[float, float]:
        """Commit as often as the budget lets; returns (requests an hour at the end, interval)."""
        now_s, rate, interval_s = 1.0, 0.0, budget.interval_s(10**9)
        for _ in range(commits):
            now_s += interval_s
            spent = self.per_commit + self.beside * interval_s / 3600
            self.total += spent
            rate = spent * 3600 / interval_s
            interval_s = budget.interval_s(int(now_s * 1e9))
        return rate, interval_s


def budget(requests: Requests, per_hour: int, interval_max_s: float = 900.0) -> RequestBudget:
    """Return a budget of a mount that commits every 10 s."""
    return RequestBudget(
        interval_s=10.0,
        interval_max_s=interval_max_s,
        requests_per_hour=per_hour,
        count=lambda: requests.total,
    )


@pytest.mark.parametrize(
    ("per_commit", "beside", "per_hour"), [(4, 0, 600), (20, 0, 600), (4, 100, 300), (1, 50, 120)]
)
def test_commits_come_to_stay_within_the_budget(
    per_commit: float, beside: float, per_hour: int
) -> None:
    """Whatever a commit costs, and with what goes on beside it."""
    requests = Requests(per_commit, beside)
    rate, interval_s = requests.run(budget(requests, per_hour), 60)
    assert interval_s > 10.0
    assert rate == pytest.approx(per_hour, rel=0.05)


def test_a_budget_that_suffices_changes_nothing() -> None:
    """The interval that a person chose is never shortened."""
    requests = Requests(1)
    assert requests.run(budget(requests, 10_000), 20)[1] == 10.0
    assert requests.run(budget(requests, 0), 20)[1] == 10.0


def test_the_interval_has_an_upper_end() -> None:
    """A budget that is too small must not keep data on this machine for a day."""
    requests = Requests(1000)
    assert requests.run(budget(requests, 1), 20)[1] == 900.0
    assert requests.run(budget(requests, 1, interval_max_s=2.0), 20)[1] == 10.0


def test_the_interval_comes_back_when_commits_are_cheap_again() -> None:
    """One large import must not make the recovery lag long for ever."""
    requests = Requests(100)
    limits = budget(requests, 600)
    assert requests.run(limits, 30)[1] > 300
    requests.per_commit = 1
    assert requests.run(limits, 30)[1] == 10.0


def test_the_first_measurement_is_not_what_the_mount_cost() -> None:
    """Recovery may have read and listed thousands of objects."""
    requests = Requests(1)
    requests.total = 50_000
    assert requests.run(budget(requests, 3_600), 1)[1] == 10.0


# --- in the committer --------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> World:
    """A world whose clock a test moves."""
    del autojump_clock
    return World(tmp_path)


async def test_the_committer_waits_for_the_budget_but_a_drain_does_not(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """Remote fsyncs, sync and umount are promises; the interval is a wish."""
    del autojump_clock
    metrics = Metrics()
    settings = engine_settings(requests_per_hour=60, commit_interval_s=1.0)
    metered = MeterLayer(world.store, metrics.store)
    ctx = replace(world.context(settings=settings, store=metered), metrics=metrics)
    async with running(ctx) as engine, trio.open_nursery() as nursery:
        await engine.committer.take_epoch()
        nursery.start_soon(engine.committer.run)
        for number in range(3):
            await write_file(engine, b"f%d" % number, b"x")
            done = engine.state.commits_done
            await engine.committer.drain()
            if engine.state.commits_done == done:
                await engine.state.wait_commit_done()
            await trio.testing.wait_all_tasks_blocked()
        stretched_s = engine.committer.budget.stretched_s
        assert 30 < stretched_s <= 900
        await write_file(engine, b"later", b"x")
        done = engine.state.commits_done
        world.runtime.now_ns += int(0.9 * stretched_s) * SECOND_NS
        await trio.sleep(5)
        assert engine.state.commits_done == done
        world.runtime.now_ns += int(0.6 * stretched_s) * SECOND_NS
        await trio.sleep(5)
        assert engine.state.commits_done == done + 1
        nursery.cancel_scope.cancel()


# --- counting ----------------------------------------------------------------------------


def test_requests_are_counted_and_priced_by_kind() -> None:
    """As the provider bills: an answer that never came, or a throttle, costs nothing."""
    metrics = Metrics()
    tell = metrics.store.request
    for outcome in ("ok", "exists", "throttled", "unavailable"):
        tell("create", outcome, 0.1, 1000, 0)
    tell("upload_part", "ok", 0.1, 5000, 0)
    tell("list", "ok", 0.1, 0, 0)
    tell("read", "ok", 0.1, 0, 1 << 30)
    tell("stat", "missing", 0.1, 0, 0)
    tell("delete", "ok", 0.1, 0, 0)
    metrics.store_requests.use_prices(EXAMPLE_PRICES[0], egress=0.09)
    found = metrics.store_requests.by_kind()
    assert {kind: total.requests for kind, total in found.items()} == {
        "put": 3, "list": 1, "get": 2, "delete": 1,
    }  # fmt: skip
    assert (found["put"].sent_bytes, found["get"].received_bytes) == (9000, 1 << 30)
    assert found["put"].cost == pytest.approx(3 * 0.005e-3)
    assert found["get"].cost == pytest.approx(2 * 0.0004e-3 + 0.09)
    assert metrics.store_requests.paced() == 5
    assert 'request_cost_total{kind="list"} 5e-06' in metrics.render()


def test_an_idle_night_is_not_the_cost_of_one_commit() -> None:
    """Heartbeats of eight hours stretched the interval to its longest for an hour of work."""
    requests = Requests(4)
    held = budget(requests, 2000)
    _, interval_s = requests.run(held, 60)
    assert interval_s == 10.0
    requests.total += 4 + 8 * 168
    begin_s = 700.0 + 8 * 3600
    assert held.interval_s(int(begin_s * 1e9)) == 10.0
    requests.total += 4
    assert held.interval_s(int((begin_s + 10) * 1e9)) == 10.0
