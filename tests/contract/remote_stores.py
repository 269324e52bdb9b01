"""The stores that the contract suite runs on, by name, each empty and alone.

S3 stores share one bucket a server, each under a prefix of its own: so a store that looked
beyond its prefix would see the others' objects.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from s3fs_banyan.observe.metrics import Metrics
from s3fs_banyan.remote.azure import AzureStore
from s3fs_banyan.remote.base import RemoteFileSystem
from s3fs_banyan.remote.gcs import GoogleStore
from s3fs_banyan.remote.layers import MeterLayer, RetryLayer
from s3fs_banyan.remote.local import LocalStore
from s3fs_banyan.remote.memory import MemoryStore
from s3fs_banyan.remote.open import paced
from s3fs_banyan.remote.options import StoreOptions
from s3fs_banyan.remote.s3 import S3Store
from s3fs_banyan.remote.verification import VerificationObserver
from tests.servers import AzuriteServer, GcsServer, ObjectServer

BARE = ("memory", "local", "seaweed", "moto", "azurite", "gcs")
ENCRYPTED = ("seaweed/sse-c", "moto/sse-kms")
PLAIN = (*BARE, "memory+layers", "local+layers", "seaweed+layers")
ALL = (*PLAIN, *ENCRYPTED)
MULTIPART = ("memory", "seaweed", "moto", "azurite", "memory+layers", "seaweed+layers", *ENCRYPTED)
S3 = ("seaweed", "moto")

ENCRYPTIONS: dict[str, dict[str, object]] = {
    "": {},
    "sse-c": {
        "encryption": "sse-c",
        "encryption_key": "c29tZSBrZXkgb2YgdGhpcnR5LXR3byBieXRlcyBoZXI=",
    },
    "sse-kms": {"encryption": "sse-kms", "encryption_key_id": "key-1"},
}

FIRST_TIME_NS = 1_700_000_000 * 10**9

_prefix_numbers = itertools.count(1)
_buckets: dict[str, str] = {}


@dataclass
class Requests:
    """A `RequestObserver` that remembers."""

    seen: list[tuple[str, str, float, int, int]] = field(default_factory=list)

    def request(
        self, verb: str, outcome: str, seconds: float, bytes_sent: int, bytes_received: int
    ) -> None:
        self.seen.append((verb, outcome, seconds, bytes_sent, bytes_received))


def options_for(server: ObjectServer, **changes: object) -> StoreOptions:
    """Return the options that reach a test server, with some of them changed."""
    values: dict[str, object] = {
        "region": "us-east-1",
        "endpoint_url": server.endpoint_url,
        "access_key": server.access_key,
        "secret_key": server.secret_key,
        "read_timeout_s": 60.0,
    }
    return StoreOptions(**(values | changes))  # type: ignore[arg-type]


def memory_store() -> MemoryStore:
    """Return a store in memory whose clock goes on by a second a call."""
    seconds = itertools.count()
    return MemoryStore(clock=lambda: FIRST_TIME_NS + next(seconds) * 10**9)


def s3_store(server: ObjectServer, **changes: object) -> S3Store:
    """Return an empty store on a server, under a prefix of its own in a shared bucket."""
    options = options_for(server, **changes)
    return S3Store(_bucket_of(server), f"some/where-{next(_prefix_numbers)}", options)


def azure_options(server: AzuriteServer, **changes: object) -> StoreOptions:
    """Return the options that reach azurite, with some of them changed."""
    values: dict[str, object] = {
        "endpoint_url": server.endpoint_url,
        "account_key": server.secret_key,
        "read_timeout_s": 60.0,
    }
    return StoreOptions(**(values | changes))  # type: ignore[arg-type]


def azure_store(server: AzuriteServer, observer: VerificationObserver | None = None) -> AzureStore:
    """Return an empty store on a server, under a prefix of its own in a shared container."""
    prefix = f"some/where-{next(_prefix_numbers)}"
    options = azure_options(server)
    return AzureStore(server.account, _bucket_of(server), prefix, options, observer)


def gcs_store(server: GcsServer, observer: VerificationObserver | None = None) -> GoogleStore:
    """Return an empty store on a server, under a prefix of its own in a shared bucket."""
    options = StoreOptions(endpoint_url=server.endpoint_url, read_timeout_s=60.0)
    prefix = f"some/where-{next(_prefix_numbers)}"
    return GoogleStore(_bucket_of(server), prefix, options, observer)


def store_on(server: ObjectServer, **changes: object) -> RemoteFileSystem:
    """Return an empty store on a server of any kind; `changes` are for S3."""
    if isinstance(server, AzuriteServer):
        return azure_store(server)
    if isinstance(server, GcsServer):
        return gcs_store(server)
    return s3_store(server, **changes)


def _bucket_of(server: ObjectServer) -> str:
    if server.endpoint_url not in _buckets:
        _buckets[server.endpoint_url] = server.bucket()
    return _buckets[server.endpoint_url]


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RemoteFileSystem]:
    """The store that the test's parameter names (use with `indirect=True`)."""
    name, _, layers = request.param.partition("+")
    name, _, encryption = name.partition("/")
    made: RemoteFileSystem
    if name == "memory":
        made = memory_store()
    elif name == "local":
        made = LocalStore(tmp_path / "store", create=True)
    else:
        made = store_on(request.getfixturevalue(name), **ENCRYPTIONS[encryption])
    if layers:
        way = Metrics().store
        made = paced(MeterLayer(made, Requests()), StoreOptions(), way=way)
        made = RetryLayer(made, deadline_s=30, observer=way)
    yield made
    made.close()


def on(names: tuple[str, ...]) -> pytest.MarkDecorator:
    """Run a test on each of the named stores."""
    return pytest.mark.parametrize("store", names, indirect=True)


def in_threads(count: int, call: Callable[[int], object]) -> list[object]:
    """Run `call(0)` to `call(count - 1)` at the same time; an exception is a result."""

    def caught(number: int) -> object:
        try:
            return call(number)
        except Exception as error:  # noqa: BLE001 - it is handed to the test
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(caught, range(count)))


def fill(store: RemoteFileSystem, paths: list[str]) -> None:
    """Write a small object under each path, some at a time."""
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda path: store.write(path, path.encode()), paths):
            pass
