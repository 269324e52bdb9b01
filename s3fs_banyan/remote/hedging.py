"""The hedging layer: a stalled request is given up, a slow small read is asked for twice.

Both need the caller to go on while a request is still under way, so requests that may be given
up run in spare threads. The adapter's socket time-outs end each of them in the end, and there
are at most `threads_max`: with none to spare a call runs in its caller's thread, as if this
layer were not there.

    given up     reads of a known length, write, upload_part: `Unavailable`, which the retry layer
                 repeats. The late answer is thrown away; a write may still land, with the same
                 bytes. Each time gives the object twice as long, or one that is slow for reasons
                 of its own would never be had
    asked twice  reads of at most 1 MiB and a known length; the first answer wins
    neither      create-if-absent and all other calls: nobody could tell a second one's effect
"""

from __future__ import annotations

import threading  # noqa: TID251 - a condition for each call that may be given up
from collections.abc import Callable, Iterator
from typing import Final, Protocol, TypeVar

from s3fs_banyan.errors import Throttled, Unavailable
from s3fs_banyan.gentle_io import Bytes
from s3fs_banyan.remote.base import FileMeta, RemoteFileSystem, Summed
from s3fs_banyan.remote.latency import LatencyBook
from s3fs_banyan.remote.layers import _Layer
from s3fs_banyan.runtime import monotonic_s, start_spare_thread

T = TypeVar("T")

CUT_VERBS: Final = frozenset({"read", "write", "upload_part"})


class HedgeObserver(Protocol):
    """Who wants to know; called in the thread of the caller."""

    def hedged(self, *, won: bool) -> None: ...

    def cut(self, verb: str) -> None: ...


class _Attempts:
    """The attempts of one call: threads put in what they got, the caller takes the first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._results: list[tuple[int, object]] = []
        self._errors: list[tuple[int, BaseException]] = []
        self.running = 0

    def begin(self) -> None:
        """Count an attempt that is about to start."""
        with self._changed:
            self.running += 1

    def put(self, number: int, result: object, error: BaseException | None) -> None:
        """Hand over what attempt `number` got."""
        with self._changed:
            self.running -= 1
            if error is None:
                self._results.append((number, result))
            else:
                self._errors.append((number, error))
            self._changed.notify_all()

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until it is decided: a result, a lasting error, or an error of every attempt."""
        with self._changed:
            return self._changed.wait_for(self._is_decided, timeout_s)

    def _is_decided(self) -> bool:
        return bool(self._results) or bool(self._errors and not self.running) or self._is_lasting()

    def _is_lasting(self) -> bool:
        return any(not getattr(error, "retryable", False) for _, error in self._errors)

    def take(self) -> tuple[int, object]:
        """Return the number of the attempt that won, and its result; raise if none did."""
        with self._changed:
            if self._results:
                return self._results[0]
            lasting = [e for _, e in self._errors if not getattr(e, "retryable", False)]
            raise (lasting or [e for _, e in self._errors])[0]


class HedgeLayer(_Layer):
    """Gives stalled requests up and asks for slow small reads twice; safe for threads."""

    repeats_or_delays = True

    def __init__(
        self,
        inner: RemoteFileSystem,
        *,
        threads_max: int,
        observer: HedgeObserver | None = None,
        clock: Callable[[], float] = monotonic_s,
        book: LatencyBook | None = None,
    ) -> None:
        """`clock` gives monotonic seconds."""
        super().__init__(inner)
        self._threads_max = threads_max
        self._observer = observer
        self._clock = clock
        self._book = book or LatencyBook()
        self._lock = threading.Lock()
        self._threads = 0

    def read(self, path: str, *, offset: int = 0, length: int | None = None) -> Bytes:
        def call() -> Bytes:
            return self._inner.read(path, offset=offset, length=length)

        # Of unknown length: nobody can tell a large object from a stalled one.
        return call() if length is None else self._raced("read", path, call, length)

    def write(
        self,
        path: str,
        data: bytes | bytearray | memoryview,
        *,
        if_absent: bool = False,
        storage_class: str = "",
    ) -> FileMeta:
        def call() -> FileMeta:
            return self._inner.write(path, data, if_absent=if_absent, storage_class=storage_class)

        size = data.nbytes if isinstance(data, memoryview) else len(data)
        if if_absent:
            return call()
        try:
            return self._raced("write", path, call, size)
        except Unavailable:
            if isinstance(data, Summed):
                data.abandoned = True
            raise

    def upload_part(self, path: str, upload_id: str, number: int, data: bytes | bytearray) -> str:
        def call() -> str:
            return self._parts.upload_part(path, upload_id, number, data)

        return self._raced("upload_part", path, call, len(data))

    def _call(self, verb: str, call: Callable[[], T], bytes_sent: int = 0) -> T:
        return call()

    def _iterate(self, verb: str, after: Callable[[T | None], Iterator[T]]) -> Iterator[T]:
        return after(None)

    def _raced(self, verb: str, path: str, call: Callable[[], T], size: int) -> T:
        """Run the call in a spare thread, and a second time if it is slow."""
        attempts = _Attempts()
        with self._lock:
            self._book.earn_hedge()
            cut_s = self._book.cut_after_s(verb, size, path)
            hedge_s = self._book.hedge_after_s(verb, size)
        if cut_s is None or not self._start(attempts, 0, verb, call, size):
            return self._in_place(verb, call, size)
        hedged = False
        spent_s = 0.0
        if hedge_s is not None and hedge_s < cut_s:
            spent_s = hedge_s
            if not attempts.wait(hedge_s):
                hedged = self._may_hedge() and self._start(attempts, 1, verb, call, size)
        if not attempts.wait(cut_s - spent_s):
            with self._lock:
                self._book.cut(verb, size, path)
            if self._observer is not None:
                self._observer.cut(verb)
            raise Unavailable(f"{self.url}: {verb} {path}: no answer in {cut_s:.1f} s, given up")
        try:
            number, result = attempts.take()
        except Throttled:
            with self._lock:
                self._book.forbid_hedges()
            raise
        with self._lock:
            self._book.in_time(verb, size, path)
        if hedged and self._observer is not None:
            self._observer.hedged(won=number == 1)
        return result  # type: ignore[return-value]

    def _may_hedge(self) -> bool:
        with self._lock:
            return self._book.take_hedge()

    def _in_place(self, verb: str, call: Callable[[], T], size: int) -> T:
        begin_s = self._clock()
        result = call()
        with self._lock:
            self._book.answered(verb, size, self._clock() - begin_s)
        return result

    def _start(
        self, attempts: _Attempts, number: int, verb: str, call: Callable[[], T], size: int
    ) -> bool:
        """Start an attempt in a spare thread; False if there is none to spare."""
        with self._lock:
            if self._threads >= self._threads_max:
                return False
            self._threads += 1
        attempts.begin()

        def run() -> None:
            result: object = None
            failure: BaseException | None = None
            begin_s = self._clock()
            try:
                result = call()
            except BaseException as error:  # noqa: BLE001 - it is raised in the caller's thread
                failure = error
            with self._lock:
                self._threads -= 1
                if failure is None:
                    self._book.answered(verb, size, self._clock() - begin_s)
            attempts.put(number, result, failure)

        try:
            start_spare_thread(run)
        except RuntimeError:  # no thread can be started just now
            with self._lock:
                self._threads -= 1
            attempts.running -= 1
            return False
        return True
