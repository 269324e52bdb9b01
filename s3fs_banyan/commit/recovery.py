"""Recovery: from what the local directory and the store hold to an exact state.

    store reachable    bring committed.db to the newest commit (or make it from a checkpoint)
    local cuts         base.db is the base if it is newer than committed.db and holds its cut
    whose journal      it is ours if the newest fence is ours and the journal holds the record
                       of the newest cut; else it is dropped, or set aside if it holds changes
    same boot          live.db, and the journal behind its last operation
    any doubt          a copy of the base, and the journal behind its cut

The table in `docs/architecture.md` says the same for people; `tests/` kills at every line.
"""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass, field

from s3fs_banyan.commit.context import Context
from s3fs_banyan.commit.local import (
    LocalDirectory,
    load_epochs,
    load_last_cut,
    remember_epoch,
    remember_last_cut,
)
from s3fs_banyan.commit.local_base import (
    continues,
    drop_local_base,
    open_local_base,
    set_local_base_aside,
    tidy_base_packs,
)
from s3fs_banyan.commit.log_store import CommitLog
from s3fs_banyan.commit.space import BALLAST, ballast_bytes
from s3fs_banyan.errors import (
    Corrupt,
    ExitCode,
    LocalDiskFull,
    ObjectMissing,
    Refused,
    StoreError,
)
from s3fs_banyan.journal.log import Journal
from s3fs_banyan.journal.replay import FoundSegment, RawRecord, ReplayEnd, replay, segment_files
from s3fs_banyan.journal.spares import LEAN
from s3fs_banyan.meta.base import Base
from s3fs_banyan.meta.committed import Committed, open_committed
from s3fs_banyan.meta.live import LiveState, create_live, open_live, remove_live
from s3fs_banyan.model import BeginEpoch, Cut

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Recovered:
    """The engine's three logs, open and consistent with each other."""

    journal: Journal
    live: LiveState
    committed: Committed
    online: bool
    """Whether the store was reached; if not, nothing may be published before a check."""
    set_aside: str = ""
    """Where changes went that can never be published."""
    replayed: int = 0
    cuts: dict[int, int] = field(default_factory=dict)
    """Operation number -> journal checksum of every cut and epoch record that is known here."""
    base: Base | None = None
    """The newest local cut, if it is newer than committed.db."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Foundation:
    """What live.db is made from if need be: committed.db, or base.db where that is newer."""

    op_seq: int
    chain: int
    source: Committed | Base
    base: Base | None
    cuts: dict[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _JournalFacts:
    found: list[FoundSegment]
    unsynced: list[RawRecord]
    """Records that may never have been synced: they are rewritten, not synced again."""
    used: list[FoundSegment]
    """Segments with records behind committed.db's cut: young bytes may lie in them."""
    cuts: dict[int, int]
    changes: int
    """Operations behind committed.db's cut that change something."""
    base_found: bool
    """Whether the journal holds committed.db's cut, or begins right behind it."""
    op_seq: int
    """Up to here the journal continues committed.db without a gap."""


def recover(ctx: Context, *, takeover: bool, accept_loss: bool) -> Recovered:
    """Open or rebuild the local state; blocks. The caller holds the directory's lock.

    Raises `Refused` where going on would be unsafe, `Corrupt` for damage that needs a decision,
    `StoreError` if the store is needed and cannot be reached. Nothing is lost in any case.
    """
    log_store = CommitLog(ctx.store, ctx.local.outbox, ctx.cipher)
    committed, online, rolled_back = _open_committed(ctx, log_store, takeover=takeover)
    base: Base | None = None
    try:
        base = open_local_base(ctx)
        ground = _foundation(committed, base)
        facts = _journal_facts(ctx, ground)
        set_aside = ""
        if rolled_back or not _is_ours(ctx.local, committed, ground, facts):
            set_aside = _give_up_journal(ctx, committed, facts, base)
            base = None
            ground = _foundation(committed, None)
            facts = _journal_facts(ctx, ground)
        elif base is not None and ground.base is None:
            base.close()
            base = None
            drop_local_base(ctx)  # a commit that was cut later has everything
        tidy_base_packs(ctx, base)
        live, journal, replayed = _open_live(ctx, ground, facts, accept_loss=accept_loss)
    except BaseException:
        if base is not None:
            base.close()
        committed.close()
        raise
    recovered = Recovered(
        journal=journal,
        live=live,
        committed=committed,
        online=online,
        set_aside=set_aside or _kept_aside(ctx.local),
        replayed=replayed,
        cuts=ground.cuts | facts.cuts,
        base=base,
    )
    log.info(
        "recovered commit %d, operation %d (%d replayed)",
        committed.head.seq,
        live.op_seq,
        replayed,
    )
    return recovered


