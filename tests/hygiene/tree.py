"""The files of this repository, as git sees them: tracked, or new and not ignored."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def files() -> tuple[Path, ...]:
    """Return the paths, relative to the root of the repository, in order."""
    listing = subprocess.run(
        [
            "git",
            # A checkout may belong to another user than the one that runs the tests.
            *("-c", "safe.directory=*"),
            *("ls-files", "-z", "--cached", "--others", "--exclude-standard"),
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout
    paths = {Path(name.decode()) for name in listing.split(b"\0") if name}
    return tuple(sorted(path for path in paths if (ROOT / path).is_file()))


@functools.cache
def text(path: Path) -> str:
    """Return the text of a file; bytes that are not UTF-8 are replaced."""
    return (ROOT / path).read_text(encoding="utf-8", errors="replace")


def is_python(path: Path) -> bool:
    """Say whether a file is Python source, by its suffix or its first line."""
    if path.suffix:
        return path.suffix == ".py"
    first_line = text(path).partition("\n")[0]
    return first_line.startswith("#!") and "python" in first_line


def python_files() -> tuple[Path, ...]:
    """Return the Python sources, programs without a suffix included."""
    return tuple(path for path in files() if is_python(path))


def documents() -> tuple[Path, ...]:
    """Return the Markdown files."""
    return tuple(path for path in files() if path.suffix == ".md")
