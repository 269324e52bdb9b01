"""What the commands print: lines, JSON, sizes and times for people, progress bars.

Results go to standard output, everything else to standard error. Names in a volume are bytes:
they leave as those bytes where a program reads, and with control characters escaped where a
person does.
"""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from s3fs_banyan.errors import BanyanFSError, ExitCode
from s3fs_banyan.observe.log import redact

if TYPE_CHECKING:
    from typing_extensions import Buffer

_STANDARD_OUTPUT = 1
_WIDTH_OF_FILES = 200
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


class OutputLost(BanyanFSError):
    """Standard output took not everything that was to be written."""

    exit_code = ExitCode.LOCAL

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output: {error.strerror or error}")
        self.is_unread = error.errno == errno.EPIPE
        """Whether it is a pipe whose reader has gone."""


class _Output(io.FileIO):
    """Standard output, whose failure is an `OutputLost`: no library takes it for its own.

    After a failure it takes everything and writes nothing, for what Python flushes at its end.
    """

    _is_lost = False

    def write(self, data: Buffer, /) -> int:
        if self._is_lost:
            return memoryview(data).nbytes
        try:
            done: int | None = super().write(data)
            if done is None:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        except OSError as error:
            self._is_lost = True
            raise OutputLost(error) from error
        return done


@contextmanager
def guarded_output() -> Iterator[None]:
    """Let standard output write everything or raise `OutputLost`, with PYTHONUNBUFFERED, too.

    Python's own is then a bare file, whose write() may take a part and say so to nobody.
    """
    given = sys.stdout
    _occupy(_STANDARD_OUTPUT)
    raw = _Output(_STANDARD_OUTPUT, "wb", closefd=False)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(given, "encoding", None) or "utf-8",
        errors=getattr(given, "errors", None),
        line_buffering=raw.isatty(),
    )
    try:
        yield
    finally:
        with suppress(OutputLost):  # a command that failed has said why already
            sys.stdout.flush()
        sys.stdout = given


def _occupy(fd: int) -> None:
    """See to it that a closed descriptor stays one that nothing can be written to."""
    try:
        os.fstat(fd)
    except OSError:
        made = os.open(os.devnull, os.O_RDONLY)
        os.dup2(made, fd)
        if made != fd:
            os.close(made)


def console() -> Console:
    """Return the console of standard output."""
    width = None if sys.stdout.isatty() else _WIDTH_OF_FILES
    return Console(highlight=False, soft_wrap=True, width=width)


def error_console() -> Console:
    """Return the console of standard error."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: object) -> None:
    """Print a result for programs: one JSON document."""
    json.dump(value, sys.stdout, indent=1)
    sys.stdout.write("\n")
    sys.stdout.flush()


def print_line(text: str, style: str = "") -> None:
    """Print one line of a result, as bytes where no person reads."""
    if sys.stdout.isatty():
        console().print(Text(printable(text), style=style))
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(os.fsencode(text) + b"\n")


def say(text: str, style: str = "") -> None:
    """Tell a person something beside the result."""
    error_console().print(Text(printable(redact(text)), style=style))


def printable(text: str) -> str:
    """Return `text` fit for a terminal: control characters and stray bytes escaped."""
    if text.isprintable():
        return text
    shown = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def size_text(count: float) -> str:
    """Return a number of bytes for people: `1.5 GiB`."""
    value, unit = float(count), 0
    while abs(value) >= 1024 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    return (
        f"{value:.0f} {_UNITS[unit]}"
        if unit == 0 or value >= 100
        else f"{value:.1f} {_UNITS[unit]}"
    )


def seconds_text(seconds: float) -> str:
    """Return a duration for people: `0.35 ms`, `2.1 s`, `3 min`."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.2f} ms" if seconds < 0.01 else f"{seconds * 1e3:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def time_text(time_ns: int) -> str:
    """Return a moment as `2026-11-24 10:15:30` in UTC."""
    moment = datetime.fromtimestamp(time_ns // 10**9, tz=UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S}"


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show a progress bar on standard error while a terminal is there to show it."""
    err = error_console()
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    ) as bar:
        yield bar
