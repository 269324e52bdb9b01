"""The retry and meter layers, with a scripted store, a fake clock and no jitter."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from s3fs_banyan import errors
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
from s3fs_banyan.remote.base import FileMeta, RemoteFileSystem
from s3fs_banyan.remote.layers import (
    OUTCOMES,
    RETRY_CAP_S,
    MeterLayer,
    RetryLayer,
    T,
    _Layer,
    single_attempts,
)
from s3fs_banyan.remote.memory import MemoryStore
from s3fs_banyan.remote.open import paced
from s3fs_banyan.remote.options import StoreOptions
from s3fs_banyan.remote.retry_table import REASONS, RULES, render

VERBS: dict[str, Callable[[_Layer], object]] = {
    "list": lambda store: list(store.list()),
    "read": lambda store: store.read("x"),
    "write": lambda store: store.write("x", b"0123"),
    "create": lambda store: store.write("new", b"0123", if_absent=True),
    "delete": lambda store: store.delete(["x"]),
    "stat": lambda store: store.stat("x"),
    "begin_upload": lambda store: store.begin_upload("x"),
    "upload_part": lambda store: store.upload_part("x", "upload-1", 1, b"0123"),
    "list_parts": lambda store: store.list_parts("x", "upload-1"),
    "complete_upload": lambda store: store.complete_upload("x", "upload-1", {}),
    "abort_upload": lambda store: store.abort_upload("x", "upload-1"),
    "list_uploads": lambda store: list(store.list_uploads()),
}
ONCE_ONLY = {"create", "begin_upload", "complete_upload"}


class Scripted(_Layer):
    """A store in memory that raises the scripted errors, one a call, before it does anything."""

    def __init__(self, *script: StoreError) -> None:
        super().__init__(MemoryStore(clock=lambda: 0))
        self.write("x", b"0123456789")
        self.begin_upload("x")
        self.script = list(script)
        self.calls: list[str] = []

    def _call(self, verb: str, call: Callable[[], T], bytes_sent: int = 0) -> T:
        if hasattr(self, "calls"):
            self.calls.append(verb)
            if self.script:
                raise self.script.pop(0)
        return call()

    def _iterate(self, verb: str, after: Callable[[T | None], Iterator[T]]) -> Iterator[T]:
        self._call(verb, lambda: None)
        yield from after(None)


@dataclass
class World:
    """A clock that only sleeping moves."""

    now_s: float = 1000.0
    slept: list[float] = field(default_factory=list)
    jitter: float = 1.0

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds

    def retry(self, inner: RemoteFileSystem, deadline_s: float = 100.0) -> RetryLayer:
        return RetryLayer(
            inner,
            deadline_s=deadline_s,
            sleep=self.sleep,
            clock=lambda: self.now_s,
            jitter=lambda: self.jitter,
        )


def lost() -> Unavailable:
    return Unavailable("lost")


# --- retry -----------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", sorted(VERBS.keys() - ONCE_ONLY))
@pytest.mark.parametrize("error", [lost(), Throttled("slow"), TransferCorrupt("bits")])
def test_call_that_may_be_repeated_is(verb: str, error: StoreError) -> None:
    store = Scripted(error, error)
    world = World()
    VERBS[verb](world.retry(store))
    assert store.calls == [verb] * 3
    assert world.slept == [0.1, 0.2]


@pytest.mark.parametrize("verb", sorted(ONCE_ONLY))
@pytest.mark.parametrize("error", [lost(), TransferCorrupt("bits")])
def test_call_whose_answer_was_lost_is_not_repeated(verb: str, error: StoreError) -> None:
    """A repeated create would find its own object and call itself the loser."""
    store = Scripted(error)
    world = World()
    with pytest.raises(type(error)):
        VERBS[verb](world.retry(store))
    assert store.calls == [verb]
    assert world.slept == []


def test_create_is_repeated_after_throttling_only() -> None:
    """Throttling is said before any effect; what comes after it is judged anew."""
    store = Scripted(Throttled("slow"), Throttled("slow"))
    World().retry(store).write("new", b"", if_absent=True)
    assert store.calls == ["create"] * 3
    store = Scripted(Throttled("slow"), lost())
    with pytest.raises(Unavailable):
        World().retry(store).write("new", b"", if_absent=True)
    assert store.calls == ["create"] * 2


@pytest.mark.parametrize("verb", sorted(VERBS))
@pytest.mark.parametrize(
    "error", [ObjectMissing("x"), AlreadyExists("x"), Denied("x"), Misconfigured("x")]
)
def test_answer_is_passed_on_at_once(verb: str, error: StoreError) -> None:
    store = Scripted(error)
    world = World()
    with pytest.raises(type(error)):
        VERBS[verb](world.retry(store))
    assert (store.calls, world.slept) == ([verb], [])


def test_a_call_that_is_tried_again_and_again_is_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        World().retry(Scripted(lost())).read("x")
        assert caplog.messages == []
        World().retry(Scripted(*[lost()] * 3)).read("x")
    assert caplog.messages == [
        "read is tried again in 0.2 s: lost",
        "read is tried again in 0.4 s: lost",
    ]


def test_waits_double_up_to_the_cap() -> None:
    world = World()
    world.retry(Scripted(*[lost() for _ in range(9)])).read("x")
    assert world.slept == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10])
    assert max(world.slept) == RETRY_CAP_S


def test_jitter_takes_the_whole_range() -> None:
    """Clients that lost the same server must not come back in step."""
    for jitter in (0.0, 0.5):
        world = World(jitter=jitter)
        world.retry(Scripted(lost(), lost())).read("x")
        assert world.slept == pytest.approx([0.1 * jitter, 0.2 * jitter])


def test_wait_that_the_store_asks_for_is_kept() -> None:
    world = World()
    error = Throttled("slow", retry_after_s=20)
    world.retry(Scripted(error, error)).read("x")
    assert world.slept == pytest.approx([20.1, 20.2])


def test_deadline_ends_it_with_the_last_error() -> None:
    world = World()
    store = Scripted(*[Unavailable(str(number)) for number in range(1000)])
    with pytest.raises(Unavailable, match=r"^7$"):
        world.retry(store, deadline_s=15).read("x")
    assert sum(world.slept) < 15


def test_a_shorter_deadline_holds_while_it_is_set_and_the_store_is_known_to_be_away() -> None:
    world = World()
    store = Scripted(*[lost()] * 100)
    retrying = world.retry(store, deadline_s=100)
    with pytest.raises(Unavailable), retrying.within(3):
        retrying.read("x")
    assert sum(world.slept) < 3
    tried = len(store.calls)
    with pytest.raises(Unavailable):
        retrying.read("x")
    assert len(store.calls) == tried + 1, "nobody waits twice for a store that is away"


def test_a_longer_deadline_than_the_usual_one_changes_nothing() -> None:
    world = World()
    retrying = world.retry(Scripted(*[lost()] * 100), deadline_s=2)
    with pytest.raises(Unavailable), retrying.within(50):
        retrying.read("x")
    assert sum(world.slept) < 2


def test_wait_that_would_pass_the_deadline_is_not_begun() -> None:
    world = World()
    with pytest.raises(Throttled):
        world.retry(Scripted(Throttled("slow", retry_after_s=15)), deadline_s=15).read("x")
    assert world.slept == []


def test_time_in_the_store_counts_towards_the_deadline() -> None:
    world = World()

    class Slow(Scripted):
        def _call(self, verb: str, call: Callable[[], T], bytes_sent: int = 0) -> T:
            world.now_s += 10
            return super()._call(verb, call, bytes_sent)

    store = Slow(*[lost() for _ in range(1000)])
    with pytest.raises(Unavailable):
        world.retry(store, deadline_s=25).read("x")
    assert len(store.calls) == 3


class BreakingList(MemoryStore):
    """Gives `step` objects and breaks, each time it is asked."""

    def __init__(self, step: int) -> None:
        super().__init__(clock=lambda: 0)
        self.step = step
        self.started_after: list[str] = []

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[FileMeta]:
        self.started_after.append(start_after)
        for index, meta in enumerate(super().list(prefix, start_after=start_after)):
            if index == self.step:
                raise Unavailable("lost")
            yield meta


def test_listing_goes_on_behind_the_last_path_given() -> None:
    """Begun again it would give objects twice; the reader of a log counts on each once."""
    store = BreakingList(3)
    paths = [f"log/{number:02}" for number in range(10)]
    for path in paths:
        store.write(path, b"")
    world = World()
    listed = world.retry(store, deadline_s=0.15).list("log/", start_after="log/00")
    assert [meta.path for meta in listed] == paths[1:]
    assert store.started_after == ["log/00", "log/03", "log/06"]
    assert world.slept == pytest.approx([0.1, 0.1])  # an object given is a fresh start


def test_listing_that_makes_no_progress_ends_at_the_deadline() -> None:
    store = BreakingList(0)
    store.write("x", b"")
    with pytest.raises(Unavailable):
        list(World().retry(store, deadline_s=5).list())


def test_bytes_that_keep_changing_are_not_asked_for_for_ever() -> None:
    """Five times corrupt is a broken machine on the way, and a retry only makes it busy."""
    store = Scripted(*[TransferCorrupt("bits") for _ in range(100)])
    with pytest.raises(TransferCorrupt):
        World().retry(store).read("x")
    assert len(store.calls) == RULES[TransferCorrupt].attempts_max == 5


class Resuming(Scripted):
    """Its script is also of what comes of a body that broke."""

    def read_rest(self, broken: BrokenBody) -> Bytes:
        return self._call("read_rest", lambda: self.inner.read(broken.path))


def broke(count: int) -> BrokenBody:
    """Return the error of a body that broke after so many bytes."""
    return BrokenBody("broke", path="x", received=b"0" * count, etag="e")


def test_a_body_put_together_wrongly_is_read_from_the_start() -> None:
    """What was kept may be what is wrong; what breaks after that is resumed as usual."""
    store = Resuming(broke(4), TransferCorrupt("bits"), broke(2))
    assert World().retry(store).read("x") == b"0123456789"
    assert store.calls == ["read", "read_rest", "read", "read_rest"]


def test_bodies_that_break_and_are_wrong_in_turn_are_not_read_for_ever() -> None:
    """That some of it came is progress of a line, and none of a machine that changes bits."""
    store = Resuming(*[broke(4), TransferCorrupt("bits")] * 100)
    with pytest.raises(TransferCorrupt):
        World().retry(store).read("x")
    assert store.calls == ["read", "read_rest"] * 5


def test_table_of_retries_is_the_document_s() -> None:
    """What an operator reads is what the code does."""
    document = Path(__file__).parents[2] / "docs" / "store.md"
    text = document.read_text(encoding="utf-8")
    for row in render():
        assert row in text.splitlines(), row
    table = text.partition("a random share of |")[2].partition("\n\n")[0]
    assert len(table.splitlines()) == 2 + len(RULES)
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, StoreError) and kind is not StoreError:
            assert kind.retryable == (kind in RULES), kind
    assert set(REASONS) == set(RULES)


# --- meter -----------------------------------------------------------------------------------


@dataclass
class Seen:
    """A `RequestObserver` that remembers."""

    requests: list[tuple[str, str, float, int, int]] = field(default_factory=list)

    def request(
        self, verb: str, outcome: str, seconds: float, bytes_sent: int, bytes_received: int
    ) -> None:
        self.requests.append((verb, outcome, seconds, bytes_sent, bytes_received))


class Ticking:
    """A clock that goes on by a second each time it is read."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1
        return self.now_s


