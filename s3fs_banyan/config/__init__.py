"""The settings of a mount: `settings` (keys, defaults, limits), `file` (YAML), `units`."""

from __future__ import annotations

from s3fs_banyan.config.settings import (
    HIDDEN,
    ClientEncryption,
    Config,
    Credentials,
    Remote,
    load_config,
)
from s3fs_banyan.config.units import format_seconds, format_size, parse_seconds, parse_size

__all__ = [
    "HIDDEN",
    "ClientEncryption",
    "Config",
    "Credentials",
    "Remote",
    "format_seconds",
    "format_size",
    "load_config",
    "parse_seconds",
    "parse_size",
]
