"""Death at every named point of the durable order, on a real mount, with real files."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import s3fs_banyan.app.mount  # noqa: F401  # its imports register every failpoint
from s3fs_banyan.runtime import FAILPOINTS
from tests.kernel.answers import Answers
from tests.kernel.conftest import MakeMount
from tests.kernel.mounts import Mount, Settings, file_volume

EXIT_AT_FAILPOINT = 77
EAGER: Settings = {
    "commit": {"interval": "1s", "inline_max": "64KiB"},
    "reclaim": {"window": "0s", "hourly": "0s", "grace": "0s", "every": "1s"},
}
"""Packs, checkpoints and deletions within seconds."""

_AT_MOUNT = {"epoch-synced", "fence-published", "fence-applied"}


@pytest.mark.parametrize("name", sorted(FAILPOINTS))
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
