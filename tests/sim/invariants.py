"""What must be true of a running engine at any moment, and of a store at rest."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from s3fs_banyan.commit.base_packs import BasePacks
from s3fs_banyan.commit.log_store import CommitLog
from s3fs_banyan.commit.state import EngineState
from s3fs_banyan.format.chunk import decode_frame, decode_frame_table
from s3fs_banyan.format.encryption import Cipher
from s3fs_banyan.format.volume import VolumeDescriptor
from s3fs_banyan.meta.base import Base
from s3fs_banyan.meta.committed import Committed, _read_head
from s3fs_banyan.meta.tables import STATE_COLUMNS, STATE_KEYS
from s3fs_banyan.remote.base import RemoteFileSystem
from s3fs_banyan.vfs.filesystem import FileSystem
from tests.model.reference import ReferenceFS
from tests.sim.history import History


def check_state(state: EngineState) -> None:
    """Check live.db against itself, against committed.db and against the journal."""
    live = state.live
    live.extents.flush()
    live.tree.flush()
    _check_dirty(state)
    _check_extents(state)
    _check_pieces(state)
    _check_packs(state.committed)
    # The head as stored: a commit may be applied just now, in a thread, and then base.db is over.
    stored = _read_head(state.committed.reader())
    if state.base is not None and state.base.head.op_seq > stored.op_seq:
        _check_base(state, state.base)


def _check_dirty(state: EngineState) -> None:
    """A key whose row differs between live.db and committed.db is in a dirty set."""
    run, reader = state.live._run, state.committed.reader()
    for table, columns in STATE_COLUMNS.items():
        width = len(STATE_KEYS[table])
        sql = f"SELECT {', '.join(columns)} FROM {table}"  # noqa: S608  # our own names
        here = {row[:width]: row for row in run(sql).fetchall()}
        there = {row[:width]: row for row in reader.execute(sql).fetchall()}
        differ = {key for key in here.keys() | there.keys() if here.get(key) != there.get(key)}
        if not differ:
            continue
        keys = ", ".join(STATE_KEYS[table])
        dirty = set(run(f"SELECT {keys} FROM dirty_{table}").fetchall())  # noqa: S608  # ours
        missing = differ - dirty
        assert not missing, f"rows of {table} differ and are in no dirty set: {sorted(missing)[:5]}"


def _check_extents(state: EngineState) -> None:
    """Extents neither overlap nor exceed the size; a chunk's refs count its extents."""
    run = state.live._run
    sizes = dict(run("SELECT ino, size FROM inode").fetchall())
    counted: dict[int, int] = {}
    lengths = dict(run("SELECT id, length FROM chunk").fetchall())
    before = (0, 0)
    rows = run("SELECT ino, offset, length, chunk, chunk_offset FROM extent ORDER BY ino, offset")
    for ino, offset, length, chunk, chunk_offset in rows.fetchall():
        assert length > 0
        assert before <= (ino, offset), f"extents of inode {ino} overlap at {offset}"
        assert offset + length <= sizes[ino], f"extent of inode {ino} ends behind its size"
        assert chunk_offset + length <= lengths[chunk], f"extent outside chunk {chunk}"
        counted[chunk] = counted.get(chunk, 0) + 1
        before = (ino, offset + length)
    refs = dict(run("SELECT id, refs FROM chunk").fetchall())
    assert refs == counted, "refs of chunks are not the number of their extents"
    used = run("SELECT coalesce(sum(length), 0) FROM extent").fetchall()[0][0]
    assert used == state.live.extents.used_bytes


def _check_pieces(state: EngineState) -> None:
    """A chunk without a place is covered by pieces whose segments are there."""
    run = state.live._run
    placed = {row[0] for row in state.committed.reader().execute("SELECT chunk FROM place")}
    if state.base is not None:
        placed |= {row[0] for row in state.base.writer().execute("SELECT chunk FROM place")}
    pieces: dict[int, list[tuple[int, int, int]]] = {}
    sql = "SELECT chunk, offset, length, segment FROM piece ORDER BY chunk, offset"
    for chunk, offset, length, segment in run(sql).fetchall():
        pieces.setdefault(chunk, []).append((offset, length, segment))
    for chunk, length in run("SELECT id, length FROM chunk").fetchall():
        if chunk in placed:
            continue
        end = 0
        for offset, piece_length, segment in pieces.get(chunk, []):
            assert offset == end, f"chunk {chunk}: pieces overlap or leave a gap at {end}"
            assert state.journal.has_segment(segment), (
                f"chunk {chunk} has no place, and its segment {segment} was recycled"
            )
            end = offset + piece_length
        assert end >= length, f"chunk {chunk}: {end} of {length} bytes have pieces, and no place"


