"""What /proc tells of mounts, ours and others' (proc_pid_mountinfo(5))."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from s3fs_banyan import kernel
from s3fs_banyan.cli.asking import status_of
from s3fs_banyan.errors import UsageError

FOREIGN = b"30 1 0:25 / /mnt/x\xff\xc2\x85y rw - tmpfs none rw\n"
"""Not UTF-8, and with a character that ends a line for `str.splitlines`."""
OURS = (
    b"31 1 0:26 / /mnt/a\\040b rw,nosuid - fuse.s3fs-banyan s3://bucket/p "
    b"rw,user_id=%d,group_id=0,default_permissions\n"
)


@pytest.fixture
def mountinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that stands for the kernel's."""
    path = tmp_path / "mountinfo"
    monkeypatch.setattr(kernel, "_mountinfo_of", lambda _: path)
    return path


def test_a_mount_of_others_with_any_bytes_in_its_path_disturbs_nothing(mountinfo: Path) -> None:
    """Every command ended with UnicodeDecodeError while such a mount was there."""
    mountinfo.write_bytes(FOREIGN + OURS % 0)
    assert kernel.mount_source(Path("/mnt/a b")) == "s3://bucket/p"
    assert kernel.mount_owner(Path("/mnt/a b")) == 0
    assert kernel.is_mount(Path(os.fsdecode(b"/mnt/x\xff\xc2\x85y")))
    assert kernel.mount_owner(Path("/mnt/other")) is None


def test_the_mount_of_another_user_is_not_called_dead(mountinfo: Path) -> None:
    """Its daemon listens where only that user can ask; nobody is told to unmount it."""
    mountinfo.write_bytes(OURS % (os.geteuid() + 1))
    with pytest.raises(UsageError, match="is that of the user"):
        status_of(Path("/mnt/a b"))
    mountinfo.write_bytes(OURS % os.geteuid())
    with pytest.raises(UsageError, match="it has ended"):
        status_of(Path("/mnt/a b"))
