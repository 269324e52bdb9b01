"""By what an upload to S3 is believed: the ETag, a checksum of the store, or reading it back.

`Content-MD5` goes up with every body, always; a store that checks it refuses altered bytes. But
some do not check, so the answer has to prove what was stored, in the way that `verify` says:

    auto        the ETag where it is an MD5; else the store's checksum; else the object is read
    etag        the ETag; a store whose ETags are no MD5 is refused
    checksum    the checksum; a store that answers with none is refused
    read-back   the object is read after every upload
    none        Content-MD5 alone

An ETag is no MD5 under SSE-KMS and SSE-C. Both are known from our own configuration or, where
the bucket has a default, from the answer. From then on SHA-256 is sent with each body: the
store checks it and answers with it.

It makes no calls; `S3Store` acts on the verdict.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from s3fs_banyan.errors import Misconfigured
from s3fs_banyan.remote.base import Summed
from s3fs_banyan.remote.verification import How

VERIFY_MODES: Final = ("auto", "etag", "checksum", "read-back", "none")

_MD5_ETAG: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """The check sums of one body."""

    md5: bytes
    sha256: bytes | None
    size: int

    def parameters(self) -> dict[str, str]:
        """Return what goes up with the body."""
        found = {"ContentMD5": base64.b64encode(self.md5).decode("ascii")}
        if self.sha256 is not None:
            found["ChecksumSHA256"] = base64.b64encode(self.sha256).decode("ascii")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What an answer proves: `good` is None if only reading the object can tell."""

    how: How
    good: bool | None
    why: str = ""


@dataclass(slots=True)
class Upload:
    """What is known of a multipart upload."""

    checksums: bool
    """Whether its parts have SHA-256: all or none, S3 says."""
    unproven: bool = False
    """Whether a part may have been sent whose answer proved nothing."""
    guessed: bool = False
    """Whether `checksums` is only what it should be by the configuration."""
    sha256: dict[int, str] = field(default_factory=dict)
    """The check sums of parts, as S3 wants them again at the end."""


class Integrity:
    """Judges answers, and learns from them whether ETags are MD5s. Safe in several threads."""

    def __init__(self, verify: str, *, etag_is_md5: bool) -> None:
        """`etag_is_md5` is what the configuration lets expect."""
        self._verify = verify
        self._etag_is_md5 = etag_is_md5

    @property
    def etag_is_md5(self) -> bool:
        """Whether an ETag that looks like an MD5 is compared as one."""
        return self._etag_is_md5 and self._verify in {"auto", "etag"}

    @property
    def asks_checksum(self) -> bool:
        """Whether SHA-256 goes up with a body."""
        return self._verify == "checksum" or (self._verify == "auto" and not self._etag_is_md5)

    def is_proven(self, upload: Upload) -> bool:
        """Tell whether a completed multipart upload is believed without reading the object.

        Where ETags are MD5s that is for the caller to find out, who has the MD5s of the parts.
        """
        if self._verify == "auto":
            return self.etag_is_md5 or not upload.unproven
        return self._verify != "read-back"

    def sums(self, data: bytes | bytearray, *, with_sha256: bool | None = None) -> Sums:
        """Return the sums of a body; `with_sha256` None: if it is asked for just now."""
        wanted = self.asks_checksum if with_sha256 is None else with_sha256
        if isinstance(data, Summed):
            sha256 = (data.sha256 or hashlib.sha256(data).digest()) if wanted else None
            return Sums(md5=data.md5, sha256=sha256, size=len(data))
        return Sums(
            md5=hashlib.md5(data, usedforsecurity=False).digest(),
            sha256=hashlib.sha256(data).digest() if wanted else None,
            size=len(data),
        )

    def is_md5(self, answer: Mapping[str, Any], etag: str) -> bool:
        """Tell whether the ETag of an answer is to be taken for an MD5."""
        return (
            self.etag_is_md5
            and not _is_encrypted_with_a_key(answer)
            and _MD5_ETAG.fullmatch(etag) is not None
        )

    def judge(
        self, answer: Mapping[str, Any], etag: str, data: bytes | bytearray, sums: Sums, what: str
    ) -> Verdict:
        """Return what the answer to an upload of `data` proves.

        Raises `Misconfigured` if the one way that `verify` allows does not work on this store.
        """
        if _is_encrypted_with_a_key(answer):
            self._etag_is_md5 = False
        is_md5 = self.is_md5(answer, etag)
        if self._verify == "none":
            return Verdict(how="content_md5", good=True)
        if self._verify == "read-back":
            return Verdict(how="read_back", good=None)
        if is_md5:
            md5 = sums.md5.hex()
            why = (
                f"MD5 {md5} here, {etag} in the store (if the ETags of this store are no MD5, set "
                "storage.remote.verify to checksum or read-back)"
            )
            return Verdict(how="etag", good=etag == md5, why=why)
        if self._verify == "etag":
            raise Misconfigured(
                f"{what}: the ETag is no MD5 and proves nothing: set storage.remote.verify to auto"
            )
        for name, kind, sum_of in _CHECKSUMS:
            answered = answer.get(name)
            if answered:
                here = sums.sha256 if kind == "SHA-256" and sums.sha256 else sum_of(data)
                expected = base64.b64encode(here).decode("ascii")
                why = f"{kind} {expected} here, {answered} in the store"
                return Verdict(how="checksum", good=answered == expected, why=why)
        if self._verify == "checksum":
            raise Misconfigured(
                f"{what}: the store answers with no checksum that is known here: set "
                "storage.remote.verify to auto"
            )
        return Verdict(how="read_back", good=None)


def _is_encrypted_with_a_key(answer: Mapping[str, Any]) -> bool:
    kms = str(answer.get("ServerSideEncryption") or "").startswith("aws:kms")
    return kms or bool(answer.get("SSECustomerAlgorithm"))


def _sha256(data: bytes | bytearray) -> bytes:
    return hashlib.sha256(data).digest()


def _sha1(data: bytes | bytearray) -> bytes:
    return hashlib.sha1(data, usedforsecurity=False).digest()


def _crc32(data: bytes | bytearray) -> bytes:
    return zlib.crc32(data).to_bytes(4, "big")


_CHECKSUMS: Final[tuple[tuple[str, str, Callable[[bytes | bytearray], bytes]], ...]] = (
    ("ChecksumSHA256", "SHA-256", _sha256),
    ("ChecksumSHA1", "SHA-1", _sha1),
    ("ChecksumCRC32", "CRC-32", _crc32),
)
"""What is compared, best first. CRC-32C and CRC-64/NVME would have to be computed in Python."""
