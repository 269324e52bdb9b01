"""The local directory of a mount: where what lies, and whose it is.

`identity.json` says which volume and which directory this is. Its inode number is in it, so that
a directory that was copied is noticed: two daemons must not continue one journal.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from s3fs_banyan.commit.outbox import Outbox
from s3fs_banyan.errors import Corrupt, ExitCode, Refused
from s3fs_banyan.foreign_json import parse_json
from s3fs_banyan.format.keyring import Keyring, decode_keyring, encode_keyring
from s3fs_banyan.format.sealed_json import hex_of, number_of
from s3fs_banyan.format.volume import (
    VOLUME_ID_BYTES,
    VolumeDescriptor,
    decode_volume,
    encode_volume,
)
from s3fs_banyan.journal.disk import Disk

_IDENTITY = "identity.json"
_URL = "store-url"
_EPOCHS = "epochs.json"
_LAST_CUT = "last-cut"
_WRITER_BYTES: Final = 16
_BLOCK_BYTES: Final = 512
"""Of `st_blocks` (stat(2))."""
_NUMBER_DIGITS_MAX: Final = 20
"""Of a number of 64 bits."""


_MAY_BE_THERE: Final = "changes that are not yet in the store may be there"


@contextmanager
def must_be_usable(root: Path) -> Iterator[None]:
    """Refuse a local directory that cannot be used when a mount begins: one line, and what to do.

    Not for what a mount does later: then an `OSError` is waited out or ends the mount.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        advice = "give a --cache-dir on a disk that can be written and has room"
        known = root / _IDENTITY
        # Never send a person away from changes that the store does not have.
        if isinstance(error, FileExistsError | NotADirectoryError):
            reason = "no directory can be there, something else is in the way"
        elif isinstance(error, PermissionError):
            if any(map(_may_be_there, (Path(error.filename or root), known))):
                advice = (
                    "mount as the user whose it is, or give that directory and all that is in it "
                    f"to this one (chown -R); {_MAY_BE_THERE}"
                )
        elif _may_be_there(known):
            advice = f"make room there, or let it be written again; {_MAY_BE_THERE}"
        raise Refused(
            f"the local directory {root} cannot be used ({error.filename or root}: {reason}): "
            f"{advice}",
            exit_code=ExitCode.LOCAL,
        ) from error


def _may_be_there(path: Path) -> bool:
    """Tell whether an earlier life may have left this: who cannot look does not know."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalDirectory:
    """Paths below the local directory of a mount."""

    root: Path

    def waiting_packs_bytes(self) -> int:
        """Return what packs take on the disk that wait for the store, finished or not; blocks."""
        found = 0
        for directory in (self.outbox, self.base_packs):
            for path in directory.glob("*"):
                with suppress(FileNotFoundError):  # it was sent meanwhile
                    found += path.stat().st_blocks * _BLOCK_BYTES
        return found

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def journal(self) -> Path:
        return self.root / "journal"

    @property
    def live(self) -> Path:
        return self.root / "live.db"

    @property
    def committed(self) -> Path:
        return self.root / "committed.db"

    @property
    def blocks(self) -> Path:
        return self.root / "blocks"

    @property
    def outbox(self) -> Path:
        return self.root / "outbox"

    @property
    def base(self) -> Path:
        return self.root / "base.db"

    @property
    def base_packs(self) -> Path:
        return self.root / "base"

    @property
    def aside(self) -> Path:
        return self.root / "aside"

    @property
    def volume(self) -> Path:
        return self.root / "volume.json"

    @property
    def keyring(self) -> Path:
        return self.root / "keyring.json"

    def make(self) -> None:
        """Make the directories, mode 0700; raises `Refused` if they cannot be used."""
        with must_be_usable(self.root):
            for path in (self.root, self.outbox, self.aside):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def check_access(self) -> None:
        """Open what an earlier life left here as the mount will; blocks.

        Whoever may not is told so now: SQLite says no more than that it could not open a file.
        Raises `OSError` with the file's name.
        """
        for path in self._kept():
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))

    def _kept(self) -> Iterator[Path]:
        databases = (self.committed, self.base, self.live)
        names = [path.name + suffix for path in databases for suffix in ("", "-wal", "-shm")]
        for path in sorted(self.root.iterdir()):
            if path.name in names and path.is_file():
                yield path
        for directory in (self.journal, self.base_packs):
            if directory.exists():
                yield from (path for path in sorted(directory.iterdir()) if path.is_file())

    def sync_names(self, disk: Disk) -> None:
        """Make the names of these directories durable, however an earlier life ended; blocks.

        A power cut may take a directory whose name was never synced, with all that was synced in
        it. Raises `OSError`.
        """
        device = self.root.stat().st_dev
        for directory in (self.root, *self.root.parents):
            if directory.stat().st_dev != device:
                return
            try:
                disk.sync_directory(directory)
            except PermissionError:
                return  # whoever may not look into it has made nothing in it

    def tidy_outbox(self) -> None:
        """Keep the packs that an earlier life was about to send; the rest is made again."""
        Outbox(self.outbox).tidy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Whose local directory this is."""

    volume_id: str
    writer: str
    """32 hexadecimal digits, made when the directory was first used."""
    directory_ino: int


