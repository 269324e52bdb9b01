"""Packs that survive a restart: what is reused, what is never, and what reclaim leaves alone."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from s3fs_banyan.app.engine import Engine
from s3fs_banyan.commit import sealing
from s3fs_banyan.commit.outbox import Outbox, PackedChunk, PackRecord
from s3fs_banyan.commit.pack_reading import read_pack
from s3fs_banyan.commit.seal_job import SealedPack
from s3fs_banyan.commit.worker import InlineWorker, Worker
from s3fs_banyan.errors import Corrupt, Unavailable, UnsupportedVersion
from s3fs_banyan.format.checksum import sha256_hex
from s3fs_banyan.format.commit import encode_footer
from s3fs_banyan.format.keys import PACK_PREFIX, log_key, pack_hash_of, pack_key, parse_pack_key
from s3fs_banyan.remote.base import FileMeta
from s3fs_banyan.remote.multipart import PartDone, UploadState
from s3fs_banyan.remote.transfers import PooledTransfers
from tests.unit.counting_store import CountingStore
from tests.unit.engine_kit import (
    ROOT,
    World,
    engine_settings,
    read_file,
    running,
    write_file,
)

MIB = 1 << 20
WITHIN_S = 10.0
PART = 256 << 10
FILES = {b"file-%d" % number: os.urandom(700_000) for number in range(4)}


@pytest.fixture
def store(tmp_path: Path) -> CountingStore:
    """The store of `world`."""
    del tmp_path
    return CountingStore(clock=lambda: 1_700_000_000 * 10**9)


@pytest.fixture
def world(tmp_path: Path, store: CountingStore) -> World:
    """A world whose store counts."""
    world = World(tmp_path)
    world.store = store
    return world


async def attempt(engine: Engine) -> None:
    """Carry out a commit up to and with the uploads, and leave it there as a death would."""
    committer = engine.committer
    cut = await committer._cut()
    await engine.state.journal.wait_synced(cut.op_seq)
    counts = await committer._delta(cut)
    await committer._seal_and_upload(cut, counts)


async def sealed_only(engine: Engine) -> None:
    """Seal the packs of a commit, send nothing, die."""
    committer = engine.committer
    cut = await committer._cut()
    await engine.state.journal.wait_synced(cut.op_seq)
    counts = await committer._delta(cut)
    worker = engine.committer._worker
    for number in range(await worker.begin(committer._seal_job(cut, counts))):
        await worker.seal_pack(number)
    await worker.end()


async def fill(engine: Engine) -> None:
    """Become the writer and write all files."""
    await engine.committer.take_epoch()
    for name, data in FILES.items():
        await write_file(engine, name, data)
    await engine.filesystem.fsync()


async def remove(engine: Engine, *names: bytes) -> None:
    """Unlink files and reap them."""
    for name in names:
        await engine.filesystem.unlink(1, name, ROOT)
    while (dead := engine.filesystem.handles.next_dead_nowait()) is not None:
        await engine.filesystem._reap(engine.state, dead)


async def check_elsewhere(world: World, wanted: Mapping[bytes, bytes]) -> None:
    """Another machine reads every file from the store alone."""
    async with running(world.context("elsewhere"), takeover=True) as other:
        for name, data in wanted.items():
            assert await read_file(other, name) == data


def epochs(keys: list[str]) -> set[int]:
    return {parsed[0] for key in keys if (parsed := parse_pack_key(key))}


def outbox_of(world: World) -> Outbox:
    return Outbox(world.root / "a" / "outbox")


# --- packs in memory -----------------------------------------------------------------------


async def sealed_in_memory(engine: Engine, world: World) -> tuple[Worker, SealedPack, Path]:
    """Begin a commit on a quick line and seal its first pack."""
    outbox_of(world).store_link(1e12)
    committer = engine.committer
    cut = await committer._cut()
    await engine.state.journal.wait_synced(cut.op_seq)
    counts = await committer._delta(cut)
    worker = committer._worker
    assert await worker.begin(committer._seal_job(cut, counts)) == 4
    pack = await worker.seal_pack(0)
    assert pack is not None
    path = outbox_of(world).pack_path(pack.key)
    assert not path.exists()
    known = outbox_of(world).keys()
    assert pack.key in known
    return worker, pack, path


async def test_a_pack_that_is_sent_at_once_is_never_on_the_disk(
    world: World, store: CountingStore
) -> None:
    """It would be written, read twice and removed. What was sent is recorded all the same."""
    async with running(world.context()) as engine:
        await fill(engine)
        worker, pack, path = await sealed_in_memory(engine, world)
        await worker.upload(pack)
        assert not path.exists()
        [record] = [r for r in outbox_of(world).records() if r.key == pack.key]
        assert record.chunks
        assert store.packs() == [pack.key]
        await worker.end()
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await engine.committer.commit_once()
        assert [key for key, _ in store.sent].count(pack.key) == 1
        assert engine.ctx.metrics.packs_reused.read() == 1
    await check_elsewhere(world, FILES)


async def test_a_pack_that_could_not_be_sent_is_laid_down_and_outlives_a_death(
    world: World, store: CountingStore
) -> None:
    async with running(world.context()) as engine:
        await fill(engine)
        worker, pack, path = await sealed_in_memory(engine, world)
        store.is_away = True
        with pytest.raises(Unavailable):
            await worker.upload(pack)
        [record] = [r for r in outbox_of(world).records() if r.key == pack.key]
        assert read_pack(path, record, engine.ctx.cipher)
        with pytest.raises(Unavailable):
            await worker.upload(pack)
        assert path.exists()
        await worker.end()
    store.is_away = False
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await engine.committer.commit_once()
        assert pack.key in store.packs()
    await check_elsewhere(world, FILES)


@pytest.mark.allow_log_warnings
async def test_a_pack_that_the_disk_has_no_room_for_waits_in_memory(
    world: World, store: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk must not lose what the next attempt would have sent."""

    def refuse(path: Path, data: object) -> None:
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    async with running(world.context()) as engine:
        await fill(engine)
        worker, pack, path = await sealed_in_memory(engine, world)
        store.is_away = True
        monkeypatch.setattr(sealing, "write_gently", refuse)
        with pytest.raises(Unavailable):
            await worker.upload(pack)
        assert not path.exists()
        store.is_away = False
        await worker.upload(pack)
        assert store.packs() == [pack.key]
        await worker.end()


