"""Journal records and segment headers. Byte table: `docs/format/journal.md`.

A record's checksum is seeded with that of the record before it, across segments too, so no
stale record can ever follow a new one. It covers the header (with the checksum of the data in
it) and the operation's fields; the data of a WRITE has its own checksum, so that one record can
be verified on its own when its bytes are read back or sealed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from s3fs_banyan.errors import Corrupt, UnsupportedVersion
from s3fs_banyan.format.checksum import Bytes, xxh3
from s3fs_banyan.model import (
    BeginEpoch,
    Cut,
    Link,
    Make,
    Operation,
    Reap,
    RemoveXattr,
    Rename,
    Rewrite,
    Rmdir,
    SetAttributes,
    SetXattr,
    Unlink,
    Write,
)

RECORD_VERSION: Final = 1
SEGMENT_VERSION: Final = 1
SEGMENT_MAGIC: Final = b"BYNSEGM\n"
SEGMENT_HEADER_BYTES: Final = 4096
"""A whole page, so that the header's sector is not shared with a record."""

_HEADER = struct.Struct("<IIBBHIQQQ")
_CHECKSUM = struct.Struct("<Q")
_SEGMENT = struct.Struct("<8sIIQQQQ16s")
RECORD_HEADER_BYTES: Final = _HEADER.size + _CHECKSUM.size
if RECORD_HEADER_BYTES != 48:
    raise AssertionError("the byte table in docs/format/journal.md says 48")

BODY_BYTES_MAX: Final = 128 * 1024
DATA_BYTES_MAX: Final = 1 << 24

_KIND_WRITE: Final = 8
_KIND_REWRITE: Final = 13


class Record(NamedTuple):
    """One decoded record and where it ends."""

    op: Operation
    op_seq: int
    tid: int
    synced_seq: int
    """The highest sequence number that was known to be synced when this was appended."""
    checksum: int
    end: int


class SegmentHeader(NamedTuple):
    """The first page of a segment, rewritten at each use of the file."""

    number: int
    first_op_seq: int
    chain: int
    synced_seq: int
    volume_id: bytes


# --- operations <-> bytes ----------------------------------------------------------------

_U16 = struct.Struct("<H")
_QQ = struct.Struct("<QQ")
_QQQ = struct.Struct("<QQQ")
_WRITE = struct.Struct("<QQBq")
_REWRITE = struct.Struct("<QQ9x")
"""As long as a WRITE's fields, so that the data of both begins at the same place."""
_MAKE = struct.Struct("<QQIIIQqHH")
_LINK = struct.Struct("<QQqH")
_NAME = struct.Struct("<QqH")
_RENAME = struct.Struct("<QQBqHH")
_SETATTR = struct.Struct("<QBIIIQqqq")
_XATTR = struct.Struct("<QqHI")
_TIME = struct.Struct("<q")
_EPOCH = struct.Struct("<Q16s")
_REAP = struct.Struct("<QI")


def _encode_set_attributes(op: SetAttributes) -> bytes:
    fields = (op.mode, op.uid, op.gid, op.size, op.atime_ns, op.mtime_ns)
    mask = sum(1 << bit for bit, value in enumerate(fields) if value is not None)
    return _SETATTR.pack(op.ino, mask, *(value or 0 for value in fields), op.ctime_ns)


def _decode_set_attributes(body: bytes) -> SetAttributes:
    ino, mask, *fields, ctime_ns = _SETATTR.unpack(body)
    mode, uid, gid, size, atime_ns, mtime_ns = (
        value if mask & (1 << bit) else None for bit, value in enumerate(fields)
    )
    return SetAttributes(ino, mode, uid, gid, size, atime_ns, mtime_ns, ctime_ns)


def _encode_make(op: Make) -> bytes:
    head = _MAKE.pack(
        op.parent,
        op.ino,
        op.mode,
        op.uid,
        op.gid,
        op.rdev,
        op.time_ns,
        len(op.name),
        len(op.target),
    )
    return head + op.name + op.target


def _decode_make(body: bytes) -> Make:
    parent, ino, mode, uid, gid, rdev, time_ns, name_len, target_len = _MAKE.unpack_from(body)
    name, target = _tails(body, _MAKE.size, name_len, target_len)
    return Make(parent, name, ino, mode, uid, gid, rdev, target, time_ns)


def _encode_link(op: Link) -> bytes:
    return _LINK.pack(op.ino, op.parent, op.time_ns, len(op.name)) + op.name


def _decode_link(body: bytes) -> Link:
    ino, parent, time_ns, name_len = _LINK.unpack_from(body)
    (name,) = _tails(body, _LINK.size, name_len)
    return Link(ino, parent, name, time_ns)


def _encode_name(op: Unlink | Rmdir) -> bytes:
    return _NAME.pack(op.parent, op.time_ns, len(op.name)) + op.name


