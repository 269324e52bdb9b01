"""Local cuts: while the store is away, the journal is freed of what has died (decision 14).

    1 cut        a CUT record; dirty set flipped, snapshot opened; the journal synced up to it
    2 seal       living chunks without a place go to base packs, synced with their names
    3 apply      base.db moves to the cut in one synced transaction
    4 recycle    the journal behind the cut; base packs in which nothing lives

A death before step 3 is done leaves base packs that nothing names; after it, base.db is the base
of recovery. Nothing leaves the machine here, and nobody is told that anything is in the store.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import trio

from s3fs_banyan.commit.base_packs import BasePacks
from s3fs_banyan.commit.compaction import choose_holed
from s3fs_banyan.commit.context import Context
from s3fs_banyan.commit.cut import (
    DIRTY_ROWS_STEP,
    CutTaken,
    forget_pieces,
    report_damaged,
    take_cut,
    undo_cut,
)
from s3fs_banyan.commit.local_base import drop_local_base
from s3fs_banyan.commit.outbox import Outbox
from s3fs_banyan.commit.seal_job import LocalBody, SealingLost, SealJob
from s3fs_banyan.commit.state import EngineState
from s3fs_banyan.commit.worker import Worker
from s3fs_banyan.errors import LocalDiskFull, SealFailed, StoreError
from s3fs_banyan.meta.base import Base, base_files, begin_base
from s3fs_banyan.meta.database import open_database
from s3fs_banyan.meta.delta import DeltaCounts, add_moves, gone_keys, write_local_delta
from s3fs_banyan.meta.live import HELD
from s3fs_banyan.runtime import register_failpoint

log = logging.getLogger(__name__)

_AGAIN_NS: Final = 10_000_000_000
"""Time between two local cuts for the sake of writers that wait."""

FP_LOCAL_CUT = register_failpoint(
    "local-cut", "local cut, step 1 done: the CUT record is on the disk"
)
FP_LOCAL_SEALED = register_failpoint(
    "local-cut-sealed", "local cut, step 2 done: base packs are synced, nothing names them"
)
FP_LOCAL_APPLIED = register_failpoint(
    "local-cut-applied", "local cut, step 3 done: base.db stands at the cut"
)
FP_LOCAL_RECYCLED = register_failpoint(
    "local-cut-recycled", "local cut, step 4 done: the journal is recycled behind it"
)


class LocalCutter:
    """Makes local cuts for the committer, which waits for the store meanwhile. One task."""

    def __init__(self, ctx: Context, state: EngineState, worker: Worker) -> None:
        self._ctx = ctx
        self._state = state
        self._worker = worker
        self._packs = BasePacks(ctx.disk, ctx.local.base_packs)
        self._outbox = Outbox(ctx.local.outbox)
        self._backlog_after = 0
        """How much of the backlog the last local cut could not free, and another could not."""
        self._again_ns = 0
        """When writers that wait are reason enough for one that was put off."""

    def is_due(self) -> bool:
        """Tell whether the journal has grown enough to be worth a local cut.

        One in which writers wait for room does not grow, and only a cut can give them any.
        """
        state, least = self._state, self._ctx.settings.local_cut_bytes
        if state.read_only_reason:
            return False
        backlog = state.journal.backlog_bytes
        self._backlog_after = min(self._backlog_after, backlog)
        if backlog - self._backlog_after >= least:
            return True
        if state.is_disk_full:
            least = min(least, self._ctx.settings.journal.segment_bytes)
        now_ns = self._ctx.runtime.monotonic_ns()
        return bool(state.waiting_writers) and backlog >= least and now_ns >= self._again_ns

    def make_room(self) -> None:
        """The store may be away: spare segments would lie beside all that waits for it."""
        try:
            self._state.journal.spares.keep_few()
        except OSError as error:
            log.warning("spare segments stay: %s", error)

    def need_no_room(self) -> None:
        """The store is there, so nothing piles up."""
        if self._state.base is None:
            self._state.journal.spares.keep_usual()

    async def cut(self, *, frozen: int | None, forget_gone: bool) -> bool:
        """Make a local cut; true if the journal could be freed.

        `frozen` is the dirty set of a commit whose PUT was started, `forget_gone` as in
        `write_local_delta`. What fails here changes nothing: the cut is made again later.
        """
        state, ctx = self._state, self._ctx
        begin_ns = ctx.runtime.monotonic_ns()
        try:
            base = await self._base()
        except LocalDiskFull as error:
            return self._put_off(str(error))
        cut = await take_cut(ctx, state, "local", busy=frozen)
        rewrites = state.journal.rewrites
        await state.journal.wait_synced(cut.op_seq)
        ctx.runtime.failpoint(FP_LOCAL_CUT)
        if state.journal.rewrites != rewrites:
            cut.snapshot.close()
            await undo_cut(state, cut)
            return self._put_off("the disk refused to sync the journal")
        try:
            state.journal.spares.keep_few()  # the base packs of this cut lie beside the journal
            counts = await self._delta(cut, base, frozen, forget_gone=forget_gone)
            body = await self._seal(cut, base)
            ctx.runtime.failpoint(FP_LOCAL_SEALED)
            needed = await self._apply(cut, base, body)
        except (LocalDiskFull, StoreError, SealFailed, SealingLost, OSError) as error:
            await undo_cut(state, cut)
            return self._put_off(str(error))
        ctx.runtime.failpoint(FP_LOCAL_APPLIED)
        await self._hold(cut, await ctx.runtime.in_thread(gone_keys, cut.delta_db))
        state.journal.recycle(cut.op_seq)
        await forget_pieces(state, cut)
        await ctx.runtime.in_thread(self._packs.keep_only, needed)
        # What lives of them is in base packs now, as it would be sealed again.
        await ctx.runtime.in_thread(self._outbox.forget_unsent)
        cut.clean()
        Path(body.placements).unlink(missing_ok=True)
        state.base_bytes = base.packs_bytes()
        # What was written meanwhile counts as grown: a slow cut may be due again at once.
        backlog = state.journal.backlog_bytes
        self._backlog_after = backlog - state.journal.freed_by_next_cut(cut.op_seq)
        self._again_ns = ctx.runtime.monotonic_ns() + _AGAIN_NS
        ctx.runtime.failpoint(FP_LOCAL_RECYCLED)
        ctx.metrics.local_cuts.add()
        spent_s = (ctx.runtime.monotonic_ns() - begin_ns) / 1e9
        log.info(
            "local cut %d: %s in %.2f s, base packs hold %d MiB",
            base.head.number,
            counts,
            spent_s,
            state.base_bytes >> 20,
        )
        return True

    def _put_off(self, why: str) -> bool:
        self._backlog_after = self._state.journal.backlog_bytes
        self._again_ns = self._ctx.runtime.monotonic_ns() + _AGAIN_NS
        log.warning("no local cut now: %s", why)
        return False

    # --- steps ---------------------------------------------------------------------------

    async def _base(self) -> Base:
        """Return the open base.db, or begin one at committed.db's cut."""
        state, ctx = self._state, self._ctx
        if state.base is not None:
            return state.base

        def begin() -> Base:
            for path in base_files(ctx.local.base):
                ctx.disk.unlink(path)
            vfs = ctx.disk.sqlite_vfs
            source = open_database(ctx.local.committed, vfs=vfs, durable=True, read_only=True)
            try:
                return begin_base(ctx.local.base, source, state.committed.head, vfs=vfs)
            finally:
                source.close()

        async with state.applying:
            state.base = await ctx.runtime.in_thread(begin)
        return state.base

    async def _delta(
        self, cut: CutTaken, base: Base, frozen: int | None, *, forget_gone: bool
    ) -> DeltaCounts:
        def write() -> DeltaCounts:
            counts = write_local_delta(cut.snapshot, cut.flip, frozen, forget_gone=forget_gone)
            with base.view() as view:
                holed = choose_holed(view.packs(), self._moved_bytes_max(counts.chunk_bytes))
                add_moves(view, cut.seal_db, [pack.id for pack in holed])
            return counts

        return await self._ctx.runtime.in_thread(write)

    def _moved_bytes_max(self, young_bytes: int) -> int:
        """Return how much may be moved by a cut that seals so many young bytes.

        Between two cuts no more dies than `local_cut_bytes`, and to free these from packs of which
        a third is dead takes moving twice as many: none are left over for long. After a burst the
        disk holds its bytes twice already, and what is dead can wait for the next cuts.
        """
        least = self._ctx.settings.local_cut_bytes
        return max(least // 2, 2 * least - max(0, young_bytes - least))

    async def _seal(self, cut: CutTaken, base: Base) -> LocalBody:
        ctx, state = self._ctx, self._state
        job = SealJob(
            seal_db=str(cut.seal_db),
            delta_db=str(cut.delta_db),
            outbox=str(ctx.local.outbox),
            segments=state.journal.segment_files(),
            epoch=state.committed.head.epoch,
            seq=state.committed.head.seq + 1,
            pack_bytes=ctx.volume.pack_bytes,
            inline_bytes_max=0,
            base_packs=str(ctx.local.base_packs),
            first_base_pack=base.head.next_pack,
            is_awaited=True,  # the journal grows meanwhile, on a disk that has an end
        )
        for number in range(await self._worker.begin(job)):
            await self._worker.seal_pack(number)
        body = await self._worker.finish_local()
        await self._worker.end()
        await report_damaged(ctx, state, cut, body.damaged)
        return body

    async def _apply(self, cut: CutTaken, base: Base, body: LocalBody) -> set[int]:
        head = base.head._replace(
            op_seq=cut.op_seq,
            chain=cut.chain,
            number=base.head.number + 1,
            next_pack=base.head.next_pack + max(body.pack_count, 1),
        )
        known = {
            op_seq: chain for op_seq, chain in self._state.cuts.items() if op_seq <= cut.op_seq
        }
        async with self._state.applying:
            return await self._ctx.runtime.in_thread(
                base.apply_cut, cut.delta_db, Path(body.placements), head, known
            )

    async def _hold(
        self, cut: CutTaken, gone: dict[str, list[tuple[int | str | bytes, ...]]]
    ) -> None:
        """base.db has the rows of this cut: its keys are held for the next commit, in steps."""
        live = self._state.live
        for table, rows in gone.items():
            for start in range(0, len(rows), DIRTY_ROWS_STEP):
                live.forget_gone(cut.flip, table, rows[start : start + DIRTY_ROWS_STEP])
                await trio.lowlevel.checkpoint()
        while not live.move_dirty_some(cut.flip, HELD, DIRTY_ROWS_STEP):
            await trio.lowlevel.checkpoint()

    # --- after the outage ----------------------------------------------------------------

    async def let_go(self) -> None:
        """Make what was held back dirty again, for the commit that is about to be cut."""
        while not self._state.live.move_dirty_some(HELD, None, DIRTY_ROWS_STEP):
            await trio.lowlevel.checkpoint()

    async def drop_base(self, op_seq: int) -> None:
        """committed.db stands at `op_seq`, synced: a base that is not newer says nothing more."""
        state, ctx = self._state, self._ctx
        base = state.base
        if base is None or base.head.op_seq > op_seq:
            return
        state.base, state.base_bytes = None, 0
        state.journal.spares.keep_usual()
        self._backlog_after = 0
        base.close()
        await ctx.runtime.in_thread(drop_local_base, ctx)
        log.info("the store has everything: %d local cuts are dropped", base.head.number)
