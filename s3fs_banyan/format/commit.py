"""Commit objects: `log/<seq>`, the one PUT by which a state becomes durable in the store.

Byte table: `docs/format/commit.md`. Layout: chunks of small data, delta, placements, footer.
Delta and placements are blobs, each holding a SQLite database; the footer is last, so that the
object can be written in one go and understood from its end.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

from s3fs_banyan.errors import Corrupt, UnsupportedVersion
from s3fs_banyan.format.checksum import Bytes, xxh3

COMMIT_MAGIC: Final = b"BYNCOMT\n"
COMMIT_VERSION: Final = 1
SCHEMA_LEVEL: Final = 1
"""Level of the tables that deltas and checkpoints carry; another level is refused."""
DIGEST_BYTES: Final = 32
NO_DIGEST: Final = bytes(DIGEST_BYTES)
"""Predecessor of the first commit of a volume."""
KEPT_MAX: Final = 4096

_FIXED = struct.Struct("<QQ16sI32sQQqQQQQ64sI")
_TAIL = struct.Struct("<QII8s")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitFooter:
    """What a commit says about itself."""

    seq: int
    epoch: int
    writer: bytes
    """16 bytes: this mount's random identity."""
    predecessor: bytes
    """`commit_digest` of the commit before."""
    chain: int
    """Checksum of the journal record of its cut (a fence: of its epoch record)."""
    op_seq: int
    """Operation number of its cut; of a fence: of the last real cut."""
    time_ns: int
    dense_from: int
    """Commits from here on are all kept."""
    kept: tuple[int, ...]
    """Single commits kept below `dense_from`."""
    inline_length: int
    delta_length: int
    """0 in a fence."""
    placements_length: int
    delta_hash: str = ""
    """SHA-256 in hex of a delta that lies in an object of its own (then `delta_length` is 0)."""

    @property
    def is_fence(self) -> bool:
        """Tell whether it carries no state: it moves seq and epoch only."""
        return self.delta_length == 0 and not self.delta_hash


def encode_footer(footer: CommitFooter) -> bytes:
    """Return the footer's bytes, the last thing in a commit."""
    if len(footer.writer) != 16 or len(footer.predecessor) != DIGEST_BYTES:
        raise ValueError("writer id of 16 bytes and digest of 32 bytes expected")
    if len(footer.kept) > KEPT_MAX:
        raise ValueError(f"{len(footer.kept)} kept commits, at most {KEPT_MAX} fit")
    fixed = _FIXED.pack(
        footer.seq,
        footer.epoch,
        footer.writer,
        SCHEMA_LEVEL,
        footer.predecessor,
        footer.chain,
        footer.op_seq,
        footer.time_ns,
        footer.dense_from,
        footer.inline_length,
        footer.delta_length,
        footer.placements_length,
        footer.delta_hash.encode("ascii"),
        len(footer.kept),
    )
    body = fixed + struct.pack(f"<{len(footer.kept)}Q", *footer.kept)
    length = len(body) + _TAIL.size
    checksum = xxh3(body + _TAIL.pack(0, length, COMMIT_VERSION, COMMIT_MAGIC))
    return body + _TAIL.pack(checksum, length, COMMIT_VERSION, COMMIT_MAGIC)


def decode_footer(commit: Bytes, key: str) -> CommitFooter:
    """Return the verified footer of a whole commit object.

    Raises `Corrupt`, or `UnsupportedVersion` for a newer layout or another schema level.
    """
    if len(commit) < _TAIL.size:
        raise Corrupt("commit", key, f"{len(commit)} bytes are too few for a footer")
    checksum, length, version, magic = _TAIL.unpack_from(commit, len(commit) - _TAIL.size)
    if magic != COMMIT_MAGIC:
        raise Corrupt("commit", key, "no footer at its end")
    if version != COMMIT_VERSION:
        raise UnsupportedVersion("commit", version, COMMIT_VERSION)
    if not _FIXED.size + _TAIL.size <= length <= len(commit):
        raise Corrupt("commit", key, f"footer of {length} bytes")
    body = bytes(commit[len(commit) - length : len(commit) - _TAIL.size])
    if xxh3(body + _TAIL.pack(0, length, version, magic)) != checksum:
        raise Corrupt("commit", key, "footer checksum differs")
    seq, epoch, writer, schema, *middle, delta_hash, kept_count = _FIXED.unpack_from(body)
    if schema != SCHEMA_LEVEL:
        raise UnsupportedVersion("schema of commit", schema, SCHEMA_LEVEL)
    if len(body) != _FIXED.size + 8 * kept_count:
        raise Corrupt("commit", key, f"footer does not hold {kept_count} kept commits")
    predecessor, chain, op_seq, time_ns, dense_from, inline, delta, placements = middle
    if inline + delta + placements + length != len(commit):
        raise Corrupt("commit", key, "its sections do not add up to its size")
    return CommitFooter(
        seq=seq,
        epoch=epoch,
        writer=writer,
        predecessor=predecessor,
        chain=chain,
        op_seq=op_seq,
        time_ns=time_ns,
        dense_from=dense_from,
        kept=struct.unpack_from(f"<{kept_count}Q", body, _FIXED.size),
        inline_length=inline,
        delta_length=delta,
        placements_length=placements,
        delta_hash=delta_hash.rstrip(b"\0").decode("ascii"),
    )


def commit_sections(commit: Bytes, footer: CommitFooter) -> tuple[memoryview, memoryview]:
    """Return (delta blob, placements blob) of a commit; empty views where there is none."""
    view = memoryview(commit)
    delta_end = footer.inline_length + footer.delta_length
    placements_end = delta_end + footer.placements_length
    return view[footer.inline_length : delta_end], view[delta_end:placements_end]


def commit_digest(commit: Bytes) -> bytes:
    """Return the SHA-256 by which the next commit names this one.

    Inline chunks are left out: each of their frames has a checksum of its own, and a bit that
    rots there must cost one file, not the history behind this commit.
    """
    inline_length = decode_footer(commit, "commit").inline_length
    return hashlib.sha256(memoryview(commit)[inline_length:]).digest()
