"""The block cache when its files are damaged, vanish, or find no room.

Broken, the mount serves wrong bytes, fails reads that the store could answer, or runs code that
somebody put into a cache directory.
"""

from __future__ import annotations

import errno
import os
import pickle
import random
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from s3fs_banyan.data.blocks import charge_of
from s3fs_banyan.data.cache import DiskBlockCache
from s3fs_banyan.data.cache_table import BytesDisk
from s3fs_banyan.errors import Corrupt

BLOCK = 16 * 1024
FULL = charge_of(BLOCK)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def damaged() -> list[tuple[str, int]]:
    """Collect what `on_damage` was told."""
    return []


@pytest.fixture
def cache(directory: Path, damaged: list[tuple[str, int]]) -> Iterator[DiskBlockCache]:
    """Open a cache of eight full blocks."""
    opened = DiskBlockCache(
        directory,
        8 * FULL,
        block_bytes=BLOCK,
        on_damage=lambda key, index: damaged.append((key, index)),
    )
    yield opened
    opened.close()


def filled(byte: int, length: int = BLOCK) -> bytes:
    return bytes([byte]) * length


def value_files(directory: Path) -> list[Path]:
    """Walk without minding directories that vanish meanwhile."""
    found = [Path(at, name) for at, _, names in os.walk(directory) for name in names]
    return sorted(path for path in found if path.suffix == ".val")


def database_of(directory: Path) -> Path:
    (found,) = directory.rglob("cache.db")
    return found


def change_rows(directory: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(database_of(directory))
    with connection:
        connection.execute(statement, values)
    connection.close()


def assert_works(cache: DiskBlockCache) -> None:
    """Put and get, twice around the limit."""
    for index in range(16):
        cache.put("works", index, filled(index))
        assert cache.get("works", index) == filled(index)
    assert cache.stats().bytes <= cache.stats().limit


# --- one block ---------------------------------------------------------------------------


def _flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _cut_short(path: Path) -> None:
    os.truncate(path, BLOCK - 1)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def _replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("harm", [_flip_bit, _cut_short, _empty, _lengthen, _replace_by_directory])
def test_a_damaged_block_is_a_miss_and_is_named_once(
    cache: DiskBlockCache,
    directory: Path,
    damaged: list[tuple[str, int]],
    harm: Callable[[Path], None],
) -> None:
    cache.put("pack/1/a", 5, filled(1))
    harm(value_files(directory)[0])
    assert cache.get("pack/1/a", 5) is None
    assert cache.get("pack/1/a", 5) is None
    assert damaged == [("pack/1/a", 5)]
    assert (cache.stats().damaged, cache.stats().entries, cache.stats().bytes) == (1, 0, 0)
    cache.put("pack/1/a", 5, filled(1))
    assert cache.get("pack/1/a", 5) == filled(1)


def _swap_files(directory: Path) -> None:
    first, second = value_files(directory)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def _swap_rows(directory: Path) -> None:
    for old, new in ((0, 7), (1, 0), (7, 1)):
        change_rows(
            directory, "UPDATE Cache SET key = ? WHERE key = ?", f"a\x1f{new}", f"a\x1f{old}"
        )


@pytest.mark.parametrize("swap", [_swap_files, _swap_rows])
def test_a_sound_block_in_another_ones_place_is_damage(
    cache: DiskBlockCache,
    directory: Path,
    damaged: list[tuple[str, int]],
    swap: Callable[[Path], None],
) -> None:
    """The name is part of the checksum: a file with its row under another name is found."""
    cache.put("a", 0, filled(1))
    cache.put("a", 1, filled(2))
    swap(directory)
    assert [cache.get("a", 0), cache.get("a", 1)] == [None, None]
    assert damaged == [("a", 0), ("a", 1)]


def test_a_vanished_file_is_a_plain_miss(
    cache: DiskBlockCache, directory: Path, damaged: list[tuple[str, int]]
) -> None:
    cache.put("a", 0, filled(1))
    cache.put("a", 1, filled(2))
    for path in value_files(directory):
        path.unlink()
    assert [cache.get("a", 0), cache.get("a", 1)] == [None, None]
    assert damaged == []
    assert (cache.stats().damaged, cache.stats().entries, cache.stats().bytes) == (0, 0, 0)
    assert_works(cache)


def test_out_of_file_descriptors_is_a_miss_that_loses_nothing(
    cache: DiskBlockCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.put("a", 0, filled(1))

    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr("s3fs_banyan.data.cache_table.os.open", refuse)
        assert cache.get("a", 0) is None
    assert cache.get("a", 0) == filled(1)
    assert cache.stats().damaged == 0


# --- rows that this cache never writes ---------------------------------------------------


class _Bomb:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self._path),)


