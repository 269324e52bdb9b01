"""kill -9 again and again while one large file goes up: nothing is sent twice but a little."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time

from campaigns.session import Session, options, session
from tests.chaos.client import ChaosProxy
from tests.kernel.mounts import MountError

MIB = 1 << 20
SENT_AT_MOST = 1.15
DRAINED_WITHIN_S = 900.0
NEXT_BYTE_WITHIN_S = 120.0

SETTINGS: dict[str, dict[str, object]] = {
    "commit": {"interval": "1h"},  # the upload begins when it is asked for
    "cache": {"dirty_max": "16GiB"},
    "volume": {"pack_size": "64MiB"},
}


def main() -> int:
    """Write, upload, kill on the way, count, verify; returns the exit code."""
    chosen = options(__doc__ or "", size=2048, kills=10, seed=1)
    title = f"{chosen.kills} times kill -9 during an upload of {chosen.size} MiB to SeaweedFS"
    with session(
        title,
        chosen,
        settings=SETTINGS,
        remote={"multipart": "always", "part_size": "8MiB"},
        proxy=lambda server: ChaosProxy(server.endpoint_url),
    ) as running:
        path = running.mount.path / "large"
        begin = time.monotonic()
        digest = _write(running, chosen.size, chosen.seed)
        running.results.event("written and synced", spent_s=round(time.monotonic() - begin, 1))
        rng = random.Random(chosen.seed)
        for number in range(1, chosen.kills + 1):
            share = (number - 1 + rng.uniform(0.2, 0.9)) / chosen.kills
            _kill_at(running, int(share * chosen.size * MIB), number)
        begin = time.monotonic()
        running.mount.ask("sync", DRAINED_WITHIN_S)
        running.results.event("all in the store", spent_s=round(time.monotonic() - begin, 1))
        _judge(running, chosen.size * MIB)
        running.mount.umount()
        running.mount.wipe_cache()
        running.mount.start()
        if _digest_of(path) != digest:
            raise AssertionError("the file has other bytes than were written")
        running.results.event("verified through an empty cache")
        running.mount.umount()
        running.mount.volume.check()
        running.results.event("checked")
    return running.results.finish()


def _write(running: Session, size_mib: int, seed: int) -> str:
    """Write the file and sync it to the local disk; returns its SHA-256."""
    rng, digest = random.Random(f"resume {seed}"), hashlib.sha256()
    with (running.mount.path / "large").open("wb", buffering=0) as file:
        for _ in range(size_mib):
            block = rng.randbytes(MIB)
            digest.update(block)
            file.write(block)
        os.fsync(file.fileno())
    return digest.hexdigest()


def _digest_of(path: os.PathLike[str]) -> str:
    with open(path, "rb") as file:  # noqa: PTH123  # hashlib wants a raw file
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sent(running: Session) -> int:
    return running.proxy.report().total("sent_bytes", "PUT", "pack")


def _kill_at(running: Session, sent_bytes: int, number: int) -> None:
    """Ask for everything to be sent, kill when so much has gone out, mount again."""
    dying = threading.Event()
    asking = threading.Thread(target=_ask_sync, args=(running, dying), daemon=True)
    asking.start()
    before = _sent(running)
    # An earlier kill may have sent more than this one's share: traffic has to flow in any case.
    wanted = max(sent_bytes, before + MIB)
    deadline = time.monotonic() + NEXT_BYTE_WITHIN_S
    while (sent := _sent(running)) < wanted:
        if time.monotonic() > deadline:
            raise running.mount.error(f"only {sent} bytes were sent, {wanted} were expected")
        time.sleep(0.01)
    dying.set()
    running.mount.kill()
    asking.join(30)
    begin = time.monotonic()
    running.mount.start()
    running.results.event(
        "killed and mounted again",
        kill=number,
        sent_mib=round(sent / MIB),
        mount_s=round(time.monotonic() - begin, 1),
    )


def _ask_sync(running: Session, dying: threading.Event) -> None:
    try:
        running.mount.ask("sync", DRAINED_WITHIN_S)
    except MountError as error:
        if not dying.is_set():  # else it is what was to be expected of a killed daemon
            running.results.event("the sync failed", why=str(error).splitlines()[0])


def _judge(running: Session, data_bytes: int) -> None:
    report, results = running.proxy.report(), running.results
    packs = report.total("sent_bytes", "PUT", "pack")
    everything = report.total("sent_bytes", "PUT") + report.total("sent_bytes", "POST")
    results.facts["bytes of the file"] = data_bytes
    results.facts["bytes sent in packs and their parts"] = packs
    results.facts["bytes sent in all"] = everything
    for line, counts in report.traffic.items():
        results.facts[f"requests {line}"] = counts["requests"]
    results.check("bytes sent by bytes of data", everything / data_bytes, SENT_AT_MOST)
