"""The daemon of a mount, from its checks to its last commit.

checks     store, volume, local directory (lock, identity), whether another writer is alive
engine     recovery, epoch, services
kernel     mount(2), INIT, requests until the volume is unmounted
end        drain to the store, then close; a second SIGTERM ends at once, nothing is lost then
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext

import trio

from s3fs_banyan import __version__
from s3fs_banyan.app.build import (
    connect,
    default_cache_directory,
    engine_settings,
    open_cache,
    store_options,
)
from s3fs_banyan.app.control import Command, Progress, serve_control
from s3fs_banyan.app.encryption import unlock
from s3fs_banyan.app.engine import Engine, open_engine
from s3fs_banyan.app.explain import explain_in_mount
from s3fs_banyan.app.request import MountRequest
from s3fs_banyan.app.status import engine_status
from s3fs_banyan.app.volume import check_create_if_absent, read_volume
from s3fs_banyan.commit.context import Context
from s3fs_banyan.commit.local import (
    Identity,
    LocalDirectory,
    check_identity,
    directory_ino,
    find_directory_of,
    has_served,
    load_identity,
    load_local_volume,
    must_be_usable,
    store_identity,
    store_local_keyring,
    store_local_volume,
)
from s3fs_banyan.commit.worker import WorkerProcess
from s3fs_banyan.config import Config
from s3fs_banyan.data.blocks import BlockCache
from s3fs_banyan.errors import (
    DataError,
    ExitCode,
    Fenced,
    ObjectMissing,
    ReadOnly,
    Refused,
    StoreError,
    UnsupportedVersion,
    UsageError,
)
from s3fs_banyan.format.keys import PROBE_PREFIX, WRITER
from s3fs_banyan.format.volume import VOLUME_VERSION, VolumeDescriptor, decode_heartbeat
from s3fs_banyan.fuse import FOREVER_S, Operations, serve
from s3fs_banyan.journal.disk import DirectoryLock, RealDisk
from s3fs_banyan.kernel import KernelMount, KernelOptions, check_mountpoint
from s3fs_banyan.observe.metrics import Metrics, serve_metrics
from s3fs_banyan.processors import open_processors
from s3fs_banyan.remote.base import RemoteFileSystem
from s3fs_banyan.remote.layers import RetryLayer
from s3fs_banyan.remote.pacing import share_of
from s3fs_banyan.runtime import RealRuntime, end_process, keep_objects
from s3fs_banyan.scheduling import go_first

log = logging.getLogger(__name__)

_FAREWELL_S = 0.1
"""How long those who wait for the unmount have to be told that all is in the store."""
_TAKEOVER_ATTEMPTS = 20
_TAKEOVER_PAUSE_S = 0.2
_STORE_AWAY_S = 3.0
"""A mount that can do without the store waits so long for it."""
_SWITCH_INTERVAL_S = 0.0002
"""A busy thread must not keep the event loop waiting for the default 5 ms."""


def run_mount(request: MountRequest, on_ready: Callable[[], None]) -> None:
    """Mount, serve, and return when the volume is unmounted and everything is in the store.

    Raises `BanyanFSError`s with their exit codes, before `on_ready` was called if the mount
    could not be made.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    check_mountpoint(request.mountpoint)
    runtime = RealRuntime(failpoint=request.failpoint or None)
    metrics = Metrics(version=__version__)
    used = _directory_used_before(request)
    is_known = used is not None and has_served(used, request.url)
    store = connect(request.url, request.config, metrics, is_known=is_known)
    volume, local, online = _find_volume(request, store, used)
    unlocked = unlock(store, volume, request.config.encryption, local, online=online)
    data_key = unlocked[0] if unlocked else None
    local.make()
    with must_be_usable(local.root):
        lock = DirectoryLock(local.lock)
    try:
        identity = _claim_directory(local, volume, runtime)
        if online:
            is_known = load_local_volume(local) is not None
            try:
                check_create_if_absent(store, runtime)
                if not request.takeover:
                    _check_other_writer(store, identity, request.config, runtime)
            except StoreError as error:
                if not (is_known and error.retryable):
                    raise
                # The fence will find another writer; these checks only tell of one earlier.
                log.warning("the store went away, mounting from the local state: %s", error)
            if unlocked:
                store_local_keyring(local, unlocked[1])
            store_local_volume(local, volume, request.url)
        ctx = Context(
            runtime=runtime,
            disk=RealDisk(),
            store=store,
            metrics=metrics,
            local=local,
            volume=volume,
            settings=engine_settings(request.config),
            cipher=data_key.cipher() if data_key else None,
        )
        with must_be_usable(local.root):
            local.check_access()
            ctx.disk.make_directory(local.journal)
            local.sync_names(ctx.disk)
            local.tidy_outbox()
        cache = open_cache(local.blocks, request.config, metrics)
        with serve_metrics(metrics, request.config.metrics.address):
            trio.run(_run, request, ctx, cache, bytes.fromhex(identity.writer), on_ready)
    finally:
        lock.release()
        store.close()


