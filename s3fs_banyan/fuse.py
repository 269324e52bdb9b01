"""The pyfuse3 adapter: translates, maps errors, decides nothing. The only module with pyfuse3.

pyfuse3 ends the mount on any exception that is not a `FUSEError`, so `_handler` has the one blind
except of the package: it logs, counts, and answers EIO. File handles are inode numbers.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import stat
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import pyfuse3
import trio

from s3fs_banyan.errors import FSError
from s3fs_banyan.kernel import KernelMount, init_socket
from s3fs_banyan.model import Attributes
from s3fs_banyan.observe import FuseRequest, Metrics
from s3fs_banyan.processors import Processors
from s3fs_banyan.runtime import let_others_run, monotonic_ns, monotonic_s
from s3fs_banyan.vfs.filesystem import BLOCK_BYTES, Caller, Changes, FileSystem

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

FOREVER_S: Final = 10_000_000.0
FOLLOWER_TIMEOUT_S: Final = 1.0
_SPIN_NS: Final = 200_000
"""How long the next request is looked for at most, if looking pays, before the task sleeps."""
_SPIN_NS_MIN: Final = 20_000
_CROWD: Final = 0.4
"""Above this share many callers are at work: they need the processor, and the queue is full."""
_YIELD_NS: Final = 1_000_000
"""Other tasks and threads get a turn at least this often while requests keep coming."""
_LOST_NS: Final = 500_000
"""Who gives up a processor has it back within microseconds, unless somebody computes on it."""
_AWAY_NS_MIN: Final = 100_000_000
_AWAY_NS_MAX: Final = 1_600_000_000
_HAND_OVER_NS: Final = 50_000
"""Who slept for so long let threads have the interpreter's lock meanwhile."""
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
    async def read(self, fh: int, off: int, size: int) -> bytes:
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


class _RequestWait(trio.abc.Instrument):
    """How the library's tasks wait for the next request: look first, then sleep.

    `pyfuse3` goes through trio's whole scheduler for every request (epoll, lock, wake-up), which
    costs more than most requests do, and on an idle virtual processor the wake-up alone takes
    50 us and more. While requests keep coming, the next one is already there, or comes as soon
    as its caller has got the last answer. So this looks at the descriptor for a while, the
    longer the more often looking paid of late, and only then waits as the library does. One task
    does so; others wait as the library does, which keeps count of them and would begin another
    task for every request if it saw none. Every task looks again before it reads: another one
    may have taken the request, and the read would block.

    Everything else that the event loop does waits meanwhile, a finished sync included. So all
    tasks together serve requests for no more than a millisecond between two of its looks at its
    descriptors, of which it tells this instrument. (Each for a millisecond was tried: hundreds of
    tasks made pauses of 90 ms.)
    """

    def __init__(
        self, fd: int, sleep: Callable[[], Awaitable[bool]], on_request: Callable[[], None]
    ) -> None:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        self._poll = poller.poll
        self._sleep = sleep
        self._on_request = on_request
        self._is_searched = False
        """Whether a task looks for requests."""
        self._looks_ns = 0
        self._handed_over_ns = 0
        """When threads last had a chance to take the interpreter's lock."""
        self._looked_ns = 0
        """When the event loop last looked for what else there is to do."""
        self._away_ns = _AWAY_NS_MIN
        self._away_until_ns = 0
        """Until when nobody looks for requests, since the processor is needed."""
        self._paid = 0.0
        """Share of the last searches that found a request: 0 to 1."""
        self._crowd = 0.0
        """Share of the last requests that were there before anyone looked: 0 to 1."""

    async def __call__(self) -> bool:
        """Return true if a request is there now, false if the session has ended."""
        while True:
            if not self._is_searched:
                self._is_searched = True
                try:
                    if await self._search():
                        self._on_request()
                        return True
                finally:
                    self._is_searched = False
            if not await self._sleep():
                return False
            if self._poll(0):
                self._on_request()
                return True

    async def _search(self) -> bool:
        """Tell whether a request is there, or came while it paid to look for one."""
        poll = self._poll
        while True:
            now_ns = monotonic_ns()
            if now_ns - self._looked_ns > _YIELD_NS:
                await trio.lowlevel.checkpoint()
                continue
            if poll(0):
                self._crowd += (1.0 - self._crowd) / 32
                return True
            self._crowd -= self._crowd / 32
            return self._crowd < _CROWD and self._look(now_ns)

    def before_io_wait(self, timeout: float) -> None:
        """The loop is about to look, for no longer than `timeout` seconds."""
        del timeout
        self._looks_ns = monotonic_ns()

    def after_io_wait(self, timeout: float) -> None:
        """The loop has looked: serve requests again, after threads had a chance to run."""
        del timeout
        now_ns = monotonic_ns()
        if now_ns - self._looks_ns > _HAND_OVER_NS:
            self._handed_over_ns = now_ns
        elif now_ns - self._handed_over_ns > _YIELD_NS:
            let_others_run()
            self._handed_over_ns = now_ns = monotonic_ns()
        self._looked_ns = now_ns

    def is_request_there(self) -> bool:
        """Tell whether a request waits to be read."""
        return bool(self._poll(0))

    def _look(self, begin_ns: int) -> bool:
        """Look for the next request; gives up the sooner the less often it paid."""
        if begin_ns < self._away_until_ns:
            return False
        poll = self._poll
        until_ns = begin_ns + _SPIN_NS_MIN + int(self._paid * _SPIN_NS)
        now_ns = begin_ns
        while now_ns < until_ns:
            if poll(0):
                self._paid += (1.0 - self._paid) / 16
                return True
            yielded_ns = now_ns
            os.sched_yield()  # whoever will send the next request may need this processor
            now_ns = monotonic_ns()
            if now_ns - yielded_ns > _LOST_NS:
                self._stay_away(now_ns)
                return bool(poll(0))
        self._paid -= self._paid / 16
        return False

    def _stay_away(self, now_ns: int) -> None:
        """Somebody computes on this processor, and who yields to him gets it back a tick later.

        Whatever the niceness of both: seen on Linux 6.18. Who sleeps is woken at once, so for a
        while that is what is done; longer if it happens soon again.
        """
        is_soon = now_ns - self._away_until_ns < _AWAY_NS_MAX
        self._away_ns = min(2 * self._away_ns, _AWAY_NS_MAX) if is_soon else _AWAY_NS_MIN
        self._away_until_ns = now_ns + self._away_ns


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
        wait = library["_wait_fuse_readable"] = _RequestWait(
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
