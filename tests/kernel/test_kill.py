"""kill -9 of the daemon at random moments under load: what was answered, and the last commit."""

from __future__ import annotations

import random
import time

from tests.kernel.answers import Answers
from tests.kernel.conftest import MakeMount, MakeVolume
from tests.kernel.load import VOLUME_FAILED, Load
from tests.kernel.mounts import Mount, Volume

SMALL_LOAD = (
    *("--duration", "120", "--scale", "0.1", "--flush-interval-scale", "0.2"),
    *("--snapshot-every", "3", "--rotate-every", "4", "--reopen-every", "5"),
)


def test_a_killed_daemon_loses_nothing_that_was_answered(
    volume: Volume, make_mount: MakeMount
) -> None:
    """BanyanDB deletes data at start-up when it sees anything but a prefix of its operations."""
    mount = make_mount(volume).start()
    load = Load(mount.path / "db", volume.directory / "oplog", *SMALL_LOAD)
    moments = random.Random(1)
    try:
        for _ in range(4):
            load.start()
            time.sleep(moments.uniform(0.5, 3.0))
            mount.kill()
            load.wait(VOLUME_FAILED)
            mount.start()
            load.verify("answered")
    finally:
        load.close()
    mount.umount()
    volume.check()


def test_a_lost_machine_leaves_the_state_of_the_last_commit(
    make_s3_volume: MakeVolume, make_mount: MakeMount
) -> None:
    """Without the local disk the volume is one exact earlier state, not a mixture of two."""
    volume = make_s3_volume({"commit": {"interval": "1s", "inline_max": "256KiB"}})
    mount = make_mount(volume).start()
    load = Load(mount.path / "db", volume.directory / "oplog", *SMALL_LOAD)
    moments = random.Random(2)
    try:
        for _ in range(3):
            load.start()
            mount.sync()  # the load counts from the tree as it found it, which must not be lost
            time.sleep(moments.uniform(1.5, 4.0))
            mount.kill()
            load.wait(VOLUME_FAILED)
            mount.wipe_cache()
            mount.start("--takeover")
            load.verify("none")
    finally:
        load.close()
    mount.umount()
    volume.check()


def test_what_was_synced_is_on_another_machine(volume: Volume, make_mount: MakeMount) -> None:
    """`sync` returns when everything before it is in the store, and nothing later is mixed in."""
    volume.settings = {"commit": {"interval": "1h"}}
    mount = make_mount(volume).start()
    directory = mount.path / "data"
    directory.mkdir()
    answers = Answers(directory)
    for _ in range(3):
        assert answers.run(40)
        mount.sync()
        kept = dict(answers.files)
        assert answers.run(40)
        mount.kill()
        mount.wipe_cache()
        mount.start("--takeover")
        answers.files = kept
        answers.check()


def test_a_clean_unmount_leaves_everything_in_the_store(
    volume: Volume, make_mount: MakeMount
) -> None:
    """After `umount` the machine may be thrown away, and the next needs no --takeover."""
    mount = make_mount(volume).start()
    answers = _some_files(mount)
    mount.umount()
    mount.wipe_cache()
    mount.start()
    answers.check()
    mount.umount()


def test_unlinked_open_files_leave_no_trace_after_a_death(
    volume: Volume, make_mount: MakeMount
) -> None:
    """An orphan of a killed daemon is reaped by the next mount; its space comes back."""
    mount = make_mount(volume).start()
    path = mount.path / "orphan"
    path.write_bytes(bytes(5 << 20))
    with path.open("rb"):
        path.unlink()
        mount.sync()
        mount.kill()
    mount.start()
    mount.wait_until(lambda: mount.number("usage", "used") == 0, 10, "the orphan was not reaped")
    mount.umount()
    volume.check()


def _some_files(mount: Mount) -> Answers:
    directory = mount.path / "data"
    directory.mkdir()
    answers = Answers(directory)
    assert answers.run(40)
    return answers
