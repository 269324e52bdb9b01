"""Two machines: a writer that slept while another took over, and what a mount refuses."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from s3fs_banyan.errors import ExitCode
from tests.kernel.conftest import MakeMount, MakeVolume
from tests.kernel.mounts import PROGRAM


def test_a_writer_that_slept_publishes_nothing_more(
    make_s3_volume: MakeVolume, make_mount: MakeMount
) -> None:
    """Two writers must never mix: the sleeper turns read-only and keeps what it had."""
    volume = make_s3_volume({"commit": {"interval": "1s"}})
    first = make_mount(volume, "first").start()
    (first.path / "common").write_bytes(b"of both")
    first.sync()
    descriptor = os.open(first.path / "sleeper", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"never published")
    first.stop()
    second = make_mount(volume, "second").start("--takeover")
    assert {path.name for path in second.path.iterdir()} - {"sleeper"} == {"common"}
    (second.path / "new").write_bytes(b"of the second")
    second.sync()
    first.cont()
    first.wait_until(lambda: bool(first.status()["read_only"]), 20, "it did not notice")
    with pytest.raises(OSError, match="Read-only") as caught:
        os.write(descriptor, b"more")
    assert caught.value.errno == errno.EROFS
    with pytest.raises(OSError, match="Input/output error"):
        os.fsync(descriptor)
    os.close(descriptor)
    assert str(first.cache_dir) in str(first.status()["read_only"])
    asked = [*PROGRAM, "sync", str(first.path)]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == ExitCode.WRITER, done.stderr
    assert (first.path / "common").read_bytes() == b"of both"
    seq = second.number("commit", "seq")
    first.umount()
    (second.path / "new").write_bytes(b"goes on")
    second.sync()
    assert second.number("commit", "seq") > seq
    second.umount()
    volume.check()


def test_the_unpublished_changes_of_a_fenced_writer_are_set_aside(
    make_s3_volume: MakeVolume, make_mount: MakeMount
) -> None:
    """The next mount of the sleeper's directory follows the new history and names the old one."""
    volume = make_s3_volume({"commit": {"interval": "1h"}})
    first = make_mount(volume, "first").start()
    (first.path / "lost").write_bytes(b"not yet in the store")
    first.stop()
    second = make_mount(volume, "second").start("--takeover")
    (second.path / "new").write_bytes(b"of the second")
    second.umount()
    first.kill()
    first.start()
    assert [path.name for path in first.path.iterdir()] == ["new"]
    aside = Path(str(first.status()["set_aside"]))
    assert aside.is_relative_to(first.cache_dir / "aside")
    assert any(b"not yet in the store" in path.read_bytes() for path in aside.iterdir())
    first.umount()
    volume.check()


def test_a_living_writer_is_not_pushed_aside_by_accident(
    make_s3_volume: MakeVolume, make_mount: MakeMount
) -> None:
    """Without --takeover a second machine is refused, told why, and changes nothing."""
    volume = make_s3_volume()
    first = make_mount(volume, "first").start()
    (first.path / "file").write_bytes(b"one")
    first.sync()
    second = make_mount(volume, "second").start(ready=False)
    assert second.wait_end() != 0
    assert "--takeover" in second.log_text()
    (first.path / "file").write_bytes(b"two")
    first.sync()
    assert not first.status()["read_only"]
    first.umount()


def test_a_dead_writer_is_followed_at_once_by_its_own_directory(
    make_s3_volume: MakeVolume, make_mount: MakeMount
) -> None:
    """A crash on the same machine needs no --takeover and no waiting."""
    volume = make_s3_volume()
    mount = make_mount(volume).start()
    (mount.path / "file").write_bytes(b"one")
    mount.kill()
    mount.start()
    assert (mount.path / "file").read_bytes() == b"one"
    mount.umount()