@pytest.mark.parametrize("mode", [0, 1, 3, 4, 5, "2", None])
def test_no_row_is_ever_unpickled(
    cache: DiskBlockCache,
    directory: Path,
    tmp_path: Path,
    damaged: list[tuple[str, int]],
    mode: object,
) -> None:
    cache.put("a", 0, filled(1))
    bomb = pickle.dumps(_Bomb(tmp_path / "exploded"))
    value_files(directory)[0].write_bytes(bomb)
    change_rows(directory, "UPDATE Cache SET mode = ?, value = ?", mode, bomb)
    assert cache.get("a", 0) is None
    assert damaged == [("a", 0)]
    assert not (tmp_path / "exploded").exists()


def test_a_row_cannot_name_a_file_elsewhere(
    cache: DiskBlockCache, directory: Path, tmp_path: Path
) -> None:
    """Neither read nor removed: not by a get, not by an eviction, not by forget."""
    victim = tmp_path / "victim.val"
    victim.write_bytes(filled(1))
    acts: list[Callable[[], object]] = [
        lambda: cache.get("a", 0),
        lambda: cache.forget("a"),
        lambda: assert_works(cache),
    ]
    for act in acts:
        cache.put("a", 0, filled(1))
        change_rows(directory, "UPDATE Cache SET filename = '../../victim.val' WHERE key GLOB 'a*'")
        act()
        assert cache.get("a", 0) is None
        assert victim.read_bytes() == filled(1)


@pytest.mark.parametrize("value", [1, "text", None, {"a": 1}, [b"x"], 1.5])
def test_only_bytes_can_be_stored(tmp_path: Path, value: object) -> None:
    disk = BytesDisk(str(tmp_path))
    with pytest.raises(TypeError, match="plain bytes"):
        disk.store(value, False)
    with pytest.raises(TypeError, match="plain bytes"):
        disk.put(value if value != "text" else b"text")
    assert list(tmp_path.iterdir()) == []


def test_pickles_are_refused_both_ways(tmp_path: Path) -> None:
    disk = BytesDisk(str(tmp_path))
    _, mode, filename, value = disk.store(b"x", False)
    assert disk.fetch(mode, filename, value, False) == b"x"
    assert disk.get(*disk.put("key")) == "key"
    with pytest.raises(Corrupt):
        disk.fetch(4, None, pickle.dumps(1), False)
    with pytest.raises(Corrupt):
        disk.fetch(4, filename, None, False)
    with pytest.raises(Corrupt):
        disk.get(pickle.dumps("key"), False)
    with pytest.raises(TypeError):
        disk.store(b"x", True)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE Cache SET store_time = 'text'",
        "UPDATE Cache SET store_time = 9e999",
        "UPDATE Cache SET store_time = 9007199254740993",
        "UPDATE Cache SET size = 'text'",
        "UPDATE Cache SET size = x'00'",
        "UPDATE Cache SET filename = x'00', tag = 7",
        "UPDATE Cache SET tag = NULL",
        "UPDATE Cache SET key = 7 WHERE rowid = 1",
        "DELETE FROM Settings WHERE key IN ('size', 'count')",
        "UPDATE Settings SET value = 'text'",
        "DROP TABLE Settings",
        "DROP TABLE Cache",
        "ALTER TABLE Cache RENAME COLUMN store_time TO other",
    ],
)
def test_rows_of_nonsense_are_survived(
    cache: DiskBlockCache, directory: Path, statement: str
) -> None:
    for index in range(8):
        cache.put("a", index, filled(index))
    change_rows(directory, statement)
    for index in range(8):
        assert cache.get("a", index) in {None, filled(index)}
    cache.stats()
    cache.flush_use()
    cache.put("b", 0, filled(1))
    cache.forget("a")
    cache.close()
    again = DiskBlockCache(directory, 8 * FULL, block_bytes=BLOCK)
    assert_works(again)
    again.close()


# --- the whole directory -----------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"x", b"no database" * 1000, bytes(8192)])
def test_a_database_that_cannot_be_opened_is_made_anew(directory: Path, content: bytes) -> None:
    before = DiskBlockCache(directory, 8 * FULL, block_bytes=BLOCK)
    before.put("a", 0, filled(1))
    before.close()
    database_of(directory).write_bytes(content)
    cache = DiskBlockCache(directory, 8 * FULL, block_bytes=BLOCK)
    assert cache.get("a", 0) is None
    assert_works(cache)
    assert len(value_files(directory)) == cache.stats().entries
    assert list(directory.glob("gone-*")) == []
    cache.close()


def test_a_database_damaged_in_use_is_made_anew(cache: DiskBlockCache, directory: Path) -> None:
    for index in range(8):
        cache.put("a", index, filled(index))
    cache.flush_use()
    path = database_of(directory)
    change_rows(directory, "PRAGMA wal_checkpoint(TRUNCATE)")
    size = path.stat().st_size
    with path.open("r+b") as database:
        database.seek(100)
        database.write(random.Random(1).randbytes(size - 100))
    results: list[object] = []
    # Another thread has another connection, with none of the pages in its memory.
    thread = threading.Thread(
        target=lambda: results.extend(cache.get("a", index) for index in range(8))
    )
    thread.start()
    thread.join()
    assert len(results) == 8
    assert all(got in {None, filled(index)} for index, got in enumerate(results))
    cache.put("a", 0, filled(0))
    assert_works(cache)
    assert cache.stats().rebuilds >= 1
    cache.flush_use()
    assert list(directory.glob("gone-*")) == []
    assert len(value_files(directory)) == cache.stats().entries


