"""A pack that lies in the store with wrong bytes is never taken for the right one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from s3fs_banyan.errors import StoreError, TransferCorrupt, Unavailable
from s3fs_banyan.format.keys import PACK_PREFIX
from s3fs_banyan.remote.base import FileMeta
from s3fs_banyan.remote.memory import MemoryStore
from tests.unit.engine_kit import World, read_file, running, write_file


class SpoilingStore(MemoryStore):
    """Keeps the first pack with a wrong byte in it and raises an error; counts what came."""

    error: StoreError | None = None
    spoils = True
    writes = 0

    def write(
        self,
        path: str,
        data: bytes | bytearray | memoryview,
        *,
        if_absent: bool = False,
        storage_class: str = "",
    ) -> FileMeta:
        if path.startswith(PACK_PREFIX):
            self.writes += 1
            error, self.error = self.error, None
            if error is not None:
                sent = bytes(data)
                super().write(path, bytes([sent[0] ^ self.spoils]) + sent[1:])
                raise error
        return super().write(path, data, if_absent=if_absent, storage_class=storage_class)


@pytest.mark.allow_log_warnings
@pytest.mark.parametrize("spoils", [True, False], ids=["wrong", "right"])
@pytest.mark.parametrize("kind", [TransferCorrupt, Unavailable])
async def test_a_pack_is_sent_again_unless_it_is_proven_to_be_there(
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
    kind: type[StoreError],
    spoils: bool,
) -> None:
    """Its size proves nothing: the commit that names it would name rubbish, for ever."""
    del autojump_clock
    world = World(tmp_path)
    store = world.store = SpoilingStore(clock=lambda: world.runtime.now_ns)
    data = os.urandom(900_000)
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"large", data)
        store.error, store.spoils = kind("injected"), spoils
        await engine.committer.commit_once()
    assert store.writes == (2 if spoils else 1)
    async with running(world.context("fresh"), takeover=True) as other:
        assert await read_file(other, b"large") == data