def _foundation(committed: Committed, base: Base | None) -> _Foundation:
    """Choose the newer of the two databases; base.db counts if it holds committed.db's cut."""
    head = committed.head
    if base is not None and base.head.op_seq > head.op_seq and continues(base, head):
        return _Foundation(
            op_seq=base.head.op_seq,
            chain=base.head.chain,
            source=base,
            base=base,
            cuts=base.cuts(),
        )
    return _Foundation(
        op_seq=head.op_seq,
        chain=head.chain,
        source=committed,
        base=None,
        cuts={},
    )


def _kept_aside(local: LocalDirectory) -> str:
    """Return where changes were set aside in earlier lives, until a person removes them."""
    kept = sorted(path for path in local.aside.glob("*") if any(path.iterdir()))
    return ", ".join(str(path) for path in kept)


# --- committed.db ------------------------------------------------------------------------


def _open_committed(
    ctx: Context, log_store: CommitLog, *, takeover: bool
) -> tuple[Committed, bool, bool]:
    """Return (committed.db at the store's head, whether the store was reached, rolled back)."""
    path, vfs = ctx.local.committed, ctx.disk.sqlite_vfs
    committed: Committed | None = None
    if ctx.disk.exists(path):
        try:
            committed = open_committed(path, vfs=vfs, volume_id=ctx.volume.volume_id)
        except Corrupt as error:
            log.error("%s: it is made again from the store", error)
        except OSError as error:
            _expect_store(ctx, log_store, error)
    rolled_back = False
    if committed is not None:
        try:
            if _history_agrees(log_store, committed):
                committed.head = log_store.follow(committed, committed.head)
                return committed, True, False
            if not takeover:
                raise Refused(
                    f"the store's log does not hold this mount's last commit {committed.head.seq}: "
                    "the bucket was rolled back, or another history was written. Mount with "
                    "--takeover to go on from the store (local changes are set aside), or with "
                    "another --cache-dir"
                )
            rolled_back = True
        except ObjectMissing:
            log.info("commits were reclaimed meanwhile: loading the newest checkpoint")
        except StoreError as error:
            if not error.retryable:
                committed.close()
                raise
            log.warning("the store cannot be reached, going on from the local state: %s", error)
            return committed, False, False
        except BaseException:
            committed.close()
            raise
        committed.close()
    _remove_committed(ctx)
    return log_store.load(path, vfs=vfs, volume=ctx.volume), True, rolled_back


def _expect_store(ctx: Context, log_store: CommitLog, failure: OSError) -> None:
    """The disk does not give committed.db back: the store has all of it, if it answers.

    Raises `Refused` if it does not: what cannot be read now may be read later, and stays.
    """
    try:
        log_store.checkpoints()
    except StoreError as error:
        if not error.retryable:
            raise
        raise Refused(
            f"{ctx.local.committed} cannot be read ({failure}), and the store cannot be reached "
            f"({error}): mount again when either can",
            exit_code=ExitCode.LOCAL,
        ) from failure
    log.error("%s: it is made again from the store", failure)


def _history_agrees(log_store: CommitLog, committed: Committed) -> bool:
    """Tell whether the store's commit `seq` is the one that committed.db stands at.

    Raises `ObjectMissing` if it was reclaimed and newer ones exist.
    """
    head = committed.head
    if head.seq == 0:
        return True
    try:
        return log_store.read(head.seq).digest == head.digest
    except ObjectMissing:
        if log_store.sequence_numbers(head.seq):
            raise
        return False


def _remove_committed(ctx: Context) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        ctx.disk.unlink(ctx.local.committed.with_name(ctx.local.committed.name + suffix))


# --- the journal: ours or not ------------------------------------------------------------


def _volume_id(ctx: Context) -> bytes:
    return bytes.fromhex(ctx.volume.volume_id)