# --- checks ------------------------------------------------------------------------------


def _directory_used_before(request: MountRequest) -> LocalDirectory | None:
    """Return the local directory if this volume was mounted with it before."""
    given = LocalDirectory(root=request.cache_dir) if request.cache_dir else None
    local = given or find_directory_of(request.config.cache.directory, request.url)
    return local if local is not None and load_local_volume(local) is not None else None


def _find_volume(
    request: MountRequest, store: RetryLayer, used: LocalDirectory | None
) -> tuple[VolumeDescriptor, LocalDirectory, bool]:
    """Return the descriptor, the local directory, and whether the store answered.

    Where the local directory is enough it is not waited long for a store that is away.
    """
    given = LocalDirectory(root=request.cache_dir) if request.cache_dir else None
    known = load_local_volume(used) if used else None
    try:
        with store.within(_STORE_AWAY_S) if known else nullcontext():
            volume = read_volume(store)
    except StoreError as error:
        if known is None or used is None or not error.retryable:
            raise
        log.warning("the store cannot be reached, mounting from the local state: %s", error)
        return known, used, False
    if given is None:
        given = LocalDirectory(root=default_cache_directory(request.config, volume.volume_id))
    if volume.features_read_only:
        raise UnsupportedVersion(
            f"volume (it needs {', '.join(volume.features_read_only)} to be written; "
            "--read-only works)",
            VOLUME_VERSION,
            VOLUME_VERSION,
        )
    return volume, given, True


def _claim_directory(
    local: LocalDirectory, volume: VolumeDescriptor, runtime: RealRuntime
) -> Identity:
    identity = load_identity(local)
    check_identity(local, identity, volume.volume_id)
    if identity is None:
        identity = Identity(
            volume_id=volume.volume_id,
            writer=runtime.random_bytes(16).hex(),
            directory_ino=directory_ino(local),
        )
        store_identity(local, identity)
    return identity


def _check_other_writer(
    store: RemoteFileSystem, identity: Identity, config: Config, runtime: RealRuntime
) -> None:
    """Refuse while another writer shows signs of life; ages are by the store's own clock."""
    try:
        heartbeat = decode_heartbeat(store.read(WRITER), WRITER)
        beaten_ns = store.stat(WRITER).modified_ns
    except ObjectMissing:
        return
    except DataError as error:
        log.warning("the heartbeat cannot be read: %s", error)
        return
    if heartbeat.writer == identity.writer:
        return
    key = f"{PROBE_PREFIX}{runtime.random_bytes(8).hex()}"
    store.write(key, b"now")
    age_s = (store.stat(key).modified_ns - beaten_ns) / 1e9
    store.delete([key])
    if age_s < config.heartbeat.stale_after_s:
        raise Refused(
            f"the volume is being written by {heartbeat.host} (process {heartbeat.pid}, epoch "
            f"{heartbeat.epoch}), last heard of {age_s:.0f} s ago: unmount it there, or mount with "
            "--takeover to become the writer (its unpublished changes stay there)"
        )


# --- the daemon's life -------------------------------------------------------------------


async def _run(
    request: MountRequest,
    ctx: Context,
    cache: BlockCache,
    writer: bytes,
    on_ready: Callable[[], None],
) -> None:
    """Live once; begin anew if another writer published between recovery and our fence."""
    for attempt in range(1, _TAKEOVER_ATTEMPTS + 1):
        try:
            await _live(request, ctx, cache, writer, on_ready)
        except Fenced as error:
            if attempt == _TAKEOVER_ATTEMPTS:
                raise
            log.info("another writer was faster, trying again: %s", error)
            await trio.sleep(_TAKEOVER_PAUSE_S)
        else:
            return


async def _live(
    request: MountRequest,
    ctx: Context,
    cache: BlockCache,
    writer: bytes,
    on_ready: Callable[[], None],
) -> None:
    """Open, become the writer, serve, drain. Raises `Fenced` only before anything was served."""
    go_first(request.config.mount.nice)
    worker = WorkerProcess(
        _worker_setup(request, ctx),
        on_restart=ctx.metrics.worker_restarts.add,
        on_report=ctx.metrics.add_report,
        share=share_of(ctx.store),
    )
    async with open_engine(
        ctx,
        make_worker=lambda _: worker,
        cache=cache,
        writer=writer,
        takeover=request.takeover,
        accept_loss=request.accept_loss,
    ) as engine:
        await engine.become_writer()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(worker.run)
                engine.start(nursery)
                await _serve_kernel(request, engine, nursery, on_ready)
                nursery.cancel_scope.cancel()
        finally:
            worker.close()


