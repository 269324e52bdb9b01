"""Defragmentation of files in use: what a caller wrote meanwhile is never written over."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3fs_banyan.app.engine import Engine
from s3fs_banyan.format.checksum import Bytes
from tests.unit.engine_kit import ROOT, SECOND_NS, World, running

PIECES = 10
STEP = 4096


async def fragmented_file(engine: Engine) -> int:
    """Make a file of one chunk for each commit; returns its inode number."""
    await engine.committer.take_epoch()
    made = await engine.filesystem.create(1, b"file", 0o644, 0, ROOT)
    for number in range(PIECES):
        await engine.filesystem.write(made.ino, number * STEP, bytes([number]) * STEP)
        await engine.committer.commit_once()
    return made.ino


async def test_a_file_at_rest_is_rewritten_as_it_is(tmp_path: Path) -> None:
    """Fewer rows and fewer frames to fetch, with the same bytes in them."""
    world = World(tmp_path)
    async with running(world.context()) as engine:
        ino = await fragmented_file(engine)
        world.runtime.now_ns += 120 * SECOND_NS
        assert await engine.defragmenter.round() == PIECES * STEP
        found = bytes(await engine.filesystem.read(ino, 0, PIECES * STEP))
        assert found == b"".join(bytes([number]) * STEP for number in range(PIECES))
        assert await engine.defragmenter.round() == 0


@pytest.mark.parametrize("is_committed", [True, False], ids=["committed", "young"])
async def test_a_write_during_defragmentation_is_kept(
    is_committed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was answered. Young bytes change in place, so their extents look as they did before."""
    world = World(tmp_path)
    async with running(world.context()) as engine:
        fs = engine.filesystem
        ino = await fragmented_file(engine)
        last = b"o" * STEP
        await fs.write(ino, 0, last)
        if is_committed:
            await engine.committer.commit_once()
        world.runtime.now_ns += 120 * SECOND_NS
        read = fs.read

        async def read_and_write(ino: int, offset: int, length: int) -> Bytes:
            nonlocal last
            data = bytes(await read(ino, offset, length))
            last = b"n" * STEP
            await fs.write(ino, 0, last)
            return data

        with monkeypatch.context() as patch:
            patch.setattr(fs, "read", read_and_write)
            assert await engine.defragmenter.round() == 0
        assert last == b"n" * STEP or not is_committed  # young bytes need not even be read
        assert bytes(await fs.read(ino, 0, STEP)) == last
