"""The fold against a simple model; replays, deltas and committed.db against the fold.

If one of these breaks, a restart, a follower or a restore gives another state than the mount
that wrote it.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from s3fs_banyan.meta.committed import PlacementRow, write_placements
from s3fs_banyan.meta.database import runner
from s3fs_banyan.meta.tables import STATE_COLUMNS
from s3fs_banyan.model import CHUNK_BYTES_MAX, Cut, Make, Reap, SetAttributes, Unlink, Write
from tests.unit.fold_kit import Step, Twin

NUMBER = st.integers(0, 1 << 22)
STEPS: st.SearchStrategy[Step] = st.tuples(st.integers(0, 14), NUMBER, NUMBER, NUMBER)
PROGRAM = st.lists(STEPS, min_size=8, max_size=40)
COMMIT_AFTER = st.sets(st.integers(0, 39), max_size=6)
SMALL = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
# (truncate, extend, write again): old bytes must not come back.
OLD_BYTES: list[Step] = [
    (0, 0, 0, 1), (1, 0, 0, 3), (4, 0, 20_000, 1), (4, 0, 2_500, 0),
    (1, 0, 22_400, 4), (1, 0, 0, 0),
]  # fmt: skip


# (a directory over an empty one; a directory exchanged with a file of another directory)
DIRECTORIES: list[Step] = [
    (0, 0, 0, 0), (0, 0, 1, 0), (5, 0, 0, 1), (0, 0, 0, 0), (0, 1, 2, 1), (6, 1, 2, 0),
    (6, 0, 2, 0),
]  # fmt: skip


@SMALL
@example(program=DIRECTORIES, commits={2})
@example(program=OLD_BYTES, commits=set())
@example(program=OLD_BYTES, commits={1, 3})
@given(program=PROGRAM, commits=COMMIT_AFTER)
def test_the_state_equals_the_model_with_commits_in_between(
    program: list[Step], commits: set[int]
) -> None:
    """Bytes, names, links, and every invariant of the tables, after every commit."""
    with TemporaryDirectory() as directory:
        twin = Twin(Path(directory))
        for number, step in enumerate(program):
            twin.run(step)
            if number in commits:
                made = twin.cut()
                twin.publish(*made)
                twin.check()
                for table in STATE_COLUMNS:
                    assert twin.rows(table) == twin.rows(table, twin.committed.writer()), table
        twin.check()
        twin.close()


@SMALL
@given(program=PROGRAM, later=PROGRAM, between=PROGRAM)
def test_what_changes_while_a_commit_is_under_way_goes_with_the_next(
    program: list[Step], between: list[Step], later: list[Step]
) -> None:
    """The cut's delta must not take, or forget, what was changed after the cut."""
    with TemporaryDirectory() as directory:
        twin = Twin(Path(directory))
        for step in program:
            twin.run(step)
        made = twin.cut()
        for step in between:
            twin.run(step)
        twin.check()
        twin.publish(*made)
        twin.check()
        for step in later:
            twin.run(step)
        twin.publish(*twin.cut())
        twin.check()
        for table in STATE_COLUMNS:
            assert twin.rows(table) == twin.rows(table, twin.committed.writer()), table
        twin.close()


@SMALL
@given(program=PROGRAM, later=PROGRAM, every=st.integers(1, 9))
def test_a_replay_makes_the_same_rows_whatever_its_transactions(
    program: list[Step], later: list[Step], every: int
) -> None:
    """A restart folds with other transaction borders, and must not notice."""
    with TemporaryDirectory() as directory:
        twin = Twin(Path(directory))
        for step in program:
            twin.run(step)
        twin.publish(*twin.cut())
        for step in later:
            twin.run(step)
        twin.live.end_transaction()
        again = twin.fresh_live("again.db", twin.committed_ops, twin.committed.head.chain)
        for number in range(twin.committed_ops, len(twin.journal)):
            op_seq = number + 1
            again.apply(twin.journal[number], op_seq, op_seq * 7, 1, op_seq)
            if number % every == 0:
                again.end_transaction()
        again.end_transaction()
        for table in (*STATE_COLUMNS, "piece"):
            assert twin.rows(table) == twin.rows(table, again._connection), table
        assert (again.op_seq, again.chain) == (twin.live.op_seq, twin.live.chain)
        original, twin.live = twin.live, again
        twin.check()
        original.close(keep=True)
        twin.close()


@SMALL
@given(program=PROGRAM, lost=PROGRAM)
def test_a_set_in_flight_is_merged_back_when_its_commit_did_not_happen(
    program: list[Step], lost: list[Step]
) -> None:
    """A cut whose commit was never applied: its keys belong to the next one."""
    with TemporaryDirectory() as directory:
        twin = Twin(Path(directory))
        for step in program:
            twin.run(step)
        twin.cut()
        twin.sealed.clear()
        for step in lost:
            twin.run(step)
        twin.live.merge_dirty()
        twin.check()
        twin.publish(*twin.cut())
        twin.check()
        twin.close()


