"""Keeping processors awake: in bursts, for a share of the time, and never left behind."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import trio
import trio.testing

from s3fs_banyan import processors as module
from s3fs_banyan.processors import Processors, open_processors

AWAKE, AT_EASE = 0, 2_000_000_000
MS = 1_000_000


class Clock:
    """The monotonic clock, moved by hand and by sleeping."""

    def __init__(self) -> None:
        self.now_ns = 10**12

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The module's clock."""
    clock = Clock()
    monkeypatch.setattr(module, "monotonic_ns", clock)
    return clock


class Device:
    """A file in the place of /dev/cpu_dma_latency: it keeps every request that was written."""

    def __init__(self, directory: Path, driver: str = "haltpoll") -> None:
        self.path, self.driver = directory / "device", directory / "driver"
        self.path.touch()
        self.driver.write_text(f"{driver}\n")

    def open(self, share: float = 0.25) -> Processors | None:
        return open_processors(share, device=self.path, driver=self.driver)

    def must_open(self, share: float = 0.25) -> Processors:
        opened = self.open(share)
        assert opened is not None
        return opened

    def asked(self) -> list[int]:
        return [value for (value,) in struct.iter_unpack("=i", self.path.read_bytes())]


def burst(processors: Processors, clock: Clock, count: int, gap_ns: int) -> None:
    """Let requests come."""
    for _ in range(count):
        clock.now_ns += gap_ns
        processors.request()


def test_a_burst_keeps_awake_and_single_requests_do_not(tmp_path: Path, clock: Clock) -> None:
    """A probe ten times a second must not cost the host a processor."""
    device = Device(tmp_path)
    processors = device.must_open()
    burst(processors, clock, 50, 5 * MS)
    assert device.asked() == []
    burst(processors, clock, 8, MS // 10)
    assert device.asked() == [AWAKE]
    burst(processors, clock, 100, MS // 10)
    assert device.asked() == [AWAKE]


async def test_a_burst_ends_when_requests_cease(
    tmp_path: Path, clock: Clock, autojump_clock: trio.testing.MockClock
) -> None:
    """And when the mount ends, whatever the reason; the time awake is counted."""
    del autojump_clock
    device = Device(tmp_path)
    processors = device.must_open()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(processors.run)
        for _ in range(2):
            burst(processors, clock, 20, MS // 10)
            assert processors.awake
            clock.now_ns += 4 * MS
            await trio.sleep(0.1)
            assert not processors.awake
            clock.now_ns += 1000 * MS
        burst(processors, clock, 20, MS // 10)
        nursery.cancel_scope.cancel()
    assert device.asked() == [AWAKE, AT_EASE] * 3
    assert 0.008 < processors.awake_s < 0.02


async def test_no_more_than_its_share_is_spent_awake(
    tmp_path: Path, clock: Clock, autojump_clock: trio.testing.MockClock
) -> None:
    """Requests without end: two seconds saved up, then a quarter of the time."""
    del autojump_clock
    device = Device(tmp_path)
    processors = device.must_open(0.25)
    seconds = 60
    async with trio.open_nursery() as nursery:
        nursery.start_soon(processors.run)
        for _ in range(seconds * 1000):
            burst(processors, clock, 10, MS // 10)
            await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    assert 0.25 * seconds < processors.awake_s < 2.2 + 0.25 * seconds
    assert device.asked()[-1] == AT_EASE
    assert len(device.asked()) > 20


@pytest.mark.parametrize("why", ["share", "driver", "processors", "device"])
def test_nothing_is_asked_where_nothing_is_to_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """On bare metal, on a large machine, in a container without the device, or when told so."""
    device = Device(tmp_path, driver="intel_idle" if why == "driver" else "haltpoll")
    if why == "device":
        device.path.unlink()
    monkeypatch.setattr("os.cpu_count", lambda: 64 if why == "processors" else 2)
    assert device.open(0.0 if why == "share" else 0.25) is None
