"""The contract of a store: four verbs, List / Read / Write / Delete.

This text is the contract; `tests/contract/test_remote.py` holds every implementation and every
wrapper to it, against real servers.

* A **path** is a relative key: non-empty, `/`-separated, ASCII letters, digits and `-_.=/`, no
  empty, `.` or `..` part, at most 200 characters in a part and 512 in all. Anything else is a
  `ValueError`. The namespace is flat, but some S3 services keep it in a tree of directories, so
  a maker of keys owes them one thing: **where `a/...` exists, nothing beside it is called `a`,
  `a-...` or `a....`** (seen: listed in another order, lost when written at the same
  time, and a create-if-absent of `a` refused because `a/...` exists).
* Objects are **immutable values**: a `read` returns the bytes of exactly one earlier `write`,
  never a mixture, and never bytes of a write that was refused.
* **Read after write**: once `write` or `delete` has returned, every later `read` and `list` by
  anyone shows it. If the call failed with `Unavailable`, either outcome may show, for ever.
* **Create-if-absent** (`if_absent=True`) is decided by the store, atomically: of many concurrent
  writers to one absent path exactly one succeeds, the others get `AlreadyExists` and change
  nothing. A store without that ability says so in `capabilities` and raises `Misconfigured`.
  An attempt whose answer was lost raises `Unavailable`; it is **never** retried silently by
  an adapter. The caller looks at the object and decides (architecture, section 4, rule 5).
* All calls **block** and are safe to call from several threads at once. They end by themselves:
  every implementation has finite time-outs. They are not cancellable half-way.
* Errors are the classes of `errors.py`, never an SDK's own.
* SDK retries are off. Retry, pacing and metering are layers of the same shape (`layers.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from s3fs_banyan.errors import BrokenBody
from s3fs_banyan.gentle_io import Bytes

PATH_LENGTH_MAX = 512
PART_LENGTH_MAX = 200
"""A local file name has at most 255 bytes, and a directory's gets a mark."""


class Summed(bytearray):
    """A body whose check sums are known already: a store that needs them does not compute them.

    Whoever filled it sets them and changes nothing afterwards. They are sums of what was meant:
    bytes that rot in memory before they are sent are noticed by the store, or by its answer.
    """

    __slots__ = ("abandoned", "md5", "sha256")
    abandoned: bool
    """Whether a request that was given up may still be sending from it."""
    md5: bytes
    sha256: bytes
    """Empty if it is not known: then who needs it computes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileMeta:
    """What a store knows of one object."""

    path: str
    size: int
    etag: str
    """Opaque; changes when the bytes change. An MD5 only if `capabilities.etag_is_md5`."""
    modified_ns: int
    """Time of the write by the store's clock, Unix time in nanoseconds (resolution: 1 s)."""
    storage_class: str = ""
    proven: bool = True
    """False only in the answer of `complete_upload`, if nothing but reading the object can tell
    whether it is what was sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What this store can do beyond the four verbs; found by asking or by probing."""

    create_if_absent: bool
    ranged_reads: bool = True
    multipart: bool = False
    etag_is_md5: bool = False
    part_size_min: int = 0
    object_size_max: int = 5 * 1024**4


