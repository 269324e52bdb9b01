"""committed.db: row for row what the store holds at `seq`, and where every sealed chunk lies.

It is the base of recovery, the source of checkpoints, and the whole of a follower. Written once
a commit, synced. Applying a commit twice is harmless.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import apsw

from s3fs_banyan.errors import Corrupt
from s3fs_banyan.format.commit import NO_DIGEST, CommitFooter
from s3fs_banyan.format.keys import is_chunk_key
from s3fs_banyan.format.volume import VolumeDescriptor
from s3fs_banyan.meta.database import (
    attach_all,
    check_foreign,
    detach_all,
    disk_errors_named,
    make_genesis,
    open_database,
    open_scratch,
    run_script,
    runner,
)
from s3fs_banyan.meta.extents import Extents
from s3fs_banyan.meta.paths import FileRow, directories_sql
from s3fs_banyan.meta.tables import (
    STATE_COLUMNS,
    STATE_KEYS,
    committed_sql,
    delta_sql,
    schema_sql,
)
from s3fs_banyan.meta.tree import Tree
from s3fs_banyan.model import Place

_PLACEMENTS_SQL = (
    "CREATE TABLE pack (id INTEGER PRIMARY KEY, key, class, size);"
    "CREATE TABLE place (chunk INTEGER PRIMARY KEY, pack, offset, stored_length, frames);"
)
_PLACE = (
    "SELECT k.key, p.offset, p.stored_length, p.frames FROM place p"
    " JOIN pack k ON k.id = p.pack WHERE p.chunk = ?"
)
_OBJECT_SIZE = "SELECT size FROM pack WHERE key = ?"
COMMITTED_LEVEL = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Which commit committed.db stands at, and where its cut lies in the journal."""

    volume_id: str
    seq: int
    digest: bytes
    epoch: int
    op_seq: int
    """Operation number of the last real cut."""
    chain: int
    """Journal checksum at that cut."""
    time_ns: int
    dense_from: int
    kept: tuple[int, ...]
    fence_chain: int
    """Journal checksum of the newest fence's epoch record: whose volume this is."""


class PackRow(NamedTuple):
    """A row of the pack table."""

    id: int
    key: str
    storage_class: str
    size: int
    live_bytes: int
    first_seq: int
    dead_seq: int | None


class PlacementRow(NamedTuple):
    """Where a chunk was put by a commit."""

    chunk: int
    pack: int
    offset: int
    stored_length: int
    frames: bytes


def write_placements(
    path: Path, packs: list[tuple[int, str, str, int]], places: list[PlacementRow]
) -> None:
    """Write the placements section of a commit as a SQLite database."""
    connection = open_scratch(path)
    try:
        run_script(connection, "BEGIN;" + _PLACEMENTS_SQL)
        connection.executemany("INSERT INTO pack VALUES (?, ?, ?, ?)", packs)
        connection.executemany("INSERT INTO place VALUES (?, ?, ?, ?, ?)", places)
        run_script(connection, "COMMIT")
    finally:
        connection.close()


