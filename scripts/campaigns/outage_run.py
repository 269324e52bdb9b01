"""The store is gone for ten minutes under the full mix, and the daemon dies meanwhile."""

from __future__ import annotations

import time

from campaigns.session import Session, options, session
from tests.kernel.load import VOLUME_FAILED

BEFORE_S = 30.0
RECOVERED_WITHIN_S = 300.0
SAMPLE_S = 10.0
LAG_MAX_S = 60.0


def main() -> int:
    """Stop the server, work on, die and work on, start the server, verify."""
    chosen = options(__doc__ or "", duration=600.0, seed=1)
    title = f"The store away for {chosen.duration:.0f} s under the full mix on SeaweedFS"
    load_options = ("--duration", "7200", "--seed", str(chosen.seed))
    with session(title, chosen, *load_options) as running:
        running.load.start()
        time.sleep(BEFORE_S)
        running.server.stop()
        running.results.event("the server is stopped")
        _work(running, chosen.duration / 2)
        _die(running)
        _work(running, chosen.duration / 2)
        running.server.start()
        running.results.event("the server is back")
        begin = time.monotonic()
        running.mount.wait_until(
            lambda: running.mount.number("lag", "seconds") < LAG_MAX_S,
            RECOVERED_WITHIN_S,
            "the backlog is not in the store",
        )
        spent_s = time.monotonic() - begin
        running.results.check("until the lag is below a minute", spent_s, 120.0, "s")
        running.load.stop()
        verify_all(running)
    return running.results.finish()


def _work(running: Session, seconds: float) -> None:
    """Let the load work; it must not see an error."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(min(SAMPLE_S, seconds))
        if not running.load.running:
            running.load.wait(0)
        mount = running.mount
        running.results.event(
            "sample",
            online=mount.status()["online"],
            backlog_mib=round(mount.number("journal", "backlog_bytes") / (1 << 20)),
            lag_s=round(mount.number("lag", "seconds"), 1),
        )


def _die(running: Session) -> None:
    """kill -9 while the store is away: the mount comes back from the local disk alone."""
    running.mount.kill()
    running.load.wait(VOLUME_FAILED)
    begin = time.monotonic()
    running.mount.start()
    running.results.event("mounted again", mount_s=round(time.monotonic() - begin, 1))
    running.load.verify("answered")
    running.results.event("verified while the store is away")
    running.load.start()


def verify_all(running: Session) -> None:
    """Verify on the mount, through an empty cache, and every object."""
    mount, load, results = running.mount, running.load, running.results
    load.verify("answered")
    results.event("verified on the mount")
    mount.umount()
    mount.wipe_cache()
    mount.start()
    load.verify("answered")
    results.event("verified through an empty cache")
    mount.umount()
    mount.volume.check()
    results.event("checked")
