"""Writing gently: the right bytes, whatever was there, and errors that are said."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from s3fs_banyan.gentle_io import (
    Writeback,
    read_gently,
    read_into,
    remove_gently,
    write_all,
    write_gently,
    write_past_cache,
    write_zeros,
)


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (5 << 20) + 123])
def test_the_file_holds_the_bytes_and_nothing_else(tmp_path: Path, size: int) -> None:
    """Pieces meet without a gap, and a longer file from before leaves nothing behind."""
    path = tmp_path / "file"
    path.write_bytes(b"old" * (3 << 20))
    data = os.urandom(size)
    write_gently(path, data)
    assert path.read_bytes() == data


def test_blocks_are_on_the_disk_when_it_returns(tmp_path: Path) -> None:
    """That is the purpose. Blocks of a new file are chosen only when it is written back."""
    path = tmp_path / "file"
    write_gently(path, os.urandom(8 << 20))
    assert path.stat().st_blocks * 512 >= 8 << 20
    writeback = Writeback()
    for number in range(6):  # some of them are flushed, some not
        small = tmp_path / str(number)
        with small.open("wb", buffering=0) as file:
            file.write(os.urandom(1 << 18))
            writeback.write_back(file.fileno(), 1 << 18)
            assert os.fstat(file.fileno()).st_blocks * 512 >= 1 << 18


def test_a_refused_write_is_an_error(tmp_path: Path) -> None:
    """The caller decides what a full or missing disk means."""
    with pytest.raises(FileNotFoundError):
        write_gently(tmp_path / "missing" / "file", b"data")
    with Path("/dev/full").open("wb"), pytest.raises(OSError, match="No space"):
        write_gently(Path("/dev/full"), b"data")


def test_no_call_is_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that does not preempt itself keeps the processor from all others until it ends."""
    longest = 0
    write, preadv = os.write, os.preadv

    def noted_write(descriptor: int, data: memoryview) -> int:
        nonlocal longest
        longest = max(longest, len(data))
        return write(descriptor, data)

    def noted_preadv(descriptor: int, buffers: tuple[memoryview, ...], position: int) -> int:
        nonlocal longest
        longest = max(longest, sum(map(len, buffers)))
        return preadv(descriptor, buffers, position)

    monkeypatch.setattr(os, "write", noted_write)
    monkeypatch.setattr(os, "preadv", noted_preadv)
    data, path = os.urandom((3 << 20) + 5), tmp_path / "file"
    write_gently(path, data)
    with path.open("rb") as file:
        buffer = bytearray(len(data) + 10)
        assert read_into(file.fileno(), buffer, 0) == len(data)
        assert buffer[: len(data)] == data
        middle = bytearray(1000)
        assert read_into(file.fileno(), middle, 1 << 20) == 1000
        assert middle == data[1 << 20 : (1 << 20) + 1000]
    assert read_gently(path) == data
    assert 0 < longest <= 1 << 18


