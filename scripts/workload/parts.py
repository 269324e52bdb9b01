"""Parts: the immutable directories of small files that a flush or merge makes.

Owns the exact order of calls of writing a part and of opening one. A part is finished when
the last of its atomically written files is there; its fds stay open until it is removed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from workload.content import BLOCK, Known
from workload.files import Files, Out
from workload.shapes import FADVISE_PER_CHUNK, DirShape, EngineShape

_LARGE = 64 << 20
_MIN_BYTES = 24


class Part:
    """A finished part: where it is, what its files hold, which of them are open."""

    def __init__(self, number: int, rows: int, dirs: list[str]) -> None:
        self.number = number
        self.rows = rows
        self.dirs = dirs
        self.files: dict[str, Known] = {}
        self.held: dict[str, int] = {}
        self.refs = 0
        self.dropped = False
        self.primary_read_at = -1e9

    @property
    def name(self) -> str:
        """The directory's name."""
        return f"{self.number:016x}"

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(known.size for known in self.files.values())

    def close(self) -> None:
        """Close every held descriptor."""
        while self.held:
            os.close(self.held.popitem()[1])


def part_dirs(shape: EngineShape, shard: str, number: int) -> list[str]:
    """Return the directories of a part, core first."""
    parents = [f"{shard}/{piece.parent}" if piece.parent else shard for piece in shape.dirs]
    return [f"{parent}/{number:016x}" for parent in parents]


def flush_sizes(shape: EngineShape, total: int) -> list[dict[str, int]]:
    """Return the bytes of each file, one dictionary a directory."""
    return [
        {
            file.name: max(_MIN_BYTES, int(total * file.share)) if file.share else 0
            for file in piece.files
        }
        for piece in shape.dirs
    ]


def merge_sizes(shape: EngineShape, inputs: list[Part], keep: float) -> list[dict[str, int]]:
    """Return the bytes of each file of a merged part: its inputs' less what series share."""
    sizes: list[dict[str, int]] = []
    for index, piece in enumerate(shape.dirs):
        wanted: dict[str, int] = {}
        for file in piece.files:
            total = sum(part.files[f"{part.dirs[index]}/{file.name}"].size for part in inputs)
            wanted[file.name] = max(_MIN_BYTES, int(total * keep)) if total else 0
        sizes.append(wanted)
    return sizes


def small_file(name: str, size: int, rows: int, number: int) -> bytes:
    """Return the bytes of an atomically written file, about as long as the real one."""
    if name in {"metadata.json", "manifest.json"}:
        fields = {
            "compressedSizeBytes": size,
            "uncompressedSizeBytes": size * 4,
            "totalCount": rows,
            "blocksCount": max(1, rows // 8),
            "minTimestamp": 1_790_000_000_000 + number * 1000,
            "maxTimestamp": 1_790_000_000_999 + number * 1000,
        }
        return json.dumps(fields, separators=(",", ":")).encode()
    length = 30 if name == "tag.type" else 120
    return (f"{name} of {number:016x} " * 8).encode()[:length]


def write_part(
    files: Files,
    shape: EngineShape,
    shard: str,
    *,
    number: int,
    rows: int,
    sizes: list[dict[str, int]],
    single: bool,
) -> Part:
    """Write a whole part, in BanyanDB's order; every file of it is synced on return."""
    part = Part(number, rows, part_dirs(shape, shard, number))
    for piece, path, wanted in zip(shape.dirs, part.dirs, sizes, strict=True):
        files.mkdir_synced(path)
        if single:
            _write_single(files, piece, path, wanted, part)
        else:
            _write_streams(files, piece, path, wanted, part)
        total = sum(wanted.values())
        for name in piece.atomics:
            target = f"{path}/{name}"
            known = files.write_atomic(target, small_file(name, total, rows, number))
            part.files[target] = known
        if piece.sync_self:
            files.sync_dir(path)
    return part


def _write_single(
    files: Files, piece: DirShape, path: str, wanted: Mapping[str, int], part: Part
) -> None:
    """One memory part: each file is created, written in one call, synced and closed."""
    for file in piece.files:
        out = files.create(f"{path}/{file.name}")
        try:
            size = wanted[file.name]
            if size:
                files.append([(out, size, size)])
            else:
                files.write_nothing(out)
            files.sync(out)
        finally:
            os.close(out.fd)
        part.files[out.path] = out.known()


def _write_streams(
    files: Files, piece: DirShape, path: str, wanted: Mapping[str, int], part: Part
) -> None:
    """Several inputs: all files open, columns appended by turns, then sync and close each."""
    outs: list[Out] = []
    try:
        turns: list[tuple[Out, int, int]] = []
        for file in piece.files:
            out = files.create(f"{path}/{file.name}")
            outs.append(out)
            chunk = max(files.buffer, file.slice_bytes)
            turns.append((out, wanted[file.name], chunk))
        files.append(turns)
        large = sum(wanted.values()) > _LARGE
        while outs:
            out = outs[0]
            files.sync(out, large=large)
            os.close(outs.pop(0).fd)
            part.files[out.path] = out.known()
    finally:
        for out in outs:
            os.close(out.fd)


def open_part(files: Files, shape: EngineShape, part: Part, *, metadata_reads: int = 1) -> None:
    """Open a part as at flush or start: lists, small files, then the held descriptors."""
    for piece, path in zip(shape.dirs, part.dirs, strict=True):
        files.listdir(path)
        for _ in range(metadata_reads):
            files.read_small(
                f"{path}/{piece.atomics[-1]}", part.files[f"{path}/{piece.atomics[-1]}"]
            )
        for name in piece.atomics[:-1]:
            files.read_small(f"{path}/{name}", part.files[f"{path}/{name}"])
        for late in (False, True):
            for file in piece.files:
                if file.late != late:
                    continue
                target = f"{path}/{file.name}"
                if file.held:
                    part.held[target] = files.open_read(target)
                else:
                    files.read_small(target, part.files[target], forget=True)
            if not late:
                if piece.probe:
                    files.expect_missing(f"{path}/{piece.probe}")
                files.listdir(path)


def read_part(files: Files, part: Part) -> None:
    """Read every held file from start to end, as a merge does with its inputs."""
    for path, fd in part.held.items():
        known = part.files[path]
        records = FADVISE_PER_CHUNK if files.buffer <= BLOCK else FADVISE_PER_CHUNK * 4
        files.read_through(fd, path, known, records=records)
