"""Making volumes, and reading their descriptor."""

from __future__ import annotations

from collections.abc import Sequence

from s3fs_banyan.app.encryption import make_keyring
from s3fs_banyan.errors import AlreadyExists, Corrupt, ExitCode, ObjectMissing, UsageError
from s3fs_banyan.format.keyring import Secret
from s3fs_banyan.format.keys import (
    CHECKPOINT_PREFIX,
    DELTA_PREFIX,
    KEYRING_PREFIX,
    LOG_PREFIX,
    PACK_PREFIX,
    PROBE_PREFIX,
    VOLUME,
    WRITER,
)
from s3fs_banyan.format.volume import VolumeDescriptor, decode_volume, encode_volume
from s3fs_banyan.remote.base import RemoteFileSystem
from s3fs_banyan.remote.open import probe_create_if_absent
from s3fs_banyan.runtime import Runtime

_CONTENT = (LOG_PREFIX, DELTA_PREFIX, PACK_PREFIX, CHECKPOINT_PREFIX)
_OURS = (*_CONTENT, PROBE_PREFIX, "snapshot/", "pin/")
_LEFT_BY_MKFS = (PROBE_PREFIX, KEYRING_PREFIX)
"""What a mkfs that was interrupted may leave; a keyring names its volume, this one is nobody's."""


def make_volume(
    store: RemoteFileSystem,
    volume: VolumeDescriptor,
    runtime: Runtime,
    secrets: Sequence[Secret] = (),
) -> None:
    """Create a volume's descriptor in an empty prefix, after its keyring if it is encrypted.

    Raises `UsageError` if the prefix holds a volume or anything else, or if the store does not
    honour create-if-absent.
    """
    for meta in store.list():
        if meta.path == VOLUME or meta.path.startswith(_CONTENT):
            raise UsageError(f"{store.url} holds a volume already", exit_code=ExitCode.VOLUME)
        if not meta.path.startswith(_LEFT_BY_MKFS):
            raise UsageError(
                f"{store.url} is not empty (it holds {meta.path}): choose another prefix",
                exit_code=ExitCode.VOLUME,
            )
    check_create_if_absent(store, runtime)
    if volume.is_encrypted:
        make_keyring(store, volume, secrets, runtime)
    try:
        store.write(VOLUME, encode_volume(volume), if_absent=True)
    except AlreadyExists:
        raise UsageError(
            f"{store.url} was made a volume by someone else just now", exit_code=ExitCode.VOLUME
        ) from None


def check_create_if_absent(store: RemoteFileSystem, runtime: Runtime) -> None:
    """Refuse a store that would let two writers overwrite each other's commits."""
    if not probe_create_if_absent(store, runtime.random_bytes(8).hex()):
        raise UsageError(
            f"{store.url} does not honour create-if-absent (If-None-Match: *): two writers could "
            "overwrite each other's commits there. Use a store that does",
            exit_code=ExitCode.VOLUME,
        )


def read_volume(store: RemoteFileSystem) -> VolumeDescriptor:
    """Return the descriptor of the volume in a store.

    Raises `UsageError` if there is none, `Corrupt`, `UnsupportedVersion`, the store's errors.
    """
    try:
        return decode_volume(store.read(VOLUME), VOLUME)
    except ObjectMissing:
        pass
    metas = store.list()
    first = next((meta for meta in metas if not meta.path.startswith(KEYRING_PREFIX)), None)
    if first is None:
        raise UsageError(
            f"no volume at {store.url}: make one with s3fs-banyan mkfs", exit_code=ExitCode.VOLUME
        )
    if first.path == WRITER or first.path.startswith(_OURS):
        raise Corrupt(
            "volume", VOLUME, "the descriptor is missing although other objects are there"
        )
    raise UsageError(
        f"{store.url} holds something else ({first.path}), no volume", exit_code=ExitCode.VOLUME
    )
