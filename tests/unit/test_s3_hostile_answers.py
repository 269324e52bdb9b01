"""Answers that S3 would never give, and a proxy or another maker's store does: none is believed.

Each test has a server whose script gives one such answer, and says what the store makes of it.
"""

from __future__ import annotations

import base64
import hashlib
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from s3fs_banyan.errors import StoreError, Unavailable
from s3fs_banyan.remote import s3_answers
from s3fs_banyan.remote.layers import RetryLayer
from s3fs_banyan.remote.s3 import S3Store
from tests.unit.scripted_http import Drip, Exchange, md5_of, s3_store

MIB = 1 << 20
WHOLE = bytes(range(256)) * 4
REQUESTS_MAX = 50
"""A store that has asked so often would ask for ever."""


# --- answers without an end ------------------------------------------------------------------


@pytest.mark.parametrize("size", [1000, 3 * MIB])
def test_a_body_that_trickles_is_given_up(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No single wait for bytes is long; their sum is, and a reader waits for it."""
    monkeypatch.setattr(s3_answers, "_READ_RATE_MIN", 16 * MIB)  # the large one is given 0.2 s
    headers = {"ETag": '"x"', "Content-Length": str(size)}
    drip = Drip(headers=headers, pause_s=0.05, pieces_max=200)
    with s3_store(drip, read_timeout_s=0.3) as store, pytest.raises(Unavailable):
        store.read("x", offset=0, length=size)
    assert not drip.ran_out


def test_a_listing_that_trickles_is_given_up() -> None:
    """What the SDK reads by itself has no deadline of ours unless it is given one."""
    drip = Drip(headers={"Content-Length": "100000"}, pause_s=0.05, pieces_max=200)
    with s3_store(drip, read_timeout_s=0.3) as store, pytest.raises(Unavailable):
        list(store.list())
    assert not drip.ran_out


@pytest.mark.parametrize(
    "call",
    [lambda store: list(store.list()), lambda store: store.read("x", offset=0, length=10)],
    ids=["list", "read"],
)
def test_an_endless_answer_is_given_up_before_it_fills_the_memory(
    call: Callable[[S3Store], object],
) -> None:
    """A page of a thousand keys has less than 2 MiB, and the read asks for ten bytes."""
    headers = {"ETag": '"x"', "Transfer-Encoding": "chunked"}
    drip = Drip(headers=headers, piece=b" " * MIB, pieces_max=128)
    with s3_store(drip) as store, pytest.raises(StoreError):
        call(store)
    assert not drip.ran_out


def test_a_length_that_no_memory_has_is_an_error_of_the_store() -> None:
    """An OverflowError would pass by everybody who expects a store to fail."""

    def absurd(exchange: Exchange) -> None:
        exchange.answer(200, b"x", ETag='"x"', Content_Length=str(10**30))

    with s3_store(absurd) as store, pytest.raises(Unavailable):
        store.read("x", offset=0, length=10)


# --- ranges ----------------------------------------------------------------------------------


def test_a_range_is_never_longer_than_was_asked_for() -> None:
    """A server may ignore a range (RFC 9110, 14.2), and its answer may break off behind it."""
    asked = 0

    def ignoring(exchange: Exchange) -> None:
        nonlocal asked
        asked += 1
        part = WHOLE[:80] if asked == 1 else WHOLE
        exchange.answer(200, part, ETag=f'"{md5_of(WHOLE)}"', Content_Length=str(len(WHOLE)))

    with s3_store(ignoring) as store:
        patient = RetryLayer(store, deadline_s=30, sleep=lambda _: None)
        assert patient.read("x", offset=0, length=50) == WHOLE[:50]


def test_a_part_that_does_not_say_where_it_begins_is_not_believed() -> None:
    """Cut as if it were the whole object, it would give other bytes than were asked for."""

    def silent(exchange: Exchange) -> None:
        exchange.answer(206, WHOLE[10:60], ETag=f'"{md5_of(WHOLE)}"')

    with s3_store(silent) as store, pytest.raises(Unavailable):
        store.read("x", offset=10, length=50)


@pytest.mark.parametrize("count", [20, 90])
def test_a_range_of_another_length_is_not_returned(count: int) -> None:
    """A proxy that hands on in chunks ends them properly where the line behind it broke."""

    def proxy(exchange: Exchange) -> None:
        content_range = f"bytes 10-59/{len(WHOLE)}"
        headers = {"ETag": '"x"', "Content-Range": content_range, "Transfer-Encoding": "chunked"}
        exchange.begin(206, headers)
        exchange.chunk(WHOLE[10 : 10 + count])
        exchange.chunk(b"")

    with s3_store(proxy) as store, pytest.raises(Unavailable):
        store.read("x", offset=10, length=50)


# --- listings --------------------------------------------------------------------------------


def page(*keys: str, token: str = "", is_cut: bool = False) -> bytes:
    """Return a page of a listing."""
    contents = "".join(
        f"<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00Z</LastModified>"
        f"<ETag>&quot;e&quot;</ETag><Size>1</Size></Contents>"
        for key in keys
    )
    more = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    is_truncated = "true" if is_cut or token else "false"
    return (
        f"<ListBucketResult><Name>bucket</Name><IsTruncated>{is_truncated}</IsTruncated>"
        f"{more}{contents}</ListBucketResult>"
    ).encode()


def uploads_page(marker: str) -> bytes:
    """Return a page of a list of uploads that says that it is not the last."""
    return (
        f"<ListMultipartUploadsResult><Bucket>bucket</Bucket><IsTruncated>true</IsTruncated>"
        f"{marker}<Upload><Key>k</Key><UploadId>u</UploadId>"
        f"<Initiated>2026-01-01T00:00:00Z</Initiated></Upload></ListMultipartUploadsResult>"
    ).encode()


def parts_page(marker: str) -> bytes:
    """Return a page of a list of parts that says that it is not the last."""
    return (
        f"<ListPartsResult><Bucket>bucket</Bucket><UploadId>u</UploadId>"
        f"<IsTruncated>true</IsTruncated>{marker}<Part><PartNumber>1</PartNumber><Size>1</Size>"
        f"<ETag>e</ETag></Part></ListPartsResult>"
    ).encode()


def list_uploads(store: S3Store) -> object:
    """Take the whole list of uploads."""
    return list(store.list_uploads())


def list_parts(store: S3Store) -> object:
    """Take the whole list of an upload's parts."""
    return store.list_parts("k", "u")


def always(answer: bytes) -> Callable[[Exchange], None]:
    """Return a script that gives this answer, and ends it with another error than is expected."""
    asked = 0

    def script(exchange: Exchange) -> None:
        nonlocal asked
        asked += 1
        if asked < REQUESTS_MAX:
            exchange.answer(200, answer)
        else:
            exchange.refuse(400, "TestEnds")

    return script


def test_a_cut_listing_without_a_token_is_not_the_end() -> None:
    """A service that answers as in version 1 has more; what is missing would pass for deleted."""
    with s3_store(always(page("log1", "log2", is_cut=True))) as store, pytest.raises(Unavailable):
        list(store.list("log"))


def test_a_listing_that_runs_in_a_circle_ends() -> None:
    """Each page has another token than the one before it, and there are but two."""
    asked = 0

    def circle(exchange: Exchange) -> None:
        nonlocal asked
        asked += 1
        if asked < REQUESTS_MAX:
            token = "A" if "continuation-token=B" in exchange.path else "B"
            exchange.answer(200, page(token=token))
        else:
            exchange.refuse(400, "TestEnds")

    with s3_store(circle) as store, pytest.raises(Unavailable):
        list(store.list("log"))
    assert asked < REQUESTS_MAX


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        pytest.param(
            list_uploads,
            uploads_page(
                "<NextKeyMarker>k</NextKeyMarker><NextUploadIdMarker>u</NextUploadIdMarker>"
            ),
            id="uploads",
        ),
        pytest.param(
            list_parts,
            parts_page("<NextPartNumberMarker>1</NextPartNumberMarker>"),
            id="parts",
        ),
    ],
)
def test_a_list_that_gives_the_same_page_again_ends(
    call: Callable[[S3Store], object], answer: bytes
) -> None:
    """A store that does not know the marker begins anew with each request."""
    with s3_store(always(answer)) as store, pytest.raises(Unavailable):
        call(store)


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        pytest.param(list_uploads, uploads_page(""), id="uploads"),
        pytest.param(list_parts, parts_page(""), id="parts"),
    ],
)
def test_a_cut_list_without_a_marker_is_an_error_of_the_store(
    call: Callable[[S3Store], object], answer: bytes
) -> None:
    """A KeyError would pass by everybody who expects a store to fail."""
    with s3_store(always(answer)) as store, pytest.raises(Unavailable):
        call(store)


