"""Mounts in the background for tests of the command: as a person makes them, and all gone after."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from s3fs_banyan.kernel import mount_source, unmount
from tests.kernel.mounts import PROGRAM, Volume

COMMAND_WITHIN_S = 120.0
_WITHIN_S = 30.0


class Background:
    """Runs the real command, and remembers what it mounted."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.config = volume.write_config("command")
        self._places: list[Path] = []
        self._pids: list[int] = []

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the program; never raises for its exit code."""
        return subprocess.run(
            [*PROGRAM, *words],
            env=os.environ | self.volume.environment | environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_WITHIN_S,
            check=False,
        )

    def mount(self, name: str = "mnt", *options: str, cache: str = "cache") -> Path:
        """Mount the volume in the background; returns the mount point."""
        place = self.place(name)
        done = self.try_mount(place, *options, cache=cache)
        assert done.returncode == 0, done.stderr
        self.adopt(place)
        return place

    def adopt(self, place: Path) -> None:
        """Remember a mount that was made by other means, to be gone after the test."""
        self._places.append(place)
        self._pids.append(self.status(place)["writer"]["pid"])

    def try_mount(
        self, place: Path, *options: str, cache: str = "cache"
    ) -> subprocess.CompletedProcess[str]:
        """Try to mount the volume in the background."""
        self._places.append(place)
        local = ["--cache-dir", str(self.volume.directory / cache)]
        store = ["--config", str(self.config), self.volume.url, str(place)]
        return self.run("mount", *local, *store, *options)

    def place(self, name: str) -> Path:
        """Return a directory to mount on."""
        place = self.volume.directory / name
        with suppress(FileExistsError):  # `exist_ok` would ask a mount whose daemon is dead
            place.mkdir()
        return place

    def status(self, place: Path) -> dict[str, Any]:
        """Return what `status --json` says."""
        done = self.run("status", str(place), "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def close(self) -> None:
        """Detach every mount and end every daemon."""
        for place in self._places:
            while mount_source(place.resolve()) is not None:
                unmount(place.resolve(), lazy=True)
        for pid in self._pids:
            if not _ends_within(pid, 20.0):
                os.kill(pid, signal.SIGKILL)


def _ends_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
            == "Z"
        ):
            return True
        time.sleep(0.05)
    return False


def wait_until(answers: Callable[[], bool]) -> None:
    """Wait until something is the case; fails if it is not for long."""
    deadline = time.monotonic() + _WITHIN_S
    while not answers():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)
