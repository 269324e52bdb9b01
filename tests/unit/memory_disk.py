"""A disk in RAM for the journal: what was synced, what was only written, and syncs that fail."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from s3fs_banyan.format.checksum import Bytes
from s3fs_banyan.journal.disk import DiskFile, datasync_all
from s3fs_banyan.runtime import Runtime


class MemoryFile:
    """A file's bytes as written, and as a power cut would leave them."""

    def __init__(self, disk: MemoryDisk) -> None:
        self._disk = disk
        self.data = bytearray()
        self.durable = b""
        self.syncs = 0
        self.allocations = 0
        self.failures_left = 0
        self.is_freed = False

    def pwritev(self, buffers: Sequence[Bytes], position: int) -> None:
        data = b"".join(bytes(buffer) for buffer in buffers)
        if len(self.data) < position + len(data):
            self.data.extend(bytes(position + len(data) - len(self.data)))
        self.data[position : position + len(data)] = data

    def pread(self, length: int, position: int) -> bytes:
        return bytes(self.data[position : position + length])

    def datasync(self) -> None:
        self.syncs += 1
        self._disk.syncs += 1
        if self.failures_left:
            self.failures_left -= 1
            raise OSError("injected: the device does not answer")
        self.durable = bytes(self.data)

    def fill(self, begin: int, end: int) -> None:
        self.pwritev((bytes(end - begin),), begin)

    def allocate(self, length: int) -> None:
        self.allocations += 1
        self.data.extend(bytes(max(0, length - len(self.data))))

    def size(self) -> int:
        return len(self.data)

    def free(self) -> None:
        self.is_freed = True

    def close(self) -> None:
        """Keep everything: the disk owns the bytes."""


class MemoryDisk:
    """`Disk` in RAM."""

    sqlite_vfs: str | None = None

    def __init__(self, free: int = 1 << 40) -> None:
        self.files: dict[Path, MemoryFile] = {}
        self._named: set[Path] = set()
        self.free = free
        self.syncs = 0

    def open(self, path: Path, *, create: bool = False) -> DiskFile:
        if path not in self.files:
            if not create:
                raise FileNotFoundError(path)
            self.files[path] = MemoryFile(self)
        return self.files[path]

    def names(self, directory: Path) -> list[str]:
        return sorted(path.name for path in self.files if path.parent == directory)

    def make_directory(self, path: Path) -> None:
        del path

    async def datasync(self, files: Sequence[DiskFile], runtime: Runtime) -> None:
        await runtime.in_thread(datasync_all, files, pool="fsync")

    def sync_directory(self, path: Path) -> None:
        self._named |= {file for file in self.files if file.parent == path}

    def exists(self, path: Path) -> bool:
        return path in self.files

    def rename(self, old: Path, new: Path) -> None:
        self.files[new] = self.files.pop(old)

    def unlink(self, path: Path) -> None:
        self.files.pop(path, None)

    def free_bytes(self, directory: Path) -> int:
        del directory
        return self.free

    def power_cut(self) -> None:
        """Keep only what was synced, under names that were."""
        self.files = {path: file for path, file in self.files.items() if path in self._named}
        for file in self.files.values():
            file.data = bytearray(file.durable)
