"""Commands on a mount that runs: status, sync, umount. They ask the daemon over its socket."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Annotated, Any

import trio
import typer
from rich.progress import Progress

from s3fs_banyan.cli.asking import ask_status, ended, messages_of, not_ours, status_of
from s3fs_banyan.cli.holders import holders_of
from s3fs_banyan.cli.options import JsonOption, locate, some_path
from s3fs_banyan.cli.output import print_json, print_line, progress_bar, say, size_text
from s3fs_banyan.cli.status import show_status
from s3fs_banyan.errors import ExitCode, UsageError
from s3fs_banyan.kernel import mount_source, unmount

MountpointArgument = Annotated[
    Path, typer.Argument(metavar="MOUNTPOINT", show_default=False, parser=some_path)
]

_DETAIL_CHARACTERS = 60
_DETACH_ATTEMPTS = 10
_DETACH_PAUSE_S = 0.1
_HELD_S = 5.0
"""Nothing left to bring to the store for so long, and the daemon has not ended."""


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command()(umount)
    app.command()(sync)
    app.command()(status)


# --- the commands ------------------------------------------------------------------------


def status(mountpoint: MountpointArgument, json: JsonOption = False) -> None:
    """Show the state of a mount: what is not yet in the store, journal, cache, latencies.

    Examples:

    * `s3fs-banyan status /mnt/banyandb`
    * `s3fs-banyan status /mnt/banyandb --json`
    """
    found = status_of(locate(mountpoint))
    if json:
        print_json(found)
    else:
        show_status(found)


def sync(mountpoint: MountpointArgument, json: JsonOption = False) -> None:
    """Bring everything that was written before into the store, and wait for it.

    Examples:

    * `s3fs-banyan sync /mnt/banyandb`
    """
    place = locate(mountpoint)
    status_of(place)
    with progress_bar() as bar:
        result = trio.run(_sync, place, bar)
    if json:
        print_json(result)
    else:
        print_line(f"{place} is in the store as of commit {result['seq']}")


def umount(
    mountpoint: MountpointArgument,
    lazy: Annotated[
        bool, typer.Option("--lazy", help="Detach at once, although files are open.")
    ] = False,
) -> None:
    """Unmount, and return when everything is in the store.

    Examples:

    * `s3fs-banyan umount /mnt/banyandb`
    * `s3fs-banyan umount --lazy /mnt/banyandb`
    """
    place = locate(mountpoint)
    found = ask_status(place)
    if found is None:
        _clear_dead_mount(place)
        return
    with progress_bar() as bar:
        in_store = trio.run(_unmount, place, found, lazy, bar)
    reason = found["read_only"]
    if reason:
        raise UsageError(
            f"{place} is unmounted, but it had become read-only ({reason}): changes that were not "
            f"in the store stay in {found['cache_dir']}",
            exit_code=ExitCode.WRITER,
        )
    if not in_store and found.get("role") != "follower":
        raise UsageError(
            f"{place} is unmounted, but its daemon ended before everything was in the store (see "
            f"{found['cache_dir']}/log): mount again to bring the rest there, nothing is lost",
            exit_code=ExitCode.DAEMON,
        )
    print_line(f"unmounted {place}")


# --- to the store ------------------------------------------------------------------------


async def _sync(place: Path, bar: Progress) -> dict[str, Any]:
    task = bar.add_task("to the store", total=None, detail="")
    try:
        async for message in messages_of(place, "sync"):
            if "result" in message:
                found: dict[str, Any] = message["result"]
                return found
            _show(bar, task, message["progress"])
    except OSError as error:
        raise ended(place) from error
    raise ended(place)


def _show(bar: Progress, task: Any, progress: dict[str, Any]) -> None:  # noqa: ANN401  # rich's id
    left = progress["operations_left"]
    total = max(left, bar.tasks[task].total or 0)
    detail = f"{left} operations, {size_text(progress['uncommitted_bytes'])} left"
    if progress["error"]:
        detail += f" ({progress['error'][:_DETAIL_CHARACTERS]})"
    bar.update(task, total=total, completed=total - left, detail=detail)


# --- unmounting --------------------------------------------------------------------------


async def _unmount(place: Path, found: dict[str, Any], lazy: bool, bar: Progress) -> bool:
    """Most of the work is done while the mount still serves; then detach and wait for the end.

    Returns whether the daemon said that everything is in the store.
    """
    pid = int(found["writer"]["pid"])
    _check_namespace(place, pid)
    if not lazy and not found["read_only"] and mount_source(place) is not None:
        await _sync(place, bar)
    daemon = _pidfd(pid)
    try:
        task = bar.add_task("the rest", total=None, detail="")
        detached = mount_source(place) is None
        held = _Held(place)
        result: dict[str, Any] | None = None
        try:
            async for message in messages_of(place, "wait"):
                if not detached:
                    await _detach(place, lazy=lazy)
                    detached = True
                if "result" in message:
                    result = message["result"]
                    break
                _show(bar, task, message["progress"])
                held.look(message["progress"])
        except OSError as error:
            if not detached:
                raise ended(place) from error
        if daemon is not None:
            await trio.lowlevel.wait_readable(daemon)
    finally:
        if daemon is not None:
            os.close(daemon)
    return result is not None


class _Held:
    """Says once why the daemon of a mount that is detached and in the store does not end."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._idle_since_s: float | None = None
        self._said = False

    def look(self, progress: dict[str, Any]) -> None:
        """Note one report of the daemon, which sends several a second."""
        now_s = trio.current_time()
        if progress["operations_left"] or self._idle_since_s is None:
            self._idle_since_s = now_s
        if not self._said and now_s - self._idle_since_s > _HELD_S:
            self._said = True
            say(
                f"{self._place} is detached and everything is in the store, but its daemon goes "
                "on: the file system may be still in use, by open files or mounted in another "
                "place or mount namespace, too. Waiting for its end"
            )


