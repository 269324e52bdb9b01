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

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, NoReturn
from urllib.parse import quote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_serializer,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from s3fs_banyan.config.file import put, read_file
from s3fs_banyan.config.units import (
    DAY_S,
    GIB,
    HOUR_S,
    KIB,
    MIB,
    MINUTE_S,
    PIB,
    TIB,
    format_seconds,
    format_size,
    parse_seconds,
    parse_size,
)
from s3fs_banyan.errors import ConfigError

HIDDEN: Final = "***"
"""What stands in the place of a secret in everything that is shown."""


def _fail(why: str) -> NoReturn:
    """Raise the error that pydantic turns into a fault with the text `why`."""
    raise PydanticCustomError("fault", "{why}", {"why": why})


# --- kinds of values ---------------------------------------------------------------------


def _size(*, least: int = 0, most: int = 1 << 62) -> BeforeValidator:
    """Make the validator of a size within [least, most]."""

    def check(value: object) -> int:
        try:
            size = parse_size(value)
        except ValueError as error:
            _fail(str(error))
        if size < least:
            _fail(f"must be at least {format_size(least)}")
        if size > most:
            _fail(f"must be at most {format_size(most)}")
        return size

    return BeforeValidator(check)


def _seconds(*, least: float = 0.0, most: float = 3650 * DAY_S) -> BeforeValidator:
    """Make the validator of a duration within [least, most]."""

    def check(value: object) -> float:
        try:
            seconds = parse_seconds(value)
        except ValueError as error:
            _fail(str(error))
        if seconds < least:
            _fail(f"must be at least {format_seconds(least)}")
        if seconds > most:
            _fail(f"must be at most {format_seconds(most)}")
        return seconds

    return BeforeValidator(check)


def _check_absolute(path: Path) -> Path:
    if not path.is_absolute():
        _fail("must be an absolute path")
    return path


def _check_bucket(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]", name):
        _fail("not the name of a bucket: only the name, without 's3://' and without a prefix")
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


