"""The block cache's table and files: diskcache's database, with raw files as its only values.

diskcache unpickles whatever its database says (CVE-2025-69872): there is no way to that from here.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

import diskcache

from s3fs_banyan.data import cache_rows
from s3fs_banyan.data.blocks import BLOCK_BYTES_MAX, charge_of
from s3fs_banyan.errors import Corrupt
from s3fs_banyan.gentle_io import LARGE_BYTES, Writeback, write_all, write_past_cache

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from s3fs_banyan.data.strips import Entry

_BUSY_TIMEOUT_S: Final = 2.0
_FILENAME: Final = re.compile(r"[0-9a-f]{2}/[0-9a-f]{30}\.val")


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
            if len(value) < LARGE_BYTES:
                write_all(descriptor, value)
            else:
                write_past_cache(descriptor, value, gently=self.writes_at_once)
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
        if read:
            _refuse(read)
        return self.fetch_part(_plain_name(mode, filename, value), 0, BLOCK_BYTES_MAX)

    def fetch_part(self, filename: str, offset: int, length: int) -> bytes:
        """Return bytes of a value's file, fewer if it is shorter. Raises `OSError`."""
        descriptor = os.open(f"{self._directory}/{filename}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            left = max(0, os.fstat(descriptor).st_size - offset)
            return os.pread(descriptor, min(left, length), offset)
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


def _plain_name(mode: object, filename: object, value: object) -> str:
    """Return the file of a row. Raises `Corrupt` for a row that `store` does not make."""
    plain = mode == cache_rows.MODE_FILE and value is None
    if not plain or type(filename) is not str or not _FILENAME.fullmatch(filename):
        raise Corrupt("block cache row", repr(filename), "its value is not a plain file")
    return filename


def _create(path: str) -> int:
    """Create a file for writing, and its directory if that is missing."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, flags, 0o600)


class Row(NamedTuple):
    """A row as the database has it; nothing of it is trusted but that its key was asked for."""

    row_key: str
    sums: object
    mode: object
    filename: object
    value: object


class CacheTable(diskcache.Cache):  # type: ignore[misc]
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

    def find(self, *row_keys: str) -> dict[str, Row]:
        among = ", ".join("?" * len(row_keys))
        rows = self._sql(
            "SELECT key, tag, mode, filename, value FROM Cache"  # noqa: S608  # question marks
            f" WHERE raw = 1 AND key IN ({among})",  # question marks only
            row_keys,
        ).fetchall()
        return {row[0]: Row._make(row) for row in rows}

    def read(self, row: Row, offset: int, length: int) -> bytes:
        name = _plain_name(row.mode, row.filename, row.value)
        data: bytes = self._disk.fetch_part(name, offset, length)
        return data

    def store(self, entry: Entry) -> cache_rows.Stored:
        charge, _, filename, _ = self._disk.store(entry.data, False, key=entry.row_key)
        replaces = {entry.row_key, *entry.block_keys}
        return cache_rows.Stored(entry.row_key, entry.sums, charge, filename, tuple(replaces))

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
