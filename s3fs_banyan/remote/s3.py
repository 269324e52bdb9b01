"""A store in an S3 bucket. It and `s3_client` are all that knows boto3.

One client is built at the start and shared by all threads. The SDK's own retries are off, its
request checksums are sent only where S3 demands them, its time-outs and its pool are ours. What
encryption adds to a request is in `s3_encryption`, by what an upload is believed in
`s3_integrity`: Content-MD5 goes with every one, and its answer has to prove what was stored.

Every error of the SDK becomes one of ours in `_translated`, by the table in `s3_errors`. A body
is read, and its length checked, inside the call: nobody outside holds a connection.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from botocore import exceptions as sdk
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from s3fs_banyan.errors import (
    AlreadyExists,
    BrokenBody,
    Misconfigured,
    ObjectMissing,
    StoreError,
    Throttled,
    TransferCorrupt,
    Unavailable,
)
from s3fs_banyan.gentle_io import Bytes
from s3fs_banyan.remote.answers import is_path, unix_ns
from s3fs_banyan.remote.base import Capabilities, FileMeta, check_path, check_range
from s3fs_banyan.remote.options import StoreOptions
from s3fs_banyan.remote.s3_answers import (
    Torn,
    answered_ns,
    body_of,
    code_of,
    cut_range,
    etag_of,
    field_of,
    status_of,
)
from s3fs_banyan.remote.s3_client import BODY_KIND, from_sdk, make_client, quotes
from s3fs_banyan.remote.s3_errors import error_of
from s3fs_banyan.remote.s3_integrity import Integrity, Sums, Upload
from s3fs_banyan.remote.verification import How, VerificationObserver

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")

PART_SIZE_MIN: Final = 5 << 20
_DELETE_BATCH_MAX: Final = 1000
_REPLACEMENTS_MAX: Final = 3


class S3Store:
    """Objects of one bucket, under one prefix. Building it makes no call."""

    def __init__(
        self,
        bucket: str,
        prefix: str,
        options: StoreOptions,
        *,
        observer: VerificationObserver | None = None,
    ) -> None:
        """Raise `Misconfigured` if the SDK refuses the options; `prefix` may be empty."""
        self._bucket = bucket
        self._key_prefix = f"{check_path(prefix)}/" if prefix else ""
        self._options = options
        self._endpoint = options.endpoint_url or "Amazon S3"
        self._encryption = options.server_encryption
        etag_is_md5 = options.etag_is_md5 and self._encryption.etag_is_md5
        self._integrity = Integrity(options.verify, etag_is_md5=etag_is_md5)
        self._observer = observer
        self._uploads: dict[str, Upload] = {}
        with self._translated("connect"):
            try:
                self._client = make_client(options)
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
            etag_is_md5=self._integrity.etag_is_md5,
            part_size_min=PART_SIZE_MIN,
        )

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[FileMeta]:
        asked: dict[str, Any] = {"Bucket": self._bucket, "Prefix": self._key_prefix + prefix}
        if start_after:
            asked["StartAfter"] = self._key_prefix + start_after
        last = start_after
        tokens: set[str] = set()
        while True:
            with self._translated(f"list {prefix}*"):
                page = self._client.list_objects_v2(**asked)
            field_of(page, "Name", f"{self.url}: list {prefix}*")
            for found in page.get("Contents", []):
                if not found["Key"].startswith(asked["Prefix"]):
                    raise Misconfigured(
                        f"{self.url}: the store lists {found['Key']}, which was not asked for"
                    )
                path = found["Key"].removeprefix(self._key_prefix)
                if not is_path(path):
                    continue  # not ours: a directory marker of another tool
                if path <= last:
                    raise Misconfigured(
                        f"{self.url}: the store lists {path} after {last}, which is not byte order"
                    )
                last = path
                yield FileMeta(
                    path=path,
                    size=found["Size"],
                    etag=etag_of(found, f"{self.url}: list {prefix}*"),
                    modified_ns=unix_ns(found["LastModified"]),
                    storage_class=found.get("StorageClass") or "STANDARD",
                )
            if not page.get("IsTruncated"):
                return
            token = field_of(page, "NextContinuationToken", f"{self.url}: list {prefix}*")
            if token in tokens:
                raise Unavailable(f"{self.url}: list {prefix}*: the same page came again")
            tokens.add(token)
            asked["ContinuationToken"] = token

    def read(self, path: str, *, offset: int = 0, length: int | None = None) -> Bytes:
        check_range(offset, length)
        if length == 0:
            self.stat(path)
            return b""
        try:
            return self._read(Torn(path, offset, length))
        except _RangeBeyondEnd:
            return b""

    def read_rest(self, broken: BrokenBody) -> Bytes:
        torn = Torn(broken.path, broken.offset, broken.length, broken.received, broken.etag)
        try:
            return self._read(torn)
        except (AlreadyExists, _RangeBeyondEnd):  # 412: it is another object by now
            return self.read(broken.path, offset=broken.offset, length=broken.length)

    def _read(self, asked: Torn) -> Bytes:
        """Read what is missing of a range, and return all of it."""
        answer, body = self._get(asked)
        rest = None if asked.length is None else asked.length - len(asked.received)
        data = cut_range(answer, body, asked.begin, rest, asked.path)
        if asked.received:
            data = b"".join((asked.received, data))
        what = f"{self.url}: read {asked.path}"
        etag = etag_of(answer, what)
        is_whole = not asked.offset and asked.length is None
        if is_whole and self._integrity.is_md5(answer, etag):
            md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
            if etag != md5:
                raise TransferCorrupt(f"{what}: MD5 {md5} here, {etag} in the store")
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
        sums = self._integrity.sums(sent)
        asked: dict[str, Any] = {"Bucket": self._bucket, "Key": self._key(path), "Body": sent}
        asked |= sums.parameters() | self._encryption.for_new()
        if if_absent:
            asked["IfNoneMatch"] = "*"
        if storage_class:
            asked["StorageClass"] = storage_class
        with self._translated(f"write {path}"):
            answer = self._client.put_object(**asked)
        try:
            etag = self._proven(path, asked, answer, sums)
            modified_ns = answered_ns(answer)
            if modified_ns is None:
                return self.stat(path)
        except Throttled as error:
            # The object is there: after a refusal without effect a create would be repeated.
            raise Unavailable(f"{error}: it was written, and cannot be looked at") from error
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
        return self._meta_of(path, self._head(path))

    def _head(self, path: str) -> Mapping[str, Any]:
        key = self._key(path)
        with self._translated(f"stat {path}"):
            try:
                return self._client.head_object(
                    Bucket=self._bucket, Key=key, **self._encryption.for_bytes()
                )
            except sdk.ClientError as error:
                if status_of(error.response) == 404:
                    # An answer to HEAD has no body, so a missing bucket looks just the same.
                    self._client.head_bucket(Bucket=self._bucket)
                raise

    def _meta_of(self, path: str, answer: Mapping[str, Any]) -> FileMeta:
        what = f"{self.url}: stat {path}"
        return FileMeta(
            path=path,
            size=field_of(answer, "ContentLength", what),
            etag=etag_of(answer, what),
            modified_ns=unix_ns(field_of(answer, "LastModified", what)),
            storage_class=answer.get("StorageClass") or "STANDARD",
        )

    def close(self) -> None:
        self._client.close()

    def ask(self, what: str, path: str, call: Callable[[S3Client, dict[str, Any]], T]) -> T:
        """Make a call that the contract has not, for the probe; raises our errors.

        `call` gets the client, and Bucket and Key of `path`.
        """
        with self._translated(what):
            return call(self._client, {"Bucket": self._bucket, "Key": self._key(path)})

    # --- multipart -----------------------------------------------------------------------

    def begin_upload(self, path: str, *, storage_class: str = "") -> str:
        asked: dict[str, Any] = {"Bucket": self._bucket, "Key": self._key(path)}
        asked |= self._encryption.for_new()
        checksums = self._integrity.asks_checksum
        if checksums:
            asked["ChecksumAlgorithm"] = "SHA256"
        if storage_class:
            asked["StorageClass"] = storage_class
        with self._translated(f"begin upload of {path}"):
            answer = self._client.create_multipart_upload(**asked)
        what = f"{self.url}: begin upload of {path}"
        upload_id = str(field_of(answer, "UploadId", what))
        self._uploads[upload_id] = Upload(checksums)
        return upload_id

    def upload_part(self, path: str, upload_id: str, number: int, data: bytes | bytearray) -> str:
        if number < 1:
            raise ValueError(f"part number {number}: parts are counted from 1")
        upload = self._upload(upload_id)
        checksums, guessed = upload.checksums, upload.guessed
        try:
            answer, sums = self._send_part(path, upload_id, number, data, checksums)
        except Misconfigured:
            if not guessed:
                raise
            # All parts of an upload have a check sum, or none; not every store tells which.
            checksums = not checksums
            answer, sums = self._send_part(path, upload_id, number, data, checksums)
        upload.checksums, upload.guessed = checksums, False
        if checksums:
            upload.sha256[number] = sums.parameters()["ChecksumSHA256"]
        what = f"{self.url}: upload part {number} of {path}"
        etag = etag_of(answer, what)
        verdict = self._integrity.judge(answer, etag, data, sums, what)
        if verdict.good is None:  # a part cannot be read: the object will have to be
            upload.unproven = True
            self._note("content_md5", good=True)
            return etag
        self._note(verdict.how, good=verdict.good)
        if not verdict.good:
            raise TransferCorrupt(f"{what}: {verdict.why}")
        return etag

    def _send_part(
        self, path: str, upload_id: str, number: int, data: bytes | bytearray, checksums: bool
    ) -> tuple[Mapping[str, Any], Sums]:
        sums = self._integrity.sums(data, with_sha256=checksums)
        asked: dict[str, Any] = {
            "Bucket": self._bucket,
            "Key": self._key(path),
            "UploadId": upload_id,
            "PartNumber": number,
            "Body": data,
        }
        asked |= sums.parameters() | self._encryption.for_bytes()
        with self._translated(f"upload part {number} of {path}"):
            return self._client.upload_part(**asked), sums

    def list_parts(self, path: str, upload_id: str) -> Mapping[int, tuple[int, str]]:
        found = {
            part["PartNumber"]: (part["Size"], part["ETag"].strip('"'))
            for part in self._parts_of(path, upload_id)
        }
        upload = self._upload(upload_id)
        if upload.checksums:  # a part whose sum nobody can tell any more has to be sent again
            return {number: part for number, part in found.items() if number in upload.sha256}
        return found

    def _parts_of(self, path: str, upload_id: str) -> Iterator[Mapping[str, Any]]:
        """Yield the parts as S3 tells of them; notes their check sums, if it tells of those."""
        asked: dict[str, Any] = {
            "Bucket": self._bucket,
            "Key": self._key(path),
            "UploadId": upload_id,
        }
        asked |= self._encryption.for_bytes()
        while True:
            with self._translated(f"list parts of {path}"):
                page = self._client.list_parts(**asked)
            field_of(page, "UploadId", f"{self.url}: list parts of {path}")
            if page.get("ChecksumAlgorithm") == "SHA256":
                self._uploads.setdefault(upload_id, Upload(checksums=True))
            for part in page.get("Parts", []):
                if checksum := part.get("ChecksumSHA256"):
                    self._upload(upload_id).sha256.setdefault(part["PartNumber"], checksum)
                yield part
            if not page.get("IsTruncated"):
                return
            marker = field_of(page, "NextPartNumberMarker", f"{self.url}: list parts of {path}")
            if int(marker) <= int(asked.get("PartNumberMarker", 0)):
                raise Unavailable(f"{self.url}: list parts of {path}: the same page came again")
            asked["PartNumberMarker"] = marker

    def complete_upload(self, path: str, upload_id: str, etags: Mapping[int, str]) -> FileMeta:
        if not etags:
            raise Misconfigured(f"upload of {path}: it cannot be completed without a part")
        key = self._key(path)
        upload = self._upload(upload_id)
        parts: list[Any] = []
        for number, etag in sorted(etags.items()):
            parts.append({"PartNumber": number, "ETag": f'"{etag}"'})
            if upload.checksums and number in upload.sha256:
                parts[-1]["ChecksumSHA256"] = upload.sha256[number]
        with self._translated(f"complete upload of {path}"):
            self._client.complete_multipart_upload(
                Bucket=self._bucket,
                Key=key,
                UploadId=upload_id,
                MultipartUpload={"Parts": parts},
                **self._encryption.for_bytes(),
            )
        answer = self._head(path)
        meta = self._meta_of(path, answer)
        self._encryption.check_answer(answer, f"{self.url}: complete upload of {path}")
        self._uploads.pop(upload_id, None)
        return replace(meta, proven=self._integrity.is_proven(upload))

    def abort_upload(self, path: str, upload_id: str) -> None:
        key = self._key(path)
        with self._translated(f"abort upload of {path}"):
            try:
                self._client.abort_multipart_upload(
                    Bucket=self._bucket, Key=key, UploadId=upload_id
                )
            except sdk.ClientError as error:
                if code_of(error.response) != "NoSuchUpload":
                    raise
        self._uploads.pop(upload_id, None)

    def list_uploads(self, prefix: str = "") -> Iterator[tuple[str, str, int]]:
        asked: dict[str, Any] = {"Bucket": self._bucket, "Prefix": self._key_prefix + prefix}
        markers: set[tuple[str, str]] = set()
        while True:
            with self._translated(f"list uploads of {prefix}*"):
                page = self._client.list_multipart_uploads(**asked)
            field_of(page, "Bucket", f"{self.url}: list uploads of {prefix}*")
            for upload in page.get("Uploads", []):
                path = upload["Key"].removeprefix(self._key_prefix)
                if is_path(path):
                    yield path, upload["UploadId"], unix_ns(upload["Initiated"])
            if not page.get("IsTruncated"):
                return
            what = f"{self.url}: list uploads of {prefix}*"
            marker = field_of(page, "NextKeyMarker", what), page.get("NextUploadIdMarker", "")
            if marker in markers:
                raise Unavailable(f"{what}: the same page came again")
            markers.add(marker)
            asked["KeyMarker"], asked["UploadIdMarker"] = marker

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

    def _upload(self, upload_id: str) -> Upload:
        """Return what is known of an upload; if an earlier process began it, that is little."""
        guess = Upload(self._integrity.asks_checksum, unproven=True, guessed=True)
        return self._uploads.setdefault(upload_id, guess)

    def _note(self, how: How, *, good: bool) -> None:
        if self._observer is not None:
            self._observer.verified(how, good=good)

    def _get(self, torn: Torn) -> tuple[Mapping[str, Any], Bytes]:
        """Return the answer and the whole body of a GET of what is missing of a range.

        Raises `AlreadyExists` if some bytes are known and the object is another one by now.
        """
        asked: dict[str, Any] = {"Bucket": self._bucket, "Key": self._key(torn.path)}
        asked |= self._encryption.for_bytes()
        if torn.begin or torn.length is not None:
            end = "" if torn.length is None else torn.offset + torn.length - 1
            asked["Range"] = f"bytes={torn.begin}-{end}"
        if torn.etag:
            asked["IfMatch"] = f'"{torn.etag}"'
        what = f"{self.url}: read {torn.path}"
        with self._translated(f"read {torn.path}"):
            answer = self._client.get_object(**asked)
            found = etag_of(answer, what)
            if torn.etag and found != torn.etag:
                answer["Body"].close()
                raise AlreadyExists(f"{what}: it was written anew")
            seen = replace(torn, etag=found)
            timeout_s = self._options.read_timeout_s
            return answer, body_of(answer, what, timeout_s, seen, BODY_KIND)

    def _proven(
        self, path: str, asked: Mapping[str, Any], answer: Mapping[str, Any], sums: Sums
    ) -> str:
        """Return the ETag of an object just written, once it is proven to be what was sent.

        Raises `TransferCorrupt` otherwise, and the caller writes again. A create cannot be made
        again: it would find the wrong object. But it has said that the name is ours, so the
        object is looked at and, if it is wrong, replaced by the right bytes on condition that
        it is still the one that was seen.
        """
        what = f"{self.url}: write {path}"
        created = "IfNoneMatch" in asked
        why = ""
        for _ in range(1 + _REPLACEMENTS_MAX):
            etag = etag_of(answer, what)
            self._encryption.check_answer(answer, what)
            verdict = self._integrity.judge(answer, etag, asked["Body"], sums, what)
            if verdict.good is not None:
                self._note(verdict.how, good=verdict.good)
            if verdict.good:
                return etag
            why = verdict.why
            if created or verdict.good is None:
                etag, good = self._read_back(path, sums)
                if good:
                    return etag
                why = why or "the object that was read back is not what was sent"
            if not created:
                raise TransferCorrupt(f"{what}: {why}")
            answer = self._put_over(path, asked, etag)
        raise TransferCorrupt(f"{what}: {why}, {_REPLACEMENTS_MAX} times again")

    def _read_back(self, path: str, sums: Sums) -> tuple[str, bool]:
        """Return the ETag of the object in the store, and whether it is what was sent."""
        try:
            answer, body = self._get(Torn(path, 0, None))
        except ObjectMissing as error:
            raise TransferCorrupt(f"{error}: it was written a moment ago") from error
        good = self._integrity.sums(bytes(body), with_sha256=False).md5 == sums.md5
        self._note("read_back", good=good)
        return etag_of(answer, f"{self.url}: read {path}"), good

    def _put_over(self, path: str, asked: Mapping[str, Any], etag: str) -> Mapping[str, Any]:
        """Write the object again, in place of the one with that ETag."""
        again = {name: value for name, value in asked.items() if name != "IfNoneMatch"}
        try:
            with self._translated(f"write {path} again"):
                return self._client.put_object(**again, IfMatch=f'"{etag}"')
        except (AlreadyExists, ObjectMissing) as error:
            raise TransferCorrupt(
                f"{self.url}: write {path}: a wrong object was there, and then another"
            ) from error

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """Turn whatever the SDK raises into a StoreError, in this one place."""
        try:
            yield
        except sdk.ClientError as error:
            raise self._from_answer(error, what) from error
        except (sdk.BotoCoreError, ResponseParserError, HTTPError, OSError) as error:
            raise from_sdk(error, f"{self.url}: {what}") from (None if quotes(error) else error)

    def _from_answer(self, error: sdk.ClientError, what: str) -> StoreError:
        code, status = code_of(error.response), status_of(error.response)
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
        message = str(error.response.get("Error", {}).get("Message", ""))
        refusal = self._encryption.refusal(
            error.operation_name, status, message, f"{self.url}: {what}"
        )
        if refusal is not None:
            return refusal
        return error_of(code, status, message, headers, f"{self.url}: {what}")


class _RangeBeyondEnd(StoreError):
    """416: the range begins at or after the end of the object. Never leaves this module."""
