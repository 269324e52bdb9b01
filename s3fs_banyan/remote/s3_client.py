"""The one S3 client of the SDK: how it is set up, and what its own errors mean."""

from __future__ import annotations

import base64
import hashlib
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Final, Literal

import boto3
from botocore import exceptions as sdk
from botocore.auth import AUTH_TYPE_MAPS, S3SigV4Auth
from botocore.awsrequest import AWSPreparedRequest, AWSRequest
from botocore.config import Config
from botocore.parsers import ResponseParserError
from botocore.response import StreamingBody
from botocore.utils import determine_content_length
from urllib3.exceptions import HTTPError

from s3fs_banyan.errors import Denied, Misconfigured, StoreError, TransferCorrupt, Unavailable
from s3fs_banyan.remote.base import Summed
from s3fs_banyan.remote.http_body import in_pieces
from s3fs_banyan.remote.large_body import BodyKind
from s3fs_banyan.remote.options import StoreOptions
from s3fs_banyan.runtime import monotonic_s

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_EXPECT_ABOVE_BYTES: Final = 64 * 1024
_ERRORS_FROM: Final = 300
_ANSWER_PIECE_BYTES: Final = 64 * 1024
_ANSWER_BYTES_MAX: Final = 16 << 20
_ANSWER_RATE_MIN: Final = 16 * 1024
"""Bytes a second."""

BODY_KIND: Final = BodyKind(StreamingBody, (sdk.BotoCoreError, HTTPError, OSError))


def quotes(error: Exception) -> bool:
    """Tell whether the SDK quotes a header that it could not send, which may be a secret."""
    cause = getattr(error, "kwargs", {}).get("error")
    return isinstance(error, sdk.HTTPClientError) and isinstance(cause, ValueError)


