"""A full local disk during an outage: whose bytes fill it decides between waiting and ENOSPC."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from s3fs_banyan.app.engine import Engine
from s3fs_banyan.errors import NoSpace
from s3fs_banyan.journal.segment import JournalSettings
from tests.unit.counting_store import CountingStore
from tests.unit.engine_kit import ROOT, InlineDisk, World, engine_settings, running

pytestmark = pytest.mark.allow_log_warnings

MIB = 1 << 20
DISK_BYTES = 64 * MIB
PIECE = 1 << 19
WAITS_S = 10.0
"""Longer than an error takes to come; a wait is told from one by nothing else."""


class SmallDisk(InlineDisk):
    """A disk of 64 MiB that holds one local directory, and what others put there."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root
        self.of_others = 0

    def free_bytes(self, directory: Path) -> int:
        del directory
        ours = 0
        for path in self.root.rglob("*"):
            try:
                ours += path.stat().st_blocks * 512 if path.is_file() else 0
            except FileNotFoundError:  # removed meanwhile
                continue
        return max(0, DISK_BYTES - ours - self.of_others)


class Outage:
    """An engine on a small disk whose store went away; pieces are written in a circle."""

    def __init__(self, engine: Engine, disk: SmallDisk, ino: int, circle: int) -> None:
        self.engine = engine
        self.disk = disk
        self._ino = ino
        self._circle = circle
        self.written = 0

    async def write(self, byte_count: int) -> bool:
        """Write so much more; false if a write waits. Raises what the application would get."""
        end = self.written + byte_count
        with trio.move_on_after(WAITS_S) as scope:
            while self.written < end:
                at = self.written % self._circle
                await self.engine.filesystem.write(self._ino, at, os.urandom(PIECE))
                self.written += PIECE
                await trio.sleep(0.01)
        return not scope.cancelled_caught


@asynccontextmanager
async def outage(root: Path, *, circle: int, local_cut_bytes: int) -> AsyncIterator[Outage]:
    """The store is away, and the committer and a clock run."""
    world = World(root)
    store = CountingStore(clock=lambda: world.runtime.now_ns)
    world.store = store
    disk = SmallDisk(root / "a")
    journal = JournalSettings(segment_bytes=4 * MIB, spares=2, free_bytes_min=8 * MIB)
    settings = engine_settings(
        journal=journal, dirty_bytes_max=1 << 30, local_cut_bytes=local_cut_bytes, give_up_s=0.0
    )

    async def tick() -> None:
        while True:
            world.runtime.now_ns += 10**8
            await trio.sleep(0.01)

    async with running(replace(world.context(settings=settings), disk=disk)) as engine:
        await engine.committer.take_epoch()
        made = await engine.filesystem.create(1, b"file", 0o644, 0, ROOT)
        store.is_away = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick)
            nursery.start_soon(engine.committer.watch.run)
            nursery.start_soon(engine.committer.run)
            yield Outage(engine, disk, made.ino, circle)
            nursery.cancel_scope.cancel()


async def test_our_own_backlog_is_waiting_and_never_an_error(tmp_path: Path) -> None:
    """A database panics at ENOSPC, and the next commit frees all of it."""
    async with outage(tmp_path, circle=1 << 30, local_cut_bytes=1 << 30) as away:
        assert not await away.write(DISK_BYTES)
        assert away.engine.state.is_disk_full
        assert away.written > DISK_BYTES // 3


async def test_what_others_fill_is_enospc(tmp_path: Path) -> None:
    """Nothing that a commit frees would make room."""
    async with outage(tmp_path, circle=1 << 30, local_cut_bytes=1 << 30) as away:
        away.disk.of_others = DISK_BYTES
        with pytest.raises(NoSpace):
            await away.write(DISK_BYTES)


async def test_a_local_cut_frees_what_is_overwritten(tmp_path: Path) -> None:
    """4 MiB live of what fills the disk: nobody has to wait for the store."""
    async with outage(tmp_path, circle=4 * MIB, local_cut_bytes=1 << 30) as away:
        while away.written < 2 * DISK_BYTES:
            assert await away.write(DISK_BYTES // 4)
        assert away.engine.ctx.metrics.local_cuts.read()
