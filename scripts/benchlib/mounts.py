"""What is mounted where, read from the kernel's table and never by touching a mount.

A path lookup on a mount whose server is gone or busy would hang its caller.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_MOUNT_TABLE = Path("/proc/self/mountinfo")
_OCTAL = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line of the table; `device` is `major:minor`."""

    device: str
    point: Path
    kind: str
    source: str


def mounts() -> Iterator[Mount]:
    """Yield every mount, oldest first."""
    for line in _MOUNT_TABLE.read_bytes().splitlines():
        before, _, after = line.partition(b" - ")
        device, point = before.split(b" ")[2], before.split(b" ")[4]
        kind, source = after.split(b" ")[:2]
        yield Mount(device.decode(), Path(_plain(point)), _plain(kind), _plain(source))


def _plain(field: bytes) -> str:
    """Undo the table's octal escapes for blanks and backslashes."""
    raw = _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field)
    return raw.decode(errors="surrogateescape")


def mount_device(point: Path) -> str | None:
    """Return `major:minor` of what is mounted at exactly `point`, None if nothing is."""
    found = [mount.device for mount in mounts() if mount.point == point]
    return found[-1] if found else None


def mounts_below(directory: Path) -> list[Path]:
    """Return the mount points at or below `directory`, innermost and newest first."""
    return [m.point for m in mounts() if m.point.is_relative_to(directory)][::-1]


def disk_of(directory: Path) -> Mount:
    """Return the mount that `directory` lies on."""
    holders = [mount for mount in mounts() if directory.is_relative_to(mount.point)]
    return max(holders, key=lambda mount: len(mount.point.parts))


def unmount(point: Path) -> None:
    """Unmount `point` now or, if someone is still in it, as soon as they leave.

    Raises `RuntimeError` if it is still in the table afterwards.
    """
    attempts = (["fusermount3", "-u"], ["fusermount3", "-u", "-z"], ["umount", "--lazy"])
    complaints = []
    for command in attempts:
        if mount_device(point) is None:
            return
        done = subprocess.run([*command, str(point)], capture_output=True, check=False)
        complaints.append(done.stderr.decode(errors="replace").strip())
    if mount_device(point) is not None:
        raise RuntimeError(f"{point} cannot be unmounted: {'; '.join(complaints)}")
