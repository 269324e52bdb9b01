"""Metrics and log: names that are documented, numbers that are right, secrets that stay away."""

from __future__ import annotations

import io
import json
import logging
import pickle
import re
import threading
import timeit
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import prometheus_client
import pyfuse3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from s3fs_banyan.errors import ConfigError, Unavailable
from s3fs_banyan.observe import log
from s3fs_banyan.observe.log import LOG_FIELDS, fields, register_secret, setup_logging
from s3fs_banyan.observe.metrics import (
    BUCKETS_S,
    UNANSWERED,
    Counter,
    Gauge,
    Histogram,
    Metrics,
    serve_metrics,
)
from s3fs_banyan.observe.table import (
    CUT_VERBS,
    FUSE_OPERATIONS,
    METRICS,
    PREFIX,
    RETRY_REASONS,
    STORE_VERBS,
    TRAFFIC,
)
from s3fs_banyan.remote import hedging
from s3fs_banyan.remote.layers import OUTCOMES, REPEATABLE_VERBS
from s3fs_banyan.remote.retry_table import REASONS
from s3fs_banyan.remote.traffic import Traffic

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return what a scrape gives, as Prometheus would read it."""
    return {
        (sample.name.removeprefix(PREFIX), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    """Return one sample of a scrape."""
    return samples(metrics)[name, tuple(sorted(labels.items()))]


# --- names -------------------------------------------------------------------------------


def test_every_metric_of_the_table_is_scraped_with_its_kind_and_help() -> None:
    """The text is what Prometheus reads: its own parser must agree with the table."""
    families = {f.name: f for f in text_string_to_metric_families(Metrics(version="1.2").render())}
    for spec in METRICS:
        family = families[spec.full_name.removesuffix("_total")]
        assert (family.type, family.documentation) == (spec.kind, spec.help)
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(spec.labels)


def test_names_follow_the_rules_of_prometheus() -> None:
    """A gauge called `_total`, or milliseconds, spoils every dashboard."""
    assert len({spec.name for spec in METRICS}) == len(METRICS)
    for spec in METRICS:
        assert re.fullmatch(r"[a-z][a-z_]*[a-z]", spec.name)
        assert spec.name.endswith("_total") == (spec.kind == "counter"), spec.name
        assert spec.name.removesuffix("_total").endswith(spec.unit), spec.name
        assert spec.kind != "histogram" or spec.unit == "seconds"
        assert spec.help.endswith("."), spec.name


def test_document_lists_every_metric_with_kind_and_labels() -> None:
    """The table in the code and the one for people are the same."""
    rows = re.findall(
        r"^\| `([a-z0-9_]+)` \| (\w+) \| ([a-z, ]*)\| [^|]+ \|$",
        DOCUMENT.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    documented = {(name, kind, labels.strip()) for name, kind, labels in rows}
    assert documented == {(s.full_name, s.kind, ", ".join(s.labels)) for s in METRICS}


def test_store_verbs_and_outcomes_are_those_of_the_meter() -> None:
    """`store_reachable` rests on the word that the meter uses."""
    assert OUTCOMES[Unavailable] == UNANSWERED
    assert set(STORE_VERBS) >= REPEATABLE_VERBS


# --- numbers -----------------------------------------------------------------------------


def test_every_series_starts_at_zero_so_that_a_first_event_is_an_increase() -> None:
    """`increase()` sees nothing when a counter is born with its first event."""
    metrics = Metrics(version="1")
    assert value(metrics, "handler_errors_total") == 0
    for kind in ("journal_record", "chunk", "frame", "frame_table", "object", "pack", "blob"):
        assert value(metrics, "corruption_detected_total", kind=kind) == 0
    assert value(metrics, "fuse_requests_total", operation="write", outcome="ok") == 0
    assert value(metrics, "build_info", version="1") == 1


def test_fuse_requests_are_counted_by_operation_and_outcome() -> None:
    """The first thing to look at when an application complains."""
    metrics = Metrics()
    write = metrics.fuse_request("write")
    assert metrics.fuse_request("write") is write
    write.ok(0.0003)
    write.ok(0.0003)
    write.failed("ENOSPC", 0.5)
    metrics.fuse_request("read").ok(0.1)
    assert value(metrics, "fuse_requests_total", operation="write", outcome="ok") == 2
    assert value(metrics, "fuse_requests_total", operation="write", outcome="ENOSPC") == 1
    assert value(metrics, "fuse_request_seconds_count", operation="write") == 3
    assert value(metrics, "fuse_request_seconds_sum", operation="write") == pytest.approx(0.5006)
    assert value(metrics, "fuse_request_seconds_bucket", operation="write", le="0.0005") == 2
    assert value(metrics, "fuse_request_seconds_bucket", operation="write", le="0.0002") == 0
    with pytest.raises(ValueError, match="not a kind of request"):
        metrics.fuse_request("wrote")


@settings(deadline=None)
@given(st.lists(st.floats(0, 100), max_size=30))
def test_buckets_are_cumulative_and_lose_nothing(durations: list[float]) -> None:
    """A histogram is right when each bucket counts what is not longer than its bound."""
    family = Metrics()._families["journal_sync_seconds"]
    histogram = family.bind(())
    assert isinstance(histogram, Histogram)
    for duration in durations:
        histogram.observe(duration)
    scraped = {(s.name, s.labels.get("le")): s.value for s in family.collect().samples}
    name = f"{PREFIX}journal_sync_seconds"
    for bound in BUCKETS_S:
        below = sum(duration <= bound for duration in durations)
        assert scraped[f"{name}_bucket", repr(bound)] == below
    assert scraped[f"{name}_bucket", "+Inf"] == scraped[f"{name}_count", None] == len(durations)
    assert scraped[f"{name}_sum", None] == pytest.approx(sum(durations))


@settings(deadline=None)
@given(st.lists(st.floats(1e-5, 15), min_size=1, max_size=200), st.floats(0.01, 1))
def test_quantile_lies_in_the_bucket_of_the_true_one(durations: list[float], q: float) -> None:
    """`status` must not tell another story than the dashboard."""
    histogram = Histogram()
    for duration in durations:
        histogram.observe(duration)
    estimate = histogram.quantile_s(q)
    ranked = sorted(durations)
    true = next(d for i, d in enumerate(ranked, 1) if i >= q * len(ranked))
    bounds = (0.0, *BUCKETS_S)
    upper = next(i for i, bound in enumerate(bounds) if true <= bound)
    assert estimate is not None
    assert bounds[upper - 1] <= estimate <= bounds[upper] * (1 + 1e-9)


def test_quantile_of_nothing_and_of_the_very_slow() -> None:
    """No events is not zero seconds, and an endless one is not dropped."""
    histogram = Histogram()
    assert histogram.quantile_s(0.5) is None
    histogram.observe(3600)
    assert histogram.quantile_s(0.99) == BUCKETS_S[-1]


def test_summary_names_what_was_observed_only() -> None:
    """What `status` prints: a few lines and not a wall of zeros."""
    metrics = Metrics()
    metrics.fsync_seconds["local"].observe(0.0004)
    metrics.commit_step_seconds["upload"].observe(1.5)
    summary = metrics.latency_summary()
    assert list(summary) == ["fsync local", "commit_step upload"]
    assert summary["fsync local"]["count"] == 1
    assert 0.0002 <= summary["fsync local"]["p50_s"] <= summary["fsync local"]["p99_s"] <= 0.0005


def test_tracked_numbers_are_read_at_the_scrape() -> None:
    """A lag must grow while nothing happens, and a cache counts for itself."""
    metrics = Metrics()
    lag = iter([1.0, 2.0])
    metrics.recovery_lag_seconds.track(lambda: next(lag))
    metrics.cache_evictions["disk"].track(lambda: 7)
    assert value(metrics, "recovery_lag_seconds") == 1.0
    assert value(metrics, "recovery_lag_seconds") == 2.0


def test_reclaim_and_corruption_count_by_kind() -> None:
    """Kinds that the table does not foresee are counted as well."""
    metrics = Metrics()
    metrics.reclaimed("pack", objects=3, size_bytes=300)
    metrics.corruption_detected("outbox").add()
    assert value(metrics, "reclaim_deleted_objects_total", kind="pack") == 3
    assert value(metrics, "reclaim_deleted_bytes_total", kind="pack") == 300
    assert value(metrics, "corruption_detected_total", kind="other") == 1


def test_store_requests_from_many_threads_are_all_counted() -> None:
    """Uploads run side by side; a lost count is a wrong bill."""
    metrics = Metrics()

    def send() -> None:
        for _ in range(500):
            metrics.store.request("write", "ok", 0.01, 10, 0)

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value(metrics, "store_requests_total", verb="write", outcome="ok") == 4000
    assert value(metrics, "store_sent_bytes_total", verb="write") == 40000
    assert value(metrics, "store_request_seconds_count", verb="write") == 4000


def test_store_is_reachable_as_long_as_it_answers() -> None:
    """A refusal is an answer: the alert for it is another one."""
    metrics = Metrics()
    seen = []
    for outcome in ("ok", "unavailable", "denied"):
        metrics.store.request("read", outcome, 0.01, 0, 5)
        seen.append(value(metrics, "store_reachable"))
    assert seen == [1, 0, 1]
    assert value(metrics, "store_received_bytes_total", verb="read") == 15


def test_what_the_layers_tell_is_counted_by_its_label() -> None:
    """Retries are what a bad line costs; each reason asks for another remedy."""
    metrics = Metrics()
    for reason in RETRY_REASONS:
        metrics.store.retried(reason)
        assert value(metrics, "store_retries_total", reason=reason) == 1
    metrics.store.resumed(700)
    metrics.store.hedged(won=True)
    metrics.store.cut("write")
    metrics.store.throttled("upload")
    metrics.store.waited("demand", 0.2)
    assert value(metrics, "store_resumed_bytes_total") == 700
    assert value(metrics, "store_hedges_total", result="won") == 1
    assert value(metrics, "store_hedges_total", result="lost") == 0
    assert value(metrics, "store_cut_requests_total", verb="write") == 1
    assert value(metrics, "store_throttled_total", traffic="upload") == 1
    assert value(metrics, "store_queue_seconds_count", traffic="demand") == 1


def test_labels_of_the_layers_are_those_of_the_table() -> None:
    """A series that is born with its first event hides that event."""
    assert set(TRAFFIC) == set(Traffic)
    assert set(RETRY_REASONS) == set(REASONS.values())
    assert set(CUT_VERBS) == hedging.CUT_VERBS


def test_report_of_the_worker_crosses_as_json_and_adds_up_once() -> None:
    """Packs are put by the worker: without its report most of the bill would be missing."""
    worker, daemon = Metrics(process="worker"), Metrics()
    worker.store.request("write", "ok", 0.02, 100, 0)
    worker.store.paced("upload", 7, 3, 2)
    daemon.store.paced("upload", 1, 0, 0)
    for _ in range(2):
        daemon.add_report(json.loads(json.dumps(worker.take_report())))
    assert value(daemon, "store_sent_bytes_total", verb="write") == 100
    assert value(daemon, "store_request_seconds_count", verb="write") == 1
    for process, limit in (("worker", 7), ("mount", 1)):
        labels = {"traffic": "upload", "process": process}
        assert value(daemon, "store_concurrency_limit", **labels) == limit
    assert value(daemon, "store_queued", traffic="upload", process="worker") == 2


def test_changes_of_the_worker_process_add_up_once() -> None:
    """The worker uploads; its requests belong to the mount's numbers, each exactly once."""
    worker, daemon = Metrics(), Metrics()
    worker.store.request("write", "ok", 0.02, 100, 0)
    daemon.store.request("write", "ok", 0.02, 1, 0)
    first = pickle.loads(pickle.dumps(worker.take_changes()))  # noqa: S301 - our own bytes
    daemon.add_changes(first)
    assert worker.take_changes() == []
    worker.store.request("write", "throttled", 0.02, 100, 0)
    daemon.add_changes(worker.take_changes())
    assert value(daemon, "store_sent_bytes_total", verb="write") == 201
    assert value(daemon, "store_requests_total", verb="write", outcome="throttled") == 1
    assert value(daemon, "store_request_seconds_count", verb="write") == 3
    assert value(daemon, "build_info", version="") == 1


