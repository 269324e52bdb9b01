"""Compaction: chunks that still live are moved out of packs that are mostly dead.

Moves travel in the next commit: the worker copies stored chunks, undecoded, into new packs (or
inline), the commit's placements point there, and the old pack is dead as of that commit. Many
small survivors are gathered, too, or a cold start would be one GET per old commit.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from s3fs_banyan.meta.committed import CommittedView, PackRow
from s3fs_banyan.meta.delta import add_moves

log = logging.getLogger(__name__)

MOVE_BYTES_MAX: Final = 64 << 20
"""At most so many stored bytes are moved by one commit."""
_AGE_COMMITS: Final = 8
"""Packs younger than so many commits are left alone: most of what is in them dies by itself."""
_SMALL_BYTES: Final = 1 << 20
_SMALL_PACKS_MAX: Final = 32


def choose_victims(
    packs: Sequence[PackRow], head_seq: int, unmovable: Collection[str] = ()
) -> list[PackRow]:
    """Return the packs to be emptied, half-dead ones first, then gathered small ones.

    `unmovable` are keys of objects from which chunks could not be moved.
    """
    old = [
        pack
        for pack in packs
        if pack.live_bytes > 0
        and head_seq - pack.first_seq >= _AGE_COMMITS
        and pack.key not in unmovable
    ]
    half_dead = sorted((p for p in old if p.live_bytes * 2 < p.size), key=lambda p: p.live_bytes)
    small = [p for p in old if p.live_bytes < _SMALL_BYTES and p not in half_dead]
    if len(small) + len(half_dead) <= _SMALL_PACKS_MAX:
        small = []
    chosen = []
    left = MOVE_BYTES_MAX
    for pack in (*half_dead, *small):
        if pack.live_bytes <= left:
            chosen.append(pack)
            left -= pack.live_bytes
    return chosen if len(chosen) > 1 or half_dead else []


def choose_holed(packs: Sequence[PackRow], moved_bytes_max: int) -> list[PackRow]:
    """Return the base packs to be emptied by a local cut: of which a third is dead, worst first.

    What is moved lies on the local disk twice until the cut is done. So no more than so many
    bytes are, but one pack is always: the rest is for the next cuts.
    """
    holed = [pack for pack in packs if 0 < pack.live_bytes * 3 < pack.size * 2]
    holed.sort(key=lambda pack: pack.live_bytes / pack.size)
    chosen: list[PackRow] = []
    left = moved_bytes_max
    for pack in holed:
        if chosen and pack.live_bytes > left:
            break
        chosen.append(pack)
        left -= pack.live_bytes
    return chosen


def add_compaction(view: CommittedView, seal_db: Path, victims: Sequence[PackRow]) -> int:
    """Add the living chunks of the victims to a seal list; returns their stored bytes."""
    moved = add_moves(view, seal_db, [pack.id for pack in victims])
    if moved:
        log.info("compaction moves %d bytes out of %d packs", moved, len(victims))
    return moved
