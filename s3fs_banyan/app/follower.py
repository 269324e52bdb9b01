"""A read-only mount: it follows the commits of a volume and never writes to the store.

The state is committed.db alone, in a file of its own, made from the newest checkpoint at each
start. Every few seconds the commits behind it are applied; a call sees the state before or after
one. The kernel may keep names and attributes for a second, and drops pages of a file whose time
or size changed. While the store is away the last state seen is served.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from s3fs_banyan import __version__
from s3fs_banyan.app.build import connect
from s3fs_banyan.app.control import Progress, serve_control
from s3fs_banyan.app.encryption import open_cipher
from s3fs_banyan.app.mount import MountRequest
from s3fs_banyan.app.view import CommittedChunks
from s3fs_banyan.app.volume import read_volume
from s3fs_banyan.commit.local import (
    Identity,
    LocalDirectory,
    check_identity,
    directory_ino,
    load_identity,
    must_be_usable,
    store_identity,
)
from s3fs_banyan.commit.log_store import CommitLog
from s3fs_banyan.data.blocks import BlockCache
from s3fs_banyan.data.cache import DiskBlockCache
from s3fs_banyan.data.objects import ObjectReader
from s3fs_banyan.data.reader import Reader
from s3fs_banyan.errors import DataError, ObjectMissing, StoreError
from s3fs_banyan.format.encryption import Cipher
from s3fs_banyan.format.volume import VolumeDescriptor
from s3fs_banyan.fuse import FOLLOWER_TIMEOUT_S, Operations, serve
from s3fs_banyan.journal.disk import DirectoryLock
from s3fs_banyan.kernel import KernelMount, KernelOptions, check_mountpoint, unmount
from s3fs_banyan.meta.committed import Committed
from s3fs_banyan.meta.extents import Extents
from s3fs_banyan.meta.tree import Tree
from s3fs_banyan.observe import Metrics, serve_metrics
from s3fs_banyan.processors import open_processors
from s3fs_banyan.remote.base import RemoteFileSystem
from s3fs_banyan.runtime import RealRuntime, keep_objects
from s3fs_banyan.scheduling import go_first
from s3fs_banyan.vfs.filesystem import FileSystem

log = logging.getLogger(__name__)

POLL_S: Final = 2.0


class FollowerFileSystem(FileSystem):
    """A file system without a writer's state, whose tables are exchanged when they changed."""

    def refresh(self, tree: Tree, extents: Extents) -> None:
        """Forget everything remembered of the tables and go on with these."""
        self._tree = tree
        self._extents = extents


class Follower:
    """The state that is followed. One event loop; `open` and `follow` work in threads."""

    def __init__(
        self,
        request: MountRequest,
        store: RemoteFileSystem,
        volume: VolumeDescriptor,
        root: Path,
        cipher: Cipher | None,
    ) -> None:
        self.online = True
        self.last_error = ""
        self.metrics = Metrics()
        self.volume = volume
        self._runtime = RealRuntime()
        self._root = root
        self._log = CommitLog(store, root, cipher)
        self._generation = 0
        self.committed = self._load()
        tree, extents = self._tables()
        self._chunks = CommittedChunks(self.committed, extents)
        config = request.config.cache
        self.cache: BlockCache = DiskBlockCache(
            root / "blocks", config.size_bytes, block_bytes=config.block_bytes
        )
        objects = ObjectReader(
            store=store, cache=self.cache, runtime=self._runtime, metrics=self.metrics
        )
        reader = Reader(
            chunks=self._chunks,
            journal=None,
            objects=objects,
            runtime=self._runtime,
            metrics=self.metrics,
            ram_bytes=config.ram_bytes,
            cipher=cipher,
        )
        self.filesystem = FollowerFileSystem(
            tree=tree,
            extents=extents,
            reader=reader,
            state=None,
            capacity_bytes=request.config.volume.capacity_bytes,
        )

    def _load(self) -> Committed:
        """Make the state from the store, in a fresh file."""
        self._generation += 1
        path = self._root / f"follower-{self._generation % 2}.db"
        for stale in self._root.glob(f"{path.name}*"):
            stale.unlink()
        return self._log.load(path, vfs=None, volume=self.volume)

    def _tables(self) -> tuple[Tree, Extents]:
        connection = self.committed.reader()
        tree = Tree(connection)
        return tree, Extents(connection, tree)

    async def run(self) -> None:
        """Look for new commits every few seconds; ends only by cancellation."""
        while True:
            await trio.sleep(POLL_S)
            await self.follow()
            await self._runtime.in_thread(self.cache.flush_use)

    async def follow(self) -> None:
        """Apply what was committed since; what cannot be applied is logged and tried again."""
        before = self.committed.head.seq
        try:
            await self._runtime.in_thread(
                self._log.follow, self.committed, self.committed.head, pool="store"
            )
            self.online, self.last_error = True, ""
        except ObjectMissing:
            log.info("commits were reclaimed meanwhile: loading the newest checkpoint")
            await self._reload()
        except (StoreError, DataError) as error:
            if self.last_error != str(error):
                log.warning("the volume cannot be followed: %s", error)
            self.online, self.last_error = not isinstance(error, StoreError), str(error)
        if self.committed.reread_head().seq != before:
            tree, extents = self._tables()
            self._chunks.use(self.committed, extents)
            self.filesystem.refresh(tree, extents)

    async def _reload(self) -> None:
        try:
            loaded = await self._runtime.in_thread(self._load, pool="store")
        except (StoreError, DataError) as error:
            self.online, self.last_error = not isinstance(error, StoreError), str(error)
            return
        self.committed, old = loaded, self.committed
        old.close()

    def close(self) -> None:
        """Close the databases and the cache."""
        self.committed.close()
        self.cache.close()