def test_a_listing_without_an_etag_is_an_error_of_the_store() -> None:
    """S3 gives one with each object; a KeyError would be nobody's."""
    answer = page("k").replace(b"<ETag>&quot;e&quot;</ETag>", b"")
    with s3_store(always(answer)) as store, pytest.raises(Unavailable):
        list(store.list())


def test_a_listing_that_ignores_the_prefix_shows_no_other_volume_s_objects() -> None:
    """A collection would take them for its own, and delete what nothing of it names."""
    found: list[str] = []
    answer = page("elsewhere/log/1", "volume/log/1")
    with s3_store(always(answer), prefix="volume") as store:
        try:
            found += [meta.path for meta in store.list("log/")]
        except StoreError:
            return  # as good: it is not the store that it should be
    assert found == ["log/1"]


# --- writes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["read-back", "no date"])
def test_a_throttled_look_at_a_created_object_is_no_refused_create(how: str) -> None:
    """Repeated, the create would find its own object and call itself the loser."""
    created: list[bytes] = []
    looks = 0

    def script(exchange: Exchange) -> None:
        nonlocal looks
        if exchange.command != "PUT":
            looks += 1
            exchange.refuse(429, "SlowDown")
            return
        data = exchange.body()
        if created:
            exchange.refuse(412, "PreconditionFailed")
            return
        created.append(data)
        exchange.send_response_only(200)
        if how == "read-back":
            exchange.send_header("Date", exchange.date_time_string())
        exchange.send_header("ETag", f'"{md5_of(data)}"')
        exchange.send_header("Content-Length", "0")
        exchange.end_headers()

    verify = "read-back" if how == "read-back" else "auto"
    with s3_store(script, verify=verify) as store:
        patient = RetryLayer(store, deadline_s=30, sleep=lambda _: None)
        with pytest.raises(Unavailable):
            patient.write("x", b"mine", if_absent=True)
    assert created == [b"mine"]
    assert looks == 1


def test_parts_sent_at_once_to_an_upload_of_which_little_is_known_all_get_their_sums() -> None:
    """The first refusal tells that sums are asked for; the second must not tell the opposite."""
    data = b"12345"
    both_refused = threading.Barrier(2)
    first_is_stored = threading.Event()

    def script(exchange: Exchange) -> None:
        exchange.body()
        is_second = re.search(r"partNumber=2\b", exchange.path)
        if exchange.headers.get("x-amz-checksum-sha256"):
            checksum = base64.b64encode(hashlib.sha256(data).digest()).decode()
            exchange.answer(200, ETag=f'"{md5_of(data)}"', x_amz_checksum_sha256=checksum)
            return
        if not first_is_stored.is_set():
            both_refused.wait(30)
        if is_second:
            first_is_stored.wait(30)
        exchange.refuse(400, "InvalidRequest")

    with s3_store(script) as store, ThreadPoolExecutor(2) as pool:
        first, second = (
            pool.submit(store.upload_part, "x", "of an earlier process", number, data)
            for number in (1, 2)
        )
        assert first.result() == md5_of(data)
        first_is_stored.set()
        assert second.result() == md5_of(data)
