"""Reclaim: the only place where objects of a volume are deleted. Runs backwards.

    1 choose    dense_from: a checkpoint old enough, verified; kept: hourly checkpoints below it
    2 publish   a commit whose footer says so
    3 look      snapshots and pins, listed *after* that commit
    4 delete    what neither the window, nor a kept commit, nor a snapshot or pin needs

What a kept commit needs is said in `retention.py`. The first commit of an epoch is never deleted.
No pack goes within the grace after its dead commit. Nothing is deleted while the local clock and
the store's differ by more than five minutes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from s3fs_banyan.commit.checkpointer import Checkpointer
from s3fs_banyan.commit.compaction import add_compaction, choose_victims
from s3fs_banyan.commit.context import Context
from s3fs_banyan.commit.log_store import CommitLog
from s3fs_banyan.commit.outbox import Outbox, spared
from s3fs_banyan.commit.retention import is_kept, is_needed
from s3fs_banyan.commit.state import EngineState
from s3fs_banyan.data.blocks import BlockCache
from s3fs_banyan.errors import DataError, ObjectMissing, StoreError
from s3fs_banyan.format.commit import KEPT_MAX, CommitFooter
from s3fs_banyan.format.keys import (
    CHECKPOINT_PIECE_PREFIX,
    DELTA_PREFIX,
    LOG_PREFIX,
    PACK_PREFIX,
    PROBE_PREFIX,
    checkpoint_key,
    parse_log_delta_key,
    parse_log_key,
    parse_pack_key,
)
from s3fs_banyan.meta.committed import Head, PackRow
from s3fs_banyan.remote.base import FileMeta
from s3fs_banyan.remote.layers import multipart_of
from s3fs_banyan.runtime import register_failpoint

log = logging.getLogger(__name__)

FP_RECLAIM_CHOSEN = register_failpoint(
    "reclaim-chosen", "reclaim: a commit moved the window, nothing is deleted"
)
FP_RECLAIM_DELETED = register_failpoint(
    "reclaim-deleted", "reclaim: objects are deleted, rows are not forgotten"
)

CLOCK_SKEW_NS_MAX: Final = 300 * 10**9
_HOUR_NS: Final = 3600 * 10**9
_DAY_NS: Final = 24 * _HOUR_NS
_FENCE_BYTES_MAX: Final = 8 * KEPT_MAX + 4096
_DELETE_BATCH: Final = 500
_COUNTED_AS: Final = {"delta": "commit", "orphan": "pack", "checkpoint_piece": "checkpoint"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What one round deletes."""

    packs: list[PackRow]
    keys: list[tuple[str, int, str]]
    """(key, size, kind for the metric)"""
    uploads: list[tuple[str, str]] = field(default_factory=list)
    """(key, upload id) of multipart uploads that nobody will finish."""


