"""A small load that remembers in this process what was answered, for tests that die at a point."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

DEAD = {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ENOENT}


class Answers:
    """Creates, overwrites, renames and unlinks files, one call after the other.

    After a death the directory is what was answered, and perhaps the one call that was not.
    """

    def __init__(self, directory: Path, seed: int = 0) -> None:
        """The directory must be there and empty."""
        self._directory = directory
        self._random = random.Random(seed)
        self._number = 0
        self.files: dict[str, bytes] = {}
        self._unanswered: dict[str, bytes] | None = None
        """What the directory may be as well, if the last call was carried out unanswered."""

    def run(self, steps: int) -> bool:
        """Do some steps; false if the mount died."""
        for _ in range(steps):
            try:
                self._step()
            except OSError as error:
                if error.errno not in DEAD:
                    raise
                return False
        return True

    def _step(self) -> None:
        draw = self._random.random()
        after = dict(self.files)
        if draw < 0.6 or len(self.files) < 5:
            self._number += 1
            name = f"file-{self._number}"
            data = self._random.randbytes(self._random.choice((100, 5000, 300_000)))
            self._create(name, data)
            return
        name = self._random.choice(sorted(self.files))
        if draw < 0.8:
            del after[name]
            self._unanswered = after
            (self._directory / name).unlink()
        else:
            target = f"moved-{self._number}"
            after[target] = after.pop(name)
            self._unanswered = after
            (self._directory / name).rename(self._directory / target)
        self._answered(after)

    def _create(self, name: str, data: bytes) -> None:
        """Two calls: each may be the last one answered."""
        for content in (b"", data):
            after = self.files | {name: content}
            self._unanswered = after
            flags = os.O_WRONLY | os.O_CREAT
            fd = os.open(self._directory / name, flags)
            try:
                if content:
                    _write_all(fd, content)
            finally:
                os.close(fd)
            self._answered(after)

    def _answered(self, after: dict[str, bytes]) -> None:
        self.files = after
        self._unanswered = None

    def check(self) -> None:
        """The directory is exactly what was answered; an unanswered write may be there in part."""
        found = {path.name: path.read_bytes() for path in self._directory.iterdir()}
        if found == self.files:
            return
        maybe = self._unanswered
        assert maybe is not None, _difference(found, self.files)
        assert set(found) in (set(maybe), set(self.files)), _difference(found, maybe)
        for name, data in found.items():
            wanted = maybe.get(name, self.files.get(name, b""))
            in_part = self.files.get(name) != wanted and wanted.startswith(data)
            assert data == wanted or in_part, f"{name}: {len(data)} bytes, not {len(wanted)}"

    def settle(self) -> None:
        """Take the directory as it is: the next death is counted from here."""
        self.files = {path.name: path.read_bytes() for path in self._directory.iterdir()}
        self._unanswered = None


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _difference(found: dict[str, bytes], wanted: dict[str, bytes]) -> str:
    missing, added = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    other = [name for name in found.keys() & wanted.keys() if found[name] != wanted[name]]
    return f"missing {missing[:5]}, unexpected {added[:5]}, other bytes in {other[:5]}"
