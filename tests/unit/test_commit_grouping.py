"""Packing: what dies together lies together, and a pack has the class that its rule earns."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from s3fs_banyan.app.engine import Engine
from s3fs_banyan.app.explain import explain_in_mount
from s3fs_banyan.commit.classes import DAY_S, ClassPolicy, Rule
from s3fs_banyan.commit.grouping import UNIT_BYTES_MIN, Group, Limits, divide
from s3fs_banyan.config import load_config
from s3fs_banyan.errors import Misconfigured, UsageError
from s3fs_banyan.format.keys import PACK_PREFIX
from s3fs_banyan.meta.committed import PackRow
from s3fs_banyan.meta.paths import DirectoryPaths
from s3fs_banyan.meta.seal_list import SealItem
from s3fs_banyan.remote.base import FileMeta
from s3fs_banyan.remote.memory import MemoryStore
from tests.unit.engine_kit import (
    ROOT,
    SECOND_NS,
    World,
    engine_settings,
    names,
    read_file,
    running,
    write_file,
)

MIB = 1 << 20
NOW_NS = 1_700_000_000 * SECOND_NS
LIMITS = Limits(pack_bytes=64 * MIB, inline_bytes_max=4 * MIB)
PATHS = DirectoryPaths(
    {10: (1, b"data"), 11: (10, b"seg-1"), 12: (11, b"part"), 13: (10, b"seg-2"), 14: (10, b"x")}
)


def item(
    chunk: int, directory: int, mib: float, *, moved: bool = True, days: float = 0
) -> SealItem:
    """Return a chunk of a file in one of the directories above."""
    size = int(mib * MIB)
    source = ("pack/1/a", 0, size) if moved else ("", 0, 0)
    mtime_ns = NOW_NS - int(days * DAY_S * SECOND_NS)
    return SealItem(chunk, size, *source, directory, chunk, b"f%d" % chunk, size, mtime_ns)


def divided(
    items: list[SealItem], policy: ClassPolicy | None = None
) -> tuple[list[list[int]], list[int]]:
    """Return the chunks of each pack, and those inline."""
    groups, inline = divide(items, PATHS, policy or ClassPolicy(), LIMITS, NOW_NS)
    return [[i.chunk for i in group.items] for group in groups], [i.chunk for i in inline]


# --- paths -------------------------------------------------------------------------------


def test_paths_of_directories_go_up_to_the_root() -> None:
    """A path that begins in the middle matches no pattern."""
    assert PATHS.path(1) == ""
    assert PATHS.path(12) == "data/seg-1/part"
    assert PATHS.path(99) is None
    assert DirectoryPaths({5: (6, b"a"), 6: (5, b"b")}).path(5) is None, "no endless loop"
    assert DirectoryPaths({5: (1, b"\xff")}).path(5) == "\udcff"


# --- groups ------------------------------------------------------------------------------


def test_moved_chunks_are_apart_by_the_directory_that_dies_as_one() -> None:
    """Or the deletion of a segment leaves every pack half alive."""
    items = [item(1, 12, 2), item(2, 13, 2), item(3, 11, 2), item(4, 13, 2)]
    assert divided(items) == ([[3, 1], [2, 4]], [])


def test_what_is_too_little_for_a_pack_is_gathered_in_path_order() -> None:
    """One GET for each old commit would be a slow cold start."""
    items = [item(1, 13, 0.5), item(2, 14, 9), item(3, 12, 0.5), item(4, 14, 9)]
    assert divided(items) == ([[3, 1, 2, 4]], [])
    assert LIMITS.unit_bytes_min == UNIT_BYTES_MIN


def test_young_chunks_share_packs_whatever_their_directory() -> None:
    """One pack for each directory and commit would multiply requests."""
    items = [item(n, 11 + n % 3, 1, moved=False) for n in range(12)]
    assert divided(items) == ([list(range(12))], [])


def test_a_little_of_everything_goes_inline() -> None:
    """It travels in the commit, without a request of its own."""
    items = [item(1, 12, 0.1), item(2, 14, 0.1), item(3, 13, 1, moved=False)]
    assert divided(items) == ([], [3, 1, 2])


def test_packs_hold_no_more_than_their_size() -> None:
    """Raw bytes are counted; a unit's last pack may be short and stays its own."""
    items = [item(n, 11, 1) for n in range(70)] + [item(100, 13, 2)]
    packs, inline = divided(items)
    assert packs == [list(range(64)), list(range(64, 70)), [100]]
    assert inline == []


