"""A temporary directory for the database of a volume that is looked at and not mounted."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from s3fs_banyan.errors import ExitCode, LocalDiskFull, UsageError


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """Give a directory that is removed behind the caller.

    Raises `UsageError` with exit code `LOCAL` if there is none to be had, or if it has no room
    for what the caller puts there.
    """
    root: str | None = None
    try:
        with tempfile.TemporaryDirectory(prefix="s3fs-banyan-") as root:
            yield Path(root)
    except (OSError, LocalDiskFull) as error:
        named = getattr(error, "filename", None)
        if root and named and Path(root) not in Path(named).parents:
            raise  # of another place
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"the temporary directory {root or tempfile.tempdir or ''} cannot be used ({reason}): "
            "make room there, or set TMPDIR to a directory that has some",
            exit_code=ExitCode.LOCAL,
        ) from error