class Meeting:
    """The cache and the store of one upload, each of which waits until the other was asked."""

    def __init__(self, worker: Worker, store: CountingStore) -> None:
        assert isinstance(worker, InlineWorker)
        assert worker._sealing is not None
        self.sealing = worker._sealing
        self.sealing._beside = PooledTransfers(2)
        self.asked = [threading.Event(), threading.Event()]
        self.cached: list[str] = []
        self._put = self.sealing._cache.put_object
        self._write = store.write

    def put_object(self, key: str, data: bytes) -> None:
        self.asked[0].set()
        assert self.asked[1].wait(WITHIN_S), "it is not sent while it is cached"
        self._put(key, data)
        self.cached.append(sha256_hex(data))

    def write(
        self, path: str, data: bytes, *, if_absent: bool = False, storage_class: str = ""
    ) -> FileMeta:
        assert self.asked[0].wait(WITHIN_S), "it is not cached while it is sent"
        self.asked[1].set()
        return self._write(path, data, if_absent=if_absent, storage_class=storage_class)


@pytest.mark.parametrize("is_away", [False, True])
async def test_a_pack_is_cached_while_it_is_sent(
    world: World, store: CountingStore, monkeypatch: pytest.MonkeyPatch, *, is_away: bool
) -> None:
    """Its memory is used again when both are done with it, also when the store refuses."""
    async with running(world.context()) as engine:
        await fill(engine)
        worker, pack, path = await sealed_in_memory(engine, world)
        meeting = Meeting(worker, store)
        monkeypatch.setattr(meeting.sealing._cache, "put_object", meeting.put_object)
        monkeypatch.setattr(store, "write", meeting.write)
        store.is_away = is_away
        with pytest.raises(Unavailable) if is_away else contextlib.nullcontext():
            await worker.upload(pack)
        [cached] = meeting.cached
        assert cached.startswith(pack_hash_of(pack.key))
        assert path.exists() == is_away
        assert store.packs() == ([] if is_away else [pack.key])
        await worker.end()


# --- reuse ---------------------------------------------------------------------------------


