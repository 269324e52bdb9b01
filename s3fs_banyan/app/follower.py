"""A read-only mount: it follows the commits of a volume and never writes to the store.

The state is committed.db alone, in a file of its own, made from the newest checkpoint at each
start. Every few seconds the commits behind it are applied; a call sees the state before or after
them. The kernel may keep names and attributes for a second, and drops pages of a file whose time
or size changed. While the store is away the last state seen is served. Where the log cannot be
followed (commits were reclaimed while the machine slept, or one is damaged) a newer checkpoint
takes the place of the state; until there is one the last state seen is served, too.
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
from s3fs_banyan.app.build import connect, open_cache
from s3fs_banyan.app.control import Progress, serve_control
from s3fs_banyan.app.encryption import open_cipher
from s3fs_banyan.app.request import MountRequest
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
from s3fs_banyan.data.objects import ObjectReader
from s3fs_banyan.data.reader import Reader
from s3fs_banyan.errors import Corrupt, DataError, LocalDiskFull, ObjectMissing, StoreError
from s3fs_banyan.format.encryption import Cipher
from s3fs_banyan.format.volume import VolumeDescriptor
from s3fs_banyan.fuse import FOLLOWER_TIMEOUT_S, Operations, serve
from s3fs_banyan.journal.disk import DirectoryLock, RealDisk
from s3fs_banyan.kernel import KernelMount, KernelOptions, check_mountpoint
from s3fs_banyan.meta.committed import Committed, CommittedState
from s3fs_banyan.meta.extents import Extents
from s3fs_banyan.meta.tree import Tree
from s3fs_banyan.observe.metrics import Metrics, serve_metrics
from s3fs_banyan.processors import open_processors
from s3fs_banyan.remote.base import RemoteFileSystem
from s3fs_banyan.runtime import RealRuntime, keep_objects
from s3fs_banyan.scheduling import go_first
from s3fs_banyan.vfs.filesystem import FileSystem

log = logging.getLogger(__name__)

POLL_S: Final = 2.0
_FAILURES: Final = (StoreError, DataError, LocalDiskFull, OSError)
"""What following may meet; all of it may pass."""
_COMMITS_MAX: Final = 64
"""So many are applied before calls see them: until then they lie in the WAL."""
_WAL_PAGES_MAX: Final = 4096
_JUMP_PAUSE_S: Final = 60.0
"""Before a checkpoint that did not help is loaded again; doubles up to the next one."""
_JUMP_PAUSE_MAX_S: Final = 3600.0


class FollowerFileSystem(FileSystem):
    """A file system without a writer's state, whose tables are exchanged when they changed."""

    def refresh(self, tree: Tree, extents: Extents) -> None:
        """Forget everything remembered of the tables and go on with these."""
        self._tree = tree
        self._extents = extents