class CommittedView:
    """Queries over packs and places; one connection, one thread."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._run = runner(connection)

    def packs(self) -> list[PackRow]:
        """Return all rows of the pack table."""
        return [PackRow(*row) for row in self._run("SELECT * FROM pack ORDER BY id").fetchall()]

    def living_chunks(self, pack: int) -> list[tuple[int, int, int, str, int, int]]:
        """Return (chunk, length, pack, key, offset, stored length) of what lives in a pack."""
        rows: list[tuple[int, int, int, str, int, int]] = self._run(
            "SELECT c.id, c.length, p.pack, k.key, p.offset, p.stored_length FROM place p"
            " JOIN pack k ON k.id = p.pack JOIN chunk c ON c.id = p.chunk WHERE p.pack = ?",
            (pack,),
        ).fetchall()
        return rows

    def homes(self, packs: Sequence[int]) -> list[tuple[int, int, int]]:
        """Return (chunk, inode, offset) of a file that each living chunk of the packs is in."""
        rows: list[tuple[int, int, int]] = self._run(
            "SELECT e.chunk, e.ino, min(e.offset) FROM extent e WHERE e.chunk IN ("
            "SELECT p.chunk FROM place p WHERE p.pack IN (SELECT value FROM json_each(?)))"
            " GROUP BY e.chunk",
            (json.dumps(list(packs)),),
        ).fetchall()
        return rows

    def files(self, inos: Sequence[int]) -> list[FileRow]:
        """Return the names of inodes, one of each; what has no name is left out."""
        rows = self._run(
            "SELECT d.ino, d.parent, d.name, i.size, i.mtime_ns FROM dentry d"
            " JOIN inode i ON i.ino = d.ino WHERE d.ino IN (SELECT value FROM json_each(?))"
            " GROUP BY d.ino",
            (json.dumps(list(inos)),),
        ).fetchall()
        return [FileRow(*row) for row in rows]

    def directories_above(self, inos: Sequence[int]) -> list[tuple[int, int, bytes]]:
        """Return (inode, parent, name) of directories and of all above them."""
        rows: list[tuple[int, int, bytes]] = self._run(
            directories_sql("main", "SELECT value FROM json_each(?)"), (json.dumps(list(inos)),)
        ).fetchall()
        return rows

    def stored(self) -> list[tuple[str, int, int, int]]:
        """Return (class, packs, bytes, living bytes) of all packs that were not deleted."""
        rows: list[tuple[str, int, int, int]] = self._run(
            "SELECT class, count(*), sum(size), sum(live_bytes) FROM pack GROUP BY class"
        ).fetchall()
        return rows

    def fragmented(self, extents_min: int, mean_bytes_max: int) -> list[int]:
        """Return inodes with many small extents, the worst first."""
        rows = self._run(
            "SELECT ino FROM extent GROUP BY ino HAVING count(*) >= ?1"
            " AND sum(length) / count(*) < ?2 ORDER BY count(*) DESC LIMIT 256",
            (extents_min, mean_bytes_max),
        ).fetchall()
        return [row[0] for row in rows]

    def all_chunks(self) -> Iterator[tuple[int, int, str | None, int, int, bytes]]:
        """Give (chunk, length, key, offset, stored length, frames); no key: no place."""
        yield from self._run(
            "SELECT c.id, c.length, k.key, p.offset, p.stored_length, p.frames"
            " FROM chunk c LEFT JOIN place p ON p.chunk = c.id LEFT JOIN pack k ON k.id = p.pack"
            " ORDER BY k.key, p.offset"
        )


class CommittedState:
    """The whole state at one commit, whatever is applied meanwhile. Made by `open_state`.

    It has a connection of its own, in one long read. While it is open the WAL is not used again
    from its beginning, unless the database held all of it at the time.
    """

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._run = runner(connection)
        self._run("BEGIN").fetchall()
        # A BEGIN alone would not stay at what is there now.
        self.head = _read_head(connection)
        self.tree = Tree(connection)
        self.extents = Extents(connection, self.tree)

    def place(self, chunk: int) -> Place | None:
        """Return where a chunk lies, or None."""
        return _place(self._run(_PLACE, (chunk,)).fetchall())

    def object_size(self, key: str) -> int | None:
        """Return the size of the pack or commit under `key`, if chunks in it are alive."""
        rows = self._run(_OBJECT_SIZE, (key,)).fetchall()
        return rows[0][0] if rows else None

    def close(self) -> None:
        """Close the connection, and end the read."""
        self._connection.close()


class Committed:
    """The open committed.db: one connection that reads on the event loop, one that applies."""

    def __init__(self, path: Path, *, vfs: str | None, writer: apsw.Connection) -> None:
        self.path = path
        self.vfs = vfs
        self._writer = writer
        self._reader: apsw.Connection | None = None
        self.head = _read_head(writer)

    # --- places (event loop) -------------------------------------------------------------

    def place(self, chunk: int) -> Place | None:
        """Return where a sealed chunk lies, or None."""
        return _place(self._query(_PLACE, (chunk,)))

    def object_size(self, key: str) -> int | None:
        """Return the size of the pack or commit under `key`, if chunks in it are alive."""
        rows = self._query(_OBJECT_SIZE, (key,))
        return rows[0][0] if rows else None

    def packs_of(self, chunks: Sequence[int]) -> dict[int, tuple[int, PackRow]]:
        """Return chunk -> (its stored length, the object it is in), without those in none."""
        rows = self._query(
            "SELECT p.chunk, p.stored_length, k.id, k.key, k.class, k.size, k.live_bytes,"
            " k.first_seq, k.dead_seq FROM place p JOIN pack k ON k.id = p.pack"
            " WHERE p.chunk IN (SELECT value FROM json_each(?))",
            (json.dumps(list(chunks)),),
        )
        return {row[0]: (row[1], PackRow(*row[2:])) for row in rows}

    def _query(self, sql: str, values: tuple[int | str, ...]) -> list[Any]:
        rows: list[Any] = self._read().execute(sql, values).fetchall()
        return rows

    def _read(self) -> apsw.Connection:
        if self._reader is None:
            self._reader = open_database(
                self.path, vfs=self.vfs, durable=True, cache_kib=16_384, read_only=True
            )
        return self._reader

    # --- applying (a thread) -------------------------------------------------------------

    def apply_commit(
        self, delta: Path | None, placements: Path | None, footer: CommitFooter, digest: bytes
    ) -> Head:
        """Apply a commit in one synced transaction and return the new head.

        A fence (no delta) moves seq and epoch only. Files were checked before (`check_commit`).
        Raises `Corrupt`: rows that do not fit, or kind `database`: this one is damaged. Raises
        `LocalDiskFull` and `OSError` if the disk refuses. Then it may be applied again.
        """
        with self._errors_named(f"commit {footer.seq} cannot be applied yet"):
            self._apply(delta, placements, footer, digest)
            return _read_head(self._writer)

    def _apply(
        self, delta: Path | None, placements: Path | None, footer: CommitFooter, digest: bytes
    ) -> None:
        connection = self._writer
        files = {"delta": delta, "placed": placements}
        try:
            attach_all(connection, files)
            connection.execute("BEGIN IMMEDIATE").fetchall()
            try:
                self._write_head(footer, digest)
                if delta is not None:
                    apply_rows(connection)
                if placements is not None:
                    apply_placements(connection, footer.seq)
                connection.execute("COMMIT").fetchall()
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK").fetchall()
                raise
        except (apsw.ConstraintError, apsw.MismatchError) as error:
            raise Corrupt("commit", str(footer.seq), f"its rows do not fit: {error}") from error
        finally:
            detach_all(connection, files)

    @contextmanager
    def _errors_named(self, what: str) -> Iterator[None]:
        """Let nobody else need to know what SQLite raises; see `disk_errors_named`."""
        try:
            with disk_errors_named(what):
                yield
        except (apsw.CorruptError, apsw.NotADBError) as error:
            raise Corrupt("database", str(self.path), str(error)) from error
        except apsw.Error as error:
            raise OSError(errno.EIO, f"{what}: {error}") from error

    def _write_head(self, footer: CommitFooter, digest: bytes) -> None:
        values: dict[str, object] = {
            "seq": footer.seq,
            "digest": digest,
            "epoch": footer.epoch,
            "time_ns": footer.time_ns,
            "dense_from": footer.dense_from,
            "kept": ",".join(str(seq) for seq in footer.kept),
        }
        if footer.is_fence:
            values["fence_chain"] = str(footer.chain)
        else:
            values |= {"op_seq": footer.op_seq, "chain": str(footer.chain)}
        for name, value in values.items():
            self._writer.execute(
                "INSERT INTO head VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = ?2",
                (name, value),
            ).fetchall()

    def reread_head(self) -> Head:
        """Return the head as stored, after a commit was applied in a thread."""
        self.head = _read_head(self._read())
        return self.head

    def open_state(self) -> CommittedState:
        """Open the state at the newest commit; who opens it closes it. For a thread.

        Raises `LocalDiskFull`, `OSError`, and `Corrupt` if the database is damaged.
        """
        with self._errors_named(str(self.path)):
            connection = open_database(
                self.path, vfs=self.vfs, durable=True, cache_kib=16_384, read_only=True
            )
            try:
                return CommittedState(connection)
            except BaseException:
                connection.close()
                raise

    def move_wal(self) -> int:
        """Move the WAL into the database, as far as open states allow; for a thread.

        Returns how many pages it has. Raises as `open_state` does.
        """
        with self._errors_named(f"the WAL of {self.path}"):
            return self._writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)[0]

    # --- for reclaim, compaction, checks, checkpoints ------------------------------------

    @contextmanager
    def view(self) -> Iterator[CommittedView]:
        """Open a reading connection of one's own, for a thread."""
        connection = open_database(
            self.path, vfs=self.vfs, durable=True, cache_kib=2048, read_only=True
        )
        try:
            yield CommittedView(connection)
        finally:
            connection.close()

    def forget_packs(self, ids: list[int]) -> None:
        """Drop the rows of packs whose objects were deleted."""
        self._writer.execute("BEGIN IMMEDIATE").fetchall()
        self._writer.executemany(
            "DELETE FROM pack WHERE id = ? AND live_bytes = 0", [(pack,) for pack in ids]
        )
        self._writer.execute("COMMIT").fetchall()

    def reader(self) -> apsw.Connection:
        """Return the reading connection, for queries of the state itself."""
        return self._read()

    def copy_to(self, path: Path) -> None:
        """Write a plain copy of the database, page for page; for a thread."""
        source = open_database(
            self.path, vfs=self.vfs, durable=True, read_only=True, cache_kib=2048
        )
        try:
            with disk_errors_named("a checkpoint's copy"):
                target = open_scratch(path)
                try:
                    with target.backup("main", source, "main") as backup:
                        while not backup.done:
                            backup.step(1024)
                    # A checkpoint is one file: a WAL header would ask for a second one.
                    target.execute("PRAGMA journal_mode = DELETE").fetchall()
                finally:
                    target.close()
        finally:
            source.close()

    def writer(self) -> apsw.Connection:
        """Return the writing connection, as the base of a fresh live.db."""
        return self._writer

    def close(self) -> None:
        """Close both connections."""
        if self._reader is not None:
            self._reader.close()
        self._writer.close()


