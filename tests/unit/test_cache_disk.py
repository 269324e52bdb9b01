"""What the disk-backed block cache adds to the contract: order of use, bounds, processes, threads.

Damage and loss are in `test_cache_damage.py`.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3fs_banyan.data.blocks import charge_of
from s3fs_banyan.data.cache import DiskBlockCache

BLOCK = 16 * 1024
FULL = charge_of(BLOCK)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def cache(directory: Path) -> Iterator[DiskBlockCache]:
    """Open a cache of eight full blocks."""
    opened = DiskBlockCache(directory, 8 * FULL, block_bytes=BLOCK)
    yield opened
    opened.close()


def filled(byte: int, length: int = BLOCK) -> bytes:
    return bytes([byte]) * length


def value_files(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*.val"))


def present(cache: DiskBlockCache, count: int) -> list[int]:
    return [index for index in range(count) if cache.get("a", index) is not None]


def test_blocks_and_their_order_of_use_survive_a_restart(directory: Path) -> None:
    with_room = DiskBlockCache(directory, 3 * FULL, block_bytes=BLOCK)
    for index in range(3):
        with_room.put("a", index, filled(index))
    assert with_room.get("a", 0) == filled(0)
    with_room.close()

    again = DiskBlockCache(directory, 3 * FULL, block_bytes=BLOCK)
    again.put("a", 3, filled(3))
    assert present(again, 4) == [0, 2, 3]
    assert again.stats().bytes == 3 * FULL
    again.close()


def test_a_lower_limit_is_enforced_when_opening(directory: Path) -> None:
    large = DiskBlockCache(directory, 300 * FULL, block_bytes=BLOCK)
    for index in range(300):
        large.put("a", index, filled(index % 250))
    large.close()
    small = DiskBlockCache(directory, 5 * FULL, block_bytes=BLOCK)
    assert small.stats().bytes == 5 * FULL
    assert len(value_files(directory)) == 5
    assert present(small, 300) == [295, 296, 297, 298, 299]
    small.close()


def test_blocks_of_another_size_are_dropped(directory: Path) -> None:
    """Block 1 of 16 KiB is no block 1 of 32 KiB, though its checksum is right."""
    before = DiskBlockCache(directory, 64 * FULL, block_bytes=BLOCK)
    before.put_object("a", filled(1, 3 * BLOCK))
    before.put("b", 1, filled(2))
    before.close()
    larger = DiskBlockCache(directory, 64 * FULL, block_bytes=2 * BLOCK)
    assert present(larger, 3) == []
    assert larger.get("b", 1) is None
    assert value_files(directory) == []
    larger.put("b", 1, filled(3, 2 * BLOCK))
    assert larger.get("b", 1) == filled(3, 2 * BLOCK)
    assert larger.stats().damaged == larger.stats().rebuilds == 0
    larger.close()


def test_nobody_else_may_enter_the_directory(directory: Path) -> None:
    directory.mkdir(mode=0o755)
    DiskBlockCache(directory, 8 * FULL, block_bytes=BLOCK).close()
    inside = [path for path in directory.rglob("*") if path.is_dir()]
    assert inside
    assert [stat.S_IMODE(path.stat().st_mode) for path in (directory, *inside)] == [0o700] * (
        len(inside) + 1
    )


def test_a_relative_directory_outlives_a_change_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon changes to the root directory."""
    monkeypatch.chdir(tmp_path)
    cache = DiskBlockCache(Path("cache"), 8 * FULL, block_bytes=BLOCK)
    monkeypatch.chdir("/")
    cache.put("a", 0, filled(1))
    assert cache.get("a", 0) == filled(1)
    assert cache.stats().rebuilds == 0
    cache.close()
    assert len(value_files(tmp_path / "cache")) == 1


def test_a_directory_that_diskcache_would_rewrite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no \\$ in its path"):
        DiskBlockCache(tmp_path / "$HOME", 8 * FULL, block_bytes=BLOCK)
    assert list(tmp_path.iterdir()) == []


def test_a_get_writes_nothing(cache: DiskBlockCache, directory: Path) -> None:
    for index in range(4):
        cache.put("a", index, filled(index))

    def fingerprint() -> list[tuple[str, int, int]]:
        files = [path for path in directory.rglob("*") if path.is_file()]
        return sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)

    before = fingerprint()
    assert [cache.get("a", number % 5) for number in range(500)].count(None) == 100
    # The shared-memory index of SQLite's log is not on the disk; readers mark it.
    assert [each for each in fingerprint() if "-shm" not in each[0]] == [
        each for each in before if "-shm" not in each[0]
    ]


def test_the_disk_used_stays_near_the_limit(cache: DiskBlockCache, directory: Path) -> None:
    rng = random.Random(20261124)
    for number in range(400):
        cache.put("a", number, rng.randbytes(rng.randint(1, BLOCK)))
        files = value_files(directory)
        assert sum(path.stat().st_blocks * 512 for path in files) <= 8 * FULL
        assert cache.stats().bytes <= 8 * FULL
        assert len(files) == cache.stats().entries


def test_the_file_of_a_replaced_block_goes(cache: DiskBlockCache, directory: Path) -> None:
    for byte in range(5):
        cache.put("a", 0, filled(byte))
    assert len(value_files(directory)) == 1
    assert cache.stats().evictions == 0


