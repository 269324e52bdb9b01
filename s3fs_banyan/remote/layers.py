"""Layers around a store, of the store's own shape: metering and retry.

A layer forwards every call and adds one thing. Their order, from the outside in, is retry,
pacing (`pacing.py`), hedging (`hedging.py`), meter, store: so every attempt is counted, hedges
too, and no slot is held by a call that waits for its next attempt. A layer does not know which
store it is around.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar, Final, Protocol, TypeVar, cast

from s3fs_banyan.errors import (
    AlreadyExists,
    BrokenBody,
    Denied,
    Misconfigured,
    ObjectMissing,
    StoreError,
    Throttled,
    TransferCorrupt,
    Unavailable,
)
from s3fs_banyan.gentle_io import Bytes
from s3fs_banyan.remote.base import (
    Capabilities,
    FileMeta,
    MultipartStore,
    RemoteFileSystem,
    ResumingStore,
)
from s3fs_banyan.remote.retry_table import REASONS, REPEATABLE_VERBS, RULES
from s3fs_banyan.runtime import monotonic_s, random_unit, sleep_blocking

log = logging.getLogger(__name__)
T = TypeVar("T")

__all__ = [
    "OUTCOMES",
    "REPEATABLE_VERBS",
    "MeterLayer",
    "RequestObserver",
    "RetryLayer",
    "single_attempts",
]

RETRY_CAP_S: Final = RULES[Unavailable].cap_s

OUTCOMES: Final[Mapping[type[StoreError], str]] = {
    ObjectMissing: "missing",
    AlreadyExists: "exists",
    Throttled: "throttled",
    Unavailable: "unavailable",
    BrokenBody: "broken",
    TransferCorrupt: "corrupt",
    Denied: "denied",
    Misconfigured: "misconfigured",
}
"""Error class -> the `outcome` that a `RequestObserver` is told; a success is `ok`."""


class RequestObserver(Protocol):
    """Who wants to know of every request; called in the thread that made it."""

    def request(
        self, verb: str, outcome: str, seconds: float, bytes_sent: int, bytes_received: int
    ) -> None: ...


class RetryObserver(Protocol):
    """Who wants to know of retries; called in the thread that waits for the next attempt."""

    def retried(self, reason: str) -> None: ...

    def resumed(self, bytes_kept: int) -> None: ...


class _Layer:
    """Forwards everything to the inner store through `_call`, which a layer replaces."""

    repeats_or_delays: ClassVar[bool] = False
    """A call may be more than one attempt, or an attempt that is not made at once."""

    def __init__(self, inner: RemoteFileSystem) -> None:
        self._inner = inner

    @property
    def inner(self) -> RemoteFileSystem:
        """The store, or the next layer, that this one is around."""
        return self._inner

    def _call(self, verb: str, call: Callable[[], T], bytes_sent: int = 0) -> T:
        raise NotImplementedError

    def _iterate(self, verb: str, after: Callable[[T | None], Iterator[T]]) -> Iterator[T]:
        """Yield from a listing; `after(item)` makes one that goes on behind `item`."""
        raise NotImplementedError

    @property
    def url(self) -> str:
        return self._inner.url

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[FileMeta]:
        def after(last: FileMeta | None) -> Iterator[FileMeta]:
            return self._inner.list(prefix, start_after=last.path if last else start_after)

        return self._iterate("list", after)

    def read(self, path: str, *, offset: int = 0, length: int | None = None) -> Bytes:
        return self._call("read", lambda: self._inner.read(path, offset=offset, length=length))

    def read_rest(self, broken: BrokenBody) -> Bytes:
        rest = cast("ResumingStore", self._inner)
        return self._call("read", lambda: rest.read_rest(broken))

    def write(
        self,
        path: str,
        data: bytes | bytearray | memoryview,
        *,
        if_absent: bool = False,
        storage_class: str = "",
    ) -> FileMeta:
        size = data.nbytes if isinstance(data, memoryview) else len(data)
        return self._call(
            "create" if if_absent else "write",
            lambda: self._inner.write(path, data, if_absent=if_absent, storage_class=storage_class),
            size,
        )

    def delete(self, paths: Sequence[str]) -> None:
        return self._call("delete", lambda: self._inner.delete(paths))

    def stat(self, path: str) -> FileMeta:
        return self._call("stat", lambda: self._inner.stat(path))

    def close(self) -> None:
        self._inner.close()

    # --- multipart -----------------------------------------------------------------------

    @property
    def _parts(self) -> MultipartStore:
        return multipart_of(self._inner)

    def begin_upload(self, path: str, *, storage_class: str = "") -> str:
        parts = self._parts
        return self._call(
            "begin_upload", lambda: parts.begin_upload(path, storage_class=storage_class)
        )

    def upload_part(self, path: str, upload_id: str, number: int, data: bytes | bytearray) -> str:
        parts = self._parts
        return self._call(
            "upload_part", lambda: parts.upload_part(path, upload_id, number, data), len(data)
        )

    def list_parts(self, path: str, upload_id: str) -> Mapping[int, tuple[int, str]]:
        parts = self._parts
        return self._call("list_parts", lambda: parts.list_parts(path, upload_id))

    def complete_upload(self, path: str, upload_id: str, etags: Mapping[int, str]) -> FileMeta:
        parts = self._parts
        return self._call("complete_upload", lambda: parts.complete_upload(path, upload_id, etags))

    def abort_upload(self, path: str, upload_id: str) -> None:
        parts = self._parts
        return self._call("abort_upload", lambda: parts.abort_upload(path, upload_id))

    def list_uploads(self, prefix: str = "") -> Iterator[tuple[str, str, int]]:
        # The list of unfinished uploads is short and has no place to go on from: it is taken
        # whole, so that a retry cannot give an upload twice.
        parts = self._parts
        yield from self._call("list_uploads", lambda: [*parts.list_uploads(prefix)])


class RetryLayer(_Layer):
    """Tries again, with full-jitter exponential back-off, what may be tried again.

    What that is says the table of `retry_table.py`: a call that may be repeated is repeated
    after every retryable error, any other only after `Throttled`, which the store says before
    any effect. The body of a read that broke is asked for from where it broke. One call gets
    `deadline_s` in all, sleeps included: a wait that would pass it is not begun, and the last
    error is raised. A listing goes on after the last path that it gave, with a fresh deadline
    for each item.

    After a call that found the store away for its whole deadline, the next ones try once only,
    until one succeeds: whoever waits for the store (the committer, a read, a mount that goes on
    from its local state) does so above this layer, and need not wait twice.
    """

    repeats_or_delays = True

    def __init__(
        self,
        inner: RemoteFileSystem,
        *,
        deadline_s: float,
        sleep: Callable[[float], None] = sleep_blocking,
        clock: Callable[[], float] = monotonic_s,
        jitter: Callable[[], float] = random_unit,
        observer: RetryObserver | None = None,
    ) -> None:
        """`clock` gives monotonic seconds, `jitter` a number in [0, 1)."""
        super().__init__(inner)
        self._deadline_s = deadline_s
        self._sleep = sleep
        self._clock = clock
        self._jitter = jitter
        self._observer = observer
        self._is_away = False

    @contextmanager
    def within(self, deadline_s: float) -> Iterator[None]:
        """Give each call at most so many seconds while this is entered; for one thread.

        A call that is under way goes on until its own time-outs end it.
        """
        usual_s, self._deadline_s = self._deadline_s, min(deadline_s, self._deadline_s)
        try:
            yield
        finally:
            self._deadline_s = usual_s

    def _call(self, verb: str, call: Callable[[], T], bytes_sent: int = 0) -> T:
        end_s = self._end_s()
        attempt = 0
        kept = ("", 0)
        whole, corrupt = call, 0
        while True:
            try:
                result = call()
            except StoreError as error:
                if type(error) is not Unavailable and self._is_away:
                    self._is_away = False  # whatever it says: it answers
                    end_s = self._end_s()
                if isinstance(error, TransferCorrupt):
                    attempt, corrupt = corrupt, corrupt + 1
                if not self._wait(verb, attempt, end_s, error):
                    raise
                if isinstance(error, BrokenBody):
                    call = self._rest(error)
                    if error.etag != kept[0] or len(error.received) > kept[1]:
                        attempt = -1  # there was progress: the back-off starts anew
                    kept = (error.etag, len(error.received))
                elif isinstance(error, TransferCorrupt):
                    call, kept = whole, ("", 0)  # what was kept may be what is wrong
            else:
                self._is_away = False
                return result
            attempt += 1

    def _rest(self, broken: BrokenBody) -> Callable[[], T]:
        """Return the call that gets what a broken body lacks, and gives the whole."""
        if self._observer is not None:
            self._observer.resumed(len(broken.received))
        rest = cast("ResumingStore", self._inner)
        return cast("Callable[[], T]", lambda: rest.read_rest(broken))

    def _iterate(self, verb: str, after: Callable[[T | None], Iterator[T]]) -> Iterator[T]:
        last: T | None = None
        items = after(None)
        end_s = self._end_s()
        attempt = 0
        while True:
            try:
                last = next(items)
            except StopIteration:
                self._is_away = False
                return
            except StoreError as error:
                if not self._wait(verb, attempt, end_s, error):
                    raise
                items = after(last)  # an iterator that raised is finished
                attempt += 1
                continue
            self._is_away = False
            yield last
            end_s = self._end_s()
            attempt = 0

    def _end_s(self) -> float:
        return self._clock() + (0.0 if self._is_away else self._deadline_s)

    def _wait(self, verb: str, attempt: int, end_s: float, error: StoreError) -> bool:
        """Sleep before the next attempt; False, at once, if there is to be none."""
        rule = RULES.get(type(error))
        if rule is None or not rule.may_repeat(verb, attempt):
            return False
        delay_s = rule.delay_s(attempt, self._jitter())
        if isinstance(error, Throttled) and error.retry_after_s is not None:
            # The jitter goes on top: all who were told the same must not come back together.
            delay_s += error.retry_after_s
        if self._clock() + delay_s >= end_s:
            self._is_away = type(error) is Unavailable
            return False
        if self._observer is not None:
            self._observer.retried(REASONS[type(error)])
        # One retry is an ordinary event, of which the metric is enough.
        level = logging.INFO if attempt else logging.DEBUG
        log.log(level, "%s is tried again in %.1f s: %s", verb, delay_s, error)
        self._sleep(delay_s)
        return True


class MeterLayer(_Layer):
    """Tells an observer of every request: verb, outcome, time, bytes each way.

    A listing is one request however many pages it takes; its time is what was spent in the
    store, not by the caller between two items.
    """

    def __init__(
        self,
        inner: RemoteFileSystem,
        observer: RequestObserver,
        *,
        clock: Callable[[], float] = monotonic_s,
    ) -> None:
        """`clock` gives monotonic seconds."""
        super().__init__(inner)
        self._observer = observer
        self._clock = clock

    def _call(self, verb: str, call: Callable[[], T], bytes_sent: int = 0) -> T:
        begin_s = self._clock()
        try:
            result = call()
        except StoreError as error:
            seconds = self._clock() - begin_s
            self._observer.request(verb, OUTCOMES.get(type(error), "error"), seconds, bytes_sent, 0)
            raise
        received = len(result) if isinstance(result, bytes | memoryview) else 0
        self._observer.request(verb, "ok", self._clock() - begin_s, bytes_sent, received)
        return result

    def _iterate(self, verb: str, after: Callable[[T | None], Iterator[T]]) -> Iterator[T]:
        items = after(None)
        seconds = 0.0
        outcome = "ok"
        try:
            while True:
                begin_s = self._clock()
                try:
                    item = next(items)
                except StopIteration:
                    return
                except StoreError as error:
                    outcome = OUTCOMES.get(type(error), "error")
                    raise
                finally:
                    seconds += self._clock() - begin_s
                yield item
        finally:
            self._observer.request(verb, outcome, seconds, 0, 0)


def multipart_of(store: RemoteFileSystem) -> MultipartStore:
    """Return the store as one that takes multipart uploads, or raise `Misconfigured`."""
    if not store.capabilities.multipart:
        raise Misconfigured(f"{store.url}: this store takes no multipart uploads")
    return cast("MultipartStore", store)


def single_attempts(store: RemoteFileSystem) -> RemoteFileSystem:
    """Return the store below retry, pacing and hedging: a call is one attempt, made at once."""
    while isinstance(store, _Layer) and store.repeats_or_delays:
        store = store.inner
    return store
