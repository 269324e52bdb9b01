"""Identifiers, frozen values and the operations: the vocabulary of the whole engine.

An **operation** is one validated change with everything undetermined already in it. The state
of a volume is `fold(apply, operations)`; nothing else changes it. Operations are named tuples
and not dataclasses: one is made for every write(2), and a frozen dataclass costs three times
as much to make.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple, NewType

Ino = NewType("Ino", int)
ChunkId = NewType("ChunkId", int)
"""`epoch << 40 | counter`: a function of the fold, so a replay makes the same ones."""
Epoch = NewType("Epoch", int)
Seq = NewType("Seq", int)
"""Sequence number of a commit in the store."""
OpSeq = NewType("OpSeq", int)
"""Sequence number of an operation, which is that of its journal record."""

ROOT_INO: Final = Ino(1)

CHUNK_BYTES_MAX: Final = 1 << 20
FRAME_BYTES: Final = 64 * 1024
CHUNK_COUNTER_BITS: Final = 40
EPOCH_MAX: Final = (1 << (63 - CHUNK_COUNTER_BITS)) - 1
"""The chunk ids of a higher one would not fit into the state's tables."""

NAME_BYTES_MAX: Final = 255
SYMLINK_BYTES_MAX: Final = 4095
LINKS_MAX: Final = 65_000
XATTR_VALUE_BYTES_MAX: Final = 64 * 1024
FILE_BYTES_MAX: Final = 1 << 50
TIME_NS_MAX: Final = (1 << 63) - 1
REAP_ROWS_MAX: Final = 1_000


def first_chunk_of(epoch: Epoch) -> ChunkId:
    """Return the lowest chunk id of an epoch."""
    return ChunkId(epoch << CHUNK_COUNTER_BITS)


class Attributes(NamedTuple):
    """The row of one inode. Times are Unix nanoseconds (signed), `size` is in bytes."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


class Dentry(NamedTuple):
    """A name in a directory; `cookie` is the operation that made it, readdir orders by it."""

    name: bytes
    ino: int
    cookie: int


class Piece(NamedTuple):
    """Where bytes [offset, offset + length) of a young chunk lie in the journal."""

    offset: int
    length: int
    segment: int
    position: int
    """Byte position of the WRITE record in the segment."""
    record_offset: int
    """Where the piece begins inside the record's data."""
    op_seq: int


class Extent(NamedTuple):
    """File bytes [offset, offset + length) are chunk bytes from `chunk_offset`."""

    offset: int
    length: int
    chunk: int
    chunk_offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a sealed chunk lies: object key, position, and its frame table as stored."""

    key: str
    offset: int
    stored_length: int
    frames: bytes


# --- operations --------------------------------------------------------------------------


class BeginEpoch(NamedTuple):
    """A writer's new term. `apply` learns epochs from nothing else."""

    epoch: int
    nonce: bytes


class Cut(NamedTuple):
    """The volume's state is frozen here for a commit: chunks made before may not grow."""

    time_ns: int


class Make(NamedTuple):
    """Create a file, directory, symbolic link (`target`), device, fifo or socket."""

    parent: int
    name: bytes
    ino: int
    mode: int
    uid: int
    gid: int
    rdev: int
    target: bytes
    time_ns: int


class Link(NamedTuple):
    ino: int
    parent: int
    name: bytes
    time_ns: int


class Unlink(NamedTuple):
    """Remove a name of a non-directory. The inode stays, as an orphan, until it is reaped."""

    parent: int
    name: bytes
    time_ns: int


class Rmdir(NamedTuple):
    parent: int
    name: bytes
    time_ns: int


class Rename(NamedTuple):
    """rename(2); `exchange` swaps the two names. NOREPLACE was checked before."""

    parent: int
    name: bytes
    new_parent: int
    new_name: bytes
    exchange: bool
    time_ns: int


class Write(NamedTuple):
    """Bytes of a file. `kill_suid`: the set-id bits go (a write by another than root)."""

    ino: int
    offset: int
    kill_suid: bool
    time_ns: int
    data: bytes


class Rewrite(NamedTuple):
    """The bytes that a file range holds anyway, in one piece: defragmentation. No times change."""

    ino: int
    offset: int
    data: bytes


class SetAttributes(NamedTuple):
    """chmod, chown, truncate, utimens in one; None leaves a field alone."""

    ino: int
    mode: int | None
    uid: int | None
    gid: int | None
    size: int | None
    atime_ns: int | None
    mtime_ns: int | None
    ctime_ns: int


class SetXattr(NamedTuple):
    ino: int
    name: bytes
    value: bytes
    time_ns: int


class RemoveXattr(NamedTuple):
    ino: int
    name: bytes
    time_ns: int


class Reap(NamedTuple):
    """Remove up to `rows` rows of an orphan nobody holds any more; its inode row last."""

    ino: int
    rows: int


Operation = (
    BeginEpoch
    | Cut
    | Make
    | Link
    | Unlink
    | Rmdir
    | Rename
    | Write
    | Rewrite
    | SetAttributes
    | SetXattr
    | RemoveXattr
    | Reap
)