def test_each_request_is_told_with_its_bytes() -> None:
    seen = Seen()
    store = MeterLayer(Scripted(), seen, clock=Ticking())
    store.read("x", offset=4)
    store.write("y", memoryview(b"012"))
    store.write("z", b"01", if_absent=True)
    store.upload_part("x", "upload-1", 1, b"01234")
    assert [meta.path for meta in store.list()] == ["x", "y", "z"]
    store.delete(["y"])
    assert seen.requests == [
        ("read", "ok", 1, 0, 6),
        ("write", "ok", 1, 3, 0),
        ("create", "ok", 1, 2, 0),
        ("upload_part", "ok", 1, 5, 0),
        ("list", "ok", 4, 0, 0),
        ("delete", "ok", 1, 0, 0),
    ]


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_each_error_is_told_with_its_reason(verb: str) -> None:
    for kind, outcome in OUTCOMES.items():
        seen = Seen()
        with pytest.raises(kind):
            VERBS[verb](MeterLayer(Scripted(kind("x")), seen, clock=Ticking()))
        assert [(request[0], request[1]) for request in seen.requests] == [(verb, outcome)]


def test_each_attempt_below_a_retry_is_told() -> None:
    seen = Seen()
    World().retry(MeterLayer(Scripted(lost(), Throttled("slow")), seen)).read("x")
    assert [request[1] for request in seen.requests] == ["unavailable", "throttled", "ok"]


