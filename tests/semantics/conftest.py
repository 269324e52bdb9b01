"""The mount of the kernel tests, for tests that read `docs/semantics.md`."""

from __future__ import annotations

from tests.kernel.conftest import shared, tree

__all__ = ["shared", "tree"]
