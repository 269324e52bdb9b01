"""What server-side encryption adds to a request, what it demands of an answer, what it refuses."""

from __future__ import annotations

import base64
import json
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from s3fs_banyan.app.build import store_options
from s3fs_banyan.config import load_config
from s3fs_banyan.errors import ConfigError, Denied, Misconfigured
from s3fs_banyan.observe.log import redact
from s3fs_banyan.remote.open import open_store
from s3fs_banyan.remote.options import StoreOptions
from s3fs_banyan.remote.s3_encryption import ServerEncryption, load_customer_key

KEY = bytes(range(32))
KEY_TEXT = base64.b64encode(KEY).decode()
KEY_MD5 = "tP+cs7HBjvLkC9eHqnr7Nw=="

S3 = ServerEncryption(kind="sse-s3")
KMS = ServerEncryption(kind="sse-kms", key_id="k", bucket_key=False, context={"b": "2", "a": "1"})
C = ServerEncryption(kind="sse-c", key=KEY_TEXT)


def test_new_objects_are_asked_to_be_encrypted() -> None:
    assert ServerEncryption().for_new() == {}
    assert S3.for_new() == {"ServerSideEncryption": "AES256"}
    asked = KMS.for_new()
    context = json.loads(base64.b64decode(asked.pop("SSEKMSEncryptionContext")))
    assert context == {"a": "1", "b": "2"}
    assert asked == {
        "ServerSideEncryption": "aws:kms",
        "SSEKMSKeyId": "k",
        "BucketKeyEnabled": False,
    }
    plain = ServerEncryption(kind="sse-kms", key_id="k")
    assert plain.for_new() == {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "k"}


def test_a_customers_key_goes_with_every_request_and_the_others_with_none() -> None:
    digest = C.for_bytes()["SSECustomerKeyMD5"]
    expected = {
        "SSECustomerAlgorithm": "AES256",
        "SSECustomerKey": KEY_TEXT,
        "SSECustomerKeyMD5": digest,
    }
    assert C.for_new() == C.for_bytes() == expected
    assert S3.for_bytes() == KMS.for_bytes() == ServerEncryption().for_bytes() == {}


def test_etags_are_md5s_only_without_a_key() -> None:
    assert ServerEncryption().etag_is_md5
    assert S3.etag_is_md5
    assert not KMS.etag_is_md5
    assert not C.etag_is_md5


@pytest.mark.parametrize(
    ("encryption", "answer", "good"),
    [
        (ServerEncryption(), {}, True),
        (ServerEncryption(), {"ServerSideEncryption": "aws:kms"}, True),
        (S3, {"ServerSideEncryption": "AES256"}, True),
        (S3, {"ServerSideEncryption": "aws:kms"}, False),
        (S3, {}, False),
        (KMS, {"ServerSideEncryption": "aws:kms"}, True),
        (KMS, {"ServerSideEncryption": "aws:kms:dsse"}, True),
        (KMS, {"ServerSideEncryption": "AES256"}, False),
        (KMS, {}, False),
        (C, {"SSECustomerAlgorithm": "AES256"}, True),
        (C, {"ServerSideEncryption": "AES256"}, False),
        (C, {}, False),
    ],
)
def test_an_answer_that_says_nothing_of_encryption_is_no_success(
    encryption: ServerEncryption, answer: dict[str, Any], good: bool
) -> None:
    """A store that ignores what it does not know would keep everything in clear."""
    if good:
        encryption.check_answer(answer, "write x")
        return
    with pytest.raises(Misconfigured, match=f"write x: {encryption.kind} was asked for"):
        encryption.check_answer(answer, "write x")


def test_a_refused_read_names_the_key() -> None:
    """The store's own words for it are "Access Denied", or none."""
    for operation, status in (("GetObject", 403), ("HeadObject", 403), ("GetObject", 400)):
        error = C.refusal(operation, status, "Access Denied.", "read x")
        assert isinstance(error, Denied)
        assert "storage.remote.encryption" in str(error)
        assert KEY_TEXT not in str(error)
    assert C.refusal("PutObject", 403, "", "write x") is None
    assert C.refusal("GetObject", 404, "", "read x") is None
    assert S3.refusal("GetObject", 403, "Access Denied.", "read x") is None
    said = "The object was stored using a form of Server Side Encryption."
    without = ServerEncryption().refusal("GetObject", 400, said, "read x")
    assert isinstance(without, Denied)
    assert "sse-c" in str(without)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"kind": "sse-x"}, "expected one of sse-s3, sse-kms, sse-c"),
        ({"kind": "sse-kms"}, "needs the key_id"),
        ({"kind": "sse-s3", "key_id": "k"}, "for sse-kms only"),
        ({"kind": "sse-c", "key": KEY_TEXT, "context": {"a": "b"}}, "for sse-kms only"),
        ({"bucket_key": True}, "for sse-kms only"),
        ({"kind": "sse-c"}, "needs a key"),
        ({"kind": "sse-s3", "key": KEY_TEXT}, "for sse-c only"),
        ({"kind": "sse-c", "key": "AAAA"}, "has 3 bytes, it must have 32"),
        ({"kind": "sse-c", "key": KEY_TEXT + "!"}, "not base64"),
    ],
)
def test_values_that_do_not_go_together_are_refused(values: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        ServerEncryption(**values)
    assert KEY_TEXT not in str(caught.value)


def test_a_key_file_holds_the_bytes_or_their_base64(tmp_path: Path) -> None:
    file = tmp_path / "key"
    for content in (KEY, KEY_TEXT.encode(), f"{KEY_TEXT}\n".encode()):
        file.write_bytes(content)
        assert load_customer_key(file) == KEY_TEXT
    for content in (b"", KEY[:31], KEY + b"\n", b"x" * 5000, f"{KEY_TEXT}{KEY_TEXT}".encode()):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match="expected 32 bytes") as caught:
            load_customer_key(file)
        assert KEY_TEXT not in str(caught.value)
    with pytest.raises(ConfigError, match="No such file"):
        load_customer_key(tmp_path / "absent")


