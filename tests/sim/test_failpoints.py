"""Death at every named point of the durable order, and the three ways back from it."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest

import s3fs_banyan.commit
from s3fs_banyan.runtime import FAILPOINTS
from tests.sim.dials import Dials
from tests.sim.driver import finish, mount
from tests.sim.runtime import now_s
from tests.sim.world import Machine, Plan, World, run_world

for _module in pkgutil.iter_modules(s3fs_banyan.commit.__path__, "s3fs_banyan.commit."):
    if not _module.name.endswith("_main"):
        importlib.import_module(_module.name)

_LIFE_S = 60.0
_WAYS = ("crash", "power", "lost")

pytestmark = pytest.mark.allow_log_warnings


def _dials() -> Dials:
    """Commits, packs, checkpoints and reclaim rounds as close together as can be."""
    return Dials(
        commit_interval_s=0.3,
        inline_bytes_max=2_000,
        checkpoint_commits_max=2,
        window_s=1.0,
        grace_s=0.0,
        every_s=0.8,
        local_cut_bytes=1,
        check_chance=0.02,
    )


@pytest.mark.parametrize("way", _WAYS)
@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("name", sorted(FAILPOINTS))
def test_death_at_a_failpoint_loses_nothing_promised(
    name: str, passes: int, way: str, scratch: Path
) -> None:
    """A point that is never passed fails: its crash window would go unseen."""

    async def drive(world: World) -> None:
        machine = world.new_machine()
        if name.startswith(("local-cut", "base")):
            # Local cuts are made while the store is away, their base is dropped afterwards.
            world.store.outage_from_s, world.store.outage_until_s = now_s() + 4.0, now_s() + 10.0
            world.store.outage_every_s = 12.0
        assert await _die_at(world, machine, name, passes), f"{name} was passed too seldom"
        if way == "power":
            world.power_cut(machine)
        elif way == "lost":
            world.lose(machine)
            machine = world.new_machine()
        await mount(world, machine, Plan(seconds=2.0, end="crash"))
        await finish(world, machine)

    run_world(f"{name} {passes} {way}", _dials(), scratch, drive)


async def _die_at(world: World, machine: Machine, name: str, passes: int) -> bool:
    """Live until the point was passed so often; some are passed but once a life."""
    before = world.passed.get(name, 0)
    for _ in range(passes):
        left = passes - (world.passed.get(name, 0) - before)
        seconds = _LIFE_S if left == 1 or world.passed.get(name, 0) == before else 1.0
        once_a_life = name.startswith(("epoch", "fence"))
        plan = Plan(
            seconds=1.0 if once_a_life else seconds, end="stop", crash_at=name, crash_passes=left
        )
        if (await mount(world, machine, plan)).died_at:
            return True
    return False
