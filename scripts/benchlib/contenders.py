"""The file systems that are compared: mounted for one run, and gone after it.

Each `open_*` is a context manager that yields a `Contender` and leaves neither a mount nor a
process behind, whatever happened inside.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchlib.measures import FLOOR, OURS, PLAIN
from benchlib.mounts import mount_device, mounts_below, unmount

MOUNT_TIMEOUT_S = 60
END_TIMEOUT_S = 60
POLL_S = 0.05
LOG_TAIL_CHARACTERS = 2000

FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
FS_TOPDIR_FL = 0x00020000

FLOORFS = Path(__file__).resolve().parents[1] / "floorfs"


class BenchError(Exception):
    """The run cannot go on; the message says why and is shown without a traceback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A name in the table and a directory to work in."""

    name: str
    directory: Path


@contextmanager
def open_work(parent: Path) -> Iterator[Path]:
    """Make a directory for the whole run below `parent`; remove it with all that is mounted there.

    Removing goes ahead only when nothing is mounted below any more, so it cannot reach into
    a file system that refuses to leave.
    """
    work = parent / f"s3fs-banyan-bench-{time.time_ns():x}"
    work.mkdir(parents=True, mode=0o700)
    try:
        yield work
    finally:
        for point in mounts_below(work):
            unmount(point)
        shutil.rmtree(work)


def spread_directories(directory: Path) -> None:
    """Have ext4 put each directory made in `directory` into a block group of its own.

    ext4 does not hand out an inode again within minutes of its removal, and looks at each such
    inode every time: where thousands of files were just removed, creating one is twenty times
    slower. A yardstick that removes files must create the next ones elsewhere.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        flags = bytearray(8)
        fcntl.ioctl(descriptor, FS_IOC_GETFLAGS, flags)
        wanted = int.from_bytes(flags, "little") | FS_TOPDIR_FL
        fcntl.ioctl(descriptor, FS_IOC_SETFLAGS, wanted.to_bytes(8, "little"))
    except OSError as error:
        # Other file systems do not have the flag, nor the trait that it is for.
        if error.errno not in {errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL}:
            raise
    finally:
        os.close(descriptor)


@contextmanager
def open_plain(work: Path) -> Iterator[Contender]:
    """Yield a directory on the same disk."""
    directory = work / PLAIN
    directory.mkdir()
    spread_directories(directory)
    yield Contender(name=PLAIN, directory=directory)


@contextmanager
def open_given(name: str, directory: Path) -> Iterator[Contender]:
    """Yield a directory that someone else mounted; it keeps what it holds."""
    own = directory / f"s3fs-banyan-bench-{time.time_ns():x}"
    try:
        own.mkdir()
    except OSError as error:
        raise BenchError(f"contender {name}: {directory} cannot be used: {error}") from error
    try:
        yield Contender(name=name, directory=own)
    finally:
        shutil.rmtree(own)


@contextmanager
def open_floor(work: Path) -> Iterator[Contender]:
    """Mount the floor."""
    base = work / FLOOR
    base.mkdir()
    command = [sys.executable, str(FLOORFS), str(base / "mnt"), str(base / "data")]
    with _mounted(command, base / "mnt", base / "log"):
        yield Contender(name=FLOOR, directory=base / "mnt")


@contextmanager
def open_ours(work: Path, program: Sequence[str], store: str | None) -> Iterator[Contender]:
    """Make a volume in `store` (a local directory if None) and mount it.

    A store other than the local directory keeps what the run wrote to it.
    """
    base = work / OURS
    base.mkdir()
    if store is None:
        (base / "store").mkdir()
        store = (base / "store").as_uri()
    made = subprocess.run(
        [*program, "mkfs", store],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=MOUNT_TIMEOUT_S,
    )
    if made.returncode != 0:
        raise BenchError(f"mkfs of {store} failed: {(made.stderr or made.stdout).strip()}")
    mount_point = base / "mnt"
    # In the foreground, so that the end of its last commit can be waited for.
    command = [*program, "mount", store, str(mount_point), "--cache-dir", str(base / "cache")]
    command.append("--foreground")
    with _mounted(command, mount_point, base / "log"):
        yield Contender(name=OURS, directory=mount_point)


@contextmanager
def _mounted(command: Sequence[str], mount_point: Path, log: Path) -> Iterator[None]:
    """Run a mount program, in the foreground or not, until the block ends."""
    mount_point.mkdir()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        _wait_mounted(process, command, mount_point, log)
        yield
    finally:
        try:
            unmount(mount_point)
        finally:
            _end(process)


def _wait_mounted(
    process: subprocess.Popen[bytes], command: Sequence[str], mount_point: Path, log: Path
) -> None:
    deadline = time.monotonic() + MOUNT_TIMEOUT_S
    while mount_device(mount_point) is None:
        # A program that put itself into the background ends with 0 before or after mounting.
        if process.poll() or time.monotonic() > deadline:
            tail = log.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL_CHARACTERS:]
            what = "did not mount in time" if process.poll() is None else "failed"
            raise BenchError(f"`{' '.join(command)}` {what}: {tail.strip()}")
        time.sleep(POLL_S)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for a mount program to end after its unmount; press harder if it does not."""
    for press in (None, process.terminate, process.kill):
        if press is not None:
            press()
        try:
            process.wait(timeout=END_TIMEOUT_S if press is None else 10)
        except subprocess.TimeoutExpired:
            continue
        return
    raise BenchError(f"process {process.pid} cannot be ended")
