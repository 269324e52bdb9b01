"""The block cache: fixed blocks of store objects, as stored, on the local disk.

A block is `block_bytes` long, the last one of an object shorter. The index (which blocks there
are, in which order they were used, how much they take) is diskcache's SQLite database, every
value is a file of its own. This is the only module that imports diskcache.

What it alone keeps:

* **Bytes out are bytes in.** Every block has an XXH3-64, seeded with its key and index, that is
  compared each time. What fails is dropped, counted, named by `on_damage`, and reads as a miss.
* **Plain bytes only.** diskcache unpickles whatever its database says (CVE-2025-69872).
  `BytesDisk` writes and reads raw files and raises for everything else.
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

import contextlib
import errno
import os
import re
import shutil
import sqlite3
import tempfile
from collections import OrderedDict
from pathlib import Path
from threading import Lock  # noqa: TID251 - a lock between worker threads; no thread is started
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

import diskcache

from s3fs_banyan.data import cache_rows
from s3fs_banyan.data.blocks import (
    BLOCK_BYTES,
    BLOCK_BYTES_MAX,
    CacheStats,
    blocks_of,
    charge_of,
    check_block,
    checksum_of,
    row_key_of,
    row_key_range_of,
)
from s3fs_banyan.errors import Corrupt
from s3fs_banyan.format.checksum import Bytes
from s3fs_banyan.gentle_io import Writeback, write_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_STORE_BATCH: Final = 16
_NOTES_MAX: Final = 65_536
_BUSY_TIMEOUT_S: Final = 2.0

_FILENAME: Final = re.compile(r"[0-9a-f]{2}/[0-9a-f]{30}\.val")
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


class BytesDisk(diskcache.Disk):  # type: ignore[misc]
    """Values are raw files, keys are text. There is no way to pickle or JSON from here."""

    writes_at_once = False
    _writeback = Writeback()

    def put(self, key: object) -> tuple[str, bool]:
        """Return the database key of `key`. Raises `TypeError` for what is not text."""
        if type(key) is not str:
            _refuse(key)
        return key, True

    def get(self, key: object, raw: object) -> str:
        """Return the key of a database key. Raises `Corrupt` for what `put` does not make."""
        if not raw or type(key) is not str:
            raise Corrupt("block cache row", repr(key), "its key is not plain text")
        return key

    def store(
        self, value: object, read: object, key: object = diskcache.UNKNOWN
    ) -> tuple[int, int, str, None]:
        """Write `value` to a new file; returns its columns size, mode, filename and value.

        Raises `TypeError` for what is not bytes, `OSError` if the file cannot be written;
        then no file remains.
        """
        if read or not isinstance(value, bytes | memoryview):
            _refuse(value)
        filename, path = self.filename(key)
        descriptor = _create(path)
        try:
            write_all(descriptor, value)
            if self.writes_at_once:
                self._writeback.write_back(descriptor, len(value))
        except BaseException:
            Path(path).unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        return charge_of(len(value)), cache_rows.MODE_FILE, filename, None

    def fetch(self, mode: object, filename: object, value: object, read: object) -> bytes:
        """Return the bytes of a value's file.

        Raises `Corrupt` for a row that `store` does not make, above all for a pickled value.
        """
        plain = mode == cache_rows.MODE_FILE and value is None and not read
        if not plain or type(filename) is not str or not _FILENAME.fullmatch(filename):
            raise Corrupt("block cache row", repr(filename), "its value is not a plain file")
        descriptor = os.open(f"{self._directory}/{filename}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(descriptor, min(os.fstat(descriptor).st_size, BLOCK_BYTES_MAX))
        finally:
            os.close(descriptor)

    def filename(
        self, key: object = diskcache.UNKNOWN, value: object = diskcache.UNKNOWN
    ) -> tuple[str, str]:
        """Return a new name (relative, absolute): diskcache's, with one level of directories.

        Its two levels make as many directories as there are files in a cache of this size.
        """
        name, _ = super().filename(key, value)
        flat = name[:3] + name[3:].replace("/", "")
        return flat, f"{self._directory}/{flat}"

    def remove(self, file_path: object) -> None:
        """Remove a value's file; a name that `filename` does not make is left alone."""
        if type(file_path) is str and _FILENAME.fullmatch(file_path):
            with contextlib.suppress(OSError):  # Gone already; or the next start sweeps it.
                Path(f"{self._directory}/{file_path}").unlink()


def _refuse(value: object) -> NoReturn:
    raise TypeError(f"the block cache holds plain bytes under text keys, not {type(value)}")