async def test_packs_in_the_store_are_not_sent_again_after_a_death(
    world: World, store: CountingStore
) -> None:
    """A death between upload and publish must not cost the whole upload."""
    async with running(world.context()) as engine:
        await fill(engine)
        await attempt(engine)
        sent = store.pack_bytes_sent
        assert len(store.packs()) == 4
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await engine.committer.commit_once()
        assert store.pack_bytes_sent == sent
        assert engine.ctx.metrics.packs_reused.read() == 4
    assert outbox_of(world).keys() == set()
    await check_elsewhere(world, FILES)


async def test_sealed_packs_are_sent_as_they_are_after_a_death(
    world: World, store: CountingStore
) -> None:
    """Its key carries the epoch in which a pack was sealed; it is sealed once."""
    async with running(world.context()) as engine:
        await fill(engine)
        await sealed_only(engine)
        assert store.packs() == []
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await engine.committer.commit_once()
        assert epochs(store.packs()) == {1}
    await check_elsewhere(world, FILES)


async def test_what_was_written_since_goes_beside_what_is_reused(
    world: World, store: CountingStore
) -> None:
    more = {b"later": os.urandom(600_000)}
    async with running(world.context()) as engine:
        await fill(engine)
        await attempt(engine)
    before = store.pack_bytes_sent
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"later", more[b"later"])
        await engine.committer.commit_once()
        assert store.pack_bytes_sent - before < 700_000
        assert epochs(store.packs()) == {1, 2}
    await check_elsewhere(world, FILES | more)


async def test_a_pack_that_is_mostly_dead_is_not_reused(world: World, store: CountingStore) -> None:
    """Space in the store is paid for as long as one chunk of a pack lives."""
    async with running(world.context()) as engine:
        await fill(engine)
        await attempt(engine)
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await remove(engine, *list(FILES)[:3])
        await engine.committer.commit_once()
        named = {row.key for row in engine.reclaimer._packs() if row.key.startswith(PACK_PREFIX)}
        assert len(named) == 1
        assert engine.ctx.metrics.packs_reused.read() <= 1
    assert outbox_of(world).keys() == set()
    last = list(FILES)[3]
    await check_elsewhere(world, {last: FILES[last]})


@pytest.mark.parametrize("how", ["flipped", "short", "gone", "empty"])
async def test_a_damaged_pack_in_the_outbox_is_sealed_again(
    world: World, store: CountingStore, how: str
) -> None:
    """The outbox is not synced: after a power cut anything may be in its files."""
    async with running(world.context()) as engine:
        await fill(engine)
        await sealed_only(engine)
    for key in outbox_of(world).keys():  # noqa: SIM118  # a method of ours
        path = outbox_of(world).pack_path(key)
        data = bytearray(path.read_bytes())
        data[5000] ^= 1
        if how == "gone":
            path.unlink()
        else:
            path.write_bytes(
                {"flipped": bytes(data), "short": bytes(data[:4000]), "empty": b""}[how]
            )
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await engine.committer.commit_once()
        assert epochs(store.packs()) == {2}
        assert engine.ctx.metrics.packs_reused.read() == 0
    await check_elsewhere(world, FILES)


async def test_a_sent_pack_that_the_store_lost_is_sealed_again(
    world: World, store: CountingStore
) -> None:
    async with running(world.context()) as engine:
        await fill(engine)
        await attempt(engine)
    lost = store.packs()[1]
    store.delete([lost])
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await engine.committer.commit_once()
        assert engine.ctx.metrics.packs_reused.read() == 3
        assert lost not in {row.key for row in engine.reclaimer._packs()}
    await check_elsewhere(world, FILES)


async def test_packs_of_another_history_are_not_reused(world: World, store: CountingStore) -> None:
    """Equal ids are equal bytes within one history only: the cut must be in this journal."""
    async with running(world.context()) as engine:
        await fill(engine)
        await attempt(engine)
    outbox = outbox_of(world)
    for record in outbox.records():
        outbox.store(replace(record, chain=record.chain ^ 1))
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await engine.committer.commit_once()
        assert engine.ctx.metrics.packs_reused.read() == 0
    assert outbox.keys() == set()
    await check_elsewhere(world, FILES)


