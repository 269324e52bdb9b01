"""The list of what a commit seals, as its cut left it: a scratch database, read in the worker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from s3fs_banyan.meta.database import open_scratch, runner
from s3fs_banyan.model import Piece


class SealItem(NamedTuple):
    """A chunk to be sealed (young), or moved out of a pack that is mostly dead."""

    chunk: int
    length: int
    source_key: str
    """Empty for a young chunk; else the object from which a living chunk is moved."""
    source_offset: int
    stored_length: int


class SealList:
    """Queries over a seal list; one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._connection = open_scratch(path)
        self._run = runner(self._connection)

    def items(self) -> list[SealItem]:
        """Return what to seal in the order in which it shall lie: by directory, file, offset."""
        moves = self._run("SELECT 1 FROM sqlite_master WHERE name = 'move'").fetchall()
        sql = "SELECT id, length, '', 0, 0, directory, ino, offset FROM chunk"
        if moves:
            sql += (
                " UNION ALL SELECT chunk, length, key, source_offset, stored_length,"
                " directory, ino, offset FROM move"
            )
        return [SealItem(*row[:5]) for row in self._run(f"{sql} ORDER BY 6, 7, 8").fetchall()]

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
