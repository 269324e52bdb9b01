"""A store of a dozen lines behind the proxy: keeps bodies, and tells what it carried out."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Upstream(ThreadingHTTPServer):
    """A server on loopback. `done` are the requests that were carried out."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.done: list[str] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of connections that break: it is what they are made for here."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]  # as it came

    @property
    def url(self) -> str:
        """Its endpoint."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def _store(self) -> Upstream:
        assert isinstance(self.server, Upstream)
        return self.server

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if len(body) == int(self.headers.get("Content-Length", 0)):
            self._store.objects[self.path] = body
            self._answer(200, b"", body)

    def do_GET(self) -> None:
        body = self._store.objects.get(self.path)
        if body is None:
            self._answer(404, b"none", b"")
        else:
            self._answer(200, body, body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        etag = "0123456789abcdef0123456789abcdef-2"
        xml = f"<Result><ETag>&#34;{etag}&#34;</ETag></Result>".encode()
        self._chunked(xml)

    def _answer(self, status: int, body: bytes, of: bytes) -> None:
        self._store.done.append(f"{self.command} {self.path}")
        self.send_response(status)
        self.send_header("ETag", f'"{hashlib.md5(of, usedforsecurity=False).hexdigest()}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _chunked(self, body: bytes) -> None:
        self._store.done.append(f"{self.command} {self.path}")
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in (body[:5], body[5:], b""):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def upstream() -> Iterator[Upstream]:
    """Run a server while the context lasts."""
    server = Upstream()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