@pytest.mark.allow_log_warnings
async def test_after_a_takeover_the_outbox_is_of_no_use(world: World, store: CountingStore) -> None:
    """The other writer's history goes on with other bytes under the same ids."""
    async with running(world.context()) as engine:
        await fill(engine)
        await attempt(engine)
    async with running(world.context("b"), takeover=True) as other:
        await other.committer.take_epoch()
        await write_file(other, b"theirs", b"x" * 900_000)
        await other.committer.commit_once()
    async with running(world.context()) as engine:
        assert engine.state.set_aside
        await engine.committer.take_epoch()
        await write_file(engine, b"ours", FILES[b"file-0"])
        await engine.committer.commit_once()
        assert engine.ctx.metrics.packs_reused.read() == 0
    await check_elsewhere(world, {b"theirs": b"x" * 900_000, b"ours": FILES[b"file-0"]})


async def test_a_pack_that_a_commit_names_is_never_named_again(
    world: World, store: CountingStore
) -> None:
    """Two rows for one object: when the first one dies, the object is deleted under the other."""
    async with running(world.context()) as engine:
        await fill(engine)
        await attempt(engine)
        kept = outbox_of(world).records()
        engine.state.live.merge_dirty()
        await engine.committer.commit_once()
        for record in kept:  # as if the daemon had died before it dropped them
            outbox_of(world).store(record)
    async with running(world.context()) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"later", os.urandom(100_000))
        await engine.committer.commit_once()
        keys = [row.key for row in engine.reclaimer._packs()]
        assert len(keys) == len(set(keys))
        assert outbox_of(world).keys() == set()
    await check_elsewhere(world, FILES)


async def test_pack_ids_of_an_adopted_commit_do_not_meet_those_of_reused_packs(
    world: World, store: CountingStore
) -> None:
    """A former life's commit lands at the number of the attempt whose packs are reused then."""
    async with running(world.context()) as engine:
        await fill(engine)
        committer = engine.committer
        cut = await committer._cut()
        await engine.state.journal.wait_synced(cut.op_seq)
        body = await committer._seal_and_upload(cut, await committer._delta(cut))
        footer = engine.publisher.footer(
            epoch=engine.state.committed.head.epoch,
            chain=cut.chain,
            op_seq=cut.op_seq,
            inline_length=body.inline_length,
            delta_length=body.delta_length,
            placements_length=body.placements_length,
        )
        late = Path(body.path).read_bytes() + encode_footer(footer)
        engine.state.live.merge_dirty()
        more = {b"more": os.urandom(2 * MIB)}
        await write_file(engine, b"more", more[b"more"])
        await attempt(engine)  # at the same number, with what was sent and one more
        engine.state.live.merge_dirty()
        store.write(log_key(footer.seq), late)
        await committer.commit_once()
        await committer.commit_once()
        rows = engine.reclaimer._packs()
        assert len({row.id for row in rows}) == len({row.key for row in rows}) == len(rows)
        assert engine.ctx.metrics.packs_reused.read() > 0
    await check_elsewhere(world, FILES | more)


# --- parts ---------------------------------------------------------------------------------


async def test_an_upload_in_parts_goes_on_after_deaths(world: World, store: CountingStore) -> None:
    """On a slow line what got through stays, however often the daemon dies."""
    settings = engine_settings(multipart="always", part_bytes=PART)
    async with running(world.context(settings=settings)) as engine:
        await fill(engine)
    for parts in (2, 2, 3):
        store.parts_left = parts
        async with running(world.context(settings=settings)) as engine:
            await engine.committer.take_epoch()
            with pytest.raises(Unavailable):
                await _once(engine)
    store.parts_left = -1
    async with running(world.context(settings=settings)) as engine:
        await engine.committer.take_epoch()
        await engine.committer.commit_once()
        assert engine.ctx.metrics.upload_parts_resumed.read() == 1
    assert store.pack_bytes_sent == sum(store.stat(key).size for key in store.packs())
    assert list(store.list_uploads()) == []
    assert all(store.stat(key).etag.partition("-")[2] for key in store.packs())
    await check_elsewhere(world, FILES)


async def _once(engine: Engine) -> None:
    """Seal and upload without patience: the first error of the store ends it."""
    committer = engine.committer
    cut = await committer._cut()
    await engine.state.journal.wait_synced(cut.op_seq)
    counts = await committer._delta(cut)
    worker = committer._worker
    for number in range(await worker.begin(committer._seal_job(cut, counts))):
        pack = await worker.seal_pack(number)
        assert pack is not None
        await worker.upload(pack)


