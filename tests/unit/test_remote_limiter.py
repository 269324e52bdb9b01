"""What the pacer learns of stores with a scripted capacity, on a virtual clock, from seeds.

The promises are those of the issue: within 15 % of the capacity within 10 s of each change, less
than 2 % of the requests refused in steady state, demand reads at most twice as slow as idle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

import pytest

from s3fs_banyan.remote.limiter import Baseline, Bounds, Limiter, Outcome
from s3fs_banyan.remote.pacer import Pacer, PacingOptions, TokenBucket
from s3fs_banyan.remote.traffic import Traffic
from tests.unit.pacing_world import Capacity, PacingWorld, Seen

UP = Traffic.UPLOAD
SEEDS = (1, 3)
seeded = pytest.mark.parametrize("seed", SEEDS)


def pacer_of(*, most: int = 64, upload_rate: int = 0) -> Pacer:
    bulk = Bounds(least=1, most=most, first=4)
    demand = Bounds(least=4, most=32, first=8)
    return Pacer(
        PacingOptions(upload=bulk, demand=demand, prefetch=bulk, upload_rate_bytes=upload_rate)
    )


def changed(**values: float) -> Callable[[Capacity], None]:
    def change(capacity: Capacity) -> None:
        for name, value in values.items():
            setattr(capacity, name, value)

    return change


def rate(seconds: Sequence[Seen], traffic: Traffic = UP) -> float:
    return sum(seen.bytes_done[traffic] for seen in seconds) / len(seconds)


def refused(seconds: Sequence[Seen]) -> float:
    return sum(s.refusals for s in seconds) / sum(s.answers for s in seconds)


def slots_bytes(capacity: Capacity, size: int = 1 << 20) -> float:
    """Bytes a second through all slots of a store that refuses what exceeds them."""
    each_s = capacity.latency_s * 1.2 + size / capacity.rate_bytes
    return capacity.at_once * size / each_s


# --- worlds ------------------------------------------------------------------------------


@seeded
@pytest.mark.parametrize("jitter", [0.2, 1.0])
def test_capacity_of_a_line_is_found_after_each_change(seed: int, jitter: float) -> None:
    """Start, halving, recovery: ten seconds for each, then 85 % of what there is."""
    world = PacingWorld(pacer_of(), seed=seed, jitter=jitter)
    for total in (100e6, 50e6, 100e6):
        seconds = world.run(20, change=changed(total_bytes=total))
        assert rate(seconds[10:]) > 0.85 * total
        assert refused(seconds) == 0


@seeded
def test_queue_of_a_line_stays_short(seed: int) -> None:
    """More requests than the line needs only wait in the store, where reads wait with them."""
    world = PacingWorld(pacer_of(), seed=seed)
    seconds = world.run(30)
    needed = world.capacity.total_bytes / world.capacity.rate_bytes
    assert median(limit for seen in seconds[10:] for limit in seen.limits) < 3 * needed


@seeded
def test_slots_of_a_refusing_store_are_learnt_and_held_just_below(seed: int) -> None:
    """Each refusal is a request for nothing: the capacity is learnt, not run into."""
    world = PacingWorld(pacer_of(), seed=seed)
    for slots in (16, 8, 32):
        seconds = world.run(24, change=changed(total_bytes=1e9, at_once=slots))
        assert rate(seconds[10:]) > 0.85 * slots_bytes(world.capacity)
        assert refused(seconds[10:]) < 0.02
        assert all(limit <= slots + 1 for seen in seconds[10:] for limit in seen.limits)


@seeded
@pytest.mark.parametrize("trouble", ["is_storm", "is_away"])
def test_storm_and_outage_pass_and_all_is_as_before(seed: int, trouble: str) -> None:
    world = PacingWorld(pacer_of(), seed=seed)
    world.run(20, change=changed(total_bytes=1e9, at_once=32))
    during = world.run(8, change=changed(**{trouble: True}))
    assert during[-1].limits == [1]
    after = world.run(20, change=changed(**{trouble: False}))
    assert rate(after[10:]) > 0.85 * slots_bytes(world.capacity)


@seeded
def test_store_that_has_become_slow_by_itself_gets_more_requests(seed: int) -> None:
    """A request that takes three times as long is no queue if fewer of them are no faster."""
    world = PacingWorld(pacer_of(), seed=seed)
    world.run(15)
    seconds = world.run(25, change=changed(rate_bytes=3.3e6))
    assert rate(seconds[15:]) > 0.85 * world.capacity.total_bytes


@seeded
def test_demand_reads_stay_quick_under_full_upload(seed: int) -> None:
    world = PacingWorld(pacer_of(), seed=seed)
    idle = world.run(10, uploads=0, demand_every_s=0.05)
    world.run(15)
    busy = world.run(15, demand_every_s=0.05)

    def middle(seconds: Sequence[Seen]) -> float:
        return median(s for seen in seconds for s in seen.latencies[Traffic.DEMAND])

    assert middle(busy) < 2 * middle(idle)
    assert rate(busy[5:]) > 0.7 * world.capacity.total_bytes


def test_callers_that_leave_slots_unused_teach_nothing() -> None:
    """A limit that grew in idle times would be a burst when the load comes."""
    world = PacingWorld(pacer_of(), seed=1)
    world.run(20, uploads=2)
    assert world.pacer.limiters[UP].limit <= 4


def test_same_seed_gives_the_same_run() -> None:
    one, other = (PacingWorld(pacer_of(), seed=5) for _ in range(2))
    one.run(5)
    other.run(5)
    assert [s.limits for s in one.seconds] == [s.limits for s in other.seconds]
    assert [s.bytes_done for s in one.seconds] == [s.bytes_done for s in other.seconds]


@pytest.mark.parametrize("most", [1, 3])
def test_bounds_are_kept(most: int) -> None:
    world = PacingWorld(pacer_of(most=most), seed=1)
    seconds = world.run(10)
    assert {limit for seen in seconds for limit in seen.limits} <= set(range(1, most + 1))


def test_cap_is_kept_and_used() -> None:
    world = PacingWorld(pacer_of(upload_rate=20_000_000), seed=1)
    seconds = world.run(20)
    assert 0.9 * 20e6 < rate(seconds[5:]) < 1.1 * 20e6


# --- parts -------------------------------------------------------------------------------


def test_refusals_of_requests_begun_before_a_reduction_do_not_reduce_again() -> None:
    """Thirty refusals of one burst are one piece of news."""
    limiter = Limiter(Bounds(least=1, most=64, first=32))
    for _ in range(32):
        limiter.start(0.0)
    limiter.end(0.1, 0.0, 0, Outcome.THROTTLED)
    first = limiter.limit
    for _ in range(31):
        limiter.end(0.1, 0.0, 0, Outcome.THROTTLED)
    assert limiter.limit == first < 32


def test_minimum_ignores_one_lucky_request() -> None:
    baseline = Baseline()
    for _ in range(8):
        baseline.inflation(1000, 1.0)
    for seconds in (0.1, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0):
        baseline.inflation(1000, seconds)
    assert baseline.inflation(1000, 2.0) == pytest.approx(2.0)


def test_sizes_are_compared_with_their_like() -> None:
    baseline = Baseline()
    for _ in range(8):
        baseline.inflation(100, 0.01)
        baseline.inflation(64 << 20, 8.0)
    assert baseline.inflation(100, 0.02) == pytest.approx(2.0)
    assert baseline.inflation(64 << 20, 8.0) == pytest.approx(1.0)


def test_retry_after_stops_a_class_only_if_the_store_refuses_most() -> None:
    """One refusal while looking for room must not stop all others for a minute."""
    pacer = pacer_of()

    def refuse(now_s: float) -> None:
        started = pacer.start(UP, now_s, 1, 0)
        pacer.end(started, now_s, size=1, received=0, outcome=Outcome.THROTTLED, retry_after_s=5.0)

    refuse(10.0)
    assert pacer.wait_s(UP, 10.0) == 0
    for _ in range(20):
        refuse(11.0)
    assert pacer.wait_s(UP, 11.0) == pytest.approx(5.0)
    assert pacer.wait_s(Traffic.DEMAND, 11.0) == 0
    assert pacer.wait_s(UP, 16.1) == 0


def test_hint_of_another_process_lowers_bulk_for_a_while() -> None:
    pacer = pacer_of()
    pacer.hint(0.5, 10.0)
    assert pacer.limit(UP, 10.0) == 2
    assert pacer.limit(Traffic.DEMAND, 10.0) == 8
    assert pacer.limit(UP, 11.5) == 4


def test_bucket_in_debt_waits_until_it_is_paid() -> None:
    bucket = TokenBucket(100)
    bucket.pay(50.0, 400)
    assert bucket.wait_s(50.0) == pytest.approx(3.0)
    assert bucket.wait_s(53.0) == 0


def test_bucket_without_a_rate_never_waits() -> None:
    bucket = TokenBucket(0)
    bucket.pay(1.0, 1 << 40)
    assert bucket.wait_s(1.0) == 0
