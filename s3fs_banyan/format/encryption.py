"""Client-side encryption: from one data key to sealed frames, blobs and footers.

Byte tables: `docs/format/encryption.md`; the reasons: decision 13. The primitives are those of
`cryptography` (AES-256-GCM, HKDF, scrypt) and the HMAC of the standard library.

    sub-key      HKDF-SHA256(data key, salt = domain, info = purpose)
    salt         first 16 bytes of HMAC-SHA256(salt key, length of place || place || plain text)
    message key  HKDF-Expand(message root, info = salt): encrypts this one message
    sealed       salt || AES-256-GCM(message key, nonce 0, plain text, associated data = place)

The salt is a function of key, place and plain text and of nothing else, so no identifier that
rewinds after a power cut, no cloned disk and no weak generator of random numbers can bring about
the same key and nonce for two different messages. What is sealed again is the same bytes again.
`place` says what the bytes are and where they belong: they decrypt nowhere else.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Mapping
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from s3fs_banyan.errors import Corrupt
from s3fs_banyan.format.checksum import Bytes

KEY_BYTES: Final = 32
DOMAIN_BYTES: Final = 16
NONCE_BYTES: Final = 12
SALT_BYTES: Final = 16
TAG_BYTES: Final = 16
SEALED_EXTRA_BYTES: Final = SALT_BYTES + TAG_BYTES
"""A sealed message is so much longer than its plain text."""
MAC_BYTES: Final = 32

CIPHER_NONE: Final = 0
CIPHER_AES256GCM: Final = 1
"""Ids of ciphers in frame tables and blobs."""

_NONCE: Final = bytes(NONCE_BYTES)
_PLACE_LENGTH = struct.Struct("<Q")


class Box:
    """Seals the messages of one purpose, each under a key of its own."""

    def __init__(self, salt_key: bytes, message_root: bytes) -> None:
        self._salt_key = salt_key
        self._message_root = message_root

    def seal(self, place: bytes, plain: bytes) -> bytes:
        """Return the sealed message, `SEALED_EXTRA_BYTES` longer than the plain text."""
        mac = hmac.new(self._salt_key, _PLACE_LENGTH.pack(len(place)), "sha256")
        mac.update(place)
        mac.update(plain)
        salt = mac.digest()[:SALT_BYTES]
        return salt + AESGCM(self._message_key(salt)).encrypt(_NONCE, plain, place)

    def open(self, place: bytes, sealed: Bytes, kind: str, key: str) -> bytes:
        """Return the plain text of what was sealed at this very place; else raise `Corrupt`.

        `kind` and `key` name the thing and its object for the error.
        """
        if len(sealed) < SEALED_EXTRA_BYTES:
            raise Corrupt(kind, key, f"{len(sealed)} bytes are too few for a sealed message")
        view = memoryview(sealed)
        message_key = self._message_key(bytes(view[:SALT_BYTES]))
        try:
            return AESGCM(message_key).decrypt(_NONCE, view[SALT_BYTES:], place)
        except InvalidTag:
            raise Corrupt(
                kind, key, "it does not decrypt: it was changed, or belongs elsewhere"
            ) from None

    def _message_key(self, salt: bytes) -> bytes:
        """Return HKDF-Expand(message root, salt, 32 bytes), which is one HMAC."""
        return hmac.digest(self._message_root, salt + b"\x01", "sha256")


class Cipher:
    """A volume's data key, ready for use. Its text form shows nothing of it."""

    def __init__(self, data_key: bytes, domain: bytes) -> None:
        """`domain` is the id of the volume that the data key was made for, 16 bytes."""
        if len(data_key) != KEY_BYTES or len(domain) != DOMAIN_BYTES:
            raise ValueError("data key of 32 bytes and domain of 16 bytes expected")

        def sub_key(purpose: str) -> bytes:
            return derive_key(data_key, domain, purpose)

        self._data_key = data_key
        self._domain = domain
        self.frames: Final = Box(sub_key("frame salt"), sub_key("frame key"))
        self.blobs: Final = Box(sub_key("blob salt"), sub_key("blob key"))
        self._footer_mac_key = sub_key("footer mac")
        self._footer_pad_key = sub_key("footer pad")
        self._hash_key = sub_key("content hash")

    def plain_values(self) -> dict[str, str]:
        """Return what `from_plain_values` needs, for the worker process and nobody else."""
        return {"key": self._data_key.hex(), "domain": self._domain.hex()}

    @classmethod
    def from_plain_values(cls, values: Mapping[str, str]) -> Self:
        """Make the cipher of another process again."""
        return cls(bytes.fromhex(values["key"]), bytes.fromhex(values["domain"]))

    def footer_mac(self, body: bytes) -> bytes:
        """Return the 32 bytes that prove who wrote a commit's footer."""
        return hmac.digest(self._footer_mac_key, body, "sha256")

    def footer_pad(self, mac: bytes) -> int:
        """Return the 64 bits that hide the journal's checksum in the footer with this MAC."""
        return int.from_bytes(hmac.digest(self._footer_pad_key, mac, "sha256")[:8], "little")

    def hash_hex(self, digest_hex: str) -> str:
        """Return a keyed hash in place of a SHA-256 of plain text, in hex as that is.

        A bare one would let whoever reads the store test what a file may hold.
        """
        return hmac.digest(self._hash_key, bytes.fromhex(digest_hex), "sha256").hex()


def derive_key(key: bytes, salt: bytes, purpose: str) -> bytes:
    """Return the 32 bytes of HKDF-SHA256 for one purpose; `key` must be hard to guess."""
    info = f"s3fs-banyan 1 {purpose}".encode("ascii")
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(key)


def stretch_passphrase(passphrase: str, salt: bytes, *, n: int, r: int, p: int) -> bytes:
    """Return the 32 bytes of scrypt (RFC 7914). Takes 128 * n * r bytes of memory."""
    kdf = Scrypt(salt=salt, length=KEY_BYTES, n=n, r=r, p=p)
    return kdf.derive(passphrase.encode("utf-8", "surrogateescape"))


def wrap_key(wrapping_key: bytes, nonce: bytes, data_key: bytes, associated: bytes) -> bytes:
    """Return the data key under AES-256-GCM; a wrapping key wraps once, its nonce is random."""
    return AESGCM(wrapping_key).encrypt(nonce, data_key, associated)


def unwrap_key(
    wrapping_key: bytes, nonce: bytes, wrapped: bytes, associated: bytes
) -> bytes | None:
    """Return the data key, None if this is not the wrapping key, or anything was changed."""
    try:
        return AESGCM(wrapping_key).decrypt(nonce, wrapped, associated)
    except InvalidTag:
        return None
