"""A read-only mount beside a writer: what calls see while it follows, and what stops it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest
import trio
import trio.testing

from s3fs_banyan import __version__
from s3fs_banyan.app import follower as follower_module
from s3fs_banyan.app.build import connect
from s3fs_banyan.app.engine import Engine
from s3fs_banyan.app.follower import Follower, run_read_only_mount
from s3fs_banyan.app.request import MountRequest
from s3fs_banyan.app.volume import make_volume
from s3fs_banyan.commit.log_store import CommitLog
from s3fs_banyan.config.settings import load_config
from s3fs_banyan.errors import DataError, InputOutput, Unavailable
from s3fs_banyan.format.keys import PACK_PREFIX, checkpoint_piece_key, log_key
from s3fs_banyan.model import SetAttributes
from s3fs_banyan.observe.metrics import Metrics
from s3fs_banyan.remote.base import RemoteFileSystem
from s3fs_banyan.remote.memory import MemoryStore
from s3fs_banyan.runtime import RealRuntime
from tests.unit.engine_kit import (
    SECOND_NS,
    VOLUME,
    World,
    read_file,
    running,
    write_file,
)
from tests.unit.test_commit_reclaim import (
    checkpointed_commit,
    keeping,
    keys,
    replace_large,
    round_with_commit,
)

pytestmark = pytest.mark.allow_log_warnings


class HookedStore:
    """A store; something may happen before it answers, in the thread that asks."""

    def __init__(self, inner: MemoryStore) -> None:
        self.inner = inner
        self.before: Callable[[str, str], None] = lambda verb, path: None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # whatever the store has
        return getattr(self.inner, name)

    def read(self, path: str, **options: Any) -> Any:  # noqa: ANN401
        self.before("read", path)
        return self.inner.read(path, **options)

    def list(self, prefix: str, **options: Any) -> Any:  # noqa: ANN401
        self.before("list", prefix)
        return self.inner.list(prefix, **options)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A store and a writer's machine."""
    return World(tmp_path)


@pytest.fixture
def store(world: World) -> HookedStore:
    """The store as the follower reaches it."""
    return HookedStore(world.store)


def request_for(directory: Path) -> MountRequest:
    """Return what a read-only mount in `directory` is asked for."""
    root = directory / "follower"
    root.mkdir(exist_ok=True)
    return MountRequest(
        url="memory://",
        mountpoint=directory / "mountpoint",
        config=load_config(None, {}),
        cache_dir=root,
    )


@contextmanager
def following(
    world: World, store: RemoteFileSystem | HookedStore | None = None
) -> Iterator[Follower]:
    """Open a follower of the world's volume."""
    request = request_for(world.root)
    assert request.cache_dir is not None
    reached: Any = store or world.store
    follower = Follower(request, reached, VOLUME, request.cache_dir, None, Metrics())
    try:
        yield follower
    finally:
        follower.close()


async def bytes_of(follower: Follower, name: bytes) -> bytes:
    """Return the bytes of a file as the follower gives them."""
    attributes = follower.filesystem.lookup(1, name)
    return bytes(await follower.filesystem.read(attributes.ino, 0, attributes.size))


def chunks_of(follower: Follower, name: bytes) -> list[int]:
    """Return the chunks that a file is made of."""
    ino = follower.filesystem.lookup(1, name).ino
    return [extent.chunk for extent in follower.state.extents.overlapping(ino, 0, 1 << 40)]


async def commit_file(engine: Engine, name: bytes, data: bytes) -> int:
    """Write a file and commit it; returns the commit's number."""
    await write_file(engine, name, data)
    await engine.committer.commit_once()
    return engine.state.committed.head.seq


async def replace_bytes(engine: Engine, ino: int, data: bytes) -> None:
    """Cut a file to nothing and write it anew, each a commit of its own."""
    engine.state.append(SetAttributes(ino, None, None, None, 0, None, 7, 7), 0)
    await engine.committer.commit_once()
    await engine.filesystem.write(ino, 0, data)
    await engine.committer.commit_once()


