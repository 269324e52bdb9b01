"""The real worker process: what it counts reaches the mount, and words without an answer do."""

from __future__ import annotations

import json
import os
import signal
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from s3fs_banyan.commit.sealing import SealJob
from s3fs_banyan.commit.worker import WorkerProcess
from s3fs_banyan.commit.worker_main import WorkerServer
from s3fs_banyan.data.cache import DiskBlockCache
from s3fs_banyan.errors import BanyanFSError
from s3fs_banyan.observe import Metrics
from s3fs_banyan.remote.layers import MeterLayer
from s3fs_banyan.remote.memory import MemoryStore
from s3fs_banyan.remote.options import StoreOptions
from s3fs_banyan.remote.transfers import InlineTransfers


def test_each_answer_carries_what_was_counted_since_the_last(tmp_path: Path) -> None:
    """Packs are put by this process: their requests are most of the bill."""
    metrics = Metrics(process="worker")
    store = MeterLayer(MemoryStore(clock=lambda: 0), metrics.store)
    cache = DiskBlockCache(tmp_path / "blocks", 16 << 20, block_bytes=256 << 10)
    ours, theirs = socket.socketpair()
    with ours, theirs, ours.makefile("rb") as reader:
        server = WorkerServer(theirs, store, cache, None, metrics, InlineTransfers())
        mount = Metrics()
        for number in range(2):
            store.write("pack/1/x", b"0123")
            server.answer({"id": number, "method": "end", "argument": None})
            answer = json.loads(reader.readline())
            assert answer["id"] == number
            mount.add_report(answer["report"])
        server.answer({"id": 2, "method": "no such", "argument": None})
        assert json.loads(reader.readline())["report"]["counted"] == []
    assert 's3fs_banyan_store_requests_total{outcome="ok",verb="write"} 2.0' in mount.render()
    assert 's3fs_banyan_store_sent_bytes_total{verb="write"} 8.0' in mount.render()


async def test_process_reports_and_takes_the_word_to_yield(tmp_path: Path) -> None:
    """A line that nobody answers must not put the answers out of step."""
    reports: list[dict[str, Any]] = []
    asked = trio.Event()
    count = 0

    def share() -> float:
        nonlocal count
        count += 1
        if count == 2:
            asked.set()
        return 0.5

    (tmp_path / "store").mkdir()
    setup = {
        "url": f"file://{tmp_path}/store",
        "store": asdict(StoreOptions()),
        "cache": str(tmp_path / "blocks"),
        "cache_bytes": 16 << 20,
        "block_bytes": 256 << 10,
        "log_level": "warning",
        "log_format": "text",
        "nice": 0,
        "cipher": None,
        "uploads": 4,
    }
    restarted = trio.Event()
    worker = WorkerProcess(setup, on_restart=restarted.set, on_report=reports.append, share=share)
    job = SealJob(
        seal_db=str(tmp_path / "absent" / "seal.db"),
        delta_db="",
        outbox=str(tmp_path),
        segments={},
        epoch=1,
        seq=1,
        pack_bytes=1,
        inline_bytes_max=1,
        base_packs=str(tmp_path / "base"),
    )
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.run)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert worker.pid is None, "the first reads of a mount need the processors"
            with pytest.raises(BanyanFSError):
                await worker.begin(job)
            await asked.wait()
            await worker.end()
            first = worker.pid
            assert first is not None
            os.kill(first, signal.SIGKILL)
            await restarted.wait()
            assert worker.pid is None
            with pytest.raises(BanyanFSError):
                await worker.begin(job)
            assert worker.pid not in {None, first}
            nursery.cancel_scope.cancel()
    worker.close()
    assert len(reports) == 3
    assert all(set(report) == {"counted", "gauges"} for report in reports)