def _journal_facts(ctx: Context, ground: _Foundation) -> _JournalFacts:
    """Read the journal behind the foundation's cut, without applying anything."""
    found = segment_files(ctx.disk, ctx.local.journal, _volume_id(ctx))
    end = ReplayEnd(op_seq=0, chain=0)
    cuts: dict[int, int] = {}
    changes = 0
    for _, _, record in replay(ctx.disk, found, ground.op_seq, ground.chain, end):
        if isinstance(record.op, Cut | BeginEpoch):
            cuts[record.op_seq] = record.checksum
        else:
            changes += 1
    used = end.used
    if not end.base_found:
        # Damage before the cut's record: whatever may hold young bytes is kept.
        used = [segment for segment in found if segment.header is not None]
    return _JournalFacts(
        found=found,
        unsynced=list(end.unsynced),
        used=used,
        cuts=cuts,
        changes=changes,
        base_found=end.base_found,
        op_seq=end.op_seq,
    )


def _fresh(found: list[FoundSegment]) -> list[FoundSegment]:
    return [FoundSegment(path=segment.path, header=segment.header) for segment in found]


def _is_ours(
    local: LocalDirectory, committed: Committed, ground: _Foundation, facts: _JournalFacts
) -> bool:
    """Tell whether the newest fence is this directory's own, and its journal may go on.

    The fence alone proves nothing: a disk that was cloned within an epoch has it, too. So the
    newest cut must be in the journal or in base.db, or be known here as published (then its
    record rotted).
    """
    fence = committed.head.fence_chain
    known = {*load_epochs(local), *facts.cuts.values(), *ground.cuts.values()}
    if fence not in {0, *known}:
        return False
    if ground.base is not None:
        return True
    return facts.base_found or committed.head.op_seq == load_last_cut(local)


def _give_up_journal(
    ctx: Context, committed: Committed, facts: _JournalFacts, base: Base | None
) -> str:
    """Another writer owns the volume: drop the journal, or set it aside if it holds changes.

    What is set aside is the journal, the local cuts, and the state that they belong to.
    """
    if base is not None:
        base.close()
    kept = ""
    directory = ctx.local.aside / f"commit-{committed.head.seq}-{ctx.runtime.wall_ns()}"
    if base is not None or _holds_changes(ctx, facts):
        ctx.disk.make_directory(directory)
        for segment in facts.found:
            ctx.disk.rename(segment.path, directory / segment.path.name)
        directory.mkdir(parents=True, exist_ok=True)
        for suffix in ("-wal", ""):
            path = ctx.local.live.with_name(ctx.local.live.name + suffix)
            if path.exists():
                path.rename(directory / path.name)
        set_local_base_aside(ctx, directory)
        ctx.disk.sync_directory(directory)
        ctx.disk.sync_directory(ctx.local.aside)
        kept = str(directory)
        log.error(
            "another writer took this volume over; changes never published are kept in %s",
            directory,
        )
    else:
        for segment in facts.found:
            ctx.disk.unlink(segment.path)
    ctx.disk.sync_directory(ctx.local.journal)
    remove_live(ctx.local.live)
    # The journal that begins now continues this fence and this cut, whoever made them.
    remember_last_cut(ctx.local, committed.head.op_seq)
    remember_epoch(ctx.local, committed.head.fence_chain)
    return kept


def _holds_changes(ctx: Context, facts: _JournalFacts) -> bool:
    """Tell whether the journal has changes that no commit of ours carried.

    The cut of the last commit of our own may lie anywhere in it, so the whole journal is read.
    """
    if facts.changes:
        return True
    last = load_last_cut(ctx.local)
    for segment in facts.found:
        if segment.header is None:
            continue
        end = ReplayEnd(op_seq=0, chain=0)
        base = segment.header.first_op_seq - 1
        alone = _fresh([segment])
        for _, _, record in replay(ctx.disk, alone, base, segment.header.chain, end):
            if record.op_seq > last and not isinstance(record.op, Cut | BeginEpoch):
                return True
    return False


# --- live.db -----------------------------------------------------------------------------


