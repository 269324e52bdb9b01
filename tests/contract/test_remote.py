"""The contract of `s3fs_banyan/remote/base.py`, sentence by sentence, on every store."""

from __future__ import annotations

import hashlib
import time

import pytest

from s3fs_banyan.errors import AlreadyExists, Misconfigured, ObjectMissing
from s3fs_banyan.remote import azure
from s3fs_banyan.remote import gcs as gcs_module
from s3fs_banyan.remote.base import PART_LENGTH_MAX, PATH_LENGTH_MAX, RemoteFileSystem
from s3fs_banyan.remote.open import probe_create_if_absent
from tests.contract.remote_stores import ALL, PLAIN, S3, fill, in_threads, on, store

__all__ = ["store"]

LONGEST = "/".join(["p" * PART_LENGTH_MAX] * 2 + ["q" * (PATH_LENGTH_MAX - 2 * 201)])
ATOMIC = ("memory", "local", "seaweed", "azurite", "gcs")
"""moto is no product: two requests for one key at the same time make it answer 500."""

GOOD_PATHS = [
    "a/b/c",
    "a/bc",
    "a/d",
    "b-b",
    "b.b",
    "b=b",
    "...",
    ".tmp/x",
    "log/00000000000000000007",
    "pack/7/12-0123456789abcdef",
    "Z/_-.=",
    LONGEST,
]
BAD_PATHS = [
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "../a",
    "a/../../b",
    "a/./b",
    "a b",
    "a\0b",
    "a\nb",
    "a\\b",
    "a%2fb",
    "a+b",
    "#tmp/x",
    "café",
    "\N{FULLWIDTH FULL STOP}\N{FULLWIDTH FULL STOP}/a",
    "\ud800",
    "p" * (PART_LENGTH_MAX + 1),
    LONGEST + "q",
]


@on(ALL)
def test_bytes_written_are_the_bytes_read(store: RemoteFileSystem) -> None:
    data = bytes(range(256)) * 1000
    store.write("a/b", data)
    assert store.read("a/b") == data


@on(PLAIN)
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_every_kind_of_buffer_is_taken(store: RemoteFileSystem, kind: type) -> None:
    meta = store.write("x", kind(b"0123456789"))
    assert (meta.path, meta.size) == ("x", 10)
    assert store.read("x") == b"0123456789"


@on(ALL)
def test_slice_of_a_larger_buffer_is_written_alone(store: RemoteFileSystem) -> None:
    store.write("x", memoryview(bytearray(b"0123456789"))[3:6])
    assert store.read("x") == b"345"


@on(PLAIN)
@pytest.mark.parametrize("path", BAD_PATHS)
def test_path_outside_the_contract_is_refused_by_every_call(
    store: RemoteFileSystem, path: str
) -> None:
    """A key that escaped its prefix or directory would damage somebody else's data."""
    with pytest.raises(ValueError, match="store path"):
        store.write(path, b"")
    with pytest.raises(ValueError, match="store path"):
        store.read(path)
    with pytest.raises(ValueError, match="store path"):
        store.stat(path)
    with pytest.raises(ValueError, match="store path"):
        store.delete(["fine", path])
    assert list(store.list()) == []


@on(ALL)
def test_paths_of_the_contract_are_all_distinct_objects(store: RemoteFileSystem) -> None:
    """`a` beside `a/b` and the longest path: no store may confuse or refuse them."""
    paths = [*GOOD_PATHS, "a", "a/b", ".tmp"]
    for path in paths:
        store.write(path, path.encode())
    for path in paths:
        assert store.read(path) == path.encode()
        assert store.stat(path).size == len(path)
    store.delete(["a"])
    assert store.read("a/b") == b"a/b"


@on(ALL)
def test_listing_is_in_byte_order_of_whole_paths(store: RemoteFileSystem) -> None:
    paths = [*GOOD_PATHS, "pack/7/1", "pack/70/1", "pack/8/1", "pack/7/10", "Pack/9"]
    fill(store, paths)
    assert [meta.path for meta in store.list()] == sorted(paths)


