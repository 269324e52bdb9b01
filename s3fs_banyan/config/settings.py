"""The settings of a mount: read once, checked once, frozen.

Owns the file's keys, their defaults and their limits, and the one-line faults that a person
reads (`file` owns the YAML and the `${VAR}`). Keys are short (`commit.interval`) and take
human sizes and durations; attributes carry the unit last (`config.commit.interval_s`) and are
plain numbers. `docs/configuration.md` lists every key; a test compares it with the models.

Invariant: no value from the file or the environment is ever part of a fault, so a secret cannot
be, wherever a person wrote it by mistake. It must not know what the settings are used for: the
layers above take values, and `remote` turns a store address and these values into a store.
"""

from __future__ import annotations

import base64
import difflib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, get_args, get_origin
from urllib.parse import quote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from s3fs_banyan.config.cost import Budget, ClassRule, Cost, Glob
from s3fs_banyan.config.faults import remote_faults, size_faults
from s3fs_banyan.config.file import put, read_file
from s3fs_banyan.config.kinds import Section, key_names
from s3fs_banyan.config.kinds import fail as _fail
from s3fs_banyan.config.kinds import seconds as _seconds
from s3fs_banyan.config.kinds import size as _size
from s3fs_banyan.config.units import (
    DAY_S,
    GIB,
    HOUR_S,
    KIB,
    MIB,
    MINUTE_S,
    PIB,
    TIB,
)
from s3fs_banyan.errors import ConfigError

HIDDEN: Final = "***"
"""What stands in the place of a secret in everything that is shown."""


def _check_absolute(path: Path) -> Path:
    if not path.is_absolute():
        _fail("must be an absolute path")
    return path


def _check_bucket(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]", name):
        _fail("not the name of a bucket: only the name, without 's3://' and without a prefix")
    return name


def _check_account(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9]{3,24}", name):
        _fail("not the name of a storage account: 3 to 24 small letters and digits")
    return name


def _check_container(name: str) -> str:
    if not re.fullmatch(r"(?=.{3,63}$)[a-z0-9]+(-[a-z0-9]+)*", name):
        _fail("not the name of a container: 3 to 63 small letters, digits and single hyphens")
    return name


def _check_prefix(prefix: str) -> str:
    """Return the prefix without slashes at its ends; its parts are those that a store allows."""
    stripped = prefix.strip("/")
    parts = stripped.split("/") if stripped else []
    if any(part in {"", ".", ".."} or re.search(r"[^A-Za-z0-9._=-]", part) for part in parts):
        _fail("only letters, digits and -_.=/ are allowed, and no empty, '.' or '..' part")
    return stripped


def _check_endpoint(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, brackets that do not match
        usable = False
        parts = urlsplit("")
    if not usable:
        _fail("not an address: write http://HOST:PORT or https://HOST:PORT")
    if parts.username is not None or parts.query or parts.fragment:
        _fail("only scheme, host, port and path are allowed: keys belong under 'credentials'")
    return url.rstrip("/")


def _check_listen_address(address: str) -> str:
    shape = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]]+):([0-9]{1,5})", address)
    if address and (shape is None or int(shape[2]) > 65535):
        _fail("not an address to listen on: write HOST:PORT, such as 127.0.0.1:9464")
    return address


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


# --- the sections ------------------------------------------------------------------------


class Credentials(Section):
    """Keys of the store's account; without them the store's standard chain applies."""

    access_key: SecretStr | None = None
    secret_key: SecretStr | None = None
    session_token: SecretStr | None = None
    account_key: SecretStr | None = None
    sas_token: SecretStr | None = None
    connection_string: SecretStr | None = None
    file: Annotated[Path, AfterValidator(_check_absolute)] | None = None

    @field_serializer(
        "access_key", "secret_key", "session_token", "account_key", "sas_token", "connection_string"
    )
    def _hide(self, secret: SecretStr | None) -> str | None:
        return None if secret is None else HIDDEN


def _check_customer_key(key: SecretStr) -> SecretStr:
    try:
        size = len(base64.b64decode(key.get_secret_value(), validate=True))
    except ValueError:
        _fail("not base64: write the 32 bytes of the key in base64")
    if size != 32:
        _fail(f"a key of {size} bytes: it must have 32, in base64")
    return key


class Encryption(Section):
    """How the store encrypts what it holds (server side)."""

    type: Literal["sse-s3", "sse-kms", "sse-c"] | None = None
    key_id: str | None = None
    bucket_key: bool | None = None
    context: dict[str, str] | None = None
    key: Annotated[SecretStr, AfterValidator(_check_customer_key)] | None = None
    key_file: Annotated[Path, AfterValidator(_check_absolute)] | None = None

    @field_serializer("key")
    def _hide(self, secret: SecretStr | None) -> str | None:
        return None if secret is None else HIDDEN


