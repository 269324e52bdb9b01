"""Which errno each rule gives, and that nothing changed when one was given. No kernel."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from s3fs_banyan import errors
from s3fs_banyan.app.engine import Engine
from s3fs_banyan.errors import FSError
from s3fs_banyan.model import (
    FILE_BYTES_MAX,
    LINKS_MAX,
    NAME_BYTES_MAX,
    SYMLINK_BYTES_MAX,
    XATTR_VALUE_BYTES_MAX,
)
from s3fs_banyan.vfs.filesystem import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    XATTR_CREATE,
    XATTR_REPLACE,
    Changes,
    FileSystem,
)
from tests.unit.engine_kit import ROOT, USER, World, engine_settings, names, running

DIR = stat.S_IFDIR | 0o755
FILE = stat.S_IFREG | 0o644
LINK = stat.S_IFLNK | 0o777
LONG = b"n" * (NAME_BYTES_MAX + 1)


@pytest.fixture
def world(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> World:
    """A world of one machine."""
    del autojump_clock
    return World(tmp_path)


class Tree:
    """A small tree: /f, /d, /full/x, /l -> f, /g is a second name of /f."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.fs: FileSystem = engine.filesystem
        self.f = self.d = self.full = self.link = self.gone = 0

    async def build(self) -> Tree:
        fs = self.fs
        self.f = (await fs.make(1, b"f", FILE, ROOT)).ino
        await fs.write(self.f, 0, b"content")
        self.d = (await fs.make(1, b"d", DIR, ROOT)).ino
        self.full = (await fs.make(1, b"full", DIR, ROOT)).ino
        await fs.make(self.full, b"x", FILE, ROOT)
        self.link = (await fs.make(1, b"l", LINK, ROOT, target=b"f")).ino
        await fs.link(self.f, 1, b"g", ROOT)
        self.gone = (await fs.make(1, b"gone", DIR, ROOT)).ino
        await fs.rmdir(1, b"gone", ROOT)
        return self


@asynccontextmanager
async def tree(world: World, **settings: object) -> AsyncIterator[Tree]:
    """Open an engine with the small tree in it."""
    async with running(world.context(settings=engine_settings(**settings))) as engine:
        yield await Tree(engine).build()


