"""Ranges of store objects: what is fetched, how many at once, and never twice."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import trio

from s3fs_banyan.data.blocks import BLOCK_BYTES, MemoryBlockCache
from s3fs_banyan.data.objects import ObjectReader
from s3fs_banyan.errors import ObjectMissing, Unavailable
from s3fs_banyan.observe.metrics import Metrics
from s3fs_banyan.remote.memory import MemoryStore
from tests.unit.engine_kit import StepRuntime, T, Ts

MIB = 1 << 20
SIZE = 96 * MIB
DATA = os.urandom(SIZE)
STEP = 300_000


class SlowRuntime(StepRuntime):
    """Requests to the store take a virtual second each and are counted while they run."""

    def __init__(self) -> None:
        super().__init__()
        self.running = 0
        self.most = 0

    async def in_thread(self, fn: Callable[[*Ts], T], *args: *Ts, pool: str = "disk") -> T:
        if pool != "store":
            return await super().in_thread(fn, *args, pool=pool)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await trio.sleep(1)
            return fn(*args)
        finally:
            self.running -= 1


class RangeStore(MemoryStore):
    """Notes every range that is read; refuses from byte `broken_from` on."""

    def __init__(self) -> None:
        super().__init__(clock=lambda: 0)
        self.ranges: list[tuple[int, int]] = []
        self.broken_from = SIZE

    def read(self, path: str, *, offset: int = 0, length: int | None = None) -> bytes:
        assert length is not None
        if offset >= self.broken_from:
            raise Unavailable("the line broke")
        self.ranges.append((offset, length))
        return super().read(path, offset=offset, length=length)


class Bench:
    """A reader over one large object."""

    def __init__(self, *, cache: MemoryBlockCache | None = None, ranges_max: int = 4) -> None:
        self.store = RangeStore()
        for number in range(2):
            self.store.write(f"pack/{number}", DATA)
        self.runtime = SlowRuntime()
        self.cache = cache or MemoryBlockCache(256 * MIB)
        self.reader = ObjectReader(
            store=self.store,
            cache=self.cache,
            runtime=self.runtime,
            metrics=Metrics(),
            is_patient=False,
            ranges_max=ranges_max,
        )

    async def read_all(self, key: str = "pack/0", end: int = SIZE) -> None:
        """Read from the beginning to `end`, and check every byte."""
        for offset in range(0, end, STEP):
            length = min(STEP, end - offset)
            assert (
                await self.reader.read(key, offset, length, SIZE) == DATA[offset : offset + length]
            )


async def test_a_sequence_is_read_ahead_in_several_ranges_and_nothing_twice(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """One request after the other leaves a fast store idle; a block fetched twice is paid twice."""
    del autojump_clock
    bench = Bench()
    async with trio.open_nursery() as nursery:
        bench.reader.nursery = nursery
        begin = trio.current_time()
        await bench.read_all()
        spent_s = trio.current_time() - begin
    assert sum(length for _, length in bench.store.ranges) == SIZE
    assert 3 <= bench.runtime.most <= 4
    assert spent_s < len(bench.store.ranges) * 2 / 3


async def test_a_file_that_goes_on_in_the_next_object_leaves_no_gap(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What comes next is on its way before the reader is there, within the same memory."""
    del autojump_clock
    bench = Bench()
    reader = bench.reader
    async with trio.open_nursery() as nursery:
        reader.nursery = nursery
        ended_at = SIZE
        for offset in range(0, SIZE, STEP):
            await reader.read("pack/0", offset, min(STEP, SIZE - offset), SIZE)
            if reader.ending and ended_at == SIZE:
                ended_at = offset
                reader.go_on("pack/1", 0, SIZE)
            await trio.testing.wait_all_tasks_blocked()
            ahead = len(reader._arrived) * BLOCK_BYTES + bench.runtime.running * 8 * MIB
            assert ahead <= reader.ahead_bytes_max + 8 * MIB
        assert ended_at <= SIZE - 16 * MIB
        known = [*reader._in_flight, *reader._arrived]
        begun = {index for key, index in known if key == "pack/1"}
        assert set(range(16 * MIB // BLOCK_BYTES)) <= begun
        await bench.read_all("pack/1")
    assert sum(length for _, length in bench.store.ranges) == 2 * SIZE
    assert bench.runtime.most == 4


async def test_what_comes_next_and_is_cached_is_not_fetched(
    autojump_clock: trio.testing.MockClock,
) -> None:
    del autojump_clock
    bench = Bench()
    bench.cache.put_object("pack/1", DATA)
    async with trio.open_nursery() as nursery:
        bench.reader.nursery = nursery
        bench.reader.go_on("pack/1", 5 * MIB, SIZE)
        await trio.sleep(10)
        bench.reader.go_on("pack/1", SIZE - 5 * MIB, SIZE)
        assert bench.reader.ending == {"pack/1"}
        await trio.sleep(10)
    assert bench.store.ranges == []
    assert not bench.reader.ending


async def test_single_reads_of_a_large_object_fetch_no_more_than_a_run(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Random reads must not drag in what nobody asked for."""
    del autojump_clock
    bench = Bench()
    async with trio.open_nursery() as nursery:
        bench.reader.nursery = nursery
        for offset in (30 * MIB, 5 * MIB, 20 * MIB):
            await bench.reader.read("pack/0", offset, 1000, SIZE)
    assert [length for _, length in bench.store.ranges] == [MIB] * 3


async def test_what_is_cached_is_not_fetched_ahead(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A warm object with a hole in it costs the hole."""
    del autojump_clock
    bench = Bench()
    bench.cache.put_object("pack/0", DATA)
    cold = MemoryBlockCache(256 * MIB)
    hole = 8
    for index in range(SIZE // BLOCK_BYTES):
        block = bench.cache.get("pack/0", index)
        if block is not None and index >= hole:
            cold.put("pack/0", index, block)
    bench = Bench(cache=cold)
    async with trio.open_nursery() as nursery:
        bench.reader.nursery = nursery
        await bench.read_all()
    assert sum(length for _, length in bench.store.ranges) <= hole * BLOCK_BYTES + 4 * MIB


async def test_two_readers_share_what_is_fetched_ahead(
    autojump_clock: trio.testing.MockClock,
) -> None:
    del autojump_clock
    bench = Bench()
    async with trio.open_nursery() as nursery:
        bench.reader.nursery = nursery
        async with trio.open_nursery() as readers:
            readers.start_soon(bench.read_all)
            readers.start_soon(bench.read_all)
    assert sum(length for _, length in bench.store.ranges) == SIZE


@pytest.mark.allow_log_warnings
async def test_a_failed_read_ahead_is_met_by_whoever_needs_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It ends no service, and the next reader asks the store again."""
    del autojump_clock
    bench = Bench()
    bench.store.broken_from = 4 * MIB
    async with trio.open_nursery() as nursery:
        bench.reader.nursery = nursery
        await bench.read_all(end=3 * MIB)
        with pytest.raises(Unavailable):
            await bench.reader.read("pack/0", 12 * MIB, 1000, SIZE)
        bench.store.broken_from = SIZE
        await bench.read_all()
        with pytest.raises(ObjectMissing):
            await bench.reader.read("pack/9", 0, 1000, SIZE)


async def test_a_cancelled_reader_leaves_nothing_behind_that_others_wait_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    del autojump_clock
    bench = Bench()
    with trio.move_on_after(0.5):
        await bench.reader.read("pack/0", 0, 1000, SIZE)
    with trio.fail_after(60):
        await bench.read_all(end=2 * MIB)


async def test_later_bytes_may_be_asked_for_first(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The kernel reads ahead with several requests at once. Whatever their order is, a block that
    two of them share is there for both, and none stays in RAM once all of it was read."""
    del autojump_clock
    bench = Bench()
    reader = bench.reader
    async with trio.open_nursery() as nursery:
        reader.nursery = nursery
        await bench.read_all(end=40 * STEP)
        from_disk = reader._metrics.read_hits["disk"].value
        for offset in range(40 * STEP, SIZE - SIZE % (2 * STEP), 2 * STEP):
            await trio.testing.wait_all_tasks_blocked()
            for begin in (offset + STEP, offset):
                end = min(begin + STEP, SIZE)
                assert await reader.read("pack/0", begin, end - begin, SIZE) == DATA[begin:end]
            read_whole = set(range((offset + STEP) // BLOCK_BYTES))
            left = {index for _, index in reader._arrived} & read_whole
            assert len(left) <= 1, "a block that was read whole stays"
        assert reader._metrics.read_hits["disk"].value == from_disk, "RAM had it no more"
        await bench.read_all()
    assert sum(length for _, length in bench.store.ranges) == SIZE


async def test_what_came_together_is_not_copied(autojump_clock: trio.testing.MockClock) -> None:
    """A copy of each byte is a tenth of what a cold read costs."""
    del autojump_clock
    bench = Bench()
    views = 0
    async with trio.open_nursery() as nursery:
        bench.reader.nursery = nursery
        for offset in range(0, SIZE, MIB):
            await trio.testing.wait_all_tasks_blocked()
            data = await bench.reader.read(
                "pack/0", offset + 100, min(MIB, SIZE - offset - 100), SIZE
            )
            assert data == DATA[offset + 100 : offset + 100 + MIB]
            views += isinstance(data, memoryview)
    assert views > SIZE // MIB * 3 // 4


async def test_a_block_that_is_left_holds_no_more_memory_than_there_may_be(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Of each object a block is left that only one read touches, and it holds all that came."""
    del autojump_clock
    bench = Bench()
    reader = bench.reader
    size, objects = 16 * MIB, 12
    for number in range(objects):
        bench.store.write(f"small/{number}", DATA[:size])
    starved = 0
    async with trio.open_nursery() as nursery:
        reader.nursery = nursery
        for number in range(objects):
            for offset in range(100, size, MIB):
                length = min(MIB, size - offset - 100)
                found = await reader.read(f"small/{number}", offset, length, size)
                assert found == DATA[offset : offset + length]
                if f"small/{number}" in reader.ending and number + 1 < objects:
                    reader.ending.discard(f"small/{number}")
                    reader.go_on(f"small/{number + 1}", 100, size)
                await trio.testing.wait_all_tasks_blocked()
                held = {id(came): len(came.data) for came in reader._arrived.values()}
                assert sum(held.values()) <= reader.ahead_bytes_max + 8 * MIB
            following = f"small/{number + 1}"
            known = [*reader._in_flight, *reader._arrived]
            starved += number + 1 < objects and not any(key == following for key, _ in known)
    assert not starved, "what comes next was not begun in time"
    assert sum(length for _, length in bench.store.ranges) == size * objects
