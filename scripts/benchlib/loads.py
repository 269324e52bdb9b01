"""The load loops: a program of its own, standard library only, one load a process.

`loads.py LOAD DIRECTORY SETTINGS` runs one load in an empty directory and prints one JSON
object: measure -> operations, bytes, seconds, latencies_ns (one entry an operation). SETTINGS
is a JSON object, see `Settings`. Nothing is imported, allocated or printed between the two
clocks of an operation but what the operation itself needs.

Only large files are removed again. A disk file system that has just freed many inodes is slow
at making new ones (ext4 looks at each for minutes), and the next load would pay for that.
"""

# The system calls themselves are what is measured, so no pathlib:
# ruff: noqa: PTH102, PTH104, PTH108
from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

PAGE = 4096
MEBIBYTE = 1 << 20
PROCESSES = 16
START_TIMEOUT_S = 60
PART_FILE_SIZES = (4096,) * 6 + (8192,) * 2 + (16_384, 32_768, 65_536, 4096)
"""Sizes of a part's files; the last is the one that is renamed into place. Half of BanyanDB's
are at most 4 KiB, nine in ten at most 64 KiB."""

clock = time.perf_counter_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How much each load does."""

    files: int = 1500
    """Small files of `small`."""
    size_mb: int = 128
    """Size of each file of `sequential`, in MiB."""
    synced: int = 400
    """Operations of the fsync loads with one process."""
    synced_by_many: int = 1600
    """Operations of the fsync loads with 16 processes, all together."""
    parts: int = 30
    """Part flushes."""


@dataclass(slots=True)
class Sample:
    """One measure of one run: how many operations took how long."""

    operations: int
    bytes: int
    seconds: float
    latencies_ns: list[int]


def timed(operation: Callable[[str], object], arguments: Sequence[str], *, size: int) -> Sample:
    """Run `operation` once for each argument; `size` bytes are moved each time."""
    latencies: list[int] = []
    note = latencies.append
    first = clock()
    for argument in arguments:
        before = clock()
        operation(argument)
        note(clock() - before)
    return Sample(len(latencies), size * len(latencies), (clock() - first) / 1e9, latencies)


# --- small files -------------------------------------------------------------------------


def create(path: str) -> None:
    """Create a file, write 4 KiB, close."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(descriptor, BLOCK)
    os.close(descriptor)


def read(path: str) -> None:
    """Open a file, read its 4 KiB, close."""
    descriptor = os.open(path, os.O_RDONLY)
    data = os.read(descriptor, PAGE)
    os.close(descriptor)
    if len(data) != PAGE:
        raise RuntimeError(f"{path}: {len(data)} bytes instead of {PAGE}")


def rename(path: str) -> None:
    """Rename a file inside its directory."""
    os.rename(path, path + ".renamed")


def small(directory: str, settings: Settings) -> dict[str, Sample]:
    """Files of 4 KiB in one directory: every call that is not an fsync."""
    paths = [f"{directory}/{index:06}" for index in range(settings.files)]
    return {
        "create": timed(create, paths, size=PAGE),
        "read-first": timed(read, paths, size=PAGE),
        "read-warm": timed(read, paths, size=PAGE),
        "stat": timed(os.stat, paths, size=0),
        "rename": timed(rename, paths, size=0),
        "unlink": timed(os.unlink, [path + ".renamed" for path in paths], size=0),
    }


# --- sequential --------------------------------------------------------------------------


def sequential(directory: str, settings: Settings) -> dict[str, Sample]:
    """One large file a measure, in pieces of 1 MiB; open and close are in the time."""
    plain, synced = f"{directory}/plain", f"{directory}/synced"
    unsynced_sample = write_file(plain, settings.size_mb, sync=False)
    # Or the next measure would pay for writing these pages, too.
    sync_path(plain)
    os.unlink(plain)
    synced_sample = write_file(synced, settings.size_mb, sync=True)
    drop_pages(synced)
    cold_sample = read_file(synced, settings.size_mb)
    os.unlink(synced)
    return {"write": unsynced_sample, "write-sync": synced_sample, "read-cold": cold_sample}


def sync_path(path: str) -> None:
    """Open a file or directory, fsync it, close."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def drop_pages(path: str) -> None:
    """Have the kernel forget the pages of a file that is synced."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def write_file(path: str, size_mb: int, *, sync: bool) -> Sample:
    """Write a new file of `size_mb` MiB, with an fsync before the close if `sync`."""
    latencies: list[int] = []
    # Blocks differ, so that nothing on the way can share or squeeze them.
    blocks = [os.urandom(MEBIBYTE) for _ in range(min(size_mb, 8))]
    first = clock()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    for index in range(size_mb):
        before = clock()
        count = os.write(descriptor, blocks[index % len(blocks)])
        latencies.append(clock() - before)
        if count != MEBIBYTE:
            raise RuntimeError(f"{path}: short write of {count} bytes")
    if sync:
        os.fsync(descriptor)
    os.close(descriptor)
    return Sample(size_mb, size_mb * MEBIBYTE, (clock() - first) / 1e9, latencies)


