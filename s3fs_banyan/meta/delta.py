"""Deltas: what a commit says about the state, as a SQLite database of changed rows and dead keys.

Written from a snapshot of live.db in a thread. Beside it the list of what is to be sealed: the
young chunks that are alive at the cut and have no place yet, in the order in which they shall
lie, with their pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from s3fs_banyan.meta.committed import CommittedView
from s3fs_banyan.meta.database import disk_full_named, open_scratch, run_script, runner
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
        with disk_full_named("the delta of a commit"):
            return _fill(snapshot, flip, with_paths=with_paths)
    finally:
        snapshot.close()


def _fill(snapshot: Snapshot, flip: int, *, with_paths: bool) -> DeltaCounts:
    connection = snapshot.connection
    run_script(connection, delta_sql("delta"))
    rows = dead = 0
    for table, columns in STATE_COLUMNS.items():
        keys = STATE_KEYS[table]
        joined = " AND ".join(f"t.{key} = k.{key}" for key in keys)
        names = ", ".join(f"t.{column}" for column in columns)
        connection.execute(
            f"INSERT INTO delta.{table} SELECT {names} FROM main.dirty_{table} k"
            f" JOIN main.{table} t ON {joined} WHERE k.flip = ?",
            (flip,),
        ).fetchall()
        rows += connection.changes()
        dead_names = ", ".join(f"k.{key}" for key in keys)
        connection.execute(
            f"INSERT INTO delta.dead_{table} SELECT {dead_names} FROM main.dirty_{table} k"
            f" WHERE k.flip = ? AND NOT EXISTS (SELECT 1 FROM main.{table} t WHERE {joined})"
            f" AND EXISTS (SELECT 1 FROM committed.{table} t WHERE {joined})",
            (flip,),
        ).fetchall()
        dead += connection.changes()
    chunks, chunk_bytes = _write_seal_list(snapshot, flip)
    if with_paths:
        _write_paths(snapshot)
    connection.execute("COMMIT").fetchall()
    return DeltaCounts(rows, dead, chunks, chunk_bytes)


def _write_seal_list(snapshot: Snapshot, flip: int) -> tuple[int, int]:
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
    connection.execute(
        "INSERT INTO seal.chunk SELECT c.id, c.length, 0, 0, 0 FROM main.dirty_chunk k"
        " JOIN main.chunk c ON c.id = k.id WHERE k.flip = ?"
        " AND NOT EXISTS (SELECT 1 FROM committed.place p WHERE p.chunk = k.id)",
        (flip,),
    ).fetchall()
    connection.execute(
        "UPDATE seal.chunk SET ino = e.ino, offset = e.offset FROM main.dirty_extent k"
        " JOIN main.extent e ON e.ino = k.ino AND e.offset = k.offset"
        " WHERE k.flip = ? AND e.chunk = seal.chunk.id",
        (flip,),
    ).fetchall()
    connection.execute(
        "INSERT OR IGNORE INTO seal.owner SELECT d.ino, d.parent, NULL, NULL, NULL"
        " FROM main.dirty_dentry k"
        " JOIN main.dentry d ON d.parent = k.parent AND d.name = k.name WHERE k.flip = ?",
        (flip,),
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


def _write_paths(snapshot: Snapshot) -> None:
    """Complete the owners of the young chunks, and add the directories above them."""
    connection = snapshot.connection
    connection.execute(
        "INSERT INTO seal.owner SELECT d.ino, d.parent, d.name, i.size, i.mtime_ns"
        " FROM main.dentry d JOIN main.inode i ON i.ino = d.ino"
        " WHERE d.ino IN (SELECT ino FROM seal.chunk)"
        " ON CONFLICT (ino) DO UPDATE SET parent = excluded.parent, name = excluded.name,"
        " size = excluded.size, mtime_ns = excluded.mtime_ns"
    ).fetchall()
    connection.execute(
        "UPDATE seal.chunk SET directory = o.parent FROM seal.owner o WHERE o.ino = seal.chunk.ino"
    ).fetchall()
    wanted = "SELECT directory FROM seal.chunk"
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
            "BEGIN; CREATE TABLE move (chunk INTEGER PRIMARY KEY, length, ino, offset,"
            " key, source_offset, stored_length);",
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