def run_read_only_mount(request: MountRequest, on_ready: Callable[[], None]) -> None:
    """Mount read-only, follow, and return when unmounted.

    Raises `BanyanFSError`s with their exit codes, as `run_mount` does.
    """
    check_mountpoint(request.mountpoint)
    store = connect(request.url, request.config)
    try:
        volume = read_volume(store)
        cipher = open_cipher(store, volume, request.config.encryption)
        root = request.cache_dir or request.config.cache.directory / f"{volume.volume_id}.follower"
        local = LocalDirectory(root=root)
        local.make()
        with must_be_usable(local.root):
            lock = DirectoryLock(local.lock)
        try:
            _claim(local, volume)
            follower = Follower(request, store, volume, root, cipher)
            try:
                with serve_metrics(follower.metrics, request.config.metrics.address):
                    trio.run(_run, request, follower, on_ready)
            finally:
                follower.close()
        finally:
            lock.release()
    finally:
        store.close()


def _claim(local: LocalDirectory, volume: VolumeDescriptor) -> None:
    identity = load_identity(local)
    check_identity(local, identity, volume.volume_id)
    if identity is None:
        made = Identity(
            volume_id=volume.volume_id,
            writer=RealRuntime().random_bytes(16).hex(),
            directory_ino=directory_ino(local),
        )
        store_identity(local, made)


async def _run(request: MountRequest, follower: Follower, on_ready: Callable[[], None]) -> None:
    config = request.config.mount
    go_first(config.nice)
    options = KernelOptions(
        allow_other=config.allow_other, read_only=True, read_ahead_bytes=config.read_ahead_bytes
    )
    mount = KernelMount(request.mountpoint, request.url, options)
    operations = Operations(
        follower.filesystem,
        follower.metrics,
        timeout_s=FOLLOWER_TIMEOUT_S,
        durability="local",
        on_failure=lambda error: None,
    )

    def ready() -> None:
        mount.raise_read_ahead()
        keep_objects()
        on_ready()
        log.info("mounted %s on %s, read-only", request.url, request.mountpoint)

    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, request.mountpoint, _commands(request, follower))
        nursery.start_soon(_watch_signals, request.mountpoint)
        nursery.start_soon(follower.run)
        processors = open_processors(config.awake_share)
        if processors is not None:
            follower.metrics.processors_awake_seconds.track(lambda: processors.awake_s)
            nursery.start_soon(processors.run)
        await serve(
            operations, mount, max_tasks=config.max_tasks, on_ready=ready, processors=processors
        )
        log.info("unmounted")
        nursery.cancel_scope.cancel()


async def _watch_signals(mountpoint: Path) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("signal %d: unmounting", number)
            try:
                unmount(mountpoint, lazy=True)
            except OSError as error:
                log.warning("unmount: %s", error)


def _commands(request: MountRequest, follower: Follower) -> dict[str, Callable[[Progress], object]]:
    async def status(_: Progress) -> dict[str, object]:
        return follower_status(request, follower)

    async def sync(_: Progress) -> dict[str, object]:
        """There is nothing to bring into the store; what is in it is looked for now."""
        await follower.follow()
        return {"seq": follower.committed.head.seq}

    async def wait(progress: Progress) -> dict[str, object]:
        idle: dict[str, object] = {"phase": "", "backlog_bytes": 0, "uncommitted_bytes": 0}
        while True:
            await progress({**idle, "operations_left": 0, "error": follower.last_error})
            await trio.sleep(POLL_S)

    return {"status": status, "sync": sync, "wait": wait}


def follower_status(request: MountRequest, follower: Follower) -> dict[str, object]:
    """Return the state of a read-only mount; the same keys as a writer's, as far as they apply."""
    head, usage, cache = (
        follower.committed.head,
        follower.filesystem.statfs(),
        follower.cache.stats(),
    )
    return {
        "version": __version__,
        "role": "follower",
        "mountpoint": str(request.mountpoint),
        "store": request.url,
        "volume_id": follower.volume.volume_id,
        "encrypted": follower.volume.is_encrypted,
        "cache_dir": str(request.cache_dir or ""),
        "online": follower.online,
        "read_only": "",
        "set_aside": "",
        "writer": {"epoch": head.epoch, "pid": os.getpid(), "host": socket.gethostname()},
        "usage": {"capacity": usage.capacity, "used": usage.used, "inodes": usage.inodes},
        "commit": {"seq": head.seq, "time_ns": head.time_ns, "last_error": follower.last_error},
        "cache": {
            "bytes": cache.bytes,
            "limit": cache.limit,
            "hits": cache.hits,
            "misses": cache.misses,
        },
        "latency": follower.metrics.latency_summary(),
        "config": request.config.public_dict(),
    }
