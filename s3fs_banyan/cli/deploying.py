"""The command that prints the files for deployment, which come with the package: deploy."""

from __future__ import annotations

import sys
from enum import StrEnum
from importlib.resources import files
from typing import Annotated

import typer


class DeployFile(StrEnum):
    """What can be printed, by the name that a person types."""

    ALERTS = "alerts"
    SYSTEMD = "systemd"
    FSTAB = "fstab"


_FILES = {
    DeployFile.ALERTS: "alerts.yml",
    DeployFile.SYSTEMD: "s3fs-banyan@.service",
    DeployFile.FSTAB: "mount.s3fs-banyan",
}


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command()(deploy)


def deploy(
    what: Annotated[
        DeployFile,
        typer.Argument(
            help="alerts: rules for Prometheus. systemd: the unit s3fs-banyan@.service. "
            "fstab: the helper /sbin/mount.s3fs-banyan, for mount(8) and /etc/fstab.",
            show_choices=True,
        ),
    ],
) -> None:
    """Print a file for deployment; docs/operations.md says where it goes.

    Example: `s3fs-banyan deploy alerts > /etc/prometheus/s3fs-banyan.yml`
    """
    sys.stdout.write(deploy_text(what))


def deploy_text(what: DeployFile) -> str:
    """Return the text of a file."""
    return (files("s3fs_banyan") / "deploy" / _FILES[what]).read_text(encoding="utf-8")
