"""A volume as the store holds it now, to be looked at without mounting.

The state is loaded into a database in a scratch directory; file bytes are read from the store
and verified as every read is. Nothing in the store changes, and a store that is away is an error
here: a person waits for the answer.
"""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from s3fs_banyan.commit.log_store import CommitLog
from s3fs_banyan.data.blocks import MemoryBlockCache
from s3fs_banyan.data.objects import ObjectReader
from s3fs_banyan.data.reader import Reader
from s3fs_banyan.errors import ExitCode, FSError, UsageError
from s3fs_banyan.format.encryption import Cipher
from s3fs_banyan.format.volume import VolumeDescriptor
from s3fs_banyan.meta.committed import Committed, CommittedState
from s3fs_banyan.meta.extents import Extents
from s3fs_banyan.meta.tree import Tree
from s3fs_banyan.model import ROOT_INO, Attributes, Piece, Place
from s3fs_banyan.observe.metrics import Metrics
from s3fs_banyan.remote.base import RemoteFileSystem
from s3fs_banyan.runtime import RealRuntime
from s3fs_banyan.vfs.filesystem import Caller, FileSystem

_CACHE_BYTES = 64 << 20
_RAM_BYTES = 32 << 20
_READ_BYTES = 4 << 20
_LINKS_FOLLOWED_MAX = 40
_CALLER = Caller(0, 0, 0)


class CommittedChunks:
    """What a reader asks about chunks, answered from committed.db alone."""

    def __init__(self, places: Committed | CommittedState, extents: Extents) -> None:
        self.use(places, extents)

    def use(self, places: Committed | CommittedState, extents: Extents) -> None:
        """Answer from these from now on."""
        self._places = places
        self._extents = extents

    def pieces(self, chunk: int, start: int, end: int) -> Sequence[Piece]:
        """Return nothing: there is no journal."""
        return ()

    def chunk_length(self, chunk: int) -> int | None:
        """Return a chunk's length."""
        return self._extents.chunk_length(chunk)

    def place(self, chunk: int) -> Place | None:
        """Return where a chunk lies."""
        return self._places.place(chunk)

    def object_size(self, key: str) -> int | None:
        """Return the size of a store object."""
        return self._places.object_size(key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A name found in a volume."""

    path: bytes
    """From the volume's root, without a slash in front; empty for the root."""
    attributes: Attributes

    @property
    def name(self) -> bytes:
        """The last part of the path."""
        return self.path.rpartition(b"/")[2]

    @property
    def is_directory(self) -> bool:
        """Tell whether it is a directory."""
        return stat.S_ISDIR(self.attributes.mode)

    @property
    def is_file(self) -> bool:
        """Tell whether it is a regular file."""
        return stat.S_ISREG(self.attributes.mode)

    @property
    def is_link(self) -> bool:
        """Tell whether it is a symbolic link."""
        return stat.S_ISLNK(self.attributes.mode)


class View:
    """A volume at one commit. Made by `open_view`; one event loop."""

    def __init__(
        self, committed: Committed, store: RemoteFileSystem, cipher: Cipher | None
    ) -> None:
        self.head = committed.head
        self.committed = committed
        runtime, metrics = RealRuntime(), Metrics()
        tree = Tree(committed.reader())
        self.extents = extents = Extents(committed.reader(), tree)
        objects = ObjectReader(
            store=store,
            cache=MemoryBlockCache(_CACHE_BYTES),
            runtime=runtime,
            metrics=metrics,
            is_patient=False,
        )
        self.filesystem = FileSystem(
            tree=tree,
            extents=extents,
            reader=Reader(
                chunks=CommittedChunks(committed, extents),
                journal=None,
                objects=objects,
                runtime=runtime,
                metrics=metrics,
                ram_bytes=_RAM_BYTES,
                cipher=cipher,
            ),
            state=None,
            capacity_bytes=1 << 62,
        )

    def find(self, path: bytes) -> Entry:
        """Return what lies at a path; symbolic links on the way are followed, the last is not.

        Raises `UsageError` naming the part that is not there.
        """
        inos = [int(ROOT_INO)]
        done: list[bytes] = []
        left = [part for part in path.split(b"/") if part not in {b"", b"."}]
        followed = 0
        while left:
            part = left.pop(0)
            if part == b"..":
                if len(inos) > 1:
                    inos.pop()
                    done.pop()
                continue
            found = self._child(inos[-1], part, b"/".join([*done, part]))
            if left and stat.S_ISLNK(found.mode):
                followed += 1
                if followed > _LINKS_FOLLOWED_MAX:
                    raise _no_such(path, "too many symbolic links")
                target = self.filesystem.readlink(found.ino)
                if target.startswith(b"/"):
                    raise _no_such(path, "an absolute symbolic link leads out of the volume")
                left = [p for p in target.split(b"/") if p not in {b"", b"."}] + left
                continue
            inos.append(found.ino)
            done.append(part)
        return Entry(path=b"/".join(done), attributes=self.filesystem.getattr(inos[-1]))

    def _child(self, parent: int, name: bytes, shown: bytes) -> Attributes:
        try:
            return self.filesystem.lookup(parent, name)
        except FSError as error:
            raise _no_such(shown, "no such file or directory") from error

    def children(self, directory: Entry) -> list[Entry]:
        """Return what lies in a directory, by name."""
        below = directory.path + b"/" if directory.path else b""
        found = [
            Entry(path=below + dentry.name, attributes=attributes)
            for dentry, attributes in self.filesystem.readdir(directory.attributes.ino, 0)
        ]
        return sorted(found, key=lambda entry: entry.path)

    def walk(self, top: Entry) -> Iterator[Entry]:
        """Give `top` and everything below it, a directory before what it holds."""
        waiting = [top]
        while waiting:
            entry = waiting.pop()
            yield entry
            if entry.is_directory:
                waiting += reversed(self.children(entry))

    def target(self, entry: Entry) -> bytes:
        """Return what a symbolic link points to."""
        return self.filesystem.readlink(entry.attributes.ino)

    def user_xattrs(self, entry: Entry) -> Iterator[tuple[bytes, bytes]]:
        """Give the extended attributes that any file system can hold."""
        for name in self.filesystem.listxattr(entry.attributes.ino, _CALLER):
            if name.startswith(b"user."):
                yield name, self.filesystem.getxattr(entry.attributes.ino, name)

    async def read(self, entry: Entry) -> AsyncIterator[tuple[int, bytes]]:
        """Give (offset, bytes) of a regular file in order, verified.

        Raises `FSError` for damage and for a store that does not answer.
        """
        offset, size = 0, entry.attributes.size
        while offset < size:
            data = bytes(await self.filesystem.read(entry.attributes.ino, offset, _READ_BYTES))
            yield offset, data
            offset += len(data)


def _no_such(path: bytes, why: str) -> UsageError:
    text = path.decode("utf-8", "backslashreplace").lstrip("/")
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return UsageError(f"/{shown}: {why}", exit_code=ExitCode.USAGE)


@contextmanager
def open_view(
    store: RemoteFileSystem, volume: VolumeDescriptor, scratch_dir: Path, cipher: Cipher | None
) -> Iterator[View]:
    """Load the volume's newest state; `scratch_dir` holds its database for as long.

    Raises the store's errors, `Corrupt` and `UnsupportedVersion`.
    """
    log = CommitLog(store, scratch_dir, cipher)
    committed = log.load(scratch_dir / "committed.db", vfs=None, volume=volume)
    try:
        yield View(committed, store, cipher)
    finally:
        committed.close()
