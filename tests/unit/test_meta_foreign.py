"""Databases that came from outside: whatever is in them, they are applied whole or refused.

A view or trigger in one of them would run in our process; a table of another shape would be
applied in part.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

from s3fs_banyan.errors import Corrupt
from s3fs_banyan.format.commit import CommitFooter
from s3fs_banyan.meta.committed import (
    Committed,
    check_commit,
    create_committed,
    open_committed,
    restore_committed,
    write_placements,
)
from s3fs_banyan.meta.database import run_script
from s3fs_banyan.meta.tables import STATE_COLUMNS, delta_sql
from tests.unit.engine_kit import VOLUME

FOOTER = CommitFooter(
    seq=1, epoch=1, writer=bytes(16), predecessor=bytes(32), chain=1, op_seq=1, time_ns=1,
    dense_from=0, kept=(), inline_length=0, delta_length=1, placements_length=1,
)  # fmt: skip

HOSTILE = [
    "CREATE TRIGGER t AFTER INSERT ON inode BEGIN DELETE FROM inode; END",
    "CREATE VIEW v AS SELECT * FROM inode",
    "CREATE TABLE extra (x)",
    "CREATE INDEX i ON inode (ino)",
    "DROP TABLE inode",
    "DROP TABLE inode; CREATE VIEW inode AS SELECT 1 AS ino",
    "DROP TABLE inode; CREATE TABLE inode (ino, mode)",
    "DROP TABLE inode; CREATE VIRTUAL TABLE inode USING dbstat",
    "ALTER TABLE inode ADD COLUMN x INTEGER DEFAULT 5",
    "ALTER TABLE inode RENAME COLUMN mode TO modus",
]


def _script(path: Path, sql: str) -> None:
    connection = apsw.Connection(str(path))
    run_script(connection, sql)
    connection.close()


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    """An empty, sound delta."""
    path = tmp_path / "delta.db"
    _script(path, delta_sql("main"))
    return path


@pytest.fixture
def placements(tmp_path: Path) -> Path:
    """Empty, sound placements."""
    path = tmp_path / "placements.db"
    write_placements(path, [], [])
    return path


@pytest.fixture
def committed(tmp_path: Path) -> Committed:
    """A new volume's committed.db."""
    return create_committed(tmp_path / "committed.db", vfs=None, volume=VOLUME)


def test_sound_ones_are_taken(delta: Path, placements: Path, committed: Committed) -> None:
    """The checks below must not refuse what we write ourselves."""
    check_commit(delta, placements, "log/1")
    assert committed.apply_commit(delta, placements, FOOTER, bytes(32)).seq == 1
    committed.close()


@pytest.mark.parametrize("sql", HOSTILE)
def test_a_hostile_delta_is_refused(delta: Path, placements: Path, sql: str) -> None:
    """Each of these once ran code, or hid rows, in some program that trusted its input."""
    _script(delta, sql)
    with pytest.raises(Corrupt, match="log/1"):
        check_commit(delta, placements, "log/1")


@pytest.mark.parametrize(
    "sql", [sql.replace("inode", "place").replace("(ino)", "(pack)") for sql in HOSTILE[:-1]]
)
def test_hostile_placements_are_refused(delta: Path, placements: Path, sql: str) -> None:
    """The same for where chunks lie."""
    _script(placements, sql)
    with pytest.raises(Corrupt, match="log/1"):
        check_commit(delta, placements, "log/1")


STRANGE_KEYS = [
    "'volume.json'", "'base/000000000001'", "'base//etc/passwd'", "'../../etc/passwd'", "''",
    "'checkpoint/00000000000000000001'", "'pack/1/x'", "x'00'", "7", "NULL",
]  # fmt: skip


@pytest.mark.parametrize("key", STRANGE_KEYS)
def test_placements_in_anything_but_packs_and_commits_are_refused(
    delta: Path, placements: Path, key: str
) -> None:
    """A place in `base/` is read from a local file, and what dies is deleted by its key."""
    _script(placements, f"INSERT INTO pack VALUES (1, {key}, '', 9)")  # noqa: S608
    with pytest.raises(Corrupt, match="log/1"):
        check_commit(delta, placements, "log/1")


@pytest.mark.parametrize("key", STRANGE_KEYS[:-3])
def test_a_checkpoint_with_chunks_in_anything_else_is_refused(checkpoint: Path, key: str) -> None:
    """The same for the packs of the whole state."""
    _script(checkpoint, f"INSERT INTO pack VALUES (1, {key}, '', 9, 0, 1, NULL)")  # noqa: S608
    with pytest.raises(Corrupt, match="checkpoint/1"):
        _restore(checkpoint)


@pytest.mark.parametrize(
    "row",
    [
        "INSERT INTO inode VALUES ('x', 1, 1, 1, 1, 1, 1, 1, 1, 1)",
        "INSERT INTO inode VALUES (2, NULL, 1, 1, 1, 1, 1, 1, 1, 1)",
        "INSERT INTO dentry VALUES (1, 'text is no name', 2, 3)",
        "INSERT INTO counter VALUES (x'00', 1)",
    ],
)
def test_rows_of_other_types_are_refused_as_a_whole(
    delta: Path, placements: Path, committed: Committed, row: str
) -> None:
    """The tables are STRICT: such a commit is damaged, and nothing of it is applied."""
    _script(delta, "INSERT INTO symlink VALUES (9, x'61')")
    _script(delta, row)
    check_commit(delta, placements, "log/1")
    with pytest.raises(Corrupt):
        committed.apply_commit(delta, placements, FOOTER, bytes(32))
    assert committed.reread_head().seq == 0
    assert committed.reader().execute("SELECT * FROM symlink").fetchall() == []
    committed.close()


