"""The outbox: sealed packs on their way to the store, and a record of how far each one is.

    pack-E-ID-HASH          a sealed pack that has to wait, or goes in parts; gone once it is sent
    pack-E-ID-HASH.record   behind which cut it was sealed, the multipart upload with its parts,
                            and, once it is sent, where each chunk lies in it
    link                    how fast the line was: bytes per second of one transfer

A record outlives the daemon, so that neither a part nor a pack is sent twice. It is replaced in
one step and carries a checksum, and it is not synced: a power cut that takes it, or the pack
beside it, costs bytes sent again and nothing else, while a sync for every part would cost each
of them a wait for the disk that the journal needs.

What survives here is a hint until it is proved (`sealing.py`): the cut that a record names must
be in this journal, a pack in the outbox must have the hash in its key and every frame its
checksum, a pack that was sent must be in the store. A pack that a commit names is no longer of
the outbox: its record is dropped before the next sealing looks (`forget_named`), for a pack that
two commits name would be deleted when the first one lets go of it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from s3fs_banyan.errors import Corrupt, UnsupportedVersion
from s3fs_banyan.foreign_json import parse_json
from s3fs_banyan.format.checksum import xxh3
from s3fs_banyan.format.keys import PACK_PREFIX, parse_pack_key
from s3fs_banyan.gentle_io import remove_gently
from s3fs_banyan.meta.committed import Committed
from s3fs_banyan.remote.multipart import UploadState

_RECORD_VERSION: Final = 1
_SUFFIX: Final = ".record"
_TEMPORARY: Final = ".tmp"
_LINK: Final = "link"
_SUM_DIGITS: Final = 16


class PackedChunk(NamedTuple):
    """Where a chunk lies in a pack, as a placement will say it."""

    chunk: int
    offset: int
    stored_length: int
    length: int
    frames: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PackRecord:
    """How far a pack is on its way."""

    key: str
    size: int
    chain: int = 0
    """Journal checksum of the cut behind which it was sealed: whose history it belongs to."""
    storage_class: str = ""
    """Empty: the store's standard one."""
    upload: UploadState | None = None
    """A multipart upload that was begun."""
    chunks: tuple[PackedChunk, ...] | None = None
    """What lies in it, once it is in the store; before that the pack itself says so."""

    def encode(self) -> bytes:
        """Return the record: 16 digits of XXH3 over the rest, a newline, JSON."""
        fields = {
            "version": _RECORD_VERSION,
            "key": self.key,
            "size": self.size,
            "chain": self.chain,
            "class": self.storage_class,
            "upload": self.upload.encode().decode("ascii") if self.upload else None,
            "chunks": self.chunks and [[*chunk[:4], chunk.frames.hex()] for chunk in self.chunks],
        }
        body = json.dumps(fields).encode("ascii")
        return f"{xxh3(body):0{_SUM_DIGITS}x}\n".encode("ascii") + body

    @classmethod
    def decode(cls, data: bytes, name: str) -> PackRecord:
        """Return the record in `data`; raise `Corrupt` or `UnsupportedVersion` with `name`."""
        checksum, newline, body = data.partition(b"\n")
        if not newline or checksum != f"{xxh3(body):0{_SUM_DIGITS}x}".encode("ascii"):
            raise Corrupt("outbox record", name, "checksum differs")
        try:
            fields: Any = parse_json(body)
            if fields["version"] != _RECORD_VERSION:
                raise UnsupportedVersion("outbox record", int(fields["version"]), _RECORD_VERSION)
            upload, chunks = fields["upload"], fields["chunks"]
            return cls(
                key=_pack_key_of(fields["key"]),
                size=_count(fields["size"]),
                chain=_count(fields["chain"]),
                storage_class=str(fields["class"]),
                upload=UploadState.decode(upload.encode("ascii"), name) if upload else None,
                chunks=None if chunks is None else tuple(_chunk_of(*chunk) for chunk in chunks),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise Corrupt("outbox record", name, str(error)) from error


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise ValueError(f"{value!r} is no number of ours")
    return value


def _pack_key_of(value: object) -> str:
    if not isinstance(value, str) or parse_pack_key(value) is None:
        raise ValueError(f"{value!r} is no key of a pack")
    return value


def _chunk_of(
    chunk: object, offset: object, stored_length: object, length: object, frames: str
) -> PackedChunk:
    return PackedChunk(
        _count(chunk),
        _count(offset),
        _count(stored_length),
        _count(length),
        bytes.fromhex(frames),
    )


class Outbox:
    """The packs and records in one directory. Files only: usable from any thread or process."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def pack_path(self, key: str) -> Path:
        """Return where the sealed pack lies."""
        return self._directory / key.replace("/", "-")

    def _record_path(self, key: str) -> Path:
        return self._directory / (key.replace("/", "-") + _SUFFIX)

    # --- records -------------------------------------------------------------------------

    def store(self, record: PackRecord) -> None:
        """Keep a record in place of an older one; not synced (see above). Raises `OSError`."""
        self._replace(self._record_path(record.key), record.encode())

    def records(self) -> list[PackRecord]:
        """Return all records that can be read, by name; others may vanish meanwhile."""
        found = []
        for path in sorted(self._directory.glob("*" + _SUFFIX)):
            try:
                record = PackRecord.decode(path.read_bytes(), path.name)
            except (FileNotFoundError, Corrupt, UnsupportedVersion):
                continue  # `tidy` removes what cannot be read; reclaim asks for keys only
            if self._record_path(record.key) == path:
                found.append(record)
        return found

    def keys(self) -> set[str]:
        """Return the keys of all packs that a record is there of, readable or not."""
        names = (path.name.removesuffix(_SUFFIX) for path in self._directory.glob("*" + _SUFFIX))
        return {key for name in names if (key := _key_of(name)) is not None}

    def drop_pack(self, key: str) -> None:
        """Remove a pack, if it lies here."""
        remove_gently(self.pack_path(key))

    def forget(self, key: str) -> None:
        """Drop a pack and its record; the record last, or nothing would know of its upload."""
        self.drop_pack(key)
        self._record_path(key).unlink(missing_ok=True)

    def forget_unsent(self) -> None:
        """Forget packs of which nothing has been sent. Raises `OSError`."""
        for record in self.records():
            if record.chunks is None and record.upload is None:
                self.forget(record.key)

    def tidy(self) -> None:
        """Keep packs and records that belong together, drop all else: for a start."""
        known = set()
        for record in self.records():
            pack = self.pack_path(record.key)
            if record.chunks is None and not pack.exists() and record.upload is None:
                continue  # neither here nor on its way
            known |= {pack.name, self._record_path(record.key).name}
        for path in self._directory.iterdir():
            if path.name not in known and path.name != _LINK:
                path.unlink()

    # --- the line ------------------------------------------------------------------------

    def load_link(self) -> float:
        """Return the bytes per second of one transfer as last noted; 0 if nobody knows."""
        try:
            rate = float((self._directory / _LINK).read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return 0.0
        return max(0.0, rate) if math.isfinite(rate) else 0.0

    def store_link(self, bytes_per_s: float) -> None:
        """Note how fast the line is. Raises `OSError`."""
        self._replace(self._directory / _LINK, f"{bytes_per_s:.0f}".encode("ascii"))

    def _replace(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(path.name + _TEMPORARY)
        temporary.write_bytes(data)
        temporary.replace(path)


def forget_named(outbox: Outbox, committed: Committed) -> None:
    """Drop the records of packs that a commit names; in a thread, between two commits.

    Only after this may a sealing reuse what the outbox holds.
    """
    waiting = outbox.keys()
    if not waiting:
        return
    with committed.view() as view:
        named = {pack.key for pack in view.packs()}
    for key in sorted(waiting & named):
        outbox.forget(key)


def spared(outbox: Outbox) -> tuple[set[str], set[str]]:
    """Return (keys of packs, upload ids) that reclaim must leave alone."""
    uploads = {record.upload.upload_id for record in outbox.records() if record.upload}
    return outbox.keys(), uploads


def _key_of(name: str) -> str | None:
    """Return the key of a pack from its name in the outbox, None for another name."""
    parts = name.split("-")
    if len(parts) != 4:
        return None
    key = f"{PACK_PREFIX}{parts[1]}/{parts[2]}-{parts[3]}"
    return key if parse_pack_key(key) is not None else None