def rot(store: MemoryStore, key: str) -> None:
    """Flip a bit of an object."""
    data = bytearray(store.read(key))
    data[-300] ^= 1
    store.write(key, bytes(data))


# --- one at a time, and as a whole -----------------------------------------------------------


async def test_two_who_follow_at_once_take_turns(world: World, store: HookedStore) -> None:
    """The poll, and `sync` of a person: they share a connection and the scratch files."""
    inside: list[str] = []
    most = 0

    def note(verb: str, path: str) -> None:
        nonlocal most
        inside.append(path)
        most = max(most, len(inside))
        trio.from_thread.run(trio.testing.wait_all_tasks_blocked, 0.001)
        inside.remove(path)

    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        with following(world, store) as follower:
            for number in range(3):
                await commit_file(engine, b"f%d" % number, os.urandom(1000))
            store.before = note
            async with trio.open_nursery() as nursery:
                nursery.start_soon(follower.follow)
                nursery.start_soon(follower.follow)
            assert most == 1
            assert follower.last_error == ""
            assert follower.state.head.seq == engine.state.committed.head.seq


async def test_a_call_never_sees_the_middle_of_a_step(world: World, store: HookedStore) -> None:
    """Names and sizes of one commit with the extents of another are zeros in a file."""
    seen: list[bytes] = []
    asked: list[str] = []
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        ino = await write_file(engine, b"a", b"A" * 5000)
        await engine.committer.commit_once()
        with following(world, store) as follower:
            assert await bytes_of(follower, b"a") == b"A" * 5000
            await replace_bytes(engine, ino, b"B" * 5000)
            last = log_key(engine.state.committed.head.seq)

            def look(verb: str, path: str) -> None:
                if path == last and not asked:
                    asked.append(path)
                    seen.append(trio.from_thread.run(bytes_of, follower, b"a"))

            store.before = look
            await follower.follow()
            assert seen == [b"A" * 5000]
            assert await bytes_of(follower, b"a") == b"B" * 5000


async def test_a_read_that_a_step_overtakes_is_of_one_state(
    world: World, store: HookedStore
) -> None:
    """Its bytes are those before the step or those behind it."""
    old, new = os.urandom(3 << 20), os.urandom(3 << 20)
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        ino = await write_file(engine, b"a", old)
        await engine.committer.commit_once()
        with following(world, store) as follower:
            await replace_bytes(engine, ino, new)
            steps = 0

            def step(verb: str, path: str) -> None:
                nonlocal steps
                if path.startswith(PACK_PREFIX) and not steps:
                    steps += 1
                    trio.from_thread.run(follower.follow)

            store.before = step
            assert await bytes_of(follower, b"a") in {old, new}
            assert steps == 1
            assert follower.state.head.seq == engine.state.committed.head.seq


