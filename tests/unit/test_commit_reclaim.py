"""What may be deleted, and when: reclaim's rules, and which packs compaction empties."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from s3fs_banyan.app.engine import Engine
from s3fs_banyan.commit.compaction import MOVE_BYTES_MAX, choose_victims
from s3fs_banyan.commit.context import EngineSettings
from s3fs_banyan.commit.log_store import CommitLog
from s3fs_banyan.commit.reclaim import CLOCK_SKEW_NS_MAX, Reclaimer
from s3fs_banyan.format.commit import KEPT_MAX, encode_footer
from s3fs_banyan.format.keys import PACK_PREFIX, log_key
from s3fs_banyan.meta.committed import Head, PackRow
from s3fs_banyan.remote.memory import MemoryStore
from tests.unit.engine_kit import (
    ROOT,
    SECOND_NS,
    World,
    engine_settings,
    names,
    read_file,
    running,
    write_file,
)

pytestmark = pytest.mark.allow_log_warnings


@pytest.fixture
def world(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> World:
    """A world whose clock a test moves."""
    del autojump_clock
    return World(tmp_path)


def keeping(window_s: float, hourly_s: float, grace_s: float = 0.0) -> EngineSettings:
    """Return settings of reclaim."""
    return engine_settings(
        reclaim_window_s=window_s, reclaim_hourly_s=hourly_s, reclaim_grace_s=grace_s
    )


def keys(world: World, prefix: str = "") -> list[str]:
    """Return the keys in the store."""
    return [meta.path for meta in world.store.list(prefix)]


async def round_with_commit(engine: Engine) -> None:
    """One round, with a committer that answers its request."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.committer.run)
        await engine.reclaimer.round()
        nursery.cancel_scope.cancel()


async def checkpointed_commit(engine: Engine) -> int:
    """Commit what there is and write a checkpoint of it; returns its number."""
    await engine.committer.commit_once()
    await engine.checkpointer.write_now()
    return engine.state.committed.head.seq


async def replace_large(engine: Engine, name: bytes) -> None:
    """Write a file that fills a pack, in place of one of the same name."""
    if name in names(engine):
        ino = engine.filesystem.lookup(1, name).ino
        engine.filesystem.forget(ino, 1)
        await engine.filesystem.unlink(1, name, ROOT)
        while (dead := engine.filesystem.handles.next_dead_nowait()) is not None:
            assert engine.filesystem._state is not None
            await engine.filesystem._reap(engine.filesystem._state, dead)
    await write_file(engine, name, os.urandom(900_000))


async def test_with_nothing_kept_the_store_follows_the_live_size(world: World) -> None:
    """Window and hourly 0: what died goes, what lives stays and is read from a fresh disk."""
    async with running(world.context(settings=keeping(0, 0))) as engine:
        await engine.committer.take_epoch()
        for _ in range(4):
            await write_file(engine, b"small-%d" % world.runtime.now_ns, b"s")
            await engine.committer.commit_once()
            await replace_large(engine, b"large")
            await checkpointed_commit(engine)
            world.runtime.now_ns += 3600 * SECOND_NS
        want = {name: await read_file(engine, name) for name in names(engine)}
        for _ in range(3):
            await round_with_commit(engine)
            await engine.checkpointer.write_now()
            world.runtime.now_ns += 3600 * SECOND_NS
        assert len(keys(world, PACK_PREFIX)) == 1
        packs = engine.reclaimer._packs()
        assert all(pack.live_bytes for pack in packs if pack.key.startswith(PACK_PREFIX))
    async with running(world.context("fresh"), takeover=True) as other:
        assert {name: await read_file(other, name) for name in names(other)} == want


