"""The proxy does to a connection what its words say: the tester is tested first."""

from __future__ import annotations

import hashlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.chaos.client import ChaosProxy
from tests.chaos.upstream import Upstream, upstream

_BODY = bytes(range(256)) * 1024
_MD5 = hashlib.md5(_BODY, usedforsecurity=False).hexdigest()
_KEY = "/bucket/vol/pack/1/abc"


@pytest.fixture(name="store", scope="module")
def _store() -> Iterator[Upstream]:
    with upstream() as server:
        yield server


@pytest.fixture(name="proxy", scope="module")
def _proxy(store: Upstream) -> Iterator[ChaosProxy]:
    with ChaosProxy(store.url) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def _fresh(store: Upstream, proxy: ChaosProxy) -> Iterator[None]:
    store.objects.clear()
    store.done.clear()
    yield
    proxy.calm()


def _connection(proxy: ChaosProxy, timeout_s: float) -> http.client.HTTPConnection:
    address = proxy.endpoint_url.removeprefix("http://")
    return http.client.HTTPConnection(address, timeout=timeout_s)


def _ask(
    proxy: ChaosProxy, method: str, key: str = _KEY, body: bytes = b"", timeout_s: float = 5.0
) -> tuple[int, dict[str, str], bytes]:
    connection = _connection(proxy, timeout_s)
    try:
        connection.request(method, key, body or None)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_without_faults_everything_passes_unchanged(store: Upstream, proxy: ChaosProxy) -> None:
    """What it changes by mistake would be taken for a defect of the engine."""
    status, headers, _ = _ask(proxy, "PUT", body=_BODY)
    assert (status, headers["etag"].strip('"')) == (200, _MD5)
    assert store.objects[_KEY] == _BODY
    assert _ask(proxy, "GET")[2] == _BODY
    assert _ask(proxy, "GET", "/bucket/vol/none")[0] == 404
    assert b"<ETag>" in _ask(proxy, "POST", f"{_KEY}?uploadId=x", b"<xml/>")[2]
    report = proxy.report()
    assert not report.injected
    assert report.total("sent_bytes", "PUT", "pack") >= len(_BODY)
    assert report.total("received_bytes", "GET", "pack") >= len(_BODY)


def test_a_body_may_wait_for_the_store_to_ask_for_it(store: Upstream, proxy: ChaosProxy) -> None:
    """boto3 sends large bodies with "Expect: 100-continue"; a refusal comes instead of it."""
    address = ("127.0.0.1", int(proxy.endpoint_url.rpartition(":")[2]))
    head = b"PUT %b HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n" % _KEY.encode()
    with socket.create_connection(address, timeout=5) as connection:
        connection.sendall(head)
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"bytes")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert store.objects[_KEY] == b"bytes"
    proxy.only("slow_down")
    with socket.create_connection(address, timeout=5) as connection:
        connection.sendall(head)
        assert connection.recv(1000).startswith(b"HTTP/1.1 503 ")


@pytest.mark.parametrize(
    ("kind", "status", "retry_after"),
    [
        ("slow_down", 503, None),
        ("slow_down_retry_after", 503, "1"),
        ("too_many_requests", 429, None),
        ("internal_error", 500, None),
    ],
)
def test_a_refusal_comes_before_any_effect(
    store: Upstream, proxy: ChaosProxy, kind: str, status: int, retry_after: str | None
) -> None:
    """A throttled create is repeated, which is right only because nothing was done."""
    proxy.only(kind)
    found, headers, body = _ask(proxy, "PUT", body=_BODY)
    assert (found, headers.get("retry-after")) == (status, retry_after)
    assert b"<Code>" in body
    assert not store.done
    assert proxy.report().injected[kind]


def test_a_wrong_etag_comes_with_success(store: Upstream, proxy: ChaosProxy) -> None:
    """In the head of an answer, and in the XML of a completed upload."""
    proxy.only("wrong_etag")
    status, headers, _ = _ask(proxy, "PUT", body=_BODY)
    assert status == 200
    assert headers["etag"].strip('"') != _MD5
    assert store.objects[_KEY] == _BODY
    xml = _ask(proxy, "POST", f"{_KEY}?uploadId=x", b"<xml/>")[2]
    assert b"0123456789abcdef0123456789abcdef-2" not in xml
    assert b"<ETag>" in xml


