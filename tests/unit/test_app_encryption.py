"""Keyrings in a store: made with a volume, exchanged, half exchanged, and found again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import SecretStr

from s3fs_banyan.app.encryption import find_secrets, read_keyring, rekey, unlock
from s3fs_banyan.app.volume import make_volume, read_volume
from s3fs_banyan.commit.local import LocalDirectory, store_local_keyring
from s3fs_banyan.config import ClientEncryption
from s3fs_banyan.errors import Corrupt, ExitCode, Unavailable, UsageError
from s3fs_banyan.format.keyring import DataKey
from s3fs_banyan.format.keys import keyring_key
from s3fs_banyan.format.volume import FEATURE_ENCRYPTION, VolumeDescriptor
from s3fs_banyan.remote.memory import MemoryStore
from tests.unit.engine_kit import VOLUME, StepRuntime

ENCRYPTED = VolumeDescriptor(
    volume_id="5e" * 16,
    created_ns=1_000,
    pack_bytes=1 << 20,
    features_refuse=(FEATURE_ENCRYPTION,),
)


@pytest.fixture
def runtime() -> StepRuntime:
    """A clock and numbers that are the same each time."""
    return StepRuntime()


@pytest.fixture
def keys(tmp_path: Path) -> list[ClientEncryption]:
    """Three key files, each as a configuration names it."""
    found = []
    for number in range(3):
        path = tmp_path / f"key{number}"
        path.write_bytes(b"%d" % number * 40)
        found.append(ClientEncryption(key_file=path))
    return found


@pytest.fixture
def store(runtime: StepRuntime, keys: list[ClientEncryption]) -> MemoryStore:
    """A store with an encrypted volume that the first key opens."""
    made = MemoryStore(clock=runtime.wall_ns)
    make_volume(made, ENCRYPTED, runtime, find_secrets(keys[0]))
    return made


def opened(store: MemoryStore, settings: ClientEncryption) -> DataKey:
    """Return the data key, as a mount finds it."""
    found = unlock(store, read_volume(store), settings)
    assert found is not None
    return found[0]


def refused(store: MemoryStore, settings: ClientEncryption, why: str) -> None:
    """The key is refused in one line, with its exit code."""
    with pytest.raises(UsageError, match=why) as caught:
        unlock(store, read_volume(store), settings)
    assert caught.value.exit_code is ExitCode.KEY
    assert "\n" not in str(caught.value)


def keyrings(store: MemoryStore) -> list[str]:
    """Return the keys of the keyrings in the store."""
    return [meta.path for meta in store.list("key/")]


def test_the_key_opens_and_no_other(store: MemoryStore, keys: list[ClientEncryption]) -> None:
    """And without one the line says how to give one."""
    assert len(opened(store, keys[0]).key) == 32
    refused(store, keys[1], "does not open volume 5e")
    refused(store, ClientEncryption(), "is encrypted: give --passphrase-file")


def test_a_key_for_a_plain_volume_is_refused(
    runtime: StepRuntime, keys: list[ClientEncryption]
) -> None:
    """Who exchanges the descriptor for a plain one must not get data in clear."""
    plain = MemoryStore(clock=runtime.wall_ns)
    make_volume(plain, VOLUME, runtime)
    assert unlock(plain, VOLUME, ClientEncryption()) is None
    refused(plain, keys[0], "is not encrypted although")


def test_rekey_exchanges_the_wrapping_and_nothing_else(
    store: MemoryStore, runtime: StepRuntime, keys: list[ClientEncryption]
) -> None:
    """Same data key, one keyring, and the old key opens no more."""
    before = opened(store, keys[0])
    made = rekey(store, ENCRYPTED, keys[0], find_secrets(keys[1]), runtime, keep=False)
    assert keyrings(store) == [keyring_key(made.generation)] == [keyring_key(2)]
    assert opened(store, keys[1]) == before
    refused(store, keys[0], "does not open")


def test_rekey_can_keep_the_present_keys(
    store: MemoryStore, runtime: StepRuntime, keys: list[ClientEncryption]
) -> None:
    """One for the machine, one in the safe; at most eight."""
    for _ in range(7):
        rekey(store, ENCRYPTED, keys[0], find_secrets(keys[1]), runtime, keep=True)
    assert opened(store, keys[0]).key == opened(store, keys[1]).key
    before = store.read(keyring_key(8))
    with pytest.raises(UsageError, match="at most 8"):
        rekey(store, ENCRYPTED, keys[0], find_secrets(keys[2]), runtime, keep=True)
    assert keyrings(store) == [keyring_key(8)]
    assert store.read(keyring_key(8)) == before


def test_rekey_with_a_wrong_key_changes_nothing(
    store: MemoryStore, runtime: StepRuntime, keys: list[ClientEncryption]
) -> None:
    """Nobody locks a volume that he cannot open."""
    before = store.read(keyring_key(1))
    with pytest.raises(UsageError, match="does not open"):
        rekey(store, ENCRYPTED, keys[1], find_secrets(keys[2]), runtime, keep=False)
    assert keyrings(store) == [keyring_key(1)]
    assert store.read(keyring_key(1)) == before


def test_rekey_that_dies_half_way_leaves_the_new_key(
    store: MemoryStore,
    runtime: StepRuntime,
    keys: list[ClientEncryption],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two keyrings, the higher one counts; the next rekey deletes the other."""

    def dies(_: Sequence[str]) -> None:
        raise Unavailable("the line went dead")

    with monkeypatch.context() as patch:
        patch.setattr(store, "delete", dies)
        with pytest.raises(Unavailable):
            rekey(store, ENCRYPTED, keys[0], find_secrets(keys[1]), runtime, keep=False)
    assert keyrings(store) == [keyring_key(1), keyring_key(2)]
    assert opened(store, keys[1]).key
    refused(store, keys[0], "does not open")
    rekey(store, ENCRYPTED, keys[1], find_secrets(keys[2]), runtime, keep=False)
    assert keyrings(store) == [keyring_key(3)]