def apply_rows(connection: apsw.Connection) -> None:
    """Apply the attached `delta` to `main`: delete the dead, upsert the changed."""
    for table, keys in STATE_KEYS.items():
        listed = ", ".join(keys)
        connection.execute(
            f"DELETE FROM main.{table}"
            f" WHERE ({listed}) IN (SELECT {listed} FROM delta.dead_{table})"
        ).fetchall()
    for table, columns in STATE_COLUMNS.items():
        keys = STATE_KEYS[table]
        rest = [column for column in columns if column not in keys]
        names = ", ".join(columns)
        changes = ", ".join(f"{column} = excluded.{column}" for column in rest)
        connection.execute(
            f"INSERT INTO main.{table} ({names}) SELECT {names} FROM delta.{table} WHERE true"
            f" ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {changes}"
        ).fetchall()


def apply_placements(connection: apsw.Connection, seq: int) -> None:
    """Apply the attached `placed` to `main`, skipping chunks that are not there."""
    connection.execute(
        "INSERT INTO main.pack SELECT p.id, p.key, p.class, p.size, 0, ?1, NULL"
        " FROM placed.pack p"
        " WHERE NOT EXISTS (SELECT 1 FROM main.pack q WHERE q.id = p.id)",
        (seq,),
    ).fetchall()
    connection.execute(
        "INSERT INTO main.place SELECT p.chunk, p.pack, p.offset, p.stored_length, p.frames"
        " FROM placed.place p WHERE p.chunk IN (SELECT id FROM main.chunk)"
        " ON CONFLICT (chunk) DO UPDATE SET pack = excluded.pack, offset = excluded.offset,"
        " stored_length = excluded.stored_length, frames = excluded.frames"
    ).fetchall()
    connection.execute(
        "UPDATE main.pack SET dead_seq = ?1 WHERE first_seq = ?1 AND live_bytes = 0", (seq,)
    ).fetchall()


