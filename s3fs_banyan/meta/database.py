"""Opening SQLite the way each database here needs it, and what they share.

apsw's `execute` is lazy: a string of several statements stops at the first row until the cursor
is drained. `run_script` drains.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw

from s3fs_banyan.errors import Corrupt, LocalDiskFull
from s3fs_banyan.format.volume import VolumeDescriptor
from s3fs_banyan.meta.tables import COUNTERS, schema_sql
from s3fs_banyan.model import ROOT_INO, Epoch, first_chunk_of

S_IFDIR = 0o040000
BUSY_MS = 20_000


def open_database(
    path: Path,
    *,
    vfs: str | None = None,
    durable: bool,
    cache_kib: int = 16_384,
    read_only: bool = False,
) -> apsw.Connection:
    """Open a database; `durable` ones survive a power cut at every commit.

    A durable database under a VFS of its own (the simulation's) uses a rollback journal, since
    such a VFS has no shared memory; all others use a WAL, so that readers never wait.
    """
    flags = apsw.SQLITE_OPEN_URI
    flags |= (
        apsw.SQLITE_OPEN_READONLY
        if read_only
        else apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
    )
    connection = apsw.Connection(str(path), flags=flags, vfs=vfs)
    connection.set_busy_timeout(BUSY_MS)
    mode = "WAL" if vfs is None else "DELETE"
    pragmas = [
        "PRAGMA trusted_schema = OFF",
        f"PRAGMA cache_size = -{cache_kib}",
        "PRAGMA temp_store = MEMORY",
        f"PRAGMA synchronous = {'FULL' if durable else 'OFF'}",
    ]
    if not read_only:
        pragmas.insert(0, f"PRAGMA journal_mode = {mode}")
    for pragma in pragmas:
        connection.execute(pragma).fetchall()
    if not durable:
        connection.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
    return connection


def open_scratch(path: Path) -> apsw.Connection:
    """Open a database that is made, read once and thrown away."""
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
    connection = apsw.Connection(str(path), flags=flags)
    run_script(connection, "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")
    return connection


def runner(connection: apsw.Connection) -> Callable[..., Any]:
    """Return the `execute` of a cursor of its own.

    The types of a row are those of its statement, which no type checker can know.
    """
    return connection.cursor().execute


@contextmanager
def disk_errors_named(what: str) -> Iterator[None]:
    """Turn what SQLite says of the local disk into what everybody else says: is it full or ill?

    Raises `LocalDiskFull`, also for a file that SQLite can neither make nor open (`CantOpenError`):
    there may be no room for its name. Raises `OSError` for an error of input or output.
    """
    try:
        yield
    except apsw.FullError as error:
        raise LocalDiskFull(f"{what}: the local disk is full") from error
    except apsw.CantOpenError as error:
        raise LocalDiskFull(
            f"{what}: a file on the local disk can be neither made nor opened: {error}"
        ) from error
    except apsw.IOError as error:
        raise OSError(errno.EIO, f"{what}: {error}") from error


def run_script(connection: apsw.Connection, sql: str) -> None:
    """Run all statements of a string."""
    for _ in connection.execute(sql):
        pass


def attach(connection: apsw.Connection, path: Path, schema: str, *, vfs: str | None = None) -> None:
    """Attach a database file under a schema name."""
    name = f"file:{path}" + (f"?vfs={vfs}" if vfs else "")
    connection.execute(f"ATTACH ? AS {schema}", (name,)).fetchall()


def attach_all(connection: apsw.Connection, files: Mapping[str, Path | None]) -> None:
    """Attach the files that are there, by schema name; `detach_all` follows in any case."""
    for schema, path in files.items():
        if path is not None:
            attach(connection, path, schema)


def detach_all(connection: apsw.Connection, schemas: Iterable[str]) -> None:
    """Detach those of the schemas that are attached: one may have failed before the others."""
    attached = {row[1] for row in connection.execute("PRAGMA database_list").fetchall()}
    for schema in schemas:
        if schema in attached:
            connection.execute(f"DETACH {schema}").fetchall()


def attach_scratch(connection: apsw.Connection, path: Path, schema: str) -> None:
    """Attach a database to be made, without journal or sync."""
    attach(connection, path, schema)
    run_script(connection, f"PRAGMA {schema}.journal_mode = OFF; PRAGMA {schema}.synchronous = OFF")


def make_genesis(connection: apsw.Connection, volume: VolumeDescriptor) -> None:
    """Fill an empty database with the state of a new volume: a root directory, the counters."""
    run_script(connection, schema_sql())
    created = volume.created_ns
    connection.execute(
        "INSERT INTO inode VALUES (?, ?, 2, ?, ?, 0, 0, ?, ?, ?)",
        (
            ROOT_INO,
            S_IFDIR | volume.root_mode,
            volume.root_uid,
            volume.root_gid,
            created,
            created,
            created,
        ),
    ).fetchall()
    first_chunk = int(first_chunk_of(Epoch(0)))
    values = {
        "epoch": 0,
        "next_ino": ROOT_INO + 1,
        "next_chunk": first_chunk,
        "watermark": first_chunk,
    }
    connection.executemany(
        "INSERT INTO counter VALUES (?, ?)", [(name, values[name]) for name in COUNTERS]
    )


def check_foreign(path: Path, kind: str, key: str, script: str) -> None:
    """Refuse a database that came from outside unless it is sound and just what `script` makes.

    Statements are compared, not names: views, triggers and generated columns would run in our
    process, a table of another shape would be applied in part. Raises `Corrupt` naming `key`.
    """
    query = "SELECT type, name, sql FROM sqlite_master ORDER BY type, name"
    ours = apsw.Connection(":memory:")
    run_script(ours, script)
    try:
        theirs = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            theirs.execute("PRAGMA trusted_schema = OFF").fetchall()
            expected, found = ours.execute(query).fetchall(), theirs.execute(query).fetchall()
            if found != expected:
                odd = [f"{row[0]} {row[1]}" for row in found if row not in expected]
                why = f"holds {odd[0]}, which is not ours" if odd else "lacks a table of ours"
                raise Corrupt(kind, key, why)
            verdict = theirs.execute("PRAGMA integrity_check(1)").fetchall()
            if verdict != [("ok",)]:
                raise Corrupt(kind, key, f"integrity check: {verdict[0][0]}")
        finally:
            theirs.close()
    except apsw.Error as error:
        raise Corrupt(kind, key, str(error)) from error
    finally:
        ours.close()
