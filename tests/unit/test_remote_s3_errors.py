"""The table of S3's error codes, and the SDK's own list of what it may raise."""

from __future__ import annotations

import inspect

import boto3
import botocore.exceptions
import pytest
from botocore.parsers import ResponseParserError
from botocore.retries import standard
from urllib3.exceptions import HTTPError

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
from s3fs_banyan.remote.s3_client import from_sdk
from s3fs_banyan.remote.s3_errors import CODES, error_of

DOCUMENTED = {
    "AccessDenied": (403, Denied),
    "AuthorizationHeaderMalformed": (400, Misconfigured),
    "BadDigest": (400, TransferCorrupt),
    "ConditionalRequestConflict": (409, Unavailable),
    "EntityTooLarge": (400, Misconfigured),
    "ExpiredToken": (400, Denied),
    "IncompleteBody": (400, Unavailable),
    "InternalError": (500, Unavailable),
    "InvalidAccessKeyId": (403, Denied),
    "InvalidBucketName": (400, Misconfigured),
    "InvalidObjectState": (403, Misconfigured),
    "InvalidPart": (400, Misconfigured),
    "InvalidRequest": (400, Misconfigured),
    "InvalidStorageClass": (400, Misconfigured),
    "InvalidToken": (400, Denied),
    "MalformedXML": (400, TransferCorrupt),
    "MethodNotAllowed": (405, Misconfigured),
    "NoSuchBucket": (404, Misconfigured),
    "NoSuchKey": (404, ObjectMissing),
    "NoSuchUpload": (404, ObjectMissing),
    "NotImplemented": (501, Misconfigured),
    "OperationAborted": (409, Unavailable),
    "PermanentRedirect": (301, Misconfigured),
    "PreconditionFailed": (412, AlreadyExists),
    "RequestTimeTooSkewed": (403, Denied),
    "RequestTimeout": (400, Unavailable),
    "ServiceUnavailable": (503, Unavailable),
    "SignatureDoesNotMatch": (403, Denied),
    "SlowDown": (503, Throttled),
    "TemporaryRedirect": (307, Misconfigured),
    "TokenRefreshRequired": (400, Denied),
    "XAmzContentSHA256Mismatch": (400, TransferCorrupt),
}
"""Codes of Amazon's "Error responses" page with their status, and what we make of them."""


@pytest.mark.parametrize(("code", "expected"), DOCUMENTED.items(), ids=DOCUMENTED)
def test_documented_code(code: str, expected: tuple[int, type[StoreError]]) -> None:
    status, kind = expected
    error = error_of(code, status, "What happened.", {}, "read x")
    assert type(error) is kind
    assert "read x" in str(error)
    assert code in str(error)
    assert "What happened." in str(error)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (0, Unavailable),
        (301, Misconfigured),
        (400, Misconfigured),
        (401, Denied),
        (403, Denied),
        (404, Unavailable),  # a stranger's: S3 says what is missing
        (405, Misconfigured),
        (408, Unavailable),
        (409, Unavailable),
        (412, AlreadyExists),
        (418, Misconfigured),
        (429, Throttled),
        (500, Unavailable),
        (501, Misconfigured),
        (502, Unavailable),
        (503, Unavailable),
        (504, Unavailable),
        (507, Misconfigured),
        (599, Unavailable),
    ],
)
def test_unknown_code_is_judged_by_its_status(status: int, kind: type[StoreError]) -> None:
    assert type(error_of("NeverHeardOf", status, "", {}, "read x")) is kind
    assert type(error_of(str(status), status, "", {}, "read x")) is kind
    assert type(error_of("", status, "", {}, "read x")) is kind


def test_all_that_the_sdk_calls_throttling_or_transient_may_be_tried_again() -> None:
    """A new release of the SDK that learns a code must not find us ignorant of it."""
    throttling: list[str] = vars(standard.ThrottledRetryableChecker)["_THROTTLED_ERROR_CODES"]
    transient: list[str] = vars(standard.TransientRetryableChecker)["_TRANSIENT_ERROR_CODES"]
    for code in throttling:
        assert CODES[code][0] is Throttled, code
    for code in transient:
        assert CODES[code][0].retryable, code


def test_codes_of_the_sdk_s_model_are_judged_on_purpose() -> None:
    client = boto3.client("s3", region_name="us-east-1")
    modelled = {
        shape.name for shape in client.meta.service_model.error_shapes if shape.name in CODES
    }
    client.close()
    assert {"NoSuchKey", "NoSuchBucket", "NoSuchUpload", "InvalidObjectState"} <= modelled


