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
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import trio

from s3fs_banyan.commit.budget import RequestBudget
from s3fs_banyan.commit.context import Context
from s3fs_banyan.commit.cut import (
    DIRTY_ROWS_STEP,
    CutTaken,
    forget_pieces,
    report_damaged,
    take_cut,
    undo_cut,
)
from s3fs_banyan.commit.fencing import Publisher
from s3fs_banyan.commit.local import remember_last_cut
from s3fs_banyan.commit.local_cut import LocalCutter
from s3fs_banyan.commit.outbox import Outbox, forget_named
from s3fs_banyan.commit.seal_job import CommitBody, SealedPack, SealingLost, SealJob
from s3fs_banyan.commit.state import NO_OBSTACLE, EngineState, obstacle_of
from s3fs_banyan.commit.store_watch import StoreWatch
from s3fs_banyan.commit.worker import Worker
from s3fs_banyan.data.blocks import BlockCache
from s3fs_banyan.errors import (
    BanyanFSError,
    Fenced,
    LocalDiskFull,
    SealFailed,
    StoreError,
)
from s3fs_banyan.format.commit import CommitFooter, commit_digest, encode_footer
from s3fs_banyan.format.keys import log_key
from s3fs_banyan.gentle_io import read_gently
from s3fs_banyan.meta.committed import Head
from s3fs_banyan.meta.delta import DeltaCounts, write_delta
from s3fs_banyan.runtime import register_failpoint

log = logging.getLogger(__name__)
T = TypeVar("T")

_WORKER_READY_S = 3.0
"""So long before a commit is due the worker is started, if it does not run; or when there is a
pack's worth of bytes for it: whoever writes so much may soon ask for a commit."""

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
_RETRY_MAX_S = 10.0
_LOCAL_CUT_LOOK_S = 1.0


