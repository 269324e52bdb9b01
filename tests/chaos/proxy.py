"""A proxy before an S3 server, in a process of its own, that follows a script of faults.

The process prints its port, then answers commands, one a line, on its standard input:

    begin                           start the clock of the script, or start it again
    calm                            no faults any more, all connections are cut once
    only KIND | only                every request that KIND fits gets it; back to no faults
    mode open|refused|black-holed   the line itself, by hand
    report                          counts of faults, requests and bytes, as JSON

It ends with its standard input. Threads, one a connection: they wait in the kernel nearly all of
the time, and what they copy is copied without the interpreter's lock.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import sys
import threading
import time
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Final, cast
from urllib.parse import urlsplit

from tests.chaos.exchange import Book, Exchange
from tests.chaos.script import BLACKOUT_KINDS, WEATHERS, Blackout, Fault, Mode, Request, Script
from tests.chaos.wire import Hangup, Wire

_BACKLOG: Final = 128
_TICK_S: Final = 0.05
_NONE: Final = Fault()


class Proxy:
    """The process: its listener, its connections, its script."""

    def __init__(self, upstream: str, script: Script, log: Path | None) -> None:
        """`upstream` is the server's URL; `log` gets a line for every fault."""
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "", parts.port or 80)
        self._script = script
        self._log = log.open("a", encoding="utf-8") if log else None
        self._lock = threading.Lock()
        self._begun: float | None = None
        self._calm = True
        self._manual: Mode | None = None
        self._mode: Mode = "open"
        self._generation = 0
        """Connections of an older generation are cut."""
        self._open: set[socket.socket] = set()
        self._listener = _bound(0)
        self._listener.listen(_BACKLOG)
        self.port: int = self._listener.getsockname()[1]
        self._traffic: dict[str, Counter[str]] = defaultdict(Counter)

    # --- the line ------------------------------------------------------------------------

    def watch(self) -> None:
        """Follow the script's blackouts and what was ordered by hand, for ever."""
        while True:
            self._become(self._wanted_mode())
            time.sleep(_TICK_S)

    def _wanted_mode(self) -> Mode:
        if self._manual is not None:
            return self._manual
        return "open" if self._calm else self._script.mode(self._at_s())

    def _at_s(self) -> float:
        return 0.0 if self._begun is None else time.monotonic() - self._begun

    def _become(self, mode: Mode) -> None:
        with self._lock:
            if mode == self._mode:
                return
            self._mode = mode
            if mode in BLACKOUT_KINDS:
                self._script.note(mode)
                self._write_log(mode, "", "")
            if mode == "refused":
                with contextlib.suppress(OSError):
                    self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept
                self._listener.close()
                self._listener = _bound(self.port)
            else:
                self._listener.listen(_BACKLOG)
            if mode != "black-holed":
                self._cut_all()

    def _cut_all(self) -> None:
        self._generation += 1
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def accept(self) -> None:
        """Take connections, for ever; in a black hole they stay in the kernel's queue."""
        while True:
            if self._mode != "open":
                time.sleep(_TICK_S)
                continue
            try:
                sock, _ = self._listener.accept()
            except OSError:  # it was closed, to refuse connections
                continue
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    # --- a connection --------------------------------------------------------------------

    def _serve(self, sock: socket.socket) -> None:
        client = Wire(sock)
        servers: list[Wire] = []
        with self._lock:
            self._open.add(sock)
            generation = self._generation

        def check() -> None:
            while self._mode == "black-holed":
                time.sleep(_TICK_S)
            if generation != self._generation:
                raise Hangup("the line was cut")

        def connect() -> Wire:
            if not servers:
                try:
                    upstream = socket.create_connection(self._upstream, timeout=10)
                except OSError as error:
                    raise Hangup(str(error)) from error
                upstream.settimeout(None)
                with self._lock:
                    self._open.add(upstream)
                servers.append(Wire(upstream))
            return servers[0]

        book = Book(injected=self._injected, sent=self._sent, received=self._received, check=check)
        try:
            while (head := client.head()) is not None:
                check()
                method, target, _ = head.words
                request = Request(method=method, target=target, body_bytes=head.length)
                with self._lock:
                    fault = self._script.draw(request, self._at_s()) if self._faulty() else _NONE
                    self._traffic[request.line]["requests"] += 1
                if not Exchange(client, head, fault, request, book).run(connect):
                    break
            client.close()
        except Hangup:
            client.reset()
        finally:
            with self._lock:
                self._open -= {sock, *(server.sock for server in servers)}
            for server in servers:
                server.close()

    def _faulty(self) -> bool:
        return bool(self._script.only) or not self._calm

    # --- the book ------------------------------------------------------------------------

    def _injected(self, kind: str, request: Request) -> None:
        with self._lock:
            self._script.note(kind, request)
            self._write_log(kind, request.method, request.target)

    def _write_log(self, kind: str, method: str, target: str) -> None:
        if self._log is not None and kind != "delayed":
            stamp = time.strftime("%H:%M:%S", time.gmtime())
            print(stamp, f"{self._at_s():8.1f}", kind, method, target, file=self._log, flush=True)

    def _sent(self, request: Request, count: int) -> None:
        with self._lock:
            self._traffic[request.line]["sent_bytes"] += count

    def _received(self, request: Request, count: int) -> None:
        with self._lock:
            self._traffic[request.line]["received_bytes"] += count

    # --- commands ------------------------------------------------------------------------

    def command(self, line: str) -> object:
        """Carry out a command and return what is printed, as JSON."""
        name, _, argument = line.partition(" ")
        if name == "begin":
            self._begun, self._calm = time.monotonic(), False
        elif name == "calm":
            self._calm, self._manual = True, None
            self._become("open")
            with self._lock:
                self._script.only = ""
                self._cut_all()
        elif name == "only":
            with self._lock:
                self._script.only = argument
        elif name == "mode":
            self._manual = cast("Mode", argument)
            self._become(self._manual)
        elif name != "report":
            return f"unknown command {name}"
        return self._report()

    def _report(self) -> dict[str, object]:
        with self._lock:
            return {
                "seed": self._script.seed,
                "at_s": round(self._at_s(), 1),
                "weather": "" if self._calm else self._script.weather(self._at_s()).name,
                "injected": dict(sorted(self._script.injected.items())),
                "missing": self._script.missing(),
                "by_target": dict(sorted(self._script.by_target.items())),
                "traffic": {name: dict(counts) for name, counts in sorted(self._traffic.items())},
                "blackouts": [asdict(blackout) for blackout in self._script.blackouts],
            }


def _bound(port: int) -> socket.socket:
    """Return a socket that holds the port; until it listens, connections to it are refused."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    return sock


def _blackout(text: str) -> Blackout:
    start, length, kind = text.split(":")
    return Blackout(start_s=float(start), length_s=float(length), kind=cast("Mode", kind))


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("upstream")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--duration", type=float, default=3600.0)
    parser.add_argument("--blackout", type=_blackout, action="append", default=[])
    parser.add_argument("--weather", choices=[w.name for w in WEATHERS], default="")
    parser.add_argument("--log", type=Path)
    chosen = parser.parse_args()
    blackouts = tuple(chosen.blackout)
    script = Script(
        seed=chosen.seed, duration_s=chosen.duration, blackouts=blackouts, fixed=chosen.weather
    )
    proxy = Proxy(chosen.upstream, script, chosen.log)
    for body in (proxy.accept, proxy.watch):
        threading.Thread(target=body, daemon=True).start()
    print(proxy.port, flush=True)  # noqa: T201  # the protocol
    for line in sys.stdin:
        print(json.dumps(proxy.command(line.strip())), flush=True)  # noqa: T201  # the protocol


if __name__ == "__main__":
    main()
