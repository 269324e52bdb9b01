"""Recovery: each row of the table in architecture, section 2, and what must refuse to go on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import pytest
import trio

from s3fs_banyan.app.engine import Engine
from s3fs_banyan.commit.checkpointer import Checkpointer
from s3fs_banyan.commit.log_store import CommitLog, StoredCommit
from s3fs_banyan.errors import (
    BanyanFSError,
    Corrupt,
    ExitCode,
    InputOutput,
    ObjectMissing,
    Refused,
    UnsupportedVersion,
)
from s3fs_banyan.format.checkpoint import encode_manifest
from s3fs_banyan.format.keys import (
    CHECKPOINT_PIECE_PREFIX,
    checkpoint_key,
    checkpoint_piece_key,
    log_key,
)
from s3fs_banyan.format.record import SEGMENT_HEADER_BYTES
from s3fs_banyan.meta import database
from s3fs_banyan.meta.committed import create_committed
from s3fs_banyan.meta.tables import STATE_COLUMNS
from tests.unit.engine_kit import VOLUME, World, names, read_file, running, write_file
from tests.unit.test_review_recovery import away

pytestmark = pytest.mark.allow_log_warnings


@pytest.fixture
def world(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> World:
    """A world of one machine, a."""
    del autojump_clock
    return World(tmp_path)


async def fill(world: World, *, epochs: bool = True) -> None:
    """Commit file a, then write file b and leave it in the journal, synced."""
    async with running(world.context()) as engine:
        if epochs:
            await engine.committer.take_epoch()
        await write_file(engine, b"a", b"committed")
        await engine.committer.commit_once()
        await write_file(engine, b"b", b"journaled")
        await engine.state.wait_durable()


def state_rows(engine: Engine) -> dict[str, list[tuple[object, ...]]]:
    """Return all tables of the state."""
    engine.state.live.end_transaction()
    run = engine.state.live._connection.execute
    return {t: run(f"SELECT * FROM {t}").fetchall() for t in STATE_COLUMNS}  # noqa: S608


async def test_same_boot_goes_on_from_live_db(world: World) -> None:
    """The daemon died: live.db and the journal behind its last operation."""
    await fill(world)
    async with running(world.context()) as engine:
        assert [await read_file(engine, n) for n in (b"a", b"b")] == [b"committed", b"journaled"]


async def test_another_boot_folds_the_journal_again(world: World) -> None:
    """After a power cut live.db may be ahead of the bytes that it points to."""
    await fill(world)
    async with running(world.context()) as engine:
        before = state_rows(engine)
    live = world.root / "a" / "live.db"
    connection = apsw.Connection(str(live))
    connection.execute("UPDATE inode SET size = 77").fetchall()
    connection.close()
    async with running(world.context(boot="boot-2")) as engine:
        assert state_rows(engine) == before
        assert await read_file(engine, b"b") == b"journaled"


@pytest.mark.parametrize("damage", ["garbage", "empty", "level", "schema"])
async def test_a_live_db_in_doubt_is_made_again(world: World, damage: str) -> None:
    """It is never synced and never trusted: every doubt ends in a fold."""
    await fill(world)
    live = world.root / "a" / "live.db"
    for suffix in ("-wal", "-shm"):
        live.with_name(live.name + suffix).unlink(missing_ok=True)
    if damage == "garbage":
        live.write_bytes(b"garbage" * 5000)
    elif damage == "empty":
        live.write_bytes(b"")
    else:
        connection = apsw.Connection(str(live))
        sql = "UPDATE local SET value = '99' WHERE name = 'level'"
        connection.execute(sql if damage == "level" else "DROP TABLE inode").fetchall()
        connection.close()
    async with running(world.context()) as engine:
        assert [await read_file(engine, n) for n in (b"a", b"b")] == [b"committed", b"journaled"]


async def test_committed_db_in_doubt_comes_from_the_store(world: World) -> None:
    """The store holds it row for row; the journal behind its cut is still ours."""
    await fill(world)
    path = world.root / "a" / "committed.db"
    path.write_bytes(b"garbage" * 1000)
    async with running(world.context(boot="boot-2")) as engine:
        assert [await read_file(engine, n) for n in (b"a", b"b")] == [b"committed", b"journaled"]


async def test_a_committed_db_that_cannot_be_opened_for_a_moment_is_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No doubt about its bytes: while the store is away it is all that the mount has."""
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"a", b"committed")
        await engine.committer.commit_once()
    _, store = away(world.store)
    real = database.open_database

    def open_database(path: Path, **options: Any) -> apsw.Connection:  # noqa: ANN401
        if path.name == "committed.db":
            raise apsw.CantOpenError("unable to open database file")
        return real(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr("s3fs_banyan.meta.committed.open_database", open_database)
        with contextlib.suppress(BanyanFSError, apsw.Error):
            async with running(world.context(store=store)):
                pass
    async with running(world.context(store=store)) as engine:
        assert names(engine) == [b"a"]


@pytest.mark.allow_log_warnings
@pytest.mark.parametrize("answers", [True, False], ids=["store there", "store away"])
async def test_a_committed_db_that_cannot_be_read_is_made_again_from_the_store(
    world: World, monkeypatch: pytest.MonkeyPatch, *, answers: bool
) -> None:
    """The store has all of it; while that is away the mount is refused, and the file stays."""
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"a", b"committed")
        await engine.committer.commit_once()
    path = world.root / "a" / "committed.db"
    real, bad = database.open_database, path.stat().st_ino

    def open_database(path: Path, **options: Any) -> apsw.Connection:  # noqa: ANN401
        if path.name == "committed.db" and path.exists() and path.stat().st_ino == bad:
            raise apsw.IOError("disk I/O error")
        return real(path, **options)

    monkeypatch.setattr("s3fs_banyan.meta.committed.open_database", open_database)
    with path.open("rb"):  # its inode number is not used again
        if answers:
            async with running(world.context(boot="boot-2")) as engine:
                assert names(engine) == [b"a"]
            return
        with pytest.raises(Refused, match="cannot be read"):
            async with running(world.context(store=away(world.store)[1], boot="boot-2")):
                pass
        assert path.stat().st_ino == bad


