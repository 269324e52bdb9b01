"""Bodies in pieces, sent or received, so that a time-out is for one piece and not for all of them.

The time-out of a socket is for one `sendall` as a whole (Python's `socket.sendall`), urllib3
sends a body of bytes by one `sendall`, and until an answer is awaited the time-out is the one for
connecting. A pack of 64 MiB would have to leave within those few seconds, or the request breaks,
comes again and breaks again: a slow line would never get it through.
A body that is received may trickle in for hours in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

PIECE_BYTES: Final = 128 * 1024
"""A connection slower than this in one `connect_timeout` counts as broken."""
LOOK_BYTES_MAX: Final = 1 << 20
_LOOK_BYTES_MIN: Final = 64 * 1024
"""More than a TLS record, of which one look gives one."""


class PiecewiseBody:
    """A body of bytes that gives pieces of it; may be sent again from its start."""

    def __init__(self, body: bytes | bytearray | memoryview) -> None:
        self._body = memoryview(body)

    def __len__(self) -> int:
        return self._body.nbytes

    def __iter__(self) -> Iterator[memoryview]:
        for start in range(0, self._body.nbytes, PIECE_BYTES):
            yield self._body[start : start + PIECE_BYTES]


def in_pieces(body: Any) -> Any:  # noqa: ANN401  # whatever an SDK sends
    """Return a large body of bytes as one that is sent in pieces, anything else as it is."""
    if isinstance(body, bytes | bytearray | memoryview) and len(body) > PIECE_BYTES:
        return PiecewiseBody(body)
    return body


def each_look(look: Callable[[int], bytes]) -> Iterator[bytes]:
    """Give what each look at the line gives, until one gives nothing. Raises what `look` does.

    `look` is a `read1`: it takes how many bytes there is room for, and waits once. Room that stays
    empty is paid for (it is taken, and given back): so there is room for a few times what came.
    """
    room = _LOOK_BYTES_MIN
    while piece := look(room):
        yield piece
        room = min(max(4 * len(piece), _LOOK_BYTES_MIN), LOOK_BYTES_MAX)