def test_two_processes_worth_of_metrics_do_not_share_anything() -> None:
    """Tests and the simulation make as many as they like."""
    one, other = Metrics(), Metrics()
    one.fenced.set(1)
    assert value(other, "fenced") == 0


def test_all_attributes_are_series_of_the_table() -> None:
    """Each row can be reached: by an attribute, or by one of the named methods."""
    metrics = Metrics()
    reached: set[int] = set()
    for attribute in vars(metrics).values():
        held = attribute.values() if isinstance(attribute, dict) else [attribute]
        reached |= {id(one) for one in held if isinstance(one, Counter | Gauge | Histogram)}
    by_method = {"fuse_requests_total", "fuse_request_seconds", "build_info"}
    by_method |= {"corruption_detected_total"}
    by_method |= {"reclaim_deleted_objects_total", "reclaim_deleted_bytes_total"}
    by_method |= {spec.name for spec in METRICS if spec.name.startswith("store_")}
    for spec in METRICS:
        family = metrics._families[spec.name]
        if spec.name not in by_method:
            assert {id(one) for one in family.series.values()} <= reached, spec.name


def test_counting_a_request_costs_a_fraction_of_the_library() -> None:
    """The event loop answers tens of thousands of requests a second."""
    registry = prometheus_client.CollectorRegistry()
    total = prometheus_client.Counter("a", "a", ["x"], registry=registry).labels("write")
    latency = prometheus_client.Histogram(
        "b", "b", ["x"], registry=registry, buckets=BUCKETS_S
    ).labels("write")
    request = Metrics().fuse_request("write")

    def library() -> None:
        total.inc()
        latency.observe(0.0003)

    theirs = min(timeit.repeat(library, number=5000, repeat=5))
    ours = min(timeit.repeat(lambda: request.ok(0.0003), number=5000, repeat=5))
    assert ours < theirs / 2


