"""A local disk in RAM that forgets what was not synced, behind the engine's `Disk` seam.

Files are arrays of 512-byte sectors. At a power cut each sector written since the last sync of
its file is kept, lost or, rarely, garbage, independently of its neighbours; of the names that
were made, moved or removed without a sync of their directory, a random prefix stays. After a
failed sync the dropped sectors count as clean and are lost at a power cut all the same.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from s3fs_banyan.format.checksum import Bytes
from s3fs_banyan.journal.disk import DiskFile, datasync_all
from s3fs_banyan.runtime import Runtime

SECTOR = 512
_GARBAGE_CHANCE = 0.02


class SimInode:
    """What a file is: bytes as written, bytes as they are on the platter."""

    __slots__ = ("data", "dirty", "dropped", "durable")

    def __init__(self) -> None:
        self.data = bytearray()
        self.durable = bytearray()
        self.dirty: set[int] = set()
        self.dropped: set[int] = set()

    def write(self, data: Bytes, position: int) -> None:
        end = position + len(data)
        if len(self.data) < end:
            self.data.extend(bytes(end - len(self.data)))
        self.data[position:end] = data
        touched = range(position // SECTOR, -(-end // SECTOR))
        self.dirty.update(touched)
        self.dropped.difference_update(touched)

    def truncate(self, size: int) -> None:
        del self.data[size:]
        self.data.extend(bytes(size - len(self.data)))
        self.dirty = {sector for sector in self.dirty if sector * SECTOR < size}
        self.dropped = {sector for sector in self.dropped if sector * SECTOR < size}

    def sync(self) -> None:
        self._resize()
        for sector in self.dirty:
            at = sector * SECTOR
            self.durable[at : at + SECTOR] = self.data[at : at + SECTOR]
        self.dirty.clear()

    def _resize(self) -> None:
        del self.durable[len(self.data) :]
        self.durable.extend(bytes(len(self.data) - len(self.durable)))

    def fail_sync(self) -> None:
        self.dropped |= self.dirty
        self.dirty.clear()

    def power_cut(self, rng: Random) -> None:
        mood = rng.random()  # mostly lost, mostly kept, or a mixture
        self._resize()
        for sector in sorted(self.dirty | self.dropped):
            at = sector * SECTOR
            length = len(self.data[at : at + SECTOR])
            if rng.random() < _GARBAGE_CHANCE:
                self._scribble(at, length, rng)
            elif sector not in self.dropped and rng.random() < mood:
                self.durable[at : at + length] = self.data[at : at + length]
        self.data = bytearray(self.durable)
        self.dirty.clear()
        self.dropped.clear()

    def _scribble(self, at: int, length: int, rng: Random) -> None:
        """Garbage, where new bytes were to go: what was synced beside them is not touched."""
        for position in range(at, at + length):
            if self.data[position] != self.durable[position]:
                self.durable[position] = rng.randrange(256)

    def clone(self) -> SimInode:
        other = SimInode()
        other.data, other.durable = bytearray(self.data), bytearray(self.durable)
        other.dirty, other.dropped = set(self.dirty), set(self.dropped)
        return other


class _NameChange(NamedTuple):
    removed: str
    added: str
    inode: SimInode


class SimDisk:
    """One machine's disk; paths are relative to `root`, so that it can be cloned elsewhere."""

    def __init__(self, root: Path, *, on_event: Callable[[str], None]) -> None:
        self.root = root
        self.on_event = on_event
        self.names_now: dict[str, SimInode] = {}
        self._names_durable: dict[str, SimInode] = {}
        self._changes: list[_NameChange] = []
        self.free = 1 << 40

    def key(self, path: Path | str) -> str:
        text, root = str(path), str(self.root)
        assert text.startswith(root), f"{text} is not on this disk"
        return text[len(root) :].lstrip("/")

    # --- names ---------------------------------------------------------------------------

    def create(self, key: str) -> SimInode:
        inode = SimInode()
        self._change("", key, inode)
        return inode

    def remove(self, key: str) -> None:
        if key in self.names_now:
            self._change(key, "", self.names_now[key])

    def move(self, old: str, new: str) -> None:
        self._change(old, new, self.names_now[old])

    def _change(self, removed: str, added: str, inode: SimInode) -> None:
        change = _NameChange(removed, added, inode)
        self._changes.append(change)
        _carry_out(self.names_now, change)

    def sync_names(self, directory: str) -> None:
        """Make all changes of names in a directory durable."""
        left = []
        for change in self._changes:
            names = [name for name in (change.removed, change.added) if name]
            if any(name.rpartition("/")[0] == directory for name in names):
                _carry_out(self._names_durable, change)
            else:
                left.append(change)
        self._changes = left

    # --- disasters -----------------------------------------------------------------------

    def power_cut(self, rng: Random) -> None:
        """The power goes: what was not synced is a matter of luck."""
        for change in self._changes[: rng.randint(0, len(self._changes))]:
            _carry_out(self._names_durable, change)
        self._changes = []
        self.names_now = dict(self._names_durable)
        for _, inode in sorted(self.names_now.items(), key=lambda item: item[0]):
            inode.power_cut(rng)

    def retry_dropped(self) -> None:
        """Let what a failed sync dropped be dirty again."""
        for inode in self.names_now.values():
            inode.dirty |= inode.dropped
            inode.dropped.clear()

    def clone(self, root: Path) -> SimDisk:
        """Return a copy of the disk as it is, for another machine."""
        other = SimDisk(root, on_event=self.on_event)
        other.names_now = {key: inode.clone() for key, inode in self.names_now.items()}
        other._names_durable = dict(other.names_now)
        return other