async def test_a_lost_disk_gives_the_last_commit(world: World) -> None:
    """What was acknowledged by the store only, exactly."""
    await fill(world)
    async with running(world.context("fresh"), takeover=True) as engine:
        assert names(engine) == [b"a"]
        assert await read_file(engine, b"a") == b"committed"


async def test_replay_and_fold_give_what_live_had(world: World) -> None:
    """Same boot, another boot, committed.db rebuilt: one and the same state."""
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        for number in range(30):
            await write_file(engine, b"f%d" % number, bytes([number]) * (number * 500 + 1))
            if number % 11 == 0:
                await engine.committer.commit_once()
        want = state_rows(engine)
    for boot in ("boot-1", "boot-2", "boot-3"):
        async with running(world.context(boot=boot)) as engine:
            assert state_rows(engine) == want
            for number in range(30):
                data = bytes([number]) * (number * 500 + 1)
                assert await read_file(engine, b"f%d" % number) == data


# --- rot, against a power cut ------------------------------------------------------------


def _segments(world: World) -> Iterator[Path]:
    yield from sorted((world.root / "a" / "journal").glob("segment-*"))


def _flip(world: World, needle: bytes) -> None:
    """Flip a bit in the only journal segment that holds `needle`."""
    for path in _segments(world):
        data = bytearray(path.read_bytes())
        at = data.find(needle, SEGMENT_HEADER_BYTES)
        if at >= 0:
            data[at] ^= 1
            path.write_bytes(bytes(data))
            return
    raise AssertionError(f"no segment holds {needle!r}")


async def _rotten(world: World) -> None:
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"a", b"committed")
        await engine.committer.commit_once()
        await write_file(engine, b"b", b"will rot away")
        await engine.state.wait_durable()
        for number in range(5):
            await write_file(engine, b"c%d" % number, b"written behind it")
            await engine.state.wait_durable()
    _flip(world, b"will rot away")


async def test_rot_below_a_synced_mark_is_no_power_cut(world: World) -> None:
    """Records that were safely on the disk are missing: refuse, and keep everything."""
    await _rotten(world)
    before = {path.name: path.read_bytes() for path in _segments(world)}
    for _ in range(2):
        with pytest.raises(Corrupt, match="--accept-loss"):
            async with running(world.context(boot="boot-2")):
                pass
    assert {path.name: path.read_bytes() for path in _segments(world)} == before


