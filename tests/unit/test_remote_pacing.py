"""The pacing and hedging layers with real threads, on stores that answer when they are told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from s3fs_banyan.errors import (
    BrokenBody,
    Misconfigured,
    ObjectMissing,
    StoreError,
    Throttled,
    Unavailable,
)
from s3fs_banyan.remote import hedging
from s3fs_banyan.remote.base import RemoteFileSystem
from s3fs_banyan.remote.hedging import HedgeLayer
from s3fs_banyan.remote.latency import ANSWERS_MIN, CUT_S_MIN, LatencyBook
from s3fs_banyan.remote.layers import MeterLayer, RetryLayer, T, _Layer
from s3fs_banyan.remote.limiter import Bounds
from s3fs_banyan.remote.memory import MemoryStore
from s3fs_banyan.remote.pacer import Pacer, PacingOptions
from s3fs_banyan.remote.pacing import PacingLayer, hint_to, share_of
from s3fs_banyan.remote.traffic import BULK_BYTES_MIN, Traffic, traffic_of
from s3fs_banyan.runtime import start_spare_thread

BULK = bytes(BULK_BYTES_MIN)
SOON_S = 20.0
"""How long a test waits for what happens at once unless something is broken."""


class Gated(_Layer):
    """A store in memory whose calls wait until they are let go; it remembers their order."""

    def __init__(self) -> None:
        super().__init__(MemoryStore(clock=lambda: 0))
        self.inner.write("x", b"0123456789")
        self.changed = threading.Condition()
        self.waiting: list[str] = []
        self.seen: list[str] = []
        self.open = False
        self.fail: StoreError | None = None

    def _call(self, verb: str, call: Callable[[], T], bytes_sent: int = 0) -> T:
        with self.changed:
            self.waiting.append(verb)
            self.seen.append(verb)
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: self.open or verb not in self.waiting, SOON_S)
            failure, self.fail = self.fail, None
        if failure is not None:
            raise failure
        return call()

    def _iterate(self, verb: str, after: Callable[[T | None], Iterator[T]]) -> Iterator[T]:
        return after(None)

    def wait_for(self, count: int) -> None:
        """Wait until this many calls have come."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.seen) >= count, SOON_S)

    def let_go(self, *, all_of_them: bool = False) -> None:
        """Answer the call that waits longest, or this and every later one."""
        with self.changed:
            self.open = all_of_them
            if self.waiting:
                self.waiting.pop(0)
            self.changed.notify_all()


@dataclass
class Told:
    """A `WayObserver` that remembers."""

    events: list[tuple[str, object]] = field(default_factory=list)
    most: dict[str, int] = field(default_factory=dict)

    def retried(self, reason: str) -> None:
        self.events.append(("retried", reason))

    def resumed(self, bytes_kept: int) -> None:
        self.events.append(("resumed", bytes_kept))

    def hedged(self, *, won: bool) -> None:
        self.events.append(("hedged", won))

    def cut(self, verb: str) -> None:
        self.events.append(("cut", verb))

    def throttled(self, traffic: str) -> None:
        self.events.append(("throttled", traffic))

    def waited(self, traffic: str, seconds: float) -> None:
        assert seconds >= 0

    def paced(self, traffic: str, limit: int, in_flight: int, queued: int) -> None:
        self.most[traffic] = max(self.most.get(traffic, 0), in_flight)
        assert queued >= 0


def paced(
    inner: RemoteFileSystem, *, most: int = 2, told: Told | None = None, **options: int
) -> PacingLayer:
    bounds = Bounds(least=1, most=most, first=most)
    pacer = Pacer(PacingOptions(upload=bounds, demand=bounds, prefetch=bounds, **options))
    return PacingLayer(inner, pacer, observer=told)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(40) as pool:
        yield pool


# --- pacing ------------------------------------------------------------------------------


def test_thirty_two_threads_are_held_to_the_limit(threads: ThreadPoolExecutor) -> None:
    """The worker has as many threads as an upload may ever need; the limit decides."""
    told = Told()
    store = paced(MemoryStore(clock=lambda: 0), most=3, told=told)
    writes = [threads.submit(store.write, f"p/{n}", BULK) for n in range(32)]
    for write in writes:
        write.result(SOON_S)
    assert 1 <= told.most["upload"] <= 3
    assert sorted(meta.path for meta in store.list()) == sorted(f"p/{n}" for n in range(32))