def _carry_out(names: dict[str, SimInode], change: _NameChange) -> None:
    if change.removed and names.get(change.removed) is change.inode:
        del names[change.removed]
    if change.added:
        names[change.added] = change.inode


class SimDiskHandle:
    """The `Disk` that one life of a daemon sees: it refuses everything once that life is over."""

    def __init__(
        self,
        disk: SimDisk,
        *,
        vfs: str,
        alive: Callable[[], None],
        sync_fails: Callable[[], bool],
        sync_takes: Callable[[], None],
    ) -> None:
        self._disk = disk
        self._vfs = vfs
        self.alive = alive
        self.sync_fails = sync_fails
        self.sync_takes = sync_takes

    @property
    def sqlite_vfs(self) -> str | None:
        return self._vfs

    def open(self, path: Path, *, create: bool = False) -> DiskFile:
        self.alive()
        key = self._disk.key(path)
        inode = self._disk.names_now.get(key)
        if inode is None:
            if not create:
                raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
            inode = self._disk.create(key)
        return _SimFile(self, self._disk, key, inode)

    def names(self, directory: Path) -> list[str]:
        prefix = self._disk.key(directory) + "/"
        keys = [key for key in self._disk.names_now if key.startswith(prefix)]
        return sorted(key.removeprefix(prefix) for key in keys if "/" not in key[len(prefix) :])

    def make_directory(self, path: Path) -> None:
        self._disk.key(path)

    async def datasync(self, files: Sequence[DiskFile], runtime: Runtime) -> None:
        await runtime.in_thread(datasync_all, files, pool="fsync")

    def sync_directory(self, path: Path) -> None:
        self.alive()
        self._disk.sync_names(self._disk.key(path))
        self._disk.on_event(f"sync-dir {self._disk.key(path)}")

    def exists(self, path: Path) -> bool:
        return self._disk.key(path) in self._disk.names_now

    def rename(self, old: Path, new: Path) -> None:
        self.alive()
        # What is moved aside carries the wall clock in its name and is read by people only.
        self._disk.move(self._disk.key(old), self._disk.key(new))

    def unlink(self, path: Path) -> None:
        self.alive()
        self._disk.remove(self._disk.key(path))

    def free_bytes(self, directory: Path) -> int:
        self._disk.key(directory)
        return self._disk.free


class _SimFile:
    def __init__(self, owner: SimDiskHandle, disk: SimDisk, key: str, inode: SimInode) -> None:
        self._owner = owner
        self._disk = disk
        self._key = key
        self._inode = inode

    def pwritev(self, buffers: Sequence[Bytes], position: int) -> None:
        self._owner.alive()
        for buffer in buffers:
            self._inode.write(buffer, position)
            position += len(buffer)

    def pread(self, length: int, position: int) -> bytes:
        return bytes(self._inode.data[position : position + length])

    def datasync(self) -> None:
        self._owner.alive()
        self._owner.sync_takes()
        if self._owner.sync_fails():
            self._disk.on_event(f"sync-failed {self._key}")
            self._inode.fail_sync()
            raise OSError(errno.EIO, "injected: the disk refuses", self._key)
        self._disk.on_event(f"sync {self._key} {len(self._inode.dirty)}")
        self._inode.sync()

    def fill(self, begin: int, end: int) -> None:
        self.pwritev((bytes(end - begin),), begin)

    def allocate(self, length: int) -> None:
        self._owner.alive()
        at = len(self._inode.data)
        self._inode.write(bytes(max(0, length - at)), at)

    def size(self) -> int:
        return len(self._inode.data)

    def free(self) -> None:
        """Its room came back when its name went."""

    def close(self) -> None:
        """Nothing to release; closing syncs nothing."""