def test_a_single_attempt_is_told_and_not_repeated() -> None:
    """Whatever layers there are: retry, pacing and hedging are left out, the meter is not."""
    options = StoreOptions()
    for meter in (True, False):
        seen = Seen()
        bare = Scripted(Throttled("slow"))
        metered = MeterLayer(bare, seen) if meter else bare
        store = single_attempts(World().retry(paced(metered, options)))
        with pytest.raises(Throttled):
            store.stat("x")
        assert [request[1] for request in seen.requests] == ["throttled"] * meter
        assert bare.calls == ["stat"]


def test_time_of_a_listing_is_the_store_s_and_not_its_reader_s() -> None:
    seen = Seen()
    clock = Ticking()
    for _ in MeterLayer(Scripted(), seen, clock=clock).list():
        clock.now_s += 1000
    [(_, _, seconds, _, _)] = seen.requests
    assert seconds == 2


def test_listing_that_its_reader_leaves_is_told_once() -> None:
    seen = Seen()
    listing = MeterLayer(Scripted(), seen, clock=Ticking()).list()
    next(listing)
    listing.close()  # type: ignore[attr-defined]
    assert [(request[0], request[1]) for request in seen.requests] == [("list", "ok")]


def test_every_store_error_has_an_outcome() -> None:
    kinds = {
        thing
        for thing in vars(errors).values()
        if isinstance(thing, type) and issubclass(thing, StoreError) and thing is not StoreError
    }
    assert kinds == set(OUTCOMES)
    assert len(set(OUTCOMES.values())) == len(OUTCOMES)