def _check_base(state: EngineState, base: Base) -> None:
    """base.db holds every key by which it differs from committed.db; its packs are there."""
    run, reader = base.writer().execute, state.committed.reader()
    for table, columns in STATE_COLUMNS.items():
        width = len(STATE_KEYS[table])
        sql = f"SELECT {', '.join(columns)} FROM {table}"  # noqa: S608  # our own names
        here = {row[:width]: row for row in run(sql).fetchall()}
        there = {row[:width]: row for row in reader.execute(sql).fetchall()}
        differ = {key for key in here.keys() | there.keys() if here.get(key) != there.get(key)}
        missing = differ - set(run(f"SELECT * FROM held_{table}").fetchall())  # noqa: S608  # ours
        assert not missing, f"rows of {table} in base.db differ and are not held: {missing}"
    for (key,) in run("SELECT key FROM pack").fetchall():
        path = BasePacks(state.ctx.disk, state.ctx.local.base_packs).path(str(key))
        assert state.ctx.disk.exists(path), f"base pack {key} is gone"


def _check_packs(committed: Committed) -> None:
    """The live bytes of a pack are the sum of its places; it is dead if and only if 0."""
    run = committed.reader().execute
    rows: Any = run("SELECT pack, sum(stored_length) FROM place GROUP BY pack").fetchall()
    sums: dict[Any, Any] = dict(rows)
    for pack, live_bytes, dead_seq in run("SELECT id, live_bytes, dead_seq FROM pack").fetchall():
        assert live_bytes == sums.pop(pack, 0), f"live bytes of pack {pack} drift"
        assert (live_bytes == 0) == (dead_seq is not None), f"pack {pack}: dead or not?"
    assert not sums, f"places in unknown packs: {sorted(sums)}"
    twice = run("SELECT key FROM pack GROUP BY key HAVING count(*) > 1").fetchall()
    assert not twice, f"packs that two rows name, and the first to die deletes: {twice}"


def check_rows(state: EngineState, model: ReferenceFS) -> None:
    """Compare every inode row, name, symbolic link and attribute with the model."""
    state.live.extents.flush()
    state.live.tree.flush()
    _compare_rows(state.live._run, model)


def _compare_rows(run, model: ReferenceFS) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    nlinks = model.nlinks()
    rows = run("SELECT * FROM inode ORDER BY ino").fetchall()
    wanted = [model.row(ino, nlinks[ino]) for ino in sorted(model.nodes)]
    for row, want in itertools.zip_longest(rows, wanted):
        assert row == want, f"inode row {row}, the model says {want}"
    names = run("SELECT parent, name, ino, cookie FROM dentry").fetchall()
    known = [(d, n, *e) for d, node in model.nodes.items() for n, e in node.names.items()]
    assert sorted(names) == sorted(known), "names differ from the model's"
    xattrs = run("SELECT ino, name, value FROM xattr").fetchall()
    known_x = [(i, n, v) for i, node in model.nodes.items() for n, v in node.xattrs.items()]
    assert sorted(xattrs) == sorted(known_x), "extended attributes differ from the model's"
    links = dict(run("SELECT ino, target FROM symlink").fetchall())
    assert links == {i: n.target for i, n in model.nodes.items() if n.target}


async def check_tree(fs: FileSystem, model: ReferenceFS) -> None:
    """Walk the tree through the file system and compare all that an application can see."""
    nlinks = model.nlinks()
    todo, seen = [1], {1}
    while todo:
        ino = todo.pop()
        node = model.nodes[ino]
        assert tuple(fs.getattr(ino)) == model.row(ino, nlinks[ino])
        listed = {entry.name: (entry.ino, entry.cookie) for entry, _ in fs.readdir(ino, 0)}
        assert listed == node.names, f"directory {ino} lists other names than the model's"
        for child, _ in node.names.values():
            if child in seen:
                continue
            seen.add(child)
            if model.nodes[child].is_directory:
                todo.append(child)
            else:
                await check_file(fs, model, child)