def _open_live(
    ctx: Context, ground: _Foundation, facts: _JournalFacts, *, accept_loss: bool
) -> tuple[LiveState, Journal, int]:
    """Open live.db or make it again, replay the journal, begin a fresh segment."""
    boot_id, volume_id = ctx.runtime.boot_id(), ctx.volume.volume_id
    live: LiveState | None = None
    if ctx.local.live.exists():
        try:
            live = open_live(ctx.local.live, boot_id=boot_id, volume_id=volume_id)
        except Corrupt as error:
            log.info("live.db is made again: %s", error)
    end = ReplayEnd(op_seq=0, chain=0)
    replayed = floor = 0
    if live is not None:
        floor = live.op_seq
        live.merge_dirty()
        replayed = _replay_into(ctx, live, _fresh(facts.found), end)
        stands_there = (live.op_seq, live.chain) == (ground.op_seq, ground.chain)
        behind = not end.base_found and not stands_there
        if behind or live.op_seq < facts.op_seq:
            live.close(keep=False)
            live = None
    made = live is None
    if live is None:
        end = ReplayEnd(op_seq=0, chain=0)
        live = create_live(
            ctx.local.live,
            ground.source.writer(),
            op_seq=ground.op_seq,
            chain=ground.chain,
            boot_id=boot_id,
            volume_id=volume_id,
        )
        if ground.base is not None:
            live.hold_dirty(ground.base.held())
        replayed = _replay_into(ctx, live, _fresh(facts.found), end)
    whole = live.op_seq <= facts.op_seq
    mark = max(floor, live.op_seq, end.synced_mark)
    if min(live.op_seq, facts.op_seq) < mark:
        _journal_ends_early(ctx, facts, mark, accept_loss=accept_loss, live=live, made=made)
    live.end_transaction()
    journal = Journal(
        disk=ctx.disk,
        directory=ctx.local.journal,
        settings=ctx.settings.journal,
        runtime=ctx.runtime,
        volume_id=_volume_id(ctx),
        observer=_JournalMetrics(ctx),
    )
    # If live.db is ahead of a gap in the journal, young bytes may lie in any segment behind it.
    used = facts.used if whole else [s for s in facts.found if s.header is not None]
    for segment in used:
        segment.last_op_seq = segment.last_op_seq or live.op_seq
    journal.adopt(facts.found, used)
    journal.on_moved = live.extents.move_pieces
    try:
        _check_room(ctx, is_new=not facts.found)
        journal.begin(live.op_seq, live.chain, facts.unsynced if whole else ())
    except (OSError, LocalDiskFull) as error:
        journal.close()
        live.close(keep=False)
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise LocalDiskFull(
                f"the disk of {ctx.local.root} is full: make room there, nothing is lost"
            ) from error
        raise
    return live, journal, replayed


def _check_room(ctx: Context, *, is_new: bool) -> None:
    """Give up the ballast where the next segment needs its room.

    Raises `LocalDiskFull` where a new journal would not get the segments that it needs.
    """
    settings = ctx.settings.journal
    free = ctx.disk.free_bytes(ctx.local.root)
    if not is_new:
        if free < settings.segment_bytes + settings.free_bytes_least:
            (ctx.local.root / BALLAST).unlink(missing_ok=True)
        return
    needed = (1 + LEAN) * settings.segment_bytes
    needed += min(settings.free_bytes_least, settings.free_bytes_min)
    if free - ballast_bytes(free) < needed:
        raise LocalDiskFull(
            f"the disk of {ctx.local.root} has {free >> 20} MiB free, and a new journal needs "
            f"{-(-needed * 8 // 7) >> 20} MiB: make room, give a --cache-dir on another disk, or "
            f"a smaller --journal-segment-size"
        )


def _replay_into(ctx: Context, live: LiveState, found: list[FoundSegment], end: ReplayEnd) -> int:
    count = 0
    for segment, position, record in replay(ctx.disk, found, live.op_seq, live.chain, end):
        live.apply(record.op, record.op_seq, record.checksum, segment, position)
        count += 1
    return count


def _journal_ends_early(
    ctx: Context,
    facts: _JournalFacts,
    mark: int,
    *,
    accept_loss: bool,
    live: LiveState,
    made: bool,
) -> None:
    """No power cut but rot: the journal ends below what was once synced in it or applied.

    A live.db that was not made just now stays: it may hold what the journal has lost.
    """
    end = min(live.op_seq, facts.op_seq)
    why = (
        f"it ends at operation {end}, but operation {mark} was once safely in it: "
        "records in between are damaged. Everything is kept as it is. Mount with --accept-loss to "
        "go on without them, or with an empty --cache-dir to go on from the store"
    )
    if not accept_loss:
        live.close(keep=False)
        if made:
            remove_live(ctx.local.live)
        raise Corrupt("journal", str(ctx.local.journal), why)
    log.error("journal damaged, going on as told: %s", why)


class _JournalMetrics:
    """Hands what the journal observes to the metrics."""

    def __init__(self, ctx: Context) -> None:
        self._metrics = ctx.metrics

    def journal_synced(self, seconds: float, byte_count: int) -> None:
        self._metrics.journal_syncs.add()
        self._metrics.journal_sync_seconds.observe(seconds)

    def journal_sync_failed(self, path: object) -> None:
        self._metrics.journal_sync_failures.add()
        log.error("the disk refused to sync %s: its records go to a fresh segment", path)