@SMALL
@given(program=PROGRAM, later=PROGRAM)
def test_applying_a_commit_twice_is_harmless(program: list[Step], later: list[Step]) -> None:
    """A crash between apply and the note of it makes the next start apply it again."""
    with TemporaryDirectory() as directory:
        twin = Twin(Path(directory))
        for part in (program, later):
            for step in part:
                twin.run(step)
            made = twin.cut()
            head = twin.committed.head
            twin.publish(*made)
            tables = (*STATE_COLUMNS, "pack", "place", "head")
            once = {t: twin.rows(t, twin.committed.writer()) for t in tables}
            twin.committed.head = head
            flip, delta, placements = made
            twin.publish(flip, delta, placements)
            assert {t: twin.rows(t, twin.committed.writer()) for t in tables} == once
        twin.close()


@SMALL
@given(programs=st.lists(PROGRAM, min_size=2, max_size=5))
def test_a_packs_live_bytes_are_the_sum_of_its_places(programs: list[list[Step]]) -> None:
    """Reclaim deletes a pack by these numbers: too low is lost data, too high is never freed."""
    with TemporaryDirectory() as directory:
        twin = Twin(Path(directory))
        for program in programs:
            for step in program:
                twin.run(step)
            twin.publish(*twin.cut())
            run = runner(twin.committed.writer())
            sums = dict(run("SELECT pack, sum(stored_length) FROM place GROUP BY pack").fetchall())
            seq = twin.committed.head.seq
            chunks = {row[0] for row in run("SELECT id FROM chunk").fetchall()}
            assert {row[0] for row in run("SELECT chunk FROM place").fetchall()} == chunks
            for pack, live, first, dead in run(
                "SELECT id, live_bytes, first_seq, dead_seq FROM pack"
            ).fetchall():
                assert live == sums.get(pack, 0)
                assert first == pack >> 16
                assert (dead is None) == (live > 0)
                assert dead is None or first <= dead <= seq
        twin.close()


# --- single rules ------------------------------------------------------------------------


@pytest.fixture
def twin(tmp_path: Path) -> Twin:
    """A fold with one file, inode 2."""
    twin = Twin(tmp_path)
    twin.apply(Make(1, b"f", 2, 0o100644, 0, 0, 0, b"", 1))
    twin.model.files[2] = bytearray()
    return twin


def _chunks(twin: Twin) -> list[tuple[object, ...]]:
    twin.live.end_transaction()
    return [row[1:] for row in twin.rows("chunk")]


def test_appends_grow_one_chunk_to_a_mebibyte(twin: Twin) -> None:
    """Growing an open chunk is what keeps a cut from converting thousands of extents."""
    for number in range(40):
        twin.apply(Write(2, number * 32_768, False, 1, bytes(32_768)))
    assert _chunks(twin) == [(CHUNK_BYTES_MAX, 1), (8 * 32_768, 1)]
    twin.close()


def test_a_chunk_from_before_a_cut_never_grows(twin: Twin) -> None:
    """It is being sealed: its bytes are fixed."""
    twin.apply(Write(2, 0, False, 1, b"one"))
    twin.apply(Cut(1))
    twin.apply(Write(2, 3, False, 1, b"two"))
    twin.apply(Write(2, 0, False, 1, b"ONE"))
    assert [length for length, _ in _chunks(twin)] == [3, 3]
    assert twin.bytes_of(2) == b"ONEtwo"
    twin.close()


def test_a_huge_file_is_reaped_in_steps(twin: Twin) -> None:
    """Unlinking it must stall nobody: a bounded number of rows at a time, the inode last."""
    for number in range(10):
        twin.apply(Write(2, number * 10_000, False, 1, b"x"))
    twin.apply(Unlink(1, b"f", 1))
    left = []
    while twin.live.tree.attributes(2) is not None:
        twin.apply(Reap(2, 4))
        left.append(len(twin.rows("extent")))
    assert left == [6, 2, 0]
    assert _chunks(twin) == []
    assert twin.live.extents.used_bytes == 0
    twin.close()


def test_set_id_bits_go_with_a_write_that_says_so(twin: Twin) -> None:
    """A program that others may overwrite must not stay set-uid."""
    twin.apply(SetAttributes(2, 0o6755, None, None, None, None, None, 1))
    twin.apply(Write(2, 0, False, 1, b"root"))
    assert twin.live.tree.inode(2).mode == 0o106755
    twin.apply(Write(2, 0, True, 1, b"user"))
    assert twin.live.tree.inode(2).mode == 0o100755
    twin.apply(SetAttributes(2, 0o2644, None, None, None, None, None, 1))
    twin.apply(Write(2, 0, True, 1, b"user"))
    assert twin.live.tree.inode(2).mode == 0o102644  # set-gid without execute is mandatory locking
    twin.close()


def test_a_pack_that_nothing_needs_is_dead_from_its_first_commit(twin: Twin) -> None:
    """Chunks that were being moved may have died at that very cut: their new pack is garbage."""
    flip, delta, placements = twin.cut()
    placements.unlink()
    rows = [PlacementRow(999, 1 << 16, 0, 50, b"")]
    write_placements(placements, [(1 << 16, "pack/1", "", 50)], rows)
    twin.publish(flip, delta, placements)
    with twin.committed.view() as view:
        (pack,) = view.packs()
    assert (pack.live_bytes, pack.first_seq, pack.dead_seq) == (0, 1, 1)
    assert twin.committed.place(999) is None
    twin.close()
