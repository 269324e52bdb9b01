"""The control socket of a mount: status, sync, umount, asked by other processes.

One request a line, JSON; answers are lines of JSON: any number of `{"progress": …}`, then
`{"result": …}` or `{"error": …}`, with an `exit_code` where the error was foreseen. The socket
lies in a directory that only its owner can enter, under a name made from the mount point, so that
nobody needs to touch the mount to find it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import trio

from s3fs_banyan.errors import BanyanFSError, ExitCode
from s3fs_banyan.foreign_json import parse_json

log = logging.getLogger(__name__)

_REQUEST_BYTES_MAX = 1 << 16
"""A path of 4,096 bytes, each of them escaped."""
_REQUEST_S = 10.0
"""Who connects has so long to say what for."""
_CONNECTIONS_MAX = 64
_ACCEPT_PAUSE_S = 0.1

Progress = Callable[[dict[str, object]], Awaitable[None]]
Command = Callable[..., Awaitable[dict[str, object]]]
"""Takes where to report progress, and the request's argument if there is one."""


def control_path(mountpoint: Path) -> Path:
    """Return the path of the control socket of a mount point."""
    if os.geteuid() == 0:
        base = Path("/run/s3fs-banyan")
    else:
        base = Path(os.environ.get("XDG_RUNTIME_DIR", f"/tmp/s3fs-banyan-{os.geteuid()}"))  # noqa: S108
        base /= "s3fs-banyan"
    name = hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:24]
    return base / f"{name}.sock"


async def serve_control(
    mountpoint: Path,
    commands: dict[str, Command],
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer requests until cancelled; the socket is removed at the end.

    Nothing that is sent here, and no lack of descriptors, ends it.
    """
    path = control_path(mountpoint)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listener = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    await listener.bind(str(path))
    path.chmod(0o600)
    ino = path.stat().st_ino
    listener.listen(_CONNECTIONS_MAX)
    try:
        async with trio.open_nursery() as nursery:
            task_status.started()
            await _accept(listener, commands, nursery)
    finally:
        listener.close()
        # While this daemon was draining, another one may have been mounted here.
        if path.exists() and path.stat().st_ino == ino:
            path.unlink()


async def _accept(
    listener: trio.socket.SocketType, commands: dict[str, Command], nursery: trio.Nursery
) -> None:
    """Take connections, no more at once than leave the mount its descriptors."""
    free = trio.Semaphore(_CONNECTIONS_MAX)

    async def answer(connection: trio.socket.SocketType) -> None:
        try:
            await _answer(trio.SocketStream(connection), commands)
        finally:
            free.release()

    said = ""
    while True:
        await free.acquire()
        try:
            connection, _ = await listener.accept()
        except OSError as error:  # no descriptor is free; who asked goes on waiting
            if said != str(error):
                said = str(error)
                log.warning("no control connection can be taken just now: %s", error)
            free.release()
            await trio.sleep(_ACCEPT_PAUSE_S)
        else:
            said = ""
            nursery.start_soon(answer, connection)


async def _answer(stream: trio.SocketStream, commands: dict[str, Command]) -> None:
    try:
        async with stream:
            with trio.fail_after(_REQUEST_S):
                line = await _request_line(stream)
            await _obey(stream, line, commands)
    except trio.TooSlowError:
        log.debug("a control connection that asked for nothing was closed")
    except Exception as error:  # noqa: BLE001  # whatever one connection does, the mount goes on
        if not _is_hangup(error):
            log.warning("a control connection ended: %r", error)


async def _request_line(stream: trio.SocketStream) -> bytes:
    """Return what came until a line end, the end of the stream, or too much of it."""
    line = b""
    while b"\n" not in line and len(line) < _REQUEST_BYTES_MAX:
        received = await stream.receive_some(_REQUEST_BYTES_MAX)
        if not received:
            break
        line += received
    return line.partition(b"\n")[0]


async def _obey(stream: trio.SocketStream, line: bytes, commands: dict[str, Command]) -> None:
    async def send(message: dict[str, object]) -> None:
        await stream.send_all((json.dumps(message) + "\n").encode())

    async def progress(values: dict[str, object]) -> None:
        await send({"progress": values})

    try:
        parsed = parse_json(line)
    except ValueError:
        parsed = None
    request = parsed if isinstance(parsed, dict) else {}
    name = request.get("command")
    command = commands.get(name) if isinstance(name, str) else None
    if command is None:
        await send({"error": f"unknown command {name!r}"})
        return
    argument = request.get("argument")
    arguments = () if argument is None else (argument,)
    try:
        await send({"result": await command(progress, *arguments)})
    except Exception as error:  # noqa: BLE001  # told to the one who asked
        if _is_hangup(error):
            return
        log.warning("control command %s failed: %s", name, error)
        failure: dict[str, object] = {"error": str(error)}
        if isinstance(error, BanyanFSError) and error.exit_code != ExitCode.INTERNAL:
            failure["exit_code"] = int(error.exit_code)
        await send(failure)


def _is_hangup(error: BaseException) -> bool:
    """Tell whether an error says no more than that the one who asked has gone."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_hangup(inner) for inner in error.exceptions)
    return isinstance(error, trio.BrokenResourceError | trio.ClosedResourceError)


async def ask(
    mountpoint: Path, command: str, argument: str | None = None
) -> AsyncIterator[dict[str, object]]:
    """Send one command, with an argument if it takes one, and give the messages of the answer.

    Raises `OSError` if no daemon answers for this mount point, or the connection breaks. The last
    message has `result` or `error`; none comes if the daemon ends while it works.
    """
    stream = await trio.open_unix_socket(str(control_path(mountpoint)))
    try:
        async with stream:
            await stream.send_all(
                (json.dumps({"command": command, "argument": argument}) + "\n").encode()
            )
            buffer = b""
            async for data in stream:
                buffer += data
                while b"\n" in buffer:
                    line, _, buffer = buffer.partition(b"\n")
                    yield json.loads(line)
    except trio.BrokenResourceError as error:
        raise ConnectionResetError(f"the daemon of {mountpoint} has ended") from error
