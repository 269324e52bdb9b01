"""Epochs and fences: who is the writer. Rules: architecture, section 4.

Becoming the writer: journal and sync the operation EPOCH(epoch + 1, 16 random bytes), then
create the next log object as a fence. A fence is no cut: it moves seq and epoch only.
"""

from __future__ import annotations

import logging
from functools import partial

import trio

from s3fs_banyan.commit.context import Context
from s3fs_banyan.commit.local import remember_epoch
from s3fs_banyan.commit.log_store import CommitLog, StoredCommit
from s3fs_banyan.commit.state import EngineState
from s3fs_banyan.errors import AlreadyExists, Fenced, ObjectMissing
from s3fs_banyan.format.commit import CommitFooter, commit_digest, encode_footer
from s3fs_banyan.format.keys import log_key
from s3fs_banyan.meta.committed import Head
from s3fs_banyan.model import BeginEpoch
from s3fs_banyan.runtime import register_failpoint

log = logging.getLogger(__name__)

FP_EPOCH_SYNCED = register_failpoint(
    "epoch-synced", "the EPOCH record is on the disk, no fence yet"
)
FP_FENCE_PUBLISHED = register_failpoint(
    "fence-published", "the fence is in the store, committed.db does not know"
)
FP_FENCE_APPLIED = register_failpoint("fence-applied", "committed.db knows the fence")


class Publisher:
    """Creates log objects, and tells from a collision whose it was."""

    def __init__(
        self, ctx: Context, state: EngineState, log_store: CommitLog, writer: bytes
    ) -> None:
        self._ctx = ctx
        self._state = state
        self._log = log_store
        self._writer = writer

    def footer(self, **fields: object) -> CommitFooter:
        """Return a footer that follows committed.db's head."""
        head = self._state.committed.head
        base: dict[str, object] = {
            "seq": head.seq + 1,
            "writer": self._writer,
            "predecessor": head.digest,
            "time_ns": max(head.time_ns + 1, self._ctx.runtime.wall_ns()),
            "dense_from": head.dense_from,
            "kept": head.kept,
            "inline_length": 0,
            "delta_length": 0,
            "placements_length": 0,
        }
        return CommitFooter(**(base | fields))  # type: ignore[arg-type]  # names checked by the class

    async def create(self, data: bytes, footer: CommitFooter) -> bool:
        """Create `log/<seq>`: true if it is there with these bytes.

        False on a collision with another life of this writer: that commit was adopted, this
        attempt is to be dropped and cut again. Raises `Fenced` if the object is another
        writer's, and the store's errors: after `Unavailable` call again with the same bytes.
        """
        key = log_key(footer.seq)
        try:
            await self._ctx.runtime.in_thread(self._write, key, data, pool="store")
            return True
        except AlreadyExists:
            there = await self._ctx.runtime.in_thread(self._log.read, footer.seq, pool="store")
        if there.digest == commit_digest(data):
            return True
        if not self._is_former_life(there):
            raise Fenced(
                f"commit {footer.seq} in the store is another writer's (epoch {there.footer.epoch})"
            )
        await self._adopt(there)
        return False

    def _write(self, key: str, data: bytes) -> None:
        self._ctx.store.write(key, data, if_absent=True)

    def _is_former_life(self, there: StoredCommit) -> bool:
        """Same chain at a cut (or an epoch) in this very journal; a writer id is not enough."""
        chain = there.footer.chain
        if there.footer.is_fence:
            return chain in self._state.cuts.values()
        return self._state.cuts.get(there.footer.op_seq) == chain

    async def _adopt(self, there: StoredCommit) -> None:
        """Apply the stored delta and placements of a former life; no dirty set is emptied."""
        state = self._state
        async with state.applying:
            head = await self._ctx.runtime.in_thread(
                self._log.apply, state.committed, there, state.committed.head
            )
        log.info("commit %d of a former life of this mount was adopted", there.footer.seq)
        state.committed.head = head

    async def take_epoch(self) -> None:
        """Become the writer: EPOCH record, fence, and a look whether the fence counts.

        Raises `Fenced` if another writer is faster each time, and the store's errors.
        """
        state, runtime = self._state, self._ctx.runtime
        for _ in range(10):
            head = state.committed.head
            await self._catch_up(head)
            head = state.committed.head
            epoch = max(head.epoch, state.live.tree.counter("epoch")) + 1
            while not state.journal.has_room(0, commits=True):
                with trio.move_on_after(0.5):
                    await state.journal.wait_changed()
            appended = state.append(BeginEpoch(epoch, runtime.random_bytes(16)))
            chain = state.journal.chain
            state.cuts[appended.op_seq] = chain
            await state.journal.wait_synced(appended.op_seq)
            await runtime.in_thread(
                partial(remember_epoch, self._ctx.local, chain, newest=head.fence_chain)
            )
            runtime.failpoint(FP_EPOCH_SYNCED)
            footer = self.footer(epoch=epoch, chain=chain, op_seq=head.op_seq)
            data = encode_footer(footer, self._ctx.cipher)
            if not await self.create(data, footer):
                continue
            runtime.failpoint(FP_FENCE_PUBLISHED)
            newer = await runtime.in_thread(self._log.sequence_numbers, footer.seq, pool="store")
            if newer:
                raise Fenced(f"another writer published commit {newer[-1]} at the same time")
            async with state.applying:
                state.committed.head = await runtime.in_thread(
                    state.committed.apply_commit, None, None, footer, commit_digest(data)
                )
            runtime.failpoint(FP_FENCE_APPLIED)
            self._ctx.metrics.volume_epoch.set(epoch)
            self._ctx.metrics.volume_seq.set(footer.seq)
            log.info("writer of epoch %d, commit %d", epoch, footer.seq)
            return
        raise Fenced("another writer takes the volume over each time this one tries")

    async def _catch_up(self, head: Head) -> None:
        """The log must not have grown since recovery, but by former lives of this mount."""
        runtime = self._ctx.runtime
        numbers = await runtime.in_thread(self._log.sequence_numbers, head.seq, pool="store")
        if head.seq > 0:
            await self._check_own_head(head)
        for seq in numbers:
            there = await runtime.in_thread(self._log.read, seq, pool="store")
            if not self._is_former_life(there):
                raise Fenced(f"another writer published commit {seq}")
            await self._adopt(there)

    async def _check_own_head(self, head: Head) -> None:
        try:
            there = await self._ctx.runtime.in_thread(self._log.read, head.seq, pool="store")
        except ObjectMissing as error:
            raise Fenced(
                f"commit {head.seq} is not in the store any more: it was rolled back"
            ) from error
        if there.digest != head.digest:
            raise Fenced(f"commit {head.seq} in the store is not the one this mount published")
