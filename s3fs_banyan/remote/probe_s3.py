"""The rows of the probe's table that only S3 has: conditions, checksums, encryption, locks.

Each asks through `S3Store.ask`, so that boto3 stays in one module. A service that ignores a
header, instead of refusing it, is told apart by what its answer says or fails to say.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

from s3fs_banyan.errors import AlreadyExists, Denied, Misconfigured, TransferCorrupt
from s3fs_banyan.remote.s3 import S3Store

Answer = tuple[Literal["yes", "no", "unclear"], str]

_DATA = b"some bytes"


def s3_trials(
    store: S3Store, at: Callable[[str], str]
) -> Iterator[tuple[str, Callable[[], Answer]]]:
    """Yield (name, trial); `at` gives paths of the probe's own."""

    def put(name: str, **asked: Any) -> dict[str, Any]:  # noqa: ANN401  # boto3's own names
        """Write a small object with more said about it; returns the answer."""
        return store.ask(
            f"write {at(name)}",
            at(name),
            lambda client, place: dict(client.put_object(**place, Body=_DATA, **asked)),
        )

    yield "if-match", lambda: _if_match(store, at, put)
    yield "MD5 checked", lambda: _md5_checked(put)
    yield "checksum checked", lambda: _checksum_checked(put)
    yield "SSE-S3", lambda: _said_again(put("sse-s3", ServerSideEncryption="AES256"), "AES256")
    yield "SSE-KMS", lambda: _said_again(put("sse-kms", ServerSideEncryption="aws:kms"), "aws:kms")
    yield "SSE-C", lambda: _customer_key(store, at, put)
    yield "object lock", lambda: _object_lock(store, at)
    yield "versioning", lambda: _versioning(store, at)


Put = Callable[..., dict[str, Any]]


def _if_match(store: S3Store, at: Callable[[str], str], put: Put) -> Answer:
    store.write(at("match"), b"first")
    try:
        put("match", IfMatch='"00000000000000000000000000000000"')
    except AlreadyExists:
        return "yes", ""
    return "no", "written although the object was another"


def _md5_checked(put: Put) -> Answer:
    try:
        put("md5", ContentMD5=base64.b64encode(bytes(16)).decode("ascii"))
    except TransferCorrupt:
        return "yes", ""
    return "no", "other bytes than those of the MD5 were taken"


def _checksum_checked(put: Put) -> Answer:
    right = base64.b64encode(hashlib.sha256(_DATA).digest()).decode("ascii")
    answer = put("checksum", ChecksumSHA256=right)
    try:
        put("checksum", ChecksumSHA256=base64.b64encode(bytes(32)).decode("ascii"))
    except (TransferCorrupt, Misconfigured):
        said = answer.get("ChecksumSHA256") == right
        return "yes", "SHA-256" if said else "SHA-256, and the answer does not repeat it"
    return "no", "other bytes than those of the SHA-256 were taken"


def _said_again(answer: dict[str, Any], wanted: str) -> Answer:
    said = answer.get("ServerSideEncryption")
    return ("yes", "") if said == wanted else ("no", "the header was ignored")


def _customer_key(store: S3Store, at: Callable[[str], str], put: Put) -> Answer:
    key = hashlib.sha256(at("sse-c").encode("ascii")).digest()
    secret = {
        "SSECustomerAlgorithm": "AES256",
        "SSECustomerKey": base64.b64encode(key).decode("ascii"),
        "SSECustomerKeyMD5": base64.b64encode(
            hashlib.md5(key, usedforsecurity=False).digest()
        ).decode("ascii"),
    }
    if put("sse-c", **secret).get("SSECustomerAlgorithm") != "AES256":
        return "no", "the headers were ignored"
    try:
        store.read(at("sse-c"))
    except (Denied, Misconfigured):
        return "yes", ""
    return "no", "the object was read without its key"


def _object_lock(store: S3Store, at: Callable[[str], str]) -> Answer:
    try:
        answer = store.ask(
            "ask for the object lock",
            at("lock"),
            lambda client, place: dict(
                client.get_object_lock_configuration(Bucket=place["Bucket"])
            ),
        )
    except Misconfigured as error:
        if "ObjectLockConfigurationNotFound" in str(error):
            return "no", "this bucket has none"
        raise
    configuration: Any = answer.get("ObjectLockConfiguration", {})
    enabled = configuration.get("ObjectLockEnabled")
    return ("yes", "") if enabled == "Enabled" else ("no", "this bucket has none")


def _versioning(store: S3Store, at: Callable[[str], str]) -> Answer:
    answer = store.ask(
        "ask for the versioning",
        at("versioning"),
        lambda client, place: dict(client.get_bucket_versioning(Bucket=place["Bucket"])),
    )
    if answer.get("Status") == "Enabled":
        return "yes", "what is deleted goes on costing until a lifecycle rule removes it"
    return "no", ""