def read_file(path: str, size_mb: int) -> Sample:
    """Read a file of `size_mb` MiB to its end."""
    latencies: list[int] = []
    count = 0
    first = clock()
    descriptor = os.open(path, os.O_RDONLY)
    while True:
        before = clock()
        piece = len(os.read(descriptor, MEBIBYTE))
        if not piece:
            break
        latencies.append(clock() - before)
        count += piece
    os.close(descriptor)
    seconds = (clock() - first) / 1e9
    if count != size_mb * MEBIBYTE:
        raise RuntimeError(f"{path}: {count} bytes instead of {size_mb * MEBIBYTE}")
    return Sample(len(latencies), count, seconds, latencies)


# --- fsync -------------------------------------------------------------------------------


def append_synced(directory: str, worker: int, count: int) -> Sample:
    """Append 4 KiB to one file and fsync, `count` times."""
    descriptor = os.open(f"{directory}/append{worker}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def append(_: str) -> None:
        os.write(descriptor, BLOCK)
        os.fsync(descriptor)

    sample = timed(append, [""] * count, size=PAGE)
    os.close(descriptor)
    return sample


def create_synced(directory: str, worker: int, count: int) -> Sample:
    """Create a file, write 4 KiB, fsync, close, `count` times."""

    def create_one(path: str) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(descriptor, BLOCK)
        os.fsync(descriptor)
        os.close(descriptor)

    paths = [f"{directory}/{worker:02}-{index:05}" for index in range(count)]
    return timed(create_one, paths, size=PAGE)


Worker = Callable[[str, int, int], Sample]


def by_many(directory: str, work: Worker, total: int) -> Sample:
    """Run `work` in 16 processes that start together; the time is from first start to last end."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(PROCESSES)
    results = context.SimpleQueue()

    def child(worker: int) -> None:
        try:
            barrier.wait(timeout=START_TIMEOUT_S)
            begin = clock()
            sample = work(directory, worker, total // PROCESSES)
        except (OSError, RuntimeError) as error:  # a broken barrier is a RuntimeError
            results.put((0, 0, str(error)))
            return
        # The clock is the machine's, so these values compare across processes.
        results.put((begin, clock(), sample))

    children = [context.Process(target=child, args=(index,)) for index in range(PROCESSES)]
    for process in children:
        process.start()
    outcomes = [results.get() for _ in children]
    for process in children:
        process.join()
    failures = [sample for _, _, sample in outcomes if isinstance(sample, str)]
    if failures:
        raise RuntimeError(f"{len(failures)} of {PROCESSES} processes failed: {failures[0]}")
    samples: list[Sample] = [sample for _, _, sample in outcomes]
    return Sample(
        sum(sample.operations for sample in samples),
        sum(sample.bytes for sample in samples),
        (max(end for _, end, _ in outcomes) - min(begin for begin, _, _ in outcomes)) / 1e9,
        [latency for sample in samples for latency in sample.latencies_ns],
    )


def append(directory: str, settings: Settings) -> dict[str, Sample]:
    """Append + fsync, by one process."""
    return {"append-sync": append_synced(directory, 0, settings.synced)}


def append_many(directory: str, settings: Settings) -> dict[str, Sample]:
    """Append + fsync, by 16 processes with a file each."""
    return {"append-sync-16": by_many(directory, append_synced, settings.synced_by_many)}


def create_sync(directory: str, settings: Settings) -> dict[str, Sample]:
    """Create + write + fsync + close, by one process."""
    return {"create-sync": create_synced(directory, 0, settings.synced)}


def create_sync_many(directory: str, settings: Settings) -> dict[str, Sample]:
    """Create + write + fsync + close, by 16 processes in one directory."""
    return {"create-sync-16": by_many(directory, create_synced, settings.synced_by_many)}


# --- part flush --------------------------------------------------------------------------


def flush_part(path: str) -> None:
    """Write one part as BanyanDB does: mkdir, 12 synced files, rename, two synced directories."""
    os.mkdir(path, 0o700)
    sync_path(path.rpartition("/")[0])
    last = len(PART_FILE_SIZES) - 1
    for index, size in enumerate(PART_FILE_SIZES):
        name = f"{path}/metadata.json.tmp" if index == last else f"{path}/{index:02}.bin"
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for _ in range(size // PAGE):
            os.write(descriptor, BLOCK)
        os.fsync(descriptor)
        os.close(descriptor)
    os.rename(f"{path}/metadata.json.tmp", f"{path}/metadata.json")
    sync_path(path)


def part_flush(directory: str, settings: Settings) -> dict[str, Sample]:
    """Part flushes, one after the other."""
    paths = [f"{directory}/{index:016x}" for index in range(settings.parts)]
    return {"part-flush": timed(flush_part, paths, size=sum(PART_FILE_SIZES))}


BLOCK = os.urandom(PAGE)

LOADS: dict[str, Callable[[str, Settings], dict[str, Sample]]] = {
    "small": small,
    "sequential": sequential,
    "append": append,
    "append-many": append_many,
    "create-sync": create_sync,
    "create-sync-many": create_sync_many,
    "part-flush": part_flush,
}


def main(arguments: list[str]) -> None:
    """Run the load that the command line names and print its samples."""
    name, directory, settings = arguments
    options: dict[str, Any] = json.loads(settings)
    samples = LOADS[name](directory, Settings(**options))
    fields = ("operations", "bytes", "seconds", "latencies_ns")
    answer = {key: {f: getattr(value, f) for f in fields} for key, value in samples.items()}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
