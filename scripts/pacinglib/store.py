"""A store with a scripted capacity, for real threads: it takes time and refuses, it keeps nothing.

All requests in flight share `total_bytes` a second, each gets `rate_bytes` at most, after
`latency_s`. What exceeds `slots` requests is refused at once, and everything in a storm. One
thread moves all requests on, a few hundred times a second; the callers' threads wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from s3fs_banyan.errors import Throttled
from s3fs_banyan.remote.base import Capabilities, FileMeta

TICK_S = 0.004
LATE_S = 0.02
REFUSAL_S = 0.005


@dataclass(slots=True, kw_only=True)
class Capacity:
    """What the store can do in a phase."""

    total_bytes: float = 100e6
    rate_bytes: float = 10e6
    latency_s: float = 0.02
    slots: int = 1000
    is_storm: bool = False

    def best_bytes(self, size: int) -> float:
        """Bytes a second that the best caller gets for objects of `size` bytes."""
        each_s = self.latency_s + size / self.rate_bytes
        return 0.0 if self.is_storm else min(self.total_bytes, self.slots * size / each_s)


@dataclass(slots=True)
class _Request:
    left: float
    begin_s: float
    done: threading.Event = field(default_factory=threading.Event)


class ScriptedStore:
    """A `RemoteFileSystem` of which only `read` and `write` do anything."""

    def __init__(self) -> None:
        self.capacity = Capacity()
        self.late_s = 0.0
        """Time that went by in ticks which came late: the machine had no processor for them."""
        self._active: list[_Request] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def url(self) -> str:
        return "scripted://store"

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(create_if_absent=False)

    @property
    def in_flight(self) -> int:
        """Requests that are being served."""
        return len(self._active)

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[FileMeta]:
        yield from ()

    def read(self, path: str, *, offset: int = 0, length: int | None = None) -> bytes:
        self._serve(path, length or 0)
        return bytes(length or 0)

    def write(
        self,
        path: str,
        data: bytes | bytearray | memoryview,
        *,
        if_absent: bool = False,
        storage_class: str = "",
    ) -> FileMeta:
        self._serve(path, len(data))
        return FileMeta(path=path, size=len(data), etag="", modified_ns=0)

    def delete(self, paths: Sequence[str]) -> None:
        self._serve("", 0)

    def stat(self, path: str) -> FileMeta:
        self._serve(path, 0)
        return FileMeta(path=path, size=0, etag="", modified_ns=0)

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _serve(self, path: str, size: int) -> None:
        """Return when the bytes have gone, or refuse."""
        with self._lock:
            refused = self.capacity.is_storm or len(self._active) >= self.capacity.slots
            request = _Request(float(size), time.monotonic() + self.capacity.latency_s)
            if not refused:
                self._active.append(request)
        if refused:
            time.sleep(REFUSAL_S)
            raise Throttled(f"{path}: slow down")
        request.done.wait()

    def _run(self) -> None:
        before_s = time.monotonic()
        while not self._closed.wait(TICK_S):
            now_s = time.monotonic()
            if now_s - before_s > LATE_S:
                self.late_s += now_s - before_s
            with self._lock:
                moving = [request for request in self._active if request.begin_s <= now_s]
                if moving:
                    capacity = self.capacity
                    rate = min(capacity.rate_bytes, capacity.total_bytes / len(moving))
                    for request in moving:
                        # What began within this tick moved for a part of it only.
                        request.left -= rate * (now_s - max(before_s, request.begin_s))
                    over = [request for request in moving if request.left <= 0]
                    self._active = [r for r in self._active if r.left > 0 or r.begin_s > now_s]
                    for request in over:
                        request.done.set()
            before_s = now_s
