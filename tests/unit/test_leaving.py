"""A mount that has left says nothing more: or the next one is refused for its sake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from s3fs_banyan.format.keys import WRITER
from tests.unit.engine_kit import World, running


@pytest.mark.parametrize("when", ["on its way", "afterwards"])
async def test_a_heartbeat_beside_the_leaving_leaves_none_behind(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
    when: str,
) -> None:
    """One is written every half minute, and a mount may be left at that very moment."""
    del autojump_clock
    world = World(tmp_path)
    in_thread = world.runtime.in_thread

    async def slowly(fn: Any, *args: Any, pool: str = "disk") -> Any:  # noqa: ANN401
        if fn.__name__ == "_write_heartbeat":
            await trio.sleep(1)
        return await in_thread(fn, *args, pool=pool)

    async with running(world.context()) as engine:
        await engine.become_writer()
        assert [meta.path for meta in world.store.list(WRITER)] == [WRITER]
        monkeypatch.setattr(world.runtime, "in_thread", slowly)
        async with trio.open_nursery() as nursery:
            if when == "on its way":
                nursery.start_soon(engine._beat)
                await trio.sleep(0.5)
            await engine.leave()
            nursery.start_soon(engine._beat)
        assert not list(world.store.list(WRITER))
