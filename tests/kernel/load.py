"""The BanyanDB-shaped load on a mount: started, watched, verified."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Self

SCRIPT = Path(__file__).parents[2] / "scripts" / "banyan-workload"
VOLUME_FAILED = 3
_VERIFY_WITHIN_S = 300.0


class LoadError(Exception):
    """The load or its check found something wrong; the message has its output."""


class Load:
    """One run of the load after the other, on one directory with one oracle log."""

    def __init__(self, directory: Path, log: Path, *options: str) -> None:
        """`options` go to every run; nothing is started before `start`."""
        self.directory = directory
        self.log = log
        self.output = log.with_suffix(".out")
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> Self:
        """Start a run, or go on with what an earlier one left; returns when it works."""
        self.directory.mkdir(exist_ok=True)
        resume = ["--resume"] if self.log.exists() else []
        with self.output.open("wb") as output:
            self._process = subprocess.Popen(
                self._command(*resume, *self._options, *options), stdout=output, stderr=output
            )
        deadline = time.monotonic() + 60
        while "ready after" not in self.text():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise LoadError(f"the load did not begin:\n{self.text()}")
            time.sleep(0.05)
        return self

    def _command(self, *arguments: str) -> list[str]:
        return [
            sys.executable, str(SCRIPT), str(self.directory), "--log", str(self.log), *arguments
        ]  # fmt: skip

    def text(self) -> str:
        """Return what the last run has printed."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    @property
    def running(self) -> bool:
        """Whether a run is at work."""
        return self._process is not None and self._process.poll() is None

    def wait(self, *allowed: int, within_s: float = 120.0) -> int:
        """Wait for the end of the run; raises `LoadError` for a code that is not allowed."""
        assert self._process is not None
        try:
            code = self._process.wait(within_s)
        except subprocess.TimeoutExpired as error:
            self.close()
            raise LoadError(f"the load did not end:\n{self.text()}") from error
        if code not in (allowed or (0,)):
            raise LoadError(f"the load ended with {code}:\n{self.text()}")
        return code

    def stop(self) -> None:
        """Ask the run to end, and wait."""
        assert self._process is not None
        self._process.terminate()
        self.wait(0)

    def verify(self, at_least: str) -> None:
        """Check the directory against the log; raises `LoadError` with what is wrong."""
        done = subprocess.run(
            self._command("--verify", "--at-least", at_least),
            capture_output=True,
            text=True,
            timeout=_VERIFY_WITHIN_S,
            check=False,
        )
        if done.returncode:
            raise LoadError(
                f"verify --at-least {at_least} ended with {done.returncode}:\n"
                f"{(done.stdout + done.stderr)[-4000:]}"
            )

    def close(self) -> None:
        """End a run by force."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