_HEAD_TYPES: Final[dict[tuple[str, ...], type]] = {
    ("volume_id", "chain", "fence_chain", "kept"): str,
    ("seq", "epoch", "op_seq", "time_ns", "dense_from"): int,
    ("digest",): bytes,
}
"""The table has no types: it holds one value of each kind, and may be of a checkpoint."""


def _place(rows: Sequence[tuple[str, int, int, bytes]]) -> Place | None:
    if not rows:
        return None
    key, offset, stored_length, frames = rows[0]
    return Place(key=key, offset=offset, stored_length=stored_length, frames=frames)


def _read_head(connection: apsw.Connection) -> Head:
    values: dict[str, Any] = dict(runner(connection)("SELECT name, value FROM head").fetchall())
    if values["level"] != COMMITTED_LEVEL:
        raise KeyError("committed.db of another release")
    for names, kind in _HEAD_TYPES.items():
        for name in names:
            if type(values[name]) is not kind:
                raise TypeError(f"{name} in its head is no {kind.__name__}")
    return Head(
        volume_id=values["volume_id"],
        seq=values["seq"],
        digest=values["digest"],
        epoch=values["epoch"],
        op_seq=values["op_seq"],
        chain=int(values["chain"]),
        time_ns=values["time_ns"],
        dense_from=values["dense_from"],
        kept=tuple(int(seq) for seq in values["kept"].split(",") if seq),
        fence_chain=int(values["fence_chain"]),
    )