class Reclaimer:
    """Window, compaction and deletion of a mount. One event loop; the committer asks it."""

    def __init__(
        self,
        ctx: Context,
        state: EngineState,
        log_store: CommitLog,
        checkpointer: Checkpointer,
        cache: BlockCache,
    ) -> None:
        self._ctx = ctx
        self._state = state
        self._log = log_store
        self._checkpointer = checkpointer
        self._cache = cache
        self.nursery: trio.Nursery | None = None
        head = state.committed.head
        self._dense_from = head.dense_from
        self._kept = head.kept
        self._verified: set[int] = set()
        self._commit_times: dict[int, int] = {}
        self._compact = False
        self._unmovable: set[str] = set()
        self._written_ns: dict[str, int] = {}
        """When packs were written, as the last listing said."""
        self.last_problem = ""

    # --- what the committer asks ---------------------------------------------------------

    def before_seal(self, seal_db: Path) -> None:
        """Add moves out of half-dead packs to the seal list; in a thread."""
        committed = self._state.committed
        self._compact = False
        with committed.view() as view:
            victims = choose_victims(
                self._movable(view.packs()), committed.head.seq, self._unmovable
            )
            if victims:
                add_compaction(view, seal_db, victims)

    def _movable(self, packs: list[PackRow]) -> list[PackRow]:
        """Leave out packs whose minimum duration is not over, or whose age is not known yet.

        They are billed until then, empty or not: to empty them sooner pays for the bytes twice.
        """
        now_ns = self._ctx.runtime.wall_ns()
        prices = self._ctx.settings.policy.price_of
        movable = []
        for pack in packs:
            price = prices.get(pack.storage_class)
            least_ns = int(price.days_min * _DAY_NS) if price is not None else 0
            if now_ns - self._written_ns.get(pack.key, now_ns) >= least_ns:
                movable.append(pack)
        return movable

    def leave_alone(self, keys: Sequence[str]) -> None:
        """Chunks in these objects could not be moved: not again before the next mount."""
        self._unmovable.update(keys)

    def window(self) -> tuple[int, tuple[int, ...]]:
        """Return what the next commit's footer shall say."""
        return self._dense_from, self._kept

    def wants_commit(self) -> bool:
        """Tell whether a commit is wanted although nothing changed."""
        head = self._state.committed.head
        return self._compact or (self._dense_from, self._kept) != (head.dense_from, head.kept)

    def note_commit(self, footer: CommitFooter) -> None:
        """Count what a reader would have to fold without a new checkpoint."""
        delta_bytes = footer.delta_length + footer.placements_length
        self._checkpointer.note_commit(delta_bytes)

    async def after_commit(self) -> None:
        """Start a checkpoint if one is due; the copy is taken here, between two commits."""
        if self._checkpointer.is_due() and self.nursery is not None:
            await self._checkpointer.start(self.nursery)

    # --- rounds --------------------------------------------------------------------------

    async def run(self) -> None:
        """A round every now and then; ends only by cancellation."""
        while True:
            await trio.sleep(self._ctx.settings.reclaim_every_s)
            if self._state.read_only_reason or not self._state.online:
                continue
            try:
                await self.round()
                self.last_problem = ""
            except (StoreError, DataError) as error:
                self.last_problem = str(error)
                log.warning("reclaim stops for now: %s", error)

    async def round(self) -> None:
        """Choose, publish, look, delete. Raises the store's errors; safe to cancel anywhere."""
        now_ns = await self._store_now()
        if now_ns is None:
            return
        await self._load_times()
        await self._checkpointer.load()
        await self._choose(now_ns)
        if self.wants_commit():
            self._state.request_commit()
            await self._wait_commit()
        head = self._state.committed.head
        if (head.dense_from, head.kept) != (self._dense_from, self._kept):
            return
        self._ctx.runtime.failpoint(FP_RECLAIM_CHOSEN)
        if await self._ctx.runtime.in_thread(self._has_claims, pool="store"):
            log.info("snapshots or pins exist: nothing is deleted")
            return
        with self._checkpointer.held():
            plan = await self._ctx.runtime.in_thread(self._plan, head, now_ns, pool="store")
            await self._delete(plan)

    async def _wait_commit(self) -> None:
        done = self._state.commits_done
        while self._state.commits_done <= done and not self._state.read_only_reason:
            await self._state.wait_commit_done()

    async def _store_now(self) -> int | None:
        """Return the store's clock; None (and a warning) if it and ours differ too much."""
        begin_ns = self._ctx.runtime.wall_ns()
        key = f"{PROBE_PREFIX}clock"
        meta = await self._ctx.runtime.in_thread(self._touch, key, pool="store")
        skew_ns = abs(meta.modified_ns - begin_ns)
        if skew_ns > CLOCK_SKEW_NS_MAX:
            self.last_problem = f"the clocks differ by {skew_ns // 10**9} s"
            log.warning(
                "nothing is reclaimed: the local clock and the store's differ by %d s",
                skew_ns // 10**9,
            )
            return None
        return meta.modified_ns

    def _touch(self, key: str) -> FileMeta:
        self._ctx.store.write(key, b"clock")
        meta = self._ctx.store.stat(key)
        self._ctx.store.delete([key])
        return meta

    async def _load_times(self) -> None:
        metas = await self._ctx.runtime.in_thread(self._list, LOG_PREFIX, pool="store")
        self._commit_times = {
            seq: meta.modified_ns for meta in metas if (seq := parse_log_key(meta.path)) is not None
        }

    def _list(self, prefix: str) -> list[FileMeta]:
        return list(self._ctx.store.list(prefix))

    async def _choose(self, now_ns: int) -> None:
        """Move the window to a checkpoint that is old enough, verified piece by piece."""
        settings = self._ctx.settings
        head = self._state.committed.head
        times = self._commit_times
        checkpoints = [seq for seq in self._checkpointer.kept if seq <= head.seq]
        newest = max(checkpoints, default=-1)
        spacing_ns = int(min(settings.reclaim_window_s / 4, 900) * 1e9)
        packs = await self._ctx.runtime.in_thread(self._packs)
        # The commit that moved the window is no reason to move it again.
        gain = head.seq - newest > 1 or any((pack.dead_seq or 0) > newest for pack in packs)
        if gain and now_ns - times.get(newest, 0) >= spacing_ns:
            self._checkpointer.wanted = True
            self._compact = self._compact or settings.reclaim_window_s == 0
        limit_ns = now_ns - int(settings.reclaim_window_s * 1e9)
        old_enough = [s for s in checkpoints if times.get(s, now_ns) <= limit_ns]
        target = max(old_enough, default=self._dense_from)
        if target > self._dense_from and await self._verify(target):
            self._dense_from = target
        self._kept = await self._choose_kept(checkpoints, now_ns)
        if choose_victims(self._movable(packs), head.seq, self._unmovable):
            self._compact = True

    def _packs(self) -> list[PackRow]:
        with self._state.committed.view() as view:
            return view.packs()

    async def _choose_kept(self, checkpoints: list[int], now_ns: int) -> tuple[int, ...]:
        """One checkpointed commit an hour, below the window and above the horizon."""
        horizon_ns = now_ns - int(self._ctx.settings.reclaim_hourly_s * 1e9)
        hourly: dict[int, int] = {}
        for seq in sorted(checkpoints):
            time_ns = self._commit_times.get(seq)
            if time_ns is None or time_ns < horizon_ns or seq >= self._dense_from:
                continue
            hourly[time_ns // _HOUR_NS] = seq
        verified = [seq for seq in hourly.values() if await self._verify(seq)]
        return tuple(sorted(verified)[-KEPT_MAX:])

    async def _verify(self, seq: int) -> bool:
        """Read a checkpoint back, every piece, once."""
        if seq in self._verified:
            return True
        try:
            await self._ctx.runtime.in_thread(self._read_back, seq, pool="store")
        except (DataError, ObjectMissing) as error:
            log.error("checkpoint %d cannot be relied on: %s", seq, error)
            self._checkpointer.distrust(seq)
            return False
        self._verified.add(seq)
        return True

    def _read_back(self, seq: int) -> None:
        manifest = self._log.read_manifest(seq)
        for _ in self._log.read_pieces(manifest):
            pass

    def _has_claims(self) -> bool:
        return any(True for prefix in ("snapshot/", "pin/") for _ in self._ctx.store.list(prefix))

    # --- what goes -----------------------------------------------------------------------

    def _plan(self, head: Head, now_ns: int) -> _Plan:
        newer = self._log.sequence_numbers(head.seq)
        if newer and self._log.read(newer[-1]).footer.epoch != head.epoch:
            # This writer slept: what it would delete is for the one that took over to judge.
            log.warning("another writer published commit %d: nothing is deleted", newer[-1])
            return _Plan(packs=[], keys=[])
        grace_ns = now_ns - int(self._ctx.settings.reclaim_grace_s * 1e9)
        rows = self._packs()
        packs = [pack for pack in rows if self._is_garbage(pack, head, grace_ns)]
        keys: list[tuple[str, int, str]] = []
        needed_logs = {pack.key for pack in rows} - {pack.key for pack in packs}
        for pack in packs:
            seq = parse_log_key(pack.key)
            if seq is None:
                keys.append((pack.key, pack.size, "pack"))
        keys += self._old_commits(head, needed_logs)
        keys += self._orphan_packs(head, grace_ns)
        keys += self._old_checkpoints(head, grace_ns)
        return _Plan(packs=packs, keys=keys, uploads=list(self._orphan_uploads(head, grace_ns)))

    def _is_garbage(self, pack: PackRow, head: Head, grace_ns: int) -> bool:
        if pack.dead_seq is None or is_needed(pack, head):
            return False
        return self._commit_times.get(pack.dead_seq, 0) <= grace_ns

    def _old_commits(self, head: Head, needed: set[str]) -> Iterable[tuple[str, int, str]]:
        """Commits below the window: not kept, not a fence, no living chunk in them."""
        for meta in self._ctx.store.list(LOG_PREFIX):
            seq = parse_log_key(meta.path)
            if seq is None:
                continue
            if is_kept(seq, head) or meta.path in needed:
                continue
            if meta.size <= _FENCE_BYTES_MAX and self._may_be_fence(seq):
                continue
            yield meta.path, meta.size, "commit"
        for meta in self._ctx.store.list(DELTA_PREFIX):
            seq = parse_log_delta_key(meta.path)
            if seq is not None and not is_kept(seq, head):
                yield meta.path, meta.size, "delta"

    def _may_be_fence(self, seq: int) -> bool:
        """Tell whether a commit is a fence; one that cannot be read may have been, and stays."""
        try:
            return self._log.read(seq).footer.is_fence
        except DataError as error:
            log.error("commit %d below the window stays where it is: %s", seq, error)
            return True

    def _orphan_packs(self, head: Head, grace_ns: int) -> Iterable[tuple[str, int, str]]:
        """Packs of earlier epochs that no commit names: their writer died before it published.

        What the outbox has a record of may yet be named. The records are read first: a record
        that goes meanwhile is of a pack that committed.db names by then.
        """
        known, _ = spared(Outbox(self._ctx.local.outbox))
        known |= {pack.key for pack in self._packs()}
        written_ns: dict[str, int] = {}
        for meta in self._ctx.store.list(PACK_PREFIX):
            written_ns[meta.path] = meta.modified_ns
            parsed = parse_pack_key(meta.path)
            if parsed is None or parsed[0] >= head.epoch or meta.path in known:
                continue
            if meta.modified_ns <= grace_ns:
                yield meta.path, meta.size, "orphan"
        self._written_ns = written_ns

    def _orphan_uploads(self, head: Head, grace_ns: int) -> Iterable[tuple[str, str]]:
        """Multipart uploads of packs that no record of ours knows: nobody will finish them.

        Those of this epoch, too: the daemon died between the start of one and its record. Whoever
        loses an upload that it still wanted begins it again, so this can do no harm.
        """
        if not self._ctx.store.capabilities.multipart:
            return
        _, known = spared(Outbox(self._ctx.local.outbox))
        for key, upload_id, started_ns in multipart_of(self._ctx.store).list_uploads(PACK_PREFIX):
            parsed = parse_pack_key(key)
            if parsed is None or parsed[0] > head.epoch or upload_id in known:
                continue
            if started_ns <= grace_ns:
                yield key, upload_id

    def _abort(self, uploads: Sequence[tuple[str, str]]) -> None:
        parts = multipart_of(self._ctx.store)
        for key, upload_id in uploads:
            parts.abort_upload(key, upload_id)

    def _old_checkpoints(self, head: Head, grace_ns: int) -> Iterable[tuple[str, int, str]]:
        """Manifests outside window and kept ones, and pieces that no other manifest names."""
        stay: set[str] = set()
        gone = []
        is_known = not self._checkpointer.is_running
        for seq in self._log.checkpoints():
            if not is_kept(seq, head):
                gone.append(seq)
                continue
            try:
                stay.update(self._log.read_manifest(seq).pieces)
            except DataError as error:
                log.error("no pieces are deleted: checkpoint %d may need any: %s", seq, error)
                is_known = False
        for seq in gone:
            yield checkpoint_key(seq), 0, "checkpoint"
        if not is_known:
            return
        for meta in self._ctx.store.list(CHECKPOINT_PIECE_PREFIX):
            name = meta.path.removeprefix(CHECKPOINT_PIECE_PREFIX)
            if name not in stay and meta.modified_ns <= grace_ns:
                yield meta.path, meta.size, "checkpoint_piece"

    async def _delete(self, plan: _Plan) -> None:
        """Manifests go first, pieces after them: no manifest ever names a missing piece."""
        pieces = {
            key.removeprefix(CHECKPOINT_PIECE_PREFIX)
            for key, _, kind in plan.keys
            if kind == "checkpoint_piece"
        }
        self._checkpointer.forget_pieces(pieces)
        keys = [key for key, _, _ in plan.keys]
        for start in range(0, len(keys), _DELETE_BATCH):
            batch = keys[start : start + _DELETE_BATCH]
            await self._ctx.runtime.in_thread(self._ctx.store.delete, batch, pool="store")
        if plan.uploads:
            await self._ctx.runtime.in_thread(self._abort, plan.uploads, pool="store")
            self._ctx.metrics.reclaimed("upload", objects=len(plan.uploads), size_bytes=0)
            log.info("aborted %d multipart uploads that nobody will finish", len(plan.uploads))
        self._ctx.runtime.failpoint(FP_RECLAIM_DELETED)
        gone = set(keys)
        ids = [p.id for p in plan.packs if p.key in gone]
        if ids:
            async with self._state.applying:
                await self._ctx.runtime.in_thread(self._state.committed.forget_packs, ids)
        for key in keys:
            await self._ctx.runtime.in_thread(self._cache.forget, key)
        for _, size, kind in plan.keys:
            counted_as = _COUNTED_AS.get(kind, kind)
            self._ctx.metrics.reclaimed(counted_as, objects=1, size_bytes=size)
        self._checkpointer.forget_checkpoints(
            seq
            for key, _, kind in plan.keys
            if kind == "checkpoint" and (seq := int(key[-20:])) >= 0
        )
        if keys:
            log.info("reclaimed %d objects", len(keys))
