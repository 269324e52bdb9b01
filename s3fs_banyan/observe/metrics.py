"""Values of the metrics, made to cost little where they are counted.

prometheus_client's own objects take a lock for each increment and look labels up by call. Here a
series is a plain object that its user binds once; a collector turns the numbers into
prometheus_client's families only when somebody scrapes. In short::

    write = metrics.fuse_request("write")     # once
    write.ok(seconds)                         # per request: two list items and a bisect

Threads: a series belongs to one thread, in practice the event loop. What several threads count
goes through `StoreObserver`, which takes a lock, or is read from its owner by `track`. A scrape
reads while others count, so the parts of one histogram may be one event apart.

Another process (the worker) counts into its own `Metrics` and hands `take_report()` over, which
the daemon adds with `add_report()`: what its counters and histograms have gained, and its pacing
gauges, which carry the name of the process.
"""

from __future__ import annotations

import threading  # noqa: TID251 - one lock, held for additions only; nothing is started here
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, product
from typing import Any, Final, NamedTuple

from prometheus_client import (
    CollectorRegistry,
    ProcessCollector,
    generate_latest,
    start_http_server,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.utils import floatToGoString

from s3fs_banyan.errors import ConfigError
from s3fs_banyan.observe.cost import StoreRequests
from s3fs_banyan.observe.table import (
    CACHE_TIERS,
    COMMIT_STEPS,
    CORRUPTION_KINDS,
    COST_KINDS,
    DURABILITIES,
    FUSE_OPERATIONS,
    METRICS,
    READ_TIERS,
    SEGMENT_STATES,
    STORAGE_CLASSES,
    MetricSpec,
)

BUCKETS_S: Final = tuple(
    float(f"{digit}e{power}") for power in range(-5, 2) for digit in (1, 2, 5)
)[:-1]
"""Upper bounds of all histograms: 1, 2, 5, ... from 10 microseconds to 20 seconds."""

OK: Final = "ok"
PACING_GAUGES: Final = ("store_concurrency_limit", "store_in_flight", "store_queued")
UNANSWERED: Final = "unavailable"
"""The outcome of a request to the store that has not answered."""


class Counter:
    """A number that only grows, or that is read from its owner (`track`)."""

    __slots__ = ("source", "value")

    def __init__(self) -> None:
        self.value: float = 0
        self.source: Callable[[], float] | None = None

    def add(self, amount: float = 1) -> None:
        """Count; a hot path may say `counter.value += amount` itself."""
        self.value += amount

    def track(self, source: Callable[[], float]) -> None:
        """Read the number from `source` at each scrape, in the scraping thread."""
        self.source = source

    def read(self) -> float:
        """Return the number as of now."""
        return self.value if self.source is None else self.source()


class Gauge(Counter):
    """A number that goes up and down."""

    __slots__ = ()

    def set(self, value: float) -> None:
        """Replace the number."""
        self.value = value


class Histogram:
    """How many durations fell below each bound, and their sum."""

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.total_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.total_s += seconds

    @property
    def count(self) -> int:
        """How many durations were observed."""
        return sum(self.counts)

    def quantile_s(self, q: float) -> float | None:
        """Estimate a quantile as Prometheus does, linear within a bucket; None if empty.

        What lies above the last bound is reported as that bound.
        """
        counts = list(self.counts)
        rank = q * sum(counts)
        if rank == 0:
            return None
        below = 0
        lower = 0.0
        for bound, count in zip(BUCKETS_S, counts, strict=False):
            if count and below + count >= rank:
                return lower + (bound - lower) * (rank - below) / count
            below += count
            lower = bound
        return BUCKETS_S[-1]


Series = Counter | Histogram
Labels = tuple[str, ...]

_MADE: Final[Mapping[str, Callable[[], Series]]] = {
    "counter": Counter,
    "gauge": Gauge,
    "histogram": Histogram,
}


class Change(NamedTuple):
    """What one series has gained: plain values that may cross a process border."""

    name: str
    labels: Labels
    total: float
    counts: tuple[int, ...]
    """Per bucket; empty for a counter."""


class _Family:
    """All series of one row of the table."""

    def __init__(self, spec: MetricSpec) -> None:
        self.spec = spec
        self.series: dict[Labels, Series] = {}
        for labels in product(*spec.labels.values()):
            self.bind(labels)

    def bind(self, labels: Labels) -> Series:
        """Return the series with these label values, made at the first call."""
        if len(labels) != len(self.spec.labels):
            raise ValueError(f"{self.spec.name} takes the labels {list(self.spec.labels)}")
        found = self.series.get(labels)
        if found is None:
            found = self.series.setdefault(labels, _MADE[self.spec.kind]())
        return found

    def values(self) -> dict[Labels, float]:
        """Return the numbers of a family of counters, by label values."""
        found = list(self.series.items())
        return {labels: one.read() for labels, one in found if isinstance(one, Counter)}

    def collect(self) -> Metric:
        """Return the family in prometheus_client's form."""
        family = _without_series(self.spec)
        for labels, one in sorted(self.series.items()):
            if isinstance(one, Histogram) and isinstance(family, HistogramMetricFamily):
                family.add_metric(labels, _cumulated(one), sum_value=one.total_s)
            elif isinstance(one, Counter) and not isinstance(family, HistogramMetricFamily):
                family.add_metric(labels, one.read())
        return family


def _without_series(
    spec: MetricSpec,
) -> HistogramMetricFamily | CounterMetricFamily | GaugeMetricFamily:
    labels = list(spec.labels)
    if spec.kind == "histogram":
        return HistogramMetricFamily(spec.full_name, spec.help, labels=labels)
    made = CounterMetricFamily if spec.kind == "counter" else GaugeMetricFamily
    return made(spec.full_name, spec.help, labels=labels)


def _cumulated(histogram: Histogram) -> list[tuple[str, float]]:
    """Return (upper bound, events up to it), the form in which Prometheus wants buckets."""
    bounds = [*map(floatToGoString, BUCKETS_S), "+Inf"]
    return list(zip(bounds, map(float, accumulate(histogram.counts)), strict=True))


class FuseRequest:
    """The bound series of one kind of request; for the event loop only."""

    __slots__ = ("_failures", "_family", "_latency", "_ok", "operation")

    def __init__(self, operation: str, requests: _Family, latency: Histogram) -> None:
        self.operation = operation
        self._family = requests
        self._latency = latency
        self._ok = _counter(requests, operation, OK)
        self._failures: dict[str, Counter] = {}

    def ok(self, seconds: float) -> None:
        """Count a request that was answered as asked."""
        self._ok.value += 1
        latency = self._latency
        latency.counts[bisect_left(BUCKETS_S, seconds)] += 1
        latency.total_s += seconds

    def failed(self, outcome: str, seconds: float) -> None:
        """Count a request that was answered with an error, such as `ENOENT`."""
        counter = self._failures.get(outcome)
        if counter is None:
            counter = self._failures[outcome] = _counter(self._family, self.operation, outcome)
        counter.value += 1
        self._latency.observe(seconds)


class StoreObserver:
    """Counts requests to the store; may be called by several threads at once."""

    def __init__(self, families: Mapping[str, _Family], lock: threading.Lock, process: str) -> None:
        self._families = families
        self._lock = lock
        self._process = process
        self._reachable = _gauge(families["store_reachable"])

    def request(
        self, verb: str, outcome: str, seconds: float, bytes_sent: int, bytes_received: int
    ) -> None:
        """Count one attempt; `outcome` is `ok` or the kind of error.

        A store that refuses has answered; only `unavailable` means that it has not.
        """
        of = self._families
        with self._lock:
            _counter(of["store_requests_total"], verb, outcome).value += 1
            _counter(of["store_sent_bytes_total"], verb).value += bytes_sent
            _counter(of["store_received_bytes_total"], verb).value += bytes_received
            _histogram(of["store_request_seconds"], verb).observe(seconds)
            self._reachable.set(0 if outcome == UNANSWERED else 1)

    def verified(self, how: str, *, good: bool) -> None:
        """Count one upload that was verified, by `how`."""
        self._add("store_verifications_total", 1, how, "good" if good else "wrong")

    def retried(self, reason: str) -> None:
        """Count an attempt that follows one which failed for `reason`."""
        self._add("store_retries_total", 1, reason)

    def resumed(self, bytes_kept: int) -> None:
        """Count a broken body that is asked for from where it broke."""
        self._add("store_resumed_reads_total", 1)
        self._add("store_resumed_bytes_total", bytes_kept)

    def hedged(self, *, won: bool) -> None:
        """Count a second request for a slow read."""
        self._add("store_hedges_total", 1, "won" if won else "lost")

    def cut(self, verb: str) -> None:
        """Count a request that was given up."""
        self._add("store_cut_requests_total", 1, verb)

    def throttled(self, traffic: str) -> None:
        """Count a request that the store refused because there were too many."""
        self._add("store_throttled_total", 1, traffic)

    def waited(self, traffic: str, seconds: float) -> None:
        """Note how long a request waited for its slot."""
        with self._lock:
            _histogram(self._families["store_queue_seconds"], traffic).observe(seconds)

    def paced(self, traffic: str, limit: int, in_flight: int, queued: int) -> None:
        """Set what a class may have, has, and would like to have in flight."""
        numbers = zip(PACING_GAUGES, (limit, in_flight, queued), strict=True)
        for name, number in numbers:
            _gauge(self._families[name], traffic, self._process).set(number)

    def _add(self, name: str, amount: float, *labels: str) -> None:
        with self._lock:
            _counter(self._families[name], *labels).value += amount


def _counter(family: _Family, *labels: str) -> Counter:
    found = family.bind(labels)
    if not isinstance(found, Counter):
        raise TypeError(f"{family.spec.name} is a {family.spec.kind}")
    return found


def _gauge(family: _Family, *labels: str) -> Gauge:
    found = family.bind(labels)
    if not isinstance(found, Gauge):
        raise TypeError(f"{family.spec.name} is a {family.spec.kind}")
    return found


def _histogram(family: _Family, *labels: str) -> Histogram:
    found = family.bind(labels)
    if not isinstance(found, Histogram):
        raise TypeError(f"{family.spec.name} is a {family.spec.kind}")
    return found


class Metrics:
    """All metrics of one process, in a registry of their own.

    Attributes are bound series (`metrics.fenced.set(1)`), or mappings from the value of the only
    label to a series (`metrics.commit_step_seconds["upload"].observe(s)`).
    """

    def __init__(self, *, version: str = "", process: str = "mount") -> None:
        """`process` is what the pacing gauges call this process."""
        self._families = {spec.name: _Family(spec) for spec in METRICS}
        self._process = process
        self._taken: dict[tuple[str, Labels], Change] = {}
        self._requests: dict[str, FuseRequest] = {}
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        of = self._families
        _gauge(of["build_info"], version).set(1)
        self._lock = threading.Lock()
        self.store = StoreObserver(of, self._lock, process)

        self.fsync_seconds = {d: _histogram(of["fsync_seconds"], d) for d in DURABILITIES}
        self.handler_errors = _counter(of["handler_errors_total"])
        self.processors_awake_seconds = _counter(of["processors_awake_seconds_total"])

        self.journal_appended_bytes = _counter(of["journal_appended_bytes_total"])
        self.journal_records = _counter(of["journal_records_total"])
        self.journal_syncs = _counter(of["journal_syncs_total"])
        self.journal_sync_failures = _counter(of["journal_sync_failures_total"])
        self.journal_sync_seconds = _histogram(of["journal_sync_seconds"])
        self.journal_segments = {s: _gauge(of["journal_segments"], s) for s in SEGMENT_STATES}
        self.journal_backlog_bytes = _gauge(of["journal_backlog_bytes"])
        self.journal_backlog_limit_bytes = _gauge(of["journal_backlog_limit_bytes"])
        self.operations_applied = _counter(of["operations_applied_total"])
        self.live_dirty_rows = _gauge(of["live_dirty_rows"])

        self.commits_published = _counter(of["commits_published_total"])
        self.commit_bytes = _counter(of["commit_bytes_total"])
        self.commit_inline_bytes = _counter(of["commit_inline_bytes_total"])
        self.commit_pack_bytes = _counter(of["commit_pack_bytes_total"])
        self.upload_parts_resumed = _counter(of["upload_parts_resumed_total"])
        self.packs_reused = _counter(of["packs_reused_total"])
        self.commit_step_seconds = {
            step: _histogram(of["commit_step_seconds"], step) for step in COMMIT_STEPS
        }
        self.commit_failures = {
            step: _counter(of["commit_failures_total"], step) for step in COMMIT_STEPS
        }
        self.local_cuts = _counter(of["local_cuts_total"])
        self.base_packs_bytes = _gauge(of["base_packs_bytes"])
        self.recovery_lag_bytes = _gauge(of["recovery_lag_bytes"])
        self.recovery_lag_seconds = _gauge(of["recovery_lag_seconds"])

        self.store_requests = StoreRequests(
            of["store_requests_total"].values,
            of["store_sent_bytes_total"].values,
            of["store_received_bytes_total"].values,
        )
        for kind in COST_KINDS:
            _counter(of["store_request_cost_total"], kind).track(self.store_requests.cost_of(kind))
        self.class_bytes = {c: _gauge(of["store_class_bytes"], c) for c in STORAGE_CLASSES}
        self.class_objects = {c: _gauge(of["store_class_objects"], c) for c in STORAGE_CLASSES}
        self.class_cost = {c: _gauge(of["store_class_cost_per_month"], c) for c in STORAGE_CLASSES}
        self.commit_interval_seconds = _gauge(of["commit_interval_seconds"])

        self.store_reachable = _gauge(of["store_reachable"])
        self._bind_reads()

        self.fenced = _gauge(of["fenced"])
        self.read_only = _gauge(of["read_only"])
        self.volume_epoch = _gauge(of["volume_epoch"])
        self.volume_seq = _gauge(of["volume_seq"])
        self.backpressure_waiting_writers = _gauge(of["backpressure_waiting_writers"])
        self.backpressure_wait_seconds = _counter(of["backpressure_wait_seconds_total"])
        self.local_disk_free_bytes = _gauge(of["local_disk_free_bytes"])
        self.worker_restarts = _counter(of["worker_restarts_total"])

    def _bind_reads(self) -> None:
        of = self._families
        self.read_hits = {tier: _counter(of["read_hits_total"], tier) for tier in READ_TIERS}
        self.read_bytes = {tier: _counter(of["read_bytes_total"], tier) for tier in READ_TIERS}
        self.cache_misses = {tier: _counter(of["cache_misses_total"], tier) for tier in CACHE_TIERS}
        self.cache_bytes = {tier: _gauge(of["cache_bytes"], tier) for tier in CACHE_TIERS}
        self.cache_evictions = {
            tier: _counter(of["cache_evictions_total"], tier) for tier in CACHE_TIERS
        }

    def fuse_request(self, operation: str) -> FuseRequest:
        """Return the series of one kind of request, to be kept by the caller."""
        if operation not in FUSE_OPERATIONS:
            raise ValueError(f"{operation} is not a kind of request")
        found = self._requests.get(operation)
        if found is None:
            latency = _histogram(self._families["fuse_request_seconds"], operation)
            found = FuseRequest(operation, self._families["fuse_requests_total"], latency)
            self._requests[operation] = found
        return found

    def corruption_detected(self, kind: str) -> Counter:
        """Return the counter of damaged things of one kind."""
        known = kind if kind in CORRUPTION_KINDS else "other"
        return _counter(self._families["corruption_detected_total"], known)

    def reclaimed(self, kind: str, *, objects: int, size_bytes: int) -> None:
        """Count objects of one kind that reclaim deleted."""
        _counter(self._families["reclaim_deleted_objects_total"], kind).add(objects)
        _counter(self._families["reclaim_deleted_bytes_total"], kind).add(size_bytes)

    def collect(self) -> Iterator[Metric]:
        """Yield all families; prometheus_client calls this for each scrape."""
        for family in self._families.values():
            yield family.collect()

    def describe(self) -> Sequence[Metric]:
        """Return the names for the registry, without reading a value."""
        return [_without_series(spec) for spec in METRICS]

    def render(self) -> str:
        """Return what a scrape returns."""
        return generate_latest(self.registry).decode()

    def latency_summary(self) -> dict[str, dict[str, float]]:
        """Return, for `status`, count, p50 and p99 of every latency that was observed."""
        summary: dict[str, dict[str, float]] = {}
        for name, family in self._families.items():
            for labels, one in sorted(family.series.items()):
                if not isinstance(one, Histogram):
                    continue
                p50, p99 = one.quantile_s(0.5), one.quantile_s(0.99)
                if p50 is not None and p99 is not None:
                    title = " ".join([name.removesuffix("_seconds"), *labels])
                    summary[title] = {"count": one.count, "p50_s": p50, "p99_s": p99}
        return summary

    def take_changes(self) -> list[Change]:
        """Return what counters and histograms have gained since the last call."""
        changes = []
        for name, family in self._families.items():
            if family.spec.kind == "gauge":
                continue
            for labels, one in list(family.series.items()):
                now = _numbers(name, labels, one)
                before = self._taken.get((name, labels))
                self._taken[name, labels] = now
                change = now if before is None else _difference(now, before)
                if change.total or any(change.counts):
                    changes.append(change)
        return changes

    def add_changes(self, changes: Sequence[Change]) -> None:
        """Add what another process has counted."""
        with self._lock:  # what the worker counts is mostly what StoreObserver counts here
            for name, labels, total, counts in changes:
                one = self._families[name].bind(labels)
                if isinstance(one, Counter):
                    one.value += total
                    continue
                one.total_s += total
                for bucket, more in enumerate(counts):
                    one.counts[bucket] += more

    def take_report(self) -> dict[str, list[Any]]:
        """Return what another process is to be told, as plain values fit for JSON.

        Not for several threads at once: its caller holds a lock until the report is on its way.
        """
        gauges = [
            (name, *labels, one.read())
            for name in PACING_GAUGES
            for labels, one in list(self._families[name].series.items())
            if isinstance(one, Gauge) and self._process in labels
        ]
        return {"counted": self.take_changes(), "gauges": gauges}

    def add_report(self, report: Mapping[str, list[Any]]) -> None:
        """Add what `take_report` of another process has returned."""
        self.add_changes(
            [
                Change(name, tuple(labels), total, tuple(counts))
                for name, labels, total, counts in report["counted"]
            ]
        )
        for name, *labels, number in report["gauges"]:
            _gauge(self._families[name], *labels).set(number)


def _numbers(name: str, labels: Labels, one: Series) -> Change:
    if isinstance(one, Histogram):
        return Change(name, labels, one.total_s, tuple(one.counts))
    return Change(name, labels, one.read(), ())


def _difference(now: Change, before: Change) -> Change:
    counts = tuple(new - old for new, old in zip(now.counts, before.counts, strict=True))
    return now._replace(total=now.total - before.total, counts=counts)


@contextmanager
def serve_metrics(metrics: Metrics, address: str) -> Iterator[int]:
    """Serve `/metrics` at HOST:PORT in a thread for the life of the context; yield the port.

    Port 0 takes a free one. An empty address serves nothing and yields 0. Raises `ConfigError`
    if the address cannot be listened on.
    """
    if not address:
        yield 0
        return
    host, _, port = address.rpartition(":")
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), metrics.registry)
    except OSError as error:
        why = error.strerror or "no such host"
        raise ConfigError(f"metrics.address: cannot listen on {address}: {why}") from error
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
