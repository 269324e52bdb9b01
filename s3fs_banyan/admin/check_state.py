"""Check of the state's tables: what one row says of another.

Each rule is one query that finds the rows which break it. The rules are those of architecture,
sections 5 and 6; SQLite's own integrity check ran when the database was opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Protocol

_SHOWN_MAX = 20

RULES: Final[tuple[tuple[str, str], ...]] = (
    (
        "name {0!r} in inode {1} leads to inode {2}, which is not there",
        "SELECT d.name, d.parent, d.ino FROM dentry d LEFT JOIN inode i ON i.ino = d.ino"
        " WHERE i.ino IS NULL",
    ),
    (
        "name {0!r} lies in inode {1}, which is no directory",
        "SELECT d.name, d.parent FROM dentry d LEFT JOIN inode i ON i.ino = d.parent"
        " WHERE i.ino IS NULL OR i.mode & 61440 != 16384",
    ),
    (
        "inode {0} says that it has {1} names, {2} are there",
        "SELECT i.ino, i.nlink, count(d.ino) FROM inode i LEFT JOIN dentry d ON d.ino = i.ino"
        " WHERE i.mode & 61440 != 16384 GROUP BY i.ino HAVING i.nlink != count(d.ino)",
    ),
    (
        "directory {0} has {1} names, not one",
        "SELECT i.ino, count(d.ino) FROM inode i LEFT JOIN dentry d ON d.ino = i.ino"
        " WHERE i.mode & 61440 = 16384 AND i.nlink > 0 AND i.ino != 1"
        " GROUP BY i.ino HAVING count(d.ino) != 1",
    ),
    (
        "directory {0} has link count {1}, its directories make it {2}",
        "SELECT i.ino, i.nlink, 2 + (SELECT count(*) FROM dentry d JOIN inode c ON c.ino = d.ino"
        " WHERE d.parent = i.ino AND c.mode & 61440 = 16384) AS right FROM inode i"
        " WHERE i.mode & 61440 = 16384 AND i.nlink > 0 AND i.nlink != right",
    ),
    (
        "the root directory is not there",
        "SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM inode WHERE ino = 1)",
    ),
    (
        "extent at {1} of inode {0} belongs to no inode",
        "SELECT e.ino, e.offset FROM extent e LEFT JOIN inode i ON i.ino = e.ino"
        " WHERE i.ino IS NULL",
    ),
    (
        "extent at {1} of inode {0} reaches beyond the file's size",
        "SELECT e.ino, e.offset FROM extent e JOIN inode i ON i.ino = e.ino"
        " WHERE e.offset + e.length > i.size OR e.length <= 0",
    ),
    (
        "extents at {1} and {2} of inode {0} overlap",
        "SELECT ino, offset, next FROM (SELECT ino, offset, length,"
        " lead(offset) OVER (PARTITION BY ino ORDER BY offset) AS next FROM extent)"
        " WHERE next < offset + length",
    ),
    (
        "extent at {1} of inode {0} needs chunk {2}, which is not there or too short",
        "SELECT e.ino, e.offset, e.chunk FROM extent e LEFT JOIN chunk c ON c.id = e.chunk"
        " WHERE c.id IS NULL OR e.chunk_offset + e.length > c.length OR e.chunk_offset < 0",
    ),
    (
        "chunk {0} counts {1} extents, {2} are there",
        "SELECT c.id, c.refs, count(e.chunk) FROM chunk c LEFT JOIN extent e ON e.chunk = c.id"
        " GROUP BY c.id HAVING c.refs != count(e.chunk)",
    ),
    (
        "symbolic link {0} has no target",
        "SELECT i.ino FROM inode i LEFT JOIN symlink s ON s.ino = i.ino"
        " WHERE i.mode & 61440 = 40960 AND s.ino IS NULL AND i.nlink > 0",
    ),
    (
        "extended attribute {1!r} belongs to inode {0}, which is not there",
        "SELECT x.ino, x.name FROM xattr x LEFT JOIN inode i ON i.ino = x.ino WHERE i.ino IS NULL",
    ),
    (
        "pack {0} has {1} living bytes, its chunks have {2}",
        "SELECT k.key, k.live_bytes, coalesce(sum(p.stored_length), 0) AS live FROM pack k"
        " LEFT JOIN place p ON p.pack = k.id GROUP BY k.id HAVING k.live_bytes != live",
    ),
    (
        "chunk {0} has a place, but is not alive or its pack is not there",
        "SELECT p.chunk FROM place p LEFT JOIN chunk c ON c.id = p.chunk"
        " LEFT JOIN pack k ON k.id = p.pack WHERE c.id IS NULL OR k.id IS NULL",
    ),
)
"""(what to say, query): each row that a query finds breaks the rule."""


class Connection(Protocol):
    """What is asked of a database connection."""

    def execute(self, statements: str, /) -> Any:  # noqa: ANN401  # rows of any kind
        ...


def count_inodes(connection: Connection) -> int:
    """Return how many inodes the state has."""
    return int(connection.execute("SELECT count(*) FROM inode").fetchall()[0][0])


def check_state(connection: Connection) -> Iterator[str]:
    """Yield what breaks a rule; of each rule the first rows, and how many more there are."""
    for text, query in RULES:
        rows = connection.execute(query).fetchall()
        for row in rows[:_SHOWN_MAX]:
            yield text.format(*row)
        if len(rows) > _SHOWN_MAX:
            yield f"... and {len(rows) - _SHOWN_MAX} more of that kind"