def _decode_unlink(body: bytes) -> Unlink:
    parent, time_ns, name_len = _NAME.unpack_from(body)
    (name,) = _tails(body, _NAME.size, name_len)
    return Unlink(parent, name, time_ns)


def _decode_rmdir(body: bytes) -> Rmdir:
    parent, time_ns, name_len = _NAME.unpack_from(body)
    (name,) = _tails(body, _NAME.size, name_len)
    return Rmdir(parent, name, time_ns)


def _encode_rename(op: Rename) -> bytes:
    head = _RENAME.pack(
        op.parent, op.new_parent, op.exchange, op.time_ns, len(op.name), len(op.new_name)
    )
    return head + op.name + op.new_name


def _decode_rename(body: bytes) -> Rename:
    parent, new_parent, exchange, time_ns, name_len, new_len = _RENAME.unpack_from(body)
    name, new_name = _tails(body, _RENAME.size, name_len, new_len)
    return Rename(parent, name, new_parent, new_name, bool(exchange), time_ns)


def _encode_xattr(op: SetXattr) -> bytes:
    return _XATTR.pack(op.ino, op.time_ns, len(op.name), len(op.value)) + op.name + op.value


def _decode_set_xattr(body: bytes) -> SetXattr:
    ino, time_ns, name_len, value_len = _XATTR.unpack_from(body)
    name, value = _tails(body, _XATTR.size, name_len, value_len)
    return SetXattr(ino, name, value, time_ns)


def _encode_remove_xattr(op: RemoveXattr) -> bytes:
    return _XATTR.pack(op.ino, op.time_ns, len(op.name), 0) + op.name


def _decode_remove_xattr(body: bytes) -> RemoveXattr:
    ino, time_ns, name_len, value_len = _XATTR.unpack_from(body)
    name, _ = _tails(body, _XATTR.size, name_len, value_len)
    return RemoveXattr(ino, name, time_ns)


def _encode_write(op: Write) -> bytes:
    return _WRITE.pack(op.ino, op.offset, op.kill_suid, op.time_ns)


def _tails(body: bytes, start: int, *lengths: int) -> list[bytes]:
    if len(body) != start + sum(lengths):
        raise ValueError(f"operation of {len(body)} bytes, its fields say {start + sum(lengths)}")
    tails = []
    for length in lengths:
        tails.append(body[start : start + length])
        start += length
    return tails


_ENCODERS: dict[type, tuple[int, Callable[[Any], bytes]]] = {
    BeginEpoch: (1, lambda op: _EPOCH.pack(op.epoch, op.nonce)),
    Cut: (2, lambda op: _TIME.pack(op.time_ns)),
    Make: (3, _encode_make),
    Link: (4, _encode_link),
    Unlink: (5, _encode_name),
    Rmdir: (6, _encode_name),
    Rename: (7, _encode_rename),
    Write: (_KIND_WRITE, _encode_write),
    Rewrite: (_KIND_REWRITE, lambda op: _REWRITE.pack(op.ino, op.offset)),
    SetAttributes: (9, _encode_set_attributes),
    SetXattr: (10, _encode_xattr),
    RemoveXattr: (11, _encode_remove_xattr),
    Reap: (12, lambda op: _REAP.pack(op.ino, op.rows)),
}

_DECODERS: dict[int, Callable[[bytes], Operation]] = {
    1: lambda body: BeginEpoch(*_EPOCH.unpack(body)),
    2: lambda body: Cut(*_TIME.unpack(body)),
    3: _decode_make,
    4: _decode_link,
    5: _decode_unlink,
    6: _decode_rmdir,
    7: _decode_rename,
    9: _decode_set_attributes,
    10: _decode_set_xattr,
    11: _decode_remove_xattr,
    12: lambda body: Reap(*_REAP.unpack(body)),
}


def encode_record(
    op: Operation, op_seq: int, tid: int, synced_seq: int, chain: int
) -> tuple[bytes, Bytes, int]:
    """Return (header and fields, data, checksum) of one operation.

    `chain` is the checksum of the record before. The data is returned as it is, uncopied.
    """
    kind, encode = _ENCODERS[type(op)]
    body = encode(op)
    data: Bytes = b""
    data_sum = 0
    if kind in {_KIND_WRITE, _KIND_REWRITE}:
        data = op.data  # type: ignore[union-attr]  # the kind says that it has data
        data_sum = xxh3(data)
    head = _HEADER.pack(
        len(body),
        len(data),
        kind,
        RECORD_VERSION,
        0,
        tid & 0xFFFFFFFF,
        op_seq,
        synced_seq,
        data_sum,
    )
    checksum = xxh3(head + body, seed=chain)
    return head + _CHECKSUM.pack(checksum) + body, data, checksum


