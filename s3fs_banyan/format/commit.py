"""Commit objects: `log/<seq>`, the one PUT by which a state becomes durable in the store.

Byte table: `docs/format/commit.md`. Layout: chunks of small data, delta, placements, footer.
Delta and placements are blobs, each holding a SQLite database; the footer is last, so that the
object can be written in one go and understood from its end. In an encrypted volume the footer
carries a MAC, and the journal's checksum in it is hidden.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass, replace
from typing import Final

from s3fs_banyan.errors import Corrupt, UnsupportedVersion
from s3fs_banyan.format.checksum import Bytes, xxh3
from s3fs_banyan.format.encryption import MAC_BYTES, Cipher
from s3fs_banyan.model import EPOCH_MAX

COMMIT_MAGIC: Final = b"BYNCOMT\n"
COMMIT_VERSION: Final = 1
COMMIT_VERSION_ENCRYPTED: Final = 2
SCHEMA_LEVEL: Final = 1
"""Level of the tables that deltas and checkpoints carry; another level is refused."""
DIGEST_BYTES: Final = 32
NO_DIGEST: Final = bytes(DIGEST_BYTES)
"""Predecessor of the first commit of a volume."""
KEPT_MAX: Final = 4096
_NUMBERS_MAX: Final = (1 << 63) - (1 << 32)
"""Below what committed.db can hold: the commits that follow count on from it."""
_NO_HASH: Final = bytes(64)
_HEX: Final = frozenset(b"0123456789abcdef")

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


def encode_footer(footer: CommitFooter, cipher: Cipher | None = None) -> bytes:
    """Return the footer's bytes, the last thing in a commit.

    With a cipher the footer is proven by a MAC, and `chain`, a checksum of what the journal
    holds in clear, is hidden: it would let whoever reads the store test guesses.
    """
    if len(footer.writer) != 16 or len(footer.predecessor) != DIGEST_BYTES:
        raise ValueError("writer id of 16 bytes and digest of 32 bytes expected")
    if len(footer.kept) > KEPT_MAX:
        raise ValueError(f"{len(footer.kept)} kept commits, at most {KEPT_MAX} fit")
    if not _fits(footer.seq, footer.epoch, footer.op_seq, footer.dense_from, footer.time_ns):
        raise ValueError(f"expected numbers that committed.db can hold, not those of {footer}")
    if cipher is None:
        return _with_tail(_body(footer, footer.chain), COMMIT_VERSION)
    mac = cipher.footer_mac(_body(footer, footer.chain))
    hidden = footer.chain ^ cipher.footer_pad(mac)
    return _with_tail(_body(footer, hidden) + mac, COMMIT_VERSION_ENCRYPTED)


def _fits(seq: int, epoch: int, op_seq: int, dense_from: int, time_ns: int) -> bool:
    return max(seq, op_seq, dense_from, time_ns) < _NUMBERS_MAX and epoch <= EPOCH_MAX


def _body(footer: CommitFooter, chain: int) -> bytes:
    fixed = _FIXED.pack(
        footer.seq,
        footer.epoch,
        footer.writer,
        SCHEMA_LEVEL,
        footer.predecessor,
        chain,
        footer.op_seq,
        footer.time_ns,
        footer.dense_from,
        footer.inline_length,
        footer.delta_length,
        footer.placements_length,
        footer.delta_hash.encode("ascii"),
        len(footer.kept),
    )
    return fixed + struct.pack(f"<{len(footer.kept)}Q", *footer.kept)


def _with_tail(body: bytes, version: int) -> bytes:
    length = len(body) + _TAIL.size
    checksum = xxh3(body + _TAIL.pack(0, length, version, COMMIT_MAGIC))
    return body + _TAIL.pack(checksum, length, version, COMMIT_MAGIC)


def decode_footer(commit: Bytes, key: str, cipher: Cipher | None = None) -> CommitFooter:
    """Return the verified footer of a whole commit object.

    With a cipher it must be proven by its MAC. Raises `Corrupt`, or `UnsupportedVersion` for a
    newer layout or another schema level.
    """
    footer, mac = _decode(commit, key)
    if cipher is None:
        if mac:
            raise Corrupt("commit", key, "it is of an encrypted volume")
        return footer
    if not mac:
        raise Corrupt("commit", key, "it is not of an encrypted volume")
    footer = replace(footer, chain=footer.chain ^ cipher.footer_pad(mac))
    if not hmac.compare_digest(cipher.footer_mac(_body(footer, footer.chain)), mac):
        raise Corrupt("commit", key, "its MAC differs: it was changed, or is another volume's")
    return footer


def _decode(commit: Bytes, key: str) -> tuple[CommitFooter, bytes]:
    """Return (footer as stored, its MAC or nothing), checksum and sizes verified."""
    if len(commit) < _TAIL.size:
        raise Corrupt("commit", key, f"{len(commit)} bytes are too few for a footer")
    checksum, length, version, magic = _TAIL.unpack_from(commit, len(commit) - _TAIL.size)
    if magic != COMMIT_MAGIC:
        raise Corrupt("commit", key, "no footer at its end")
    if version not in {COMMIT_VERSION, COMMIT_VERSION_ENCRYPTED}:
        raise UnsupportedVersion("commit", version, COMMIT_VERSION_ENCRYPTED)
    if not _FIXED.size + _TAIL.size <= length <= len(commit):
        raise Corrupt("commit", key, f"footer of {length} bytes")
    body = bytes(commit[len(commit) - length : len(commit) - _TAIL.size])
    if xxh3(body + _TAIL.pack(0, length, version, magic)) != checksum:
        raise Corrupt("commit", key, "footer checksum differs")
    seq, epoch, writer, schema, *middle, delta_hash, kept_count = _FIXED.unpack_from(body)
    if schema != SCHEMA_LEVEL:
        raise UnsupportedVersion("schema of commit", schema, SCHEMA_LEVEL)
    kept_end = _FIXED.size + 8 * kept_count
    mac_bytes = MAC_BYTES if version == COMMIT_VERSION_ENCRYPTED else 0
    if kept_count > KEPT_MAX or len(body) != kept_end + mac_bytes:
        raise Corrupt("commit", key, f"footer does not hold {kept_count} kept commits")
    mac = body[kept_end:]
    predecessor, chain, op_seq, time_ns, dense_from, inline, delta, placements = middle
    if inline + delta + placements + length != len(commit):
        raise Corrupt("commit", key, "its sections do not add up to its size")
    if not _fits(seq, epoch, op_seq, dense_from, time_ns):
        raise Corrupt("commit", key, "its numbers are out of range")
    if delta_hash != _NO_HASH and not _HEX.issuperset(delta_hash):
        raise Corrupt("commit", key, "delta_hash is no SHA-256")
    footer = CommitFooter(
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
    return footer, mac


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
    inline_length = _decode(commit, "commit")[0].inline_length
    return hashlib.sha256(memoryview(commit)[inline_length:]).digest()