@on(("memory", "local", "moto", "azurite", "gcs", "local+layers"))
def test_listing_is_in_byte_order_where_a_name_sorts_before_the_slash(
    store: RemoteFileSystem,
) -> None:
    paths = ["a", "a-b", "a-b/c", "a.b", "a/b", "a/b-c", "a/b/c", "a0", "a="]
    fill(store, paths)
    assert [meta.path for meta in store.list()] == sorted(paths)
    for after in [*paths, "a/", "a/a"]:
        listed = [meta.path for meta in store.list(start_after=after)]
        assert listed == [path for path in sorted(paths) if path > after]


@on(("seaweed", "seaweed+layers"))
def test_listing_in_another_order_is_an_error(store: RemoteFileSystem) -> None:
    """SeaweedFS puts `a/b` before `a-b`; passed on, that would end a scan for `a-...` too early."""
    fill(store, ["a-b", "a/b"])
    with pytest.raises(Misconfigured, match="byte order"):
        list(store.list())


@on(PLAIN)
@pytest.mark.parametrize(
    "prefix", ["", "a", "a/", "a/b", "log/0000", "log", "lo", "nothing", "zz/"]
)
def test_listing_gives_what_starts_with_the_prefix(store: RemoteFileSystem, prefix: str) -> None:
    paths = [*GOOD_PATHS, "log/00000000000000000010", "log2/x", "lo"]
    fill(store, paths)
    expected = sorted(path for path in paths if path.startswith(prefix))
    assert [meta.path for meta in store.list(prefix)] == expected


@on(ALL)
def test_listing_begins_behind_start_after(store: RemoteFileSystem) -> None:
    paths = sorted(f"log/{number:020}" for number in range(20))
    fill(store, [*paths, "aa", "lox", "zz"])
    whole = sorted([*paths, "aa", "lox", "zz"])
    for after in ["", "a", "log/", *paths[::5], paths[-1], paths[3] + "x", "zz", "zzz"]:
        assert [m.path for m in store.list(start_after=after)] == [p for p in whole if p > after]
        assert [m.path for m in store.list("log/", start_after=after)] == [
            path for path in paths if path > after
        ]


@on(ALL)
def test_listing_knows_what_the_write_said(store: RemoteFileSystem) -> None:
    written = store.write("a/b", b"some bytes")
    [listed] = store.list()
    assert (listed.path, listed.size, listed.etag) == ("a/b", 10, written.etag)
    assert abs(listed.modified_ns - written.modified_ns) <= 2 * 10**9


@on(ALL)
def test_object_written_or_deleted_during_a_listing_spoils_nothing(
    store: RemoteFileSystem,
) -> None:
    fill(store, [f"d{number}/x" for number in range(10)])
    listing = store.list()
    first = next(listing).path
    store.delete(["d5/x"])
    store.write("d7/y", b"")
    seen = [first, *(meta.path for meta in listing)]
    assert seen == sorted(set(seen))
    assert {f"d{number}/x" for number in range(10) if number != 5} <= set(seen)


