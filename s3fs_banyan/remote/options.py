"""What a person says about a store: its URL and its options. No call is made from here."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from s3fs_banyan.errors import ConfigError
from s3fs_banyan.remote.base import check_path

_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_FORMS: Final = "use s3://BUCKET/PREFIX or file:///DIRECTORY"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreUrl:
    """A parsed store URL: for `s3` a bucket and a prefix, for `file` a directory."""

    scheme: str
    bucket: str = ""
    prefix: str = ""
    directory: Path = Path("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """How a store is reached. Secrets are not part of the repr."""

    region: str = ""
    endpoint_url: str = ""
    """Empty for Amazon's own; else `http(s)://host:port` of another S3 service."""
    access_key: str = field(default="", repr=False)
    secret_key: str = field(default="", repr=False)
    """Both keys empty: the SDK's standard chain (environment, profile, instance role)."""
    session_token: str = field(default="", repr=False)
    path_style: bool | None = None
    """Bucket in the path and not in the host name; None: if an `endpoint_url` is given."""
    verify_tls: bool = True
    ca_bundle: str = ""
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 30.0
    connections: int = 24
    retry_deadline_s: float = 20.0
    etag_is_md5: bool = True
    """False for a service whose ETag has the look of an MD5 and is none."""
    # Pacing (pacer.py); flat, since the worker gets these options as plain values.
    pacing: bool = True
    hedging: bool = True
    """Give stalled requests up, and ask for slow small reads twice."""
    uploads_min: int = 1
    uploads_max: int = 32
    demand_min: int = 8
    demand_max: int = 32
    prefetch_min: int = 1
    prefetch_max: int = 16
    upload_rate_bytes: int = 0
    """Bytes a second, 0 for no cap."""
    download_rate_bytes: int = 0

    def __post_init__(self) -> None:
        """Raise `ConfigError` for values that cannot work together."""
        if bool(self.access_key) != bool(self.secret_key):
            raise ConfigError("store: give access_key and secret_key, or neither of them")
        if self.session_token and not self.access_key:
            raise ConfigError("store: session_token goes with access_key and secret_key")
        if self.endpoint_url:
            _check_endpoint(self.endpoint_url)
        if self.ca_bundle and not Path(self.ca_bundle).is_file():
            raise ConfigError(f"store: ca_bundle {self.ca_bundle} is no file")
        for name in ("connect_timeout_s", "read_timeout_s", "connections", "retry_deadline_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"store: {name} must be above 0")
        for kind in ("uploads", "demand", "prefetch"):
            if not 1 <= getattr(self, f"{kind}_min") <= getattr(self, f"{kind}_max"):
                raise ConfigError(f"store: {kind}_min must be from 1 to {kind}_max")
        if min(self.upload_rate_bytes, self.download_rate_bytes) < 0:
            raise ConfigError("store: a bandwidth cap must not be below 0")

    @property
    def pool_connections(self) -> int:
        """How many connections the client may keep: one for whatever may be in flight at once.

        A smaller pool would not bound anything, but close and open connections all the time.
        """
        if not self.pacing:
            return self.connections
        return self.connections + max(self.uploads_max, self.demand_max)

    @property
    def uses_path_style(self) -> bool:
        """Whether the bucket goes into the path of a request."""
        return bool(self.endpoint_url) if self.path_style is None else self.path_style


def parse_store_url(url: str) -> StoreUrl:
    """Return what the URL says, or raise `ConfigError` with what to do."""
    parts = urlsplit(url)
    # The URL itself is quoted only after this check: a password in it must not get into a log.
    if "@" in parts.netloc:
        raise ConfigError(
            "store URL with credentials in it: take them out, and give access_key and secret_key "
            "in the configuration or the environment"
        )
    if parts.query or parts.fragment:
        raise ConfigError(f"store URL {url!r} has a query or a fragment: {_FORMS}")
    if parts.scheme == "s3":
        return _parse_s3(url, parts.netloc, parts.path)
    if parts.scheme == "file":
        return _parse_file(url, parts.netloc, parts.path)
    raise ConfigError(f"store URL {url!r} is of no kind that is known: {_FORMS}")


def _parse_s3(url: str, bucket: str, path: str) -> StoreUrl:
    if not _BUCKET.fullmatch(bucket):
        raise ConfigError(
            f"store URL {url!r}: {bucket!r} is no bucket name (3 to 63 letters, digits, dots, "
            "hyphens)"
        )
    prefix = path.strip("/")
    if prefix:
        try:
            check_path(prefix)
        except ValueError as error:
            raise ConfigError(f"store URL {url!r}: unusable prefix: {error}") from error
    return StoreUrl(scheme="s3", bucket=bucket, prefix=prefix)


def _parse_file(url: str, host: str, path: str) -> StoreUrl:
    if host not in {"", "localhost"}:
        raise ConfigError(
            f"store URL {url!r} names the host {host!r}: a local directory has three slashes, "
            "file:///DIRECTORY"
        )
    directory = Path(unquote(path))
    usable = directory.is_absolute() and directory != Path("/") and ".." not in directory.parts
    if not usable or "\0" in str(directory):
        raise ConfigError(f"store URL {url!r}: give the absolute path of a directory of its own")
    return StoreUrl(scheme="file", directory=directory)


def _check_endpoint(endpoint_url: str) -> None:
    parts = urlsplit(endpoint_url)
    if "@" in parts.netloc:
        raise ConfigError("store: endpoint_url with credentials in it: take them out")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigError(f"store: endpoint_url {endpoint_url!r}: use http(s)://HOST:PORT")