def test_reads_and_control_pass_uploads_that_wait(threads: ThreadPoolExecutor) -> None:
    """A read, a commit or a delete behind a bulk upload would wait for minutes."""
    gate = Gated()
    store = paced(gate, most=2)
    uploads = [threads.submit(store.write, f"p/{n}", BULK) for n in range(6)]
    gate.wait_for(2)
    assert gate.seen == ["write"] * 2
    others: list[Future[object]] = [
        threads.submit(store.read, "x"),
        threads.submit(store.write, "log/1", BULK, if_absent=True),
        threads.submit(store.delete, ["y"]),
        threads.submit(store.stat, "x"),
    ]
    gate.wait_for(6)
    assert sorted(gate.seen[2:]) == ["create", "delete", "read", "stat"]
    gate.let_go(all_of_them=True)
    for upload in uploads:
        upload.result(SOON_S)
    for other in others:
        other.result(SOON_S)


def test_slot_is_free_again_after_every_kind_of_end(threads: ThreadPoolExecutor) -> None:
    """A slot that an error keeps is a mount that stops after some errors."""
    gate = Gated()
    gate.open = True
    store = paced(gate, most=1)
    for error in (ObjectMissing("x"), Throttled("x"), Unavailable("x"), BrokenBody("x")):
        gate.fail = error
        with pytest.raises(type(error)):
            threads.submit(store.read, "x").result(SOON_S)
    with pytest.raises(ValueError, match="path"):
        threads.submit(store.read, "../x").result(SOON_S)
    assert threads.submit(store.read, "x").result(SOON_S) == b"0123456789"


def test_throttling_is_told_with_its_class() -> None:
    gate, told = Gated(), Told()
    gate.open = True
    gate.fail = Throttled("slow", retry_after_s=3)
    with pytest.raises(Throttled):
        paced(gate, told=told).read("x")
    assert told.events == [("throttled", "demand")]


def test_share_finds_its_way_through_the_layers() -> None:
    store = RetryLayer(paced(MemoryStore(clock=lambda: 0), most=8), deadline_s=1)
    asked = share_of(store)
    assert asked is not None
    assert asked() == 1.0
    hint_to(store, 0.5)
    assert share_of(MemoryStore(clock=lambda: 0)) is None
    hint_to(MemoryStore(clock=lambda: 0), 0.5)  # nobody there who would mind


@pytest.mark.parametrize(
    ("verb", "size", "expected"),
    [
        ("read", 0, Traffic.DEMAND),
        ("write", BULK_BYTES_MIN, Traffic.UPLOAD),
        ("upload_part", BULK_BYTES_MIN, Traffic.UPLOAD),
        ("write", BULK_BYTES_MIN - 1, Traffic.CONTROL),
        ("create", 8 << 20, Traffic.CONTROL),
        ("delete", 0, Traffic.CONTROL),
    ],
)
def test_class_follows_from_the_call(verb: str, size: int, expected: Traffic) -> None:
    assert traffic_of(verb, size, Traffic.DEMAND) is expected


def test_reads_of_a_process_that_serves_nobody_are_prefetch() -> None:
    assert traffic_of("read", 0, Traffic.PREFETCH) is Traffic.PREFETCH
    assert traffic_of("stat", 0, Traffic.PREFETCH) is Traffic.CONTROL


# --- when to ask again, and when to give up ------------------------------------------------


def known(seconds: float = 0.001, *, verb: str = "read", size: int = 4) -> LatencyBook:
    """Return a book that has seen enough of small reads, and may hedge once."""
    book = LatencyBook()
    for _ in range(ANSWERS_MIN):
        book.answered(verb, size, seconds)
        book.earn_hedge()
    return book


def test_nothing_is_given_up_before_enough_is_known() -> None:
    book = LatencyBook()
    for _ in range(ANSWERS_MIN - 1):
        book.answered("read", 4, 0.1)
    assert book.cut_after_s("read", 4, "x") is None
    assert book.hedge_after_s("read", 4) is None


def test_time_to_give_up_follows_the_store() -> None:
    """Twice as long after each time in vain, and anew with an answer in time."""
    book = known(1.0)
    assert book.cut_after_s("read", 4, "x") == pytest.approx(8.0)
    book.cut("read", 4, "x")
    book.cut("read", 4, "x")
    assert book.cut_after_s("read", 4, "x") == pytest.approx(32.0)
    assert book.cut_after_s("read", 4, "y") == pytest.approx(32.0)
    book.in_time("read", 4, "x")
    assert book.cut_after_s("read", 4, "x") == pytest.approx(8.0)
    assert known(0.001).cut_after_s("read", 4, "x") == CUT_S_MIN