async def test_the_first_commit_of_an_epoch_is_never_deleted(world: World) -> None:
    """A writer that slept for days must not find its next key free."""
    fences = []
    for _ in range(3):
        async with running(world.context(settings=keeping(0, 0))) as engine:
            await engine.committer.take_epoch()
            fences.append(log_key(engine.state.committed.head.seq))
            await write_file(engine, b"f-%d" % world.runtime.now_ns, b"x")
            await checkpointed_commit(engine)
            world.runtime.now_ns += 3600 * SECOND_NS
            for _ in range(2):
                await round_with_commit(engine)
                await engine.checkpointer.write_now()
                world.runtime.now_ns += 3600 * SECOND_NS
            assert set(fences) <= set(keys(world))
    log = CommitLog(world.store, world.root, None)
    numbers = log.sequence_numbers(0)
    assert len(numbers) < max(numbers), "something was deleted"


async def test_the_dense_window_keeps_every_commit(world: World) -> None:
    """Within it any second can be restored."""
    async with running(world.context(settings=keeping(7200, 0))) as engine:
        await engine.committer.take_epoch()
        for _ in range(6):
            await replace_large(engine, b"large")
            await checkpointed_commit(engine)
            world.runtime.now_ns += 1800 * SECOND_NS
        before = set(keys(world, "log/"))
        await round_with_commit(engine)
        head = engine.state.committed.head
        assert head.dense_from in engine.checkpointer.kept
        kept = {log_key(seq) for seq in range(head.dense_from, head.seq + 1)}
        assert kept <= set(keys(world, "log/"))
        times = engine.reclaimer._commit_times
        assert times[head.dense_from] <= world.runtime.now_ns - 7200 * SECOND_NS
        assert before - set(keys(world, "log/"))