class RecordHead(NamedTuple):
    """The fixed part of a record, not yet verified against the chain."""

    body_length: int
    data_length: int
    kind: int
    version: int
    tid: int
    op_seq: int
    synced_seq: int
    data_sum: int
    checksum: int


def peek_record(buffer: Bytes, position: int) -> RecordHead | None:
    """Read a record's head; None where no record can be (too short, impossible lengths)."""
    if position + RECORD_HEADER_BYTES > len(buffer):
        return None
    body_length, data_length, kind, version, flags, tid, op_seq, synced_seq, data_sum = (
        _HEADER.unpack_from(buffer, position)
    )
    (checksum,) = _CHECKSUM.unpack_from(buffer, position + _HEADER.size)
    if kind == 0 or flags != 0 or body_length > BODY_BYTES_MAX or data_length > DATA_BYTES_MAX:
        return None
    return RecordHead(
        body_length, data_length, kind, version, tid, op_seq, synced_seq, data_sum, checksum
    )


def head_continues(buffer: Bytes, position: int, head: RecordHead, chain: int) -> bool:
    """Tell whether header and fields verify against the chain (the data is not looked at)."""
    body_start = position + RECORD_HEADER_BYTES
    body_end = body_start + head.body_length
    if body_end > len(buffer):
        return False
    covered = bytes(buffer[position : position + _HEADER.size]) + bytes(buffer[body_start:body_end])
    return xxh3(covered, seed=chain) == head.checksum


def data_verifies(buffer: Bytes, position: int, head: RecordHead) -> bool:
    """Tell whether the data of a record whose head was verified is intact."""
    start = position + RECORD_HEADER_BYTES + head.body_length
    end = start + head.data_length
    if end > len(buffer):
        return False
    return not head.data_length or xxh3(memoryview(buffer)[start:end]) == head.data_sum


def decode_record(buffer: Bytes, position: int, head: RecordHead) -> Record:
    """Decode a record whose checksums were verified.

    Raises `UnsupportedVersion` for a kind or version of a newer release.
    """
    if head.version != RECORD_VERSION:
        raise UnsupportedVersion("journal record", head.version, RECORD_VERSION)
    start = position + RECORD_HEADER_BYTES
    body = bytes(buffer[start : start + head.body_length])
    start += head.body_length
    end = start + head.data_length
    op: Operation
    try:
        if head.kind == _KIND_WRITE:
            ino, offset, kill_suid, time_ns = _WRITE.unpack(body)
            op = Write(ino, offset, bool(kill_suid), time_ns, bytes(buffer[start:end]))
        elif head.kind == _KIND_REWRITE:
            ino, offset = _REWRITE.unpack(body)
            op = Rewrite(ino, offset, bytes(buffer[start:end]))
        elif head.kind in _DECODERS:
            op = _DECODERS[head.kind](body)
        else:
            raise UnsupportedVersion("journal operation", head.kind, _KIND_REWRITE)
    except (struct.error, ValueError) as error:
        raise Corrupt("journal record", f"operation {head.op_seq}", str(error)) from error
    return Record(op, head.op_seq, head.tid, head.synced_seq, head.checksum, end)


def write_data_offset(body_length: int) -> int:
    """Return where the data of a record begins, from the record's position."""
    return RECORD_HEADER_BYTES + body_length


WRITE_DATA_OFFSET: Final = RECORD_HEADER_BYTES + _WRITE.size
"""Where the data of a WRITE record begins, from the record's position."""


def encode_segment_header(header: SegmentHeader) -> bytes:
    """Return the first page of a segment."""
    head = _SEGMENT.pack(
        SEGMENT_MAGIC,
        SEGMENT_VERSION,
        0,
        header.number,
        header.first_op_seq,
        header.chain,
        header.synced_seq,
        header.volume_id,
    )
    page = head + _CHECKSUM.pack(xxh3(head))
    return page.ljust(SEGMENT_HEADER_BYTES, b"\0")


def decode_segment_header(page: bytes) -> SegmentHeader | None:
    """Return the header, or None where the page is no intact header (an unused file).

    Raises `UnsupportedVersion` for a segment of a newer release.
    """
    if len(page) < _SEGMENT.size + _CHECKSUM.size:
        return None
    magic, version, _, number, first, chain, synced, volume_id = _SEGMENT.unpack_from(page)
    (checksum,) = _CHECKSUM.unpack_from(page, _SEGMENT.size)
    if magic != SEGMENT_MAGIC or checksum != xxh3(page[: _SEGMENT.size]):
        return None
    if version != SEGMENT_VERSION:
        raise UnsupportedVersion("journal segment", version, SEGMENT_VERSION)
    return SegmentHeader(number, first, chain, synced, volume_id)
