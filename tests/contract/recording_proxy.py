"""An S3 proxy of the tests' own: remembers every request, and spoils those it is told to.

It stands between a store under test and a real server, in threads of this process. A test gives
it one `Fault` at a time; the fault applies to requests whose line matches, as often as it says.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

from tests.servers import ObjectServer

Spoil = Literal["lose the answer", "forge the etag", "flip a byte", "answer other bytes"]

_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "expect"})
_FORGED = '"00000000000000000000000000000000"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request as it came: names of headers in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    size: int

    @property
    def line(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def writes(self) -> bool:
        """Whether it makes an object, or begins to: what encryption has to be asked for in."""
        plain = self.method == "PUT" and "uploadId=" not in self.path
        return plain or (self.method == "POST" and "?uploads" in self.path)


@dataclass
class Fault:
    """What happens to the next `times` requests whose `METHOD /path` matches `pattern`."""

    pattern: str
    spoil: Spoil
    times: int = 1
    done: int = 0

    def applies(self, line: str) -> bool:
        return self.done < self.times and re.search(self.pattern, line) is not None


@dataclass
class RecordingProxy:
    """Has the shape of an object server; `requests` is what came, `fault` what to spoil."""

    server: ObjectServer
    access_key: str
    secret_key: str
    endpoint_url: str = ""
    kind: str = "s3"
    requests: list[Request] = field(default_factory=list)
    fault: Fault | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def bucket(self) -> str:
        """Make a new, empty bucket and return its name."""
        return self.server.bucket()

    def spoil_of(self, request: Request) -> Spoil | None:
        """Note a request; return what is to happen to it."""
        with self.lock:
            self.requests.append(request)
            if self.fault is not None and self.fault.applies(request.line):
                self.fault.done += 1
                return self.fault.spoil
        return None


@contextlib.contextmanager
def recording(server: ObjectServer) -> Iterator[RecordingProxy]:
    """Run a proxy before a server."""
    proxy = RecordingProxy(server, server.access_key, server.secret_key)

    class Handler(_Handler):
        owner = proxy

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    proxy.endpoint_url = f"http://127.0.0.1:{listener.server_address[1]}"
    try:
        yield proxy
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: RecordingProxy

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _pass_on(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        request = Request(method=self.command, path=self.path, headers=headers, size=len(body))
        spoil = self.owner.spoil_of(request)
        if spoil == "flip a byte" and body:
            body = bytes([body[0] ^ 1]) + body[1:]
        status, answered, data = self._ask(headers, body)
        if spoil == "lose the answer":
            self.close_connection = True
            return
        if spoil == "forge the etag" and "etag" in {name.lower() for name, _ in answered}:
            answered = [(n, _FORGED if n.lower() == "etag" else v) for n, v in answered]
        if spoil == "answer other bytes" and data:
            data = bytes([data[0] ^ 1]) + data[1:]
        self.send_response_only(status)
        for name, value in answered:
            if name.lower() not in _HOP:
                self.send_header(name, value)
        if "content-length" not in {name.lower() for name, _ in answered}:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _ask(
        self, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Send the request to the server; the Host stays, since the signature covers it."""
        parts = urlsplit(self.owner.server.endpoint_url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        try:
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in headers.items():
                if name not in _HOP:
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on  # noqa: N815  # the library's names
