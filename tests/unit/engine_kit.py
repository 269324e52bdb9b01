"""A whole engine in a test's directory: memory store, inline worker, threads run inline.

Nothing runs by itself: a test calls the committer and the reclaimer step by step.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import trio

from s3fs_banyan.app.engine import Engine, open_engine
from s3fs_banyan.commit.context import Context, EngineSettings
from s3fs_banyan.commit.local import LocalDirectory
from s3fs_banyan.commit.seal_job import SealJob
from s3fs_banyan.commit.sealing import Sealing
from s3fs_banyan.commit.worker import InlineWorker, Worker
from s3fs_banyan.data.blocks import BlockCache, MemoryBlockCache
from s3fs_banyan.format.encryption import Cipher
from s3fs_banyan.format.volume import VolumeDescriptor
from s3fs_banyan.journal.disk import DiskFile, RealDisk, datasync_all
from s3fs_banyan.journal.segment import JournalSettings
from s3fs_banyan.observe.metrics import Metrics
from s3fs_banyan.remote.base import RemoteFileSystem
from s3fs_banyan.remote.memory import MemoryStore
from s3fs_banyan.runtime import Runtime
from s3fs_banyan.vfs.filesystem import Caller

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

SECOND_NS = 10**9
ROOT = Caller(tid=1, uid=0, gid=0)
USER = Caller(tid=2, uid=1000, gid=1000, umask=0o022)
VOLUME = VolumeDescriptor(volume_id="5e" * 16, created_ns=1_000, pack_bytes=1 << 20)


class StepRuntime:
    """A world whose clock stands still until a test moves it, and without threads."""

    def __init__(self, boot: str = "boot-1") -> None:
        self.now_ns = 1_700_000_000 * SECOND_NS
        self.boot = boot
        self.passed: list[str] = []
        self.thread_calls: list[str] = []
        self._drawn = 0

    def wall_ns(self) -> int:
        self.now_ns += 1_000
        return self.now_ns

    def monotonic_ns(self) -> int:
        return self.now_ns

    def random_bytes(self, count: int) -> bytes:
        self._drawn += 1
        return self._drawn.to_bytes(count, "little")

    def boot_id(self) -> str:
        return self.boot

    async def in_thread(self, fn: Callable[[*Ts], T], *args: *Ts, pool: str = "disk") -> T:
        self.thread_calls.append(pool)
        await trio.lowlevel.checkpoint()
        return fn(*args)

    def failpoint(self, name: str) -> None:
        self.passed.append(name)


class InlineDisk(RealDisk):
    """A disk that syncs inline: a virtual clock would run on while the kernel does it."""

    async def datasync(self, files: Sequence[DiskFile], runtime: Runtime) -> None:
        await runtime.in_thread(datasync_all, files, pool="fsync")


class World:
    """A store and a clock that several machines share."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runtime = StepRuntime()
        self.store = MemoryStore(clock=lambda: self.runtime.now_ns)

    def context(
        self,
        machine: str = "a",
        *,
        store: RemoteFileSystem | None = None,
        settings: EngineSettings | None = None,
        boot: str = "boot-1",
        cipher: Cipher | None = None,
    ) -> Context:
        """Return the context of a mount with the local directory `machine`."""
        local = LocalDirectory(root=self.root / machine)
        local.make()
        local.journal.mkdir(exist_ok=True)
        local.tidy_outbox()
        self.runtime.boot = boot
        return Context(
            runtime=self.runtime,
            disk=InlineDisk(),
            store=store or self.store,
            metrics=Metrics(),
            local=local,
            volume=VOLUME,
            settings=settings or engine_settings(),
            cipher=cipher,
        )


def engine_settings(**changes: object) -> EngineSettings:
    """Return settings with small segments; `changes` go on top."""
    journal = JournalSettings(segment_bytes=4 << 20, spares=2, free_bytes_min=0)
    base: dict[str, object] = {"journal": journal, "inline_bytes_max": 64 * 1024}
    return EngineSettings(**(base | changes))  # type: ignore[arg-type]  # names checked by the class


@asynccontextmanager
async def running(
    ctx: Context,
    *,
    writer: bytes = b"w" * 16,
    takeover: bool = False,
    accept_loss: bool = False,
    make_worker: Callable[[Context, BlockCache], Worker] | None = None,
) -> AsyncIterator[Engine]:
    """Open an engine with a journal that prepares its segments, and nothing else running."""
    cache = MemoryBlockCache(32 << 20)
    build = make_worker or _inline_worker
    async with (
        open_engine(
            ctx,
            make_worker=partial(build, ctx),
            cache=cache,
            writer=writer,
            takeover=takeover,
            accept_loss=accept_loss,
        ) as engine,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(engine.state.journal.spares.run)
        yield engine
        nursery.cancel_scope.cancel()


def _inline_worker(ctx: Context, cache: BlockCache) -> Worker:
    def make(job: SealJob) -> Sealing:
        return Sealing(job, disk=ctx.disk, store=ctx.store, cache=cache, cipher=ctx.cipher)

    return InlineWorker(make, ctx.runtime)


async def write_file(engine: Engine, name: bytes, data: bytes, parent: int = 1) -> int:
    """Create a file with these bytes and close it; returns its inode number."""
    fs = engine.filesystem
    made = await fs.create(parent, name, 0o644, 0, ROOT)
    for start in range(0, len(data), 1 << 17):
        await fs.write(made.ino, start, data[start : start + (1 << 17)])
    fs.release(made.ino)
    fs.forget(made.ino, 1)
    return made.ino


async def read_file(engine: Engine, name: bytes, parent: int = 1) -> bytes:
    """Return the bytes of a file."""
    fs = engine.filesystem
    attributes = fs.lookup(parent, name)
    data = bytes(await fs.read(attributes.ino, 0, attributes.size))
    fs.forget(attributes.ino, 1)
    return data


def names(engine: Engine, parent: int = 1) -> list[bytes]:
    """Return the names in a directory, in the order of readdir."""
    return [entry.name for entry, _ in engine.filesystem.readdir(parent, 0)]
