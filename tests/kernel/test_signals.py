"""Signals to a daemon whose mount is gone: what is mounted there by now is another's."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from s3fs_banyan.kernel import mount_source
from tests.kernel.background import Background, wait_until
from tests.kernel.mounts import PROGRAM, file_volume

WITHIN_S = 30.0


def _has_said(command: Background, words: str, times: int = 1) -> bool:
    log = command.volume.directory / "cache" / "log"
    return log.read_text(encoding="utf-8").count(words) >= times


def test_a_signal_leaves_the_mount_over_a_detached_one(command: Background) -> None:
    """A file is still open, so that the first daemon still serves."""
    place = command.mount()
    first = command.status(place)["writer"]["pid"]
    with (place / "held").open("wb") as file:
        file.write(b"1")
        running = subprocess.Popen([*PROGRAM, "umount", "--lazy", str(place)])
        wait_until(lambda: mount_source(place) is None)
        command.mount("mnt", "--read-only", cache="reader-cache")
        os.kill(first, signal.SIGTERM)
        wait_until(lambda: _has_said(command, "signal 15"))
        wait_until(lambda: _has_said(command, "nothing to detach"))
    assert running.wait(WITHIN_S) == 0
    assert mount_source(place) == command.volume.url
    assert command.status(place)["role"] == "follower"
    assert command.run("umount", str(place)).returncode == 0


def test_a_signal_leaves_the_mount_that_came_while_one_drains(
    command: Background, tmp_path: Path
) -> None:
    """The kernel gives the number of the device that is gone to the next one."""
    place = command.mount()
    first = command.status(place)["writer"]["pid"]
    store = Path(command.volume.url.removeprefix("file://"))
    (place / "file").write_bytes(b"in the store at last")
    away = store.rename(store.with_name("away"))
    running = subprocess.Popen([*PROGRAM, "umount", "--lazy", str(place)])
    wait_until(lambda: _has_said(command, "bringing the rest into the store"))
    other = Background(file_volume(tmp_path / "other"))
    try:
        done = other.try_mount(place)
        assert done.returncode == 0, done.stderr
        other.adopt(place)
        os.kill(first, signal.SIGTERM)
        wait_until(lambda: _has_said(command, "nothing to detach"))
        assert mount_source(place) == other.volume.url
        away.rename(store)
        assert running.wait(WITHIN_S) == 0
        assert other.run("umount", str(place)).returncode == 0
    finally:
        other.close()
    command.volume.check()