def test_operations_are_the_handlers_of_the_fuse_library() -> None:
    """A request of the kernel without a series would end in an error of our own."""
    internal = {"init", "stacktrace", "poll", "ioctl"}
    handlers = {name for name in vars(pyfuse3.Operations) if not name.startswith("_")}
    flags = {"supports_dot_lookup", "enable_writeback_cache", "enable_acl"}
    assert set(FUSE_OPERATIONS) == handlers - internal - flags


# --- the endpoint ------------------------------------------------------------------------


def test_endpoint_serves_the_metrics_until_the_context_ends() -> None:
    """What Prometheus asks for, on a port that the system chose."""
    metrics = Metrics(version="9")
    with serve_metrics(metrics, "127.0.0.1:0") as port:
        url = f"http://127.0.0.1:{port}/metrics"
        with urllib.request.urlopen(url, timeout=30) as answer:
            text = answer.read().decode()
            assert answer.headers["Content-Type"].startswith("text/plain")
        with (
            pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"),
            serve_metrics(metrics, f"127.0.0.1:{port}"),
        ):
            raise AssertionError("the port is taken")
    assert 's3fs_banyan_build_info{version="9"} 1.0' in text
    assert "process_resident_memory_bytes" in text
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url, timeout=30)


def test_no_address_serves_nothing() -> None:
    """The default opens no port."""
    with serve_metrics(Metrics(), "") as port:
        assert port == 0


