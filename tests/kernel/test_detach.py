"""Detaching a mount, and no other one that is at the same place by now."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

from s3fs_banyan import kernel
from s3fs_banyan.errors import ExitCode, UsageError
from s3fs_banyan.kernel import KernelMount, KernelOptions, mount_source, unmount
from tests.kernel.conftest import MakeMount
from tests.kernel.mounts import Volume


@pytest.mark.parametrize("lazily", [False, True])
def test_a_mount_that_is_gone_detaches_nothing(tmp_path: Path, *, lazily: bool) -> None:
    """A signal may come while a daemon still ends, and its mount point be used again."""
    first = KernelMount(tmp_path, "first", KernelOptions(read_only=True))
    # With a directory of it open the kernel keeps a mount that was detached.
    held = os.open(tmp_path, os.O_PATH) if lazily else None
    unmount(tmp_path, lazy=lazily)
    second = KernelMount(tmp_path, "second", KernelOptions(read_only=True))
    try:
        first.detach()
        assert mount_source(tmp_path) == "second"
        second.detach()
        assert mount_source(tmp_path) is None
        second.detach()
    finally:
        if held is not None:
            os.close(held)
        for mount in (first, second):
            os.close(mount.fd)
        if mount_source(tmp_path) is not None:
            unmount(tmp_path, lazy=True)


def test_a_mount_that_does_not_begin_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead mount would answer ENOTCONN to everybody until a person unmounts it."""

    def fail(_: Path) -> str:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(kernel, "_device_of", fail)
        with pytest.raises(UsageError, match="did not begin") as caught:
            KernelMount(tmp_path, "first", KernelOptions())
    assert caught.value.exit_code == ExitCode.FUSE
    assert mount_source(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_signal_unmounts_a_follower(volume: Volume, make_mount: MakeMount) -> None:
    """As systemd and a person at a terminal end it."""
    writer = make_mount(volume, "writer").start()
    (writer.path / "file").write_bytes(b"x")
    writer.sync()
    follower = make_mount(volume, "follower").start("--read-only")
    assert (follower.path / "file").read_bytes() == b"x"
    follower.process.send_signal(signal.SIGTERM)
    follower.wait_end(0)
    assert mount_source(follower.path) is None
    writer.umount()
