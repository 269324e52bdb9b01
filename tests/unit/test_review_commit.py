"""Attacks on committing: what is promised and reported while the store or the disk fails."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import apsw
import pytest
import trio
import trio.testing

from s3fs_banyan.app.mount import _drain
from s3fs_banyan.commit.seal_job import SealJob
from s3fs_banyan.errors import BanyanFSError
from s3fs_banyan.format.keys import PACK_PREFIX, pack_key
from s3fs_banyan.journal.segment import JournalSettings
from s3fs_banyan.meta import database
from tests.unit.engine_kit import ROOT, World, engine_settings, names, running, write_file
from tests.unit.process_like import drained_within
from tests.unit.test_review_recovery import away

pytestmark = pytest.mark.allow_log_warnings


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A world of one machine, a."""
    return World(tmp_path)


async def test_the_lag_counts_what_is_on_its_way(world: World) -> None:
    """A commit that waits for the store for hours is not zero seconds behind."""
    switch, store = away(world.store, now=False)
    async with running(world.context(store=store)) as engine, trio.open_nursery() as nursery:
        await engine.committer.take_epoch()
        await write_file(engine, b"a", b"x" * 1000)
        switch.away = True
        nursery.start_soon(engine.committer.commit_once)
        await trio.testing.wait_all_tasks_blocked(0.1)  # it waits for the store, at its first step
        world.runtime.now_ns += 3600 * 10**9
        assert engine.lag_s >= 3600
        assert engine.state.lag_bytes == 1000
        await write_file(engine, b"b", b"x" * 500)
        assert engine.state.lag_bytes == 1500
        switch.away = False
        with trio.fail_after(600):
            await engine.state.wait_commit_done()
        assert engine.state.lag_bytes == 500
        assert engine.lag_s < 3600
        nursery.cancel_scope.cancel()


async def test_a_backlog_is_published_without_a_new_change(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """Mounted while the store was away and only read since: published when it is back."""
    del autojump_clock
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
                world.runtime.now_ns += 10 * 10**9
                await trio.sleep(10)
        nursery.cancel_scope.cancel()
    async with running(world.context("other"), takeover=True) as other:
        assert names(other) == [b"a"]


async def test_nothing_takes_the_room_of_the_cut(world: World) -> None:
    """A full disk heals by a commit, and a commit needs a CUT record: never take its room."""
    journal = JournalSettings(segment_bytes=1 << 20, spares=2, free_bytes_min=0)
    async with running(world.context(settings=engine_settings(journal=journal))) as engine:
        await engine.committer.take_epoch()
        state = engine.state
        with trio.fail_after(60):
            while state.journal.segment_counts[1] < 2:
                await state.journal.wait_changed()
        state.journal._settings = JournalSettings(
            segment_bytes=1 << 20, spares=0, free_bytes_min=1 << 60
        )
        name, other = b"a" * 255, b"b" * 255
        await write_file(engine, name, b"")
        for _ in range(10_000):
            if not state.has_room(0, frees=True):
                break
            await engine.filesystem.rename(1, name, 1, other, 0, ROOT)
            name, other = other, name
            if state.has_room(4000):
                attributes = engine.filesystem.lookup(1, name)
                await engine.filesystem.write(attributes.ino, 0, bytes(4000))
        assert not state.has_room(0, frees=True)
        with trio.fail_after(60):
            await engine.committer.commit_once()
        assert state.has_room(4000)


async def test_checkpoints_come_without_reclaim_asking_for_one(world: World) -> None:
    """Where reclaim asks for none (clocks apart), a cold start must stay short all the same."""
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


async def test_a_drain_that_finds_another_writer_ends_with_a_word(world: World) -> None:
    """An unmount must not fail with a traceback because this writer was taken over."""
    async with running(world.context("a")) as old, trio.open_nursery() as nursery:
        await old.committer.take_epoch()
        await write_file(old, b"a", b"never published")
        async with running(world.context("b"), writer=b"b" * 16, takeover=True) as new:
            await new.committer.take_epoch()
        nursery.start_soon(old.committer.run)
        assert not await _drain(old)
        nursery.cancel_scope.cancel()


async def test_a_commit_that_failed_is_made_again_without_a_new_change(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """The committer begins again after a defect: what was cut must not wait for the next write."""
    del autojump_clock
    async with running(world.context()) as engine, trio.open_nursery() as nursery:
        await engine.committer.take_epoch()
        await write_file(engine, b"a", b"waits")
        original = engine.worker.begin

        async def fail_once(job: SealJob) -> int:
            engine.worker.begin = original  # type: ignore[method-assign]
            await trio.lowlevel.checkpoint()
            raise RuntimeError("injected: a defect")

        engine.worker.begin = fail_once  # type: ignore[method-assign]
        with pytest.raises(RuntimeError, match="injected"):
            await engine.committer.commit_once()
        nursery.start_soon(engine.committer.run)
        with trio.fail_after(600):
            while engine.state.committed.head.op_seq == 0:
                world.runtime.now_ns += 10 * 10**9
                await trio.sleep(10)
        nursery.cancel_scope.cancel()
    async with running(world.context("other"), takeover=True) as other:
        assert names(other) == [b"a"]


async def test_a_commit_that_could_not_be_applied_once_is_applied_later(
    world: World, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """A database of it that cannot be opened for a moment must leave nothing behind."""
    del autojump_clock
    real, failures = database.attach, [1]

    def attach(connection: apsw.Connection, path: Path, schema: str, **options: Any) -> None:  # noqa: ANN401
        if schema == "placed" and failures:
            failures.pop()
            raise apsw.CantOpenError("unable to open database file")
        real(connection, path, schema, **options)

    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"a", b"one")
        monkeypatch.setattr("s3fs_banyan.meta.database.attach", attach)
        with contextlib.suppress(apsw.Error, BanyanFSError):
            await engine.committer.commit_once()
        assert not failures
        assert await drained_within(engine)
    async with running(world.context("other"), takeover=True) as other:
        assert names(other) == [b"a"]
