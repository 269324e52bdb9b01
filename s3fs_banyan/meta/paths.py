"""Where chunks belong: from a chunk's inode to its file's name and its directory's path.

The state has no index from an inode to its name, and a write need not pay for one. So who asks
scans the names once, in SQL, for everything that it wants to know: about 0.1 s for a million
names, in a thread, without the interpreter's lock.
"""

from __future__ import annotations

from typing import NamedTuple

from s3fs_banyan.model import ROOT_INO


class FileRow(NamedTuple):
    """A file as a list of chunks names it."""

    ino: int
    parent: int
    name: bytes
    size: int
    mtime_ns: int


def directories_sql(schema: str, wanted: str) -> str:
    """Return a query for (ino, parent, name) of directories and of all above them.

    `wanted` is a query for the inode numbers of directories. The root has no name, so no row.
    """
    return (
        "WITH RECURSIVE directory AS MATERIALIZED ("
        f"SELECT ino, parent, name FROM {schema}.dentry"
        f" WHERE ino IN (SELECT DISTINCT parent FROM {schema}.dentry)), "
        "above (ino, parent, name) AS ("
        f"SELECT ino, parent, name FROM directory WHERE ino IN ({wanted}) UNION"
        " SELECT d.ino, d.parent, d.name FROM above a JOIN directory d ON d.ino = a.parent)"
        " SELECT ino, parent, name FROM above"
    )


class DirectoryPaths:
    """Paths of directories, each put together once."""

    def __init__(self, rows: dict[int, tuple[int, bytes]]) -> None:
        """`rows` maps a directory to (its parent, its name)."""
        self._rows = rows
        self._known: dict[int, str | None] = {int(ROOT_INO): ""}

    def path(self, ino: int) -> str | None:
        """Return a directory's path from the root, without a slash in front; None if unknown.

        Bytes that are not UTF-8 are kept as surrogates.
        """
        below: list[int] = []
        at = ino
        while at not in self._known:
            row = self._rows.get(at)
            if row is None or len(below) > len(self._rows):
                self._known[at] = None
                break
            below.append(at)
            at = row[0]
        path = self._known[at]
        for child in reversed(below):
            name = self._rows[child][1].decode("utf-8", "surrogateescape")
            path = None if path is None else f"{path}/{name}" if path else name
            self._known[child] = path
        return self._known[ino]
