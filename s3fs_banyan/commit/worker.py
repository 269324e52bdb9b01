"""The worker: sealing and uploading outside the daemon's interpreter.

Python has one interpreter lock: one busy thread in the daemon lifts the median fsync from 0.2
to 36 ms. So a process of its own seals, compresses, hashes and uploads. It gets plain values,
writes `outbox/` and the cache, and ends with its parent. Only the daemon publishes.

Messages are lines of JSON over a socket pair. The store's settings, secrets among them, are the
first message and never an argument or an environment variable.
"""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Protocol

import trio

from s3fs_banyan.commit.seal_job import CommitBody, LocalBody, SealedPack, SealingLost, SealJob
from s3fs_banyan.commit.sealing import Sealing
from s3fs_banyan.errors import (
    BanyanFSError,
    BrokenBody,
    Corrupt,
    SealFailed,
    StoreError,
    Unavailable,
)
from s3fs_banyan.runtime import Runtime

log = logging.getLogger(__name__)

_LINE_BYTES_MAX = 1 << 20
_PACE_S = 0.25
_AGAIN_S = 0.5
_SIGN_OF_LIFE_S = 5.0
"""How often a worker says that it lives, whatever it is busy with."""
_SILENT_S = 120.0
"""One that says nothing for so long stands still, and no answer will come; not one that has been
asked to yield on a busy machine."""


class WorkerDied(SealingLost):
    """The worker process ended; the sealing is done again from its beginning."""


class Worker(Protocol):
    """What the committer asks for; one sealing at a time."""

    def expect(self) -> None:
        """Be ready: there is something to seal, and it will be asked for."""
        ...

    async def begin(self, job: SealJob) -> int:
        """Start a sealing; returns how many packs there are."""
        ...

    async def seal_pack(self, number: int) -> SealedPack | None: ...

    async def upload(self, pack: SealedPack) -> None: ...

    async def finish(self) -> CommitBody: ...

    async def finish_local(self) -> LocalBody:
        """End the sealing of a local cut: its base packs and their names are synced."""
        ...

    async def end(self) -> None:
        """Forget the sealing."""
        ...


class InlineWorker:
    """The same code in this process, for the simulation and for tools."""

    def __init__(self, make: Callable[[SealJob], Sealing], runtime: Runtime) -> None:
        self._make = make
        self._runtime = runtime
        self._sealing: Sealing | None = None

    def expect(self) -> None:
        """Nothing is to be started."""

    async def begin(self, job: SealJob) -> int:
        self._sealing = self._make(job)
        return await self._runtime.in_thread(self._sealing.plan, pool="cpu")

    async def seal_pack(self, number: int) -> SealedPack | None:
        return await self._runtime.in_thread(self._now().seal_pack, number, pool="cpu")

    async def upload(self, pack: SealedPack) -> None:
        await self._runtime.in_thread(self._now().upload, pack, pool="store")

    async def finish(self) -> CommitBody:
        return await self._runtime.in_thread(self._now().finish, pool="cpu")

    async def finish_local(self) -> LocalBody:
        return await self._runtime.in_thread(self._now().finish_local, pool="cpu")

    async def end(self) -> None:
        if self._sealing is not None:
            self._sealing.close()
            self._sealing = None
        await trio.lowlevel.checkpoint()

    def _now(self) -> Sealing:
        if self._sealing is None:
            raise AssertionError("no sealing was begun")
        return self._sealing


