"""What the error codes of S3 mean to us: the one table, and the one function that reads it.

It knows nothing of the SDK. A code that is not listed is judged by its HTTP status: 5xx and a
missing status are `Unavailable` (the effect is not known), everything else is `Misconfigured`
(no retry will cure it). A code is `Throttled` only if the store says it before any effect,
because a conditional write is tried again after that and after nothing else.
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

_KEYS = "check the access key and the secret key"
_POLICY = "check that the policy of these credentials allows the call"
_FRESH = "get fresh credentials"
_BUCKET = "create it or check the name"
_REGION = "set the region that the bucket is in"
_CLASS = "the object is in an archive class: restore it first"
_ABILITY = "this store does not have the ability"

CODES: Final[Mapping[str, tuple[type[StoreError], str]]] = {
    # Who we are and what we may do.
    "AccessDenied": (Denied, _POLICY),
    "AccountProblem": (Denied, "ask the operator of the store about the account"),
    "AllAccessDisabled": (Denied, "ask the operator of the store about the bucket"),
    "AuthFailure": (Denied, _KEYS),
    "ExpiredToken": (Denied, _FRESH),
    "ExpiredTokenException": (Denied, _FRESH),
    "Forbidden": (Denied, _POLICY),
    "InvalidAccessKeyId": (Denied, _KEYS),
    "InvalidClientTokenId": (Denied, _KEYS),
    "InvalidSecurity": (Denied, _KEYS),
    "InvalidToken": (Denied, _FRESH),
    "NotSignedUp": (Denied, "ask the operator of the store about the account"),
    "RequestExpired": (Denied, "check the clock of this machine"),
    "RequestTimeTooSkewed": (Denied, "check the clock of this machine"),
    "SignatureDoesNotMatch": (Denied, _KEYS),
    "TokenRefreshRequired": (Denied, _FRESH),
    "Unauthorized": (Denied, _KEYS),
    "UnauthorizedAccess": (Denied, _POLICY),
    "UnrecognizedClientException": (Denied, _KEYS),
    "401": (Denied, _KEYS),
    "403": (Denied, _POLICY),
    # What is not there, and what is.
    "NoSuchKey": (ObjectMissing, ""),
    "NoSuchUpload": (ObjectMissing, ""),
    "NoSuchVersion": (ObjectMissing, ""),
    "NotFound": (ObjectMissing, ""),
    "PreconditionFailed": (AlreadyExists, ""),
    "412": (AlreadyExists, ""),
    # Fewer requests, please: said before any effect.
    "BandwidthLimitExceeded": (Throttled, ""),
    "ConcurrentTransferLimitExceeded": (Throttled, ""),
    "EC2ThrottledException": (Throttled, ""),
    "LimitExceededException": (Throttled, ""),
    "PriorRequestNotComplete": (Throttled, ""),
    "ProvisionedThroughputExceededException": (Throttled, ""),
    "RequestLimitExceeded": (Throttled, ""),
    "RequestThrottled": (Throttled, ""),
    "RequestThrottledException": (Throttled, ""),
    "SlowDown": (Throttled, ""),
    "SlowDownRead": (Throttled, ""),
    "SlowDownWrite": (Throttled, ""),
    "ThrottledException": (Throttled, ""),
    "Throttling": (Throttled, ""),
    "ThrottlingException": (Throttled, ""),
    "TooManyRequests": (Throttled, ""),
    "TooManyRequestsException": (Throttled, ""),
    "TransactionInProgressException": (Throttled, ""),
    "429": (Throttled, ""),
    # The effect is not known, or another attempt may well succeed.
    "ConditionalRequestConflict": (Unavailable, "another writer was at the same key"),
    "OperationAborted": (Unavailable, "another change of the same thing is going on"),
    "409": (Unavailable, "another change of the same thing is going on"),
    "InternalError": (Unavailable, ""),
    "InternalFailure": (Unavailable, ""),
    "ServerBusy": (Unavailable, ""),
    "Busy": (Unavailable, ""),
    "ServiceUnavailable": (Unavailable, ""),
    "ServiceFailure": (Unavailable, ""),
    "RequestTimeout": (Unavailable, ""),
    "RequestTimeoutException": (Unavailable, ""),
    "404": (Unavailable, "is the end point one of an S3 service?"),
    "ClientDisconnected": (Unavailable, ""),
    "IncompleteBody": (Unavailable, ""),
    "408": (Unavailable, ""),
    # Bytes that changed on the way.
    "BadDigest": (TransferCorrupt, ""),
    "BadRequestChecksum": (TransferCorrupt, ""),
    "InvalidChecksum": (TransferCorrupt, ""),
    "MalformedXML": (TransferCorrupt, ""),  # well-formed when the SDK sent it
    "XAmzContentChecksumMismatch": (TransferCorrupt, ""),
    "XAmzContentSHA256Mismatch": (TransferCorrupt, ""),
    # What no retry will cure.
    "AuthorizationHeaderMalformed": (Misconfigured, _REGION),
    "AuthorizationQueryParametersError": (Misconfigured, _REGION),
    "IllegalLocationConstraintException": (Misconfigured, _REGION),
    "PermanentRedirect": (Misconfigured, _REGION),
    "Redirect": (Misconfigured, _REGION),
    "TemporaryRedirect": (Misconfigured, _REGION),
    "301": (Misconfigured, _REGION),
    "307": (Misconfigured, _REGION),
    "InvalidBucketName": (Misconfigured, "check the bucket's name in the store URL"),
    "NoSuchBucket": (Misconfigured, _BUCKET),
    "InvalidObjectState": (Misconfigured, _CLASS),
    "InvalidStorageClass": (Misconfigured, "choose a storage class that this store knows"),
    "NotImplemented": (Misconfigured, _ABILITY),
    "501": (Misconfigured, _ABILITY),
    "MethodNotAllowed": (Misconfigured, "is the end point one of an S3 service?"),
    "ObjectLockConfigurationNotFoundError": (Misconfigured, "the bucket has no object lock"),
    "QuotaExceeded": (Misconfigured, "raise the quota of the bucket or make room in it"),
    "XMinioStorageFull": (Misconfigured, "the store is full: make room in it"),
    "InsufficientStorage": (Misconfigured, "the store is full: make room in it"),
    "507": (Misconfigured, "the store is full: make room in it"),
    "EntityTooLarge": (Misconfigured, "the object is larger than the store allows"),
    "EntityTooSmall": (Misconfigured, "a part is smaller than the store allows"),
    "InvalidPart": (Misconfigured, "the parts of the upload are not what was sent"),
    "InvalidPartOrder": (Misconfigured, "the parts of the upload are not what was sent"),
    "InvalidArgument": (Misconfigured, ""),
    "InvalidDigest": (Misconfigured, ""),
    "InvalidRequest": (Misconfigured, ""),
    "InvalidTag": (Misconfigured, ""),
    "KeyTooLongError": (Misconfigured, "use a shorter prefix in the store URL"),
    "MissingContentLength": (Misconfigured, "a proxy before the store drops Content-Length"),
    "400": (Misconfigured, ""),
}
"""Error code -> what it means to a caller, and what a person can do about it.

Answers without a body of S3's, such as those of proxies, have the HTTP status as their code. A
404 of that kind does not prove that an object is missing.
"""


def error_of(
    code: str, status: int, message: str, headers: Mapping[str, str], what: str
) -> StoreError:
    """Return the error for an answer of the store; `what` names the call and its object."""
    kind, advice = CODES.get(code) or CODES.get(str(status)) or (kind_of_status(status), "")
    return error_from(kind, f"{what}: {code or 'no code'}", message, advice, headers)
