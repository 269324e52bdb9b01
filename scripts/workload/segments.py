"""Groups and their time segments: creation, rotation, retention, snapshots, re-open storms.

A group has one open segment, which receives everything, and closed ones. Whoever works on the
open segment holds it by `use`; it is closed only when nobody does. A segment's `metadata` is
written through a flock handle that is never synced and not closed before the segment is: it
must be durable no later than any later fsync, or the database deletes the whole segment.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import posixpath
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from workload.files import Files
from workload.index import Index
from workload.shapes import EngineShape
from workload.shard import Shard

_FIRST_HOUR = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
_CLOSE_WAIT_S = 60.0


class Segment:
    """One time segment of a group: shards, a series index, and element indexes for streams."""

    def __init__(
        self, files: Files, shape: EngineShape, path: str, *, shards: int, scale: float
    ) -> None:
        self.files = files
        self.path = path
        self.shards = [
            Shard(files, shape, f"{path}/shard-{index}", scale=scale) for index in range(shards)
        ]
        self.series = Index(files, f"{path}/sidx")
        self.elements = [
            Index(files, f"{shard.path}/idx") for shard in self.shards if shape.element_index
        ]
        self.users = 0
        self.open = False
        self.metadata_fd = -1

    @property
    def indexes(self) -> list[Index]:
        """Every index of the segment."""
        return [self.series, *self.elements]

    def create(self, end: dt.datetime) -> None:
        """Make the directories, the metadata and the locks of a new segment."""
        self.files.makedirs_synced(self.path)
        fields = {"version": "1.5.0", "endTime": end.strftime("%Y-%m-%dT%H:%M:%SZ")}
        literal = json.dumps(fields, separators=(",", ":")).encode()
        out = self.files.create(f"{self.path}/metadata", literal=literal)
        self.files.flock(out.fd)
        self.files.write_once(out, literal)
        self.metadata_fd = out.fd
        for shard in self.shards:
            shard.prepare()
        for index in self.indexes:
            self.files.mkdir(index.path)
            index.open_writer()
        self.open = True

    def close(self) -> None:
        """Close a segment nobody uses; its removals are done first."""
        for shard in self.shards:
            shard.drain_removals()
            shard.close()
        for index in self.indexes:
            index.close_writer()
        if self.metadata_fd >= 0:
            os.close(self.metadata_fd)
            self.metadata_fd = -1
        self.open = False

    def release(self) -> None:
        """Close descriptors only; for the end of a run whose volume is gone."""
        for shard in self.shards:
            shard.close()
        for index in self.indexes:
            index.release()

    def reopen(self) -> None:
        """What each rotation tick does to a closed segment: open everything, close it again."""
        self.files.listdir(self.path)
        for shard in self.shards:
            shard.reopen()
        for index in self.indexes:
            index.reopen()

    def snapshot(self, target: str) -> None:
        """Link parts and metadata, copy the indexes; of a closed segment link everything."""
        self.files.makedirs_synced(target)
        if not self.open:
            self._link_tree(self.path, target)
        else:
            self.files.link(f"{self.path}/metadata", f"{target}/metadata")
            for shard in self.shards:
                shard.snapshot(f"{target}{shard.path.removeprefix(self.path)}")
            for index in self.indexes:
                index.copy_to(f"{target}{index.path.removeprefix(self.path)}")
        self.files.sync_dir(target)

    def _link_tree(self, source: str, target: str) -> None:
        for name in self.files.listdir(source):
            path = f"{source}/{name}"
            if self.files.is_dir(path):
                self.files.mkdir(f"{target}/{name}")
                self._link_tree(path, f"{target}/{name}")
            else:
                self.files.link(path, f"{target}/{name}")


class Group:
    """One group of one catalog."""

    def __init__(self, files: Files, shape: EngineShape, *, shards: int, scale: float) -> None:
        self.files = files
        self.shape = shape
        self.shard_count = shards
        self.scale = scale
        self.path = f"{shape.catalog}/data/{shape.group}"
        self.segments: list[Segment] = []
        self.snapshots: list[tuple[float, str]] = []
        self._hour = 0
        self._lock = threading.Lock()
        self._lock_fd = -1

    def open_group(self) -> None:
        """Make the group's directory if needed and take its lock file."""
        self.files.makedirs_synced(self.path)
        out = self.files.create(f"{self.path}/lock", literal=b"")
        self.files.flock(out.fd)
        self._lock_fd = out.fd

    def adopt(self, segments: list[Segment], hour: int) -> None:
        """Take over segments found on the volume; the last one is open."""
        self.segments = segments
        self._hour = hour

    def segment_at(self, hour: int) -> Segment:
        """Return the object of the segment of that hour, touching nothing."""
        name = (_FIRST_HOUR + dt.timedelta(hours=hour)).strftime("seg-%Y%m%d%H")
        path = f"{self.path}/{name}"
        return Segment(self.files, self.shape, path, shards=self.shard_count, scale=self.scale)

    @property
    def current(self) -> Segment:
        """The open segment."""
        return self.segments[-1]

    @contextmanager
    def use(self) -> Iterator[Segment]:
        """Hold the open segment for the length of a block."""
        with self._lock:
            segment = self.segments[-1]
            segment.users += 1
        try:
            yield segment
        finally:
            with self._lock:
                segment.users -= 1

    def rotate(self, keep: int) -> None:
        """Open the next segment, close the one before, remove all but the newest `keep`."""
        self._hour += 1
        fresh = self.segment_at(self._hour)
        fresh.create(_FIRST_HOUR + dt.timedelta(hours=self._hour + 1))
        with self._lock:
            previous = self.segments[-1] if self.segments else None
            self.segments.append(fresh)
        if previous:
            deadline = time.monotonic() + _CLOSE_WAIT_S
            while previous.users and time.monotonic() < deadline:
                time.sleep(0.01)
            if previous.users:
                message = f"{previous.path}: still used {_CLOSE_WAIT_S:.0f} s after its rotation"
                raise TimeoutError(message)
            previous.close()
        while len(self.segments) > keep:
            with self._lock:
                expired = self.segments.pop(0)
            expired.release()
            self.files.expire(expired.path)
            self.files.stats.count("segments expired")

    def snapshot(self, *, keep: int, min_age_s: float) -> None:
        """Make one snapshot; before it remove the oldest beyond `keep` that are old enough."""
        now = time.monotonic()
        while len(self.snapshots) >= keep and now - self.snapshots[0][0] >= min_age_s:
            self.files.rmtree(self.snapshots.pop(0)[1])
        stamp = time.strftime("%Y%m%d%H%M%S", time.gmtime())
        path = f"{self.shape.catalog}/snapshots/{stamp}-{time.time_ns() & 0xFFFFFFFF:08x}"
        with self.files.stats.timed("snapshot"):
            with self._lock:
                segments = list(self.segments)
                segments[-1].users += 1
            try:
                for segment in segments:
                    name = posixpath.basename(segment.path)
                    segment.snapshot(f"{path}/{self.shape.group}/{name}")
            finally:
                with self._lock:
                    segments[-1].users -= 1
        self.snapshots.append((now, path))

    def adopt_snapshot(self, path: str) -> None:
        """Count a snapshot of an earlier run among those to remove in time."""
        self.snapshots.append((time.monotonic(), path))

    def reopen_closed(self) -> None:
        """Re-open every closed segment, once."""
        for segment in self.segments[:-1]:
            with self.files.stats.timed("reopen"):
                segment.reopen()

    def drain_removals(self) -> None:
        """Remove the dropped parts of the open segment that nobody uses."""
        with self.use() as segment:
            for shard in segment.shards:
                shard.drain_removals()

    def close(self) -> None:
        """Close cleanly: memory parts are not flushed, locks are unlinked."""
        self.current.close()
        for segment in self.segments:
            segment.release()
        self.files.unlink(f"{self.path}/lock")
        os.close(self._lock_fd)