Call = Callable[[Tree], object]
REFUSED: list[tuple[str, int, Call]] = [
    ("lookup of a missing name", errno.ENOENT, lambda t: t.fs.lookup(1, b"nope")),
    ("lookup in a file", errno.ENOTDIR, lambda t: t.fs.lookup(t.f, b"x")),
    ("lookup of what is above a file", errno.ENOTDIR, lambda t: t.fs.lookup(t.f, b"..")),
    ("lookup of what is above a removed directory", errno.ENOENT,
     lambda t: t.fs.lookup(t.gone, b"..")),
    ("lookup of a dead inode", errno.ESTALE, lambda t: t.fs.lookup(999, b".")),
    ("lookup of a long name", errno.ENAMETOOLONG, lambda t: t.fs.lookup(1, LONG)),
    ("getattr of a dead inode", errno.ESTALE, lambda t: t.fs.getattr(999)),
    ("readlink of a file", errno.EINVAL, lambda t: t.fs.readlink(t.f)),
    ("open of a directory", errno.EISDIR, lambda t: t.fs.open(t.d, os.O_RDONLY, ROOT)),
    ("create over a name, exclusive", errno.EEXIST,
     lambda t: t.fs.create(1, b"f", 0o644, os.O_EXCL, ROOT)),
    ("create over a directory", errno.EISDIR, lambda t: t.fs.create(1, b"d", 0o644, 0, ROOT)),
    ("create in a file", errno.ENOTDIR, lambda t: t.fs.create(t.f, b"x", 0o644, 0, ROOT)),
    ("mkdir over a name", errno.EEXIST, lambda t: t.fs.make(1, b"f", DIR, ROOT)),
    ("mkdir with a long name", errno.ENAMETOOLONG, lambda t: t.fs.make(1, LONG, DIR, ROOT)),
    ("make of dot", errno.EINVAL, lambda t: t.fs.make(1, b".", DIR, ROOT)),
    ("make of a path", errno.EINVAL, lambda t: t.fs.make(1, b"a/b", DIR, ROOT)),
    ("make in a removed directory", errno.ENOENT, lambda t: t.fs.make(t.gone, b"x", FILE, ROOT)),
    ("symlink with a long target", errno.ENAMETOOLONG,
     lambda t: t.fs.make(1, b"s", LINK, ROOT, target=b"t" * (SYMLINK_BYTES_MAX + 1))),
    ("link of a directory", errno.EPERM, lambda t: t.fs.link(t.d, 1, b"x", ROOT)),
    ("link over a name", errno.EEXIST, lambda t: t.fs.link(t.f, 1, b"d", ROOT)),
    ("unlink of a missing name", errno.ENOENT, lambda t: t.fs.unlink(1, b"nope", ROOT)),
    ("unlink of a directory", errno.EISDIR, lambda t: t.fs.unlink(1, b"d", ROOT)),
    ("rmdir of a file", errno.ENOTDIR, lambda t: t.fs.rmdir(1, b"f", ROOT)),
    ("rmdir of a full directory", errno.ENOTEMPTY, lambda t: t.fs.rmdir(1, b"full", ROOT)),
    ("rmdir of a missing name", errno.ENOENT, lambda t: t.fs.rmdir(1, b"nope", ROOT)),
    ("rename of a missing name", errno.ENOENT, lambda t: t.fs.rename(1, b"no", 1, b"x", 0, ROOT)),
    ("rename with unknown flags", errno.EINVAL, lambda t: t.fs.rename(1, b"f", 1, b"x", 4, ROOT)),
    ("rename without replacing", errno.EEXIST,
     lambda t: t.fs.rename(1, b"f", 1, b"l", RENAME_NOREPLACE, ROOT)),
    ("exchange with a missing name", errno.ENOENT,
     lambda t: t.fs.rename(1, b"f", 1, b"nope", RENAME_EXCHANGE, ROOT)),
    ("rename of a directory over a file", errno.ENOTDIR,
     lambda t: t.fs.rename(1, b"d", 1, b"f", 0, ROOT)),
    ("rename of a file over a directory", errno.EISDIR,
     lambda t: t.fs.rename(1, b"f", 1, b"d", 0, ROOT)),
    ("rename over a full directory", errno.ENOTEMPTY,
     lambda t: t.fs.rename(1, b"d", 1, b"full", 0, ROOT)),
    ("rename to a long name", errno.ENAMETOOLONG,
     lambda t: t.fs.rename(1, b"f", 1, LONG, 0, ROOT)),
    ("rename into a removed directory", errno.ENOENT,
     lambda t: t.fs.rename(1, b"f", t.gone, b"x", 0, ROOT)),
    ("rename into a file", errno.ENOTDIR, lambda t: t.fs.rename(1, b"d", t.f, b"x", 0, ROOT)),
    ("truncate of a directory", errno.EISDIR,
     lambda t: t.fs.setattr(t.d, Changes(size=0), ROOT)),
    ("truncate beyond the limit", errno.EFBIG,
     lambda t: t.fs.setattr(t.f, Changes(size=FILE_BYTES_MAX + 1), ROOT)),
    ("write beyond the limit", errno.EFBIG, lambda t: t.fs.write(t.f, FILE_BYTES_MAX, b"x")),
    ("getxattr of a missing one", errno.ENODATA, lambda t: t.fs.getxattr(t.f, b"user.no")),
    ("removexattr of a missing one", errno.ENODATA,
     lambda t: t.fs.removexattr(t.f, b"user.no", ROOT)),
    ("replace of a missing xattr", errno.ENODATA,
     lambda t: t.fs.setxattr(t.f, b"user.no", b"", XATTR_REPLACE, ROOT)),
    ("setxattr with a long name", errno.ERANGE, lambda t: t.fs.setxattr(t.f, LONG, b"", 0, ROOT)),
    ("setxattr without a namespace", errno.EOPNOTSUPP,
     lambda t: t.fs.setxattr(t.f, b"bogus", b"", 0, ROOT)),
    ("setxattr in an unknown namespace", errno.EOPNOTSUPP,
     lambda t: t.fs.setxattr(t.f, b"system.x", b"", 0, ROOT)),
    ("setxattr of a namespace alone", errno.EINVAL,
     lambda t: t.fs.setxattr(t.f, b"user.", b"", 0, ROOT)),
    ("setxattr with a large value", errno.ERANGE,
     lambda t: t.fs.setxattr(t.f, b"user.x", bytes(XATTR_VALUE_BYTES_MAX + 1), 0, ROOT)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "call"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
async def test_a_refused_call_gives_its_errno_and_changes_nothing(
    world: World, wanted: int, call: Call
) -> None:
    """A wrong errno sends an application down the wrong path; a half-done call is worse."""
    async with tree(world) as t:
        before = (t.engine.state.journal.last_seq, names(t.engine))

        async def carry_out() -> None:
            answer = call(t)
            if isinstance(answer, Awaitable):
                await answer

        with pytest.raises(FSError) as caught:
            await carry_out()
        assert caught.value.errno == wanted
        assert (t.engine.state.journal.last_seq, names(t.engine)) == before


def test_every_errno_class_has_an_errno_of_its_own() -> None:
    """`fuse.py` turns the class into a number: two classes of one number are one too many."""
    classes = [
        cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, FSError)
    ]
    numbers = [cls.errno for cls in classes if cls not in {FSError, errors.InputOutput}]
    assert len(numbers) == len(set(numbers)) > 15
    assert errors.InputOutput.errno == errno.EIO


async def test_links_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """EMLINK, before a counter overflows somewhere."""
    monkeypatch.setattr("s3fs_banyan.vfs.filesystem.LINKS_MAX", 5)
    assert LINKS_MAX > 32_000
    async with tree(world) as t:
        for number in range(3):
            await t.fs.link(t.f, t.d, b"n%d" % number, ROOT)
        with pytest.raises(errors.TooManyLinks):
            await t.fs.link(t.f, t.d, b"last", ROOT)
        for number in range(3):
            await t.fs.make(t.d, b"s%d" % number, DIR, ROOT)
        with pytest.raises(errors.TooManyLinks):
            await t.fs.make(t.d, b"last", DIR, ROOT)


async def test_a_full_volume_refuses_bytes_and_still_frees_them(world: World) -> None:
    """ENOSPC means the configured capacity; a truncate must still be possible."""
    async with tree(world, capacity_bytes=10_000) as t:
        with pytest.raises(errors.NoSpace):
            await t.fs.write(t.f, 100, bytes(10_000))
        await t.fs.write(t.f, 7, bytes(9_900))
        with pytest.raises(errors.NoSpace):
            await t.fs.write(t.f, 9_907, bytes(100))
        await t.fs.setattr(t.f, Changes(size=0), ROOT)
        assert t.fs.statfs().used == 0
        await t.fs.write(t.f, 0, bytes(9_000))


async def test_a_full_volume_can_be_overwritten_in_place(world: World) -> None:
    """Bytes that replace others take no room; only what is longer than these is refused."""
    async with tree(world, capacity_bytes=10_000) as t:
        await t.fs.write(t.f, 0, bytes(10_000))
        await t.fs.write(t.f, 4_000, b"n" * 6_000)
        for start, length in ((4_000, 6_001), (9_999, 2), (10_001, 1)):
            with pytest.raises(errors.NoSpace):
                await t.fs.write(t.f, start, bytes(length))
        assert await t.fs.read(t.f, 0, 20_000) == bytes(4_000) + b"n" * 6_000
        assert t.fs.statfs().used == 10_000


async def test_a_hole_of_a_full_volume_cannot_be_filled(world: World) -> None:
    """It lies within the file's size and replaces nothing, so it needs room."""
    async with tree(world, capacity_bytes=10_000) as t:
        await t.fs.setattr(t.f, Changes(size=20_000), ROOT)
        await t.fs.write(t.f, 10_000, bytes(9_993))
        with pytest.raises(errors.NoSpace):
            await t.fs.write(t.f, 0, bytes(8))
        await t.fs.write(t.f, 0, b"CONTENT")
        assert await t.fs.read(t.f, 0, 8) == b"CONTENT\0"


async def test_a_capacity_below_what_is_used_allows_overwriting_in_place(world: World) -> None:
    """Configured anew and too small, it must not make a database read-only."""
    async with tree(world) as t:
        await t.fs.write(t.f, 0, bytes(10_000))
    async with running(world.context(settings=engine_settings(capacity_bytes=5_000))) as engine:
        fs = engine.filesystem
        ino = fs.lookup(1, b"f").ino
        assert await fs.write(ino, 0, b"n" * 10_000) == 10_000
        with pytest.raises(errors.NoSpace):
            await fs.write(ino, 10_000, b"n")


@pytest.mark.allow_log_warnings
async def test_a_fenced_mount_reads_and_changes_nothing(world: World) -> None:
    """EROFS for every change, EIO for an fsync that can never be kept, bytes for a read."""
    async with tree(world, durability_remote=True) as t:
        t.engine.state.turn_read_only("fenced by a test")
        for call in (
            t.fs.make(1, b"x", FILE, ROOT),
            t.fs.unlink(1, b"f", ROOT),
            t.fs.rename(1, b"f", 1, b"x", 0, ROOT),
            t.fs.write(t.f, 0, b"x"),
            t.fs.setattr(t.f, Changes(mode=0), ROOT),
            t.fs.open(t.f, os.O_WRONLY, ROOT),
            t.fs.setxattr(t.f, b"user.x", b"", 0, ROOT),
        ):
            with pytest.raises(errors.ReadOnly):
                await call
        with pytest.raises(errors.InputOutput):
            await t.fs.fsync()
        assert await t.fs.read(t.f, 0, 100) == b"content"


# --- what calls do -----------------------------------------------------------------------


async def test_an_unlinked_open_file_lives_until_it_is_let_go(world: World) -> None:
    """The name is free at once; the bytes stay while a handle or the kernel holds the inode."""
    async with tree(world) as t:
        fs = t.fs
        made = await fs.create(1, b"tmp", 0o600, 0, ROOT)
        await fs.write(made.ino, 0, b"scratch")
        await fs.unlink(1, b"tmp", ROOT)
        await fs.make(1, b"tmp", FILE, ROOT)
        assert fs.getattr(made.ino).nlink == 0
        assert await fs.read(made.ino, 0, 10) == b"scratch"
        fs.release(made.ino)
        assert fs.handles.next_dead_nowait() is None
        fs.forget(made.ino, 1)
        assert fs.handles.next_dead_nowait() == made.ino
        fs.handles.bury(made.ino)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.run_reaper)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        with pytest.raises(errors.StaleHandle):
            fs.getattr(made.ino)


