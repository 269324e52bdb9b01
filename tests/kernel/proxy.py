"""A proxy before an S3 server, in a process of its own: counts requests, cuts the line.

The process answers commands, one a line, on its standard input: `pass`, `refuse` (connections are
closed at once), `stall` (nothing is passed on, nothing is answered), `slow N` (N bytes a second of
each connection towards the server), `sent` (bytes towards the server so far), `stalled` (how many
requests wait for an answer), `requests` (all request lines so far, as JSON) and `unserved` (those
of them that were answered with a 5xx, or never). A process of its own, because a test that waits
in a page fault of its mount holds the interpreter's lock that a thread here would need.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, Self, cast
from urllib.parse import urlsplit

import trio

_METHODS = (b"PUT ", b"POST ", b"GET ", b"HEAD ", b"DELETE ")
_RECEIVE_BYTES = 1 << 18
_GO_ON = b"HTTP/1.1 100 "
_REFUSAL = b"HTTP/1.1 5"
_ANSWER = b"HTTP/1.1 "

Mode = Literal["pass", "refuse", "stall"]


class Proxy:
    """The client's side: starts the process, sends commands. Has the shape of an object server."""

    def __init__(self, upstream: str) -> None:
        """`upstream` is the endpoint of the server behind it."""
        self.endpoint_url = ""
        self._upstream = upstream
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kernel.proxy", self._upstream],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert self._process.stdout is not None
        self.endpoint_url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._process is not None
        self._process.communicate()

    def set(self, mode: Mode) -> None:
        """Pass requests on, refuse connections, or let them hang; takes effect before return."""
        self._ask(mode)

    def requests(self, *methods: str) -> list[str]:
        """Return the request lines of some methods so far, as `PUT /bucket/key`."""
        lines: list[str] = json.loads(self._ask("requests"))
        return [line for line in lines if line.split(" ")[0] in methods]

    def unserved(self, *methods: str) -> list[str]:
        """Return those of `requests` that got a 5xx or no answer at all: they come again."""
        lines: list[str] = json.loads(self._ask("unserved"))
        return [line for line in lines if line.split(" ")[0] in methods]

    def slow(self, bytes_per_s: int) -> None:
        """Pass on so many bytes a second of each connection from now on; 0 for all there are."""
        self._ask(f"slow {bytes_per_s}")

    def sent_bytes(self) -> int:
        """Return how many bytes went towards the server so far, headers included."""
        return int(self._ask("sent"))

    def stalled(self) -> int:
        """Return how many requests wait for an answer that does not come."""
        return int(self._ask("stalled"))

    def _ask(self, command: str) -> str:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()


# --- the process -------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class _Line:
    """The line to the server: what it does at present, and what went over it."""

    host: str
    port: int
    mode: Mode = "pass"
    requests: list[str] = field(default_factory=list)
    unserved: list[str] = field(default_factory=list)
    sent_bytes: int = 0
    bytes_per_s: int = 0
    scopes: set[trio.CancelScope] = field(default_factory=set)
    """One around each connection."""
    newest: dict[trio.SocketStream, str] = field(default_factory=dict)
    """The request that each connection waits with for its answer."""
    stalled: int = 0

    def become(self, mode: Mode) -> None:
        """Change, and cut what is under way."""
        self.mode = mode
        for scope in self.scopes:
            scope.cancel()

    async def serve(self, client: trio.SocketStream) -> None:
        """Serve one connection until it ends or is cut."""
        async with client:
            if self.mode == "refuse":
                return
            with trio.CancelScope() as scope, _quiet():
                self.scopes.add(scope)
                try:
                    await self._connect(client)
                finally:
                    self.scopes.discard(scope)
                    if client in self.newest:
                        self.unserved.append(self.newest.pop(client))

    async def _connect(self, client: trio.SocketStream) -> None:
        if self.mode == "stall":
            await client.receive_some(1)  # the request has come, not only the connection
            self.stalled += 1
            try:
                await trio.sleep_forever()
            finally:
                self.stalled -= 1
        server = await trio.open_tcp_stream(self.host, self.port)
        async with server, trio.open_nursery() as nursery:
            nursery.start_soon(self._ask_server, client, server, nursery)
            nursery.start_soon(self._answer, server, client, nursery)

    async def _ask_server(
        self, client: trio.SocketStream, server: trio.SocketStream, nursery: trio.Nursery
    ) -> None:
        with _quiet():
            while data := await client.receive_some(_RECEIVE_BYTES):
                if data.startswith(_METHODS):
                    line = data.split(b"\r\n", 1)[0].decode("latin-1")
                    self.newest[client] = line.rpartition(" ")[0]
                    self.requests.append(self.newest[client])
                self.sent_bytes += len(data)
                if self.bytes_per_s:
                    await trio.sleep(len(data) / self.bytes_per_s)
                await server.send_all(data)
        nursery.cancel_scope.cancel()

    async def _answer(
        self, server: trio.SocketStream, client: trio.SocketStream, nursery: trio.Nursery
    ) -> None:
        with _quiet():
            while data := await server.receive_some(_RECEIVE_BYTES):
                answer = data.partition(b"\r\n\r\n")[2] if data.startswith(_GO_ON) else data
                if answer.startswith(_ANSWER) and client in self.newest:
                    request = self.newest.pop(client)
                    if answer.startswith(_REFUSAL):
                        self.unserved.append(request)
                await client.send_all(data)
        nursery.cancel_scope.cancel()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A connection that breaks is the point of this program."""
    with contextlib.suppress(trio.BrokenResourceError, OSError):
        yield


async def _main(upstream: str) -> None:
    parts = urlsplit(upstream)
    line = _Line(host=parts.hostname or "", port=parts.port or 80)
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, line.serve, 0, host="127.0.0.1")
        listeners = await nursery.start(serve)
        print(listeners[0].socket.getsockname()[1], flush=True)  # noqa: T201  # the protocol
        while command := (await trio.to_thread.run_sync(sys.stdin.readline)).strip():
            if command == "requests":
                answer = json.dumps(line.requests)
            elif command == "unserved":
                answer = json.dumps(line.unserved)
            elif command == "sent":
                answer = str(line.sent_bytes)
            elif command.startswith("slow "):
                line.bytes_per_s = int(command.removeprefix("slow "))
                answer = command
            elif command == "stalled":
                answer = str(line.stalled)
            else:
                line.become(cast("Mode", command))
                answer = command
            print(answer, flush=True)  # noqa: T201  # the protocol
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(_main, sys.argv[1])
