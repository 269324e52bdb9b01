"""What can be said of a mount: on the command line and, the same, as mount(8) says it with `-o`."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from s3fs_banyan.cli.options import some_path, some_text
from s3fs_banyan.errors import ConfigError

CacheDirOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Local directory of this mount: journal and cache.",
        parser=some_path,
    ),
]
CacheSizeOption = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Most that the cache may hold: 10GiB.", parser=some_text),
]
DurabilityOption = Annotated[
    Literal["local", "remote"] | None,
    typer.Option(help="What fsync waits for: the local disk, or the store."),
]
CommitIntervalOption = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Longest time between commits: 30s.", parser=some_text),
]
ReadOnlyOption = Annotated[
    bool, typer.Option("--read-only", help="Follow the volume, change nothing.")
]
TakeoverOption = Annotated[
    bool, typer.Option("--takeover", help="Become the writer although another one is alive.")
]
AcceptLossOption = Annotated[
    bool, typer.Option("--accept-loss", help="Go on although the local journal is damaged.")
]
SegmentSizeOption = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Size of a journal segment: 64MiB.", parser=some_text),
]
MetricsAddressOption = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Serve Prometheus metrics there.", parser=some_text),
]

_IGNORED: Final = {
    *("_netdev", "async", "auto", "defaults", "diratime", "exec", "noatime", "noauto", "nodev"),
    *("nodiratime", "nofail", "nosuid", "nouser", "relatime", "rw", "user", "users"),
}
"""Options of mount(8) that are fulfilled already, or meant for others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """What can be said on the command line and, the same, after `-o`."""

    config: Path | None = None
    cache_dir: Path | None = None
    cache_size: str | None = None
    durability: str | None = None
    commit_interval: str | None = None
    read_only: bool = False
    takeover: bool = False
    accept_loss: bool = False
    journal_segment_size: str | None = None
    endpoint_url: str | None = None
    region: str | None = None
    metrics_address: str | None = None
    passphrase_file: Path | None = None
    key_file: Path | None = None


_FLAGS: Final = {"read_only", "takeover", "accept_loss"}
_PATHS: Final = {"config", "cache_dir", "passphrase_file", "key_file"}
_OPTIONS: Final = tuple(MountOptions.__dataclass_fields__)


def parse_mount_options(texts: list[str]) -> MountOptions:
    """Return what `-o key=value,flag` says; raises `ConfigError` with the nearest known name."""
    values: dict[str, object] = {}
    for word in (word for text in texts for word in text.split(",") if word):
        name, has_value, value = word.partition("=")
        key = "read_only" if name == "ro" else name.replace("-", "_")
        if name in _IGNORED or name.startswith("x-") or name == "comment":
            continue
        if name == "noexec":
            raise ConfigError(
                "-o noexec: this mount does not keep programs from being run; `user` and `users` "
                "in /etc/fstab imply it: write `exec` behind them"
            )
        if key not in _OPTIONS:
            near = difflib.get_close_matches(key, _OPTIONS, n=1)
            hint = f", did you mean {near[0].replace('_', '-')!r}?" if near else ""
            raise ConfigError(f"-o {name}: unknown option{hint}")
        if key in _FLAGS and has_value:
            raise ConfigError(f"-o {name}: takes no value")
        if key not in _FLAGS and not value:
            raise ConfigError(f"-o {name}: needs a value")
        values[key] = True if key in _FLAGS else Path(value) if key in _PATHS else value
    return replace(MountOptions(), **values)  # type: ignore[arg-type]  # kinds as looked up above
