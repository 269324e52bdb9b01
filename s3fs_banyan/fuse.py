"""The pyfuse3 adapter: translates, maps errors, decides nothing. The only module with pyfuse3.

pyfuse3 ends the mount on any exception that is not a `FUSEError`, so `_handler` has the one blind
except of the package: it logs, counts, and answers EIO. File handles are inode numbers.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import pyfuse3
import trio

from s3fs_banyan.errors import FSError
from s3fs_banyan.kernel import KernelMount, init_socket
from s3fs_banyan.model import Attributes
from s3fs_banyan.observe.metrics import FuseRequest, Metrics
from s3fs_banyan.processors import Processors
from s3fs_banyan.request_wait import RequestWait
from s3fs_banyan.runtime import monotonic_s
from s3fs_banyan.vfs.filesystem import BLOCK_BYTES, Caller, Changes, FileSystem

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

FOREVER_S: Final = 10_000_000.0
FOLLOWER_TIMEOUT_S: Final = 1.0
_DOT_ENTRIES: Final = 2
"""readdir positions of "." and ".."; a name's position is its cookie plus this."""


def _handler(
    operation: str,
) -> Callable[
    [Callable[Concatenate[Operations, P], Coroutine[Any, Any, T]]],
    Callable[Concatenate[Operations, P], Coroutine[Any, Any, T]],
]:
    """Wrap a handler: time it, count it, turn `FSError` into an errno and all else into EIO."""

    def wrap(
        handle: Callable[Concatenate[Operations, P], Coroutine[Any, Any, T]],
    ) -> Callable[Concatenate[Operations, P], Coroutine[Any, Any, T]]:
        async def call(self: Operations, /, *args: P.args, **kwargs: P.kwargs) -> T:
            begin = monotonic_s()
            request = self.requests[operation]
            try:
                result = await handle(self, *args, **kwargs)
            except FSError as error:
                request.failed(errno.errorcode[error.errno], monotonic_s() - begin)
                raise pyfuse3.FUSEError(error.errno) from error
            except pyfuse3.FUSEError as error:
                request.failed(errno.errorcode[error.errno], monotonic_s() - begin)
                raise
            except Exception as error:  # the one blind except, see the module text
                log.exception("%s failed in a way nobody foresaw", operation)
                self.metrics.handler_errors.add()
                request.failed("EIO", monotonic_s() - begin)
                self.on_failure(error)
                raise pyfuse3.FUSEError(errno.EIO) from error
            request.ok(monotonic_s() - begin)
            return result

        return call

    return wrap


