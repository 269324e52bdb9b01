"""Local cuts: what they keep while the store is away, and afterwards."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
import pytest
import trio
import trio.testing

from s3fs_banyan.app.engine import Engine
from s3fs_banyan.commit.context import EngineSettings
from s3fs_banyan.commit.cut import CutTaken
from s3fs_banyan.commit.seal_job import LocalBody
from s3fs_banyan.errors import Corrupt, ExitCode, Refused, Unavailable
from s3fs_banyan.format.keys import LOG_PREFIX
from s3fs_banyan.journal.segment import JournalSettings
from s3fs_banyan.meta import database
from s3fs_banyan.meta.base import Base
from s3fs_banyan.remote.base import FileMeta
from tests.unit.counting_store import CountingStore
from tests.unit.engine_kit import (
    SECOND_NS,
    InlineDisk,
    World,
    engine_settings,
    names,
    running,
    write_file,
)
from tests.unit.process_like import drained_within
from tests.unit.test_commit_outbox import remove

pytestmark = pytest.mark.allow_log_warnings
MIB = 1 << 20


class LossyStore(CountingStore):
    """Takes no packs while it is away; loses an answer and flips a bit of the next look."""

    loses_answer = False
    flips = False

    def write(
        self,
        path: str,
        data: bytes | bytearray | memoryview,
        *,
        if_absent: bool = False,
        storage_class: str = "",
    ) -> FileMeta:
        meta = super().write(path, data, if_absent=if_absent, storage_class=storage_class)
        if self.loses_answer and path.startswith(LOG_PREFIX):
            self.loses_answer, self.flips = False, True
            raise Unavailable("injected: the answer was lost")
        return meta

    def stat(self, path: str) -> FileMeta:
        if self.is_away:
            raise Unavailable("injected: the store is away")
        return super().stat(path)

    def read(self, path: str, *, offset: int = 0, length: int | None = None) -> bytes:
        if self.is_away:
            raise Unavailable("injected: the store is away")
        data = bytes(super().read(path, offset=offset, length=length))
        if self.flips and path.startswith(LOG_PREFIX):
            self.flips = False
            return data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]
        return data


@pytest.fixture
def store() -> LossyStore:
    """The store of `world`."""
    return LossyStore(clock=lambda: 1_700_000_000 * SECOND_NS)


@pytest.fixture
def world(tmp_path: Path, store: LossyStore) -> World:
    """A world whose store can be away."""
    world = World(tmp_path)
    world.store = store
    return world


def cutting(local_cut_bytes: int) -> EngineSettings:
    """Return settings with which the journal is soon worth a local cut."""
    journal = JournalSettings(segment_bytes=1 << 20, spares=2, free_bytes_min=0)
    return engine_settings(journal=journal, local_cut_bytes=local_cut_bytes, give_up_s=0.0)


async def cut_locally(engine: Engine) -> None:
    """Let the committer find that the store is away, until it has made a local cut."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.committer.watch.run)
        nursery.start_soon(engine.committer.run)
        engine.state.request_commit()
        for _ in range(600):
            await trio.sleep(1)
            if engine.ctx.metrics.local_cuts.read():
                break
        nursery.cancel_scope.cancel()
    assert engine.ctx.metrics.local_cuts.read(), "no local cut was made"


class DyingDisk(InlineDisk):
    """Dies before the given one of its changes to names."""

    def __init__(self, changes_left: int) -> None:
        super().__init__()
        self.changes_left = changes_left

    def _change(self) -> None:
        if not self.changes_left:
            raise KeyboardInterrupt
        self.changes_left -= 1

    def rename(self, old: Path, new: Path) -> None:
        self._change()
        super().rename(old, new)

    def make_directory(self, path: Path) -> None:
        self._change()
        super().make_directory(path)

    def unlink(self, path: Path) -> None:
        self._change()
        super().unlink(path)


async def test_setting_local_cuts_aside_survives_a_death_at_any_step(
    world: World, store: LossyStore, autojump_clock: trio.testing.MockClock
) -> None:
    """Base packs hold the bytes of fsyncs that were answered, and the journal has let them go."""
    del autojump_clock
    settings = cutting(100_000)
    async with running(world.context(settings=settings)) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"base", b"base")
        await engine.committer.commit_once()
        await write_file(engine, b"precious", os.urandom(300_000))
        await engine.state.wait_durable()
        store.is_away = True
        await cut_locally(engine)
    store.is_away = False
    packs = {path.read_bytes() for path in (world.root / "a" / "base").iterdir()}
    assert packs
    async with running(world.context("b"), writer=b"b" * 16, takeover=True) as other:
        await other.committer.take_epoch()
    for step in range(100):
        machine = f"killed-{step}"
        shutil.copytree(world.root / "a", world.root / machine)
        dying = replace(world.context(machine, settings=settings), disk=DyingDisk(step))
        survived = False
        with contextlib.suppress(KeyboardInterrupt):
            async with running(dying, takeover=True):
                survived = True
        async with running(world.context(machine, settings=settings), takeover=True):
            pass
        shutil.rmtree(world.root / machine / "outbox")  # of no use after a takeover
        left = {p.read_bytes() for p in (world.root / machine).rglob("*") if p.is_file()}
        assert packs <= left, f"lost by a death before step {step}"
        shutil.rmtree(world.root / machine)
        if survived:
            return
    raise AssertionError("it never ends")