def from_sdk(error: Exception, what: str) -> StoreError:
    """Return our error for one that the SDK raised without an answer of the store."""
    if isinstance(error, sdk.NoCredentialsError | sdk.PartialCredentialsError):
        return Denied(
            f"{what}: no credentials found: set access_key and secret_key in the configuration, "
            "or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or an instance role"
        )
    if isinstance(error, _DENIED):
        return Denied(f"{what}: no usable credentials: {error}")
    if isinstance(error, _CORRUPT):
        return TransferCorrupt(f"{what}: {error}")
    if isinstance(error, sdk.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return Misconfigured(
            f"{what}: the server's certificate is not trusted ({error}): set ca_bundle to the "
            "certificate of its authority"
        )
    if quotes(error):
        return Misconfigured(
            f"{what}: a header cannot be sent: look for line ends in the keys and the token"
        )
    if isinstance(error, _TRANSPORT):
        return Unavailable(f"{what}: {error}")
    return Misconfigured(f"{what}: {error}")


_DENIED: Final = (
    sdk.NoAuthTokenError,
    sdk.TokenRetrievalError,
    sdk.SSOError,
    sdk.LoginError,
    sdk.UnauthorizedSSOTokenError,
    sdk.RefreshWithMFAUnsupportedError,
)
_CORRUPT: Final = (sdk.ChecksumError, sdk.FlexibleChecksumError)
_TRANSPORT: Final = (
    sdk.HTTPClientError,
    sdk.ConnectionError,
    sdk.IncompleteReadError,
    # Keys from an instance role or an identity service: the service did not answer in time.
    sdk.CredentialRetrievalError,
    sdk.MetadataRetrievalError,
    sdk.CapacityNotAvailableError,
    ResponseParserError,
    HTTPError,
    OSError,
)


class _KnownSums(S3SigV4Auth):
    """The signature of S3 with the check sum that a body brings along, instead of another look."""

    def payload(self, request: AWSRequest) -> str:
        """Return what stands for the body in the signature."""
        body: object = request.data
        # Within TLS the SDK leaves a body that has a Content-MD5 out of the signature.
        sha256 = body.sha256 if isinstance(body, Summed) else b""
        if sha256 and str(request.url).startswith("http:"):
            return sha256.hex()
        return str(super().payload(request))


AUTH_TYPE_MAPS["s3v4"] = _KnownSums


class _BoundedAnswers:
    """The SDK's sending of requests, with a bound on answers that it reads to their end.

    Lists and errors are read into memory whatever their size, for as long as a byte comes within
    each time-out. A page of a list has 1,000 keys of 1,024 bytes at most. Bodies of objects are
    read in `s3_answers.py`, which has a deadline of its own.
    """

    def __init__(self, session: Any, timeout_s: float) -> None:  # noqa: ANN401  # the SDK's
        self._session = session
        self._timeout_s = timeout_s

    def send(self, request: AWSPreparedRequest) -> Any:  # noqa: ANN401  # the SDK's answer
        """Send, and read the answer unless its caller does; raises the SDK's errors."""
        streams = request.stream_output
        request.stream_output = True
        answer = self._session.send(request)
        if not streams or answer.status_code >= _ERRORS_FROM:
            answer._content = self._read(answer, request)  # noqa: SLF001
        return answer

    def _read(self, answer: Any, request: AWSPreparedRequest) -> bytes:  # noqa: ANN401
        pieces: list[bytes] = []
        count = 0
        end_s = monotonic_s() + self._timeout_s
        try:
            while piece := answer.raw.read1(_ANSWER_PIECE_BYTES):
                pieces.append(piece)
                count += len(piece)
                if count > _ANSWER_BYTES_MAX:
                    raise _unreadable(answer, f"it is longer than {_ANSWER_BYTES_MAX >> 20} MiB")
                if monotonic_s() > end_s + count / _ANSWER_RATE_MIN:
                    raise _unreadable(answer, "it came too slowly")
        except (HTTPError, HTTPException, OSError) as error:
            raise _unreadable(answer, str(error)) from error
        length = answer.headers.get("content-length", "")
        if length.isdecimal() and int(length) != count and request.method != "HEAD":
            raise _unreadable(answer, f"{count} bytes came of {length}")
        return b"".join(pieces)

    def close(self) -> None:
        """Close all connections."""
        self._session.close()


def _unreadable(answer: Any, why: str) -> sdk.ResponseStreamingError:  # noqa: ANN401
    answer.raw.close()
    return sdk.ResponseStreamingError(error=why)


def make_client(options: StoreOptions) -> S3Client:
    """Return the client of a store; raises `ValueError` for an end point that is no URL."""
    session = boto3.session.Session(
        aws_access_key_id=options.access_key or None,
        aws_secret_access_key=options.secret_key or None,
        aws_session_token=options.session_token or None,
        region_name=options.region or None,
    )
    style: Literal["path", "virtual", "auto"] = "path" if options.uses_path_style else "auto"
    if options.path_style is False:
        style = "virtual"
    region = options.region or session.region_name
    if not region and options.endpoint_url:
        region = "us-east-1"  # other services take it as "wherever you are"
    client: S3Client = session.client(
        "s3",
        region_name=region,
        endpoint_url=options.endpoint_url or None,
        verify=(options.ca_bundle or None) if options.verify_tls else False,
        config=Config(
            signature_version="s3v4",
            retries={"mode": "standard", "total_max_attempts": 1},
            max_pool_connections=options.pool_connections,
            connect_timeout=options.connect_timeout_s,
            read_timeout=options.read_timeout_s,
            tcp_keepalive=True,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": style},
        ),
    )
    endpoint = client._endpoint  # type: ignore[attr-defined]  # noqa: SLF001
    endpoint.http_session = _BoundedAnswers(endpoint.http_session, options.read_timeout_s)
    client.meta.events.register("before-call.s3.DeleteObjects", _add_content_md5)
    client.meta.events.register("before-sign.s3", _send_small_body_at_once)
    client.meta.events.register("before-send.s3", _send_large_body_in_pieces)
    return client


def _add_content_md5(params: dict[str, Any], **_: object) -> None:
    """Add the Content-MD5 that older services demand of a batch delete, and newer ones check."""
    digest = hashlib.md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(digest).decode("ascii")


def _send_small_body_at_once(request: AWSRequest, **_: object) -> None:
    """Drop "Expect: 100-continue" from small uploads: the answer to it costs a round trip.

    Large ones keep it. A store that refuses them hangs up, and without it the refusal (a
    `Throttled` that may be repeated) would be lost in a broken pipe.
    """
    size = determine_content_length(request.data)
    if size is not None and size <= _EXPECT_ABOVE_BYTES:
        del request.headers["Expect"]


def _send_large_body_in_pieces(request: AWSPreparedRequest, **_: object) -> None:
    """Let the time-out be for a piece of the body: it is signed and measured by now."""
    request.body = in_pieces(request.body)
