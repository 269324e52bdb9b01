"""The key of an encrypted volume: made with it, found again at each start, wrapped anew.

The keyring is written before `volume.json`, so there is never an encrypted volume without one. A
keyring names its volume: what an interrupted mkfs left behind is nobody's and is passed over.
A new wrapping is the next generation, created if absent; only when it is there are older ones
deleted. Whoever dies in between leaves two generations, of which the higher one counts, and the
next `rekey` deletes the other.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from s3fs_banyan.commit.local import LocalDirectory, load_local_keyring
from s3fs_banyan.config import ClientEncryption
from s3fs_banyan.errors import AlreadyExists, Corrupt, ExitCode, ObjectMissing, UsageError
from s3fs_banyan.format.encryption import DOMAIN_BYTES, KEY_BYTES, Cipher
from s3fs_banyan.format.keyring import (
    KEY_FILE_BYTES_MAX,
    KEY_FILE_BYTES_MIN,
    SLOTS_MAX,
    DataKey,
    Keyring,
    Secret,
    decode_keyring,
    encode_keyring,
    unwrap,
    wrap,
)
from s3fs_banyan.format.keys import KEYRING_PREFIX, keyring_key, parse_keyring_key
from s3fs_banyan.format.volume import VolumeDescriptor
from s3fs_banyan.observe.log import register_secret
from s3fs_banyan.remote.base import RemoteFileSystem
from s3fs_banyan.runtime import Runtime

log = logging.getLogger(__name__)

PASSPHRASE_CHARACTERS_MIN = 8


# --- what a person has -------------------------------------------------------------------


def find_secrets(settings: ClientEncryption) -> list[Secret]:
    """Return what the configuration holds, key files first: they cost no time to try.

    Raises `UsageError` for a file that cannot be used. What is read never reaches a log.
    """
    found = []
    if settings.key_file is not None:
        found.append(Secret(key_file=_key_file(settings.key_file)))
    if settings.passphrase is not None:
        found.append(Secret(passphrase=settings.passphrase.get_secret_value()))
    if settings.passphrase_file is not None:
        found.append(Secret(passphrase=_passphrase_file(settings.passphrase_file)))
    for secret in found:
        register_secret(secret.passphrase)
    return found


def _key_file(path: Path) -> bytes:
    data = _read(path, KEY_FILE_BYTES_MAX + 1)
    if not KEY_FILE_BYTES_MIN <= len(data) <= KEY_FILE_BYTES_MAX:
        raise _unusable(
            f"{path}: a key file has {KEY_FILE_BYTES_MIN} to {KEY_FILE_BYTES_MAX} bytes: make one "
            "with head -c 32 /dev/urandom > FILE"
        )
    return data


def _passphrase_file(path: Path) -> str:
    """Return the file's only line; one line end is not part of it."""
    data = _read(path, 4097)
    text = data.decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")
    if not text or len(data) > 4096 or "\n" in text or "\0" in text:
        raise _unusable(f"{path}: a passphrase file holds one line of at most 4096 bytes")
    return text


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limit)
    except OSError as error:
        raise _unusable(f"{path}: {error.strerror}") from error


def check_new_secrets(secrets: Sequence[Secret]) -> None:
    """Refuse to wrap a key with what anybody could guess; raises `UsageError`."""
    if len(secrets) > SLOTS_MAX:
        raise _unusable(f"at most {SLOTS_MAX} passphrases and key files are possible")
    for secret in secrets:
        if secret.passphrase and len(secret.passphrase) < PASSPHRASE_CHARACTERS_MIN:
            raise _unusable(f"a passphrase has at least {PASSPHRASE_CHARACTERS_MIN} characters")


def _unusable(message: str) -> UsageError:
    return UsageError(message, exit_code=ExitCode.USAGE)


# --- keyrings in the store ---------------------------------------------------------------


def make_keyring(
    store: RemoteFileSystem, volume: VolumeDescriptor, secrets: Sequence[Secret], runtime: Runtime
) -> None:
    """Make a data key for a new volume and store it wrapped; `volume.json` comes after it."""
    data_key = DataKey(
        key=runtime.random_bytes(KEY_BYTES), domain=bytes.fromhex(volume.volume_id)[:DOMAIN_BYTES]
    )
    generation = max(_generations(store), default=0) + 1
    _create(store, _wrapped(data_key, volume, generation, secrets, runtime))


