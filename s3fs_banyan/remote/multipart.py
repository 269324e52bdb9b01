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
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from s3fs_banyan.errors import (
    Corrupt,
    ObjectMissing,
    TransferCorrupt,
    Unavailable,
    UnsupportedVersion,
)
from s3fs_banyan.foreign_json import parse_json
from s3fs_banyan.gentle_io import read_into
from s3fs_banyan.remote.base import FileMeta, MultipartStore, RemoteFileSystem, Summed
from s3fs_banyan.remote.layers import multipart_of
from s3fs_banyan.remote.transfers import InlineTransfers, Transfers

PARTS_MAX: Final = 10_000
_STATE_VERSION: Final = 1
Timed = Callable[[Callable[[], str], int], str]
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
            fields: Any = parse_json(data)
            version = int(fields["version"])
            if version != _STATE_VERSION:
                raise UnsupportedVersion("upload state", version, _STATE_VERSION)
            state = cls(
                path=str(fields["path"]),
                upload_id=str(fields["upload_id"]),
                file_size=int(fields["file_size"]),
                part_size=int(fields["part_size"]),
                parts=tuple(
                    PartDone(number=int(number), size=int(size), md5=str(md5), etag=str(etag))
                    for number, size, md5, etag in fields["parts"]
                ),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise Corrupt("upload state", name, str(error)) from error
        if state.file_size < 0 or state.part_size < 1 or _part_count(state) > PARTS_MAX:
            raise Corrupt("upload state", name, "its sizes are those of no upload")
        return state


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploaded:
    """An upload that is done, and what it cost."""

    meta: FileMeta
    parts_sent: int
    parts_resumed: int
    """Parts that the store held already from an earlier run."""


class _Upload:
    """One run of an upload: parts go through the transfers, the state is saved by the caller."""

    def __init__(
        self,
        store: MultipartStore,
        file: Path,
        state: UploadState,
        save_state: Callable[[UploadState], None],
        timed: Timed,
    ) -> None:
        self._timed = timed
        self._store = store
        self._file = file
        self._save_state = save_state
        self.state = state
        self.parts_sent = 0
        self.parts_resumed = 0

    def send_parts(self, held: Mapping[int, tuple[int, str]], transfers: Transfers) -> None:
        """Send what the store does not hold. After an error no further part is begun."""
        known = {part.number: part for part in self.state.parts}
        calls = [
            partial(self._send_part, number, held.get(number), known.get(number))
            for number in range(1, _part_count(self.state) + 1)
        ]
        for part, was_sent in transfers.results(calls):
            self.parts_sent += was_sent
            self.parts_resumed += not was_sent
            if known.get(part.number) != part:
                self._add(part)

    def _send_part(
        self, number: int, held: tuple[int, str] | None, known: PartDone | None
    ) -> tuple[PartDone, bool]:
        """Return the part as the store has it now, and whether it had to be sent."""
        data = _read_part(self._file, self.state, number)
        md5 = data.md5.hex()
        # An ETag that is no MD5 (SSE-KMS) speaks for the bytes that it was recorded with.
        good = {md5, known.etag if known is not None and known.md5 == md5 else md5}
        has_it = held is not None and held[0] == len(data) and held[1] in good
        if held is not None and has_it:
            etag = held[1]
        else:
            where = self.state.path, self.state.upload_id
            etag = self._timed(lambda: self._store.upload_part(*where, number, data), len(data))
        return PartDone(number=number, size=len(data), md5=md5, etag=etag), not has_it

    def _add(self, part: PartDone) -> None:
        parts = {done.number: done for done in self.state.parts} | {part.number: part}
        self.state = replace(self.state, parts=tuple(parts[number] for number in sorted(parts)))
        self._save_state(self.state)


def upload_file_multipart(
    store: RemoteFileSystem,
    path: str,
    file: Path,
    *,
    part_size: int,
    save_state: Callable[[UploadState], None],
    state: UploadState | None = None,
    transfers: Transfers | None = None,
    timed: Timed = lambda transfer, size: transfer(),
    storage_class: str = "",
) -> Uploaded:
    """Upload `file`, which must not change meanwhile, as the object `path`; durable on return.

    Blocks. `save_state` is called in the caller's thread, after the start and after each part.
    Failing leaves the upload in the store: call again with the last saved state, or abort it.
    An upload that somebody aborted is begun once more from its start. A part size that would
    give too many parts is doubled until it does not. In memory are as many parts as `transfers`
    runs at once; without it one after the other. `timed` carries out the transfer of a part, in
    whatever thread, and is told how many bytes it has.
    """
    parts_store = multipart_of(store)
    size = file.stat().st_size
    part_size = _fitting_part_size(size, max(part_size, store.capabilities.part_size_min))
    transfers = transfers or InlineTransfers()
    held: Mapping[int, tuple[int, str]] = {}
    if state is not None and (state.path, state.file_size) != (path, size):
        raise ValueError(f"{file}: the upload state is of {state.path} and another size")
    if state is not None:
        try:
            held = parts_store.list_parts(path, state.upload_id)
        except ObjectMissing:
            done = _completed_before(store, state)
            if done is not None:
                return Uploaded(meta=done, parts_sent=0, parts_resumed=len(state.parts))
            state = None  # aborted by somebody: from the start
    is_fresh = state is None
    if state is None:
        upload_id = parts_store.begin_upload(path, storage_class=storage_class)
        state = UploadState(path=path, upload_id=upload_id, file_size=size, part_size=part_size)
        save_state(state)
    upload = _Upload(parts_store, file, state, save_state, timed)
    try:
        upload.send_parts(held, transfers)
        meta = _complete(store, upload.state)
    except ObjectMissing:
        if is_fresh:
            raise
        return upload_file_multipart(
            store, path, file, part_size=part_size, save_state=save_state,
            transfers=transfers, timed=timed, storage_class=storage_class,
        )  # fmt: skip
    return Uploaded(meta=meta, parts_sent=upload.parts_sent, parts_resumed=upload.parts_resumed)


def _complete(store: RemoteFileSystem, state: UploadState) -> FileMeta:
    """Complete the upload; a lost answer is cleared up by looking at the object."""
    etags = {part.number: part.etag for part in state.parts}
    try:
        meta = multipart_of(store).complete_upload(state.path, state.upload_id, etags)
    except (Unavailable, ObjectMissing):
        done = _completed_before(store, state)
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
    if unproven and not _holds(store, state):
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


def _completed_before(store: RemoteFileSystem, state: UploadState) -> FileMeta | None:
    """Return the object if it is exactly what this upload makes, else None."""
    if len(state.parts) != _part_count(state):
        return None
    try:
        meta = store.stat(state.path)
    except ObjectMissing:
        return None
    if meta.size != state.file_size:
        return None
    expected = expected_etag(state)
    if expected and _MULTIPART_ETAG.fullmatch(meta.etag):
        return meta if meta.etag == expected else None
    # The answer is lost that could have proved it, so only the bytes can.
    return meta if _holds(store, state) else None


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


def _read_part(file: Path, state: UploadState, number: int) -> Summed:
    """Return the bytes of part `number` with their MD5; the last is what remains."""
    offset = (number - 1) * state.part_size
    size = min(state.part_size, state.file_size - offset)
    data = Summed(size)
    with file.open("rb", buffering=0) as source:
        got = read_into(source.fileno(), data, offset)
    if got != size:
        raise Corrupt("file to upload", str(file), f"it ends at byte {offset + got}")
    data.md5, data.sha256 = hashlib.md5(data, usedforsecurity=False).digest(), b""
    return data