@on(("azurite", "gcs"))
def test_listing_and_deleting_go_over_the_pages_of_a_cloud(
    store: RemoteFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with small pages: their emulators are slow."""
    monkeypatch.setattr(azure, "LIST_PAGE_MAX", 7)
    monkeypatch.setattr(azure, "DELETE_BATCH_MAX", 9)
    monkeypatch.setattr(gcs_module, "LIST_PAGE_MAX", 7)
    paths = [f"log/{number:020}" for number in range(50)]
    fill(store, paths)
    assert [meta.path for meta in store.list("log/")] == paths
    assert [meta.path for meta in store.list("log/", start_after=paths[13])] == paths[14:]
    store.delete([*paths[1:-1], "never/there"])
    assert [meta.path for meta in store.list()] == [paths[0], paths[-1]]


@on(("memory", "local", "seaweed", "moto"))
def test_listing_and_deleting_more_than_a_page_of_objects(store: RemoteFileSystem) -> None:
    """S3 lists and deletes a thousand at a time; a bug at the border would lose objects."""
    paths = [f"log/{number:020}" for number in range(2005)]
    fill(store, paths)
    assert [meta.path for meta in store.list("log/")] == paths
    assert [meta.path for meta in store.list("log/", start_after=paths[499])] == paths[500:]
    store.delete([*paths[1:-1], "never/there"])
    assert [meta.path for meta in store.list()] == [paths[0], paths[-1]]


# Google's emulator hangs up after each 416 without saying so, and whether the next request is lost
# by that is a matter of luck: Unavailable, which the layers repeat.
@on(tuple("gcs+layers" if name == "gcs" else name for name in ALL))
def test_ranges(store: RemoteFileSystem) -> None:
    data = bytes(range(256)) * 4
    store.write("x", data)
    for offset in (0, 1, 500, 1022, 1023, 1024, 1025, 5000):
        for length in (None, 0, 1, 2, 1000, 1024, 5000):
            end = None if length is None else offset + length
            assert store.read("x", offset=offset, length=length) == data[offset:end]


@on(ALL)
def test_negative_range_is_refused(store: RemoteFileSystem) -> None:
    store.write("x", b"0123456789")
    with pytest.raises(ValueError, match="range"):
        store.read("x", offset=-1)
    with pytest.raises(ValueError, match="range"):
        store.read("x", offset=3, length=-1)


@on(ALL)
def test_object_of_no_bytes(store: RemoteFileSystem) -> None:
    assert store.write("empty", b"").size == 0
    assert store.read("empty") == b""
    assert store.read("empty", offset=0, length=10) == b""
    assert store.read("empty", offset=5) == b""
    assert store.stat("empty").size == 0
    assert [(meta.path, meta.size) for meta in store.list()] == [("empty", 0)]


@on(ALL)
def test_missing_object_is_named_by_every_read(store: RemoteFileSystem) -> None:
    store.write("dir/there", b"")
    for path in ("gone", "dir", "dir/gone", "dir/there/gone"):
        with pytest.raises(ObjectMissing, match=path):
            store.read(path)
        with pytest.raises(ObjectMissing, match=path):
            store.read(path, offset=3, length=5)
        with pytest.raises(ObjectMissing, match=path):
            store.read(path, length=0)
        with pytest.raises(ObjectMissing, match=path):
            store.stat(path)


@on(ALL)
def test_plain_write_replaces_the_object(store: RemoteFileSystem) -> None:
    first = store.write("x", b"first, and longer")
    second = store.write("x", b"second")
    assert store.read("x") == b"second"
    assert store.stat("x").size == 6
    assert first.etag != second.etag
    assert store.stat("x").etag == second.etag


@on(ALL)
def test_create_if_absent_refuses_the_second_and_changes_nothing(store: RemoteFileSystem) -> None:
    """This is what fencing rests on: a second winner would fork the volume."""
    first = store.write("log/1", b"first", if_absent=True)
    with pytest.raises(AlreadyExists, match="log/1"):
        store.write("log/1", b"other", if_absent=True)
    with pytest.raises(AlreadyExists, match="log/1"):
        store.write("log/1", b"first", if_absent=True)
    assert store.read("log/1") == b"first"
    assert store.stat("log/1").etag == first.etag


@on(("seaweed", "azurite", "gcs"))
def test_create_of_a_large_object_is_refused_as_well(store: RemoteFileSystem) -> None:
    """SDKs send large objects in another way; the condition must hold there, too."""
    data = bytes(range(256)) * 40_000
    store.write("log/1", data, if_absent=True)
    with pytest.raises(AlreadyExists, match="log/1"):
        store.write("log/1", b"x" * len(data), if_absent=True)
    assert store.read("log/1") == data


@on(ALL)
def test_deleted_name_can_be_created_again(store: RemoteFileSystem) -> None:
    store.write("x", b"first", if_absent=True)
    store.delete(["x"])
    store.write("x", b"second", if_absent=True)
    assert store.read("x") == b"second"


@on(ATOMIC)
def test_exactly_one_of_many_creators_wins(store: RemoteFileSystem) -> None:
    for attempt in range(5):
        path = f"log/{attempt}"

        def create(number: int, path: str = path) -> int:
            store.write(path, b"writer %d " % number * 1000, if_absent=True)
            return number

        results = in_threads(16, create)
        winners = [result for result in results if isinstance(result, int)]
        losers = [result for result in results if isinstance(result, AlreadyExists)]
        assert (len(winners), len(losers)) == (1, 15), results
        assert store.read(path) == b"writer %d " % winners[0] * 1000


@on(ATOMIC)
def test_reader_never_sees_a_mixture_of_two_writes(store: RemoteFileSystem) -> None:
    values = [bytes([letter]) * 200_000 for letter in b"abcd"]
    store.write("x", values[0])

    def act(number: int) -> bool:
        if number < 4:
            for _ in range(5):
                store.write("x", values[number])
            return True
        return all(store.read("x") in values for _ in range(10))

    assert in_threads(8, act) == [True] * 8


@on(ALL)
def test_what_was_written_or_deleted_shows_at_once(store: RemoteFileSystem) -> None:
    for number in range(20):
        store.write("x", str(number).encode())
        assert store.read("x") == str(number).encode()
        assert [meta.path for meta in store.list("x")] == ["x"]
        store.delete(["x"])
        assert list(store.list("x")) == []
        with pytest.raises(ObjectMissing):
            store.read("x")


@on(ALL)
def test_deleting_what_is_not_there_is_no_error(store: RemoteFileSystem) -> None:
    store.write("kept", b"")
    store.delete([])
    store.delete(["gone", "gone", "dir/gone"])
    store.write("x", b"")
    store.delete(["x", "gone"])
    store.delete(["x"])
    assert [meta.path for meta in store.list()] == ["kept"]


@on(ALL)
def test_time_of_a_write_is_told_in_unix_nanoseconds(store: RemoteFileSystem) -> None:
    meta = store.write("x", b"")
    if not store.url.startswith("memory:"):  # that one's clock is the caller's
        assert abs(meta.modified_ns - time.time_ns()) < 60 * 10**9
    assert abs(store.stat("x").modified_ns - meta.modified_ns) <= 2 * 10**9


@on(PLAIN)
def test_etag_is_the_md5_where_the_store_says_so(store: RemoteFileSystem) -> None:
    meta = store.write("x", b"some bytes")
    digest = hashlib.md5(b"some bytes", usedforsecurity=False).hexdigest()
    assert (meta.etag == digest) is store.capabilities.etag_is_md5
    assert store.stat("x").etag == meta.etag


@on(ALL)
def test_probe_finds_create_if_absent_and_leaves_nothing(store: RemoteFileSystem) -> None:
    assert store.capabilities.create_if_absent
    assert probe_create_if_absent(store, "token-1") is True
    assert list(store.list()) == []


@on(("memory", *S3))
def test_storage_class_is_kept(store: RemoteFileSystem) -> None:
    assert store.write("x", b"", storage_class="STANDARD_IA").storage_class == "STANDARD_IA"
    assert store.stat("x").storage_class == "STANDARD_IA"
    assert [meta.storage_class for meta in store.list()] == ["STANDARD_IA"]


@on(ALL)
def test_objects_of_a_store_are_named_by_its_url(store: RemoteFileSystem) -> None:
    assert store.url.startswith(("memory://", "file:///", "s3://", "az://", "gs://"))
    with pytest.raises(ObjectMissing) as caught:
        store.read("gone")
    assert store.url in str(caught.value)