def _create(path: str) -> int:
    """Create a file for writing, and its directory if that is missing."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, flags, 0o600)


class _Row(NamedTuple):
    checksum: object
    mode: object
    filename: object
    value: object


class _Table(diskcache.Cache):  # type: ignore[misc]
    """diskcache's database, its connections and triggers, with statements of our own.

    diskcache's `get` asks for expiry and loses the difference between "no row" and "no file",
    its `set` and `cull` are one transaction a value, and its volume includes free pages, which
    never shrink without the costly automatic vacuum. `raw` is 1 for text keys.
    """

    def __init__(self, directory: Path, *, writes_at_once: bool) -> None:
        super().__init__(
            str(directory),
            timeout=_BUSY_TIMEOUT_S,
            disk=BytesDisk,
            eviction_policy="least-recently-stored",  # makes the index on store_time
            cull_limit=0,
            statistics=0,
            sqlite_auto_vacuum=0,
            sqlite_cache_size=1024,  # pages of 4 KiB, for each thread
            sqlite_mmap_size=0,  # a file truncated or failing under a mapping is a SIGBUS
            sqlite_synchronous=0,
        )
        self.disk.writes_at_once = writes_at_once
        self._path = directory / diskcache.core.DBNAME
        self._identity = self._stat()

    def is_gone(self) -> bool:
        """Return whether the database file is no longer the one that was opened."""
        return self._identity is None or self._stat() != self._identity

    def _stat(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        connection: sqlite3.Connection = self._con
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def find(self, row_key: str) -> _Row | None:
        rows = self._sql(
            "SELECT tag, mode, filename, value FROM Cache WHERE key = ? AND raw = 1", (row_key,)
        ).fetchall()
        return _Row._make(rows[0]) if rows else None

    def read(self, row: _Row) -> bytes:
        data: bytes = self._disk.fetch(row.mode, row.filename, row.value, False)
        return data

    def store(self, row_key: str, checksum: bytes, data: bytes | memoryview) -> cache_rows.Stored:
        charge, _, filename, _ = self._disk.store(data, False, key=row_key)
        return cache_rows.Stored(row_key, checksum, charge, filename)

    def remove_files(self, filenames: Sequence[object]) -> None:
        for filename in filenames:
            self._disk.remove(filename)

    def totals(self) -> tuple[int, int]:
        return cache_rows.totals(self._con)

    def sweep(self) -> None:
        """Count anew, and remove the files that no row names."""
        root = Path(self.directory)
        # Files first: one written after this look is not in it, and is left alone.
        present = [str(found.relative_to(root)) for found in root.glob("[0-9a-f][0-9a-f]/*")]
        with self.transaction() as connection:
            cache_rows.recount(connection)
            named = {name for (name,) in connection.execute("SELECT filename FROM Cache")}
        self.remove_files([name for name in present if name not in named])


class DiskBlockCache:
    """`BlockCache` in a directory of its own. See the module's text for what it promises."""

    def __init__(
        self,
        directory: Path,
        size_bytes: int,
        *,
        block_bytes: int = BLOCK_BYTES,
        on_damage: Callable[[str, int], None] | None = None,
        writes_at_once: bool = False,
    ) -> None:
        """Open or create the cache in `directory`, which becomes mode 0700.

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
        self._notes: OrderedDict[str, None] = OrderedDict()
        self._counts = dict.fromkeys(
            ("hits", "misses", "evictions", "damaged", "refused", "rebuilds"), 0
        )
        self._table: _Table | None = None
        self._is_closed = False
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
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
        row_key = row_key_of(key, index)
        data = self._verified(key, index, row_key)
        with self._noting:
            if data is None:
                self._counts["misses"] += 1
            else:
                self._counts["hits"] += 1
                self._notes[row_key] = None
                self._notes.move_to_end(row_key)
                if len(self._notes) > _NOTES_MAX:
                    self._notes.popitem(last=False)
        return data

    def _verified(self, key: str, index: int, row_key: str) -> bytes | None:
        table = self._table
        if table is None:
            return None
        try:
            row = table.find(row_key)
        except sqlite3.Error as error:
            self._after(error, table)
            return None
        if row is None:
            return None
        try:
            data = table.read(row)
        except (FileNotFoundError, NotADirectoryError):
            self._drop(table, row_key, row)  # Someone wiped the directory.
            return None
        except OSError as error:
            if error.errno in _PROCESS_SHORT:
                return None
        except Corrupt:
            pass  # What follows is the same as for bytes that do not match.
        else:
            if checksum_of(row_key, data) == row.checksum:
                return data
        self._drop(table, row_key, row)
        self._count("damaged")
        if self._on_damage is not None:
            self._on_damage(key, index)
        return None

    def _drop(self, table: _Table, row_key: str, row: _Row) -> None:
        try:
            with self._writing, table.transaction() as connection:
                cache_rows.delete_row(connection, row_key, row.filename)
            table.remove_files([row.filename])
        except sqlite3.Error as error:
            self._after(error, table)

    # --- writing

    def put(self, key: str, index: int, data: bytes | memoryview) -> None:
        """Keep one block. Raises `ValueError` for a length that no block has, else nothing."""
        check_block(data, self._block_bytes)
        self._put_blocks([(row_key_of(key, index), data)])

    def put_object(self, key: str, data: Bytes) -> None:
        """Keep all blocks of an object, a few in a transaction."""
        self.put_run(key, 0, data)

    def put_run(self, key: str, first: int, data: Bytes) -> None:
        """Keep neighbouring blocks, a few in a transaction."""
        batch: list[tuple[str, bytes | memoryview]] = []
        for index, block in blocks_of(data, self._block_bytes):
            batch.append((row_key_of(key, first + index), block))
            if len(batch) == self._batch:
                self._put_blocks(batch)
                batch = []
        if batch:
            self._put_blocks(batch)

    def _put_blocks(self, blocks: Sequence[tuple[str, bytes | memoryview]]) -> None:
        table = self._current_table()
        if table is None:
            self._count("refused", len(blocks))
            return
        stored: list[cache_rows.Stored] = []
        replaced: list[object] = []
        evicted: list[object] = []
        try:
            for row_key, data in blocks:
                checksum = checksum_of(row_key, data)
                row = table.find(row_key)
                if row is not None and row.checksum == checksum:
                    self._note(row_key)
                else:
                    stored.append(table.store(row_key, checksum, data))
            if stored:
                with self._writing, table.transaction() as connection:
                    replaced, evicted = cache_rows.replace(
                        connection, stored, self._limit, self._take_note
                    )
        except (sqlite3.Error, OSError) as error:
            table.remove_files([block.filename for block in stored])
            self._count("refused", len(blocks))
            self._after(error, table)
        else:
            table.remove_files(replaced)
            table.remove_files(evicted)
            self._count("evictions", len(evicted))

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

    def _current_table(self, *, retry: bool = False) -> _Table | None:
        """Return the table, opened again if its file has gone; `retry`: if there is none, too."""
        table = self._table
        if (table is None and not retry) or (table is not None and not table.is_gone()):
            return table
        with self._writing:
            if self._table is table and not self._is_closed:
                self._rebuild(table)
            return self._table

    def _after(self, error: sqlite3.Error | OSError, table: _Table) -> None:
        """Make the database anew if `error` says that it is unusable; other errors pass."""
        if _is_broken(error):
            with self._writing:
                if self._table is table and not self._is_closed:
                    self._rebuild(table)

    def _rebuild(self, table: _Table | None) -> None:
        if table is not None:
            self._count("rebuilds")
            if not table.is_gone():  # Else another process has begun a new one already.
                self._set_aside()
        self._open_table()

    def _open_table(self) -> None:
        """Open the database, a new one if the present one is damaged; `_table` is None if not."""
        self._table = None
        for _ in range(2):
            try:
                self._blocks.mkdir(mode=0o700, parents=True, exist_ok=True)
                table = _Table(self._blocks, writes_at_once=self._writes_at_once)
                table.sweep()
                self._fit(table)
            except (sqlite3.Error, OSError) as error:
                if not _is_broken(error):
                    return
                self._count("rebuilds")
                self._set_aside()
            else:
                self._table = table
                return

    def _fit(self, table: _Table) -> None:
        """Evict what a limit lower than last time does not allow."""
        with table.transaction() as connection:
            evicted = cache_rows.evict(connection, self._limit, self._take_note)
        table.remove_files(evicted)
        self._count("evictions", len(evicted))

    @property
    def _blocks(self) -> Path:
        return self._directory / "blocks-1"

    def _set_aside(self) -> None:
        """Rename everything away at once: database, log and files never mix with the next."""
        try:
            self._blocks.rename(Path(tempfile.mkdtemp(prefix="gone-", dir=self._directory), "b"))
        except OSError:
            shutil.rmtree(self._blocks, ignore_errors=True)

    def _remove_set_aside(self) -> None:
        for old in self._directory.glob("gone-*"):
            shutil.rmtree(old, ignore_errors=True)


def _is_broken(error: sqlite3.Error | OSError) -> bool:
    """Return whether only a new database helps: not for busy, full, or a failing disk."""
    if isinstance(error, OSError | sqlite3.ProgrammingError):
        return False
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return code is None or code == sqlite3.SQLITE_IOERR_SHORT_READ or code & 0xFF in _BROKEN
