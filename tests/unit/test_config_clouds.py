"""What the file says about a store at Azure or Google."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from s3fs_banyan.app.build import store_options
from tests.unit.config_faults import SECRET
from tests.unit.test_config import faults, load, nested

AZURE = "type: azure, account: acc1, container: box"
FAULTS = [
    ("{type: azure, container: box}", ".account: is required when the type is 'azure'"),
    ("{type: azure, account: acc1}", ".container: is required when the type is 'azure'"),
    ("{type: gcs}", ".bucket: is required when the type is 'gcs'"),
    ("{type: gcs, bucket: abc, region: b}", ".region: has no meaning when the type is 'gcs'"),
    (
        "{type: s3, bucket: abc, account: acc1}",
        ".account: has no meaning when the type is 's3'",
    ),
    (
        f"{{{AZURE}, credentials: {{file: /a}}}}",
        ".credentials.file: has no meaning when the type is 'azure'",
    ),
    (
        f"{{{AZURE}, credentials: {{account_key: a, sas_token: b}}}}",
        ".credentials: give one of 'account_key', 'sas_token', 'connection_string'",
    ),
]


@pytest.mark.parametrize(("value", "why"), FAULTS)
def test_what_does_not_fit_together_is_one_line(tmp_path: Path, value: str, why: str) -> None:
    assert faults(tmp_path, nested("storage.remote", value)) == [f"storage.remote{why}"]


@pytest.mark.parametrize(
    ("value", "url"),
    [
        (f"{{{AZURE}, prefix: /a/b/}}", "az://acc1/box/a/b"),
        (f"{{{AZURE}}}", "az://acc1/box"),
        ("{type: gcs, bucket: abc, prefix: a}", "gs://abc/a"),
    ],
)
def test_the_address_in_the_file_is_the_one_of_the_command_line(
    tmp_path: Path, value: str, url: str
) -> None:
    assert load(tmp_path, nested("storage.remote", value)).storage.remote.url == url


@pytest.mark.parametrize("key", ["account_key", "sas_token", "connection_string"])
def test_a_secret_reaches_the_store_and_no_view_of_the_settings(tmp_path: Path, key: str) -> None:
    text = nested("storage.remote", f"{{{AZURE}, credentials: {{{key}: {SECRET}}}}}")
    config = load(tmp_path, text)
    assert SECRET not in repr(config) + str(config) + json.dumps(config.public_dict())
    assert config.secrets() == (SECRET,)
    options = store_options(config)
    assert getattr(options, key) == SECRET
    assert SECRET not in repr(options)