def test_object_that_is_slow_by_itself_is_had_in_the_end() -> None:
    """Others are answered at once all the time; this one must not be given up for ever."""
    book = known(0.001)
    for doublings in (1, 2, 3):
        book.cut("read", 4, "x")
        book.in_time("read", 4, "y")
        book.answered("read", 4, 0.001)
        assert book.cut_after_s("read", 4, "x") == CUT_S_MIN * 2**doublings
        assert book.cut_after_s("read", 4, "y") == CUT_S_MIN


def test_sizes_and_verbs_are_kept_apart() -> None:
    book = known(1.0)
    assert book.cut_after_s("read", 1 << 20, "x") is None
    assert book.cut_after_s("write", 4, "x") is None


def test_hedges_are_three_in_a_hundred() -> None:
    book = LatencyBook()
    taken = 0
    for _ in range(10_000):
        book.earn_hedge()
        taken += book.take_hedge()
    assert 290 <= taken <= 300


def test_throttling_forbids_what_was_saved_for_hedges() -> None:
    book = LatencyBook()
    for _ in range(200):
        book.earn_hedge()
    book.forbid_hedges()
    assert not book.take_hedge()


def test_writes_and_large_reads_are_never_hedged() -> None:
    book = known(1.0, size=8 << 20)
    assert book.hedge_after_s("read", 8 << 20) is None
    assert known(1.0, verb="write").hedge_after_s("write", 4) is None


# --- hedging -----------------------------------------------------------------------------


class Stalling(_Layer):
    """The first of its calls hangs until the test ends, the others are answered."""

    def __init__(self, *, stalls: int = 1) -> None:
        super().__init__(MemoryStore(clock=lambda: 0))
        self.inner.write("x", b"0123")
        self.ended = threading.Event()
        self.stalls = stalls
        self.verbs: list[str] = []

    def _call(self, verb: str, call: Callable[[], T], bytes_sent: int = 0) -> T:
        self.verbs.append(verb)
        if len(self.verbs) <= self.stalls:
            self.ended.wait(SOON_S)
        return call()


@pytest.fixture
def stalling() -> Iterator[Stalling]:
    store = Stalling()
    yield store
    store.ended.set()


def test_slow_small_read_is_asked_for_twice_and_the_first_answer_wins(stalling: Stalling) -> None:
    told = Told()
    seen: list[str] = []

    class Meter:
        def request(self, verb: str, outcome: str, *_: object) -> None:
            seen.append(f"{verb} {outcome}")

    layer = HedgeLayer(
        MeterLayer(stalling, Meter()), threads_max=4, observer=told, book=_saved(known())
    )
    assert layer.read("x", offset=0, length=4) == b"0123"
    assert stalling.verbs == ["read", "read"]
    assert told.events == [("hedged", True)]
    assert seen == ["read ok"]  # the one that hangs is counted when it ends


def _saved(book: LatencyBook) -> LatencyBook:
    for _ in range(100):
        book.earn_hedge()
    return book


