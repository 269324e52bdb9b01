"""Asking the daemon of a mount over its control socket."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import trio

from s3fs_banyan.app.control import ask, control_path
from s3fs_banyan.errors import ExitCode, UsageError
from s3fs_banyan.kernel import is_mount, mount_owner, mount_source

_ANSWER_S = 30.0


def control_answers(place: Path) -> bool:
    """Tell whether a daemon listens for a mount point, stopped or not."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(control_path(place)))
        except OSError:
            return False
        return True


async def messages_of(
    place: Path, command: str, argument: str | None = None
) -> AsyncIterator[dict[str, Any]]:
    """Give the messages of an answer; raises `UsageError` if the daemon says that it failed."""
    async with aclosing(ask(place, command, argument)) as answers:  # type: ignore[type-var]  # a generator
        async for message in answers:
            if "error" in message:
                raise UsageError(f"{place}: {message['error']}", exit_code=_code_of(message))
            yield message


def _code_of(message: dict[str, Any]) -> ExitCode:
    """Return the exit code that came with an error; a daemon of another release may know more."""
    try:
        return ExitCode(message.get("exit_code", ExitCode.DAEMON))
    except ValueError:
        return ExitCode.DAEMON


async def result_of(
    place: Path, command: str, argument: str | None = None
) -> dict[str, Any] | None:
    async for message in messages_of(place, command, argument):
        if "result" in message:
            found: dict[str, Any] = message["result"]
            return found
    return None


def ask_status(place: Path) -> dict[str, Any] | None:
    """Return what the daemon says of itself, or None if none listens."""

    async def ask_in_time() -> dict[str, Any] | None:
        with trio.fail_after(_ANSWER_S):
            return await result_of(place, "status")

    try:
        return trio.run(ask_in_time)
    except OSError:
        return None
    except trio.TooSlowError:
        raise UsageError(
            f"the daemon of {place} does not answer: it may be stopped", exit_code=ExitCode.DAEMON
        ) from None


def status_of(place: Path) -> dict[str, Any]:
    found = ask_status(place)
    if found is not None:
        return found
    if mount_source(place) is None:
        raise not_ours(place)
    owner = mount_owner(place)
    if owner is not None and owner != os.geteuid():
        raise UsageError(
            f"the mount on {place} is that of the user {owner}: only that user can ask its daemon",
            exit_code=ExitCode.MOUNTPOINT,
        )
    raise UsageError(
        f"{place} is mounted, but no daemon answers: it has ended. Unmount it with s3fs-banyan "
        "umount, and mount it again: nothing that was answered is lost",
        exit_code=ExitCode.DAEMON,
    )


def not_ours(place: Path) -> UsageError:
    """Return what to say where no mount of ours is."""
    why = "is not a mount of s3fs-banyan" if is_mount(place) else "is not mounted"
    return UsageError(f"{place} {why}", exit_code=ExitCode.MOUNTPOINT)


def ended(place: Path) -> UsageError:
    return UsageError(
        f"the daemon of {place} ended while it worked: mount again to go on, nothing that was "
        "answered is lost",
        exit_code=ExitCode.DAEMON,
    )
