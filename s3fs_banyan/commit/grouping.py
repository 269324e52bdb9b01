"""Which chunks of a commit come to lie in one object: by what dies together, and by class.

    young chunks    in directory order, many directories in a pack: one pack for each would
                    multiply requests, and most of them die before they are ever moved
    moved chunks    they have outlived half their pack: apart by the directory that dies as one
                    (for BanyanDB a segment), so that its deletion frees whole packs; what is
                    too little for a pack of its own is gathered
    by class        a pack has one class; what a rule wants elsewhere is cut into packs, and a
                    pack for which that does not pay is as if no rule had matched
    the rest        in all no more than fits into the commit goes inline, always STANDARD

Pure: lists in, lists out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from s3fs_banyan.commit.classes import ClassPolicy, Subject
from s3fs_banyan.meta.paths import DirectoryPaths
from s3fs_banyan.meta.seal_list import SealItem
from s3fs_banyan.prices import STANDARD

UNIT_BYTES_MIN: Final = 1 << 20
"""Stored bytes for which a directory that dies as one gets packs of its own. Not less than what
compaction calls a small pack, or it would gather next time what it has separated now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The chunks of one pack, in order, and the rule that they follow."""

    items: list[SealItem]
    rule: int | None = None
    age_s: float = 0.0
    """Of the youngest of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The sizes of packs and of what goes inline, in raw bytes."""

    pack_bytes: int
    inline_bytes_max: int

    @property
    def unit_bytes_min(self) -> int:
        """Stored bytes that are worth a pack of their own."""
        return min(UNIT_BYTES_MIN, self.pack_bytes // 4)


def divide(
    items: Iterable[SealItem],
    paths: DirectoryPaths,
    policy: ClassPolicy,
    limits: Limits,
    now_ns: int,
) -> tuple[list[Group], list[SealItem]]:
    """Divide the chunks into packs and what goes inline.

    What is small in all goes inline; of more, full packs are made, and a small remainder goes
    inline, too. The pack size counts raw bytes, so that 1 GiB is sixteen packs.
    """
    units: dict[int, str] = {}

    def unit_of(item: SealItem) -> str:
        if item.directory not in units:
            units[item.directory] = policy.unit_of(paths.path(item.directory))
        return units[item.directory]

    groups: list[Group] = []
    young: list[SealItem] = []
    moved: list[SealItem] = []
    wanted: dict[int, list[SealItem]] = {}
    for item in items:
        rule = policy.match(_subject(item, paths, now_ns)) if policy.rules else None
        if rule is not None and policy.rules[rule].storage_class != STANDARD:
            wanted.setdefault(rule, []).append(item)
        else:
            (moved if item.source_key else young).append(item)
    for rule, follow in sorted(wanted.items()):
        packs, others = _apart(follow, unit_of, limits)
        for pack in packs + _cut(others, limits.pack_bytes):
            age_s = min(_age_s(item, now_ns) for item in pack)
            if policy.judge(rule, _stored_bytes(pack), age_s).storage_class != STANDARD:
                groups.append(Group(items=pack, rule=rule, age_s=age_s))
                continue
            for item in pack:
                (moved if item.source_key else young).append(item)
    packs, others = _apart(_in_path_order(moved, paths), unit_of, limits)
    gathered = _cut(others, limits.pack_bytes)
    if gathered and _stored_bytes(gathered[-1]) < limits.unit_bytes_min:
        young += gathered.pop()
    groups += [Group(items=pack) for pack in packs + gathered]
    packs = _cut(young, limits.pack_bytes)
    inline: list[SealItem] = []
    if packs and sum(item.length for item in packs[-1]) <= limits.inline_bytes_max:
        inline = packs.pop()
    groups += [Group(items=pack) for pack in packs]
    return groups, inline


def _apart(
    items: list[SealItem], unit_of: Callable[[SealItem], str], limits: Limits
) -> tuple[list[list[SealItem]], list[SealItem]]:
    """Cut moved chunks of large units into packs of their own; returns these, and all others."""
    units: dict[str, list[SealItem]] = {}
    for item in items:
        if item.source_key and (unit := unit_of(item)):
            units.setdefault(unit, []).append(item)
    large = {u: m for u, m in units.items() if _stored_bytes(m) >= limits.unit_bytes_min}
    packs: list[list[SealItem]] = []
    for _, members in sorted(large.items()):
        packs += _cut(members, limits.pack_bytes)
    others = [item for item in items if not (item.source_key and unit_of(item) in large)]
    return packs, others


def _cut(items: list[SealItem], pack_bytes: int) -> list[list[SealItem]]:
    """Cut into runs of at most `pack_bytes` raw bytes; the last one may be short."""
    packs: list[list[SealItem]] = []
    size = pack_bytes + 1
    for item in items:
        if size + item.length > pack_bytes:
            packs.append([])
            size = 0
        packs[-1].append(item)
        size += item.length
    return packs


def _in_path_order(items: list[SealItem], paths: DirectoryPaths) -> list[SealItem]:
    """Return survivors by the paths of their directories; neighbours there die together most."""
    return sorted(items, key=lambda item: paths.path(item.directory) or "")


def _stored_bytes(items: list[SealItem]) -> int:
    """Return how large the chunks are in a pack; of young ones that is not known yet."""
    return sum(item.stored_length or item.length for item in items)


def _age_s(item: SealItem, now_ns: int) -> float:
    """Return the age of a chunk's data; what is young was written just now."""
    return max(0.0, (now_ns - item.mtime_ns) / 1e9) if item.source_key and item.mtime_ns else 0.0


def _subject(item: SealItem, paths: DirectoryPaths, now_ns: int) -> Subject:
    directory = paths.path(item.directory)
    path: str | None = None
    if directory is not None and item.name:
        name = item.name.decode("utf-8", "surrogateescape")
        path = f"{directory}/{name}" if directory else name
    return Subject(path=path, file_bytes=item.file_bytes, age_s=_age_s(item, now_ns))
