"""Checkpoints: committed.db as of one commit, cut into pieces. Table: `docs/format/checkpoint.md`.

The manifest names its pieces by the SHA-256 of their stored bytes (blobs of 1 MiB of database
pages each), so a piece that did not change since the last checkpoint is named again, not sent
again, and every piece can be verified on its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from s3fs_banyan.errors import Corrupt, UnsupportedVersion
from s3fs_banyan.format.checksum import Bytes
from s3fs_banyan.format.commit import SCHEMA_LEVEL
from s3fs_banyan.format.sealed_json import hex_of, is_hex, number_of, open_json, seal_json

CHECKPOINT_VERSION: Final = 1
CHECKPOINT_PIECE_BYTES: Final = 1 << 20
_SHA256_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointManifest:
    """What `checkpoint/<seq>` holds."""

    seq: int
    digest: str
    """SHA-256 in hex of the commit `seq`."""
    database_bytes: int
    database_hash: str
    pieces: tuple[str, ...]


def encode_manifest(manifest: CheckpointManifest) -> bytes:
    """Return the manifest as one line of checksummed JSON."""
    body = {
        "kind": "checkpoint",
        "version": CHECKPOINT_VERSION,
        "schema": SCHEMA_LEVEL,
        "seq": manifest.seq,
        "digest": manifest.digest,
        "database_bytes": manifest.database_bytes,
        "database_hash": manifest.database_hash,
        "pieces": list(manifest.pieces),
    }
    return seal_json(body)


def decode_manifest(stored: Bytes, key: str) -> CheckpointManifest:
    """Return the verified manifest; raises `Corrupt` or `UnsupportedVersion`."""
    body = open_json(stored, "checkpoint", CHECKPOINT_VERSION, key)
    if body.get("schema") != SCHEMA_LEVEL:
        schema = number_of(body, "schema", "checkpoint", key)
        raise UnsupportedVersion("schema of checkpoint", schema, SCHEMA_LEVEL)
    pieces = body.get("pieces")
    if not isinstance(pieces, list) or not all(is_hex(piece, _SHA256_BYTES) for piece in pieces):
        raise Corrupt("checkpoint", key, "its list of pieces is malformed")
    return CheckpointManifest(
        seq=number_of(body, "seq", "checkpoint", key),
        digest=hex_of(body, "digest", _SHA256_BYTES, "checkpoint", key),
        database_bytes=number_of(body, "database_bytes", "checkpoint", key),
        database_hash=hex_of(body, "database_hash", _SHA256_BYTES, "checkpoint", key),
        pieces=tuple(pieces),
    )
