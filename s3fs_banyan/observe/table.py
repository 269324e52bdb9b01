"""The table of all metrics: the objects are made from it, the document is checked against it.

A name is `s3fs_banyan_` and what is written here; counters end in `_total`, units are base units
and part of the name. A change here changes `docs/metrics.md` in the same commit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

PREFIX: Final = "s3fs_banyan_"

FUSE_OPERATIONS: Final = (
    "access",
    "create",
    "flush",
    "forget",
    "fsync",
    "fsyncdir",
    "getattr",
    "getxattr",
    "link",
    "listxattr",
    "lookup",
    "mkdir",
    "mknod",
    "open",
    "opendir",
    "read",
    "readdir",
    "readlink",
    "release",
    "releasedir",
    "removexattr",
    "rename",
    "rmdir",
    "setattr",
    "setxattr",
    "statfs",
    "symlink",
    "unlink",
    "write",
)
STORE_VERBS: Final = (
    "list",
    "read",
    "write",
    "create",
    "delete",
    "stat",
    "begin_upload",
    "upload_part",
    "list_parts",
    "complete_upload",
    "abort_upload",
    "list_uploads",
)
ALARMING_OUTCOMES: Final = ("denied", "misconfigured", "corrupt")
"""Those that an alert looks for: `increase()` sees a first count only if it was 0 before."""
VERIFIED_BY: Final = ("etag", "checksum", "read_back", "content_md5")
COMMIT_STEPS: Final = (
    "cut",
    "sync",
    "delta",
    "seal",
    "upload",
    "publish",
    "apply",
    "checkpoint",
    "whole",
)
CORRUPTION_KINDS: Final = (
    "journal_record",
    "chunk",
    "frame",
    "frame_table",
    "blob",
    "pack",
    "object",
    "cached_block",
    "transfer",
    "other",
)
"""Each begins at 0: for an alert, a series that begins at 1 has not grown."""
READ_TIERS: Final = ("journal", "ram", "disk", "store")
CACHE_TIERS: Final = ("ram", "disk")
DURABILITIES: Final = ("local", "remote")
SEGMENT_STATES: Final = ("used", "free")
COST_KINDS: Final = ("put", "list", "get", "delete")
STORAGE_CLASSES: Final = (
    "STANDARD",
    "STANDARD_IA",
    "ONEZONE_IA",
    "INTELLIGENT_TIERING",
    "GLACIER_IR",
)

TRAFFIC: Final = ("upload", "demand", "prefetch", "control")
PROCESSES: Final = ("mount", "worker")
RETRY_REASONS: Final = ("throttled", "broken", "unavailable", "corrupt")
HEDGE_RESULTS: Final = ("won", "lost")
CUT_VERBS: Final = ("read", "write", "upload_part")

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSpec:
    """One metric: `name` without the prefix; `labels` -> the values shown from the start."""

    name: str
    kind: Kind
    unit: str
    labels: dict[str, tuple[str, ...]]
    help: str

    @property
    def full_name(self) -> str:
        """Return the name under which Prometheus sees it."""
        return PREFIX + self.name


def _metric(row_kind: Kind, name: str, help_text: str, /, **labels: tuple[str, ...]) -> MetricSpec:
    """Make one row; the unit is what the name ends in."""
    last = name.removesuffix("_total").rpartition("_")[2]
    unit = last if last in {"seconds", "bytes"} else ""
    return MetricSpec(name=name, kind=row_kind, unit=unit, labels=labels, help=help_text)


METRICS: Final = (
    # requests of the kernel
    _metric(
        "counter",
        "fuse_requests_total",
        "Requests of the kernel that were answered; outcome is ok or the name of the errno.",
        operation=FUSE_OPERATIONS,
        outcome=("ok",),
    ),
    _metric(
        "histogram",
        "fuse_request_seconds",
        "Time from the arrival of a request to its answer, waiting included.",
        operation=FUSE_OPERATIONS,
    ),
    _metric(
        "histogram",
        "fsync_seconds",
        "Time until an fsync was answered, by the durability that it promised.",
        durability=DURABILITIES,
    ),
    _metric(
        "counter",
        "handler_errors_total",
        "Requests answered with EIO because of an unforeseen exception: each one is a defect.",
    ),
    _metric(
        "counter",
        "processors_awake_seconds_total",
        "Time in which idle processors were kept from halting, in bursts of requests.",
    ),
    # journal and state
    _metric(
        "counter", "journal_appended_bytes_total", "Bytes appended to the journal, heads included."
    ),
    _metric("counter", "journal_records_total", "Records appended to the journal."),
    _metric("counter", "journal_syncs_total", "Syncs of the journal that succeeded."),
    _metric("counter", "journal_sync_failures_total", "Syncs of a segment that the disk refused."),
    _metric("histogram", "journal_sync_seconds", "Time that one sync of the journal took."),
    _metric(
        "gauge",
        "journal_segments",
        "Segments of the journal on the disk: used, or free for recycling.",
        state=SEGMENT_STATES,
    ),
    _metric(
        "gauge",
        "journal_backlog_bytes",
        "Bytes in the journal that no published commit covers yet; bounded by cache.dirty_max.",
    ),
    _metric("gauge", "journal_backlog_limit_bytes", "`cache.dirty_max`: there writers wait."),
    _metric("counter", "operations_applied_total", "Operations applied to the state."),
    _metric("gauge", "live_dirty_rows", "Rows of the state that the next delta will carry."),
    # commits
    _metric("counter", "commits_published_total", "Commits that are in the store."),
    _metric("counter", "commit_bytes_total", "Bytes of published commits, inline data included."),
    _metric("counter", "commit_inline_bytes_total", "Bytes of file data inside commits."),
    _metric("counter", "commit_pack_bytes_total", "Bytes of packs uploaded for commits."),
    _metric(
        "histogram",
        "commit_step_seconds",
        "Time that a step of a commit took; whole is from the cut to the applied commit.",
        step=COMMIT_STEPS,
    ),
    _metric("counter", "commit_failures_total", "Steps of commits that failed.", step=COMMIT_STEPS),
    _metric(
        "counter", "local_cuts_total", "Local cuts: the journal freed while the store is away."
    ),
    _metric("gauge", "base_packs_bytes", "Bytes of base packs, kept until the store has them."),
    _metric(
        "gauge",
        "recovery_lag_bytes",
        "Bytes that would be lost with this machine: written, not yet in the store.",
    ),
    _metric(
        "gauge",
        "recovery_lag_seconds",
        "Age of the oldest change that would be lost with this machine.",
    ),
    # the store
    _metric(
        "counter",
        "store_requests_total",
        "Requests sent to the store, each attempt counted; outcome is ok or the kind of error.",
        verb=STORE_VERBS,
        outcome=("ok", *ALARMING_OUTCOMES),
    ),
    _metric(
        "histogram",
        "store_request_seconds",
        "Time that one attempt of a request to the store took.",
        verb=STORE_VERBS,
    ),
    _metric(
        "counter", "store_sent_bytes_total", "Bytes of objects sent to the store.", verb=STORE_VERBS
    ),
    _metric(
        "counter",
        "store_received_bytes_total",
        "Bytes of objects received from the store.",
        verb=STORE_VERBS,
    ),
    _metric(
        "counter",
        "store_retries_total",
        "Attempts that followed a failed attempt of the same call, by what had failed.",
        reason=RETRY_REASONS,
    ),
    _metric(
        "gauge",
        "store_concurrency_limit",
        "Requests of a class that may be in flight just now, as learnt.",
        traffic=TRAFFIC,
        process=PROCESSES,
    ),
    _metric(
        "gauge",
        "store_in_flight",
        "Requests of a class that are in flight.",
        traffic=TRAFFIC,
        process=PROCESSES,
    ),
    _metric(
        "gauge",
        "store_queued",
        "Requests of a class that wait for a slot.",
        traffic=TRAFFIC,
        process=PROCESSES,
    ),
    _metric(
        "histogram",
        "store_queue_seconds",
        "Time that a request waited for a slot before it was sent.",
        traffic=TRAFFIC,
    ),
    _metric(
        "counter",
        "store_throttled_total",
        "Requests that the store refused because there were too many.",
        traffic=TRAFFIC,
    ),
    _metric(
        "counter",
        "store_hedges_total",
        "Second requests for slow reads, by whether theirs was the first answer.",
        result=HEDGE_RESULTS,
    ),
    _metric(
        "counter",
        "store_cut_requests_total",
        "Requests given up because all others of their kind are answered much sooner.",
        verb=CUT_VERBS,
    ),
    _metric(
        "counter",
        "store_resumed_reads_total",
        "Bodies of reads that broke and were asked for from where they broke.",
    ),
    _metric(
        "counter",
        "store_resumed_bytes_total",
        "Bytes of broken bodies that were kept and not sent again.",
    ),
    _metric(
        "counter",
        "store_verifications_total",
        "Uploads by what they were verified with: etag, checksum, read_back, content_md5 alone.",
        how=VERIFIED_BY,
        outcome=("good", "wrong"),
    ),
    _metric("gauge", "store_reachable", "1 if the store answered the last request, else 0."),
    # cost
    _metric(
        "counter",
        "store_request_cost_total",
        "Estimated cost of the requests sent to the store, in the currency of cost.currency.",
        kind=COST_KINDS,
    ),
    _metric(
        "gauge",
        "store_class_bytes",
        "Bytes of packs and inline data in the store, what is not yet reclaimed included.",
        **{"class": STORAGE_CLASSES},
    ),
    _metric(
        "gauge",
        "store_class_objects",
        "Packs and commits with inline data in the store, by storage class.",
        **{"class": STORAGE_CLASSES},
    ),
    _metric(
        "gauge",
        "store_class_cost_per_month",
        "Estimated cost of a month of that storage, in the currency of cost.currency.",
        **{"class": STORAGE_CLASSES},
    ),
    _metric(
        "gauge",
        "commit_interval_seconds",
        "Longest time between commits at present; above commit.interval the budget stretches it.",
    ),
    # reading
    _metric(
        "counter", "read_hits_total", "Pieces of reads that this tier answered.", tier=READ_TIERS
    ),
    _metric(
        "counter", "read_bytes_total", "Bytes of reads that this tier answered.", tier=READ_TIERS
    ),
    _metric(
        "counter", "cache_misses_total", "Look-ups in a cache that found nothing.", tier=CACHE_TIERS
    ),
    _metric("gauge", "cache_bytes", "Bytes that a cache holds.", tier=CACHE_TIERS),
    _metric(
        "counter",
        "cache_evictions_total",
        "Entries that a cache dropped to make room.",
        tier=CACHE_TIERS,
    ),
    _metric(
        "counter",
        "corruption_detected_total",
        "Stored things that failed their check, by kind; never served.",
        kind=CORRUPTION_KINDS,
    ),
    # ownership and room
    _metric("gauge", "fenced", "1 if another writer took the volume over, else 0."),
    _metric("gauge", "read_only", "1 if the mount refuses changes, else 0."),
    _metric("gauge", "volume_epoch", "Term number of the writer that this mount is or follows."),
    _metric("gauge", "volume_seq", "Sequence number of the newest commit known here."),
    _metric("gauge", "backpressure_waiting_writers", "Writers that wait for room just now."),
    _metric(
        "counter", "backpressure_wait_seconds_total", "Time that writers have waited for room."
    ),
    _metric("gauge", "local_disk_free_bytes", "Free bytes of the file system of cache.directory."),
    # resumed transfers
    _metric(
        "counter",
        "upload_parts_resumed_total",
        "Parts of packs that an earlier attempt had sent and that were not sent again.",
    ),
    _metric(
        "counter",
        "packs_reused_total",
        "Packs of an earlier attempt that a commit took instead of sealing them again.",
    ),
    # upkeep
    _metric(
        "counter",
        "reclaim_deleted_objects_total",
        "Objects of the store that reclaim deleted.",
        kind=("commit", "pack", "checkpoint", "upload"),
    ),
    _metric(
        "counter",
        "reclaim_deleted_bytes_total",
        "Bytes of the store that reclaim freed.",
        kind=("commit", "pack", "checkpoint"),
    ),
    _metric(
        "counter", "worker_restarts_total", "Times that the worker process had to be replaced."
    ),
    _metric("gauge", "build_info", "Always 1; the label tells the version.", version=()),
)