class RemoteFileSystem(Protocol):
    """A flat namespace of objects under one prefix."""

    @property
    def url(self) -> str:
        """What a person typed, without secrets: `s3://bucket/prefix`, `file:///dir`."""
        ...

    @property
    def capabilities(self) -> Capabilities: ...

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[FileMeta]:
        """Yield the objects whose path starts with `prefix`, in byte order of their paths.

        `prefix` is a plain string prefix (`log/`, `pack/7/`, or empty for all). Only paths
        greater than `start_after` are given. Pages are fetched as the iterator advances.
        A store that answers in another order (see *path* above) is `Misconfigured`.
        An object written or deleted during the listing may or may not appear; every other
        object appears exactly once.
        """
        ...

    def read(self, path: str, *, offset: int = 0, length: int | None = None) -> Bytes:
        """Return the bytes [offset, offset + length), to the end if `length` is None.

        They are the caller's alone; a large answer may be a view of memory, uncopied.
        A range that begins at or after the end gives `b""`; one that ends after it is cut; a
        negative number is a `ValueError`. Raises `ObjectMissing`. Never returns short or
        altered bytes: a body that breaks is `Unavailable`, or `BrokenBody`, a kind of it, from
        which a `ResumingStore` can go on.
        """
        ...

    def write(
        self,
        path: str,
        data: bytes | bytearray | memoryview,
        *,
        if_absent: bool = False,
        storage_class: str = "",
    ) -> FileMeta:
        """Store `data` under `path`, whole or not at all; durable when it returns.

        The transfer is checked end to end where the store can (Content-MD5 on the way up; the
        answer's ETag, the store's checksum or a read-back afterwards): `TransferCorrupt`
        otherwise, and then the bytes under `path` are not known; a create that returns it may
        have made the object, like one whose answer was lost.
        """
        ...

    def delete(self, paths: Sequence[str]) -> None:
        """Delete the objects; a path that is not there is no error.

        Any number of paths; batched where the store can. On an error some may be gone.
        """
        ...

    def stat(self, path: str) -> FileMeta:
        """Return what the store knows of one object, or raise `ObjectMissing`."""
        ...

    def close(self) -> None:
        """Release connections. Calls after it are a programming error."""
        ...


class MultipartStore(Protocol):
    """Optional part of the contract: present when `capabilities.multipart`.

    `upload_part` may be called from several threads for one upload. An upload that is neither
    completed nor aborted stays visible in `list_uploads` and costs money.
    """

    def begin_upload(self, path: str, *, storage_class: str = "") -> str:
        """Start a multipart upload and return its upload id."""
        ...

    def upload_part(self, path: str, upload_id: str, number: int, data: bytes | bytearray) -> str:
        """Send part `number` (from 1), checked by MD5; return its ETag. Idempotent."""
        ...

    def list_parts(self, path: str, upload_id: str) -> Mapping[int, tuple[int, str]]:
        """Return part number -> (size, ETag); `ObjectMissing` if the upload is gone."""
        ...

    def complete_upload(self, path: str, upload_id: str, etags: Mapping[int, str]) -> FileMeta:
        """Make the object of all parts visible at once."""
        ...

    def abort_upload(self, path: str, upload_id: str) -> None:
        """Throw the parts away; no error if the upload is gone."""
        ...

    def list_uploads(self, prefix: str = "") -> Iterator[tuple[str, str, int]]:
        """Yield (path, upload id, start time in Unix nanoseconds) of unfinished uploads."""
        ...


class ResumingStore(Protocol):
    """Optional part of the contract: a store that raises `BrokenBody` has this."""

    def read_rest(self, broken: BrokenBody) -> Bytes:
        """Return what the read that broke should have: its bytes and the rest of them.

        Only the rest is asked for, if the object is still the one of `broken.etag`; if it was
        written anew meanwhile, it is read from the start. Raises what `read` raises.
        """
        ...


def check_path(path: str) -> str:
    """Return `path` if it is one that the contract allows, else raise `ValueError`."""
    if not path or len(path) > PATH_LENGTH_MAX:
        raise ValueError(f"store path of {len(path)} characters: {path[:80]!r}")
    if not path.isascii() or not _ALLOWED.issuperset(path):
        raise ValueError(f"store path with characters outside the contract: {path!r}")
    for part in path.split("/"):
        if part in {"", ".", ".."}:
            raise ValueError(f"store path with an empty or dot part: {path!r}")
        if len(part) > PART_LENGTH_MAX:
            raise ValueError(f"store path with a part of {len(part)} characters: {path[:80]!r}")
    return path


def check_range(offset: int, length: int | None) -> None:
    """Raise `ValueError` for a range that begins before the object or has a negative length."""
    if offset < 0 or (length is not None and length < 0):
        raise ValueError(f"range of {length} bytes from {offset}")


_ALLOWED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.=/")