def _worker_setup(request: MountRequest, ctx: Context) -> dict[str, object]:
    config = request.config
    options = store_options(config)
    return {
        "url": request.url,
        "store": {name: getattr(options, name) for name in options.__dataclass_fields__},
        "cache": str(ctx.local.blocks),
        "cache_bytes": config.cache.size_bytes,
        "block_bytes": config.cache.block_bytes,
        "uploads": config.storage.remote.uploads,
        "log_level": config.log.level,
        "log_format": config.log.format,
        "nice": 10,
        "cipher": ctx.cipher.plain_values() if ctx.cipher else None,
    }


async def _serve_kernel(
    request: MountRequest, engine: Engine, nursery: trio.Nursery, on_ready: Callable[[], None]
) -> None:
    """Mount, answer the kernel until unmounted, then bring everything into the store."""
    config = request.config.mount
    engine.filesystem.bury_orphans()
    mount = KernelMount(
        request.mountpoint,
        request.url,
        KernelOptions(
            allow_other=config.allow_other,
            read_ahead_bytes=config.read_ahead_bytes,
        ),
    )
    operations = Operations(
        engine.filesystem,
        engine.ctx.metrics,
        timeout_s=FOREVER_S,
        durability="remote" if engine.ctx.settings.durability_remote else "local",
        on_failure=lambda error: _end_if_broken(mount, engine, error),
        writeback=config.kernel_writeback,
    )
    drained = trio.Event()
    await nursery.start(serve_control, request.mountpoint, _commands(request, engine, drained))
    nursery.start_soon(_watch_signals, mount, engine)

    def ready() -> None:
        mount.raise_read_ahead()
        keep_objects()
        on_ready()
        log.info("mounted %s on %s", request.url, request.mountpoint)

    processors = open_processors(config.awake_share)
    if processors is not None:
        engine.ctx.metrics.processors_awake_seconds.track(lambda: processors.awake_s)
        nursery.start_soon(processors.run)
    await serve(
        operations, mount, max_tasks=config.max_tasks, on_ready=ready, processors=processors
    )
    log.info("unmounted; bringing the rest into the store")
    if await _drain(engine):
        drained.set()
        await trio.sleep(_FAREWELL_S)


async def _drain(engine: Engine) -> bool:
    """Bring everything into the store; false if this mount never can."""
    if engine.state.read_only_reason or engine.state.broken:
        return False
    try:
        await engine.committer.drain()
    except ReadOnly as error:
        log.error("what was not published stays in %s: %s", engine.ctx.local.root, error)
        return False
    await engine.leave()
    return True


def _end_if_broken(mount: KernelMount, engine: Engine, error: BaseException) -> None:
    """A broken invariant: detach the mount; the next start folds the journal again."""
    if engine.state.broken:
        log.critical("the state is broken, detaching the mount: %r", error)
        mount.detach()


async def _watch_signals(mount: KernelMount, engine: Engine) -> None:
    """SIGTERM or SIGINT: unmount (lazily) and drain; a second one: end at once."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        first = True
        async for number in signals:
            if not first:
                log.warning(
                    "signal %d again: ending now, the rest stays in %s",
                    number,
                    engine.ctx.local.root,
                )
                end_process(ExitCode.OK)  # as safe as any death; a cancelled request could last
            first = False
            log.info("signal %d: unmounting", number)
            mount.detach()


def _commands(request: MountRequest, engine: Engine, drained: trio.Event) -> dict[str, Command]:
    async def status(_: Progress) -> dict[str, object]:
        return engine_status(engine, request.url, request.mountpoint, request.config)

    async def sync(progress: Progress) -> dict[str, object]:
        target = engine.state.journal.last_seq
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_report, engine, target, progress)
            fenced: ReadOnly | None = None
            try:
                await engine.committer.drain()
            except ReadOnly as error:  # out of the nursery it would come as a group
                fenced = error
            nursery.cancel_scope.cancel()
        if fenced is not None:
            raise UsageError(str(fenced), exit_code=ExitCode.WRITER) from fenced
        return {"seq": engine.state.committed.head.seq}

    async def wait(progress: Progress) -> dict[str, object]:
        """Report progress until all is in the store after the unmount; a failure only closes."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_report, engine, None, progress)
            await drained.wait()
            nursery.cancel_scope.cancel()
        return {"seq": engine.state.committed.head.seq}

    async def explain(_: Progress, path: str) -> dict[str, object]:
        try:
            return await explain_in_mount(engine, path, request.config)
        except UsageError as error:
            return {"fault": str(error)}

    return {"status": status, "sync": sync, "wait": wait, "explain": explain}


async def _report(engine: Engine, target: int | None, progress: Progress) -> None:
    state = engine.state
    while True:
        await progress(
            {
                "phase": engine.committer.phase,
                "backlog_bytes": state.journal.backlog_bytes,
                "uncommitted_bytes": state.lag_bytes,
                "operations_left": max(
                    0, (target or state.journal.last_seq) - state.covered_op_seq
                ),
                "error": engine.committer.last_error or state.read_only_reason,
            }
        )
        await trio.sleep(0.3)
