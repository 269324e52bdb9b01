"""The engine on the emulators of Azure and Google: kills, a lost machine, two writers."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.kernel.conftest import MakeMount
from tests.kernel.load import VOLUME_FAILED, Load
from tests.kernel.mounts import Settings, Volume, server_volume

CLOUDS = ("azurite", "gcs")
LOAD = (
    *("--duration", "60", "--scale", "0.03", "--flush-interval-scale", "0.2"),
    *("--snapshot-every", "3", "--rotate-every", "4", "--reopen-every", "5"),
)


def _volume(request: pytest.FixtureRequest, directory: Path, cloud: str) -> Volume:
    """Make a volume in an emulator that commits every second and uses packs."""
    settings: Settings = {"commit": {"interval": "1s", "inline_max": "64KiB"}}
    return server_volume(request.getfixturevalue(cloud), directory, settings)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_cloud_keeps_the_volume_through_kills_and_the_loss_of_the_machine(
    request: pytest.FixtureRequest, tmp_path: Path, make_mount: MakeMount, cloud: str
) -> None:
    """What was answered outlives the daemon, what was committed outlives the machine."""
    volume = _volume(request, tmp_path, cloud)
    mount = make_mount(volume).start()
    load = Load(mount.path / "db", tmp_path / "oplog", *LOAD)
    big = bytes(range(256)) * (48 << 10)
    try:
        load.start()
        time.sleep(2)
        mount.kill()
        load.wait(VOLUME_FAILED)
        mount.start()
        load.verify("answered")
        (mount.path / "big").write_bytes(big)
        mount.sync()
        mount.kill()
        mount.wipe_cache()
        mount.start("--takeover")
        load.verify("answered")
    finally:
        load.close()
    assert (mount.path / "big").read_bytes() == big
    mount.umount()
    volume.check()


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_writer_that_slept_is_fenced_by_a_cloud(
    request: pytest.FixtureRequest, tmp_path: Path, make_mount: MakeMount, cloud: str
) -> None:
    """Fencing rests on create-if-absent, which each provider has in a form of its own."""
    volume = _volume(request, tmp_path, cloud)
    first = make_mount(volume, "first").start()
    (first.path / "common").write_bytes(b"of both")
    first.sync()
    first.stop()
    second = make_mount(volume, "second").start("--takeover")
    (second.path / "new").write_bytes(b"of the second")
    second.sync()
    first.cont()
    first.wait_until(lambda: _tries_to_write(first.path), 20, "it did not notice")
    assert first.status()["read_only"]
    seq = second.number("commit", "seq")
    first.umount()
    (second.path / "new").write_bytes(b"goes on")
    second.sync()
    assert second.number("commit", "seq") > seq
    assert (second.path / "new").read_bytes() == b"goes on"
    assert not (second.path / "mine").exists()
    second.umount()
    volume.check()


def _tries_to_write(path: Path) -> bool:
    """Write something; tell whether that is refused."""
    try:
        (path / "mine").write_bytes(b"of the first")
    except OSError:
        return True
    return False
