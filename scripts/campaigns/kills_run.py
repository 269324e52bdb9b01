"""kill -9 at random moments under the full mix, on the same disk and with the disk lost."""

from __future__ import annotations

import random
import time

from campaigns.session import Session, options, session
from tests.kernel.load import VOLUME_FAILED

LOST_DISK_EVERY = 3


def main() -> int:
    """Kill, mount, verify, go on; returns the exit code."""
    chosen = options(__doc__ or "", rounds=50, seed=1, longest=15.0)
    title = f"{chosen.rounds} times kill -9 under the full mix on SeaweedFS"
    load_options = ("--duration", "3600", "--seed", str(chosen.seed))
    with session(title, chosen, *load_options) as running:
        moments = random.Random(chosen.seed)
        for number in range(1, chosen.rounds + 1):
            lost = number % LOST_DISK_EVERY == 0
            _round(running, number, moments.uniform(0.5, chosen.longest), lost=lost)
        running.mount.umount()
        running.mount.volume.check()
        running.results.event("checked")
    same = [e for e in running.results.events if e["event"] == "same disk"]
    lost_disk = [e for e in running.results.events if e["event"] == "lost disk"]
    running.results.facts["deaths on the same disk, verified"] = len(same)
    running.results.facts["deaths with the disk lost, verified"] = len(lost_disk)
    for name, events in (("same disk", same), ("lost disk", lost_disk)):
        slowest = max((float(str(e["mount_s"])) for e in events), default=0.0)
        running.results.facts[f"slowest mount, {name}"] = f"{slowest} s"
    return running.results.finish()


def _round(running: Session, number: int, after_s: float, *, lost: bool) -> None:
    mount, load = running.mount, running.load
    load.start()
    if lost:
        mount.sync()  # the load counts from the tree as it found it, which must not be lost
    time.sleep(after_s)
    mount.kill()
    load.wait(VOLUME_FAILED)
    if lost:
        mount.wipe_cache()
    begin = time.monotonic()
    mount.start(*(["--takeover"] if lost else []))
    mounted_s = round(time.monotonic() - begin, 2)
    load.verify("none" if lost else "answered")
    running.results.event(
        "lost disk" if lost else "same disk",
        round=number,
        after_s=round(after_s, 1),
        mount_s=mounted_s,
    )