def test_a_bit_flips_on_the_way(store: Upstream, proxy: ChaosProxy) -> None:
    """One bit, the length unchanged, in either direction."""
    store.objects[_KEY] = _BODY
    proxy.only("answer_flipped")
    assert _bits_between(_ask(proxy, "GET")[2], _BODY) == 1
    proxy.only("request_flipped")
    _ask(proxy, "PUT", body=_BODY)
    assert _bits_between(store.objects[_KEY], _BODY) == 1


def _bits_between(a: bytes, b: bytes) -> int:
    assert len(a) == len(b)
    return (int.from_bytes(a, "big") ^ int.from_bytes(b, "big")).bit_count()


def test_answers_break_off(store: Upstream, proxy: ChaosProxy) -> None:
    """By a reset, or in peace and too early."""
    store.objects[_KEY] = _BODY
    proxy.only("answer_truncated")
    with pytest.raises(http.client.IncompleteRead):
        _ask(proxy, "GET")
    proxy.only("answer_reset")
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        _ask(proxy, "GET")


def test_a_request_that_breaks_off_has_no_effect(store: Upstream, proxy: ChaosProxy) -> None:
    """The store must not get a shorter object out of it."""
    proxy.only("request_reset")
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        _ask(proxy, "PUT", body=_BODY)
    assert _KEY not in store.objects


def test_a_lost_answer_leaves_the_effect(store: Upstream, proxy: ChaosProxy) -> None:
    """The case that makes conditional writes hard."""
    proxy.only("lost_answer")
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        _ask(proxy, "PUT", body=_BODY)
    assert store.objects[_KEY] == _BODY


@pytest.mark.parametrize(("kind", "has_effect"), [("stalled", False), ("stalled_answer", True)])
def test_a_stalled_request_gets_no_answer(
    store: Upstream, proxy: ChaosProxy, kind: str, has_effect: bool
) -> None:
    """The client's time-out is all that ends it; whether it had an effect cannot be seen."""
    proxy.only(kind)
    connection = _connection(proxy, 0.3)
    connection.request("PUT", _KEY, b"bytes")
    with pytest.raises(TimeoutError):
        connection.getresponse()
    connection.close()
    assert (_KEY in store.objects) is has_effect


def test_a_late_request_is_carried_out_after_the_client_gave_up(
    store: Upstream, proxy: ChaosProxy
) -> None:
    """A retry may overtake its own first attempt."""
    proxy.only("late")
    connection = _connection(proxy, 0.3)
    connection.request("PUT", _KEY, b"late")
    with pytest.raises(TimeoutError):
        connection.getresponse()
    connection.close()
    assert _KEY not in store.objects
    deadline = time.monotonic() + 30
    while _KEY not in store.objects and time.monotonic() < deadline:
        time.sleep(0.01)
    assert store.objects[_KEY] == b"late"


def test_blackouts_refuse_or_swallow_connections(store: Upstream, proxy: ChaosProxy) -> None:
    """And when they end, the same address serves again."""
    store.objects[_KEY] = _BODY
    proxy.set_mode("refused")
    with pytest.raises(ConnectionRefusedError):
        _ask(proxy, "GET")
    proxy.set_mode("black-holed")
    with pytest.raises(TimeoutError):
        _ask(proxy, "GET", timeout_s=0.3)
    proxy.set_mode("open")
    assert _ask(proxy, "GET")[2] == _BODY


def test_a_connection_that_is_open_is_cut_by_a_blackout(proxy: ChaosProxy, store: Upstream) -> None:
    """A pool must not go on over the connections that it has."""
    store.objects[_KEY] = _BODY
    connection = _connection(proxy, 5)
    connection.request("GET", _KEY)
    assert connection.getresponse().read() == _BODY
    proxy.set_mode("refused")
    assert connection.sock is not None
    assert _is_cut(connection.sock)
    connection.close()


def _is_cut(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionError:
        return True


def test_connections_are_served_side_by_side(store: Upstream, proxy: ChaosProxy) -> None:
    """One that is delayed must not delay the others."""
    store.objects[_KEY] = _BODY
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(_ask(proxy, "GET")[2])) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [_BODY] * 8