def test_a_rule_gives_old_data_packs_of_its_class() -> None:
    """By age: what was written just now stays where it is cheap to delete."""
    rule = Rule(storage_class="STANDARD_IA", path="data/seg-1/**", age_s=20 * DAY_S)
    policy = ClassPolicy(rules=(rule,))
    items = [
        item(1, 12, 40, days=30), item(2, 12, 20, days=40), item(3, 12, 20, days=10),
        item(4, 13, 20, days=40), item(5, 12, 20, days=40, moved=False),
    ]  # fmt: skip
    groups, inline = divide(items, PATHS, policy, LIMITS, NOW_NS)
    assert groups[0] == Group(items=items[:2], rule=0, age_s=30 * DAY_S)
    assert [[i.chunk for i in g.items] for g in groups[1:]] == [[3], [4], [5]]
    assert all(group.rule is None for group in groups[1:])
    assert inline == []


def test_a_pack_for_which_a_rule_does_not_pay_is_as_if_there_were_none() -> None:
    """A minimum size is billed for each object."""
    policy = ClassPolicy(rules=(Rule(storage_class="GLACIER_IR", life_s=365 * DAY_S),))
    assert divided([item(1, 14, 0.01), item(2, 14, 0.01)], policy) == ([], [1, 2])
    young = divide([item(3, 14, 30, moved=False)], PATHS, policy, LIMITS, NOW_NS)
    assert young[0] == [Group(items=[item(3, 14, 30, moved=False)], rule=0, age_s=0.0)]


# --- in the engine -----------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> World:
    """A world whose clock a test moves."""
    del autojump_clock
    return World(tmp_path)


async def make_directory(engine: Engine, parent: int, name: bytes) -> int:
    """Make a directory; returns its inode number."""
    made = await engine.filesystem.make(parent, name, 0o040755, ROOT)
    engine.filesystem.forget(made.ino, 1)
    return made.ino


async def remove(engine: Engine, parent: int, name: bytes) -> None:
    """Remove a file at once."""
    await engine.filesystem.unlink(parent, name, ROOT)
    while (dead := engine.filesystem.handles.next_dead_nowait()) is not None:
        await engine.filesystem._reap(engine.state, dead)


async def ticks(engine: Engine, count: int) -> None:
    """Make small commits: what was written before is old then."""
    for _ in range(count):
        await write_file(engine, b"tick%d" % engine.state.journal.last_seq, b"t")
        await engine.committer.commit_once()


async def dying_packs(engine: Engine) -> tuple[int, int]:
    """Fill mixed packs, let compaction empty them, drop a segment after the other.

    Returns how many of the packs that compaction wrote died whole, and how often one was left
    partly alive.
    """
    rng = random.Random(7)
    segments = [await make_directory(engine, 1, b"seg-%d" % n) for n in range(4)]
    for number in range(8):
        for segment in segments:
            await write_file(engine, b"f%d" % number, rng.randbytes(150_000), segment)
        await engine.committer.commit_once()
    mixed = {p.id for p in engine.reclaimer._packs() if p.key.startswith(PACK_PREFIX)}
    assert len(mixed) == 8
    await ticks(engine, 8)  # all of them are old when they become half dead
    for number in range(8):
        for index, segment in enumerate(segments):
            if index != number % 4:
                await remove(engine, segment, b"f%d" % number)
    await ticks(engine, 2)  # one that says what died, one that moves the rest

    def moved() -> list[PackRow]:
        rows = engine.reclaimer._packs()
        assert all(row.live_bytes == 0 for row in rows if row.id in mixed)
        return [r for r in rows if r.key.startswith(PACK_PREFIX) and r.id not in mixed]

    before = {row.id: row.live_bytes for row in moved()}
    assert sum(before.values()) > 8 * 150_000 - 1
    whole = partly = 0
    for segment in segments:
        for name in names(engine, segment):
            await remove(engine, segment, name)
        await engine.committer.commit_once()
        after = {row.id: row.live_bytes for row in moved()}
        whole += sum(1 for pack in before if before[pack] and not after[pack])
        partly += sum(1 for pack in before if 0 < after[pack] < before[pack])
        before = after
    return whole, partly