async def test_a_handle_gives_no_inode_that_is_about_to_be_reaped(world: World) -> None:
    """open_by_handle_at asks for "."; half of a file, given out again, would be wrong bytes."""
    async with tree(world) as t:
        fs = t.fs
        made = await fs.create(1, b"tmp", 0o600, 0, ROOT)
        await fs.unlink(1, b"tmp", ROOT)
        assert fs.lookup(made.ino, b".").nlink == 0  # held by the handle, so it stays
        fs.release(made.ino)
        fs.forget(made.ino, 2)
        with pytest.raises(errors.NotFound):
            fs.lookup(made.ino, b".")
        assert fs.handles.next_dead_nowait() == made.ino


async def test_a_handle_is_followed_to_files_and_directories_and_up(world: World) -> None:
    """The kernel forgets paths: "." is the inode itself, ".." the directory that it lies in."""
    async with tree(world) as t:
        below = await t.fs.make(t.d, b"below", DIR, ROOT)
        for ino in (1, t.f, t.d, below.ino):
            assert t.fs.lookup(ino, b".").ino == ino
        assert t.fs.lookup(below.ino, b"..").ino == t.d
        assert t.fs.lookup(t.d, b"..").ino == 1
        assert t.fs.lookup(1, b"..").ino == 1


async def test_orphans_of_an_earlier_life_are_reaped_at_a_fresh_mount(world: World) -> None:
    """Nobody holds them any more; left alone they would take space for ever."""
    async with tree(world) as t:
        made = await t.fs.create(1, b"tmp", 0o600, 0, ROOT)
        await t.fs.write(made.ino, 0, b"scratch")
        await t.fs.unlink(1, b"tmp", ROOT)
    async with running(world.context()) as engine:
        # The removed directory `gone`, whose lookup count the first life held, is one, too.
        assert engine.filesystem.bury_orphans() == 2
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.filesystem.run_reaper)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert engine.filesystem.bury_orphans() == 0
        with pytest.raises(errors.StaleHandle):
            engine.filesystem.getattr(made.ino)


