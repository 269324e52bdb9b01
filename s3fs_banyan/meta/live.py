"""live.db: the state that the mount sees, plus what is local to it.

Local are the pieces (where young bytes lie in the journal), the dirty keys since the last
commits, the last operation in it, and the kernel's boot. It is never synced and is thrown away
whenever it is in doubt: the journal and committed.db make it again.

Operations are applied inside one long transaction, which `end_transaction` closes and reopens;
its end writes the last operation's number and checksum in the same transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import apsw

from s3fs_banyan.errors import Corrupt
from s3fs_banyan.meta.apply import Fold
from s3fs_banyan.meta.database import attach, attach_scratch, open_database, run_script, runner
from s3fs_banyan.meta.extents import Extents
from s3fs_banyan.meta.tables import BASE_TABLES, STATE_KEYS, live_sql
from s3fs_banyan.meta.tree import Tree
from s3fs_banyan.model import Operation

LIVE_LEVEL = 1
HELD: Final = 3
"""The dirty set of keys by which base.db differs from committed.db: sent by no commit yet."""
_SETS: Final = (0, 1, 2)
"""One is active; one may be a commit's that is on its way, one a local cut's."""
_TRANSACTION_OPERATIONS_MAX = 256


class LivePosition(NamedTuple):
    """What a live.db on the disk says about itself."""

    op_seq: int
    chain: int
    boot_id: str
    volume_id: str


def _nothing() -> None:
    """Do nothing."""


class LiveState:
    """The open live.db. One event loop; snapshots are read in a thread."""

    def __init__(
        self, connection: apsw.Connection, path: Path, *, boot_id: str, volume_id: str
    ) -> None:
        self._connection = connection
        self._path = path
        self._boot_id = boot_id
        self._volume_id = volume_id
        self.tree = Tree(connection)
        self.extents = Extents(connection, self.tree)
        self._fold = Fold(self.tree, self.extents)
        self._run = runner(connection)
        position = read_position(connection)
        self.op_seq = position.op_seq
        self.chain = position.chain
        self._since_begin = 0
        self.before_write: Callable[[], object] = _nothing
        """Called before pages are written: what lies there to be given up can be given up."""
        self.failed = False
        """A write to the database failed: rows and what waits in RAM may be apart."""
        self._run("BEGIN IMMEDIATE").fetchall()

    def apply(self, op: Operation, op_seq: int, chain: int, segment: int, position: int) -> None:
        """Apply one journaled operation. An exception is a broken invariant: end the daemon."""
        if self.failed or not self._connection.in_transaction:
            raise AssertionError("the transaction of live.db has failed")
        self._fold.apply(op, op_seq, segment, position)
        self.op_seq, self.chain = op_seq, chain
        self._since_begin += 1
        if self._since_begin >= _TRANSACTION_OPERATIONS_MAX:
            self.end_transaction()

    @property
    def in_transaction(self) -> int:
        """Number of operations in the open transaction."""
        return self._since_begin

    def end_transaction(self, *, restart_wal: bool = False) -> None:
        """Write what waits in RAM, commit (unsynced) and begin the next transaction.

        `restart_wal`: right after `checkpoint_wal`, move the few pages that came meanwhile, so
        that the next transaction begins the WAL anew; under load it would grow for ever.
        """
        self._commit()
        if restart_wal:
            self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        self._run("BEGIN IMMEDIATE").fetchall()
        self._since_begin = 0

    def _commit(self) -> None:
        self.before_write()
        self._flush()
        try:
            self._write_position()
            self._run("COMMIT").fetchall()
        except BaseException:
            self.failed = True
            raise

    def _flush(self) -> None:
        """Write what waits in RAM; after a failure nothing of it is kept."""
        if self.failed or not self._connection.in_transaction:
            raise AssertionError("the transaction of live.db has failed")
        try:
            self.extents.flush()
            self.tree.flush()
        except BaseException:
            self.failed = True
            raise

    def _write_position(self) -> None:
        values = {
            "op_seq": str(self.op_seq),
            "chain": str(self.chain),
            "boot_id": self._boot_id,
            "volume_id": self._volume_id,
        }
        for name, value in values.items():
            self._run("UPDATE local SET value = ? WHERE name = ?", (value, name)).fetchall()

    # --- dirty keys ----------------------------------------------------------------------

    def flip_dirty(self, busy: int | None = None) -> int:
        """Let changes from now on go to an empty dirty set; returns the set to be sent.

        `busy` is the set of a commit that is on its way, if there is one.
        """
        active = self._active()
        free = next(number for number in _SETS if number not in {active, busy})
        self._run("UPDATE flip SET active = ?", (free,)).fetchall()
        return active

    def _active(self) -> int:
        return int(self._run("SELECT active FROM flip").fetchall()[0][0])

    def empty_dirty(self, flip: int) -> None:
        """The very bytes made from this set were applied to committed.db: forget the keys."""
        for table in STATE_KEYS:
            self._run(f"DELETE FROM dirty_{table} WHERE flip = ?", (flip,)).fetchall()

    def empty_dirty_some(self, flip: int, limit: int) -> bool:
        """Forget up to `limit` keys of a set that was applied; true when none is left.

        In steps, so that no fsync waits for thousands of rows; a set that is left half empty by
        a death is merged into the next one.
        """
        for table, keys in STATE_KEYS.items():
            names = ", ".join(keys)
            row = f"({names})" if len(keys) > 1 else names
            self._run(
                f"DELETE FROM dirty_{table} WHERE flip = ?1 AND {row} IN"
                f" (SELECT {names} FROM dirty_{table} WHERE flip = ?1 LIMIT ?2)",
                (flip, limit),
            ).fetchall()
            limit -= self._connection.changes()
            if limit <= 0:
                return False
        return True

    def merge_dirty(self) -> None:
        """Put every other set back into the active one: their bytes were not applied.

        In one step, for the start of a life or of the committer.
        """
        active = self._active()
        for table, keys in STATE_KEYS.items():
            names = ", ".join(keys)
            self._run(
                f"INSERT OR IGNORE INTO dirty_{table} SELECT ?1, {names} FROM dirty_{table}"
                " WHERE flip <> ?1",
                (active,),
            ).fetchall()
            self._run(f"DELETE FROM dirty_{table} WHERE flip <> ?", (active,)).fetchall()

    def move_dirty_some(self, source: int, target: int | None, limit: int) -> bool:
        """Move up to `limit` keys of a set to another one (None: the active); true when done.

        A key may be in several sets, so a death in between does no harm.
        """
        target = self._active() if target is None else target
        if source == target:
            return True
        for table, keys in STATE_KEYS.items():
            names = ", ".join(keys)
            row = f"({names})" if len(keys) > 1 else names
            some = f"SELECT {names} FROM dirty_{table} WHERE flip = ?1 ORDER BY {names} LIMIT ?2"
            self._run(
                f"INSERT OR IGNORE INTO dirty_{table} SELECT ?3, * FROM ({some})",
                (source, limit, target),
            ).fetchall()
            self._run(
                f"DELETE FROM dirty_{table} WHERE flip = ?1 AND {row} IN ({some})", (source, limit)
            ).fetchall()
            limit -= self._connection.changes()
            if limit <= 0:
                return False
        return True

    def hold_dirty(self, keys: Mapping[str, Sequence[tuple[int | str | bytes, ...]]]) -> None:
        """Note keys by which the base of this life differs from committed.db."""
        for table, rows in keys.items():
            marks = ", ".join("?" for _ in STATE_KEYS[table])
            self._connection.executemany(
                f"INSERT OR IGNORE INTO dirty_{table} VALUES ({HELD}, {marks})", rows
            )

    def forget_gone(
        self, flip: int, table: str, rows: Sequence[tuple[int | str | bytes, ...]]
    ) -> None:
        """Drop keys that neither this state nor committed.db has from a set and the held one."""
        same = " AND ".join(f"{key} = ?" for key in STATE_KEYS[table])
        self._connection.executemany(
            f"DELETE FROM dirty_{table} WHERE flip IN ({flip}, {HELD}) AND {same}", rows
        )

    def dirty_count(self) -> int:
        """Number of dirty keys (a cheap estimate is enough: inodes, extents and chunks)."""
        return sum(
            self._run(f"SELECT count(*) FROM dirty_{table}").fetchall()[0][0]
            for table in STATE_KEYS
        )

    def is_dirty(self) -> bool:
        """Tell whether anything differs from committed.db (rows in RAM are written first)."""
        self._flush()
        return any(
            self._run(f"SELECT 1 FROM dirty_{table} LIMIT 1").fetchall() for table in STATE_KEYS
        )

    # --- snapshots and the WAL -----------------------------------------------------------

    def prepare_snapshot(
        self,
        committed: Path,
        delta: Path,
        seal: Path,
        *,
        committed_vfs: str | None,
        base: Path | None = None,
    ) -> Snapshot:
        """Open what a snapshot will need; blocks for some opens, takes no snapshot yet."""
        connection = open_database(self._path, durable=False, cache_kib=4096)
        attach(connection, committed, "committed", vfs=committed_vfs)
        if base is not None:
            attach(connection, base, "base", vfs=committed_vfs)
        attach_scratch(connection, delta, "delta")
        attach_scratch(connection, seal, "seal")
        return Snapshot(connection, has_base=base is not None)

    def checkpoint_wal(self) -> None:
        """Move the WAL's pages into the database, on a connection of its own; for a thread."""
        connection = open_database(self._path, durable=False, cache_kib=2048)
        try:
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        finally:
            connection.close()

    @property
    def wal_bytes(self) -> int:
        """Size of the WAL file."""
        wal = self._path.with_name(self._path.name + "-wal")
        return wal.stat().st_size if wal.exists() else 0

    def close(self, *, keep: bool) -> None:
        """Close; with `keep` what was applied is kept, else the open transaction is lost.

        After some errors (a full disk) SQLite has rolled the transaction back by itself, and
        what was written since stands without its position: then live.db is thrown away.
        """
        lost = not self._connection.in_transaction
        try:
            if keep and not lost and not self.failed:
                self._commit()
        finally:
            self._connection.close()
        if lost:
            remove_live(self._path)