@pytest.mark.parametrize(
    ("separate", "dead"), [(("**/seg-*",), (4, 0)), ((), (2, 2))], ids=["apart", "mixed"]
)
async def test_retention_frees_whole_packs_after_compaction(
    world: World, separate: tuple[str, ...], dead: tuple[int, int]
) -> None:
    """A segment's deletion frees what compaction wrote for it; mixed packs are left half alive."""
    settings = engine_settings(policy=ClassPolicy(separate=separate))
    async with running(world.context(settings=settings)) as engine:
        await engine.committer.take_epoch()
        assert await dying_packs(engine) == dead


def classes_of(world: World) -> dict[str, set[str]]:
    """Return the classes of the objects in the store by the first part of their key."""
    found: dict[str, set[str]] = {}
    for meta in world.store.list():
        found.setdefault(meta.path.split("/")[0], set()).add(meta.storage_class)
    return found


COLD = ClassPolicy(rules=(Rule(storage_class="GLACIER_IR", path="cold/**", life_s=365 * DAY_S),))


async def test_only_packs_ever_lie_in_another_class(world: World) -> None:
    """A commit that has to be retrieved first, or a heartbeat billed for 90 days, helps nobody."""
    async with running(world.context(settings=engine_settings(policy=COLD))) as engine:
        await engine.become_writer()
        cold = await make_directory(engine, 1, b"cold")
        data = random.Random(1).randbytes(900_000)
        await write_file(engine, b"a", data, cold)
        await write_file(engine, b"b", data)
        await engine.committer.commit_once()
        await engine.checkpointer.write_now()
        found = classes_of(world)
        assert found.pop("pack") == {"GLACIER_IR", ""}
        assert {"log", "checkpoint", "writer"} <= found.keys()
        assert set().union(*found.values()) == {""}
        classes = {row.storage_class for row in engine.reclaimer._packs()}
        assert classes == {"GLACIER_IR", ""}
        await engine.stored.refresh()
        metrics = engine.ctx.metrics
        assert metrics.class_objects["GLACIER_IR"].read() == 1
        assert metrics.class_bytes["GLACIER_IR"].read() > 900_000
        assert 0 < metrics.class_cost["GLACIER_IR"].read() < metrics.class_cost["STANDARD"].read()
    async with running(world.context("fresh"), takeover=True) as other:
        cold = other.filesystem.lookup(1, b"cold").ino
        assert await read_file(other, b"a", cold) == data


async def test_a_file_that_is_appended_to_is_known_by_its_path(world: World) -> None:
    """Its name is in no delta any more; the rule must find it all the same."""
    async with running(world.context(settings=engine_settings(policy=COLD))) as engine:
        await engine.committer.take_epoch()
        cold = await make_directory(engine, 1, b"cold")
        deep = await make_directory(engine, cold, b"deep")
        ino = await write_file(engine, b"a", b"begin", deep)
        await engine.committer.commit_once()
        await engine.filesystem.write(ino, 5, random.Random(2).randbytes(900_000))
        await engine.committer.commit_once()
        (pack,) = world.store.list(PACK_PREFIX)
        assert pack.storage_class == "GLACIER_IR"


class WithoutClasses(MemoryStore):
    """A store that knows one class only."""

    def write(
        self,
        path: str,
        data: bytes | bytearray | memoryview,
        *,
        if_absent: bool = False,
        storage_class: str = "",
    ) -> FileMeta:
        if storage_class:
            raise Misconfigured("InvalidStorageClass")
        return super().write(path, data, if_absent=if_absent)


