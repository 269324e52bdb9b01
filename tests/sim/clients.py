"""Applications of a simulated world: random calls on random operands, every answer checked."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable
from random import Random
from typing import Protocol, TypeVar

import trio

from s3fs_banyan.commit.state import EngineState
from s3fs_banyan.errors import FSError
from s3fs_banyan.model import Operation
from s3fs_banyan.vfs.filesystem import Caller, Changes, FileSystem
from tests.model.reference import ReferenceFS
from tests.sim.invariants import check_file
from tests.sim.runtime import Life

T = TypeVar("T")

_NAMES = [f"n{i}".encode() for i in range(9)]
_XATTRS = [b"user.a", b"user.b"]


class Mount(Protocol):
    """What a client sees of the world that it runs in."""

    @property
    def life(self) -> Life: ...

    @property
    def fs(self) -> FileSystem: ...

    @property
    def state(self) -> EngineState: ...

    @property
    def model(self) -> ReferenceFS: ...

    @property
    def rename_lock(self) -> trio.Lock: ...

    @property
    def issued(self) -> dict[int, Operation]:
        """Thread id -> its last operation."""
        ...

    async def fsync(self) -> None:
        """Call fsync and note what it promised."""
        ...


class ReadOnlyNow(Exception):  # no error: the mount was fenced, its clients end
    """The mount refuses changes."""


class Client:
    """One process: a loop of calls with pauses, until it is cancelled or the mount is fenced."""

    def __init__(
        self, mount: Mount, rng: Random, tid: int, *, pause_s: float, bytes_max: int
    ) -> None:
        self._mount = mount
        self._rng = rng
        self._pause_s = pause_s
        self._bytes_max = bytes_max
        self._caller = Caller(tid, rng.choice((0, 1000)), 1000, 0o022)
        self._held: list[int] = []
        self._opened: list[int] = []
        kinds: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (24, self._write), (10, self._append), (14, self._create), (5, self._mkdir),
            (9, self._unlink), (3, self._rmdir), (9, self._rename), (3, self._link),
            (2, self._symlink), (6, self._truncate), (3, self._chmod), (4, self._setxattr),
            (2, self._removexattr), (7, self._read), (3, self._readdir), (5, self._fsync),
            (3, self._open), (6, self._let_go),
        ]  # fmt: skip
        self._weights = [weight for weight, _ in kinds]
        self._kinds = [kind for _, kind in kinds]

    async def run(self) -> None:
        """Call and pause; returns when the mount is read-only."""
        rng = self._rng
        try:
            while True:
                if rng.random() < 0.6:
                    await trio.sleep(rng.expovariate(1.0) * self._pause_s)
                else:
                    await trio.lowlevel.checkpoint()
                await rng.choices(self._kinds, self._weights)[0]()
        except ReadOnlyNow:
            await trio.lowlevel.checkpoint()

    # --- operands ------------------------------------------------------------------------

    def _directory(self) -> int:
        return self._rng.choice(self._known(directories=True))

    def _file(self) -> int | None:
        found = self._known(directories=False)
        return self._rng.choice(found) if found else None

    def _known(self, *, directories: bool) -> list[int]:
        """Inodes that a kernel could name: linked, or held."""
        mount = self._mount
        held = mount.fs.handles.is_held
        nlinks = mount.model.nlinks()
        return [
            ino
            for ino, node in mount.model.nodes.items()
            if node.is_directory == directories and not node.target and (nlinks[ino] or held(ino))
        ]

    def _any(self) -> int:
        both = self._known(directories=True) + self._known(directories=False)
        return self._rng.choice(both)

    def _name(self) -> bytes:
        return self._rng.choice(_NAMES)

    def _existing(self) -> tuple[int, bytes]:
        """A name that is there, mostly."""
        parent = self._directory()
        names = list(self._mount.model.nodes[parent].names)
        if names and self._rng.random() < 0.9:
            return parent, self._rng.choice(names)
        return parent, self._name()

    def _data(self) -> bytes:
        rng = self._rng
        size = rng.choice((1, 100, 4096, rng.randint(1, 5000), rng.randint(1, self._bytes_max)))
        if rng.random() < 0.5:
            return rng.randbytes(size)
        return bytes([rng.randrange(256)]) * size

    # --- a call --------------------------------------------------------------------------

    async def _call(
        self, call: Callable[[], Awaitable[T]], wanted: Callable[[], int], *inodes: int
    ) -> T | None:
        """Call while the kernel holds `inodes`; an errno must be the one the model gives.

        The model is asked in the same step in which the check failed.
        """
        mount = self._mount
        mount.issued.pop(self._caller.tid, None)
        for ino in inodes:
            mount.fs.handles.looked_up(ino)
        result: T | None = None
        try:
            result = await call()
        except FSError as error:
            mount.life.alive()
            if mount.state.read_only_reason and error.errno in {errno.EROFS, errno.EIO}:
                raise ReadOnlyNow from error
            want = wanted()
            if error.errno != want:
                raise AssertionError(f"{error!r}, the model says errno {want}") from error
        finally:
            if not mount.life.dead:
                for ino in inodes:
                    mount.fs.forget(ino, 1)
        mount.life.alive()
        return result

    def _check_issued(self, kind: str, **fields: object) -> None:
        """The call that was answered must have become this operation."""
        op = self._mount.issued.get(self._caller.tid)
        assert type(op).__name__ == kind, f"a {kind} became {op!r}"
        for name, value in fields.items():
            assert getattr(op, name) == value, f"{kind}.{name} is not {value!r} in {op!r}"

    def _check_row(self, ino: int) -> None:
        mount = self._mount
        want = mount.model.row(ino, mount.model.nlink(ino))
        found = tuple(mount.fs.getattr(ino))
        assert found == want, f"attributes {found}, the model says {want}"

    def _keep_or_forget(self, ino: int) -> None:
        if self._rng.random() < 0.3:
            self._held.append(ino)
        else:
            self._mount.fs.forget(ino, 1)

    # --- changing calls ------------------------------------------------------------------

    async def _write(self) -> None:
        ino = self._file()
        if ino is None:
            await self._create()
            return
        size = len(self._mount.model.nodes[ino].data)
        offset = self._rng.randint(0, size + self._rng.choice((0, 0, 5000)))
        await self._write_at(ino, offset)

    async def _append(self) -> None:
        ino = self._file()
        if ino is not None:
            for _ in range(self._rng.randint(1, 4)):
                node = self._mount.model.nodes.get(ino)
                if node is None:
                    return
                await self._write_at(ino, len(node.data))

    async def _write_at(self, ino: int, offset: int) -> None:
        fs, tid, data, model = self._mount.fs, self._caller.tid, self._data(), self._mount.model
        wrote = await self._call(
            lambda: fs.write(ino, offset, data, tid),
            lambda: 0 if ino in model.nodes else errno.ESTALE,
            ino,
        )
        if wrote is not None:
            assert wrote == len(data)
            self._check_issued("Write", ino=ino, offset=offset, data=data)

    async def _create(self) -> None:
        mount, parent, name = self._mount, self._directory(), self._name()
        flags = os.O_RDWR | self._rng.choice((0, os.O_EXCL, os.O_TRUNC))
        entry = mount.model.nodes[parent].names.get(name)
        if entry and mount.model.nodes[entry[0]].target:
            return  # the kernel would follow the link, not open it
        mode = self._rng.choice((0o644, 0o600, 0o4755, 0o2755))
        made = await self._call(
            lambda: mount.fs.create(parent, name, mode, flags, self._caller),
            lambda: mount.model.errno_create(parent, name, flags),
            parent,
        )
        if made is None:
            return
        self._check_row(made.ino)
        self._opened.append(made.ino)
        self._keep_or_forget(made.ino)
        if self._rng.random() < 0.6:
            await self._write_at(made.ino, 0)
        if self._rng.random() < 0.7:
            self._opened.remove(made.ino)
            mount.fs.release(made.ino)

    async def _mkdir(self) -> None:
        await self._make(stat.S_IFDIR | 0o755, b"")

    async def _symlink(self) -> None:
        await self._make(stat.S_IFLNK | 0o777, b"to/" + self._name())

    async def _make(self, mode: int, target: bytes) -> None:
        mount, parent, name = self._mount, self._directory(), self._name()
        made = await self._call(
            lambda: mount.fs.make(parent, name, mode, self._caller, target=target),
            lambda: mount.model.errno_make(parent, name),
            parent,
        )
        if made is not None:
            self._check_issued("Make", parent=parent, name=name, ino=made.ino, target=target)
            self._check_row(made.ino)
            self._keep_or_forget(made.ino)

    async def _unlink(self) -> None:
        mount, (parent, name) = self._mount, self._existing()
        await self._call(
            lambda: mount.fs.unlink(parent, name, self._caller),
            lambda: mount.model.errno_remove(parent, name, directory=False),
            parent,
        )

    async def _rmdir(self) -> None:
        mount, (parent, name) = self._mount, self._existing()
        await self._call(
            lambda: mount.fs.rmdir(parent, name, self._caller),
            lambda: mount.model.errno_remove(parent, name, directory=True),
            parent,
        )

    async def _link(self) -> None:
        mount, ino, parent, name = self._mount, self._file(), self._directory(), self._name()
        if ino is None:
            return
        linked = await self._call(
            lambda: mount.fs.link(ino, parent, name, self._caller),
            lambda: mount.model.errno_link(ino, parent, name),
            ino,
            parent,
        )
        if linked is not None:
            self._check_issued("Link", ino=ino, parent=parent, name=name)
            self._keep_or_forget(ino)

    async def _rename(self) -> None:
        """The kernel lets one rename run at a time, and none below itself."""
        mount, rng = self._mount, self._rng
        async with mount.rename_lock:
            parent, name = self._existing()
            new_parent, new_name = self._existing() if rng.random() < 0.5 else (
                self._directory(), self._name())  # fmt: skip
            flags = rng.choice((0, 0, 0, 1, 2))
            if self._makes_loop(parent, name, new_parent, new_name):
                return
            await self._call(
                lambda: mount.fs.rename(parent, name, new_parent, new_name, flags, self._caller),
                lambda: mount.model.errno_rename(parent, name, new_parent, new_name, flags),
                parent,
                new_parent,
            )

    def _makes_loop(self, parent: int, name: bytes, new_parent: int, new_name: bytes) -> bool:
        model = self._mount.model
        for directory, child, other in ((parent, name, new_parent), (new_parent, new_name, parent)):
            entry = model.nodes[directory].names.get(child)
            if entry and model.nodes[entry[0]].is_directory and model.is_below(other, entry[0]):
                return True
        return False

    async def _truncate(self) -> None:
        ino = self._file()
        if ino is not None:
            size = len(self._mount.model.nodes[ino].data)
            sizes = (0, size // 2, max(0, size - 1), size + 3000, self._rng.randint(0, size + 1))
            await self._setattr(ino, Changes(size=self._rng.choice(sizes)))

    async def _chmod(self) -> None:
        changes = self._rng.choice((
            Changes(mode=self._rng.choice((0o600, 0o4711, 0o2755))),
            Changes(uid=self._rng.randrange(3)),
            Changes(gid=self._rng.randrange(3)),
            Changes(atime_ns=-5, mtime_ns=self._rng.randrange(1 << 60)),
        ))  # fmt: skip
        await self._setattr(self._any(), changes)

    async def _setattr(self, ino: int, changes: Changes) -> None:
        mount = self._mount
        resized = changes.size is not None
        if resized and mount.model.nodes[ino].is_directory:
            return
        done = await self._call(
            lambda: mount.fs.setattr(ino, changes, self._caller),
            lambda: mount.model.errno_setattr(ino, resized=resized),
            ino,
        )
        if done is not None:
            self._check_issued("SetAttributes", ino=ino, size=changes.size, uid=changes.uid)
            assert tuple(done) == mount.model.row(ino, mount.model.nlink(ino))

    async def _setxattr(self) -> None:
        mount, ino, name = self._mount, self._any(), self._rng.choice(_XATTRS)
        value = self._rng.randbytes(self._rng.choice((0, 5, 300)))
        flags = self._rng.choice((0, 1, 2))
        await self._call(
            lambda: mount.fs.setxattr(ino, name, value, flags, self._caller),
            lambda: mount.model.errno_xattr(ino, name, flags, removes=False),
            ino,
        )

    async def _removexattr(self) -> None:
        mount, ino, name = self._mount, self._any(), self._rng.choice(_XATTRS)
        await self._call(
            lambda: mount.fs.removexattr(ino, name, self._caller),
            lambda: mount.model.errno_xattr(ino, name, 0, removes=True),
            ino,
        )

    # --- looking, holding ----------------------------------------------------------------

    async def _read(self) -> None:
        ino = self._file()
        if ino is not None:
            mount = self._mount
            mount.fs.handles.looked_up(ino)
            await check_file(mount.fs, mount.model, ino)
            mount.life.alive()
            mount.fs.forget(ino, 1)

    async def _readdir(self) -> None:
        mount, ino = self._mount, self._directory()
        listed = {entry.name: (entry.ino, entry.cookie) for entry, _ in mount.fs.readdir(ino, 0)}
        assert listed == mount.model.nodes[ino].names
        self._check_row(ino)
        node = mount.model.nodes[ino]
        assert {
            n: mount.fs.getxattr(ino, n) for n in mount.fs.listxattr(ino, self._caller)
        } == node.xattrs
        await trio.lowlevel.checkpoint()

    async def _fsync(self) -> None:
        await self._call(self._mount.fsync, lambda: 0)

    async def _open(self) -> None:
        mount, ino = self._mount, self._file()
        if ino is None:
            return
        flags = self._rng.choice((os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC))
        failed: list[int] = []

        async def call() -> bool:
            await mount.fs.open(ino, flags, self._caller)
            return True

        def wanted() -> int:
            failed.append(mount.model.errno_open(ino, flags))
            return failed[0]

        if await self._call(call, wanted, ino):
            self._opened.append(ino)

    async def _let_go(self) -> None:
        """Close some handles and forget some inodes; unlinked ones die of it."""
        mount, rng = self._mount, self._rng
        for held, drop in ((self._opened, mount.fs.release), (self._held, self._forget)):
            for _ in range(rng.randint(0, len(held))):
                drop(held.pop(rng.randrange(len(held))))
        await trio.lowlevel.checkpoint()

    def _forget(self, ino: int) -> None:
        self._mount.fs.forget(ino, 1)
