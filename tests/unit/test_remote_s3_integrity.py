"""By what an upload is believed: every mode, every kind of answer."""

from __future__ import annotations

import base64
import hashlib
import zlib

import pytest

from s3fs_banyan.errors import ConfigError, Misconfigured
from s3fs_banyan.remote.base import Summed
from s3fs_banyan.remote.options import StoreOptions
from s3fs_banyan.remote.s3_integrity import VERIFY_MODES, Integrity, Upload, Verdict

DATA = b"0123456789"
MD5 = hashlib.md5(DATA, usedforsecurity=False).hexdigest()
WRONG_MD5 = "0" * 32
SHA256 = base64.b64encode(hashlib.sha256(DATA).digest()).decode()
SHA1 = base64.b64encode(hashlib.sha1(DATA, usedforsecurity=False).digest()).decode()
CRC32 = base64.b64encode(zlib.crc32(DATA).to_bytes(4, "big")).decode()
KMS = {"ServerSideEncryption": "aws:kms"}
DSSE = {"ServerSideEncryption": "aws:kms:dsse"}
CUSTOMER = {"SSECustomerAlgorithm": "AES256"}


def judged(integrity: Integrity, answer: dict[str, str], etag: str = MD5) -> Verdict:
    return integrity.judge(answer, etag, DATA, integrity.sums(DATA), "write x")


@pytest.mark.parametrize("verify", VERIFY_MODES)
@pytest.mark.parametrize("etag_is_md5", [True, False])
def test_the_md5_goes_up_in_every_mode(verify: str, etag_is_md5: bool) -> None:
    sent = Integrity(verify, etag_is_md5=etag_is_md5).sums(DATA).parameters()
    assert base64.b64decode(sent["ContentMD5"]).hex() == MD5
    asked = verify == "checksum" or (verify == "auto" and not etag_is_md5)
    assert sent.get("ChecksumSHA256") == (SHA256 if asked else None)


def test_sums_that_a_body_brings_along_are_not_computed_again() -> None:
    body = Summed(DATA)
    body.md5, body.sha256 = bytes(16), b""
    sums = Integrity("checksum", etag_is_md5=True).sums(body)
    assert sums.md5 == bytes(16)
    assert sums.sha256 == hashlib.sha256(DATA).digest(), "it was not known"
    body.sha256 = bytes(32)
    assert Integrity("checksum", etag_is_md5=True).sums(body).sha256 == bytes(32)


@pytest.mark.parametrize("verify", ["auto", "etag"])
def test_an_etag_that_is_an_md5_decides(verify: str) -> None:
    for answer in ({}, {"ServerSideEncryption": "AES256"}):
        integrity = Integrity(verify, etag_is_md5=True)
        good, wrong = judged(integrity, answer), judged(integrity, answer, WRONG_MD5)
        assert (good.how, good.good) == ("etag", True)
        assert (wrong.how, wrong.good) == ("etag", False)
        assert MD5 in wrong.why
        assert WRONG_MD5 in wrong.why


@pytest.mark.parametrize("answer", [KMS, DSSE, CUSTOMER])
def test_an_etag_under_encryption_with_a_key_does_not(answer: dict[str, str]) -> None:
    """It has the look of an MD5: believing it would refuse every upload, or none."""
    integrity = Integrity("auto", etag_is_md5=True)
    assert not integrity.asks_checksum
    assert judged(integrity, answer) == Verdict(how="read_back", good=None)
    assert integrity.asks_checksum, "the bucket has a default: from now on SHA-256 goes up"
    good = judged(integrity, answer | {"ChecksumSHA256": SHA256}, WRONG_MD5)
    assert (good.how, good.good) == ("checksum", True)
    with pytest.raises(Misconfigured, match="verify to auto"):
        judged(Integrity("etag", etag_is_md5=True), answer)


@pytest.mark.parametrize(
    ("name", "right"),
    [("ChecksumSHA256", SHA256), ("ChecksumSHA1", SHA1), ("ChecksumCRC32", CRC32)],
)
@pytest.mark.parametrize("verify", ["auto", "checksum"])
def test_the_stores_checksum_decides(verify: str, name: str, right: str) -> None:
    integrity = Integrity(verify, etag_is_md5=False)
    good, wrong = judged(integrity, {name: right}), judged(integrity, {name: "AAAA"})
    assert (good.how, good.good) == ("checksum", True)
    assert (wrong.how, wrong.good) == ("checksum", False)
    assert "AAAA" in wrong.why


def test_the_best_checksum_is_taken() -> None:
    integrity = Integrity("auto", etag_is_md5=False)
    both = {"ChecksumCRC32": CRC32, "ChecksumSHA256": "AAAA"}
    assert judged(integrity, both).good is False


@pytest.mark.parametrize("answer", [{}, {"ChecksumCRC64NVME": "AAAA"}, {"ChecksumCRC32C": "AAAA"}])
def test_what_proves_nothing_is_read(answer: dict[str, str]) -> None:
    assert judged(Integrity("auto", etag_is_md5=False), answer).good is None
    assert judged(Integrity("auto", etag_is_md5=True), answer, "no-md5").good is None
    with pytest.raises(Misconfigured, match="no checksum"):
        judged(Integrity("checksum", etag_is_md5=True), answer)


def test_the_two_ends_of_the_scale() -> None:
    everything = {"ChecksumSHA256": SHA256}
    assert judged(Integrity("read-back", etag_is_md5=True), everything).good is None
    alone = judged(Integrity("none", etag_is_md5=True), {}, WRONG_MD5)
    assert (alone.how, alone.good) == ("content_md5", True)


def test_a_read_is_compared_only_where_the_etag_is_believed() -> None:
    assert Integrity("auto", etag_is_md5=True).is_md5({}, MD5)
    assert not Integrity("auto", etag_is_md5=True).is_md5(KMS, MD5)
    assert not Integrity("auto", etag_is_md5=True).is_md5({}, f"{MD5}-3")
    assert not Integrity("auto", etag_is_md5=False).is_md5({}, MD5)
    for verify in ("checksum", "read-back", "none"):
        assert not Integrity(verify, etag_is_md5=True).is_md5({}, MD5)


@pytest.mark.parametrize(
    ("verify", "etag_is_md5", "unproven", "proven"),
    [
        ("auto", True, True, True),
        ("auto", False, True, False),
        ("auto", False, False, True),
        ("checksum", False, True, True),
        ("etag", True, True, True),
        ("none", False, True, True),
        ("read-back", True, False, False),
    ],
)
def test_which_multipart_uploads_are_read(
    verify: str, etag_is_md5: bool, unproven: bool, proven: bool
) -> None:
    integrity = Integrity(verify, etag_is_md5=etag_is_md5)
    assert integrity.is_proven(Upload(checksums=False, unproven=unproven)) == proven


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected one of auto, etag"):
        StoreOptions(verify="md5")