async def test_open_with_trunc_empties_the_file(world: World) -> None:
    """The kernel sends O_TRUNC inside open, not as a setattr."""
    async with tree(world) as t:
        await t.fs.open(t.f, os.O_WRONLY | os.O_TRUNC, ROOT)
        assert t.fs.getattr(t.f).size == 0
        assert await t.fs.read(t.f, 0, 10) == b""


async def test_set_id_bits_and_group_follow_the_directory(world: World) -> None:
    """BSD group semantics of a set-gid directory; umask; set-id bits lost by chown and write."""
    async with tree(world) as t:
        fs = t.fs
        await fs.setattr(t.d, Changes(mode=0o2775, gid=77), ROOT)
        child = await fs.make(t.d, b"sub", stat.S_IFDIR | 0o777, USER)
        assert (child.gid, stat.S_IMODE(child.mode)) == (77, 0o2755)
        made = await fs.make(t.d, b"file", stat.S_IFREG | 0o666, USER)
        assert (made.uid, made.gid, stat.S_IMODE(made.mode)) == (1000, 77, 0o644)
        await fs.setattr(t.f, Changes(mode=0o6755), ROOT)
        await fs.setattr(t.f, Changes(uid=5), ROOT)
        assert stat.S_IMODE(fs.getattr(t.f).mode) == 0o755