def read_keyring(store: RemoteFileSystem, volume: VolumeDescriptor) -> Keyring:
    """Return the volume's keyring: the highest generation that is whole and the volume's own.

    Raises `Corrupt` if there is none, and the store's errors.
    """
    failure: Corrupt | None = None
    for generation in sorted(_generations(store), reverse=True):
        key = keyring_key(generation)
        try:
            keyring = decode_keyring(store.read(key), key)
        except ObjectMissing:
            continue
        except Corrupt as error:
            # An older one wraps the same data key.
            log.error("%s", error)
            failure = error
            continue
        if keyring.volume_id == volume.volume_id and keyring.generation == generation:
            return keyring
    raise failure or Corrupt("keyring", KEYRING_PREFIX, "the encrypted volume has none")


def rekey(
    store: RemoteFileSystem,
    volume: VolumeDescriptor,
    settings: ClientEncryption,
    new: Sequence[Secret],
    runtime: Runtime,
    *,
    keep: bool,
) -> Keyring:
    """Wrap the data key anew; with `keep` the slots that there are stay, too.

    When this returns, the new generation is in the store and the older ones are not. Raises
    `UsageError` if the present key does not fit, or another one was faster.
    """
    check_new_secrets(new)
    found = unlock(store, volume, settings)
    if found is None:
        raise UsageError(
            f"volume {volume.volume_id} is not encrypted: mkfs --encrypt makes one",
            exit_code=ExitCode.KEY,
        )
    data_key, present = found
    made = _wrapped(data_key, volume, present.generation + 1, new, runtime)
    if keep:
        slots = (*present.slots, *made.slots)
        if len(slots) > SLOTS_MAX:
            raise _unusable(f"the volume has {len(present.slots)} keys, at most {SLOTS_MAX} fit")
        made = replace(made, slots=slots)
    _create(store, made)
    store.delete(
        [keyring_key(number) for number in _generations(store) if number < made.generation]
    )
    return made


def _wrapped(
    data_key: DataKey,
    volume: VolumeDescriptor,
    generation: int,
    secrets: Sequence[Secret],
    runtime: Runtime,
) -> Keyring:
    return Keyring(
        volume_id=volume.volume_id,
        domain=data_key.domain.hex(),
        generation=generation,
        created_ns=runtime.wall_ns(),
        slots=tuple(wrap(data_key, secret, runtime.random_bytes) for secret in secrets),
    )


def _create(store: RemoteFileSystem, keyring: Keyring) -> None:
    try:
        store.write(keyring_key(keyring.generation), encode_keyring(keyring), if_absent=True)
    except AlreadyExists:
        raise UsageError(
            f"{store.url} was given a new key by someone else just now: nothing was changed",
            exit_code=ExitCode.VOLUME,
        ) from None


def _generations(store: RemoteFileSystem) -> list[int]:
    metas = store.list(KEYRING_PREFIX)
    return [number for meta in metas if (number := parse_keyring_key(meta.path)) is not None]


# --- at each start -----------------------------------------------------------------------


def unlock(
    store: RemoteFileSystem,
    volume: VolumeDescriptor,
    settings: ClientEncryption,
    local: LocalDirectory | None = None,
    *,
    online: bool = True,
) -> tuple[DataKey, Keyring] | None:
    """Return the data key and its keyring, None if the volume is not encrypted.

    While the store is away (`online` false) the keyring that `local` has kept is used. Raises
    `UsageError` (exit code KEY) if the key is missing or wrong, and if a key is configured and
    the volume is plain: else whoever can write to the store could have data sent in clear.
    """
    secrets = find_secrets(settings)
    if not volume.is_encrypted:
        if secrets:
            raise UsageError(
                "the volume is not encrypted although a key is configured: take the key out of "
                "the configuration if it never was",
                exit_code=ExitCode.KEY,
            )
        return None
    if not secrets:
        raise UsageError(
            f"volume {volume.volume_id} is encrypted: give --passphrase-file or --key-file, or "
            "'encryption' in the configuration",
            exit_code=ExitCode.KEY,
        )
    if local is not None and not online:
        keyring = load_local_keyring(local)
    else:
        keyring = read_keyring(store, volume)
    return _unwrapped(keyring, volume, secrets), keyring


def open_cipher(
    store: RemoteFileSystem, volume: VolumeDescriptor, settings: ClientEncryption
) -> Cipher | None:
    """Return what encrypts and decrypts the volume, None if it is plain; raises as `unlock`."""
    found = unlock(store, volume, settings)
    return found[0].cipher() if found else None


def _unwrapped(keyring: Keyring, volume: VolumeDescriptor, secrets: Sequence[Secret]) -> DataKey:
    data_key = unwrap(keyring, secrets)
    if data_key is None:
        kinds = sorted({slot.kind.replace("-", " ") for slot in keyring.slots})
        raise UsageError(
            f"the key does not open volume {volume.volume_id}, which has "
            f"{' and '.join('a ' + kind for kind in kinds)}",
            exit_code=ExitCode.KEY,
        )
    return data_key
