"""What a store can do, found by trying: the table that `s3fs-banyan probe` prints.

Documentation says what a service should do, and many speak S3 with gaps. So every row is tried on
objects below `probe/<token>/`, which no volume uses and which are removed in the end, whatever
happened. Nothing else is touched: a volume in the same place, with a writer at work, is not
harmed. It must not know what the engine needs the abilities for, only which ones it cannot do
without (`needed`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Literal, Protocol, cast

from s3fs_banyan.errors import (
    AlreadyExists,
    Denied,
    Misconfigured,
    ObjectMissing,
    StoreError,
    Throttled,
    TransferCorrupt,
    Unavailable,
)
from s3fs_banyan.remote.base import RemoteFileSystem
from s3fs_banyan.remote.layers import multipart_of
from s3fs_banyan.remote.probe_s3 import s3_trials
from s3fs_banyan.remote.s3 import S3Store

Verdict = Literal["yes", "no", "unclear"]
Trial = tuple[str, Callable[[], tuple[Verdict, str]]]

_RACERS: Final = 8
_PART_BYTES: Final = 5 << 20
_COLD_CLASSES: Final = {"s3": "STANDARD_IA", "az": "Cool", "gs": "NEARLINE"}
_WRONG_ETAGS: Final = {"az": '"0x1"', "gs": "1"}

NEEDED: Final = frozenset(
    {"create-if-absent", "creators at once", "read after write", "ranged reads", "byte order",
     "start after", "delete"}
)  # fmt: skip
"""Rows without which a store cannot hold a volume."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One row: an ability, whether the store has it, and what was seen."""

    name: str
    verdict: Verdict
    detail: str = ""

    @property
    def needed(self) -> bool:
        """Whether a volume cannot do without."""
        return self.name in NEEDED


class _Conditional(Protocol):
    """What the stores of the clouds have beside the contract, for these trials."""

    def write_with_md5(self, path: str, data: bytes, md5: bytes) -> None: ...

    def write_if_match(self, path: str, data: bytes, etag: str) -> None: ...


def probe_store(
    store: RemoteFileSystem, kind: str, token: str, wall_ns: Callable[[], int]
) -> Iterator[Found]:
    """Yield the rows of a store as they are found; `token` is a fresh name.

    `store` is bare, without layers, and `kind` the scheme of its URL. Raises the store's error if
    it cannot be used at all. What was written is removed when the iterator ends or is closed.
    """
    probe = _Probe(store, f"probe/{token}", wall_ns)
    next(store.list(probe.at("")), None)
    trials: list[Trial] = [*probe.trials()]
    if kind in _COLD_CLASSES:
        trials.append(("storage class kept", lambda: probe.storage_class(_COLD_CLASSES[kind])))
    if isinstance(store, S3Store):
        trials += s3_trials(store, probe.at)
    elif kind in _WRONG_ETAGS:
        clouds = cast("_Conditional", store)
        trials.append(("if-match", lambda: probe.if_match(clouds, _WRONG_ETAGS[kind])))
        trials.append(("MD5 checked", lambda: probe.md5_checked(clouds)))
    try:
        for name, trial in trials:
            yield _try(name, trial)
    finally:
        probe.clean()


def is_usable(found: list[Found]) -> bool:
    """Tell whether a store with these rows can hold a volume."""
    return all(row.verdict == "yes" for row in found if row.needed)


def lacks_something(found: list[Found]) -> bool:
    """Tell whether such a store certainly cannot: else errors hid what it can do."""
    return any(row.verdict == "no" for row in found if row.needed)


def _try(name: str, trial: Callable[[], tuple[Verdict, str]]) -> Found:
    """Run one trial; the store's error is its result.

    One that says that the store cannot do it, that is: credentials that may not try it say as
    little of the store as a time-out.
    """
    try:
        verdict, detail = trial()
    except (Denied, Throttled, Unavailable) as error:
        return Found(name=name, verdict="unclear", detail=_short(error))
    except StoreError as error:
        return Found(name=name, verdict="no", detail=_short(error))
    return Found(name=name, verdict=verdict, detail=detail)


