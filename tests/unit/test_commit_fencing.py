"""Who is the writer: fences, collisions, lost answers, former lives, histories that changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from s3fs_banyan.commit.fencing import Publisher
from s3fs_banyan.commit.log_store import CommitLog
from s3fs_banyan.errors import Fenced, ReadOnly, Refused, Unavailable
from s3fs_banyan.format.commit import NO_DIGEST, decode_footer, encode_footer
from s3fs_banyan.format.keys import log_key
from s3fs_banyan.remote.base import FileMeta
from s3fs_banyan.remote.memory import MemoryStore
from tests.unit.engine_kit import ROOT, World, names, read_file, running, write_file

pytestmark = pytest.mark.allow_log_warnings


class LosingStore(MemoryStore):
    """Loses answers: the effect takes place, the caller hears `Unavailable`."""

    def lose_answers_of(self, prefix: str, count: int, *, effect: bool = True) -> None:
        self._prefix, self._count, self._effect = prefix, count, effect

    def write(
        self,
        path: str,
        data: bytes | bytearray | memoryview,
        *,
        if_absent: bool = False,
        storage_class: str = "",
    ) -> FileMeta:
        lost = getattr(self, "_count", 0) > 0 and path.startswith(self._prefix)
        if lost and not self._effect:
            self._count -= 1
            raise Unavailable("injected: nothing happened")
        meta = super().write(path, data, if_absent=if_absent, storage_class=storage_class)
        if lost:
            self._count -= 1
            raise Unavailable("injected: the answer was lost")
        return meta


@pytest.fixture
def world(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> World:
    """A world whose store can lose answers."""
    del autojump_clock
    world = World(tmp_path)
    world.store = LosingStore(clock=lambda: world.runtime.now_ns)
    return world


def losing(world: World) -> LosingStore:
    """Return the world's store."""
    assert isinstance(world.store, LosingStore)
    return world.store


def log_numbers(world: World) -> list[int]:
    """Return the commits in the store."""
    return CommitLog(world.store, world.root, None).sequence_numbers(0)


async def test_the_first_commits_name_each_other(world: World) -> None:
    """Sequence, epoch, predecessor: what every reader follows."""
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"a", b"one")
        await engine.committer.commit_once()
    log = CommitLog(world.store, world.root, None)
    fence, commit = log.read(1), log.read(2)
    assert fence.footer.is_fence
    assert fence.footer.predecessor == NO_DIGEST
    assert not commit.footer.is_fence
    assert commit.footer.predecessor == fence.digest
    assert (fence.footer.epoch, commit.footer.epoch) == (1, 1)
    assert commit.footer.time_ns > fence.footer.time_ns


async def test_every_mount_takes_a_new_epoch_and_keeps_its_backlog(world: World) -> None:
    """A fence is no cut: what was not committed before the restart is committed after it."""
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"a", b"one")
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        assert engine.state.committed.head.epoch == 2
        assert await read_file(engine, b"a") == b"one"
        await engine.committer.commit_once()
    async with running(world.context("b"), takeover=True) as other:
        assert await read_file(other, b"a") == b"one"


@pytest.mark.parametrize("effect", [True, False], ids=["answer lost", "nothing happened"])
async def test_a_fence_whose_answer_was_lost_is_our_own(world: World, effect: bool) -> None:
    """Neither success nor conflict: look, then decide."""
    async with running(world.context()) as engine:
        losing(world).lose_answers_of("log/", 1, effect=effect)
        with pytest.raises(Unavailable):
            await engine.committer.take_epoch()
        await engine.committer.take_epoch()
        head = engine.state.committed.head
        assert log_numbers(world) == list(range(1, head.seq + 1))
        await write_file(engine, b"a", b"one")
        await engine.committer.commit_once()
    async with running(world.context("b"), takeover=True) as other:
        assert names(other) == [b"a"]


