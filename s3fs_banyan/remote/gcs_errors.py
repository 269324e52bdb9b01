"""What the errors of Google Cloud Storage mean to us: the one table, and what reads it.

It knows nothing of the SDK. Google's JSON interface gives an HTTP status and a reason; the reason
decides where it is listed, else the status does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from s3fs_banyan.errors import (
    AlreadyExists,
    Denied,
    Misconfigured,
    ObjectMissing,
    StoreError,
    Throttled,
    TransferCorrupt,
    Unavailable,
)
from s3fs_banyan.remote.answers import error_from, kind_of_status

_RIGHTS = "check that the role of these credentials allows the call"
_KEYS = "check the credentials"
_BILLING = "ask who pays for the project"

REASONS: Final[Mapping[str, tuple[type[StoreError], str]]] = {
    # Who we are and what we may do.
    "accountDisabled": (Denied, _BILLING),
    "authError": (Denied, _KEYS),
    "expired": (Denied, "get fresh credentials"),
    "forbidden": (Denied, _RIGHTS),
    "insufficientPermissions": (Denied, _RIGHTS),
    "keyDisabled": (Denied, _KEYS),
    "required": (Denied, _KEYS),
    "userProjectInconsistent": (Denied, _BILLING),
    "userProjectMissing": (Denied, _BILLING),
    # Fewer requests, please: refused before any effect.
    "rateLimitExceeded": (Throttled, ""),
    "userRateLimitExceeded": (Throttled, ""),
    "usageLimits": (Throttled, ""),
    # The effect is not known, or another attempt may well succeed.
    "backendError": (Unavailable, ""),
    "internalError": (Unavailable, ""),
    "conflict": (Unavailable, "another change of the same thing is going on"),
    # What is not there, and what is.
    "conditionNotMet": (AlreadyExists, ""),
    # What no retry will cure.
    "accessNotConfigured": (Misconfigured, "enable Cloud Storage in the project"),
    "accountingNotEnabled": (Misconfigured, _BILLING),
    "billingNotEnabled": (Misconfigured, _BILLING),
    "invalidParameter": (Misconfigured, ""),
    "objectUnderActiveHold": (Misconfigured, "a hold on the object forbids the change"),
    "orgPolicyViolation": (Misconfigured, "a policy of the organisation forbids the call"),
    "retentionPolicyNotMet": (Misconfigured, "a retention policy forbids the change"),
    "uploadTooLarge": (Misconfigured, "the object is larger than the store allows"),
}
"""Reason of an error -> what it means to a caller, and what a person can do about it."""

_STATUSES: Final[Mapping[int, tuple[type[StoreError], str]]] = {
    301: (Misconfigured, "check endpoint_url"),
    307: (Misconfigured, "check endpoint_url"),
    401: (Denied, _KEYS),
    403: (Denied, _RIGHTS),
    404: (Unavailable, "is the end point one of Google Cloud Storage?"),
    408: (Unavailable, ""),
    409: (Unavailable, "another change of the same thing is going on"),
    412: (AlreadyExists, ""),
    429: (Throttled, ""),
    501: (Misconfigured, "this store does not have the ability"),
}

_CORRUPT: Final = ("MD5 hash", "md5Hash", "CRC32C", "crc32c")
"""What the message of a 400 is about when the bytes are not those of the checksum."""


def error_of(
    reason: str, status: int, message: str, headers: Mapping[str, str], what: str
) -> StoreError:
    """Return the error for an answer of the store; `what` names the call and its object."""
    kind, advice = REASONS.get(reason) or _STATUSES.get(status) or (kind_of_status(status), "")
    if status == 400 and any(word in message for word in _CORRUPT):
        kind, advice = TransferCorrupt, ""
    first = message.partition("\n")[0].strip()
    return error_from(kind, f"{what}: {reason or f'status {status}'}", first, advice, headers)


def missing(message: str, bucket: str, what: str) -> StoreError:
    """Return the error for a 404 of Google's own: the object, unless it speaks of the bucket."""
    if "bucket" in message.lower() and "No such object" not in message:
        return Misconfigured(f"bucket {bucket} does not exist: create it or check the name")
    return ObjectMissing(f"{what}: no such object")