class Pacing(Section):
    """How many requests of each class may be in flight, and how many bytes a second may go."""

    enabled: bool = True
    hedging: bool = True
    uploads_min: int = Field(default=1, ge=1, le=256)
    uploads_max: int = Field(default=32, ge=1, le=256)
    demand_min: int = Field(default=8, ge=1, le=256)
    demand_max: int = Field(default=32, ge=1, le=256)
    prefetch_min: int = Field(default=1, ge=1, le=256)
    prefetch_max: int = Field(default=16, ge=1, le=256)
    upload_rate_bytes: Annotated[int, _size()] = Field(default=0, alias="upload_rate")
    download_rate_bytes: Annotated[int, _size()] = Field(default=0, alias="download_rate")


class Remote(Section):
    """Where the volume lies in the store, and how to talk to it."""

    type: Literal["s3", "azure", "gcs", "file"] | None = None
    account: Annotated[str, AfterValidator(_check_account)] | None = None
    container: Annotated[str, AfterValidator(_check_container)] | None = None
    bucket: Annotated[str, AfterValidator(_check_bucket)] | None = None
    prefix: Annotated[str, AfterValidator(_check_prefix)] = ""
    directory: Annotated[Path, AfterValidator(_check_absolute)] | None = None
    region: str | None = None
    endpoint_url: Annotated[str, AfterValidator(_check_endpoint)] | None = None
    path_style: bool | None = None
    verify_tls: bool = True
    ca_bundle: Annotated[Path, AfterValidator(_check_absolute)] | None = None
    credentials: Credentials = Field(default_factory=Credentials)
    encryption: Encryption = Field(default_factory=Encryption)
    verify: Literal["auto", "etag", "checksum", "read-back", "none"] = "auto"
    connect_timeout_s: Annotated[float, _seconds(least=0.1, most=HOUR_S)] = Field(
        default=5.0, alias="connect_timeout"
    )
    read_timeout_s: Annotated[float, _seconds(least=0.1, most=HOUR_S)] = Field(
        default=30.0, alias="read_timeout"
    )
    retry_deadline_s: Annotated[float, _seconds(most=DAY_S)] = Field(
        default=20.0, alias="retry_deadline"
    )
    connections: int = Field(default=24, ge=1, le=256)
    pacing: Pacing = Field(default_factory=Pacing)
    uploads: int = Field(default=4, ge=1, le=256)
    multipart: Annotated[Literal["auto", "always", "never"], BeforeValidator(_lower)] = "auto"
    part_bytes: Annotated[int, _size(least=5 * MIB, most=1 * GIB)] = Field(
        default=8 * MIB, alias="part_size"
    )

    @property
    def url(self) -> str | None:
        """The store's address, as the command line takes it; None if the file names no store."""
        if self.type == "file":
            return f"file://{quote(str(self.directory))}"
        if self.type == "s3":
            return f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        if self.type == "azure":
            return f"az://{self.account}/{self.container}/{self.prefix}".rstrip("/")
        if self.type == "gcs":
            return f"gs://{self.bucket}/{self.prefix}".rstrip("/")
        return None


class ClientEncryption(Section):
    """The key of a volume that is encrypted on the client's side; any one of them will do."""

    passphrase: SecretStr | None = None
    passphrase_file: Annotated[Path, AfterValidator(_check_absolute)] | None = None
    key_file: Annotated[Path, AfterValidator(_check_absolute)] | None = None

    @property
    def is_given(self) -> bool:
        """Tell whether there is a key."""
        return any((self.passphrase, self.passphrase_file, self.key_file))

    @field_serializer("passphrase")
    def _hide(self, secret: SecretStr | None) -> str | None:
        return None if secret is None else HIDDEN


class Storage(Section):
    """The remote half of the volume: where it lies, and in which storage classes."""

    remote: Remote = Field(default_factory=Remote)
    classes: tuple[ClassRule, ...] = ()
    separate: tuple[Glob, ...] = ("**/seg-*",)


class Commit(Section):
    """When the local state is published to the store."""

    interval_s: Annotated[float, _seconds(least=1.0, most=DAY_S)] = Field(
        default=30.0, alias="interval"
    )
    inline_bytes_max: Annotated[int, _size(most=6 * MIB)] = Field(
        default=4 * MIB, alias="inline_max"
    )
    local_cut_bytes: Annotated[int, _size(least=4 * MIB)] = Field(
        default=256 * MIB, alias="local_cut"
    )


