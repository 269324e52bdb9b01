"""What must be in the store, as far as it can be known from the state and from other objects.

Pure functions. What a kept commit needs is said by `commit/retention.py`, for reclaim and for
here. Whatever is needed is in the store for as long as it is needed, from before anything says
so. So an object that was asked for in vain is missing if it was needed before and after that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from s3fs_banyan.commit.retention import is_kept, is_needed
from s3fs_banyan.format.checkpoint import CheckpointManifest
from s3fs_banyan.format.commit import CommitFooter
from s3fs_banyan.format.keys import (
    VOLUME,
    checkpoint_key,
    checkpoint_piece_key,
    log_key,
    parse_pack_key,
)
from s3fs_banyan.meta.committed import PackRow


class Newest(NamedTuple):
    """The newest commit, and which commits are kept as it says."""

    seq: int
    dense_from: int
    kept: tuple[int, ...]


@dataclass(slots=True, kw_only=True)
class Named:
    """What the objects that were read say of other objects."""

    footers: dict[int, CommitFooter] = field(default_factory=dict)
    """Of the commits that could be read."""
    digests: dict[int, bytes] = field(default_factory=dict)
    """Of those that are sound."""
    deltas: dict[str, CommitFooter] = field(default_factory=dict)
    """Key of a delta of its own -> the commit that names it."""
    manifests: dict[int, CheckpointManifest] = field(default_factory=dict)
    living: dict[int, list[str]] = field(default_factory=dict)
    """Commit with a checkpoint -> the objects with chunks that are alive as of it."""
    epochs: list[tuple[int, int]] = field(default_factory=list)
    """(seq, epoch): as of this commit the volume was in this epoch. Footers come on top."""


def needed_objects(newest: Newest | None, packs: Sequence[PackRow], named: Named) -> dict[str, str]:
    """Return the key of everything that must be there -> why.

    `packs` are the rows of the state as of `newest`. Without `newest` it is not known what
    reclaim may have deleted.
    """
    needed = {VOLUME: "the volume's descriptor"}
    if newest is None:
        return needed
    for seq in (*newest.kept, *range(max(1, newest.dense_from), newest.seq + 1)):
        needed[log_key(seq)] = "a commit that is kept"
    for key, footer in named.deltas.items():
        if is_kept(footer.seq, newest):
            needed[key] = f"the delta of {log_key(footer.seq)}"
    # Commits before these are gone: nothing but their checkpoint leads to them.
    for seq in (*newest.kept, *((newest.dense_from,) if newest.dense_from > 1 else ())):
        needed[checkpoint_key(seq)] = "the checkpoint of a commit that is kept"
    for seq, manifest in named.manifests.items():
        if is_kept(seq, newest):
            for name in manifest.pieces:
                needed[checkpoint_piece_key(name)] = f"a piece of {checkpoint_key(seq)}"
    for seq, keys in named.living.items():
        if is_kept(seq, newest):
            for key in keys:
                needed.setdefault(key, f"chunks that live as of {log_key(seq)} lie in it")
    for pack in packs:
        if is_needed(pack, newest):
            what = "living chunks" if pack.live_bytes else "chunks of commits that are kept"
            needed[pack.key] = f"{what} lie in it"
    return needed


# --- the first commits of epochs ---------------------------------------------------------


class Absent(NamedTuple):
    """A commit that is not there although it is never deleted; it lies from `first` to `last`."""

    first: int
    last: int
    why: str

    @property
    def key(self) -> str:
        """The commit's key; where its number is not known, the first and last that it can be."""
        if self.first == self.last:
            return log_key(self.first)
        return f"{log_key(self.first)}..{log_key(self.last)}"


def absent_fences(named: Named, packs: Iterable[PackRow]) -> Iterator[Absent]:
    """Give the first commits of epochs that were not read although they must have been there.

    An epoch is known by a commit that was read, by the state, by a checkpoint, or by the name of
    a pack that a commit named. An epoch of which none of them is left is not known, for not
    every number is an epoch that began.
    """
    earliest: dict[int, int] = {}
    latest: dict[int, int] = {}
    of_footers = ((seq, footer.epoch) for seq, footer in named.footers.items())
    for seq, epoch in (*of_footers, *named.epochs, *_epochs_of(packs)):
        if seq >= 1 and epoch >= 1:
            earliest[epoch] = min(seq, earliest.get(epoch, seq))
            latest[epoch] = max(seq, latest.get(epoch, seq))
    if earliest and 1 not in named.footers:
        yield Absent(1, 1, "the first commit of the volume")
    there = {footer.epoch for footer in named.footers.values() if footer.is_fence}
    below = 0
    for epoch in sorted(earliest):
        if epoch not in there:
            first, last = below + 1, earliest[epoch]
            while first in named.footers:
                first += 1
            while last in named.footers:
                last -= 1
            # From 1 on it may be the first commit of the volume, which was given above.
            if 1 < first <= last:
                yield Absent(first, last, f"the first commit of epoch {epoch}")
        below = max(below, latest[epoch])


def _epochs_of(packs: Iterable[PackRow]) -> Iterator[tuple[int, int]]:
    """A pack's name has the epoch and the commit after the one that it was sealed behind."""
    for pack in packs:
        parsed = parse_pack_key(pack.key)
        if parsed is not None:
            epoch, pack_id = parsed
            yield (pack_id >> 16) - 1, epoch
