"""Store URLs: what is taken, and that everything else is refused in words."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from s3fs_banyan.errors import ConfigError, Misconfigured
from s3fs_banyan.remote.open import open_store
from s3fs_banyan.remote.options import StoreOptions, StoreUrl, parse_store_url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket", StoreUrl(scheme="s3", bucket="bucket")),
        ("s3://bucket/", StoreUrl(scheme="s3", bucket="bucket")),
        ("s3://my.bucket-1/a/b", StoreUrl(scheme="s3", bucket="my.bucket-1", prefix="a/b")),
        ("s3://bucket/a/b/", StoreUrl(scheme="s3", bucket="bucket", prefix="a/b")),
        ("gs://bucket/a/b/", StoreUrl(scheme="gs", bucket="bucket", prefix="a/b")),
        ("az://acc1/box", StoreUrl(scheme="az", account="acc1", bucket="box")),
        ("az://acc1/box/", StoreUrl(scheme="az", account="acc1", bucket="box")),
        (
            "az://acc1/box-2/a/b/",
            StoreUrl(scheme="az", account="acc1", bucket="box-2", prefix="a/b"),
        ),
        ("file:///srv/store", StoreUrl(scheme="file", directory=Path("/srv/store"))),
        ("file://localhost/srv/x/", StoreUrl(scheme="file", directory=Path("/srv/x"))),
        ("file:///srv/two%20words", StoreUrl(scheme="file", directory=Path("/srv/two words"))),
    ],
)
def test_good_url(url: str, expected: StoreUrl) -> None:
    assert parse_store_url(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "bucket",
        "/srv/store",
        "memory://store",
        "http://host/bucket",
        "S3:bucket",
        "s3://",
        "s3:///prefix",
        "s3://ab",
        "s3://-bucket",
        "s3://bucket/a//b",
        "s3://bucket/../other",
        "s3://bucket/a b",
        "s3://bucket/é",
        "s3://bucket/a?x=1",
        "s3://bucket/a#x",
        "s3://bucket:9000/a",
        "gs://",
        "gs://bucket/a//b",
        "az://",
        "az://acc1",
        "az://acc1/",
        "az://Acc/box",
        "az://acc1/Box",
        "az://acc1/b--x",
        "az://acc1/box/a//b",
        "az://acc1.blob.example.net/box",
        "file://srv/store",
        "file://",
        "file:///",
        "file:///srv/../etc",
        "file:///srv/%00",
    ],
)
def test_bad_url_says_what_is_wrong(url: str) -> None:
    with pytest.raises(ConfigError, match="store URL"):
        parse_store_url(url)


def test_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="access_key and secret_key") as caught:
        parse_store_url("s3://key:very-secret@bucket/prefix")
    assert "very-secret" not in str(caught.value)


def test_path_style_follows_the_end_point_unless_told() -> None:
    assert not StoreOptions().uses_path_style
    assert StoreOptions(endpoint_url="http://127.0.0.1:9000").uses_path_style
    assert not StoreOptions(endpoint_url="http://h:1", path_style=False).uses_path_style
    assert StoreOptions(path_style=True).uses_path_style


def test_directory_is_made_only_when_asked(tmp_path: Path) -> None:
    """A mistyped path, or a disk that is not mounted, must not read as an empty store."""
    url = (tmp_path / "new" / "store").as_uri()
    with pytest.raises(Misconfigured, match="no such directory"):
        open_store(url, StoreOptions())
    assert list(tmp_path.iterdir()) == []
    open_store(url, StoreOptions(), create=True).write("x", b"0123")
    assert open_store(url, StoreOptions()).read("x") == b"0123"


@pytest.mark.parametrize("url", ["az://acc1/box", "gs://bucket/x", "file:///tmp"])
def test_a_proof_that_only_s3_gives_is_refused_elsewhere(url: str) -> None:
    """Accepted and ignored, it would be believed."""
    with pytest.raises(ConfigError, match=r"storage\.remote\.verify: is for S3"):
        open_store(url, StoreOptions(verify="read-back"))


@pytest.mark.parametrize("url", ["az://acc1/box", "gs://bucket/x"])
def test_store_whose_sdk_is_not_installed_says_what_to_install(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDKs of the clouds are optional, and most installations have none."""
    for name in ("azure", "gcs"):
        monkeypatch.delitem(sys.modules, f"s3fs_banyan.remote.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "azure.storage.blob", None)
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    with pytest.raises(
        ConfigError, match=r"is not installed: pip install 's3fs-banyan\[(azure|gcs)\]"
    ):
        open_store(url, StoreOptions())


@pytest.mark.parametrize(
    ("url", "options"),
    [
        (
            "az://acc1/box/p",
            StoreOptions(endpoint_url="http://127.0.0.1:9/acc1", account_key="a2V5"),
        ),
        ("gs://bucket/p", StoreOptions(endpoint_url="http://127.0.0.1:9")),
    ],
)
def test_opening_a_store_of_a_cloud_makes_no_call(url: str, options: StoreOptions) -> None:
    store = open_store(url, options)
    assert store.url == url
    store.close()


def test_opening_an_s3_store_makes_no_call() -> None:
    """A store that is away is no error at mount: nothing may be asked of it before."""
    options = StoreOptions(endpoint_url="http://127.0.0.1:9", access_key="a", secret_key="s")
    store = open_store("s3://bucket/prefix", options)
    assert store.url == "s3://bucket/prefix"
    store.close()