def open_committed(path: Path, *, vfs: str | None, volume_id: str) -> Committed:
    """Open an existing committed.db.

    Raises `Corrupt` if it is in doubt: recovery then makes it from the store. Raises
    `LocalDiskFull` and `OSError` if the disk refuses just now: what it holds may be whole.
    """
    try:
        with disk_errors_named(str(path)):
            writer = open_database(path, vfs=vfs, durable=True, cache_kib=8192)
            try:
                committed = Committed(path, vfs=vfs, writer=writer)
            except BaseException:
                writer.close()
                raise
    except (apsw.Error, KeyError, ValueError, TypeError, AttributeError) as error:
        raise Corrupt("database", str(path), str(error)) from error
    if committed.head.volume_id != volume_id:
        committed.close()
        raise Corrupt("database", str(path), "it belongs to another volume")
    return committed


def create_committed(path: Path, *, vfs: str | None, volume: VolumeDescriptor) -> Committed:
    """Make committed.db of a new volume, before its first commit (seq 0), over what is there.

    Raises `LocalDiskFull` and `OSError`.
    """
    with disk_errors_named(str(path)):
        return _create_committed(path, vfs=vfs, volume=volume)


def _create_committed(path: Path, *, vfs: str | None, volume: VolumeDescriptor) -> Committed:
    _empty(path, vfs=vfs)
    writer = open_database(path, vfs=vfs, durable=True, cache_kib=8192)
    writer.execute("BEGIN IMMEDIATE").fetchall()
    make_genesis(writer, volume)
    run_script(writer, committed_sql())
    values: dict[str, object] = {
        "level": COMMITTED_LEVEL,
        "volume_id": volume.volume_id,
        "seq": 0,
        "digest": NO_DIGEST,
        "epoch": 0,
        "op_seq": 0,
        "chain": "0",
        "fence_chain": "0",
        "time_ns": volume.created_ns,
        "dense_from": 0,
        "kept": "",
    }
    writer.executemany("INSERT INTO head VALUES (?, ?)", list(values.items()))
    writer.execute("COMMIT").fetchall()
    return Committed(path, vfs=vfs, writer=writer)


def restore_committed(
    path: Path, source: Path, *, vfs: str | None, volume_id: str, key: str
) -> Committed:
    """Make committed.db from a checkpoint's database file.

    Raises `Corrupt` naming `key` unless the file is sound and holds exactly our schema. Raises
    `LocalDiskFull` and `OSError` if the disk refuses.
    """
    check_foreign(source, "checkpoint", key, schema_sql() + committed_sql())
    with disk_errors_named(str(path)):
        _check_pack_keys(source, "checkpoint", key)
        plain = apsw.Connection(str(source), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            _replace(path, plain, vfs=vfs)
        finally:
            plain.close()
    return open_committed(path, vfs=vfs, volume_id=volume_id)


def _empty(path: Path, *, vfs: str | None) -> None:
    """Leave nothing of a database that was begun there: a state that could not be loaded."""
    nothing = apsw.Connection(":memory:")
    try:
        _replace(path, nothing, vfs=vfs)
    finally:
        nothing.close()


def _replace(path: Path, source: apsw.Connection, *, vfs: str | None) -> None:
    writer = open_database(path, vfs=vfs, durable=True, cache_kib=8192)
    try:
        with writer.backup("main", source, "main") as backup:
            while not backup.done:
                backup.step(1024)
    finally:
        writer.close()


def check_commit(delta: Path | None, placements: Path | None, key: str) -> None:
    """Refuse the databases of a commit from the store unless they are sound and ours."""
    if delta is not None:
        check_foreign(delta, "delta", key, delta_sql("main"))
    if placements is not None:
        check_foreign(placements, "placements", key, _PLACEMENTS_SQL)
        _check_pack_keys(placements, "placements", key)


def _check_pack_keys(path: Path, kind: str, key: str) -> None:
    """Refuse a database from the store that puts chunks anywhere but into packs and commits.

    Files of the local directory have such keys, too, and what dies is deleted by its key.
    """
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        for (found,) in runner(connection)("SELECT key FROM pack"):
            if not isinstance(found, str) or not is_chunk_key(found):
                raise Corrupt(kind, key, f"{found!r} is no object that holds chunks")
    except apsw.Error as error:
        raise Corrupt(kind, key, str(error)) from error
    finally:
        connection.close()