async def test_a_long_way_is_gone_in_steps(
    world: World, store: HookedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is applied before calls see it lies in the WAL twice."""
    monkeypatch.setattr(follower_module, "_COMMITS_MAX", 2)
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        with following(world, store) as follower:
            begin = follower.state.head.seq
            commits = [await commit_file(engine, b"f%d" % number, b"x") for number in range(5)]
            shown: list[int] = []
            store.before = lambda verb, path: shown.append(follower.state.head.seq)
            await follower.follow()
            assert sorted(set(shown)) == [begin, begin + 2, begin + 4]
            assert follower.state.head.seq == commits[-1]


async def test_what_was_applied_before_a_failure_is_seen(world: World, store: HookedStore) -> None:
    """A store that goes away on a long way must not hide what has come."""
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        with following(world, store) as follower:
            come = await commit_file(engine, b"a", b"A")
            last = log_key(await commit_file(engine, b"b", b"B"))

            def be_away(verb: str, path: str) -> None:
                if path == last:
                    raise Unavailable("no route to the store")

            store.before = be_away
            await follower.follow()
            assert not follower.online
            assert follower.state.head.seq == come
            assert await bytes_of(follower, b"a") == b"A"


async def test_the_wal_does_not_grow_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state that is always open would never let it begin anew, and fill the disk."""
    monkeypatch.setattr(follower_module, "_WAL_PAGES_MAX", 16)
    sizes = []
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        with following(world) as follower:
            wal = follower.committed.path.with_name(f"{follower.committed.path.name}-wal")
            for number in range(60):
                await commit_file(engine, b"f%d" % number, b"x")
                await follower.follow()
                sizes.append(wal.stat().st_size)
    assert max(sizes[30:]) == max(sizes[:30])


# --- what stops it for a while -----------------------------------------------------------------


def _fail(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("place", "error"),
    [
        (
            "s3fs_banyan.commit.log_store.Path.write_bytes",
            OSError(errno.ENOSPC, "No space left on device"),
        ),
        ("s3fs_banyan.meta.committed.apply_rows", apsw.FullError("database or disk is full")),
        ("s3fs_banyan.meta.committed.apply_rows", apsw.IOError("disk I/O error")),
        ("s3fs_banyan.meta.committed.apply_rows", apsw.CorruptError("malformed")),
        ("s3fs_banyan.meta.committed.apply_rows", apsw.ReadOnlyError("a read-only disk")),
        ("s3fs_banyan.meta.committed.open_database", apsw.CantOpenError("unable to open")),
    ],
)
async def test_a_local_disk_that_refuses_is_waited_out(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    place: str,
    error: Exception,
) -> None:
    """It must not end the mount: what was seen last is served, and each reason is logged once."""
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await commit_file(engine, b"a", b"A" * 5000)
        with following(world) as follower:
            before = follower.state.head.seq
            seq = await commit_file(engine, b"b", b"B" * 5000)
            with monkeypatch.context() as patch:
                patch.setattr(place, _fail(error))
                for _ in range(3):
                    await follower.follow()
            assert follower.state.head.seq == before
            assert follower.online
            assert follower.last_error
            told = [r for r in caplog.records if "cannot be followed" in r.getMessage()]
            assert len(told) == 1
            assert await bytes_of(follower, b"a") == b"A" * 5000
            assert not list(world.root.glob("follower/*.read*"))
            await follower.follow()
            assert (follower.state.head.seq, follower.last_error) == (seq, "")
            assert await bytes_of(follower, b"b") == b"B" * 5000


@pytest.mark.parametrize("error", [apsw.FullError("full"), apsw.IOError("disk I/O error")])
async def test_a_disk_that_refuses_a_checkpoint_is_waited_out(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
    error: Exception,
) -> None:
    """The state in use stays as it is, however often the next one cannot be made beside it."""
    del autojump_clock
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await commit_file(engine, b"a", b"A" * 5000)
        with following(world) as follower:
            rot(world.store, log_key(await commit_file(engine, b"b", b"B" * 5000)))
            seq = await checkpointed_commit(engine)
            with monkeypatch.context() as patch:
                patch.setattr("s3fs_banyan.meta.committed.open_database", _fail(error))
                for _ in range(3):
                    await follower.follow()
                    assert follower.last_error
                    assert follower.committed.path.exists()
                    await trio.sleep(3600)
            assert await bytes_of(follower, b"a") == b"A" * 5000
            await follower.follow()
            assert (follower.state.head.seq, follower.last_error) == (seq, "")
            assert await bytes_of(follower, b"b") == b"B" * 5000
            assert list(world.root.glob("follower/follower-?.db")) == [follower.committed.path]


# --- a log that cannot be followed ---------------------------------------------------------------


async def test_a_newer_checkpoint_leads_past_a_damaged_commit(world: World) -> None:
    """Else one rotten object holds a follower for ever, though a new mount would go on."""
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        with following(world) as follower:
            before = follower.state.head.seq
            rot(world.store, log_key(await commit_file(engine, b"a", b"A" * 5000)))
            await commit_file(engine, b"b", b"B" * 5000)
            await follower.follow()
            assert follower.state.head.seq == before
            assert "damaged" in follower.last_error
            await engine.checkpointer.write_now()
            seq = await commit_file(engine, b"c", b"C" * 5000)
            await follower.follow()
            assert (follower.state.head.seq, follower.last_error) == (seq, "")
            for name, data in ((b"a", b"A"), (b"b", b"B"), (b"c", b"C")):
                assert await bytes_of(follower, name) == data * 5000


async def test_what_does_not_help_is_not_loaded_again_and_again(
    world: World, store: HookedStore, mock_clock: trio.testing.MockClock
) -> None:
    """A checkpoint may be large, and what is read of the store is paid for."""
    loads: list[str] = []
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        with following(world, store) as follower:
            before = follower.state.head.seq
            rot(world.store, log_key(await commit_file(engine, b"a", b"A" * 5000)))
            number = await checkpointed_commit(engine)
            manifest = CommitLog(world.store, world.root, None).read_manifest(number)
            piece = checkpoint_piece_key(manifest.pieces[0])
            whole = world.store.read(piece)
            rot(world.store, piece)
            store.before = lambda verb, path: loads.append(path) if path == piece else None
            for _ in range(5):
                await follower.follow()
            assert len(loads) == 1
            assert "piece" in follower.last_error
            assert follower.state.head.seq == before
            world.store.write(piece, whole)
            mock_clock.jump(60)
            await follower.follow()
            assert (follower.state.head.seq, follower.last_error) == (number, "")


async def test_bytes_of_a_history_that_was_dropped_are_forgotten(
    world: World, tmp_path: Path
) -> None:
    """A bucket that was rolled back: chunks of the new history have the numbers of the old one."""
    other = World(tmp_path / "other")
    other.root.mkdir()
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await commit_file(engine, b"a", b"A" * 5000)
    with following(world) as follower:
        assert await bytes_of(follower, b"a") == b"A" * 5000
        old = chunks_of(follower, b"a")
        async with running(other.context()) as engine:
            await engine.committer.take_epoch()
            await commit_file(engine, b"a", b"B" * 5000)
            await commit_file(engine, b"b", b"b")
            seq = await checkpointed_commit(engine)
        world.store.delete(keys(world))
        for key in keys(other):
            world.store.write(key, bytes(other.store.read(key)))
        await follower.follow()
        assert follower.state.head.seq == seq
        assert chunks_of(follower, b"a") == old
        assert await bytes_of(follower, b"a") == b"B" * 5000


async def slept(engine: Engine, world: World) -> None:
    """Let the writer go on for hours, and reclaim what nobody needs any more."""
    for _ in range(6):
        await replace_large(engine, b"large")
        await checkpointed_commit(engine)
        world.runtime.now_ns += 3 * 3600 * SECOND_NS
        await round_with_commit(engine)
        await engine.checkpointer.write_now()
        world.runtime.now_ns += 3 * 3600 * SECOND_NS
        await round_with_commit(engine)


@pytest.mark.parametrize("fails", [0, 2])
async def test_a_read_of_what_was_reclaimed_meanwhile_follows_first(
    world: World, store: HookedStore, autojump_clock: trio.testing.MockClock, fails: int
) -> None:
    """A laptop that slept for hours: nothing is damaged, so no EIO, and nobody is paged.

    Also if the store is away for a moment when it is asked what is new.
    """
    del autojump_clock
    left = [True] * fails

    def be_away(verb: str, path: str) -> None:
        if verb == "list" and left:
            left.pop()
            raise Unavailable("no route to the store")

    async with running(world.context(settings=keeping(3600, 0, 900))) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"b", os.urandom(300_000))
        await write_file(engine, b"large", os.urandom(600_000))
        await checkpointed_commit(engine)
        with following(world, store) as follower:
            want = await read_file(engine, b"b")
            place = follower.state.place(chunks_of(follower, b"b")[0])
            await slept(engine, world)
            assert place is not None
            assert place.key not in keys(world)
            store.before = be_away
            assert await bytes_of(follower, b"b") == want
            assert not left
            assert follower.metrics.corruption_detected("object").value == 0
            assert follower.state.head.seq == engine.state.committed.head.seq


