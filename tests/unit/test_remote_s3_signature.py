"""What stands for a body in the signature: the sum that it brings along."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from botocore.auth import AUTH_TYPE_MAPS
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from s3fs_banyan.remote import s3_client
from s3fs_banyan.remote.base import Summed

BODY = b"a body"


def signed_sum(url: str, body: bytes | bytearray, **headers: str) -> str:
    """Sign a request as the SDK does; returns the header that stands for its body."""
    request = AWSRequest("PUT", url, headers=headers, data=body)
    chosen: Any = AUTH_TYPE_MAPS["s3v4"]
    assert chosen.__module__ == s3_client.__name__
    signer = chosen(Credentials("key", "secret"), "s3", "us-east-1")
    signer.add_auth(request)
    assert "Signature=" in request.headers["Authorization"]
    return str(request.headers["X-Amz-Content-SHA256"])


def summed() -> Summed:
    """A body with sums that are not its own, so that it shows where they are used."""
    body = Summed(BODY)
    body.md5, body.sha256 = bytes(16), bytes(range(32))
    return body


def test_a_known_sum_is_used_on_a_plain_connection() -> None:
    """There the SDK signs the whole body: one more look at each byte."""
    assert signed_sum("http://store/b/k", summed()) == bytes(range(32)).hex()


@pytest.mark.parametrize("body", [BODY, bytearray(BODY)])
def test_a_body_without_sums_is_looked_at(body: bytes | bytearray) -> None:
    assert signed_sum("http://store/b/k", body) == hashlib.sha256(BODY).hexdigest()


def test_a_sum_that_is_not_known_is_computed() -> None:
    """A part brings its MD5 along only."""
    body = summed()
    body.sha256 = b""
    assert signed_sum("http://store/b/k", body) == hashlib.sha256(BODY).hexdigest()


def test_within_tls_nothing_changes() -> None:
    """What the SDK does there is its own affair: sign the body, or say that it did not."""
    plain, known = (
        signed_sum("https://store/b/k", body, **{"Content-MD5": "x"})
        for body in (bytearray(BODY), summed())
    )
    assert plain == known
