"""The block cache: fixed blocks of store objects, as stored, on the local disk.

A block is `block_bytes` long, the last one of an object shorter. The index (which blocks there
are, in which order they were used, how much they take) is diskcache's SQLite database, every
value is a file: one block, or a strip of them (`strips.py`). Only `cache_table.py` imports
diskcache.

What it alone keeps:

* **Bytes out are bytes in.** Every block has an XXH3-64, seeded with its key and index, that is
  compared each time. What fails is dropped, counted, named by `on_damage`, and reads as a miss.
* **Plain bytes only.** diskcache unpickles whatever its database says (CVE-2025-69872);
  `cache_table.py` writes and reads raw files and raises for everything else.
* **No failure reaches a caller.** The cache may be wiped or damaged at any moment, also while in
  use, and the disk may be full: a `get` then misses, a `put` does nothing and is counted.
* **The limit holds when `put` returns**, with work bounded by what was put.
* **A `get` writes nothing.** It notes the use in RAM; `flush_use` writes the notes in batches.
  Before that an eviction asks the notes: a block in use is moved to the young end instead.

Order of use is a counter inside the database (`store_time`), no clock. Several processes may
have the same directory open. Nothing is synced: after a power cut the checksums decide.

    put:   file written > oldest rows deleted, row inserted > files of deleted rows unlinked

A process that dies at an arrow leaves a file without a row; the next start removes it. A row
without a file reads as a miss and goes.

Lock order: `_writing` (one transaction of this process at a time; SQLite's own busy waiting is
coarse), then `_noting` (counters and notes; never held over I/O).
"""

from __future__ import annotations

import errno
import shutil
import sqlite3
import tempfile
from collections import OrderedDict
from pathlib import Path
from threading import Lock  # noqa: TID251 - a lock between worker threads; no thread is started
from typing import TYPE_CHECKING, Final

from s3fs_banyan.data import cache_rows
from s3fs_banyan.data.blocks import (
    BLOCK_BYTES,
    BLOCK_BYTES_MAX,
    CacheStats,
    charge_of,
    check_block,
    checksum_of,
    row_key_of,
    row_key_range_of,
)
from s3fs_banyan.data.cache_table import CacheTable, Row
from s3fs_banyan.data.strips import STRIP_BYTES, SUM_BYTES, Entry, Strips
from s3fs_banyan.errors import Corrupt
from s3fs_banyan.format.checksum import Bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_STORE_BATCH: Final = 16
_NOTES_MAX: Final = 65_536
_STRIPS_MIN: Final = 16
"""A cache that holds fewer strips has blocks only: its limit is held more finely."""

