"""Asynchronous syncs of the kernel's: they sync, name failures, and give way to a thread."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from s3fs_banyan.journal import disk as disk_module
from s3fs_banyan.journal.disk import RealDisk
from s3fs_banyan.journal.kernel_sync import KernelSync
from tests.unit.engine_kit import StepRuntime


async def test_many_files_are_synced_while_other_tasks_run(tmp_path: Path) -> None:
    """More than the kernel takes at once; the loop is not held."""
    syncs = KernelSync()
    turns = 0
    ended = False

    async def count() -> None:
        nonlocal turns
        while not ended:
            turns += 1
            await trio.lowlevel.checkpoint()

    descriptors = [
        os.open(tmp_path / str(index), os.O_RDWR | os.O_CREAT, 0o600) for index in range(100)
    ]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        for fd in descriptors:
            os.pwrite(fd, b"x" * 500_000, 0)
        await syncs.datasync(descriptors)
        ended = True
    assert turns > 2
    for fd in descriptors:
        os.close(fd)


@pytest.fixture
def good(tmp_path: Path) -> Iterator[int]:
    """A descriptor that can be synced."""
    descriptor = os.open(tmp_path / "good", os.O_RDWR | os.O_CREAT, 0o600)
    yield descriptor
    os.close(descriptor)


def closed_copy(descriptor: int) -> int:
    """Return a number that is no descriptor until something else is opened."""
    copy = os.dup(descriptor)
    os.close(copy)
    return copy


async def test_a_descriptor_that_cannot_be_synced_is_an_error(good: int) -> None:
    """The same object works on afterwards."""
    syncs = KernelSync()
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        await syncs.datasync([closed_copy(good)])
    one, other = socket.socketpair()
    with one, other, pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        await syncs.datasync([one.fileno()])
    await syncs.datasync([good])


async def test_what_the_kernel_does_not_take_is_left_to_the_caller(good: int) -> None:
    """A bad descriptor behind a good one: the kernel takes the first, not the second."""
    syncs = KernelSync()
    with pytest.raises(BlockingIOError):
        await syncs.datasync([good, closed_copy(good)])
    await syncs.datasync([good])


@pytest.mark.parametrize("has_kernel", [True, False])
async def test_a_disk_syncs_with_the_kernel_or_with_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_kernel: bool
) -> None:
    """A sandbox that refuses io_setup(2) costs speed only."""
    if not has_kernel:

        def refuse() -> KernelSync:
            raise PermissionError(errno.EPERM, "refused")

        monkeypatch.setattr(disk_module, "KernelSync", refuse)
    runtime = StepRuntime()
    disk = RealDisk()
    files = [disk.open(tmp_path / name, create=True) for name in ("a", "b")]
    for file in files:
        file.pwritev((b"data",), 0)
    for _ in range(2):
        await disk.datasync(files, runtime)
    assert runtime.thread_calls == ([] if has_kernel else ["fsync"] * 2)
    for file in files:
        file.close()
