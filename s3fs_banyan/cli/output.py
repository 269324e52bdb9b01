"""What the commands print: lines, JSON, sizes and times for people, progress bars.

Results go to standard output, everything else to standard error. Names in a volume are bytes:
they leave as those bytes where a program reads, and with control characters escaped where a
person does.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from s3fs_banyan.observe.log import redact

_WIDTH_OF_FILES = 200
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


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