class Section(BaseModel):
    """What all sections share: frozen, no unknown keys, an empty value is one not given."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=True
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, given: object) -> object:
        """Read `key:` and `key: ""` as a key that is not there."""
        if given is None:
            return {}
        if not isinstance(given, dict):
            return given
        known = set(key_names(cls))
        return {k: v for k, v in given.items() if not (k in known and v in (None, ""))}


class Credentials(Section):
    """Keys of the store's account; without them the store's standard chain applies."""

    access_key: SecretStr | None = None
    secret_key: SecretStr | None = None
    session_token: SecretStr | None = None

    @field_serializer("access_key", "secret_key", "session_token")
    def _hide(self, secret: SecretStr | None) -> str | None:
        return None if secret is None else HIDDEN


class Remote(Section):
    """Where the volume lies in the store, and how to talk to it."""

    type: Literal["s3", "file"] | None = None
    bucket: Annotated[str, AfterValidator(_check_bucket)] | None = None
    prefix: Annotated[str, AfterValidator(_check_prefix)] = ""
    directory: Annotated[Path, AfterValidator(_check_absolute)] | None = None
    region: str | None = None
    endpoint_url: Annotated[str, AfterValidator(_check_endpoint)] | None = None
    path_style: bool | None = None
    verify_tls: bool = True
    ca_bundle: Annotated[Path, AfterValidator(_check_absolute)] | None = None
    credentials: Credentials = Field(default_factory=Credentials)
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
        return None


class Storage(Section):
    """The remote half of the volume."""

    remote: Remote = Field(default_factory=Remote)


class Commit(Section):
    """When the local state is published to the store."""

    interval_s: Annotated[float, _seconds(least=1.0, most=DAY_S)] = Field(
        default=30.0, alias="interval"
    )
    inline_bytes_max: Annotated[int, _size(most=6 * MIB)] = Field(
        default=4 * MIB, alias="inline_max"
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

    @model_validator(mode="after")
    def _check_across(self) -> Config:
        faults = [*_remote_faults(self.storage.remote), *_size_faults(self)]
        if faults:
            _fail("\n".join(faults))
        return self

    def public_dict(self) -> dict[str, object]:
        """Return the settings by key, fit for JSON, secrets hidden."""
        return self.model_dump(mode="json", by_alias=True)

    def secrets(self) -> tuple[str, ...]:
        """Return the secrets in clear, for one purpose: to be registered with the log."""
        credentials = self.storage.remote.credentials
        found = (credentials.access_key, credentials.secret_key, credentials.session_token)
        return tuple(secret.get_secret_value() for secret in found if secret is not None)


def key_names(section: type[BaseModel]) -> tuple[str, ...]:
    """Return the keys of a section as they stand in the file."""
    return tuple(field.alias or name for name, field in section.model_fields.items())


# --- checks across keys ------------------------------------------------------------------


def _remote_faults(remote: Remote) -> Iterator[str]:
    """Yield what does not fit together under `storage.remote`."""
    at = "storage.remote"
    s3_only = {"bucket": remote.bucket, "prefix": remote.prefix, "region": remote.region}
    s3_only |= {"endpoint_url": remote.endpoint_url}
    place = {"bucket": remote.bucket, "prefix": remote.prefix, "directory": remote.directory}
    if remote.type is None:
        for key in (key for key, value in place.items() if value):
            yield f"{at}.type: is required when '{key}' is given: 's3' or 'file'"
            break
    elif remote.type == "s3":
        if remote.bucket is None:
            yield f"{at}.bucket: is required when the type is 's3'"
        if remote.directory is not None:
            yield f"{at}.directory: has no meaning when the type is 's3'"
    else:
        if remote.directory is None:
            yield f"{at}.directory: is required when the type is 'file'"
        for key in (key for key, value in s3_only.items() if value):
            yield f"{at}.{key}: has no meaning when the type is 'file'"
    if remote.ca_bundle is not None and not remote.verify_tls:
        yield f"{at}.ca_bundle: has no meaning when 'verify_tls' is false"
    keys = remote.credentials
    if keys.access_key is not None and keys.secret_key is None:
        yield f"{at}.credentials.secret_key: is required when 'access_key' is given"
    if keys.access_key is None and keys.secret_key is not None:
        yield f"{at}.credentials.access_key: is required when 'secret_key' is given"
    if keys.access_key is None and keys.secret_key is None and keys.session_token is not None:
        yield f"{at}.credentials.access_key: is required when 'session_token' is given"


def _size_faults(config: Config) -> Iterator[str]:
    """Yield the numbers that are each allowed, but not together."""
    journal, cache = config.journal, config.cache
    if cache.dirty_bytes_max // 4 < journal.segment_bytes:
        yield (
            "cache.dirty_max: must be at least four times 'journal.segment_size' "
            f"({format_size(4 * journal.segment_bytes)}), or commits are due at every moment"
        )
    if journal.sync_every_bytes > journal.segment_bytes:
        yield (
            "journal.sync_every: must not exceed 'journal.segment_size' "
            f"({format_size(journal.segment_bytes)})"
        )
    if cache.block_bytes > cache.size_bytes // 16:
        yield "cache.block_size: must not exceed a sixteenth of 'cache.size'"
    if config.heartbeat.stale_after_s < 2 * config.heartbeat.interval_s:
        yield "heartbeat.stale_after: must be at least twice 'heartbeat.interval'"


# --- faults in plain words ---------------------------------------------------------------

_PLAIN: Final = {
    "bool_parsing": "expected true or false",
    "bool_type": "expected true or false",
    "int_from_float": "expected a whole number",
    "int_parsing": "expected a whole number",
    "int_type": "expected a whole number",
    "model_attributes_type": "expected a section with keys, not a value",
    "model_type": "expected a section with keys, not a value",
    "path_type": "expected a path",
    "string_type": "expected text: put the value in quotes",
}


def _keys_beside(path: tuple[int | str, ...]) -> tuple[str, ...]:
    """Return the known keys of the section that holds the key at `path`."""
    section: type[BaseModel] = Config
    for part in path[:-1]:
        inner = section.model_fields[str(part)].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            raise TypeError(f"{part} is no section")
        section = inner
    return key_names(section)


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
        why = f"must be at least {facts['ge']}"
    elif kind == "less_than_equal":
        why = f"must be at most {facts['le']}"
    else:
        why = _PLAIN.get(kind, f"is not usable ({kind})")
    key = ".".join(str(part) for part in path)
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
