"""base.db: the state at the newest local cut, while commits cannot reach the store.

It begins as a copy of committed.db without its places, and is moved from local cut to local cut
by the same deltas, each in one synced transaction. Its places are those of chunks in base packs;
its held keys are those by which it differs from committed.db (decision 14).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from s3fs_banyan.errors import Corrupt
from s3fs_banyan.meta.committed import CommittedView, Head, apply_placements, apply_rows
from s3fs_banyan.meta.database import (
    attach_all,
    detach_all,
    disk_errors_named,
    open_database,
    run_script,
    runner,
)
from s3fs_banyan.meta.tables import BASE_TABLES, STATE_KEYS, base_sql, committed_sql
from s3fs_banyan.model import Place

BASE_LEVEL = 1
_SUFFIXES = ("", "-wal", "-shm", "-journal")


class BaseHead(NamedTuple):
    """Where base.db stands, and on what it was begun."""

    op_seq: int
    """Operation number of its local cut."""
    chain: int
    """Journal checksum at that cut."""
    number: int
    """How many local cuts are in it."""
    next_pack: int
    """Number of the next base pack."""
    origin_op_seq: int
    """The cut of the committed.db that it was copied from."""
    origin_chain: int


class Base:
    """The open base.db: one connection that reads on the event loop, one that applies."""

    def __init__(self, path: Path, *, vfs: str | None, writer: apsw.Connection) -> None:
        self.path = path
        self._vfs = vfs
        self._writer = writer
        self._reader: apsw.Connection | None = None
        self.head = _read_head(writer)

    # --- reading (event loop) ------------------------------------------------------------

    def place(self, chunk: int) -> Place | None:
        """Return where a chunk lies in a base pack, or None."""
        rows: list[Any] = (
            self._read()
            .execute(
                "SELECT k.key, p.offset, p.stored_length, p.frames FROM place p"
                " JOIN pack k ON k.id = p.pack WHERE p.chunk = ?",
                (chunk,),
            )
            .fetchall()
        )
        if not rows:
            return None
        key, offset, stored_length, frames = rows[0]
        return Place(key=key, offset=offset, stored_length=stored_length, frames=frames)

    def packs_bytes(self) -> int:
        """Return the size of all base packs together."""
        rows: Any = self._read().execute("SELECT coalesce(sum(size), 0) FROM pack").fetchall()
        return int(rows[0][0])

    def pack_numbers(self) -> set[int]:
        """Return the numbers of the base packs that are needed."""
        rows: Any = self._read().execute("SELECT id FROM pack").fetchall()
        return {int(row[0]) for row in rows}

    def cuts(self) -> dict[int, int]:
        """Return operation number -> journal checksum of the cuts and epochs since its origin."""
        rows: Any = self._read().execute("SELECT op_seq, chain FROM cut").fetchall()
        return {int(op_seq): int(chain) for op_seq, chain in rows}

    def held(self) -> dict[str, list[Any]]:
        """Return table -> keys by which it differs from committed.db."""
        return {
            table: self._read().execute(f"SELECT * FROM held_{table}").fetchall()
            for table in STATE_KEYS
        }

    def _read(self) -> apsw.Connection:
        if self._reader is None:
            self._reader = open_database(
                self.path, vfs=self._vfs, durable=True, cache_kib=4096, read_only=True
            )
        return self._reader

    @contextmanager
    def view(self) -> Iterator[CommittedView]:
        """Open a reading connection of one's own, for a thread."""
        connection = open_database(
            self.path, vfs=self._vfs, durable=True, cache_kib=2048, read_only=True
        )
        try:
            yield CommittedView(connection)
        finally:
            connection.close()

    def writer(self) -> apsw.Connection:
        """Return the writing connection, as the base of a fresh live.db."""
        return self._writer

    # --- moving (a thread) ---------------------------------------------------------------

    def apply_cut(
        self, delta: Path, placements: Path, head: BaseHead, cuts: Mapping[int, int]
    ) -> set[int]:
        """Move to a local cut in one synced transaction; returns the base packs still needed.

        Raises `LocalDiskFull` and `OSError`: then nothing has changed.
        """
        connection = self._writer
        files: dict[str, Path | None] = {"delta": delta, "placed": placements}
        with disk_errors_named("a local cut"):
            self._apply_files(files, head, cuts)
        self.head = _read_head(connection)
        rows: Any = connection.execute("SELECT id FROM pack").fetchall()
        return {int(row[0]) for row in rows}

    def _apply_files(
        self, files: Mapping[str, Path | None], head: BaseHead, cuts: Mapping[int, int]
    ) -> None:
        connection = self._writer
        try:
            attach_all(connection, files)
            connection.execute("BEGIN IMMEDIATE").fetchall()
            try:
                _write_head(connection, head)
                connection.execute("DELETE FROM cut").fetchall()
                connection.executemany(
                    "INSERT INTO cut VALUES (?, ?)",
                    [(op_seq, str(chain)) for op_seq, chain in cuts.items()],
                )
                apply_rows(connection)
                apply_placements(connection, head.number)
                _hold_keys(connection)
                connection.execute("DELETE FROM pack WHERE live_bytes = 0").fetchall()
                connection.execute("COMMIT").fetchall()
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK").fetchall()
                raise
        finally:
            detach_all(connection, files)

    def close(self) -> None:
        """Close both connections."""
        if self._reader is not None:
            self._reader.close()
        self._writer.close()


