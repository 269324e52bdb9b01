"""How S3 fails, and that each failure is one of our errors, told in words, without secrets."""

from __future__ import annotations

import pickle
import socket
import traceback
from collections.abc import Callable

import pytest

from s3fs_banyan.errors import (
    AlreadyExists,
    ConfigError,
    Denied,
    Misconfigured,
    StoreError,
    Throttled,
    TransferCorrupt,
    Unavailable,
)
from s3fs_banyan.remote.base import RemoteFileSystem
from s3fs_banyan.remote.open import open_store, probe_create_if_absent
from s3fs_banyan.remote.options import StoreOptions
from s3fs_banyan.remote.s3 import S3Store
from tests.contract import remote_broken_server as broken
from tests.contract.remote_stores import Requests, on, options_for, s3_store, store
from tests.servers import MotoServer, SeaweedServer

__all__ = ["store"]

SECRET = "very-secret-key-material"
TOKEN = "very-secret-session-token"

CALLS: dict[str, Callable[[S3Store], object]] = {
    "list": lambda store: list(store.list()),
    "read": lambda store: store.read("x"),
    "range": lambda store: store.read("x", offset=5, length=2),
    "write": lambda store: store.write("x", b"0123456789"),
    "create": lambda store: store.write("x", b"0123456789", if_absent=True),
    "delete": lambda store: store.delete(["x", "y"]),
    "stat": lambda store: store.stat("x"),
    "begin_upload": lambda store: store.begin_upload("x"),
    "upload_part": lambda store: store.upload_part("x", "id", 1, b"0123456789"),
    "list_parts": lambda store: store.list_parts("x", "id"),
    "complete_upload": lambda store: store.complete_upload("x", "id", {1: "etag"}),
    "abort_upload": lambda store: store.abort_upload("x", "id"),
    "list_uploads": lambda store: list(store.list_uploads()),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


def _store_at(endpoint_url: str, **changes: object) -> S3Store:
    values: dict[str, object] = {
        "endpoint_url": endpoint_url,
        "access_key": "some-access-key",
        "secret_key": SECRET,
        "session_token": TOKEN,
        "connect_timeout_s": 2.0,
        "read_timeout_s": 2.0,
    }
    options = StoreOptions(**(values | changes))  # type: ignore[arg-type]
    return S3Store("bucket", "prefix", options)


@every_call
def test_wrong_secret_key_is_denied(
    seaweed: SeaweedServer, call: Callable[[S3Store], object]
) -> None:
    store = S3Store(seaweed.bucket(), "", options_for(seaweed, secret_key=SECRET))
    with pytest.raises(Denied) as caught:
        call(store)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    store.close()


def test_unknown_access_key_is_denied_and_says_what_to_check(seaweed: SeaweedServer) -> None:
    store = S3Store(seaweed.bucket(), "", options_for(seaweed, access_key="nobody"))
    with pytest.raises(Denied, match="check the access key"):
        store.read("x")
    store.close()


def test_absent_credentials_are_denied_and_say_what_to_set(seaweed: SeaweedServer) -> None:
    store = S3Store("bucket", "", options_for(seaweed, access_key="", secret_key=""))
    with pytest.raises(Denied, match="no credentials found: set access_key"):
        store.read("x")
    store.close()


@every_call
def test_missing_bucket_is_named_with_its_end_point(
    moto: MotoServer, call: Callable[[S3Store], object]
) -> None:
    store = S3Store("no-such-bucket", "", options_for(moto))
    expected = f"bucket no-such-bucket does not exist at {moto.endpoint_url}: create it or check"
    with pytest.raises(Misconfigured, match=expected):
        call(store)
    store.close()


@pytest.mark.parametrize("verb", ["list", "read"])
def test_missing_bucket_is_found_missing_by_a_real_server(
    seaweed: SeaweedServer, verb: str
) -> None:
    """Not by a write: SeaweedFS makes the bucket then, if the credentials allow it."""
    store = S3Store("never-made", "", options_for(seaweed))
    with pytest.raises(Misconfigured, match="bucket never-made does not exist"):
        CALLS[verb](store)
    store.close()


@every_call
def test_unreachable_end_point_is_unavailable(call: Callable[[S3Store], object]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port
        store = _store_at(f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(Unavailable) as caught:
            call(store)
        store.close()
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.fixture
def token_with_a_line_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK finds it in the environment, where nobody of us has looked at it."""
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "key-id"),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_SESSION_TOKEN", f"{TOKEN}\n"),
    ):
        monkeypatch.setenv(name, value)


@every_call
@pytest.mark.usefixtures("token_with_a_line_end")
def test_token_with_a_line_end_is_in_no_message(call: Callable[[S3Store], object]) -> None:
    """It cannot be sent, and whoever refuses the header quotes it; a log has tracebacks, too."""
    with broken.serving(broken.ANSWERS["misses a page"]) as url:
        store = _store_at(url, access_key="", secret_key="", session_token="")
        with pytest.raises(Misconfigured, match="line end") as caught:
            call(store)
        store.close()
    assert TOKEN not in "".join(traceback.format_exception(caught.value))


def test_secret_with_a_line_end_is_refused_at_once() -> None:
    """Files and variables often end with one; no service takes it."""
    with pytest.raises(ConfigError, match="secret_key has a line end") as caught:
        StoreOptions(access_key="key-id", secret_key=f"{SECRET}\n")
    assert SECRET not in str(caught.value)


def test_unknown_host_is_unavailable() -> None:
    store = _store_at("http://no-such-host.invalid")
    with pytest.raises(Unavailable):
        store.read("x")
    store.close()


BROKEN = [
    pytest.param(call, answer, id=f"{verb}, {name}")
    for verb, call in CALLS.items()
    for name, answer in broken.ANSWERS.items()
    # An answer to HEAD has no body, so there this one does say that the bucket is not there.
    if (verb, name) != ("stat", "misses a page")
    # An abort that did not take place shows in `list_uploads`; its answer has nothing to check.
    and (verb, name[:4]) not in {("abort_upload", "cuts"), ("abort_upload", "answ")}
]


@pytest.mark.parametrize(("call", "answer"), BROKEN)
def test_broken_answer_is_unavailable(call: Callable[[S3Store], object], answer: bytes) -> None:
    """Also no stranger's "200 OK" is a success, and no stranger's 404 a missing object."""
    with broken.serving(answer) as url:
        store = _store_at(url)
        with pytest.raises(Unavailable):
            call(store)
        store.close()


@every_call
def test_silent_server_is_given_up(call: Callable[[S3Store], object]) -> None:
    with broken.serving(b"", hang=True) as url:
        store = _store_at(url, read_timeout_s=0.2)
        with pytest.raises(Unavailable):
            call(store)
        store.close()


def test_body_that_stops_coming_is_given_up() -> None:
    with broken.serving(broken.ANSWERS["breaks off in the body"], hang=True) as url:
        store = _store_at(url, read_timeout_s=0.2)
        with pytest.raises(Unavailable):
            store.read("x")
        store.close()


def test_bytes_of_another_range_are_not_passed_on() -> None:
    with broken.serving(broken.WRONG_RANGE) as url:
        store = _store_at(url)
        with pytest.raises(Unavailable, match="bytes 50 to 60"):
            store.read("x", offset=50, length=10)
        store.close()


def test_server_that_ignores_ranges_is_understood() -> None:
    with broken.serving(broken.WHOLE_INSTEAD_OF_RANGE) as url:
        store = _store_at(url)
        assert store.read("x", offset=3, length=4) == b"3456"
        assert store.read("x", offset=8) == b"89"
        store.close()


def test_etag_that_is_not_the_md5_of_the_bytes_is_corruption() -> None:
    with broken.serving(broken.WRONG_ETAG_OF_WRITE) as url:
        store = _store_at(url)
        with pytest.raises(TransferCorrupt, match="MD5"):
            store.write("x", b"0123456789")
        with pytest.raises(TransferCorrupt, match="MD5"):
            store.upload_part("x", "id", 1, b"0123456789")
        store.close()
    with broken.serving(broken.WRONG_ETAG) as url:
        store = _store_at(url)
        with pytest.raises(TransferCorrupt, match="MD5"):
            store.read("x")
        store.close()
        other = _store_at(url, etag_is_md5=False)
        assert other.read("x") == b"0123456789"
        assert not other.capabilities.etag_is_md5
        other.close()


def test_bytes_changed_on_the_way_are_refused_by_the_store(seaweed: SeaweedServer) -> None:
    """Content-MD5 goes with every upload: a store that checks it refuses altered bytes."""
    store = s3_store(seaweed)
    upload = store.begin_upload("pack/1")
    events = store._client.meta.events
    events.register("before-call.s3.PutObject", _alter)
    events.register("before-call.s3.UploadPart", _alter)
    with pytest.raises(TransferCorrupt, match="BadDigest"):
        store.write("x", b"0123456789")
    with pytest.raises(TransferCorrupt, match="BadDigest"):
        store.upload_part("pack/1", upload, 1, b"0123456789")
    assert list(store.list()) == []
    assert store.list_parts("pack/1", upload) == {}
    store.close()


def _alter(params: dict[str, object], **_: object) -> None:
    params["body"] = b"altered!!!"


@pytest.mark.parametrize("verb", sorted(CALLS.keys() - {"stat"}))  # HEAD: 503 without a code
def test_throttling_tells_how_long(verb: str) -> None:
    answer = broken.error("503 Slow Down", "SlowDown", b"Retry-After: 7\r\n")
    with broken.serving(answer) as url:
        store = _store_at(url)
        with pytest.raises(Throttled) as caught:
            CALLS[verb](store)
        assert caught.value.retry_after_s == 7
        store.close()


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("412 Precondition Failed", "PreconditionFailed", AlreadyExists),
        ("409 Conflict", "ConditionalRequestConflict", Unavailable),
        ("501 Not Implemented", "NotImplemented", Misconfigured),
        ("500 Internal Server Error", "InternalError", Unavailable),
    ],
)
def test_answers_to_a_conditional_write(status: str, code: str, expected: type[StoreError]) -> None:
    """409 is neither success nor conflict: the caller has to look."""
    with broken.serving(broken.error(status, code)) as url:
        store = _store_at(url)
        with pytest.raises(expected):
            store.write("x", b"", if_absent=True)
        store.close()


def test_sdk_makes_one_attempt_only() -> None:
    """Retries are ours: hidden ones would break the promise about conditional writes."""
    requests = Requests()
    with broken.serving(broken.ANSWERS["is a broken gateway"]) as url:
        store = _store_at(url)
        store._client.meta.events.register(
            "before-send.s3", lambda **_: requests.request("send", "", 0, 0, 0)
        )
        for call in CALLS.values():
            before = len(requests.seen)
            with pytest.raises(Unavailable):
                call(store)
            assert len(requests.seen) == before + 1
        store.close()


def test_archived_object_says_that_it_must_be_restored(moto: MotoServer) -> None:
    store = s3_store(moto)
    store.write("x", b"0123456789", storage_class="GLACIER")
    with pytest.raises(Misconfigured, match="restore it first"):
        store.read("x")
    store.close()


def test_encrypted_objects_are_not_judged_by_their_etag(moto: MotoServer) -> None:
    """Under SSE-KMS an ETag has the look of an MD5 and is none."""
    store = s3_store(moto)
    store._client.meta.events.register("before-call.s3.PutObject", _encrypt)
    store.write("x", b"0123456789")
    assert store.read("x") == b"0123456789"
    store.close()


def _encrypt(params: dict[str, dict[str, str]], **_: object) -> None:
    params["headers"]["x-amz-server-side-encryption"] = "aws:kms"


@on(("memory", "local", "seaweed"))
def test_store_that_ignores_the_condition_fails_the_probe(store: RemoteFileSystem) -> None:
    """Two writers on such a store would both win."""
    original = store.write

    def write(path: str, data: bytes, **options: object) -> object:
        return original(path, data)

    store.write = write  # type: ignore[method-assign, assignment]
    assert probe_create_if_absent(store, "token-2") is False
    assert list(store.list()) == []


def test_probe_of_a_store_that_cannot_be_used_is_an_error_and_no_answer(
    moto: MotoServer,
) -> None:
    store = S3Store("no-such-bucket", "", options_for(moto))
    with pytest.raises(Misconfigured, match="does not exist"):
        probe_create_if_absent(store, "token-3")
    store.close()


def test_secrets_are_in_no_repr() -> None:
    options = StoreOptions(access_key="some-access-key", secret_key=SECRET, session_token=TOKEN)
    store = S3Store("bucket", "", options)
    for thing in (options, store, store._options, store._client):
        assert SECRET not in repr(thing)
        assert TOKEN not in repr(thing)
        assert "some-access-key" not in repr(thing)
    assert pickle.loads(pickle.dumps(options)) == options  # noqa: S301 - a worker gets it so
    store.close()


def test_opened_store_counts_each_attempt(seaweed: SeaweedServer) -> None:
    requests = Requests()
    url = f"s3://{seaweed.bucket()}/volume"
    store = open_store(url, options_for(seaweed), observer=requests)
    store.write("x", b"0123456789")
    store.read("x", offset=5)
    list(store.list())
    store.delete(["x"])
    assert store.url == url
    assert [
        (verb, outcome, sent, received) for verb, outcome, _, sent, received in requests.seen
    ] == [
        ("write", "ok", 10, 0),
        ("read", "ok", 0, 5),
        ("list", "ok", 0, 0),
        ("delete", "ok", 0, 0),
    ]
    store.close()


def test_options_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="access_key and secret_key"):
        StoreOptions(access_key="a")
    with pytest.raises(ConfigError, match="session_token"):
        StoreOptions(session_token="t")
    with pytest.raises(ConfigError, match="ca_bundle"):
        StoreOptions(ca_bundle="/no/such/file")
    with pytest.raises(ConfigError, match="connections"):
        StoreOptions(connections=0)
    with pytest.raises(ConfigError, match="endpoint_url") as caught:
        StoreOptions(endpoint_url=f"http://user:{SECRET}@host")
    assert SECRET not in str(caught.value)
    with pytest.raises(ConfigError, match="endpoint_url"):
        StoreOptions(endpoint_url="host:9000")
