"""What the error codes of Azure Blob Storage mean to us: the one table, and what reads it.

It knows nothing of the SDK. A code that is not listed is judged by its HTTP status, as
`s3_errors` does. `ServerBusy` is how Azure throttles; it is said before any effect, and should
a create have taken place all the same, the second attempt finds the object and its caller looks.
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

_KEY = "check the account's key, the SAS token or the role of this identity"
_RIGHTS = "check that the SAS token or the role allows the call"
_PARTS = "the blocks of the upload are not what was sent"
_POLICY = "a policy or a lease on the container or the object forbids the change"

CODES: Final[Mapping[str, tuple[type[StoreError], str]]] = {
    # Who we are and what we may do.
    "AccountIsDisabled": (Denied, "ask the operator of the store about the account"),
    "AuthenticationFailed": (Denied, _KEY),
    "AuthorizationFailure": (Denied, _RIGHTS),
    "AuthorizationPermissionMismatch": (Denied, _RIGHTS),
    "AuthorizationProtocolMismatch": (Denied, "the SAS token is for https only"),
    "AuthorizationResourceTypeMismatch": (Denied, _RIGHTS),
    "AuthorizationServiceMismatch": (Denied, "the SAS token is for another service"),
    "AuthorizationSourceIPMismatch": (Denied, "the SAS token is for another address"),
    "InsufficientAccountPermissions": (Denied, _RIGHTS),
    "InvalidAuthenticationInfo": (Denied, _KEY),
    "KeyBasedAuthenticationNotPermitted": (Denied, "the account takes no keys: use an identity"),
    "NoAuthenticationInformation": (Denied, _KEY),
    "UnauthorizedBlobOverwrite": (Denied, _RIGHTS),
    # What is not there, and what is.
    "BlobNotFound": (ObjectMissing, ""),
    "BlobAlreadyExists": (AlreadyExists, ""),
    "ConditionNotMet": (AlreadyExists, ""),
    "ResourceAlreadyExists": (AlreadyExists, ""),
    "TargetConditionNotMet": (AlreadyExists, ""),
    # Fewer requests, please.
    "ServerBusy": (Throttled, ""),
    "SnapshotOperationRateExceeded": (Throttled, ""),
    # The effect is not known, or another attempt may well succeed.
    "AccountBeingCreated": (Unavailable, "the account is just being made"),
    "InternalError": (Unavailable, ""),
    "OperationTimedOut": (Unavailable, ""),
    # Bytes that changed on the way.
    "Md5Mismatch": (TransferCorrupt, ""),
    "Crc64Mismatch": (TransferCorrupt, ""),
    # What no retry will cure.
    "BlobAccessTierNotSupportedForAccountType": (Misconfigured, "this account has no such tier"),
    "BlobArchived": (Misconfigured, "the object is in the archive tier: restore it first"),
    "BlobBeingRehydrated": (Misconfigured, "the object is being restored: wait until it is"),
    "BlobImmutableDueToPolicy": (Misconfigured, _POLICY),
    "BlockCountExceedsLimit": (Misconfigured, "use larger parts"),
    "BlockListTooLong": (Misconfigured, "use larger parts"),
    "ConditionHeadersNotSupported": (Misconfigured, "this store does not have the ability"),
    "ContainerBeingDeleted": (Misconfigured, "the container is being deleted"),
    "ContainerDisabled": (Misconfigured, "ask the operator of the store about the container"),
    "ContainerNotFound": (Misconfigured, "create the container or check its name"),
    "FeatureVersionMismatch": (Misconfigured, "this store does not have the ability"),
    "InvalidBlobOrBlock": (Misconfigured, _PARTS),
    "InvalidBlobTier": (Misconfigured, "choose a tier that this store knows"),
    "InvalidBlobType": (Misconfigured, "the object was made by another tool, as no block blob"),
    "InvalidBlockId": (Misconfigured, _PARTS),
    "InvalidBlockList": (Misconfigured, _PARTS),
    "InvalidHeaderValue": (Misconfigured, ""),
    "InvalidInput": (Misconfigured, ""),
    "InvalidMd5": (Misconfigured, ""),
    "InvalidQueryParameterValue": (Misconfigured, ""),
    "InvalidResourceName": (Misconfigured, "check the names of account, container and prefix"),
    "InvalidUri": (Misconfigured, "check the store URL and endpoint_url"),
    "LeaseIdMissing": (Misconfigured, _POLICY),
    "MissingContentLengthHeader": (Misconfigured, "a proxy before the store drops Content-Length"),
    "OutOfRangeInput": (Misconfigured, "check the names of account, container and prefix"),
    "RequestBodyTooLarge": (Misconfigured, "the object is larger than the store allows"),
    "ResourceNotFound": (Misconfigured, "check the names of account and container"),
    "ResourceTypeMismatch": (Misconfigured, "something else is in the way"),
    "UnsupportedHeader": (Misconfigured, "this store does not have the ability"),
    "UnsupportedHttpVerb": (Misconfigured, "is the end point one of Azure Blob Storage?"),
}
"""Error code (the header x-ms-error-code) -> what it means, and what a person can do about it."""

_STATUSES: Final[Mapping[int, tuple[type[StoreError], str]]] = {
    # Without a code of Azure's: a proxy's, which proves nothing about an object.
    401: (Denied, _KEY),
    403: (Denied, _RIGHTS),
    404: (Unavailable, "is the end point one of Azure Blob Storage?"),
    408: (Unavailable, ""),
    409: (Unavailable, "another change of the same thing is going on"),
    412: (AlreadyExists, ""),
    429: (Throttled, ""),
    501: (Misconfigured, "this store does not have the ability"),
    507: (Misconfigured, "the store is full: make room in it"),
}


def error_of(
    code: str, status: int, message: str, headers: Mapping[str, str], what: str
) -> StoreError:
    """Return the error for an answer of the store; `what` names the call and its object."""
    kind, advice = CODES.get(code) or _STATUSES.get(status) or (kind_of_status(status), "")
    if status == 400 and "contentMD5" in message:  # how azurite says Md5Mismatch
        kind, advice = TransferCorrupt, ""
    # Azure's messages go on with request id and time, and for a bad signature with what was signed.
    first = message.partition("\n")[0].strip()
    return error_from(kind, f"{what}: {code or f'status {status}'}", first, advice, headers)
