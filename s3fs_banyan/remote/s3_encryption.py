"""Server-side encryption of S3: what it adds to each request, and what its answers must say.

    sse-s3    the store's own keys; asked for when an object or an upload is begun
    sse-kms   a key of a key service, by its id; optionally with a bucket key and a context
    sse-c     our own 256-bit key, which the store is given with *every* request for the bytes
              and forgets afterwards

A store that takes such a request and says nothing of encryption in its answer has stored the
bytes in clear: `check_answer` refuses to call that a success. It knows nothing of the SDK but
the names of request parameters, and nothing of configuration files.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from s3fs_banyan.errors import ConfigError, Denied, Misconfigured, StoreError

SSE_S3: Final = "sse-s3"
SSE_KMS: Final = "sse-kms"
SSE_C: Final = "sse-c"
KINDS: Final = (SSE_S3, SSE_KMS, SSE_C)

KEY_BYTES: Final = 32
_KEY_FILE_BYTES_MAX: Final = 1024
_CUSTOMER_ALGORITHM: Final = "AES256"
_READING: Final = frozenset({"GetObject", "HeadObject"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerEncryption:
    """How the store is asked to encrypt; the default asks for nothing. The key is in no repr."""

    kind: str = ""
    key_id: str = ""
    """SSE-KMS: id, ARN or alias of the key."""
    bucket_key: bool | None = None
    """SSE-KMS: a key per bucket saves calls to the key service; None: as the bucket says."""
    context: Mapping[str, str] = field(default_factory=dict)
    """SSE-KMS: bound to the object's key, shown in the key service's audit log."""
    key: str = field(default="", repr=False)
    """SSE-C: the key, base64."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` for values that do not go together; never with a value in it."""
        if self.kind not in {"", *KINDS}:
            raise ConfigError(f"store: encryption: expected one of {', '.join(KINDS)}")
        if self.kind == SSE_KMS and not self.key_id:
            raise ConfigError("store: encryption: sse-kms needs the key_id of a key")
        if self.kind != SSE_KMS and (self.key_id or self.bucket_key is not None or self.context):
            raise ConfigError(
                "store: encryption: key_id, bucket_key and context are for sse-kms only"
            )
        if self.kind == SSE_C and not self.key:
            raise ConfigError("store: encryption: sse-c needs a key")
        if self.kind != SSE_C and self.key:
            raise ConfigError("store: encryption: a key is for sse-c only")
        if self.key:
            customer_key(self.key)

    @property
    def etag_is_md5(self) -> bool:
        """Whether ETags of objects encrypted so are MD5s of their bytes."""
        return self.kind not in {SSE_KMS, SSE_C}

    def for_new(self) -> dict[str, Any]:
        """Return the parameters of PutObject and CreateMultipartUpload."""
        if self.kind == SSE_S3:
            return {"ServerSideEncryption": "AES256"}
        if self.kind == SSE_KMS:
            asked: dict[str, Any] = {
                "ServerSideEncryption": "aws:kms",
                "SSEKMSKeyId": self.key_id,
            }
            if self.bucket_key is not None:
                asked["BucketKeyEnabled"] = self.bucket_key
            if self.context:
                text = json.dumps(dict(self.context), separators=(",", ":"), sort_keys=True)
                asked["SSEKMSEncryptionContext"] = base64.b64encode(text.encode()).decode("ascii")
            return asked
        return self.for_bytes()

    def for_bytes(self) -> dict[str, Any]:
        """Return the parameters of every other call that touches the bytes of an object.

        These are GetObject, HeadObject, UploadPart, ListParts and CompleteMultipartUpload; only
        SSE-C adds something to them.
        """
        if self.kind != SSE_C:
            return {}
        digest = hashlib.md5(customer_key(self.key), usedforsecurity=False).digest()
        return {
            "SSECustomerAlgorithm": _CUSTOMER_ALGORITHM,
            "SSECustomerKey": self.key,
            "SSECustomerKeyMD5": base64.b64encode(digest).decode("ascii"),
        }

    def check_answer(self, answer: Mapping[str, Any], what: str) -> None:
        """Raise `Misconfigured` if the answer does not say that the object is encrypted so."""
        found = str(answer.get("ServerSideEncryption") or "")
        if self.kind == SSE_C:
            done = bool(answer.get("SSECustomerAlgorithm"))
        elif self.kind == SSE_KMS:
            done = found.startswith("aws:kms")
        else:
            done = self.kind != SSE_S3 or found == "AES256"
        if not done:
            raise Misconfigured(
                f"{what}: {self.kind} was asked for, and the store's answer says nothing of it: "
                "this store does not encrypt so"
            )

    def refusal(self, operation: str, status: int, message: str, what: str) -> StoreError | None:
        """Return the error for an answer whose reason may be the key, else None.

        A store tells a wrong key from a missing permission by nothing but its words, and an
        answer to HEAD has none: so the message names both.
        """
        if operation not in _READING or status not in {400, 403}:
            return None
        if self.kind == SSE_C:
            said = f" ({message[:120]})" if message else ""
            return Denied(
                f"{what}: refused{said}: check that storage.remote.encryption has the key that "
                "the volume was written with, and that the policy of these credentials allows "
                "the call"
            )
        if "encrypt" in message.lower():
            return Denied(
                f"{what}: refused ({message[:120]}): the object is encrypted with a key of its "
                "owner: set storage.remote.encryption to sse-c and that key"
            )
        return None


def customer_key(text: str) -> bytes:
    """Return the 32 bytes of a base64 key; raise `ConfigError` without the text."""
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError("store: encryption: the key is not base64") from None
    if len(key) != KEY_BYTES:
        raise ConfigError(
            f"store: encryption: the key has {len(key)} bytes, it must have {KEY_BYTES}"
        )
    return key


def load_customer_key(path: Path) -> str:
    """Return the key in a file, as base64: 32 raw bytes, or a line of base64.

    Raises `ConfigError` if the file cannot be read or holds something else.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_KEY_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"key file {path}: {error.strerror or 'cannot be read'}") from None
    if len(content) == KEY_BYTES:
        return base64.b64encode(content).decode("ascii")
    try:
        text = content.decode("ascii").strip()
        customer_key(text)
    except (UnicodeDecodeError, ConfigError):
        raise ConfigError(
            f"key file {path}: expected {KEY_BYTES} bytes, or one line with them in base64"
        ) from None
    return text
