"""The control socket: whatever comes over it, the daemon goes on and answers the next one."""

from __future__ import annotations

import logging
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from s3fs_banyan.app import control
from s3fs_banyan.errors import ExitCode, UsageError

MOUNTPOINT = Path("/some/where")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the socket lies."""
    path = tmp_path / "control.sock"
    monkeypatch.setattr(control, "control_path", lambda _: path)
    return path


async def _status(_: control.Progress) -> dict[str, object]:
    return {"is": "there"}


async def _fenced(_: control.Progress) -> dict[str, object]:
    raise UsageError("another writer owns it", exit_code=ExitCode.WRITER)


async def _told(_: control.Progress, argument: str) -> dict[str, object]:
    return {"told": argument}


COMMANDS = {"status": _status, "told": _told, "fenced": _fenced}


@asynccontextmanager
async def _serving() -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(control.serve_control, MOUNTPOINT, COMMANDS)
        yield
        nursery.cancel_scope.cancel()


async def _connect_until_refused(path: Path, streams: list[trio.SocketStream]) -> None:
    while True:
        streams.append(await trio.open_unix_socket(str(path)))
        await trio.testing.wait_all_tasks_blocked()


async def _answer(command: str, argument: str | None = None) -> dict[str, object]:
    return [message async for message in control.ask(MOUNTPOINT, command, argument)][-1]


@pytest.mark.parametrize(
    "request_line",
    [
        b"",
        b"\n",
        b"[]\n",
        b"1\n",
        b'"status"\n',
        b"null\n",
        b"{\n",
        b"\xff\xfe\n",
        b'{"command": []}\n',
        b'{"command": {}}\n',
        b'{"command": null}\n',
        b'{"command": "none"}\n',
        b"[" * 60_000 + b"\n",
        b"x" * 1_000_000,
    ],
)
async def test_what_is_no_command_is_refused(path: Path, request_line: bytes) -> None:
    """Also what Python's JSON refuses in other ways than by saying that it is wrong."""
    async with _serving():
        stream = await trio.open_unix_socket(str(path))
        with suppress(trio.BrokenResourceError):  # it need not read all of that
            await stream.send_all(request_line)
            await stream.send_eof()
            assert b"unknown command" in await stream.receive_some(1000)
        await stream.aclose()
        assert await _answer("status") == {"result": {"is": "there"}}


async def test_a_command_that_fails_is_told_to_who_asked(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An argument too few or too many is such a failure."""
    del path
    caplog.set_level(logging.CRITICAL)
    async with _serving():
        assert "error" in await _answer("told")
        assert "error" in await _answer("status", "argument")
        assert await _answer("fenced") == {"error": "another writer owns it", "exit_code": 8}
        assert await _answer("told", "ü") == {"result": {"told": "ü"}}


async def test_a_request_may_come_in_pieces(path: Path) -> None:
    """A path of 4,096 characters does not always come at once."""
    async with _serving():
        stream = await trio.open_unix_socket(str(path))
        for piece in (b'{"command": "to', b'ld", "argument": "a"', b"}\n"):
            await stream.send_all(piece)
            await trio.testing.wait_all_tasks_blocked()
        assert b'"told": "a"' in await stream.receive_some(1000)
        await stream.aclose()


async def test_who_says_nothing_is_not_waited_for(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Else silent connections would keep the others out for ever."""
    del autojump_clock
    async with _serving():
        silent = []
        for _ in range(control._CONNECTIONS_MAX):
            silent.append(await trio.open_unix_socket(str(path)))
            await trio.testing.wait_all_tasks_blocked()
        assert await _answer("status") == {"result": {"is": "there"}}
        for stream in silent:
            assert await stream.receive_some(1) == b""
            await stream.aclose()


async def test_a_daemon_that_dies_while_it_is_asked_is_a_connection_that_broke(
    path: Path,
) -> None:
    """What asks knows that one as it knows a socket that is not there."""
    listener = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    await listener.bind(str(path))
    listener.listen(1)

    async def die() -> None:
        connection, _ = await listener.accept()
        connection.close()  # with a request unread

    with listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(die)
            with pytest.raises(ConnectionError):
                await _answer("status", "x" * 1_000_000)


@pytest.mark.allow_log_warnings
async def test_a_lack_of_descriptors_ends_nothing(path: Path) -> None:
    """Connections that cannot be taken wait, and are answered later."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len([*Path("/proc/self/fd").iterdir()])
    async with _serving():
        streams: list[trio.SocketStream] = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, limits[1]))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                await _connect_until_refused(path, streams)
            await trio.testing.wait_all_tasks_blocked()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for stream in streams:
            await stream.aclose()
        assert await _answer("status") == {"result": {"is": "there"}}
