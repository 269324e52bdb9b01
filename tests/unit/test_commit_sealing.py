"""Sealing in a process of its own: what fails there once, or for one chunk, stops no commit."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import trio
import trio.testing

from s3fs_banyan import gentle_io
from s3fs_banyan.commit.pack_buffers import PackBuffer
from s3fs_banyan.errors import Unavailable
from s3fs_banyan.format.checksum import Bytes
from s3fs_banyan.format.keys import PACK_PREFIX
from s3fs_banyan.journal import segment
from s3fs_banyan.journal.disk import DiskFile
from s3fs_banyan.remote.base import FileMeta
from tests.unit.counting_store import CountingStore
from tests.unit.engine_kit import World, running, write_file
from tests.unit.process_like import drained_within, running_with_process
from tests.unit.test_commit_outbox import FILES, check_elsewhere, fill, outbox_of, sealed_only

pytestmark = pytest.mark.allow_log_warnings


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A world of one machine, a."""
    return World(tmp_path)


async def test_a_sealing_whose_process_died_between_two_attempts_is_begun_again(
    world: World, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """The next process knows nothing of the pack: to ask it again and again stops all commits."""
    del autojump_clock
    world.store = store = CountingStore(clock=lambda: world.runtime.now_ns)
    data = os.urandom(900_000)
    async with running_with_process(world.context(), monkeypatch) as (engine, host):
        await engine.committer.take_epoch()
        await write_file(engine, b"large", data)
        store.is_away = True

        async def die() -> None:
            await host.wait_answered("upload")
            host.kill()
            store.is_away = False

        async with trio.open_nursery() as nursery:
            nursery.start_soon(die)
            assert await drained_within(engine), engine.committer.last_error
    await check_elsewhere(world, {b"large": data})


async def test_a_body_that_could_not_be_written_is_made_again(
    world: World, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """A disk that is full for a moment must not leave half of the placements behind."""
    del autojump_clock
    real, failures = gentle_io.write_gently, [1]

    def write_gently(path: Path, data: Bytes) -> None:
        if path.name.startswith("commit-") and failures:
            failures.pop()
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, data)

    monkeypatch.setattr("s3fs_banyan.commit.sealing.write_gently", write_gently)
    async with running_with_process(world.context(), monkeypatch) as (engine, _):
        await engine.committer.take_epoch()
        await write_file(engine, b"small", b"x" * 1000)
        assert await drained_within(engine), engine.committer.last_error
    assert not failures
    await check_elsewhere(world, {b"small": b"x" * 1000})


async def test_a_pack_of_the_outbox_that_cannot_be_read_is_sealed_again(
    world: World, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """It only saves work: its chunks are in the journal still."""
    del autojump_clock
    async with running(world.context()) as engine:
        await fill(engine)
        await sealed_only(engine)
    real = PackBuffer.load

    def load(self: PackBuffer, path: Path, *, summed: bool = True) -> None:
        if path.parent == outbox_of(world).pack_path("pack/1/x").parent:
            raise OSError(errno.EIO, "Input/output error")
        real(self, path, summed=summed)

    monkeypatch.setattr(PackBuffer, "load", load)
    outbox_of(world).store_link(1e12)  # a line so quick that no new pack needs the outbox
    async with running_with_process(world.context(), monkeypatch) as (engine, _):
        await engine.committer.take_epoch()
        assert await drained_within(engine), engine.committer.last_error
    await check_elsewhere(world, FILES)


async def test_a_pack_that_rots_in_the_outbox_before_it_is_sent_is_never_named(
    world: World, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """The journal is recycled behind the commit: rubbish in the store is all that is left."""
    del autojump_clock
    rotten: set[str] = set()
    async with running_with_process(world.context(), monkeypatch) as (engine, host):
        await fill(engine)

        def rot(method: str) -> None:
            for key in outbox_of(world).keys() - rotten if method == "upload" else ():
                path = outbox_of(world).pack_path(key)
                if path.exists():
                    data = bytearray(path.read_bytes())
                    data[len(data) // 2] ^= 1
                    path.write_bytes(data)
                    rotten.add(key)

        host.before = rot
        assert await drained_within(engine), engine.committer.last_error
    assert rotten
    await check_elsewhere(world, FILES)


async def test_a_record_that_cannot_be_read_for_a_moment_is_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """A controller that is reset refuses reads: the bytes are there, and must not be given up."""
    del autojump_clock
    real = segment.read_write_record
    left = [1, 2, 3]

    def read_write_record(file: DiskFile, path: Path, position: int, op_seq: int) -> bytes:
        data = real(file, path, position, op_seq)
        if left:
            left.pop()
            raise OSError(errno.EIO, "Input/output error")
        return data

    monkeypatch.setattr("s3fs_banyan.commit.sealing.read_write_record", read_write_record)
    async with running_with_process(world.context(), monkeypatch) as (engine, _):
        await engine.committer.take_epoch()
        await write_file(engine, b"precious", b"precious" * 10)
        assert await drained_within(engine), engine.committer.last_error
    assert not left
    await check_elsewhere(world, {b"precious": b"precious" * 10})


async def test_a_pack_that_vanished_from_the_outbox_is_sealed_again(
    world: World, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """It saves work and nothing else: a commit must not wait for it."""
    del autojump_clock
    gone: set[str] = set()
    async with running_with_process(world.context(), monkeypatch) as (engine, host):
        await fill(engine)

        def remove(method: str) -> None:
            for key in outbox_of(world).keys() if method == "upload" and not gone else ():
                path = outbox_of(world).pack_path(key)
                if path.exists():
                    path.unlink()
                    gone.add(key)

        host.before = remove
        assert await drained_within(engine), engine.committer.last_error
    assert gone
    await check_elsewhere(world, FILES)


async def test_packs_that_this_process_sent_are_not_asked_for_when_a_commit_is_begun_again(
    world: World, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """In bad weather one of many questions always fails, and no sealing would ever begin."""
    del autojump_clock
    world.store = store = CountingStore(clock=lambda: world.runtime.now_ns)
    stat = store.stat

    def fails(path: str) -> FileMeta:
        if path.startswith(PACK_PREFIX):
            raise Unavailable("injected: bad weather")
        return stat(path)

    async with running_with_process(world.context(), monkeypatch) as (engine, _):
        await fill(engine)
        committer = engine.committer
        cut = await committer._cut()
        await engine.state.journal.wait_synced(cut.op_seq)
        await committer._seal_and_upload(cut, await committer._delta(cut))
        await committer._give_up_cut(cut, "for the test")
        monkeypatch.setattr(store, "stat", fails)
        with trio.move_on_after(60):
            await committer.commit_once()
        assert engine.ctx.metrics.packs_reused.read() == 4
        assert engine.state.committed.head.seq == 2
    await check_elsewhere(world, FILES)