def _hold_keys(connection: apsw.Connection) -> None:
    for table, keys in STATE_KEYS.items():
        names = ", ".join(keys)
        connection.execute(
            f"INSERT OR IGNORE INTO main.held_{table} SELECT {names} FROM delta.kept_{table}"
        ).fetchall()
        connection.execute(
            f"DELETE FROM main.held_{table}"
            f" WHERE ({names}) IN (SELECT {names} FROM delta.gone_{table})"
        ).fetchall()


def _write_head(connection: apsw.Connection, head: BaseHead) -> None:
    values = {
        "seq": head.number,  # what the triggers of the pack table call a commit
        "op_seq": head.op_seq,
        "chain": str(head.chain),
        "next_pack": head.next_pack,
        "origin_op_seq": head.origin_op_seq,
        "origin_chain": str(head.origin_chain),
    }
    for name, value in values.items():
        connection.execute(
            "INSERT INTO head VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = ?2",
            (name, value),
        ).fetchall()


def _read_head(connection: apsw.Connection) -> BaseHead:
    values: dict[str, Any] = dict(runner(connection)("SELECT name, value FROM head").fetchall())
    if values["base_level"] != BASE_LEVEL:
        raise KeyError("base.db of another release")
    return BaseHead(
        op_seq=values["op_seq"],
        chain=int(values["chain"]),
        number=values["seq"],
        next_pack=values["next_pack"],
        origin_op_seq=values["origin_op_seq"],
        origin_chain=int(values["origin_chain"]),
    )


def begin_base(path: Path, source: apsw.Connection, origin: Head, *, vfs: str | None) -> Base:
    """Make base.db as a copy of committed.db, standing where that stands; for a thread.

    `source` is a reading connection of committed.db of the caller's own. A base.db that stands
    at its origin says nothing that committed.db does not say: recovery drops it.
    Raises `LocalDiskFull`.
    """
    with disk_errors_named("the base of a local cut"):
        writer = open_database(path, vfs=vfs, durable=True, cache_kib=8192)
        try:
            with writer.backup("main", source, "main") as backup:
                while not backup.done:
                    backup.step(1024)
            tables = "".join(f"DROP TABLE IF EXISTS {name};" for name in BASE_TABLES)
            run_script(
                writer,
                "BEGIN IMMEDIATE; DROP TRIGGER chunk_gone; DROP TABLE place; DROP TABLE pack;"
                " DROP TABLE head;" + tables + committed_sql() + base_sql(),
            )
            values = {
                "base_level": BASE_LEVEL,
                "volume_id": origin.volume_id,
            }
            writer.executemany("INSERT INTO head VALUES (?, ?)", list(values.items()))
            first = BaseHead(
                op_seq=origin.op_seq,
                chain=origin.chain,
                number=0,
                next_pack=1,
                origin_op_seq=origin.op_seq,
                origin_chain=origin.chain,
            )
            _write_head(writer, first)
            writer.execute("COMMIT").fetchall()
            return Base(path, vfs=vfs, writer=writer)
        except BaseException:
            writer.close()
            raise


def open_base(path: Path, *, vfs: str | None, volume_id: str) -> Base | None:
    """Open an existing base.db, None if its making was never finished.

    Raises `Corrupt`, and `LocalDiskFull` and `OSError` if the disk refuses just now.
    """
    try:
        with disk_errors_named(str(path)):
            writer = open_database(path, vfs=vfs, durable=True, cache_kib=8192)
        try:
            tables = runner(writer)("SELECT 1 FROM sqlite_master WHERE name = 'head'").fetchall()
            query = "SELECT name, value FROM head"
            found = dict(runner(writer)(query).fetchall()) if tables else {}
            if "base_level" not in found:
                writer.close()
                return None
            if found["volume_id"] != volume_id:
                raise KeyError("it belongs to another volume")
            return Base(path, vfs=vfs, writer=writer)
        except BaseException:
            writer.close()
            raise
    except (apsw.Error, KeyError, ValueError, TypeError) as error:
        raise Corrupt("database", str(path), str(error)) from error


def base_files(path: Path) -> list[Path]:
    """Return the files that a base.db may consist of."""
    return [path.with_name(path.name + suffix) for suffix in _SUFFIXES]
