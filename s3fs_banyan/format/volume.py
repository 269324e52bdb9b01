"""The descriptor `volume.json` and the heartbeat `writer`. Table: `docs/format/volume.md`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Final

from s3fs_banyan.errors import Corrupt, UnsupportedVersion
from s3fs_banyan.format.checkpoint import open_json, seal_json
from s3fs_banyan.format.checksum import Bytes

VOLUME_VERSION: Final = 1
WRITER_VERSION: Final = 1
FEATURE_ENCRYPTION: Final = "client-encryption"
"""In `features_refuse`: chunks, blobs and footers are sealed, the keyring has the data key."""
_FEATURES_KNOWN: Final = frozenset({FEATURE_ENCRYPTION})
PACK_BYTES_MIN: Final = 1 << 20
PACK_BYTES_MAX: Final = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeDescriptor:
    """Parameters of a volume, fixed when it is made."""

    volume_id: str
    """32 hexadecimal digits."""
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
    values: dict[str, object] = {}
    for field in fields(VolumeDescriptor):
        value = body.get(field.name)
        wanted = {"str": str, "int": int}.get(str(field.type), list)
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise Corrupt("volume", key, f"{field.name} is missing or malformed")
        if isinstance(value, list) and not all(isinstance(name, str) for name in value):
            raise Corrupt("volume", key, f"{field.name} is malformed")
        values[field.name] = tuple(value) if isinstance(value, list) else value
    volume = VolumeDescriptor(**values)  # type: ignore[arg-type]  # checked field by field above
    if len(volume.volume_id) != 32 or not PACK_BYTES_MIN <= volume.pack_bytes <= PACK_BYTES_MAX:
        raise Corrupt("volume", key, "volume_id or pack_bytes is out of range")
    unknown = [name for name in volume.features_refuse if name not in _FEATURES_KNOWN]
    if unknown:
        raise UnsupportedVersion(
            f"volume (feature {', '.join(unknown)})", VOLUME_VERSION, VOLUME_VERSION
        )
    return volume


def encode_heartbeat(heartbeat: Heartbeat) -> bytes:
    """Return the heartbeat as checksummed JSON."""
    return seal_json({"kind": "writer", "version": WRITER_VERSION, **asdict(heartbeat)})


def decode_heartbeat(stored: Bytes, key: str) -> Heartbeat:
    """Return the verified heartbeat; raises `Corrupt` or `UnsupportedVersion`."""
    body = open_json(stored, "writer", WRITER_VERSION, key)
    try:
        return Heartbeat(**{field.name: body[field.name] for field in fields(Heartbeat)})  # type: ignore[arg-type]
    except KeyError as error:
        raise Corrupt("writer", key, f"{error} is missing") from error
