"""The values in the golden files of version 1. They never change; a new version gets new ones."""

from __future__ import annotations

import hashlib
from typing import Final

from s3fs_banyan.format.checkpoint import CheckpointManifest
from s3fs_banyan.format.commit import CommitFooter
from s3fs_banyan.format.keyring import DataKey, Keyring, Secret, wrap
from s3fs_banyan.format.pack import PackEntry
from s3fs_banyan.format.record import SegmentHeader
from s3fs_banyan.format.volume import Heartbeat, VolumeDescriptor
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


def noise(length: int) -> bytes:
    """Return bytes that do not compress, the same ones everywhere."""
    blocks = (hashlib.sha256(b"golden %d" % n).digest() for n in range(length // 32 + 1))
    return b"".join(blocks)[:length]


T: Final = 1_700_000_000_123_456_789
CHAIN: Final = 0x0123456789ABCDEF
VOLUME_ID: Final = bytes(range(16))
METADATA: Final = b'{"version":1}'

OPERATIONS: Final[tuple[Operation, ...]] = (
    BeginEpoch(3, bytes(range(100, 116))),
    Make(1, b"metadata", 2, 0o100644, 1000, 1001, 0, b"", T),
    Make(1, b"d\xc3\xa9p\xc3\xb4t", 3, 0o040755, 0, 0, 0, b"", T + 1),
    Make(1, b"link", 4, 0o120777, 0, 0, 0, b"../elsewhere", T + 2),
    Make(1, b"null", 5, 0o020666, 0, 0, 0x103, b"", T + 3),
    Write(2, 0, False, T + 4, METADATA),
    Write(2, 1 << 40, True, T + 5, noise(300)),
    SetAttributes(2, 0o640, None, 7, 10, None, -1, T + 6),
    SetAttributes(2, None, 5, None, None, 1, None, T + 7),
    SetXattr(2, b"user.a", b"\x00value", T + 8),
    RemoveXattr(2, b"user.a", T + 9),
    Link(2, 3, b"second", T + 10),
    Rename(1, b"metadata", 3, b"renamed", False, T + 11),
    Rename(3, b"renamed", 3, b"second", True, T + 12),
    Unlink(3, b"second", T + 13),
    Rename(3, b"renamed", 1, b"back", False, T + 14),
    Rmdir(1, b"d\xc3\xa9p\xc3\xb4t", T + 14),
    Cut(T + 15),
    Reap(2, 1000),
)
REWRITES: Final[tuple[Operation, ...]] = (
    Write(2, 0, False, T, METADATA),
    Rewrite(2, 0, METADATA[:5]),
    Rewrite(2, 1 << 40, noise(70)),
)
"""Records that came after the others had been laid down: a file of their own."""
FIRST_OP_SEQ: Final = 41
SEGMENT: Final = SegmentHeader(
    number=7, first_op_seq=FIRST_OP_SEQ, chain=CHAIN, synced_seq=40, volume_id=VOLUME_ID
)

CHUNK_ID: Final = 3 << 40 | 5
CHUNK_PLAIN: Final = noise(65_536 + 1_000)
CHUNK_COMPRESSIBLE: Final = b"banyan " * 11_000
BLOB_PLAIN: Final = noise(500)
BLOB_COMPRESSIBLE: Final = b"row " * 2_000

PACK_ENTRIES: Final = (
    PackEntry(CHUNK_ID, 0, 700, 1_000),
    PackEntry(CHUNK_ID + 1, 700, 300, 65_537),
)
PACK_CHUNKS: Final = noise(1_000)

COMMIT: Final = CommitFooter(
    seq=12,
    epoch=3,
    writer=bytes(range(16, 32)),
    predecessor=hashlib.sha256(b"commit 11").digest(),
    chain=CHAIN,
    op_seq=57,
    time_ns=T,
    dense_from=9,
    kept=(2, 5),
    inline_length=5,
    delta_length=4,
    placements_length=3,
)
COMMIT_SECTIONS: Final = b"iiiii" + b"dddd" + b"ppp"
FENCE: Final = CommitFooter(
    seq=13,
    epoch=4,
    writer=bytes(range(32, 48)),
    predecessor=hashlib.sha256(b"commit 12").digest(),
    chain=CHAIN + 1,
    op_seq=57,
    time_ns=T + 1,
    dense_from=9,
    kept=(),
    inline_length=0,
    delta_length=0,
    placements_length=0,
)
MANIFEST: Final = CheckpointManifest(
    seq=12,
    digest=hashlib.sha256(b"commit 12").hexdigest(),
    database_bytes=(1 << 20) + 4096,
    database_hash=hashlib.sha256(b"database").hexdigest(),
    pieces=(hashlib.sha256(b"piece 0").hexdigest(), hashlib.sha256(b"piece 1").hexdigest()),
)
VOLUME: Final = VolumeDescriptor(
    volume_id=VOLUME_ID.hex(),
    created_ns=T,
    pack_bytes=64 << 20,
    root_uid=1000,
    root_gid=1001,
    root_mode=0o750,
    features_compatible=("harmless",),
    features_read_only=("careful",),
)
HEARTBEAT: Final = Heartbeat(
    host="data-node-0", pid=4711, epoch=3, writer=bytes(range(16, 32)).hex(), time_ns=T
)

# --- version 2: encrypted volumes ----------------------------------------------------------

DATA_KEY: Final = DataKey(key=bytes(range(200, 232)), domain=VOLUME_ID)
CIPHER: Final = DATA_KEY.cipher()
DELTA_PLACE: Final = "delta 12"
PASSPHRASE: Final = Secret(passphrase="correct horse battery staple")
KEY_FILE: Final = Secret(key_file=bytes(range(64)))


def keyring() -> Keyring:
    """Return a keyring with a slot of each kind, the same one each time."""
    slots = tuple(
        wrap(DATA_KEY, secret, lambda count: bytes(range(count)), scrypt_n=1 << 10)
        for secret in (PASSPHRASE, KEY_FILE)
    )
    return Keyring(
        volume_id=VOLUME_ID.hex(), domain=VOLUME_ID.hex(), generation=1, created_ns=T, slots=slots
    )
