"""One segment file: how it is written, and read back. Sizes: `JournalSettings`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from s3fs_banyan.errors import Corrupt
from s3fs_banyan.format.checksum import Bytes, xxh3
from s3fs_banyan.format.record import WRITE_DATA_OFFSET, peek_record
from s3fs_banyan.journal.disk import DiskFile

PAGE_BYTES = 4096
_PADDING = bytes(PAGE_BYTES)


class JournalObserver(Protocol):
    """What a metric may want to know."""

    def journal_synced(self, seconds: float, byte_count: int) -> None: ...

    def journal_sync_failed(self, path: Path) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalSettings:
    """Sizes in bytes, times in seconds."""

    segment_bytes: int = 64 << 20
    sync_bytes: int = 4 << 20
    sync_interval_s: float = 1.0
    spares: int = 8
    """Kept ready, as far as `segments` allows."""
    segments: int = 12
    """Files in use and spare together, where that leaves two spares: no more lie on the disk."""
    free_bytes_min: int = 256 << 20
    """Local disk space that new segments leave alone, but for the first two spares."""
    free_bytes_least: int = 16 << 20
    """What those two leave alone, where `free_bytes_min` is not less."""


@dataclass(slots=True, eq=False)
class Segment:
    """One segment in use."""

    path: Path
    file: DiskFile
    number: int
    end: int
    last_op_seq: int
    bad: bool = False
    written_to: int = 0
    """Where what was written ends, padding included: the end of a page."""

    def write(self, *buffers: Bytes) -> int:
        """Write at the end and move it; returns where. Raises `OSError`, and then `end` stays.

        A page that is entered is written to its end. The file's blocks hold old bytes, so for
        a part of a page that is no longer in memory the kernel would read the rest of it from
        the disk first, within the call: once in every 4 KiB of journal.
        """
        position = self.end
        end = position + sum(map(len, buffers))
        if end > self.written_to:
            page_end = -(-end // PAGE_BYTES) * PAGE_BYTES
            self.file.pwritev((*buffers, _PADDING[: page_end - end]), position)
            self.written_to = page_end
        else:
            self.file.pwritev(buffers, position)
        self.end = end
        return position


def read_write_record(file: DiskFile, path: Path, position: int, op_seq: int) -> bytes:
    """Return the verified data of the WRITE record at `position`; raises `Corrupt`."""
    head = peek_record(file.pread(WRITE_DATA_OFFSET, position), 0)
    if head is None or head.op_seq != op_seq:
        raise Corrupt("journal record", str(path), f"operation {op_seq} is not at {position}")
    data = file.pread(head.data_length, position + WRITE_DATA_OFFSET)
    if len(data) != head.data_length or xxh3(data) != head.data_sum:
        raise Corrupt("journal record", str(path), f"checksum of operation {op_seq} differs")
    return data
