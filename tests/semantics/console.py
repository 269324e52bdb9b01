"""Sessions in documents: blocks marked `console` are run, and what they show is compared.

A block is lines `$ command`, each followed by its output. All blocks of a document are one
session, in a shell of their own for each command. Paths of the session lie below a directory of
the test; what differs from run to run (ids, processes, times) is masked on both sides.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

from s3fs_banyan.kernel import mount_source, unmount
from tests.hygiene.tree import ROOT

_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PATHS = re.compile(r"(?<![\w.])/(srv|mnt|etc/s3fs-banyan|var/lib/s3fs-banyan)(?![\w.])")
_MASKED = (
    (re.compile(r"\b[0-9a-f]{32}\b"), "ID"),
    (re.compile(r"\bprocess \d+"), "process N"),
    (re.compile(r"\bversion [\w.]+"), "version V"),
    (re.compile(r"\b\d{4}-\d\d-\d\d \d\d:\d\d(:\d\d)?"), "TIME"),
    (re.compile(r"\b\d+(\.\d+)? (us|ms|s)\b"), "DURATION"),
    (re.compile(r"\b\d+-\d{15,}"), "N-TIME"),
    (re.compile(r"\bwritten by [\w.-]+"), "written by HOST"),
    (re.compile(r"^bash: line \d+: "), "bash: "),
    (re.compile(r"[ \t]+"), " "),
)
_PATIENT = """
commit: {interval: 1h}
heartbeat: {interval: 1h, stale_after: 3h}
"""
"""What a person sees who types fast: on a slow machine commits and heartbeats come between."""
_PROGRAM = """#!/bin/sh
case "$*" in
    *--config*) ;;
    "mount "*) set -- "$@" --config '{patient}' ;;
esac
exec '{python}' -m s3fs_banyan.cli.main "$@"
"""
_COMMAND_WITHIN_S = 120.0
_END_WITHIN_S = 30.0


class Step(NamedTuple):
    """A command of a session and what the document says it prints."""

    command: str
    expected: list[str]


def steps_of(document: str) -> Iterator[Step]:
    """Give the commands of a document's sessions in order; raises `ValueError` at odd lines."""
    for block in _BLOCK.finditer(document):
        step: Step | None = None
        for line in block[1].splitlines():
            if line.startswith("$ "):
                if step is not None:
                    yield step
                step = Step(line.removeprefix("$ "), [])
            elif step is None:
                raise ValueError(f"output without a command: {line}")
            else:
                step.expected.append(line)
        if step is not None:
            yield step


def masked(text: str) -> list[str]:
    """Return the lines of an output without what differs from run to run."""
    lines = []
    for found in text.splitlines():
        line = found
        for pattern, word in _MASKED:
            line = pattern.sub(word, line)
        if line.strip():
            lines.append(line.strip())
    return lines


class Session:
    """Runs commands as on a machine of one's own; everything mounted is gone at the end."""

    def __init__(self) -> None:
        """Make the machine: a short path, since outputs are cut at a terminal's width."""
        self.root = Path(tempfile.mkdtemp(prefix="s3fs-"))
        tools = self.root / "bin"
        tools.mkdir()
        command = tools / "s3fs-banyan"
        patient = self.root / "patient.yaml"
        patient.write_text(_PATIENT, encoding="utf-8")
        command.write_text(
            _PROGRAM.format(python=sys.executable, patient=patient), encoding="utf-8"
        )
        command.chmod(0o755)
        self._environment = os.environ | {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "200",
            "LC_ALL": "C.UTF-8",
        }
        for path in ("srv", "mnt", "etc/s3fs-banyan", "var/lib/s3fs-banyan"):
            (self.root / path).mkdir(parents=True)

    def path(self, name: str) -> Path:
        """Return where a path of the session really lies."""
        return Path(self._here(name))

    def _here(self, text: str) -> str:
        text = text.replace("/usr/local/bin/s3fs-banyan", "s3fs-banyan")
        return _PATHS.sub(lambda match: f"{self.root}{match[0]}", text)

    def run(self, command: str) -> tuple[str, int]:
        """Run a command of the document; return what it printed, and its exit code."""
        done = subprocess.run(
            ["bash", "-c", self._here(command)],
            cwd=self.root,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_COMMAND_WITHIN_S,
            check=False,
        )
        return done.stdout.replace(str(self.root), ""), done.returncode

    def start(self, command: str) -> subprocess.Popen[bytes]:
        """Start a command of the document that goes on; its output goes to `started.log`."""
        with (self.root / "started.log").open("ab") as log:
            return subprocess.Popen(
                ["bash", "-c", f"exec {self._here(command)}"],
                cwd=self.root,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for place in (self.root / "mnt").iterdir():
            while mount_source(place) is not None:
                unmount(place, lazy=True)
        for lock in (self.root / "var/lib/s3fs-banyan").glob("*/lock"):
            _end(int(lock.read_text(encoding="ascii") or 0), str(self.root))
        shutil.rmtree(self.root)


def _end(pid: int, owner: str) -> None:
    """Wait for a daemon that was detached; one that does not end by itself is killed."""
    deadline = time.monotonic() + _END_WITHIN_S
    while _is_ours(pid, owner):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _is_ours(pid: int, owner: str) -> bool:
    try:
        return owner in Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")
    except OSError:  # it has ended
        return False
