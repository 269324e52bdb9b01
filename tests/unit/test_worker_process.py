"""The real worker process: what it counts reaches the mount, and words without an answer do."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from s3fs_banyan.commit import worker as worker_module
from s3fs_banyan.commit.seal_job import SealedPack, SealingLost, SealJob
from s3fs_banyan.commit.worker import WorkerDied, WorkerProcess
from s3fs_banyan.commit.worker_main import WorkerServer
from s3fs_banyan.data.cache import DiskBlockCache
from s3fs_banyan.errors import BanyanFSError, Denied, SealFailed, Throttled, Unavailable
from s3fs_banyan.observe.metrics import Metrics
from s3fs_banyan.remote.layers import MeterLayer
from s3fs_banyan.remote.memory import MemoryStore
from s3fs_banyan.remote.options import StoreOptions
from s3fs_banyan.remote.transfers import InlineTransfers


def setup_in(directory: Path, store: StoreOptions | None = None) -> dict[str, object]:
    """Return the first message to a process whose store and cache are in the directory."""
    (directory / "store").mkdir()
    return {
        "url": f"file://{directory}/store",
        "store": asdict(store or StoreOptions()),
        "cache": str(directory / "blocks"),
        "cache_bytes": 16 << 20,
        "block_bytes": 256 << 10,
        "log_level": "warning",
        "log_format": "text",
        "nice": 0,
        "cipher": None,
        "uploads": 4,
    }


def job_in(directory: Path) -> SealJob:
    """Return a job that fails: what is to be sealed is not there."""
    return SealJob(
        seal_db=str(directory / "absent" / "seal.db"),
        delta_db="",
        outbox=str(directory),
        segments={},
        epoch=1,
        seq=1,
        pack_bytes=1,
        inline_bytes_max=1,
        base_packs=str(directory / "base"),
    )


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


async def test_process_reports_and_takes_the_word_to_yield(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that nobody answers must not put the answers out of step."""
    monkeypatch.setattr(worker_module, "_SIGN_OF_LIFE_S", 3600.0)  # they carry reports, too
    reports: list[dict[str, Any]] = []
    asked = trio.Event()
    count = 0

    def share() -> float:
        nonlocal count
        count += 1
        if count == 2:
            asked.set()
        return 0.5

    restarted = trio.Event()
    setup = setup_in(tmp_path)
    worker = WorkerProcess(setup, on_restart=restarted.set, on_report=reports.append, share=share)
    job = job_in(tmp_path)
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


