"""The file system: every call is validated here and becomes one operation, or an errno.

The order of a changing call: wait for room, then check, append, apply with no schedule point in
between. Permission bits are checked by the kernel (`default_permissions`), as is that a
directory is not moved below itself. Times in operations are the wall clock's.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

import trio

from s3fs_banyan.commit.state import EngineState
from s3fs_banyan.data.reader import ChunkGone, Reader
from s3fs_banyan.errors import (
    AttributeTooBig,
    DataError,
    Denied,
    Exists,
    FileTooBig,
    InputOutput,
    InvalidArgument,
    IsADirectory,
    NameTooLong,
    NoAttribute,
    NoSpace,
    NotADirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
    NotSupported,
    ReadOnly,
    StaleHandle,
    StoreError,
    TooManyLinks,
)
from s3fs_banyan.format.checksum import Bytes
from s3fs_banyan.meta.extents import Extents
from s3fs_banyan.meta.tree import Tree
from s3fs_banyan.model import (
    FILE_BYTES_MAX,
    LINKS_MAX,
    NAME_BYTES_MAX,
    REAP_ROWS_MAX,
    ROOT_INO,
    SYMLINK_BYTES_MAX,
    TIME_NS_MAX,
    XATTR_VALUE_BYTES_MAX,
    Attributes,
    Dentry,
    Extent,
    Link,
    Make,
    Reap,
    RemoveXattr,
    Rename,
    Rmdir,
    SetAttributes,
    SetXattr,
    Unlink,
    Write,
)
from s3fs_banyan.vfs.handles import Handles

log = logging.getLogger(__name__)

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
XATTR_CREATE: Final = 1
XATTR_REPLACE: Final = 2
BLOCK_BYTES: Final = 4096
_WRITE_BYTES_MAX: Final = 1 << 20
_SET_ID: Final = stat.S_ISUID | stat.S_ISGID
_NAMESPACES: Final = (b"user.", b"trusted.", b"security.")


class Caller(NamedTuple):
    """Who asks: thread id (0 for the kernel itself), user, group, umask."""

    tid: int
    uid: int
    gid: int
    umask: int = 0


class Usage(NamedTuple):
    """What statfs reports, in bytes and inodes."""

    capacity: int
    used: int
    inodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What a setattr asks for; None leaves a field alone."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


class FileSystem:
    """Calls on inode numbers. One event loop; `async` where a call may wait."""

    def __init__(
        self,
        *,
        tree: Tree,
        extents: Extents,
        reader: Reader,
        state: EngineState | None,
        capacity_bytes: int,
    ) -> None:
        """`state` is None for a read-only mount: every change is EROFS."""
        self._tree = tree
        self._extents = extents
        self._reader = reader
        self._state = state
        self._capacity = capacity_bytes
        self.handles = Handles()

    # --- looking -------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> Attributes:
        """Return the inode behind a name, and count it as held by the kernel."""
        if len(name) > NAME_BYTES_MAX:
            raise NameTooLong(_shown(name))
        if name == b".":  # a handle (open_by_handle_at, NFS) of whatever kind of inode
            if not (self.getattr(parent).nlink or self.handles.is_held(parent)):
                raise NotFound(f"inode {parent} is about to be reaped")
            return self._held(parent)
        self._directory(parent)
        if name == b"..":
            above = ROOT_INO if parent == ROOT_INO else self._tree.parent_of_directory(parent)
            if above is None:
                raise NotFound(_shown(name))
            return self._held(above)
        ino = self._tree.lookup(parent, name)
        if ino is None:
            raise NotFound(_shown(name))
        return self._held(ino)

    def _held(self, ino: int) -> Attributes:
        attributes = self.getattr(ino)
        self.handles.looked_up(ino)
        return attributes

    def getattr(self, ino: int) -> Attributes:
        """Return an inode's attributes."""
        attributes = self._tree.attributes(ino)
        if attributes is None:
            raise StaleHandle(f"inode {ino}")
        return attributes

    def readlink(self, ino: int) -> bytes:
        """Return the target of a symbolic link."""
        target = self._tree.symlink(ino)
        if target is None:
            raise InvalidArgument(f"inode {ino} is no symbolic link")
        return target

    def readdir(self, ino: int, after_cookie: int) -> Iterator[tuple[Dentry, Attributes]]:
        """Give names and inodes behind a cookie, in a stable order; newer names may show."""
        while entries := self._tree.entries(ino, after_cookie, 128):
            for entry in entries:
                yield entry, self.getattr(entry.ino)
                after_cookie = entry.cookie

    def statfs(self) -> Usage:
        """Return capacity and use from memory: live logical bytes, not the backlog."""
        return Usage(self._capacity, self._extents.used_bytes, self._tree.inode_count)

    def getxattr(self, ino: int, name: bytes) -> bytes:
        """Return an extended attribute."""
        value = self._tree.xattr(ino, name)
        if value is None:
            raise NoAttribute(_shown(name))
        return value

    def listxattr(self, ino: int, caller: Caller) -> list[bytes]:
        """Return the names of the extended attributes; those of administrators only to them."""
        names = self._tree.xattr_names(ino)
        return names if caller.uid == 0 else [n for n in names if not n.startswith(b"trusted.")]

    def forget(self, ino: int, count: int) -> None:
        """The kernel dropped references; an orphan without any goes."""
        if self.handles.forget(ino, count):
            self._bury_if_orphan(ino)

    def _bury_if_orphan(self, ino: int) -> None:
        attributes = self._tree.attributes(ino)
        if attributes is not None and attributes.nlink == 0 and self._state is not None:
            self.handles.bury(ino)

    # --- files ---------------------------------------------------------------------------

    async def open(self, ino: int, flags: int, caller: Caller) -> None:
        """Open a file; O_TRUNC is carried out here, since the kernel sends it so."""
        attributes = self.getattr(ino)
        if stat.S_ISDIR(attributes.mode):
            raise IsADirectory(f"inode {ino}")
        if flags & os.O_TRUNC:
            await self.setattr(ino, Changes(size=0), caller)
        elif flags & os.O_ACCMODE != os.O_RDONLY:
            self._writable()
        self.handles.opened(ino)

    def release(self, ino: int) -> None:
        """Close a handle; never waits, never fails."""
        if self.handles.released(ino):
            self._bury_if_orphan(ino)

    async def read(self, ino: int, offset: int, length: int) -> Bytes:
        """Return file bytes, fewer only at the end; waits while the store is away.

        Raises `InputOutput` for proven damage.
        """
        try:
            while True:
                end = min(offset + length, self.getattr(ino).size)
                if offset >= end:
                    return b""
                extents = self._extents.overlapping(ino, offset, end)
                young = self._reader.read_young(extents, offset, end)
                if young is not None:
                    return young
                with suppress(ChunkGone):  # overwritten or cut off while it was read: again
                    at = partial(self._extent_at, ino)
                    return await self._reader.read(extents, offset, end, at)
        except DataError as error:
            log.error("read of inode %d at %d: %s", ino, offset, error)
            raise InputOutput(f"inode {ino} at {offset}: {error}") from error
        except Denied as error:
            raise InputOutput(f"inode {ino} at {offset}: {error}") from error
        except StoreError as error:
            log.error("read of inode %d at %d: %s", ino, offset, error)
            raise InputOutput(f"inode {ino} at {offset}: {error}") from error

    def _extent_at(self, ino: int, offset: int) -> Extent | None:
        found = self._extents.overlapping(ino, offset, offset + 1)
        return found[0] if found else None

    async def write(self, ino: int, offset: int, data: bytes, tid: int = 0) -> int:
        """Write bytes; when it returns they survive the death of the daemon, not a power cut."""
        state = self._writable()
        length = len(data)
        if length > _WRITE_BYTES_MAX:
            for start in range(0, length, _WRITE_BYTES_MAX):
                await self.write(ino, offset + start, data[start : start + _WRITE_BYTES_MAX], tid)
            return length
        if not length:
            return 0
        if not state.has_room(length):
            await state.wait_room(length)
        attributes = self.getattr(ino)
        if offset + length > FILE_BYTES_MAX:
            raise FileTooBig(f"inode {ino} to {offset + length} bytes")
        if self._extents.used_bytes + length > self._capacity:
            self._check_growth(ino, offset, offset + length)
        kill = bool(attributes.mode & _SET_ID)
        state.append(Write(ino, offset, kill, state.ctx.runtime.wall_ns(), data), tid)
        return length

    def _check_growth(self, ino: int, start: int, end: int) -> None:
        """Refuse what a full volume has no room for: bytes that replace none of the file's."""
        replaced = self._extents.covered_bytes(ino, start, end)
        if end - start - replaced > max(0, self._capacity - self._extents.used_bytes):
            raise NoSpace(f"the volume's capacity of {self._capacity} bytes is used up")

    async def fsync(self) -> None:
        """The volume-wide barrier: every call answered before is durable as the mount promises.

        A directory fsync is the same barrier. Raises `InputOutput` if it never can be: fenced.
        """
        state = self._state
        if state is None:
            return
        try:
            await state.wait_durable()
        except ReadOnly as error:
            raise InputOutput(f"fsync: {error}") from error

    # --- names ---------------------------------------------------------------------------

    async def make(
        self,
        parent: int,
        name: bytes,
        mode: int,
        caller: Caller,
        *,
        rdev: int = 0,
        target: bytes = b"",
        is_absent: bool = False,
    ) -> Attributes:
        """Make a file, directory, symbolic link or device, and count it as held.

        `is_absent`: the caller has just seen that there is room and the name is not there.
        """
        state = self._writable()
        if not state.has_room(0):
            await state.wait_room(0)
        directory = self._room_for_name(parent, name, is_absent=is_absent)
        if len(target) > SYMLINK_BYTES_MAX:
            raise NameTooLong("target of a symbolic link")
        if stat.S_ISDIR(mode) and directory.nlink >= LINKS_MAX:
            raise TooManyLinks(f"inode {parent}")
        gid = caller.gid
        if not stat.S_ISLNK(mode):
            mode &= ~caller.umask
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        ino = self._tree.counter("next_ino")
        now = state.ctx.runtime.wall_ns()
        op = Make(parent, name, ino, mode, caller.uid, gid, rdev, target, now)
        state.append(op, caller.tid)
        return self._held(ino)

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller
    ) -> Attributes:
        """Make a regular file and open it; one that is there is opened unless O_EXCL."""
        self._directory(parent)
        ino = self._tree.lookup(parent, name)
        while ino is None and not (state := self._writable()).has_room(0):
            await state.wait_room(0)
            ino = self._tree.lookup(parent, name)  # another caller may have made it meanwhile
        if ino is not None:
            if flags & os.O_EXCL:
                raise Exists(_shown(name))
            await self.open(ino, flags, caller)
            return self._held(ino)
        mode = stat.S_IFREG | (mode & 0o7777)
        made = await self.make(parent, name, mode, caller, is_absent=True)
        self.handles.opened(made.ino)
        return made

    async def link(self, ino: int, parent: int, name: bytes, caller: Caller) -> Attributes:
        """Give an inode one more name."""
        state = self._writable()
        await self._wait(0)
        attributes = self.getattr(ino)
        if stat.S_ISDIR(attributes.mode):
            raise NotPermitted("a directory cannot have a second name")
        if attributes.nlink >= LINKS_MAX:
            raise TooManyLinks(f"inode {ino}")
        if attributes.nlink == 0:
            raise NotFound(f"inode {ino} has no name any more")
        self._room_for_name(parent, name)
        state.append(Link(ino, parent, name, state.ctx.runtime.wall_ns()), caller.tid)
        return self._held(ino)

    async def unlink(self, parent: int, name: bytes, caller: Caller) -> None:
        """Remove a name; the inode stays while it is held."""
        state = self._writable()
        if not state.has_room(0, frees=True):
            await state.wait_room(0, frees=True)
        ino = self._existing(parent, name)
        if stat.S_ISDIR(self._tree.inode(ino).mode):
            raise IsADirectory(_shown(name))
        state.append(Unlink(parent, name, state.ctx.runtime.wall_ns()), caller.tid)
        self._bury_if_free(ino)

    async def rmdir(self, parent: int, name: bytes, caller: Caller) -> None:
        """Remove an empty directory."""
        state = self._writable()
        await self._wait(0, frees=True)
        ino = self._existing(parent, name)
        if not stat.S_ISDIR(self._tree.inode(ino).mode):
            raise NotADirectory(_shown(name))
        if not self._tree.is_empty(ino):
            raise NotEmpty(_shown(name))
        state.append(Rmdir(parent, name, state.ctx.runtime.wall_ns()), caller.tid)
        self._bury_if_free(ino)

    async def rename(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int,
        caller: Caller,
    ) -> None:
        """rename(2) with RENAME_NOREPLACE and RENAME_EXCHANGE; replaces atomically."""
        state = self._writable()
        await self._wait(0, frees=True)
        if flags not in {0, RENAME_NOREPLACE, RENAME_EXCHANGE}:
            raise InvalidArgument(f"rename flags {flags}")
        exchange = flags == RENAME_EXCHANGE
        ino = self._existing(parent, name)
        self._directory(new_parent)
        if len(new_name) > NAME_BYTES_MAX:
            raise NameTooLong(_shown(new_name))
        target = self._tree.lookup(new_parent, new_name)
        if exchange and target is None:
            raise NotFound(_shown(new_name))
        if target is not None:
            if flags == RENAME_NOREPLACE:
                raise Exists(_shown(new_name))
            if target == ino:
                return
            if not exchange:
                self._check_replaceable(ino, target, new_name)
        elif self._directory(new_parent).nlink == 0:
            raise NotFound(f"directory {new_parent} was removed")
        now = state.ctx.runtime.wall_ns()
        state.append(Rename(parent, name, new_parent, new_name, exchange, now), caller.tid)
        if target is not None and not exchange:
            self._bury_if_free(target)

    def _check_replaceable(self, ino: int, target: int, new_name: bytes) -> None:
        moved_is_directory = stat.S_ISDIR(self._tree.inode(ino).mode)
        target_is_directory = stat.S_ISDIR(self._tree.inode(target).mode)
        if moved_is_directory and not target_is_directory:
            raise NotADirectory(_shown(new_name))
        if target_is_directory and not moved_is_directory:
            raise IsADirectory(_shown(new_name))
        if target_is_directory and not self._tree.is_empty(target):
            raise NotEmpty(_shown(new_name))

    # --- attributes ----------------------------------------------------------------------

    async def setattr(self, ino: int, changes: Changes, caller: Caller) -> Attributes:
        """chmod, chown, truncate, utimens; set-id bits go as the kernel would have them go."""
        state = self._writable()
        old = self.getattr(ino)
        frees = changes.size is not None and changes.size < old.size
        await self._wait(0, frees=frees)
        old = self.getattr(ino)
        now = state.ctx.runtime.wall_ns()
        size = changes.size
        atime_ns, mtime_ns = _storable(changes.atime_ns), _storable(changes.mtime_ns)
        if size is not None:
            if stat.S_ISDIR(old.mode):
                raise IsADirectory(f"inode {ino}")
            if not 0 <= size <= FILE_BYTES_MAX:
                raise FileTooBig(f"inode {ino} to {size} bytes")
            mtime_ns = now if mtime_ns is None else mtime_ns
        mode = self._mode_after(old, changes, caller)
        op = SetAttributes(ino, mode, changes.uid, changes.gid, size, atime_ns, mtime_ns, now)
        state.append(op, caller.tid)
        return self._tree.inode(ino)

    def _mode_after(self, old: Attributes, changes: Changes, caller: Caller) -> int | None:
        if changes.mode is not None or stat.S_ISDIR(old.mode):
            return changes.mode
        # A chown to (-1, -1) comes without any field, and takes the bits like any other.
        chowned = changes.uid is not None or changes.gid is not None or changes == Changes()
        truncated = changes.size is not None and caller.uid != 0
        if not (chowned or truncated) or not old.mode & _SET_ID:
            return None
        mode = old.mode & ~stat.S_ISUID
        if mode & stat.S_IXGRP:
            mode &= ~stat.S_ISGID
        return stat.S_IMODE(mode)

    async def setxattr(
        self, ino: int, name: bytes, value: bytes, flags: int, caller: Caller
    ) -> None:
        """Set an extended attribute; XATTR_CREATE and XATTR_REPLACE are honoured."""
        state = self._writable()
        await self._wait(len(value))
        self.getattr(ino)
        if not 0 < len(name) <= NAME_BYTES_MAX:
            raise AttributeTooBig(_shown(name))
        if not name.startswith(_NAMESPACES):  # access control lists: nobody would obey them
            raise NotSupported(_shown(name))
        if name in _NAMESPACES:
            raise InvalidArgument(_shown(name))
        if len(value) > XATTR_VALUE_BYTES_MAX:
            raise AttributeTooBig(f"{_shown(name)}: {len(value)} bytes")
        there = self._tree.xattr(ino, name) is not None
        if flags & XATTR_CREATE and there:
            raise Exists(_shown(name))
        if flags & XATTR_REPLACE and not there:
            raise NoAttribute(_shown(name))
        state.append(SetXattr(ino, name, value, state.ctx.runtime.wall_ns()), caller.tid)

    async def removexattr(self, ino: int, name: bytes, caller: Caller) -> None:
        """Remove an extended attribute."""
        state = self._writable()
        await self._wait(0, frees=True)
        if self._tree.xattr(ino, name) is None:
            raise NoAttribute(_shown(name))
        state.append(RemoveXattr(ino, name, state.ctx.runtime.wall_ns()), caller.tid)

    def let_barriers_gather(self, has_company: Callable[[], bool]) -> None:
        """Tell the journal how to see that more requests wait, so that they share a sync."""
        if self._state is not None:
            self._state.journal.has_company = has_company

    # --- orphans -------------------------------------------------------------------------

    def bury_orphans(self) -> int:
        """At a fresh mount nobody holds anything: hand every orphan to the reaper."""
        count = 0
        for ino in self._tree.orphans():
            if not self.handles.is_held(ino):
                self.handles.bury(ino)
                count += 1
        return count

    async def run_reaper(self) -> None:
        """Remove orphans that nobody holds, a bounded number of rows at a time."""
        state = self._state
        if state is None:
            return
        while True:
            await self.handles.dead_wanted.wait()
            self.handles.dead_wanted = trio.Event()
            while (ino := self.handles.next_dead_nowait()) is not None:
                await self._reap(state, ino)
                await trio.lowlevel.checkpoint()

    async def _reap(self, state: EngineState, ino: int) -> None:
        while True:
            if not state.has_room(0, frees=True):
                try:
                    await state.wait_room(0, frees=True)
                except (ReadOnly, NoSpace):
                    return  # the orphan stays; the next mount reaps it
            attributes = self._tree.attributes(ino)
            if attributes is None or attributes.nlink > 0 or self.handles.is_held(ino):
                return
            state.append(Reap(ino, REAP_ROWS_MAX))
            if self._tree.attributes(ino) is None:
                return
            await trio.lowlevel.checkpoint()

    def _bury_if_free(self, ino: int) -> None:
        if not self.handles.is_held(ino):
            self._bury_if_orphan(ino)

    # --- checks --------------------------------------------------------------------------

    def _writable(self) -> EngineState:
        if self._state is None:
            raise ReadOnly("this mount is read-only")
        self._state.check_writable()
        return self._state

    async def _wait(self, byte_count: int, *, frees: bool = False) -> None:
        state = self._writable()
        if not state.has_room(byte_count, frees=frees):
            await state.wait_room(byte_count, frees=frees)

    def _directory(self, ino: int) -> Attributes:
        attributes = self.getattr(ino)
        if not stat.S_ISDIR(attributes.mode):
            raise NotADirectory(f"inode {ino}")
        return attributes

    def _existing(self, parent: int, name: bytes) -> int:
        self._directory(parent)
        ino = self._tree.lookup(parent, name)
        if ino is None:
            raise NotFound(_shown(name))
        return ino

    def _room_for_name(self, parent: int, name: bytes, *, is_absent: bool = False) -> Attributes:
        """Check that a name can be made in a directory; returns the directory."""
        directory = self._directory(parent)
        if directory.nlink == 0:
            raise NotFound(f"directory {parent} was removed")
        if not 0 < len(name) <= NAME_BYTES_MAX:
            raise NameTooLong(_shown(name))
        if name in {b".", b".."} or b"/" in name or b"\0" in name:
            raise InvalidArgument(_shown(name))
        if not is_absent and self._tree.lookup(parent, name) is not None:
            raise Exists(_shown(name))
        return directory


def _storable(time_ns: int | None) -> int | None:
    """Return the nearest time that a row can hold, as Linux does: years 1677 to 2262."""
    return None if time_ns is None else max(-TIME_NS_MAX - 1, min(time_ns, TIME_NS_MAX))


def _shown(name: bytes) -> str:
    return name[:80].decode("utf-8", "backslashreplace")
