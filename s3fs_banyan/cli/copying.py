"""Copying out of a volume: bytes, holes, modes, owners, times, links, extended attributes."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.progress import Progress

from s3fs_banyan.app.view import Entry, View
from s3fs_banyan.cli.output import size_text

_TEMPORARY_PREFIX: Final = ".s3fs-banyan-"


@dataclass(slots=True)
class Counts:
    """What was copied."""

    files: int = 0
    size_bytes: int = 0


async def copy_out(view: View, top: Entry, target: Path, bar: Progress) -> Counts:
    """Copy `top` and all below it to `target`; hard links stay hard links.

    A directory gets its mode and times last, when nothing is written into it any more.
    """
    counts = Counts()
    task = bar.add_task("copying", total=None, detail="")
    directories: list[tuple[Entry, Path]] = []
    copied: dict[int, Path] = {}
    strip = len(top.path) + 1 if top.path else 0
    for entry in view.walk(top):
        below = os.fsdecode(entry.path[strip:])
        path = target / below if below else target
        if entry.is_directory:
            path.mkdir(mode=0o700, parents=entry is top, exist_ok=True)
            directories.append((entry, path))
            continue
        first = copied.get(entry.attributes.ino)
        if first is not None:
            path.unlink(missing_ok=True)
            path.hardlink_to(first)
            continue
        if entry.attributes.nlink > 1:
            copied[entry.attributes.ino] = path
        await _copy_one(view, entry, path)
        counts.files += 1
        counts.size_bytes += entry.attributes.size if entry.is_file else 0
        bar.update(task, detail=f"{counts.files} files, {size_text(counts.size_bytes)}")
    for entry, path in reversed(directories):
        _copy_attributes(view, entry, path)
    return counts


async def _copy_one(view: View, entry: Entry, path: Path) -> None:
    attributes = entry.attributes
    if entry.is_file:
        await _copy_file(view, entry, path)
        return
    path.unlink(missing_ok=True)
    if entry.is_link:
        path.symlink_to(os.fsdecode(view.target(entry)))
    else:
        os.mknod(path, stat.S_IFMT(attributes.mode) | 0o600, attributes.rdev)
    _copy_attributes(view, entry, path)


async def _copy_file(view: View, entry: Entry, path: Path) -> None:
    """Copy under a temporary name beside `path`, whose place only a whole copy takes.

    Whatever goes wrong, nothing of it is left.
    """
    _check_replaceable(path)
    temporary: Path | None = None
    try:
        fd, name = tempfile.mkstemp(prefix=_TEMPORARY_PREFIX, dir=path.parent)
        temporary = Path(name)
        try:
            await _copy_bytes(view, entry, fd)
        finally:
            os.close(fd)
        _copy_attributes(view, entry, temporary)
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _check_replaceable(path: Path) -> None:
    """Refuse what a rename would take away although nobody could have meant it: a device."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise FileExistsError(errno.EEXIST, "is there and is no regular file", str(path))


async def _copy_bytes(view: View, entry: Entry, fd: int) -> None:
    async for offset, data in view.read(entry):
        if data.count(0) != len(data):  # a hole stays a hole
            _write_at(fd, data, offset)
    os.ftruncate(fd, entry.attributes.size)


def _write_at(fd: int, data: bytes, offset: int) -> None:
    left = memoryview(data)
    while left:
        done = os.pwrite(fd, left, offset)
        left, offset = left[done:], offset + done


def _copy_attributes(view: View, entry: Entry, path: Path) -> None:
    attributes = entry.attributes
    if os.geteuid() == 0:
        os.chown(path, attributes.uid, attributes.gid, follow_symlinks=False)
    if not entry.is_link:
        path.chmod(stat.S_IMODE(attributes.mode))
        for name, value in view.user_xattrs(entry):
            os.setxattr(path, name, value)
    times = (attributes.atime_ns, attributes.mtime_ns)
    os.utime(path, ns=times, follow_symlinks=False)
