"""The oracle log: what was asked of the volume and what was answered, kept outside of it.

One text line a record, each written by one unbuffered append, so the order of the lines is a
clock: the begin of an operation is written before it is issued, its end after it was
answered. Hence `end of A above begin of B` proves that A was answered before B was issued.
A line ends in ` .`; a torn last line (the writer was killed) lacks it and is ignored.

    # banyan-workload log 1 seed <n>
    S begin | S d <path> | S f <path> <fid> <size> <spec> | S end     the tree as found
    B <op> <thread> <verb> <arguments>
    E <op> [!<errno name>]

Verbs: mkdir p, rmdir p, create p fid spec, append fid:offset:length,..., truncate fid length,
fsync p, rename p q, link p q, unlink p, expire p (the tree p is about to be
removed). A spec says what the file will hold: `-` pool bytes of its own id, `=<fid>` those of
another, `L<hex>` these very bytes.
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

MAGIC = "# banyan-workload log 1 seed"
_NEVER = 1 << 62


class LogError(Exception):
    """The log is missing, foreign, or cannot be used as asked."""


class Operation:
    """One operation of the log; `begin` and `end` are line numbers, `end` is huge if unanswered."""

    __slots__ = ("arguments", "begin", "end", "failed", "verb")

    def __init__(self, begin: int, verb: str, arguments: list[str]) -> None:
        self.begin = begin
        self.end = _NEVER
        self.failed = ""
        self.verb = verb
        self.arguments = arguments

    @property
    def answered(self) -> bool:
        """Whether success was reported."""
        return self.end != _NEVER

    def __str__(self) -> str:
        """Say the operation in words for a report, without long specs."""
        words = self.arguments[:1] if self.verb in {"create", "append"} else self.arguments
        end = str(self.end) if self.answered else (self.failed or "unanswered")
        return f"{self.verb} {' '.join(words)} (lines {self.begin}..{end})"


class BaseFile(NamedTuple):
    """A file of the tree as it was found at the start of a run."""

    path: str
    fid: int
    size: int
    spec: str


class History:
    """A log as read: the newest baseline, and the operations after it in the order of begins."""

    def __init__(self) -> None:
        self.seed = 0
        self.operations: list[Operation] = []
        self.base_dirs: list[str] = []
        self.base_files: list[BaseFile] = []
        self.pending_dirs: list[str] = []
        self.pending_files: list[BaseFile] = []
        self.max_fid = 0
        self.max_op = 0
        self.specs: dict[int, str] = {}
        """Spec of every content id ever created, over all runs."""


def encode_spec(literal: bytes | None, alias: int) -> str:
    """Return the log's word for what a file will hold."""
    if literal is not None:
        return "L" + literal.hex()
    return f"={alias}" if alias else "-"


def decode_spec(spec: str) -> tuple[bytes | None, int]:
    """Return (literal, alias) of a spec."""
    if spec.startswith("L"):
        return bytes.fromhex(spec[1:]), 0
    return None, int(spec[1:]) if spec.startswith("=") else 0


class Log:
    """Appends records; safe to use from many threads, each record is one write(2)."""

    def __init__(self, path: Path, *, seed: int, first_op: int = 1) -> None:
        self._fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._ops = itertools.count(first_op)
        size = os.fstat(self._fd).st_size
        if size == 0:
            self._line(f"{MAGIC} {seed}")
        else:
            os.write(self._fd, b"\n")  # ends a line torn by a kill; empty lines mean nothing

    def _line(self, text: str) -> None:
        try:
            os.write(self._fd, f"{text} .\n".encode())
        except OSError as error:
            raise LogError(f"the log itself cannot be written: {error.strerror}") from error

    def begin(self, text: str) -> int:
        """Record that an operation is about to be issued; returns its number."""
        op = next(self._ops)
        self._line(f"B {op} {threading.current_thread().name} {text}")
        return op

    def end(self, op: int) -> None:
        """Record that the operation was answered with success."""
        self._line(f"E {op}")

    def fail(self, op: int, number: int | None) -> None:
        """Record that the operation was answered with an error: its effect is unknown."""
        self._line(f"E {op} !{errno.errorcode.get(number or 0, 'unknown')}")

    def baseline(self, dirs: Iterable[str], files: Iterable[BaseFile]) -> None:
        """Record the tree as found; from here on nothing earlier in the log counts."""
        lines = ["S begin ."]
        lines += [f"S d {path} ." for path in dirs]
        lines += [f"S f {f.path} {f.fid} {f.size} {f.spec} ." for f in files]
        lines.append("S end .")
        data = memoryview(("\n".join(lines) + "\n").encode())
        while data:
            data = data[os.write(self._fd, data) :]

    def close(self) -> None:
        """Close the log; it stays valid."""
        os.close(self._fd)


def _complete_lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open(encoding="ascii", errors="replace") as stream:
        for number, line in enumerate(stream):
            if line.endswith(" .\n"):
                yield number, line[:-3]


def read_log(path: Path) -> History:
    """Read a log; raises `LogError` if it is none of ours."""
    history = History()
    if not path.is_file():
        message = f"no log at {path}"
        raise LogError(message)
    running: dict[int, Operation] = {}
    found: History | None = None
    for number, line in _complete_lines(path):
        if number == 0:
            if not line.startswith(MAGIC):
                break
            history.seed = int(line.rsplit(" ", 1)[1])
            found = history
        elif line[0] == "B":
            _, op, _, verb, *arguments = line.split(" ")
            operation = Operation(number, verb, arguments)
            running[int(op)] = operation
            history.operations.append(operation)
            history.max_op = max(history.max_op, int(op))
            if verb == "create":
                fid = int(arguments[1])
                history.max_fid = max(history.max_fid, fid)
                history.specs[fid] = arguments[2]
        elif line[0] == "E":
            _, op, *failure = line.split(" ")
            operation = running.pop(int(op))
            if failure:
                operation.failed = failure[0][1:]
            else:
                operation.end = number
        else:
            _read_baseline(line.split(" "), history, running)
    if found is None:
        message = f"{path} is not a log of this program"
        raise LogError(message)
    return history


def _read_baseline(words: list[str], history: History, running: dict[int, Operation]) -> None:
    """Take one S record; a baseline counts only when it is complete."""
    if words[1] == "begin":
        history.pending_dirs = []
        history.pending_files = []
    elif words[1] == "d":
        history.pending_dirs.append(words[2])
    elif words[1] == "f":
        path, fid, size, spec = words[2:6]
        history.pending_files.append(BaseFile(path, int(fid), int(size), spec))
    else:
        history.base_dirs = history.pending_dirs
        history.base_files = history.pending_files
        history.operations.clear()
        running.clear()
