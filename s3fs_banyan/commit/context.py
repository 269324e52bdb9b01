"""What every part of the engine is made with."""

from __future__ import annotations

from dataclasses import dataclass, field

from s3fs_banyan.commit.classes import ClassPolicy
from s3fs_banyan.commit.local import LocalDirectory
from s3fs_banyan.commit.sending import Multipart
from s3fs_banyan.format.encryption import Cipher
from s3fs_banyan.format.volume import VolumeDescriptor
from s3fs_banyan.journal.disk import Disk
from s3fs_banyan.journal.segment import JournalSettings
from s3fs_banyan.observe.metrics import Metrics
from s3fs_banyan.remote.base import RemoteFileSystem
from s3fs_banyan.runtime import Runtime


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Numbers of a mount; sizes in bytes, times in seconds."""

    journal: JournalSettings
    commit_interval_s: float = 30.0
    inline_bytes_max: int = 4 << 20
    multipart: Multipart = "never"
    part_bytes: int = 8 << 20
    uploads: int = 4
    """Packs under way at once."""
    dirty_bytes_max: int = 8 << 30
    local_cut_bytes: int = 256 << 20
    """So much backlog makes a local cut worth while when the store is away."""
    answer_s: float = 3.0
    """A store that answers no question for so long is away: a commit that waits for it is given
    up if a local cut is due. What it has sealed and sent is reused (`outbox.py`)."""
    give_up_s: float = 60.0
    """The same for a store that answers questions, but takes nothing."""
    durability_remote: bool = False
    capacity_bytes: int = 1 << 40
    ram_bytes: int = 64 << 20
    reclaim_window_s: float = 3600.0
    reclaim_hourly_s: float = 86400.0
    reclaim_grace_s: float = 900.0
    reclaim_every_s: float = 600.0
    heartbeat_interval_s: float = 30.0
    heartbeat_stale_s: float = 90.0
    checkpoint_commits_max: int = 1000
    host: str = "localhost"
    pid: int = 0
    policy: ClassPolicy = field(default_factory=ClassPolicy)
    requests_per_hour: int = 0
    """What commits may cost, as a rate; 0: no limit."""
    budget_interval_max_s: float = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The world around an engine."""

    runtime: Runtime
    disk: Disk
    store: RemoteFileSystem
    metrics: Metrics
    local: LocalDirectory
    volume: VolumeDescriptor
    settings: EngineSettings
    cipher: Cipher | None = None
    """None if the volume is not encrypted."""
