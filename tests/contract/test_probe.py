"""The probe's table, on every server: what `docs/store.md` says of a server is what is found."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from s3fs_banyan.cli import probing
from s3fs_banyan.cli.command import app
from s3fs_banyan.errors import Denied, ExitCode, Misconfigured, Unavailable
from s3fs_banyan.remote.base import RemoteFileSystem
from s3fs_banyan.remote.local import LocalStore
from s3fs_banyan.remote.open import open_bare_store
from s3fs_banyan.remote.options import StoreOptions, parse_store_url
from s3fs_banyan.remote.probe import NEEDED, Found, is_usable, probe_store
from tests.contract.remote_stores import on, options_for, store
from tests.hygiene import tree
from tests.servers import MotoServer

__all__ = ["store"]

COLUMNS = {
    "seaweed": "SeaweedFS 4.48",
    "moto": "moto 5.2.5",
    "azurite": "azurite 3.35.0",
    "gcs": "fake-gcs-server",
    "local": "directory",
}
SCHEMES = {"azurite": "az", "gcs": "gs", "local": "file", "memory": "memory"}
RACY = {("moto", "creators at once")}
"""moto is no product: sometimes it answers 500 to requests that come at the same time."""


def _documented() -> dict[str, dict[str, str]]:
    """Return server -> row -> first word, from the table of the document."""
    text = tree.text(Path("docs/store.md")).partition("## What the probe finds")[2]
    lines = [line for line in text.partition("\n## ")[0].splitlines() if line.startswith("| ")]
    header, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    found: dict[str, dict[str, str]] = {}
    for name, *cells in rows:
        for server, cell in zip(header[1:], cells, strict=True):
            if word := re.match(r"\w+", cell):
                found.setdefault(server, {})[name.strip("`")] = word[0]
    return found


def _probe(store: RemoteFileSystem, scheme: str) -> list[Found]:
    return [*probe_store(store, scheme, "token", time.time_ns)]


@pytest.mark.parametrize(("store", "server"), [(n, n) for n in COLUMNS], indirect=["store"])
def test_the_document_says_of_a_server_what_the_probe_finds(
    store: RemoteFileSystem, server: str
) -> None:
    """Whoever chooses a store by the table must not find out later."""
    store.write("volume.json", b"somebody's")
    rows = _probe(store, SCHEMES.get(server, "s3"))
    found = {row.name: row.verdict for row in rows}
    expected = _documented()[COLUMNS[server]]
    for racy, name in RACY:
        if racy == server:
            assert found.pop(name) in {expected.pop(name), "unclear"}
    assert found == expected
    assert [meta.path for meta in store.list()] == ["volume.json"]
    assert store.read("volume.json") == b"somebody's"


def _ignore_the_condition(store: RemoteFileSystem) -> None:
    original = store.write

    def write(path: str, data: bytes, *, if_absent: bool = False, **asked: str) -> object:
        del if_absent
        return original(path, data, **asked)  # type: ignore[arg-type]

    store.write = write  # type: ignore[method-assign, assignment]


def _forget_deletes(store: RemoteFileSystem) -> None:
    store.delete = lambda paths: None  # type: ignore[method-assign]


def _cut_ranges(store: RemoteFileSystem) -> None:
    original = store.read

    def read(path: str, *, offset: int = 0, length: int | None = None) -> bytes:
        return bytes(original(path, offset=0 if length is not None else offset, length=length))

    store.read = read  # type: ignore[method-assign]


def _begin_anywhere(store: RemoteFileSystem) -> None:
    original = store.list
    store.list = lambda prefix="", start_after="": original(prefix)  # type: ignore[method-assign, misc]


@on(("memory",))
@pytest.mark.parametrize(
    ("spoil", "missing"),
    [
        (_ignore_the_condition, {"create-if-absent", "creators at once"}),
        (_forget_deletes, {"read after write", "delete"}),
        (_cut_ranges, {"ranged reads"}),
        (_begin_anywhere, {"start after"}),
    ],
)
def test_a_store_without_an_ability_is_seen_through(
    store: RemoteFileSystem, spoil: Callable[[RemoteFileSystem], None], missing: set[str]
) -> None:
    """A probe that finds everything everywhere would be worse than none."""
    assert is_usable(_probe(store, "memory"))
    spoil(store)
    rows = _probe(store, "memory")
    assert {row.name for row in rows if row.needed and row.verdict != "yes"} == missing
    assert not is_usable(rows)


@on(("memory",))
def test_a_store_that_goes_away_is_unclear_and_not_called_unable(store: RemoteFileSystem) -> None:
    """A time-out says nothing of what the store can do."""

    def stat(path: str) -> None:
        raise Unavailable(f"{path}: timed out")

    store.stat = stat  # type: ignore[method-assign, assignment]
    rows = {row.name: row for row in _probe(store, "memory")}
    assert rows["read after write"].verdict == "unclear"
    assert "timed out" in rows["read after write"].detail


def test_a_store_that_cannot_be_used_is_an_error(moto: MotoServer) -> None:
    url = parse_store_url("s3://no-such-bucket/x")
    store = open_bare_store(url, options_for(moto))
    with pytest.raises(Misconfigured, match="does not exist"):
        _probe(store, "s3")
    store.close()


def test_the_rows_that_a_volume_needs_are_all_probed(tmp_path: Path) -> None:
    """A name that is only in the list would make every store usable, or none."""
    url = parse_store_url((tmp_path / "store").as_uri())
    store = open_bare_store(url, StoreOptions(), create=True)
    assert {row.name for row in _probe(store, "file")} >= NEEDED


def _run(*arguments: str) -> tuple[int, str]:
    """Run the command; return (exit code, standard output)."""
    done = subprocess.run(
        [sys.executable, "-m", "s3fs_banyan.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_command_prints_the_table_and_its_verdict(tmp_path: Path) -> None:
    """A script decides by the exit code, a person by the last line."""
    place = tmp_path / "store"
    LocalStore(place, create=True).close()
    code, text = _run("probe", place.as_uri())
    assert code == ExitCode.OK
    assert "create-if-absent    yes\n" in text
    assert text.endswith("this store can hold a volume\n")
    code, text = _run("probe", place.as_uri(), "--json")
    answer = json.loads(text)
    assert (code, answer["usable"], answer["store"]) == (ExitCode.OK, True, place.as_uri())
    assert {row["name"] for row in answer["found"] if row["needed"]} == NEEDED
    assert list(place.iterdir()) == []
    code, text = _run("probe", (tmp_path / "gone").as_uri())
    assert code == ExitCode.STORE
    assert text.count("\n") == 1
    assert _run("probe", "nfs://x")[0] == ExitCode.USAGE


def test_the_command_ends_with_4_for_a_store_that_lacks_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path / "store", create=True)
    _ignore_the_condition(store)
    monkeypatch.setattr(probing, "open_bare_store", lambda url, options: store)
    done = CliRunner().invoke(app, ["probe", "file:///srv/x"])
    assert done.exit_code == ExitCode.VOLUME
    assert "CANNOT" in done.stdout


def test_the_command_ends_with_3_for_a_store_that_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Credentials that may only read say nothing of what the store can do."""
    store = LocalStore(tmp_path / "store", create=True)

    def refuse(path: str, data: bytes, **_: object) -> None:
        raise Denied(f"{path}: access denied")

    monkeypatch.setattr(store, "write", refuse)
    monkeypatch.setattr(probing, "open_bare_store", lambda url, options: store)
    done = CliRunner().invoke(app, ["probe", "file:///srv/x"])
    assert done.exit_code == ExitCode.STORE
    assert "not known" in done.stdout
    assert "CANNOT" not in done.stdout
    assert "access denied" in done.stdout
