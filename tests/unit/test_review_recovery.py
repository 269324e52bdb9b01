"""Attacks on recovery: rot, copies of a directory, takeovers that were not finished."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import apsw
import pytest

from s3fs_banyan.errors import Corrupt, Refused, Unavailable
from s3fs_banyan.format.checksum import Bytes
from s3fs_banyan.format.keys import log_key
from s3fs_banyan.journal.disk import DiskFile
from s3fs_banyan.remote.base import RemoteFileSystem
from s3fs_banyan.remote.memory import MemoryStore
from tests.unit.engine_kit import InlineDisk, World, names, read_file, running, write_file

pytestmark = pytest.mark.allow_log_warnings


class AwayStore:
    """A store that does not answer until it is told to."""

    def __init__(self, store: MemoryStore, *, away: bool = True) -> None:
        self._store = store
        self.away = away

    def __getattr__(self, name: str) -> object:
        if self.away:
            raise Unavailable("injected: the store is away")
        return getattr(self._store, name)


def away(store: MemoryStore, *, now: bool = True) -> tuple[AwayStore, RemoteFileSystem]:
    """Return the switch, and the same object as the engine sees it."""
    switch = AwayStore(store, away=now)
    return switch, cast("RemoteFileSystem", switch)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A world of one machine, a."""
    return World(tmp_path)


def flip(world: World, needle: bytes) -> None:
    """Flip a bit of `needle` in the newest journal segment that holds it."""
    for path in sorted((world.root / "a" / "journal").glob("segment-*")):
        data = bytearray(path.read_bytes())
        at = data.find(needle)
        if at >= 0:
            data[at] ^= 1
            path.write_bytes(bytes(data))
            return
    raise AssertionError(f"no segment holds {needle!r}")


MIB = 1 << 20


async def _rotten_early(world: World) -> None:
    """Commit, then one record that rots, then several segments of young data; all synced."""
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"a", b"committed")
        await engine.committer.commit_once()
        await write_file(engine, b"rotten", b"will rot away")
        for number in range(10):
            await write_file(engine, b"f%d" % number, bytes([65 + number]) * MIB)
            await engine.state.wait_durable()
    flip(world, b"will rot away")


async def test_rot_early_in_the_journal_costs_no_later_segment(world: World) -> None:
    """Same boot: live.db is ahead of the rot. Nothing may be recycled, written over or skipped."""
    await _rotten_early(world)
    journal = world.root / "a" / "journal"
    before = {path.name: path.read_bytes() for path in journal.iterdir()}
    with pytest.raises(Corrupt, match="--accept-loss"):
        async with running(world.context()):
            pass
    assert {path.name: path.read_bytes() for path in journal.iterdir()} == before


async def test_loss_accepted_on_the_same_boot_costs_what_rotted_only(world: World) -> None:
    """live.db holds every operation, so only the bytes of the damaged record are gone."""
    await _rotten_early(world)
    with pytest.raises(Corrupt, match="--accept-loss"):
        async with running(world.context()):
            pass
    async with running(world.context(), accept_loss=True) as engine:
        for number in range(10):
            assert await read_file(engine, b"f%d" % number) == bytes([65 + number]) * MIB
        await engine.committer.take_epoch()
        await engine.committer.commit_once()
        await write_file(engine, b"later", b"later")
        await engine.state.wait_durable()
    async with running(world.context(boot="boot-2")) as engine:
        assert await read_file(engine, b"later") == b"later"
        for number in range(10):
            assert await read_file(engine, b"f%d" % number) == bytes([65 + number]) * MIB


async def test_a_transaction_that_sqlite_rolled_back_is_not_believed(world: World) -> None:
    """A full disk ends live.db's transaction: its position must not outlive its rows."""
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"a", b"one")
        live = engine.state.live
        live.end_transaction()
        run = live._connection.execute
        pages = run("PRAGMA page_count").fetchall()[0][0]
        run(f"PRAGMA max_page_count = {pages}").fetchall()
        for number in range(200):
            await write_file(engine, b"n%03d" % number, b"")
        with pytest.raises(apsw.FullError):
            live.end_transaction()
        run("PRAGMA max_page_count = 1000000").fetchall()
    async with running(world.context()) as engine:
        assert names(engine) == [b"a", *(b"n%03d" % number for number in range(200))]