def test_a_store_found_away_is_asked_once_until_it_answers() -> None:
    """A mount during an outage would else wait out one deadline for each call it makes."""
    away = [Unavailable("gone") for _ in range(40)]
    inner, world = Scripted(*away), World()
    store = world.retry(inner, deadline_s=30.0)
    with pytest.raises(Unavailable):
        store.read("x")
    first = len(inner.calls)
    assert first > 1
    for _ in range(3):
        with pytest.raises(Unavailable):
            store.read("x")
        with pytest.raises(Unavailable):
            list(store.list())
    assert len(inner.calls) == first + 6
    inner.script = []
    assert store.read("x") == b"0123456789"
    inner.script = [Unavailable("a moment")]
    assert store.read("x") == b"0123456789"


@pytest.mark.parametrize(
    "answer",
    [
        AlreadyExists("x"),
        Denied("x"),
        Misconfigured("x"),
        ObjectMissing("x"),
        Throttled("slow"),
        TransferCorrupt("bits"),
        broke(4),
    ],
    ids=lambda answer: type(answer).__name__,
)
def test_any_answer_of_a_store_found_away_ends_its_absence(answer: StoreError) -> None:
    """A refusal is an answer, too: else one lost request is an error as long as none succeeds."""
    inner = Resuming(*[lost()] * 40)
    store = World().retry(inner, deadline_s=5)
    with pytest.raises(Unavailable):
        store.read("x")
    inner.script = [answer]
    with contextlib.suppress(StoreError):
        store.read("x")
    inner.script = [lost()]
    assert store.read("x") == b"0123456789"


@pytest.mark.parametrize("answer", [Throttled("slow"), TransferCorrupt("bits"), broke(4)])
def test_answer_that_ends_an_absence_is_itself_tried_again(answer: StoreError) -> None:
    """A body that breaks each time would else never be resumed, and the store stay away."""
    inner = Resuming(*[lost()] * 40)
    store = World().retry(inner, deadline_s=5)
    with pytest.raises(Unavailable):
        store.read("x")
    inner.script = [answer]
    assert store.read("x") == b"0123456789"
