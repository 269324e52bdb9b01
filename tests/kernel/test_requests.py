"""What a mount tells of its requests to the store: those of its worker process are part of it."""

from __future__ import annotations

import os
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from s3fs_banyan.observe.table import COMMIT_STEPS
from tests.kernel.conftest import MakeMount, MakeVolume
from tests.servers import free_port

MIB = 1 << 20


def test_requests_of_both_processes_are_in_the_metrics(
    make_s3_volume: MakeVolume, make_mount: MakeMount
) -> None:
    """Packs are put by the worker: a bill without them would be a tenth of the real one."""
    address = f"127.0.0.1:{free_port()}"
    volume = make_s3_volume({"metrics": {"address": address}}, "")
    mount = make_mount(volume).start()
    data = os.urandom(12 * MIB)
    (mount.path / "large").write_bytes(data)
    mount.sync()
    # A commit may begin before all is written; the little that is left lies in the next log object.
    sent = [_value(address, "store_sent_bytes_total", verb=verb) for verb in ("write", "create")]
    assert sum(sent) >= len(data)
    assert sent[0] >= len(data) // 2
    assert _value(address, "store_requests_total", verb="write", outcome="ok") >= 1
    assert _value(address, "store_concurrency_limit", traffic="upload", process="worker") >= 1
    assert _value(address, "store_in_flight", traffic="upload", process="worker") == 0
    written = _value(address, "store_requests_total", verb="write", outcome="ok")
    verified = _value(address, "store_verifications_total", how="etag", outcome="good")
    assert verified >= written, "a write was not verified, or not counted as such"
    for step in COMMIT_STEPS:
        is_timed = _value(address, "commit_step_seconds_count", step=step) >= 1
        assert is_timed or step == "checkpoint", step
    mount.umount()
    mount.wipe_cache()
    mount.start()
    assert (mount.path / "large").read_bytes() == data
    assert _value(address, "store_received_bytes_total", verb="read") >= len(data)
    assert _value(address, "store_queue_seconds_count", traffic="demand") >= 1
    mount.umount()


def _value(address: str, name: str, **labels: str) -> float:
    """Return one number of the mount's metrics."""
    with urllib.request.urlopen(f"http://{address}/metrics") as answer:
        text = answer.read().decode()
    (found,) = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"s3fs_banyan_{name}" and sample.labels == labels
    ]
    return float(found)
