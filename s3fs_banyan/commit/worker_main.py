"""The worker process: reads requests, seals and uploads, answers. See `worker.py`.

Each answer carries what the process has counted since the last one, and so does the sign of life
that it gives every few seconds. `pace` has no answer: it tells how much of its limit bulk may take
while the daemon's reads suffer.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import socket
import sys
import threading  # noqa: TID251 - a lock around the socket, and one that only says that it lives
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from s3fs_banyan.commit.seal_job import SealedPack, SealingLost, SealJob
from s3fs_banyan.commit.sealing import Sealing
from s3fs_banyan.data.blocks import BlockCache
from s3fs_banyan.data.cache import DiskBlockCache
from s3fs_banyan.format.encryption import Cipher
from s3fs_banyan.journal.disk import RealDisk
from s3fs_banyan.observe.log import register_secret, setup_logging
from s3fs_banyan.observe.metrics import Metrics
from s3fs_banyan.remote.base import RemoteFileSystem
from s3fs_banyan.remote.open import open_store
from s3fs_banyan.remote.options import StoreOptions
from s3fs_banyan.remote.pacing import hint_to
from s3fs_banyan.remote.traffic import Traffic
from s3fs_banyan.remote.transfers import PooledTransfers, Transfers
from s3fs_banyan.runtime import keep_objects, sleep_blocking
from s3fs_banyan.scheduling import step_back, step_forward

_PR_SET_PDEATHSIG = 1
_RETRY_DEADLINE_S = 5.0
_UPLOADS = 4

log = logging.getLogger(__name__)


class WorkerServer:
    """Answers requests, uploads several at a time."""

    def __init__(
        self,
        sock: socket.socket,
        store: RemoteFileSystem,
        cache: BlockCache,
        cipher: Cipher | None,
        metrics: Metrics,
        transfers: Transfers,
        take_place: Callable[[bool], None] = lambda _: None,
        *,
        uploads: int = _UPLOADS,
    ) -> None:
        """`take_place` is told whether somebody waits for the sealing that begins; then it ends.

        `uploads`: as many packs as the committer has under way.
        """
        self._transfers = transfers
        self._take_place = take_place
        self._beside = PooledTransfers(2 * uploads)
        self._sock = sock
        self._sending = threading.Lock()
        self._metrics = metrics
        self._store = store
        self._cache = cache
        self._cipher = cipher
        self._disk = RealDisk()
        self._sealing: Sealing | None = None
        self._proved: set[str] = set()

    def answer(self, request: dict[str, Any]) -> None:
        """Carry out one request and send its answer, or the error that it met."""
        try:
            answer: dict[str, Any] = {"id": request["id"], "result": self._carry_out(request)}
        except Exception as error:  # every error crosses to the daemon, which decides
            log.debug("request %s failed", request["method"], exc_info=True)
            answer = {
                "id": request["id"],
                "error": type(error).__name__,
                "message": str(error),
            }
        self._send(answer)

    def _send(self, answer: dict[str, Any]) -> None:
        with self._sending:  # a report is in one answer only, and answers must not mix
            answer["report"] = self._metrics.take_report()
            self._sock.sendall((json.dumps(answer) + "\n").encode())

    def show_life(self, every_s: float) -> None:
        """Give signs of life until the daemon is gone: a process that stands still gives none."""
        try:
            while True:
                sleep_blocking(every_s)
                self._send({})
        except OSError:
            log.debug("nobody listens any more")

    def pace(self, share: float) -> None:
        """Take the share of its limit that bulk may have for the next second."""
        hint_to(self._store, share)

    def _carry_out(self, request: dict[str, Any]) -> object:
        method, argument = request["method"], request["argument"]
        if method == "begin":
            self._end()
            segments = {int(number): path for number, path in argument["segments"].items()}
            chains = tuple(argument["chains"])
            job = SealJob(**{**argument, "segments": segments, "chains": chains})
            self._take_place(job.is_awaited)
            self._sealing = Sealing(
                job,
                disk=self._disk,
                store=self._store,
                cache=self._cache,
                cipher=self._cipher,
                transfers=self._transfers,
                beside=self._beside,
                proved=self._proved,
            )
            return self._sealing.plan()
        if method == "end":
            self._end()
            return None
        if self._sealing is None:
            # It began with a process that is no more; this one was started in its place.
            raise SealingLost(f"{method} without a sealing")
        if method == "seal_pack":
            return _plain(self._sealing.seal_pack(argument))
        if method == "upload":
            self._sealing.upload(SealedPack(**argument))
            return None
        if method == "finish":
            return _plain(self._sealing.finish())
        if method == "finish_local":
            return _plain(self._sealing.finish_local())
        raise RuntimeError(f"unknown request {method}")

    def _end(self) -> None:
        if self._sealing is not None:
            self._sealing.close()
            self._sealing = None
        self._take_place(False)


def _plain(value: object) -> dict[str, object] | None:
    if value is None:
        return None
    return {name: getattr(value, name) for name in value.__dataclass_fields__}  # type: ignore[attr-defined]


class _Place:
    """Behind all others at the processors and at the disk, unless somebody waits for a sealing."""

    def __init__(self, nice: int) -> None:
        self._nice = nice
        self._is_forward = False
        step_back(nice)

    def take(self, is_awaited: bool) -> None:
        """Take the place of a sealing that somebody waits for, or of any other work."""
        if is_awaited == self._is_forward:
            return
        self._is_forward = is_awaited
        if is_awaited:
            step_forward()
        else:
            step_back(self._nice)


def main() -> None:
    """Serve one daemon until its end of the socket closes."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sock = socket.socket(fileno=int(sys.argv[1]))
    reader = sock.makefile("rb")
    setup = json.loads(reader.readline())
    setup_logging(setup["log_level"], setup["log_format"], sys.stderr)
    place = _Place(int(setup["nice"]))
    options = StoreOptions(**setup["store"])
    # The committer tries again for ever, above; meanwhile it wants to know whether the store is
    # there, for a journal that grows.
    options = replace(options, retry_deadline_s=min(options.retry_deadline_s, _RETRY_DEADLINE_S))
    for secret in options.secrets.values():
        register_secret(secret)
    metrics = Metrics(process="worker")
    store = open_store(
        setup["url"],
        options,
        observer=metrics.store,
        verified=metrics.store,
        way=metrics.store,
        reads=Traffic.PREFETCH,  # compaction: nobody waits for a byte of it
        is_known=True,  # a worker that is started during an outage waits for its end
    )
    cache = DiskBlockCache(
        Path(setup["cache"]),
        setup["cache_bytes"],
        block_bytes=setup["block_bytes"],
        writes_at_once=True,
    )
    cipher = Cipher.from_plain_values(setup["cipher"]) if setup["cipher"] else None
    at_once = int(setup["uploads"])
    transfers = PooledTransfers(at_once)  # what the packs under way send shares this bound
    server = WorkerServer(
        sock, store, cache, cipher, metrics, transfers, place.take, uploads=at_once
    )
    keep_objects()
    alive_s = float(setup["sign_of_life_s"])
    threading.Thread(target=server.show_life, args=(alive_s,), daemon=True).start()
    with ThreadPoolExecutor(at_once) as uploads:
        for line in reader:
            request = json.loads(line)
            if request["method"] == "pace":
                server.pace(float(request["argument"]))
            elif request["method"] == "upload":
                uploads.submit(server.answer, request)
            else:
                server.answer(request)
    os._exit(0)


if __name__ == "__main__":
    main()
