"""SQLite on the simulated disk: a VFS whose files lose unsynced sectors, for committed.db.

Databases here use a rollback journal (there is no shared memory). Locks are not needed: in a
simulated world everything runs in one thread, and no transaction spans a schedule point.
"""

from __future__ import annotations

import itertools
from typing import Any

import apsw

from tests.sim.disk import SECTOR, SimDisk, SimInode

_numbers = itertools.count(1)


class SimVFS(apsw.VFS):
    """A VFS over one disk. The object must be kept alive as long as its name is used."""

    def __init__(self, disk: SimDisk) -> None:
        self.vfs_name = f"simulated-{next(_numbers)}"
        self._disk = disk
        super().__init__(self.vfs_name, "")

    def xFullPathname(self, name: str) -> str:  # noqa: N802  # SQLite's names
        return name

    def xOpen(self, name: Any, flags: list[int]) -> Any:  # noqa: ANN401, N802  # apsw's own types
        if name is None:
            return _VFSFile(self._disk, "", SimInode())
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        if self._is_real(path):
            return super().xOpen(name, flags)
        key = self._disk.key(path)
        inode = self._disk.names_now.get(key)
        if inode is None:
            if not flags[0] & apsw.SQLITE_OPEN_CREATE:
                raise apsw.CantOpenError(f"no file {key}")
            inode = self._disk.create(key)
        flags[1] = flags[0]
        return _VFSFile(self._disk, key, inode)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        # Removing the rollback journal is the commit. SQLite syncs the directory only with
        # synchronous=EXTRA; the engine's real databases use a WAL, where a commit is durable.
        if self._is_real(filename):
            super().xDelete(filename, syncdir)
            return
        key = self._disk.key(filename)
        self._disk.remove(key)
        self._disk.sync_names(key.rpartition("/")[0])

    def xAccess(self, pathname: str, flags: int) -> bool:  # noqa: N802
        if self._is_real(pathname):
            return super().xAccess(pathname, flags)
        return self._disk.key(pathname) in self._disk.names_now

    def _is_real(self, path: str) -> bool:
        """Deltas and placements are attached from the outbox, which is a real directory."""
        return self._disk.key(path).startswith("outbox/")


class _VFSFile:
    def __init__(self, disk: SimDisk, key: str, inode: SimInode) -> None:
        self._disk = disk
        self._key = key
        self._inode = inode

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        return bytes(self._inode.data[offset : offset + amount])

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        self._inode.write(data, offset)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        self._inode.truncate(newsize)

    def xSync(self, flags: int) -> None:  # noqa: N802
        del flags
        self._inode.sync()
        if self._key:
            self._disk.sync_names(self._key.rpartition("/")[0])
            # The name of a super-journal is random, and so no part of a replay.
            self._disk.on_event(f"sqlite-sync {self._key.partition('-mj')[0]}")

    def xFileSize(self) -> int:  # noqa: N802
        return len(self._inode.data)

    def xClose(self) -> None:  # noqa: N802
        pass

    def xLock(self, level: int) -> None:  # noqa: N802
        pass

    def xUnlock(self, level: int) -> None:  # noqa: N802
        pass

    def xCheckReservedLock(self) -> bool:  # noqa: N802
        return False

    def xFileControl(self, op: int, ptr: int) -> bool:  # noqa: N802
        del op, ptr
        return False

    def xSectorSize(self) -> int:  # noqa: N802
        return SECTOR

    def xDeviceCharacteristics(self) -> int:  # noqa: N802
        return apsw.SQLITE_IOCAP_POWERSAFE_OVERWRITE