async def test_hourly_commits_are_kept_with_a_checkpoint_each(world: World) -> None:
    """A kept commit outside the window cannot be reached by folding deltas any more."""
    async with running(world.context(settings=keeping(600, 6 * 3600))) as engine:
        await engine.committer.take_epoch()
        for _ in range(16):
            await replace_large(engine, b"large")
            await checkpointed_commit(engine)
            world.runtime.now_ns += 1200 * SECOND_NS
        await round_with_commit(engine)
        head = engine.state.committed.head
        times = engine.reclaimer._commit_times
        hours = [times[seq] // (3600 * SECOND_NS) for seq in head.kept]
        assert len(hours) == len(set(hours)) >= 4
        log = CommitLog(world.store, world.root, None)
        for seq in head.kept:
            assert seq in log.checkpoints()
            at = world.root / f"restore-{seq}.db"
            committed = log._load_checkpoint(seq, at, vfs=None, volume=engine.ctx.volume)
            with committed.view() as view:
                for _, _, key, *_ in view.all_chunks():
                    assert key is not None
                    world.store.stat(key)
            committed.close()


async def test_nothing_is_deleted_when_the_clocks_disagree(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Ages are by the store's clock; a clock that is far off makes all of them wrong."""
    async with running(world.context(settings=keeping(0, 0))) as engine:
        await engine.committer.take_epoch()
        for _ in range(3):
            await replace_large(engine, b"large")
            await checkpointed_commit(engine)
        before = keys(world)
        skewed = MemoryStore(clock=lambda: world.runtime.now_ns + CLOCK_SKEW_NS_MAX + 10**10)
        skewed._objects = world.store._objects
        ctx = world.context("a", store=skewed, settings=keeping(0, 0))
        reclaimer = Reclaimer(
            ctx,
            engine.state,
            CommitLog(skewed, world.root, None),
            engine.checkpointer,
            engine.cache,
        )
        await reclaimer.round()
        assert keys(world) == before
        assert "clock" in reclaimer.last_problem
        assert "nothing is reclaimed" in caplog.text


async def test_a_snapshot_or_pin_stops_deletion(world: World) -> None:
    """This release cannot make them, so it must not delete what they need."""
    async with running(world.context(settings=keeping(0, 0))) as engine:
        await engine.committer.take_epoch()
        for _ in range(3):
            await replace_large(engine, b"large")
            await checkpointed_commit(engine)
            world.runtime.now_ns += 3600 * SECOND_NS
        world.store.write("pin/replica", b"{}")
        packs = keys(world, PACK_PREFIX)
        await round_with_commit(engine)
        assert keys(world, PACK_PREFIX) == packs
        world.store.delete(["pin/replica"])
        await round_with_commit(engine)
        assert len(keys(world, PACK_PREFIX)) < len(packs)


async def test_orphan_packs_go_only_when_their_writer_is_over(world: World) -> None:
    """A pack that no commit names yet may be the one that is being uploaded."""
    async with running(world.context(settings=keeping(0, 0, grace_s=900))) as engine:
        await engine.committer.take_epoch()
        orphan, current = (
            "pack/0/00000000000a0001-0123456789abcdef",
            "pack/1/" + "0" * 16 + "-" + "0" * 16,
        )
        for key in (orphan, current):
            world.store.write(key, b"x")
        await round_with_commit(engine)
        assert {orphan, current} <= set(keys(world))
        world.runtime.now_ns += 1000 * SECOND_NS
        await round_with_commit(engine)
        assert orphan not in keys(world)
        assert current in keys(world)


# --- single rules ------------------------------------------------------------------------


def head(dense_from: int, kept: tuple[int, ...] = ()) -> Head:
    """Return a head with this window."""
    return Head(
        volume_id="", seq=100, digest=b"", epoch=1, op_seq=0, chain=0, time_ns=0,
        dense_from=dense_from, kept=kept, fence_chain=0,
    )  # fmt: skip


def pack(first: int, dead: int | None, *, live: int = 0, size: int = 1 << 20) -> PackRow:
    """Return a row of the pack table."""
    return PackRow(first << 16, f"pack/1/{first}", "", size, live, first, dead)


@pytest.mark.parametrize(
    ("row", "window", "garbage"),
    [
        (pack(5, None, live=1), head(50), False),  # alive
        (pack(5, 20), head(50), True),  # first <= k < dead for no kept k
        (pack(5, 50), head(50), True),  # commit 50 itself does not need it
        (pack(5, 51), head(50), False),  # commit 50 does
        (pack(5, 20), head(50, (4,)), True),
        (pack(5, 20), head(50, (5,)), False),  # needed by the commit that made it
        (pack(5, 20), head(50, (19,)), False),
        (pack(5, 20), head(50, (20,)), True),
        (pack(5, 20), head(0), False),  # everything is kept as yet
    ],
)  # fmt: skip
async def test_a_pack_is_needed_from_its_first_commit_to_its_last(
    world: World, row: PackRow, window: Head, garbage: bool
) -> None:
    """A pack is needed by commit k if first seq <= k < dead seq."""
    async with running(world.context()) as engine:
        assert engine.reclaimer._is_garbage(row, window, 0) == garbage


async def test_the_grace_counts_from_the_dead_commit(world: World) -> None:
    """A reader that found the place a moment ago must still find the bytes."""
    async with running(world.context()) as engine:
        engine.reclaimer._commit_times = {20: 1000}
        assert not engine.reclaimer._is_garbage(pack(5, 20), head(50), 999)
        assert engine.reclaimer._is_garbage(pack(5, 20), head(50), 1000)


def test_victims_are_old_half_dead_packs_and_crowds_of_small_ones() -> None:
    """Young packs die by themselves; a few small ones are no burden."""
    size = 1 << 20
    half_dead = pack(1, None, live=size // 2 - 1)
    assert choose_victims([half_dead], 100) == [half_dead]
    assert choose_victims([pack(1, None, live=size // 2)], 100) == []
    assert choose_victims([pack(95, None, live=10)], 100) == []
    assert choose_victims([pack(1, 50)], 100) == []
    small = [pack(n, None, live=1000, size=1000) for n in range(1, 34)]
    assert choose_victims(small[:32], 100) == []
    assert choose_victims(small, 100) == small


def test_one_commit_moves_a_bounded_number_of_bytes() -> None:
    """Compaction must not turn a commit into an hour's upload."""
    size = 50 << 20
    rows = [pack(n, None, live=20 << 20, size=size) for n in range(1, 9)]
    chosen = choose_victims(rows, 100)
    assert 0 < sum(row.live_bytes for row in chosen) <= MOVE_BYTES_MAX


async def test_compaction_moves_what_lives_and_the_old_pack_dies(world: World) -> None:
    """Half-dead packs are emptied by the next commit; their files read as before."""
    async with running(world.context(settings=keeping(0, 0))) as engine:
        await engine.committer.take_epoch()
        files = {b"f%d" % n: os.urandom(200_000) for n in range(5)}
        for name, data in files.items():
            await write_file(engine, name, data)
        await engine.committer.commit_once()
        for name in [*files][:3]:
            await engine.filesystem.unlink(1, name, ROOT)
            del files[name]
        while (dead := engine.filesystem.handles.next_dead_nowait()) is not None:
            await engine.filesystem._reap(engine.state, dead)
        for number in range(10):
            await write_file(engine, b"tick%d" % number, b"t")
            await engine.committer.commit_once()
        old = [p for p in engine.reclaimer._packs() if p.first_seq == 2]
        assert old
        assert all(row.live_bytes == 0 and row.dead_seq for row in old)
        for name, data in files.items():
            assert await read_file(engine, name) == data
    async with running(world.context("fresh"), takeover=True) as other:
        for name, data in files.items():
            assert await read_file(other, name) == data


async def test_a_fence_that_names_many_kept_commits_is_still_a_fence(world: World) -> None:
    """Its list makes it larger than most commits; it must not be taken for one."""
    async with running(world.context(settings=keeping(0, 0))) as engine:
        kept = tuple(range(100, 100 + KEPT_MAX))
        footer = engine.publisher.footer(epoch=1, chain=1, op_seq=0, dense_from=9_000, kept=kept)
        world.store.write(log_key(1), encode_footer(footer))
        window = head(9_000, kept)
        assert [*engine.reclaimer._old_commits(window, set())] == []


async def test_no_more_commits_are_kept_than_a_footer_can_name(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A footer that cannot be written would stop every commit from then on."""
    monkeypatch.setattr("s3fs_banyan.commit.reclaim.KEPT_MAX", 5)
    async with running(world.context(settings=keeping(0, 10**6))) as engine:
        await engine.committer.take_epoch()
        reclaimer = engine.reclaimer
        now = world.runtime.now_ns
        reclaimer._verified = set(range(20))
        reclaimer._commit_times = {seq: now - (20 - seq) * 3600 * SECOND_NS for seq in range(20)}
        reclaimer._dense_from = 20
        assert await reclaimer._choose_kept([*range(20)], now) == (15, 16, 17, 18, 19)


async def test_a_small_commit_that_rotted_stops_no_reclaim(world: World) -> None:
    """It may be a fence, so it stays; everything else below the window goes all the same."""
    async with running(world.context(settings=keeping(0, 0))) as engine:
        await engine.committer.take_epoch()
        rotten = log_key(engine.state.committed.head.seq)
        data = bytearray(world.store.read(rotten))
        data[len(data) // 2] ^= 1
        world.store.write(rotten, bytes(data))
        for _ in range(3):
            await replace_large(engine, b"large")
            await checkpointed_commit(engine)
            world.runtime.now_ns += 3600 * SECOND_NS
        assert len(keys(world, PACK_PREFIX)) == 3
        for _ in range(3):
            await round_with_commit(engine)
            await engine.checkpointer.write_now()
            world.runtime.now_ns += 3600 * SECOND_NS
        assert len(keys(world, PACK_PREFIX)) == 1
        assert rotten in keys(world)
