"""The fold beside a model: random programs of operations, commits, and what must hold after each.

`Twin` applies each operation to a real live.db and to dictionaries and bytearrays, seals and
commits as the committer does (without a store), and compares.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any, Final

import apsw

from s3fs_banyan.format.commit import CommitFooter
from s3fs_banyan.meta.committed import Committed, PlacementRow, create_committed, write_placements
from s3fs_banyan.meta.database import runner
from s3fs_banyan.meta.delta import write_delta
from s3fs_banyan.meta.live import LiveState, create_live
from s3fs_banyan.meta.tables import STATE_COLUMNS, STATE_KEYS
from s3fs_banyan.model import (
    CHUNK_BYTES_MAX,
    BeginEpoch,
    Cut,
    Link,
    Make,
    Operation,
    Reap,
    RemoveXattr,
    Rename,
    Rewrite,
    Rmdir,
    SetAttributes,
    SetXattr,
    Unlink,
    Write,
)
from tests.unit.engine_kit import VOLUME

Row = tuple[Any, ...]
Step = tuple[int, int, int, int]
"""(which operation, operand, operand, operand), all taken modulo what there is."""

NAMES: Final = [b"a", b"b", b"c", b"d", b"e"]


class Model:
    """A tree of names and bytes, as POSIX describes it."""

    def __init__(self) -> None:
        self.names: dict[tuple[int, bytes], int] = {}
        self.files: dict[int, bytearray] = {}
        self.directories: set[int] = {1}
        self.nlink: dict[int, int] = {1: 2}
        self.xattrs: dict[tuple[int, bytes], bytes] = {}

    def children(self, ino: int) -> list[bytes]:
        return [name for parent, name in self.names if parent == ino]

    def drop(self, ino: int, parent: int) -> None:
        """A name of `ino` in `parent` is gone."""
        if ino in self.directories:
            self.directories.discard(ino)
            self.nlink[ino] = 0
            self.nlink[parent] -= 1
        else:
            self.nlink[ino] -= 1

    def is_below(self, ino: int, ancestor: int) -> bool:
        """Tell whether a directory is `ancestor` or lies below it."""
        while ino != ancestor:
            parents = [parent for (parent, _), child in self.names.items() if child == ino]
            if not parents:
                return False
            ino = parents[0]
        return True


class Twin:
    """live.db, committed.db and the model, in step."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = Model()
        self.committed: Committed = create_committed(root / "committed.db", vfs=None, volume=VOLUME)
        self.live: LiveState = self.fresh_live("live.db", 0, 0)
        self.journal: list[Operation] = []
        self.sealed: dict[int, bytes] = {}
        self.committed_ops = 0
        self._next_ino = 2
        self._epoch = 0

    def fresh_live(self, name: str, op_seq: int, chain: int) -> LiveState:
        """Return a live.db made from committed.db as it is now."""
        return create_live(
            self.root / name, self.committed.writer(), op_seq=op_seq, chain=chain,
            boot_id="boot", volume_id=VOLUME.volume_id,
        )  # fmt: skip

    def close(self) -> None:
        self.live.close(keep=True)
        self.committed.close()

    # --- programs ------------------------------------------------------------------------

    def run(self, step: Step) -> None:
        """Carry out one step of a program, if its operands make sense."""
        kinds = (
            self._make, self._write, self._write, self._write, self._truncate, self._rename,
            self._exchange, self._unlink, self._link, self._rmdir, self._xattr, self._reap,
            self._write, self._begin_epoch, self._rewrite,
        )  # fmt: skip
        kinds[step[0] % len(kinds)](*step[1:])

    def apply(self, op: Operation) -> None:
        """Append and apply; the position of a record is its number."""
        self.journal.append(op)
        op_seq = len(self.journal)
        self.live.apply(op, op_seq, op_seq * 7, 1, op_seq)

    def _directory(self, pick: int) -> int:
        found = sorted(self.model.directories)
        return found[pick % len(found)]

    def _name(self, pick: int) -> tuple[int, bytes] | None:
        found = sorted(self.model.names)
        return found[pick % len(found)] if found else None

    def _file(self, pick: int) -> int | None:
        found = sorted(self.model.files)
        return found[pick % len(found)] if found else None

    def _make(self, where: int, which: int, kind: int) -> None:
        parent, name = self._directory(where), NAMES[which % len(NAMES)]
        if (parent, name) in self.model.names:
            return
        ino, self._next_ino = self._next_ino, self._next_ino + 1
        mode = stat.S_IFDIR | 0o755 if kind % 3 == 0 else stat.S_IFREG | 0o644
        self.apply(Make(parent, name, ino, mode, 1, 2, 0, b"", 5))
        self.model.names[parent, name] = ino
        if kind % 3 == 0:
            self.model.directories.add(ino)
            self.model.nlink[ino] = 2
            self.model.nlink[parent] += 1
        else:
            self.model.files[ino] = bytearray()
            self.model.nlink[ino] = 1

    def _write(self, which: int, where: int, what: int) -> None:
        ino = self._file(which)
        if ino is None:
            return
        content = self.model.files[ino]
        # Mostly at the end, at a border, or inside; sizes from a byte to more than a chunk.
        places = (len(content), where % (len(content) + 1), 0, len(content) + where % 5000)
        offset = places[what % 4]
        sizes = (1, 100, 4096, 70_000, CHUNK_BYTES_MAX, CHUNK_BYTES_MAX + 5_000)
        length = sizes[what % 7 % 6]
        data = bytes([what % 251, where % 241]) * (length // 2 + 1)
        data = data[:length]
        self.apply(Write(ino, offset, False, 6, data))
        if len(content) < offset + length:
            content.extend(bytes(offset + length - len(content)))
        content[offset : offset + length] = data

    def _rewrite(self, which: int, where: int, what: int) -> None:
        """Defragmentation writes what is there anyway: the model does not change."""
        ino = self._file(which)
        if ino is None or not self.model.files[ino]:
            return
        content = self.model.files[ino]
        offset = where % len(content)
        data = bytes(content[offset : offset + 1 + what % 100_000])
        self.apply(Rewrite(ino, offset, data))

    def _truncate(self, which: int, where: int, what: int) -> None:
        ino = self._file(which)
        if ino is None:
            return
        content = self.model.files[ino]
        size = where % (len(content) + 1) if what % 3 else len(content) + where % 3000
        self.apply(SetAttributes(ino, None, None, None, size, None, 7, 7))
        if size < len(content):
            del content[size:]
        else:
            content.extend(bytes(size - len(content)))

    def _rename(self, which: int, where: int, what: int) -> None:
        old = self._name(which)
        if old is None:
            return
        new = (self._directory(where), NAMES[what % len(NAMES)])
        model = self.model
        ino, target = model.names[old], model.names.get(new)
        is_directory = ino in model.directories
        if target == ino or (is_directory and model.is_below(new[0], ino)):
            return
        if target is not None:
            if (target in model.directories) != is_directory or model.children(target):
                return
            model.drop(target, new[0])
        self.apply(Rename(*old, *new, False, 8))
        del model.names[old]
        model.names[new] = ino
        if is_directory:
            model.nlink[old[0]] -= 1
            model.nlink[new[0]] += 1

    def _exchange(self, which: int, with_which: int, _: int) -> None:
        one, other = self._name(which), self._name(with_which)
        model = self.model
        if one is None or other is None or model.names[one] == model.names[other]:
            return
        first, second = model.names[one], model.names[other]
        for ino, parent in ((first, other[0]), (second, one[0])):
            if ino in model.directories and model.is_below(parent, ino):
                return
        self.apply(Rename(*one, *other, True, 9))
        model.names[one], model.names[other] = second, first
        change = (first in model.directories) - (second in model.directories)
        model.nlink[one[0]] -= change
        model.nlink[other[0]] += change

    def _unlink(self, which: int, *_: int) -> None:
        name = self._name(which)
        if name is None or self.model.names[name] in self.model.directories:
            return
        self.apply(Unlink(*name, 10))
        self.model.drop(self.model.names.pop(name), name[0])

    def _link(self, which: int, where: int, what: int) -> None:
        ino = self._file(which)
        new = (self._directory(where), NAMES[what % len(NAMES)])
        if ino is None or not self.model.nlink[ino] or new in self.model.names:
            return
        self.apply(Link(ino, *new, 11))
        self.model.names[new] = ino
        self.model.nlink[ino] += 1

    def _rmdir(self, which: int, *_: int) -> None:
        name = self._name(which)
        if name is None or self.model.names[name] not in self.model.directories:
            return
        if not self.model.children(self.model.names[name]):
            self.apply(Rmdir(*name, 12))
            self.model.drop(self.model.names.pop(name), name[0])

    def _xattr(self, which: int, name_pick: int, what: int) -> None:
        ino = self._file(which)
        if ino is None:
            return
        key = (ino, NAMES[name_pick % len(NAMES)])
        if what % 3 or key not in self.model.xattrs:
            self.apply(SetXattr(*key, b"v%d" % what, 13))
            self.model.xattrs[key] = b"v%d" % what
        else:
            self.apply(RemoveXattr(*key, 14))
            del self.model.xattrs[key]

    def _reap(self, which: int, rows: int, _: int) -> None:
        orphans = sorted(ino for ino, nlink in self.model.nlink.items() if nlink == 0)
        if not orphans:
            return
        ino = orphans[which % len(orphans)]
        while self.live.tree.attributes(ino) is not None:
            self.apply(Reap(ino, 1 + rows % 3))
        del self.model.nlink[ino]
        self.model.files.pop(ino, None)
        for key in [key for key in self.model.xattrs if key[0] == ino]:
            del self.model.xattrs[key]

    def _begin_epoch(self, *_: int) -> None:
        self._epoch += 1
        self.apply(BeginEpoch(self._epoch, bytes(16)))

    # --- commits -------------------------------------------------------------------------

    def cut(self) -> tuple[int, Path, Path]:
        """Cut, seal, and write delta and placements; returns the flip and the two files."""
        self.apply(Cut(15))
        live, seq = self.live, self.committed.head.seq + 1
        live.end_transaction()
        flip = live.flip_dirty()
        live.end_transaction()
        paths = [self.root / f"{name}-{seq}.db" for name in ("delta", "seal", "placements")]
        for path in paths:
            path.unlink(missing_ok=True)
        snapshot = live.prepare_snapshot(
            self.root / "committed.db", paths[0], paths[1], committed_vfs=None
        )
        snapshot.freeze()
        write_delta(snapshot, flip)
        rows, offset = [], 0
        for chunk, data in self._seal(paths[1]):
            self.sealed[chunk] = data
            rows.append(PlacementRow(chunk, seq << 16, offset, len(data), b""))
            offset += len(data)
        packs = [(seq << 16, f"pack/{seq}", "", offset)] if rows else []
        write_placements(paths[2], packs, rows)
        return flip, paths[0], paths[2]

    def _seal(self, seal_db: Path) -> list[tuple[int, bytes]]:
        connection = apsw.Connection(str(seal_db))
        run = runner(connection)
        chunks = run("SELECT id, length FROM chunk").fetchall()
        made = []
        for chunk, length in chunks:
            data = b""
            rows = run(
                "SELECT offset, length, record_offset, op_seq FROM piece WHERE chunk = ?"
                " ORDER BY offset",
                (chunk,),
            ).fetchall()
            for offset, piece_length, record_offset, op_seq in rows:
                assert offset == len(data), f"chunk {chunk} has a gap or an overlap"
                data += self._data(op_seq)[record_offset : record_offset + piece_length]
            assert len(data) == length
            made.append((int(chunk), data))
        connection.close()
        return made

    def publish(self, flip: int, delta: Path, placements: Path) -> None:
        """Apply what `cut` made, and empty the set that it was made from."""
        head = self.committed.head
        cut_op_seq = max(n for n, op in enumerate(self.journal, 1) if isinstance(op, Cut))
        footer = CommitFooter(
            seq=head.seq + 1, epoch=self._epoch, writer=bytes(16), predecessor=head.digest,
            chain=cut_op_seq * 7, op_seq=cut_op_seq, time_ns=1, dense_from=0, kept=(),
            inline_length=0, delta_length=1, placements_length=1,
        )  # fmt: skip
        self.committed.head = self.committed.apply_commit(delta, placements, footer, bytes(32))
        self.live.empty_dirty(flip)
        self.committed_ops = cut_op_seq
        watermark = self.live.tree.counter("watermark")
        assert self.live.extents.forget_pieces(watermark, 10_000)

    def _data(self, op_seq: int) -> bytes:
        op = self.journal[op_seq - 1]
        assert isinstance(op, Write | Rewrite)
        return op.data

    # --- comparing -----------------------------------------------------------------------

    def bytes_of(self, ino: int) -> bytes:
        """Return a file's bytes as a reader finds them: pieces, else the sealed chunk."""
        live = self.live
        size = live.tree.inode(ino).size
        found = bytearray(size)
        for extent in live.extents.overlapping(ino, 0, size):
            end = extent.chunk_offset + extent.length
            sealed = self.sealed.get(extent.chunk)
            if sealed is not None:
                data = sealed[extent.chunk_offset : end]
            else:
                data, position = b"", extent.chunk_offset
                for piece in live.extents.pieces(extent.chunk, extent.chunk_offset, end):
                    assert piece.offset <= position
                    first = piece.record_offset + position - piece.offset
                    stop = min(end, piece.offset + piece.length)
                    data += self._data(piece.op_seq)[first : first + stop - position]
                    position = stop
            assert len(data) == extent.length
            found[extent.offset : extent.offset + extent.length] = data
        return bytes(found)

    def check(self) -> None:
        """Compare the state with the model, and check every invariant of the tables."""
        model, tree = self.model, self.live.tree
        for ino, content in model.files.items():
            assert self.bytes_of(ino) == bytes(content), f"bytes of inode {ino}"
        for ino, nlink in model.nlink.items():
            assert tree.inode(ino).nlink == nlink, f"links of inode {ino}"
        self.live.end_transaction()
        rows = self.rows("dentry")
        assert {(parent, name): ino for parent, name, ino, _ in rows} == model.names
        cookies = [row[3] for row in rows]
        assert len(set(cookies)) == len(cookies)
        assert {(ino, name): value for ino, name, value in self.rows("xattr")} == model.xattrs
        assert {row[0] for row in self.rows("inode")} == set(model.nlink)
        self._check_extents()
        self._check_dirty()

    def rows(self, table: str, connection: apsw.Connection | None = None) -> list[Row]:
        """Return all rows of a table, sorted."""
        connection = connection or self.live._connection
        return sorted(runner(connection)(f"SELECT * FROM {table}").fetchall())  # noqa: S608

    def _check_extents(self) -> None:
        run = runner(self.live._connection)
        refs = dict(run("SELECT chunk, count(*) FROM extent GROUP BY chunk").fetchall())
        assert dict(run("SELECT id, refs FROM chunk").fetchall()) == refs
        used = run("SELECT coalesce(sum(length), 0) FROM extent").fetchall()[0][0]
        assert self.live.extents.used_bytes == used
        last: tuple[int, int] = (0, 0)
        for ino, offset, length in run("SELECT ino, offset, length FROM extent").fetchall():
            assert length > 0
            assert ino != last[0] or offset >= last[1], f"extents of inode {ino} overlap"
            assert offset + length <= self.live.tree.inode(ino).size
            last = (ino, offset + length)
        for chunk, length in run("SELECT id, length FROM chunk").fetchall():
            assert 0 < length <= CHUNK_BYTES_MAX
            if chunk not in self.sealed:
                position = 0
                for piece in self.live.extents.pieces(chunk, 0, CHUNK_BYTES_MAX):
                    assert piece.offset == position, f"pieces of chunk {chunk}"
                    position += piece.length
                assert position == length

    def _check_dirty(self) -> None:
        for table, keys in STATE_KEYS.items():
            at = [STATE_COLUMNS[table].index(key) for key in keys]
            live = {tuple(row[i] for i in at): row for row in self.rows(table)}
            stored = {
                tuple(row[i] for i in at): row for row in self.rows(table, self.committed.writer())
            }
            differ = {
                key for key in live.keys() | stored.keys() if live.get(key) != stored.get(key)
            }
            dirty = {row[1:] for row in self.rows(f"dirty_{table}")}
            assert differ <= dirty, f"{table}: rows that differ are in no dirty set"