def test_what_a_person_cannot_change_by_waiting_says_what_to_do() -> None:
    for code in (
        "NoSuchBucket",
        "PermanentRedirect",
        "AuthorizationHeaderMalformed",
        "AccessDenied",
    ):
        assert CODES[code][1], code


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": " 120 "}, 120),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "Tue, 24 Nov 2026 10:00:30 GMT"}, None),
        (
            {
                "retry-after": "Tue, 24 Nov 2026 10:00:30 GMT",
                "date": "Tue, 24 Nov 2026 10:00:00 GMT",
            },
            30,
        ),
        (
            {
                "retry-after": "Tue, 24 Nov 2026 10:00:00 GMT",
                "date": "Tue, 24 Nov 2026 10:00:30 GMT",
            },
            0,
        ),
        (
            {
                "retry-after": "Tue, 24 Nov 2026 10:00:30 GMT",
                "date": "Tue, 24 Nov 2026 10:00:00 -0000",
            },
            None,
        ),
    ],
)
def test_retry_after(headers: dict[str, str], expected: float | None) -> None:
    error = error_of("SlowDown", 503, "", headers, "read x")
    assert isinstance(error, Throttled)
    assert error.retry_after_s == expected


def test_long_message_of_the_store_is_cut() -> None:
    assert len(str(error_of("InternalError", 500, "x" * 100_000, {}, "read x"))) < 400


def _sdk_errors() -> list[type[Exception]]:
    found: list[type[Exception]] = [
        thing
        for thing in vars(botocore.exceptions).values()
        if inspect.isclass(thing)
        and issubclass(thing, botocore.exceptions.BotoCoreError)
        and thing.__module__ == "botocore.exceptions"
    ]
    assert len(found) > 80
    return found


class _Anything(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return f"<{key}>"


def _made(kind: type[Exception]) -> Exception:
    """Make one without knowing the fields of its message."""
    error = kind.__new__(kind)
    Exception.__init__(error, getattr(kind, "fmt", "").format_map(_Anything()))
    return error


TRANSPORT = {
    "CapacityNotAvailableError",
    "ConnectTimeoutError",
    "ConnectionClosedError",
    "ConnectionError",
    "CredentialRetrievalError",
    "EndpointConnectionError",
    "HTTPClientError",
    "IncompleteReadError",
    "MetadataRetrievalError",
    "ProxyConnectionError",
    "ReadTimeoutError",
    "ResponseStreamingError",
    "SSLError",
}
CREDENTIALS = {
    "LoginError",
    "LoginInsufficientPermissions",
    "LoginAuthorizationCodeError",
    "LoginRefreshRequired",
    "LoginTokenLoadError",
    "NoAuthTokenError",
    "NoCredentialsError",
    "PartialCredentialsError",
    "RefreshWithMFAUnsupportedError",
    "SSOError",
    "SSOTokenLoadError",
    "TokenRetrievalError",
    "UnauthorizedSSOTokenError",
}
CORRUPT = {"ChecksumError", "FlexibleChecksumError"}


@pytest.mark.parametrize("kind", _sdk_errors(), ids=lambda kind: kind.__name__)
def test_every_error_class_of_the_sdk(kind: type[Exception]) -> None:
    """Read from the SDK itself: an upgrade that brings a class shows here what it becomes."""
    error = from_sdk(_made(kind), "read x")
    name = kind.__name__
    if name in TRANSPORT:
        assert type(error) is Unavailable
    elif name in CREDENTIALS:
        assert type(error) is Denied
    elif name in CORRUPT:
        assert type(error) is TransferCorrupt
    else:
        assert type(error) is Misconfigured
    assert str(error).startswith("read x")


def test_lists_of_the_sdk_s_classes_name_none_that_is_gone() -> None:
    names = {kind.__name__ for kind in _sdk_errors()}
    assert names >= TRANSPORT | CREDENTIALS | CORRUPT


@pytest.mark.parametrize(
    "error",
    [ResponseParserError("x"), HTTPError("x"), ConnectionResetError("x"), TimeoutError("x")],
)
def test_errors_from_below_the_sdk_are_transport(error: Exception) -> None:
    assert type(from_sdk(error, "read x")) is Unavailable


def test_untrusted_certificate_is_no_transport_failure() -> None:
    cause = OSError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed")
    error = botocore.exceptions.SSLError(endpoint_url="https://store", error=cause)
    assert type(from_sdk(error, "read x")) is Misconfigured
    assert "ca_bundle" in str(from_sdk(error, "read x"))