def test_two_rekeys_at_once_collide(
    store: MemoryStore,
    runtime: StepRuntime,
    keys: list[ClientEncryption],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of them is told; the other's key opens the volume."""
    write = store.write

    def slow(key: str, data: bytes, *, if_absent: bool = False) -> object:
        monkeypatch.undo()
        rekey(store, ENCRYPTED, keys[0], find_secrets(keys[2]), runtime, keep=False)
        return write(key, data, if_absent=if_absent)

    monkeypatch.setattr(store, "write", slow)
    with pytest.raises(UsageError, match="by someone else"):
        rekey(store, ENCRYPTED, keys[0], find_secrets(keys[1]), runtime, keep=False)
    assert keyrings(store) == [keyring_key(2)]
    assert opened(store, keys[2]).key


@pytest.mark.allow_log_warnings
def test_the_highest_keyring_that_is_whole_counts(
    store: MemoryStore, runtime: StepRuntime, keys: list[ClientEncryption]
) -> None:
    """They all wrap the same data key: damage to one must not cost the volume."""
    older = store.read(keyring_key(1))
    rekey(store, ENCRYPTED, keys[0], find_secrets(keys[1]), runtime, keep=False)
    store.write(keyring_key(1), older)
    newer = store.read(keyring_key(2))
    store.write(keyring_key(2), newer.replace(b"domain", b"demain"))
    assert opened(store, keys[0]).key
    store.delete([keyring_key(1)])
    with pytest.raises(Corrupt, match="checksum"):
        read_keyring(store, ENCRYPTED)
    store.delete([keyring_key(2)])
    with pytest.raises(Corrupt, match="has none"):
        read_keyring(store, ENCRYPTED)


def test_what_an_interrupted_mkfs_left_is_passed_over(
    runtime: StepRuntime, keys: list[ClientEncryption]
) -> None:
    """A keyring without a descriptor is nobody's: the next mkfs goes on beside it."""
    store = MemoryStore(clock=runtime.wall_ns)
    other = VolumeDescriptor(
        volume_id="77" * 16, created_ns=1, pack_bytes=1 << 20, features_refuse=(FEATURE_ENCRYPTION,)
    )
    make_volume(store, other, runtime, find_secrets(keys[0]))
    store.delete(["volume.json"])
    with pytest.raises(UsageError, match="no volume at"):
        read_volume(store)
    make_volume(store, ENCRYPTED, runtime, find_secrets(keys[1]))
    assert opened(store, keys[1]).key
    refused(store, keys[0], "does not open")


def test_without_the_store_the_keyring_seen_last_opens(
    store: MemoryStore, keys: list[ClientEncryption], tmp_path: Path
) -> None:
    """A mount goes on from its local state, and is as strict."""
    local = LocalDirectory(root=tmp_path / "local")
    local.make()
    store_local_keyring(local, read_keyring(store, ENCRYPTED))
    away = MemoryStore(clock=lambda: 0)
    found = unlock(away, ENCRYPTED, keys[0], local, online=False)
    assert found is not None
    assert found[0] == opened(store, keys[0])
    with pytest.raises(UsageError, match="does not open"):
        unlock(away, ENCRYPTED, keys[1], local, online=False)


def test_a_passphrase_opens_as_typed_and_from_a_file(
    runtime: StepRuntime, keys: list[ClientEncryption], tmp_path: Path
) -> None:
    """One line end is not part of it; a key file beside it costs nothing."""
    file = tmp_path / "passphrase"
    file.write_bytes("grüne Wiese 7\n".encode())
    typed = ClientEncryption(passphrase=SecretStr("grüne Wiese 7"))
    store = MemoryStore(clock=runtime.wall_ns)
    make_volume(store, ENCRYPTED, runtime, [*find_secrets(typed), *find_secrets(keys[0])])
    from_file = opened(store, ClientEncryption(passphrase_file=file))
    assert from_file.key == opened(store, keys[0]).key
    refused(
        store,
        ClientEncryption(passphrase=SecretStr("grüne Wiese 8")),
        "a key file and a passphrase",
    )


@pytest.mark.parametrize(
    ("content", "field", "why"),
    [
        (b"short", "key_file", "32 to 65536 bytes"),
        (bytes(70_000), "key_file", "32 to 65536 bytes"),
        (None, "key_file", "No such file"),
        (b"", "passphrase_file", "one line"),
        (b"one\ntwo\n", "passphrase_file", "one line"),
        (b"x" * 5000, "passphrase_file", "one line"),
    ],
    ids=["short", "long", "missing", "empty", "two lines", "long line"],
)
def test_a_file_that_holds_no_key_is_named(
    content: bytes | None, field: str, why: str, tmp_path: Path
) -> None:
    """And what is in it is not repeated."""
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=why) as caught:
        find_secrets(ClientEncryption(**{field: path}))  # type: ignore[arg-type]  # one of two paths
    assert caught.value.exit_code is ExitCode.USAGE
    assert str(path) in str(caught.value)


def test_a_passphrase_that_anybody_guesses_is_not_taken(
    store: MemoryStore, runtime: StepRuntime, keys: list[ClientEncryption]
) -> None:
    """For a new slot; what is there already is only tried."""
    short = find_secrets(ClientEncryption(passphrase=SecretStr("7 chars")))
    with pytest.raises(UsageError, match="at least 8 characters"):
        rekey(store, ENCRYPTED, keys[0], short, runtime, keep=False)
