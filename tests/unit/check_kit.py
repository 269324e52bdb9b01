"""Volumes to be checked, and a store in front of which a writer goes on while the check runs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from s3fs_banyan.admin.check import Check, Finding
from s3fs_banyan.app.engine import Engine
from s3fs_banyan.format.encryption import Cipher
from s3fs_banyan.format.keys import VOLUME as VOLUME_KEY
from s3fs_banyan.format.keys import log_key
from s3fs_banyan.format.volume import VolumeDescriptor, encode_volume
from s3fs_banyan.remote.base import FileMeta, RemoteFileSystem
from s3fs_banyan.remote.memory import MemoryStore
from tests.unit.engine_kit import SECOND_NS, VOLUME, World, running, write_file
from tests.unit.test_commit_reclaim import (
    checkpointed_commit,
    keeping,
    replace_large,
    round_with_commit,
)

HOUR_NS = 3600 * SECOND_NS


class WatchedStore(MemoryStore):
    """The objects of a world's store; `before` is told of each call of the check."""

    def __init__(self, world: World, before: Callable[[str, str], None]) -> None:
        super().__init__(clock=lambda: world.runtime.now_ns)
        self._objects = world.store._objects
        self._before = before

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[FileMeta]:
        self._before("list", prefix)
        return iter(list(super().list(prefix, start_after=start_after)))

    def read(self, path: str, *, offset: int = 0, length: int | None = None) -> bytes:
        self._before("read", path)
        return super().read(path, offset=offset, length=length)

    def stat(self, path: str) -> FileMeta:
        self._before("stat", path)
        return super().stat(path)


def check(
    world: World,
    store: RemoteFileSystem | None = None,
    *,
    volume: VolumeDescriptor = VOLUME,
    cipher: Cipher | None = None,
) -> list[Finding]:
    """Return what the check finds, without orphans."""
    with tempfile.TemporaryDirectory(dir=world.root) as scratch:
        found = list(Check(store or world.store, volume, Path(scratch), cipher).run())
    return [finding for finding in found if finding.kind != "orphan"]


def make_volume(world: World) -> None:
    """Store the descriptor, which the engine takes for granted."""
    world.store.write(VOLUME_KEY, encode_volume(VOLUME))


async def half_an_hour(engine: Engine, world: World) -> None:
    """A pack dies, a checkpoint is written, time passes, and reclaim does what it may."""
    await replace_large(engine, b"large")
    await checkpointed_commit(engine)
    world.runtime.now_ns += HOUR_NS // 2
    await round_with_commit(engine)


async def lived_in(world: World, *, lives: int = 2, cipher: Cipher | None = None) -> list[str]:
    """Make a volume with every class of object in it; return the keys of its fences.

    It keeps two hours densely and one commit an hour before them. No object is left that reclaim
    would still delete, and the newest commit has a checkpoint.
    """
    make_volume(world)
    fences = []
    for life in range(lives):
        settings = keeping(2 * 3600, 12 * 3600)
        async with running(world.context(settings=settings, cipher=cipher)) as engine:
            await engine.committer.take_epoch()
            fences.append(log_key(engine.state.committed.head.seq))
            await write_file(engine, b"small-%d" % life, os.urandom(3000))
            await write_file(engine, b"whole-%d" % life, os.urandom(300_000))
            await engine.committer.commit_once()
            for _ in range(6):
                await half_an_hour(engine, world)
            await write_file(engine, b"late-%d" % life, os.urandom(3000))
            engine._write_heartbeat()
            await checkpointed_commit(engine)
    return fences