async def test_an_upload_of_a_pack_that_nobody_wants_is_aborted(
    world: World, store: CountingStore
) -> None:
    settings = engine_settings(multipart="always", part_bytes=PART)
    store.parts_left = 2
    async with running(world.context(settings=settings)) as engine:
        await fill(engine)
        with pytest.raises(Unavailable):
            await _once(engine)
    assert len(list(store.list_uploads())) == 1
    store.parts_left = -1
    async with running(world.context(settings=settings)) as engine:
        await engine.committer.take_epoch()
        await remove(engine, *FILES)
        await write_file(engine, b"other", b"y" * 10)
        await engine.committer.commit_once()
    assert list(store.list_uploads()) == []
    assert outbox_of(world).keys() == set()


async def test_reclaim_spares_the_outbox_and_aborts_what_nobody_will_finish(
    world: World, store: CountingStore
) -> None:
    """Orphans of dead epochs go, but not those that the next commit will name."""
    settings = engine_settings(
        multipart="always", part_bytes=PART, reclaim_grace_s=0.0, reclaim_window_s=0.0
    )
    async with running(world.context(settings=settings)) as engine:
        await fill(engine)
        await attempt(engine)
        waiting = store.packs()
    orphan = store.begin_upload(pack_key(1, 99, "0" * 16))
    foreign = store.begin_upload("other/thing")
    async with running(world.context(settings=settings)) as engine:
        await engine.committer.take_epoch()
        head = engine.state.committed.head
        now_ns = world.runtime.now_ns + 10**12
        plan = engine.reclaimer._plan(head, now_ns)
        assert plan.uploads == [(pack_key(1, 99, "0" * 16), orphan)]
        assert not {key for key, _, _ in plan.keys} & set(waiting)
        await engine.reclaimer._delete(plan)
        assert [upload for _, upload, _ in store.list_uploads()] == [foreign]
        await engine.committer.commit_once()
    assert store.packs() == waiting
    await check_elsewhere(world, FILES)


# --- records -------------------------------------------------------------------------------

RECORD = PackRecord(
    key=pack_key(3, 5, "ab" * 8),
    size=1000,
    chain=2**64 - 1,
    upload=UploadState(
        path=pack_key(3, 5, "ab" * 8),
        upload_id='with "quotes" and \\',
        file_size=1000,
        part_size=600,
        parts=(PartDone(number=1, size=600, md5="m", etag="e"),),
    ),
    chunks=(PackedChunk(2**63, 0, 900, 65_536, b"\0\xff"),),
)


@pytest.mark.parametrize(
    "record", [RECORD, replace(RECORD, upload=None), replace(RECORD, chunks=None)]
)
def test_record_survives_its_encoding(record: PackRecord) -> None:
    assert PackRecord.decode(record.encode(), "record") == record


def test_record_with_a_flipped_bit_or_cut_off_is_refused() -> None:
    data = RECORD.encode()
    for at in range(len(data)):
        with pytest.raises((Corrupt, UnsupportedVersion)):
            PackRecord.decode(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], "record")
        with pytest.raises(Corrupt):
            PackRecord.decode(data[:at], "record")


def test_a_start_keeps_packs_with_their_records_and_drops_the_rest(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    whole = PackRecord(key=pack_key(1, 1, "a" * 16), size=3, chain=1)
    sent = PackRecord(key=pack_key(1, 2, "b" * 16), size=3, chain=1, chunks=())
    lost = PackRecord(key=pack_key(1, 3, "c" * 16), size=3, chain=1)
    for record in (whole, sent, lost):
        outbox.store(record)
    outbox.pack_path(whole.key).write_bytes(b"abc")
    outbox.pack_path(pack_key(1, 4, "d" * 16)).write_bytes(b"without a record")
    (tmp_path / "delta-7.db").write_bytes(b"x")
    (tmp_path / "pack-1-9-x.record").write_bytes(b"damaged")
    (tmp_path / "pack-1-9-x.record.tmp").write_bytes(b"half")
    outbox.store_link(1234.5)
    outbox.tidy()
    assert outbox.records() == [whole, sent]
    assert outbox.load_link() == pytest.approx(1234.5, abs=1)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_pack_is_trusted_only_with_the_hash_in_its_name(tmp_path: Path) -> None:
    record = PackRecord(key=pack_key(1, 1, "a" * 16), size=3, chain=1)
    path = tmp_path / "pack"
    path.write_bytes(b"abc")
    with pytest.raises(Corrupt, match="hash"):
        read_pack(path, record, None)
