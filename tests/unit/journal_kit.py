"""A journal on a disk in RAM, for tests."""

from __future__ import annotations

from pathlib import Path

from s3fs_banyan.journal.log import Journal
from s3fs_banyan.journal.replay import ReplayEnd, replay, segment_files
from s3fs_banyan.journal.segment import JournalSettings
from s3fs_banyan.model import Operation, Write
from tests.unit.engine_kit import StepRuntime
from tests.unit.memory_disk import MemoryDisk, MemoryFile

DIRECTORY = Path("journal")
VOLUME_ID = b"v" * 16
SEGMENT = 256 * 1024


class Observer:
    """Notes what the journal says."""

    def __init__(self) -> None:
        self.synced: list[int] = []
        self.failed: list[Path] = []

    def journal_synced(self, seconds: float, byte_count: int) -> None:
        assert seconds >= 0
        self.synced.append(byte_count)

    def journal_sync_failed(self, path: Path) -> None:
        self.failed.append(path)


class Bench:
    """A journal on a disk in RAM."""

    def __init__(self, **settings: object) -> None:
        self.disk = MemoryDisk()
        self.runtime = StepRuntime()
        self.observer = Observer()
        base: dict[str, object] = {"segment_bytes": SEGMENT, "spares": 2, "free_bytes_min": 0}
        self.settings = JournalSettings(**(base | settings))  # type: ignore[arg-type]
        self.journal = self.open()

    def open(self) -> Journal:
        return Journal(
            disk=self.disk,
            directory=DIRECTORY,
            settings=self.settings,
            runtime=self.runtime,
            volume_id=VOLUME_ID,
            observer=self.observer,
        )

    def begin(self, spares: int = 2) -> Journal:
        """Begin an empty journal with so many spare segments beside the current one."""
        self.journal.begin(0, 0)
        for _ in range(spares):
            self.journal.spares.make_now()
        return self.journal

    def replayed(self, base: int = 0, chain: int = 0) -> list[Operation]:
        """Return the operations that a start would replay."""
        end = ReplayEnd(op_seq=0, chain=0)
        found = segment_files(self.disk, DIRECTORY, VOLUME_ID)
        return [record.op for _, _, record in replay(self.disk, found, base, chain, end)]

    def current(self) -> MemoryFile:
        """Return the file of the segment that is written at present."""
        segment = self.journal._current
        assert segment is not None
        return self.disk.files[segment.path]


def write(number: int, length: int = 100) -> Write:
    """Return a WRITE with recognisable bytes."""
    return Write(2, number, False, number, bytes([number % 256]) * length)
