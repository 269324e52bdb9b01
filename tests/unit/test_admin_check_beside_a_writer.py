"""The check beside a writer: what reclaim takes meanwhile is not missing, what is lost is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from s3fs_banyan.admin.check import Finding
from s3fs_banyan.app.engine import Engine
from s3fs_banyan.commit.log_store import CommitLog
from s3fs_banyan.errors import ObjectMissing
from s3fs_banyan.format.commit import decode_footer
from s3fs_banyan.format.keys import (
    CHECKPOINT_PREFIX,
    LOG_PREFIX,
    PACK_PREFIX,
    checkpoint_piece_key,
    log_key,
)
from tests.unit.check_kit import HOUR_NS, WatchedStore, check, make_volume
from tests.unit.engine_kit import World, running, write_file
from tests.unit.test_commit_reclaim import (
    checkpointed_commit,
    keeping,
    keys,
    replace_large,
    round_with_commit,
)

pytestmark = pytest.mark.allow_log_warnings


@pytest.fixture
def world(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> World:
    """A world whose clock a test moves."""
    del autojump_clock
    return World(tmp_path)


async def six_hours(engine: Engine, world: World) -> None:
    """All that was there but what lives, and the newest, is reclaimed."""
    for _ in range(2):
        await replace_large(engine, b"large")
        await checkpointed_commit(engine)
        world.runtime.now_ns += 3 * HOUR_NS
        await round_with_commit(engine)


async def check_beside(
    world: World, when: Callable[[str, str], bool], what: Callable[[], Awaitable[object]]
) -> list[Finding]:
    """Check in a thread; before each call for which `when` is true, `what` happens."""

    def before(verb: str, path: str) -> None:
        if when(verb, path):
            trio.from_thread.run(what)

    store = WatchedStore(world, before)
    return await trio.to_thread.run_sync(partial(check, world, store))


class Once:
    """True at the first call that `matches`."""

    def __init__(self, matches: Callable[[str, str], bool]) -> None:
        self._matches = matches
        self.is_over = False

    def __call__(self, verb: str, path: str) -> bool:
        if self.is_over or not self._matches(verb, path):
            return False
        self.is_over = True
        return True


class Nth:
    """True at call number `n`, counted from 0."""

    def __init__(self, n: int) -> None:
        self._left = n

    def __call__(self, verb: str, path: str) -> bool:
        self._left -= 1
        return self._left == -1

    @property
    def is_over(self) -> bool:
        """Whether there was such a call."""
        return self._left < 0


async def test_a_writer_at_any_moment_makes_no_finding(world: World) -> None:
    """A check that cries wolf beside a writer is not run again."""
    make_volume(world)
    async with running(world.context(settings=keeping(3600, 24 * 3600, 900))) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"small", b"s" * 3000)
        await six_hours(engine, world)
        for n in range(0, 1000, 2):
            now = Nth(n)
            assert await check_beside(world, now, partial(six_hours, engine, world)) == [], n
            if not now.is_over:
                break
        assert n > 40


async def test_what_is_lost_is_found_although_a_writer_goes_on(world: World) -> None:
    """To look again must not be to look away."""
    make_volume(world)
    async with running(world.context(settings=keeping(3600, 0, 900))) as engine:
        await engine.committer.take_epoch()
        await replace_large(engine, b"whole")
        await checkpointed_commit(engine)
        (pack,) = keys(world, PACK_PREFIX)
        await six_hours(engine, world)
        world.store.delete([pack])
        for n in range(0, 1000, 3):
            now = Nth(n)
            found = await check_beside(world, now, partial(six_hours, engine, world))
            assert [(f.kind, f.key) for f in found] == [("missing", pack)], n
            if not now.is_over:
                break
        assert n > 20


async def test_what_is_lost_between_the_list_and_its_reading_is_found(world: World) -> None:
    """Being listed proves nothing once it could not be read."""
    make_volume(world)
    async with running(world.context(settings=keeping(3600, 0, 900))) as engine:
        await engine.committer.take_epoch()
        await replace_large(engine, b"large")
        await checkpointed_commit(engine)
    (pack,) = keys(world, PACK_PREFIX)

    async def lose() -> None:
        world.store.delete([pack])

    found = await check_beside(world, Once(lambda verb, path: path == pack), lose)
    assert [(f.kind, f.key) for f in found] == [("missing", pack)]


async def test_a_checkpoint_goes_while_its_pieces_are_read(world: World) -> None:
    """Nothing needs it any more, so nothing is missing with it."""
    make_volume(world)
    async with running(world.context(settings=keeping(3600, 3600, 900))) as engine:
        await engine.committer.take_epoch()
        await six_hours(engine, world)
        first = keys(world, CHECKPOINT_PREFIX)[0]
        manifest = CommitLog(world.store, world.root, None).read_manifest(int(first[-20:]))
        piece = checkpoint_piece_key(manifest.pieces[0])
        seen: list[str] = []

        def is_second_reading(verb: str, path: str) -> bool:
            """The first is that of the state; later pieces follow a manifest of this check."""
            seen.append(path)
            return verb == "read" and path == piece and seen.count(first) > 1

        now = Once(is_second_reading)
        found = await check_beside(world, now, partial(six_hours, engine, world))
        assert now.is_over
        assert first not in keys(world)
        assert found == []


async def test_a_pack_comes_after_the_list_and_goes_before_the_end(world: World) -> None:
    """The state that was loaded needs it, the newest one does not."""
    make_volume(world)
    async with running(world.context(settings=keeping(3600, 0, 900))) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"small", b"s" * 3000)
        await checkpointed_commit(engine)
        come = Once(lambda verb, path: verb == "list" and path == CHECKPOINT_PREFIX)
        gone = Once(lambda verb, path: verb == "stat" and path.startswith(PACK_PREFIX))

        def when(verb: str, path: str) -> bool:
            return come(verb, path) or gone(verb, path)

        async def go_on() -> None:
            if gone.is_over:
                await six_hours(engine, world)
            else:
                await replace_large(engine, b"large")
                await engine.committer.commit_once()

        found = await check_beside(world, when, go_on)
        assert gone.is_over
        assert found == []


async def test_the_state_is_loaded_again_if_reclaim_took_what_it_is_made_of(world: World) -> None:
    """Each checkpoint that was listed is gone when it is read."""
    make_volume(world)
    async with running(world.context(settings=keeping(3600, 0, 900))) as engine:
        await engine.committer.take_epoch()
        await six_hours(engine, world)
        now = Once(lambda verb, path: verb == "read" and path.startswith(CHECKPOINT_PREFIX))
        assert await check_beside(world, now, partial(six_hours, engine, world)) == []
        assert now.is_over


async def test_a_state_that_reclaim_never_lets_be_loaded_is_no_finding(world: World) -> None:
    """What cannot be read is not judged: the check ends with the store's error."""
    make_volume(world)
    async with running(world.context(settings=keeping(3600, 0, 900))) as engine:
        await engine.committer.take_epoch()
        await six_hours(engine, world)

        def is_first_of_a_load(verb: str, path: str) -> bool:
            return verb == "read" and path.startswith(f"{CHECKPOINT_PREFIX}0")

        with pytest.raises(ObjectMissing):
            await check_beside(world, is_first_of_a_load, partial(six_hours, engine, world))


