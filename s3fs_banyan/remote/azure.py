"""A store in an Azure Blob container: the only module that knows azure-storage-blob.

Objects are block blobs. One client is built at the start and shared by all threads; the SDK's
retries are off, and `http_session` sees to it that its download does not fetch a broken body
again by itself. Every object is written by one Put Blob, whatever its size (the service takes
5,000 MiB), with Content-MD5; the service keeps that MD5 beside the object, and it is the `etag`
here, so that what the engine knows of S3's ETags holds here as well.

**Multipart.** Azure has no upload ids: blocks wait under the blob's name until a block list
names them. So the block id carries what S3 would keep: upload, number and MD5 of the part, and a
first block of one byte, number 0, stands for the upload itself and holds its tier.

    block id = urlsafe base64 of: version u8 = 1 | 3 bytes 0 | upload id 16 | number u32 | MD5 16
    upload id = Unix time in ns u64 | 8 random bytes            (numbers are big-endian)

Without that first block an upload counts as gone. Completing writes the MD5 of the parts' MD5s
into the blob's metadata, in S3's form. Azure throws blocks that nobody names away after a week,
by itself; an abort does it at once, by an empty block list that is put only if no object is
there, and deleted again.
"""

from __future__ import annotations

import base64
import importlib.util
import os
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import requests
from azure.core import MatchConditions
from azure.core import exceptions as sdk
from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential
from azure.core.pipeline.transport import RequestsTransport
from azure.storage.blob import (
    BlobBlock,
    BlobProperties,
    ContainerClient,
    ContentSettings,
    StandardBlobTier,
)

from s3fs_banyan.errors import (
    AlreadyExists,
    BanyanFSError,
    ConfigError,
    Denied,
    Misconfigured,
    ObjectMissing,
    StoreError,
    Unavailable,
)
from s3fs_banyan.remote.answers import is_path, md5_of, unix_ns
from s3fs_banyan.remote.azure_errors import error_of
from s3fs_banyan.remote.base import Capabilities, FileMeta, check_path, check_range
from s3fs_banyan.remote.http_session import WholeBodySession
from s3fs_banyan.remote.options import StoreOptions
from s3fs_banyan.remote.verification import AnsweredMd5, VerificationObserver
from s3fs_banyan.runtime import RealRuntime

OBJECT_SIZE_MAX: Final = 5000 << 20
"""What one Put Blob may carry; larger objects are multipart uploads."""

_WHOLE: Final = 1 << 50
"""More than any object: the SDK fetches what is asked for by one request and not by many."""

LIST_PAGE_MAX = 5000
DELETE_BATCH_MAX = 256
_MULTIPART_MD5: Final = "multipart_md5"
_BLOCK_ID: Final = struct.Struct(">B3x16sI16s")
_BLOCK_VERSION: Final = 1
_MARK: Final = b"\0"
_MD5_HEX: Final = re.compile(r"[0-9a-f]{32}")


