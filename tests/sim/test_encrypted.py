"""The random worlds once more with an encrypted volume: same disasters, same promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.driver import run_seed
from tests.sim.world import World

pytestmark = pytest.mark.allow_log_warnings

_SEEDS = range(1020, 1028)


@pytest.mark.parametrize("seed", _SEEDS)
def test_an_encrypted_volume_survives_what_a_plain_one_does(seed: int, scratch: Path) -> None:
    """A place that is sealed under one name and opened under another loses a volume."""
    world = run_seed(seed, scratch, encrypted=True)
    assert world.commits > 0
    _nothing_is_readable(world)


def test_an_encrypted_world_replays(scratch: Path) -> None:
    """Sealing draws no random number: what is sealed again is the same bytes again."""
    first = run_seed(1024, scratch, encrypted=True).digest
    assert run_seed(1024, scratch, encrypted=True).digest == first


def _nothing_is_readable(world: World) -> None:
    """Every object that holds content is of the encrypted version of its format."""
    objects = world.store.objects
    for meta in objects.list():
        data = objects.read(meta.path)
        assert b"SQLite format" not in data, meta.path
        assert b"BYNC\x01" not in data, meta.path
        assert b"BYNB\x01" not in data, meta.path
