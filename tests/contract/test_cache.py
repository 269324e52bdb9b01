"""The contract of the block cache, over every implementation that keeps something.

Broken, the mount serves wrong bytes, fills the local disk, or reads everything twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3fs_banyan.data.blocks import BlockCache, MemoryBlockCache, charge_of
from s3fs_banyan.data.cache import DiskBlockCache

BLOCK = 16 * 1024

Make = Callable[[Path, int], BlockCache]


def _disk(directory: Path, size_bytes: int) -> BlockCache:
    return DiskBlockCache(directory, size_bytes, block_bytes=BLOCK)


def _memory(directory: Path, size_bytes: int) -> BlockCache:
    del directory
    return MemoryBlockCache(size_bytes, block_bytes=BLOCK)


@pytest.fixture(params=[_disk, _memory])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[int], BlockCache]]:
    """Make caches of a given count of full blocks."""
    made: list[BlockCache] = []

    def build(blocks: int) -> BlockCache:
        made.append(request.param(tmp_path / "cache", blocks * charge_of(BLOCK)))
        return made[-1]

    yield build
    for cache in made:
        cache.close()


def filled(byte: int, length: int = BLOCK) -> bytes:
    """Return recognisable bytes."""
    return bytes([byte]) * length


def test_an_unknown_block_is_a_miss(make: Callable[[int], BlockCache]) -> None:
    cache = make(4)
    assert cache.get("pack/1/a", 0) is None
    assert (cache.stats().hits, cache.stats().misses) == (0, 1)


@pytest.mark.parametrize("length", [1, 4095, 4096, 4097, BLOCK])
def test_a_block_comes_back_as_it_was_put(make: Callable[[int], BlockCache], length: int) -> None:
    cache = make(4)
    cache.put("pack/1/a", 3, memoryview(filled(7, length)))
    got = cache.get("pack/1/a", 3)
    assert type(got) is bytes
    assert got == filled(7, length)
    assert cache.stats().bytes == charge_of(length)
    assert (cache.stats().entries, cache.stats().hits) == (1, 1)


def test_the_newest_put_of_a_block_wins(make: Callable[[int], BlockCache]) -> None:
    cache = make(4)
    cache.put("a", 0, filled(1))
    cache.put("a", 0, filled(2, 100))
    cache.put("a", 0, filled(2, 100))
    assert cache.get("a", 0) == filled(2, 100)
    assert cache.stats().bytes == charge_of(100)
    assert cache.stats().entries == 1


@pytest.mark.parametrize("length", [0, BLOCK + 1])
def test_bytes_that_are_no_block_are_refused(
    make: Callable[[int], BlockCache], length: int
) -> None:
    cache = make(4)
    with pytest.raises(ValueError, match="a block has 1 to"):
        cache.put("a", 0, bytes(length))
    assert cache.stats().entries == 0


@pytest.mark.parametrize(("key", "index"), [("a\x1fb", 0), ("a", -1)])
def test_a_name_that_is_no_block_is_refused(
    make: Callable[[int], BlockCache], key: str, index: int
) -> None:
    cache = make(4)
    with pytest.raises(ValueError, match="no block of an object"):
        cache.put(key, index, b"x")
    with pytest.raises(ValueError, match="no block of an object"):
        cache.get(key, index)


def test_a_cache_smaller_than_a_block_is_refused(tmp_path: Path) -> None:
    for build in (_disk, _memory):
        with pytest.raises(ValueError, match="size_bytes"):
            build(tmp_path, BLOCK)


@pytest.mark.parametrize("extra", [0, 1, BLOCK - 1])
def test_an_object_is_split_into_blocks(make: Callable[[int], BlockCache], extra: int) -> None:
    cache = make(40)
    data = b"".join(filled(number) for number in range(20)) + filled(99, extra)
    cache.put_object("log/1", data)
    count = 21 if extra else 20
    assert b"".join(cache.get("log/1", index) or b"" for index in range(count)) == data
    assert cache.get("log/1", count) is None
    assert cache.stats().entries == count
    assert cache.block_bytes == BLOCK


def test_an_empty_object_has_no_blocks(make: Callable[[int], BlockCache]) -> None:
    cache = make(4)
    cache.put_object("log/1", b"")
    assert cache.stats().entries == 0


def test_forget_drops_all_blocks_of_that_object_alone(make: Callable[[int], BlockCache]) -> None:
    cache = make(40)
    neighbours = ["pack/1", "pack/1/a", "pack/1/bc", "pack/1/b/c", "pack/1/b ", "pack/1/b!"]
    for key in [*neighbours, "pack/1/b"]:
        cache.put_object(key, filled(1) + filled(2) + key.encode())
    cache.forget("pack/1/b")
    cache.forget("never/seen")
    assert [cache.get("pack/1/b", index) for index in range(3)] == [None] * 3
    for key in neighbours:
        assert cache.get(key, 0) == filled(1)
        assert cache.get(key, 2) == key.encode()
    assert cache.stats().entries == 3 * len(neighbours)


@pytest.mark.parametrize("is_flushed", [False, True])
def test_the_least_recently_used_block_goes_first(
    make: Callable[[int], BlockCache], is_flushed: bool
) -> None:
    cache = make(3)
    for index in range(3):
        cache.put("a", index, filled(index))
    assert cache.get("a", 0) == filled(0)
    if is_flushed:
        cache.flush_use()
    cache.put("a", 3, filled(3))
    assert [cache.get("a", index) is not None for index in range(4)] == [True, False, True, True]
    assert cache.stats().evictions == 1


@pytest.mark.parametrize("is_flushed", [False, True])
def test_the_last_use_of_a_block_counts(
    make: Callable[[int], BlockCache], is_flushed: bool
) -> None:
    cache = make(3)
    for index in range(3):
        cache.put("a", index, filled(index))
    for index in (0, 1, 2, 0):
        assert cache.get("a", index) == filled(index)
    if is_flushed:
        cache.flush_use()
        cache.put("a", 3, filled(3))
        assert cache.get("a", 1) is None
    else:
        cache.put("a", 3, filled(3))
    assert cache.get("a", 3) == filled(3)
    assert cache.stats().entries == 3


def test_putting_a_block_again_is_a_use(make: Callable[[int], BlockCache]) -> None:
    cache = make(2)
    cache.put("a", 0, filled(0))
    cache.put("a", 1, filled(1))
    cache.put("a", 0, filled(0))
    cache.put("a", 2, filled(2))
    assert cache.get("a", 0) == filled(0)
    assert cache.get("a", 1) is None


@pytest.mark.parametrize("count", [48, 50])
def test_an_object_larger_than_the_cache_leaves_its_end(
    make: Callable[[int], BlockCache], count: int
) -> None:
    cache = make(5)
    cache.put_object("a", b"".join(filled(number) for number in range(count)))
    assert cache.stats().entries == 5
    assert [cache.get("a", index) for index in range(count - 5, count)] == [
        filled(number) for number in range(count - 5, count)
    ]


def test_nothing_is_kept_after_close(make: Callable[[int], BlockCache]) -> None:
    cache = make(4)
    cache.put("a", 0, filled(1))
    cache.close()
    assert cache.get("a", 0) is None
    cache.put("a", 0, filled(1))
    cache.forget("a")
    cache.flush_use()
    assert cache.get("a", 0) is None
    assert (cache.stats().entries, cache.stats().refused) == (0, 1)
    cache.close()


_KEYS = st.sampled_from(["pack/1/a", "pack/1/b", "log/7"])
_STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("put"),
            _KEYS,
            st.integers(0, 3),
            st.integers(1, BLOCK),
            st.integers(0, 255),
        ),
        st.tuples(st.just("get"), _KEYS, st.integers(0, 3)),
        st.tuples(st.just("forget"), _KEYS),
        st.tuples(st.just("flush")),
    ),
    max_size=60,
)


@pytest.mark.parametrize("build", [_disk, _memory])
@settings(max_examples=30, deadline=None)
@given(steps=_STEPS)
def test_any_program_reads_the_newest_bytes_or_nothing(
    build: Make, steps: list[tuple[object, ...]]
) -> None:
    limit = 4 * charge_of(BLOCK)
    model: dict[tuple[str, int], bytes] = {}
    with TemporaryDirectory() as directory:
        cache = build(Path(directory), limit)
        for step in steps:
            match step:
                case ("put", str(key), int(index), int(length), int(byte)):
                    model[key, index] = filled(byte, length)
                    cache.put(key, index, model[key, index])
                    assert cache.get(key, index) == model[key, index]
                case ("get", str(key), int(index)):
                    assert cache.get(key, index) in {None, model.get((key, index))}
                case ("forget", str(key)):
                    model = {name: data for name, data in model.items() if name[0] != key}
                    cache.forget(key)
                    assert all(cache.get(key, index) is None for index in range(4))
                case _:
                    cache.flush_use()
            assert cache.stats().bytes <= limit
        kept = {name: data for name, data in model.items() if cache.get(*name) is not None}
        stats = cache.stats()
        assert stats.entries == len(kept)
        assert stats.bytes == sum(charge_of(len(data)) for data in kept.values())
        assert (stats.damaged, stats.refused, stats.rebuilds) == (0, 0, 0)
        if not stats.evictions:
            assert kept == model
        cache.close()
