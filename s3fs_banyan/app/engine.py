"""The engine of a mount: everything between the kernel adapter and the store, wired and served.

Start: recover, take the epoch (if the store answers), bury orphans, start the services.
Stop: no new requests come; drain (if asked), stop the services, close in reverse order.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import trio

from s3fs_banyan.commit.base_packs import BasePacks
from s3fs_banyan.commit.checkpointer import Checkpointer
from s3fs_banyan.commit.committer import Committer
from s3fs_banyan.commit.context import Context
from s3fs_banyan.commit.fencing import Publisher
from s3fs_banyan.commit.log_store import CommitLog
from s3fs_banyan.commit.reclaim import Reclaimer
from s3fs_banyan.commit.recovery import recover
from s3fs_banyan.commit.state import EngineState
from s3fs_banyan.commit.stored import StoredByClass
from s3fs_banyan.commit.worker import Worker
from s3fs_banyan.data.blocks import BlockCache
from s3fs_banyan.data.objects import ObjectReader
from s3fs_banyan.data.reader import Reader
from s3fs_banyan.errors import DataError, StoreError
from s3fs_banyan.format.keys import WRITER
from s3fs_banyan.format.volume import Heartbeat, decode_heartbeat, encode_heartbeat
from s3fs_banyan.vfs.defragment import Defragmenter
from s3fs_banyan.vfs.filesystem import FileSystem

log = logging.getLogger(__name__)

_WAL_BYTES_MAX = 16 << 20
_TICK_S = 1.0
_RESTART_S = 5.0
_LOOK_S = 0.1


class Engine:
    """The running engine. Made by `open_engine`."""

    def __init__(
        self, ctx: Context, state: EngineState, worker: Worker, cache: BlockCache, writer: bytes
    ) -> None:
        self.ctx = ctx
        self.state = state
        self.worker = worker
        self.cache = cache
        self.writer = writer
        log_store = CommitLog(ctx.store, ctx.local.outbox, ctx.cipher)
        self.objects = ObjectReader(
            store=ctx.store, cache=cache, runtime=ctx.runtime, metrics=ctx.metrics
        )
        self.reader = Reader(
            chunks=state,
            journal=state.journal,
            objects=self.objects,
            runtime=ctx.runtime,
            metrics=ctx.metrics,
            ram_bytes=ctx.settings.ram_bytes,
            local_packs=BasePacks(ctx.disk, ctx.local.base_packs),
            cipher=ctx.cipher,
        )
        self.reader.is_newest = self._is_newest
        state.recent = self.reader.recent
        self.checkpointer = Checkpointer(ctx, state, log_store)
        self.reclaimer = Reclaimer(ctx, state, log_store, self.checkpointer, cache)
        self.publisher = Publisher(ctx, state, log_store, writer)
        self.committer = Committer(ctx, state, self.publisher, worker, cache, self.reclaimer)
        self.filesystem = FileSystem(
            tree=state.live.tree,
            extents=state.live.extents,
            reader=self.reader,
            state=state,
            capacity_bytes=ctx.settings.capacity_bytes,
        )
        self.defragmenter = Defragmenter(state, self.filesystem)
        self.stored = StoredByClass(state)
        self.service_failures: list[str] = []
        """Services that ended by an exception, each one a defect of ours."""
        self._heartbeat = trio.Lock()
        self._has_left = False

    def start(self, nursery: trio.Nursery) -> None:
        """Start the services in `nursery`."""
        self.reclaimer.nursery = self.objects.nursery = nursery
        defragment = partial(self.defragmenter.run, self.ctx.settings.reclaim_every_s)
        services: dict[str, Callable[[], Awaitable[None]]] = {
            "segment preparer": self.state.journal.spares.run,
            "journal syncer": self.state.journal.run_syncer,
            "reaper": self.filesystem.run_reaper,
            "store watch": self.committer.watch.run,
            "committer": self.committer.run,
            "reclaim": self.reclaimer.run,
            "defragmenter": defragment,
            "housekeeping": self._run_housekeeping,
            "heartbeat": self._run_heartbeat,
        }
        for name, run in services.items():
            nursery.start_soon(self._supervise, name, run)

    async def _supervise(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Keep a service going: a dead mount is a database crash, a late commit is an alert.

        Every service can begin again from what journal and databases hold. A broken state
        cannot: then the daemon ends, and the next start folds the journal.
        """
        while True:
            try:
                await run()
            except Exception as error:
                if self.state.broken or self.state.live.failed:
                    raise
                log.exception("the %s failed in a way nobody foresaw; it begins again", name)
                self.service_failures.append(f"{name}: {error!r}")
                self.ctx.metrics.handler_errors.add()
                await trio.sleep(_RESTART_S)
                continue
            return

    async def become_writer(self) -> None:
        """Take the epoch if the store answers; if it does not, the committer does it later.

        The first heartbeat is written before this returns: a mount that answers is known of.
        """
        try:
            await self.committer.take_epoch()
            await self.ctx.runtime.in_thread(self._write_heartbeat, pool="store")
        except StoreError as error:
            if not error.retryable:
                raise
            log.warning("the store cannot be reached, publishing waits: %s", error)
            self.state.obstacle = "away"
            self.state.request_commit()  # or nobody would try again before the next change
            return
        await self._beat()

    async def _run_housekeeping(self) -> None:
        """End idle transactions, keep the WAL short, note uses of the cache, set gauges."""
        state, ctx = self.state, self.ctx
        while True:
            await trio.sleep(_TICK_S)
            if state.live.in_transaction:
                state.live.end_transaction()
            if state.live.wal_bytes > _WAL_BYTES_MAX:
                await ctx.runtime.in_thread(state.live.checkpoint_wal)
                state.live.end_transaction(restart_wal=True)
            await ctx.runtime.in_thread(self.cache.flush_use)
            await self.stored.refresh()
            self._set_gauges()

    def _set_gauges(self) -> None:
        state, metrics = self.state, self.ctx.metrics
        used, free = state.journal.segment_counts
        metrics.journal_segments["used"].set(used)
        metrics.journal_segments["free"].set(free)
        metrics.journal_backlog_bytes.set(state.journal.backlog_bytes)
        metrics.base_packs_bytes.set(state.base_bytes)
        metrics.journal_backlog_limit_bytes.set(self.ctx.settings.dirty_bytes_max)
        metrics.recovery_lag_bytes.set(state.lag_bytes)
        metrics.recovery_lag_seconds.set(self.lag_s)
        metrics.commit_interval_seconds.set(self.committer.budget.stretched_s)
        if not state.online:  # otherwise each request of this process says what it met
            metrics.store_reachable.set(0)
        metrics.backpressure_waiting_writers.set(state.waiting_writers)
        metrics.local_disk_free_bytes.set(self.ctx.disk.free_bytes(self.ctx.local.root))

    @property
    def lag_s(self) -> float:
        """Seconds since the oldest change that is not yet in the store."""
        oldest_ns = self.state.lag_since_ns
        if not oldest_ns:
            return 0.0
        return (self.ctx.runtime.monotonic_ns() - oldest_ns) / 1e9

    async def _is_newest(self) -> bool:
        """Wait until it is known who writes; tell whether it is this life.

        A mount that began while the store was away does not know yet. If another writer has
        taken over meanwhile, it may have moved bytes and reclaimed where they were.
        """
        while not (self.committer.has_epoch or self.state.read_only_reason):
            self.state.request_commit()
            await trio.sleep(_LOOK_S)
        return not self.state.read_only_reason

    async def _run_heartbeat(self) -> None:
        """Say every now and then who writes: a hint for people and for `mount`."""
        while not self.state.read_only_reason:
            await trio.sleep(self.ctx.settings.heartbeat_interval_s)
            await self._beat()

    async def _beat(self) -> None:
        """Write the heartbeat: before the mount answers first, or two would not see each other."""
        async with self._heartbeat:
            if not self.committer.has_epoch or self._has_left:
                return
            try:
                await self.ctx.runtime.in_thread(self._write_heartbeat, pool="store")
            except StoreError as error:
                log.info("no heartbeat: %s", error)

    def _write_heartbeat(self) -> None:
        heartbeat = Heartbeat(
            host=self.ctx.settings.host,
            pid=self.ctx.settings.pid,
            epoch=self.state.committed.head.epoch,
            writer=self.writer.hex(),
            time_ns=self.ctx.runtime.wall_ns(),
        )
        self.ctx.store.write(WRITER, encode_heartbeat(heartbeat))

    def _remove_heartbeat(self) -> None:
        """Remove the heartbeat if it is this writer's: another one may have taken over."""
        heartbeat = decode_heartbeat(self.ctx.store.read(WRITER), WRITER)
        if heartbeat.writer == self.writer.hex():
            self.ctx.store.delete([WRITER])

    async def leave(self) -> None:
        """After a clean drain: no heartbeat, so the next machine need not wait or take over.

        None is written from now on, and none is on its way when this one is removed.
        """
        if self.state.read_only_reason or not self.committer.has_epoch:
            return
        async with self._heartbeat:
            self._has_left = True
            try:
                await self.ctx.runtime.in_thread(self._remove_heartbeat, pool="store")
            except (DataError, StoreError) as error:
                log.info("the heartbeat stays: %s", error)


@asynccontextmanager
async def open_engine(
    ctx: Context,
    *,
    make_worker: Callable[[BlockCache], Worker],
    cache: BlockCache,
    writer: bytes,
    takeover: bool = False,
    accept_loss: bool = False,
) -> AsyncIterator[Engine]:
    """Recover and become the writer; the services are started by `Engine.start`.

    Raises `Refused`, `Corrupt`, `StoreError` as `recover` does.
    """
    opened = partial(recover, ctx, takeover=takeover, accept_loss=accept_loss)
    recovered = await ctx.runtime.in_thread(opened)
    state = EngineState(ctx, recovered)
    engine = Engine(ctx, state, make_worker(cache), cache, writer)
    try:
        yield engine
    finally:
        state.live.close(keep=not state.broken)
        state.journal.close()
        if state.base is not None:
            state.base.close()
        state.committed.close()
