"""What the check finds in a volume that nobody writes: every object that is needed, by its key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio

from s3fs_banyan.admin.check import Check, Finding
from s3fs_banyan.admin.check_needed import Named, absent_fences
from s3fs_banyan.commit import sealing
from s3fs_banyan.commit.log_store import CommitLog
from s3fs_banyan.format.commit import CommitFooter, decode_footer
from s3fs_banyan.format.encryption import Cipher
from s3fs_banyan.format.keyring import DataKey, Keyring, Secret, encode_keyring, wrap
from s3fs_banyan.format.keys import (
    CHECKPOINT_PIECE_PREFIX,
    DELTA_PREFIX,
    LOG_PREFIX,
    PACK_PREFIX,
    WRITER,
    checkpoint_key,
    keyring_key,
    log_key,
    parse_checkpoint_key,
    parse_log_key,
)
from s3fs_banyan.format.volume import FEATURE_ENCRYPTION
from s3fs_banyan.meta.committed import PackRow
from tests.unit.check_kit import HOUR_NS, check, lived_in, make_volume
from tests.unit.engine_kit import VOLUME, World, running, write_file
from tests.unit.test_commit_reclaim import (
    checkpointed_commit,
    keeping,
    keys,
    replace_large,
    round_with_commit,
)

pytestmark = pytest.mark.allow_log_warnings


@pytest.fixture
def world(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> World:
    """A world whose clock a test moves."""
    del autojump_clock
    return World(tmp_path)


def newest_footer(world: World, cipher: Cipher | None = None) -> CommitFooter:
    """Return the footer of the newest commit."""
    key = keys(world, LOG_PREFIX)[-1]
    return decode_footer(world.store.read(key), key, cipher)


def only_key(found: list[Finding]) -> str:
    """Return the one key that all findings are about."""
    (key,) = {finding.key for finding in found}
    return key


# --- every object ------------------------------------------------------------------------


@pytest.mark.parametrize("is_encrypted", [False, True])
async def test_each_object_that_is_needed_is_missed_by_its_key(
    world: World, monkeypatch: pytest.MonkeyPatch, is_encrypted: bool
) -> None:
    """What the check does not miss is found by the restore that needed it."""
    cipher = Cipher(bytes(32), bytes(16)) if is_encrypted else None
    monkeypatch.setattr(sealing, "COMMIT_BYTES_MAX", 3200)
    fences = await lived_in(world, cipher=cipher)
    newest = newest_footer(world, cipher)
    assert newest.kept
    assert parse_log_key(fences[1]) not in newest.kept
    assert fences[1] < log_key(newest.dense_from)
    assert keys(world, DELTA_PREFIX)
    assert check(world, cipher=cipher) == []
    for key in keys(world):
        data = world.store.read(key)
        world.store.delete([key])
        found = check(world, cipher=cipher)
        world.store.write(key, data)
        shortcut = (parse_checkpoint_key(key) or 0) > newest.dense_from
        if key == WRITER or shortcut:
            assert found == [], key
        elif key == fences[1]:
            first, last = (parse_log_key(end) for end in f"{only_key(found)}..".split("..")[:2])
            seq = parse_log_key(key)
            assert first is not None
            assert seq is not None
            assert first <= seq <= (last or first)
        else:
            assert [(finding.kind, finding.key) for finding in found] == [("missing", key)]
    assert check(world, cipher=cipher) == []


@pytest.mark.parametrize("is_encrypted", [False, True])
async def test_each_object_with_a_flipped_bit_is_named(
    world: World, monkeypatch: pytest.MonkeyPatch, is_encrypted: bool
) -> None:
    """And nothing else is, that would lead a person away from it."""
    cipher = Cipher(bytes(32), bytes(16)) if is_encrypted else None
    monkeypatch.setattr(sealing, "COMMIT_BYTES_MAX", 3200)
    await lived_in(world, cipher=cipher)
    for number, key in enumerate(keys(world)):
        data = world.store.read(key)
        positions = (0, len(data) // 3, len(data) - 20, len(data) - 1)
        flipped = bytearray(data)
        flipped[positions[number % 4]] ^= 4
        world.store.write(key, bytes(flipped))
        found = check(world, cipher=cipher)
        assert {(finding.kind, finding.key) for finding in found} == {("damaged", key)}
        world.store.write(key, data)
    assert check(world, cipher=cipher) == []


async def test_a_keyring_that_is_gone_is_missed(world: World) -> None:
    """Without it nobody ever reads the volume again."""
    make_volume(world)
    volume = replace(VOLUME, features_refuse=(FEATURE_ENCRYPTION,))
    domain = bytes.fromhex(VOLUME.volume_id)[:16]
    slot = wrap(
        DataKey(key=bytes(32), domain=domain), Secret(key_file=bytes(range(32))), bytes, scrypt_n=2
    )
    keyring = Keyring(
        volume_id=VOLUME.volume_id, domain=domain.hex(), generation=1, created_ns=1, slots=(slot,)
    )
    world.store.write(keyring_key(1), encode_keyring(keyring))
    assert check(world, volume=volume) == []
    world.store.delete([keyring_key(1)])
    assert [(f.kind, f.key) for f in check(world, volume=volume)] == [("missing", "key/")]


# --- packs, deltas, pieces ---------------------------------------------------------------


async def test_a_pack_that_only_a_kept_commit_needs_is_missed(world: World) -> None:
    """The newest state does without it; a restore to an earlier minute does not."""
    make_volume(world)
    async with running(world.context(settings=keeping(3600, 0))) as engine:
        await engine.committer.take_epoch()
        await replace_large(engine, b"large")
        await checkpointed_commit(engine)
        (pack,) = keys(world, PACK_PREFIX)
        await replace_large(engine, b"large")
        await checkpointed_commit(engine)
        await round_with_commit(engine)
    world.store.delete([pack])
    assert [(f.kind, f.key) for f in check(world)] == [("missing", pack)]


async def test_a_pack_is_not_missed_once_no_kept_commit_needs_it(world: World) -> None:
    """Rows of packs that reclaim deleted stand in checkpoints for a while."""
    make_volume(world)
    async with running(world.context(settings=keeping(3600, 0))) as engine:
        await engine.committer.take_epoch()
        await replace_large(engine, b"large")
        await checkpointed_commit(engine)
        (pack,) = keys(world, PACK_PREFIX)
        for _ in range(3):
            await replace_large(engine, b"large")
            await checkpointed_commit(engine)
            world.runtime.now_ns += 2 * HOUR_NS
            await round_with_commit(engine)
        assert pack not in keys(world)
        assert check(world) == []


async def test_a_delta_of_its_own_is_needed_as_long_as_its_commit_is_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit below the window stays for the chunks in it, and its delta goes."""
    monkeypatch.setattr(sealing, "COMMIT_BYTES_MAX", 0)
    make_volume(world)
    async with running(world.context(settings=keeping(3600, 0))) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"small", b"s" * 3000)
        seq = await checkpointed_commit(engine)
        for _ in range(3):
            await replace_large(engine, b"large")
            await checkpointed_commit(engine)
            world.runtime.now_ns += 2 * HOUR_NS
            await round_with_commit(engine)
        assert log_key(seq) in keys(world)
        assert not keys(world, f"{DELTA_PREFIX}{seq:020d}")
        assert check(world) == []