def _wipe_all(directory: Path) -> None:
    shutil.rmtree(directory)


def _wipe_content(directory: Path) -> None:
    for path in directory.iterdir():
        shutil.rmtree(path)


def _wipe_database(directory: Path) -> None:
    database_of(directory).unlink()


def _wipe_log(directory: Path) -> None:
    for path in directory.rglob("cache.db-*"):
        path.unlink()


@pytest.mark.parametrize("wipe", [_wipe_all, _wipe_content, _wipe_database, _wipe_log])
def test_a_wipe_in_use_is_survived(
    cache: DiskBlockCache, directory: Path, wipe: Callable[[Path], None]
) -> None:
    for index in range(8):
        cache.put("a", index, filled(index))
    wipe(directory)
    assert all(cache.get("a", index) in {None, filled(index)} for index in range(8))
    assert_works(cache)
    cache.close()
    again = DiskBlockCache(directory, 8 * FULL, block_bytes=BLOCK)
    assert_works(again)
    assert len(value_files(directory)) == again.stats().entries
    again.close()


def test_a_wipe_by_one_process_is_noticed_by_the_other(
    cache: DiskBlockCache, directory: Path
) -> None:
    other = DiskBlockCache(directory, 8 * FULL, block_bytes=BLOCK)
    cache.put("a", 0, filled(1))
    assert other.get("a", 0) == filled(1)
    _wipe_content(directory)
    cache.put("a", 1, filled(2))
    other.put("a", 2, filled(3))
    for each in (cache, other):
        assert [each.get("a", index) for index in range(3)] == [None, filled(2), filled(3)]
        assert each.stats().rebuilds == 1
    other.close()


def test_wipes_while_threads_work_lose_blocks_and_nothing_else(
    cache: DiskBlockCache, directory: Path
) -> None:
    wrong: list[object] = []
    is_over = threading.Event()

    def work(seed: int) -> None:
        rng = random.Random(seed)
        try:
            while not is_over.is_set():
                index = rng.randrange(12)
                if rng.random() < 0.5:
                    cache.put("a", index, filled(index))
                elif cache.get("a", index) not in {None, filled(index)}:
                    wrong.append(index)
                if rng.random() < 0.02:
                    cache.flush_use()
        except Exception as error:  # noqa: BLE001 - reported by the assertion below
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    rng = random.Random(7)
    for _ in range(25):
        is_over.wait(0.01)
        if rng.random() < 0.5:
            shutil.rmtree(directory, ignore_errors=True)
        else:
            for path in rng.sample(files := value_files(directory), len(files) // 2):
                path.unlink(missing_ok=True)
    is_over.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert cache.stats().rebuilds >= 1
    cache.flush_use()
    assert_works(cache)


# --- no room -----------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 1 MiB."""
    target = tmp_path / "small"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", target], check=True)
    yield target
    subprocess.run(["umount", "--lazy", target], check=True)


def test_a_full_disk_makes_put_do_nothing(small_disk: Path) -> None:
    """The cache's limit is far above what the disk holds."""
    cache = DiskBlockCache(small_disk / "cache", 1000 * FULL, block_bytes=BLOCK)
    for index in range(100):
        cache.put("a", index, filled(index))
    stats = cache.stats()
    assert stats.refused > 0
    assert stats.entries + stats.refused == 100
    kept = [index for index in range(100) if cache.get("a", index) == filled(index)]
    assert len(kept) == stats.entries > 0
    cache.flush_use()
    assert len(value_files(small_disk)) == stats.entries

    cache.forget("a")
    cache.put("b", 0, filled(1))
    assert cache.get("b", 0) == filled(1)
    assert (cache.stats().damaged, cache.stats().rebuilds) == (0, 0)
    cache.close()


def test_a_disk_full_from_the_start_is_no_error_and_is_tried_again(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        while shutil.disk_usage(small_disk).free:
            file.write(bytes(4096))
    cache = DiskBlockCache(small_disk / "cache", 8 * FULL, block_bytes=BLOCK)
    cache.put("a", 0, filled(1))
    assert cache.get("a", 0) is None
    assert (cache.stats().refused, cache.stats().entries) == (1, 0)
    ballast.unlink()
    cache.flush_use()
    assert_works(cache)
    cache.close()


def test_a_half_written_block_leaves_no_file(
    cache: DiskBlockCache, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_write = os.write
    written: list[int] = []

    def write_a_little(descriptor: int, data: memoryview) -> int:
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(real_write(descriptor, data[:1000]))
        return written[0]

    with monkeypatch.context() as patch:
        patch.setattr("s3fs_banyan.data.cache_table.os.write", write_a_little)
        cache.put("a", 0, filled(1))
    assert written == [1000]
    assert value_files(directory) == []
    assert (cache.stats().refused, cache.get("a", 0)) == (1, None)
