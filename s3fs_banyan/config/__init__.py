"""The settings of a mount: `settings` (keys, defaults, limits), `file` (YAML), `units`."""

from __future__ import annotations

from s3fs_banyan.config.settings import HIDDEN, Config, Credentials, Encryption, Remote, load_config
from s3fs_banyan.config.units import format_seconds, format_size, parse_seconds, parse_size

__all__ = [
    "HIDDEN",
    "Config",
    "Credentials",
    "Encryption",
    "Remote",
    "format_seconds",
    "format_size",
    "load_config",
    "parse_seconds",
    "parse_size",
]
