"""Names of the tables and their keys, and the SQL that is made from them."""

from __future__ import annotations

from importlib import resources
from typing import Final

STATE_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "inode": ("ino",),
    "dentry": ("parent", "name"),
    "symlink": ("ino",),
    "xattr": ("ino", "name"),
    "extent": ("ino", "offset"),
    "chunk": ("id",),
    "counter": ("name",),
}
STATE_COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "inode": (
        "ino", "mode", "nlink", "uid", "gid", "rdev", "size", "atime_ns", "mtime_ns", "ctime_ns",
    ),
    "dentry": ("parent", "name", "ino", "cookie"),
    "symlink": ("ino", "target"),
    "xattr": ("ino", "name", "value"),
    "extent": ("ino", "offset", "length", "chunk", "chunk_offset"),
    "chunk": ("id", "length", "refs"),
    "counter": ("name", "value"),
}  # fmt: skip
_KEY_TYPES: Final = {"name": "BLOB"}
COUNTERS: Final = ("epoch", "next_ino", "next_chunk", "watermark")


def schema_sql() -> str:
    """Return the statements that make the state's tables."""
    return resources.files(__package__).joinpath("schema.sql").read_text(encoding="utf-8")


def key_type(table: str, column: str) -> str:
    """Return the declared type of a key column."""
    if table == "counter":
        return "TEXT"
    return _KEY_TYPES.get(column, "INTEGER")


def delta_sql(schema: str) -> str:
    """Return the statements that make the tables of a delta in the attached `schema`."""
    statements = []
    for table, columns in STATE_COLUMNS.items():
        statements.append(f"CREATE TABLE {schema}.{table} ({', '.join(columns)});")
        statements.append(f"CREATE TABLE {schema}.dead_{table} ({', '.join(STATE_KEYS[table])});")
    return "\n".join(statements)


def live_sql() -> str:
    """Return the statements that make what only live.db has: pieces, dirty keys, position.

    Triggers note the primary key of every changed row in the dirty set that is active. They
    say INSERT OR IGNORE and nothing cleverer: the conflict clause of an outer statement would
    override anything else.
    """
    statements = [
        "CREATE TABLE flip (active INTEGER NOT NULL) STRICT;",
        "INSERT INTO flip VALUES (0);",
        "CREATE TABLE local (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;",
        "CREATE TABLE piece (chunk INTEGER NOT NULL, offset INTEGER NOT NULL,"
        " length INTEGER NOT NULL, segment INTEGER NOT NULL, position INTEGER NOT NULL,"
        " record_offset INTEGER NOT NULL, op_seq INTEGER NOT NULL,"
        " PRIMARY KEY (chunk, offset)) STRICT, WITHOUT ROWID;",
    ]
    for table, keys in STATE_KEYS.items():
        typed = ", ".join(f"{key} {key_type(table, key)} NOT NULL" for key in keys)
        statements.append(
            f"CREATE TABLE dirty_{table} (flip INTEGER NOT NULL, {typed},"
            f" PRIMARY KEY (flip, {', '.join(keys)})) STRICT, WITHOUT ROWID;"
        )
        for event, row in (("INSERT", "NEW"), ("UPDATE", "NEW"), ("DELETE", "OLD")):
            statements.append(_trigger(table, keys, event.lower(), event, row))
        moved = f"UPDATE OF {', '.join(keys)}"
        statements.append(_trigger(table, keys, "rekey", moved, "OLD"))
    return "\n".join(statements)


def _trigger(table: str, keys: tuple[str, ...], name: str, event: str, row: str) -> str:
    values = ", ".join(f"{row}.{key}" for key in keys)
    return (
        f"CREATE TRIGGER dirty_{table}_{name} AFTER {event} ON {table} BEGIN"
        f" INSERT OR IGNORE INTO dirty_{table} SELECT active, {values} FROM flip; END;"
    )


BASE_TABLES: Final = ("cut", *(f"held_{table}" for table in STATE_KEYS))
"""What base.db has besides the tables of committed.db."""


def base_sql() -> str:
    """Return the statements that make `BASE_TABLES`: cuts since, and keys held back."""
    statements = ["CREATE TABLE cut (op_seq INTEGER PRIMARY KEY, chain TEXT NOT NULL) STRICT;"]
    for table, keys in STATE_KEYS.items():
        typed = ", ".join(f"{key} {key_type(table, key)} NOT NULL" for key in keys)
        statements.append(
            f"CREATE TABLE held_{table} ({typed}, PRIMARY KEY ({', '.join(keys)}))"
            " STRICT, WITHOUT ROWID;"
        )
    return "\n".join(statements)


def committed_sql() -> str:
    """Return the statements that make what only committed.db has: places, packs, the head.

    Deleting a chunk row deletes its place; a pack's live bytes follow its places, and when
    they are 0 again the pack is dead as of this commit, whose seq the head already has.
    """
    return """
CREATE TABLE head (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE pack (
    id INTEGER PRIMARY KEY,           -- commit << 16 | number in it
    key TEXT NOT NULL,
    class TEXT NOT NULL,
    size INTEGER NOT NULL,            -- bytes of the object
    live_bytes INTEGER NOT NULL,      -- stored bytes of chunks that are alive
    first_seq INTEGER NOT NULL,
    dead_seq INTEGER                  -- NULL while a chunk in it lives
) STRICT;
CREATE TABLE place (
    chunk INTEGER PRIMARY KEY,
    pack INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    stored_length INTEGER NOT NULL,
    frames BLOB NOT NULL
) STRICT;
CREATE INDEX place_by_pack ON place (pack);
CREATE TRIGGER chunk_gone AFTER DELETE ON chunk BEGIN
    DELETE FROM place WHERE chunk = OLD.id;
END;
CREATE TRIGGER place_new AFTER INSERT ON place BEGIN
    UPDATE pack SET live_bytes = live_bytes + NEW.stored_length WHERE id = NEW.pack;
END;
CREATE TRIGGER place_moved AFTER UPDATE ON place BEGIN
    UPDATE pack SET live_bytes = live_bytes - OLD.stored_length WHERE id = OLD.pack;
    UPDATE pack SET live_bytes = live_bytes + NEW.stored_length, dead_seq = NULL
        WHERE id = NEW.pack;
    UPDATE pack SET dead_seq = (SELECT value FROM head WHERE name = 'seq')
        WHERE id = OLD.pack AND live_bytes = 0;
END;
CREATE TRIGGER place_gone AFTER DELETE ON place BEGIN
    UPDATE pack SET live_bytes = live_bytes - OLD.stored_length WHERE id = OLD.pack;
    UPDATE pack SET dead_seq = (SELECT value FROM head WHERE name = 'seq')
        WHERE id = OLD.pack AND live_bytes = 0;
END;
"""
