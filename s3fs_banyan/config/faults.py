"""What does not fit together in the settings, though each value alone is a good one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from s3fs_banyan.config.units import format_size

if TYPE_CHECKING:
    from s3fs_banyan.config.settings import Config, Remote

_PLACES: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "s3": (("bucket",), ("prefix", "region", "endpoint_url")),
    "azure": (("account", "container"), ("prefix", "endpoint_url")),
    "gcs": (("bucket",), ("prefix", "endpoint_url")),
    "file": (("directory",), ()),
}
"""Type of store -> the keys that it needs, and those that it may have beside them."""
_PLACE_KEYS: Final = ("account", "container", "bucket", "prefix", "directory")
_TYPES: Final = "'s3', 'azure', 'gcs' or 'file'"
_CREDENTIALS: Final = {
    **dict.fromkeys(("access_key", "secret_key", "session_token"), ("s3", "file")),
    **dict.fromkeys(("account_key", "sas_token", "connection_string"), ("azure",)),
    "file": ("gcs",),
}
"""Key of `credentials` -> the types that it has a meaning for."""


def remote_faults(remote: Remote) -> Iterator[str]:
    """Yield what does not fit together under `storage.remote`."""
    at = "storage.remote"
    if remote.type is None:
        # An end point or a region may stand in the file while the command line names the store.
        for key in (key for key in _PLACE_KEYS if getattr(remote, key)):
            yield f"{at}.type: is required when '{key}' is given: {_TYPES}"
            break
    else:
        needed, allowed = _PLACES[remote.type]
        for key in (key for key in needed if not getattr(remote, key)):
            yield f"{at}.{key}: is required when the type is '{remote.type}'"
        for key in (*_PLACE_KEYS, "region", "endpoint_url"):
            if getattr(remote, key) and key not in (*needed, *allowed):
                yield f"{at}.{key}: has no meaning when the type is '{remote.type}'"
        for key, types in _CREDENTIALS.items():
            if getattr(remote.credentials, key) and remote.type not in types:
                yield f"{at}.credentials.{key}: has no meaning when the type is '{remote.type}'"
    for name in ("uploads", "demand", "prefetch"):
        if getattr(remote.pacing, f"{name}_min") > getattr(remote.pacing, f"{name}_max"):
            yield f"{at}.pacing.{name}_min: must not exceed '{name}_max'"
    if remote.ca_bundle is not None and not remote.verify_tls:
        yield f"{at}.ca_bundle: has no meaning when 'verify_tls' is false"
    keys = remote.credentials
    if keys.access_key is not None and keys.secret_key is None:
        yield f"{at}.credentials.secret_key: is required when 'access_key' is given"
    if keys.access_key is None and keys.secret_key is not None:
        yield f"{at}.credentials.access_key: is required when 'secret_key' is given"
    if keys.access_key is None and keys.secret_key is None and keys.session_token is not None:
        yield f"{at}.credentials.access_key: is required when 'session_token' is given"
    if sum(map(bool, (keys.account_key, keys.sas_token, keys.connection_string))) > 1:
        yield f"{at}.credentials: give one of 'account_key', 'sas_token', 'connection_string'"
    yield from _encryption_faults(remote, f"{at}.encryption")


def _encryption_faults(remote: Remote, at: str) -> Iterator[str]:
    """Yield what does not fit together under `storage.remote.encryption`."""
    asked = remote.encryption
    kms_only = {"key_id": asked.key_id, "context": asked.context}
    kms_only |= {"bucket_key": None if asked.bucket_key is None else "given"}
    given = {**kms_only, "key": asked.key, "key_file": asked.key_file}
    if asked.type is None:
        for key in (key for key, value in given.items() if value):
            yield f"{at}.type: is required when '{key}' is given"
            return
        return
    if remote.type in {"file", "azure", "gcs"}:
        yield f"{at}.type: has no meaning when the store's type is '{remote.type}'"
    if asked.type == "sse-kms" and asked.key_id is None:
        yield f"{at}.key_id: is required when the type is 'sse-kms'"
    if asked.type == "sse-c" and (asked.key is None) == (asked.key_file is None):
        yield f"{at}.key: one of 'key' and 'key_file' is required when the type is 'sse-c'"
    others = {"sse-kms": ("key", "key_file"), "sse-c": tuple(kms_only)}.get(asked.type, (*given,))
    for key in (key for key in others if given[key]):
        yield f"{at}.{key}: has no meaning when the type is '{asked.type}'"


def size_faults(config: Config) -> Iterator[str]:
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
