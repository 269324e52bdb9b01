"""From a store URL to a store with its layers, and the probe for create-if-absent.

The SDKs of Azure and Google are optional, and slow to import: each is loaded only for a URL of
its kind.

A directory store is metered and retried only: it has no slots to learn and no line to share, and
a hop to a spare thread would cost more than most of its calls.
"""

from __future__ import annotations

from typing import Protocol

from s3fs_banyan.errors import AlreadyExists, ConfigError, Misconfigured, ObjectMissing
from s3fs_banyan.remote.base import RemoteFileSystem
from s3fs_banyan.remote.hedging import HedgeLayer, HedgeObserver
from s3fs_banyan.remote.layers import MeterLayer, RequestObserver, RetryLayer, RetryObserver
from s3fs_banyan.remote.limiter import Bounds
from s3fs_banyan.remote.local import LocalStore
from s3fs_banyan.remote.options import StoreOptions, StoreUrl, parse_store_url
from s3fs_banyan.remote.pacer import Pacer, PacingOptions
from s3fs_banyan.remote.pacing import PacingLayer, PacingObserver
from s3fs_banyan.remote.traffic import Traffic
from s3fs_banyan.remote.verification import VerificationObserver

_FIRST_AT_ONCE = 4
_SPARE_THREADS = 8


class WayObserver(RetryObserver, PacingObserver, HedgeObserver, Protocol):
    """Who wants to know what the layers do; may be called by several threads at once."""


def open_store(
    url: str,
    options: StoreOptions,
    *,
    observer: RequestObserver | None = None,
    verified: VerificationObserver | None = None,
    way: WayObserver | None = None,
    reads: Traffic = Traffic.DEMAND,
    create: bool = False,
    is_known: bool = False,
) -> RetryLayer:
    """Return the store of a URL with its layers: metered if there is an observer, paced, retried.

    `verified` is told by what each upload was believed, `way` of queues, retries and hedges;
    `reads` is the class of this process's reads.
    Raises `ConfigError` for the URL or an SDK that is not installed, `Denied` where Azure or
    Google finds no credentials, and `Misconfigured` for a directory that is not there (unless
    `create`, or `is_known`: its volume was used before, so this is an outage). No service is
    asked anything: it may well be away just now.
    """
    parsed = parse_store_url(url)
    store = open_bare_store(parsed, options, verified=verified, create=create, is_known=is_known)
    if observer is not None:
        store = MeterLayer(store, observer)
    if options.pacing and parsed.scheme != "file":
        store = paced(store, options, way=way, reads=reads)
    return RetryLayer(store, deadline_s=options.retry_deadline_s, observer=way)


def paced(
    store: RemoteFileSystem,
    options: StoreOptions,
    *,
    way: WayObserver | None = None,
    reads: Traffic = Traffic.DEMAND,
) -> RemoteFileSystem:
    """Return the store with the layers between meter and retry."""
    if options.hedging:
        threads_max = options.uploads_max + options.demand_max + _SPARE_THREADS
        store = HedgeLayer(store, threads_max=threads_max, observer=way)
    return PacingLayer(store, Pacer(pacing_options(options)), reads=reads, observer=way)


def pacing_options(options: StoreOptions) -> PacingOptions:
    """Return the bounds and caps of the options; every class starts low."""

    def bounds(least: int, most: int) -> Bounds:
        return Bounds(least=least, most=most, first=_FIRST_AT_ONCE)

    return PacingOptions(
        upload=bounds(options.uploads_min, options.uploads_max),
        demand=bounds(options.demand_min, options.demand_max),
        prefetch=bounds(options.prefetch_min, options.prefetch_max),
        upload_rate_bytes=options.upload_rate_bytes,
        download_rate_bytes=options.download_rate_bytes,
    )


def open_bare_store(
    url: StoreUrl,
    options: StoreOptions,
    *,
    verified: VerificationObserver | None = None,
    create: bool = False,
    is_known: bool = False,
) -> RemoteFileSystem:
    """Return the store itself, without layers; raises what `open_store` does."""
    if url.scheme != "s3" and options.encryption:
        raise ConfigError(f"storage.remote.encryption: is for S3, not for a {url.scheme} store")
    if url.scheme != "s3" and options.verify != "auto":
        raise ConfigError(f"storage.remote.verify: is for S3, not for a {url.scheme} store")
    if url.scheme == "file":
        return LocalStore(url.directory, create=create, is_known=is_known)
    if url.scheme == "az":
        return _azure_store(url, options, verified)
    if url.scheme == "gs":
        return _google_store(url, options, verified)
    # Here and not above: the SDK takes a quarter of the start of every command to import.
    from s3fs_banyan.remote.s3 import S3Store

    return S3Store(url.bucket, url.prefix, options, observer=verified)


def _azure_store(
    url: StoreUrl, options: StoreOptions, verified: VerificationObserver | None
) -> RemoteFileSystem:
    try:
        from s3fs_banyan.remote.azure import AzureStore
    except ModuleNotFoundError as error:
        raise _not_installed(error, "azure") from error
    return AzureStore(url.account, url.bucket, url.prefix, options, verified)


def _google_store(
    url: StoreUrl, options: StoreOptions, verified: VerificationObserver | None
) -> RemoteFileSystem:
    try:
        from s3fs_banyan.remote.gcs import GoogleStore
    except ModuleNotFoundError as error:
        raise _not_installed(error, "gcs") from error
    return GoogleStore(url.bucket, url.prefix, options, verified)


def _not_installed(error: ModuleNotFoundError, extra: str) -> ConfigError:
    return ConfigError(
        f"store: the package {error.name} is not installed: pip install 's3fs-banyan[{extra}]'"
    )


def probe_create_if_absent(store: RemoteFileSystem, token: str) -> bool:
    """Tell whether the store honours create-if-absent, by trying; `token` is a fresh name.

    False if the second of two writes succeeds, changes the object, or is not known to the
    store. The probe's object is deleted in any case, unless the store goes away meanwhile.
    """
    if not store.capabilities.create_if_absent:
        return False
    path = f"probe/{token}"
    try:
        store.write(path, b"first", if_absent=True)
        return _refuses_second(store, path)
    except (Misconfigured, ObjectMissing):
        # The store does not know the condition, or is fooled by something else. A store that
        # cannot be used at all says so in the delete below.
        return False
    finally:
        store.delete([path])


def _refuses_second(store: RemoteFileSystem, path: str) -> bool:
    """Tell whether a second create is refused and leaves the first one's bytes."""
    try:
        store.write(path, b"second", if_absent=True)
    except AlreadyExists:
        return store.read(path) == b"first"
    return False
