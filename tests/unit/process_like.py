"""The worker process of a mount, served in this process: every word crosses the real socket.

Only the program is missing: `WorkerProcess` asks, `WorkerServer` answers, and what it met crosses
as it does between two processes. A death closes the socket and forgets the sealing.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from s3fs_banyan.app.engine import Engine
from s3fs_banyan.commit.context import Context
from s3fs_banyan.commit.worker import Worker, WorkerProcess
from s3fs_banyan.commit.worker_main import WorkerServer
from s3fs_banyan.data.blocks import BlockCache
from s3fs_banyan.observe.metrics import Metrics
from s3fs_banyan.remote.transfers import InlineTransfers
from tests.unit.engine_kit import running


class WorkerHost:
    """Starts the processes of one mount, and kills them."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._make: Callable[[socket.socket], WorkerServer] | None = None
        self._worker: WorkerProcess | None = None
        self._sock: socket.socket | None = None
        self._changed = trio.Event()
        self.answered: Counter[str] = Counter()
        self.before: Callable[[str], None] = lambda method: None
        """Called with the name of each request before it is carried out."""

    def worker(self, ctx: Context, cache: BlockCache) -> Worker:
        """Return the worker of an engine; as `make_worker` of `running`."""

        def make(sock: socket.socket) -> WorkerServer:
            metrics = Metrics(process="worker")
            server = WorkerServer(sock, ctx.store, cache, ctx.cipher, metrics, InlineTransfers())
            server._beside = InlineTransfers()  # type: ignore[assignment]
            return server

        self._make = make
        self._worker = WorkerProcess({}, on_restart=lambda: None)
        self._nursery.start_soon(self._worker.run)
        return self._worker

    def start(self, _: Sequence[str], *, pass_fds: Sequence[int], **__: object) -> _Process:
        """Stand in for `subprocess.Popen`."""
        assert self._make is not None
        self._sock = socket.socket(fileno=os.dup(pass_fds[0]))
        self._nursery.start_soon(self._serve, self._sock, self._make(self._sock))
        return _Process(self)

    def kill(self) -> None:
        """End the process at once; what it was sealing is forgotten."""
        if self._sock is not None:
            self._sock.shutdown(socket.SHUT_RDWR)
            self._sock = None

    def close(self) -> None:
        """Let go of the last process."""
        if self._worker is not None:
            self._worker.close()

    async def wait_answered(self, method: str) -> None:
        """Wait until a request of that name was answered."""
        while not self.answered[method]:
            await self._changed.wait()

    async def _serve(self, sock: socket.socket, server: WorkerServer) -> None:
        buffer = bytearray()
        is_set_up = False
        with sock:
            while data := await _received(sock):
                buffer += data
                while (end := buffer.find(b"\n")) >= 0:
                    line = bytes(buffer[:end])
                    del buffer[: end + 1]
                    if is_set_up and self._sock is sock:
                        self._answer(server, json.loads(line))
                    is_set_up = True
            server._end()

    def _answer(self, server: WorkerServer, request: dict[str, Any]) -> None:
        method = request["method"]
        self.before(method)
        server.answer(request)
        self.answered[method] += 1
        self._changed.set()
        self._changed = trio.Event()


class _Process:
    """What `WorkerProcess` asks of a process that it has started."""

    pid = 1

    def __init__(self, host: WorkerHost) -> None:
        self._host = host

    def poll(self) -> int | None:
        return 1 if self._host._sock is None else None

    def kill(self) -> None:
        self._host.kill()

    def wait(self) -> int:
        return 1


async def _received(sock: socket.socket) -> bytes:
    await trio.lowlevel.wait_readable(sock)
    return sock.recv(1 << 16)


@asynccontextmanager
async def running_with_process(
    ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Engine, WorkerHost]]:
    """Open an engine as `running` does, whose worker is a process that `WorkerHost` starts."""
    async with trio.open_nursery() as nursery:
        host = WorkerHost(nursery)
        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "Popen", host.start)
            try:
                async with running(ctx, make_worker=host.worker) as engine:
                    yield engine, host
            finally:
                host.close()
        nursery.cancel_scope.cancel()


async def drained_within(engine: Engine, seconds: float = 600.0) -> bool:
    """Commit for at most so long; tells whether the store has got everything."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.committer.run)
        with trio.move_on_after(seconds) as scope:
            await engine.committer.drain()
        nursery.cancel_scope.cancel()
    return not scope.cancelled_caught