def _never_wrong(path: Path, check: Callable[[], object]) -> int:
    """Overwrite each page of a file in turn; the check must raise `Corrupt` or find nothing."""
    whole = path.read_bytes()
    refused = 0
    for start in range(0, len(whole), 4096):
        for filling in (b"\0", b"\xff"):
            path.write_bytes(whole[:start] + filling * 4096 + whole[start + 4096 :])
            try:
                check()
            except Corrupt:
                refused += 1
    path.write_bytes(whole)
    return refused


def test_corrupted_pages_are_refused(delta: Path, placements: Path) -> None:
    """No exception of SQLite's comes through, and the header and schema pages never pass."""
    rows = ",".join(f"({n}, x'{n:02x}')" for n in range(200))
    _script(delta, f"INSERT INTO symlink VALUES {rows}")  # noqa: S608
    pages = delta.stat().st_size // 4096
    assert _never_wrong(delta, lambda: check_commit(delta, placements, "k")) >= pages
    assert _never_wrong(placements, lambda: check_commit(delta, placements, "k")) >= 4


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + bytes(84)])
def test_no_database_at_all_is_refused(placements: Path, tmp_path: Path, content: bytes) -> None:
    """Not a crash, and not an empty state either."""
    path = tmp_path / "strange.db"
    path.write_bytes(content)
    with pytest.raises(Corrupt):
        check_commit(path, placements, "k")
    with pytest.raises(Corrupt):
        restore_committed(
            tmp_path / "new.db", path, vfs=None, volume_id=VOLUME.volume_id, key="checkpoint/1"
        )


# --- checkpoints -------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A sound checkpoint's database."""
    source = create_committed(tmp_path / "source.db", vfs=None, volume=VOLUME)
    source.copy_to(tmp_path / "checkpoint.db")
    source.close()
    return tmp_path / "checkpoint.db"


def _restore(checkpoint: Path) -> Committed:
    path = checkpoint.with_name("restored.db")
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return restore_committed(
        path, checkpoint, vfs=None, volume_id=VOLUME.volume_id, key="checkpoint/1"
    )


def test_a_sound_checkpoint_is_restored(checkpoint: Path) -> None:
    """The state comes back, and can be written to."""
    restored = _restore(checkpoint)
    assert restored.head.seq == 0
    assert restored.apply_commit(None, None, FOOTER, b"d" * 32).seq == 1
    restored.close()


@pytest.mark.parametrize("sql", [*HOSTILE, "DROP TRIGGER chunk_gone", "DROP INDEX place_by_pack"])
def test_a_hostile_checkpoint_is_refused(checkpoint: Path, sql: str) -> None:
    """Its triggers are part of the state's rules: they are compared, statement by statement."""
    _script(checkpoint, sql)
    with pytest.raises(Corrupt, match="checkpoint/1"):
        _restore(checkpoint)


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM head WHERE name = 'seq'",
        "DELETE FROM head",
        "UPDATE head SET value = NULL WHERE name = 'chain'",
        "UPDATE head SET value = 'many' WHERE name = 'chain'",
        "UPDATE head SET value = 7 WHERE name = 'kept'",
        "UPDATE head SET value = 99 WHERE name = 'level'",
        "UPDATE head SET value = 'ff' WHERE name = 'volume_id'",
        "UPDATE head SET value = 'ff' WHERE name = 'digest'",
        "UPDATE head SET value = 'many' WHERE name = 'seq'",
        "UPDATE head SET value = 1.5 WHERE name = 'epoch'",
        "UPDATE head SET value = x'00' WHERE name = 'op_seq'",
        "UPDATE head SET value = NULL WHERE name = 'dense_from'",
    ],
)
def test_a_checkpoint_with_a_strange_head_is_refused(checkpoint: Path, sql: str) -> None:
    """The head says where the journal goes on: it must not be guessed."""
    _script(checkpoint, sql)
    with pytest.raises(Corrupt):
        _restore(checkpoint)


def test_corrupted_pages_of_a_checkpoint_are_refused(checkpoint: Path) -> None:
    """Restoring gives the right state or `Corrupt`, whatever page is damaged."""

    def check() -> None:
        restored = _restore(checkpoint)
        for table in STATE_COLUMNS:
            restored.reader().execute(f"SELECT * FROM {table}").fetchall()  # noqa: S608
        restored.close()

    assert _never_wrong(checkpoint, check) >= checkpoint.stat().st_size // 4096


def test_committed_db_in_doubt_is_corrupt(committed: Committed, tmp_path: Path) -> None:
    """Recovery makes it from the store again; it must not die of it."""
    committed.close()
    path = tmp_path / "committed.db"
    with pytest.raises(Corrupt, match="another volume"):
        open_committed(path, vfs=None, volume_id="00" * 16)
    path.write_bytes(b"garbage" * 1000)
    with pytest.raises(Corrupt):
        open_committed(path, vfs=None, volume_id=VOLUME.volume_id)
