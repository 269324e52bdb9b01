"""One HTTP connection, as far as a proxy needs to understand it (RFC 9112).

Heads are read whole, bodies in pieces as they come; nothing is decoded. A body is framed by its
Content-Length or by chunks, and a chunked one is given with its framing, ready to be passed on.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

HEAD_BYTES_MAX: Final = 1 << 16
PIECE_BYTES: Final = 1 << 18

_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked", re.IGNORECASE)
_EXPECT: Final = re.compile(rb"\r\nexpect:[ \t]*100-continue", re.IGNORECASE)


class Hangup(Exception):
    """The peer closed or broke the connection in the middle of something."""


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a request or an answer, with its empty line."""

    raw: bytes

    @property
    def words(self) -> list[str]:
        """The three parts of the first line."""
        line = self.raw.split(b"\r\n", 1)[0].decode("latin-1")
        return [*line.split(" ", 2), "", ""][:3]

    @property
    def status(self) -> int:
        """Status code of an answer."""
        return int(self.words[1])

    @property
    def length(self) -> int:
        """What Content-Length says; 0 without one."""
        found = _LENGTH.search(self.raw)
        return int(found[1]) if found else 0

    @property
    def is_chunked(self) -> bool:
        """Whether the body comes in chunks."""
        return _CHUNKED.search(self.raw) is not None

    @property
    def expects_continue(self) -> bool:
        """Whether the body comes only after "100 Continue"."""
        return _EXPECT.search(self.raw) is not None


class Wire:
    """A socket with what was read ahead of it. One thread."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._ahead = bytearray()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def head(self) -> Head | None:
        """Read a head; None if the peer closed before it began one. Raises `Hangup`."""
        while (end := self._ahead.find(b"\r\n\r\n")) < 0:
            if len(self._ahead) > HEAD_BYTES_MAX:
                raise Hangup("a head without an end")
            piece = self._receive(PIECE_BYTES)
            if not piece:
                if self._ahead:
                    raise Hangup("within a head")
                return None
            self._ahead += piece
        raw = bytes(self._ahead[: end + 4])
        del self._ahead[: end + 4]
        return Head(raw)

    def body(self, head: Head) -> Iterator[bytes]:
        """Give the body that belongs to `head` in pieces. Raises `Hangup` if it breaks off."""
        if head.is_chunked:
            yield from self._chunks()
        else:
            yield from self._exactly(head.length)

    def _exactly(self, count: int) -> Iterator[bytes]:
        while count:
            if self._ahead:
                piece = bytes(self._ahead[:count])
                del self._ahead[: len(piece)]
            else:
                piece = self._receive(min(count, PIECE_BYTES))
                if not piece:
                    raise Hangup("within a body")
            count -= len(piece)
            yield piece

    def _chunks(self) -> Iterator[bytes]:
        while True:
            line = self._line()
            yield line
            size = int(line.split(b";")[0], 16)
            yield from self._exactly(size)
            if size == 0:  # trailers, up to an empty line
                while (line := self._line()) != b"\r\n":
                    yield line
                yield line
                return
            yield self._line()

    def _line(self) -> bytes:
        while (end := self._ahead.find(b"\r\n")) < 0:
            piece = self._receive(PIECE_BYTES)
            if not piece or len(self._ahead) > HEAD_BYTES_MAX:
                raise Hangup("within a chunk's line")
            self._ahead += piece
        line = bytes(self._ahead[: end + 2])
        del self._ahead[: end + 2]
        return line

    def _receive(self, count: int) -> bytes:
        try:
            return self.sock.recv(count)
        except OSError as error:
            raise Hangup(str(error)) from error

    def send(self, data: bytes) -> None:
        """Send everything. Raises `Hangup`."""
        try:
            self.sock.sendall(data)
        except OSError as error:
            raise Hangup(str(error)) from error

    def close(self) -> None:
        """Close in peace: what was sent arrives."""
        self.sock.close()

    def reset(self) -> None:
        """Close with a RST: what was sent may be lost, and the peer gets ECONNRESET."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()