def test_the_key_is_in_no_repr_and_reaches_the_worker() -> None:
    options = StoreOptions(encryption="sse-c", encryption_key=KEY_TEXT)
    assert KEY_TEXT not in repr(options)
    assert KEY_TEXT not in repr(options.server_encryption)
    assert pickle.loads(pickle.dumps(options)) == options  # noqa: S301  # our own
    kms = StoreOptions(encryption="sse-kms", encryption_key_id="k", encryption_context={"a": "b"})
    for one in (options, kms):
        assert StoreOptions(**json.loads(json.dumps(asdict(one)))) == one


def test_a_customers_key_is_not_sent_where_others_can_read_it() -> None:
    """The key itself goes with each request; the secret key of the account never does."""
    for endpoint_url in ("http://store.example.org:9000", "http://10.0.0.1"):
        with pytest.raises(ConfigError, match="https") as caught:
            StoreOptions(endpoint_url=endpoint_url, encryption="sse-c", encryption_key=KEY_TEXT)
        assert KEY_TEXT not in str(caught.value)
    for endpoint_url in ("", "https://store.example.org", "http://127.0.0.1:9", "http://[::1]:9"):
        StoreOptions(endpoint_url=endpoint_url, encryption="sse-c", encryption_key=KEY_TEXT)


def test_a_directory_is_not_encrypted_by_its_store(tmp_path: Path) -> None:
    """Nobody shall believe that it is."""
    with pytest.raises(ConfigError, match="encryption"):
        open_store((tmp_path / "s").as_uri(), StoreOptions(encryption="sse-s3"), create=True)
    assert list(tmp_path.iterdir()) == []


def test_the_configuration_gives_the_options(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    head = "storage:\n  remote:\n    type: s3\n    bucket: bucket\n"
    kms = "{type: sse-kms, key_id: k, bucket_key: true, context: {a: b}}"
    config.write_text(f"{head}    verify: checksum\n    encryption: {kms}\n", encoding="utf-8")
    options = store_options(load_config(config, {}))
    expected = ServerEncryption(kind="sse-kms", key_id="k", bucket_key=True, context={"a": "b"})
    assert options.server_encryption == expected
    assert options.verify == "checksum"

    config.write_text(f"{head}    encryption: {{type: sse-c, key: '${{K}}'}}\n", encoding="utf-8")
    found = load_config(config, {}, environ={"K": KEY_TEXT})
    assert store_options(found).server_encryption == C
    assert KEY_TEXT in found.secrets()
    assert KEY_TEXT not in json.dumps(found.public_dict()) + repr(found)

    (tmp_path / "key").write_bytes(KEY)
    file = f"{{type: sse-c, key_file: '{tmp_path / 'key'}'}}"
    config.write_text(f"{head}    encryption: {file}\n", encoding="utf-8")
    assert store_options(load_config(config, {})).server_encryption == C
    assert KEY_TEXT not in redact(f"said {KEY_TEXT} aloud")


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("{key_id: k}", "type: is required when 'key_id' is given"),
        ("{type: sse-kms}", "key_id: is required when the type is 'sse-kms'"),
        ("{type: sse-kms, key_id: k, key_file: /k}", "key_file: has no meaning when the type is"),
        ("{type: sse-s3, bucket_key: false}", "bucket_key: has no meaning when the type is"),
        ("{type: sse-c}", "key: one of 'key' and 'key_file' is required"),
        (f"{{type: sse-c, key: '{KEY_TEXT}', key_file: /k}}", "key: one of 'key' and 'key_file'"),
        (f"{{type: sse-c, key: '{KEY_TEXT}', context: {{a: b}}}}", "context: has no meaning"),
    ],
)
def test_faults_of_the_section_are_one_line_each(tmp_path: Path, section: str, line: str) -> None:
    config = tmp_path / "c.yaml"
    head = "storage:\n  remote:\n    type: s3\n    bucket: bucket\n"
    config.write_text(f"{head}    encryption: {section}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(config, {})
    assert str(caught.value).startswith(f"storage.remote.encryption.{line}")
    assert "\n" not in str(caught.value)
    assert KEY_TEXT not in str(caught.value)