_BROKEN: Final = frozenset(
    {
        sqlite3.SQLITE_ERROR,  # a table is missing or is not the one we made
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_CONSTRAINT,  # table and index disagree
        sqlite3.SQLITE_MISMATCH,
    }
)
_PROCESS_SHORT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class DiskBlockCache:
    """`BlockCache` in a directory of its own. See the module's text for what it promises."""

    def __init__(
        self,
        directory: Path,
        size_bytes: int,
        *,
        block_bytes: int = BLOCK_BYTES,
        strip_bytes: int = STRIP_BYTES,
        on_damage: Callable[[str, int], None] | None = None,
        writes_at_once: bool = False,
    ) -> None:
        """Open or create the cache in `directory`, which becomes mode 0700.

        What is there of blocks of another size is dropped. Strips have the size that they had
        when the directory was made.

        `writes_at_once`: blocks go to the disk one by one, not when the kernel likes; for a
        process that can wait for the disk.

        `on_damage(key, index)` is called in the thread of the `get` that found a damaged block;
        it must not raise. Raises `OSError` if the directory cannot be made or entered.
        """
        if "$" in str(directory):  # diskcache would look up a variable of that name.
            raise ValueError(f"a cache directory has no $ in its path: {directory}")
        if not 0 < block_bytes <= BLOCK_BYTES_MAX:
            raise ValueError(f"block_bytes is 1 to {BLOCK_BYTES_MAX}, not {block_bytes}")
        if size_bytes < charge_of(block_bytes):
            raise ValueError(f"size_bytes holds one block at least: {charge_of(block_bytes)}")
        self._directory = directory.absolute()
        self._limit = size_bytes
        self._block_bytes = block_bytes
        self._on_damage = on_damage
        self._writes_at_once = writes_at_once
        self._writing = Lock()
        self._noting = Lock()
        self._batch = min(_STORE_BATCH, size_bytes // charge_of(block_bytes))
        self._strips = Strips(block_bytes, strip_bytes)
        self._has_strips = size_bytes >= _STRIPS_MIN * charge_of(strip_bytes)
        self._notes: OrderedDict[str, None] = OrderedDict()
        self._counts = dict.fromkeys(
            ("hits", "misses", "evictions", "damaged", "refused", "rebuilds"), 0
        )
        self._table: CacheTable | None = None
        self._is_closed = False
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        self._set_others_aside()
        with self._writing:
            self._open_table()
        self._remove_set_aside()

    @property
    def block_bytes(self) -> int:
        """Length of every block of an object but the last."""
        return self._block_bytes

    # --- reading

    def get(self, key: str, index: int) -> bytes | None:
        """Return block `index` of the object, verified, or None. Never raises for the cache."""
        block_key = row_key_of(key, index)
        row = self._find(block_key, self._strips.key_of(key, index))
        data = None if row is None else self._verified(key, index, block_key, row)
        with self._noting:
            if row is None or data is None:
                self._counts["misses"] += 1
            else:
                self._counts["hits"] += 1
                self._notes[row.row_key] = None
                self._notes.move_to_end(row.row_key)
                if len(self._notes) > _NOTES_MAX:
                    self._notes.popitem(last=False)
        return data

    def _find(self, block_key: str, strip_key: str) -> Row | None:
        table = self._table
        if table is None:
            return None
        try:
            rows = table.find(block_key, strip_key)
        except sqlite3.Error as error:
            self._after(error, table)
            return None
        return rows.get(block_key) or rows.get(strip_key)

    def _verified(self, key: str, index: int, block_key: str, row: Row) -> bytes | None:
        table = self._table
        if table is None:
            return None
        is_strip = row.row_key != block_key
        checksum = self._strips.sum_in(row.sums, index) if is_strip else row.sums
        if not checksum:
            return None  # The strip ends before this block.
        try:
            offset = self._strips.offset_of(index) if is_strip else 0
            data = table.read(row, offset, self._block_bytes if is_strip else BLOCK_BYTES_MAX)
        except (FileNotFoundError, NotADirectoryError):
            self._drop(table, row)  # Someone wiped the directory.
            return None
        except OSError as error:
            if error.errno in _PROCESS_SHORT:
                return None
        except Corrupt:
            pass  # What follows is the same as for bytes that do not match.
        else:
            if checksum_of(block_key, data) == checksum:
                return data
        self._drop(table, row)
        self._count("damaged")
        if self._on_damage is not None:
            self._on_damage(key, index)
        return None

    def _drop(self, table: CacheTable, row: Row) -> None:
        try:
            with self._writing, table.transaction() as connection:
                cache_rows.delete_row(connection, row.row_key, row.filename)
            table.remove_files([row.filename])
        except sqlite3.Error as error:
            self._after(error, table)

    # --- writing

    def put(self, key: str, index: int, data: bytes | memoryview) -> None:
        """Keep one block. Raises `ValueError` for a length that no block has, else nothing."""
        check_block(data, self._block_bytes)
        self._put([self._strips.entry(key, index, data)])

    def put_object(self, key: str, data: Bytes) -> None:
        """Keep all blocks of an object, a few in a transaction."""
        self.put_run(key, 0, data)

    def put_run(self, key: str, first: int, data: Bytes) -> None:
        """Keep neighbouring blocks, a strip or a few blocks in a transaction."""
        batch: list[Entry] = []
        for entry in self._strips.entries(key, first, data, whole=self._has_strips):
            batch.append(entry)
            if entry.is_strip or len(batch) == self._batch:
                self._put(batch)
                batch = []
        if batch:
            self._put(batch)

    def _put(self, entries: Sequence[Entry]) -> None:
        count = sum(len(entry.block_keys) for entry in entries)
        table = self._current_table()
        if table is None:
            self._count("refused", count)
            return
        stored: list[cache_rows.Stored] = []
        replaced: list[object] = []
        evicted: list[object] = []
        try:
            for entry in entries:
                kept = self._kept(table, entry)
                if kept is not None:
                    self._note(kept)
                else:
                    stored.append(table.store(entry))
            if stored:
                with self._writing, table.transaction() as connection:
                    replaced, evicted = cache_rows.replace(
                        connection, stored, self._limit, self._take_note
                    )
        except (sqlite3.Error, OSError) as error:
            table.remove_files([block.filename for block in stored])
            self._count("refused", count)
            self._after(error, table)
        else:
            table.remove_files(replaced)
            table.remove_files(evicted)
            self._count("evictions", len(evicted))

    def _kept(self, table: CacheTable, entry: Entry) -> str | None:
        """Return the row key under which these very blocks are kept already."""
        rows = table.find(entry.strip_key, *entry.block_keys)
        strip = rows.pop(entry.strip_key, None)
        if rows:  # Newer than the strip.
            row = rows.get(entry.row_key)
            return entry.row_key if row is not None and row.sums == entry.sums else None
        sums = strip.sums if strip is not None else None
        at = entry.position * SUM_BYTES
        if isinstance(sums, bytes) and sums[at : at + len(entry.sums)] == entry.sums:
            return entry.strip_key
        return None

    def forget(self, key: str) -> None:
        """Drop all blocks of an object."""
        first, end = row_key_range_of(key)
        table = self._current_table()
        if table is None:
            return
        try:
            while True:
                with self._writing, table.transaction() as connection:
                    found = cache_rows.find_range(connection, first, end)
                    # Files first: on a full disk their room is what the transaction needs.
                    table.remove_files([filename for _, filename in found])
                    cache_rows.delete_rows(connection, found)
                if len(found) < cache_rows.BATCH:
                    return
        except sqlite3.Error as error:
            self._after(error, table)

    def flush_use(self) -> None:
        """Write the noted uses, and do what was put off: reopen, remove what was set aside."""
        table = self._current_table(retry=True)
        with self._noting:
            notes, self._notes = list(self._notes), OrderedDict()
        if table is not None:
            try:
                for start in range(0, len(notes), cache_rows.BATCH):
                    with self._writing, table.transaction() as connection:
                        cache_rows.touch(connection, notes[start : start + cache_rows.BATCH])
            except sqlite3.Error as error:
                self._after(error, table)
        self._remove_set_aside()

    def stats(self) -> CacheStats:
        """Return what the directory holds now, and the counters."""
        size = entries = 0
        table = self._table
        if table is not None:
            try:
                size, entries = table.totals()
            except sqlite3.Error as error:
                self._after(error, table)
        with self._noting:
            return CacheStats(bytes=size, entries=entries, limit=self._limit, **self._counts)

    def close(self) -> None:
        """Write the noted uses and let go; other threads' connections end with them."""
        self.flush_use()
        with self._writing:
            self._is_closed = True
            table, self._table = self._table, None
        if table is not None:
            table.close()

    # --- counters and notes

    def _count(self, name: str, amount: int = 1) -> None:
        with self._noting:
            self._counts[name] += amount

    def _note(self, row_key: str) -> None:
        with self._noting:
            self._notes[row_key] = None

    def _take_note(self, row_key: str) -> bool:
        with self._noting:
            return self._notes.pop(row_key, self) is None

    # --- the database as a thing that breaks

    def _current_table(self, *, retry: bool = False) -> CacheTable | None:
        """Return the table, opened again if its file has gone; `retry`: if there is none, too."""
        table = self._table
        if (table is None and not retry) or (table is not None and not table.is_gone()):
            return table
        with self._writing:
            if self._table is table and not self._is_closed:
                self._rebuild(table)
            return self._table

    def _after(self, error: sqlite3.Error | OSError, table: CacheTable) -> None:
        """Make the database anew if `error` says that it is unusable; other errors pass."""
        if _is_broken(error):
            with self._writing:
                if self._table is table and not self._is_closed:
                    self._rebuild(table)

    def _rebuild(self, table: CacheTable | None) -> None:
        if table is not None:
            self._count("rebuilds")
            if not table.is_gone():  # Else another process has begun a new one already.
                self._set_aside(self._blocks)
        self._open_table()

    def _open_table(self) -> None:
        """Open the database, a new one if the present one is damaged; `_table` is None if not."""
        self._table = None
        for _ in range(2):
            try:
                self._blocks.mkdir(mode=0o700, parents=True, exist_ok=True)
                table = CacheTable(self._blocks, writes_at_once=self._writes_at_once)
                table.sweep()
                self._fit(table)
            except (sqlite3.Error, OSError) as error:
                if not _is_broken(error):
                    return
                self._count("rebuilds")
                self._set_aside(self._blocks)
            else:
                self._table = table
                return

    def _fit(self, table: CacheTable) -> None:
        """Evict what a limit lower than last time does not allow."""
        with table.transaction() as connection:
            evicted = cache_rows.evict(connection, self._limit, self._take_note)
        table.remove_files(evicted)
        self._count("evictions", len(evicted))

    @property
    def _blocks(self) -> Path:
        return self._directory / f"blocks-1-{self._block_bytes}"

    def _set_others_aside(self) -> None:
        """A cache of blocks of another size is of no use: its blocks lie elsewhere in an object."""
        for other in self._directory.glob("blocks-*"):
            if other != self._blocks:
                self._set_aside(other)

    def _set_aside(self, blocks: Path) -> None:
        """Rename everything away at once: database, log and files never mix with the next."""
        try:
            blocks.rename(Path(tempfile.mkdtemp(prefix="gone-", dir=self._directory), "b"))
        except OSError:
            shutil.rmtree(blocks, ignore_errors=True)

    def _remove_set_aside(self) -> None:
        for old in self._directory.glob("gone-*"):
            shutil.rmtree(old, ignore_errors=True)


def _is_broken(error: sqlite3.Error | OSError) -> bool:
    """Return whether only a new database helps: not for busy, full, or a failing disk."""
    if isinstance(error, OSError | sqlite3.ProgrammingError):
        return False
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return code is None or code == sqlite3.SQLITE_IOERR_SHORT_READ or code & 0xFF in _BROKEN
