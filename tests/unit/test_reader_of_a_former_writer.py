"""A mount that began while the store was away does not yet know whether it is still the writer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
import trio.testing

from s3fs_banyan.errors import InputOutput
from tests.unit.engine_kit import World, read_file, running, write_file
from tests.unit.test_review_recovery import away

pytestmark = pytest.mark.allow_log_warnings

_DATA = os.urandom(1 << 20)


@pytest.mark.parametrize("is_writer", [False, True])
async def test_a_missing_object_is_judged_when_the_writer_is_known(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, *, is_writer: bool
) -> None:
    """Another writer may have moved it: that is no damage, and nobody is to be paged for it."""
    del autojump_clock
    world = World(tmp_path)
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"file", _DATA)
        await engine.committer.commit_once()
    world.store.delete([found.path for found in world.store.list("pack/")])
    switch, store = away(world.store)
    ctx = world.context(store=store)
    failures: list[InputOutput] = []
    async with running(ctx) as engine, trio.open_nursery() as nursery:
        switch.away = False

        async def read() -> None:
            try:
                await read_file(engine, b"file")
            except InputOutput as error:
                failures.append(error)

        nursery.start_soon(read)
        await trio.sleep(60)
        assert not failures
        assert engine.state.urgent
        if is_writer:
            await engine.committer.take_epoch()
        else:
            engine.state.turn_read_only("another writer has taken over")
        await trio.sleep(1)
        assert len(failures) == 1
        assert ctx.metrics.corruption_detected("object").value == is_writer