class Operations(pyfuse3.Operations):
    """What the kernel asks, handed to the file system."""

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = False

    def __init__(
        self,
        filesystem: FileSystem,
        metrics: Metrics,
        *,
        timeout_s: float,
        durability: str,
        on_failure: Callable[[BaseException], None],
        writeback: bool = False,
    ) -> None:
        super().__init__()
        self.enable_writeback_cache = writeback
        self.metrics = metrics
        self.on_failure = on_failure
        self.initialised = trio.Event()
        self._fs = filesystem
        self._timeout_s = timeout_s
        self._fsync_seconds = metrics.fsync_seconds[durability]
        self.requests: dict[str, FuseRequest] = {
            name: metrics.fuse_request(name) for name in _OPERATION_NAMES
        }

    def let_barriers_gather(self, has_company: Callable[[], bool]) -> None:
        """Hand on how to see that more requests wait to be read."""
        self._fs.let_barriers_gather(has_company)

    def init(self) -> None:
        """The kernel's INIT is being answered in this very step."""
        self.initialised.set()

    # --- looking -------------------------------------------------------------------------

    @_handler("lookup")
    async def lookup(self, parent: int, name: bytes, ctx: Any) -> Any:  # noqa: ANN401
        try:
            return self._entry(self._fs.lookup(parent, name))
        except FSError as error:
            if error.errno != errno.ENOENT:
                raise
            # A negative entry: the kernel need not ask again before the name is made.
            entry = pyfuse3.EntryAttributes()
            entry.st_ino = 0
            entry.entry_timeout = self._timeout_s
            return entry

    @_handler("getattr")
    async def getattr(self, inode: int, ctx: Any) -> Any:  # noqa: ANN401
        return self._entry(self._fs.getattr(inode))

    @_handler("readlink")
    async def readlink(self, inode: int, ctx: Any) -> bytes:  # noqa: ANN401
        return self._fs.readlink(inode)

    @_handler("opendir")
    async def opendir(self, inode: int, ctx: Any) -> int:  # noqa: ANN401
        self._fs.getattr(inode)
        return inode

    @_handler("readdir")
    async def readdir(self, fh: int, start_id: int, token: Any) -> None:  # noqa: ANN401
        for position, name in ((1, b"."), (2, b"..")):
            if start_id < position:
                entry = self._entry(self._fs.getattr(fh))
                if not pyfuse3.readdir_reply(token, name, entry, position):
                    return
        after = max(0, start_id - _DOT_ENTRIES)
        for dentry, attributes in self._fs.readdir(fh, after):
            entry = self._entry(attributes)
            if not pyfuse3.readdir_reply(token, dentry.name, entry, dentry.cookie + _DOT_ENTRIES):
                return
            self._fs.handles.looked_up(dentry.ino)

    @_handler("releasedir")
    async def releasedir(self, fh: int) -> None:
        pass

    @_handler("statfs")
    async def statfs(self, ctx: Any) -> Any:  # noqa: ANN401
        usage = self._fs.statfs()
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = BLOCK_BYTES
        answer.f_blocks = usage.capacity // BLOCK_BYTES
        free = max(0, usage.capacity - usage.used) // BLOCK_BYTES
        answer.f_bfree = answer.f_bavail = free
        answer.f_files = usage.inodes + (1 << 32)
        answer.f_ffree = answer.f_favail = 1 << 32
        answer.f_namemax = 255
        return answer

    @_handler("getxattr")
    async def getxattr(self, inode: int, name: bytes, ctx: Any) -> bytes:  # noqa: ANN401
        return self._fs.getxattr(inode, name)

    @_handler("listxattr")
    async def listxattr(self, inode: int, ctx: Any) -> Sequence[bytes]:  # noqa: ANN401
        return self._fs.listxattr(inode, _caller(ctx))

    @_handler("forget")
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for inode, count in inode_list:
            self._fs.forget(inode, count)

    # --- files ---------------------------------------------------------------------------

    @_handler("open")
    async def open(self, inode: int, flags: int, ctx: Any) -> Any:  # noqa: ANN401
        await self._fs.open(inode, flags, _caller(ctx))
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    @_handler("create")
    async def create(
        self,
        parent: int,
        name: bytes,
        mode: int,
        flags: int,
        ctx: Any,  # noqa: ANN401
    ) -> tuple[Any, Any]:
        made = await self._fs.create(parent, name, mode, flags, _caller(ctx))
        return pyfuse3.FileInfo(fh=made.ino, keep_cache=True), self._entry(made)

    @_handler("read")
    async def read(self, fh: int, off: int, size: int) -> Any:  # noqa: ANN401  # any buffer
        return await self._fs.read(fh, off, size)

    @_handler("write")
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await self._fs.write(fh, off, buf)

    @_handler("release")
    async def release(self, fh: int) -> None:
        self._fs.release(fh)

    @_handler("fsync")
    async def fsync(self, fh: int, datasync: bool) -> None:
        begin = monotonic_s()
        await self._fs.fsync()
        self._fsync_seconds.observe(monotonic_s() - begin)

    @_handler("fsyncdir")
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        begin = monotonic_s()
        await self._fs.fsync()
        self._fsync_seconds.observe(monotonic_s() - begin)

    # --- changes -------------------------------------------------------------------------

    @_handler("mkdir")
    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: Any) -> Any:  # noqa: ANN401
        mode = stat.S_IFDIR | (mode & 0o7777)
        return self._entry(await self._fs.make(parent, name, mode, _caller(ctx)))

    @_handler("mknod")
    async def mknod(
        self,
        parent: int,
        name: bytes,
        mode: int,
        rdev: int,
        ctx: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        return self._entry(await self._fs.make(parent, name, mode, _caller(ctx), rdev=rdev))

    @_handler("symlink")
    async def symlink(self, parent: int, name: bytes, target: bytes, ctx: Any) -> Any:  # noqa: ANN401
        mode = stat.S_IFLNK | 0o777
        return self._entry(await self._fs.make(parent, name, mode, _caller(ctx), target=target))

    @_handler("link")
    async def link(self, inode: int, new_parent: int, new_name: bytes, ctx: Any) -> Any:  # noqa: ANN401
        return self._entry(await self._fs.link(inode, new_parent, new_name, _caller(ctx)))

    @_handler("unlink")
    async def unlink(self, parent: int, name: bytes, ctx: Any) -> None:  # noqa: ANN401
        await self._fs.unlink(parent, name, _caller(ctx))

    @_handler("rmdir")
    async def rmdir(self, parent: int, name: bytes, ctx: Any) -> None:  # noqa: ANN401
        await self._fs.rmdir(parent, name, _caller(ctx))

    @_handler("rename")
    async def rename(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int,
        ctx: Any,  # noqa: ANN401
    ) -> None:
        await self._fs.rename(parent, name, new_parent, new_name, flags, _caller(ctx))

    @_handler("setattr")
    async def setattr(self, inode: int, attr: Any, fields: Any, fh: Any, ctx: Any) -> Any:  # noqa: ANN401
        changes = Changes(
            mode=stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        return self._entry(await self._fs.setattr(inode, changes, _caller(ctx)))

    @_handler("setxattr")
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: Any) -> None:  # noqa: ANN401
        # pyfuse3 carries XATTR_CREATE and XATTR_REPLACE out itself, by a getxattr before.
        await self._fs.setxattr(inode, name, value, 0, _caller(ctx))

    @_handler("removexattr")
    async def removexattr(self, inode: int, name: bytes, ctx: Any) -> None:  # noqa: ANN401
        await self._fs.removexattr(inode, name, _caller(ctx))

    def _entry(self, attributes: Attributes) -> Any:  # noqa: ANN401
        entry = pyfuse3.EntryAttributes()
        (
            entry.st_ino,
            entry.st_mode,
            entry.st_nlink,
            entry.st_uid,
            entry.st_gid,
            entry.st_rdev,
            entry.st_size,
            entry.st_atime_ns,
            entry.st_mtime_ns,
            entry.st_ctime_ns,
        ) = attributes
        entry.st_blksize = BLOCK_BYTES
        entry.st_blocks = (attributes.size + 511) // 512
        entry.entry_timeout = entry.attr_timeout = self._timeout_s
        return entry


_OPERATION_NAMES: Final = (
    "create", "forget", "fsync", "fsyncdir", "getattr", "getxattr", "link", "listxattr", "lookup",
    "mkdir", "mknod", "open", "opendir", "read", "readdir", "readlink", "release", "releasedir",
    "removexattr", "rename", "rmdir", "setattr", "setxattr", "statfs", "symlink", "unlink", "write",
)  # fmt: skip


def _caller(ctx: Any) -> Caller:  # noqa: ANN401
    return Caller(ctx.pid, ctx.uid, ctx.gid, ctx.umask)


def _do_nothing() -> None:
    pass


async def serve(
    operations: Operations,
    mount: KernelMount,
    *,
    max_tasks: int,
    on_ready: Callable[[], None],
    processors: Processors | None = None,
) -> None:
    """Answer the kernel until the volume is unmounted. See `kernel.py` for the INIT exchange.

    `processors` is told of every request; whoever made it lets it run.
    """
    ours, theirs_fd = init_socket()
    options = {"fsname=s3fs-banyan", "default_permissions"}
    pyfuse3.init(operations, f"/dev/fd/{theirs_fd}", options)
    try:
        ours.send(mount.init_request)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            await operations.initialised.wait()
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        mount.answer_init(ours.recv(65536))
        os.dup2(mount.fd, theirs_fd)
        ours.close()
        on_ready()
        # The library looks this name up in its module at each call.
        library = vars(pyfuse3)
        library_wait = library["_wait_fuse_readable"]
        wait = library["_wait_fuse_readable"] = RequestWait(
            theirs_fd, library_wait, processors.request if processors else _do_nothing
        )
        operations.let_barriers_gather(wait.is_request_there)
        trio.lowlevel.add_instrument(wait)
        try:
            await pyfuse3.main(max_tasks=max_tasks)
        finally:
            trio.lowlevel.remove_instrument(wait)
            library["_wait_fuse_readable"] = library_wait
    finally:
        pyfuse3.close(unmount=False)
