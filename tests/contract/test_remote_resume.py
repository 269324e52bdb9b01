"""Reads from an S3 end point whose bodies break off: nothing is sent twice, nothing is mixed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import random
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count

import pytest
from botocore.httpchecksum import Crc32Checksum, StreamingChecksumBody
from botocore.response import StreamingBody

from s3fs_banyan.errors import BrokenBody, TransferCorrupt
from s3fs_banyan.remote import large_body, s3_answers
from s3fs_banyan.remote.large_body import Filled, fill_from_line
from s3fs_banyan.remote.layers import RetryLayer
from s3fs_banyan.remote.options import StoreOptions
from s3fs_banyan.remote.s3 import S3Store

BODY = bytes(range(256)) * 4096
STEP = 300_000
MIB = 1 << 20


@dataclass
class Scene:
    """The one object of the server, and how it is sent."""

    body: bytes = BODY
    next_bodies: list[bytes] = field(default_factory=list)
    """What the object becomes with each answer that broke off."""
    etag: str = ""
    flips: int = 0
    """So many answers begin with a changed byte."""
    step: int = STEP
    """An answer breaks off after so many bytes."""
    connections: int = 0
    is_chunked: bool = False
    """A length is given all the same."""
    asked: list[str] = field(default_factory=list)
    sent: int = 0

    @property
    def tag(self) -> str:
        return self.etag or hashlib.md5(self.body, usedforsecurity=False).hexdigest()


def _handler(scene: Scene) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            scene.connections += 1

        def do_GET(self) -> None:
            scene.asked.append(self.headers.get("Range", ""))
            wanted = self.headers.get("If-Match")
            if wanted is not None and wanted != f'"{scene.tag}"':
                self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>", {})
                return
            match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            size = len(scene.body)
            begin = int(match[1]) if match else 0
            end = min(size, int(match[2]) + 1) if match and match[2] else size
            headers = {"ETag": f'"{scene.tag}"'}
            if match:
                headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
            self._answer(206 if match else 200, scene.body[begin:end], headers)

        def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            if scene.is_chunked:
                self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            if scene.is_chunked:
                self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
                return
            part = body[: scene.step]
            if scene.flips:
                scene.flips -= 1
                part = bytes([part[0] ^ 1]) + part[1:]
            self.wfile.write(part)
            scene.sent += len(part) if status < 300 else 0
            if len(part) < len(body):
                self.close_connection = True
                if scene.next_bodies:
                    scene.body = scene.next_bodies.pop(0)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            """Say nothing: the base class would write to standard error."""

    return Handler


@contextlib.contextmanager
def served(scene: Scene) -> Iterator[S3Store]:
    """Give a store whose every answer breaks off after `scene.step` bytes."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(scene))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    store = S3Store("bucket", "", StoreOptions(endpoint_url=url, access_key="a", secret_key="s"))
    try:
        yield store
    finally:
        store.close()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(("offset", "length"), [(0, None), (0, 700_000), (5, None), (7, 999_000)])
def test_each_byte_is_sent_once_however_often_the_body_breaks(
    offset: int, length: int | None
) -> None:
    """A line that breaks every few seconds must not make a large read impossible."""
    scene = Scene()
    expected = BODY[offset:] if length is None else BODY[offset : offset + length]
    with served(scene) as store:
        read = RetryLayer(store, deadline_s=30).read("x", offset=offset, length=length)
    assert read == expected
    assert scene.sent == len(expected)
    last = "" if length is None else offset + length - 1
    assert scene.asked[1] == f"bytes={offset + STEP}-{last}"


@pytest.mark.parametrize(("offset", "length"), [(0, None), (3, 5 * MIB), (2 * MIB, 3 * MIB + 1)])
def test_nor_is_it_of_a_large_one(offset: int, length: int | None) -> None:
    """Large bodies are read from the line itself, and break there."""
    body = random.Random(offset).randbytes(6 * MIB)
    scene = Scene(body=body, step=MIB + 5)
    with served(scene) as store:
        read = RetryLayer(store, deadline_s=30).read("x", offset=offset, length=length)
    expected = body[offset:] if length is None else body[offset : offset + length]
    assert read == expected
    assert scene.sent == len(expected)