async def test_a_delta_that_its_commit_names_is_no_orphan(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person who deletes what the check calls an orphan must not delete history."""
    monkeypatch.setattr(sealing, "COMMIT_BYTES_MAX", 0)
    make_volume(world)
    async with running(world.context(settings=keeping(3600, 0))) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"small", b"s" * 3000)
        await engine.committer.commit_once()
    (delta,) = keys(world, DELTA_PREFIX)
    twin = f"{delta[:-16]}{'0' * 16}"
    world.store.write(twin, world.store.read(delta))
    scratch = world.root / "scratch"
    scratch.mkdir()
    found = [*Check(world.store, VOLUME, scratch, None).run()]
    assert [(finding.kind, finding.key) for finding in found] == [("orphan", twin)]


async def test_what_a_damaged_object_may_name_is_no_orphan(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is needed as soon as that object is put back from the bucket's versions."""
    monkeypatch.setattr(sealing, "COMMIT_BYTES_MAX", 0)
    make_volume(world)
    async with running(world.context(settings=keeping(3600, 0))) as engine:
        await engine.committer.take_epoch()
        await write_file(engine, b"small", b"s" * 3000)
        seq = await checkpointed_commit(engine)
    for key in (checkpoint_key(seq), log_key(seq)):
        data = world.store.read(key)
        world.store.write(key, data[:-20] + bytes(20))
        scratch = world.root / key.replace("/", "-")
        scratch.mkdir()
        found = [*Check(world.store, VOLUME, scratch, None).run()]
        assert [(finding.kind, finding.key) for finding in found] == [("damaged", key)]
        world.store.write(key, data)


async def test_a_checkpoint_that_nothing_needs_may_lack_pieces(world: World) -> None:
    """Reclaim deletes its manifest in one request with them, which may be carried out half."""
    make_volume(world)
    async with running(world.context(settings=keeping(3600, 0))) as engine:
        await engine.committer.take_epoch()
        await replace_large(engine, b"large")
        seq = await checkpointed_commit(engine)
        manifest = world.store.read(checkpoint_key(seq))
        for _ in range(3):
            await replace_large(engine, b"large")
            await checkpointed_commit(engine)
            world.runtime.now_ns += 2 * HOUR_NS
            await round_with_commit(engine)
    assert checkpoint_key(seq) not in keys(world)
    world.store.write(checkpoint_key(seq), manifest)
    log = CommitLog(world.store, world.root, None)
    named = [f"{CHECKPOINT_PIECE_PREFIX}{name}" for name in log.read_manifest(seq).pieces]
    assert not set(named) <= set(keys(world))
    assert check(world) == []


async def test_a_state_that_cannot_be_loaded_is_told_by_the_object_at_fault(world: World) -> None:
    """A finding's key is a key: programs look the object up in the bucket's versions."""
    make_volume(world)
    async with running(world.context(settings=keeping(0, 0))) as engine:
        await engine.committer.take_epoch()
        for _ in range(3):
            await replace_large(engine, b"large")
            await checkpointed_commit(engine)
            world.runtime.now_ns += HOUR_NS
            await round_with_commit(engine)
    footer = newest_footer(world)
    (manifest,) = keys(world, checkpoint_key(footer.dense_from))
    log = CommitLog(world.store, world.root, None)
    piece = f"{CHECKPOINT_PIECE_PREFIX}{log.read_manifest(footer.dense_from).pieces[0]}"
    for key in (manifest, piece):
        data = world.store.read(key)
        world.store.delete([key])
        assert [(f.kind, f.key) for f in check(world)] == [("missing", key)]
        world.store.write(key, data)
    # Without a commit nobody knows what reclaim may have deleted; that nothing loads is known.
    world.store.delete([*keys(world, LOG_PREFIX), piece])
    (found,) = check(world)
    assert (found.kind, found.key) == ("damaged", "state")
    assert piece in found.why


# --- fences ------------------------------------------------------------------------------


async def test_a_fence_is_missed_by_its_number_if_its_neighbours_are_there(world: World) -> None:
    """A writer that slept for days must not find its next key free."""
    make_volume(world)
    fences = []
    for life in range(3):
        async with running(world.context(settings=keeping(0, 0))) as engine:
            await engine.committer.take_epoch()
            fences.append(log_key(engine.state.committed.head.seq))
            # Its commit stays below the window, for it holds a file that lives.
            await write_file(engine, b"small-%d" % life, b"s" * 3000)
            await engine.committer.commit_once()
            if life == 2:
                for _ in range(2):
                    await replace_large(engine, b"large")
                    await checkpointed_commit(engine)
                    world.runtime.now_ns += HOUR_NS
                    await round_with_commit(engine)
    assert fences[2] < log_key(newest_footer(world).dense_from)
    assert check(world) == []
    for fence in fences:
        data = world.store.read(fence)
        world.store.delete([fence])
        assert [(f.kind, f.key) for f in check(world)] == [("missing", fence)]
        world.store.write(fence, data)


def footer(seq: int, epoch: int, *, is_fence: bool = False) -> CommitFooter:
    """Return the footer of a commit of an epoch."""
    return CommitFooter(
        seq=seq, epoch=epoch, writer=bytes(16), predecessor=bytes(32), chain=0, op_seq=0,
        time_ns=0, dense_from=0, kept=(), inline_length=0,
        delta_length=0 if is_fence else 1, placements_length=0,
    )  # fmt: skip


def absent(
    *footers: CommitFooter,
    epochs: tuple[tuple[int, int], ...] = (),
    packs: tuple[str, ...] = (),
) -> list[str]:
    """Return the keys of the fences that are missing by what is known."""
    named = Named(footers={known.seq: known for known in footers}, epochs=[*epochs])
    rows = [PackRow(0, key, "", 0, 0, 0, None) for key in packs]
    return [found.key for found in absent_fences(named, rows)]


FIRST = footer(1, 1, is_fence=True)


def test_a_fence_lies_between_the_last_commit_of_an_epoch_and_the_first_of_the_next() -> None:
    """What is known is said as narrowly as it is known, and nothing else."""
    assert absent() == []
    assert absent(FIRST) == []
    assert absent(FIRST, footer(9, 1), footer(10, 2, is_fence=True), footer(12, 2)) == []
    assert absent(footer(2, 1)) == [log_key(1)]
    assert absent(FIRST, footer(9, 1), footer(11, 2)) == [log_key(10)]
    assert absent(FIRST, footer(9, 1), footer(12, 2)) == [f"{log_key(10)}..{log_key(11)}"]
    # A number that was journaled, and never became an epoch of the store, leaves nothing.
    assert absent(FIRST, footer(9, 1), footer(10, 4, is_fence=True)) == []


def test_an_epoch_is_known_by_what_is_left_of_it() -> None:
    """The state, checkpoints and the names of packs outlive the commits."""
    assert absent(FIRST, epochs=((9, 1), (10, 2))) == [log_key(10)]
    assert absent(FIRST, epochs=((9, 1), (11, 2))) == [f"{log_key(10)}..{log_key(11)}"]
    pack = f"{PACK_PREFIX}2/{5 << 16 | 1:016x}-{'0' * 16}"
    assert absent(FIRST, epochs=((3, 1),), packs=(pack,)) == [log_key(4)]