def test_a_write_that_takes_a_part_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """write(2) may take less than it was given."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[: max(1, len(data) // 3)]))
    data = os.urandom(10_000)
    with (tmp_path / "file").open("wb", buffering=0) as file:
        write_all(file.fileno(), data)
    assert (tmp_path / "file").read_bytes() == data


SIZES_PAST_CACHE = [0, 1, 4095, 4096, 4097, 1 << 20, (1 << 20) + 1, (5 << 20) + 12_345]


@pytest.mark.parametrize("gently", [False, True])
@pytest.mark.parametrize("size", SIZES_PAST_CACHE)
def test_what_is_written_past_the_cache_is_all_there(
    tmp_path: Path, size: int, gently: bool
) -> None:
    """The disk takes whole sectors; the file has the bytes that were given and no more."""
    data = os.urandom(size)
    with (tmp_path / "file").open("wb", buffering=0) as file:
        write_past_cache(file.fileno(), memoryview(data), gently=gently)
        file.write(b"and the file stands at its end, as after any write")
    assert (tmp_path / "file").read_bytes().startswith(data)
    assert (tmp_path / "file").stat().st_size == size + 50


@pytest.mark.parametrize("offset", [0, 4096, 4095, 100])
@pytest.mark.parametrize("size", [1 << 20, (3 << 20) + 77])
def test_memory_of_any_place_is_written(tmp_path: Path, offset: int, size: int) -> None:
    """What lies as the disk wants it is written from there, what does not from a copy."""
    memory = mmap.mmap(-1, offset + size)
    memory[offset:] = os.urandom(size)
    with memoryview(memory) as view, view[offset:] as data:
        with (tmp_path / "file").open("wb", buffering=0) as file:
            write_past_cache(file.fileno(), data)
        assert (tmp_path / "file").read_bytes() == data


def test_gently_is_in_short_calls_and_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync of the journal waits behind what the disk was handed, and behind its cache."""
    pwrite, fdatasync = os.pwrite, os.fdatasync
    written, most, longest = 0, 0, 0

    def noted_pwrite(descriptor: int, data: memoryview, position: int) -> int:
        nonlocal written, most, longest
        written += len(data)
        most, longest = max(most, written), max(longest, len(data))
        return pwrite(descriptor, data, position)

    def noted_fdatasync(descriptor: int) -> None:
        nonlocal written
        written = 0
        fdatasync(descriptor)

    monkeypatch.setattr(os, "pwrite", noted_pwrite)
    monkeypatch.setattr(os, "fdatasync", noted_fdatasync)
    with (tmp_path / "file").open("wb", buffering=0) as file:
        write_past_cache(file.fileno(), os.urandom(5 << 20), gently=True)
    assert 0 < longest <= 1 << 18
    assert most <= 1 << 20


def test_it_is_past_the_cache() -> None:
    """That is the purpose: of a file that nobody has read, no page is in memory."""
    data = os.urandom(4 << 20)
    with TemporaryDirectory(dir="/var/tmp") as directory:  # a disk, where /tmp may be memory
        direct, cached = Path(directory, "direct"), Path(directory, "cached")
        with direct.open("wb", buffering=0) as file:
            write_past_cache(file.fileno(), data)
        with cached.open("wb", buffering=0) as file:
            write_all(file.fileno(), data)
        assert _pages_in_memory(direct) * 10 < _pages_in_memory(cached)


def _refuse_past_the_cache(monkeypatch: pytest.MonkeyPatch, refused_from: int) -> list[int]:
    """Let pwrite refuse with O_DIRECT after so many calls; returns the positions of all calls."""
    pwrite = os.pwrite
    calls: list[int] = []

    def refusing(descriptor: int, data: memoryview, position: int) -> int:
        calls.append(position)
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT and len(calls) > refused_from:
            raise OSError(errno.EINVAL, "not aligned as this disk wants it")
        return pwrite(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", refusing)
    return calls


def test_zeros_are_past_the_cache() -> None:
    """Spare segments would push out of memory what is read."""
    with TemporaryDirectory(dir="/var/tmp") as directory:
        path = Path(directory, "file")
        with path.open("wb", buffering=0) as file:
            write_zeros(file.fileno(), 0, 4 << 20)
        assert path.stat().st_blocks * 512 >= 4 << 20
        assert _pages_in_memory(path) < 100
        assert path.read_bytes() == bytes(4 << 20)


@pytest.mark.parametrize(
    ("begin", "end"), [(0, 3 << 20), (1 << 20, (2 << 20) + 4096), (5, 600_000)]
)
@pytest.mark.parametrize("refused_from", [0, 1, 100])
def test_zeros_are_written_where_they_are_wanted_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: int, end: int, refused_from: int
) -> None:
    """Also on a file system that refuses to be written past its cache, at once or later."""
    _refuse_past_the_cache(monkeypatch, refused_from)
    data = os.urandom(4 << 20)
    path = tmp_path / "file"
    path.write_bytes(data)
    with path.open("rb+", buffering=0) as file:
        write_zeros(file.fileno(), begin, end)
        assert not fcntl.fcntl(file.fileno(), fcntl.F_GETFL) & os.O_DIRECT
    assert path.read_bytes() == data[:begin] + bytes(end - begin) + data[end:]


