"""The command that prints the files for deployment, which come with the package: deploy."""

from __future__ import annotations

import sys
from importlib.resources import files
from typing import Annotated, Final

import typer

from s3fs_banyan.errors import ExitCode, UsageError

DEPLOY_FILES: Final = {
    "alerts": "alerts.yml",
    "systemd": "s3fs-banyan@.service",
    "fstab": "mount.s3fs-banyan",
}
"""What a person types -> the file in `s3fs_banyan/deploy/`."""


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command()(deploy)


def deploy(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="**alerts**: rules for Prometheus. **systemd**: the unit s3fs-banyan@.service. "
            "**fstab**: the helper /sbin/mount.s3fs-banyan, for mount(8) and /etc/fstab.",
        ),
    ],
) -> None:
    """Print a file for deployment; docs/operations.md says where it goes.

    Example: `s3fs-banyan deploy alerts > /etc/prometheus/s3fs-banyan.yml`
    """
    sys.stdout.write(deploy_text(what))


def deploy_text(what: str) -> str:
    """Return the text of a file; raises `UsageError` if there is none of that name."""
    name = DEPLOY_FILES.get(what)
    if name is None:
        raise UsageError(
            f"deploy: {what!r} is not one of {', '.join(DEPLOY_FILES)}", exit_code=ExitCode.USAGE
        )
    return (files("s3fs_banyan") / "deploy" / name).read_text(encoding="utf-8")
