"""The descriptor `volume.json` and the heartbeat `writer`. Table: `docs/format/volume.md`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final

from s3fs_banyan.errors import Corrupt, UnsupportedVersion
from s3fs_banyan.format.checksum import Bytes
from s3fs_banyan.format.sealed_json import hex_of, number_of, open_json, seal_json
from s3fs_banyan.model import TIME_NS_MAX

VOLUME_VERSION: Final = 1
WRITER_VERSION: Final = 1
FEATURE_ENCRYPTION: Final = "client-encryption"
"""In `features_refuse`: chunks, blobs and footers are sealed, the keyring has the data key."""
_FEATURES_KNOWN: Final = frozenset({FEATURE_ENCRYPTION})
PACK_BYTES_MIN: Final = 1 << 20
PACK_BYTES_MAX: Final = 1 << 30
VOLUME_ID_BYTES: Final = 16
_ID_MAX: Final = (1 << 32) - 1
_MODE_MAX: Final = 0o7777


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeDescriptor:
    """Parameters of a volume, fixed when it is made."""

    volume_id: str
    """32 hexadecimal digits: it is the name of a local directory, too."""
    created_ns: int
    pack_bytes: int
    root_uid: int = 0
    root_gid: int = 0
    root_mode: int = 0o755
    features_compatible: tuple[str, ...] = ()
    """Unknown ones are harmless."""
    features_read_only: tuple[str, ...] = ()
    """An unknown one allows reading only."""
    features_refuse: tuple[str, ...] = ()
    """An unknown one forbids any use."""

    @property
    def is_encrypted(self) -> bool:
        """Tell whether its content is encrypted on the client's side."""
        return FEATURE_ENCRYPTION in self.features_refuse


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """Who writes at present: a hint for people and for `mount`, fencing does not rest on it."""

    host: str
    pid: int
    epoch: int
    writer: str
    time_ns: int


def encode_volume(volume: VolumeDescriptor) -> bytes:
    """Return the descriptor as checksummed JSON."""
    body: dict[str, object] = {"kind": "volume", "version": VOLUME_VERSION, **asdict(volume)}
    return seal_json({name: list(v) if isinstance(v, tuple) else v for name, v in body.items()})


def decode_volume(stored: Bytes, key: str) -> VolumeDescriptor:
    """Return the verified descriptor.

    Raises `Corrupt`, or `UnsupportedVersion` for a volume of a newer release or one that needs
    a feature unknown here.
    """
    body = open_json(stored, "volume", VOLUME_VERSION, key)
    volume = VolumeDescriptor(
        volume_id=hex_of(body, "volume_id", VOLUME_ID_BYTES, "volume", key),
        created_ns=number_of(body, "created_ns", "volume", key, most=TIME_NS_MAX),
        pack_bytes=number_of(body, "pack_bytes", "volume", key, most=PACK_BYTES_MAX),
        root_uid=number_of(body, "root_uid", "volume", key, most=_ID_MAX),
        root_gid=number_of(body, "root_gid", "volume", key, most=_ID_MAX),
        root_mode=number_of(body, "root_mode", "volume", key, most=_MODE_MAX),
        features_compatible=_names_of(body, "features_compatible", key),
        features_read_only=_names_of(body, "features_read_only", key),
        features_refuse=_names_of(body, "features_refuse", key),
    )
    if volume.pack_bytes < PACK_BYTES_MIN:
        raise Corrupt("volume", key, "pack_bytes is out of range")
    unknown = [name for name in volume.features_refuse if name not in _FEATURES_KNOWN]
    if unknown:
        raise UnsupportedVersion(
            f"volume (feature {', '.join(unknown)})", VOLUME_VERSION, VOLUME_VERSION
        )
    return volume


def _names_of(body: dict[str, object], name: str, key: str) -> tuple[str, ...]:
    values = body.get(name)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise Corrupt("volume", key, f"{name} is no list of names")
    return tuple(values)


def encode_heartbeat(heartbeat: Heartbeat) -> bytes:
    """Return the heartbeat as checksummed JSON."""
    return seal_json({"kind": "writer", "version": WRITER_VERSION, **asdict(heartbeat)})


def decode_heartbeat(stored: Bytes, key: str) -> Heartbeat:
    """Return the verified heartbeat; raises `Corrupt` or `UnsupportedVersion`."""
    body = open_json(stored, "writer", WRITER_VERSION, key)
    host, writer = body.get("host"), body.get("writer")
    if not isinstance(host, str) or not isinstance(writer, str):
        raise Corrupt("writer", key, "host or writer is no text")
    return Heartbeat(
        host=host,
        pid=number_of(body, "pid", "writer", key),
        epoch=number_of(body, "epoch", "writer", key),
        writer=writer,
        time_ns=number_of(body, "time_ns", "writer", key),
    )
