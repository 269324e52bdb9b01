"""Go on with a volume: load the state from its tree as BanyanDB does at start.

First the tree as found goes to the log as the new baseline, each file with the content id
that its name and first bytes give it. Then, by the rules of a start: segments without
metadata, directories that are no parts, parts without metadata.json or not named in the
newest readable part list are removed, and so are temporary files and older lists.
"""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path

from workload.content import Content, Known
from workload.index import Index, Mapped, decode_snapshot
from workload.oplog import BaseFile, History, Log, LogError, decode_spec, encode_spec
from workload.parts import Part, open_part, part_dirs
from workload.rules import is_json, read_list
from workload.runner import Workload
from workload.segments import Group, Segment
from workload.shard import Shard
from workload.timeline import Timelines, matching, observe, unfold

_HEX16 = re.compile(r"[0-9a-f]{16}")
_SHARD_DIRS = frozenset({"idx", "sidx"})
_EPOCH = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
KnownFiles = dict[str, Known]


def take_baseline(root: Path, log: Log, lines: Timelines, content: Content) -> KnownFiles:
    """Log the tree as found; raises `LogError` if the log cannot explain some of it."""
    dirs: list[str] = []
    files: list[BaseFile] = []
    known: KnownFiles = {}
    for path, seen in observe(root).items():
        if seen.is_dir:
            dirs.append(path)
            continue
        found = matching(root, path, seen, lines, content)
        if not found:
            message = f"{path}: not explained by the log; --verify says more"
            raise LogError(message)
        fid = lines.states(path)[found[-1]][0]
        if not isinstance(fid, int):
            message = f"{path}: the log knows it as something else"
            raise LogError(message)
        literal, alias = decode_spec(lines.specs[fid])
        known[path] = Known(fid, seen.size, literal, alias)
        files.append(BaseFile(path, fid, seen.size, encode_spec(literal, alias)))
    log.baseline(dirs, files)
    return known


def restore(workload: Workload, log: Log, history: History) -> None:
    """Load everything from the tree and make it fit to run."""
    files = workload.files
    root = Path(files.root)
    lines = unfold(history)
    known = take_baseline(root, log, lines, files.content)
    for group in workload.make_groups():
        workload.groups.append(group)
        group.open_group()
        _load_group(group, root, lines, known)
    if workload.plan.properties:
        path = "property/data/sw_property/shard-0"
        if not (root / path).is_dir():
            files.makedirs_synced(path)
        workload.property_index = Index(files, path)
        load_index(workload.property_index, root, known, writer=True)


def names_in(path: Path) -> list[str]:
    """Return the names in a directory, sorted."""
    return sorted(entry.name for entry in path.iterdir())


def _load_group(group: Group, root: Path, lines: Timelines, known: KnownFiles) -> None:
    segments: list[Segment] = []
    hour = 0
    for name in names_in(root / group.path):
        path = f"{group.path}/{name}"
        if not name.startswith("seg-"):
            continue
        if lines.in_expired(path) or not is_json(root / path / "metadata"):
            group.files.expire(path)
            continue
        stamp = dt.datetime.strptime(name, "seg-%Y%m%d%H").replace(tzinfo=dt.UTC)
        hour = int((stamp - _EPOCH).total_seconds()) // 3600
        segments.append(group.segment_at(hour))
    snapshots = root / group.shape.catalog / "snapshots"
    if snapshots.is_dir():
        for name in names_in(snapshots):
            group.adopt_snapshot(f"{group.shape.catalog}/snapshots/{name}")
    group.adopt(segments, hour)
    if not segments:
        group.rotate(1)
        return
    for segment in segments:
        last = segment is segments[-1]
        for shard in segment.shards:
            if not (root / shard.path).is_dir():
                shard.prepare()
            load_shard(shard, root, known, hold=last)
        for index in segment.indexes:
            if not (root / index.path).is_dir():
                group.files.mkdir(index.path)
            load_index(index, root, known, writer=last)
        segment.open = last


def load_shard(shard: Shard, root: Path, known: KnownFiles, *, hold: bool) -> None:
    """Load one shard by the rules of a start, removing what they remove."""
    files = shard.files
    names = files.listdir(shard.path)
    lists = [name for name in names if name.endswith(".snp")]
    readable = [name for name in lists if read_list(root / shard.path / name) is not None]
    named: set[str] = set()
    if readable:
        target = f"{shard.path}/{readable[-1]}"
        named = set(read_list(root / target) or [])
        shard.list_file = (target, known[target])
        shard.epoch = int(readable[-1].removesuffix(".snp"), 16)
    numbers = [int(name, 16) for name in (*named, *names) if _HEX16.fullmatch(name)]
    for name in names:
        path = f"{shard.path}/{name}"
        if (root / path).is_dir():
            finished = is_json(root / path / "metadata.json")
            if name not in _SHARD_DIRS and not (finished and name in named):
                files.rmtree(path)
        elif name.endswith(".tmp") or (name in lists and name not in readable[-1:]):
            files.unlink(path)
    kept = sorted(name for name in named if (root / shard.path / name).is_dir())
    for piece in shard.shape.dirs:
        parent = f"{shard.path}/{piece.parent}"
        if not piece.parent:
            continue
        if not (root / parent).is_dir():
            files.makedirs_synced(parent)
        numbers += [int(name, 16) for name in names_in(root / parent)]
        for name in sorted(set(names_in(root / parent)) - set(kept)):
            files.rmtree(f"{parent}/{name}")
    shard.next_number = max(numbers, default=0) + 1
    for name in kept:
        shard.parts.append(_load_part(shard, int(name, 16), known, hold=hold))


def _load_part(shard: Shard, number: int, known: KnownFiles, *, hold: bool) -> Part:
    part = Part(number, shard.shape.rows, part_dirs(shard.shape, shard.path, number))
    for piece, path in zip(shard.shape.dirs, part.dirs, strict=True):
        for name in (*(file.name for file in piece.files), *piece.atomics):
            target = f"{path}/{name}"
            if target not in known:
                message = f"{target}: a core file of a finished part is missing"
                raise LogError(message)
            part.files[target] = known[target]
    if hold:
        open_part(shard.files, shard.shape, part, metadata_reads=3)
    return part


def load_index(index: Index, root: Path, known: KnownFiles, *, writer: bool) -> None:
    """Load one index: newest valid snapshot, its segments mapped, everything else removed."""
    files = index.files
    names = files.listdir(index.path)
    pid = f"{index.path}/bluge.pid"
    if writer:
        index.open_writer(leftover=known.get(pid))
    elif pid in known:
        files.unlink(pid)
    live: list[str] = []
    for name in sorted(name for name in names if name.endswith(".snp")):
        segments = decode_snapshot((root / index.path / name).read_bytes())
        index.epoch = max(index.epoch, int(name.removesuffix(".snp"), 16))
        if segments is not None:
            live = segments
            path = f"{index.path}/{name}"
            index.snapshot_file = (path, known[path])
    for name in names:
        path = f"{index.path}/{name}"
        number = int(name.split(".")[0], 16) if name.endswith(".seg") else 0
        index.next_segment = max(index.next_segment, number + 1)
        kept = name in live or (index.snapshot_file and path == index.snapshot_file[0])
        if name != "bluge.pid" and not kept:
            files.unlink(path)
    for name in live:
        mapped = Mapped(f"{index.path}/{name}", known[f"{index.path}/{name}"], 1)
        if writer:
            mapped.open(files)
        index.segments.append(mapped)
