"""Directories that cannot be used: a mount's own, and one that holds a store and goes away."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3fs_banyan.errors import ExitCode
from tests.kernel.background import Background, wait_until
from tests.kernel.mounts import PROGRAM

WITHIN_S = 30.0


@pytest.fixture
def places(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """Local directories that cannot be used, by what is wrong with them."""
    file, full, fixed = tmp_path / "file", tmp_path / "full", tmp_path / "fixed"
    file.touch()
    for place, options in ((full, "size=64k"), (fixed, "size=64k,ro")):
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(place)], check=True)
    (full / "filler").write_bytes(bytes(64 << 10))
    yield {"full": full / "cache", "read-only": fixed / "cache", "file": file, "below": file / "x"}
    for place in (full, fixed):
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("foreground", [[], ["--foreground"]], ids=["background", "foreground"])
@pytest.mark.parametrize("kind", ["full", "read-only", "file", "below"])
def test_a_local_directory_that_cannot_be_used(
    command: Background, places: dict[str, Path], kind: str, foreground: list[str]
) -> None:
    """The line names it and says what to give instead; a unit does not try it again for ever."""
    place = command.place("mnt")
    words = ["mount", command.volume.url, str(place), "--config", str(command.config)]
    done = command.run(*words, "--cache-dir", str(places[kind]), *foreground)
    assert done.returncode == ExitCode.LOCAL, done.stderr
    said = done.stderr.splitlines()[-1]
    assert said.startswith(f"s3fs-banyan: the local directory {places[kind]} cannot be used")
    assert "give a --cache-dir on a disk" in said
    assert foreground or len(done.stderr.splitlines()) == 1


def test_mkfs_on_a_file(command: Background, tmp_path: Path) -> None:
    """It is there, so "no such directory" would send a person searching."""
    file = tmp_path / "file"
    file.touch()
    done = command.run("mkfs", file.as_uri())
    assert done.returncode == ExitCode.STORE
    assert done.stderr == f"s3fs-banyan: {file.as_uri()}: is no directory\n"


def test_words_behind_a_double_dash_are_words(command: Background) -> None:
    """The options for the daemon must not become mount points."""
    place = command.place("mnt")
    local = ["--cache-dir", str(command.volume.directory / "cache")]
    words = ["mount", *local, "--config", str(command.config)]
    done = command.run(*words, "--", command.volume.url, str(place))
    assert done.returncode == 0, done.stderr
    command.adopt(place)
    assert command.run("umount", str(place)).returncode == 0


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_an_unmounted_store_directory_is_an_outage_and_gets_nothing(command: Background) -> None:
    """What is written into the directory below a disk is hidden when the disk comes back."""
    place = command.mount("mnt", "--commit-interval", "1s")
    store = Path(command.volume.url.removeprefix("file://"))
    (place / "first").write_bytes(b"in the store")
    assert command.run("sync", str(place)).returncode == 0
    away = store.rename(store.with_name("away"))
    store.mkdir()
    (place / "second").write_bytes(b"during the outage")
    wait_until(lambda: not command.status(place)["online"])
    daemon = command.status(place)["writer"]["pid"]
    children = Path(f"/proc/{daemon}/task/{daemon}/children").read_text(encoding="ascii").split()
    for worker in children:  # a new one opens the store while it is away
        os.kill(int(worker), signal.SIGKILL)
    (place / "second").write_bytes(b"with another worker")
    time.sleep(3)
    assert _names(store) == []
    os.kill(daemon, signal.SIGKILL)
    again = command.mount("mnt", "--commit-interval", "1s")
    assert (again / "second").read_bytes() == b"with another worker"
    assert _names(store) == []
    store.rmdir()
    away.rename(store)
    assert command.run("umount", str(place)).returncode == 0
    listed = subprocess.run(
        [*PROGRAM, "ls", command.volume.url], capture_output=True, text=True, check=True
    )
    assert listed.stdout.split() == ["first", "second"]
    command.volume.check()


@pytest.mark.parametrize("kind", ["documents", "My report.pdf", "link"])
def test_mkfs_takes_no_directory_that_holds_something_else(
    command: Background, tmp_path: Path, kind: str
) -> None:
    """Not even what no listing of a store shows."""
    place = tmp_path / "home"
    place.mkdir()
    other = place / kind
    match kind:
        case "documents":
            other.mkdir()
        case "link":
            other.symlink_to("elsewhere")
        case _:
            other.touch()
    done = command.run("mkfs", place.as_uri())
    assert done.returncode == ExitCode.VOLUME
    assert f"is not empty (it holds {kind})" in done.stderr
    assert [path.name for path in place.iterdir()] == [kind]


def test_a_local_directory_on_its_own_mount_point(command: Background) -> None:
    """The daemon would wait for itself, and everybody for the daemon."""
    place = command.place("mnt")
    words = ["mount", command.volume.url, str(place), "--config", str(command.config)]
    done = command.run(*words, "--cache-dir", str(place / "cache"))
    assert done.returncode == ExitCode.USAGE
    assert "lies on the mount point" in done.stderr
