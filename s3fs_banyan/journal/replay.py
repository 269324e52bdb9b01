"""Reading a journal back: which records follow a given base, and why the reading ended.

The chain decides what belongs: a record is replayed if it continues, checksum by checksum, from
the base. Where the reading ends, it must be told apart whether the power went (the rest was
never synced, nothing promised is missing) or bytes rotted: segment headers and records carry
the highest sequence number that was synced when they were written, and an end below such a mark
is damage (architecture, section 5, rule 5).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from s3fs_banyan.format.record import (
    RECORD_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    Record,
    RecordHead,
    SegmentHeader,
    data_verifies,
    decode_record,
    decode_segment_header,
    head_continues,
    peek_record,
)
from s3fs_banyan.journal.disk import Disk


@dataclass(slots=True, kw_only=True)
class FoundSegment:
    """A segment file as found at start."""

    path: Path
    header: SegmentHeader | None
    """None for a file without an intact header: free for use."""
    foreign: bool = False
    """Its header is intact, but of another volume."""
    first_op_seq: int = 0
    last_op_seq: int = 0
    """Of the records replayed or skipped in it; 0 if none belongs to the chain."""
    end: int = SEGMENT_HEADER_BYTES


class RawRecord(NamedTuple):
    """A record as it stands in its segment."""

    op_seq: int
    chain_before: int
    data: bytes


@dataclass(slots=True, kw_only=True)
class ReplayEnd:
    """Where a replay ended; complete only after its iterator is exhausted."""

    op_seq: int
    chain: int
    base_found: bool = False
    synced_mark: int = 0
    """The highest operation known, from anything read, to have been synced."""
    unsynced: deque[RawRecord] = field(default_factory=deque)
    """Records above the mark: perhaps never synced, and a sync that failed says nothing now."""
    used: list[FoundSegment] = field(default_factory=list)
    """Segments with at least one record that belongs to the chain."""


def segment_files(disk: Disk, directory: Path, volume_id: bytes) -> list[FoundSegment]:
    """Return the segment files of a journal directory, by number; headerless ones last.

    Segments of another volume count as headerless. Raises `UnsupportedVersion` for a segment
    of a newer release.
    """
    found = []
    for name in disk.names(directory):
        if not name.startswith("segment-"):
            continue
        path = directory / name
        file = disk.open(path)
        try:
            header = decode_segment_header(file.pread(SEGMENT_HEADER_BYTES, 0))
        finally:
            file.close()
        foreign = header is not None and header.volume_id != volume_id
        found.append(FoundSegment(path=path, header=None if foreign else header, foreign=foreign))
    return sorted(found, key=lambda s: (s.header is None, s.header.number if s.header else 0))


def replay(
    disk: Disk, found: list[FoundSegment], base_op_seq: int, base_chain: int, end: ReplayEnd
) -> Iterator[tuple[int, int, Record]]:
    """Yield (segment number, position, record) of every record that continues the base.

    `end` is filled on the way. `end.base_found` stays false if the journal neither holds the
    base record nor begins right after it: then nothing is yielded.
    """
    history = {base_op_seq: base_chain}
    end.op_seq, end.chain = base_op_seq, base_chain
    start = _start_index(found, base_op_seq)
    while start > 0 and _reaches_behind(disk, found[start - 1], base_op_seq):
        start -= 1  # the first copies of records that were rewritten: pieces may lie in both
    for index, segment in enumerate(found):
        if segment.header is None:
            if not segment.foreign:
                end.synced_mark = max(end.synced_mark, _mark_without_header(disk, segment))
            continue
        # Whoever began a segment knew where the log ended: marks above it, in older segments, are
        # those of records that were given up (--accept-loss).
        end.synced_mark = min(end.synced_mark, segment.header.first_op_seq - 1)
        end.synced_mark = max(end.synced_mark, segment.header.synced_seq)
        if index < start:
            continue
        yield from _walk(_read_whole(disk, segment), segment, end, history)
        while end.unsynced and end.unsynced[0].op_seq <= end.synced_mark:
            end.unsynced.popleft()


def _start_index(found: list[FoundSegment], base_op_seq: int) -> int:
    """Return the index of the last segment that begins at or before the base's successor."""
    start = 0
    for index, segment in enumerate(found):
        if segment.header is not None and segment.header.first_op_seq <= base_op_seq + 1:
            start = index
    return start


