"""From a store URL to a store with its layers, and the probe for create-if-absent."""

from __future__ import annotations

from s3fs_banyan.errors import AlreadyExists, Misconfigured, ObjectMissing
from s3fs_banyan.remote.base import RemoteFileSystem
from s3fs_banyan.remote.layers import MeterLayer, RequestObserver, RetryLayer
from s3fs_banyan.remote.local import LocalStore
from s3fs_banyan.remote.options import StoreOptions, StoreUrl, parse_store_url


def open_store(
    url: str,
    options: StoreOptions,
    *,
    observer: RequestObserver | None = None,
    create: bool = False,
) -> RemoteFileSystem:
    """Return the store of a URL, metered if there is an observer, and with retries.

    Raises `ConfigError` for the URL, and `Misconfigured` for a directory that is not there
    (unless `create`). An S3 store is not asked anything: it may well be away just now.
    """
    store = _bare_store(parse_store_url(url), options, create=create)
    if observer is not None:
        store = MeterLayer(store, observer)
    return RetryLayer(store, deadline_s=options.retry_deadline_s)


def _bare_store(url: StoreUrl, options: StoreOptions, *, create: bool) -> RemoteFileSystem:
    if url.scheme == "file":
        return LocalStore(url.directory, create=create)
    # Here and not above: the SDK takes a quarter of the start of every command to import.
    from s3fs_banyan.remote.s3 import S3Store

    return S3Store(url.bucket, url.prefix, options)


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