def _check_namespace(place: Path, pid: int) -> None:
    """Refuse to wait for the end of a mount that only its daemon's namespace could detach."""
    if mount_source(place) is None and mount_source(place, pid) is not None:
        raise UsageError(
            f"{place} is mounted in another mount namespace than this one, that of its daemon: "
            f"nsenter --mount --target {pid} s3fs-banyan umount {place}",
            exit_code=ExitCode.MOUNTPOINT,
        )


def _pidfd(pid: int) -> int | None:
    """Return a descriptor that becomes readable when the process ends; None if it has."""
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in {errno.ESRCH, errno.EINVAL}:
            return None
        raise


async def _detach(place: Path, *, lazy: bool) -> None:
    """Detach the mount; who is just about to let go of it gets a moment to do so.

    Where somebody else was faster, nothing is left to detach.
    """
    for attempt in range(_DETACH_ATTEMPTS):
        if mount_source(place) is None:
            return
        try:
            unmount(place, lazy=lazy)
        except OSError as error:
            if error.errno == errno.EINVAL and mount_source(place) is None:
                return
            if error.errno != errno.EBUSY or attempt == _DETACH_ATTEMPTS - 1:
                raise _not_unmounted(place, error) from error
            await trio.sleep(_DETACH_PAUSE_S)
        else:
            return


def _not_unmounted(place: Path, error: OSError) -> UsageError:
    if error.errno == errno.EBUSY:
        users = holders_of(place)
        by = f" by {', '.join(users)}" if users else ""
        return UsageError(
            f"{place} is in use{by}: end what uses it, or detach it with --lazy",
            exit_code=ExitCode.MOUNTPOINT,
        )
    if error.errno == errno.EPERM:
        return UsageError(f"{place}: unmounting needs root", exit_code=ExitCode.MOUNTPOINT)
    return UsageError(f"{place}: {error.strerror}", exit_code=ExitCode.MOUNTPOINT)


def _clear_dead_mount(place: Path) -> None:
    """Unmount what a daemon that died left behind, and say that the store may lack something."""
    if mount_source(place) is None:
        raise not_ours(place)
    try:
        unmount(place)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise _not_unmounted(place, error) from error
        say("processes still hold files of the dead mount; it is detached")
        unmount(place, lazy=True)
    raise UsageError(
        f"{place} is unmounted, but its daemon had ended before: what was not yet in the store is "
        "in its local directory, mount again to bring it there",
        exit_code=ExitCode.DAEMON,
    )
