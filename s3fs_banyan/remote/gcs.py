"""A store in a Google Cloud Storage bucket: the only module that knows google-cloud-storage.

It speaks Google's JSON interface and not the S3 one (decision 0012). One client is built at the
start and shared by all threads; the SDK's retries are off, and `http_session` sees to it that a
body is whole or an error. Create-if-absent is `ifGenerationMatch=0`. The MD5 of every object goes
with the upload and is checked by the service, which keeps it beside the object: it is the `etag`
here.

An object of any size is one request. Left to itself the SDK opens a session above 8 MiB, whose
condition is judged when it begins: that is no create-if-absent on every server (seen on the
emulator, where the second of two creators of 9 MiB won as well). So its part below that choice is
called, and `tests/contract` notices should a new release move it.

There are no multipart uploads: Google has them in its S3 interface only.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

import google.auth
import requests
from google.api_core import exceptions as sdk
from google.auth import exceptions as auth
from google.auth.credentials import AnonymousCredentials
from google.auth.transport.requests import AuthorizedSession
from google.cloud.storage import Client
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from google.oauth2 import service_account

from s3fs_banyan.errors import (
    BanyanFSError,
    Denied,
    Misconfigured,
    ObjectMissing,
    StoreError,
    TransferCorrupt,
    Unavailable,
)
from s3fs_banyan.foreign_json import parse_json
from s3fs_banyan.remote.answers import is_path, md5_of, unix_ns
from s3fs_banyan.remote.base import Capabilities, FileMeta, check_path, check_range
from s3fs_banyan.remote.gcs_errors import error_of, missing
from s3fs_banyan.remote.http_session import WholeBodySession
from s3fs_banyan.remote.options import StoreOptions
from s3fs_banyan.remote.verification import AnsweredMd5, VerificationObserver

LIST_PAGE_MAX = 1000
_DELETES_AT_ONCE: Final = 8
_SCOPE: Final = "https://www.googleapis.com/auth/devstorage.read_write"
_FIELDS: Final = "items(name,size,md5Hash,etag,updated,storageClass),nextPageToken"


class GoogleStore:
    """Objects of one bucket, under one prefix. Building it asks the store nothing."""

    def __init__(
        self,
        bucket: str,
        prefix: str,
        options: StoreOptions,
        observer: VerificationObserver | None = None,
    ) -> None:
        """Raise `Denied` if there are no usable credentials; `prefix` may be empty."""
        self._name = bucket
        self._key_prefix = f"{check_path(prefix)}/" if prefix else ""
        with self._translated("connect"):
            self._client = _client(options)
        self._bucket = self._client.bucket(bucket)
        timeout = (options.connect_timeout_s, options.read_timeout_s)
        self._once: dict[str, Any] = {"timeout": timeout, "retry": None}
        """What goes with every call of the SDK: our time-outs, and one attempt."""
        self._md5 = AnsweredMd5(self.url, observer)

    @property
    def url(self) -> str:
        return f"gs://{self._name}/{self._key_prefix}".rstrip("/")

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(create_if_absent=True, etag_is_md5=True)

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[FileMeta]:
        what = f"list {prefix}*"
        asked: dict[str, Any] = {"prefix": self._key_prefix + prefix, "fields": _FIELDS}
        if start_after:
            asked["start_offset"] = self._key_prefix + start_after
        with self._translated(what, missing_is_bucket=True):
            pages = iter(
                self._client.list_blobs(
                    self._bucket, page_size=LIST_PAGE_MAX, **asked, **self._once
                )
            )
        last = start_after
        while True:
            with self._translated(what, missing_is_bucket=True):
                found = next(pages, None)
            if found is None:
                return
            path = found.name.removeprefix(self._key_prefix)
            # Google begins with `start_offset` itself.
            if not is_path(path) or path == start_after:
                continue
            if path <= last:
                raise Misconfigured(
                    f"{self.url}: the store lists {path} after {last}, which is not byte order"
                )
            last = path
            yield self._meta_of(path, found, what)

    def read(self, path: str, *, offset: int = 0, length: int | None = None) -> bytes:
        check_range(offset, length)
        if length == 0:
            self.stat(path)
            return b""
        asked: dict[str, Any] = {}
        if offset or length is not None:
            asked["start"] = offset
        if length is not None:
            asked["end"] = offset + length - 1
        sink = io.BytesIO()
        blob = self._bucket.blob(self._key(path))
        try:
            with self._translated(f"read {path}"):
                blob.download_to_file(sink, raw_download=True, checksum=None, **asked, **self._once)
        except _RangeBeyondEnd:
            return b""
        except _WordlessMissing as error:
            # A download's 404 may have no form; the object's description has one, if Google's.
            self.stat(path)
            raise Unavailable(f"{self.url}: read {path}: it was missing a moment ago") from error
        body = sink.getvalue()
        if not asked and blob.md5_hash:
            self._md5.compare(base64.b64decode(blob.md5_hash), md5_of(body), f"read {path}")
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
        generation = 0 if if_absent else None
        key = self._key(path)
        what = f"write {path}"
        with self._translated(what, missing_is_bucket=True):
            stored = self._upload(key, sent, digest, generation, storage_class)
            answered = base64.b64decode(stored.get("md5Hash") or "")
            self._md5.check(answered, digest, what, lambda: self.read(path))
            return FileMeta(
                path=path,
                size=int(stored["size"]),
                etag=digest.hex() if stored.get("md5Hash") else str(stored["etag"]),
                modified_ns=unix_ns(datetime.fromisoformat(stored["updated"])),
                storage_class=stored.get("storageClass", ""),
            )

    def write_with_md5(self, path: str, data: bytes, md5: bytes) -> None:
        """Write with an MD5 that need not be right, for the probe."""
        key = self._key(path)
        with self._translated(f"write {path}", missing_is_bucket=True):
            self._upload(key, data, md5, None, "")

    def write_if_match(self, path: str, data: bytes, etag: str) -> None:
        """Write if the object's generation is the number in `etag`, for the probe."""
        key = self._key(path)
        with self._translated(f"write {path}", missing_is_bucket=True):
            self._upload(key, data, md5_of(data), int(etag), "")

    def _upload(
        self, key: str, data: bytes, md5: bytes, generation: int | None, storage_class: str
    ) -> dict[str, Any]:
        """Send an object in one request; return its description, as Google gives it."""
        blob = self._bucket.blob(key)
        blob.md5_hash = base64.b64encode(md5).decode("ascii")
        if storage_class:
            blob.storage_class = storage_class
        answer = blob._do_multipart_upload(  # noqa: SLF001  # see the module's text
            self._client,
            io.BytesIO(data),
            "application/octet-stream",
            len(data),
            None,  # predefined_acl
            generation,  # if_generation_match
            None,  # if_generation_not_match
            None,  # if_metageneration_match
            None,  # if_metageneration_not_match
            checksum=None,  # it is among the properties already
            **self._once,
        )
        description: dict[str, Any] = answer.json()
        return description

    def delete(self, paths: Sequence[str]) -> None:
        """Delete one by one, some at a time.

        Google's batch request tells the SDK of one failure only, which may hide another behind
        an object that was not there; and it saves round trips, not money: deletes are free.
        """
        keys = [self._key(path) for path in dict.fromkeys(paths)]
        if len(keys) == 1:
            self._delete_key(keys[0])
        elif keys:
            with ThreadPoolExecutor(min(len(keys), _DELETES_AT_ONCE)) as pool:
                for _ in pool.map(self._delete_key, keys):
                    pass

    def _delete_key(self, key: str) -> None:
        try:
            with self._translated(f"delete {key}"):
                self._bucket.delete_blob(key, **self._once)
        except ObjectMissing:
            return

    def stat(self, path: str) -> FileMeta:
        blob = self._bucket.blob(self._key(path))
        with self._translated(f"stat {path}"):
            blob.reload(**self._once)
        return self._meta_of(path, blob, f"stat {path}")

    def close(self) -> None:
        self._client.close()

    # --- inside --------------------------------------------------------------------------

    def _key(self, path: str) -> str:
        return self._key_prefix + check_path(path)

    def _meta_of(self, path: str, blob: Any, what: str) -> FileMeta:  # noqa: ANN401  # the SDK has no types
        if blob.size is None or blob.updated is None:
            raise Unavailable(f"{self.url}: {what}: the answer is not one of Google's")
        md5 = base64.b64decode(blob.md5_hash).hex() if blob.md5_hash else ""
        return FileMeta(
            path=path,
            size=int(blob.size),
            etag=md5 or str(blob.etag),
            modified_ns=unix_ns(blob.updated),
            storage_class=str(blob.storage_class or ""),
        )

    @contextmanager
    def _translated(self, what: str, *, missing_is_bucket: bool = False) -> Iterator[None]:
        """Turn whatever the SDK raises into a StoreError, in this one place."""
        try:
            yield
        except BanyanFSError as error:  # the session's
            if isinstance(error, StoreError) and not str(error).startswith(self.url):
                raise type(error)(f"{self.url}: {what}: {error}") from error
            raise
        except (sdk.GoogleAPICallError, InvalidResponse) as error:
            raise self._from_answer(error, what, missing_is_bucket) from error
        except DataCorruption as error:
            raise TransferCorrupt(f"{self.url}: {what}: {error}") from error
        except auth.GoogleAuthError as error:
            raise from_auth(error, f"{self.url}: {what}") from error
        except (ValueError, KeyError) as error:
            # What the SDK makes of an answer that has not the form that it expects.
            raise Unavailable(
                f"{self.url}: {what}: the answer is not one of Google's ({type(error).__name__})"
            ) from error

    def _from_answer(self, error: Any, what: str, missing_is_bucket: bool) -> StoreError:  # noqa: ANN401
        """Return our error for an answer; `error` is one of two classes of the SDK."""
        answer: requests.Response | None = error.response
        if answer is None:
            return Unavailable(f"{self.url}: {what}: {type(error).__name__}")
        if answer.status_code == 416:
            return _RangeBeyondEnd(what)
        reason, message, is_google = _reason_of(answer)
        if answer.status_code == 404 and is_google:
            if missing_is_bucket:
                message = "The specified bucket does not exist."
            return missing(message, self._name, f"{self.url}: {what}")
        if answer.status_code == 404 and what.startswith("read "):
            return _WordlessMissing(what)
        headers: Mapping[str, str] = {k.lower(): v for k, v in answer.headers.items()}
        return error_of(reason, answer.status_code, message, headers, f"{self.url}: {what}")


