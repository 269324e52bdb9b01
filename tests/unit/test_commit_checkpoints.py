"""Checkpoints go on: after a copy that failed, a sending that failed, a piece that was lost."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest
import trio
import trio.testing

from s3fs_banyan.app.engine import Engine
from s3fs_banyan.commit import log_store
from s3fs_banyan.commit.log_store import CommitLog
from s3fs_banyan.errors import BanyanFSError, Corrupt, Unavailable
from s3fs_banyan.format.blob import encode_blob
from s3fs_banyan.format.checkpoint import CHECKPOINT_PIECE_BYTES, CheckpointManifest
from s3fs_banyan.format.checksum import sha256_hex
from s3fs_banyan.format.keys import CHECKPOINT_PIECE_PREFIX, checkpoint_piece_key
from s3fs_banyan.meta import database
from s3fs_banyan.remote.memory import MemoryStore
from tests.unit.engine_kit import ROOT, World, running, write_file

pytestmark = pytest.mark.allow_log_warnings


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A world of one machine, a."""
    return World(tmp_path)


@asynccontextmanager
async def mounted(world: World) -> AsyncIterator[Engine]:
    """Run a writer whose checkpoints are sent in the background, as those of a mount are."""
    async with running(world.context()) as engine, trio.open_nursery() as nursery:
        engine.reclaimer.nursery = nursery
        await engine.committer.take_epoch()
        yield engine
        nursery.cancel_scope.cancel()


async def commit_with_checkpoint(engine: Engine, name: bytes) -> None:
    """Commit a file, want a checkpoint with it, and leave time to send it."""
    await write_file(engine, name, b"x")
    engine.checkpointer.wanted = True
    await engine.committer.commit_once()
    await trio.sleep(60)


async def test_the_sending_of_a_checkpoint_is_timed(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """It runs beside commits, so nothing else tells how long it takes."""
    del autojump_clock
    async with mounted(world) as engine:
        await commit_with_checkpoint(engine, b"file")
        assert "commit_step checkpoint" in engine.ctx.metrics.latency_summary()


async def test_a_copy_that_failed_once_stops_no_later_checkpoint(
    world: World, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Without them reclaim stands still, and a cold start folds every commit there is."""
    del autojump_clock

    def copy_to(path: Path) -> None:
        raise OSError(errno.EIO, f"Input/output error: {path}")

    async with mounted(world) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(engine.state.committed, "copy_to", copy_to)
            with contextlib.suppress(OSError):
                await commit_with_checkpoint(engine, b"first")
        assert not engine.checkpointer.kept
        for number in range(3):
            await commit_with_checkpoint(engine, b"later-%d" % number)
        assert engine.checkpointer.kept


def test_a_piece_that_is_larger_than_pieces_are_is_not_decoded(world: World) -> None:
    """A small object may claim two GiB, and a checkpoint names as many pieces as it likes."""
    stored = encode_blob(bytes(CHECKPOINT_PIECE_BYTES + 1))
    name = sha256_hex(stored)
    world.store.write(checkpoint_piece_key(name), stored)
    manifest = CheckpointManifest(
        seq=1, digest=name, database_bytes=1, database_hash=name, pieces=(name,)
    )
    with pytest.raises(Corrupt, match=f"{name}.*at most"):
        list(CommitLog(world.store, world.root, None).read_pieces(manifest))


async def test_a_copy_that_could_not_be_opened_once_stops_no_later_checkpoint(
    world: World, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """So SQLite says that a full disk has no room for a new file."""
    del autojump_clock
    real = database.open_scratch

    def open_scratch(path: Path, **options: Any) -> apsw.Connection:  # noqa: ANN401
        if path.name.startswith("checkpoint-"):
            raise apsw.CantOpenError("unable to open database file")
        return real(path, **options)

    async with mounted(world) as engine:
        with monkeypatch.context() as patch:
            patch.setattr("s3fs_banyan.meta.committed.open_scratch", open_scratch)
            with contextlib.suppress(apsw.Error, BanyanFSError):
                await commit_with_checkpoint(engine, b"first")
        assert not engine.checkpointer.kept
        for number in range(3):
            await commit_with_checkpoint(engine, b"later-%d" % number)
        assert engine.checkpointer.kept


async def test_a_copy_that_cannot_be_read_back_ends_no_mount(
    world: World, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """A checkpoint is a convenience: an error of the local disk costs this one only."""
    del autojump_clock
    real, failures = CommitLog.write_checkpoint, [1]

    def write_checkpoint(self: CommitLog, *arguments: Any) -> object:  # noqa: ANN401
        if failures:
            failures.pop()
            raise OSError(errno.EIO, "Input/output error")
        return real(self, *arguments)

    monkeypatch.setattr(CommitLog, "write_checkpoint", write_checkpoint)
    async with mounted(world) as engine:
        for number in range(3):
            await commit_with_checkpoint(engine, b"file-%d" % number)
        assert not failures
        assert engine.checkpointer.kept


async def _read_back(engine: Engine, name: bytes) -> bool:
    """Commit a file and write a checkpoint; tells whether all of it is in the store."""
    await write_file(engine, name, b"x")
    await engine.committer.commit_once()
    await engine.checkpointer.write_now()
    return await engine.reclaimer._verify(engine.checkpointer.kept[-1])


@pytest.mark.parametrize("restarts", [False, True], ids=["same life", "next life"])
async def test_a_piece_that_was_lost_is_sent_again(
    world: World, monkeypatch: pytest.MonkeyPatch, *, restarts: bool
) -> None:
    """It is shared by all checkpoints until its pages change: none of them can be used."""
    monkeypatch.setattr(log_store, "CHECKPOINT_PIECE_BYTES", 16384)
    found = []
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        for number in range(3000):
            await engine.filesystem.create(1, b"file-%06d" % number + b"y" * 200, 0o644, 0, ROOT)
        assert await _read_back(engine, b"one")
        await write_file(engine, b"two", b"x")
        await engine.committer.commit_once()
        await engine.checkpointer.write_now()
        log = CommitLog(world.store, world.root, None)
        first, second = (set(log.read_manifest(seq).pieces) for seq in engine.checkpointer.kept)
        assert first & second, "pieces that did not change are shared"
        world.store.delete([checkpoint_piece_key(min(first & second))])
        if not restarts:
            assert not await engine.reclaimer._verify(engine.checkpointer.kept[-1])
            found = [await _read_back(engine, b"later-%d" % number) for number in range(3)]
    if restarts:
        async with running(world.context()) as engine:
            await engine.committer.take_epoch()
            found = [await _read_back(engine, b"later-%d" % number) for number in range(3)]
    assert found[-1], "the lost piece is named by every checkpoint and never sent"


async def test_what_the_store_has_is_learnt_once_although_a_list_failed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second look must not count the checkpoints of the first one again."""
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        for name in (b"a", b"b"):
            await write_file(engine, name, b"x")
            await engine.committer.commit_once()
            await engine.checkpointer.write_now()
        written = [*engine.checkpointer.kept]
    async with running(world.context()) as engine:
        real, failures = type(world.store).list, [1]

        def listed(store: MemoryStore, prefix: str = "", **options: Any) -> Any:  # noqa: ANN401
            if prefix == CHECKPOINT_PIECE_PREFIX and failures:
                failures.pop()
                raise Unavailable("the store is away for a moment")
            return real(store, prefix, **options)

        monkeypatch.setattr(type(world.store), "list", listed)
        with pytest.raises(Unavailable):
            await engine.checkpointer.load()
        await engine.checkpointer.load()
        assert engine.checkpointer.kept == written
