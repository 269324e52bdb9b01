"""base.db and the base packs in a local directory: opened, dropped, set aside.

See `local_cut.py` for how they come to be.
"""

from __future__ import annotations

import logging
from pathlib import Path

from s3fs_banyan.commit.base_packs import BasePacks
from s3fs_banyan.commit.context import Context
from s3fs_banyan.errors import ExitCode, Refused
from s3fs_banyan.meta.base import Base, base_files, open_base
from s3fs_banyan.meta.committed import Head
from s3fs_banyan.runtime import register_failpoint

log = logging.getLogger(__name__)

FP_BASE_DROPPED = register_failpoint(
    "base-dropped", "a commit has everything: base.db is gone, base packs are not"
)


def open_local_base(ctx: Context) -> Base | None:
    """Open base.db, None if there is none or its making was never finished; blocks.

    Raises `Corrupt` if it is damaged, `Refused` if it cannot be read just now: it is as precious
    as the journal, and stays.
    """
    if not ctx.disk.exists(ctx.local.base):
        return None
    try:
        base = open_base(ctx.local.base, vfs=ctx.disk.sqlite_vfs, volume_id=ctx.volume.volume_id)
    except OSError as error:
        raise Refused(
            f"{error}. It holds changes that are not in the store: mount again when the disk can "
            "be read",
            exit_code=ExitCode.LOCAL,
        ) from error
    if base is None:
        drop_local_base(ctx)
    return base


def continues(base: Base, head: Head) -> bool:
    """Tell whether base.db holds `head`'s commit: it began there, or cut it (or a clone did)."""
    if (head.op_seq, head.chain) == (base.head.origin_op_seq, base.head.origin_chain):
        return True
    return base.cuts().get(head.op_seq) == head.chain


def tidy_base_packs(ctx: Context, base: Base | None) -> None:
    """Remove base packs that a local cut without an end has left; blocks."""
    needed = set() if base is None else base.pack_numbers()
    BasePacks(ctx.disk, ctx.local.base_packs).keep_only(needed)


def drop_local_base(ctx: Context) -> None:
    """Remove base.db and every base pack; blocks."""
    for path in base_files(ctx.local.base):
        ctx.disk.unlink(path)
    ctx.runtime.failpoint(FP_BASE_DROPPED)
    tidy_base_packs(ctx, None)


def set_local_base_aside(ctx: Context, directory: Path) -> None:
    """Move the base packs and base.db, which is closed, to `directory`, which exists; blocks.

    base.db goes last, when all else is durable there: as long as it is here, a start that was
    interrupted is made again. Without it the packs would be taken for remnants.
    """
    packs = directory / ctx.local.base_packs.name
    names = ctx.disk.names(ctx.local.base_packs)
    if names:
        ctx.disk.make_directory(packs)
    for name in names:
        ctx.disk.rename(ctx.local.base_packs / name, packs / name)
    if names:
        ctx.disk.sync_directory(packs)
    ctx.disk.sync_directory(directory)
    ctx.disk.sync_directory(ctx.local.aside)
    for path in reversed(base_files(ctx.local.base)):
        if ctx.disk.exists(path):
            ctx.disk.rename(path, directory / path.name)
