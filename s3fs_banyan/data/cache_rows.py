"""The statements on the block cache's table, which is diskcache's (5.6) `Cache`.

Each function that changes rows belongs inside a transaction of the caller. The files named by
rows that went are the caller's to unlink. What is used here of the
table: `key` (the block's row key), `raw` (1), `store_time` (a counter: the order of use), `tag`
(the checksum, or those of a strip's blocks), `size` (the charge; triggers keep its sum and the
count of rows in `Settings`), `mode` (2: the value is a file) and `filename`. Values read back are
cast or compared, never trusted: SQLite has no checksums of its own.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MODE_FILE: Final = 2
"""diskcache's MODE_BINARY: the value is a file."""
BATCH: Final = 1_000
"""Rows that one transaction changes at most; a `put` of blocks changes fewer."""

_EVICT_BATCH: Final = 64
_SPARED_MAX: Final = 64
"""Blocks in use that one put moves to the young end before it takes the oldest all the same."""
_STAMP_MAX: Final = 1 << 52


class Stored(NamedTuple):
    """A block, or a strip of them, whose file is written and whose row is not."""

    row_key: str
    sums: bytes
    charge: int
    filename: str
    replaces: tuple[str, ...]
    """Row keys of what is older; the row itself may be among them."""


def totals(connection: sqlite3.Connection) -> tuple[int, int]:
    """Return (bytes charged, rows) as the triggers keep them."""
    ((size, count),) = connection.execute(
        "SELECT CAST(TOTAL(value) FILTER (WHERE key = 'size') AS INTEGER),"
        " CAST(TOTAL(value) FILTER (WHERE key = 'count') AS INTEGER) FROM Settings"
    ).fetchall()
    return size, count


def recount(connection: sqlite3.Connection) -> None:
    """Set what the triggers keep to what the rows say."""
    connection.execute(
        "UPDATE Settings SET value = (SELECT COALESCE(SUM(size), 0) FROM Cache) WHERE key = 'size'"
    )
    connection.execute(
        "UPDATE Settings SET value = (SELECT COUNT(*) FROM Cache) WHERE key = 'count'"
    )


def replace(
    connection: sqlite3.Connection,
    blocks: Sequence[Stored],
    limit: int,
    take_note: Callable[[str], bool],
) -> tuple[list[object], list[object]]:
    """Insert or replace rows within the limit; returns the files (replaced, evicted).

    Room is made first: after sparing the blocks in use the new ones would be the oldest.
    """
    replaced: list[object] = []
    for block in blocks:
        among = f"WHERE raw = 1 AND key IN ({', '.join('?' * len(block.replaces))})"
        found = connection.execute(
            f"SELECT filename FROM Cache {among}",  # noqa: S608  # question marks only
            block.replaces,
        ).fetchall()
        if found:
            replaced += [name for (name,) in found]
            connection.execute(f"DELETE FROM Cache {among}", block.replaces)  # noqa: S608
    evicted = evict(connection, limit - sum(block.charge for block in blocks), take_note)
    stamp = _newest(connection)
    connection.executemany(
        "INSERT INTO Cache(key, raw, store_time, tag, size, mode, filename)"
        " VALUES (?, 1, ?, ?, ?, ?, ?)",
        [
            (each.row_key, stamp + number, each.sums, each.charge, MODE_FILE, each.filename)
            for number, each in enumerate(blocks, 1)
        ],
    )
    return replaced, evicted


def evict(
    connection: sqlite3.Connection, limit: int, take_note: Callable[[str], bool]
) -> list[object]:
    """Delete the oldest rows until the rest fits; returns their files.

    `take_note` says whether a block was used since its row was written, and forgets it.
    """
    deleted: list[object] = []
    spared = 0
    used, _ = totals(connection)
    while used > limit:
        rows = connection.execute(
            "SELECT rowid, key, CAST(size AS INTEGER), filename FROM Cache"
            " ORDER BY store_time LIMIT ?",
            (_EVICT_BATCH,),
        ).fetchall()
        if not rows:
            break
        for rowid, row_key, size, filename in rows:
            if used <= limit:
                break
            if spared < _SPARED_MAX and take_note(row_key):
                spared += 1
                touch(connection, [row_key])
                continue
            connection.execute("DELETE FROM Cache WHERE rowid = ?", (rowid,))
            deleted.append(filename)
            used -= size
    return deleted


def touch(connection: sqlite3.Connection, row_keys: Sequence[str]) -> None:
    """Make rows the youngest, the last of them the youngest of all."""
    stamp = _newest(connection)
    connection.executemany(
        "UPDATE Cache SET store_time = ? WHERE key = ? AND raw = 1",
        [(stamp + number, row_key) for number, row_key in enumerate(row_keys, 1)],
    )


def find_range(connection: sqlite3.Connection, first: str, end: str) -> list[tuple[int, object]]:
    """Return (row id, file) of up to a batch of the rows with first <= key < end."""
    return connection.execute(
        "SELECT rowid, filename FROM Cache WHERE key >= ? AND key < ? LIMIT ?",
        (first, end, BATCH),
    ).fetchall()


def delete_rows(connection: sqlite3.Connection, found: Sequence[tuple[int, object]]) -> None:
    """Delete what `find_range` found."""
    connection.executemany("DELETE FROM Cache WHERE rowid = ?", [(row[0],) for row in found])


def delete_row(connection: sqlite3.Connection, row_key: str, filename: object) -> None:
    """Delete the row if it still is the one that was read."""
    connection.execute(
        "DELETE FROM Cache WHERE key = ? AND raw = 1 AND filename IS ?",
        (row_key, filename),
    )


def _newest(connection: sqlite3.Connection) -> int:
    ((stamp,),) = connection.execute(
        "SELECT CAST(MAX(store_time) AS INTEGER) FROM Cache"
    ).fetchall()
    if stamp is None:
        return 0
    if not 0 <= stamp < _STAMP_MAX:
        raise sqlite3.DatabaseError("the counter of uses is out of range")
    return int(stamp)
