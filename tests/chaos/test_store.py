"""What the S3 adapter makes of each fault: never success with other bytes, always a known error."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from s3fs_banyan.errors import BrokenBody, StoreError, Throttled, TransferCorrupt, Unavailable
from s3fs_banyan.remote.options import StoreOptions
from s3fs_banyan.remote.s3 import S3Store
from tests.chaos.client import ChaosProxy
from tests.chaos.script import KINDS
from tests.chaos.upstream import Upstream, upstream

_DATA = bytes(range(256)) * 500
_PATH = "pack/1/abc"
_KEY = f"/bucket/vol/{_PATH}"

_OF_WRITE: dict[str, type[StoreError]] = {
    "slow_down": Throttled,
    "slow_down_retry_after": Throttled,
    "too_many_requests": Throttled,
    "internal_error": Unavailable,
    "stalled": Unavailable,
    "stalled_answer": Unavailable,
    "late": Unavailable,
    "request_reset": Unavailable,
    "request_flipped": TransferCorrupt,  # by the ETag: this store looks at no Content-MD5
    "wrong_etag": TransferCorrupt,
    "lost_answer": Unavailable,
}
_OF_READ: dict[str, type[StoreError]] = {
    "answer_reset": Unavailable,
    "answer_truncated": BrokenBody,
    "answer_flipped": TransferCorrupt,
    "wrong_etag": TransferCorrupt,
}


@pytest.fixture(name="server", scope="module")
def _server() -> Iterator[Upstream]:
    with upstream() as server:
        yield server


@pytest.fixture(name="proxy", scope="module")
def _proxy(server: Upstream) -> Iterator[ChaosProxy]:
    with ChaosProxy(server.url) as proxy:
        yield proxy


@pytest.fixture(name="store")
def _store(proxy: ChaosProxy) -> Iterator[S3Store]:
    options = StoreOptions(
        endpoint_url=proxy.endpoint_url, access_key="id", secret_key="key", read_timeout_s=0.5
    )
    store = S3Store("bucket", "vol", options)
    yield store
    store.close()
    proxy.calm()


def test_every_kind_of_fault_is_tried_here() -> None:
    """A new kind needs a line in one of the tables."""
    assert {*_OF_WRITE, *_OF_READ} == {*KINDS}


@pytest.mark.parametrize("kind", _OF_WRITE)
def test_a_spoilt_write_is_an_error_and_another_attempt_heals_it(
    server: Upstream, proxy: ChaosProxy, store: S3Store, kind: str
) -> None:
    """A wrong ETag believed is a commit that names a pack which is not there."""
    proxy.only(kind)
    with pytest.raises(StoreError) as found:
        store.write(_PATH, _DATA)
    assert type(found.value) is _OF_WRITE[kind]
    assert found.value.retryable
    proxy.calm()
    store.write(_PATH, _DATA)
    assert server.objects[_KEY] == _DATA


def test_the_wait_that_the_store_asks_for_is_passed_on(proxy: ChaosProxy, store: S3Store) -> None:
    """Retry-After is the store's own word on when to come back."""
    proxy.only("slow_down_retry_after")
    with pytest.raises(Throttled) as found:
        store.write(_PATH, _DATA)
    assert found.value.retry_after_s == 1.0


@pytest.mark.parametrize("kind", _OF_READ)
def test_a_spoilt_read_is_an_error_and_another_attempt_heals_it(
    server: Upstream, proxy: ChaosProxy, store: S3Store, kind: str
) -> None:
    """Never short or altered bytes."""
    server.objects[_KEY] = _DATA
    proxy.only(kind)
    with pytest.raises(StoreError) as found:
        store.read(_PATH)
    # A reset may leave bytes that came before it: then it is a `BrokenBody`, an `Unavailable`.
    assert isinstance(found.value, _OF_READ[kind])
    assert found.value.retryable
    proxy.calm()
    assert store.read(_PATH) == _DATA
