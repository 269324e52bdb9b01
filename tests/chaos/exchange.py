"""One request and its answer through the proxy, with the fault that the script drew for it."""

from __future__ import annotations

import re
import select
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from tests.chaos.script import Fault, Request
from tests.chaos.wire import PIECE_BYTES, Hangup, Head, Wire

STALL_S: Final = 20.0
"""An answer that is held back comes never; after so long the connection is closed."""
LATE_S: Final = 1.0
"""So long after the client gave up is a late request carried out."""

_ETAG: Final = re.compile(rb'(etag: *"?|&#34;|&quot;|<ETag>"?)([0-9a-f]{32})', re.IGNORECASE)
_XML_BYTES_MAX: Final = 1 << 20
_REFUSALS: Final = {
    "slow_down": (b"503 Slow Down", b"SlowDown", b""),
    "slow_down_retry_after": (b"503 Slow Down", b"SlowDown", b"Retry-After: 1\r\n"),
    "too_many_requests": (b"429 Too Many Requests", b"TooManyRequests", b""),
    "internal_error": (b"500 Internal Server Error", b"InternalError", b""),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    """Who is told what happened."""

    injected: Callable[[str, Request], None]
    sent: Callable[[Request, int], None]
    """Bytes of a body that came from the client."""
    received: Callable[[Request, int], None]
    """Bytes of a body that went to the client."""
    check: Callable[[], None]
    """Raises `Hangup` when the line is cut just now; waits while it is black-holed."""


class Exchange:
    """One request, read up to the end of its head, and what becomes of it. One thread."""

    def __init__(
        self, client: Wire, head: Head, fault: Fault, request: Request, book: Book
    ) -> None:
        self._client = client
        self._head = head
        self._fault = fault
        self._request = request
        self._book = book

    def run(self, connect: Callable[[], Wire]) -> bool:
        """Carry it out; True if the connection can take another. Raises `Hangup`."""
        if self._fault.delay_s:
            self._note("delayed")
            time.sleep(self._fault.delay_s)
        kind = self._fault.kind
        if kind in _REFUSALS:
            return self._refuse(kind)
        if kind == "stalled":
            self._note(kind)
            self._hold()
            return False
        if kind == "late":
            return self._late(connect)
        return self._pass(connect())

    def _note(self, kind: str) -> None:
        self._book.injected(kind, self._request)

    # --- the request ---------------------------------------------------------------------

    def _refuse(self, kind: str) -> bool:
        """Answer in the store's place, before any effect."""
        keep = not self._head.expects_continue  # the body stays with the client
        if keep:
            for piece in self._client.body(self._head):
                self._book.sent(self._request, len(piece))
        self._note(kind)
        status, code, extra = _REFUSALS[kind]
        body = (
            b""
            if self._request.method == "HEAD"
            else (b"<Error><Code>%b</Code><Message>Injected.</Message></Error>" % code)
        )
        self._client.send(
            b"HTTP/1.1 %b\r\n%bContent-Type: application/xml\r\nContent-Length: %d\r\n%b\r\n%b"
            % (status, extra, len(body), b"" if keep else b"Connection: close\r\n", body)
        )
        return keep

    def _hold(self) -> None:
        """Wait until the client gives up, for a bounded time; what it sends is thrown away."""
        until = time.monotonic() + STALL_S
        while time.monotonic() < until:
            self._book.check()
            if select.select([self._client.sock], [], [], 0.2)[0]:
                piece = self._client.sock.recv(PIECE_BYTES)
                if not piece:
                    return
                self._book.sent(self._request, len(piece))

    def _late(self, connect: Callable[[], Wire]) -> bool:
        """Take all of it, and pass it on when the client waits no more."""
        if self._head.expects_continue:
            self._client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = b"".join(self._sent_body())
        self._hold()
        time.sleep(LATE_S)
        server = connect()
        head = self._head.raw.replace(b"Expect: 100-continue\r\n", b"")
        server.send(head + body)
        answer = self._answer_of(server)
        for _ in self._answer_body(server, answer):
            pass  # nobody waits for it
        self._note("late")
        return False

    def _sent_body(self) -> Iterator[bytes]:
        """Give the body as the client sends it, with the fault that is one of it."""
        size = 0
        flip_at = cut_at = -1
        if self._fault.kind == "request_flipped":
            flip_at = int(self._fault.at * self._head.length)
        if self._fault.kind == "request_reset":
            cut_at = int(self._fault.at * self._head.length)
        for piece in self._client.body(self._head):
            self._book.check()
            self._book.sent(self._request, len(piece))
            if 0 <= cut_at < size + len(piece):
                yield piece[: cut_at - size]
                self._note("request_reset")
                raise Hangup("injected")
            if size <= flip_at < size + len(piece):
                self._note("request_flipped")
                yield flipped(piece, flip_at - size)
            else:
                yield piece
            size += len(piece)

    def _pass(self, server: Wire) -> bool:
        server.send(self._head.raw)
        if self._head.expects_continue:
            first = server.head()
            if first is None:
                raise Hangup("the store closed the connection")
            if first.status != 100:
                self._relay(server, first)
                return False  # the body stays with the client
            self._client.send(first.raw)
        for piece in self._sent_body():
            server.send(piece)
        return self._relay(server, self._answer_of(server))

    # --- the answer ----------------------------------------------------------------------

    def _answer_of(self, server: Wire) -> Head:
        while True:
            answer = server.head()
            if answer is None:
                raise Hangup("the store closed the connection")
            if answer.status != 100:
                return answer

    def _answer_body(self, server: Wire, answer: Head) -> Iterator[bytes]:
        if self._request.method != "HEAD" and answer.status not in {204, 304}:
            yield from server.body(answer)

    def _relay(self, server: Wire, answer: Head) -> bool:
        """Pass the answer on, with the fault that is one of it."""
        kind, good = self._fault.kind, 200 <= answer.status < 300
        if good and kind in {"lost_answer", "stalled_answer"}:
            for _ in self._answer_body(server, answer):
                pass
            self._note(kind)
            if kind == "stalled_answer":
                self._hold()
            return False
        raw = answer.raw
        pieces = self._answer_body(server, answer)
        if good and kind == "wrong_etag":
            raw, pieces = self._with_wrong_etag(raw, answer, pieces)
        self._book.check()
        self._client.send(raw)
        if good and kind in {"answer_reset", "answer_truncated", "answer_flipped"}:
            if not self._spoil(kind, answer.length, pieces):
                return False
        else:
            for piece in pieces:
                self._deliver(piece)
        return True

    def _deliver(self, piece: bytes) -> None:
        self._book.check()
        self._client.send(piece)
        self._book.received(self._request, len(piece))

    def _with_wrong_etag(
        self, raw: bytes, answer: Head, pieces: Iterator[bytes]
    ) -> tuple[bytes, Iterator[bytes]]:
        """Change the ETag in the head, or in the XML of a completed upload; same length."""
        changed, count = _ETAG.subn(_other_etag, raw)
        is_xml = b"xml" in answer.raw.lower() and self._request.method == "POST"
        if not count and is_xml and answer.length <= _XML_BYTES_MAX:
            body, count = _ETAG.subn(_other_etag, b"".join(pieces))
            pieces = iter([body])
        if count:
            self._note("wrong_etag")
        return changed, pieces

    def _spoil(self, kind: str, length: int, pieces: Iterator[bytes]) -> bool:
        """Flip a bit of the body, or break it off; True if the connection lives."""
        at, size = int(self._fault.at * length), 0
        for piece in pieces:
            if size <= at < size + len(piece):
                if kind == "answer_flipped":
                    self._note(kind)
                    self._deliver(flipped(piece, at - size))
                    size += len(piece)
                    continue
                self._deliver(piece[: at - size])
                self._note(kind)
                if kind == "answer_reset":
                    raise Hangup("injected")
                return False
            self._deliver(piece)
            size += len(piece)
        return True


def flipped(piece: bytes, at: int) -> bytes:
    """Return the bytes with one bit of byte `at` changed."""
    changed = bytearray(piece)
    changed[at] ^= 0x10
    return bytes(changed)


def _other_etag(match: re.Match[bytes]) -> bytes:
    digits = match[2]
    return match[1] + digits[1:] + (b"0" if digits[:1] != b"0" else b"1")