async def test_accepted_loss_is_accepted_once(world: World) -> None:
    """After --accept-loss the next mount must not refuse again, nor lose what came since."""
    await _rotten(world)
    async with running(world.context(boot="boot-2"), accept_loss=True) as engine:
        assert names(engine)[0] == b"a"
        assert b"c0" not in names(engine)
        await write_file(engine, b"d", b"after the loss")
        await engine.state.wait_durable()
    async with running(world.context(boot="boot-3")) as engine:
        assert await read_file(engine, b"d") == b"after the loss"


async def test_unsynced_records_torn_by_a_power_cut_are_dropped(world: World) -> None:
    """Nothing promised is missing: the prefix goes on, without a question."""
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"a", b"safe")
        await engine.state.wait_durable()
        await write_file(engine, b"b", b"torn by the cut")
    _flip(world, b"torn by the cut")
    async with running(world.context(boot="boot-2")) as engine:
        assert await read_file(engine, b"a") == b"safe"
        assert await read_file(engine, b"b") == b""
        await write_file(engine, b"c", b"new")
    async with running(world.context(boot="boot-3")) as engine:
        assert names(engine) == [b"a", b"b", b"c"]
        assert await read_file(engine, b"c") == b"new"


async def test_a_rotten_record_is_not_sealed(world: World) -> None:
    """A bit that rots in the journal must not get a fresh, valid chunk checksum."""
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"good", b"stays as it is")
        await write_file(engine, b"bad", b"will rot away")
        await engine.state.wait_durable()
        _flip(world, b"will rot away")
        await engine.committer.commit_once()
    async with running(world.context("fresh"), takeover=True) as other:
        assert await read_file(other, b"good") == b"stays as it is"
        attributes = other.filesystem.lookup(1, b"bad")
        with pytest.raises(InputOutput, match="neither here nor in the store"):
            await other.filesystem.read(attributes.ino, 0, 100)


# --- checkpoints -------------------------------------------------------------------------


async def _checkpointed(world: World) -> CommitLog:
    """Two checkpoints, at commits 2 and 3, and one commit behind them."""
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        for name in (b"one", b"two"):
            await write_file(engine, name, name)
            await engine.committer.commit_once()
            await engine.checkpointer.write_now()
        await write_file(engine, b"three", b"three")
        await engine.committer.commit_once()
    return CommitLog(world.store, world.root, None)


async def test_a_cold_start_uses_the_newest_checkpoint(world: World) -> None:
    """Only commits behind it are read: the older ones may be gone."""
    log = await _checkpointed(world)
    assert log.checkpoints() == [3, 2]
    world.store.delete([log_key(1), log_key(2)])
    async with running(world.context("fresh"), takeover=True) as other:
        assert names(other) == [b"one", b"two", b"three"]


