"""A local disk that refuses what a file tells it to, as a dying one would: a real mount.

It is the floor of `scripts/bench` with errors added. Its files live as long as its process does,
so a daemon on it can be killed and started again; a power cut it cannot play.

`python -m tests.kernel.failing_disk MOUNTPOINT DATAFILE ORDERS`: ORDERS holds words `CALL COUNT`,
one pair a line; so many of the next calls (sync, write, create) give EIO. An ORDERS that changes
begins anew.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Self

from benchlib.floor_data import DataFile
from benchlib.floor_fs import FloorOperations, serve
from benchlib.mounts import mount_device
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext

_SCRIPTS = Path(__file__).parents[2] / "scripts"
_READY_WITHIN_S = 30.0
ALWAYS = 1_000_000_000


class FailingOperations(FloorOperations):
    """The floor's handlers, which look at the orders first."""

    def __init__(self, data_file: DataFile, orders: Path) -> None:
        super().__init__(data_file)
        self._orders = orders
        self._read_ns = -1
        self._left: Counter[str] = Counter()

    def _obey(self, call: str) -> None:
        changed_ns = self._orders.stat().st_mtime_ns
        if changed_ns != self._read_ns:
            self._read_ns = changed_ns
            pairs = (line.split() for line in self._orders.read_text("ascii").splitlines())
            self._left = Counter({name: int(count) for name, count in pairs})
        if self._left[call] > 0:
            self._left[call] -= 1
            raise FUSEError(errno.EIO)

    async def create(
        self,
        parent_inode: int,
        name: bytes,
        mode: int,
        flags: int,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        """Create a file, or refuse."""
        self._obey("create")
        return await super().create(parent_inode, name, mode, flags, ctx)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Write, or refuse."""
        self._obey("write")
        return await super().write(fh, off, buf)

    async def fsync(self, fh: int, datasync: bool) -> None:
        """Sync, or refuse: what was written stays readable all the same."""
        self._obey("sync")
        await super().fsync(fh, datasync)


class FailingDisk:
    """One such disk, mounted. Use as a context manager."""

    def __init__(self, directory: Path, mount_point: Path) -> None:
        self.path = mount_point
        self._directory = directory
        self._orders = directory / "orders"
        self._process: subprocess.Popen[bytes] | None = None

    def fail(self, **calls: int) -> None:
        """Let so many of the next calls fail (`sync=1`), and all others succeed."""
        text = "".join(f"{name} {count}\n" for name, count in calls.items())
        new = self._orders.with_suffix(".new")
        new.write_text(text, "ascii")
        new.replace(self._orders)

    def __enter__(self) -> Self:
        """Mount it; returns when it answers."""
        self._directory.mkdir(parents=True)
        self.path.mkdir(parents=True, exist_ok=True)
        self.fail()
        words = [str(self.path), str(self._directory / "data"), str(self._orders)]
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", __name__, *words],
            stdin=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join((str(_SCRIPTS.parent), str(_SCRIPTS)))},
        )
        deadline = time.monotonic() + _READY_WITHIN_S
        while mount_device(self.path) is None:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError("the failing disk was not mounted")
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        """Take it away, whoever is on it."""
        subprocess.run(["umount", "-l", str(self.path)], check=False, capture_output=True)
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)


def main() -> None:
    """Serve one."""
    mount_point, data_path, orders = map(Path, sys.argv[1:])
    serve(
        mount_point,
        data_path,
        read_ahead_kib=128,
        make_operations=lambda data_file: FailingOperations(data_file, orders),
    )


if __name__ == "__main__":
    main()
