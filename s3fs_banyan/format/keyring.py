"""The keyring `key/<generation>`: a volume's data key, wrapped. Table: `docs/format/keyring.md`.

The data key is made with the volume and never changes; a slot holds it wrapped by a key that is
made from a passphrase (scrypt) or from the bytes of a key file (HKDF). To change a passphrase is
to write the next generation: no data is encrypted anew. Each slot is bound to the volume, to its
kind and to its numbers, so nobody can move one or weaken its derivation unnoticed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Final, Literal

from s3fs_banyan.errors import Corrupt
from s3fs_banyan.format.checksum import Bytes
from s3fs_banyan.format.encryption import (
    DOMAIN_BYTES,
    KEY_BYTES,
    NONCE_BYTES,
    SALT_BYTES,
    TAG_BYTES,
    Cipher,
    derive_key,
    stretch_passphrase,
    unwrap_key,
    wrap_key,
)
from s3fs_banyan.format.sealed_json import hex_of, number_of, open_json, seal_json

KEYRING_VERSION: Final = 1
SLOTS_MAX: Final = 8
KEY_FILE_BYTES_MIN: Final = 32
KEY_FILE_BYTES_MAX: Final = 64 << 10
SCRYPT_N: Final = 1 << 17
SCRYPT_R: Final = 8
SCRYPT_P: Final = 1
"""128 MiB and about a third of a second for each guess."""
_SCRYPT_BYTES_MAX: Final = 1 << 30
_SCRYPT_P_MAX: Final = 16
_KEY_FILE_PURPOSE: Final = "key file"

SlotKind = Literal["passphrase", "key-file"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """What a person has: a passphrase, or the bytes of a key file. Shows neither."""

    passphrase: str = field(default="", repr=False)
    key_file: bytes = field(default=b"", repr=False)

    @property
    def kind(self) -> SlotKind:
        """The kind of slot that it opens."""
        return "passphrase" if self.passphrase else "key-file"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySlot:
    """The data key, wrapped once. Bytes are lower-case hexadecimal digits."""

    kind: SlotKind
    salt: str
    nonce: str
    wrapped: str
    scrypt_n: int = 0
    """0 in a slot of a key file, as the two others."""
    scrypt_r: int = 0
    scrypt_p: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyring:
    """All slots of a volume; the highest generation counts."""

    volume_id: str
    domain: str
    """Id of the volume for which the data key was made: part of every key derivation."""
    generation: int
    created_ns: int
    slots: tuple[KeySlot, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataKey:
    """A data key in clear, with its domain. Shows nothing of it."""

    key: bytes = field(repr=False)
    domain: bytes

    def cipher(self) -> Cipher:
        """Return the key, ready for use."""
        return Cipher(self.key, self.domain)


def wrap(
    data_key: DataKey,
    secret: Secret,
    random_bytes: Callable[[int], bytes],
    *,
    scrypt_n: int = SCRYPT_N,
) -> KeySlot:
    """Return a new slot that `secret` opens."""
    is_passphrase = secret.kind == "passphrase"
    slot = KeySlot(
        kind=secret.kind,
        salt=random_bytes(SALT_BYTES).hex(),
        nonce=random_bytes(NONCE_BYTES).hex(),
        wrapped="",
        scrypt_n=scrypt_n if is_passphrase else 0,
        scrypt_r=SCRYPT_R if is_passphrase else 0,
        scrypt_p=SCRYPT_P if is_passphrase else 0,
    )
    wrapped = wrap_key(
        _wrapping_key(slot, secret),
        bytes.fromhex(slot.nonce),
        data_key.key,
        _associated(slot, data_key.domain.hex()),
    )
    return KeySlot(**(asdict(slot) | {"wrapped": wrapped.hex()}))


def unwrap(keyring: Keyring, secrets: Sequence[Secret]) -> DataKey | None:
    """Return the data key if one of the secrets opens one of the slots, else None."""
    for secret in secrets:
        for slot in keyring.slots:
            if slot.kind != secret.kind:
                continue
            found = unwrap_key(
                _wrapping_key(slot, secret),
                bytes.fromhex(slot.nonce),
                bytes.fromhex(slot.wrapped),
                _associated(slot, keyring.domain),
            )
            if found is not None:
                return DataKey(key=found, domain=bytes.fromhex(keyring.domain))
    return None


def _wrapping_key(slot: KeySlot, secret: Secret) -> bytes:
    salt = bytes.fromhex(slot.salt)
    if slot.kind == "passphrase":
        return stretch_passphrase(
            secret.passphrase, salt, n=slot.scrypt_n, r=slot.scrypt_r, p=slot.scrypt_p
        )
    return derive_key(secret.key_file, salt, _KEY_FILE_PURPOSE)


def _associated(slot: KeySlot, domain: str) -> bytes:
    """Return everything that the slot says besides the wrapped key, and the domain."""
    body = asdict(slot) | {"domain": domain}
    del body["wrapped"]
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode("ascii")


def encode_keyring(keyring: Keyring) -> bytes:
    """Return the keyring as checksummed JSON."""
    body = {"kind": "keyring", "version": KEYRING_VERSION, **asdict(keyring)}
    return seal_json(body | {"slots": [asdict(slot) for slot in keyring.slots]})


def decode_keyring(stored: Bytes, key: str) -> Keyring:
    """Return the verified keyring; raises `Corrupt` or `UnsupportedVersion`.

    Numbers are bounded here: a slot must not make this machine work or swap for hours.
    """
    body = open_json(stored, "keyring", KEYRING_VERSION, key)
    slots = body.get("slots")
    if not isinstance(slots, list) or not 0 < len(slots) <= SLOTS_MAX:
        raise Corrupt("keyring", key, "its slots are malformed")
    return Keyring(
        volume_id=hex_of(body, "volume_id", 16, "keyring", key),
        domain=hex_of(body, "domain", DOMAIN_BYTES, "keyring", key),
        generation=number_of(body, "generation", "keyring", key),
        created_ns=number_of(body, "created_ns", "keyring", key),
        slots=tuple(_slot(slot, key) for slot in slots),
    )


def _slot(values: object, key: str) -> KeySlot:
    if not isinstance(values, dict) or set(values) != {f.name for f in fields(KeySlot)}:
        raise Corrupt("keyring", key, "a slot lacks a field, or has an unknown one")
    numbers = ("scrypt_n", "scrypt_r", "scrypt_p")
    n, r, p = (number_of(values, name, "keyring", key) for name in numbers)
    kind = values["kind"]
    if kind == "passphrase":
        if not _is_scrypt(n, r, p):
            raise Corrupt("keyring", key, "the numbers of scrypt are out of range")
    elif kind != "key-file":
        raise Corrupt("keyring", key, "a slot is of an unknown kind")
    return KeySlot(
        kind=kind,
        salt=hex_of(values, "salt", SALT_BYTES, "keyring", key),
        nonce=hex_of(values, "nonce", NONCE_BYTES, "keyring", key),
        wrapped=hex_of(values, "wrapped", KEY_BYTES + TAG_BYTES, "keyring", key),
        scrypt_n=n,
        scrypt_r=r,
        scrypt_p=p,
    )


def _is_scrypt(n: int, r: int, p: int) -> bool:
    """Tell whether these are numbers of scrypt (RFC 7914, section 6) that this machine can bear."""
    if r < 1 or not 1 <= p <= _SCRYPT_P_MAX:
        return False
    is_power = n > 1 and not n & (n - 1) and n.bit_length() <= 16 * r
    return is_power and 128 * r * max(n, p) <= _SCRYPT_BYTES_MAX
