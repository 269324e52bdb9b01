"""Reading the answers of S3: fields that must be there, ranges, times. Knows nothing of the SDK.

An answer is a mapping with the names that S3 gives its fields. What is not there although S3
always gives it was said by some stranger, a proxy's login page for one, and is not believed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final

from s3fs_banyan.errors import BrokenBody, Unavailable
from s3fs_banyan.gentle_io import Bytes
from s3fs_banyan.remote.answers import unix_ns
from s3fs_banyan.remote.http_body import LOOK_BYTES_MAX, each_look
from s3fs_banyan.remote.large_body import LARGE_BYTES, BodyKind, fill_from_line
from s3fs_banyan.runtime import monotonic_s

_READ_RATE_MIN: Final = 16 * 1024
"""Bytes a second: a body that comes slower is given up, or a trickle would never end."""

_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True, slots=True)
class Torn:
    """What a read asked for, and what of it is known from bodies that broke."""

    path: str
    offset: int
    length: int | None
    received: bytes = b""
    etag: str = ""
    """Of the object that the bytes are from."""

    @property
    def begin(self) -> int:
        """Where what is missing begins."""
        return self.offset + len(self.received)

    @property
    def enough(self) -> int | None:
        """More bytes than these no answer needs to have, not even one that ignores the range."""
        return None if self.length is None else self.offset + self.length

    def after(self, answer: Mapping[str, Any], pieces: Sequence[bytes], why: str) -> Unavailable:
        """Return the error for a body that broke after `pieces`: what came is kept in it."""
        match = _CONTENT_RANGE.fullmatch(answer.get("ContentRange") or "")
        if self.begin != (int(match[1]) if match else 0) or not (pieces or self.received):
            return Unavailable(why)
        received = b"".join((self.received, *pieces))
        if self.length is not None and len(received) >= self.length:
            return Unavailable(why)  # the range was ignored: nothing is missing, and too much came
        return BrokenBody(
            why,
            path=self.path,
            offset=self.offset,
            length=self.length,
            received=received,
            etag=self.etag,
        )


def body_of(
    answer: Mapping[str, Any],
    what: str,
    timeout_s: float,
    torn: Torn,
    kind: BodyKind,
) -> Bytes:
    """Read the whole body, however it is cut into packets.

    `timeout_s` is for the first byte; the rest has to come at some speed. `kind` says
    what the SDK's bodies are. Raises `Unavailable`, as `BrokenBody` if some of it came.
    """
    expected = answer.get("ContentLength")
    chunked = "transfer-encoding" in answer["ResponseMetadata"]["HTTPHeaders"]
    if expected is None and not chunked:  # nothing would tell its end from a lost connection
        raise Unavailable(f"{what}: a body without a length")
    deadline_s = monotonic_s() + timeout_s + (expected or 0) / _READ_RATE_MIN
    pieces: list[bytes] = []
    try:
        with closing(answer["Body"]) as body:
            filled = None
            if expected is not None and expected >= LARGE_BYTES:
                filled = fill_from_line(body, kind.plain, expected, deadline_s)
            if filled is not None and filled.why:
                pieces = [bytes(filled.data)] if filled.data else []
                raise torn.after(answer, pieces, f"{what}: {filled.why}")
            if filled is not None:
                return filled.data
            count = 0
            for piece in each_look(getattr(body._raw_stream, "read1", body.read)):  # noqa: SLF001
                pieces.append(piece)
                count += len(piece)
                if chunked and torn.enough is not None and count > torn.enough + LOOK_BYTES_MAX:
                    raise Unavailable(f"{what}: far more came than was asked for")
                if monotonic_s() > deadline_s:
                    raise torn.after(answer, pieces, f"{what}: the body came too slowly")
    except kind.breaks as error:
        raise torn.after(answer, pieces, f"{what}: {error}") from error
    whole = b"".join(pieces)
    if expected is not None and len(whole) != expected:
        raise torn.after(answer, pieces, f"{what}: {len(whole)} bytes came of {expected}")
    return whole


def cut_range(
    answer: Mapping[str, Any], body: Bytes, offset: int, length: int | None, path: str
) -> Bytes:
    """Return what was asked for; a server may ignore a range (RFC 9110, 14.2) and send all."""
    content_range = answer.get("ContentRange")
    if not content_range and status_of(answer) == 206:
        raise Unavailable(f"read {path}: a part came, and it is not said which")
    if not content_range:
        return body[offset:] if length is None else body[offset : offset + length]
    match = _CONTENT_RANGE.fullmatch(content_range)
    if match is None or match[3] == "*":
        raise Unavailable(f"read {path}: the answer has the range {content_range!r}")
    size = int(match[3])
    end = size if length is None else min(size, offset + length)
    if (int(match[1]), int(match[2]) + 1, len(body)) != (offset, end, end - offset):
        raise Unavailable(
            f"read {path}: bytes {offset} to {end} were asked for, {content_range!r} came with "
            f"{len(body)} bytes"
        )
    return body


def answered_ns(answer: Mapping[str, Any]) -> int | None:
    """Return the store's own time of an answer, from its Date header, as Unix nanoseconds."""
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date", "")
    try:
        return unix_ns(parsedate_to_datetime(date))
    except (TypeError, ValueError):
        return None


def field_of(answer: Mapping[str, Any], name: str, what: str) -> Any:  # noqa: ANN401
    """Return a field that S3 always gives; else the "200 OK" is some stranger's."""
    if name not in answer:
        raise Unavailable(f"{what}: the answer is not one of S3: it has no {name}")
    return answer[name]


def etag_of(answer: Mapping[str, Any], what: str) -> str:
    """Return the ETag, without its quotes."""
    return str(field_of(answer, "ETag", what)).strip('"')


def code_of(answer: Mapping[str, Any]) -> str:
    """Return the code of an error answer, "" if it has none."""
    return str(answer.get("Error", {}).get("Code", ""))


def status_of(answer: Mapping[str, Any]) -> int:
    """Return the HTTP status of an answer, 0 if it is not known."""
    return int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
