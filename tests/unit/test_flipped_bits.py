"""Bits that flip on the way from the store are read again; only what stays wrong is damage."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import pytest

from s3fs_banyan.app.engine import Engine
from s3fs_banyan.errors import InputOutput
from s3fs_banyan.remote.base import RemoteFileSystem
from s3fs_banyan.remote.memory import MemoryStore
from tests.unit.engine_kit import ROOT, World, engine_settings, read_file, running, write_file

pytestmark = pytest.mark.allow_log_warnings

_DATA = os.urandom(1 << 20)


class _Line:
    """A way to the store that flips a bit in each of the next `flips` ranged reads of packs.

    Another one each time; with `rotten` the same. With `in_head` one of the first 24 bytes.
    """

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.flips = 0
        self.rotten = False
        self.in_head = False

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def read(self, path: str, *, offset: int = 0, length: int | None = None) -> bytes:
        data = self._store.read(path, offset=offset, length=length)
        if not self.flips or length is None or not path.startswith("pack/"):
            return data
        self.flips -= 1
        at = len(data) // 2 + (0 if self.rotten else self.flips % 1000)
        if self.in_head:
            at = self.flips % 24
        return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A world of one machine, a."""
    return World(tmp_path)


async def _store_files(engine: Engine, *names: bytes) -> None:
    """Bring files into one pack, and forget what is cached of it."""
    await engine.committer.take_epoch()
    for name in names:
        await write_file(engine, name, _DATA[: (1 << 20) // len(names)])
    await engine.committer.commit_once()
    for pack in engine.reclaimer._packs():
        await engine.reader._objects.forget(pack.key)


@pytest.mark.parametrize("flips", [1, 3, 20])
async def test_a_read_goes_on_until_the_bytes_are_right(world: World, flips: int) -> None:
    """EIO means proven damage: a database that is told of it gives its part up."""
    line = _Line(world.store)
    ctx = world.context(store=cast("RemoteFileSystem", line))
    async with running(ctx) as engine:
        await _store_files(engine, b"file")
        line.flips = flips
        assert await read_file(engine, b"file") == _DATA
        assert line.flips == 0
        assert ctx.metrics.corruption_detected("transfer").value == flips
        assert ctx.metrics.corruption_detected("frame").value == 0


@pytest.mark.parametrize(("rotten", "reads_max"), [(True, 8), (False, 40)])
async def test_what_stays_wrong_is_an_error_after_a_few_reads(
    world: World, *, rotten: bool, reads_max: int
) -> None:
    """A rotten object must not keep its reader for ever, nor a line that was never good."""
    line = _Line(world.store)
    ctx = world.context(store=cast("RemoteFileSystem", line))
    async with running(ctx) as engine:
        await _store_files(engine, b"file")
        line.flips, line.rotten = 1_000_000, rotten
        with pytest.raises(InputOutput):
            await read_file(engine, b"file")
        assert ctx.metrics.corruption_detected("frame").value == 1
        assert 1_000_000 - line.flips <= reads_max


@pytest.mark.parametrize(("flips", "in_head"), [(2, False), (20, False), (24, True)])
async def test_compaction_reads_again_as_well(world: World, flips: int, *, in_head: bool) -> None:
    """Else the chunk stays in a half-dead pack for the life of the mount.

    A version that nobody knows is a flipped bit as well, until it is read twice.
    """
    line = _Line(world.store)
    settings = engine_settings(reclaim_window_s=0.0, reclaim_hourly_s=0.0, reclaim_grace_s=0.0)
    ctx = world.context(store=cast("RemoteFileSystem", line), settings=settings)
    names = [b"f%d" % number for number in range(5)]
    async with running(ctx) as engine:
        await _store_files(engine, *names)
        (pack,) = engine.reclaimer._packs()
        for name in names[1:]:
            await engine.filesystem.unlink(1, name, ROOT)
        while (dead := engine.filesystem.handles.next_dead_nowait()) is not None:
            await engine.filesystem._reap(engine.state, dead)
        line.flips, line.in_head = flips, in_head
        for number in range(10):
            await write_file(engine, b"tick%d" % number, b"t")
            await engine.committer.commit_once()
        assert line.flips == 0
        assert not engine.reclaimer._unmovable
        (old,) = [row for row in engine.reclaimer._packs() if row.key == pack.key]
        assert old.dead_seq
        assert await read_file(engine, names[0]) == _DATA[: (1 << 20) // len(names)]
