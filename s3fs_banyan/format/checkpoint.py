"""Checkpoints: committed.db as of one commit, cut into pieces. Table: `docs/format/checkpoint.md`.

The manifest names its pieces by the SHA-256 of their stored bytes (blobs of 1 MiB of database
pages each), so a piece that did not change since the last checkpoint is named again, not sent
again, and every piece can be verified on its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from s3fs_banyan.errors import Corrupt, UnsupportedVersion
from s3fs_banyan.foreign_json import parse_json
from s3fs_banyan.format.checksum import Bytes, sha256_hex
from s3fs_banyan.format.commit import SCHEMA_LEVEL

CHECKPOINT_VERSION: Final = 1
CHECKPOINT_PIECE_BYTES: Final = 1 << 20
UINT64_MAX: Final = (1 << 64) - 1
_HEX: Final = frozenset("0123456789abcdef")
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


def seal_json(body: dict[str, object]) -> bytes:
    """Return canonical JSON with a checksum in it: the form of every small named object."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return (
        json.dumps({**body, "checksum": sha256_hex(text.encode())}, sort_keys=True) + "\n"
    ).encode()


def open_json(stored: Bytes, kind: str, version_known: int, key: str) -> dict[str, object]:
    """Return the body of a sealed JSON object after checking checksum, kind and version."""
    try:
        body = parse_json(bytes(stored))
    except ValueError as error:
        raise Corrupt(kind, key, f"no JSON: {error}") from error
    if not isinstance(body, dict) or body.get("kind") != kind:
        raise Corrupt(kind, key, "it is something else")
    version = body.get("version")
    if isinstance(version, int) and version > version_known:
        raise UnsupportedVersion(kind, version, version_known)
    checksum = body.pop("checksum", None)
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    if checksum != sha256_hex(text.encode()):
        raise Corrupt(kind, key, "checksum differs")
    if type(version) is not int or version < 1:
        raise Corrupt(kind, key, "it has no version")
    return body


def is_hex(value: object, size: int) -> bool:
    """Tell whether `value` is `size` bytes in lower-case hexadecimal digits."""
    return isinstance(value, str) and len(value) == 2 * size and _HEX.issuperset(value)


def hex_of(body: Mapping[str, object], name: str, size: int, kind: str, key: str) -> str:
    """Return a field of `size` bytes in lower-case hexadecimal digits; raises `Corrupt`."""
    value = body.get(name)
    if not is_hex(value, size):
        raise Corrupt(kind, key, f"{name} is not {size} bytes in hex")
    return str(value)


def number_of(
    body: Mapping[str, object], name: str, kind: str, key: str, *, most: int = UINT64_MAX
) -> int:
    """Return a field that is a number from 0 to `most`; raises `Corrupt`."""
    value = body.get(name)
    if type(value) is not int or not 0 <= value <= most:
        raise Corrupt(kind, key, f"{name} is no number from 0 to {most}")
    return value
