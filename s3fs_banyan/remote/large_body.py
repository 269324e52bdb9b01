"""Large bodies from the line to where they stay, without a copy between.

The SDK hands a body out in pieces that it copies inside, and joined they are copied once more:
of what a cold read costs, a twentieth. So what lies under the SDK's body is read from directly,
if it is what it is known to be; else the caller reads the body as usual.
"""

from __future__ import annotations

from http.client import HTTPException, HTTPResponse
from typing import Any, Final, NamedTuple

from s3fs_banyan.remote.body_memory import memory_for
from s3fs_banyan.runtime import monotonic_s

LARGE_BYTES: Final = 1 << 20
"""From here on it pays."""
_PIECE_BYTES: Final = 1 << 20


class BodyKind(NamedTuple):
    """What an SDK hands out as a body."""

    plain: type
    """The class of one that passes the line's bytes on as they are; not of one that verifies."""
    breaks: tuple[type[Exception], ...]
    """What is raised while a body is read from the line."""


class Filled(NamedTuple):
    """What came of a body, and why not all of it, if so."""

    data: memoryview
    """Of memory that begins with a page, as writes past the page cache want it."""
    why: str


def fill_from_line(
    body: Any,  # noqa: ANN401
    plain: type,
    length: int,
    deadline_s: float,
) -> Filled | None:
    """Return what came of a body of `length` bytes until `deadline_s` of the monotonic clock.

    The connection of a whole body can be used again; that of another one the caller closes with
    the body. None: it is not known how to read this one, and nothing was read. Blocks.
    """
    raw = _raw_of(body) if type(body) is plain else None
    if raw is None:
        return None
    line: HTTPResponse = raw._fp  # noqa: SLF001  # looked at by `_raw_of`
    try:
        view = memory_for(length)
    except (MemoryError, OverflowError, ValueError, OSError) as error:
        return Filled(memoryview(b""), f"no memory for {length} bytes: {error}")
    count, why = 0, ""
    while count < length and not why:
        got = 0
        try:
            got = _read_some(line, view[count : count + _PIECE_BYTES])
        except (OSError, HTTPException) as error:
            why = str(error) or type(error).__name__
        count += got
        if not got and not why:
            why = f"{count} bytes came of {length}"
        elif count < length and monotonic_s() > deadline_s:
            why = "the body came too slowly"
    if count < length:
        return Filled(view[:count], why)
    if line.isclosed():  # nothing is left on the line, not even the end of a chunked body
        raw.release_conn()
    return Filled(view, "")


def _read_some(line: HTTPResponse, view: memoryview) -> int:
    """Read what one look at the line gives: a whole piece may trickle in for hours.

    The time-out of a socket is for one look; whoever waits for more at once waits for many.
    """
    if line.chunked or line.length is None or line.fp is None:
        return line.readinto(view)
    got: int = line.fp.readinto1(view[: line.length])
    line.length -= got
    if not line.length:
        line.read(0)  # the end is noticed there
    return got


def _raw_of(body: Any) -> Any:  # noqa: ANN401  # of the library under the SDK
    """Return the response under a body, or None."""
    raw = getattr(body, "_raw_stream", None)
    is_known = isinstance(getattr(raw, "_fp", None), HTTPResponse) and hasattr(raw, "release_conn")
    return raw if is_known else None
