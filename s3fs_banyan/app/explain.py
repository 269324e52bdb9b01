"""What `explain` tells of a file: where its bytes lie, in which class, why, and for how much.

The rule and the judgement are those of the settings at hand, as compaction would apply them to
the file now; the class of each pack is the one that it was written with.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

import trio

from s3fs_banyan.app.engine import Engine
from s3fs_banyan.commit.classes import (
    DAY_S,
    ClassPolicy,
    Rule,
    Subject,
    applies,
    break_even_days,
    monthly_cost,
    pack_cost,
)
from s3fs_banyan.config import Config
from s3fs_banyan.errors import ExitCode, UsageError
from s3fs_banyan.meta.committed import Committed, PackRow
from s3fs_banyan.meta.extents import Extents
from s3fs_banyan.model import ROOT_INO, Attributes
from s3fs_banyan.prices import STANDARD

_CHUNKS_AT_ONCE = 256


@dataclass(slots=True)
class _Share:
    """A file's part of one object."""

    pack: PackRow
    chunks: int = 0
    size_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the state of a file is looked up."""

    extents: Extents
    committed: Committed


async def explain_file(
    path: str,
    attributes: Attributes,
    places: Places,
    policy: ClassPolicy,
    *,
    now_ns: int,
    pack_bytes: int,
    currency: str,
) -> dict[str, object]:
    """Return everything about a regular file's storage, fit for JSON.

    `pack_bytes` is the size that is judged for a file of which nothing is in the store yet.
    """
    shares, waiting_bytes = await _shares(attributes, places)
    age_s = max(0.0, (now_ns - attributes.mtime_ns) / 1e9)
    subject = Subject(path=path, file_bytes=attributes.size, age_s=age_s)
    number = policy.match(subject)
    packs = [_pack(share, policy, number, age_s) for share in shares]
    typical = max((share.pack.size for share in shares), default=pack_bytes)
    verdict = policy.judge(number, typical, age_s)
    return {
        "path": path,
        "size": attributes.size,
        "age_days": round(age_s / DAY_S, 3),
        "not_in_store_bytes": waiting_bytes,
        "stored_bytes": sum(share.size_bytes for share in shares),
        "currency": currency,
        "cost_per_month": sum(_cost(share, policy) for share in shares),
        "unit": policy.unit_of(path.rpartition("/")[0]),
        "rule": None if number is None else number + 1,
        "rules": [_rule(index, rule, subject, number) for index, rule in enumerate(policy.rules)],
        "judged_pack_bytes": typical,
        "storage_class": verdict.storage_class,
        "why": verdict.why,
        "classes": list(_classes(policy, number, typical, age_s)),
        "packs": packs,
    }


async def explain_in_mount(engine: Engine, path: str, config: Config) -> dict[str, object]:
    """Explain a file of a mount by its path from the mount point.

    Raises `UsageError` if it is not there, or no regular file.
    """
    state = engine.state
    ino: int | None = int(ROOT_INO)
    for part in os.fsencode(path).split(b"/"):
        if part and ino is not None:
            ino = state.live.tree.lookup(ino, part)
    attributes = None if ino is None else state.live.tree.attributes(ino)
    if attributes is None:
        raise UsageError(f"/{path}: no such file or directory", exit_code=ExitCode.USAGE)
    if not stat.S_ISREG(attributes.mode):
        raise UsageError(f"/{path} is no regular file", exit_code=ExitCode.USAGE)
    return await explain_file(
        path,
        attributes,
        Places(extents=state.live.extents, committed=state.committed),
        engine.ctx.settings.policy,
        now_ns=engine.ctx.runtime.wall_ns(),
        pack_bytes=engine.ctx.volume.pack_bytes,
        currency=config.cost.currency,
    )


async def _shares(attributes: Attributes, places: Places) -> tuple[list[_Share], int]:
    """Return the file's part of each object, and the bytes that are in none. Safe to cancel."""
    shares: dict[int, _Share] = {}
    waiting_bytes = 0
    extents = places.extents.overlapping(attributes.ino, 0, attributes.size)
    lengths: dict[int, int] = {}
    for extent in extents:
        lengths[extent.chunk] = lengths.get(extent.chunk, 0) + extent.length
    chunks = list(lengths)
    for start in range(0, len(chunks), _CHUNKS_AT_ONCE):
        some = chunks[start : start + _CHUNKS_AT_ONCE]
        found = places.committed.packs_of(some)
        for chunk in some:
            if chunk not in found:
                waiting_bytes += lengths[chunk]
                continue
            stored_length, pack = found[chunk]
            share = shares.setdefault(pack.id, _Share(pack))
            share.chunks += 1
            share.size_bytes += stored_length
        await trio.lowlevel.checkpoint()
    return [shares[pack] for pack in sorted(shares)], waiting_bytes


def _pack(
    share: _Share, policy: ClassPolicy, number: int | None, age_s: float
) -> dict[str, object]:
    pack = share.pack
    is_inline = pack.key.startswith("log/")
    verdict = policy.judge(None if is_inline else number, pack.size, age_s)
    return {
        "object": pack.key,
        "storage_class": pack.storage_class or STANDARD,
        "size": pack.size,
        "living_bytes": pack.live_bytes,
        "since_commit": pack.first_seq,
        "chunks": share.chunks,
        "file_bytes": share.size_bytes,
        "cost_per_month": _cost(share, policy),
        "now_class": verdict.storage_class,
        "why": "small data travels inside commits, always STANDARD" if is_inline else verdict.why,
    }


def _cost(share: _Share, policy: ClassPolicy) -> float:
    """Return what the file's part of an object costs a month; what is dead in it counts along."""
    price = policy.price_of.get(share.pack.storage_class or STANDARD)
    if price is None or not share.pack.live_bytes:
        return 0.0
    return monthly_cost(price, share.pack.size) * share.size_bytes / share.pack.live_bytes


def _rule(index: int, rule: Rule, subject: Subject, chosen: int | None) -> dict[str, object]:
    state = (
        "chosen"
        if index == chosen
        else "applies, behind the first"
        if applies(rule, subject)
        else _mismatch(rule, subject)
    )
    return {"rule": index + 1, "class": rule.storage_class, "path": rule.path, "state": state}


def _mismatch(rule: Rule, subject: Subject) -> str:
    """Say which condition of a rule is not met, the first one."""
    if not rule.size_min_bytes <= subject.file_bytes <= rule.size_max_bytes:
        return "the size is not in its range"
    if subject.age_s < rule.age_s:
        return f"the data is {subject.age_s / DAY_S:.1f} days old, not {rule.age_s / DAY_S:g}"
    return "the path does not match"


def _classes(
    policy: ClassPolicy, number: int | None, size: int, age_s: float
) -> Iterator[dict[str, object]]:
    """Give what a pack of this size would cost in each class, for the life that is expected."""
    rule = policy.rules[number] if number is not None else Rule(storage_class=STANDARD)
    days = rule.life_days(age_s)
    standard = policy.price_of[STANDARD]
    for price in policy.prices:
        pays = 0 if price.name == STANDARD else break_even_days(price, standard, size, rule.reads)
        yield {
            "class": price.name,
            "days": round(days, 3),
            "cost": pack_cost(price, size, days, rule.reads),
            "pays_after_days": pays,
        }