class _RangeBeyondEnd(StoreError):
    """416: the range begins at or after the end of the object. Never leaves this module."""


class _WordlessMissing(StoreError):
    """404 to a download, with a text that proves nothing. Never leaves this module."""


def from_auth(error: auth.GoogleAuthError, what: str) -> StoreError:
    """Return our error for one of the credentials' own."""
    reason = type(error).__name__
    if isinstance(error, auth.TransportError) or error.retryable:
        return Unavailable(f"{what}: no credentials just now ({reason})")
    return Denied(
        f"{what}: no usable credentials ({reason}): set credentials_file in the configuration, or "
        "GOOGLE_APPLICATION_CREDENTIALS, or attach a service account to this machine"
    )


def _reason_of(answer: requests.Response) -> tuple[str, str, bool]:
    """Return (reason, message, whether it has one of the forms of Google's errors)."""
    text = answer.text
    try:
        answered: Any = parse_json(text)
        error = answered["error"]
        details = error.get("errors") or [{}]
        return str(details[0].get("reason", "")), str(error.get("message", "")), True
    except (ValueError, KeyError, TypeError, AttributeError):
        # A download's errors are plain text.
        return "", text, text.startswith(("No such object", "The specified bucket"))


def _client(options: StoreOptions) -> Any:  # noqa: ANN401  # the SDK has no types
    """Build the one client."""
    session = _Session(_credentials(options))
    session.prepare(
        connections=options.connections,
        read_timeout_s=options.read_timeout_s,
        verify=(options.ca_bundle or True) if options.verify_tls else False,
        check=_check_answer,
    )
    endpoint = {"api_endpoint": options.endpoint_url} if options.endpoint_url else None
    client = Client(
        project="unused",  # only calls on buckets have a project
        credentials=session.credentials,
        client_options=endpoint,
        _http=session,
    )
    # For the labels of traces that nobody takes, it would ask for the bucket's description, in a
    # thread of its own and with retries: requests that no layer counts.
    client._bucket_metadata_cache = None  # noqa: SLF001
    return client


