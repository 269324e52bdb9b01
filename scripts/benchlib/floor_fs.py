"""The floor: the fastest honest pyfuse3 file system, to compare ours with.

Names and attributes live in plain dicts in RAM, bytes in one local file (`floor_data`),
written through. Nothing survives the process. What it leaves out is what a file system is
about: a journal, a store, recovery. What remains is the price of the kernel, libfuse, pyfuse3
and trio, which every file system on this adapter pays.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext

from benchlib.floor_data import DataFile, Extents
from benchlib.mounts import mount_device

TIMEOUT_S = 86_400
LINKS_MAX = 65_000


class Node:
    """One inode; `attr` is what is answered, changed in place and never copied."""

    __slots__ = ("attr", "children", "extents", "nlookup", "target")

    def __init__(self, ino: int, mode: int, ctx: RequestContext | None) -> None:
        now_ns = time.time_ns()
        attr = EntryAttributes()
        attr.st_ino = ino
        attr.st_mode = mode
        attr.st_nlink = 2 if stat.S_ISDIR(mode) else 1
        attr.st_uid = os.getuid() if ctx is None else ctx.uid
        attr.st_gid = os.getgid() if ctx is None else ctx.gid
        attr.st_blksize = 4096
        attr.st_atime_ns = attr.st_mtime_ns = attr.st_ctime_ns = now_ns
        attr.entry_timeout = attr.attr_timeout = TIMEOUT_S
        self.attr = attr
        self.children: dict[bytes, Node] = {}
        self.extents = Extents()
        self.nlookup = 0
        self.target = b""

    @property
    def is_directory(self) -> bool:
        """Whether this is a directory."""
        return stat.S_ISDIR(self.attr.st_mode)

    def resize(self, size: int) -> None:
        """Set the size; bytes behind it are gone."""
        if size < self.attr.st_size:
            self.extents.truncate(size)
        self.attr.st_size = size
        self.attr.st_blocks = (size + 511) // 512

    def touch(self) -> None:
        """Set mtime and ctime to now."""
        self.attr.st_mtime_ns = self.attr.st_ctime_ns = time.time_ns()


class FloorOperations(pyfuse3.Operations):
    """The handlers; flush and extended attributes stay at ENOSYS, so the kernel stops asking."""

    supports_dot_lookup = False

    def __init__(self, data_file: DataFile) -> None:
        super().__init__()
        self._data = data_file
        self._root = Node(pyfuse3.ROOT_INODE, stat.S_IFDIR | 0o755, None)
        self._nodes: dict[int, Node] = {pyfuse3.ROOT_INODE: self._root}
        self._last_ino = int(pyfuse3.ROOT_INODE)
        self._listings: dict[int, list[tuple[bytes, Node]]] = {}
        self._last_listing = 0
        self._absent = EntryAttributes()
        self._absent.st_ino = 0
        self._absent.entry_timeout = TIMEOUT_S
        self.ready = trio.Event()

    def init(self) -> None:
        """Note that the kernel is about to get its first answer."""
        self.ready.set()

    # --- names ---------------------------------------------------------------------------

    async def lookup(
        self,
        parent_inode: int,
        name: bytes,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Return the attributes behind a name, or the cached answer that there is none."""
        node = self._nodes[parent_inode].children.get(name)
        if node is None:
            return self._absent
        node.nlookup += 1
        return node.attr

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Drop nodes that have no name and are unknown to the kernel."""
        for ino, nlookup in inode_list:
            node = self._nodes[ino]
            node.nlookup -= nlookup
            if node.nlookup <= 0 and node.attr.st_nlink == 0:
                del self._nodes[ino]

    def _make(self, parent_ino: int, name: bytes, mode: int, ctx: RequestContext) -> Node:
        parent = self._nodes[parent_ino]
        if name in parent.children:
            raise FUSEError(errno.EEXIST)
        self._last_ino += 1
        node = Node(self._last_ino, mode, ctx)
        node.nlookup = 1
        self._nodes[self._last_ino] = node
        parent.children[name] = node
        if node.is_directory:
            parent.attr.st_nlink += 1
        parent.touch()
        return node

    async def create(
        self,
        parent_inode: int,
        name: bytes,
        mode: int,
        flags: int,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        """Create a regular file and open it."""
        attr = self._make(parent_inode, name, stat.S_IFREG | (mode & 0o7777), ctx).attr
        return FileInfo(fh=attr.st_ino, keep_cache=True), attr

    async def mknod(
        self,
        parent_inode: int,
        name: bytes,
        mode: int,
        rdev: int,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Create a file of any kind."""
        attr = self._make(parent_inode, name, mode, ctx).attr
        attr.st_rdev = rdev
        return attr

    async def mkdir(
        self,
        parent_inode: int,
        name: bytes,
        mode: int,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Create a directory."""
        return self._make(parent_inode, name, stat.S_IFDIR | (mode & 0o7777), ctx).attr

    async def symlink(
        self,
        parent_inode: int,
        name: bytes,
        target: bytes,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Create a symbolic link."""
        node = self._make(parent_inode, name, stat.S_IFLNK | 0o777, ctx)
        node.target = target
        node.attr.st_size = len(target)
        return node.attr

    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        """Return the target of a symbolic link."""
        return self._nodes[inode].target

    async def link(
        self,
        inode: int,
        new_parent_inode: int,
        new_name: bytes,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Give a file another name."""
        node = self._nodes[inode]
        parent = self._nodes[new_parent_inode]
        if new_name in parent.children:
            raise FUSEError(errno.EEXIST)
        if node.attr.st_nlink >= LINKS_MAX:
            raise FUSEError(errno.EMLINK)
        parent.children[new_name] = node
        parent.touch()
        node.attr.st_nlink += 1
        node.attr.st_ctime_ns = time.time_ns()
        node.nlookup += 1
        return node.attr

    def _child(self, parent: Node, name: bytes) -> Node:
        node = parent.children.get(name)
        if node is None:
            raise FUSEError(errno.ENOENT)
        return node

    def _detach(self, parent: Node, name: bytes) -> None:
        node = parent.children.pop(name)
        if node.is_directory:
            node.attr.st_nlink = 0
            parent.attr.st_nlink -= 1
        else:
            node.attr.st_nlink -= 1
            node.attr.st_ctime_ns = time.time_ns()
        parent.touch()
        if node.attr.st_nlink == 0 and node.nlookup <= 0:
            del self._nodes[node.attr.st_ino]

    async def unlink(
        self,
        parent_inode: int,
        name: bytes,
        ctx: RequestContext,
    ) -> None:
        """Remove a name of a file; the node stays while the kernel knows it."""
        parent = self._nodes[parent_inode]
        if self._child(parent, name).is_directory:
            raise FUSEError(errno.EISDIR)
        self._detach(parent, name)

    async def rmdir(
        self,
        parent_inode: int,
        name: bytes,
        ctx: RequestContext,
    ) -> None:
        """Remove an empty directory."""
        parent = self._nodes[parent_inode]
        node = self._child(parent, name)
        if not node.is_directory:
            raise FUSEError(errno.ENOTDIR)
        if node.children:
            raise FUSEError(errno.ENOTEMPTY)
        self._detach(parent, name)

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        """Move a name, over an existing one if there is one, or exchange the two."""
        old_parent, new_parent = self._nodes[parent_inode_old], self._nodes[parent_inode_new]
        node = self._child(old_parent, name_old)
        target = new_parent.children.get(name_new)
        if flags & pyfuse3.RENAME_EXCHANGE:
            if target is None:
                raise FUSEError(errno.ENOENT)
            old_parent.children[name_old] = target
            _move_directory_link(target, new_parent, old_parent)
        else:
            if target is not None and flags & pyfuse3.RENAME_NOREPLACE:
                raise FUSEError(errno.EEXIST)
            if target is node:
                return
            if target is not None:
                if target.children:
                    raise FUSEError(errno.ENOTEMPTY)
                self._detach(new_parent, name_new)
            del old_parent.children[name_old]
        new_parent.children[name_new] = node
        _move_directory_link(node, old_parent, new_parent)
        old_parent.touch()
        new_parent.touch()
        node.attr.st_ctime_ns = new_parent.attr.st_ctime_ns

    # --- attributes ----------------------------------------------------------------------

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        """Return the attributes."""
        return self._nodes[inode].attr

    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Change attributes; a new size truncates or extends with zeros."""
        node = self._nodes[inode]
        own = node.attr
        own.st_ctime_ns = time.time_ns()
        if fields.update_size:
            node.resize(attr.st_size)
            own.st_mtime_ns = own.st_ctime_ns
        if fields.update_mode:
            own.st_mode = stat.S_IFMT(own.st_mode) | stat.S_IMODE(attr.st_mode)
        if fields.update_uid:
            own.st_uid = attr.st_uid
        if fields.update_gid:
            own.st_gid = attr.st_gid
        if fields.update_atime:
            own.st_atime_ns = attr.st_atime_ns
        if fields.update_mtime:
            own.st_mtime_ns = attr.st_mtime_ns
        return own

    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        """Answer with the figures of the disk that the data file lies on."""
        disk = os.fstatvfs(self._data.fd)
        answer = pyfuse3.StatvfsData()
        answer.f_bsize, answer.f_frsize = disk.f_bsize, disk.f_frsize
        answer.f_blocks, answer.f_bfree, answer.f_bavail = (
            disk.f_blocks,
            disk.f_bfree,
            disk.f_bavail,
        )
        answer.f_files, answer.f_ffree, answer.f_favail = disk.f_files, disk.f_ffree, disk.f_favail
        answer.f_namemax = 255
        return answer

    # --- data ----------------------------------------------------------------------------

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        """Open a file: the handle is the inode number, the kernel's pages stay."""
        if flags & os.O_TRUNC:
            node = self._nodes[inode]
            node.resize(0)
            node.touch()
        return FileInfo(fh=inode, keep_cache=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Read from the data file."""
        node = self._nodes[fh]
        size = min(size, node.attr.st_size - off)
        return node.extents.read(self._data, off, size) if size > 0 else b""

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Write through to the data file."""
        node = self._nodes[fh]
        node.extents.write(self._data, off, buf)
        if off + len(buf) > node.attr.st_size:
            node.resize(off + len(buf))
        node.touch()
        return len(buf)

    async def release(self, fh: int) -> None:
        """Nothing is kept for an open file."""

    async def fsync(self, fh: int, datasync: bool) -> None:
        """Sync the data file."""
        self._data.sync()

    # --- directories ---------------------------------------------------------------------

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        """Take the listing that this handle will show."""
        self._last_listing += 1
        self._listings[self._last_listing] = list(self._nodes[inode].children.items())
        return self._last_listing

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Answer names with attributes, from `start_id` until the kernel's buffer is full."""
        for index, (name, node) in enumerate(self._listings[fh][start_id:], start_id + 1):
            # A name that went after opendir must not come back with a node that went with it.
            if node.attr.st_nlink == 0:
                continue
            if not pyfuse3.readdir_reply(token, name, node.attr, index):
                return
            node.nlookup += 1

    async def releasedir(self, fh: int) -> None:
        """Drop the listing."""
        del self._listings[fh]

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Sync the data file, as for a file."""
        self._data.sync()


def _move_directory_link(node: Node, source: Node, destination: Node) -> None:
    if node.is_directory and source is not destination:
        source.attr.st_nlink -= 1
        destination.attr.st_nlink += 1


async def _serve(operations: FloorOperations, read_ahead_kib: int, mount_point: Path) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_on_signal)
        nursery.start_soon(_raise_read_ahead, operations.ready, read_ahead_kib, mount_point)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


async def _end_on_signal() -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            pyfuse3.terminate()
            return


async def _raise_read_ahead(ready: trio.Event, read_ahead_kib: int, mount_point: Path) -> None:
    """Set the mount's read-ahead once the kernel has set its own from the first answer."""
    await ready.wait()
    await trio.lowlevel.checkpoint()
    if os.geteuid() == 0:
        _set_read_ahead(mount_point, read_ahead_kib)


def _set_read_ahead(mount_point: Path, read_ahead_kib: int) -> None:
    # Through sysfs: a path on the mount itself would wait for the loop that asks.
    device = mount_device(mount_point)
    if device is not None:
        setting = Path(f"/sys/class/bdi/{device}/read_ahead_kb")
        setting.write_text(str(read_ahead_kib), encoding="ascii")


def serve(
    mount_point: Path,
    data_path: Path,
    *,
    read_ahead_kib: int,
    make_operations: Callable[[DataFile], FloorOperations] = FloorOperations,
) -> None:
    """Mount, and serve in the foreground until unmounted, SIGTERM or SIGINT."""
    data_file = DataFile(data_path)
    operations = make_operations(data_file)
    # No max_read: libfuse wants the same figure from init(), where pyfuse3 cannot set it, and
    # answers every request with an error otherwise. The kernel's own limit is 1 MiB anyway.
    options = set(pyfuse3.default_options) | {"fsname=floorfs", "subtype=floorfs"}
    pyfuse3.init(operations, str(mount_point), options)
    try:
        trio.run(_serve, operations, read_ahead_kib, mount_point)
    finally:
        pyfuse3.close(unmount=True)
        data_file.close()
