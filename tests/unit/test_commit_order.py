"""The committer step by step: what it survives, and what it leaves in the store."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from s3fs_banyan.app.engine import Engine
from s3fs_banyan.commit import sealing
from s3fs_banyan.commit.committer import (
    FP_APPLIED,
    FP_CUT,
    FP_CUT_SYNCED,
    FP_DELTA,
    FP_PUBLISHED,
    FP_RECYCLED,
    FP_SEALED,
    FP_UPLOADED,
)
from s3fs_banyan.commit.context import Context
from s3fs_banyan.commit.seal_job import CommitBody, SealedPack, SealJob
from s3fs_banyan.commit.sealing import Sealing
from s3fs_banyan.commit.worker import InlineWorker, Worker, WorkerDied
from s3fs_banyan.data.blocks import BlockCache
from s3fs_banyan.errors import Unavailable
from s3fs_banyan.format.commit import decode_footer
from s3fs_banyan.format.keys import log_key
from s3fs_banyan.remote.base import check_path
from tests.unit.engine_kit import (
    ROOT,
    World,
    engine_settings,
    names,
    read_file,
    running,
    write_file,
)


class FailingWorker(InlineWorker):
    """Raises one error at one step, once, and works from then on."""

    def __init__(self, ctx: Context, cache: BlockCache, step: str, error: Exception) -> None:
        def make(job: SealJob) -> Sealing:
            return Sealing(job, disk=ctx.disk, store=ctx.store, cache=cache, cipher=ctx.cipher)

        super().__init__(make, ctx.runtime)
        self._step = step
        self._error: Exception | None = error

    def _trip(self, step: str) -> None:
        if step == self._step and self._error is not None:
            error, self._error = self._error, None
            raise error

    async def begin(self, job: SealJob) -> int:
        self._trip("begin")
        return await super().begin(job)

    async def seal_pack(self, number: int) -> SealedPack | None:
        self._trip("seal_pack")
        return await super().seal_pack(number)

    async def upload(self, pack: SealedPack) -> None:
        self._trip("upload")
        await super().upload(pack)

    async def finish(self) -> CommitBody:
        self._trip("finish")
        return await super().finish()


@pytest.mark.allow_log_warnings
@pytest.mark.parametrize("step", ["begin", "seal_pack", "upload", "finish"])
@pytest.mark.parametrize(
    "error", [WorkerDied("killed"), Unavailable("the store is away")], ids=["died", "away"]
)
async def test_a_commit_survives_its_worker_and_its_store(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, step: str, error: Exception
) -> None:
    """A worker that dies and a store that is away are everyday life, at every step."""
    del autojump_clock
    world = World(tmp_path)
    data = os.urandom(2_500_000)

    def make_worker(ctx: Context, cache: BlockCache) -> Worker:
        return FailingWorker(ctx, cache, step, error)

    async with running(world.context(), make_worker=make_worker) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"large", data)
        await engine.committer.commit_once()
        assert engine.state.committed.head.seq == 2
    async with running(world.context("b"), takeover=True) as other:
        assert await read_file(other, b"large") == data


async def test_a_delta_too_large_for_its_commit_travels_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million renames are one commit, too; its delta has a key that no store refuses."""
    monkeypatch.setattr(sealing, "COMMIT_BYTES_MAX", 1000)
    world = World(tmp_path)
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        for number in range(50):
            await write_file(engine, b"file-%d" % number, b"x" * 100)
        await engine.committer.commit_once()
    paths = [meta.path for meta in world.store.list()]
    for path in paths:
        check_path(path)
        # The contract of remote/base.py: nothing beside `a/...` is called `a`.
        assert not any(other.startswith(path + "/") for other in paths)
    assert sum("delta" in path for path in paths) == 1
    async with running(world.context("b"), takeover=True) as other:
        assert await read_file(other, b"file-49") == b"x" * 100


