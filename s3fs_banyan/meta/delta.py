"""Deltas: what a commit says about the state, as a SQLite database of changed rows and dead keys.

Written from a snapshot of live.db in a thread. Beside it the list of what is to be sealed: the
young chunks that are alive at the cut and have no place yet, in the order in which they shall
lie, with their pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import apsw

from s3fs_banyan.meta.committed import CommittedView
from s3fs_banyan.meta.database import disk_errors_named, open_scratch, run_script, runner
from s3fs_banyan.meta.live import Snapshot
from s3fs_banyan.meta.paths import directories_sql
from s3fs_banyan.meta.tables import STATE_COLUMNS, STATE_KEYS, delta_sql


class DeltaCounts(NamedTuple):
    """What a delta holds."""

    rows: int
    dead: int
    chunks: int
    chunk_bytes: int


def write_delta(snapshot: Snapshot, flip: int, *, with_paths: bool = False) -> DeltaCounts:
    """Fill the attached `delta` and `seal` databases from a frozen snapshot, then let it go.

    `with_paths`: the seal list shall know the name, size and directory of every chunk's file,
    not only of those whose names are new (`meta.paths` says what that costs).
    Raises `LocalDiskFull`; the snapshot is gone then, too, and the cut is to be made again.
    """
    try:
        with disk_errors_named("the delta of a commit"):
            counts = _fill(snapshot, (flip,), "committed")
            if snapshot.has_base:
                _add_base_moves(snapshot, flip)
            if with_paths:
                _write_paths(snapshot)
            snapshot.connection.execute("COMMIT").fetchall()
            return counts
    finally:
        snapshot.close()


def write_local_delta(
    snapshot: Snapshot, flip: int, frozen: int | None, *, forget_gone: bool
) -> DeltaCounts:
    """The same for a local cut: what base.db lacks, and the keys that it has to hold.

    `frozen` is the dirty set of a commit that may be in the store already: base.db gets its rows,
    too. `forget_gone`: keys that are dead, unknown to committed.db and not in the frozen set are
    listed as gone instead of kept; false while commits of an earlier life may still arrive.
    """
    try:
        with disk_errors_named("the delta of a local cut"):
            flips = (flip,) if frozen is None else (flip, frozen)
            counts = _fill(snapshot, flips, "base")
            _list_keys(snapshot.connection, flips, frozen, forget_gone=forget_gone)
            snapshot.connection.execute("COMMIT").fetchall()
            return counts
    finally:
        snapshot.close()


def gone_keys(delta: Path) -> dict[str, list[tuple[int | str | bytes, ...]]]:
    """Return table -> keys that a local delta lists as gone."""
    connection = open_scratch(delta)
    try:
        run = runner(connection)
        return {table: run(f"SELECT * FROM gone_{table}").fetchall() for table in STATE_KEYS}
    finally:
        connection.close()


def _dirty_keys(table: str, flips: Sequence[int]) -> str:
    """Return a subquery of the keys in these dirty sets, each once."""
    names = ", ".join(STATE_KEYS[table])
    if len(flips) == 1:
        return f"(SELECT {names} FROM main.dirty_{table} WHERE flip = {flips[0]})"
    sets = ", ".join(str(flip) for flip in flips)
    return f"(SELECT DISTINCT {names} FROM main.dirty_{table} WHERE flip IN ({sets}))"


def _same_key(table: str, left: str, right: str) -> str:
    return " AND ".join(f"{left}.{key} = {right}.{key}" for key in STATE_KEYS[table])


def _fill(snapshot: Snapshot, flips: Sequence[int], target: str) -> DeltaCounts:
    """Write the changed rows, and the dead keys that `target` (a schema) knows."""
    connection = snapshot.connection
    run_script(connection, delta_sql("delta"))
    rows = dead = 0
    for table, columns in STATE_COLUMNS.items():
        joined = _same_key(table, "t", "k")
        names = ", ".join(f"t.{column}" for column in columns)
        connection.execute(
            f"INSERT INTO delta.{table} SELECT {names} FROM {_dirty_keys(table, flips)} k"
            f" JOIN main.{table} t ON {joined}"
        ).fetchall()
        rows += connection.changes()
        dead_names = ", ".join(f"k.{key}" for key in STATE_KEYS[table])
        connection.execute(
            f"INSERT INTO delta.dead_{table} SELECT {dead_names}"
            f" FROM {_dirty_keys(table, flips)} k"
            f" WHERE NOT EXISTS (SELECT 1 FROM main.{table} t WHERE {joined})"
            f" AND EXISTS (SELECT 1 FROM {target}.{table} t WHERE {joined})"
        ).fetchall()
        dead += connection.changes()
    chunks, chunk_bytes = _write_seal_list(snapshot, flips)
    return DeltaCounts(rows, dead, chunks, chunk_bytes)


def _list_keys(
    connection: apsw.Connection, flips: Sequence[int], frozen: int | None, *, forget_gone: bool
) -> None:
    """List the keys of a local cut as gone or kept; see `write_local_delta`."""
    for table, keys in STATE_KEYS.items():
        names = ", ".join(keys)
        for kind in ("gone", "kept"):
            run_script(
                connection,
                f"CREATE TABLE delta.{kind}_{table} ({names}, PRIMARY KEY ({names})) WITHOUT ROWID",
            )
        known = [f"NOT EXISTS (SELECT 1 FROM {schema}.{table} t WHERE {_same_key(table, 't', 'k')})"
                 for schema in ("main", "committed")]  # fmt: skip
        if frozen is not None:
            known.append(
                f"NOT EXISTS (SELECT 1 FROM main.dirty_{table} f"
                f" WHERE f.flip = {frozen} AND {_same_key(table, 'f', 'k')})"
            )
        gone = " AND ".join(known) if forget_gone else "false"
        named = ", ".join(f"k.{key}" for key in keys)
        connection.execute(
            f"INSERT INTO delta.gone_{table} SELECT {named} FROM {_dirty_keys(table, flips)} k"
            f" WHERE {gone}"
        ).fetchall()
        connection.execute(
            f"INSERT INTO delta.kept_{table} SELECT {named} FROM {_dirty_keys(table, flips)} k"
            f" WHERE NOT ({gone})"
        ).fetchall()


def _write_seal_list(snapshot: Snapshot, flips: Sequence[int]) -> tuple[int, int]:
    """List young chunks without a place, by directory, file and offset."""
    connection = snapshot.connection
    run_script(
        connection,
        "CREATE TABLE seal.chunk (id INTEGER PRIMARY KEY, length, directory, ino, offset);"
        "CREATE TABLE seal.owner (ino INTEGER PRIMARY KEY, parent, name, size, mtime_ns);"
        "CREATE TABLE seal.directory (ino INTEGER PRIMARY KEY, parent, name);"
        "CREATE TABLE seal.piece (chunk, offset, length, segment, position, record_offset, op_seq,"
        " PRIMARY KEY (chunk, offset)) WITHOUT ROWID;",
    )
    unplaced = "NOT EXISTS (SELECT 1 FROM committed.place p WHERE p.chunk = k.id)"
    if snapshot.has_base:
        unplaced += " AND NOT EXISTS (SELECT 1 FROM base.place p WHERE p.chunk = k.id)"
    connection.execute(
        "INSERT INTO seal.chunk SELECT c.id, c.length, 0, 0, 0"
        f" FROM {_dirty_keys('chunk', flips)} k JOIN main.chunk c ON c.id = k.id WHERE {unplaced}"
    ).fetchall()
    connection.execute(
        "UPDATE seal.chunk SET ino = e.ino, offset = e.offset"
        f" FROM {_dirty_keys('extent', flips)} k"
        " JOIN main.extent e ON e.ino = k.ino AND e.offset = k.offset"
        " WHERE e.chunk = seal.chunk.id"
    ).fetchall()
    connection.execute(
        "INSERT OR IGNORE INTO seal.owner SELECT d.ino, d.parent, NULL, NULL, NULL"
        f" FROM {_dirty_keys('dentry', flips)} k"
        " JOIN main.dentry d ON d.parent = k.parent AND d.name = k.name"
    ).fetchall()
    connection.execute(
        "UPDATE seal.chunk SET directory = o.parent FROM seal.owner o WHERE o.ino = seal.chunk.ino"
    ).fetchall()
    connection.execute(
        "INSERT INTO seal.piece SELECT p.* FROM seal.chunk c JOIN main.piece p ON p.chunk = c.id"
    ).fetchall()
    count, total = runner(connection)(
        "SELECT count(*), coalesce(sum(length), 0) FROM seal.chunk"
    ).fetchall()[0]
    return int(count), int(total)


_MOVE_SQL = (
    "CREATE TABLE IF NOT EXISTS {schema}move (chunk INTEGER PRIMARY KEY, length, ino, offset, key,"
    " source_offset, stored_length);"
)


def _add_base_moves(snapshot: Snapshot, flip: int) -> None:
    """List the living chunks that lie in base packs and in no object of the store."""
    connection = snapshot.connection
    run_script(connection, _MOVE_SQL.format(schema="seal."))
    connection.execute(
        "INSERT INTO seal.move SELECT c.id, c.length, 0, 0, b.key, p.offset, p.stored_length"
        f" FROM {_dirty_keys('chunk', (flip,))} k"
        " JOIN main.chunk c ON c.id = k.id JOIN base.place p ON p.chunk = c.id"
        " JOIN base.pack b ON b.id = p.pack"
        " WHERE NOT EXISTS (SELECT 1 FROM committed.place q WHERE q.chunk = k.id)"
    ).fetchall()
    connection.execute(
        "UPDATE seal.move SET ino = e.ino, offset = e.offset"
        f" FROM {_dirty_keys('extent', (flip,))} k"
        " JOIN main.extent e ON e.ino = k.ino AND e.offset = k.offset"
        " WHERE e.chunk = seal.move.chunk"
    ).fetchall()


def _write_paths(snapshot: Snapshot) -> None:
    """Complete the owners of the listed chunks, and add the directories above them."""
    connection = snapshot.connection
    files = "SELECT ino FROM seal.chunk"
    if snapshot.has_base:
        files += " UNION SELECT ino FROM seal.move"
    connection.execute(
        "INSERT INTO seal.owner SELECT d.ino, d.parent, d.name, i.size, i.mtime_ns"
        " FROM main.dentry d JOIN main.inode i ON i.ino = d.ino"
        f" WHERE d.ino IN ({files})"
        " ON CONFLICT (ino) DO UPDATE SET parent = excluded.parent, name = excluded.name,"
        " size = excluded.size, mtime_ns = excluded.mtime_ns"
    ).fetchall()
    connection.execute(
        "UPDATE seal.chunk SET directory = o.parent FROM seal.owner o WHERE o.ino = seal.chunk.ino"
    ).fetchall()
    wanted = f"SELECT parent FROM seal.owner WHERE ino IN ({files})"
    connection.execute(
        f"INSERT OR IGNORE INTO seal.directory {directories_sql('main', wanted)}"
    ).fetchall()


def add_moves(view: CommittedView, seal_db: Path, packs: Sequence[int]) -> int:
    """Add the living chunks of some packs to a seal list, to be moved; returns stored bytes.

    The list learns the file and the directory of each, so that what dies together can be put
    together. What it knows of a young chunk's file already stays.
    """
    connection = open_scratch(seal_db)
    total = 0
    try:
        run_script(
            connection,
            "BEGIN;" + _MOVE_SQL.format(schema=""),
        )
        homes = {chunk: (ino, offset) for chunk, ino, offset in view.homes(packs)}
        for pack in packs:
            rows = view.living_chunks(pack)
            total += sum(row[-1] for row in rows)
            connection.executemany(
                "INSERT INTO move VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (chunk, length, *homes.get(chunk, (0, 0)), key, offset, stored_length)
                    for chunk, length, _, key, offset, stored_length in rows
                ],
            )
        files = view.files(sorted({ino for ino, _ in homes.values()}))
        connection.executemany("INSERT OR IGNORE INTO owner VALUES (?, ?, ?, ?, ?)", files)
        connection.executemany(
            "INSERT OR IGNORE INTO directory VALUES (?, ?, ?)",
            view.directories_above(sorted({file.parent for file in files})),
        )
        run_script(connection, "COMMIT")
    finally:
        connection.close()
    return total