def test_large_bodies_come_from_the_line_and_leave_it_usable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fails when the SDK is built otherwise than is known: reads are right then, but dearer."""
    bodies = []

    def noted(body: object, plain: type, length: int, deadline_s: float) -> Filled | None:
        filled = fill_from_line(body, plain, length, deadline_s)
        bodies.append(filled)
        return filled

    monkeypatch.setattr(s3_answers, "fill_from_line", noted)
    scene = Scene(body=random.Random(1).randbytes(3 * MIB), step=4 * MIB)
    with served(scene) as store:
        for offset in (0, 5, MIB, 0):
            assert store.read("x", offset=offset) == scene.body[offset:]
        assert store.read("x", offset=0, length=100) == scene.body[:100]
    assert [filled and filled.why for filled in bodies] == [""] * 4
    assert scene.connections == 1


def test_a_line_with_something_left_on_it_is_not_used_again() -> None:
    """A server that says both a length and chunks: the end of the chunks is not read."""
    scene = Scene(body=random.Random(3).randbytes(2 * MIB), step=4 * MIB, is_chunked=True)
    with served(scene) as store:
        for _ in range(3):
            assert store.read("x", offset=0) == scene.body
    assert scene.connections == 3


def test_a_large_body_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What came until then is kept, as of one that broke."""
    ticks = count(1e12)  # long after any deadline
    monkeypatch.setattr(large_body, "monotonic_s", lambda: next(ticks))
    scene = Scene(body=random.Random(2).randbytes(4 * MIB), step=5 * MIB)
    with served(scene) as store, pytest.raises(BrokenBody, match="too slowly") as caught:
        store.read("x", offset=7)
    assert 0 < len(caught.value.received) < 4 * MIB - 7
    assert scene.body[7:].startswith(caught.value.received)


def test_a_body_that_the_sdk_verifies_is_left_to_it() -> None:
    """Read from the line its checksum would be passed by."""
    body = StreamingChecksumBody(io.BytesIO(b"x"), 1, Crc32Checksum(), "")
    assert fill_from_line(body, StreamingBody, 1, 0.0) is None
    assert fill_from_line(StreamingBody(io.BytesIO(b"x"), 1), StreamingBody, 1, 0.0) is None
    assert fill_from_line(io.BytesIO(b"x"), io.BytesIO, 1, 0.0) is None


def test_what_came_is_in_the_error() -> None:
    with served(Scene()) as store, pytest.raises(BrokenBody) as caught:
        store.read("x", offset=10)
    assert caught.value.received == BODY[10 : 10 + STEP]
    assert (caught.value.offset, caught.value.length) == (10, None)


def test_bytes_of_two_objects_are_never_put_together() -> None:
    """The object was written anew while it was read: the whole of the new one counts."""
    anew = BODY[::-1]
    scene = Scene(next_bodies=[anew])
    with served(scene) as store:
        assert RetryLayer(store, deadline_s=30).read("x") == anew
    assert scene.sent == STEP + len(anew)


def test_server_that_ignores_the_condition_is_found_out() -> None:
    """Not every service knows If-Match on a read; each gives the ETag."""

    class Deaf(Scene):
        @property
        def tag(self) -> str:
            return hashlib.md5(self.body, usedforsecurity=False).hexdigest()

    scene = Deaf(next_bodies=[BODY[::-1]])
    with served(scene) as store:
        store._client.meta.events.register("before-sign.s3", _without_condition)
        assert RetryLayer(store, deadline_s=30).read("x", offset=1) == BODY[::-1][1:]


def _without_condition(request: object, **_: object) -> None:
    headers = request.headers  # type: ignore[attr-defined]
    del headers["If-Match"]


def test_resumed_whole_is_checked_by_its_md5() -> None:
    """A changed byte in any of the pieces is found, although no piece has an MD5."""
    with served(Scene(flips=1000)) as store:
        patient = RetryLayer(store, deadline_s=30, sleep=lambda _: None)
        with pytest.raises(TransferCorrupt):
            patient.read("x")


def test_a_byte_changed_on_the_way_is_cured_by_reading_from_the_start() -> None:
    """What was kept of the first answer is what is wrong: resumed again it stays so."""
    scene = Scene(flips=1)
    with served(scene) as store:
        patient = RetryLayer(store, deadline_s=30, sleep=lambda _: None)
        assert patient.read("x") == BODY
    assert scene.sent == 2 * len(BODY)