class Follower:
    """The state that is followed. One event loop; what blocks works in threads.

    Commits are applied in a thread while calls look at `state`, which stays as it was. When they
    are applied, the next state is opened in a thread too, and put in its place in one step.
    """

    def __init__(
        self,
        request: MountRequest,
        store: RemoteFileSystem,
        volume: VolumeDescriptor,
        root: Path,
        cipher: Cipher | None,
        metrics: Metrics,
    ) -> None:
        """`root` is a local directory that nobody else uses. Blocks; raises what `load` does."""
        self.online = True
        self.last_error = ""
        self.metrics = metrics
        self.volume = volume
        self._runtime = RealRuntime()
        self._root = root
        self._log = CommitLog(store, root, cipher)
        self._following = trio.Lock()
        self._begun = 0
        """How many times it was followed."""
        self._jumped_to = -1
        """The newest checkpoint when one was loaded last, or could not be."""
        self._jump_failure: Exception | None = None
        self._jump_at = self._pause_s = 0.0
        self._log.tidy()
        for path in self._databases():
            _remove_database(path)
        path = self._databases()[0]
        self.committed = self._log.load(path, vfs=None, volume=volume)
        self.state = self.committed.open_state()
        self._chunks = CommittedChunks(self.state, self.state.extents)
        self.cache: BlockCache = open_cache(root / "blocks", request.config, metrics)
        objects = ObjectReader(
            store=store, cache=self.cache, runtime=self._runtime, metrics=metrics
        )
        self._reader = Reader(
            chunks=self._chunks,
            journal=None,
            objects=objects,
            runtime=self._runtime,
            metrics=metrics,
            ram_bytes=request.config.cache.ram_bytes,
            cipher=cipher,
        )
        self._reader.is_newest = self._is_newest
        self.filesystem = FollowerFileSystem(
            tree=self.state.tree,
            extents=self.state.extents,
            reader=self._reader,
            state=None,
            capacity_bytes=request.config.volume.capacity_bytes,
        )
        self._set_gauges()

    def _databases(self) -> list[Path]:
        """Return where the state may be: one is in use, and the next one is made in the other."""
        return [self._root / f"follower-{number}.db" for number in range(2)]

    # --- following -----------------------------------------------------------------------

    async def run(self) -> None:
        """Look for new commits every few seconds; ends only by cancellation."""
        while True:
            await trio.sleep(POLL_S)
            await self.follow()
            await self._runtime.in_thread(self.cache.flush_use)

    async def follow(self) -> None:
        """Let calls see what was committed until now; what fails is logged and tried again.

        One after the other: all use the same connections. Who waits for one that began after the
        call need not follow once more.
        """
        begun = self._begun
        async with self._following:
            if self._begun > begun:
                return
            self._begun += 1
            try:
                await self._follow()
            except _FAILURES as error:
                if self.last_error != str(error):
                    log.warning("the volume cannot be followed: %s", error)
                self.last_error = str(error)
                self.online = isinstance(error, ObjectMissing) or not isinstance(error, StoreError)
            else:
                self.online, self.last_error = True, ""
            self._set_gauges()

    async def _follow(self) -> None:
        self._look_at_disk()
        try:
            await self._apply()
        except (ObjectMissing, Corrupt) as error:
            await self._jump(error)
            await self._apply()

    async def _apply(self) -> None:
        """Apply the commits behind, and let calls see them.

        Not all at once: the WAL grows by what is applied before calls see it.
        """
        while True:
            committed = self.committed
            before = committed.head.seq
            failure: Exception | None = None
            try:
                await self._runtime.in_thread(
                    self._log.follow, committed, committed.head, _COMMITS_MAX, pool="store"
                )
            except _FAILURES as error:
                failure = error
            if committed.head.seq != self.state.head.seq:
                await self._show()
            if failure is not None:
                raise failure
            if committed.head.seq - before < _COMMITS_MAX:
                return

    async def _show(self) -> None:
        """Let calls see what was applied."""
        self._use(await self._runtime.in_thread(self.committed.open_state))
        if await self._runtime.in_thread(self.committed.move_wal) > _WAL_PAGES_MAX:
            # Opened behind all of the WAL, it lets the next commit begin the WAL anew.
            self._use(await self._runtime.in_thread(self.committed.open_state))

    def _use(self, state: CommittedState) -> None:
        old, self.state = self.state, state
        self._chunks.use(state, state.extents)
        self.filesystem.refresh(state.tree, state.extents)
        old.close()

    async def _jump(self, error: ObjectMissing | Corrupt) -> None:
        """Go on from the newest checkpoint if one leads past a commit that is gone or damaged.

        Raises `error` if none does, and what `load_newest` raises. What did not help is not loaded
        again at once, but after a pause that doubles each time: it may be large.
        """
        seen = self.committed.head.seq
        newest = max(await self._runtime.in_thread(self._log.checkpoints, pool="store"), default=-1)
        if newest <= seen:
            raise error
        if newest != self._jumped_to:
            self._jumped_to, self._pause_s = newest, _JUMP_PAUSE_S
        elif trio.current_time() < self._jump_at:
            raise error if self._jump_failure is None else self._jump_failure.with_traceback(None)
        level = logging.INFO if isinstance(error, ObjectMissing) else logging.WARNING
        log.log(level, "going on from a newer checkpoint: %s", error)
        self._jump_at = trio.current_time() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _JUMP_PAUSE_MAX_S)
        try:
            loaded, state = await self._runtime.in_thread(self._load_above, seen, pool="store")
        except Exception as failure:
            self._jump_failure = failure
            raise
        self._jump_failure = None
        old, self.committed = self.committed, loaded
        self._reader.frames.clear()  # in another history a chunk's number may mean other bytes
        self._use(state)
        await self._runtime.in_thread(_drop, old)

    def _load_above(self, seen: int) -> tuple[Committed, CommittedState]:
        """Make the state from the newest checkpoint above a commit, beside the one in use."""
        path = next(path for path in self._databases() if path != self.committed.path)
        _remove_database(path)
        loaded = self._log.load_newest(path, vfs=None, volume=self.volume, above=seen)
        if loaded is None:
            raise ObjectMissing(f"the checkpoint above commit {seen} is not in the store any more")
        try:
            return loaded, loaded.open_state()
        except BaseException:
            loaded.close()
            raise

    async def _is_newest(self) -> bool:
        """Follow: what is missing may have been moved. Waits while the store is away."""
        while True:
            await self.follow()
            if self.online:
                return not self.last_error
            await trio.sleep(POLL_S)

    def _set_gauges(self) -> None:
        head = self.state.head
        self.metrics.store_reachable.set(int(self.online))
        self.metrics.volume_epoch.set(head.epoch)
        self.metrics.volume_seq.set(head.seq)

    def _look_at_disk(self) -> None:
        self.metrics.local_disk_free_bytes.set(RealDisk().free_bytes(self._root))

    def close(self) -> None:
        """Close the databases and the cache."""
        self.state.close()
        self.committed.close()
        self.cache.close()


