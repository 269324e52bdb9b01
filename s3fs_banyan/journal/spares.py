"""Spare segments: files filled with bytes and synced before use, whose blocks never move again.

Filling one takes the disk a while, so it is done beforehand, and slowly while others sync. Where
somebody would have to wait for it, blocks are found and not filled (decision 9).
All methods belong to the event loop; filling and syncing run in threads.
"""

from __future__ import annotations

import contextlib
import errno
from collections import deque
from collections.abc import Callable
from pathlib import Path

import trio

from s3fs_banyan.journal.disk import Disk, DiskFile
from s3fs_banyan.journal.segment import JournalObserver, JournalSettings
from s3fs_banyan.runtime import Runtime

_FILL_BYTES = 1 << 20
_FILL_PAUSE_S = 0.03
_URGENT = 2
LEAN = 2
"""How many the journal cannot do without: one to write on, one for what frees space."""
_BUSY_NS = 200_000_000
_AGAIN_S = 1.0
_LOOK_S = 60.0

Spare = tuple[Path, DiskFile]


class SpareSegments:
    """The files that the journal will write to next."""

    def __init__(
        self,
        *,
        disk: Disk,
        directory: Path,
        settings: JournalSettings,
        runtime: Runtime,
        observer: JournalObserver,
        in_use: Callable[[], int],
        on_change: Callable[[], None],
    ) -> None:
        """`in_use` gives the number of segments that are no spares."""
        self._disk = disk
        self._directory = directory
        self._settings = settings
        self._runtime = runtime
        self._observer = observer
        self._in_use = in_use
        self._on_change = on_change
        self._files: deque[Spare] = deque()
        self._nameless: deque[DiskFile] = deque()
        self._last_slot = 0
        self._needed = 0
        self._has_ended = False
        self._poured_ns = 0
        self._wanted = trio.Event()
        self._changed = trio.Event()
        self._is_lean = False
        self.disk_full = False
        """Not even those can be made that the journal needs: the local disk is full."""

    def __len__(self) -> int:
        return len(self._files)

    def note_name(self, path: Path) -> None:
        """Never give that name to a new file."""
        slot = path.name.removeprefix("segment-")
        self._last_slot = max(self._last_slot, int(slot) if slot.isdecimal() else 0)

    def note_pouring(self) -> None:
        """Bytes pour into the journal just now, or would: filling a file slows them down."""
        self._poured_ns = self._runtime.monotonic_ns()

    def add(self, spare: Spare) -> None:
        """Take a file that is filled, synced and named on the disk."""
        self._files.append(spare)
        self._notify()

    def take(self) -> Spare:
        """Hand out the oldest; raises `OSError` if there is none."""
        if not self._files:
            raise OSError("the journal has no free segment; the caller must wait for room")
        self._wanted.set()
        return self._files.popleft()

    def keep_few(self) -> None:
        """The store is away, and the disk is needed for what lives: remove what is not usual now.

        Raises `OSError` if the disk refuses to remove a name.
        """
        self._is_lean = True
        self.trim()

    def keep_usual(self) -> None:
        """Make as many again as there are while the store answers."""
        self._is_lean = False
        self._wanted.set()

    def trim(self) -> None:
        """Remove what is more than the disk should hold."""
        is_tight = self._disk.free_bytes(self._directory) < self._settings.free_bytes_min
        if is_tight or self._is_lean:
            most = max(self._few, self._needed)
        else:
            most = max(self._usual, self._room)
        while len(self._files) > most:
            self.remove(self._files.pop())

    def remove(self, spare: Spare) -> None:
        """Remove a file; what a power cut brings back of it is judged by its header.

        Its name goes at once, its blocks in a thread: that takes a disk a while.
        """
        path, file = spare
        try:
            self._disk.unlink(path)
        except OSError:
            file.close()  # it has its name still, so its bytes stay as well
            raise
        self._nameless.append(file)
        self._wanted.set()

    def make_now(self) -> None:
        """Make one in place; blocks. Raises `OSError` if the disk refuses."""
        path, file = self._open_new()
        try:
            self._fill(file, 0, self._settings.segment_bytes)
            self._disk.sync_directory(self._directory)
        except OSError:
            self._discard((path, file))
            raise
        self.add((path, file))

    async def wait_for(self, count: int) -> None:
        """Wait until there are so many, however full or slow the disk is.

        Once `run` has ended they are made in place, and `OSError` is raised if the disk refuses:
        nobody else would ever make one. Safe to cancel.
        """
        self._needed = count
        self._wanted.set()
        try:
            while len(self._files) < count:
                if self._has_ended:
                    self.make_now()
                else:
                    await self._changed.wait()
        finally:
            self._needed = 0

    async def run(self) -> None:
        """Keep spare segments ready; ends only by cancellation, and for good."""
        try:
            while True:
                await self._free_nameless()
                is_well = await self._make_wanted()
                self._wanted = trio.Event()
                if is_well and self._nameless:
                    continue
                with trio.move_on_after(_LOOK_S if is_well else _AGAIN_S):
                    await self._wanted.wait()
        finally:
            self._has_ended = True
            self._notify()

    async def _free_nameless(self) -> None:
        await trio.lowlevel.checkpoint()
        while self._nameless:
            with trio.CancelScope(shield=True):
                await self._runtime.in_thread(self._free, self._nameless.popleft())

    async def _make_wanted(self) -> bool:
        """Make what is missing; false if the disk is full or refuses."""
        while len(self._files) < max(self._usual, self._needed):
            if len(self._files) >= _URGENT and self._is_busy():
                self._wanted = trio.Event()
                with trio.move_on_after(_BUSY_NS / 1e9):
                    await self._wanted.wait()
                continue
            free = self._disk.free_bytes(self._directory)
            if free < self._settings.segment_bytes + self._left_alone:
                self.disk_full = self._is_short
                self._notify()
                return False
            try:
                spare = await self._make()
            except OSError as error:
                # Any other error is a disk that cannot sync: writers wait, nobody gets ENOSPC.
                is_full = error.errno in {errno.ENOSPC, errno.EDQUOT}
                self.disk_full = is_full and self._is_short
                self._observer.journal_sync_failed(self._directory)
                self._notify()
                return False
            self.disk_full = False
            self.add(spare)
        self.disk_full = False  # commits may have freed what could not be made
        return True

    @property
    def _is_short(self) -> bool:
        """Whether there are fewer than the journal cannot do without."""
        return len(self._files) < max(self._few, self._needed)

    @property
    def _left_alone(self) -> int:
        """Free space that the next file leaves; what the journal needs may take nearly all."""
        most = self._settings.free_bytes_min
        return min(most, self._settings.free_bytes_least) if self._is_short else most

    @property
    def _few(self) -> int:
        return min(self._settings.spares, LEAN)

    @property
    def _usual(self) -> int:
        few = self._few
        return few if self._is_lean else max(few, min(self._settings.spares, self._room))

    @property
    def _room(self) -> int:
        return self._settings.segments - self._in_use()

    def _is_awaited(self) -> bool:
        """Tell whether somebody waits for a file, or will before one is filled."""
        return len(self._files) < max(self._needed, _URGENT if self._is_busy() else 0)

    def _is_busy(self) -> bool:
        return self._runtime.monotonic_ns() - self._poured_ns < _BUSY_NS

    async def _make(self) -> Spare:
        """Fill a file and sync it with its directory.

        Piece by piece, each synced: the disk takes all of it as fast as it can, and whoever
        syncs meanwhile waits behind what was handed over. What is left when somebody begins to
        wait for the file is only allocated.
        """
        path, file = self._open_new()
        try:
            for begin in range(0, self._settings.segment_bytes, _FILL_BYTES):
                if self._is_awaited():
                    with trio.CancelScope(shield=True):
                        await self._runtime.in_thread(self._allocate, file)
                    break
                end = min(begin + _FILL_BYTES, self._settings.segment_bytes)
                with trio.CancelScope(shield=True):
                    await self._runtime.in_thread(self._fill, file, begin, end)
                if len(self._files) >= max(_URGENT, self._needed):
                    await trio.sleep(_FILL_PAUSE_S)
            with trio.CancelScope(shield=True):
                await self._runtime.in_thread(self._disk.sync_directory, self._directory)
        except BaseException:
            self._discard((path, file))
            raise
        return path, file

    def _open_new(self) -> Spare:
        self._last_slot += 1
        path = self._directory / f"segment-{self._last_slot:06d}"
        return path, self._disk.open(path, create=True)

    def _discard(self, spare: Spare) -> None:
        """Remove what could not be filled; the next start does it where this disk refuses."""
        with contextlib.suppress(OSError):
            self.remove(spare)

    def _allocate(self, file: DiskFile) -> None:
        """Give a file its blocks, filled or not, and sync it; blocks."""
        file.allocate(self._settings.segment_bytes)
        file.datasync()

    @staticmethod
    def _free(file: DiskFile) -> None:
        """Free a file's blocks; what cannot be freed now is when the file is closed; blocks."""
        with contextlib.suppress(OSError):
            file.free()

    @staticmethod
    def _fill(file: DiskFile, begin: int, end: int) -> None:
        """Fill a part of a file and sync it; blocks."""
        file.fill(begin, end)
        file.datasync()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
        self._on_change()

    def close(self) -> None:
        """Close the files; those with a name stay."""
        for file in (*(file for _, file in self._files), *self._nameless):
            file.close()
        self._files.clear()
        self._nameless.clear()
