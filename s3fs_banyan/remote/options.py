"""What a person says about a store: its URL and its options. No call is made from here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from s3fs_banyan.errors import ConfigError
from s3fs_banyan.remote.base import check_path
from s3fs_banyan.remote.s3_encryption import ServerEncryption
from s3fs_banyan.remote.s3_integrity import VERIFY_MODES

_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_ACCOUNT: Final = re.compile(r"[a-z0-9]{3,24}")
_CONTAINER: Final = re.compile(r"(?=.{3,63}$)[a-z0-9]+(-[a-z0-9]+)*")
_FORMS: Final = (
    "use s3://BUCKET/PREFIX, az://ACCOUNT/CONTAINER/PREFIX, gs://BUCKET/PREFIX or file:///DIRECTORY"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreUrl:
    """A parsed store URL: a bucket and a prefix, for `az` with an account, or a directory."""

    scheme: str
    account: str = ""
    bucket: str = ""
    """For `az` the container."""
    prefix: str = ""
    directory: Path = Path("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """How a store is reached. Secrets are not part of the repr."""

    region: str = ""
    endpoint_url: str = ""
    """Empty for the provider's own; else `http(s)://host:port` of another service. For Azure it
    is the address of the account: an emulator's has the account's name as its path."""
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
    # What of S3's server-side encryption and of uploads; see `s3_encryption`, `s3_integrity`.
    encryption: str = ""
    encryption_key_id: str = ""
    encryption_bucket_key: bool | None = None
    encryption_context: Mapping[str, str] = field(default_factory=dict)
    encryption_key: str = field(default="", repr=False)
    """SSE-C: the key, base64. A secret."""
    verify: str = "auto"
    # Azure: one of the three, or the environment, or this machine's identity.
    account_key: str = field(default="", repr=False)
    sas_token: str = field(default="", repr=False)
    connection_string: str = field(default="", repr=False)
    # Google: a service account's JSON file; empty for the standard chain.
    credentials_file: str = ""
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

    @property
    def secrets(self) -> dict[str, str]:
        """Name -> value of what must never be shown, of those that are given."""
        hidden = [one.name for one in fields(self) if not one.repr]
        return {name: value for name in hidden if (value := getattr(self, name))}

    def __post_init__(self) -> None:
        """Raise `ConfigError` for values that cannot work together, or cannot be sent."""
        for name, value in self.secrets.items():
            if not value.isprintable():
                raise ConfigError(
                    f"store: {name} has a line end or another control character in it: take it out"
                )
        if bool(self.access_key) != bool(self.secret_key):
            raise ConfigError("store: give access_key and secret_key, or neither of them")
        if self.session_token and not self.access_key:
            raise ConfigError("store: session_token goes with access_key and secret_key")
        if sum(map(bool, (self.account_key, self.sas_token, self.connection_string))) > 1:
            raise ConfigError("store: give one of account_key, sas_token and connection_string")
        if self.connection_string and self.endpoint_url:
            raise ConfigError("store: connection_string names the end point: drop endpoint_url")
        if self.credentials_file and not Path(self.credentials_file).is_file():
            raise ConfigError(f"store: credentials_file {self.credentials_file} is no file")
        if self.endpoint_url:
            _check_endpoint(self.endpoint_url)
        if self.ca_bundle and not Path(self.ca_bundle).is_file():
            raise ConfigError(f"store: ca_bundle {self.ca_bundle} is no file")
        for name in ("connect_timeout_s", "read_timeout_s", "connections", "retry_deadline_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"store: {name} must be above 0")
        if self.verify not in VERIFY_MODES:
            raise ConfigError(f"store: verify: expected one of {', '.join(VERIFY_MODES)}")
        if self.encryption_key and not _keeps_secrets(self.endpoint_url):
            raise ConfigError(
                "store: sse-c sends the key with every request: use an https:// endpoint_url"
            )
        _ = self.server_encryption
        self._check_pacing()

    def _check_pacing(self) -> None:
        for kind in ("uploads", "demand", "prefetch"):
            if not 1 <= getattr(self, f"{kind}_min") <= getattr(self, f"{kind}_max"):
                raise ConfigError(f"store: {kind}_min must be from 1 to {kind}_max")
        if min(self.upload_rate_bytes, self.download_rate_bytes) < 0:
            raise ConfigError("store: a bandwidth cap must not be below 0")

    @property
    def server_encryption(self) -> ServerEncryption:
        """What the store is asked to encrypt with; raises `ConfigError` for what cannot work."""
        return ServerEncryption(
            kind=self.encryption,
            key_id=self.encryption_key_id,
            bucket_key=self.encryption_bucket_key,
            context=self.encryption_context,
            key=self.encryption_key,
        )

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
            "store URL with credentials in it: take them out, and give them (access_key and "
            "secret_key for S3) in the configuration or the environment"
        )
    if parts.query or parts.fragment:
        raise ConfigError(f"store URL {url!r} has a query or a fragment: {_FORMS}")
    if parts.scheme in {"s3", "gs"}:
        return _parse_bucket(parts.scheme, url, parts.netloc, parts.path)
    if parts.scheme == "az":
        return _parse_az(url, parts.netloc, parts.path)
    if parts.scheme == "file":
        return _parse_file(url, parts.netloc, parts.path)
    raise ConfigError(f"store URL {url!r} is of no kind that is known: {_FORMS}")


def _parse_bucket(scheme: str, url: str, bucket: str, path: str) -> StoreUrl:
    if not _BUCKET.fullmatch(bucket):
        raise ConfigError(
            f"store URL {url!r}: {bucket!r} is no bucket name (3 to 63 letters, digits, dots, "
            "hyphens)"
        )
    return StoreUrl(scheme=scheme, bucket=bucket, prefix=_prefix_of(url, path))


def _parse_az(url: str, account: str, path: str) -> StoreUrl:
    if not _ACCOUNT.fullmatch(account):
        raise ConfigError(
            f"store URL {url!r}: {account!r} is no storage account (3 to 24 small letters and "
            "digits): use az://ACCOUNT/CONTAINER/PREFIX"
        )
    container, _, prefix = path.lstrip("/").partition("/")
    if not _CONTAINER.fullmatch(container):
        raise ConfigError(
            f"store URL {url!r}: {container!r} is no container name (3 to 63 small letters, "
            "digits, single hyphens): use az://ACCOUNT/CONTAINER/PREFIX"
        )
    return StoreUrl(scheme="az", account=account, bucket=container, prefix=_prefix_of(url, prefix))


def _prefix_of(url: str, path: str) -> str:
    prefix = path.strip("/")
    if prefix:
        try:
            check_path(prefix)
        except ValueError as error:
            raise ConfigError(f"store URL {url!r}: unusable prefix: {error}") from error
    return prefix


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


def _keeps_secrets(endpoint_url: str) -> bool:
    """Tell whether nobody else hears what is sent to an end point: TLS, or this very machine."""
    parts = urlsplit(endpoint_url)
    host = parts.hostname or ""
    local = host in {"localhost", "::1"} or host.startswith("127.")
    return parts.scheme in {"", "https"} or local
