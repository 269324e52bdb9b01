"""From the configuration to the values that the engine is made with."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

from s3fs_banyan.commit.classes import ClassPolicy, Rule
from s3fs_banyan.commit.context import EngineSettings
from s3fs_banyan.config import Config
from s3fs_banyan.config.settings import Encryption
from s3fs_banyan.data.cache import DiskBlockCache
from s3fs_banyan.errors import ConfigError
from s3fs_banyan.journal.segment import JournalSettings
from s3fs_banyan.observe.log import register_secret
from s3fs_banyan.observe.metrics import Metrics
from s3fs_banyan.prices import STANDARD
from s3fs_banyan.remote.layers import RetryLayer
from s3fs_banyan.remote.open import open_store
from s3fs_banyan.remote.options import StoreOptions
from s3fs_banyan.remote.s3_encryption import load_customer_key

log = logging.getLogger(__name__)


def store_options(config: Config) -> StoreOptions:
    """Return how the store is reached."""
    remote = config.storage.remote
    keys = remote.credentials
    encryption = remote.encryption
    return StoreOptions(
        region=remote.region or "",
        endpoint_url=remote.endpoint_url or "",
        access_key=keys.access_key.get_secret_value() if keys.access_key else "",
        secret_key=keys.secret_key.get_secret_value() if keys.secret_key else "",
        session_token=keys.session_token.get_secret_value() if keys.session_token else "",
        account_key=keys.account_key.get_secret_value() if keys.account_key else "",
        sas_token=keys.sas_token.get_secret_value() if keys.sas_token else "",
        connection_string=(
            keys.connection_string.get_secret_value() if keys.connection_string else ""
        ),
        credentials_file=str(keys.file or ""),
        path_style=remote.path_style,
        verify_tls=remote.verify_tls,
        ca_bundle=str(remote.ca_bundle or ""),
        connect_timeout_s=remote.connect_timeout_s,
        read_timeout_s=remote.read_timeout_s,
        connections=remote.connections,
        retry_deadline_s=remote.retry_deadline_s,
        encryption=encryption.type or "",
        encryption_key_id=encryption.key_id or "",
        encryption_bucket_key=encryption.bucket_key,
        encryption_context=encryption.context or {},
        encryption_key=_customer_key(encryption),
        verify=remote.verify,
        pacing=remote.pacing.enabled,
        hedging=remote.pacing.hedging,
        uploads_min=remote.pacing.uploads_min,
        uploads_max=remote.pacing.uploads_max,
        demand_min=remote.pacing.demand_min,
        demand_max=remote.pacing.demand_max,
        prefetch_min=remote.pacing.prefetch_min,
        prefetch_max=remote.pacing.prefetch_max,
        upload_rate_bytes=remote.pacing.upload_rate_bytes,
        download_rate_bytes=remote.pacing.download_rate_bytes,
    )


def _customer_key(encryption: Encryption) -> str:
    """Return the key of SSE-C, from the file that holds it if there is one; base64."""
    if encryption.key_file is None:
        return encryption.key.get_secret_value() if encryption.key else ""
    key = load_customer_key(encryption.key_file)
    register_secret(key)
    return key


def store_url(url: str | None, config: Config) -> str:
    """Return the store's address: what the command line says, else what the file says."""
    found = url or config.storage.remote.url
    if not found:
        raise ConfigError("no store: give STORE on the command line, or storage.remote in the file")
    return found


def connect(
    url: str,
    config: Config,
    metrics: Metrics | None = None,
    *,
    create: bool = False,
    is_known: bool = False,
) -> RetryLayer:
    """Open the store with its layers; see `open_store` for what it raises."""
    observer = metrics.store if metrics is not None else None
    if metrics is not None:
        standard = class_policy(config).price_of[STANDARD]
        metrics.store_requests.use_prices(standard, config.cost.egress)
    options = store_options(config)
    return open_store(
        url,
        options,
        observer=observer,
        verified=observer,
        way=observer,
        create=create,
        is_known=is_known,
    )


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
        local_cut_bytes=min(config.commit.local_cut_bytes, config.cache.dirty_bytes_max // 4),
        multipart=config.storage.remote.multipart,
        part_bytes=config.storage.remote.part_bytes,
        uploads=config.storage.remote.uploads,
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
        policy=class_policy(config),
        requests_per_hour=config.budget.requests_per_hour,
        budget_interval_max_s=config.budget.interval_max_s,
    )


def class_policy(config: Config) -> ClassPolicy:
    """Return how storage classes are chosen, and what is kept apart."""
    rules = [
        Rule(
            storage_class=rule.storage_class,
            path=rule.path,
            size_min_bytes=rule.size_min_bytes,
            size_max_bytes=rule.size_max_bytes,
            age_s=rule.age_s,
            life_s=rule.life_s,
            reads=rule.reads,
        )
        for rule in config.storage.classes
    ]
    return ClassPolicy(
        rules=tuple(rules), prices=config.cost.table(), separate=config.storage.separate
    )


def default_cache_directory(config: Config, volume_id: str) -> Path:
    """Return the local directory of a volume where none was given: one below the common one."""
    return config.cache.directory / volume_id


def open_cache(directory: Path, config: Config, metrics: Metrics) -> DiskBlockCache:
    """Open a mount's block cache; a block that is found damaged is logged and counted. Blocks."""

    def note_damage(key: str, index: int) -> None:
        log.warning("block %d of %s in the cache was damaged and is fetched again", index, key)
        metrics.corruption_detected("cached_block").add()

    return DiskBlockCache(
        directory,
        config.cache.size_bytes,
        block_bytes=config.cache.block_bytes,
        on_damage=note_damage,
    )
