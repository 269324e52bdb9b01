"""What a command asks to be mounted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from s3fs_banyan.config import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class MountRequest:
    """What is to be mounted where."""

    url: str
    mountpoint: Path
    config: Config
    cache_dir: Path | None = None
    takeover: bool = False
    accept_loss: bool = False
    failpoint: str = ""
