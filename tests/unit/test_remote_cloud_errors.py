"""The tables of Azure's and Google's errors, and what their SDKs say that they may raise."""

from __future__ import annotations

import inspect

import azure.core.exceptions
import google.auth.exceptions
import pytest
import requests
from azure.storage.blob import StorageErrorCode

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
from s3fs_banyan.remote import azure_errors, gcs, gcs_errors
from s3fs_banyan.remote.azure import from_sdk
from s3fs_banyan.remote.gcs import from_auth

STATUSES = {
    0: Unavailable,
    400: Misconfigured,
    401: Denied,
    403: Denied,
    404: Unavailable,  # a stranger's: the store says what is missing
    405: Misconfigured,
    408: Unavailable,
    409: Unavailable,
    412: AlreadyExists,
    418: Misconfigured,
    429: Throttled,
    500: Unavailable,
    501: Misconfigured,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
    599: Unavailable,
}
IN_AZURE = {
    ("AuthenticationFailed", 403): Denied,
    ("AuthorizationPermissionMismatch", 403): Denied,
    ("BlobAlreadyExists", 409): AlreadyExists,
    ("BlobArchived", 409): Misconfigured,
    ("BlobImmutableDueToPolicy", 409): Misconfigured,
    ("BlobNotFound", 404): ObjectMissing,
    ("ConditionNotMet", 412): AlreadyExists,
    ("ContainerBeingDeleted", 409): Misconfigured,
    ("ContainerNotFound", 404): Misconfigured,
    ("InternalError", 500): Unavailable,
    ("InvalidBlockList", 400): Misconfigured,
    ("LeaseIdMissing", 412): Misconfigured,
    ("Md5Mismatch", 400): TransferCorrupt,
    ("OperationTimedOut", 500): Unavailable,
    ("ServerBusy", 503): Throttled,
}
AT_GOOGLE = {
    ("authError", 401): Denied,
    ("backendError", 503): Unavailable,
    ("billingNotEnabled", 403): Misconfigured,
    ("conditionNotMet", 412): AlreadyExists,
    ("conflict", 409): Unavailable,
    ("forbidden", 403): Denied,
    ("rateLimitExceeded", 429): Throttled,
    ("retentionPolicyNotMet", 403): Misconfigured,
    ("userRateLimitExceeded", 403): Throttled,
}


@pytest.mark.parametrize("error_of", [azure_errors.error_of, gcs_errors.error_of])
@pytest.mark.parametrize(("status", "kind"), STATUSES.items())
def test_unknown_code_is_judged_by_its_status(
    error_of: object, status: int, kind: type[StoreError]
) -> None:
    assert callable(error_of)
    for code in ("", "NeverHeardOf"):
        assert type(error_of(code, status, "", {}, "read x")) is kind


@pytest.mark.parametrize(("code", "kind"), IN_AZURE.items())
def test_documented_code_of_azure(code: tuple[str, int], kind: type[StoreError]) -> None:
    error = azure_errors.error_of(*code, "What happened.\nRequestId:1", {}, "read x")
    assert type(error) is kind
    assert "What happened." in str(error)
    assert code[0] in str(error)
    assert "RequestId" not in str(error)


@pytest.mark.parametrize(("reason", "kind"), AT_GOOGLE.items())
def test_documented_reason_of_google(reason: tuple[str, int], kind: type[StoreError]) -> None:
    error = gcs_errors.error_of(*reason, "What happened.", {}, "read x")
    assert type(error) is kind
    assert "What happened." in str(error)


def test_bad_md5_at_google_is_corruption() -> None:
    message = 'Provided MD5 hash "x" doesn\'t match calculated MD5 hash "y".'
    assert type(gcs_errors.error_of("invalid", 400, message, {}, "write x")) is TransferCorrupt


@pytest.mark.parametrize("text", ["[" * 5000, "[]", "{}", "7", '{"error": []}', "No such thing"])
def test_answer_of_google_that_is_no_error_of_its_own_is_text(text: str) -> None:
    """A proxy answers, too: what it says is shown, and whether to try again goes by its status."""
    answer = requests.Response()
    answer._content = text.encode()
    assert gcs._reason_of(answer) == ("", text, False)


def test_missing_thing_at_google_is_the_object_unless_it_is_the_bucket() -> None:
    gone = gcs_errors.missing("No such object: my-bucket/x", "my-bucket", "read x")
    assert type(gone) is ObjectMissing
    gone = gcs_errors.missing("The specified bucket does not exist.", "my-bucket", "read x")
    assert type(gone) is Misconfigured


@pytest.mark.parametrize("error_of", [azure_errors.error_of, gcs_errors.error_of])
def test_throttling_tells_how_long(error_of: object) -> None:
    assert callable(error_of)
    error = error_of("", 429, "", {"retry-after": "7"}, "read x")
    assert isinstance(error, Throttled)
    assert error.retry_after_s == 7
    assert len(str(error_of("", 500, "x" * 100_000, {}, "read x"))) < 400


def test_codes_that_azure_s_sdk_lists_for_blobs_are_judged_on_purpose() -> None:
    """What is in the table and in no list of the SDK is a code misspelt, or newer than it."""
    listed = {code.value for code in StorageErrorCode}
    newer = {
        *("AuthorizationPermissionMismatch", "AuthorizationProtocolMismatch"),
        *("AuthorizationResourceTypeMismatch", "AuthorizationServiceMismatch"),
        *("AuthorizationSourceIPMismatch", "BlobImmutableDueToPolicy", "Crc64Mismatch"),
        "KeyBasedAuthenticationNotPermitted",
    }
    assert azure_errors.CODES.keys() - listed == newer


def _errors_of(module: object, base: type[Exception]) -> list[type[Exception]]:
    return [
        thing
        for thing in vars(module).values()
        if inspect.isclass(thing) and issubclass(thing, base)
    ]


AZURE_TRANSPORT = (
    azure.core.exceptions.ServiceRequestError,
    azure.core.exceptions.ServiceResponseError,
    azure.core.exceptions.HttpResponseError,
)


@pytest.mark.parametrize(
    "kind",
    _errors_of(azure.core.exceptions, azure.core.exceptions.AzureError),
    ids=lambda kind: kind.__name__,
)
def test_every_error_class_of_azure_s_sdk(kind: type[Exception]) -> None:
    """Read from the SDK itself: an upgrade that brings a class shows here what it becomes."""
    error = kind.__new__(kind)
    Exception.__init__(error, "very-secret")
    found = from_sdk(error, "read x")
    if issubclass(kind, azure.core.exceptions.ClientAuthenticationError):
        assert type(found) is Denied
    elif issubclass(kind, AZURE_TRANSPORT):
        assert type(found) is Unavailable
    else:
        assert type(found) is Misconfigured
    assert str(found).startswith("read x")
    assert "very-secret" not in str(found)


@pytest.mark.parametrize(
    "kind",
    _errors_of(google.auth.exceptions, google.auth.exceptions.GoogleAuthError),
    ids=lambda kind: kind.__name__,
)
def test_every_error_class_of_google_s_credentials(
    kind: type[google.auth.exceptions.GoogleAuthError],
) -> None:
    lasting = from_auth(kind("very-secret"), "read x")
    passes = kind("very-secret", retryable=True)
    passing = from_auth(passes, "read x")
    is_transport = issubclass(kind, google.auth.exceptions.TransportError)
    assert type(lasting) is (Unavailable if is_transport else Denied)
    # One class says of itself that it never passes.
    assert type(passing) is (Unavailable if is_transport or passes.retryable else Denied)
    assert "very-secret" not in str(lasting) + str(passing)
