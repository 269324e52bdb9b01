"""Where a file's bytes are: extents, chunks and pieces, and how writes change them.

Rules (architecture, section 6):

* A write changes a *young* chunk (id at or above the watermark, which the cut moves) only inside
  that chunk's single extent, or at that extent's end, up to 1 MiB, the chunk first being
  shortened to the extent. Otherwise a new chunk begins and older extents are trimmed.
* Extents of a file never overlap and never reach beyond its size. `refs` counts extents; at 0
  the chunk's row goes, and its pieces.
* Pieces of a chunk never overlap: the newer trims the older. A young chunk is covered by pieces
  from its first byte to its last.

A file that is appended to keeps its last extent in RAM (`_Tail`) until something else looks at
its extents or the transaction ends, and new pieces wait until one of their chunk is looked at:
a write to a new file, or at a file's end, then costs no statement of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import apsw

from s3fs_banyan.meta.database import runner
from s3fs_banyan.meta.tree import Tree
from s3fs_banyan.model import CHUNK_BYTES_MAX, Extent, Piece

_OVERLAPPING = (
    "SELECT offset, length, chunk, chunk_offset FROM extent WHERE ino = ?1 AND offset < ?3"
    " AND offset >= coalesce((SELECT max(offset) FROM extent WHERE ino = ?1 AND offset <= ?2), ?2)"
    " ORDER BY offset"
)
_BEFORE = (
    "SELECT e.offset, e.length, e.chunk, e.chunk_offset, c.length, c.refs"
    " FROM extent e JOIN chunk c ON c.id = e.chunk"
    " WHERE e.ino = ? AND e.offset < ? ORDER BY e.offset DESC LIMIT 1"
)
_PIECES = (
    "SELECT offset, length, segment, position, record_offset, op_seq FROM piece"
    " WHERE chunk = ?1 AND offset < ?3"
    " AND offset >= coalesce((SELECT max(offset) FROM piece WHERE chunk = ?1 AND offset <= ?2), ?2)"
    " ORDER BY offset"
)


@dataclass(slots=True)
class _Tail:
    """The last extent of a file that is being appended to; its chunk is young, refs 1."""

    offset: int
    length: int
    chunk: int
    chunk_offset: int
    stored_length: int
    """What the row says, 0 if there is none yet; `length` is the truth."""


class Extents:
    """The extents of live.db. Synchronous; one event loop."""

    def __init__(self, connection: apsw.Connection, tree: Tree) -> None:
        self._run = runner(connection)
        self._many = connection.cursor().executemany
        self._tree = tree
        self._tails: dict[int, _Tail] = {}
        self._grown: set[int] = set()
        """Files whose tail has grown beyond its row."""
        self._new_pieces: list[tuple[int, ...]] = []
        """Rows of pieces that are not written yet."""
        self._new_pieces_of: set[int] = set()
        """Their chunks."""
        self.used_bytes: int = self._run("SELECT coalesce(sum(length), 0) FROM extent").fetchall()[
            0
        ][0]
        """Live logical bytes: what statfs reports as used."""

    # --- queries -------------------------------------------------------------------------

    def overlapping(self, ino: int, start: int, end: int) -> list[Extent]:
        """Return the extents that share a byte with [start, end), in order."""
        self._settle(ino)
        rows = self._run(_OVERLAPPING, (ino, start, end)).fetchall()
        return [Extent(*row) for row in rows if row[0] + row[1] > start]

    def covered_bytes(self, ino: int, start: int, end: int) -> int:
        """Return how many bytes of [start, end) are data, not holes."""
        found = self.overlapping(ino, start, end)
        return sum(min(e.offset + e.length, end) - max(e.offset, start) for e in found)

    def pieces(self, chunk: int, start: int, end: int) -> list[Piece]:
        """Return the pieces of a chunk that share a byte with [start, end), in order."""
        if chunk in self._new_pieces_of:
            self._write_pieces()
        rows = self._run(_PIECES, (chunk, start, end)).fetchall()
        return [Piece(*row) for row in rows if row[0] + row[1] > start]

    def chunk_length(self, chunk: int) -> int | None:
        """Return the length of a chunk, or None if it is dead."""
        rows = self._run("SELECT length FROM chunk WHERE id = ?", (chunk,)).fetchall()
        return rows[0][0] if rows else None

    # --- writing -------------------------------------------------------------------------

    def write(
        self,
        ino: int,
        offset: int,
        length: int,
        size: int,
        segment: int,
        position: int,
        op_seq: int,
    ) -> None:
        """Let file bytes [offset, offset + length) be the data of one journal record.

        `size` is the file's size before the write.
        """
        done = 0
        if offset >= size:
            tail = self._tails.get(ino)
            if tail is None or tail.offset + tail.length != offset:
                tail = self._find_tail(ino, offset) if offset == size and size else None
            if tail is not None:
                done = self._grow(ino, tail, length, segment, position, op_seq)
        elif self._overwrite_within(ino, offset, length, segment, position, op_seq):
            return
        else:
            self.carve(ino, offset, offset + length)
            tail = self._find_tail(ino, offset)
            if tail is not None:
                done = self._grow(ino, tail, length, segment, position, op_seq)
        while done < length:
            step = min(length - done, CHUNK_BYTES_MAX)
            self._new_chunk(ino, offset + done, step, segment, position, done, op_seq)
            done += step
        if offset < size:
            self._settle(ino)
            self._tails.pop(ino, None)

    def _find_tail(self, ino: int, offset: int) -> _Tail | None:
        """Return the growable extent that ends at `offset`, if there is one."""
        self._settle(ino)
        self._tails.pop(ino, None)
        rows = self._run(_BEFORE, (ino, offset)).fetchall()
        if not rows:
            return None
        start, length, chunk, chunk_offset, chunk_length, refs = rows[0]
        if start + length != offset or refs != 1 or chunk < self._tree.counter("watermark"):
            return None
        if chunk_offset + length >= CHUNK_BYTES_MAX:
            return None
        if chunk_length > chunk_offset + length:
            self._shorten_chunk(chunk, chunk_offset + length)
        tail = self._tails[ino] = _Tail(start, length, chunk, chunk_offset, length)
        return tail

    def _grow(
        self, ino: int, tail: _Tail, length: int, segment: int, position: int, op_seq: int
    ) -> int:
        end = tail.chunk_offset + tail.length
        step = min(length, CHUNK_BYTES_MAX - end)
        if step:
            self._add_piece(tail.chunk, end, step, segment, position, 0, op_seq)
            tail.length += step
            self._grown.add(ino)
            self.used_bytes += step
        return step

    def _new_chunk(
        self,
        ino: int,
        offset: int,
        length: int,
        segment: int,
        position: int,
        done: int,
        op_seq: int,
    ) -> None:
        self._settle(ino)
        chunk = self._tree.counter("next_chunk")
        self._tree.set_counter("next_chunk", chunk + 1)
        self._add_piece(chunk, 0, length, segment, position, done, op_seq)
        self.used_bytes += length
        self._tails[ino] = _Tail(offset, length, chunk, 0, 0)
        self._grown.add(ino)

    def _overwrite_within(
        self, ino: int, offset: int, length: int, segment: int, position: int, op_seq: int
    ) -> bool:
        """Overwrite inside one young, unshared extent; false if the range is not in one."""
        self._settle(ino)
        rows = self._run(_BEFORE, (ino, offset + 1)).fetchall()
        if not rows:
            return False
        start, extent_length, chunk, chunk_offset, _, refs = rows[0]
        if offset + length > start + extent_length or refs != 1:
            return False
        if chunk < self._tree.counter("watermark"):
            return False
        inside = chunk_offset + offset - start
        self._trim_pieces(chunk, inside, inside + length)
        self._add_piece(chunk, inside, length, segment, position, 0, op_seq)
        return True

    # --- removing ------------------------------------------------------------------------

    def carve(self, ino: int, start: int, end: int) -> None:
        """Take file bytes [start, end) out of all extents."""
        for extent in self.overlapping(ino, start, end):
            extent_end = extent.offset + extent.length
            keep_front = max(0, start - extent.offset)
            keep_back = max(0, extent_end - end)
            self.used_bytes -= extent.length - keep_front - keep_back
            key = (ino, extent.offset)
            if keep_front:
                self._run(
                    "UPDATE extent SET length = ? WHERE ino = ? AND offset = ?", (keep_front, *key)
                ).fetchall()
            else:
                self._run("DELETE FROM extent WHERE ino = ? AND offset = ?", key).fetchall()
            if keep_back:
                back = (
                    ino,
                    end,
                    keep_back,
                    extent.chunk,
                    extent.chunk_offset + end - extent.offset,
                )
                self._run("INSERT INTO extent VALUES (?, ?, ?, ?, ?)", back).fetchall()
            self._change_refs(extent.chunk, bool(keep_front) + bool(keep_back) - 1)
        self._tails.pop(ino, None)

    def reap(self, ino: int, rows: int) -> bool:
        """Remove up to `rows` extents of an orphan; true when none is left."""
        self._settle(ino)
        self._tails.pop(ino, None)
        found = self._run(
            "SELECT offset, length, chunk FROM extent WHERE ino = ? LIMIT ?", (ino, rows + 1)
        ).fetchall()
        for offset, length, chunk in found[:rows]:
            self._run("DELETE FROM extent WHERE ino = ? AND offset = ?", (ino, offset)).fetchall()
            self._change_refs(chunk, -1)
            self.used_bytes -= length
        return len(found) <= rows

    def _change_refs(self, chunk: int, change: int) -> None:
        if change == 0:
            return
        rows = self._run("SELECT refs FROM chunk WHERE id = ?", (chunk,)).fetchall()
        refs = rows[0][0] + change
        if refs:
            self._run("UPDATE chunk SET refs = ? WHERE id = ?", (refs, chunk)).fetchall()
        else:
            if chunk in self._new_pieces_of:
                self._write_pieces()
            self._run("DELETE FROM chunk WHERE id = ?", (chunk,)).fetchall()
            self._run("DELETE FROM piece WHERE chunk = ?", (chunk,)).fetchall()

    def _shorten_chunk(self, chunk: int, length: int) -> None:
        self._trim_pieces(chunk, length, CHUNK_BYTES_MAX)
        self._run("UPDATE chunk SET length = ? WHERE id = ?", (length, chunk)).fetchall()

    # --- pieces --------------------------------------------------------------------------

    def _add_piece(
        self,
        chunk: int,
        offset: int,
        length: int,
        segment: int,
        position: int,
        record_offset: int,
        op_seq: int,
    ) -> None:
        self._new_pieces.append((chunk, offset, length, segment, position, record_offset, op_seq))
        self._new_pieces_of.add(chunk)

    def _trim_pieces(self, chunk: int, start: int, end: int) -> None:
        """Take chunk bytes [start, end) out of all pieces."""
        for piece in self.pieces(chunk, start, end):
            piece_end = piece.offset + piece.length
            key = (chunk, piece.offset)
            if piece.offset < start:
                self._run(
                    "UPDATE piece SET length = ? WHERE chunk = ? AND offset = ?",
                    (start - piece.offset, *key),
                ).fetchall()
            else:
                self._run("DELETE FROM piece WHERE chunk = ? AND offset = ?", key).fetchall()
            if piece_end > end:
                self._add_piece(
                    chunk,
                    end,
                    piece_end - end,
                    piece.segment,
                    piece.position,
                    piece.record_offset + end - piece.offset,
                    piece.op_seq,
                )

    def move_pieces(self, moved: Sequence[tuple[int, int, int]]) -> None:
        """Records (operation, segment, position) were rewritten: let their pieces point there.

        One scan of all pieces; rare.
        """
        self._write_pieces()
        self._run(
            "CREATE TEMP TABLE IF NOT EXISTS moved"
            " (op_seq INTEGER PRIMARY KEY, segment INTEGER, position INTEGER)"
        ).fetchall()
        for row in moved:
            self._run("INSERT INTO temp.moved VALUES (?, ?, ?)", row).fetchall()
        self._run(
            "UPDATE piece SET segment = m.segment, position = m.position"
            " FROM temp.moved m WHERE m.op_seq = piece.op_seq"
        ).fetchall()
        self._run("DELETE FROM temp.moved").fetchall()

    def forget_pieces(self, watermark: int, limit: int) -> bool:
        """Drop up to `limit` pieces of chunks below `watermark`; true when none is left."""
        self._write_pieces()
        rows = self._run(
            "SELECT chunk, offset FROM piece WHERE chunk < ? ORDER BY chunk LIMIT ?",
            (watermark, limit),
        ).fetchall()
        for key in rows:
            self._run("DELETE FROM piece WHERE chunk = ? AND offset = ?", key).fetchall()
        return len(rows) < limit

    # --- what waits in RAM ---------------------------------------------------------------

    def _settle(self, ino: int) -> None:
        """Write the rows of a file's tail if it is new or has grown."""
        tail = self._tails.get(ino)
        if tail is None or tail.stored_length == tail.length:
            return
        self._write_tails([ino])
        self._grown.discard(ino)

    def _write_tails(self, inos: Sequence[int]) -> None:
        tails = [(ino, self._tails[ino]) for ino in inos]
        old = [(ino, tail) for ino, tail in tails if tail.stored_length]
        new = [(ino, tail) for ino, tail in tails if not tail.stored_length]
        if old:
            self._many(
                "UPDATE extent SET length = ? WHERE ino = ? AND offset = ?",
                [(tail.length, ino, tail.offset) for ino, tail in old],
            )
            self._many(
                "UPDATE chunk SET length = ? WHERE id = ?",
                [(tail.chunk_offset + tail.length, tail.chunk) for _, tail in old],
            )
        if new:
            self._many(
                "INSERT INTO chunk VALUES (?, ?, 1)", [(tail.chunk, tail.length) for _, tail in new]
            )
            self._many(
                "INSERT INTO extent VALUES (?, ?, ?, ?, 0)",
                [(ino, tail.offset, tail.length, tail.chunk) for ino, tail in new],
            )
        for _, tail in tails:
            tail.stored_length = tail.length

    def _write_pieces(self) -> None:
        if self._new_pieces:
            self._many("INSERT INTO piece VALUES (?, ?, ?, ?, ?, ?, ?)", self._new_pieces)
            self._new_pieces.clear()
            self._new_pieces_of.clear()

    def flush(self) -> None:
        """Write the rows of all tails and pieces."""
        self._write_pieces()
        if self._grown:
            self._write_tails(sorted(self._grown))
            self._grown.clear()
        if len(self._tails) > 4096:  # a bound on RAM, no semantics
            self._tails.clear()

    def forbid_growth(self) -> None:
        """After a cut: no chunk begun before may grow."""
        self.flush()
        self._tails.clear()
