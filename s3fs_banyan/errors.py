"""Every error that one layer hands to another.

A class exists only where some caller acts differently on it; everything else goes into the
message. Messages name what happened, to what, and what a person can do about it.
`StoreError.retryable` is decided by the store adapters and read by the retry layer alone.
Only `vfs` turns a `StoreError` or `DataError` into an `FSError`, and only `fuse.py` turns an
`FSError` into an errno on the wire.
"""

from __future__ import annotations

import errno
from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """Exit codes of all commands; `docs/commands.md` explains them."""

    OK = 0
    INTERNAL = 1
    """A defect of ours: an exception that nobody foresaw."""
    USAGE = 2
    """The command line or the configuration is unusable."""
    STORE = 3
    """The store is not there, cannot be reached, or refuses the credentials or the key."""
    VOLUME = 4
    """No volume there, or something else is, or the store cannot hold one."""
    MOUNTPOINT = 5
    """The mount point is missing, no directory, mounted already, or busy."""
    FUSE = 6
    """This machine cannot mount: no /dev/fuse, or no permission."""
    LOCAL = 7
    """The local directory cannot be used, or is another mount's; standard output is lost."""
    WRITER = 8
    """Another writer owns the volume, or the store's history is not this mount's."""
    DAMAGE = 9
    """Stored bytes are damaged."""
    FORMAT = 10
    """The volume needs a newer release."""
    DAEMON = 11
    """No daemon answers for this mount point, or it ended while it worked."""
    KEY = 12
    """The volume is encrypted and its key is missing or wrong; or it is plain against a key."""


class BanyanFSError(Exception):
    """Base of everything that this package raises on purpose."""

    exit_code: ExitCode = ExitCode.INTERNAL


class ConfigError(BanyanFSError):
    """The configuration or the command line is unusable; names the key."""

    exit_code = ExitCode.USAGE


class UsageError(BanyanFSError):
    """A command cannot be carried out as asked."""

    def __init__(self, message: str, *, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = exit_code


# --- the store ---------------------------------------------------------------------------


class StoreError(BanyanFSError):
    """A call to the store did not succeed."""

    exit_code = ExitCode.STORE
    retryable: ClassVar[bool] = False


class ObjectMissing(StoreError):
    """The named object is not in the store; where nobody expected that, the volume is damaged."""

    exit_code = ExitCode.DAMAGE


class AlreadyExists(StoreError):
    """A create-if-absent write found an object under that name. Nothing was changed."""


class Throttled(StoreError):
    """The store asks for fewer requests; `retry_after_s` is what it asked for, if it said."""

    retryable: ClassVar[bool] = True

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(StoreError):
    """Transport failure, time-out or 5xx: whether the effect took place is not known."""

    retryable: ClassVar[bool] = True


class BrokenBody(Unavailable):
    """The body of a read broke off; `received` of it came, and the store can send the rest.

    Raised only by a store that has `read_rest`, which takes this error. `etag` names the very
    object that the bytes are of, so that those of two objects are never put together.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str = "",
        offset: int = 0,
        length: int | None = None,
        received: bytes = b"",
        etag: str = "",
    ) -> None:
        """`offset` and `length` are those of the read that was asked for at first."""
        super().__init__(message)
        self.path = path
        self.offset = offset
        self.length = length
        self.received = received
        self.etag = etag


class TransferCorrupt(StoreError):
    """Bytes changed on the way (MD5 differs). The transfer may be tried again."""

    retryable: ClassVar[bool] = True


class Denied(StoreError):
    """Credentials are missing, wrong, or do not allow the call."""


class Misconfigured(StoreError):
    """The store refuses for a reason that no retry will cure: bucket, region, capability."""


class SealFailed(BanyanFSError):
    """What the store was to get could not be made ready on this machine: its disk, its memory.

    The attempt may be made again; the store has nothing to do with it.
    """

    exit_code = ExitCode.LOCAL
    retryable: ClassVar[bool] = True


# --- stored bytes ------------------------------------------------------------------------


class DataError(BanyanFSError):
    """Stored bytes cannot be used."""

    exit_code = ExitCode.DAMAGE


class Corrupt(DataError):
    """Bytes fail their check: `kind` of thing, `key` of the object or file, and why."""

    def __init__(self, kind: str, key: str, why: str) -> None:
        super().__init__(f"{kind} {key} is damaged: {why}")
        self.kind = kind
        self.key = key
        self.why = why


class UnsupportedVersion(DataError):
    """Bytes of a version that this release cannot read; a newer release can."""

    exit_code = ExitCode.FORMAT

    def __init__(self, kind: str, found: int, known: int) -> None:
        super().__init__(
            f"{kind} has format version {found}, this release reads up to {known}: "
            "use a newer s3fs-banyan"
        )
        self.kind = kind
        self.found = found
        self.known = known


class LocalDiskFull(BanyanFSError):
    """A database or a file of ours could not grow: other files fill the local disk."""

    exit_code = ExitCode.LOCAL


# --- ownership ---------------------------------------------------------------------------


class Fenced(BanyanFSError):
    """A newer epoch owns the volume. Permanent: this mount publishes nothing any more."""

    exit_code = ExitCode.WRITER


class Refused(BanyanFSError):
    """A mount that would be unsafe; says what was found and what to do."""

    exit_code = ExitCode.WRITER

    def __init__(self, message: str, *, exit_code: ExitCode = ExitCode.WRITER) -> None:
        super().__init__(message)
        self.exit_code = exit_code


# --- what an application sees ------------------------------------------------------------


class FSError(BanyanFSError):
    """Answer to a file-system call; `errno` is what the application gets."""

    errno: ClassVar[int] = errno.EIO


class NotFound(FSError):
    errno: ClassVar[int] = errno.ENOENT


class Exists(FSError):
    errno: ClassVar[int] = errno.EEXIST


class NotADirectory(FSError):
    errno: ClassVar[int] = errno.ENOTDIR


class IsADirectory(FSError):
    errno: ClassVar[int] = errno.EISDIR


class NotEmpty(FSError):
    errno: ClassVar[int] = errno.ENOTEMPTY


class InvalidArgument(FSError):
    errno: ClassVar[int] = errno.EINVAL


class NotPermitted(FSError):
    errno: ClassVar[int] = errno.EPERM


class AccessDenied(FSError):
    errno: ClassVar[int] = errno.EACCES


class NameTooLong(FSError):
    errno: ClassVar[int] = errno.ENAMETOOLONG


class FileTooBig(FSError):
    errno: ClassVar[int] = errno.EFBIG


class TooManyLinks(FSError):
    errno: ClassVar[int] = errno.EMLINK


class NoSpace(FSError):
    errno: ClassVar[int] = errno.ENOSPC


class ReadOnly(FSError):
    errno: ClassVar[int] = errno.EROFS


class NoAttribute(FSError):
    errno: ClassVar[int] = errno.ENODATA


class AttributeTooBig(FSError):
    errno: ClassVar[int] = errno.ERANGE


class NotSupported(FSError):
    errno: ClassVar[int] = errno.EOPNOTSUPP


class StaleHandle(FSError):
    errno: ClassVar[int] = errno.ESTALE


class InputOutput(FSError):
    """Proven loss or damage of stored bytes; the log names the object."""

    errno: ClassVar[int] = errno.EIO