async def test_readdir_goes_on_where_it_stopped_while_names_change(world: World) -> None:
    """Offsets are cookies: names that stay are given exactly once."""
    async with tree(world) as t:
        fs = t.fs
        for number in range(300):
            await fs.make(t.d, b"n%03d" % number, FILE, ROOT)
        seen: list[bytes] = []
        cookie = 0
        for round_number in range(40):
            for entry, attributes in fs.readdir(t.d, cookie):
                assert attributes.ino == entry.ino
                seen.append(entry.name)
                cookie = entry.cookie
                if len(seen) % 9 == 0:
                    break
            if round_number < 20:
                await fs.unlink(t.d, b"n%03d" % (299 - round_number), ROOT)
                await fs.make(t.d, b"new%d" % round_number, FILE, ROOT)
        stable = [b"n%03d" % number for number in range(280)]
        assert [name for name in seen if name in set(stable)] == stable
        assert len(seen) == len(set(seen))


async def test_xattrs_are_created_replaced_listed_and_removed(world: World) -> None:
    """The flags of setxattr(2), and a listing in order."""
    async with tree(world) as t:
        fs = t.fs
        await fs.setxattr(t.f, b"user.b", b"1", XATTR_CREATE, ROOT)
        await fs.setxattr(t.f, b"user.a", b"", 0, ROOT)
        with pytest.raises(errors.Exists):
            await fs.setxattr(t.f, b"user.b", b"2", XATTR_CREATE, ROOT)
        await fs.setxattr(t.f, b"user.b", b"2", XATTR_REPLACE, ROOT)
        assert fs.getxattr(t.f, b"user.b") == b"2"
        assert fs.listxattr(t.f, ROOT) == [b"user.a", b"user.b"]
        await fs.removexattr(t.f, b"user.b", ROOT)
        assert fs.listxattr(t.f, ROOT) == [b"user.a"]


@pytest.mark.parametrize("flags", [0, os.O_EXCL])
async def test_a_name_made_while_a_creator_waits_for_room_is_there(
    world: World, flags: int
) -> None:
    """open(2) with O_CREAT opens what is there; only O_EXCL gives EEXIST, also after a wait."""
    got: list[int] = []

    async def create(t: Tree) -> None:
        try:
            got.append((await t.fs.create(1, b"new", 0o644, os.O_RDWR | flags, ROOT)).ino)
        except FSError as error:
            got.append(-error.errno)

    async with tree(world) as t:
        state = t.engine.state
        state.base_bytes = state.ctx.settings.dirty_bytes_max + 1
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(create, t)
                nursery.start_soon(create, t)
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert got == []
                state.base_bytes = 0
        made = t.fs.lookup(1, b"new").ino
        assert sorted(got) == sorted([made, -errno.EEXIST if flags else made])
