"""A tiny HTTP server on loopback that misbehaves in a chosen way, once for each connection."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

_BODY = b"0123456789"
_DATE = b"Date: Tue, 24 Nov 2026 10:00:00 GMT\r\n"
_OK = b"HTTP/1.1 200 OK\r\n" + _DATE


def error(status: str, code: str, headers: bytes = b"") -> bytes:
    """Return an error answer of S3's shape."""
    body = b"<Error><Code>" + code.encode() + b"</Code><Message>No.</Message></Error>"
    return (
        b"HTTP/1.1 " + status.encode() + b"\r\n" + _DATE + headers
        + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body
    )  # fmt: skip


ANSWERS = {
    "closes without an answer": b"",
    "cuts the head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "talks nonsense": b"\x16\x03\x01\x02\x00nonsense\r\n\r\n",
    "breaks off in the body": _OK + b'ETag: "x"\r\nContent-Length: 1000\r\n\r\n' + _BODY,
    "breaks off in a chunk": _OK + b'ETag: "x"\r\nTransfer-Encoding: chunked\r\n\r\n40\r\n' + _BODY,
    "answers with a page of its own": (
        _OK + b"Content-Type: text/html\r\nContent-Length: 26\r\nConnection: close\r\n\r\n"
        b"<html>please log in</html>"
    ),
    "misses a page": b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nnot found",
    "is a broken gateway": b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\n\r\nBad",
}

WRONG_RANGE = (
    b'HTTP/1.1 206 Partial Content\r\nETag: "x"\r\nContent-Range: bytes 0-9/100\r\n'
    b"Content-Length: 10\r\nConnection: close\r\n\r\n" + _BODY
)
WRONG_ETAG = (
    _OK + b'ETag: "00000000000000000000000000000000"\r\nContent-Length: 10\r\n'
    b"Connection: close\r\n\r\n" + _BODY
)
WRONG_ETAG_OF_WRITE = (
    _OK + b'ETag: "00000000000000000000000000000000"\r\nContent-Length: 0\r\n'
    b"Connection: close\r\n\r\n"
)
WHOLE_INSTEAD_OF_RANGE = (
    _OK + b'ETag: "x"\r\nContent-Length: 10\r\nConnection: close\r\n\r\n' + _BODY
)


@contextlib.contextmanager
def serving(answer: bytes, *, hang: bool = False) -> Iterator[str]:
    """Give the URL of a server that sends `answer` to every request; `hang`: and then nothing."""
    listener = socket.create_server(("127.0.0.1", 0))
    stopped = threading.Event()
    thread = threading.Thread(target=_serve, args=(listener, answer, hang, stopped))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stopped.set()
        with contextlib.suppress(OSError), socket.create_connection(listener.getsockname()[:2]):
            pass  # wakes the thread from accept
        thread.join()
        listener.close()


def _serve(listener: socket.socket, answer: bytes, hang: bool, stopped: threading.Event) -> None:
    while not stopped.is_set():
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            if stopped.is_set():
                return
            connection.settimeout(5)
            _read_request(connection)
            connection.sendall(answer)
            if hang:
                stopped.wait(30)


def _read_request(connection: socket.socket) -> None:
    """Read a request to its end: unread bytes would turn the close into a reset."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [
        int(line.split(b":")[1])
        for line in head.lower().split(b"\r\n")
        if line.startswith(b"content-length:")
    ]
    missing = sum(lengths) - len(body)
    while missing > 0:
        missing -= len(connection.recv(missing))
