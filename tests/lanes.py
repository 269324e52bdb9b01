"""What the workers of a parallel run get: whole modules, and the slow tests one by one.

A module that shares a mount among its tests, or whose tests are quick, stays with one worker. The
modules with the most tests are begun first, so that single tests fill the workers to the end.
The plugin's own way, the mark `xdist_group`, does nothing with this release of pytest.
"""

from __future__ import annotations

from typing import Any

import pytest

ONE_BY_ONE = frozenset({"kernel", "semantics", "sim"})
"""Suites whose tests are slow and each have worlds or mounts of their own."""

TOGETHER = frozenset(
    {
        "tests/kernel/test_differential.py",
        "tests/kernel/test_files.py",
        "tests/kernel/test_names.py",
        "tests/semantics/test_not_there.py",
        "tests/semantics/test_promises.py",
    }
)
"""Modules of these suites that share a mount: taken apart, each worker would make its own."""


def unit_of_work(nodeid: str) -> str:
    """Name what a test is handed out with: its module, or itself."""
    module = nodeid.split("::", 1)[0]
    suite = module.split("/")[1]
    return nodeid if suite in ONE_BY_ONE and module not in TOGETHER else module


def make_scheduler(config: pytest.Config, log: Any) -> object:  # noqa: ANN401  # not published
    """Return the scheduler of whole scopes, with our idea of a scope."""
    from xdist.scheduler import LoadScopeScheduling

    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = unit_of_work
    return scheduler
