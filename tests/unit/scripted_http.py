"""A loopback HTTP server that a test scripts, for what a store may be told by whoever answers.

The server of `tests/contract/remote_broken_server.py` sends the same bytes to everybody. Here a
function of the test sees each request and answers it as it likes: by what was asked for, in
another way the second time, or a byte at a time for longer than anybody should wait.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from s3fs_banyan.remote.options import StoreOptions
from s3fs_banyan.remote.s3 import S3Store

RECEIVE_BYTES = 64 << 10
"""What the server takes in before a script reads it: a longer body stalls with its script."""


def md5_of(data: bytes | bytearray) -> str:
    """Return what S3 has as the ETag of these bytes, without the quotes."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


class Exchange(BaseHTTPRequestHandler):
    """A connection of a client, as a script sees it with each request."""

    protocol_version = "HTTP/1.1"
    timeout: ClassVar[float | None] = 60.0
    ending: ClassVar = threading.Event()
    """Set when the test is over; each server has its own."""

    def play(self) -> None:
        """Answer one request: the script does."""
        raise NotImplementedError

    def do_GET(self) -> None:
        self.play()

    def do_HEAD(self) -> None:
        self.play()

    def do_PUT(self) -> None:
        self.play()

    def do_POST(self) -> None:
        self.play()

    def do_DELETE(self) -> None:
        self.play()

    def body(self) -> bytes:
        """Read the body of the request."""
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Send the head of an answer and nothing more."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Send an answer; `Content_Length` and the like are headers.

        Without a length it gets that of the body; a body that is shorter than what is said ends
        with its connection.
        """
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        length = named.setdefault("Content-Length", str(len(body)))
        self.begin(status, named)
        if self.command != "HEAD":
            self.wfile.write(body)
            self.close_connection |= int(length) > len(body)

    def refuse(self, status: int, code: str) -> None:
        """Send an error answer of S3's shape."""
        self.answer(status, b"<Error><Code>%s</Code></Error>" % code.encode())

    def chunk(self, data: bytes) -> None:
        """Send a chunk of a chunked body; an empty one ends the body."""
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Say nothing: the base class would write to standard error."""


Script = Callable[[Exchange], None]


@dataclass(kw_only=True)
class Drip:
    """A script: the head of an answer, then a piece again and again, as long as it is taken."""

    headers: Mapping[str, str]
    status: int = 200
    piece: bytes = b" "
    pause_s: float = 0.0
    pieces_max: int
    """So many that nobody should take them all: a test would otherwise not end."""
    ran_out: bool = field(default=False, init=False)
    """Whether somebody took them all; set before the connection is closed."""

    def __call__(self, exchange: Exchange) -> None:
        exchange.close_connection = True
        exchange.begin(self.status, self.headers)
        is_chunked = "Transfer-Encoding" in self.headers
        for _ in range(self.pieces_max):
            if is_chunked:
                exchange.chunk(self.piece)
            else:
                exchange.wfile.write(self.piece)
            if exchange.ending.wait(self.pause_s) if self.pause_s else exchange.ending.is_set():
                return
        self.ran_out = True


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401  # its own
        """Be silent about a client that hung up: to be given up is what scripts are for."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def serving(script: Script) -> Iterator[str]:
    """Give the URL of a server that hands every request to `script`, in a thread of its own."""

    class Scripted(Exchange):
        ending = threading.Event()

        def play(self) -> None:
            script(self)

    server = _Server(("127.0.0.1", 0), Scripted)
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        Scripted.ending.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def s3_store(
    script: Script,
    *,
    prefix: str = "",
    **options: Any,  # noqa: ANN401  # as `StoreOptions` has them
) -> Iterator[S3Store]:
    """Give a store of bucket `bucket` at a server with this script, without layers."""
    with serving(script) as url:
        changed = {"endpoint_url": url, "access_key": "a", "secret_key": "s"} | options
        store = S3Store("bucket", prefix, StoreOptions(**changed))
        try:
            yield store
        finally:
            store.close()