class AzureStore:
    """Objects of one container, under one prefix. Building it makes no call."""

    def __init__(
        self,
        account: str,
        container: str,
        prefix: str,
        options: StoreOptions,
        observer: VerificationObserver | None = None,
    ) -> None:
        """Raise `Denied` without credentials, `ConfigError` for ones of another account."""
        self._account = account
        self._name = container
        self._key_prefix = f"{check_path(prefix)}/" if prefix else ""
        self._runtime = RealRuntime()
        with self._translated("connect"):
            self._container = _client(account, container, options)
        self._endpoint = f"{self._container.scheme}://{self._container.primary_hostname}"
        self._md5 = AnsweredMd5(self.url, observer)

    @property
    def url(self) -> str:
        return f"az://{self._account}/{self._name}/{self._key_prefix}".rstrip("/")

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            create_if_absent=True,
            multipart=True,
            etag_is_md5=True,
            part_size_min=0,
            object_size_max=190 * 1024**4,
        )

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[FileMeta]:
        what = f"list {prefix}*"
        with self._translated(what):
            pages = iter(
                self._container.list_blobs(
                    name_starts_with=self._key_prefix + prefix,
                    include=["metadata"],
                    results_per_page=LIST_PAGE_MAX,
                )
            )
        # Azure's markers are opaque, so what lies before `start_after` is fetched and dropped;
        # a page holds 5,000 names.
        last = ""
        while True:
            with self._translated(what):
                found = next(pages, None)
            if found is None:
                return
            path = str(found.name).removeprefix(self._key_prefix)
            if not is_path(path):
                continue  # not ours: a directory marker of another tool
            if path <= last:
                raise Misconfigured(
                    f"{self.url}: the store lists {path} after {last}, which is not byte order"
                )
            last = path
            if path > start_after:
                yield _meta_of(path, found)

    def read(self, path: str, *, offset: int = 0, length: int | None = None) -> bytes:
        check_range(offset, length)
        if length == 0:
            self.stat(path)
            return b""
        whole = offset == 0 and length is None
        stored: dict[str, str] = {}

        def keep(answer: Any) -> None:  # noqa: ANN401  # the SDK's PipelineResponse
            headers = answer.http_response.headers
            stored["md5"] = headers.get("x-ms-blob-content-md5") or headers.get("content-md5", "")

        try:
            with self._translated(f"read {path}"):
                stream = self._container.download_blob(
                    self._key(path),
                    offset=None if whole else offset,
                    length=length,
                    max_concurrency=1,
                    raw_response_hook=keep,
                )
                body = stream.readall()
        except _RangeBeyondEnd:
            return b""
        if whole and stored.get("md5"):
            self._md5.compare(base64.b64decode(stored["md5"]), md5_of(body), f"read {path}")
        return body

    def write(
        self,
        path: str,
        data: bytes | bytearray | memoryview,
        *,
        if_absent: bool = False,
        storage_class: str = "",
    ) -> FileMeta:
        sent = bytes(data)
        digest = md5_of(data)
        what = f"write {path}"
        blob = self._container.get_blob_client(self._key(path))
        with self._translated(what):
            answer = blob.upload_blob(
                sent,
                length=len(sent),
                overwrite=not if_absent,
                standard_blob_tier=self._tier(storage_class),
                content_settings=ContentSettings(content_md5=bytearray(digest)),
                headers={"Content-MD5": base64.b64encode(digest).decode("ascii")},
            )
        stored = bytes(answer.get("content_md5") or b"")
        self._md5.check(stored, digest, what, lambda: self.read(path))
        return FileMeta(
            path=path,
            size=len(sent),
            etag=digest.hex(),
            modified_ns=unix_ns(answer["last_modified"]),
            storage_class=storage_class,
        )

    def delete(self, paths: Sequence[str]) -> None:
        keys = [self._key(path) for path in dict.fromkeys(paths)]
        for first in range(0, len(keys), DELETE_BATCH_MAX):
            batch = keys[first : first + DELETE_BATCH_MAX]
            what = f"delete {len(batch)} objects"
            with self._translated(what):
                answers = [*self._container.delete_blobs(*batch, raise_on_any_failure=False)]
            if len(answers) != len(batch):
                raise Unavailable(f"{self.url}: {what}: {len(answers)} answers came")
            for answer in answers:
                code = answer.headers.get("x-ms-error-code", "")
                if answer.status_code != 202 and code != "BlobNotFound":
                    raise self._error(code, answer.status_code, "", answer.headers, what)

    def stat(self, path: str) -> FileMeta:
        with self._translated(f"stat {path}"):
            found = self._container.get_blob_client(self._key(path)).get_blob_properties()
        return _meta_of(path, found)

    def close(self) -> None:
        self._container.close()

    def write_with_md5(self, path: str, data: bytes, md5: bytes) -> None:
        """Write with a Content-MD5 that need not be right, for the probe."""
        header = {"Content-MD5": base64.b64encode(md5).decode("ascii")}
        with self._translated(f"write {path}"):
            self._container.get_blob_client(self._key(path)).upload_blob(
                data, length=len(data), overwrite=True, headers=header
            )

    def write_if_match(self, path: str, data: bytes, etag: str) -> None:
        """Write if the service's own ETag is `etag`, for the probe."""
        with self._translated(f"write {path}"):
            self._container.get_blob_client(self._key(path)).upload_blob(
                data,
                length=len(data),
                overwrite=True,
                etag=etag,
                match_condition=MatchConditions.IfNotModified,
            )

    # --- multipart -----------------------------------------------------------------------

    def begin_upload(self, path: str, *, storage_class: str = "") -> str:
        self._tier(storage_class)
        tier = storage_class.encode("ascii").ljust(16, b"\0")
        upload = struct.pack(">Q", self._runtime.wall_ns()) + self._runtime.random_bytes(8)
        self._stage(path, _block_id(upload, 0, tier), _MARK, f"begin upload of {path}")
        return upload.hex()

    def upload_part(self, path: str, upload_id: str, number: int, data: bytes | bytearray) -> str:
        """Send a part. One for an upload that is gone is taken, and shows in no list."""
        if number < 1:
            raise ValueError(f"part number {number}: parts are counted from 1")
        digest = md5_of(data)
        block_id = _block_id(bytes.fromhex(upload_id), number, digest)
        self._stage(path, block_id, data, f"upload part {number} of {path}")
        return digest.hex()

    def list_parts(self, path: str, upload_id: str) -> Mapping[int, tuple[int, str]]:
        parts = self._parts(path, upload_id, f"list parts of {path}")
        return {number: (size, digest.hex()) for number, digest, size in parts if number}

    def complete_upload(self, path: str, upload_id: str, etags: Mapping[int, str]) -> FileMeta:
        what = f"complete upload of {path}"
        if not etags:
            raise Misconfigured(f"upload of {path}: it cannot be completed without a part")
        held = self._parts(path, upload_id, what)
        [tier] = [_text_of(digest) for number, digest, _ in held if number == 0]
        digests = {(number, digest.hex()) for number, digest, _ in held}
        if strangers := [number for number, etag in etags.items() if (number, etag) not in digests]:
            raise Misconfigured(f"{self.url}: {what}: part {strangers[0]} is not what was sent")
        parts = [(number, bytes.fromhex(etag)) for number, etag in sorted(etags.items())]
        upload = bytes.fromhex(upload_id)
        whole = f"{md5_of(b''.join(digest for _, digest in parts)).hex()}-{len(parts)}"
        with self._translated(what):
            self._container.get_blob_client(self._key(path)).commit_block_list(
                [BlobBlock(_block_id(upload, number, digest)) for number, digest in parts],
                metadata={_MULTIPART_MD5: whole},
                standard_blob_tier=self._tier(tier),
            )
        return self.stat(path)

    def abort_upload(self, path: str, upload_id: str) -> None:
        what = f"abort upload of {path}"
        try:
            self._parts(path, upload_id, what)
        except ObjectMissing:
            return
        blob = self._container.get_blob_client(self._key(path))
        try:
            with self._translated(what):
                made = blob.commit_block_list([], match_condition=MatchConditions.IfMissing)
        except AlreadyExists:
            # An object has that name. Its blocks in waiting go in a week; it must stay as it is.
            return
        with self._translated(what):
            blob.delete_blob(etag=str(made["etag"]), match_condition=MatchConditions.IfNotModified)

    def list_uploads(self, prefix: str = "") -> Iterator[tuple[str, str, int]]:
        what = f"list uploads of {prefix}*"
        with self._translated(what):
            pages = iter(
                self._container.list_blobs(
                    name_starts_with=self._key_prefix + prefix, include=["uncommittedblobs"]
                )
            )
        while True:
            with self._translated(what):
                found = next(pages, None)
            if found is None:
                return
            path = str(found.name).removeprefix(self._key_prefix)
            # A blob of blocks that wait has no bytes and no MD5, and nothing else tells it apart.
            if found.size or found.content_settings.content_md5 or not is_path(path):
                continue
            for upload, number, _, _ in self._blocks(path, what):
                if number == 0:
                    yield path, upload.hex(), struct.unpack_from(">Q", upload)[0]

    def _stage(self, path: str, block_id: str, data: bytes | bytearray, what: str) -> None:
        digest = md5_of(data)
        blob = self._container.get_blob_client(self._key(path))
        with self._translated(what):
            answer = blob.stage_block(
                block_id,
                bytes(data),
                length=len(data),
                headers={"Content-MD5": base64.b64encode(digest).decode("ascii")},
            )
        self._md5.check(bytes(answer.get("content_md5") or b""), digest, what)

    def _blocks(self, path: str, what: str) -> Sequence[tuple[bytes, int, bytes, int]]:
        """Return (upload, number, MD5, size) of the blocks of ours that wait under a name."""
        try:
            with self._translated(what):
                _, waiting = self._container.get_blob_client(self._key(path)).get_block_list(
                    "uncommitted"
                )
        except ObjectMissing:
            return []
        found = []
        for block in waiting:
            try:
                raw = base64.b64decode(str(block.id), altchars=b"-_", validate=True)
                version, upload, number, digest = _BLOCK_ID.unpack(raw)
            except (ValueError, struct.error):
                continue  # another tool's
            if version == _BLOCK_VERSION:
                found.append((upload, number, digest, int(block.size)))
        return found

    def _parts(self, path: str, upload_id: str, what: str) -> Sequence[tuple[int, bytes, int]]:
        """Return (number, MD5, size) of an upload's blocks, its mark among them."""
        parts = [
            (number, digest, size)
            for upload, number, digest, size in self._blocks(path, what)
            if upload.hex() == upload_id
        ]
        if not any(number == 0 for number, _, _ in parts):
            raise ObjectMissing(f"{self.url}: {what}: no such upload")
        return parts

    # --- inside --------------------------------------------------------------------------

    def _key(self, path: str) -> str:
        return self._key_prefix + check_path(path)

    def _tier(self, storage_class: str) -> StandardBlobTier | None:
        if not storage_class:
            return None
        known = {tier.value: tier for tier in StandardBlobTier}
        if storage_class not in known:
            raise Misconfigured(
                f"{self.url}: no tier {storage_class!r} in Azure: use {', '.join(known)}"
            )
        return known[storage_class]

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """Turn whatever the SDK raises into a StoreError, in this one place."""
        try:
            yield
        except BanyanFSError as error:  # the session's
            if isinstance(error, StoreError) and not str(error).startswith(self.url):
                raise type(error)(f"{self.url}: {what}: {error}") from error
            raise
        except sdk.HttpResponseError as error:
            raise self._from_answer(error, what) from error
        except sdk.AzureError as error:
            raise from_sdk(error, f"{self.url}: {what}") from error
        except ValueError as error:
            if str(error).startswith("Required Content-Range"):
                raise Unavailable(f"{self.url}: {what}: the answer is not Azure's") from error
            raise

    def _from_answer(self, error: sdk.HttpResponseError, what: str) -> StoreError:
        if error.response is None:
            return from_sdk(error, f"{self.url}: {what}")
        status = int(error.response.status_code or 0)
        headers: Mapping[str, str] = getattr(error.response, "headers", {})
        if status == 416:
            return _RangeBeyondEnd(what)
        code = headers.get("x-ms-error-code", "")
        return self._error(code, status, error.message, headers, what)

    def _error(
        self, code: str, status: int, message: str, headers: Mapping[str, str], what: str
    ) -> StoreError:
        if code in {"ContainerNotFound", "ResourceNotFound"}:
            return Misconfigured(
                f"container {self._name} does not exist at {self._endpoint}: create it or check "
                "the name"
            )
        lower = {name.lower(): value for name, value in headers.items()}
        return error_of(code, status, message, lower, f"{self.url}: {what}")


