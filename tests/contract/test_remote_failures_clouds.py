"""How Azure and Google fail, and that each failure is one of our errors, without secrets."""

from __future__ import annotations

import base64
import socket
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import requests
from azure.storage.blob import ContainerClient

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
from s3fs_banyan.remote import azure
from s3fs_banyan.remote.azure import AzureStore
from s3fs_banyan.remote.base import RemoteFileSystem
from s3fs_banyan.remote.gcs import GoogleStore
from s3fs_banyan.remote.layers import multipart_of
from s3fs_banyan.remote.options import StoreOptions
from tests.contract import remote_broken_server as broken
from tests.contract.remote_stores import azure_options, azure_store, gcs_store
from tests.servers import AzuriteServer, GcsServer

KEY = base64.b64encode(b"very secret key material").decode("ascii")
SIGNATURE = "sv=2024-01-01&sig=very-secret-signature"
CALLS: dict[str, Callable[[RemoteFileSystem], object]] = {
    "list": lambda store: list(store.list()),
    "read": lambda store: store.read("x"),
    "range": lambda store: store.read("x", offset=5, length=2),
    "write": lambda store: store.write("x", b"0123456789"),
    "create": lambda store: store.write("x", b"0123456789", if_absent=True),
    "delete": lambda store: store.delete(["x"]),
    "delete two": lambda store: store.delete(["x", "y"]),
    "stat": lambda store: store.stat("x"),
}
UPLOAD_CALLS: dict[str, Callable[[RemoteFileSystem], object]] = {
    "begin_upload": lambda store: multipart_of(store).begin_upload("x"),
    "upload_part": lambda store: multipart_of(store).upload_part("x", "00" * 16, 1, b"0123"),
    "list_parts": lambda store: multipart_of(store).list_parts("x", "00" * 16),
    "complete": lambda store: multipart_of(store).complete_upload("x", "00" * 16, {1: "00" * 16}),
    "list_uploads": lambda store: list(multipart_of(store).list_uploads()),
}
EVERY = [
    *(pytest.param("az", call, id=f"az {verb}") for verb, call in (CALLS | UPLOAD_CALLS).items()),
    *(pytest.param("gs", call, id=f"gs {verb}") for verb, call in CALLS.items()),
]
every_call = pytest.mark.parametrize(("kind", "call"), EVERY)


@pytest.fixture(autouse=True)
def _no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """An SDK that tries again sleeps in between: that would be seen here."""

    def sleep(seconds: float) -> None:
        raise AssertionError(f"somebody sleeps for {seconds} s")

    monkeypatch.setattr("time.sleep", sleep)


def _store_at(kind: str, url: str, **changes: object) -> RemoteFileSystem:
    values: dict[str, object] = {
        "endpoint_url": url,
        "connect_timeout_s": 2.0,
        "read_timeout_s": 2.0,
    }
    if kind == "az" and not {"account_key", "sas_token"} & changes.keys():
        values["account_key"] = KEY
    options = StoreOptions(**(values | changes))  # type: ignore[arg-type]
    if kind == "az":
        return AzureStore("acc1", "container", "prefix", options)
    return GoogleStore("bucket", "prefix", options)


@every_call
@pytest.mark.parametrize("name", sorted(broken.ANSWERS))
def test_broken_answer_is_unavailable(
    kind: str, call: Callable[[RemoteFileSystem], object], name: str
) -> None:
    """No stranger's "200 OK" is a success, and no stranger's 404 a missing object."""
    with broken.serving(broken.ANSWERS[name]) as url:
        store = _store_at(kind, url)
        with pytest.raises(Unavailable):
            call(store)
        store.close()


