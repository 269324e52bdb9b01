"""One shard: live parts, the part list, flushes, merges, removal of what was merged.

Part lists are published under one lock, in the order of their epochs. A list also names
parts that are still in memory and have no directory. A dropped part is removed by the
shard's own remover once no query or snapshot uses it.
"""

from __future__ import annotations

import json
import os
import posixpath
import queue
import random
import threading
from collections.abc import Iterable

from workload.content import Known
from workload.files import Files
from workload.merging import select
from workload.parts import Part, flush_sizes, merge_sizes, open_part, read_part, write_part
from workload.shapes import EngineShape

_MERGE_KEEP = 0.93
_SINGLE_FLUSH = 0.12


class Shard:
    """State of one shard of one segment."""

    def __init__(self, files: Files, shape: EngineShape, path: str, *, scale: float) -> None:
        self.files = files
        self.shape = shape
        self.path = path
        self.scale = scale
        self.parts: list[Part] = []
        self.next_number = 1
        self.epoch = 0
        self.list_file: tuple[str, Known] | None = None
        self.removals: queue.SimpleQueue[Part] = queue.SimpleQueue()
        self.flushed = threading.Event()
        self.merged = threading.Event()
        self.publishing = threading.Lock()
        self._refs = threading.Lock()

    def prepare(self) -> None:
        """Make the directories of a new shard."""
        self.files.mkdir_synced(self.path)
        for piece in self.shape.dirs:
            if piece.parent:
                self.files.makedirs_synced(f"{self.path}/{piece.parent}")

    def take_numbers(self, count: int) -> range:
        """Return the next numbers: of a part, or of memory parts that never get a directory."""
        with self._refs:
            first = self.next_number
            self.next_number += count
            return range(first, first + count)

    # use by readers

    def acquire(self) -> list[Part]:
        """Return the live parts, kept from removal until `release`."""
        with self._refs:
            for part in self.parts:
                part.refs += 1
            return list(self.parts)

    def release(self, parts: Iterable[Part]) -> None:
        """Give parts back; a dropped one goes to the remover with its last user."""
        with self._refs:
            for part in parts:
                part.refs -= 1
                if part.dropped and part.refs == 0:
                    self.removals.put(part)

    # publication

    def publish(self, added: list[Part], dropped: list[Part], memory: Iterable[int]) -> None:
        """Write the next part list atomically, then unlink the one before it."""
        with self.publishing:
            live = [part for part in self.parts if part not in dropped] + added
            self.epoch += 1
            names = [part.name for part in live] + [f"{number:016x}" for number in memory]
            target = f"{self.path}/{self.epoch:016x}.snp"
            known = self.files.write_atomic(target, json.dumps(names).encode())
            previous, self.list_file = self.list_file, (target, known)
            if previous:
                self.files.unlink(previous[0])
            with self._refs:
                self.parts = live
                for part in dropped:
                    part.dropped = True
                    if part.refs == 0:
                        self.removals.put(part)
        self.files.stats.note_live(self.path, len(live))
        self.files.stats.count(f"publish {self.shape.catalog}")

    def flush(self, rng: random.Random, *, factor: float = 1.0) -> None:
        """Turn memory parts into a part on disk and publish it."""
        catalog = self.shape.catalog
        total = int(self.shape.flush_bytes * self.scale * factor * rng.uniform(0.85, 1.15))
        with self.files.stats.timed(f"flush {catalog}"):
            self.files.statfs()
            part = write_part(
                self.files,
                self.shape,
                self.path,
                number=self.take_numbers(1)[0],
                rows=max(1, int(self.shape.rows * self.scale * factor)),
                sizes=flush_sizes(self.shape, total),
                single=rng.random() < _SINGLE_FLUSH,
            )
            open_part(self.files, self.shape, part)
            self.publish([part], [], self.take_numbers(rng.randint(0, 6)))
        self.flushed.set()

    def merge(self, rng: random.Random) -> bool:
        """Check, and merge if the rule finds a window; True if it did."""
        free = self.files.statfs()
        with self._refs:
            candidates = [part for part in self.parts if not part.dropped]
        chosen = select([part.size for part in candidates], fan_in=self.shape.fan_in, free=free)
        if not chosen:
            return False
        inputs = [candidates[index] for index in sorted(chosen)]
        with self.files.stats.timed(f"merge {self.shape.catalog}"):
            self.files.statfs()
            for part in inputs:
                read_part(self.files, part)
            part = write_part(
                self.files,
                self.shape,
                self.path,
                number=self.take_numbers(1)[0],
                rows=sum(part.rows for part in inputs),
                sizes=merge_sizes(self.shape, inputs, _MERGE_KEEP),
                single=False,
            )
            open_part(self.files, self.shape, part)
            self.publish([part], inputs, self.take_numbers(rng.randint(0, 6)))
        self.merged.set()
        return True

    def remove(self, part: Part) -> None:
        """Close a dropped part and remove its directories."""
        part.close()
        for path in reversed(part.dirs):
            self.files.rmtree(path)
        self.files.stats.count("parts removed")

    def drain_removals(self) -> None:
        """Remove everything that waits for it."""
        while not self.removals.empty():
            self.remove(self.removals.get())

    # start and stop

    def close(self) -> None:
        """Close every descriptor; the directory stays as it is."""
        for part in self.parts:
            part.close()

    def reopen(self) -> None:
        """Open every part as at a start, reading each metadata.json three times, and close."""
        self.files.listdir(self.path)
        if self.list_file:
            self.files.read_small(*self.list_file)
        for part in self.parts:
            open_part(self.files, self.shape, part, metadata_reads=3)
        self.close()

    def snapshot(self, target: str) -> None:
        """Link every live part into a new directory; the list is written and not synced."""
        parts = self.acquire()
        try:
            self.files.makedirs_synced(target)
            for part in parts:
                for path in part.dirs:
                    copy = f"{target}{path.removeprefix(self.path)}"
                    self.files.makedirs_synced(posixpath.dirname(copy))
                    self.files.mkdir(copy)
                    for name in self.files.listdir(path):
                        self.files.link(f"{path}/{name}", f"{copy}/{name}")
                    self.files.sync_dir(copy)
            literal = json.dumps([part.name for part in parts]).encode()
            out = self.files.create(f"{target}/{self.epoch:016x}.snp", literal=literal)
            self.files.write_once(out, literal)
            os.close(out.fd)
        finally:
            self.release(parts)