class _Session(WholeBodySession, AuthorizedSession):
    """Whole bodies, and Google's credentials on every request."""


def _credentials(options: StoreOptions) -> Any:  # noqa: ANN401  # some class of google.auth
    """Return what the configuration says, else the standard chain.

    Another end point than Google's, with no credentials named, is an emulator: it gets none.
    """
    if options.credentials_file:
        try:
            return service_account.Credentials.from_service_account_file(
                options.credentials_file, scopes=[_SCOPE]
            )
        except (auth.GoogleAuthError, ValueError, OSError):
            # The cause may quote the file, which holds a private key: it is not chained.
            raise Denied(
                f"credentials_file {options.credentials_file} holds no credentials of a Google "
                "service account"
            ) from None
    if options.endpoint_url and "GOOGLE_APPLICATION_CREDENTIALS" not in os.environ:
        return AnonymousCredentials()
    found, _ = google.auth.default(scopes=[_SCOPE])
    return found


def _check_answer(request: requests.PreparedRequest, response: requests.Response) -> None:
    """Raise `Unavailable` for a success that is not Google's: a login page is no answer."""
    if response.status_code >= 300:
        return
    known = "json" in response.headers.get("content-type", "") or any(
        name.lower().startswith(("x-goog-", "x-guploader-")) for name in response.headers
    )
    is_batch = "multipart/mixed" in response.headers.get("content-type", "")
    if request.method == "DELETE":
        known = response.status_code == 204 or known
    if not known and not is_batch:
        raise Unavailable(f"{request.method}: the answer is not one of Google's")
