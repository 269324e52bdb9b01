"""The store goes away: no error for the application, and everything is in the store afterwards."""

from __future__ import annotations

import os
import threading
import time

import pytest

from tests.kernel.answers import Answers
from tests.kernel.conftest import MakeMount, MakeVolume
from tests.kernel.mounts import Mount
from tests.kernel.proxy import Mode, Proxy

MIB = 1 << 20


@pytest.mark.parametrize("mode", ["refuse", "stall"])
def test_an_outage_is_no_error_and_heals_unaided(
    mode: Mode, make_s3_volume: MakeVolume, make_mount: MakeMount, proxy: Proxy
) -> None:
    """A slow or absent store must never reach the application as an errno."""
    volume = make_s3_volume({"commit": {"interval": "1s"}}, proxy.endpoint_url)
    mount = make_mount(volume).start()
    (mount.path / "data").mkdir()
    answers = Answers(mount.path / "data")
    assert answers.run(50)
    proxy.set(mode)
    deadline = time.monotonic() + 6
    while time.monotonic() < deadline:
        assert answers.run(5)
        time.sleep(0.1)
    mount.wait_until(lambda: not mount.status()["online"], 20, "nobody noticed the outage")
    answers.check()
    proxy.set("pass")
    mount.sync()
    mount.umount()
    mount.wipe_cache()
    mount.start()
    answers.check()
    mount.umount()


def test_a_mount_killed_during_an_outage_works_on_from_its_local_state(
    make_s3_volume: MakeVolume, make_mount: MakeMount, proxy: Proxy
) -> None:
    """A daemon that dies while the store is away must not wait for it to come back."""
    volume = make_s3_volume({"commit": {"interval": "1s"}}, proxy.endpoint_url)
    mount = make_mount(volume).start()
    (mount.path / "data").mkdir()
    answers = Answers(mount.path / "data")
    assert answers.run(50)
    mount.sync()
    proxy.set("refuse")
    assert answers.run(50)
    mount.kill()
    mount.start()
    answers.check()
    assert answers.run(50)
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


@pytest.mark.parametrize("mode", ["refuse", "stall"])
def test_a_fast_writer_finds_out_that_the_store_is_away_before_the_next_commit_is_due(
    mode: Mode, make_s3_volume: MakeVolume, make_mount: MakeMount, proxy: Proxy
) -> None:
    """The journal of a whole commit interval may not fit on the disk; what died in it goes."""
    volume = make_s3_volume({"commit": {"interval": "1h", "local_cut": "4MiB"}}, proxy.endpoint_url)
    mount = make_mount(volume).start()
    (mount.path / "first").write_bytes(b"in the store")
    mount.sync()
    proxy.set(mode)
    for number in range(4):
        (mount.path / "again").write_bytes(bytes([number]) * 2 * MIB)
    mount.wait_until(lambda: mount.number("local_cuts", "count") >= 1, 60, "no local cut")
    assert not mount.status()["online"]
    proxy.set("pass")
    mount.wait_until(lambda: mount.status()["online"] is True, 60, "nobody saw the store again")
    mount.sync()
    mount.umount()
    mount.wipe_cache()
    mount.start()
    assert (mount.path / "again").read_bytes() == bytes([3]) * 2 * MIB
    mount.umount()


def test_writers_wait_when_the_backlog_is_full_and_go_on_afterwards(
    make_s3_volume: MakeVolume, make_mount: MakeMount, proxy: Proxy
) -> None:
    """`cache.dirty_max` bounds the disk: writers wait for the store, nobody is refused."""
    settings: dict[str, dict[str, object]] = {"cache": {"dirty_max": "32MiB"}}
    volume = make_s3_volume(settings, proxy.endpoint_url)
    mount = make_mount(volume).start()
    (mount.path / "small").write_bytes(b"readable all the time")
    proxy.set("refuse")
    block = os.urandom(MIB)
    failures: list[OSError] = []

    def write() -> None:
        try:
            with (mount.path / "large").open("wb", buffering=0) as file:
                for _ in range(64):
                    file.write(block)
        except OSError as error:
            failures.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    mount.wait_until(lambda: mount.status()["waiting_writers"] == 1, 30, "no writer waits")
    assert (mount.path / "small").read_bytes() == b"readable all the time"
    (mount.path / "small").unlink()
    assert writer.is_alive()
    proxy.set("pass")
    writer.join(60)
    assert not writer.is_alive()
    assert failures == []
    assert (mount.path / "large").read_bytes() == block * 64
    _unmount_and_look(mount, block * 64)


def _unmount_and_look(mount: Mount, content: bytes) -> None:
    mount.umount()
    mount.wipe_cache()
    mount.start()
    assert (mount.path / "large").read_bytes() == content
    mount.umount()
