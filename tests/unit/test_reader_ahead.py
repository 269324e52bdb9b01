"""A file that is read in sequence goes on in the next object: it is read ahead in time."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.unit.engine_kit import VOLUME, World, running, write_file

MIB = 1 << 20


async def test_the_next_object_of_a_file_is_found_before_its_reader_is_there(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise every pack begins with a pause."""
    del autojump_clock
    data = os.urandom(60 * MIB)
    world = World(tmp_path)
    volume = replace(VOLUME, pack_bytes=20 * MIB)
    async with running(replace(world.context(), volume=volume)) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"file", data)
        await engine.committer.commit_once()
    packs = {found.path for found in world.store.list("pack/")}
    led: list[tuple[str, int]] = []
    ctx = replace(world.context("b"), volume=volume)
    async with running(ctx) as engine, trio.open_nursery() as nursery:
        objects = engine.objects
        objects.nursery = nursery
        go_on = objects.go_on

        def note(key: str, offset: int, size: int) -> None:
            led.append((key, offset))
            go_on(key, offset, size)

        monkeypatch.setattr(objects, "go_on", note)
        fs = engine.filesystem
        ino = fs.lookup(1, b"file").ino
        for offset in range(0, len(data), MIB):
            assert await fs.read(ino, offset, MIB) == data[offset : offset + MIB]
            assert len(led) <= 1 + offset // (20 * MIB - MIB)
        fs.forget(ino, 1)
    assert len(packs) >= 3
    assert len({key for key, _ in led}) == len(led) == len(packs) - 1
    assert all(offset < MIB for _, offset in led)
