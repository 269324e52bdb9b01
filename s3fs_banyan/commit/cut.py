"""Taking a cut: the CUT record, the flip of the dirty sets and the snapshot, in one step.

Commits and local cuts begin alike; only what they seal, and against which database, differs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import trio

from s3fs_banyan.commit.base_packs import BasePacks
from s3fs_banyan.commit.context import Context
from s3fs_banyan.commit.state import EngineState
from s3fs_banyan.journal.disk import DiskFile
from s3fs_banyan.meta.live import Snapshot
from s3fs_banyan.meta.seal_list import SealList
from s3fs_banyan.model import Cut

log = logging.getLogger(__name__)

DIRTY_ROWS_STEP = 100
"""So many keys are moved or forgotten at once: about half a millisecond of the event loop."""
_SECTOR_BYTES: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class CutTaken:
    """A cut, and what is needed to make a delta of it."""

    op_seq: int
    chain: int
    flip: int
    """The dirty set that it took."""
    watermark: int
    snapshot: Snapshot
    delta_db: Path
    seal_db: Path

    def clean(self) -> None:
        """Remove the files of this cut."""
        for path in (self.delta_db, self.seal_db):
            path.unlink(missing_ok=True)


async def take_cut(
    ctx: Context, state: EngineState, name: str, *, busy: int | None = None
) -> CutTaken:
    """Cut here: appends the CUT record (not yet synced), flips the dirty sets, snapshots.

    `name` tells the files of this cut in the outbox from others'; `busy` is the dirty set of a
    commit on its way. Waits for room in the journal. Not safe to cancel after it began.
    """
    delta_db = ctx.local.outbox / f"delta-{name}.db"
    seal_db = ctx.local.outbox / f"seal-{name}.db"
    for path in (delta_db, seal_db):
        path.unlink(missing_ok=True)
    base = state.base.path if state.base is not None else None

    def prepare() -> Snapshot:
        return state.live.prepare_snapshot(
            ctx.local.committed, delta_db, seal_db, committed_vfs=ctx.disk.sqlite_vfs, base=base
        )

    snapshot = await ctx.runtime.in_thread(prepare)
    while not state.journal.has_room(0, commits=True):
        with trio.move_on_after(0.5):
            await state.journal.wait_changed()
    appended = state.append(Cut(ctx.runtime.wall_ns()))
    chain = state.journal.chain
    state.cuts[appended.op_seq] = chain
    state.live.end_transaction()
    flip = state.live.flip_dirty(busy)
    state.live.end_transaction()
    snapshot.freeze()
    return CutTaken(
        op_seq=appended.op_seq,
        chain=chain,
        flip=flip,
        watermark=state.live.tree.counter("watermark"),
        snapshot=snapshot,
        delta_db=delta_db,
        seal_db=seal_db,
    )


async def undo_cut(state: EngineState, cut: CutTaken) -> None:
    """Nothing of this cut counts: its keys are dirty again. The CUT record stays, harmlessly."""
    while not state.live.move_dirty_some(cut.flip, None, DIRTY_ROWS_STEP):
        await trio.lowlevel.checkpoint()
    cut.clean()


async def forget_pieces(state: EngineState, cut: CutTaken) -> None:
    """The chunks of this cut have places: forget where they were in the journal."""
    while not state.live.extents.forget_pieces(cut.watermark, DIRTY_ROWS_STEP):
        await trio.lowlevel.checkpoint()


async def report_damaged(
    ctx: Context, state: EngineState, cut: CutTaken, chunks: Sequence[int]
) -> None:
    """Bytes of these chunks rotted before they were sealed: keep what holds them, say so."""
    if not chunks:
        return
    kept = await ctx.runtime.in_thread(_keep_damaged, ctx, state, cut, chunks)
    log.error(
        "bytes of chunks %s are damaged, reads of them give EIO; the files that hold them are "
        "kept in %s",
        chunks,
        kept,
    )
    ctx.metrics.corruption_detected("journal_record").add(len(chunks))


def _keep_damaged(ctx: Context, state: EngineState, cut: CutTaken, chunks: Sequence[int]) -> Path:
    """Copy segments and base packs that hold damaged bytes aside, before they are given up."""
    directory = ctx.local.aside / f"damaged-{cut.op_seq}"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    seal_list = SealList(cut.seal_db)
    try:
        numbers = {piece.segment for chunk in chunks for piece in seal_list.pieces(chunk)}
        keys = seal_list.sources(chunks)
    finally:
        seal_list.close()
    segments = state.journal.segment_files()
    files = [Path(path) for number, path in segments.items() if number in numbers]
    files += [BasePacks(ctx.disk, ctx.local.base_packs).path(key) for key in sorted(keys)]
    for path in (path for path in files if ctx.disk.exists(path)):  # what is lost may be a file
        file = ctx.disk.open(path)
        try:
            with (directory / path.name).open("wb") as copy:
                _copy_readable(file, copy)
        finally:
            file.close()
    return directory


def _copy_readable(file: DiskFile, copy: BinaryIO) -> None:
    """Copy what can be read; sectors that cannot are holes in the copy, and named in the log."""
    size = file.size()
    for begin in range(0, size, _SECTOR_BYTES):
        try:
            data = file.pread(min(_SECTOR_BYTES, size - begin), begin)
        except OSError as error:
            log.error("bytes %d to %d of %s: %s", begin, begin + _SECTOR_BYTES, copy.name, error)
            continue
        copy.seek(begin)
        copy.write(data)
    copy.truncate(size)
