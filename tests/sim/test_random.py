"""Random worlds: whatever dies whenever, what was promised is there and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.driver import rerun_line, run_seed

_BATCH = 10
_BATCHES = 20

pytestmark = pytest.mark.allow_log_warnings


@pytest.mark.parametrize("batch", range(_BATCHES))
def test_state_after_any_disaster_is_what_was_promised(batch: int, scratch: Path) -> None:
    """The heart of the project: a failure here is lost or invented data, or a broken invariant."""
    for seed in range(batch * _BATCH, (batch + 1) * _BATCH):
        try:
            world = run_seed(seed, scratch)
        except BaseException as error:
            error.add_note(rerun_line(seed))
            raise
        assert world.commits > 0, f"seed {seed} published nothing: {rerun_line(seed)}"