class Journal(Section):
    """The local log of operations."""

    segment_bytes: Annotated[int, _size(least=4 * MIB, most=4 * GIB)] = Field(
        default=64 * MIB, alias="segment_size"
    )
    sync_every_bytes: Annotated[int, _size(least=64 * KIB)] = Field(
        default=4 * MIB, alias="sync_every"
    )
    sync_interval_s: Annotated[float, _seconds(least=0.01, most=MINUTE_S)] = Field(
        default=1.0, alias="sync_interval"
    )


class Cache(Section):
    """The local directory and how much it and the memory may hold."""

    directory: Annotated[Path, AfterValidator(_check_absolute)] = Path("/var/lib/s3fs-banyan")
    size_bytes: Annotated[int, _size(least=16 * MIB)] = Field(default=10 * GIB, alias="size")
    dirty_bytes_max: Annotated[int, _size(least=16 * MIB)] = Field(
        default=8 * GIB, alias="dirty_max"
    )
    ram_bytes: Annotated[int, _size()] = Field(default=64 * MIB, alias="ram_size")
    block_bytes: Annotated[int, _size(least=64 * KIB, most=8 * MIB)] = Field(
        default=256 * KIB, alias="block_size"
    )


class Volume(Section):
    """What the volume says of itself, and the shape of its packs."""

    capacity_bytes: Annotated[int, _size(least=1 * GIB, most=1024 * PIB)] = Field(
        default=1 * TIB, alias="capacity"
    )
    pack_bytes: Annotated[int, _size(least=5 * MIB, most=1 * GIB)] = Field(
        default=64 * MIB, alias="pack_size"
    )


class Reclaim(Section):
    """Which old commits are kept, and for how long; 0 keeps none."""

    window_s: Annotated[float, _seconds()] = Field(default=HOUR_S, alias="window")
    hourly_s: Annotated[float, _seconds()] = Field(default=DAY_S, alias="hourly")
    grace_s: Annotated[float, _seconds()] = Field(default=15 * MINUTE_S, alias="grace")
    every_s: Annotated[float, _seconds(least=1.0, most=DAY_S)] = Field(
        default=10 * MINUTE_S, alias="every"
    )


class MetricsEndpoint(Section):
    """Where the metrics are served; an empty address serves none."""

    address: Annotated[str, AfterValidator(_check_listen_address)] = ""


class Mount(Section):
    """How the kernel is asked to treat the mount."""

    kernel_writeback: bool = False
    read_ahead_bytes: Annotated[int, _size(most=64 * MIB)] = Field(
        default=1 * MIB, alias="read_ahead"
    )
    allow_other: bool = True
    max_tasks: int = Field(default=4096, ge=100, le=65536)
    nice: int = Field(default=-10, ge=-20, le=19)
    awake_share: float = Field(default=0.25, ge=0.0, le=1.0)


class Heartbeat(Section):
    """The writer's sign of life in the store: a hint for people."""

    interval_s: Annotated[float, _seconds(least=1.0, most=HOUR_S)] = Field(
        default=30.0, alias="interval"
    )
    stale_after_s: Annotated[float, _seconds(most=DAY_S)] = Field(default=90.0, alias="stale_after")


class Log(Section):
    """What the log holds and in which form."""

    level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = "info"
    format: Annotated[Literal["text", "json"], BeforeValidator(_lower)] = "text"


class Config(Section):
    """All settings of one mount."""

    storage: Storage = Field(default_factory=Storage)
    encryption: ClientEncryption = Field(default_factory=ClientEncryption)
    durability: Literal["local", "remote"] = "local"
    commit: Commit = Field(default_factory=Commit)
    journal: Journal = Field(default_factory=Journal)
    cache: Cache = Field(default_factory=Cache)
    volume: Volume = Field(default_factory=Volume)
    reclaim: Reclaim = Field(default_factory=Reclaim)
    metrics: MetricsEndpoint = Field(default_factory=MetricsEndpoint)
    mount: Mount = Field(default_factory=Mount)
    heartbeat: Heartbeat = Field(default_factory=Heartbeat)
    log: Log = Field(default_factory=Log)
    cost: Cost = Field(default_factory=Cost)
    budget: Budget = Field(default_factory=Budget)

    @model_validator(mode="after")
    def _check_across(self) -> Config:
        faults = [*remote_faults(self.storage.remote), *size_faults(self)]
        if faults:
            _fail("\n".join(faults))
        return self

    def public_dict(self) -> dict[str, object]:
        """Return the settings by key, fit for JSON, secrets hidden."""
        return self.model_dump(mode="json", by_alias=True)

    def secrets(self) -> tuple[str, ...]:
        """Return the secrets in clear, for one purpose: to be registered with the log."""
        credentials = self.storage.remote.credentials
        found = (
            *(credentials.access_key, credentials.secret_key, credentials.session_token),
            self.storage.remote.encryption.key,
            self.encryption.passphrase,
            *(credentials.account_key, credentials.sas_token, credentials.connection_string),
        )
        return tuple(secret.get_secret_value() for secret in found if secret is not None)


