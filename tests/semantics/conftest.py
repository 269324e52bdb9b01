"""The volumes and mounts of the kernel tests, for tests that quote the documents."""

from __future__ import annotations

from tests.kernel.conftest import make_mount, make_s3_volume, proxy, shared, tree, volume

__all__ = ["make_mount", "make_s3_volume", "proxy", "shared", "tree", "volume"]