def _short(error: StoreError) -> str:
    return str(error).partition("\n")[0][:200]


class _Probe:
    """The trials that need nothing but the contract; each has paths of its own."""

    def __init__(self, store: RemoteFileSystem, root: str, wall_ns: Callable[[], int]) -> None:
        self._store = store
        self._root = root
        self._wall_ns = wall_ns

    def at(self, name: str) -> str:
        """Return a path of the probe's own; with "" the prefix of all."""
        return f"{self._root}/{name}"

    def trials(self) -> Iterator[Trial]:
        """Yield the trials in the order of the table."""
        yield "create-if-absent", self.create_if_absent
        yield "creators at once", self.creators_at_once
        yield "read after write", self.read_after_write
        yield "ranged reads", self.ranged_reads
        yield "byte order", self.byte_order
        yield "start after", self.start_after
        yield "delete", self.delete
        yield "ETag is the MD5", self.etag
        yield "clock", self.clock
        yield "multipart", self.multipart

    def clean(self) -> None:
        """Remove what the trials left: objects, and uploads that were not finished."""
        # First what some stores list in another order, so that the rest can be listed.
        self._store.delete([self.at(name) for name in _ORDER])
        self._store.delete([meta.path for meta in self._store.list(self.at(""))])
        if self._store.capabilities.multipart:
            parts = multipart_of(self._store)
            for path, upload, _ in [*parts.list_uploads(self.at(""))]:
                parts.abort_upload(path, upload)

    def create_if_absent(self) -> tuple[Verdict, str]:
        path = self.at("create")
        self._store.write(path, b"first", if_absent=True)
        try:
            self._store.write(path, b"second", if_absent=True)
        except AlreadyExists:
            kept = self._store.read(path) == b"first"
            return ("yes", "") if kept else ("no", "refused, and the object changed all the same")
        return "no", "the second of two creators succeeded"

    def creators_at_once(self) -> tuple[Verdict, str]:
        path = self.at("race")

        def create(number: int) -> StoreError | int:
            try:
                self._store.write(path, b"%d" % number * 1000, if_absent=True)
            except StoreError as error:
                return error
            return number

        with ThreadPoolExecutor(_RACERS) as pool:
            results = [*pool.map(create, range(_RACERS))]
        winners = [result for result in results if isinstance(result, int)]
        unsure = [
            r for r in results if isinstance(r, StoreError) and not isinstance(r, AlreadyExists)
        ]
        if len(winners) > 1:
            return "no", f"{len(winners)} of {_RACERS} creators succeeded"
        if winners and self._store.read(path) != b"%d" % winners[0] * 1000:
            return "no", "the object is not the winner's"
        if unsure or not winners:
            why = _short(unsure[0]) if unsure else ""
            return "unclear", f"{len(winners)} won, {len(unsure)} got another error: {why}"
        return "yes", f"{_RACERS} at once, one won"

    def read_after_write(self) -> tuple[Verdict, str]:
        path = self.at("fresh")
        for number in range(5):
            data = b"%d" % number
            self._store.write(path, data)
            if self._store.read(path) != data or self._store.stat(path).size != len(data):
                return "no", "an older object was read"
            if [meta.path for meta in self._store.list(path)] != [path]:
                return "no", "a new object was not listed"
            self._store.delete([path])
            if [*self._store.list(path)] or not self._is_missing(path):
                return "no", "a deleted object was seen"
        return "yes", ""

    def ranged_reads(self) -> tuple[Verdict, str]:
        path, data = self.at("range"), bytes(range(256)) * 4
        self._store.write(path, data)
        for offset, length in ((0, 10), (500, 100), (1000, 1000), (1024, 1), (5000, 5)):
            if self._store.read(path, offset=offset, length=length) != data[offset:][:length]:
                return "no", f"wrong bytes at {offset}"
        return "yes", ""

    def byte_order(self) -> tuple[Verdict, str]:
        paths = [self.at(name) for name in _ORDER]
        for path in paths:
            self._store.write(path, b"")
        try:
            listed = [meta.path for meta in self._store.list(self.at("order/"))]
        except Misconfigured as error:
            if self._is_ordered_by_tree():
                return "yes", "only where no name goes on with - or . beside a directory's"
            return "no", _short(error)
        return ("yes", "") if listed == sorted(paths) else ("no", "names are missing or too many")

    def _is_ordered_by_tree(self) -> bool:
        """Tell whether keys as those of a volume, which avoid the trap, are in order."""
        paths = [self.at(f"tree/{name}") for name in ("log/1", "log/2", "pack/1/b", "volume")]
        for path in paths:
            self._store.write(path, b"")
        return [meta.path for meta in self._store.list(self.at("tree/"))] == paths

    def start_after(self) -> tuple[Verdict, str]:
        paths = [self.at(f"after/{number}") for number in range(4)]
        for path in paths:
            self._store.write(path, b"")
        listed = [meta.path for meta in self._store.list(self.at("after/"), start_after=paths[1])]
        return ("yes", "") if listed == paths[2:] else ("no", "it began elsewhere")

    def delete(self) -> tuple[Verdict, str]:
        paths = [self.at(f"delete/{number}") for number in range(3)]
        for path in paths:
            self._store.write(path, b"")
        self._store.delete([*paths, self.at("delete/never")])
        left = [*self._store.list(self.at("delete/"))]
        return ("no", f"{len(left)} are still there") if left else ("yes", "")

    def etag(self) -> tuple[Verdict, str]:
        meta = self._store.write(self.at("etag"), b"some bytes")
        md5 = hashlib.md5(b"some bytes", usedforsecurity=False).hexdigest()
        return ("yes", "") if meta.etag == md5 else ("no", "")

    def clock(self) -> tuple[Verdict, str]:
        path = self.at("clock")
        before_ns = self._wall_ns()
        written_ns = self._store.write(path, b"").modified_ns
        after_ns = self._wall_ns()
        # The store's clock is read to the second.
        ahead_s = max(0, written_ns - after_ns) / 1e9
        behind_s = max(0, before_ns - written_ns - 10**9) / 1e9
        apart = max(ahead_s, behind_s)
        return ("yes" if apart < 300 else "no"), f"apart by {apart:.0f} s"

    def multipart(self) -> tuple[Verdict, str]:
        if not self._store.capabilities.multipart:
            return "no", "each object is one request"
        parts, path = multipart_of(self._store), self.at("multipart")
        upload = parts.begin_upload(path)
        first, second = bytes(_PART_BYTES), b"the end"
        etags = {
            number: parts.upload_part(path, upload, number, data)
            for number, data in ((1, first), (2, second))
        }
        listed = {number: size for number, (size, _) in parts.list_parts(path, upload).items()}
        if listed != {1: len(first), 2: len(second)}:
            return "no", "the parts are not listed: an upload cannot be resumed"
        seen = upload in {found for _, found, _ in parts.list_uploads(path)}
        parts.complete_upload(path, upload, etags)
        if self._store.read(path, offset=len(first) - 1) != b"\0" + second:
            return "no", "the object is not its parts"
        return ("yes", "") if seen else ("yes", "an unfinished upload is not listed")

    def storage_class(self, name: str) -> tuple[Verdict, str]:
        path = self.at("class")
        self._store.write(path, b"", storage_class=name)
        kept = self._store.stat(path).storage_class
        return ("yes", name) if kept == name else ("no", f"{name} became {kept or 'nothing'}")

    def if_match(self, store: _Conditional, wrong: str) -> tuple[Verdict, str]:
        path = self.at("match")
        self._store.write(path, b"first")
        try:
            store.write_if_match(path, b"second", wrong)
        except AlreadyExists:
            return "yes", ""
        return "no", "written although the object was another"

    def md5_checked(self, store: _Conditional) -> tuple[Verdict, str]:
        try:
            store.write_with_md5(self.at("md5"), b"some bytes", bytes(16))
        except TransferCorrupt:
            return "yes", ""
        return "no", "other bytes than those of the MD5 were taken"

    def _is_missing(self, path: str) -> bool:
        try:
            self._store.read(path)
        except ObjectMissing:
            return True
        return False


_ORDER: Final = ("order/a", "order/a-b", "order/a.b", "order/a/b", "order/a0")
