"""The committer: when a commit is due, and the one durable order towards the store.

`commit_once` reads like architecture section 7, line by line; nothing else orders durability
towards the store. Every line has a failpoint behind it and a row in the crash table of
`docs/architecture.md`.

    1 cut        a CUT record; dirty set flipped, snapshot opened          nothing is lost
    2 sync       the journal up to and with the CUT record                 the cut is durable
    3 delta      changed rows and the list of young chunks; seal           outbox only
    4 upload     packs, in parallel, verified                              orphans in the store
    5 publish    create-if-absent log/<seq>                                durable in the store
    6 apply      committed.db, synced; journal recycled behind the cut     local catches up
    7 checkpoint now and then, beside the next commits
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import trio

from s3fs_banyan.commit.context import Context
from s3fs_banyan.commit.fencing import Publisher
from s3fs_banyan.commit.local import remember_last_cut
from s3fs_banyan.commit.outbox import Outbox, forget_named
from s3fs_banyan.commit.sealing import CommitBody, SealedPack, SealJob
from s3fs_banyan.commit.state import EngineState
from s3fs_banyan.commit.worker import Worker, WorkerDied
from s3fs_banyan.data.blocks import BlockCache
from s3fs_banyan.errors import Fenced, LocalDiskFull, StoreError
from s3fs_banyan.format.commit import CommitFooter, commit_digest, encode_footer
from s3fs_banyan.format.keys import log_key
from s3fs_banyan.meta.committed import Head
from s3fs_banyan.meta.delta import DeltaCounts, write_delta
from s3fs_banyan.meta.live import Snapshot
from s3fs_banyan.meta.seal_list import SealList
from s3fs_banyan.model import Cut
from s3fs_banyan.runtime import register_failpoint

log = logging.getLogger(__name__)
T = TypeVar("T")

FP_CUT = register_failpoint("cut", "step 1 done: CUT record appended, dirty set flipped")
FP_CUT_SYNCED = register_failpoint("cut-synced", "step 2 done: the CUT record is on the disk")
FP_DELTA = register_failpoint("delta-written", "step 3: the delta is written, nothing is sealed")
FP_SEALED = register_failpoint("sealed", "step 3 done: packs and the commit's body are sealed")
FP_PACK_SENT = register_failpoint(
    "pack-sent", "step 4: a pack is in the store and in its record, others may not be"
)
FP_UPLOADED = register_failpoint(
    "uploaded", "step 4 done: packs are in the store, no commit names them"
)
FP_PUBLISHED = register_failpoint("published", "step 5 done: the commit is in the store only")
FP_APPLIED = register_failpoint(
    "applied", "step 6: committed.db has the commit, journal not recycled"
)
FP_RECYCLED = register_failpoint("recycled", "step 6 done: the journal is recycled behind the cut")

_RETRY_FIRST_S = 0.5
_RETRY_MAX_S = 30.0
_UPLOADS_AT_ONCE = 4
_FORGET_ROWS_STEP = 100
"""So many rows are forgotten at once: about half a millisecond of the event loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _CutTaken:
    op_seq: int
    chain: int
    flip: int
    watermark: int
    snapshot: Snapshot
    delta_db: Path
    seal_db: Path


class CommitExtras(Protocol):
    """What else a commit carries or starts: compaction, reclaim's window, checkpoints."""

    def before_seal(self, seal_db: Path) -> None:
        """Add moves of living chunks to the seal list; runs in a thread."""
        ...

    def leave_alone(self, keys: Sequence[str]) -> None:
        """Chunks in these objects cannot be moved: do not try again in this life."""
        ...

    def window(self) -> tuple[int, tuple[int, ...]]:
        """Return (dense_from, kept) that the next commit shall carry."""
        ...

    def note_commit(self, footer: CommitFooter) -> None:
        """A commit of this size was applied."""
        ...

    async def after_commit(self) -> None:
        """A commit was applied: a checkpoint may be due."""
        ...

    def wants_commit(self) -> bool:
        """Tell whether a commit is wanted although nothing changed."""
        ...


