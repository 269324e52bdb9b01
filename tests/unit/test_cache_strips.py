"""Strips of the block cache: one file for neighbouring blocks that were put together.

Broken, a block is served that is not the newest, one flipped bit costs more than its strip, or
every block costs a file again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3fs_banyan.data.blocks import charge_of
from s3fs_banyan.data.cache import DiskBlockCache

BLOCK = 4096
STRIP = 4 * BLOCK
LIMIT = 16 * charge_of(STRIP)


def _open(directory: Path, limit: int = LIMIT) -> DiskBlockCache:
    return DiskBlockCache(directory, limit, block_bytes=BLOCK, strip_bytes=STRIP)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[DiskBlockCache]:
    """A cache of sixteen strips of four blocks."""
    opened = _open(tmp_path / "cache")
    yield opened
    opened.close()


def _bytes(first: int, count: int, salt: int = 0) -> bytes:
    return b"".join(bytes([(first + i + salt) % 251 + 1]) * BLOCK for i in range(count))


def _files(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*.val"))


def _blocks(cache: DiskBlockCache, numbers: Sequence[int]) -> list[bytes | None]:
    return [cache.get("a", index) for index in numbers]


def test_a_run_takes_a_file_for_each_strip(cache: DiskBlockCache, tmp_path: Path) -> None:
    """Ten blocks from the second on: two alone, then a strip of four, then one of three."""
    cache.put_run("a", 2, _bytes(2, 8) + b"short")
    assert len(_files(tmp_path)) == cache.stats().entries == 4
    assert _blocks(cache, range(2, 10)) == [_bytes(i, 1) for i in range(2, 10)]
    assert cache.get("a", 10) == b"short"
    assert _blocks(cache, [0, 1, 11, 12]) == [None] * 4
    used = 2 * charge_of(BLOCK) + charge_of(STRIP) + charge_of(2 * BLOCK + 5)
    assert cache.stats().bytes == used


def test_strips_survive_a_restart_with_less_room(tmp_path: Path) -> None:
    """A cache too small for strips still reads, and evicts, those of a larger one."""
    large = _open(tmp_path)
    large.put_object("a", _bytes(0, 8))
    large.close()
    small = _open(tmp_path, 2 * charge_of(STRIP))
    assert _blocks(small, range(8)) == [_bytes(i, 1) for i in range(8)]
    small.put_run("b", 0, _bytes(0, 3))
    assert _blocks(small, range(8)).count(None) == 4
    assert len(_files(tmp_path)) == 1 + 3
    small.close()


def test_the_newest_put_of_a_block_wins(cache: DiskBlockCache, tmp_path: Path) -> None:
    """A block beside its strip is newer; a strip put later replaces it."""
    cache.put_run("a", 0, _bytes(0, 4))
    cache.put("a", 1, _bytes(1, 1, salt=9))
    assert _blocks(cache, range(3)) == [_bytes(0, 1), _bytes(1, 1, salt=9), _bytes(2, 1)]
    cache.put_run("a", 0, _bytes(0, 4))
    assert _blocks(cache, range(4)) == [_bytes(i, 1) for i in range(4)]
    assert len(_files(tmp_path)) == 1


def test_what_is_kept_already_is_not_written_again(cache: DiskBlockCache, tmp_path: Path) -> None:
    """Neither a part of a strip nor one of its blocks."""
    cache.put_run("a", 0, _bytes(0, 4))
    before = _files(tmp_path)
    cache.put_run("a", 0, _bytes(0, 2))
    cache.put_run("a", 1, _bytes(1, 3))
    cache.put("a", 3, _bytes(3, 1))
    assert _files(tmp_path) == before
    cache.put_run("a", 0, _bytes(0, 3) + b"otherwise")
    assert cache.get("a", 3) == b"otherwise"
    assert len(_files(tmp_path)) == 1


def test_a_block_that_a_strip_lacks_is_a_miss_and_costs_nothing(cache: DiskBlockCache) -> None:
    """A strip may end before the object does."""
    cache.put_run("a", 0, _bytes(0, 2))
    assert _blocks(cache, range(4)) == [_bytes(0, 1), _bytes(1, 1), None, None]
    cache.put_run("a", 2, _bytes(2, 2))
    assert _blocks(cache, range(4)) == [_bytes(i, 1) for i in range(4)]
    assert cache.stats().damaged == 0


@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_damage_to_a_strip_costs_that_strip(
    tmp_path: Path, harm: str, cache: DiskBlockCache
) -> None:
    """A block before the flipped bit is still good; the damaged one is a miss, and so is the
    strip from then on: nothing of it is served."""
    cache.put_run("a", 0, _bytes(0, 8))
    strip = next(file for file in _files(tmp_path) if file.read_bytes() == _bytes(0, 4))
    if harm == "remove":
        strip.unlink()
    else:
        data = bytearray(strip.read_bytes())
        data[2 * BLOCK + 7] ^= 8
        strip.write_bytes(data if harm == "flip" else data[: 2 * BLOCK + 7])
    if harm != "remove":
        assert cache.get("a", 0) == _bytes(0, 1)
    assert cache.get("a", 2) is None
    assert _blocks(cache, range(8)) == [None] * 4 + [_bytes(i, 1) for i in range(4, 8)]
    assert cache.stats().damaged == (harm != "remove")


def test_a_strip_in_use_outlives_those_that_are_not(cache: DiskBlockCache) -> None:
    """One block of it that is read keeps the whole of it."""
    for number in range(16):
        cache.put_run("a", 4 * number, _bytes(4 * number, 4))
    assert cache.get("a", 2) == _bytes(2, 1)
    cache.put_run("b", 0, _bytes(0, 4))
    assert cache.get("a", 0) == _bytes(0, 1)
    assert cache.get("a", 4) is None
    assert cache.stats().bytes == LIMIT


def test_an_object_is_forgotten_with_its_strips(cache: DiskBlockCache, tmp_path: Path) -> None:
    """And its neighbours by name are not."""
    for key in ("a", "a0", "as"):
        cache.put_run(key, 0, _bytes(0, 5))
    cache.forget("a")
    assert _blocks(cache, range(5)) == [None] * 5
    assert cache.get("a0", 4) == cache.get("as", 4) == _bytes(4, 1)
    assert len(_files(tmp_path)) == 4


_INDEX = st.integers(0, 9)


def _steps(salts: int) -> st.SearchStrategy[list[tuple[str, int, int, int]]]:
    salt = st.integers(0, salts)
    return st.lists(
        st.one_of(
            st.tuples(st.just("run"), _INDEX, st.integers(1, 9), salt),
            st.tuples(st.just("put"), _INDEX, st.just(1), salt),
            st.tuples(st.just("get"), _INDEX, st.just(1), st.just(0)),
            st.tuples(st.just("forget"), st.just(0), st.just(0), st.just(0)),
            st.tuples(st.just("flush"), st.just(0), st.just(0), st.just(0)),
        ),
        max_size=25,
    )


def _run(steps: list[tuple[str, int, int, int]], model: dict[int, bytes]) -> dict[int, bytes]:
    """Run a program, note in `model` what was put, and return what the cache has at the end."""
    with TemporaryDirectory() as directory:
        cache = _open(Path(directory))
        for kind, first, count, salt in steps:
            blocks = {first + i: _bytes(first + i, 1, salt) for i in range(count)}
            if kind == "run":
                model |= blocks
                cache.put_run("a", first, b"".join(blocks.values()))
            elif kind == "put":
                model |= blocks
                cache.put("a", first, blocks[first])
            elif kind == "get":
                assert cache.get("a", first) in {model.get(first), None}
            elif kind == "forget":
                model.clear()
                cache.forget("a")
            else:
                cache.flush_use()
        stats = cache.stats()
        assert (stats.damaged, stats.refused, stats.rebuilds, stats.evictions) == (0, 0, 0, 0)
        assert stats.entries == len(_files(Path(directory)))
        kept = {i: block for i in range(20) if (block := cache.get("a", i)) is not None}
        cache.close()
    return kept


@settings(max_examples=60, deadline=None)
@given(steps=_steps(salts=0))
def test_any_program_finds_all_that_was_put(steps: list[tuple[str, int, int, int]]) -> None:
    """The bytes of an object never change, and there is room for all of them."""
    model: dict[int, bytes] = {}
    assert _run(steps, model) == model


@settings(max_examples=60, deadline=None)
@given(steps=_steps(salts=2))
def test_any_program_reads_the_newest_bytes_or_nothing(
    steps: list[tuple[str, int, int, int]],
) -> None:
    """Bytes that differ are put after damage; what is older is never served again."""
    model: dict[int, bytes] = {}
    assert _run(steps, model).items() <= model.items()