@pytest.mark.allow_log_warnings
async def test_process_that_cannot_be_started_just_now_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fork(2) fails at the limit of a unit's tasks, for a moment: no reason to end a mount."""
    start: Any = subprocess.Popen
    tries = 0
    started = trio.Event()

    def refusing_once(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  # as the class has them
        nonlocal tries
        tries += 1
        if tries == 1:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        started.set()
        return start(*args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", refusing_once)
    worker = WorkerProcess(setup_in(tmp_path), on_restart=lambda: None)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.run)
            worker.expect()
            await started.wait()
            assert worker.pid is not None
            nursery.cancel_scope.cancel()
    worker.close()
    assert tries == 2


async def test_request_without_a_process_fails_as_if_it_had_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The committer knows that error: it does the sealing again."""

    def refusing(*args: object, **kwargs: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(subprocess, "Popen", refusing)
    worker = WorkerProcess(setup_in(tmp_path), on_restart=lambda: None)
    with trio.fail_after(60), pytest.raises(WorkerDied):
        await worker.begin(job_in(tmp_path))
    worker.close()


TELLING_WORKER = """
import logging
import s3fs_banyan.commit.worker_main as worker

def open_store(url, options, **_):
    logging.getLogger("s3fs_banyan").warning(
        "%s and %s", options.secret_key, options.session_token
    )
    raise SystemExit

worker.open_store = open_store
worker.main()
"""
"""A worker process in which something logs what it should not."""


def test_process_keeps_the_store_s_secrets_out_of_its_log(tmp_path: Path) -> None:
    """The daemon knows them for its log; so must the other process that has one."""
    options = StoreOptions(
        access_key="some-access-key",
        secret_key="very-secret-key-material",
        session_token="very-secret-session-token",
    )
    ours, theirs = socket.socketpair()
    with ours:
        ours.sendall((json.dumps(setup_in(tmp_path, options)) + "\n").encode())
        with theirs:
            done = subprocess.run(
                [sys.executable, "-c", TELLING_WORKER, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                capture_output=True,
                check=True,
                timeout=60,
                text=True,
            )
    assert done.stderr.count("***") == 2
    assert "very-secret" not in done.stderr


async def test_a_fresh_process_that_is_asked_for_an_old_sealing_has_lost_it(
    tmp_path: Path,
) -> None:
    """The sealing went with the process before it: only to begin again is of any use."""
    restarted = trio.Event()
    worker = WorkerProcess(setup_in(tmp_path), on_restart=restarted.set)
    with contextlib.closing(worker), trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.run)
            with pytest.raises(BanyanFSError):
                await worker.begin(job_in(tmp_path))
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            await restarted.wait()
            with pytest.raises(SealingLost):
                await worker.upload(SealedPack(number=0, key="pack/1/x", size=1))
            nursery.cancel_scope.cancel()


@pytest.mark.allow_log_warnings
async def test_a_process_that_stands_still_is_ended_and_another_one_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No answer will come, and no commit with it; its socket says nothing of that."""
    monkeypatch.setattr(worker_module, "_SIGN_OF_LIFE_S", 0.1)
    monkeypatch.setattr(worker_module, "_SILENT_S", 10.0)
    restarted = trio.Event()
    worker = WorkerProcess(setup_in(tmp_path), on_restart=restarted.set)
    with contextlib.closing(worker), trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.run)
            with pytest.raises(BanyanFSError):
                await worker.begin(job_in(tmp_path))
            first = worker.pid
            assert first is not None
            os.kill(first, signal.SIGSTOP)
            with pytest.raises(WorkerDied):
                await worker.begin(job_in(tmp_path))
            await restarted.wait()
            with pytest.raises(BanyanFSError) as caught:
                await worker.begin(job_in(tmp_path))
            assert not isinstance(caught.value, WorkerDied)
            assert worker.pid not in {None, first}
            nursery.cancel_scope.cancel()


def test_a_busy_process_gives_signs_of_life(tmp_path: Path) -> None:
    """What it has counted comes with them; they are over when nobody listens."""
    metrics = Metrics(process="worker")
    store = MeterLayer(MemoryStore(clock=lambda: 0), metrics.store)
    cache = DiskBlockCache(tmp_path / "blocks", 16 << 20, block_bytes=256 << 10)
    ours, theirs = socket.socketpair()
    with theirs:
        with ours, ours.makefile("rb") as reader:
            server = WorkerServer(theirs, store, cache, None, metrics, InlineTransfers())
            store.write("pack/1/x", b"0123")
            living = threading.Thread(target=server.show_life, args=(0.01,), daemon=True)
            living.start()
            first, second = (json.loads(reader.readline()) for _ in range(2))
            assert "id" not in first
            assert first["report"]["counted"]
            assert second["report"]["counted"] == []
        living.join(60)
        assert not living.is_alive()


async def test_a_sealing_that_somebody_waits_for_does_not_stand_behind_all_others(
    tmp_path: Path,
) -> None:
    """On a busy machine it would hardly go on, and a journal that waits for it fills the disk."""
    worker = WorkerProcess(setup_in(tmp_path) | {"nice": 5}, on_restart=lambda: None)

    async def niceness(*, is_awaited: bool) -> int:
        with pytest.raises(BanyanFSError):
            await worker.begin(replace(job_in(tmp_path), is_awaited=is_awaited))
        assert worker.pid is not None
        return os.getpriority(os.PRIO_PROCESS, worker.pid)

    with contextlib.closing(worker), trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.run)
            assert await niceness(is_awaited=False) == 5
            assert await niceness(is_awaited=True) == 0
            assert await niceness(is_awaited=False) == 5
            assert await niceness(is_awaited=True) == 0
            await worker.end()
            assert worker.pid is not None
            assert os.getpriority(os.PRIO_PROCESS, worker.pid) == 5
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        ("OSError", SealFailed),
        ("MemoryError", SealFailed),
        ("Denied", Denied),
        ("Throttled", Throttled),
        ("BrokenBody", Unavailable),
        ("SealingLost", SealingLost),
    ],
)
def test_what_is_not_the_stores_fault_is_not_called_so(kind: str, made: type[Exception]) -> None:
    """A local disk that fails was reported as a store that is away."""
    error = worker_module._error_from({"error": kind, "message": "why"})
    assert type(error) is made
    assert "why" in str(error)
