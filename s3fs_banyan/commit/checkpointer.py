"""Checkpoints: committed.db as of a commit, uploaded beside the next commits.

Due when the deltas since the last one exceed half the database, or after so many commits, or
when reclaim asks for one. The copy is taken between two commits; the upload runs on its own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from s3fs_banyan.commit.context import Context
from s3fs_banyan.commit.log_store import CommitLog
from s3fs_banyan.commit.state import EngineState
from s3fs_banyan.errors import DataError, LocalDiskFull, ObjectMissing, StoreError
from s3fs_banyan.format.keys import CHECKPOINT_PIECE_PREFIX
from s3fs_banyan.gentle_io import remove_gently
from s3fs_banyan.meta.committed import Head
from s3fs_banyan.runtime import register_failpoint

log = logging.getLogger(__name__)

FP_CHECKPOINT_COPIED = register_failpoint(
    "checkpoint-copied", "step 7: the copy is taken, nothing is sent"
)
FP_CHECKPOINT_SENT = register_failpoint(
    "checkpoint-sent", "step 7 done: the manifest is in the store"
)

_DELTA_BYTES_MIN = 4 << 20


class Checkpointer:
    """Decides when a checkpoint is due and writes it. One event loop."""

    def __init__(self, ctx: Context, state: EngineState, log_store: CommitLog) -> None:
        self._ctx = ctx
        self._state = state
        self._log = log_store
        self._known_pieces: set[str] = set()
        self._delta_bytes = 0
        self._commits = 0
        self._running = self._held = False
        self._loaded = False
        self.kept: list[int] = []
        """Commits with a checkpoint known to be whole, ascending."""
        self.wanted = False

    def note_commit(self, delta_bytes: int) -> None:
        """A commit was applied."""
        self._delta_bytes += delta_bytes
        self._commits += 1

    @property
    def is_running(self) -> bool:
        """Tell whether pieces are on their way that no manifest names yet."""
        return self._running

    @contextmanager
    def held(self) -> Iterator[None]:
        """Begin none meanwhile: it could name pieces that are about to be deleted."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def is_due(self) -> bool:
        """Tell whether a checkpoint should be written after this commit."""
        if self._running or self._held:
            return False
        if self.wanted or self._commits >= self._ctx.settings.checkpoint_commits_max:
            return True
        path = self._ctx.local.committed
        size = path.stat().st_size if path.exists() else 0
        return self._delta_bytes > max(_DELTA_BYTES_MIN, size // 2)

    async def write_now(self) -> None:
        """Write a checkpoint of committed.db as it stands; retries while the store is away.

        Safe to cancel: an unfinished one leaves pieces that the next one uses or reclaim removes.
        """
        self._running = True
        try:
            copy, head = await self._copy()
            self._ctx.runtime.failpoint(FP_CHECKPOINT_COPIED)
            await self._send(copy, head)
            self._ctx.runtime.failpoint(FP_CHECKPOINT_SENT)
        finally:
            self._running = False

    async def _copy(self) -> tuple[Path, Head]:
        """Copy between two commits: the caller is the committer, or nothing commits."""
        head = self._state.committed.head
        copy = self._ctx.local.outbox / f"checkpoint-{head.seq}.db"
        copy.unlink(missing_ok=True)
        await self._ctx.runtime.in_thread(self._state.committed.copy_to, copy)
        self._delta_bytes = self._commits = 0
        self.wanted = False
        return copy, head

    async def start(self, nursery: trio.Nursery) -> None:
        """Copy now, send in the background; a disk without room for the copy is for later."""
        self._running = True
        try:
            copy, head = await self._copy()
        except (LocalDiskFull, OSError) as error:
            log.warning("the checkpoint waits: %s", error)
            self._put_off()
            return
        except BaseException:
            self._put_off()
            raise
        self._ctx.runtime.failpoint(FP_CHECKPOINT_COPIED)
        nursery.start_soon(self._send_in_background, copy, head)

    async def _send_in_background(self, copy: Path, head: Head) -> None:
        """Send; a checkpoint is a convenience, and what it meets must not end the mount."""
        begin_ns = self._ctx.runtime.monotonic_ns()
        try:
            await self._send(copy, head)
            spent_s = (self._ctx.runtime.monotonic_ns() - begin_ns) / 1e9
            self._ctx.metrics.commit_step_seconds["checkpoint"].observe(spent_s)
            self._ctx.runtime.failpoint(FP_CHECKPOINT_SENT)
        except Exception:
            log.exception("checkpoint %d could not be sent; another one follows", head.seq)
            self._ctx.metrics.handler_errors.add()
            self.wanted = True
        finally:
            self._running = False

    def _put_off(self) -> None:
        """None is under way, and the next commit begins one."""
        self._running = False
        self.wanted = True

    async def _send(self, copy: Path, head: Head) -> None:
        delay_s = 1.0
        while True:
            try:
                await self.load()
                await self._ctx.runtime.in_thread(
                    self._log.write_checkpoint, copy, head, self._known_pieces, pool="store"
                )
                break
            except StoreError as error:
                log.warning("checkpoint %d waits for the store: %s", head.seq, error)
                await trio.sleep(delay_s)
                delay_s = min(delay_s * 2, 30.0)
        await self._ctx.runtime.in_thread(remove_gently, copy)
        if head.seq not in self.kept:
            self.kept.append(head.seq)
        log.info("checkpoint of commit %d is in the store", head.seq)

    async def load(self) -> None:
        """Learn once which checkpoints and pieces the store has."""
        if self._loaded:
            return
        found = await self._ctx.runtime.in_thread(self._log.checkpoints, pool="store")
        kept: list[int] = []
        known: set[str] = set()
        for seq in sorted(found):
            try:
                manifest = await self._ctx.runtime.in_thread(
                    self._log.read_manifest, seq, pool="store"
                )
            except (DataError, ObjectMissing) as error:
                log.error("checkpoint %d cannot be used: %s", seq, error)
                continue
            kept.append(seq)
            if seq == max(found):
                there = await self._ctx.runtime.in_thread(self._pieces_there, pool="store")
                known = there.intersection(manifest.pieces)
        self.kept += [seq for seq in kept if seq not in self.kept]
        self.kept.sort()
        self._known_pieces |= known
        self._loaded = True

    def _pieces_there(self) -> set[str]:
        metas = self._ctx.store.list(CHECKPOINT_PIECE_PREFIX)
        return {meta.path.removeprefix(CHECKPOINT_PIECE_PREFIX) for meta in metas}

    def distrust(self, seq: int) -> None:
        """Checkpoint `seq` was read back and is not whole: the next one sends all its pieces."""
        self.kept = [known for known in self.kept if known != seq]
        self._known_pieces.clear()
        self.wanted = True

    def forget_pieces(self, names: set[str]) -> None:
        """Reclaim deleted these pieces: they must be sent again when needed."""
        self._known_pieces -= names

    def forget_checkpoints(self, gone: Iterable[int]) -> None:
        """Reclaim deleted these manifests."""
        deleted = set(gone)
        self.kept = [seq for seq in self.kept if seq not in deleted]