@pytest.mark.parametrize("effect", [True, False], ids=["answer lost", "nothing happened"])
async def test_a_commit_whose_answer_was_lost_is_published_once(world: World, effect: bool) -> None:
    """The same bytes under the same key are mine."""
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"a", b"one")
        losing(world).lose_answers_of("log/", 3, effect=effect)
        await engine.committer.commit_once()
        assert engine.state.committed.head.seq == 2
        assert log_numbers(world) == [1, 2]


async def test_a_commit_published_just_before_a_crash_is_adopted(world: World) -> None:
    """It is found by following the log, and nothing of it is sent twice."""
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"a", b"one")
        original = engine.state.committed.apply_commit

        def die(*args: object) -> None:
            raise KeyboardInterrupt

        engine.state.committed.apply_commit = die  # type: ignore[method-assign, assignment]
        with pytest.raises(KeyboardInterrupt):
            await engine.committer.commit_once()
        engine.state.committed.apply_commit = original  # type: ignore[method-assign]
        await write_file(engine, b"b", b"two")
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        assert engine.state.committed.head.seq == 3
        assert await read_file(engine, b"a") == b"one"
        await engine.committer.commit_once()
        assert names(engine) == [b"a", b"b"]
    async with running(world.context("c"), takeover=True) as other:
        assert [await read_file(other, name) for name in (b"a", b"b")] == [b"one", b"two"]


async def test_a_former_life_found_at_a_collision_is_adopted(world: World) -> None:
    """The PUT of a dead daemon lands late: same chain at a cut in this very journal."""
    async with running(world.context()) as engine:
        state = engine.state
        await engine.committer.take_epoch()
        await write_file(engine, b"a", b"one")
        cut = await engine.committer._cut()
        await state.journal.wait_synced(cut.op_seq)
        counts = await engine.committer._delta(cut)
        body = await engine.committer._seal_and_upload(cut, counts)
        footer = engine.publisher.footer(
            epoch=state.committed.head.epoch,
            chain=cut.chain,
            op_seq=cut.op_seq,
            inline_length=body.inline_length,
            delta_length=body.delta_length,
            placements_length=body.placements_length,
        )
        late = Path(body.path).read_bytes() + encode_footer(footer)
        engine.committer._clean_outbox(cut, body)
        state.live.merge_dirty()
        await write_file(engine, b"b", b"two")
        world.store.write(log_key(footer.seq), late)
        await engine.committer.commit_once()
        assert state.committed.head.seq == footer.seq, "the late commit was adopted"
        await engine.committer.commit_once()
        assert state.committed.head.seq == footer.seq + 1
        assert not state.live.is_dirty()
    async with running(world.context("c"), takeover=True) as other:
        assert [await read_file(other, name) for name in (b"a", b"b")] == [b"one", b"two"]


async def test_a_writer_that_was_taken_over_publishes_nothing_more(world: World) -> None:
    """It turns read-only, answers no fsync of remote mode, and keeps its changes aside."""
    async with running(world.context("a")) as old:
        await old.committer.take_epoch()
        await write_file(old, b"shared", b"1")
        await old.committer.commit_once()
        async with running(world.context("b"), writer=b"x" * 16, takeover=True) as new:
            await new.committer.take_epoch()
            await write_file(new, b"new", b"2")
            await new.committer.commit_once()
        before = log_numbers(world)
        await write_file(old, b"lost", b"3")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(old.committer.run)
            with pytest.raises(ReadOnly):
                await old.state.wait_covered(old.state.journal.last_seq)
        assert log_numbers(world) == before
        with pytest.raises(ReadOnly):
            await old.filesystem.make(1, b"x", 0o100644, ROOT)
        assert await read_file(old, b"lost") == b"3"
    async with running(world.context("a"), takeover=True) as again:
        assert sorted(names(again)) == [b"new", b"shared"]
        assert again.state.set_aside
        kept = {path.name for path in Path(again.state.set_aside).iterdir()}
        assert "live.db" in kept
        assert any(name.startswith("segment-") for name in kept)


