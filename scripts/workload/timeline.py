"""The log unfolded: for every name the states it went through, for every file its extents.

A state is None (absent), "d" (a directory) or a content id. Operations on one name never
overlap, so the states of a name have one order; those of different names do not.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

from workload.content import STAMP, Content, Known
from workload.oplog import History, Operation, decode_spec

State = int | str | None
CATALOGS = ("measure", "stream", "trace", "property")
DIRECTORY = "d"


class Seen(NamedTuple):
    """A name as found on the volume."""

    is_dir: bool
    size: int
    ino: int
    nlink: int


class Timelines:
    """States by name, extents by content id."""

    def __init__(self) -> None:
        self.names: dict[str, list[tuple[State, Operation | None]]] = {}
        self.extents: dict[int, list[tuple[int, int, Operation]]] = {}
        self.base_size: dict[int, int] = {}
        self.truncated: set[int] = set()
        self.expired: set[str] = set()
        self.specs: dict[int, str] = {}

    def known(self, fid: int, size: int) -> Known:
        """Return what a file of this content id and size holds."""
        literal, alias = decode_spec(self.specs[fid])
        return Known(fid, size, literal, alias)

    def states(self, path: str) -> list[tuple[State, Operation | None]]:
        """Return the states of a name; one never logged was always absent."""
        return self.names.get(path, [(None, None)])

    def in_expired(self, path: str) -> bool:
        """Whether the removal of a tree around this path was begun."""
        return any(path == tree or path.startswith(f"{tree}/") for tree in self.expired)


def unfold(history: History) -> Timelines:
    """Build the timelines of the operations since the newest baseline."""
    lines = Timelines()
    lines.specs = dict(history.specs)
    for path in history.base_dirs:
        lines.names[path] = [(DIRECTORY, None)]
    for file in history.base_files:
        lines.names[file.path] = [(file.fid, None)]
        lines.base_size[file.fid] = file.size
        lines.specs[file.fid] = file.spec
    for operation in history.operations:
        _take(lines, operation)
    return lines


def _take(lines: Timelines, operation: Operation) -> None:
    def become(path: str, state: State) -> None:
        lines.names.setdefault(path, [(None, None)]).append((state, operation))

    verb, words = operation.verb, operation.arguments
    if verb == "mkdir":
        become(words[0], DIRECTORY)
    elif verb == "create":
        become(words[0], int(words[1]))
    elif verb in {"unlink", "rmdir"}:
        become(words[0], None)
    elif verb in {"rename", "link"}:
        state = lines.states(words[0])[-1][0]
        become(words[1], state)
        if verb == "rename":
            become(words[0], None)
    elif verb == "append":
        for extent in words[0].split(","):
            fid, offset, length = (int(number) for number in extent.split(":"))
            lines.extents.setdefault(fid, []).append((offset, length, operation))
    elif verb == "truncate":
        lines.truncated.add(int(words[0]))
    elif verb == "expire":
        lines.expired.add(words[0])


def observe(root: Path) -> dict[str, Seen]:
    """Walk the volume below the catalogs' directories; other names at its top are not ours."""
    found: dict[str, Seen] = {}

    def visit(path: str) -> None:
        with os.scandir(root / path) as entries:
            names = sorted(entry.name for entry in entries)
        for name in names:
            child = f"{path}/{name}"
            number = os.lstat(root / child)
            is_dir = stat.S_ISDIR(number.st_mode)
            found[child] = Seen(is_dir, number.st_size, number.st_ino, number.st_nlink)
            if is_dir:
                visit(child)

    for name in CATALOGS:
        if (root / name).is_dir():
            number = os.lstat(root / name)
            found[name] = Seen(True, number.st_size, number.st_ino, number.st_nlink)
            visit(name)
    return found


def matching(
    root: Path, path: str, seen: Seen | None, lines: Timelines, content: Content
) -> list[int]:
    """Return which states of a name explain what is found there, by kind and first bytes."""
    states = lines.states(path)
    if seen is None:
        return [index for index, (state, _) in enumerate(states) if state is None]
    if seen.is_dir:
        return [index for index, (state, _) in enumerate(states) if state == DIRECTORY]
    with (root / path).open("rb", buffering=0) as stream:
        head = stream.read(STAMP.size)
    found: list[int] = []
    for index, (state, _) in enumerate(states):
        if isinstance(state, int):
            known = lines.known(state, seen.size)
            if content.expect(known, 0, len(head)) == head:
                found.append(index)
    return found