def _pages_in_memory(path: Path) -> int:
    """Return how many pages of a file the page cache holds: mincore(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = path.stat().st_size
    pages = (ctypes.c_ubyte * (size // mmap.PAGESIZE))()
    with path.open("rb+") as file, mmap.mmap(file.fileno(), size) as mapped:
        place = ctypes.c_char.from_buffer(mapped)
        found = libc.mincore(ctypes.byref(place), ctypes.c_size_t(size), pages)
        del place
        assert found == 0, os.strerror(ctypes.get_errno())
    return sum(page & 1 for page in pages)


@pytest.mark.parametrize("refused_from", [0, 1, 2])
def test_a_file_system_that_refuses_it_gets_an_ordinary_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused_from: int
) -> None:
    """From the first call on, or in the middle."""
    calls = _refuse_past_the_cache(monkeypatch, refused_from)
    data = os.urandom((3 << 20) + 77)
    with (tmp_path / "file").open("wb", buffering=0) as file:
        write_past_cache(file.fileno(), data)
    assert (tmp_path / "file").read_bytes() == data
    assert len(calls) == refused_from + 1


def test_a_short_write_past_the_cache_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pwrite(2) may take less than it was given."""
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:8192], at))
    data = os.urandom((2 << 20) + 5)
    with (tmp_path / "file").open("wb", buffering=0) as file:
        write_past_cache(file.fileno(), data)
    assert (tmp_path / "file").read_bytes() == data


def test_a_last_sector_written_in_part_leaves_no_padding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All bytes were taken, of what fills the sector up only some."""
    pwrite = os.pwrite
    data = os.urandom((1 << 20) + 5)
    monkeypatch.setattr(os, "pwrite", lambda fd, part, at: min(pwrite(fd, part, at), 1 << 19))
    with (tmp_path / "file").open("wb", buffering=0) as file:
        write_past_cache(file.fileno(), data[: 1 << 19] + data[-5:])
    assert (tmp_path / "file").stat().st_size == (1 << 19) + 5

    def in_part(descriptor: int, part: memoryview, position: int) -> int:
        return min(pwrite(descriptor, part, position), 512 if len(part) == 4096 else len(part))

    monkeypatch.setattr(os, "pwrite", in_part)
    with (tmp_path / "other").open("wb", buffering=0) as file:
        write_past_cache(file.fileno(), data)
    assert (tmp_path / "other").read_bytes() == data


def test_a_full_disk_is_an_error_past_the_cache_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with (
        (tmp_path / "file").open("wb", buffering=0) as file,
        pytest.raises(OSError, match="No space"),
    ):
        write_past_cache(file.fileno(), bytes(1 << 20))


def test_a_file_is_removed_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name first: whoever dies in between leaves no shorter file behind."""
    path = tmp_path / "pack"
    path.write_bytes(bytes((3 << 20) + 5))
    cuts: list[tuple[int, bool]] = []
    truncate = os.ftruncate

    def cut(descriptor: int, length: int) -> None:
        cuts.append((length, path.exists()))
        truncate(descriptor, length)

    monkeypatch.setattr(os, "ftruncate", cut)
    remove_gently(path)
    assert cuts == [((2 << 20) + 5, False), ((1 << 20) + 5, False), (5, False), (0, False)]
    remove_gently(path)  # it is gone: no error


def test_a_file_with_another_name_is_left_whole(tmp_path: Path) -> None:
    """A hard link to it may be somebody's."""
    path, other = tmp_path / "pack", tmp_path / "other"
    path.write_bytes(b"x" * 100)
    other.hardlink_to(path)
    remove_gently(path)
    assert not path.exists()
    assert other.read_bytes() == b"x" * 100