# --- the log -----------------------------------------------------------------------------


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """A place for log lines; afterwards the process logs as before and knows no secret."""
    root, package = logging.getLogger(), logging.getLogger("s3fs_banyan")
    before = root.level, package.level, list(root.handlers), dict(log._secrets)
    yield io.StringIO()
    root.setLevel(before[0])
    package.setLevel(before[1])
    root.handlers[:] = before[2]
    log._secrets.clear()
    log._secrets.update(before[3])


TEST_LOG = logging.getLogger("s3fs_banyan.test")


def fail(why: str) -> None:
    """Raise, so that there is a traceback to log."""
    raise ValueError(why)


def test_text_line_has_time_level_logger_message_and_fields(stream: io.StringIO) -> None:
    """A line that both a person and grep can read."""
    setup_logging("info", "text", stream)
    TEST_LOG.info("commit %s", "published", extra=fields(seq=7, path=b"/a b", reason=""))
    TEST_LOG.debug("not shown")
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO s3fs_banyan\.test: "
        r'commit published seq=7 path="/a b" reason=""\n',
        stream.getvalue(),
    )


def test_json_line_is_one_object_with_the_fields(stream: io.StringIO) -> None:
    """What a log store reads."""
    setup_logging("debug", "json", stream)
    try:
        fail("broken\ndisk")
    except ValueError:
        TEST_LOG.debug("failed", exc_info=True, extra=fields(key=b"\xff\n", ino=3, seconds=0.5))
    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert entry["level"] == "debug"
    assert entry["logger"] == "s3fs_banyan.test"
    assert (entry["key"], entry["ino"], entry["seconds"]) == ("\\xff\n", 3, 0.5)
    assert "broken\ndisk" in entry["error"]
    assert entry["time"].endswith("Z")


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\x1b[2Jb", "a\u2028b"])
def test_file_name_cannot_forge_a_line(stream: io.StringIO, name: str) -> None:
    """Names come from applications."""
    setup_logging("info", "text", stream)
    TEST_LOG.info("name %s", name, extra=fields(path=name))
    line = stream.getvalue()
    assert len(line.splitlines()) == 1
    assert name not in line


@pytest.mark.parametrize(
    "end", ["\n", "\r", "\r\n", "\x0b", "\x1b[2K\r", "\x85", "\u2028"], ids=repr
)
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_traceback_cannot_forge_a_line(
    stream: io.StringIO, end: str, log_format: Literal["text", "json"]
) -> None:
    """The message of an error holds what an application or a store chose, line ends and all."""
    setup_logging("debug", log_format, stream)
    TEST_LOG.info("like this one")
    genuine = stream.getvalue().strip()
    try:
        fail(f"no such name: x{end}{genuine}{end}{genuine}")
    except ValueError:
        TEST_LOG.debug("failed%s%s", end, genuine, exc_info=True, extra=fields(key=end + genuine))
    _, first, *others = stream.getvalue().splitlines()
    assert "failed" in first
    assert all(line.startswith("  ") for line in others)
    assert log_format == "text" or not others
    assert end == "\n" or end not in stream.getvalue()


MANY_LINES = "one\\two\nthree\x7ffour"


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_secret_that_a_line_cannot_hold_is_hidden(
    stream: io.StringIO, log_format: Literal["text", "json"]
) -> None:
    """What is escaped, or is put on lines of their own, is another text than the secret."""
    setup_logging("debug", log_format, stream)
    register_secret(MANY_LINES)
    try:
        fail(f"with {MANY_LINES}")
    except ValueError:
        TEST_LOG.debug("key %s", MANY_LINES, exc_info=True, extra=fields(key=MANY_LINES))
    shown = stream.getvalue()
    assert shown.count("***") == 3
    assert not any(word in shown for word in ("one", "two", "three", "four"))


SECRET = 'wJal/r+X"ü\\=K7'


@pytest.mark.allow_log_warnings
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_registered_secret_is_in_no_line(stream: io.StringIO, log_format: str) -> None:
    """Message, argument, field, traceback, URL: no way of logging gets around it."""
    setup_logging("info", "json" if log_format == "json" else "text", stream)
    register_secret(SECRET)
    register_secret("")
    encoded = urllib.parse.quote(SECRET, safe="")
    try:
        fail(f"signature with {SECRET} and {SECRET!r}")
    except ValueError:
        TEST_LOG.exception("key %s at https://h/?t=%s", SECRET, encoded, extra=fields(key=SECRET))
    shown = stream.getvalue()
    assert shown.count("***") == 5
    assert "wJal" not in shown
    assert "=K7" not in shown


def test_longer_secret_goes_first(stream: io.StringIO) -> None:
    """A secret that contains another one must not leave its rest behind."""
    setup_logging("info", "text", stream)
    register_secret("abc")
    register_secret("abcdef")
    TEST_LOG.info("x abcdef y")
    assert stream.getvalue().endswith("x *** y\n")


def test_second_setup_replaces_the_first(stream: io.StringIO) -> None:
    """A daemon that sets its log up again must not write each line twice."""
    setup_logging("info", "text", io.StringIO())
    setup_logging("info", "text", stream)
    TEST_LOG.info("once")
    assert stream.getvalue().count("once") == 1


def test_libraries_are_quiet_below_warning(stream: io.StringIO) -> None:
    """At debug, botocore logs signed requests."""
    setup_logging("debug", "text", stream)
    logging.getLogger("botocore.auth").debug("Authorization: AWS4-HMAC-SHA256")
    logging.getLogger("botocore.auth").warning("heard")
    assert "AWS4" not in stream.getvalue()
    assert "heard" in stream.getvalue()


def test_unlisted_log_field_is_refused() -> None:
    """Names that are listed can be searched for."""
    with pytest.raises(ValueError, match=r"\['sequence'\]"):
        fields(sequence=1)
    assert {"time", "level", "logger", "message", "error"}.isdisjoint(LOG_FIELDS)
