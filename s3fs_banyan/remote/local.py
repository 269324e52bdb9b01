"""A store in a directory: `file:///dir`, for tests, for a disk of its own, for an NFS server.

An object is a file. The parts of a path are directories whose names end in `+`, and the last
part is the file's own name: so `a` and `a/b` can both exist, as the contract asks, and no path
of the contract can reach outside the directory or into the private `#tmp`.

    log/00000000000000000007   ->   log+/00000000000000000007

A write goes to a file in `#tmp`, which is synced and then moved into place: by rename(2), or by
link(2) if nothing may be there yet, which the kernel decides atomically. Then the directory is
synced. Directories are removed only by a probe, its own ones; a write that loses one that way
makes it again.

Which directory it is, device and inode, is remembered: an unmounted disk leaves an empty one
behind, or another, and nothing may be read from it or written into it. That is an outage.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from s3fs_banyan.errors import (
    AlreadyExists,
    Denied,
    Misconfigured,
    ObjectMissing,
    StoreError,
    Unavailable,
)
from s3fs_banyan.gentle_io import read_into, write_all
from s3fs_banyan.remote.base import Capabilities, FileMeta, check_path, check_range

TEMPORARY_NAME: Final = "#tmp"
_DIRECTORY_MARK: Final = "+"
_TEMPORARY_AGE_MAX_NS: Final = 24 * 3600 * 10**9
_CAPABILITIES = Capabilities(create_if_absent=True)


class LocalStore:
    """Objects as files below one directory, which must exist unless `create` is asked.

    `is_known` is for a volume that was used before: its directory may be away just now. While it
    is, or holds no object, every call is `Unavailable`.
    """

    def __init__(self, directory: Path, *, create: bool = False, is_known: bool = False) -> None:
        """Raise `Misconfigured` if the directory is not there or is not one."""
        self._root = directory.absolute()
        self._temporary = self._root / TEMPORARY_NAME
        self._synced: set[Path] = set()
        self._made: list[Path] = []
        self._is_tidied = False
        self._root_id: tuple[int, int] | None = None
        if is_known:
            return
        with _translated(self._root):
            if create and not self._root.exists():
                self._root.mkdir(mode=0o700, parents=True)
                _sync_directory(self._root.parent)
            self._root_id = self._first_root_id()

    @property
    def url(self) -> str:
        return self._root.as_uri()

    @property
    def capabilities(self) -> Capabilities:
        return _CAPABILITIES

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[FileMeta]:
        with _translated(self._root):
            self._check_root()
            yield from self._walk(self._root, "", prefix, start_after)

    def read(self, path: str, *, offset: int = 0, length: int | None = None) -> bytes:
        check_range(offset, length)
        with self._opened(path) as fd:
            size = os.fstat(fd).st_size
            end = size if length is None else min(size, offset + length)
            return _read_exactly(fd, offset, end, path)

    def write(
        self,
        path: str,
        data: bytes | bytearray | memoryview,
        *,
        if_absent: bool = False,
        storage_class: str = "",
    ) -> FileMeta:
        target = self._file_of(path)
        if storage_class:
            raise Misconfigured(f"{self.url}: a directory has no storage class {storage_class!r}")
        with _translated(target):
            self._check_root()
            try:
                return self._write(target, path, data, if_absent=if_absent)
            except FileNotFoundError:
                self._check_root()  # the root has gone, or a probe took an empty directory away
                self._synced.clear()
                return self._write(target, path, data, if_absent=if_absent)

    def delete(self, paths: Sequence[str]) -> None:
        targets = [self._file_of(path) for path in paths]
        with _translated(self._root):
            self._check_root()
            for target in targets:
                target.unlink(missing_ok=True)
            for directory in sorted({target.parent for target in targets}):
                if directory.is_dir():
                    _sync_directory(directory)

    def stat(self, path: str) -> FileMeta:
        with self._opened(path) as fd:
            return _meta_of(path, os.fstat(fd))

    def close(self) -> None:
        """Do nothing: no file stays open between calls."""

    def remove_made_directories(self) -> None:
        """Remove the directories that this store made, as far as they are empty."""
        for directory in reversed(self._made):
            with suppress(OSError):  # another writer's objects are in it
                directory.rmdir()
        self._made.clear()
        self._synced.clear()

    # --- inside --------------------------------------------------------------------------

    def _write(
        self, target: Path, path: str, data: bytes | bytearray | memoryview, *, if_absent: bool
    ) -> FileMeta:
        self._ensure_directory(self._temporary)
        if not self._is_tidied:
            self._remove_old_temporaries()
            self._is_tidied = True
        self._ensure_directory(target.parent)
        fd, name = tempfile.mkstemp(dir=self._temporary)
        temporary = Path(name)
        try:
            with os.fdopen(fd, "wb", buffering=0) as file:
                write_all(file.fileno(), memoryview(data).cast("B"))
                os.fsync(file.fileno())
                meta = _meta_of(path, os.fstat(file.fileno()))
            if if_absent:
                self._link(temporary, target, path)
            else:
                temporary.replace(target)
            _sync_directory(target.parent)
        finally:
            temporary.unlink(missing_ok=True)
        return meta

    def _file_of(self, path: str) -> Path:
        *directories, name = check_path(path).split("/")
        return self._root.joinpath(*(part + _DIRECTORY_MARK for part in directories), name)

    def _first_root_id(self) -> tuple[int, int]:
        """Return which directory the root is; raises `Misconfigured` if it is none."""
        if not self._root.exists():
            raise Misconfigured(
                f"{self.url}: no such directory: create it, or check the path and that its "
                "file system is mounted"
            )
        if not self._root.is_dir():
            raise Misconfigured(f"{self.url}: is no directory")
        return _id_of(self._root.stat())

    def _check_root(self) -> None:
        """Tell the directory that was opened from none, and from another in its place."""
        try:
            found = self._root.stat()
            if self._root_id is None and any(self._entries(self._root, "")):
                self._root_id = _id_of(found)
        except (FileNotFoundError, NotADirectoryError):
            raise Unavailable(
                f"{self.url}: the directory is gone; is its file system mounted?"
            ) from None
        if self._root_id is None:
            raise Unavailable(
                f"{self.url}: the directory holds no object; is its file system mounted?"
            )
        if _id_of(found) != self._root_id:
            raise Unavailable(
                f"{self.url}: the directory is gone, another one is in its place: bring the first "
                "one back, or mount the volume again"
            )

    @contextmanager
    def _opened(self, path: str) -> Iterator[int]:
        target = self._file_of(path)
        with _translated(target):
            self._check_root()
            try:
                fd = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                self._check_root()
                raise ObjectMissing(f"{self.url}: no object {path}") from None
            try:
                yield fd
            finally:
                os.close(fd)

    def _link(self, temporary: Path, target: Path, path: str) -> None:
        try:
            os.link(temporary, target)
        except FileExistsError:
            # NFS may have carried it out and lost the answer (link(2)).
            if temporary.stat().st_nlink < 2:
                raise AlreadyExists(f"{self.url}: {path} exists") from None
        except OSError as error:
            if error.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}:
                raise
            raise Misconfigured(
                f"{self.url}: this file system has no hard links, so it cannot create an object "
                "only if it is absent: use a directory on another file system"
            ) from error

    def _ensure_directory(self, directory: Path) -> None:
        """Make a directory below the root; every new name is synced, whoever made it."""
        if directory == self._root or directory in self._synced:
            return
        self._ensure_directory(directory.parent)
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
            self._made.append(directory)
        _sync_directory(directory.parent)
        self._synced.add(directory)

    def _remove_old_temporaries(self) -> None:
        """Remove what a process that died in a write left, judged by the file system's clock."""
        with tempfile.NamedTemporaryFile(dir=self._temporary) as now:
            now_ns = os.fstat(now.fileno()).st_mtime_ns
        for entry in list(os.scandir(self._temporary)):
            try:
                age_ns = now_ns - entry.stat(follow_symlinks=False).st_mtime_ns
            except FileNotFoundError:
                continue  # its writer has just finished with it
            if age_ns > _TEMPORARY_AGE_MAX_NS:
                Path(entry.path).unlink(missing_ok=True)

    def _walk(
        self, directory: Path, above: str, prefix: str, start_after: str
    ) -> Iterator[FileMeta]:
        """Yield what lies below `directory`, whose objects have paths beginning with `above`.

        A directory sorts as its name with a slash behind it, which is how all the paths in it
        begin; no file name contains a slash, so names in this order give paths in byte order.
        """
        for path, entry in sorted(self._entries(directory, above), key=lambda item: item[0]):
            if path.endswith("/"):
                if _may_hold(path, prefix, start_after):
                    yield from self._walk(Path(entry.path), path, prefix, start_after)
            elif path.startswith(prefix) and path > start_after:
                try:
                    found = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # deleted during the listing
                yield _meta_of(path, found)

    def _entries(self, directory: Path, above: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Yield (path, entry) of what is ours: directories with a slash, and regular files."""
        with os.scandir(directory) as entries:
            for entry in entries:
                is_directory = entry.is_dir(follow_symlinks=False)
                path = above + entry.name
                if is_directory and path.endswith(_DIRECTORY_MARK):
                    path = path.removesuffix(_DIRECTORY_MARK)
                elif is_directory or not entry.is_file(follow_symlinks=False):
                    continue
                if _is_path(path):
                    yield path + "/" * is_directory, entry


def something_else_in(directory: Path) -> str | None:
    """Return the name of an entry that no store made and no listing shows; None if all is ours."""
    if not directory.is_dir():
        return None
    with os.scandir(directory) as entries:
        for entry in entries:
            is_ours = entry.name.endswith(_DIRECTORY_MARK) and entry.is_dir(follow_symlinks=False)
            is_listed = entry.is_file(follow_symlinks=False) and _is_path(entry.name)
            if not (is_ours or is_listed or entry.name in {TEMPORARY_NAME, "lost+found"}):
                return entry.name
    return None


def _id_of(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _is_path(path: str) -> bool:
    try:
        check_path(path)
    except ValueError:
        return False
    return True


def _may_hold(directory: str, prefix: str, start_after: str) -> bool:
    """Tell whether paths that begin with `directory` can be asked for."""
    wanted = directory.startswith(prefix) or prefix.startswith(directory)
    passed = directory < start_after and not start_after.startswith(directory)
    return wanted and not passed


def _meta_of(path: str, found: os.stat_result) -> FileMeta:
    # A file is never changed in place: each write has an inode and a time of its own.
    etag = f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"
    return FileMeta(path=path, size=found.st_size, etag=etag, modified_ns=found.st_mtime_ns)


def _read_exactly(fd: int, offset: int, end: int, path: str) -> bytes:
    data = bytearray(max(0, end - offset))
    got = read_into(fd, data, offset)
    if got != len(data):
        raise Unavailable(f"{path}: the file ends at byte {offset + got}, {end} were expected")
    return bytes(data)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


_ERRORS: Final[dict[int, tuple[type[StoreError], str]]] = {
    errno.EACCES: (Denied, "give this user the right to read and write the directory"),
    errno.EPERM: (Denied, "give this user the right to read and write the directory"),
    errno.EROFS: (Misconfigured, "its file system is mounted read-only"),
    errno.ENOTDIR: (Misconfigured, "something that is no directory is in the way"),
    errno.EISDIR: (Misconfigured, "a directory that is not the store's is in the way"),
    errno.ELOOP: (Misconfigured, "a symbolic link is in the way"),
    errno.ENOSPC: (Unavailable, "make room on its file system"),
    errno.EDQUOT: (Unavailable, "raise the quota or make room"),
}
"""errno -> what it means for the caller and what a person can do; all others: Unavailable."""


@contextmanager
def _translated(target: Path) -> Iterator[None]:
    """Turn an OSError into a StoreError, in this one place."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        kind, advice = _ERRORS.get(error.errno or 0, (Unavailable, ""))
        message = f"{target}: {reason}" + (f": {advice}" if advice else "")
        raise kind(message) from error