@pytest.mark.allow_log_warnings
async def test_a_store_that_refuses_a_class_does_not_stop_the_commit(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A line of the configuration must not keep data out of the store for ever."""
    world.store = WithoutClasses(clock=lambda: world.runtime.now_ns)
    async with running(world.context(settings=engine_settings(policy=COLD))) as engine:
        await engine.committer.take_epoch()
        cold = await make_directory(engine, 1, b"cold")
        await write_file(engine, b"a", random.Random(3).randbytes(900_000), cold)
        await engine.committer.commit_once()
        (pack,) = world.store.list(PACK_PREFIX)
        assert pack.storage_class == ""
        assert {row.storage_class for row in engine.reclaimer._packs()} == {""}
        assert "does not take storage class GLACIER_IR" in caplog.text


async def test_a_pack_is_not_emptied_before_its_minimum_duration(world: World) -> None:
    """It is billed until then, empty or not, and its bytes would be paid for twice."""
    async with running(world.context(settings=engine_settings(policy=COLD))) as engine:
        pack = PackRow(1, "pack/1/a", "GLACIER_IR", 100, 10, 1, None)
        plain = replace_row(pack, storage_class="")
        movable = engine.reclaimer._movable
        assert movable([pack, plain]) == [plain], "its age is not known yet"
        engine.reclaimer._written_ns = {pack.key: world.runtime.now_ns}
        world.runtime.now_ns += int(89 * DAY_S) * SECOND_NS
        assert movable([pack, plain]) == [plain]
        world.runtime.now_ns += int(2 * DAY_S) * SECOND_NS
        assert movable([pack, plain]) == [pack, plain]


def replace_row(row: PackRow, **changes: object) -> PackRow:
    """Return a row of the pack table with some values changed."""
    return row._replace(**changes)  # type: ignore[arg-type]  # names checked by the tuple


# --- explain -----------------------------------------------------------------------------


def parts(found: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Return a list of an explanation."""
    rows: list[dict[str, Any]] = found[name]
    return rows


async def test_a_file_is_explained_by_its_packs_its_rule_and_the_prices(world: World) -> None:
    """Who pays the bill asks why."""
    config = load_config(None, {})
    async with running(world.context(settings=engine_settings(policy=COLD))) as engine:
        await engine.committer.take_epoch()
        cold = await make_directory(engine, 1, b"cold")
        await write_file(engine, b"a", random.Random(4).randbytes(900_000), cold)
        await write_file(engine, b"small", b"s")
        young = await explain_in_mount(engine, "cold/a", config)
        assert (young["not_in_store_bytes"], young["packs"]) == (900_000, [])
        await engine.committer.commit_once()
        found = await explain_in_mount(engine, "cold/a", config)
        assert (found["rule"], found["storage_class"]) == (1, "GLACIER_IR")
        assert found["not_in_store_bytes"] == 0
        (pack,) = parts(found, "packs")
        assert pack["storage_class"] == "GLACIER_IR"
        assert pack["file_bytes"] == pytest.approx(900_000, rel=0.01)
        assert found["cost_per_month"] == pytest.approx(0.004 * 900_000 / 2**30, rel=0.01)
        pays = {one["class"]: one["pays_after_days"] for one in parts(found, "classes")}
        assert pays["STANDARD"] == 0
        assert 0 < pays["GLACIER_IR"] < 90
        (inline,) = parts(await explain_in_mount(engine, "small", config), "packs")
        assert inline["object"].startswith("log/")
        assert inline["storage_class"] == "STANDARD"
        for path, why in (("cold/none", "no such file"), ("cold", "no regular file")):
            with pytest.raises(UsageError, match=why):
                await explain_in_mount(engine, path, config)


async def test_explain_says_which_condition_a_rule_misses(world: World) -> None:
    """A rule that never applies is found out by asking."""
    rules = (
        Rule(storage_class="GLACIER_IR", size_min_bytes=MIB),
        Rule(storage_class="GLACIER_IR", age_s=30 * DAY_S),
        Rule(storage_class="GLACIER_IR", path="x/**"),
        Rule(storage_class="STANDARD"),
        Rule(storage_class="STANDARD_IA"),
    )
    settings = engine_settings(policy=replace(COLD, rules=rules))
    async with running(world.context(settings=settings)) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"a", b"data")
        found = await explain_in_mount(engine, "a", load_config(None, {}))
        states = [rule["state"] for rule in parts(found, "rules")]
        assert states == [
            "the size is not in its range",
            "the data is 0.0 days old, not 30",
            "the path does not match",
            "chosen",
            "applies, behind the first",
        ]
