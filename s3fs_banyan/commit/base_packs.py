"""Base packs: sealed chunks on the local disk, for as long as the store cannot take them.

Files `base/<number>`, in the format of a pack, written once and synced with their names. Their
places stand in base.db; what base.db does not know is removed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from s3fs_banyan.errors import ObjectMissing
from s3fs_banyan.format.checksum import Bytes
from s3fs_banyan.format.keys import BASE_PACK_PREFIX, base_pack_key
from s3fs_banyan.gentle_io import CALL_BYTES
from s3fs_banyan.journal.disk import Disk

_PIECE_BYTES: Final = 1 << 20


class BasePacks:
    """The base packs of one local directory. Blocking; safe to call from several threads."""

    def __init__(self, disk: Disk, directory: Path) -> None:
        self._disk = disk
        self._directory = directory

    def path(self, key: str) -> Path:
        """Return the file of a base pack."""
        return self._directory / key.removeprefix(BASE_PACK_PREFIX)

    def write(self, number: int, data: Bytes) -> str:
        """Write a base pack, durable on return with its name; returns its key.

        A file of that number, left by a local cut that came to nothing, is replaced. Raises
        `OSError` if the local disk refuses.
        """
        key = base_pack_key(number)
        path = self.path(key)
        self._disk.make_directory(self._directory)
        self._disk.unlink(path)
        file = self._disk.open(path, create=True)
        try:
            view = memoryview(data)
            for position in range(0, len(view), _PIECE_BYTES):
                piece = view[position : position + _PIECE_BYTES]
                for begin in range(0, len(piece), CALL_BYTES):
                    file.pwritev((piece[begin : begin + CALL_BYTES],), position + begin)
                file.datasync()
        finally:
            file.close()
        self._disk.sync_directory(self._directory)
        return key

    def read(self, key: str, offset: int, length: int) -> bytes:
        """Return bytes of a base pack, unverified; raises `ObjectMissing` if it was removed."""
        try:
            file = self._disk.open(self.path(key))
        except FileNotFoundError as error:
            raise ObjectMissing(f"base pack {key} was removed") from error
        try:
            return file.pread(length, offset)
        finally:
            file.close()

    def keep_only(self, numbers: set[int]) -> None:
        """Remove every base pack but these."""
        for name in self._disk.names(self._directory):
            if not name.isdecimal() or int(name) not in numbers:
                file = self._disk.open(self._directory / name)
                try:
                    self._disk.unlink(self._directory / name)
                except OSError:
                    file.close()
                    raise
                file.free()