def _reaches_behind(disk: Disk, segment: FoundSegment, base_op_seq: int) -> bool:
    """Tell whether a segment has records behind the base."""
    if segment.header is None:
        return False
    return any(head.op_seq > base_op_seq for _, head in _heads(_read_whole(disk, segment)))


def _mark_without_header(disk: Disk, segment: FoundSegment) -> int:
    """Return the highest synced mark in a file whose header rotted; 0 for one never used.

    From its second record on each one is verified by the one before.
    """
    file = disk.open(segment.path)
    try:
        if peek_record(file.pread(SEGMENT_HEADER_BYTES * 2, 0), SEGMENT_HEADER_BYTES) is None:
            return 0
    finally:
        file.close()
    buffer = _read_whole(disk, segment)
    mark, chain = 0, None
    for position, head in _heads(buffer):
        if chain is not None and head_continues(buffer, position, head, chain):
            mark = max(mark, head.synced_seq)
        chain = head.checksum
    return mark


def _read_whole(disk: Disk, segment: FoundSegment) -> bytes:
    file = disk.open(segment.path)
    try:
        return file.pread(file.size(), 0)
    finally:
        file.close()


def _walk(
    buffer: bytes, segment: FoundSegment, end: ReplayEnd, history: dict[int, int]
) -> Iterator[tuple[int, int, Record]]:
    """Walk one segment: skip up to the base, yield what continues, then look for marks.

    A segment is *joined* where its header's chain or one of its records equals what the history
    holds for that operation number; only behind that point do its records belong.
    """
    header = segment.header
    if header is None:
        raise AssertionError("only segments with a header are walked")
    chain = header.chain
    joined = history.get(header.first_op_seq - 1) == chain
    end.base_found = end.base_found or joined
    alive = True
    for position, head in _heads(buffer):
        intact = head_continues(buffer, position, head, chain)
        chain = head.checksum
        if intact:
            end.synced_mark = max(end.synced_mark, head.synced_seq)
        if head.op_seq <= end.op_seq:
            if history.get(head.op_seq) == head.checksum:
                joined = end.base_found = True
                _note(segment, position, head)
                behind_base = head.op_seq > next(iter(history))
                if behind_base and not any(segment is used for used in end.used):
                    # A copy, rewritten after a failed sync: live.db's pieces may lie here.
                    end.used.append(segment)
            elif head.op_seq in history:
                joined = False  # another operation of this number: what follows is not ours
            continue
        if not joined or not alive:
            continue
        follows = intact and head.op_seq == end.op_seq + 1
        if not follows or not data_verifies(buffer, position, head):
            alive = False
            continue
        record = decode_record(buffer, position, head)
        _note(segment, position, head)
        if not end.used or end.used[-1] is not segment:
            end.used.append(segment)
        raw = RawRecord(record.op_seq, end.chain, buffer[position : record.end])
        end.unsynced.append(raw)
        while end.unsynced and end.unsynced[0].op_seq <= end.synced_mark:
            end.unsynced.popleft()
        history[record.op_seq] = record.checksum
        end.op_seq, end.chain = record.op_seq, record.checksum
        yield header.number, position, record


def _note(segment: FoundSegment, position: int, head: RecordHead) -> None:
    segment.first_op_seq = segment.first_op_seq or head.op_seq
    segment.last_op_seq = head.op_seq
    segment.end = position + RECORD_HEADER_BYTES + head.body_length + head.data_length


def _heads(buffer: bytes) -> Iterator[tuple[int, RecordHead]]:
    """Yield the heads that follow each other by their own lengths, verified or not."""
    position = SEGMENT_HEADER_BYTES
    last_op_seq = 0
    while (head := peek_record(buffer, position)) is not None:
        if last_op_seq and head.op_seq != last_op_seq + 1:
            return
        yield position, head
        last_op_seq = head.op_seq
        position += RECORD_HEADER_BYTES + head.body_length + head.data_length
