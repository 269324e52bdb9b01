"""From the configuration to the values that the engine is made with."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from s3fs_banyan.commit.context import EngineSettings
from s3fs_banyan.config import Config
from s3fs_banyan.errors import ConfigError
from s3fs_banyan.journal.log import JournalSettings
from s3fs_banyan.observe import Metrics
from s3fs_banyan.remote.base import RemoteFileSystem
from s3fs_banyan.remote.open import open_store
from s3fs_banyan.remote.options import StoreOptions


def store_options(config: Config) -> StoreOptions:
    """Return how the store is reached."""
    remote = config.storage.remote
    keys = remote.credentials
    return StoreOptions(
        region=remote.region or "",
        endpoint_url=remote.endpoint_url or "",
        access_key=keys.access_key.get_secret_value() if keys.access_key else "",
        secret_key=keys.secret_key.get_secret_value() if keys.secret_key else "",
        session_token=keys.session_token.get_secret_value() if keys.session_token else "",
        path_style=remote.path_style,
        verify_tls=remote.verify_tls,
        ca_bundle=str(remote.ca_bundle or ""),
        connect_timeout_s=remote.connect_timeout_s,
        read_timeout_s=remote.read_timeout_s,
        connections=remote.connections,
        retry_deadline_s=remote.retry_deadline_s,
    )


def store_url(url: str | None, config: Config) -> str:
    """Return the store's address: what the command line says, else what the file says."""
    found = url or config.storage.remote.url
    if not found:
        raise ConfigError("no store: give STORE on the command line, or storage.remote in the file")
    return found


def connect(
    url: str, config: Config, metrics: Metrics | None = None, *, create: bool = False
) -> RemoteFileSystem:
    """Open the store with its layers; see `open_store` for what it raises."""
    observer = metrics.store if metrics is not None else None
    return open_store(url, store_options(config), observer=observer, create=create)


def engine_settings(config: Config) -> EngineSettings:
    """Return the engine's numbers."""
    return EngineSettings(
        journal=JournalSettings(
            segment_bytes=config.journal.segment_bytes,
            sync_bytes=config.journal.sync_every_bytes,
            sync_interval_s=config.journal.sync_interval_s,
        ),
        commit_interval_s=config.commit.interval_s,
        inline_bytes_max=config.commit.inline_bytes_max,
        multipart=config.storage.remote.multipart,
        part_bytes=config.storage.remote.part_bytes,
        dirty_bytes_max=config.cache.dirty_bytes_max,
        durability_remote=config.durability == "remote",
        capacity_bytes=config.volume.capacity_bytes,
        ram_bytes=config.cache.ram_bytes,
        reclaim_window_s=config.reclaim.window_s,
        reclaim_hourly_s=config.reclaim.hourly_s,
        reclaim_grace_s=config.reclaim.grace_s,
        reclaim_every_s=config.reclaim.every_s,
        heartbeat_interval_s=config.heartbeat.interval_s,
        heartbeat_stale_s=config.heartbeat.stale_after_s,
        host=socket.gethostname(),
        pid=os.getpid(),
    )


def default_cache_directory(config: Config, volume_id: str) -> Path:
    """Return the local directory of a volume where none was given: one below the common one."""
    return config.cache.directory / volume_id
