"""A store in an S3 bucket: the only module that knows boto3.

One client is built at the start and shared by all threads. The SDK's own retries are off, its
request checksums are sent only where S3 demands them, its time-outs and its pool are ours. The
end-to-end check is MD5: Content-MD5 on every upload, and the answer's ETag compared where it
is an MD5 (not for multipart objects, nor under SSE-KMS or SSE-C).

Every error of the SDK becomes one of ours in `_translated`, by the table in `s3_errors`. A body
is read, and its length checked, inside the call: nobody outside holds a connection.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, Literal

import boto3
from botocore import exceptions as sdk
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.parsers import ResponseParserError
from botocore.utils import determine_content_length
from urllib3.exceptions import HTTPError

from s3fs_banyan.errors import (
    AlreadyExists,
    BrokenBody,
    Denied,
    Misconfigured,
    StoreError,
    TransferCorrupt,
    Unavailable,
)
from s3fs_banyan.remote.base import Capabilities, FileMeta, check_path, check_range
from s3fs_banyan.remote.options import StoreOptions
from s3fs_banyan.remote.s3_errors import error_of
from s3fs_banyan.runtime import monotonic_s

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PART_SIZE_MIN: Final = 5 << 20
_DELETE_BATCH_MAX: Final = 1000
_EXPECT_ABOVE_BYTES: Final = 64 * 1024
_READ_PIECE_BYTES: Final = 1 << 20
_READ_RATE_MIN: Final = 16 * 1024
"""Bytes a second: a body that comes slower is given up, or a trickle would never end."""

_MD5_ETAG: Final = re.compile(r"[0-9a-f]{32}")
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class S3Store:
    """Objects of one bucket, under one prefix. Building it makes no call."""

    def __init__(self, bucket: str, prefix: str, options: StoreOptions) -> None:
        """Raise `Misconfigured` if the SDK refuses the options; `prefix` may be empty."""
        self._bucket = bucket
        self._key_prefix = f"{check_path(prefix)}/" if prefix else ""
        self._options = options
        self._endpoint = options.endpoint_url or "Amazon S3"
        with self._translated("connect"):
            try:
                self._client = _client(options)
            except ValueError as error:  # the SDK's word for an end point that is no URL
                raise Misconfigured(f"{self.url}: {error}") from error

    @property
    def url(self) -> str:
        return f"s3://{self._bucket}/{self._key_prefix}".rstrip("/")

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            create_if_absent=True,
            multipart=True,
            etag_is_md5=self._options.etag_is_md5,
            part_size_min=PART_SIZE_MIN,
        )

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[FileMeta]:
        asked: dict[str, Any] = {"Bucket": self._bucket, "Prefix": self._key_prefix + prefix}
        if start_after:
            asked["StartAfter"] = self._key_prefix + start_after
        last = start_after
        while True:
            with self._translated(f"list {prefix}*"):
                page = self._client.list_objects_v2(**asked)
            _field(page, "Name", f"{self.url}: list {prefix}*")
            for found in page.get("Contents", []):
                path = found["Key"].removeprefix(self._key_prefix)
                if not _is_path(path):
                    continue  # not ours: a directory marker of another tool
                if path <= last:
                    raise Misconfigured(
                        f"{self.url}: the store lists {path} after {last}, which is not byte order"
                    )
                last = path
                yield FileMeta(
                    path=path,
                    size=found["Size"],
                    etag=found["ETag"].strip('"'),
                    modified_ns=_unix_ns(found["LastModified"]),
                    storage_class=found.get("StorageClass") or "STANDARD",
                )
            token = page.get("NextContinuationToken") if page.get("IsTruncated") else None
            if token is None:
                return
            if token == asked.get("ContinuationToken"):
                raise Unavailable(f"{self.url}: list {prefix}*: the same page came again")
            asked["ContinuationToken"] = token

    def read(self, path: str, *, offset: int = 0, length: int | None = None) -> bytes:
        check_range(offset, length)
        if length == 0:
            self.stat(path)
            return b""
        return self._read_from(path, offset, length, b"", "")

    def read_rest(self, broken: BrokenBody) -> bytes:
        try:
            return self._read_from(
                broken.path, broken.offset, broken.length, broken.received, broken.etag
            )
        except (AlreadyExists, _RangeBeyondEnd):  # 412: it is another object by now
            return self.read(broken.path, offset=broken.offset, length=broken.length)

    def _read_from(
        self, path: str, offset: int, length: int | None, received: bytes, etag: str
    ) -> bytes:
        """Read a range of which `received` is known, from the object with that ETag."""
        begin = offset + len(received)
        asked: dict[str, Any] = {"Bucket": self._bucket, "Key": self._key(path)}
        if begin or length is not None:
            end = "" if length is None else offset + length - 1
            asked["Range"] = f"bytes={begin}-{end}"
        if etag:
            asked["IfMatch"] = f'"{etag}"'
        try:
            with self._translated(f"read {path}"):
                answer = self._client.get_object(**asked)
                found = _etag_of(answer, f"{self.url}: read {path}")
                if etag and found != etag:
                    answer["Body"].close()
                    raise AlreadyExists(f"{self.url}: read {path}: it was written anew")
                body = self._body(answer, path, _Torn(path, offset, length, received, found))
        except _RangeBeyondEnd:
            if received:
                raise
            return b""
        rest = None if length is None else length - len(received)
        data = received + _cut(answer, body, begin, rest, path)
        if not offset and length is None and _MD5_ETAG.fullmatch(found):
            md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
            self._checked_etag(answer, md5, f"read {path}")
        return data

    def write(
        self,
        path: str,
        data: bytes | bytearray | memoryview,
        *,
        if_absent: bool = False,
        storage_class: str = "",
    ) -> FileMeta:
        sent = data if isinstance(data, bytes | bytearray) else bytes(data)
        digest = hashlib.md5(sent, usedforsecurity=False)
        asked: dict[str, Any] = {
            "Bucket": self._bucket,
            "Key": self._key(path),
            "Body": sent,
            "ContentMD5": base64.b64encode(digest.digest()).decode("ascii"),
        }
        if if_absent:
            asked["IfNoneMatch"] = "*"
        if storage_class:
            asked["StorageClass"] = storage_class
        with self._translated(f"write {path}"):
            answer = self._client.put_object(**asked)
        etag = self._checked_etag(answer, digest.hexdigest(), f"write {path}")
        modified_ns = _answered_ns(answer)
        if modified_ns is None:
            return self.stat(path)
        return FileMeta(
            path=path,
            size=len(sent),
            etag=etag,
            modified_ns=modified_ns,
            storage_class=storage_class or "STANDARD",
        )

    def delete(self, paths: Sequence[str]) -> None:
        keys = [self._key(path) for path in dict.fromkeys(paths)]
        for first in range(0, len(keys), _DELETE_BATCH_MAX):
            batch = keys[first : first + _DELETE_BATCH_MAX]
            with self._translated(f"delete {len(batch)} objects"):
                answer = self._client.delete_objects(
                    Bucket=self._bucket, Delete={"Objects": [{"Key": key} for key in batch]}
                )
            self._check_deleted(batch, answer)

    def stat(self, path: str) -> FileMeta:
        key = self._key(path)
        with self._translated(f"stat {path}"):
            try:
                answer = self._client.head_object(Bucket=self._bucket, Key=key)
            except sdk.ClientError as error:
                if _status_of(error) == 404:
                    # An answer to HEAD has no body, so a missing bucket looks just the same.
                    self._client.head_bucket(Bucket=self._bucket)
                raise
        what = f"{self.url}: stat {path}"
        return FileMeta(
            path=path,
            size=_field(answer, "ContentLength", what),
            etag=_etag_of(answer, what),
            modified_ns=_unix_ns(_field(answer, "LastModified", what)),
            storage_class=answer.get("StorageClass") or "STANDARD",
        )

    def close(self) -> None:
        self._client.close()

    # --- multipart -----------------------------------------------------------------------

    def begin_upload(self, path: str, *, storage_class: str = "") -> str:
        asked: dict[str, Any] = {"Bucket": self._bucket, "Key": self._key(path)}
        if storage_class:
            asked["StorageClass"] = storage_class
        with self._translated(f"begin upload of {path}"):
            answer = self._client.create_multipart_upload(**asked)
        return str(_field(answer, "UploadId", f"{self.url}: begin upload of {path}"))

    def upload_part(self, path: str, upload_id: str, number: int, data: bytes) -> str:
        if number < 1:
            raise ValueError(f"part number {number}: parts are counted from 1")
        key = self._key(path)
        digest = hashlib.md5(data, usedforsecurity=False)
        with self._translated(f"upload part {number} of {path}"):
            answer = self._client.upload_part(
                Bucket=self._bucket,
                Key=key,
                UploadId=upload_id,
                PartNumber=number,
                Body=data,
                ContentMD5=base64.b64encode(digest.digest()).decode("ascii"),
            )
        return self._checked_etag(answer, digest.hexdigest(), f"upload part {number} of {path}")

    def list_parts(self, path: str, upload_id: str) -> Mapping[int, tuple[int, str]]:
        found: dict[int, tuple[int, str]] = {}
        asked: dict[str, Any] = {
            "Bucket": self._bucket,
            "Key": self._key(path),
            "UploadId": upload_id,
        }
        while True:
            with self._translated(f"list parts of {path}"):
                page = self._client.list_parts(**asked)
            _field(page, "UploadId", f"{self.url}: list parts of {path}")
            for part in page.get("Parts", []):
                found[part["PartNumber"]] = (part["Size"], part["ETag"].strip('"'))
            if not page.get("IsTruncated"):
                return found
            asked["PartNumberMarker"] = page["NextPartNumberMarker"]

    def complete_upload(self, path: str, upload_id: str, etags: Mapping[int, str]) -> FileMeta:
        if not etags:
            raise Misconfigured(f"upload of {path}: it cannot be completed without a part")
        key = self._key(path)
        with self._translated(f"complete upload of {path}"):
            self._client.complete_multipart_upload(
                Bucket=self._bucket,
                Key=key,
                UploadId=upload_id,
                MultipartUpload={
                    "Parts": [
                        {"PartNumber": number, "ETag": f'"{etag}"'}
                        for number, etag in sorted(etags.items())
                    ]
                },
            )
        return self.stat(path)

    def abort_upload(self, path: str, upload_id: str) -> None:
        key = self._key(path)
        with self._translated(f"abort upload of {path}"):
            try:
                self._client.abort_multipart_upload(
                    Bucket=self._bucket, Key=key, UploadId=upload_id
                )
            except sdk.ClientError as error:
                if _code_of(error) != "NoSuchUpload":
                    raise

    def list_uploads(self, prefix: str = "") -> Iterator[tuple[str, str, int]]:
        asked: dict[str, Any] = {"Bucket": self._bucket, "Prefix": self._key_prefix + prefix}
        while True:
            with self._translated(f"list uploads of {prefix}*"):
                page = self._client.list_multipart_uploads(**asked)
            _field(page, "Bucket", f"{self.url}: list uploads of {prefix}*")
            for upload in page.get("Uploads", []):
                path = upload["Key"].removeprefix(self._key_prefix)
                if _is_path(path):
                    yield path, upload["UploadId"], _unix_ns(upload["Initiated"])
            if not page.get("IsTruncated"):
                return
            asked["KeyMarker"] = page["NextKeyMarker"]
            asked["UploadIdMarker"] = page["NextUploadIdMarker"]

    # --- inside --------------------------------------------------------------------------

    def _key(self, path: str) -> str:
        return self._key_prefix + check_path(path)

    def _check_deleted(self, keys: Sequence[str], answer: Mapping[str, Any]) -> None:
        """Raise unless the store accounts for every key of a batch."""
        errors = [e for e in answer.get("Errors", []) if e.get("Code") != "NoSuchKey"]
        if errors:
            first = errors[0]
            what = f"{self.url}: delete {first.get('Key', '')} and {len(errors) - 1} others"
            raise error_of(first.get("Code", ""), 0, first.get("Message", ""), {}, what)
        answered = {e.get("Key") for e in (*answer.get("Deleted", []), *answer.get("Errors", []))}
        if missing := set(keys) - answered:
            raise Unavailable(f"{self.url}: delete: no answer for {len(missing)} of {len(keys)}")

    def _body(self, answer: Mapping[str, Any], path: str, torn: _Torn) -> bytes:
        """Read the whole body, however it is cut into packets, or raise.

        What came before it broke is kept in `BrokenBody`, if the answer is the range asked for.
        """
        expected = answer.get("ContentLength")
        chunked = "transfer-encoding" in answer["ResponseMetadata"]["HTTPHeaders"]
        if expected is None and not chunked:  # nothing would tell its end from a lost connection
            raise Unavailable(f"{self.url}: read {path}: a body without a length")
        deadline_s = monotonic_s() + self._options.read_timeout_s
        deadline_s += (expected or 0) / _READ_RATE_MIN
        pieces: list[bytes] = []
        what = f"{self.url}: read {path}"
        try:
            with closing(answer["Body"]) as body:
                while piece := body.read(_READ_PIECE_BYTES):
                    pieces.append(piece)
                    if monotonic_s() > deadline_s:
                        raise torn.after(answer, pieces, f"{what}: the body came too slowly")
        except (sdk.BotoCoreError, HTTPError, OSError) as error:
            raise torn.after(answer, pieces, f"{what}: {error}") from error
        whole = b"".join(pieces)
        if expected is not None and len(whole) != expected:
            raise torn.after(answer, pieces, f"{what}: {len(whole)} bytes came of {expected}")
        return whole

    def _checked_etag(self, answer: Mapping[str, Any], md5: str, what: str) -> str:
        """Return the ETag of an answer; raise `TransferCorrupt` if it is an MD5, and another."""
        etag = _etag_of(answer, f"{self.url}: {what}")
        encrypted = str(answer.get("ServerSideEncryption", "")).startswith("aws:kms")
        if encrypted or answer.get("SSECustomerAlgorithm") or not self._options.etag_is_md5:
            return etag
        if _MD5_ETAG.fullmatch(etag) and etag != md5:
            raise TransferCorrupt(
                f"{self.url}: {what}: MD5 {md5} here, {etag} in the store (if the ETags of this "
                "store are no MD5, set etag_is_md5 to false)"
            )
        return etag

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """Turn whatever the SDK raises into a StoreError, in this one place."""
        try:
            yield
        except sdk.ClientError as error:
            raise self._from_answer(error, what) from error
        except (sdk.BotoCoreError, ResponseParserError, HTTPError, OSError) as error:
            raise from_sdk(error, f"{self.url}: {what}") from error

    def _from_answer(self, error: sdk.ClientError, what: str) -> StoreError:
        code, status = _code_of(error), _status_of(error)
        if status == 416:
            return _RangeBeyondEnd(what)
        if status == 404:
            code = {"HeadObject": "NoSuchKey", "HeadBucket": "NoSuchBucket"}.get(
                error.operation_name, code
            )
        if code == "NoSuchBucket":
            return Misconfigured(
                f"bucket {self._bucket} does not exist at {self._endpoint}: create it or check "
                "the name"
            )
        headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        message = error.response.get("Error", {}).get("Message", "")
        return error_of(code, status, message, headers, f"{self.url}: {what}")


@dataclass(frozen=True, slots=True)
class _Torn:
    """What was asked for, in case the body breaks."""

    path: str
    offset: int
    length: int | None
    received: bytes
    etag: str

    def after(self, answer: Mapping[str, Any], pieces: Sequence[bytes], why: str) -> Unavailable:
        """Return the error for a body that broke after `pieces`."""
        begin = self.offset + len(self.received)
        match = _CONTENT_RANGE.fullmatch(answer.get("ContentRange") or "")
        if begin != (int(match[1]) if match else 0) or not (pieces or self.received):
            return Unavailable(why)
        return BrokenBody(
            why,
            path=self.path,
            offset=self.offset,
            length=self.length,
            received=b"".join((self.received, *pieces)),
            etag=self.etag,
        )


class _RangeBeyondEnd(StoreError):
    """416: the range begins at or after the end of the object. Never leaves this module."""


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


def _client(options: StoreOptions) -> S3Client:
    """Build the one client."""
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


def _cut(
    answer: Mapping[str, Any], body: bytes, offset: int, length: int | None, path: str
) -> bytes:
    """Return what was asked for; a server may ignore a range (RFC 9110, 14.2) and send all."""
    content_range = answer.get("ContentRange")
    if not content_range:
        return body[offset:] if length is None else body[offset : offset + length]
    match = _CONTENT_RANGE.fullmatch(content_range)
    if match is None or match[3] == "*":
        raise Unavailable(f"read {path}: the answer has the range {content_range!r}")
    size = int(match[3])
    end = size if length is None else min(size, offset + length)
    if (int(match[1]), int(match[2]) + 1, len(body)) != (offset, end, end - offset):
        raise Unavailable(
            f"read {path}: bytes {offset} to {end} were asked for, {content_range!r} came with "
            f"{len(body)} bytes"
        )
    return body


def _is_path(path: str) -> bool:
    try:
        check_path(path)
    except ValueError:
        return False
    return True


def _unix_ns(moment: datetime) -> int:
    return int(moment.replace(microsecond=0).timestamp()) * 10**9 + moment.microsecond * 1000


def _answered_ns(answer: Mapping[str, Any]) -> int | None:
    """Return the store's own time of an answer, from its Date header, as Unix nanoseconds."""
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date", "")
    try:
        return _unix_ns(parsedate_to_datetime(date))
    except (TypeError, ValueError):
        return None


def _field(answer: Mapping[str, Any], name: str, what: str) -> Any:  # noqa: ANN401
    """Return a field that S3 always gives; else the "200 OK" is some stranger's."""
    if name not in answer:
        raise Unavailable(f"{what}: the answer is not one of S3: it has no {name}")
    return answer[name]


def _etag_of(answer: Mapping[str, Any], what: str) -> str:
    return str(_field(answer, "ETag", what)).strip('"')


def _code_of(error: sdk.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status_of(error: sdk.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
