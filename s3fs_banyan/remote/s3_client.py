"""The one S3 client of the SDK: how it is set up, and what its own errors mean."""

from __future__ import annotations

import base64
import hashlib
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

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_EXPECT_ABOVE_BYTES: Final = 64 * 1024

BODY_KIND: Final = BodyKind(StreamingBody, (sdk.BotoCoreError, HTTPError, OSError))


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
