"""Attacks on committing: what is promised and reported while the store or the disk fails."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import trio

from s3fs_banyan.app.engine import Engine
from s3fs_banyan.errors import Unavailable
from s3fs_banyan.format.keys import PACK_PREFIX, log_key, pack_key
from s3fs_banyan.journal.log import JournalSettings
from s3fs_banyan.remote.base import RemoteFileSystem
from tests.unit.engine_kit import ROOT, World, engine_settings, names, running, write_file
from tests.unit.test_review_recovery import away

pytestmark = pytest.mark.allow_log_warnings


@pytest.fixture
def world(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> World:
    """A world of one machine, a."""
    del autojump_clock
    return World(tmp_path)


async def until_phase(engine: Engine, phase: str) -> None:
    """Wait until the committer stands at a step."""
    while engine.committer.phase != phase or not engine.committer.last_error:
        await trio.sleep(0.1)


async def test_the_lag_counts_what_is_on_its_way(world: World) -> None:
    """A commit that waits for the store for hours is not zero seconds behind."""
    switch, store = away(world.store, now=False)
    async with running(world.context(store=store)) as engine, trio.open_nursery() as nursery:
        await engine.committer.take_epoch()
        await write_file(engine, b"a", b"x" * 1000)
        switch.away = True
        nursery.start_soon(engine.committer.commit_once)
        with trio.fail_after(60):
            await until_phase(engine, "publish")
        world.runtime.now_ns += 3600 * 10**9
        assert engine.lag_s >= 3600
        assert engine.state.lag_bytes == 1000
        await write_file(engine, b"b", b"x" * 500)
        assert engine.state.lag_bytes == 1500
        switch.away = False
        with trio.fail_after(600):
            await engine.state.wait_commit_done()
            while engine.committer.phase == "apply":
                await trio.sleep(0.1)
        assert engine.state.lag_bytes == 500
        assert engine.lag_s < 3600
        nursery.cancel_scope.cancel()


async def test_a_backlog_is_published_without_a_new_change(world: World) -> None:
    """Mounted while the store was away and only read since: published when it is back."""
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"a", b"backlog")
        await engine.state.wait_durable()
    switch, store = away(world.store)
    async with running(world.context(store=store)) as engine, trio.open_nursery() as nursery:
        await engine.become_writer()
        assert engine.state.lag_bytes > 0
        nursery.start_soon(engine.committer.run)
        await trio.sleep(100)
        switch.away = False
        with trio.fail_after(600):
            while engine.state.committed.head.op_seq == 0:
                await trio.sleep(1)
        nursery.cancel_scope.cancel()
    async with running(world.context("other"), takeover=True) as other:
        assert names(other) == [b"a"]


async def test_unlinking_leaves_room_for_the_cut(world: World) -> None:
    """A full disk heals by a commit, and a commit needs a CUT record: never take its room."""
    journal = JournalSettings(segment_bytes=1 << 20, spares=2, free_bytes_min=0)
    async with running(world.context(settings=engine_settings(journal=journal))) as engine:
        await engine.committer.take_epoch()
        state = engine.state
        while len(state.journal._spares) < 2:
            await trio.sleep(0.1)
        state.journal._settings = JournalSettings(
            segment_bytes=1 << 20, spares=0, free_bytes_min=1 << 60
        )
        count = 0
        while state.has_room(4000) and count < 10_000:
            count += 1
            await write_file(engine, b"n%d" % count, bytes(4000))
        while state.has_room(0, frees=True) and count:
            await engine.filesystem.unlink(1, b"n%d" % count, ROOT)
            await engine.filesystem.make(1, b"n%d" % count, 0o100644, ROOT) if state.has_room(
                0
            ) else None
            count -= 1
        while state.has_room(0, frees=True):
            await engine.filesystem.rename(1, names(engine)[0], 1, b"r" * 200, 0, ROOT)
        with trio.fail_after(60):
            await engine.committer.commit_once()
        assert state.has_room(4000)


async def test_a_full_disk_does_not_end_the_task_that_takes_the_epoch(world: World) -> None:
    """ENOSPC is for applications: the committer waits for room."""
    async with running(world.context()) as engine:
        journal = engine.state.journal
        original = journal.has_room
        journal.has_room = lambda *_, **__: False  # type: ignore[method-assign]
        journal.disk_full = True
        engine.state.online = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.committer.take_epoch)
            await trio.sleep(10)
            journal.has_room = original  # type: ignore[method-assign]
            journal.disk_full = False
        assert engine.committer.has_epoch


async def test_a_damaged_answer_does_not_end_the_committer(world: World) -> None:
    """A bit flips on the way while a collision is looked at: look again."""
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"a", b"one")
        original_read, original_write = world.store.read, world.store.write
        flips = [2]

        def write(path: str, data: bytes, **options: object) -> object:
            meta = original_write(path, data, **options)  # type: ignore[arg-type]
            if path == log_key(2) and flips[0]:
                raise Unavailable("injected: the answer was lost")
            return meta

        def read(path: str, **options: object) -> bytes:
            data = original_read(path, **options)  # type: ignore[arg-type]
            if path == log_key(2) and flips[0]:
                flips[0] -= 1
                return data[:-1] + bytes([data[-1] ^ 1])
            return data

        world.store.write = write  # type: ignore[method-assign, assignment]
        world.store.read = read  # type: ignore[method-assign, assignment]
        await engine.committer.commit_once()
        assert engine.state.committed.head.seq == 2
        assert flips == [0]


async def test_checkpoints_come_without_reclaim_asking_for_one(world: World) -> None:
    """With pins, or clocks apart, reclaim asks for none; a cold start must stay short all the same."""
    settings = engine_settings(checkpoint_commits_max=3)
    async with running(world.context(settings=settings)) as engine, trio.open_nursery() as nursery:
        engine.reclaimer.nursery = nursery
        await engine.committer.take_epoch()
        for number in range(4):
            await write_file(engine, b"n%d" % number, b"x")
            await engine.committer.commit_once()
        await trio.sleep(1)
        assert engine.checkpointer.kept


async def test_a_writer_that_was_overtaken_deletes_nothing(world: World) -> None:
    """It slept, and its round of reclaim comes before its next commit notices the fence."""
    async with running(world.context("a")) as old:
        await old.committer.take_epoch()
        await old.committer.commit_once()
        orphan = pack_key(0, 1, "0" * 16)
        world.store.write(orphan, b"of an earlier epoch")
        async with running(world.context("b"), writer=b"b" * 16, takeover=True) as new:
            await new.committer.take_epoch()
            world.runtime.now_ns += 7200 * 10**9
            plan = old.reclaimer._plan(old.state.committed.head, world.runtime.now_ns)
            assert plan.keys == []
        assert [meta.path for meta in world.store.list(PACK_PREFIX)] == [orphan]


def test_the_switch_is_a_store() -> None:
    """The cast in these tests hides nothing: every attribute is the real store's."""
    world = World(Path("unused"))
    _, store = away(world.store, now=False)
    assert cast("RemoteFileSystem", store).capabilities == world.store.capabilities