def load_identity(local: LocalDirectory) -> Identity | None:
    """Return the identity, None for a directory not used before; raises `Corrupt`."""
    path = local.root / _IDENTITY
    data = _read(path)
    if data is None:
        return None
    key = str(path)
    body = _parsed(data, path)
    if not isinstance(body, dict):
        raise Corrupt("file", key, "it is no identity")
    return Identity(
        volume_id=hex_of(body, "volume_id", VOLUME_ID_BYTES, "file", key),
        writer=hex_of(body, "writer", _WRITER_BYTES, "file", key),
        directory_ino=number_of(body, "directory_ino", "file", key),
    )


def store_identity(local: LocalDirectory, identity: Identity) -> None:
    """Write the identity, durable on return."""
    with must_be_usable(local.root):
        _write_synced(local.root / _IDENTITY, json.dumps(asdict(identity)).encode())


def check_identity(local: LocalDirectory, identity: Identity | None, volume_id: str) -> None:
    """Refuse a directory of another volume, and one that is a copy of another."""
    if identity is None:
        return
    if identity.volume_id != volume_id:
        raise Refused(
            f"{local.root} belongs to volume {identity.volume_id}, not to {volume_id}: "
            "give this mount a --cache-dir of its own",
            exit_code=ExitCode.LOCAL,
        )
    if identity.directory_ino != local.root.stat().st_ino:
        raise Refused(
            f"{local.root} is a copy of another mount's directory, and only one of the two may "
            "go on: use the original, or give an empty --cache-dir (the volume is in the store)",
            exit_code=ExitCode.LOCAL,
        )


def directory_ino(local: LocalDirectory) -> int:
    """Return the inode number that tells a directory from a copy of it."""
    return local.root.stat().st_ino


def load_local_volume(local: LocalDirectory) -> VolumeDescriptor | None:
    """Return the descriptor as last seen in the store, for a mount while the store is away."""
    data = _read(local.volume)
    return None if data is None else decode_volume(data, str(local.volume))


def store_local_volume(local: LocalDirectory, volume: VolumeDescriptor, url: str) -> None:
    """Keep the descriptor, and where the volume is, for a mount while the store is away."""
    with must_be_usable(local.root):
        _write_synced(local.volume, encode_volume(volume))
        _write_synced(local.root / _URL, url.encode())


def load_local_keyring(local: LocalDirectory) -> Keyring:
    """Return the keyring as last seen in the store; raises `Corrupt` if it is not there."""
    data = _read(local.keyring)
    if data is None:
        raise Corrupt("keyring", str(local.keyring), "it is missing")
    return decode_keyring(data, str(local.keyring))


def store_local_keyring(local: LocalDirectory, keyring: Keyring) -> None:
    """Keep the wrapped key of an encrypted volume, for a mount while the store is away."""
    with must_be_usable(local.root):
        _write_synced(local.keyring, encode_keyring(keyring))


def find_directory_of(common: Path, url: str) -> LocalDirectory | None:
    """Return the directory below the common one that served this store's volume, if one did."""
    found = (LocalDirectory(root=path.parent) for path in sorted(common.glob(f"*/{_URL}")))
    return next((local for local in found if has_served(local, url)), None)


def has_served(local: LocalDirectory, url: str) -> bool:
    """Tell whether the directory was last used with the volume at this address."""
    return _read(local.root / _URL) == url.encode()


def _read(path: Path) -> bytes | None:
    """Return a file of the local directory, None if there is none; raises `Refused`."""
    with must_be_usable(path.parent):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None


def _parsed(data: bytes, path: Path) -> object:
    try:
        return parse_json(data)
    except ValueError as error:
        raise Corrupt("file", str(path), f"no JSON: {error}") from error


def _write_synced(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


_EPOCHS_REMEMBERED = 64


def load_epochs(local: LocalDirectory) -> list[int]:
    """Return the journal checksums of the epochs that this directory began; raises `Corrupt`."""
    path = local.root / _EPOCHS
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    chains = _parsed(data, path)
    if not isinstance(chains, list) or not all(_is_decimal(chain) for chain in chains):
        raise Corrupt("file", str(path), "it is no list of epochs")
    return [int(chain) for chain in chains]


def _is_decimal(value: object) -> bool:
    return (
        isinstance(value, str)
        and len(value) <= _NUMBER_DIGITS_MAX
        and value.isascii()
        and value.isdecimal()
    )


def remember_epoch(local: LocalDirectory, chain: int, *, newest: int = 0) -> None:
    """Note that this directory began an epoch, before its fence is published; durable.

    `newest` is the volume's newest fence: if it is ours it is never forgotten, however often a
    store that only answers questions refuses the next one.
    """
    known = load_epochs(local)
    chains = [*known, chain][-_EPOCHS_REMEMBERED:]
    if newest in known and newest not in chains:
        chains[0] = newest
    text = json.dumps([str(value) for value in chains])
    _write_synced(local.root / _EPOCHS, text.encode())


def load_last_cut(local: LocalDirectory) -> int:
    """Return the operation number of the last cut of ours that is known to be published.

    0 if none is, or if the file does not say: then nothing is known to be published.
    """
    try:
        text = (local.root / _LAST_CUT).read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return 0
    return int(text) if _is_decimal(text) else 0


def remember_last_cut(local: LocalDirectory, op_seq: int) -> None:
    """Note a published cut, durable on return: it tells our own history from a clone's."""
    _write_synced(local.root / _LAST_CUT, str(op_seq).encode("ascii"))