def _drop(committed: Committed) -> None:
    committed.close()
    _remove_database(committed.path)


def _remove_database(path: Path) -> None:
    for part in path.parent.glob(f"{path.name}*"):
        part.unlink(missing_ok=True)


def run_read_only_mount(request: MountRequest, on_ready: Callable[[], None]) -> None:
    """Mount read-only, follow, and return when unmounted.

    Raises `BanyanFSError`s with their exit codes, as `run_mount` does.
    """
    check_mountpoint(request.mountpoint)
    metrics = Metrics(version=__version__)
    store = connect(request.url, request.config, metrics)
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
            with must_be_usable(local.root):
                follower = Follower(request, store, volume, root, cipher, metrics)
            try:
                with serve_metrics(metrics, request.config.metrics.address):
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
        nursery.start_soon(_watch_signals, mount)
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


async def _watch_signals(mount: KernelMount) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("signal %d: unmounting", number)
            mount.detach()


def _commands(request: MountRequest, follower: Follower) -> dict[str, Callable[[Progress], object]]:
    async def status(_: Progress) -> dict[str, object]:
        return follower_status(request, follower)

    async def sync(_: Progress) -> dict[str, object]:
        """There is nothing to bring into the store; what is in it is looked for now."""
        await follower.follow()
        return {"seq": follower.state.head.seq}

    async def wait(progress: Progress) -> dict[str, object]:
        idle: dict[str, object] = {"phase": "", "backlog_bytes": 0, "uncommitted_bytes": 0}
        while True:
            await progress({**idle, "operations_left": 0, "error": follower.last_error})
            await trio.sleep(POLL_S)

    return {"status": status, "sync": sync, "wait": wait}


def follower_status(request: MountRequest, follower: Follower) -> dict[str, object]:
    """Return the state of a read-only mount; the same keys as a writer's, as far as they apply."""
    head, usage, cache = (
        follower.state.head,
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
        "obstacle": "" if follower.online else "away",
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
