"""The pacing layer: makes the threads that call a store wait until `Pacer` lets them.

It stands below the retry layer, so a retry queues like everybody else and no slot is held during
a back-off; and above hedging and metering, so a hedge needs no slot: there are few, and they are
wanted just when the slots are taken.

Each class has its queue, first come first served. Whoever ends a request admits the heads of all
queues; a thread that a cap or a pause makes wait asks again by itself. Listings are not paced:
their pages come as their reader goes on, and he might hold a slot for hours.
"""

from __future__ import annotations

import threading  # noqa: TID251 - one lock and one event a waiting caller; nothing is started here
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, Protocol, TypeVar

from s3fs_banyan.errors import BrokenBody, Throttled, Unavailable
from s3fs_banyan.gentle_io import Bytes
from s3fs_banyan.remote.base import RemoteFileSystem
from s3fs_banyan.remote.layers import _Layer
from s3fs_banyan.remote.limiter import Outcome
from s3fs_banyan.remote.pacer import Pacer, Started
from s3fs_banyan.remote.traffic import Traffic, traffic_of
from s3fs_banyan.runtime import monotonic_s

T = TypeVar("T")

_ASK_AGAIN_S: Final = 0.5
"""A waiting thread looks by itself this often: a hint of another process may have run out."""


class PacingObserver(Protocol):
    """Who wants to know of queues and limits; called under the layer's lock, so briefly."""

    def paced(self, traffic: str, limit: int, in_flight: int, queued: int) -> None: ...

    def waited(self, traffic: str, seconds: float) -> None: ...

    def throttled(self, traffic: str) -> None: ...


class _Waiter:
    """One thread that waits for its turn."""

    __slots__ = ("admitted", "receives", "sends", "started")

    def __init__(self, sends: int, receives: int) -> None:
        self.sends = sends
        self.receives = receives
        self.admitted = threading.Event()
        self.started: Started | None = None


class PacingLayer(_Layer):
    """Keeps requests in flight below the limits of a `Pacer`; safe for threads."""

    repeats_or_delays = True

    def __init__(
        self,
        inner: RemoteFileSystem,
        pacer: Pacer,
        *,
        reads: Traffic = Traffic.DEMAND,
        observer: PacingObserver | None = None,
        clock: Callable[[], float] = monotonic_s,
    ) -> None:
        """`reads` is the class of this process's reads; `clock` gives monotonic seconds."""
        super().__init__(inner)
        self._pacer = pacer
        self._reads = reads
        self._observer = observer
        self._clock = clock
        self._lock = threading.Lock()
        self._queues: dict[Traffic, deque[_Waiter]] = {traffic: deque() for traffic in Traffic}

    def hint(self, share: float) -> None:
        """Take the share of bulk that another process of the mount asks for, for a second."""
        with self._lock:
            self._pacer.hint(share, self._clock())

    @property
    def share(self) -> float:
        """The share of bulk that this process's demand reads ask for; 1 if they are content."""
        with self._lock:
            return self._pacer.share(self._clock())

    def read(self, path: str, *, offset: int = 0, length: int | None = None) -> Bytes:
        return self._paced(
            "read", lambda: self._inner.read(path, offset=offset, length=length), 0, length or 0
        )

    def _call(self, verb: str, call: Callable[[], T], bytes_sent: int = 0) -> T:
        return self._paced(verb, call, bytes_sent, 0)

    def _paced(self, verb: str, call: Callable[[], T], bytes_sent: int, bytes_asked: int) -> T:
        traffic = traffic_of(verb, bytes_sent, self._reads)
        started = self._wait_for_turn(traffic, bytes_sent, bytes_asked)
        outcome, received = Outcome.OTHER, 0
        retry_after_s: float | None = None
        try:
            result = call()
            outcome = Outcome.OK
            received = len(result) if isinstance(result, bytes | memoryview) else 0
            return result
        except Throttled as error:
            outcome, retry_after_s = Outcome.THROTTLED, error.retry_after_s
            raise
        except BrokenBody:
            raise  # a torn connection, no sign of a full store
        except Unavailable:
            outcome = Outcome.TIMED_OUT
            raise
        finally:
            with self._lock:
                now_s = self._clock()
                self._pacer.end(
                    started,
                    now_s,
                    size=max(bytes_sent, received),
                    received=received,
                    outcome=outcome,
                    retry_after_s=retry_after_s,
                )
                if outcome is Outcome.THROTTLED and self._observer is not None:
                    self._observer.throttled(traffic)
                self._admit(now_s)
                self._tell(traffic, now_s)

    def _iterate(self, verb: str, after: Callable[[T | None], Iterator[T]]) -> Iterator[T]:
        return after(None)

    def _wait_for_turn(self, traffic: Traffic, sends: int, receives: int) -> Started:
        """Return once a request of this class may start; it is counted as in flight then."""
        waiter = _Waiter(sends, receives)
        with self._lock:
            began_s = now_s = self._clock()
            self._queues[traffic].append(waiter)
            self._admit(now_s)
            wait_s = self._pacer.wait_s(traffic, now_s)
            self._tell(traffic, now_s)
        while waiter.started is None:
            waiter.admitted.wait(min(wait_s, _ASK_AGAIN_S))
            with self._lock:
                now_s = self._clock()
                self._admit(now_s)
                wait_s = self._pacer.wait_s(traffic, now_s)
        if self._observer is not None:
            with self._lock:
                self._observer.waited(traffic, now_s - began_s)
                self._tell(traffic, now_s)
        return waiter.started

    def _admit(self, now_s: float) -> None:
        """Start the heads of the queues for which there is room; the lock is held."""
        for traffic, queue in self._queues.items():
            while queue and self._pacer.wait_s(traffic, now_s) <= 0:
                waiter = queue.popleft()
                waiter.started = self._pacer.start(traffic, now_s, waiter.sends, waiter.receives)
                waiter.admitted.set()

    def _tell(self, traffic: Traffic, now_s: float) -> None:
        if self._observer is not None:
            self._observer.paced(
                traffic,
                self._pacer.limit(traffic, now_s),
                self._pacer.limiters[traffic].in_flight,
                len(self._queues[traffic]),
            )


def share_of(store: RemoteFileSystem) -> Callable[[], float] | None:
    """Return what tells the share that a store's demand reads ask for; None without pacing."""
    layer = _pacing_of(store)
    return None if layer is None else lambda: layer.share


def hint_to(store: RemoteFileSystem, share: float) -> None:
    """Hand another process's share to the store's pacing, if it has any."""
    layer = _pacing_of(store)
    if layer is not None:
        layer.hint(share)


def _pacing_of(store: object) -> PacingLayer | None:
    while isinstance(store, _Layer) and not isinstance(store, PacingLayer):
        store = store.inner
    return store if isinstance(store, PacingLayer) else None
