"""What a process tells about itself: `table` (names), `metrics` (values, HTTP), `log`.

The only importer of prometheus_client.
"""

from __future__ import annotations

from s3fs_banyan.observe.log import LOG_FIELDS, fields, register_secret, setup_logging
from s3fs_banyan.observe.metrics import (
    Counter,
    FuseRequest,
    Gauge,
    Histogram,
    Metrics,
    StoreObserver,
    serve_metrics,
)
from s3fs_banyan.observe.table import METRICS, MetricSpec

__all__ = [
    "LOG_FIELDS",
    "METRICS",
    "Counter",
    "FuseRequest",
    "Gauge",
    "Histogram",
    "MetricSpec",
    "Metrics",
    "StoreObserver",
    "fields",
    "register_secret",
    "serve_metrics",
    "setup_logging",
]