async def test_two_lives_of_one_epoch_are_not_merged(world: World) -> None:
    """A cloned disk, same boot, same epoch: the original went on, the clone wrote offline."""
    async with running(world.context("a")) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"base", b"base")
        await engine.committer.commit_once()
        engine.state.live.end_transaction()
        shutil.copytree(world.root / "a", world.root / "b")
        for number in range(3):
            await write_file(engine, b"original%d" % number, b"original")
            await engine.committer.commit_once()
    _, store = away(world.store)
    async with running(world.context("b", store=store)) as clone:
        for number in range(20):
            await write_file(clone, b"clone%d" % number, b"clone")
        await clone.state.wait_durable()
    async with running(world.context("b"), takeover=True) as clone:
        assert names(clone) == [b"base", b"original0", b"original1", b"original2"]
        assert clone.state.set_aside


async def test_changes_of_a_takeover_without_its_fence_survive_a_restart(world: World) -> None:
    """The store went away between recovery and the fence: nobody else took the volume over."""
    async with running(world.context("a")) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"old", b"old")
        await engine.committer.commit_once()
    async with running(world.context("b"), takeover=True) as other:
        await write_file(other, b"new", b"acknowledged")
        await other.state.wait_durable()
    async with running(world.context("b"), takeover=True) as other:
        assert names(other) == [b"old", b"new"]
        assert not other.state.set_aside
        await other.committer.take_epoch()
        await other.committer.commit_once()


async def test_a_takeover_without_its_fence_gives_way_to_the_true_writer(world: World) -> None:
    """The same, but the writer that it wanted to take over from went on meanwhile."""
    async with running(world.context("a")) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"old", b"old")
        await engine.committer.commit_once()
        async with running(world.context("b"), takeover=True) as other:
            await write_file(other, b"new", b"acknowledged")
            await other.state.wait_durable()
        await write_file(engine, b"more", b"more")
        await engine.committer.commit_once()
    async with running(world.context("b"), takeover=True) as other:
        assert names(other) == [b"old", b"more"]
        assert other.state.set_aside


async def test_after_a_rolled_back_bucket_changes_are_still_set_aside(world: World) -> None:
    """Operation numbers went back with the bucket; the old cut's number says nothing any more."""
    async with running(world.context("a")) as engine:
        await engine.committer.take_epoch()
        for number in range(20):
            await write_file(engine, b"n%d" % number, b"old history")
        await engine.committer.commit_once()
    world.store.delete([log_key(2)])
    with pytest.raises(Refused, match="rolled back"):
        async with running(world.context("a")):
            pass
    async with running(world.context("a"), takeover=True) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"unpublished", b"precious")
        await engine.state.wait_durable()
    async with running(world.context("b"), writer=b"b" * 16, takeover=True) as other:
        await other.committer.take_epoch()
        await write_file(other, b"b", b"b")
        await other.committer.commit_once()
    async with running(world.context("a"), takeover=True) as engine:
        assert names(engine) == [b"b"]
        assert engine.state.set_aside


async def test_what_is_set_aside_can_be_read_again(world: World) -> None:
    """live.db without its WAL would be an old state beside a newer journal."""
    async with running(world.context("a")) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"base", b"base")
        await engine.committer.commit_once()
        await write_file(engine, b"lost", b"lost")
        await engine.state.wait_durable()
        engine.state.live.end_transaction()
        shutil.copytree(world.root / "a", world.root / "killed")
    async with running(world.context("b"), writer=b"b" * 16, takeover=True) as other:
        await other.committer.take_epoch()
    async with running(world.context("killed"), takeover=True) as engine:
        kept = Path(engine.state.set_aside) / "live.db"
    connection = apsw.Connection(str(kept))
    found = {row[0] for row in connection.execute("SELECT name FROM dentry")}
    connection.close()
    assert found == {b"base", b"lost"}