class Committer:
    """Cuts, seals, uploads, publishes. One task; commits are strictly serial."""

    def __init__(
        self,
        ctx: Context,
        state: EngineState,
        publisher: Publisher,
        worker: Worker,
        cache: BlockCache,
        extras: CommitExtras,
    ) -> None:
        self._ctx = ctx
        self._state = state
        self._publisher = publisher
        self._worker = worker
        self._cache = cache
        self._extras = extras
        self._outbox = Outbox(ctx.local.outbox)
        self.has_epoch = False
        self._taking_epoch = trio.Lock()
        self.phase = "idle"
        """What the committer does at present, for status."""
        self.last_error = ""
        self.last_commit_ns = ctx.runtime.monotonic_ns()
        self.draining = False

    # --- when ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Commit whenever one is due; returns when this writer is fenced.

        May be begun again after it failed: what was in flight is dirty again, and a commit that
        was published without being applied is adopted like one of a former life.
        """
        self._state.live.merge_dirty()
        self._state.note_dirty()
        self._state.notify_covered()  # who waited for the cut that failed asks again
        try:
            while True:
                await self._wait_due()
                await self.commit_once()
        except Fenced as error:
            await self._fenced(error)

    async def _wait_due(self) -> None:
        """Wait until something is dirty and the interval has passed, or someone waits."""
        state, settings = self._state, self._ctx.settings
        while True:
            if (
                not state.oldest_uncommitted_ns
                and not state.urgent
                and not self._extras.wants_commit()
            ):
                self.phase = "idle"
                await state.commit_requests.wait()
            state.commit_requests = trio.Event()
            due_ns = self.last_commit_ns + int(settings.commit_interval_s * 1e9)
            left_s = (due_ns - self._ctx.runtime.monotonic_ns()) / 1e9
            if state.urgent or left_s <= 0:
                return
            if state.uncommitted_bytes > settings.dirty_bytes_max // 4:
                return
            with trio.move_on_after(min(left_s, 1.0)):
                await state.commit_requests.wait()

    async def take_epoch(self) -> None:
        """Become the writer now; raises the store's errors, `Fenced`."""
        async with self._taking_epoch:
            if self.has_epoch:
                return
            await self._publisher.take_epoch()
            self.has_epoch = True
            self._state.online = True

    async def drain(self) -> None:
        """Commit until everything is in the store; for sync and umount. Safe to cancel."""
        await self._state.journal.wait_synced(self._state.journal.last_seq)
        await self._state.wait_covered(self._state.journal.last_seq)

    # --- the one durable order -----------------------------------------------------------

    async def commit_once(self) -> None:
        """Bring everything up to now into the store; returns when it is applied.

        Waits for as long as the store is away. Raises `Fenced`.
        """
        state, runtime, metrics = self._state, self._ctx.runtime, self._ctx.metrics
        state.urgent = False
        if not self.has_epoch:
            await self._patiently("fence", self.take_epoch)
        self.last_commit_ns = begin_ns = runtime.monotonic_ns()
        if not state.live.is_dirty() and not self._extras.wants_commit():
            state.uncommitted_bytes = state.oldest_uncommitted_ns = 0
            state.note_covered(state.journal.last_seq)
            state.note_commit_done()
            return
        cut = await self._cut()
        runtime.failpoint(FP_CUT)
        rewrites = state.journal.rewrites
        await self._step("sync", state.journal.wait_synced(cut.op_seq))
        runtime.failpoint(FP_CUT_SYNCED)
        if state.journal.rewrites != rewrites:
            # The sync failed: the snapshot's pieces lie where nothing can be trusted.
            cut.snapshot.close()
            await self._give_up_cut("the disk refused to sync the journal")
            return
        try:
            counts = await self._step("delta", self._delta(cut))
        except LocalDiskFull as error:
            await self._give_up_cut(str(error))
            return
        runtime.failpoint(FP_DELTA)
        body = await self._step("seal", self._seal_and_upload(cut, counts))
        runtime.failpoint(FP_UPLOADED)
        published = await self._step("publish", self._publish(cut, body))
        if published is not None:
            footer, data = published
            runtime.failpoint(FP_PUBLISHED)
            await self._step("apply", self._apply(cut, footer, data))
            self._extras.note_commit(footer)
            metrics.commits_published.add()
            metrics.commit_bytes.add(len(data))
            metrics.commit_inline_bytes.add(footer.inline_length)
            spent_s = (runtime.monotonic_ns() - begin_ns) / 1e9
            metrics.commit_step_seconds["whole"].observe(spent_s)
            log.info("commit %d: %s in %.2f s", footer.seq, counts, spent_s)
        else:
            state.live.merge_dirty()
            state.request_commit()
        self._clean_outbox(cut, body)
        state.note_commit_done()
        await self._extras.after_commit()

    async def _give_up_cut(self, why: str) -> None:
        """Nothing of this cut has left the machine: it is simply made again, a little later."""
        log.warning("the commit is begun again: %s", why)
        self._state.live.merge_dirty()
        self._state.request_commit()
        await trio.sleep(_RETRY_FIRST_S)

    async def _cut(self) -> _CutTaken:
        """Step 1: the CUT record, the flip and the snapshot, in one step of the event loop."""
        self.phase = "cut"
        state, ctx = self._state, self._ctx
        seq = state.committed.head.seq + 1
        delta_db = ctx.local.outbox / f"delta-{seq}.db"
        seal_db = ctx.local.outbox / f"seal-{seq}.db"
        for path in (delta_db, seal_db):
            path.unlink(missing_ok=True)
        snapshot = await ctx.runtime.in_thread(self._prepare, delta_db, seal_db)
        while not state.journal.has_room(0, commits=True):
            with trio.move_on_after(0.5):
                await state.journal.wait_changed()
        appended = state.append(Cut(ctx.runtime.wall_ns()))
        chain = state.journal.chain
        state.cuts[appended.op_seq] = chain
        state.live.end_transaction()
        flip = state.live.flip_dirty()
        state.live.end_transaction()
        snapshot.freeze()
        state.note_cut()
        return _CutTaken(
            op_seq=appended.op_seq,
            chain=chain,
            flip=flip,
            watermark=state.live.tree.counter("watermark"),
            snapshot=snapshot,
            delta_db=delta_db,
            seal_db=seal_db,
        )

    def _prepare(self, delta_db: Path, seal_db: Path) -> Snapshot:
        return self._state.live.prepare_snapshot(
            self._ctx.local.committed, delta_db, seal_db, committed_vfs=self._ctx.disk.sqlite_vfs
        )

    async def _delta(self, cut: _CutTaken) -> DeltaCounts:
        counts = await self._ctx.runtime.in_thread(write_delta, cut.snapshot, cut.flip)
        await self._ctx.runtime.in_thread(self._extras.before_seal, cut.seal_db)
        await self._ctx.runtime.in_thread(forget_named, self._outbox, self._state.committed)
        return counts

    async def _seal_and_upload(self, cut: _CutTaken, counts: DeltaCounts) -> CommitBody:
        """Steps 3 and 4: packs are sent while the next ones are sealed, a few at a time."""
        while True:
            try:
                return await self._patiently("seal", lambda: self._seal_attempt(cut, counts))
            except WorkerDied:
                log.warning("the worker process died while it was sealing: beginning again")
                await trio.sleep(_RETRY_FIRST_S)

    async def _seal_attempt(self, cut: _CutTaken, counts: DeltaCounts) -> CommitBody:
        count = await self._worker.begin(self._seal_job(cut, counts))
        limit = trio.Semaphore(_UPLOADS_AT_ONCE)
        failure: list[BaseException] = []

        async def send(pack: SealedPack) -> None:
            try:
                await self._patiently("upload", lambda: self._worker.upload(pack))
                self._ctx.metrics.commit_pack_bytes.add(pack.size)
                self._ctx.runtime.failpoint(FP_PACK_SENT)
            except (WorkerDied, StoreError) as error:
                failure.append(error)
            finally:
                limit.release()

        async with trio.open_nursery() as nursery:
            for number in range(count):
                await limit.acquire()
                if failure:
                    break
                try:
                    pack = await self._worker.seal_pack(number)
                except (WorkerDied, StoreError) as error:
                    # Not out of the nursery: that would wrap it in a group that nobody catches.
                    failure.append(error)
                    limit.release()
                    break
                if pack is None:
                    limit.release()
                    continue
                nursery.start_soon(send, pack)
        if failure:
            raise failure[0]
        self._ctx.runtime.failpoint(FP_SEALED)
        body = await self._patiently("seal", self._worker.finish)
        await self._worker.end()
        self._ctx.metrics.packs_reused.add(body.reused_packs)
        self._ctx.metrics.upload_parts_resumed.add(body.resumed_parts)
        if body.unmovable:
            log.error("chunks in %s cannot be moved: missing or damaged", body.unmovable)
            self._extras.leave_alone(body.unmovable)
        if body.damaged:
            kept = await self._ctx.runtime.in_thread(self._keep_damaged, cut, body.damaged)
            log.error(
                "journal records of chunks %s are damaged, reads of them give EIO; "
                "the segments that hold them are kept in %s",
                body.damaged,
                kept,
            )
            self._ctx.metrics.corruption_detected("journal_record").add(len(body.damaged))
        return body

    def _keep_damaged(self, cut: _CutTaken, chunks: Sequence[int]) -> Path:
        """Copy the segments that hold damaged records aside, before they are recycled."""
        directory = self._ctx.local.aside / f"damaged-{cut.op_seq}"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        seal_list = SealList(cut.seal_db)
        try:
            numbers = {piece.segment for chunk in chunks for piece in seal_list.pieces(chunk)}
        finally:
            seal_list.close()
        for number, path in self._state.journal.segment_files().items():
            if number in numbers:
                file = self._ctx.disk.open(Path(path))
                try:
                    (directory / Path(path).name).write_bytes(file.pread(file.size(), 0))
                finally:
                    file.close()
        return directory

    def _seal_job(self, cut: _CutTaken, counts: DeltaCounts) -> SealJob:
        ctx, state = self._ctx, self._state
        free = ctx.disk.free_bytes(ctx.local.root)
        in_flight = ctx.volume.pack_bytes * (_UPLOADS_AT_ONCE + 1)
        return SealJob(
            seal_db=str(cut.seal_db),
            delta_db=str(cut.delta_db),
            outbox=str(ctx.local.outbox),
            segments=state.journal.segment_files(),
            epoch=state.committed.head.epoch,
            seq=state.committed.head.seq + 1,
            pack_bytes=ctx.volume.pack_bytes,
            inline_bytes_max=ctx.settings.inline_bytes_max,
            chain=cut.chain,
            chains=tuple(state.cuts.values()),
            multipart=ctx.settings.multipart,
            part_bytes=ctx.settings.part_bytes,
            keep_in_outbox=free > min(in_flight, counts.chunk_bytes) + (64 << 20),
        )

    async def _publish(self, cut: _CutTaken, body: CommitBody) -> tuple[CommitFooter, bytes] | None:
        """Step 5: create `log/<seq>`. The bytes are frozen from the first attempt on."""
        dense_from, kept = self._extras.window()
        footer = self._publisher.footer(
            epoch=self._state.committed.head.epoch,
            chain=cut.chain,
            op_seq=cut.op_seq,
            dense_from=dense_from,
            kept=kept,
            inline_length=body.inline_length,
            delta_length=body.delta_length,
            placements_length=body.placements_length,
            delta_hash=body.delta_hash,
        )
        head = await self._ctx.runtime.in_thread(Path(body.path).read_bytes)
        data = head + encode_footer(footer)
        created = await self._patiently("publish", lambda: self._publisher.create(data, footer))
        return (footer, data) if created else None

    async def _apply(self, cut: _CutTaken, footer: CommitFooter, data: bytes) -> None:
        """Step 6: committed.db, synced; then nothing needs the journal behind the cut."""
        ctx, state = self._ctx, self._state
        placements = ctx.local.outbox / f"placements-{footer.seq}.db"
        head = await self._apply_patiently(cut, placements, footer, commit_digest(data))
        state.committed.head = head
        ctx.runtime.failpoint(FP_APPLIED)
        while not state.live.empty_dirty_some(cut.flip, _FORGET_ROWS_STEP):
            await trio.lowlevel.checkpoint()
        await ctx.runtime.in_thread(self._cache_inline, footer, data)
        await ctx.runtime.in_thread(remember_last_cut, ctx.local, cut.op_seq)
        state.journal.recycle(cut.op_seq)
        ctx.runtime.failpoint(FP_RECYCLED)
        ctx.metrics.volume_seq.set(head.seq)
        state.note_covered(cut.op_seq)
        for op_seq in [known for known in state.cuts if known < cut.op_seq]:
            del state.cuts[op_seq]
        await ctx.runtime.in_thread(forget_named, self._outbox, state.committed)
        while not state.live.extents.forget_pieces(cut.watermark, _FORGET_ROWS_STEP):
            await trio.lowlevel.checkpoint()

    async def _apply_patiently(
        self, cut: _CutTaken, placements: Path, footer: CommitFooter, digest: bytes
    ) -> Head:
        """The commit is in the store and must be applied: wait out a full local disk."""
        state = self._state
        while True:
            try:
                async with state.applying:
                    return await self._ctx.runtime.in_thread(
                        state.committed.apply_commit, cut.delta_db, placements, footer, digest
                    )
            except LocalDiskFull as error:
                log.warning("%s", error)
                await trio.sleep(1.0)

    def _cache_inline(self, footer: CommitFooter, data: bytes) -> None:
        if footer.inline_length:
            self._cache.put_object(log_key(footer.seq), memoryview(data)[: footer.inline_length])

    def _clean_outbox(self, cut: _CutTaken, body: CommitBody) -> None:
        placements = self._ctx.local.outbox / f"placements-{Path(body.path).name.split('-')[-1]}.db"
        for path in (cut.delta_db, cut.seal_db, Path(body.path), placements):
            path.unlink(missing_ok=True)

    # --- patience ------------------------------------------------------------------------

    async def _step(self, name: str, work: Awaitable[T]) -> T:
        """Carry out a step, timed, with its name in the status."""
        self.phase = name
        begin_ns = self._ctx.runtime.monotonic_ns()
        result = await work
        spent_s = (self._ctx.runtime.monotonic_ns() - begin_ns) / 1e9
        self._ctx.metrics.commit_step_seconds[name].observe(spent_s)
        return result

    async def _patiently(self, name: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """Repeat an attempt until the store takes it: a store that is away is no error.

        Permanent errors of the store (access denied, bucket gone) are waited out, too, loudly:
        a person can cure them, and nothing is lost meanwhile.
        """
        delay_s = _RETRY_FIRST_S
        while True:
            try:
                result = await attempt()
            except StoreError as error:
                if name in self._ctx.metrics.commit_failures:
                    self._ctx.metrics.commit_failures[name].add()
                text = f"{name}: {error}"
                if text != self.last_error:
                    level = logging.WARNING if error.retryable else logging.ERROR
                    log.log(level, "commit waits at %s", text)
                self.last_error = text
                self._state.online = False
                await trio.sleep(delay_s)
                delay_s = min(delay_s * 2, _RETRY_MAX_S)
                continue
            if self.last_error:
                log.info("the store answers again")
            self.last_error = ""
            self._state.online = True
            return result

    async def _fenced(self, error: Fenced) -> None:
        """A newer epoch owns the volume: publish nothing more, keep everything, say where."""
        self.phase = "fenced"
        self._ctx.metrics.fenced.set(1)
        root = self._ctx.local.root
        self._state.turn_read_only(
            f"{error}. Changes that were not published are kept in {root}; the next mount with "
            f"this directory moves them to {self._ctx.local.aside}"
        )
        await trio.lowlevel.checkpoint()
