"""The narrow seam to the local disk. The simulation has a twin that loses unsynced sectors.

Only the journal and the two databases need promises about power cuts; everything else on the
local disk can be made again. Errors are `OSError`, as the kernel gives them.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from s3fs_banyan.errors import ExitCode, Refused
from s3fs_banyan.format.checksum import Bytes
from s3fs_banyan.gentle_io import free_gently, write_zeros
from s3fs_banyan.journal.kernel_sync import KernelSync
from s3fs_banyan.runtime import Runtime

log = logging.getLogger(__name__)

_DIRECTORY_MODE = 0o700
_FILE_MODE = 0o600


class DiskFile(Protocol):
    """An open file of fixed purpose; positions and lengths in bytes."""

    def pwritev(self, buffers: Sequence[Bytes], position: int) -> None:
        """Write all bytes; not durable before `datasync`."""
        ...

    def pread(self, length: int, position: int) -> bytes:
        """Return up to `length` bytes; fewer only at the end of the file."""
        ...

    def datasync(self) -> None:
        """Make every byte written before durable. After an error nothing is known."""
        ...

    def fill(self, begin: int, end: int) -> None:
        """Write zeros there, past the page cache if it can be; not durable before `datasync`."""
        ...

    def allocate(self, length: int) -> None:
        """Make the file `length` bytes long, with room for all of them; new ones read as zeros.

        Fast, but each of these bytes costs its first sync more than one that was written before
        (posix_fallocate(3)). Not durable before `datasync`.
        """
        ...

    def size(self) -> int: ...

    def free(self) -> None:
        """Close a file that has no name any more; its blocks go back to the disk bit by bit."""
        ...

    def close(self) -> None: ...


class Disk(Protocol):
    """What the engine asks of a local directory."""

    @property
    def sqlite_vfs(self) -> str | None:
        """Name of the SQLite VFS for databases that must survive a power cut."""
        ...

    def open(self, path: Path, *, create: bool = False) -> DiskFile: ...

    def names(self, directory: Path) -> list[str]:
        """Names in a directory, sorted; empty if it is not there."""
        ...

    def make_directory(self, path: Path) -> None:
        """Make it with its parents, mode 0700, named durably; no error if it is there."""
        ...

    async def datasync(self, files: Sequence[DiskFile], runtime: Runtime) -> None:
        """Do `datasync` of several files without holding the event loop. Not safe to cancel.

        The files stay open until it returns.
        """
        ...

    def sync_directory(self, path: Path) -> None: ...

    def exists(self, path: Path) -> bool: ...

    def rename(self, old: Path, new: Path) -> None: ...

    def unlink(self, path: Path) -> None:
        """Remove a file; no error if it is not there."""
        ...

    def free_bytes(self, directory: Path) -> int: ...


def datasync_all(files: Sequence[DiskFile]) -> None:
    """Sync one after the other; blocks."""
    for file in files:
        file.datasync()


class RealFile:
    """A file of the kernel's."""

    __slots__ = ("_fd", "fileno")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.fileno = fd

    def pwritev(self, buffers: Sequence[Bytes], position: int) -> None:
        wanted = sum(map(len, buffers))
        written = os.pwritev(self._fd, buffers, position)
        if written != wanted:
            rest = b"".join(buffers)
            while written < wanted:
                written += os.pwrite(self._fd, memoryview(rest)[written:], position + written)

    def pread(self, length: int, position: int) -> bytes:
        data = os.pread(self._fd, length, position)
        if len(data) == length or not data:
            return data
        parts = [data]
        got = len(data)
        while got < length:
            more = os.pread(self._fd, length - got, position + got)
            if not more:
                break
            parts.append(more)
            got += len(more)
        return b"".join(parts)

    def datasync(self) -> None:
        os.fdatasync(self._fd)

    def fill(self, begin: int, end: int) -> None:
        write_zeros(self._fd, begin, end)

    def allocate(self, length: int) -> None:
        os.posix_fallocate(self._fd, 0, length)

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def free(self) -> None:
        try:
            free_gently(self._fd)
        finally:
            os.close(self._fd)

    def close(self) -> None:
        os.close(self._fd)


class RealDisk:
    """The kernel's file systems."""

    sqlite_vfs: str | None = None

    def __init__(self) -> None:
        self._kernel_sync: KernelSync | None = None
        self._asked_kernel = False

    def open(self, path: Path, *, create: bool = False) -> DiskFile:
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        return RealFile(os.open(path, flags, _FILE_MODE))

    def names(self, directory: Path) -> list[str]:
        try:
            return sorted(os.listdir(directory))  # noqa: PTH208  # names are wanted, not paths
        except FileNotFoundError:
            return []

    def make_directory(self, path: Path) -> None:
        made = [directory for directory in (path, *path.parents) if not directory.exists()]
        path.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        for directory in made:
            self.sync_directory(directory.parent)

    async def datasync(self, files: Sequence[DiskFile], runtime: Runtime) -> None:
        if not self._asked_kernel:
            self._asked_kernel = True
            try:
                self._kernel_sync = KernelSync()
            except OSError as error:
                log.info(
                    "syncs go through a thread, the kernel has no asynchronous ones: %s", error
                )
        descriptors = [file.fileno for file in files if isinstance(file, RealFile)]
        if self._kernel_sync is not None and len(descriptors) == len(files):
            with contextlib.suppress(BlockingIOError):
                await self._kernel_sync.datasync(descriptors)
                return
        await runtime.in_thread(datasync_all, files, pool="fsync")

    def sync_directory(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def exists(self, path: Path) -> bool:
        return path.exists()

    def rename(self, old: Path, new: Path) -> None:
        old.rename(new)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def free_bytes(self, directory: Path) -> int:
        info = os.statvfs(directory)
        return info.f_bavail * info.f_frsize


class DirectoryLock:
    """One daemon per local directory: flock(2) on `lock`, dropped by the kernel at its death."""

    def __init__(self, path: Path) -> None:
        """Take the lock; raises `Refused` if another process has it."""
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 100, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            raise Refused(
                f"{path.parent} is in use by another mount (process {holder or 'unknown'}): "
                "give this one another --cache-dir, or unmount the other first",
                exit_code=ExitCode.LOCAL,
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give the directory back."""
        os.close(self._fd)
