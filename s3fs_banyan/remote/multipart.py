"""Upload of one large file as a multipart upload: parallel, checked, and resumable.

    begin, or go on with the upload that a saved state names
    ask the store which parts it holds
    each part, in parallel: MD5 of the file's bytes; send it unless the store holds exactly that;
                            save the state
    complete; compare the object's ETag with the MD5 of the parts' MD5s, where it is one; read the
    object if neither that nor the store's check sums prove it

What is saved is a hint and never trusted alone: a part is left out only if the store lists it
with the size and the ETag that belong to the bytes in the file now. So a state that is old, or
that a crash kept from being saved, costs a part sent again and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import trio

from s3fs_banyan.errors import (
    BanyanFSError,
    Corrupt,
    ObjectMissing,
    TransferCorrupt,
    Unavailable,
    UnsupportedVersion,
)
from s3fs_banyan.remote.base import FileMeta, MultipartStore, RemoteFileSystem
from s3fs_banyan.remote.layers import multipart_of
from s3fs_banyan.runtime import Runtime

PARTS_MAX: Final = 10_000
_STATE_VERSION: Final = 1
_MULTIPART_ETAG: Final = re.compile(r"[0-9a-f]{32}-\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartDone:
    """A part that the store has confirmed."""

    number: int
    size: int
    md5: str
    etag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadState:
    """Where an upload stands, for a later process to go on with."""

    path: str
    upload_id: str
    file_size: int
    part_size: int
    parts: tuple[PartDone, ...] = ()

    def encode(self) -> bytes:
        """Return the state as JSON."""
        fields = {
            "version": _STATE_VERSION,
            "path": self.path,
            "upload_id": self.upload_id,
            "file_size": self.file_size,
            "part_size": self.part_size,
            "parts": [[part.number, part.size, part.md5, part.etag] for part in self.parts],
        }
        return json.dumps(fields).encode("ascii")

    @classmethod
    def decode(cls, data: bytes, name: str) -> UploadState:
        """Return the state in `data`; raise `Corrupt` or `UnsupportedVersion` with `name`."""
        try:
            fields = json.loads(data)
            version = int(fields["version"])
            if version != _STATE_VERSION:
                raise UnsupportedVersion("upload state", version, _STATE_VERSION)
            return cls(
                path=str(fields["path"]),
                upload_id=str(fields["upload_id"]),
                file_size=int(fields["file_size"]),
                part_size=int(fields["part_size"]),
                parts=tuple(
                    PartDone(number=int(number), size=int(size), md5=str(md5), etag=str(etag))
                    for number, size, md5, etag in fields["parts"]
                ),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise Corrupt("upload state", name, str(error)) from error


class _Upload:
    """One run of an upload: the parts go in parallel, the state is saved by one at a time."""

    def __init__(
        self,
        runtime: Runtime,
        store: MultipartStore,
        file: Path,
        state: UploadState,
        save_state: Callable[[UploadState], None],
    ) -> None:
        self._runtime = runtime
        self._store = store
        self._file = file
        self._save_state = save_state
        self._saving = trio.Lock()
        self.state = state

    async def send_parts(self, held: Mapping[int, tuple[int, str]], concurrency: int) -> None:
        """Send what the store does not hold. After an error no further part is begun."""
        known = {part.number: part for part in self.state.parts}
        limit = trio.Semaphore(concurrency)
        errors: list[BanyanFSError] = []

        async def send(number: int) -> None:
            try:
                async with limit:
                    part = await self._runtime.in_thread(
                        self._send_part, number, held.get(number), known.get(number), pool="store"
                    )
                    await self._add(part)
            except BanyanFSError as error:
                errors.append(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for number in range(1, _part_count(self.state) + 1):
                nursery.start_soon(send, number)
        if errors:
            raise errors[0]

    def _send_part(
        self, number: int, held: tuple[int, str] | None, known: PartDone | None
    ) -> PartDone:
        data = _read_part(self._file, self.state, number)
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        # An ETag that is no MD5 (SSE-KMS) speaks for the bytes that it was recorded with.
        good = {md5, known.etag if known is not None and known.md5 == md5 else md5}
        if held is not None and held[0] == len(data) and held[1] in good:
            etag = held[1]
        else:
            etag = self._store.upload_part(self.state.path, self.state.upload_id, number, data)
        return PartDone(number=number, size=len(data), md5=md5, etag=etag)

    async def _add(self, part: PartDone) -> None:
        async with self._saving:
            parts = {done.number: done for done in self.state.parts} | {part.number: part}
            self.state = replace(self.state, parts=tuple(parts[number] for number in sorted(parts)))
            await self._runtime.in_thread(self._save_state, self.state, pool="disk")


async def upload_file_multipart(
    runtime: Runtime,
    store: RemoteFileSystem,
    path: str,
    file: Path,
    *,
    part_size: int,
    save_state: Callable[[UploadState], None],
    state: UploadState | None = None,
    concurrency: int = 4,
    storage_class: str = "",
) -> FileMeta:
    """Upload `file`, which must not change meanwhile, as the object `path`; durable on return.

    `save_state` is called in a thread, after the start and after each part, never twice at the
    same time. Cancelling or failing leaves the upload in the store: call again with the last
    saved state, or abort it. A part size that would give too many parts is doubled until it
    does not. At most `concurrency` parts are in memory.
    """
    parts_store = multipart_of(store)
    size = (await runtime.in_thread(file.stat, pool="disk")).st_size
    part_size = _fitting_part_size(size, max(part_size, store.capabilities.part_size_min))
    held: Mapping[int, tuple[int, str]] = {}
    if state is not None and (state.path, state.file_size) != (path, size):
        raise ValueError(f"{file}: the upload state is of {state.path} and another size")
    if state is not None:
        try:
            held = await runtime.in_thread(
                parts_store.list_parts, path, state.upload_id, pool="store"
            )
        except ObjectMissing:
            done = await _completed_before(runtime, store, state)
            if done is not None:
                return done
            state = None  # aborted by somebody: from the start
    if state is None:
        upload_id = await runtime.in_thread(
            lambda: parts_store.begin_upload(path, storage_class=storage_class), pool="store"
        )
        state = UploadState(path=path, upload_id=upload_id, file_size=size, part_size=part_size)
        await runtime.in_thread(save_state, state, pool="disk")
    upload = _Upload(runtime, parts_store, file, state, save_state)
    await upload.send_parts(held, concurrency)
    return await _complete(runtime, store, upload.state)


async def _complete(runtime: Runtime, store: RemoteFileSystem, state: UploadState) -> FileMeta:
    """Complete the upload; a lost answer is cleared up by looking at the object."""
    etags = {part.number: part.etag for part in state.parts}
    try:
        meta = await runtime.in_thread(
            multipart_of(store).complete_upload, state.path, state.upload_id, etags, pool="store"
        )
    except (Unavailable, ObjectMissing):
        done = await _completed_before(runtime, store, state)
        if done is None:
            raise
        return done
    expected = expected_etag(state)
    wrong = expected and _MULTIPART_ETAG.fullmatch(meta.etag) and meta.etag != expected
    if wrong or meta.size != state.file_size:
        raise TransferCorrupt(
            f"{store.url}: {state.path} has {meta.size} bytes and ETag {meta.etag}, the upload "
            f"was of {state.file_size} bytes and should have {expected}"
        )
    # An ETag of another form proves nothing either, where it should have.
    odd = store.capabilities.etag_is_md5 and not _MULTIPART_ETAG.fullmatch(meta.etag)
    unproven = odd or not meta.proven
    if unproven and not await runtime.in_thread(_holds, store, state, pool="store"):
        raise TransferCorrupt(f"{store.url}: {state.path}: read back, it is not what was sent")
    return replace(meta, proven=True)


def _holds(store: RemoteFileSystem, state: UploadState) -> bool:
    """Read the object, a part at a time; tell whether it holds the bytes that were sent."""
    for part in state.parts:
        offset = (part.number - 1) * state.part_size
        data = store.read(state.path, offset=offset, length=part.size)
        if hashlib.md5(data, usedforsecurity=False).hexdigest() != part.md5:
            return False
    return True


async def _completed_before(
    runtime: Runtime, store: RemoteFileSystem, state: UploadState
) -> FileMeta | None:
    """Return the object if it is exactly what this upload makes, else None."""
    if len(state.parts) != _part_count(state):
        return None
    try:
        meta = await runtime.in_thread(store.stat, state.path, pool="store")
    except ObjectMissing:
        return None
    if meta.size != state.file_size:
        return None
    expected = expected_etag(state)
    if expected and _MULTIPART_ETAG.fullmatch(meta.etag):
        return meta if meta.etag == expected else None
    # The answer is lost that could have proved it, so only the bytes can.
    return meta if await runtime.in_thread(_holds, store, state, pool="store") else None


def expected_etag(state: UploadState) -> str:
    """Return the ETag that S3 gives to these parts, or "" if their own ETags are no MD5s."""
    if any(part.etag != part.md5 for part in state.parts):
        return ""
    digests = b"".join(bytes.fromhex(part.md5) for part in state.parts)
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(state.parts)}"


def _part_count(state: UploadState) -> int:
    return max(1, -(-state.file_size // state.part_size))


def _fitting_part_size(file_size: int, part_size: int) -> int:
    while file_size > part_size * PARTS_MAX:
        part_size *= 2
    return part_size


def _read_part(file: Path, state: UploadState, number: int) -> bytes:
    """Return the bytes of part `number`; the last is what remains."""
    offset = (number - 1) * state.part_size
    size = min(state.part_size, state.file_size - offset)
    with file.open("rb", buffering=0) as source:
        pieces = []
        while size > 0:
            piece = os.pread(source.fileno(), size, offset)
            if not piece:
                raise Corrupt("file to upload", str(file), f"it ends at byte {offset}")
            pieces.append(piece)
            offset += len(piece)
            size -= len(piece)
    return b"".join(pieces)
