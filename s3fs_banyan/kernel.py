"""The kernel's side of a mount: mount(2) on /dev/fuse, the INIT exchange, unmounting.

libfuse negotiates less than the kernel can. So the descriptor is opened and mounted here, the
kernel's INIT is read here, answered by libfuse over a socket, and the answer is completed before
the kernel gets it (numbers: linux/fuse.h; tried in `docs/decisions/0002-own-the-init.md`):

* PARALLEL_DIROPS: lookups and creates in one directory need not wait for each other;
* HANDLE_KILLPRIV_V2: without it every write(2) asks for security.capability first;
* no AUTO_INVAL_DATA: one writer, so pages of a file just written need not be dropped;
* the read-ahead and the number of background requests asked for.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import re
import select
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from s3fs_banyan.errors import ExitCode, UsageError

log = logging.getLogger(__name__)

FSTYPE: Final = "fuse.s3fs-banyan"
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MNT_DETACH: Final = 2
_INIT_BUFFER: Final = 1 << 20

_PARALLEL_DIROPS: Final = 1 << 18
_AUTO_INVAL_DATA: Final = 1 << 12
_HANDLE_KILLPRIV: Final = 1 << 19
_EXPLICIT_INVAL_DATA: Final = 1 << 25
_HANDLE_KILLPRIV_V2: Final = 1 << 28

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelOptions:
    """What is asked of the kernel; sizes in bytes."""

    allow_other: bool = True
    read_only: bool = False
    read_ahead_bytes: int = 1 << 20
    max_background: int = 512


class KernelMount:
    """A mounted /dev/fuse descriptor and the kernel's INIT, not yet answered.

    What is mounted over it, or on its place after it, is another's: `detach` leaves that alone.
    """

    def __init__(self, mountpoint: Path, source: str, options: KernelOptions) -> None:
        """Mount; raises `UsageError` with an exit code if that cannot be."""
        self.mountpoint = mountpoint
        self._options = options
        check_mountpoint(mountpoint)
        try:
            self.fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise UsageError(
                f"/dev/fuse cannot be opened ({error.strerror}): load the fuse module, or run the "
                "container privileged with --device /dev/fuse",
                exit_code=ExitCode.FUSE,
            ) from error
        data = f"fd={self.fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
        data += ",default_permissions"
        if options.allow_other:
            data += ",allow_other"
        flags = _MS_NOSUID | _MS_NODEV | (1 if options.read_only else 0)
        if _libc.mount(
            source.encode(), os.fsencode(mountpoint), FSTYPE.encode(), flags, data.encode()
        ):
            code = ctypes.get_errno()
            os.close(self.fd)
            raise UsageError(
                f"mount on {mountpoint} failed: {os.strerror(code)}"
                + (": mounting needs root (CAP_SYS_ADMIN)" if code == errno.EPERM else ""),
                exit_code=ExitCode.FUSE,
            )
        try:
            self._device = _device_of(mountpoint)
            self.init_request = os.read(self.fd, _INIT_BUFFER)
        except OSError as error:
            self._abandon()
            raise UsageError(
                f"mount on {mountpoint} failed: the kernel did not begin it ({error.strerror})",
                exit_code=ExitCode.FUSE,
            ) from error

    def _abandon(self) -> None:
        """Leave no dead mount behind: closing the descriptor ends it, and detaching removes it."""
        os.close(self.fd)
        try:
            unmount(self.mountpoint, lazy=True)
        except OSError as error:  # whoever unmounted it was why INIT could not be read
            log.info("unmount: %s", error)

    def detach(self) -> None:
        """Unmount lazily, if this mount is still what lies there; what goes wrong is logged.

        Requests go on until the last file is closed. The kernel may give the device number of a
        mount that has ended to the next one, but not before: so the connection must live, and
        the number be that of what is mounted here.
        """
        poll = select.poll()
        poll.register(self.fd, 0)
        if poll.poll(0) or _device_of(self.mountpoint) != self._device:
            log.info("%s is not this mount any more: nothing to detach", self.mountpoint)
            return
        try:
            unmount(self.mountpoint, lazy=True)
        except OSError as error:
            log.warning("unmount: %s", error)

    def complete_reply(self, reply: bytes) -> bytes:
        """Return libfuse's answer to INIT with what libfuse cannot say."""
        offered = struct.unpack_from("<I", self.init_request, 40 + 12)[0]
        patched = bytearray(reply)
        flags = struct.unpack_from("<I", patched, 28)[0]
        flags |= offered & (_PARALLEL_DIROPS | _HANDLE_KILLPRIV_V2)
        if not self._options.read_only:  # a follower's files change without the kernel
            flags |= offered & _EXPLICIT_INVAL_DATA
            flags &= ~_AUTO_INVAL_DATA
        if flags & _HANDLE_KILLPRIV_V2:
            flags &= ~_HANDLE_KILLPRIV
        struct.pack_into("<I", patched, 28, flags)
        struct.pack_into("<I", patched, 24, self._options.read_ahead_bytes)
        background = self._options.max_background
        struct.pack_into("<HH", patched, 32, background, background * 3 // 4)
        return bytes(patched)

    def answer_init(self, reply: bytes) -> None:
        """Give the kernel the completed answer; from now on requests arrive."""
        os.write(self.fd, self.complete_reply(reply))

    def raise_read_ahead(self) -> None:
        """Raise the read-ahead of the mount's backing device; best effort, for containers."""
        if self._device is None:
            return
        path = Path(f"/sys/class/bdi/{self._device}/read_ahead_kb")
        try:
            path.write_text(str(self._options.read_ahead_bytes >> 10), encoding="ascii")
        except OSError as error:
            log.info("read-ahead stays as it is: %s", error)


def init_socket() -> tuple[socket.socket, int]:
    """Return (our end, libfuse's descriptor) of the socket over which INIT is answered."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return ours, theirs.detach()


def check_mountpoint(mountpoint: Path) -> None:
    """Refuse a mount point that is missing, no directory, or mounted on by us already."""
    if mount_source(mountpoint) is not None:
        raise UsageError(
            f"{mountpoint} is mounted already: unmount it first (s3fs-banyan umount {mountpoint})",
            exit_code=ExitCode.MOUNTPOINT,
        )
    try:
        is_directory = mountpoint.is_dir()
    except OSError as error:
        raise UsageError(
            f"{mountpoint}: {error.strerror}", exit_code=ExitCode.MOUNTPOINT
        ) from error
    if not is_directory:
        raise UsageError(
            f"{mountpoint} is no directory: make it first", exit_code=ExitCode.MOUNTPOINT
        )


def mount_source(mountpoint: Path, process: int | None = None) -> str | None:
    """Return the source of our mount at exactly this path, from /proc; never touches the mount.

    As that `process` sees it, which may be in another mount namespace (mount_namespaces(7)); None
    as well where that cannot be found out.
    """
    try:
        entry = _mountinfo(mountpoint, process)
    except OSError:
        if process is None:
            raise
        return None
    return entry[1] if entry else None


def is_mount(path: Path) -> bool:
    """Tell whether anything is mounted at exactly this path, from /proc; never touches it."""
    return str(path) in mounted_paths()


def mounted_paths() -> list[str]:
    """Return where anything is mounted, from /proc."""
    return [_unescape(line.split(" ")[4]) for line in _mountinfo_lines()]


def mount_owner(mountpoint: Path) -> int | None:
    """Return the number of the user who made our mount at exactly this path, from /proc."""
    entry = _mountinfo(mountpoint)
    found = re.search(r"(?:^|,)user_id=(\d+)(?:,|$)", entry[2]) if entry else None
    return int(found[1]) if found else None


def _device_of(mountpoint: Path) -> str | None:
    entry = _mountinfo(mountpoint)
    return entry[0] if entry else None


def _mountinfo_lines(process: int | None = None) -> list[str]:
    """Return the lines of proc_pid_mountinfo(5); a path of anybody's is any bytes but a newline."""
    text = os.fsdecode(_mountinfo_of(process).read_bytes())
    return [line for line in text.split("\n") if line]


def _mountinfo_of(process: int | None) -> Path:
    return Path("/proc", "self" if process is None else str(process), "mountinfo")


def _mountinfo(mountpoint: Path, process: int | None = None) -> tuple[str, str, str] | None:
    """Return device, source and options of the file system, if it is ours."""
    wanted = str(mountpoint)
    found = None
    for line in _mountinfo_lines(process):
        left, _, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if _unescape(fields[4]) == wanted and tail[0] == FSTYPE:
            found = (fields[2], _unescape(tail[1]), tail[2])
    return found


def _unescape(text: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text


def unmount(mountpoint: Path, *, lazy: bool = False) -> None:
    """umount2(2); raises `OSError`: EBUSY while files are open, unless `lazy`."""
    if _libc.umount2(os.fsencode(mountpoint), _MNT_DETACH if lazy else 0):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(mountpoint))