@pytest.mark.parametrize("verb", ["write", "read"])
def test_stalled_request_is_given_up_and_repeated(
    stalling: Stalling, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without hedges: the retry layer asks again long before the socket's time-out."""
    monkeypatch.setattr("s3fs_banyan.remote.latency.CUT_S_MIN", 0.05)
    told = Told()
    store = RetryLayer(
        HedgeLayer(stalling, threads_max=4, observer=told, book=known(verb=verb)),
        deadline_s=SOON_S,
        observer=told,
    )
    if verb == "read":
        assert store.read("x", offset=0, length=4) == b"0123"
    else:
        store.write("x", b"4567")
        assert stalling.inner.read("x") == b"4567"
    assert stalling.verbs == [verb, verb]
    assert told.events == [("cut", verb), ("retried", "unavailable")]


def test_create_is_neither_given_up_nor_asked_twice(stalling: Stalling) -> None:
    """Nobody could tell its second answer from another writer's."""
    book = _saved(known(verb="create"))
    layer = HedgeLayer(stalling, threads_max=4, book=book)
    threading.Timer(0.2, stalling.ended.set).start()
    layer.write("new", b"0123", if_absent=True)
    assert stalling.verbs == ["create"]


def test_read_of_unknown_length_is_waited_for(stalling: Stalling) -> None:
    """Nobody can tell a large object from a stalled one."""
    layer = HedgeLayer(stalling, threads_max=4, book=_saved(known()))
    threading.Timer(0.2, stalling.ended.set).start()
    assert layer.read("x") == b"0123"
    assert stalling.verbs == ["read"]


def test_without_a_spare_thread_the_caller_s_own_is_used() -> None:
    store = Stalling(stalls=0)
    layer = HedgeLayer(store, threads_max=0, book=_saved(known()))
    assert layer.read("x", offset=0, length=4) == b"0123"


@pytest.mark.parametrize("error", [ObjectMissing("x"), Misconfigured("x"), Throttled("x")])
def test_error_of_a_spare_thread_is_the_caller_s(error: StoreError) -> None:
    gate = Gated()
    gate.open = True
    gate.fail = error
    layer = HedgeLayer(gate, threads_max=4, book=_saved(known(1.0)))
    with pytest.raises(type(error)):
        layer.read("x", offset=0, length=4)


def test_thread_that_cannot_be_started_costs_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit of a unit's tasks the caller's own thread is left, and later the spare ones."""

    def refused(run: Callable[[], None]) -> None:
        raise RuntimeError("can't start new thread")

    store = MemoryStore(clock=lambda: 0)
    store.write("x", b"0123")
    layer = HedgeLayer(store, threads_max=2, book=known())
    with monkeypatch.context() as patch:
        patch.setattr(hedging, "start_spare_thread", refused)
        for _ in range(3):
            assert layer.read("x", offset=0, length=4) == b"0123"
    assert layer._threads == 0


def test_second_request_that_cannot_be_started_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first one's error would else not count as long as another is thought to be under way."""
    started = 0

    class Refusing(Stalling):
        def _call(self, verb: str, call: Callable[[], T], bytes_sent: int = 0) -> T:
            super()._call(verb, call, bytes_sent)
            raise Throttled("slow")

    def first_only(run: Callable[[], None]) -> None:
        nonlocal started
        started += 1
        if started > 1:
            store.ended.set()
            raise RuntimeError("can't start new thread")
        start_spare_thread(run)

    monkeypatch.setattr(hedging, "start_spare_thread", first_only)
    store = Refusing()
    layer = HedgeLayer(store, threads_max=4, book=_saved(known()))
    with pytest.raises(Throttled):
        layer.read("x", offset=0, length=4)
    assert started == 2


def test_lasting_error_does_not_wait_for_the_other_request(stalling: Stalling) -> None:
    """The first request hangs for good; the second says that there is no such object."""
    layer = HedgeLayer(stalling, threads_max=4, book=_saved(known()))
    with pytest.raises(ObjectMissing):
        layer.read("absent", offset=0, length=4)
    assert stalling.verbs == ["read", "read"]
    assert not stalling.ended.is_set()


# --- bodies that break ---------------------------------------------------------------------


class Tearing(_Layer):
    """Breaks each read after some bytes, and goes on from there when asked."""

    def __init__(self, *, steps: int) -> None:
        super().__init__(MemoryStore(clock=lambda: 0))
        self.inner.write("x", b"0123456789")
        self.steps = steps
        self.sent = 0

    def _call(self, verb: str, call: Callable[[], T], bytes_sent: int = 0) -> T:
        return call()

    def read(self, path: str, *, offset: int = 0, length: int | None = None) -> bytes:
        return self._torn(path, offset, length, b"")

    def read_rest(self, broken: BrokenBody) -> bytes:
        assert broken.etag == "e"
        return self._torn(broken.path, broken.offset, broken.length, broken.received)

    def _torn(self, path: str, offset: int, length: int | None, received: bytes) -> bytes:
        whole = bytes(self.inner.read(path, offset=offset, length=length))
        got = whole[: len(received) + self.steps]
        assert got.startswith(received)
        self.sent += len(got) - len(received)
        if got == whole:
            return whole
        raise BrokenBody("torn", path=path, offset=offset, length=length, received=got, etag="e")


def test_broken_body_is_resumed_through_all_layers() -> None:
    """Each byte is sent once, however often the line breaks."""
    torn, told = Tearing(steps=3), Told()
    layers = paced(HedgeLayer(torn, threads_max=4), told=told)
    store = RetryLayer(layers, deadline_s=SOON_S, observer=told, jitter=lambda: 0.0)
    assert store.read("x", offset=1, length=8) == b"12345678"
    assert torn.sent == 8
    assert [event for event in told.events if event[0] == "resumed"] == [
        ("resumed", 3),
        ("resumed", 6),
    ]
    assert ("retried", "broken") in told.events


def test_body_that_never_moves_on_ends_at_the_deadline() -> None:
    store = RetryLayer(Tearing(steps=0), deadline_s=0.3)
    with pytest.raises(BrokenBody):
        store.read("x")