async def test_what_is_really_missing_is_damage(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """EIO and an alert, when the newest state says that it should be there."""
    del autojump_clock
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await commit_file(engine, b"a", os.urandom(1 << 20))
        with following(world) as follower:
            world.store.delete(keys(world, PACK_PREFIX))
            with pytest.raises(InputOutput):
                await bytes_of(follower, b"a")
            assert follower.metrics.corruption_detected("object").value == 1


# --- beginning, and being watched ----------------------------------------------------------------


async def test_what_a_killed_follower_left_is_removed(world: World) -> None:
    """A checkpoint may be large, and the next life has other names."""
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await commit_file(engine, b"a", b"A")
    root = world.root / "follower"
    root.mkdir()
    left = [
        root / name
        for name in (
            "checkpoint-7.read",
            "delta-8.read",
            "placements-8.read",
            "follower-0.db",
            "follower-1.db",
            "follower-1.db-wal",
        )
    ]
    for path in left:
        path.write_bytes(b"x" * 1000)
    with following(world) as follower:
        assert {path for path in left if path.exists()} == {follower.committed.path}
        assert await bytes_of(follower, b"a") == b"A"


async def test_a_damaged_commit_leaves_no_scratch_file(world: World) -> None:
    """It is tried again every few seconds, and there may be many."""

    def foreign(*_: object) -> None:
        raise DataError("holds a trigger")

    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        with following(world) as follower, pytest.MonkeyPatch.context() as patch:
            await commit_file(engine, b"a", b"A" * 5000)
            patch.setattr("s3fs_banyan.commit.log_store.check_commit", foreign)
            await follower.follow()
            assert "trigger" in follower.last_error
            assert not list(world.root.glob("follower/*.read*"))


def test_its_metrics_tell_of_the_store_and_the_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gauge that nobody sets is 0: the alerts for an absent store and a full disk would fire."""
    url = f"file://{tmp_path}/store"
    config = load_config(None, {})
    store = connect(url, config, create=True)
    make_volume(store, VOLUME, RealRuntime())
    store.close()
    shown: list[str] = []

    async def run(request: MountRequest, follower: Follower, on_ready: object) -> None:
        await follower.follow()
        shown.extend(follower.metrics.render().splitlines())

    monkeypatch.setattr(follower_module, "_run", run)
    (tmp_path / "mountpoint").mkdir()
    run_read_only_mount(
        MountRequest(
            url=url,
            mountpoint=tmp_path / "mountpoint",
            config=config,
            cache_dir=tmp_path / "cache",
        ),
        lambda: None,
    )
    values = dict(line.rsplit(" ", 1) for line in shown if not line.startswith("#"))
    assert values["s3fs_banyan_store_reachable"] == "1.0"
    assert values[f's3fs_banyan_build_info{{version="{__version__}"}}'] == "1.0"
    assert float(values["s3fs_banyan_local_disk_free_bytes"]) > 0
    requests = 's3fs_banyan_store_requests_total{outcome="ok",verb="list"}'
    assert float(values[requests]) > 0


async def test_its_gauges_follow_the_volume(world: World, store: HookedStore) -> None:
    """Who watches several machines sees which one is behind, and which has lost the store."""

    def be_away(verb: str, path: str) -> None:
        raise Unavailable("no route to the store")

    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        with following(world, store) as follower:
            seq = await commit_file(engine, b"a", b"A")
            await follower.follow()
            metrics = follower.metrics
            assert metrics.volume_seq.value == seq
            assert metrics.volume_epoch.value == engine.state.committed.head.epoch
            assert metrics.store_reachable.value == 1
            store.before = be_away
            await follower.follow()
            assert metrics.store_reachable.value == 0
            assert not follower.online
