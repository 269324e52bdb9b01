"""What fsync promises: in remote mode the machine may be lost, in local mode the daemon."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from tests.kernel.conftest import MakeMount, MakeVolume
from tests.kernel.mounts import Settings
from tests.kernel.proxy import Proxy

THREADS = 16
ROUNDS = 4
REMOTE: Settings = {"commit": {"interval": "1h"}}


def test_what_was_fsynced_in_remote_mode_survives_the_loss_of_the_machine(
    make_s3_volume: MakeVolume, make_mount: MakeMount
) -> None:
    """fsync has returned, the machine is gone: the bytes, the names, and what came before."""
    volume = make_s3_volume(REMOTE)
    mount = make_mount(volume, settings={"commit": {"interval": "1h"}}).start(
        "--durability", "remote"
    )
    for number in range(3):
        (mount.path / f"before-{number}").write_bytes(b"earlier, never synced by itself")
        write_synced(mount.path / f"file-{number}", b"synced %d" % number)
        (mount.path / f"renamed-{number}").write_bytes(b"x")
        (mount.path / f"renamed-{number}").rename(mount.path / f"done-{number}")
        sync_directory(mount.path)
        mount.kill()
        mount.wipe_cache()
        mount.start("--takeover", "--durability", "remote")
        assert (mount.path / f"file-{number}").read_bytes() == b"synced %d" % number
        assert (mount.path / f"before-{number}").exists()
        assert (mount.path / f"done-{number}").exists()
    mount.umount()
    volume.check()


def test_threads_that_sync_at_once_share_commits(
    make_s3_volume: MakeVolume, make_mount: MakeMount, proxy: Proxy
) -> None:
    """16 fsyncs must not be 16 requests one after the other; and all of them are kept."""
    volume = make_s3_volume(REMOTE, proxy.endpoint_url)
    mount = make_mount(volume).start("--durability", "remote")
    before = len(commits(proxy))
    start = threading.Barrier(THREADS)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            start.wait()
            for round_number in range(ROUNDS):
                path = mount.path / f"file-{number}-{round_number}"
                write_synced(path, b"%d" % number)
        except BaseException as error:  # noqa: BLE001  # a thread's failure is the test's
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    assert len(commits(proxy)) - before <= THREADS * ROUNDS // 4
    mount.kill()
    mount.wipe_cache()
    mount.start("--takeover")
    assert len(list(mount.path.iterdir())) == THREADS * ROUNDS
    mount.umount()


def test_a_remote_fsync_waits_for_the_store_and_local_calls_go_on(
    make_s3_volume: MakeVolume, make_mount: MakeMount, proxy: Proxy
) -> None:
    """While the store is away nothing is promised that cannot be kept, and nothing fails."""
    volume = make_s3_volume(REMOTE, proxy.endpoint_url)
    mount = make_mount(volume).start("--durability", "remote")
    write_synced(mount.path / "first", b"1")
    proxy.set("refuse")
    waiter = threading.Thread(target=write_synced, args=(mount.path / "second", b"2"))
    waiter.start()
    waiter.join(2)
    assert waiter.is_alive(), "fsync was answered while the store was away"
    (mount.path / "meanwhile").write_bytes(b"works")
    assert (mount.path / "first").read_bytes() == b"1"
    proxy.set("pass")
    waiter.join(60)
    assert not waiter.is_alive()
    mount.umount()


def test_a_local_fsync_does_not_wait_for_a_running_commit(
    make_s3_volume: MakeVolume, make_mount: MakeMount, proxy: Proxy
) -> None:
    """A stalled upload must not be felt by those who only sync to the local disk."""
    volume = make_s3_volume({"commit": {"interval": "1s"}}, proxy.endpoint_url)
    remote = volume.settings["storage"]["remote"]
    assert isinstance(remote, dict)
    remote["read_timeout"] = "10m"  # nothing but the proxy ends the commit
    mount = make_mount(volume).start()
    write_synced(mount.path / "file", b"x")
    proxy.set("stall")
    mount.wait_until(lambda: proxy.stalled() > 0, 60, "no commit began")

    def work() -> None:
        for _ in range(50):
            write_synced(mount.path / "file", b"x" * 4096)

    writer = threading.Thread(target=work, daemon=True)
    writer.start()
    writer.join(60)
    waits, still_stalled = writer.is_alive(), proxy.stalled()
    proxy.set("pass")
    assert not waits, "a local fsync waited for the store"
    assert still_stalled, "the commit was over before the last fsync"
    mount.umount()


def commits(proxy: Proxy) -> list[str]:
    """Return the requests that made log objects."""
    return [line for line in proxy.requests("PUT") if "/log/" in line]


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and sync it."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_directory(path: Path) -> None:
    """Sync a directory."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
