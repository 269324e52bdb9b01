"""What the simulated worlds share: a scratch directory in RAM, and who is allowed to warn."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_SHM = Path("/dev/shm")  # noqa: S108  # the names in it are made by tempfile


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory for live.db and outboxes; in RAM where the machine has such a place."""
    where = _SHM if _SHM.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="sim-", dir=where) as name:
        yield Path(name)