class _StoreAway(BanyanFSError):
    """The store is away and a local cut is due: the commit that waits is given up."""


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
        self._local = LocalCutter(ctx, state, worker)
        self._outbox = Outbox(ctx.local.outbox)
        self.watch = StoreWatch(ctx)
        """A service of its own, to be run beside the committer."""
        self.has_epoch = False
        self._in_doubt = False
        """A commit of this life may be in the store without being applied here."""
        self._away_since_ns = 0
        self._answered_ns = 0
        """When the store last took something."""
        self._taking_epoch = trio.Lock()
        self.phase = "idle"
        """What the committer does at present, for status."""
        self.last_error = ""
        self.last_commit_ns = ctx.runtime.monotonic_ns()
        self.draining = False
        self.budget = RequestBudget(
            interval_s=ctx.settings.commit_interval_s,
            interval_max_s=ctx.settings.budget_interval_max_s,
            requests_per_hour=ctx.settings.requests_per_hour,
            count=ctx.metrics.store_requests.paced,
        )

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
        """Wait until something is dirty and the interval has passed, or someone waits.

        A journal that grows fast meanwhile is reason to see whether the store is there: if it is
        not, local cuts must not wait for the interval.
        """
        state, settings = self._state, self._ctx.settings
        asked_bytes = 0
        while True:
            if (
                not state.oldest_uncommitted_ns
                and not state.urgent
                and not self._extras.wants_commit()
            ):
                self.phase = "idle"
                await state.commit_requests.wait()
            state.commit_requests = trio.Event()
            due_ns = self.last_commit_ns + int(self.budget.interval_s(self.last_commit_ns) * 1e9)
            left_s = (due_ns - self._ctx.runtime.monotonic_ns()) / 1e9
            if left_s < _WORKER_READY_S or state.uncommitted_bytes >= self._ctx.volume.pack_bytes:
                self._worker.expect()
            if state.urgent or left_s <= 0:
                return
            if state.uncommitted_bytes > settings.dirty_bytes_max // 4:
                return
            if state.uncommitted_bytes - asked_bytes >= settings.local_cut_bytes:
                asked_bytes = state.uncommitted_bytes
                await self._patiently("away", self._expect_answer)
                continue
            with trio.move_on_after(min(left_s, 1.0)):
                await state.commit_requests.wait()

    async def take_epoch(self) -> None:
        """Become the writer now; raises the store's errors, `Fenced`."""
        async with self._taking_epoch:
            if self.has_epoch:
                return
            await self._publisher.take_epoch()
            self.has_epoch = True
            self._state.obstacle = NO_OBSTACLE

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
        cut = await self._step("cut", self._cut())
        runtime.failpoint(FP_CUT)
        rewrites = state.journal.rewrites
        await self._step("sync", state.journal.wait_synced(cut.op_seq))
        runtime.failpoint(FP_CUT_SYNCED)
        if state.journal.rewrites != rewrites:
            # The sync failed: the snapshot's pieces lie where nothing can be trusted.
            cut.snapshot.close()
            await self._give_up_cut(cut, "the disk refused to sync the journal")
            return
        try:
            counts = await self._step("delta", self._delta(cut))
            runtime.failpoint(FP_DELTA)
            body = await self._step("seal", self._seal_and_upload(cut, counts))
        except LocalDiskFull as error:
            await self._give_up_cut(cut, str(error))
            return
        except _StoreAway as error:
            await self._give_up_cut(cut, str(error))
            self.phase = "away"
            if self._local.is_due():  # a store that refuses packs may answer questions
                await self._cut_locally(frozen=None)
            await self._patiently("away", self._expect_answer)
            return
        runtime.failpoint(FP_UPLOADED)
        published = await self._publish_and_apply(cut, body)
        if published is not None:
            footer, data = published
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

    async def _publish_and_apply(
        self, cut: CutTaken, body: CommitBody
    ) -> tuple[CommitFooter, bytes] | None:
        """Steps 5 and 6; None if a commit of a former life was adopted instead."""
        try:
            published = await self._step("publish", self._publish(cut, body))
            if published is not None:
                footer, data = published
                self._ctx.runtime.failpoint(FP_PUBLISHED)
                await self._step("apply", self._apply(cut, footer, data))
        except BaseException:
            self._in_doubt = True
            raise
        self._in_doubt = False
        return published

    async def _cut_locally(self, *, frozen: int | None) -> None:
        """Make a local cut. Rows that no commit can have are forgotten when they are gone."""
        forget_gone = self.has_epoch and not self._in_doubt
        await self._local.cut(frozen=frozen, forget_gone=forget_gone)

    async def _give_up_cut(self, cut: CutTaken, why: str) -> None:
        """Nothing names what has left the machine: the cut is simply made again, later."""
        log.warning("the commit is begun again: %s", why)
        with suppress(SealingLost):
            await self._worker.end()
        await undo_cut(self._state, cut)
        self._state.request_commit()
        await trio.sleep(_RETRY_FIRST_S)

    async def _expect_answer(self) -> None:
        answer_s = self._ctx.settings.answer_s
        await self.watch.expect_answer(answer_s, in_doubt=self._local.make_room)
        self._local.need_no_room()

    async def _cut(self) -> CutTaken:
        """Step 1: the CUT record, the flip and the snapshot, in one step of the event loop."""
        await self._local.let_go()
        seq = self._state.committed.head.seq + 1
        cut = await take_cut(self._ctx, self._state, str(seq))
        self._state.note_cut()
        return cut

    async def _delta(self, cut: CutTaken) -> DeltaCounts:
        with_paths = bool(self._ctx.settings.policy.rules)
        write = partial(write_delta, with_paths=with_paths)
        counts = await self._ctx.runtime.in_thread(write, cut.snapshot, cut.flip)
        await self._ctx.runtime.in_thread(self._extras.before_seal, cut.seal_db)
        await self._ctx.runtime.in_thread(forget_named, self._outbox, self._state.committed)
        return counts

    async def _seal_and_upload(self, cut: CutTaken, counts: DeltaCounts) -> CommitBody:
        """Steps 3 and 4: packs are sent while the next ones are sealed, a few at a time."""
        while True:
            try:
                return await self._patiently(
                    "seal", lambda: self._seal_attempt(cut, counts), may_give_up=True
                )
            except SealingLost as error:
                log.warning("the sealing is begun again: %s", error)
                await trio.sleep(_RETRY_FIRST_S)

    async def _seal_attempt(self, cut: CutTaken, counts: DeltaCounts) -> CommitBody:
        count = await self._worker.begin(self._seal_job(cut, counts))
        limit = trio.Semaphore(self._ctx.settings.uploads)
        failure: list[BaseException] = []

        async def send(pack: SealedPack) -> None:
            begin_ns = self._ctx.runtime.monotonic_ns()
            try:
                await self._patiently("upload", lambda: self._worker.upload(pack), may_give_up=True)
                self._note_spent("upload", begin_ns)
                self._ctx.metrics.commit_pack_bytes.add(pack.size)
                self._ctx.runtime.failpoint(FP_PACK_SENT)
            except (SealingLost, StoreError, _StoreAway) as error:
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
                except (SealingLost, StoreError, SealFailed) as error:
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
        body = await self._patiently("seal", self._worker.finish, may_give_up=True)
        await self._worker.end()
        self._ctx.metrics.packs_reused.add(body.reused_packs)
        self._ctx.metrics.upload_parts_resumed.add(body.resumed_parts)
        if body.unmovable:
            log.error("chunks in %s cannot be moved: missing or damaged", body.unmovable)
            self._extras.leave_alone(body.unmovable)
        await report_damaged(self._ctx, self._state, cut, body.damaged)
        return body

    def _seal_job(self, cut: CutTaken, counts: DeltaCounts) -> SealJob:
        ctx, state = self._ctx, self._state
        free = ctx.disk.free_bytes(ctx.local.root)
        in_flight = ctx.volume.pack_bytes * (ctx.settings.uploads + 1)
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
            base_packs=str(ctx.local.base_packs),
            policy=ctx.settings.policy.plain(),
            now_ns=ctx.runtime.wall_ns(),
            is_awaited=state.is_awaited,
        )

    async def _publish(self, cut: CutTaken, body: CommitBody) -> tuple[CommitFooter, bytes] | None:
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
        head = await self._ctx.runtime.in_thread(read_gently, Path(body.path))
        data = head + encode_footer(footer, self._ctx.cipher)
        created = await self._patiently(
            "publish", lambda: self._publisher.create(data, footer), frozen=cut.flip
        )
        return (footer, data) if created else None

    async def _apply(self, cut: CutTaken, footer: CommitFooter, data: bytes) -> None:
        """Step 6: committed.db, synced; then nothing needs the journal behind the cut."""
        ctx, state = self._ctx, self._state
        placements = ctx.local.outbox / f"placements-{footer.seq}.db"
        head = await self._apply_patiently(cut, placements, footer, commit_digest(data))
        state.committed.head = head
        ctx.runtime.failpoint(FP_APPLIED)
        while not state.live.empty_dirty_some(cut.flip, DIRTY_ROWS_STEP):
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
        await forget_pieces(state, cut)
        await self._local.drop_base(cut.op_seq)

    async def _apply_patiently(
        self, cut: CutTaken, placements: Path, footer: CommitFooter, digest: bytes
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

    def _clean_outbox(self, cut: CutTaken, body: CommitBody) -> None:
        placements = self._ctx.local.outbox / f"placements-{Path(body.path).name.split('-')[-1]}.db"
        for path in (Path(body.path), placements):
            path.unlink(missing_ok=True)
        cut.clean()

    # --- patience ------------------------------------------------------------------------

    async def _step(self, name: str, work: Awaitable[T]) -> T:
        """Carry out a step, timed, with its name in the status."""
        self.phase = name
        begin_ns = self._ctx.runtime.monotonic_ns()
        result = await work
        self._note_spent(name, begin_ns)
        return result

    def _note_spent(self, name: str, begin_ns: int) -> None:
        spent_s = (self._ctx.runtime.monotonic_ns() - begin_ns) / 1e9
        self._ctx.metrics.commit_step_seconds[name].observe(spent_s)

    async def _patiently(
        self,
        name: str,
        attempt: Callable[[], Awaitable[T]],
        *,
        frozen: int | None = None,
        may_give_up: bool = False,
    ) -> T:
        """Repeat an attempt until the store takes it: a store that is away is no error.

        Permanent errors of the store (access denied, bucket gone) are waited out, too, loudly,
        as is what fails on this machine: a person can cure them, and nothing is lost meanwhile.
        While it waits it makes local cuts, beside the commit whose dirty set is `frozen` if its
        PUT was started. A commit that no PUT was started for stands in their way: if it
        `may_give_up`, `_StoreAway` is raised once a local cut is due and the store is away.
        """
        delay_s = _RETRY_FIRST_S
        now_ns = self._ctx.runtime.monotonic_ns
        while True:
            begin_ns = now_ns()
            try:
                result = await attempt()
            except (StoreError, SealFailed) as error:
                if name in self._ctx.metrics.commit_failures:
                    self._ctx.metrics.commit_failures[name].add()
                text = f"{name}: {error}"
                if text != self.last_error:
                    level = logging.WARNING if error.retryable else logging.ERROR
                    log.log(level, "commit waits at %s", text)
                self.last_error = text
                self._state.obstacle = obstacle_of(error)
                # An attempt lasts for as long as the layers below try again.
                since_ns = max(begin_ns, self._answered_ns)
                self._away_since_ns = self._away_since_ns or since_ns
                await self._wait_away(delay_s, text, frozen, may_give_up=may_give_up)
                delay_s = min(delay_s * 2, _RETRY_MAX_S)
                continue
            if self.last_error:
                log.info("commits go on; they had waited at %s", self.last_error)
            self.last_error = ""
            self._state.obstacle = NO_OBSTACLE
            self._away_since_ns, self._answered_ns = 0, now_ns()
            return result

    def _away_s(self) -> float:
        """Seconds since the store has answered no attempt at all."""
        if not self._away_since_ns:
            return 0.0
        return (self._ctx.runtime.monotonic_ns() - self._away_since_ns) / 1e9

    async def _wait_away(
        self, seconds: float, why: str, frozen: int | None, *, may_give_up: bool
    ) -> None:
        """Wait before the store is tried again; local cuts are made as they become due."""
        until_s = trio.current_time() + seconds
        has_asked = False
        while (left_s := until_s - trio.current_time()) > 0:
            if self._local.is_due():
                if not may_give_up:
                    await self._cut_locally(frozen=frozen)
                elif not has_asked:
                    has_asked = True
                    await self._stand_aside_if_away(why)
            await trio.sleep(min(left_s, _LOCAL_CUT_LOOK_S))

    async def _stand_aside_if_away(self, why: str) -> None:
        """A local cut is due: raise `_StoreAway` if the store is, or takes nothing for long."""
        try:
            await self._expect_answer()
        except StoreError as error:
            raise _StoreAway(f"the store is away ({why}; {error})") from error
        if self._away_s() >= self._ctx.settings.give_up_s:
            raise _StoreAway(f"the store takes nothing ({why})")

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
