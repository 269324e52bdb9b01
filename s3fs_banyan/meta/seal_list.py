"""The list of what a commit seals, as its cut left it: a scratch database, read in the worker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from s3fs_banyan.meta.database import open_scratch, runner
from s3fs_banyan.meta.paths import DirectoryPaths
from s3fs_banyan.model import Piece


class SealItem(NamedTuple):
    """A chunk to be sealed (young), or moved out of a pack that is mostly dead."""

    chunk: int
    length: int
    source_key: str
    """Empty for a young chunk; else the object from which a living chunk is moved."""
    source_offset: int
    stored_length: int
    directory: int = 0
    """Inode of the directory that holds the chunk's file; 0 if it is not known."""
    ino: int = 0
    name: bytes = b""
    file_bytes: int = 0
    mtime_ns: int = 0
    """Name, size and time of the file's last change, where somebody asked for them."""


class SealList:
    """Queries over a seal list; one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._connection = open_scratch(path)
        self._run = runner(self._connection)

    def items(self) -> list[SealItem]:
        """Return what to seal in the order in which it shall lie: by directory, file, offset."""
        known = "coalesce(o.name, x''), coalesce(o.size, 0), coalesce(o.mtime_ns, 0)"
        sql = (
            f"SELECT c.id, c.length, '', 0, 0, c.directory, c.ino, {known}, c.offset"
            " FROM chunk c LEFT JOIN owner o ON o.ino = c.ino"
        )
        if self._run("SELECT 1 FROM sqlite_master WHERE name = 'move'").fetchall():
            sql += (
                " UNION ALL SELECT m.chunk, m.length, m.key, m.source_offset, m.stored_length,"
                f" coalesce(o.parent, 0), m.ino, {known}, m.offset"
                " FROM move m LEFT JOIN owner o ON o.ino = m.ino"
            )
        return [SealItem(*row[:10]) for row in self._run(f"{sql} ORDER BY 6, 7, 11").fetchall()]

    def directories(self) -> DirectoryPaths:
        """Return the paths of the directories, as far as they were asked for."""
        rows = self._run("SELECT ino, parent, name FROM directory").fetchall()
        return DirectoryPaths({ino: (parent, name) for ino, parent, name in rows})

    def pieces(self, chunk: int) -> list[Piece]:
        """Return the pieces of a young chunk, in order."""
        rows = self._run(
            "SELECT offset, length, segment, position, record_offset, op_seq FROM piece"
            " WHERE chunk = ? ORDER BY offset",
            (chunk,),
        )
        return [Piece(*row) for row in rows.fetchall()]

    def sources(self, chunks: Sequence[int]) -> set[str]:
        """Return the keys from which some chunks were to be moved."""
        if not self._run("SELECT 1 FROM sqlite_master WHERE name = 'move'").fetchall():
            return set()
        keys: set[str] = set()
        for chunk in chunks:
            rows = self._run("SELECT key FROM move WHERE chunk = ?", (chunk,)).fetchall()
            keys.update(row[0] for row in rows)
        return keys

    def close(self) -> None:
        """Close the database; the file stays."""
        self._connection.close()
