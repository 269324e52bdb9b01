"""What BanyanDB does at start with a tree it finds: the states that must not occur.

It deletes a segment whose metadata is empty, every part of a shard without a readable part
list, and refuses an index whose snapshots are unreadable or name a missing segment. It
ignores a part list's names that have no directory (they were memory parts), and deletes
directories without a finished metadata.json, which is normal after a crash.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from workload.index import decode_snapshot
from workload.shapes import ENGINES, EngineShape
from workload.timeline import Seen, Timelines

_HEX16 = re.compile(r"[0-9a-f]{16}")
_SHARD_DIRS = frozenset({"idx", "sidx", "failed-parts", "external-segment-temp"})
Listing = dict[str, list[str]]


def read_list(path: Path) -> list[str] | None:
    """Return the names in a part list, or None if it cannot be read."""
    try:
        names = json.loads(path.read_bytes())
    except ValueError:
        return None
    return names if isinstance(names, list) else None


def is_json(path: Path) -> bool:
    """Whether a file is there and parses."""
    try:
        json.loads(path.read_bytes())
    except (ValueError, FileNotFoundError):
        return False
    return True


def listing_of(seen: dict[str, Seen]) -> Listing:
    """Return the names in every directory seen."""
    listing: Listing = {path: [] for path, entry in seen.items() if entry.is_dir}
    for path in seen:
        parent, _, name = path.rpartition("/")
        if parent:
            listing[parent].append(name)
    return listing


def check_rules(root: Path, seen: dict[str, Seen], lines: Timelines) -> list[str]:
    """Return every state in which the database would lose or refuse what it should keep."""
    listing = listing_of(seen)
    found: list[str] = []
    for path in listing:
        words = path.split("/")
        if path.startswith("property/data/") and len(words) == 4:
            found += check_index(root, path, listing[path])
        if len(words) != 4 or words[1] != "data" or not words[3].startswith("seg-"):
            continue
        if not lines.in_expired(path):
            found += _check_segment(root, path, seen, listing)
    return found


def _check_segment(root: Path, path: str, seen: dict[str, Seen], listing: Listing) -> list[str]:
    shape = ENGINES[path.split("/")[0]]
    found: list[str] = []
    metadata = seen.get(f"{path}/metadata")
    inside = any(
        "snp" in name or "metadata.json" in name
        for directory, names in listing.items()
        if directory.startswith(f"{path}/")
        for name in names
    )
    if inside and not is_json(root / path / "metadata"):
        size = metadata.size if metadata else 0
        found.append(f"start: {path}/metadata has {size} bytes: the segment would be deleted")
    for name in listing[path]:
        if name.startswith("shard-"):
            found += _check_shard(root, f"{path}/{name}", shape, listing)
    if f"{path}/sidx" in listing:
        found += check_index(root, f"{path}/sidx", listing[f"{path}/sidx"])
    return found


def _check_shard(root: Path, path: str, shape: EngineShape, listing: Listing) -> list[str]:
    found: list[str] = []
    lists: list[str] = []
    parts: list[str] = []
    for name in sorted(listing[path]):
        if f"{path}/{name}" in listing:
            if _HEX16.fullmatch(name):
                parts.append(name)
            elif name not in _SHARD_DIRS:
                found.append(f"start: {path}/{name}: a directory that would be deleted")
        elif name.endswith(".snp"):
            lists.append(name)
    finished = {part for part in parts if is_json(root / path / part / "metadata.json")}
    unreadable = [name for name in lists if read_list(root / path / name) is None]
    found += [f"start: {path}/{name}: an unreadable part list" for name in unreadable]
    readable = [name for name in lists if name not in unreadable]
    if not readable and len(finished) > 1:
        found.append(f"start: {path}: no part list, {len(finished)} parts would be deleted")
    if readable:
        named = read_list(root / path / readable[-1]) or []
        for part in sorted(finished.intersection(named)):
            found += _check_part(path, part, shape, listing)
    if f"{path}/idx" in listing:
        found += check_index(root, f"{path}/idx", listing[f"{path}/idx"])
    return found


def _check_part(shard: str, part: str, shape: EngineShape, listing: Listing) -> list[str]:
    """A finished part that the newest list names has all its files: else a crash loop."""
    found: list[str] = []
    for piece in shape.dirs:
        parent = f"{shard}/{piece.parent}" if piece.parent else shard
        names = set(listing.get(f"{parent}/{part}", ()))
        wanted = {file.name for file in piece.files} | set(piece.atomics)
        missing = sorted(wanted - names)
        if missing:
            found.append(f"start: {parent}/{part}: a listed part without {', '.join(missing)}")
    return found


def check_index(root: Path, path: str, names: list[str]) -> list[str]:
    """An index opens only if a snapshot is valid and every segment it names is there."""
    snapshots = sorted(name for name in names if name.endswith(".snp"))
    valid = 0
    found: list[str] = []
    for name in snapshots:
        segments = decode_snapshot((root / path / name).read_bytes())
        if segments is None:
            continue
        valid += 1
        missing = sorted(set(segments) - set(names))
        if missing:
            found.append(f"start: {path}/{name} names {', '.join(missing)}: not there")
    if snapshots and not valid and len(snapshots) > 1:
        found.append(f"start: {path}: {len(snapshots)} snapshots, none is valid")
    return found