@pytest.mark.allow_log_warnings
@pytest.mark.parametrize("damage", ["version", "flags", "magic", "frame count", "gone"])
async def test_a_damaged_chunk_that_is_to_be_moved_stays_where_it_is(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, damage: str
) -> None:
    """One rotten chunk in an old pack must not stop every commit from now on."""
    del autojump_clock
    world = World(tmp_path)
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        for name in (b"dies", b"damaged", b"dies too"):
            await write_file(engine, name, os.urandom(200_000))
        await engine.committer.commit_once()
        (key,) = [meta.path for meta in world.store.list("pack/")]
        if damage == "gone":
            world.store.delete([key])
        else:
            data = bytearray(world.store.read(key))
            at = {"magic": 0, "version": 4, "flags": 5, "frame count": 6}[damage]
            start = data.find(b"BYNC")
            while start >= 0:
                data[start + at] ^= 2
                start = data.find(b"BYNC", start + 4)
            world.store.write(key, bytes(data))
        engine.cache.forget(key)
        for name in (b"dies", b"dies too"):
            await engine.filesystem.unlink(1, name, ROOT)
        while (dead := engine.filesystem.handles.next_dead_nowait()) is not None:
            await engine.filesystem._reap(engine.state, dead)
        with trio.fail_after(3600):
            for number in range(12):
                await write_file(engine, b"tick%d" % number, b"t")
                await engine.committer.commit_once()
        assert engine.state.committed.head.seq == 14
        assert [row[1] for row in _chunks(engine)].count(key) == 1


def _chunks(engine: Engine) -> list[tuple[int, str]]:
    """Return (chunk, key of the object that it lies in)."""
    with engine.state.committed.view() as view:
        return [(row[0], str(row[2])) for row in view.all_chunks()]


async def test_the_durable_order_is_the_one_that_is_documented(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Nothing else orders durability towards the store: cut, sync, seal, upload, publish, apply."""
    del autojump_clock
    world = World(tmp_path)
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"large", os.urandom(1_500_000))
        world.runtime.passed.clear()
        await engine.committer.commit_once()
        order = [name for name in world.runtime.passed if not name.startswith("pack")]
        assert order == [
            FP_CUT, FP_CUT_SYNCED, FP_DELTA, FP_SEALED, FP_UPLOADED, FP_PUBLISHED, FP_APPLIED,
            FP_RECYCLED,
        ]  # fmt: skip
        assert {path.name for path in (tmp_path / "a" / "outbox").iterdir()} <= {"link"}


@pytest.mark.parametrize(
    ("sizes", "packs", "inline"),
    [
        ([100] * 30, 0, 3_000),
        ([64 * 1024], 0, 65_536),
        ([64 * 1024 + 1], 1, 0),
        ([700_000, 700_000], 2, 0),
        ([1 << 20, 30_000], 1, 30_000),
        ([400_000] * 5, 3, 0),
    ],
)
async def test_what_is_small_in_all_goes_inline_and_the_rest_into_full_packs(
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
    sizes: list[int],
    packs: int,
    inline: int,
) -> None:
    """Requests cost money: small files are one PUT, large data is as few packs as it can be."""
    del autojump_clock
    world = World(tmp_path)
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        files = {b"f%02d" % n: os.urandom(size) for n, size in enumerate(sizes)}
        for name, data in files.items():
            await write_file(engine, name, data)
        await engine.committer.commit_once()
        assert len([meta.path for meta in world.store.list("pack/")]) == packs
        footer = decode_footer(world.store.read(log_key(2)), "k")
        assert inline <= footer.inline_length <= inline + 60 * len(sizes)
    async with running(world.context("fresh"), takeover=True) as other:
        for name, data in files.items():
            assert await read_file(other, name) == data


async def test_fsyncs_of_remote_mode_share_a_commit(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Sixteen threads that wait for the store must not be sixteen commits."""
    del autojump_clock
    world = World(tmp_path)
    ctx = world.context(settings=engine_settings(durability_remote=True))
    async with running(ctx) as engine, trio.open_nursery() as nursery:
        nursery.start_soon(engine.committer.run)
        await engine.state.wait_durable()
        before = engine.state.committed.head.seq

        async def write_and_wait(number: int) -> None:
            await write_file(engine, b"f%d" % number, b"x" * 4096)
            await engine.filesystem.fsync()
            assert engine.state.covered_op_seq >= engine.state.committed.head.op_seq

        async with trio.open_nursery() as writers:
            for number in range(16):
                writers.start_soon(write_and_wait, number)
        assert 1 <= engine.state.committed.head.seq - before <= 2
        nursery.cancel_scope.cancel()
    async with running(world.context("fresh"), takeover=True) as other:
        assert len(names(other)) == 16