# --- a disk whose syncs fail -------------------------------------------------------------


class _File:
    def __init__(self, file: DiskFile, disk: FailingDisk) -> None:
        self._file = file
        self._disk = disk

    def pwritev(self, buffers: Sequence[Bytes], position: int) -> None:
        if position and self._disk.write_failures_left:
            self._disk.write_failures_left -= 1
            if self._disk.write_failures_left:
                self._file.pwritev(buffers, position)  # whole, and reported as failed
            raise OSError("injected: the write failed")
        self._file.pwritev(buffers, position)

    def pread(self, length: int, position: int) -> bytes:
        return self._file.pread(length, position)

    def datasync(self) -> None:
        if self._disk.failures_left:
            self._disk.failures_left -= 1
            raise OSError("injected: the sync failed")
        self._file.datasync()

    def fill(self, begin: int, end: int) -> None:
        self._file.fill(begin, end)

    def allocate(self, length: int) -> None:
        self._file.allocate(length)

    def size(self) -> int:
        return self._file.size()

    def free(self) -> None:
        self._file.free()

    def close(self) -> None:
        self._file.close()


class FailingDisk(InlineDisk):
    """A disk that fails the next syncs of journal segments."""

    failures_left = 0
    write_failures_left = 0

    def open(self, path: Path, *, create: bool = False) -> DiskFile:
        return _File(super().open(path, create=create), self)


async def test_a_commit_whose_cut_was_rewritten_seals_the_good_copy(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sync of the CUT failed: what the first segment holds is not to be trusted."""
    disk = FailingDisk()
    monkeypatch.setattr("tests.unit.engine_kit.InlineDisk", lambda: disk)
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"a", b"precious bytes")
        original = engine.state.journal.wait_synced

        async def fail_once(op_seq: int) -> None:
            engine.state.journal.wait_synced = original  # type: ignore[method-assign]
            disk.failures_left = 1
            await original(op_seq)
            flip(world, b"precious bytes")  # the kernel dropped the page: old bytes come back

        engine.state.journal.wait_synced = fail_once  # type: ignore[method-assign]
        await engine.committer.commit_once()
        await engine.committer.commit_once()
        engine.reader.recent._records.clear()
        assert await read_file(engine, b"a") == b"precious bytes"
    async with running(world.context("fresh"), takeover=True) as other:
        assert await read_file(other, b"a") == b"precious bytes"


async def test_a_segment_whose_header_rotted_is_no_power_cut(world: World) -> None:
    """Its records were synced; taken for a free file it would be written over."""
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"a", b"committed")
        await engine.committer.commit_once()
        for number in range(3):
            await write_file(engine, b"n%d" % number, b"precious")
            await engine.state.wait_durable()
        path = engine.state.journal.segment_paths()[-1]
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    for _ in range(2):
        with pytest.raises(Corrupt, match="--accept-loss"):
            async with running(world.context(boot="boot-2")):
                pass
    path.write_bytes(data)
    async with running(world.context(boot="boot-2")) as engine:
        assert names(engine) == [b"a", b"n0", b"n1", b"n2"]
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    async with running(world.context(boot="boot-3"), accept_loss=True) as engine:
        assert names(engine)[0] == b"a"
    async with running(world.context(boot="boot-4")) as engine:
        assert names(engine)[0] == b"a"


async def test_two_operations_of_one_number_are_not_mixed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that failed twice reached the old segment all the same; the next took its number."""
    disk = FailingDisk()
    monkeypatch.setattr("tests.unit.engine_kit.InlineDisk", lambda: disk)
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        while engine.state.journal.segment_counts[1] < 2:
            await engine.state.journal.wait_changed()
        disk.write_failures_left = 2
        with pytest.raises(OSError, match="injected"):
            await write_file(engine, b"refused", b"")
        await write_file(engine, b"one", b"1")
        await write_file(engine, b"two", b"2")
        await engine.state.wait_durable()
        await write_file(engine, b"three", b"3")
        await engine.state.wait_durable()
    with pytest.raises(Corrupt, match="--accept-loss"):
        async with running(world.context(boot="boot-2")):
            pass