class _RangeBeyondEnd(StoreError):
    """416: the range begins at or after the end of the object. Never leaves this module."""


def from_sdk(error: Exception, what: str) -> StoreError:
    """Return our error for one that the SDK raised without an answer of the store."""
    reason = type(error).__name__
    if isinstance(error, sdk.ClientAuthenticationError):
        return Denied(f"{what}: no usable credentials ({reason}): {_CREDENTIALS}")
    if isinstance(error, _TRANSPORT):
        return Unavailable(f"{what}: {reason}")
    return Misconfigured(f"{what}: {reason}")


_TRANSPORT: Final = (
    sdk.ServiceRequestError,
    sdk.ServiceResponseError,
    sdk.DecodeError,
    sdk.HttpResponseError,
)
_CREDENTIALS: Final = (
    "set account_key, sas_token or connection_string in the configuration, or "
    "AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN, or install "
    "azure-identity for a managed identity"
)


# --- the client --------------------------------------------------------------------------


def _client(account: str, container: str, options: StoreOptions) -> ContainerClient:
    """Build the one client."""
    session = WholeBodySession()
    session.prepare(
        connections=options.connections,
        read_timeout_s=options.read_timeout_s,
        verify=(options.ca_bundle or True) if options.verify_tls else False,
        check=_check_answer,
    )
    settings: dict[str, Any] = {
        "transport": RequestsTransport(
            session=session,
            connection_timeout=options.connect_timeout_s,
            read_timeout=options.read_timeout_s,
            connection_verify=session.verify,
        ),
        "retry_total": 0,
        "max_single_put_size": OBJECT_SIZE_MAX,
        "max_single_get_size": _WHOLE,
        "max_chunk_get_size": _WHOLE,
    }
    connection_string = options.connection_string
    explicit = options.account_key or options.sas_token
    if not connection_string and not explicit:
        connection_string = os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "")
    if connection_string:
        return _from_connection_string(connection_string, account, container, settings)
    url = options.endpoint_url or f"https://{account}.blob.core.windows.net"
    return ContainerClient(url, container, credential=_credential(account, options), **settings)


