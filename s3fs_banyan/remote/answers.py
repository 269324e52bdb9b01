"""What the answers of all services over HTTP have in common. Knows no SDK."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Final

from s3fs_banyan.errors import Misconfigured, StoreError, Throttled, Unavailable
from s3fs_banyan.remote.base import Summed, check_path

_MESSAGE_LENGTH_MAX: Final = 200


def error_from(
    kind: type[StoreError], said: str, message: str, advice: str, headers: Mapping[str, str]
) -> StoreError:
    """Return an error of a kind: what was said, the store's words in brackets, what helps."""
    text = said
    if message:
        text += f" ({message[:_MESSAGE_LENGTH_MAX]})"
    if advice:
        text += f": {advice}"
    if kind is Throttled:
        return Throttled(text, retry_after_s=retry_after_s(headers))
    return kind(text)


def kind_of_status(status: int) -> type[StoreError]:
    """Judge an answer by its HTTP status alone; 0 is none at all."""
    if status >= 500 or status == 0:
        return Unavailable
    return Misconfigured


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a Retry-After header asks for (RFC 9110, 10.2.3).

    A date is read against the answer's own Date, since the two clocks need not agree.
    """
    value = headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        asked = parsedate_to_datetime(value)
        now = parsedate_to_datetime(headers.get("date", ""))
        return max(0.0, (asked - now).total_seconds())
    except (TypeError, ValueError):
        return None


def is_path(path: str) -> bool:
    """Tell whether a key is one of ours; other tools leave directory markers."""
    try:
        check_path(path)
    except ValueError:
        return False
    return True


def unix_ns(moment: datetime) -> int:
    """Return a time as Unix nanoseconds, exactly."""
    return int(moment.replace(microsecond=0).timestamp()) * 10**9 + moment.microsecond * 1000


def md5_of(data: bytes | bytearray | memoryview) -> bytes:
    """Return the MD5 of a body, as stores compare it; it protects from accidents only."""
    if isinstance(data, Summed):
        return data.md5
    return hashlib.md5(data, usedforsecurity=False).digest()