async def test_what_died_behind_a_commit_that_may_have_arrived_stays_dead(
    world: World, store: LossyStore, autojump_clock: trio.testing.MockClock
) -> None:
    """That commit is adopted later, with rows that a local cut must not have forgotten."""
    del autojump_clock
    async with running(world.context(settings=cutting(100_000))) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"doomed", b"doomed" * 100)
        store.loses_answer = True
        with contextlib.suppress(Corrupt):
            await engine.committer.commit_once()
        await remove(engine, b"doomed")
        await write_file(engine, b"other", os.urandom(200_000))
        store.is_away = True
        await cut_locally(engine)
        store.is_away = False
        await write_file(engine, b"more", b"more")
        assert await drained_within(engine), engine.committer.last_error
    async with running(world.context("elsewhere"), takeover=True) as other:
        assert sorted(names(other)) == [b"more", b"other"]


async def test_a_store_that_answers_but_takes_no_packs_is_away(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Without local cuts the journal fills up with what has died, and writers wait for ever."""
    del autojump_clock
    world = World(tmp_path)
    world.store = store = CountingStore(clock=lambda: world.runtime.now_ns)
    store.is_away = True
    settings = engine_settings(
        local_cut_bytes=2 * MIB, dirty_bytes_max=16 * MIB, give_up_s=0.0, commit_interval_s=1.0
    )
    async with running(world.context(settings=settings)) as engine:
        await engine.committer.take_epoch()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.committer.watch.run)
            nursery.start_soon(engine.committer.run)
            with trio.move_on_after(120) as scope:
                for number in range(30):
                    world.runtime.now_ns += 2 * SECOND_NS
                    name = b"file-%d" % (number % 2)
                    if name in names(engine):
                        await remove(engine, name)
                    await write_file(engine, name, os.urandom(MIB))
                    await trio.sleep(1)
            nursery.cancel_scope.cancel()
        assert not scope.cancelled_caught, "the writer waits for ever"
        assert engine.ctx.metrics.local_cuts.read()


@pytest.mark.parametrize(("kind", "cuts"), [(CountingStore, 0), (LossyStore, 1)])
async def test_a_commit_is_given_up_only_if_the_store_answers_no_question(
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
    kind: type[CountingStore],
    cuts: int,
) -> None:
    """In weather that stays bad the store would be minutes behind, for what it was sent is lost."""
    del autojump_clock
    world = World(tmp_path)
    world.store = store = kind(clock=lambda: world.runtime.now_ns)
    answers = kind is CountingStore
    async with running(world.context(settings=engine_settings(local_cut_bytes=MIB))) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"file", os.urandom(5 * MIB))
        store.is_away = True

        async def clear_up() -> None:
            await trio.sleep(20)
            store.is_away = not answers

        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.committer.watch.run)
            nursery.start_soon(clear_up)
            with trio.move_on_after(120):
                while not engine.state.committed.head.seq > 1:
                    await engine.committer.commit_once()
            nursery.cancel_scope.cancel()
        assert bool(engine.ctx.metrics.local_cuts.read()) == bool(cuts)
        assert answers == (engine.state.committed.head.seq > 1)


async def test_what_is_written_during_a_local_cut_makes_the_next_one_due(
    world: World, store: LossyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else writers whose journal filled up meanwhile would wait until the store is back."""
    async with running(world.context(settings=cutting(2 * MIB))) as engine:
        await engine.committer.take_epoch()
        store.is_away = True
        cutter = engine.committer._local
        seal = cutter._seal

        async def while_others_write(cut: CutTaken, base: Base) -> LocalBody:
            for number in range(4):
                await write_file(engine, b"meanwhile-%d" % number, os.urandom(MIB))
            return await seal(cut, base)

        monkeypatch.setattr(cutter, "_seal", while_others_write)
        await write_file(engine, b"before", os.urandom(3 * MIB))
        assert cutter.is_due()
        assert await cutter.cut(frozen=None, forget_gone=False)
        assert cutter.is_due()
        monkeypatch.setattr(cutter, "_seal", seal)
        assert await cutter.cut(frozen=None, forget_gone=False)
        assert not cutter.is_due()


async def test_a_local_cut_that_was_put_off_is_made_for_writers_that_wait(
    world: World, store: LossyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal without room does not grow, so growth cannot be what they wait for."""
    async with running(world.context(settings=cutting(2 * MIB))) as engine:
        await engine.committer.take_epoch()
        store.is_away = True
        cutter = engine.committer._local
        await write_file(engine, b"file", os.urandom(3 * MIB))

        async def refused(cut: CutTaken, base: Base) -> LocalBody:
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(cutter, "_seal", refused)
            assert not await cutter.cut(frozen=None, forget_gone=False)
        engine.state.waiting_writers = 1
        assert not cutter.is_due()
        world.runtime.now_ns += 11 * SECOND_NS
        assert cutter.is_due()
        engine.state.waiting_writers = 0
        assert not cutter.is_due()


@pytest.mark.parametrize(("burst", "least", "most"), [(0, 1.0, 2.2), (3, 0.2, 0.8)])
async def test_what_a_local_cut_moves_is_bounded(
    world: World, monkeypatch: pytest.MonkeyPatch, burst: int, least: float, most: float
) -> None:
    """It lies on the disk twice until the cut is done, and many packs may rot away at once.

    So does what was written in a burst: then less is moved.
    """
    step = MIB // 2
    async with running(world.context(settings=cutting(step))) as engine:
        await engine.committer.take_epoch()
        cutter = engine.committer._local
        base = engine.ctx.local.base_packs
        apply, sealed = cutter._apply, []

        async def measured(cut: CutTaken, opened: Base, body: LocalBody) -> set[int]:
            sealed.append(sum(path.stat().st_size for path in base.iterdir()))
            return await apply(cut, opened, body)

        monkeypatch.setattr(cutter, "_apply", measured)
        for number in range(12):
            await write_file(engine, b"stays-%d" % number, os.urandom(step // 2))
            await write_file(engine, b"goes-%d" % number, os.urandom(step // 2))
            assert await cutter.cut(frozen=None, forget_gone=False)
        for number in range(12):
            await remove(engine, b"goes-%d" % number)
        assert await cutter.cut(frozen=None, forget_gone=False)  # learns what has died
        before = engine.state.base_bytes
        if burst:
            await write_file(engine, b"burst", os.urandom(burst * step))
        assert await cutter.cut(frozen=None, forget_gone=False)
        moved = sealed[-1] - before - burst * step
        assert least * step < moved < most * step
        for _ in range(5):
            assert await cutter.cut(frozen=None, forget_gone=False)
        lives = 12 * step // 2 + burst * step
        assert engine.state.base_bytes < 1.1 * lives, "the rest was left for ever"


async def test_spare_segments_go_before_base_packs_come(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk would hold both at the beginning of an outage, when little lives yet."""
    journal = JournalSettings(segment_bytes=MIB, spares=8, free_bytes_min=0)
    settings = engine_settings(journal=journal, local_cut_bytes=MIB, give_up_s=0.0)
    async with running(world.context(settings=settings)) as engine:
        await engine.committer.take_epoch()
        cutter, spares = engine.committer._local, engine.state.journal.spares
        async with trio.open_nursery() as nursery:
            nursery.start_soon(spares.run)
            await spares.wait_for(8)
            nursery.cancel_scope.cancel()
        seal, left = cutter._seal, []

        async def looked_at(cut: CutTaken, base: Base) -> LocalBody:
            left.append(len(spares))
            return await seal(cut, base)

        monkeypatch.setattr(cutter, "_seal", looked_at)
        await write_file(engine, b"file", os.urandom(MIB))
        assert await cutter.cut(frozen=None, forget_gone=False)
        assert left == [2]


async def test_spare_segments_go_when_the_store_is_in_doubt_and_come_back_with_its_answer(
    world: World, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Until an absence is certain the journal grows beside them, and nothing has died yet."""
    del autojump_clock
    journal = JournalSettings(segment_bytes=MIB, spares=8, free_bytes_min=0)
    in_thread = world.runtime.in_thread

    async def slowly(fn: Any, *args: Any, pool: str = "disk") -> Any:  # noqa: ANN401
        if pool == "question":
            await trio.sleep(2.0)
        return await in_thread(fn, *args, pool=pool)

    monkeypatch.setattr(world.runtime, "in_thread", slowly)
    async with (
        running(world.context(settings=engine_settings(journal=journal))) as engine,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(engine.committer.watch.run)
        spares = engine.state.journal.spares
        await spares.wait_for(8)
        async with trio.open_nursery() as asking:
            asking.start_soon(engine.committer._expect_answer)
            await trio.sleep(0.9)
            assert len(spares) == 8
            await trio.sleep(0.2)
            assert len(spares) == 2
        await trio.sleep(60)
        assert len(spares) == 8
        nursery.cancel_scope.cancel()


async def test_a_base_that_cannot_be_read_just_now_refuses_the_mount(
    world: World, store: LossyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it holds is nowhere else: it stays, and the next mount finds it."""
    async with running(world.context(settings=cutting(MIB))) as engine:
        await engine.committer.take_epoch()
        store.is_away = True
        await write_file(engine, b"precious", os.urandom(2 * MIB))
        assert await engine.committer._local.cut(frozen=None, forget_gone=False)
    real = database.open_database

    def open_database(path: Path, **options: Any) -> apsw.Connection:  # noqa: ANN401
        if path.name == "base.db":
            raise apsw.IOError("disk I/O error")
        return real(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr("s3fs_banyan.meta.base.open_database", open_database)
        with pytest.raises(Refused, match="not in the store") as caught:
            async with running(world.context(boot="boot-2")):
                pass
        assert caught.value.exit_code == ExitCode.LOCAL
    async with running(world.context(boot="boot-2")) as engine:
        assert names(engine) == [b"precious"]