def _from_connection_string(
    text: str, account: str, container: str, settings: dict[str, Any]
) -> ContainerClient:
    try:
        client = ContainerClient.from_connection_string(text, container, **settings)
    except ValueError:
        # The SDK's message may repeat a part of it; so it is neither shown nor chained.
        raise ConfigError("store: connection_string cannot be read") from None
    if client.account_name != account:
        client.close()
        raise ConfigError(
            f"store: the connection string is of another account than the store URL's, {account}"
        )
    return client


def _credential(account: str, options: StoreOptions) -> Any:  # noqa: ANN401  # the SDK takes a union
    """Return what the configuration says, else the environment, else this machine's identity."""
    key, sas = options.account_key, options.sas_token
    if not (key or sas):
        key = os.environ.get("AZURE_STORAGE_KEY", "")
        sas = os.environ.get("AZURE_STORAGE_SAS_TOKEN", "")
    if key:
        try:
            base64.b64decode(key, validate=True)
        except ValueError:
            raise ConfigError("store: the account's key is not base64") from None
        return AzureNamedKeyCredential(account, key)
    if sas:
        return AzureSasCredential(sas.removeprefix("?"))
    if _has_identity():
        from azure.identity import DefaultAzureCredential  # it may be absent

        return DefaultAzureCredential()
    raise Denied(f"az://{account}: no credentials found: {_CREDENTIALS}")


def _has_identity() -> bool:
    return importlib.util.find_spec("azure.identity") is not None


def _check_answer(request: requests.PreparedRequest, response: requests.Response) -> None:
    """Raise `Unavailable` for a success that is not Azure's: a proxy's login page is no answer."""
    if response.status_code < 400 and not response.headers.get("x-ms-request-id"):
        raise Unavailable(f"{request.method}: the answer is not one of Azure: no x-ms-request-id")


# --- values ------------------------------------------------------------------------------


def _block_id(upload: bytes, number: int, digest: bytes) -> str:
    return base64.urlsafe_b64encode(_BLOCK_ID.pack(_BLOCK_VERSION, upload, number, digest)).decode(
        "ascii"
    )


def _text_of(tier: bytes) -> str:
    return tier.rstrip(b"\0").decode("ascii")


def _meta_of(path: str, found: BlobProperties) -> FileMeta:
    md5 = found.content_settings.content_md5
    etag = bytes(md5).hex() if md5 else (found.metadata or {}).get(_MULTIPART_MD5)
    return FileMeta(
        path=path,
        size=int(found.size),
        etag=etag or str(found.etag).strip('"'),
        modified_ns=unix_ns(found.last_modified),
        storage_class=str(found.blob_tier or ""),
    )
