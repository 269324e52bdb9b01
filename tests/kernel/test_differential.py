"""The mount answers random programs exactly as a plain directory of the local disk does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kernel.mounts import Mount
from tests.kernel.programs import Program, World

SEEDS = range(60)
STEPS = 400
LOOK_EVERY = 50


@pytest.mark.parametrize("seed", SEEDS)
def test_answers_as_a_plain_directory_does(
    seed: int, shared: Mount, tree: Path, tmp_path: Path
) -> None:
    """A program that works on a local disk must not find another file system here."""
    roots = tree / "root", tmp_path / "plain" / "root"
    for root in roots:
        root.mkdir(parents=True)
        root.chmod(0o777)
    compare(seed, STEPS, *roots)


def compare(seed: int, steps: int, mounted: Path, plain: Path) -> None:
    """Carry a program out on both; raises `AssertionError` at the first difference."""
    program, here, there = Program(seed), World(mounted), World(plain, plain=True)
    here_before = Path.cwd()
    try:
        for number in range(steps):
            step = program.step()
            found, wanted = here.do(step), there.do(step)
            assert found == wanted, f"seed {seed}, step {number}: {_short(step)}"
            if number % LOOK_EVERY == LOOK_EVERY - 1:
                assert here.tree() == there.tree(), f"seed {seed}, after step {number}"
    finally:
        os.chdir(here_before)
        here.close()
        there.close()


def _short(step: tuple[object, ...]) -> str:
    return repr(step) if len(repr(step)) < 300 else repr(step)[:300] + "..."
