"""Keys of a volume's objects: built and parsed here and nowhere else.

Table: `docs/format/keys.md`. All keys are relative to the volume's prefix.
"""

from __future__ import annotations

import re
from typing import Final

VOLUME: Final = "volume.json"
WRITER: Final = "writer"
LOG_PREFIX: Final = "log/"
DELTA_PREFIX: Final = "delta/"
PACK_PREFIX: Final = "pack/"
CHECKPOINT_PREFIX: Final = "checkpoint/"
CHECKPOINT_PIECE_PREFIX: Final = "checkpoint/piece/"
PROBE_PREFIX: Final = "probe/"
KEYRING_PREFIX: Final = "key/"

_SEQ_DIGITS: Final = 20
_HASH_DIGITS: Final = 16
_PACK_KEY: Final = re.compile(r"pack/(0|[1-9][0-9]{0,19})/([0-9a-f]{16})-[0-9a-f]{16}")


def log_key(seq: int) -> str:
    """Return the key of the commit `seq`."""
    return f"{LOG_PREFIX}{seq:020d}"


def log_delta_key(seq: int, content_hash: str) -> str:
    """Return the key of a delta too large to lie inside its commit.

    Not below `log/<seq>`: there are stores where a key must not be another one's directory.
    """
    return f"{DELTA_PREFIX}{seq:020d}-{content_hash[:_HASH_DIGITS]}"


def parse_log_key(key: str) -> int | None:
    """Return the commit number of a `log/<seq>` key, None for any other key."""
    digits = key.removeprefix(LOG_PREFIX)
    if digits == key or len(digits) != _SEQ_DIGITS or not _is_number(digits):
        return None
    return int(digits)


def parse_log_delta_key(key: str) -> int | None:
    """Return the commit number of a `delta/<seq>-<hash>` key, None for any other key."""
    head, dash, tail = key.removeprefix(DELTA_PREFIX).partition("-")
    if not dash or len(tail) != _HASH_DIGITS or len(head) != _SEQ_DIGITS:
        return None
    return int(head) if _is_number(head) and key.startswith(DELTA_PREFIX) else None


def pack_key(epoch: int, pack_id: int, content_hash: str) -> str:
    """Return the key of a pack; the hash keeps two writers from sharing one name."""
    return f"{PACK_PREFIX}{epoch}/{pack_id:016x}-{content_hash[:_HASH_DIGITS]}"


def parse_pack_key(key: str) -> tuple[int, int] | None:
    """Return (epoch, pack id) of a pack key, None for any other key."""
    found = _PACK_KEY.fullmatch(key)
    return (int(found[1]), int(found[2], 16)) if found else None


def is_chunk_key(key: str) -> bool:
    """Tell whether objects with this key hold chunks: packs, and commits with small data."""
    return parse_pack_key(key) is not None or parse_log_key(key) is not None


def pack_hash_of(key: str) -> str:
    """Return the digits of the content hash in a pack's key."""
    return key.rpartition("-")[2]


def checkpoint_key(seq: int) -> str:
    """Return the key of the manifest of the checkpoint as of commit `seq`."""
    return f"{CHECKPOINT_PREFIX}{seq:020d}"


def parse_checkpoint_key(key: str) -> int | None:
    """Return the commit number of a checkpoint manifest's key, None for any other key."""
    digits = key.removeprefix(CHECKPOINT_PREFIX)
    if digits == key or len(digits) != _SEQ_DIGITS or not _is_number(digits):
        return None
    return int(digits)


def keyring_key(generation: int) -> str:
    """Return the key of a generation of the keyring of an encrypted volume."""
    return f"{KEYRING_PREFIX}{generation:020d}"


def parse_keyring_key(key: str) -> int | None:
    """Return the generation of a `key/<generation>` key, None for any other key."""
    digits = key.removeprefix(KEYRING_PREFIX)
    if digits == key or len(digits) != _SEQ_DIGITS or not _is_number(digits):
        return None
    return int(digits)


def checkpoint_piece_key(content_hash: str) -> str:
    """Return the key of a checkpoint piece, named by the SHA-256 of its stored bytes."""
    return f"{CHECKPOINT_PIECE_PREFIX}{content_hash}"


def _is_number(digits: str) -> bool:
    """Tell whether these are digits as `log_key` writes them: Unicode has others."""
    return digits.isascii() and digits.isdecimal()


# --- base packs: files of the local directory, named by places as objects are --------------

BASE_PACK_PREFIX: Final = "base/"


def base_pack_key(number: int) -> str:
    """Return the key by which places name a base pack; no object of the store has such a key."""
    return f"{BASE_PACK_PREFIX}{number:012d}"


def is_base_pack(key: str) -> bool:
    """Tell whether a place's key names a base pack instead of an object of the store."""
    return key.startswith(BASE_PACK_PREFIX)