@pytest.mark.parametrize("what", ["manifest", "piece", "missing piece", "manifest of another"])
async def test_a_damaged_checkpoint_falls_back_to_the_older_one(world: World, what: str) -> None:
    """Every checkpoint is verified whole before it becomes the state."""
    log = await _checkpointed(world)
    newest, older = log.read_manifest(3), log.read_manifest(2)
    own_piece = next(name for name in newest.pieces if name not in older.pieces)
    if what == "missing piece":
        world.store.delete([checkpoint_piece_key(own_piece)])
    elif what == "manifest of another":
        world.store.write(checkpoint_key(3), world.store.read(checkpoint_key(2)))
    else:
        key = checkpoint_key(3) if what == "manifest" else checkpoint_piece_key(own_piece)
        data = bytearray(world.store.read(key))
        data[len(data) // 2] ^= 1
        world.store.write(key, bytes(data))
    async with running(world.context("fresh"), takeover=True) as other:
        assert names(other) == [b"one", b"two", b"three"]


async def test_a_checkpoint_that_turns_out_to_be_another_leaves_nothing_behind(
    world: World,
) -> None:
    """The state is made from the log then, in the place where the wrong one lies already."""
    log = await _checkpointed(world)
    wrong = replace(log.read_manifest(3), digest="00" * 32)
    world.store.write(checkpoint_key(3), encode_manifest(wrong))
    world.store.delete([checkpoint_key(2)])
    async with running(world.context("fresh"), takeover=True) as other:
        assert names(other) == [b"one", b"two", b"three"]


async def test_a_checkpoint_of_a_newer_release_is_not_passed_over(world: World) -> None:
    """Going on from an older one would fold commits that this release cannot read either."""
    await _checkpointed(world)
    world.store.write(checkpoint_key(9), b'{"kind": "checkpoint", "version": 2, "checksum": "x"}\n')
    with pytest.raises(UnsupportedVersion):
        async with running(world.context("fresh"), takeover=True):
            pass


async def test_without_any_usable_checkpoint_and_without_commit_1_nothing_is_made_up(
    world: World,
) -> None:
    """An empty volume in place of a damaged one would be the worst answer."""
    log = await _checkpointed(world)
    keys = [meta.path for meta in world.store.list(CHECKPOINT_PIECE_PREFIX)]
    world.store.delete([*keys, log_key(1)])
    with pytest.raises(ObjectMissing, match="no object checkpoint") as caught:
        log.load(world.root / "loaded.db", vfs=None, volume=VOLUME)
    assert caught.value.exit_code is ExitCode.DAMAGE


@pytest.mark.parametrize("moves", [1, 2, 3])
async def test_a_load_that_meets_a_reclaim_begins_again_at_the_newer_checkpoint(
    world: World, moves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it was about to read is gone, and nothing is wrong with the volume."""
    await _checkpointed(world)
    log = CommitLog(world.store, world.root, None)
    read, left = log.read, moves

    async def move_on() -> None:
        async with running(world.context(), takeover=True) as engine:
            await engine.committer.take_epoch()
            await write_file(engine, b"%d" % left, b"")
            await engine.committer.commit_once()
            await engine.checkpointer.write_now()
            await write_file(engine, b"behind-%d" % left, b"")
            await engine.committer.commit_once()
        gone = log.sequence_numbers(0)[:-1]
        world.store.delete([log_key(seq) for seq in gone])

    def read_late(seq: int) -> StoredCommit:
        nonlocal left
        if left:
            left -= 1
            trio.from_thread.run(move_on)
        return read(seq)

    monkeypatch.setattr(log, "read", read_late)
    load = partial(log.load, world.root / "loaded.db", vfs=None, volume=VOLUME)
    if moves == 3:
        with pytest.raises(ObjectMissing):
            await trio.to_thread.run_sync(load)
        return
    committed = await trio.to_thread.run_sync(load)
    assert committed.head.seq == max(log.sequence_numbers(0)) > max(log.checkpoints())
    committed.close()


async def test_pieces_that_did_not_change_are_not_sent_again(world: World) -> None:
    """A checkpoint of a large database costs what changed."""
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        committed = engine.state.committed
        copy = world.root / "copy.db"
        committed.copy_to(copy)
        log = CommitLog(world.store, world.root, None)
        known: set[str] = set()
        log.write_checkpoint(copy, committed.head, known)
        sent: list[str] = []
        original = world.store.write

        def count(path: str, data: bytes, **options: object) -> object:
            sent.append(path)
            return original(path, data, **options)  # type: ignore[arg-type]

        world.store.write = count  # type: ignore[method-assign, assignment]
        manifest = log.write_checkpoint(copy, committed.head, known)
        assert sent == [checkpoint_key(committed.head.seq)]
        assert b"".join(log.read_pieces(manifest)) == copy.read_bytes()


async def test_a_checkpointer_learns_what_the_store_has(world: World) -> None:
    """After a restart the window may rest on checkpoints of an earlier life."""
    await _checkpointed(world)
    async with running(world.context()) as engine:
        fresh = Checkpointer(engine.ctx, engine.state, CommitLog(world.store, world.root, None))
        await fresh.load()
        assert fresh.kept == [2, 3]


async def test_a_commit_that_does_not_follow_is_refused(world: World) -> None:
    """A log object in the wrong place must not be folded."""
    await _checkpointed(world)
    log = CommitLog(world.store, world.root, None)
    committed = create_committed(world.root / "x.db", vfs=None, volume=VOLUME)
    with pytest.raises(Corrupt, match="does not follow"):
        log.apply(committed, log.read(2), committed.head)
    world.store.write(log_key(4), world.store.read(log_key(3)))
    with pytest.raises(Corrupt, match="says that it is commit 3"):
        log.read(4)
    committed.close()
