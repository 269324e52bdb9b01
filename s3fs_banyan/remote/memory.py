"""A store in memory: the reference of the contract, and the store of the simulated world.

It is deterministic: time comes from `clock`, upload ids from a counter, order from sorting. It
holds no lock. Each change is one operation on a dict, which the interpreter does not interrupt,
so the store may be used from several threads all the same.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from s3fs_banyan.errors import AlreadyExists, Misconfigured, ObjectMissing
from s3fs_banyan.remote.base import Capabilities, FileMeta, check_path, check_range

_CAPABILITIES = Capabilities(create_if_absent=True, multipart=True, etag_is_md5=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Object:
    meta: FileMeta
    data: bytes


@dataclass(slots=True, kw_only=True)
class _Upload:
    path: str
    started_ns: int
    storage_class: str
    parts: dict[int, bytes] = field(default_factory=dict)


class MemoryStore:
    """Objects in a dict. Several handles on one world share the instance."""

    def __init__(self, *, clock: Callable[[], int], name: str = "store") -> None:
        """`clock` gives the Unix time in nanoseconds that new objects carry."""
        self._clock = clock
        self._url = f"memory://{name}"
        self._objects: dict[str, _Object] = {}
        self._uploads: dict[str, _Upload] = {}
        self._upload_numbers = itertools.count(1)

    @property
    def url(self) -> str:
        return self._url

    @property
    def capabilities(self) -> Capabilities:
        return _CAPABILITIES

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[FileMeta]:
        # list() takes the keys in one step; a loop over the dict would fail if it grew meanwhile.
        for path in sorted(list(self._objects)):  # noqa: C414
            if path.startswith(prefix) and path > start_after:
                found = self._objects.get(path)
                if found is not None:
                    yield found.meta

    def read(self, path: str, *, offset: int = 0, length: int | None = None) -> bytes:
        check_range(offset, length)
        data = self._get(path).data
        end = len(data) if length is None else offset + length
        return data[offset:end]

    def write(
        self,
        path: str,
        data: bytes | bytearray | memoryview,
        *,
        if_absent: bool = False,
        storage_class: str = "",
    ) -> FileMeta:
        stored = bytes(data)
        etag = _md5(stored)
        return self._put(path, stored, etag, storage_class, if_absent=if_absent)

    def delete(self, paths: Sequence[str]) -> None:
        for path in [check_path(path) for path in paths]:
            self._objects.pop(path, None)

    def stat(self, path: str) -> FileMeta:
        return self._get(path).meta

    def close(self) -> None:
        """Do nothing: another handle may go on with the same objects."""

    # --- multipart -----------------------------------------------------------------------

    def begin_upload(self, path: str, *, storage_class: str = "") -> str:
        upload_id = f"upload-{next(self._upload_numbers)}"
        self._uploads[upload_id] = _Upload(
            path=check_path(path), started_ns=self._clock(), storage_class=storage_class
        )
        return upload_id

    def upload_part(self, path: str, upload_id: str, number: int, data: bytes | bytearray) -> str:
        if number < 1:
            raise ValueError(f"part number {number}: parts are counted from 1")
        self._upload(path, upload_id).parts[number] = bytes(data)
        return _md5(data)

    def list_parts(self, path: str, upload_id: str) -> Mapping[int, tuple[int, str]]:
        parts = dict(self._upload(path, upload_id).parts)
        return {number: (len(data), _md5(data)) for number, data in sorted(parts.items())}

    def complete_upload(self, path: str, upload_id: str, etags: Mapping[int, str]) -> FileMeta:
        upload = self._upload(path, upload_id)
        if not etags:
            raise Misconfigured(f"upload of {path}: it cannot be completed without a part")
        for number, etag in etags.items():
            if number not in upload.parts or _md5(upload.parts[number]) != etag:
                raise Misconfigured(f"upload of {path}: part {number} is not what was sent")
        parts = [upload.parts[number] for number in sorted(etags)]
        digests = b"".join(hashlib.md5(part, usedforsecurity=False).digest() for part in parts)
        etag = f"{_md5(digests)}-{len(parts)}"
        meta = self._put(path, b"".join(parts), etag, upload.storage_class, if_absent=False)
        self._uploads.pop(upload_id, None)
        return meta

    def abort_upload(self, path: str, upload_id: str) -> None:
        check_path(path)
        self._uploads.pop(upload_id, None)

    def list_uploads(self, prefix: str = "") -> Iterator[tuple[str, str, int]]:
        found = [
            (upload.path, upload_id, upload.started_ns)
            for upload_id, upload in dict(self._uploads).items()
            if upload.path.startswith(prefix)
        ]
        yield from sorted(found)

    # --- inside --------------------------------------------------------------------------

    def _get(self, path: str) -> _Object:
        try:
            return self._objects[check_path(path)]
        except KeyError:
            raise ObjectMissing(f"{self._url}: no object {path}") from None

    def _put(
        self, path: str, data: bytes, etag: str, storage_class: str, *, if_absent: bool
    ) -> FileMeta:
        meta = FileMeta(
            path=check_path(path),
            size=len(data),
            etag=etag,
            modified_ns=self._clock(),
            storage_class=storage_class,
        )
        new = _Object(meta=meta, data=data)
        if not if_absent:
            self._objects[path] = new
        elif self._objects.setdefault(path, new) is not new:
            raise AlreadyExists(f"{self._url}: {path} exists")
        return meta

    def _upload(self, path: str, upload_id: str) -> _Upload:
        upload = self._uploads.get(upload_id)
        if upload is None or upload.path != check_path(path):
            raise ObjectMissing(f"{self._url}: no upload {upload_id} of {path}")
        return upload


def _md5(data: bytes | bytearray) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
