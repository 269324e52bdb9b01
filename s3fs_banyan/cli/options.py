"""The options that several commands share, and the mount that an argument means."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from s3fs_banyan.errors import ExitCode, UsageError
from s3fs_banyan.kernel import mount_source


def some_text(text: str) -> str:
    """Return the value of an option; an empty one was meant to be something else."""
    if not text:
        raise ValueError("needs a value")
    return text


def some_path(text: str) -> Path:
    """Return a path; `Path` takes an empty one for the current directory."""
    return Path(some_text(text))


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Configuration file (YAML).",
        show_default=False,
        parser=some_path,
    ),
]
EndpointOption = Annotated[
    str | None,
    typer.Option(
        "--endpoint-url",
        metavar="URL",
        parser=some_text,
        help="Address of a service that is not the provider's own.",
        show_default=False,
    ),
]
RegionOption = Annotated[
    str | None,
    typer.Option(
        "--region",
        metavar="NAME",
        help="Region of the bucket.",
        show_default=False,
        parser=some_text,
    ),
]
PassphraseFileOption = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        metavar="FILE",
        parser=some_path,
        help="File whose only line is the passphrase of an encrypted volume.",
        show_default=False,
    ),
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        metavar="FILE",
        parser=some_path,
        help="Key file of an encrypted volume, 32 bytes or more.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def locate(given: Path) -> Path:
    """Return the path under which the kernel lists a mount; never touches the mount itself."""
    absolute = Path(os.path.abspath(given))  # noqa: PTH100  # resolve() would enter the mount
    found = absolute.parent.resolve() / absolute.name
    if mount_source(found) is not None:
        return found
    try:
        return absolute.resolve()
    except OSError as error:
        raise UsageError(f"{given}: {error.strerror}", exit_code=ExitCode.MOUNTPOINT) from error
