"""JSON with a checksum in it, the form of every small named object, and its fields, each checked.

Whoever can write to the bucket can seal what they like: a checksum says nothing of what a field
holds. So a field is taken by a function that refuses what no encoder of ours would have written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from s3fs_banyan.errors import Corrupt, UnsupportedVersion
from s3fs_banyan.foreign_json import parse_json
from s3fs_banyan.format.checksum import Bytes, sha256_hex

UINT64_MAX: Final = (1 << 64) - 1
_HEX: Final = frozenset("0123456789abcdef")


def seal_json(body: dict[str, object]) -> bytes:
    """Return canonical JSON with a checksum in it; all of `body` is under it."""
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
