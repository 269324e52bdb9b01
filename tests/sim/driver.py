"""Random worlds: from a seed to dials, lives and disasters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import trio

from tests.sim.dials import Dials
from tests.sim.runtime import Life, now_s
from tests.sim.store import StoreFaults
from tests.sim.world import Machine, MountFailed, Plan, World, run_world

_ENDS = ("crash", "crash", "power", "power", "stop", "drain", "lost", "overlap", "clone")
_MOUNT_TRIES = 6
_HOURS = 24 * 3600


def random_dials(rng: Random) -> Dials:
    """Draw what kind of world it is."""
    faulty = rng.random() < 0.6
    faults = StoreFaults()
    if faulty:
        bad = rng.choice((0.01, 0.05, 0.15))
        faults = StoreFaults(
            error_before=bad * rng.random(),
            error_after=bad * rng.random(),
            throttled=bad * rng.random() / 2,
            lands_later=rng.choice((0.0, bad)),
            flipped_bit=rng.choice((0.0, 0.0, 0.2)),
        )
    return Dials(
        clients=rng.randint(1, 3),
        pause_s=rng.choice((0.05, 0.3, 1.0)),
        bytes_max=rng.choice((2_000, 20_000, 60_000)),
        segment_bytes=rng.choice((80 << 10, 128 << 10, 256 << 10)),
        inline_bytes_max=rng.choice((0, 3_000, 200_000)),
        commit_interval_s=rng.choice((0.5, 2.0, 5.0)),
        checkpoint_commits_max=rng.choice((1, 3, 8)),
        window_s=rng.choice((0.0, 5.0, 30.0)),
        hourly_s=rng.choice((0.0, 60.0)),
        grace_s=rng.choice((0.0, 5.0)),
        every_s=rng.choice((2.0, 6.0)),
        ram_bytes=rng.choice((2, 64 << 10, 1 << 20)),
        remote=rng.random() < 0.4,
        crash_chance=rng.choice((0.0, 0.0, 0.001, 0.005)),
        sync_fails=rng.choice((0.0, 0.0, 0.01, 0.05)),
        check_chance=0.03,
        faults=faults,
        local_cut_bytes=rng.choice((1, 100 << 10, 300 << 10)),
        classes=rng.random() < 0.3,
        multipart=rng.choice(("never", "always", "always")),
        part_bytes=rng.choice((4 << 10, 32 << 10)),
        transfer_s=rng.choice((0.0, 1e9)),
    )


async def mount(world: World, machine: Machine, plan: Plan) -> Life:
    """Run a life; one that could not be mounted for want of the store is tried again.

    After some tries the store is made to answer, and then it must come to something.
    """
    for number in range(_MOUNT_TRIES + 2):
        try:
            return await world.live(machine, plan)
        except MountFailed:
            if number > _MOUNT_TRIES:
                raise
            await trio.sleep(5)
            if number >= _MOUNT_TRIES - 1:
                world.calm()
    raise AssertionError("unreachable")


async def drive_random(world: World) -> None:
    """Live, die, come back; in the end all must be well."""
    rng = world.rng("driver")
    with trio.fail_after(_HOURS):
        machine = world.new_machine()
        outages = world.rng("outages")
        for _ in range(rng.randint(2, 4)):
            end = rng.choice(_ENDS)
            plan = Plan(seconds=rng.choice((2.0, 8.0, 20.0)) * rng.random(), end=end)
            if rng.random() < 0.2:
                world.store.outage_from_s = 0.0
                world.store.outage_until_s = now_s() + rng.choice((3.0, 120.0))
            elif outages.random() < 0.4:
                _plan_outage(world, plan, outages)
            if end == "overlap":
                machine = await _overlap(world, machine, plan, rng)
                continue
            await mount(world, machine, plan)
            machine = _afterwards(world, machine, end)
        await finish(world, machine)


def _plan_outage(world: World, plan: Plan, rng: Random) -> None:
    """Let the store go away in the middle of a life that has work to do meanwhile.

    It may end with the outage still on: then the next one begins in it.
    """
    plan.seconds += 20.0 * rng.random()
    world.store.outage_from_s = now_s() + plan.seconds * rng.random() * 0.6
    world.store.outage_until_s = world.store.outage_from_s + rng.choice((5.0, 20.0, 100.0))


def _afterwards(world: World, machine: Machine, end: str) -> Machine:
    """Let happen to a machine what its plan says; returns the one to go on with."""
    if end == "power":
        world.power_cut(machine)
    elif end == "lost":
        world.lose(machine)
        return world.new_machine()
    elif end == "clone":
        return world.clone_machine(machine)
    return machine


def rerun_line(seed: int) -> str:
    """Return the command that runs a seed again."""
    return f"run again: scripts/sim-campaign --seed {seed}"


async def _overlap(world: World, first: Machine, plan: Plan, rng: Random) -> Machine:
    """A second machine takes over while the first still believes that it is the writer."""
    plan.end, plan.until = rng.choice(("crash", "stop", "drain")), trio.Event()
    second = world.clone_machine(first) if rng.random() < 0.3 else world.new_machine()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_mount_or_lose, world, first, plan)
        await trio.sleep(rng.random() * 10)
        other = Plan(seconds=rng.random() * 10, end=rng.choice(("crash", "power", "drain")))
        await _mount_or_lose(world, second, other)
        await trio.sleep(rng.random() * 3)
        plan.until.set()
    _afterwards(world, second, other.end)
    # Whoever was fenced may come back later, and must set its changes aside.
    return rng.choice((first, second))


async def _mount_or_lose(world: World, machine: Machine, plan: Plan) -> None:
    """Run a life beside another writer's, each of which may take over from the other.

    One that publishes faster than this one reads stays the writer.
    """
    try:
        await mount(world, machine, plan)
    except MountFailed as error:
        if "Fenced" not in str(error):
            raise
        world.note("the takeover was too slow")


async def finish(world: World, machine: Machine) -> None:
    """Everything answers again: one clean life, then the store must hold it all."""
    world.calm()
    await mount(world, machine, Plan(seconds=1.0, end="drain", quiet=True))
    world.check_store()
    await mount(world, world.new_machine(), Plan(seconds=0.1, end="stop", quiet=True))


def run_seed(seed: int, scratch: Path, *, encrypted: bool = False) -> World:
    """Run the random world of a seed."""
    dials = replace(random_dials(Random(f"{seed}/dials")), encrypted=encrypted)
    return run_world(seed, dials, scratch, drive_random)