async def test_a_fence_that_the_list_passed_over_is_not_missing(world: World) -> None:
    """A listing takes a while: it may show a commit and not the fence before it."""
    make_volume(world)
    async with running(world.context(settings=keeping(0, 0))) as engine:
        await engine.committer.take_epoch()
        await six_hours(engine, world)
    async with running(world.context(settings=keeping(0, 0))) as engine:
        await engine.committer.take_epoch()
        fence = log_key(engine.state.committed.head.seq)
        await six_hours(engine, world)
    footer = decode_footer(world.store.read(keys(world, LOG_PREFIX)[-1]), "newest")
    assert fence < log_key(footer.dense_from)
    kept = world.store.read(fence)

    async def appear() -> None:
        world.store.write(fence, kept)

    world.store.delete([fence])
    now = Once(lambda verb, path: verb == "list" and path == CHECKPOINT_PREFIX)
    assert await check_beside(world, now, appear) == []
    assert now.is_over
    world.store.delete([fence])
    (found,) = check(world)
    first, _, last = found.key.partition("..")
    assert first <= fence <= last


async def test_a_newer_release_that_takes_over_is_told_as_the_state(world: World) -> None:
    """Its commit came after the list, so no object that was read explains the failure."""
    make_volume(world)
    async with running(world.context(settings=keeping(3600, 0, 900))) as engine:
        await engine.committer.take_epoch()
        await checkpointed_commit(engine)
    newest = keys(world, LOG_PREFIX)[-1]
    commit = bytearray(world.store.read(newest))
    commit[-12] = 99  # the version in its tail

    async def take_over() -> None:
        world.store.write(log_key(int(newest[-20:]) + 1), bytes(commit))

    now = Once(lambda verb, path: verb == "list" and path == CHECKPOINT_PREFIX)
    (found,) = await check_beside(world, now, take_over)
    assert (found.kind, found.key) == ("damaged", "state")
    assert "version 99" in found.why
