"""A real mount on a real server through the worst of weathers: a campaign in small."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from tests.chaos.client import ChaosProxy
from tests.kernel.load import Load
from tests.kernel.mounts import Mount, Settings, s3_volume
from tests.servers import SeaweedServer

_SETTINGS: Settings = {"commit": {"interval": "1s"}, "cache": {"size": "16MiB", "ram_size": "0"}}
_FAULTS = 15
_WITHIN_S = 90.0


def test_faults_on_the_way_reach_nobody(seaweed: SeaweedServer, tmp_path: Path) -> None:
    """No error, no wrong byte, and everything is in the store in the end."""
    known = [os.urandom(300_000) for _ in range(100)]
    with ChaosProxy(seaweed.endpoint_url, seed=7, duration_s=600.0, weather="rough") as proxy:
        volume = s3_volume(seaweed, tmp_path, _SETTINGS, endpoint_url=proxy.endpoint_url)
        with Mount(volume) as mount:
            mount.start()
            for number, data in enumerate(known):
                (mount.path / f"known-{number}").write_bytes(data)
            mount.sync()
            load = Load(mount.path / "db", tmp_path / "oplog", "--scale", "0.1", "--duration", "60")
            load.start()
            proxy.begin()
            rng = random.Random(7)
            deadline = time.monotonic() + _WITHIN_S
            while (injected := _injected(proxy)) < _FAULTS and time.monotonic() < deadline:
                number = rng.randrange(len(known))
                assert _read_cold(mount.path / f"known-{number}") == known[number]
            assert load.running, load.text()
            assert injected >= _FAULTS
            proxy.calm()
            load.stop()
            mount.umount()
            mount.wipe_cache()
            mount.start()
            load.verify("answered")
            for number, data in enumerate(known):
                assert (mount.path / f"known-{number}").read_bytes() == data
            mount.umount()
        volume.check()


def test_a_mount_that_has_its_state_here_needs_no_answer(
    seaweed: SeaweedServer, tmp_path: Path
) -> None:
    """The store answers the first question of a mount and then no other: it goes on from here."""
    with ChaosProxy(seaweed.endpoint_url) as proxy:
        volume = s3_volume(seaweed, tmp_path, _SETTINGS, endpoint_url=proxy.endpoint_url)
        with Mount(volume) as mount:
            mount.start()
            (mount.path / "file").write_bytes(b"kept")
            mount.sync()
            mount.kill()
            proxy.only("lost_answer")
            mount.start()
            assert (mount.path / "file").read_bytes() == b"kept"
            (mount.path / "file").write_bytes(b"newer")
            proxy.calm()
            mount.sync()
            mount.umount()
            mount.wipe_cache()
            mount.start()
            assert (mount.path / "file").read_bytes() == b"newer"
            mount.umount()


def _injected(proxy: ChaosProxy) -> int:
    injected = proxy.report().injected
    return sum(injected.values()) - injected.get("delayed", 0)


def _read_cold(path: Path) -> bytes:
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return file.readall()