def test_one_put_evicts_no_more_than_it_needs(directory: Path) -> None:
    cache = DiskBlockCache(directory, 64 * FULL, block_bytes=BLOCK)
    for index in range(64 * FULL // charge_of(1)):
        cache.put("small", index, b"x")
    assert cache.stats().evictions == 0
    cache.put("a", 0, filled(1))
    assert 0 < cache.stats().evictions <= -(-FULL // charge_of(1))
    assert cache.stats().bytes > 64 * FULL - charge_of(1)
    cache.close()


def test_eviction_ends_when_every_block_is_in_use(directory: Path) -> None:
    """Blocks in use are spared, but only so many: a put must end, and within the limit."""
    cache = DiskBlockCache(directory, 200 * charge_of(1), block_bytes=1)
    for index in range(200):
        cache.put("a", index, b"x")
    assert len(present(cache, 200)) == 200
    cache.put("a", 200, b"x")
    assert (cache.stats().entries, cache.stats().evictions) == (200, 1)
    assert present(cache, 201) == [*range(64), *range(65, 201)]
    cache.close()


def test_many_more_uses_than_notes_are_bounded(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s3fs_banyan.data.cache._NOTES_MAX", 2)
    cache = DiskBlockCache(directory, 4 * FULL, block_bytes=BLOCK)
    for index in range(4):
        cache.put("a", index, filled(index))
    assert present(cache, 4) == [0, 1, 2, 3]
    assert len(cache._notes) == 2
    cache.flush_use()
    cache.put("a", 4, filled(4))
    cache.put("a", 5, filled(5))
    assert present(cache, 6) == [2, 3, 4, 5]
    cache.close()


def test_threads_get_their_own_bytes_within_the_limit(cache: DiskBlockCache) -> None:
    wrong: list[object] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        try:
            for _ in range(300):
                key, index = rng.choice("abc"), rng.randrange(8)
                want = filled(ord(key) + index)
                match rng.randrange(8):
                    case 0 | 1 | 2:
                        cache.put(key, index, want)
                    case 3 if rng.random() < 0.2:
                        cache.forget(key)
                    case 4 if rng.random() < 0.2:
                        cache.flush_use()
                    case _:
                        got = cache.get(key, index)
                        if got not in {None, want}:
                            wrong.append((key, index))
        except Exception as error:  # noqa: BLE001 - reported by the assertion below
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = cache.stats()
    assert wrong == []
    assert stats.hits > 0
    assert stats.bytes <= stats.limit
    assert (stats.damaged, stats.refused, stats.rebuilds) == (0, 0, 0)


def test_hits_and_misses_of_threads_are_all_counted(cache: DiskBlockCache) -> None:
    cache.put("a", 0, b"x")
    threads = [
        threading.Thread(target=lambda: [cache.get("a", number % 2) for number in range(500)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (cache.stats().hits, cache.stats().misses) == (1000, 1000)


def test_two_processes_share_one_directory_and_one_limit(
    cache: DiskBlockCache, directory: Path
) -> None:
    other = DiskBlockCache(directory, 8 * FULL, block_bytes=BLOCK)
    for index in range(20):
        (cache if index % 2 else other).put("a", index, filled(index))
    assert present(cache, 20) == present(other, 20) == list(range(12, 20))
    assert len(value_files(directory)) == 8
    other.forget("a")
    assert present(cache, 20) == []
    other.close()


_WRITER = """
import sys
from pathlib import Path
from s3fs_banyan.data.cache import DiskBlockCache
cache = DiskBlockCache(Path(sys.argv[1]), int(sys.argv[2]), block_bytes=int(sys.argv[3]))
print("open", flush=True)
number = 0
while True:
    cache.put_object(f"o{number % 7}", bytes([number % 7]) * (cache.block_bytes * 5 + number % 100))
    number += 1
    if number == 10:
        print("busy", flush=True)
"""


def test_a_process_killed_while_writing_leaves_a_sound_cache(directory: Path) -> None:
    for _ in range(3):
        arguments = [sys.executable, "-c", _WRITER, str(directory), str(20 * FULL), str(BLOCK)]
        with subprocess.Popen(
            arguments, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        ) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "open\n"
            assert writer.stdout.readline() == "busy\n"
            os.kill(writer.pid, signal.SIGKILL)
        cache = DiskBlockCache(directory, 20 * FULL, block_bytes=BLOCK)
        kept = [
            cache.get(f"o{number}", index) or filled(number)
            for number in range(7)
            for index in range(5)
        ]
        assert kept == [filled(number) for number in range(7) for _ in range(5)]
        stats = cache.stats()
        assert stats.hits > 0
        assert (stats.damaged, stats.rebuilds) == (0, 0)
        assert len(value_files(directory)) == stats.entries
        cache.close()


def test_files_without_a_row_go_at_the_next_start(cache: DiskBlockCache, directory: Path) -> None:
    cache.put("a", 0, filled(1))
    cache.close()
    (kept,) = value_files(directory)
    orphan = kept.with_name("0" * 30 + ".val")
    orphan.write_bytes(b"written, never committed")
    leftover = directory / "gone-before"
    leftover.mkdir()
    (leftover / "something").touch()
    again = DiskBlockCache(directory, 8 * FULL, block_bytes=BLOCK)
    assert value_files(directory) == [kept]
    assert not leftover.exists()
    assert again.get("a", 0) == filled(1)
    again.close()


def test_wrong_totals_are_put_right_at_the_next_start(
    cache: DiskBlockCache, directory: Path
) -> None:
    cache.put("a", 0, filled(1))
    cache.close()
    (database,) = directory.rglob("cache.db")
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE Settings SET value = 12345678 WHERE key IN ('size', 'count')")
    connection.close()
    again = DiskBlockCache(directory, 8 * FULL, block_bytes=BLOCK)
    assert (again.stats().bytes, again.stats().entries) == (FULL, 1)
    assert again.get("a", 0) == filled(1)
    again.close()
