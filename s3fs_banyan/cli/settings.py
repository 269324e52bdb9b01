"""How options and arguments become a configuration and a store.

Options win over the file. A first argument with `://` in it is the store; without one, the store
is that of the configuration file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from s3fs_banyan.app.build import store_url
from s3fs_banyan.config import Config, load_config
from s3fs_banyan.errors import ConfigError
from s3fs_banyan.observe.log import register_secret

_SECRETS_IN_ENVIRONMENT = (
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    *("AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_CONNECTION_STRING"),
)


def settings(
    config: Path | None,
    *,
    endpoint_url: str | None = None,
    region: str | None = None,
    passphrase_file: Path | None = None,
    key_file: Path | None = None,
    **overrides: object,
) -> Config:
    """Read the configuration, options on top, and keep its secrets out of everything printed.

    `overrides` are keys of the file with `__` for the dot: `commit__interval`.
    """
    over: dict[str, object] = {
        "storage.remote.endpoint_url": endpoint_url,
        "storage.remote.region": region,
        "encryption.passphrase_file": passphrase_file and passphrase_file.absolute(),
        "encryption.key_file": key_file and key_file.absolute(),
    }
    over |= {name.replace("__", "."): value for name, value in overrides.items()}
    found = load_config(config, over)
    for secret in (*found.secrets(), *(os.environ.get(n, "") for n in _SECRETS_IN_ENVIRONMENT)):
        register_secret(secret)
    return found


def take_store(
    words: Sequence[str], config: Config, usage: str, counts: range
) -> tuple[str, list[str]]:
    """Return (the store's address, the other arguments); raises `ConfigError` with the usage.

    `counts` says how many other arguments there may be.
    """
    rest = list(words)
    given = rest.pop(0) if rest and "://" in rest[0] else None
    if given is None and config.storage.remote.url is None and rest:
        raise ConfigError(
            f"{rest[0]!r} is no store: give s3://BUCKET/PREFIX, az://ACCOUNT/CONTAINER/PREFIX, "
            "gs://BUCKET/PREFIX or file:///DIRECTORY first, or name the store in a file given with "
            f"--config. Usage: {usage}"
        )
    if len(rest) not in counts:
        raise ConfigError(f"wrong number of arguments. Usage: {usage}")
    return store_url(given, config), rest