@every_call
def test_unreachable_end_point_is_unavailable(
    kind: str, call: Callable[[RemoteFileSystem], object]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port
        store = _store_at(kind, f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(Unavailable):
            call(store)
        store.close()


@pytest.mark.parametrize("kind", ["az", "gs"])
@pytest.mark.parametrize("verb", ["list", "read", "write", "stat", "delete"])
def test_silent_server_is_given_up(kind: str, verb: str) -> None:
    with broken.serving(b"", hang=True) as url:
        store = _store_at(kind, url, read_timeout_s=0.2)
        with pytest.raises(Unavailable):
            CALLS[verb](store)
        store.close()


AZURE_HEAD = b"x-ms-request-id: 1\r\nx-ms-version: 2021-12-02\r\n"
GOOGLE_HEAD = b"x-goog-generation: 1\r\n"
HEADS = {"az": AZURE_HEAD, "gs": GOOGLE_HEAD}


@pytest.mark.parametrize("kind", ["az", "gs"])
def test_body_that_breaks_off_is_unavailable_and_fetched_once(kind: str) -> None:
    """Both SDKs would fetch the rest by themselves, uncounted and unpaced."""
    head = b'HTTP/1.1 200 OK\r\nETag: "x"\r\n' + HEADS[kind]
    with broken.serving(head + b"Content-Length: 1000\r\n\r\n0123456789", hang=True) as url:
        store = _store_at(kind, url, read_timeout_s=0.2)
        sent = _count_requests(store)
        with pytest.raises(Unavailable):
            store.read("x")
        assert len(sent) == 1
        store.close()


@pytest.mark.parametrize("kind", ["az", "gs"])
def test_bytes_of_another_range_are_not_passed_on(kind: str) -> None:
    head = b'HTTP/1.1 206 Partial Content\r\nETag: "x"\r\nContent-Range: bytes 0-9/100\r\n'
    answer = head + HEADS[kind] + b"Content-Length: 10\r\nConnection: close\r\n\r\n0123456789"
    with broken.serving(answer) as url:
        store = _store_at(kind, url)
        with pytest.raises(Unavailable, match="bytes 0-9/100 came"):
            store.read("x", offset=50, length=10)
        store.close()


@every_call
def test_an_overloaded_store_is_throttling_or_unavailable_and_asked_once(
    kind: str, call: Callable[[RemoteFileSystem], object]
) -> None:
    """Retries are ours: hidden ones would break the promise about conditional writes."""
    code = b"x-ms-error-code: ServerBusy\r\n" if kind == "az" else b""
    status = "503 Service Unavailable" if kind == "az" else "429 Too Many Requests"
    with broken.serving(broken.error(status, "Busy", code + b"Retry-After: 7\r\n")) as url:
        store = _store_at(kind, url)
        sent = _count_requests(store)
        with pytest.raises(Throttled) as caught:
            call(store)
        assert caught.value.retry_after_s == 7
        # Google has no batch here: two objects are two requests, and each is sent once.
        assert len(sent) in {1, 2}
        assert len(set(sent)) == len(sent)
        store.close()


@pytest.mark.parametrize(
    ("kind", "status", "code", "expected"),
    [
        ("az", "409 Conflict", "BlobAlreadyExists", AlreadyExists),
        ("az", "412 Precondition Failed", "ConditionNotMet", AlreadyExists),
        ("az", "409 Conflict", "Other", Unavailable),
        ("az", "500 Internal Server Error", "InternalError", Unavailable),
        ("az", "403 Forbidden", "AuthorizationFailure", Denied),
        ("az", "400 Bad Request", "Md5Mismatch", TransferCorrupt),
        ("gs", "412 Precondition Failed", "", AlreadyExists),
        ("gs", "409 Conflict", "", Unavailable),
        ("gs", "503 Service Unavailable", "", Unavailable),
        ("gs", "403 Forbidden", "", Denied),
        ("gs", "501 Not Implemented", "", Misconfigured),
    ],
)
def test_answers_to_a_conditional_write(
    kind: str, status: str, code: str, expected: type[StoreError]
) -> None:
    """Only what proves that an object is there is `AlreadyExists`; the rest is looked at."""
    with broken.serving(broken.error(status, code, f"x-ms-error-code: {code}\r\n".encode())) as url:
        store = _store_at(kind, url)
        with pytest.raises(expected):
            store.write("x", b"0123456789", if_absent=True)
        store.close()


@pytest.mark.parametrize("verb", ["list", "read", "write", "stat", "delete"])
def test_wrong_key_is_denied(azurite: AzuriteServer, verb: str) -> None:
    store = AzureStore(
        azurite.account, azurite.bucket(), "", azure_options(azurite, account_key=KEY)
    )
    with pytest.raises(Denied) as caught:
        CALLS[verb](store)
    assert KEY not in "".join(traceback.format_exception(caught.value))
    store.close()


@pytest.mark.parametrize("verb", ["list", "read", "write", "stat"])
def test_missing_container_or_bucket_is_named(
    azurite: AzuriteServer, gcs: GcsServer, verb: str
) -> None:
    in_azure = AzureStore(azurite.account, "never-made", "", azure_options(azurite))
    with pytest.raises(Misconfigured, match="container never-made does not exist"):
        CALLS[verb](in_azure)
    in_azure.close()
    if verb in {"list", "write"}:  # the emulator's answer to the others names neither
        in_google = GoogleStore("never-made", "", StoreOptions(endpoint_url=gcs.endpoint_url))
        with pytest.raises(Misconfigured, match="bucket never-made does not exist"):
            CALLS[verb](in_google)
        in_google.close()


def test_secrets_are_in_no_error_and_no_repr() -> None:
    """A SAS token travels in the URL, and URLs are what transport errors are made of."""
    with broken.serving(b"") as url:
        for kind, secrets in (("az", {"sas_token": SIGNATURE}), ("az", {"account_key": KEY})):
            store = _store_at(kind, url, **secrets)
            for call in (CALLS | UPLOAD_CALLS).values():
                with pytest.raises(StoreError) as caught:
                    call(store)
                shown = "".join(traceback.format_exception(caught.value))
                assert not any(secret in shown for secret in (KEY, "very-secret"))
            assert "very-secret" not in repr(store) + repr(vars(store))
            store.close()


def test_credentials_that_cannot_work_are_refused_without_being_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(azure, "_has_identity", lambda: False)
    with pytest.raises(Denied, match="AZURE_STORAGE_KEY"):
        AzureStore("acc1", "container", "", StoreOptions())
    text = f"DefaultEndpointsProtocol=https;AccountName=other;AccountKey={KEY}"
    wrongs: list[dict[str, Any]] = [
        {"connection_string": text},
        {"connection_string": KEY},
        {"account_key": "!"},
    ]
    for wrong in wrongs:
        with pytest.raises(ConfigError) as caught:
            AzureStore("acc1", "container", "", StoreOptions(**wrong))
        assert KEY not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(ConfigError, match="give one of"):
        StoreOptions(account_key=KEY, sas_token=SIGNATURE)
    with pytest.raises(ConfigError, match="drop endpoint_url"):
        StoreOptions(connection_string=text, endpoint_url="http://127.0.0.1:1")
    with pytest.raises(ConfigError, match="credentials_file"):
        StoreOptions(credentials_file="/no/such/file")


def test_credentials_come_from_the_environment_as_well(
    azurite: AzuriteServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod gets its secret as a variable, and its configuration file names none."""
    text = (
        f"DefaultEndpointsProtocol=http;AccountName={azurite.account};"
        f"AccountKey={azurite.secret_key};BlobEndpoint={azurite.endpoint_url};"
    )
    container = azurite.bucket()
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", text)
    store = AzureStore(azurite.account, container, "", StoreOptions())
    store.write("x", b"0123")
    store.close()
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING")
    monkeypatch.setenv("AZURE_STORAGE_KEY", azurite.secret_key)
    options = StoreOptions(endpoint_url=azurite.endpoint_url)
    store = AzureStore(azurite.account, container, "", options)
    assert store.read("x") == b"0123"
    store.close()


def test_file_that_holds_no_credentials_is_denied(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("google") / "key.json"
    path.write_text(f'{{"private_key": "{KEY}"}}')
    with pytest.raises(Denied, match="holds no credentials of a Google") as caught:
        GoogleStore("bucket", "", StoreOptions(credentials_file=str(path)))
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_bytes_that_the_store_has_otherwise_are_corruption(
    azurite: AzuriteServer, gcs: GcsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The MD5 that the service keeps is compared with what came."""
    stores = (azure_store(azurite), gcs_store(gcs))
    for store in stores:
        store.write("x", b"0123456789")
    for module in ("azure", "gcs"):
        monkeypatch.setattr(f"s3fs_banyan.remote.{module}.md5_of", lambda data: bytes(16))
    for store in stores:
        with pytest.raises(TransferCorrupt, match="MD5"):
            store.read("x")
        assert store.read("x", offset=2, length=3) == b"234"  # its frames have checksums
        store.close()


def test_bytes_changed_on_the_way_are_refused_by_azure(azurite: AzuriteServer) -> None:
    store = azure_store(azurite)
    with pytest.raises(TransferCorrupt):
        store.write_with_md5("x", b"0123456789", bytes(16))
    assert list(store.list()) == []
    store.close()


def test_tier_that_azure_does_not_know_is_refused_with_those_it_knows(
    azurite: AzuriteServer,
) -> None:
    store = azure_store(azurite)
    with pytest.raises(Misconfigured, match="use Archive, "):
        store.write("x", b"", storage_class="STANDARD_IA")
    upload = store.begin_upload("y", storage_class="Cool")
    etag = store.upload_part("y", upload, 1, b"0123")
    assert store.complete_upload("y", upload, {1: etag}).storage_class == "Cool"
    store.close()


def test_an_abort_leaves_an_object_of_that_name_alone(azurite: AzuriteServer) -> None:
    """Azure has one list of blocks for a name; discarding it must not replace the object."""
    store = azure_store(azurite)
    upload = store.begin_upload("x")
    store.upload_part("x", upload, 1, b"0123")
    with ContainerClient(
        azurite.endpoint_url,
        store._name,
        credential={"account_name": azurite.account, "account_key": azurite.secret_key},
    ) as client:
        client.get_blob_client(store._key("x")).commit_block_list([])
    store.write("x", b"an object")
    again = store.begin_upload("x")
    store.abort_upload("x", again)
    store.abort_upload("x", upload)
    assert store.read("x") == b"an object"
    store.close()


def _count_requests(store: RemoteFileSystem) -> list[str]:
    """Note from now on each request that is sent through this store."""
    sent: list[str] = []
    session: Any
    if isinstance(store, AzureStore):
        transport: Any = store._container._pipeline._transport
        session = transport.session
    else:
        assert isinstance(store, GoogleStore)
        session = store._client._http
    check = session.check_answer

    def note(request: requests.PreparedRequest, response: requests.Response) -> None:
        sent.append(str(request.url))
        check(request, response)

    session.check_answer = note
    return sent
