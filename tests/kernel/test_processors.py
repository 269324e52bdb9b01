"""The kernel's own word on whether processors may halt while a mount works and when it rests."""

from __future__ import annotations

import os
import struct
import time
import urllib.request
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from s3fs_banyan.processors import DEVICE, DRIVER, GUEST_DRIVER, MOST_PROCESSORS
from tests.kernel.background import Background
from tests.kernel.conftest import MakeMount
from tests.kernel.mounts import file_volume
from tests.servers import free_port
from tests.turns import ARE_HEARD, turn_ns

AT_EASE = 2_000_000_000


def wanted() -> int:
    """Return the latency that all processes together ask of idle processors, in us."""
    return int(struct.unpack("=i", DEVICE.read_bytes())[0])


def wait_until(latency_us: int) -> None:
    """Wait until so much is asked for; other mounts of this machine have bursts of their own."""
    deadline = time.monotonic() + 30
    while wanted() != latency_us:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def has_use() -> bool:
    """Tell whether a mount on this machine can keep processors awake."""
    return (
        DRIVER.exists()
        and DRIVER.read_text().strip() == GUEST_DRIVER
        and DEVICE.exists()
        and (os.cpu_count() or 1) <= MOST_PROCESSORS
    )


def burst(calls: Iterable[Callable[[], object]]) -> set[int]:
    """Make calls one after the other; returns every latency that was asked for between them."""
    seen = set()
    for call in calls:
        call()
        if has_use():
            seen.add(wanted())
    return seen


def expect_awake(address: str, seen: set[int]) -> None:
    """There was a burst, where it is of use, and it has ended."""
    with urllib.request.urlopen(f"http://{address}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    (line,) = [one for one in lines if one.startswith("s3fs_banyan_processors_awake_seconds_total")]
    assert (float(line.split()[1]) > 0) is has_use()
    if has_use():
        assert 0 in seen
        wait_until(AT_EASE)


def test_a_mount_keeps_processors_awake_in_a_burst_only(
    tmp_path: Path, make_mount: MakeMount
) -> None:
    """Where it cannot help it asks for nothing; killed, it leaves nothing behind."""
    address = f"127.0.0.1:{free_port()}"
    mount = make_mount(file_volume(tmp_path, {"metrics": {"address": address}})).start()
    files = [mount.path / str(number) for number in range(300)]
    expect_awake(address, burst(partial(file.write_bytes, b"x" * 100) for file in files))
    burst(partial(file.write_bytes, b"y" * 100) for file in files)
    mount.kill()
    if has_use():
        wait_until(AT_EASE)


def test_a_read_only_mount_does_as_well(tmp_path: Path, make_mount: MakeMount) -> None:
    """Who looks into a volume beside its writer waits no longer than the writer's programs."""
    volume = file_volume(tmp_path)
    writer = make_mount(volume).start()
    for number in range(300):
        (writer.path / str(number)).write_bytes(b"x" * 100)
    writer.umount()
    address = f"127.0.0.1:{free_port()}"
    mount = make_mount(volume, "reader", settings={"metrics": {"address": address}})
    mount.start("--read-only")
    files = [mount.path / str(number) for number in range(300)]
    expect_awake(address, burst(file.read_bytes for file in files))
    assert os.getpriority(os.PRIO_PROCESS, mount.process.pid) < 0
    mount.umount()


def test_the_daemon_goes_first_and_its_worker_last(tmp_path: Path) -> None:
    """A kernel that schedules sessions as groups looks at the group's niceness first: sched(7)."""
    background = Background(file_volume(tmp_path, {"mount": {"nice": -5}}))
    try:
        place = background.mount()
        daemon = background.status(place)["writer"]["pid"]
        (place / "file").write_bytes(b"bytes")
        assert background.run("sync", str(place)).returncode == 0
        children = Path(f"/proc/{daemon}/task/{daemon}/children").read_text(encoding="ascii")
        (worker,) = map(int, children.split())
        short_ns = 100_000 if ARE_HEARD else turn_ns(0)
        for pid, nice, turn in ((daemon, -5, short_ns), (worker, 10, turn_ns(0))):
            assert os.getpriority(os.PRIO_PROCESS, pid) == nice
            assert turn_ns(pid) == turn
            assert os.getsid(pid) == pid
            autogroup = Path(f"/proc/{pid}/autogroup")
            if autogroup.exists() and (group := autogroup.read_text(encoding="ascii")):
                assert group.rstrip().endswith(f" nice {nice}")
    finally:
        background.close()