async def test_of_two_that_take_over_at_once_one_is_the_writer(world: World) -> None:
    """Both loaded the same commit; the slower one finds another's fence and stops."""
    async with (
        running(world.context("a"), writer=b"a" * 16) as one,
        running(world.context("b"), writer=b"b" * 16) as other,
    ):
        outcomes: list[str] = []

        async def take(publisher: Publisher, name: str) -> None:
            try:
                await publisher.take_epoch()
                outcomes.append(name)
            except Fenced:
                outcomes.append("fenced")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take, one.publisher, "a")
            nursery.start_soon(take, other.publisher, "b")
        assert max(outcomes) == "fenced"
        assert len(outcomes) == 2
        winners = [name for name in outcomes if name != "fenced"]
        fences = [decode_footer(world.store.read(log_key(n)), "k") for n in log_numbers(world)]
        assert {fence.writer for fence in fences} == {name.encode() * 16 for name in winners}


async def test_a_writer_id_alone_proves_nothing(world: World) -> None:
    """Virtual disks get cloned: a commit of the same id but of another chain is another's."""
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        footer = engine.publisher.footer(
            epoch=1, chain=12345, op_seq=engine.state.journal.last_seq + 1, delta_hash="0" * 64
        )
        world.store.write(log_key(footer.seq), encode_footer(footer))
        await write_file(engine, b"a", b"one")
        with trio.fail_after(600), pytest.raises(Fenced):
            await engine.committer.commit_once()


async def test_a_bucket_that_was_rolled_back_is_noticed_before_anything_is_published(
    world: World,
) -> None:
    """Yesterday's bucket under today's machine: refuse, or set the machine's changes aside."""
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        for name in (b"a", b"b"):
            await write_file(engine, name, name)
            await engine.committer.commit_once()
        world.store.delete([log_key(3)])
        await write_file(engine, b"c", b"c")
        engine.committer.has_epoch = False
        with pytest.raises(Fenced, match="rolled back"):
            await engine.committer.commit_once()
    with pytest.raises(Refused, match="rolled back"):
        async with running(world.context()):
            pass
    async with running(world.context(), takeover=True) as engine:
        assert names(engine) == [b"a"]
        assert engine.state.set_aside
        await engine.committer.take_epoch()


async def test_the_cut_of_a_commit_is_in_the_journal_before_it_is_in_the_store(
    world: World,
) -> None:
    """Nothing leaves the machine for an operation that is not synced locally."""
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"a", b"one")
        synced: list[int] = []
        original = world.store.write

        def watch(path: str, data: bytes, **options: object) -> FileMeta:
            synced.append(engine.state.journal.synced_seq)
            return original(path, data, **options)  # type: ignore[arg-type]

        world.store.write = watch  # type: ignore[method-assign, assignment]
        await engine.committer.commit_once()
        footer = CommitLog(world.store, world.root, None).read(2).footer
        assert synced
        assert min(synced) >= footer.op_seq
        assert engine.state.cuts[footer.op_seq] == footer.chain


async def test_a_fence_below_another_log_object_does_not_count(world: World) -> None:
    """The key was free only because it had been deleted: the taker looks again after its PUT."""
    async with running(world.context()) as engine:
        original = world.store.write

        def race(path: str, data: bytes, **options: object) -> FileMeta:
            if path == log_key(1):
                original(log_key(2), b"another writer's commit")
            return original(path, data, **options)  # type: ignore[arg-type]

        world.store.write = race  # type: ignore[method-assign, assignment]
        with pytest.raises(Fenced):
            await engine.publisher.take_epoch()
        assert engine.state.committed.head.seq == 0


async def test_a_fence_that_was_tried_for_long_does_not_disown_the_directory(world: World) -> None:
    """The store answers reads and refuses PUTs: the newest fence is this directory's own still."""
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"old", b"old")
        await engine.committer.commit_once()
    async with running(world.context()) as engine:
        await write_file(engine, b"precious", b"acknowledged")
        await engine.state.wait_durable()
        losing(world).lose_answers_of("log/", 10**6, effect=False)
        for _ in range(70):
            with pytest.raises(Unavailable):
                await engine.committer.take_epoch()
    losing(world).lose_answers_of("log/", 0)
    async with running(world.context()) as engine:
        assert not engine.state.set_aside
        assert names(engine) == [b"old", b"precious"]
