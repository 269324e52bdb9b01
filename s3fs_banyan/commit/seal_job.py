"""What a sealing is asked for, and what it gives: plain values, which cross to the worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from s3fs_banyan.commit.sending import Multipart
from s3fs_banyan.errors import BanyanFSError


class SealingLost(BanyanFSError):
    """What was sealed cannot be used, or nobody knows of it any more: begin the sealing again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SealJob:
    """What to seal; plain values, so that it can cross to another process."""

    seal_db: str
    delta_db: str
    outbox: str
    segments: dict[int, str]
    epoch: int
    seq: int
    pack_bytes: int
    inline_bytes_max: int
    keep_in_outbox: bool = True
    """False where the local disk has no room: packs go from RAM, whatever happens."""
    base_packs: str
    """Directory of the base packs."""
    first_base_pack: int = 0
    """For a local cut: the number of its first base pack; 0 for a commit."""
    policy: dict[str, Any] = field(default_factory=dict)
    """`ClassPolicy.plain()`; empty: one class, nothing apart."""
    now_ns: int = 0
    chain: int = 0
    """Journal checksum of the cut that is sealed."""
    chains: tuple[int, ...] = ()
    """The same of all cuts in this journal behind the newest commit."""
    is_awaited: bool = False
    """Somebody stands still until this is done: no time to let others go first."""
    multipart: Multipart = "never"
    part_bytes: int = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedPack:
    """A pack ready to be sent."""

    number: int
    key: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalBody:
    """What a local cut has sealed: all of it is on the local disk, synced."""

    placements: str
    pack_count: int
    """How many numbers of base packs were used."""
    damaged: tuple[int, ...]
    """As in `CommitBody`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitBody:
    """All of a commit but its footer."""

    path: str
    inline_length: int
    delta_length: int
    placements_length: int
    delta_hash: str
    unmovable: tuple[str, ...]
    """Objects whose living chunks could not be moved: missing or damaged."""
    damaged: tuple[int, ...]
    """Chunks whose journal records rotted: published without a place, their bytes are lost."""
    reused_packs: int = 0
    """Packs of an earlier attempt that were neither sealed nor, perhaps, sent again."""
    resumed_parts: int = 0
    """Parts of packs that an earlier attempt had sent."""