# --- checks across keys ------------------------------------------------------------------


_PLAIN: Final = {
    "bool_parsing": "expected true or false",
    "bool_type": "expected true or false",
    "finite_number": "expected a number",
    "float_parsing": "expected a number",
    "float_type": "expected a number",
    "dict_type": "expected a section with keys, not a value",
    "int_from_float": "expected a whole number",
    "int_parsing": "expected a whole number",
    "int_type": "expected a whole number",
    "missing": "is required",
    "model_attributes_type": "expected a section with keys, not a value",
    "model_type": "expected a section with keys, not a value",
    "path_type": "expected a path",
    "string_pattern_mismatch": "is not of the kind that is expected here",
    "string_type": "expected text: put the value in quotes",
    "tuple_type": "expected a list",
}


def _keys_beside(path: tuple[int | str, ...]) -> tuple[str, ...]:
    """Return the known keys of the section that holds the key at `path`."""
    section: type[BaseModel] = Config
    for part in path[:-1]:
        if isinstance(part, int):  # of a list, whose elements are sections of one kind
            continue
        inner = _field_of(section, part).annotation
        inner = next(iter(get_args(inner)), None) if get_origin(inner) is tuple else inner
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            raise TypeError(f"{part} is no section")
        section = inner
    return key_names(section)


def _field_of(section: type[BaseModel], key: str) -> FieldInfo:
    """Return the field whose key in the file is `key`."""
    fields = section.model_fields
    return next(field for name, field in fields.items() if key == (field.alias or name))


def _key_text(path: tuple[int | str, ...]) -> str:
    """Return a path as a person writes it: `storage.classes[0].path`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def _number(limit: float) -> str:
    """Return a limit as a person writes it: whole numbers without a point."""
    return str(int(limit) if float(limit).is_integer() else limit)


def _unknown_key_fault(path: tuple[int | str, ...]) -> str:
    """Name the nearest known key, or all of them."""
    known = _keys_beside(path)
    near = difflib.get_close_matches(str(path[-1]), known, n=1)
    if near:
        return f"unknown key, did you mean '{near[0]}'?"
    return f"unknown key, known here are {', '.join(known)}"


def _fault_lines(details: ErrorDetails) -> Iterator[tuple[str, str]]:
    """Yield (key, line) for each fault that pydantic found; never a value."""
    path, kind, facts = details["loc"], details["type"], details.get("ctx", {})
    if not path:  # checks across keys name their keys themselves
        for line in details["msg"].splitlines():
            yield line.partition(":")[0], line
        return
    if kind == "fault":
        why = details["msg"]
    elif kind == "extra_forbidden":
        why = _unknown_key_fault(path)
    elif kind == "literal_error":
        why = f"expected {facts['expected']}"
    elif kind == "greater_than_equal":
        why = f"must be at least {_number(facts['ge'])}"
    elif kind == "less_than_equal":
        why = f"must be at most {_number(facts['le'])}"
    else:
        why = _PLAIN.get(kind, f"is not usable ({kind})")
    key = _key_text(path)
    yield key, f"{key}: {why}"


def load_config(
    path: Path | None,
    overrides: Mapping[str, object],
    *,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """Return the settings of the file at `path`, or the defaults, with `overrides` on top.

    An override has a dotted key (`mount.kernel_writeback`) and wins over the file; one that is
    None counts as not given. Raises `ConfigError` with one line for each fault.
    """
    values: dict[str, object] = {}
    faults: dict[str, str] = {}
    if path is not None:
        values, faults = read_file(path, os.environ if environ is None else environ)
    for key, value in overrides.items():
        if value is not None:
            put(values, key, value)
            faults.pop(key, None)
    lines = {key: f"{key}: {why}" for key, why in faults.items()}
    config: Config | None = None
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        for details in error.errors(include_url=False, include_input=False):
            for key, line in _fault_lines(details):
                lines.setdefault(key, line)
    if config is None or lines:
        raise ConfigError("\n".join(lines.values()))
    return config