async def check_file(fs: FileSystem, model: ReferenceFS, ino: int) -> None:
    """Compare one file's bytes, unless someone writes to it meanwhile."""
    node = model.nodes[ino]
    if node.target:
        assert fs.readlink(ino) == node.target
        return
    version = model.version.get(ino)
    wanted = bytes(node.data)
    found = bytes(await fs.read(ino, 0, len(wanted) + 1))
    if ino in model.nodes and model.version.get(ino) == version:
        assert_same(found, wanted, f"inode {ino}")


def assert_same(found: bytes, wanted: bytes, what: str) -> None:
    """Compare bytes and name the first difference only."""
    if found == wanted:
        return
    at = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), -1)
    raise AssertionError(f"{what}: {len(found)} bytes, {len(wanted)} expected, differ at {at}")


def check_store(
    store: RemoteFileSystem,
    volume: VolumeDescriptor,
    history: History,
    scratch: Path,
    cipher: Cipher | None,
) -> int:
    """Load the volume from the store alone; check every commit of the window, byte by byte.

    Returns how many commits were looked at.
    """
    log = CommitLog(store, scratch, cipher)
    path = scratch / "checked.db"
    numbers = log.sequence_numbers(0)
    newest = log.load(path, vfs=None, volume=volume)
    head = newest.head
    try:
        _check_commit(newest, log, history, deep=True)
    finally:
        newest.close()
        _remove(path)
    checked = 1
    for seq in head.kept:
        checked += _check_from(log, seq, seq, volume, history, scratch)
    if head.dense_from in log.checkpoints() and numbers:
        checked += _check_from(log, head.dense_from, numbers[-1], volume, history, scratch)
    return checked


def _check_from(
    log: CommitLog, first: int, last: int, volume: VolumeDescriptor, history: History, scratch: Path
) -> int:
    """Check the commit of a checkpoint and those behind it up to `last`."""
    path = scratch / "checked.db"
    committed = log._load_checkpoint(first, path, vfs=None, volume=volume)
    try:
        head = committed.head
        _check_commit(committed, log, history, deep=False)
        for seq in range(first + 1, last + 1):
            head = log.apply(committed, log.read(seq), head)
            committed.head = head
            _check_commit(committed, log, history, deep=False)
        return last - first + 1
    finally:
        committed.close()
        _remove(path)


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _check_commit(committed: Committed, log: CommitLog, history: History, *, deep: bool) -> None:
    """A commit is the fold of an issued history, and every chunk of it is in the store."""
    head, store = committed.head, log.store
    model = history.fold(history.find(head.chain, head.op_seq))
    run = committed._writer.execute
    _compare_rows(run, model)
    _check_packs(committed)
    chunks: dict[int, bytes] = {}
    with committed.view() as view:
        for chunk, length, key, offset, stored_length, frames in view.all_chunks():
            assert key is not None, f"commit {head.seq}: chunk {chunk} has no place"
            if not deep:
                assert offset + stored_length <= store.stat(key).size
                continue
            stored = store.read(key, offset=offset, length=stored_length)
            table = decode_frame_table(chunk, length, frames)
            chunks[chunk] = b"".join(
                decode_frame(
                    chunk, i, f, stored[f.offset : f.offset + f.stored_length], key, log._cipher
                )
                for i, f in enumerate(table)
            )
    if deep:
        _compare_bytes(run, model, chunks)


def _compare_bytes(run, model: ReferenceFS, chunks: dict[int, bytes]) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    sizes = dict(run("SELECT ino, size FROM inode WHERE nlink > 0").fetchall())
    files = {ino: bytearray(size) for ino, size in sizes.items()}
    for ino, offset, length, chunk, at in run("SELECT * FROM extent").fetchall():
        if ino in files:
            files[ino][offset : offset + length] = chunks[chunk][at : at + length]
    for ino, data in files.items():
        node = model.nodes[ino]
        if not node.is_directory and not node.target:
            assert_same(bytes(data), bytes(node.data), f"inode {ino} in the store")
