"""The mutable heart of an engine: journal and state together, and who may change them.

The order of a call is written here once: wait for room, then check, append, apply, with no
schedule point between the last three.
"""

from __future__ import annotations

import logging
from typing import Final, Literal

import trio

from s3fs_banyan.commit.context import Context
from s3fs_banyan.commit.recovery import Recovered
from s3fs_banyan.commit.space import LocalSpace
from s3fs_banyan.data.recent import RecentRecords
from s3fs_banyan.errors import NoSpace, ReadOnly, SealFailed, StoreError
from s3fs_banyan.journal.log import Appended, Journal
from s3fs_banyan.meta.base import Base
from s3fs_banyan.meta.committed import Committed
from s3fs_banyan.meta.live import LiveState
from s3fs_banyan.model import Operation, Piece, Place, Rewrite, Write

log = logging.getLogger(__name__)

Obstacle = Literal["", "away", "refused", "local"]
"""Why nothing can be published: no answer of the store, a refusal, this machine's own fault."""
NO_OBSTACLE: Final = ""


def obstacle_of(error: StoreError | SealFailed) -> Obstacle:
    """Return which obstacle a failed attempt to publish has met."""
    if isinstance(error, SealFailed):
        return "local"
    return "away" if error.retryable else "refused"


class EngineState:
    """Journal, live.db and committed.db of a mount. One event loop."""

    def __init__(self, ctx: Context, recovered: Recovered) -> None:
        self.ctx = ctx
        self.journal: Journal = recovered.journal
        self.live: LiveState = recovered.live
        self.committed: Committed = recovered.committed
        self.base: Base | None = recovered.base
        """The newest local cut, while it is newer than the last commit."""
        self.base_bytes = self.base.packs_bytes() if self.base is not None else 0
        """Bytes of base packs."""
        self.cuts = recovered.cuts
        self.set_aside = recovered.set_aside
        self.obstacle: Obstacle = NO_OBSTACLE if recovered.online else "away"
        """What the last attempt to publish has met."""
        self.read_only_reason = ""
        self.broken = False
        self.space = LocalSpace(ctx.disk, ctx.local.root, ctx.runtime)
        # Others may fill the disk between two looks, and a transaction that fails ends the daemon.
        self.live.before_write = self.space.look_now
        self.recent = RecentRecords(ctx.settings.ram_bytes // 2)
        """Where the bytes of WRITEs are noted; the reader's own once there is one."""
        self._change_wanted = trio.Event()
        self.commit_requests = trio.Event()
        self.covered_op_seq = self.committed.head.op_seq
        """Every operation up to here is in the store, or changed nothing."""
        self._covered_changed = trio.Event()
        self.applying = trio.Lock()
        """Held while committed.db is written: one thread at a time has its connection."""
        self.commits_done = 0
        self.urgent = False
        """A commit is wanted now, not at the end of the interval."""
        self.uncommitted_bytes = 0
        """Bytes of WRITE data since the last cut."""
        self.oldest_uncommitted_ns = 0
        self._cut_bytes = 0
        self._cut_oldest_ns = 0
        """The same of what was cut and is on its way."""
        self.note_dirty()
        if self.oldest_uncommitted_ns:
            self.uncommitted_bytes = self.journal.backlog_bytes
        self.waiting_writers = 0
        self._waiting_covered = 0
        self.journal.on_moved = self.live.extents.move_pieces

    @property
    def online(self) -> bool:
        """Whether what is published gets into the store, as far as the last attempt tells."""
        return not self.obstacle

    # --- how far the store is behind -----------------------------------------------------

    @property
    def lag_bytes(self) -> int:
        """Bytes of WRITE data that are not in the store yet, on their way or not."""
        return self._cut_bytes + self.uncommitted_bytes

    @property
    def lag_since_ns(self) -> int:
        """When the oldest change was made that is not in the store yet; 0 if all are."""
        return self._cut_oldest_ns or self.oldest_uncommitted_ns

    def note_dirty(self) -> None:
        """Let a commit be due after the interval if anything is dirty: a backlog, a failed cut."""
        if not self.oldest_uncommitted_ns and self.live.is_dirty():
            self.oldest_uncommitted_ns = self.ctx.runtime.monotonic_ns()
            self.commit_requests.set()

    def note_cut(self) -> None:
        """What was dirty is on its way; a cut that was dropped before is in it."""
        self._cut_bytes += self.uncommitted_bytes
        self._cut_oldest_ns = self._cut_oldest_ns or self.oldest_uncommitted_ns
        self.uncommitted_bytes = self.oldest_uncommitted_ns = 0

    # --- changing ------------------------------------------------------------------------

    def append(self, op: Operation, tid: int = 0) -> Appended:
        """Append and apply one validated operation. The caller has waited for room.

        An apply that fails is a broken invariant: the state is given up, the daemon must end,
        and the next start folds the journal again.
        """
        if self.broken:
            raise ReadOnly("the state is broken; the daemon is ending")
        journal = self.journal
        appended = journal.append(op, tid)
        try:
            self.live.apply(op, appended.op_seq, journal.chain, appended.segment, appended.position)
        except BaseException:
            self.broken = True
            log.critical("operation %d cannot be applied: %r", appended.op_seq, type(op).__name__)
            raise
        if isinstance(op, Write | Rewrite):
            self.recent.put(appended.op_seq, op.data)
            self.uncommitted_bytes += len(op.data)
        if not self.oldest_uncommitted_ns:
            self.oldest_uncommitted_ns = self.ctx.runtime.monotonic_ns()
            self.commit_requests.set()
        return appended

    def check_writable(self) -> None:
        """Raise `ReadOnly` if this mount must not change anything any more."""
        if self.read_only_reason:
            raise ReadOnly(self.read_only_reason)

    def turn_read_only(self, reason: str) -> None:
        """Refuse every change from now on; wakes all who wait."""
        if not self.read_only_reason:
            self.read_only_reason = reason
            self.ctx.metrics.read_only.set(1)
            log.error("this mount is read-only now: %s", reason)
        self.notify_covered()

    @property
    def is_awaited(self) -> bool:
        """Whether somebody stands still until the next cut is carried out, or soon will."""
        if self.waiting_writers or self._waiting_covered:
            return True
        return self.journal.backlog_bytes > self.ctx.settings.dirty_bytes_max // 4

    def has_room(self, byte_count: int, *, frees: bool = False) -> bool:
        """Tell whether an operation with so many bytes may be appended without waiting."""
        return not self.read_only_reason and self._may_append(byte_count, frees=frees)

    async def wait_room(self, byte_count: int, *, frees: bool = False) -> None:
        """Wait until an operation with so many bytes may be appended.

        `frees`: it frees space (unlink, truncate, rmdir) and may use the reserve. Raises
        `NoSpace` if other files fill the local disk and no commit can free enough of ours,
        `ReadOnly` if the mount has become read-only. Safe to cancel.
        """
        self.check_writable()
        if self._may_append(byte_count, frees=frees):
            return
        self.waiting_writers += 1
        begin_ns = self.ctx.runtime.monotonic_ns()
        full_since = -1
        try:
            while not self._may_append(byte_count, frees=frees):
                self.check_writable()
                self.request_commit()
                if self.is_disk_full and not self._over_dirty_max():
                    full_since = self.commits_done if full_since < 0 else full_since
                    is_hopeless = not self.online and not self._fills_the_disk()
                    if is_hopeless or self.commits_done > full_since + 1:
                        raise NoSpace("the local disk is full, and no commit can free enough")
                with trio.move_on_after(0.5):
                    await self.journal.wait_changed()
        finally:
            self.waiting_writers -= 1
            spent_ns = self.ctx.runtime.monotonic_ns() - begin_ns
            self.ctx.metrics.backpressure_wait_seconds.add(spent_ns / 1e9)

    @property
    def is_disk_full(self) -> bool:
        """Whether the local disk has no room for what the journal or the databases need."""
        return self.journal.spares.disk_full or self.space.is_low

    def _fills_the_disk(self) -> bool:
        """Whether it is our own backlog that does: that is waiting, and never an error."""
        ours = self.journal.freeable_bytes + self.ctx.local.waiting_packs_bytes()
        segment_bytes = self.ctx.settings.journal.segment_bytes
        return self.space.would_do(ours - (segment_bytes if self.journal.spares.disk_full else 0))

    def _may_append(self, byte_count: int, *, frees: bool) -> bool:
        if not frees and (self.space.look() or self._over_dirty_max()):
            return False
        return self.journal.has_room(byte_count, use_reserve=frees)

    def _over_dirty_max(self) -> bool:
        backlog = self.journal.backlog_bytes + self.base_bytes
        return backlog > self.ctx.settings.dirty_bytes_max

    # --- durability ----------------------------------------------------------------------

    async def wait_durable(self) -> None:
        """The barrier: every operation appended before is as durable as this mount promises.

        Local: on the local disk. Remote: in the store. Safe to cancel. Raises `ReadOnly` if this
        writer was fenced with changes that were never published: they are not in the volume.
        """
        op_seq = self.journal.last_seq
        await self.journal.wait_synced(op_seq)
        if self.ctx.settings.durability_remote or self.read_only_reason:
            await self.wait_covered(op_seq)

    async def wait_covered(self, op_seq: int) -> None:
        """Wait until every operation up to `op_seq` is in the store. Safe to cancel.

        Raises `ReadOnly` if this writer was fenced: then it never will be.
        """
        self._waiting_covered += 1
        try:
            while self.covered_op_seq < op_seq:
                self.check_writable()
                self.request_commit()
                await self._covered_changed.wait()
        finally:
            self._waiting_covered -= 1

    def request_commit(self) -> None:
        """Ask for a cut as soon as the running commit is done."""
        self.urgent = True
        self.commit_requests.set()

    def note_covered(self, op_seq: int) -> None:
        """Everything up to `op_seq`, the last cut or the last operation, is in the store."""
        self._cut_bytes = self._cut_oldest_ns = 0
        self.covered_op_seq = max(self.covered_op_seq, op_seq)
        self.notify_covered()

    async def wait_commit_done(self) -> None:
        """Wait until a commit was carried out, or the mount turned read-only. Safe to cancel."""
        await self._covered_changed.wait()

    def note_commit_done(self) -> None:
        """A commit was carried out, or nothing was to be committed."""
        self.commits_done += 1
        self.notify_covered()

    def notify_covered(self) -> None:
        """Wake those who wait for the store."""
        self._covered_changed.set()
        self._covered_changed = trio.Event()

    # --- what the reader asks ------------------------------------------------------------

    def pieces(self, chunk: int, start: int, end: int) -> list[Piece]:
        """Return the pieces of a young chunk."""
        return self.live.extents.pieces(chunk, start, end)

    def chunk_length(self, chunk: int) -> int | None:
        """Return a chunk's length."""
        return self.live.extents.chunk_length(chunk)

    def place(self, chunk: int) -> Place | None:
        """Return where a sealed chunk lies: in the store, or in a base pack."""
        place = self.committed.place(chunk)
        if place is None and self.base is not None:
            return self.base.place(chunk)
        return place

    def object_size(self, key: str) -> int | None:
        """Return the size of a store object."""
        return self.committed.object_size(key)