class WorkerProcess:
    """The worker process of a mount, started when first needed and again when it died."""

    def __init__(
        self,
        setup: dict[str, object],
        *,
        on_restart: Callable[[], None],
        on_report: Callable[[dict[str, Any]], None] = lambda _: None,
        share: Callable[[], float] | None = None,
    ) -> None:
        """`setup` is the first message: store settings, cache, log level (see worker_main).

        `on_report` gets what the process has counted, with each answer; what it counted after
        its last answer is lost if it dies. `share` tells how much of its limit bulk may take
        (`pacing.share_of`); below 1, the worker is told a few times a second.
        """
        self._setup = setup
        self._on_restart = on_restart
        self._on_report = on_report
        self._share = share
        self._process: subprocess.Popen[bytes] | None = None
        self._stream: trio.SocketStream | None = None
        self._buffer = bytearray()
        self._waiting: dict[int, trio.Event] = {}
        self._answers: dict[int, dict[str, Any]] = {}
        self._next = 0
        self._expected = trio.Event()
        self._send_lock = trio.Lock()

    @property
    def pid(self) -> int | None:
        """Process id, for status."""
        return self._process.pid if self._process else None

    def expect(self) -> None:
        self._expected.set()

    async def begin(self, job: SealJob) -> int:
        values = asdict(job)
        values["segments"] = {str(number): path for number, path in job.segments.items()}
        return int(await self._call("begin", values))

    async def seal_pack(self, number: int) -> SealedPack | None:
        answer = await self._call("seal_pack", number)
        return SealedPack(**answer) if answer else None

    async def upload(self, pack: SealedPack) -> None:
        await self._call("upload", asdict(pack))

    async def finish(self) -> CommitBody:
        answer = await self._call("finish", None)
        lists = {name: tuple(answer[name]) for name in ("damaged", "unmovable")}
        return CommitBody(**(answer | lists))

    async def finish_local(self) -> LocalBody:
        answer = await self._call("finish_local", None)
        return LocalBody(**(answer | {"damaged": tuple(answer["damaged"])}))

    async def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            await self._call("end", None)

    async def run(self) -> None:
        """Start it when it is expected, look after the answers; ends only by cancellation.

        To start takes a processor for most of a second, which at a mount the first reads need.
        """
        while True:
            await self._expected.wait()
            try:
                stream = self._ensure()
            except OSError as error:
                log.warning("no worker process can be started just now: %s", error)
                await trio.sleep(_AGAIN_S)
                continue
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pace, stream)
                    await self._read_answers(stream)
                    nursery.cancel_scope.cancel()
            finally:
                self._fail_waiting()
            self._drop()
            self._on_restart()
            await trio.sleep(_AGAIN_S)

    def _ensure(self) -> trio.SocketStream:
        self._expected.set()
        if self._stream is None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self._process = subprocess.Popen(  # noqa: S603  # our own module, no shell
                    [sys.executable, "-m", "s3fs_banyan.commit.worker_main", str(theirs.fileno())],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,  # niceness counts within a session only: sched(7)
                )
            except BaseException:
                ours.close()
                raise
            finally:
                theirs.close()
            ours.setblocking(False)  # the socket module's own signature
            self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
            self._buffer.clear()
            setup = self._setup | {"sign_of_life_s": _SIGN_OF_LIFE_S}
            ours_setup = (json.dumps(setup) + "\n").encode()
            # A fresh socket pair takes a few KiB without waiting.
            ours.send(ours_setup)
        return self._stream

    async def _call(self, method: str, argument: object) -> Any:  # noqa: ANN401  # JSON
        try:
            stream = self._ensure()
        except OSError as error:
            raise WorkerDied("no worker process can be started just now") from error
        self._next += 1
        number = self._next
        event = self._waiting[number] = trio.Event()
        line = json.dumps({"id": number, "method": method, "argument": argument}) + "\n"
        try:
            async with self._send_lock:
                await stream.send_all(line.encode())
            await event.wait()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise WorkerDied("the worker process ended") from error
        finally:
            self._waiting.pop(number, None)
        answer = self._answers.pop(number, None)
        if answer is None:
            raise WorkerDied("the worker process ended while it was sealing")
        if "error" in answer:
            raise _error_from(answer)
        return answer["result"]

    async def _pace(self, stream: trio.SocketStream) -> None:
        """Tell the worker to yield while demand reads of this process suffer."""
        if self._share is None:
            return
        while True:
            await trio.sleep(_PACE_S)
            share = self._share()
            if share >= 1.0:
                continue
            line = json.dumps({"method": "pace", "argument": share}) + "\n"
            try:
                async with self._send_lock:
                    await stream.send_all(line.encode())
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return  # whoever reads the answers sees it, too

    async def _read_answers(self, stream: trio.SocketStream) -> None:
        """Take answers and signs of life; returns when there will be no more."""
        while True:
            try:
                with trio.fail_after(_SILENT_S):
                    data = await stream.receive_some(65536)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
            except trio.TooSlowError:
                log.warning("the worker process stands still: it is ended, another one begins")
                return
            if not data:
                return
            self._buffer += data
            while (end := self._buffer.find(b"\n")) >= 0:
                answer = json.loads(self._buffer[:end])
                del self._buffer[: end + 1]
                self._take(answer)

    def _take(self, answer: dict[str, Any]) -> None:
        self._on_report(answer.pop("report"))
        number = answer.get("id")  # a sign of life has none
        if number is not None and (event := self._waiting.get(number)) is not None:
            self._answers[number] = answer  # else its asker was cancelled
            event.set()

    def _fail_waiting(self) -> None:
        for event in self._waiting.values():
            event.set()

    def _drop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._stream is not None:
            self._stream.socket.close()
        self._process = self._stream = None
        self._expected = trio.Event()

    def close(self) -> None:
        """End the process."""
        self._drop()


def _error_from(answer: dict[str, Any]) -> BanyanFSError:
    """Make the error that the worker met again; what is not the store's is this machine's."""
    kind, message = answer["error"], answer["message"]
    if kind == SealingLost.__name__:
        return SealingLost(message)
    if kind == "Corrupt":
        return Corrupt("journal record", "of a sealing", message)
    if kind == BrokenBody.__name__:  # what had come of it was the worker's
        return Unavailable(message)
    for cls in StoreError.__subclasses__():
        if cls.__name__ == kind:
            return cls(message)
    return SealFailed(f"this machine could not make ready what is to be sent: {kind}: {message}")