class Snapshot:
    """A frozen view of live.db, for one thread at a time."""

    def __init__(self, connection: apsw.Connection, *, has_base: bool = False) -> None:
        self.connection = connection
        self.has_base = has_base
        """Whether base.db is attached: chunks may have their places there."""

    def freeze(self) -> None:
        """Take the snapshot *now*, by reading a row: BEGIN alone takes none."""
        self.connection.execute("BEGIN").fetchall()
        self.connection.execute("SELECT active FROM main.flip").fetchall()

    def close(self) -> None:
        """Let go; an open snapshot keeps the WAL growing."""
        self.connection.close()


def read_position(connection: apsw.Connection) -> LivePosition:
    """Return what live.db says of itself; raises `KeyError` or `apsw.Error` if in doubt."""
    values = dict(runner(connection)("SELECT name, value FROM local").fetchall())
    if values["level"] != str(LIVE_LEVEL):
        raise KeyError("live.db of another release")
    return LivePosition(
        int(values["op_seq"]), int(values["chain"]), values["boot_id"], values["volume_id"]
    )


def remove_live(path: Path) -> None:
    """Throw live.db away; recovery makes it again."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def open_live(path: Path, *, boot_id: str, volume_id: str) -> LiveState:
    """Open an existing live.db; raises `Corrupt` if it is in doubt."""
    try:
        connection = open_database(path, durable=False, cache_kib=32_768)
        try:
            position = read_position(connection)
            if position.boot_id != boot_id or position.volume_id != volume_id:
                raise KeyError("it is of another boot or volume")
            return LiveState(connection, path, boot_id=boot_id, volume_id=volume_id)
        except BaseException:
            connection.close()
            raise
    except (apsw.Error, KeyError, ValueError) as error:
        raise Corrupt("database", str(path), str(error)) from error


def create_live(
    path: Path,
    base: apsw.Connection,
    *,
    op_seq: int,
    chain: int,
    boot_id: str,
    volume_id: str,
) -> LiveState:
    """Make live.db from a copy of committed.db, with empty dirty sets and its triggers on."""
    remove_live(path)
    connection = open_database(path, durable=False, cache_kib=32_768)
    connection.close()
    remove_live(path)
    target = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE)
    with target.backup("main", base, "main") as backup:
        while not backup.done:
            backup.step(1024)
    target.close()
    connection = open_database(path, durable=False, cache_kib=32_768)
    run_script(
        connection,
        "BEGIN; DROP TRIGGER chunk_gone; DROP TABLE place; DROP TABLE pack; DROP TABLE head;"
        + "".join(f"DROP TABLE IF EXISTS {name};" for name in BASE_TABLES)
        + live_sql()
        + "COMMIT;",
    )
    values = {
        "level": str(LIVE_LEVEL),
        "op_seq": str(op_seq),
        "chain": str(chain),
        "boot_id": boot_id,
        "volume_id": volume_id,
    }
    connection.executemany("INSERT INTO local VALUES (?, ?)", list(values.items()))
    return LiveState(connection, path, boot_id=boot_id, volume_id=volume_id)
