"""A POSIX file system that keeps its data in an object store, made for BanyanDB."""

from __future__ import annotations

__version__ = "0.1.0"
