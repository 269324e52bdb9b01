"""Death at every named point of the durable order, on a real mount, with real files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import s3fs_banyan.app.mount  # noqa: F401  # its imports register every failpoint
from s3fs_banyan.runtime import FAILPOINTS
from tests.kernel.answers import Answers
from tests.kernel.conftest import MakeMount, MakeVolume
from tests.kernel.mounts import Mount, Settings, file_volume
from tests.kernel.proxy import Proxy

EXIT_AT_FAILPOINT = 77
EAGER: Settings = {
    "commit": {"interval": "1s", "inline_max": "64KiB"},
    "reclaim": {"window": "0s", "hourly": "0s", "grace": "0s", "every": "1s"},
}
"""Packs, checkpoints and deletions within seconds."""

_AT_MOUNT = {"epoch-synced", "fence-published", "fence-applied"}


_IN_AN_OUTAGE = {name for name in FAILPOINTS if name.startswith(("local-cut", "base-"))}


@pytest.mark.parametrize("name", sorted(FAILPOINTS.keys() - _IN_AN_OUTAGE))
def test_nothing_answered_is_lost_by_a_death_at(
    name: str, tmp_path: Path, make_mount: MakeMount
) -> None:
    """Recovery from this point: same disk, and then the store alone."""
    volume = file_volume(tmp_path, EAGER)
    mount = make_mount(volume).start(failpoint="" if name in _AT_MOUNT else name)
    directory = mount.path / "data"
    directory.mkdir()
    answers = Answers(directory, seed=len(name))
    die_at(name, mount, answers)
    mount.start()
    answers.check()
    answers.settle()
    assert answers.run(30)
    mount.sync()
    mount.kill()
    mount.wipe_cache()
    mount.start("--takeover")
    answers.check()
    mount.umount()
    volume.check()


@pytest.mark.parametrize("name", sorted(_IN_AN_OUTAGE))
def test_nothing_answered_is_lost_by_a_death_in_an_outage_at(
    name: str, make_s3_volume: MakeVolume, make_mount: MakeMount, proxy: Proxy
) -> None:
    """The same for local cuts; the next life begins in the outage, too, and works on."""
    settings: Settings = {
        "commit": {"interval": "1s", "local_cut": "4MiB"},
        "journal": {"segment_size": "4MiB"},
        "remote": {"read_timeout": "60s"},
    }
    volume = make_s3_volume(settings, proxy.endpoint_url)
    mount = make_mount(volume).start(failpoint=name)
    directory = mount.path / "data"
    directory.mkdir()
    answers = Answers(directory, seed=len(name))
    assert answers.run(20)
    mount.sync()
    proxy.set("refuse")
    if name.startswith("base-"):
        mount.wait_until(
            lambda: answers.run(20) and _local_cuts(mount) > 0, 60, "no local cut was made"
        )
        proxy.set("pass")
    die_at(name, mount, answers)
    mount.start()
    answers.check()
    answers.settle()
    assert answers.run(30)
    mount.kill()
    mount.start()
    answers.check()
    proxy.set("pass")
    mount.sync()
    mount.kill()
    mount.wipe_cache()
    mount.start("--takeover")
    answers.check()
    mount.umount()
    volume.check()


def _local_cuts(mount: Mount) -> int:
    cuts: Any = mount.status()["local_cuts"]
    return int(cuts["count"])


def die_at(name: str, mount: Mount, answers: Answers) -> None:
    """Work until the daemon has died at the failpoint; for those of a start, mount once more."""
    if name in _AT_MOUNT:
        assert answers.run(60)
        mount.kill()
        mount.start(failpoint=name, ready=False)
    deadline = time.monotonic() + 40
    while name not in _AT_MOUNT and mount.alive and answers.run(10):
        assert time.monotonic() < deadline, f"not reached:\n{mount.log_text()[-3000:]}"
        time.sleep(0.05)
    assert mount.wait_end() == EXIT_AT_FAILPOINT, mount.log_text()[-3000:]


def test_the_failpoints_are_the_steps_of_the_durable_order() -> None:
    """A step without a failpoint would never be tested by a death."""
    assert {"cut", "cut-synced", "delta-written", "sealed", "uploaded", "published"} <= set(
        FAILPOINTS
    )
    assert {"applied", "recycled"} | _AT_MOUNT <= set(FAILPOINTS)
