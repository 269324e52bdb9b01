"""How a simulated world is: what is drawn from its seed, or set by a test."""

from __future__ import annotations

from dataclasses import dataclass, field

from s3fs_banyan.commit.sending import Multipart
from tests.sim.store import StoreFaults


@dataclass(slots=True, kw_only=True)
class Dials:
    """How a world is; drawn from its seed."""

    clients: int = 2
    pause_s: float = 0.2
    bytes_max: int = 20_000
    segment_bytes: int = 128 << 10
    local_cut_bytes: int = 256 << 10
    inline_bytes_max: int = 200_000
    commit_interval_s: float = 2.0
    checkpoint_commits_max: int = 3
    window_s: float = 15.0
    hourly_s: float = 0.0
    grace_s: float = 5.0
    every_s: float = 4.0
    ram_bytes: int = 64 << 10
    remote: bool = False
    crash_chance: float = 0.0
    sync_fails: float = 0.0
    sync_failures_stay: bool = True
    """Pages dropped by a failed sync stay lost after a restart (else the kernel tries again)."""
    check_chance: float = 0.05
    classes: bool = False
    """Rules send larger files, and what compaction moves, to packs of other classes."""
    encrypted: bool = False
    """Whether the volume is encrypted on the client's side."""
    multipart: Multipart = "always"
    part_bytes: int = 16 << 10
    transfer_s: float = 0.0
    """How long a transfer seems to take: packs go from RAM if that is less than two seconds."""
    faults: StoreFaults = field(default_factory=StoreFaults)
