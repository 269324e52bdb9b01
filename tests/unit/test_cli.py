"""The command line without a mount: options, texts for people, a document that agrees."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import resource
import subprocess
import sys
import tempfile
from dataclasses import fields
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from s3fs_banyan import __version__
from s3fs_banyan.cli import mounting
from s3fs_banyan.cli.command import app, run
from s3fs_banyan.cli.loading import MODULE_OF
from s3fs_banyan.cli.mount_options import MountOptions, parse_mount_options
from s3fs_banyan.cli.output import printable, seconds_text, size_text, time_text
from s3fs_banyan.cli.settings import settings, take_store
from s3fs_banyan.cli.status import troubles
from s3fs_banyan.config import Config
from s3fs_banyan.config.settings import Cache
from s3fs_banyan.errors import ConfigError, Corrupt, ExitCode, Unavailable
from s3fs_banyan.format.keys import log_key
from s3fs_banyan.remote.local import LocalStore

DOCUMENT = Path(__file__).parents[2] / "docs" / "commands.md"
GROUP = typer.main.get_command(app)
COMMANDS = {
    f"{name} {inner}".strip(): command
    for name in MODULE_OF
    for found in [GROUP.get_command(None, name)]  # type: ignore[attr-defined]  # a group of commands
    for inner, command in getattr(found, "commands", {"": found}).items()
}


def _options(name: str) -> set[str]:
    """Every option of a command that a person may know."""
    return {
        word
        for parameter in COMMANDS[name].params
        if not getattr(parameter, "hidden", False)
        for word in parameter.opts
        if word.startswith("-")
    }


def _section(name: str) -> str:
    found = re.search(
        rf"^## `{name}.*?(?=^## |\Z)", DOCUMENT.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert found, f"docs/commands.md has no section on {name}"
    return found[0]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_document_lists_every_command_with_exactly_its_options(name: str) -> None:
    """An option that is not written down is not there for a person, and the reverse."""
    listed = set(re.findall(r"`(--?[a-zA-Z][a-z-]*)", _section(name)))
    common = {"--config", "--endpoint-url", "--region", "--help"}
    common |= {"--passphrase-file", "--key-file"}
    assert listed - common == _options(name) - common


def test_the_document_lists_every_exit_code() -> None:
    """Scripts decide by them."""
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    assert rows == [(str(int(code)), code.name) for code in ExitCode]


def test_every_command_of_a_module_can_be_called() -> None:
    """One that is registered and not in the table would not be there."""
    known: dict[str, set[str]] = {}
    for name, module in MODULE_OF.items():
        known.setdefault(module, set()).add(name)
    for module, names in known.items():
        made = typer.Typer()
        importlib.import_module(f"s3fs_banyan.cli.{module}").register(made)
        registered = {
            info.name or getattr(info.callback, "__name__", "") for info in made.registered_commands
        } | {info.name for info in made.registered_groups}
        assert registered == names
    with_commands = {
        path.stem
        for path in Path(mounting.__file__).parent.glob("*.py")
        if "\ndef register(" in path.read_text("utf-8")
    }
    assert with_commands == set(known)


def _imported_by(module: str) -> set[str]:
    """Return what a fresh process has imported with a module."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {module}; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("s3fs_banyan.cli.command", {"trio", "pydantic", "boto3", "apsw", "prometheus_client"}),
        ("s3fs_banyan.cli.running", {"pydantic", "boto3", "apsw", "prometheus_client"}),
        ("s3fs_banyan.cli.browse", {"boto3", "pyfuse3"}),
        ("s3fs_banyan.cli.mounting", {"boto3", "pyfuse3"}),
        ("s3fs_banyan.commit.worker_main", {"boto3", "pydantic", "typer", "rich", "pyfuse3"}),
    ],
)
def test_a_process_imports_nothing_that_it_can_do_without(module: str, unwanted: set[str]) -> None:
    """Most of a short command's time is imports, and a mount starts three processes."""
    imported = _imported_by(module)
    assert module in imported
    assert imported & unwanted == set()


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself_with_an_example(name: str) -> None:
    """Help without an example makes a person guess."""
    result = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "100"})
    assert result.exit_code == 0
    assert f"s3fs-banyan {name}" in result.output


def test_the_version_is_printed() -> None:
    """Asked for in every report of a fault."""
    result = CliRunner().invoke(app, ["--version"])
    assert result.output == f"s3fs-banyan {__version__}\n"


def test_mount_options_say_the_same_as_the_command_line() -> None:
    """A line of /etc/fstab can say everything."""
    text = ",".join(
        f"{field.name}" if field.type == "bool" else f"{field.name.replace('_', '-')}=v"
        for field in fields(MountOptions)
    )
    said = parse_mount_options([text])
    for field in fields(MountOptions):
        assert str(getattr(said, field.name)) == ("True" if field.type == "bool" else "v")


def test_mount_options_of_others_are_left_to_them() -> None:
    """mount(8) passes on everything that stands in /etc/fstab."""
    words = "rw,nodev,nosuid,_netdev,noauto,x-systemd.automount,x-other=1,comment=ours,defaults"
    assert parse_mount_options([words, "ro"]) == MountOptions(read_only=True)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("noexec", "write `exec` behind them"),
        ("cache_sizes=1GiB", "did you mean 'cache-size'"),
        ("takeover=1", "takes no value"),
        ("cache-size", "needs a value"),
        ("cache-dir=", "needs a value"),
        ("durability=", "needs a value"),
        ("config=", "needs a value"),
    ],
)
def test_mount_options_that_would_not_be_kept_are_refused(text: str, why: str) -> None:
    """Silently ignored, `noexec` would promise what does not hold."""
    with pytest.raises(ConfigError, match=why):
        parse_mount_options([text])


def _unreachable(url: str, config: object, *, is_known: bool) -> str:
    raise Unavailable(f"{url} is away")


@pytest.mark.parametrize("noted", ["", "5e5e", "../" * 10 + "ab", "5E" * 16, "\xff" * 32], ids=repr)
def test_a_note_that_names_no_volume_leads_to_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noted: str
) -> None:
    """A crash may leave half of it, and an empty name is the directory of all volumes."""
    monkeypatch.setattr(mounting, "_volume_id", _unreachable)
    config = Config(cache=Cache(directory=tmp_path))
    url = "s3://bucket/volume"
    note = tmp_path / f"store-{hashlib.sha256(url.encode()).hexdigest()[:24]}"
    note.write_text(noted, encoding="latin-1")
    with pytest.raises(Corrupt, match=re.escape(str(note))):
        mounting._cache_directory(url, config, MountOptions())
    note.write_text("5e" * 16, encoding="ascii")
    assert mounting._cache_directory(url, config, MountOptions()) == tmp_path / ("5e" * 16)


def test_the_store_comes_from_the_command_line_first_and_from_the_file_else(tmp_path: Path) -> None:
    """A path in the volume must not be taken for a store, nor the reverse."""
    file = tmp_path / "config.yaml"
    file.write_text("storage: {remote: {type: file, directory: /srv/volume}}")
    named, bare = settings(file), settings(None)
    assert take_store(["path"], named, "", range(2)) == ("file:///srv/volume", ["path"])
    assert take_store(["s3://b01/x", "p"], named, "", range(2)) == ("s3://b01/x", ["p"])
    assert take_store([], named, "", range(2)) == ("file:///srv/volume", [])
    for words, why in (
        (["path"], "is no store"),
        ([], "no store"),
        (["s3://b", "p", "q"], "wrong"),
    ):
        with pytest.raises(ConfigError, match=why):
            take_store(words, bare, "", range(2))


def test_options_win_over_the_file(tmp_path: Path) -> None:
    """As docs/configuration.md says."""
    file = tmp_path / "config.yaml"
    file.write_text("commit: {interval: 5s}\nstorage: {remote: {type: s3, bucket: abc, region: a}}")
    found = settings(file, region="b", commit__interval="7s", cache__size=None)
    assert (found.commit.interval_s, found.storage.remote.region) == (7.0, "b")


def test_names_are_shown_without_what_a_terminal_would_obey() -> None:
    """A file name must not clear the screen or forge a line."""
    assert printable("plain name äö") == "plain name äö"
    assert printable("a\x1b[2Jb\nc") == "a\\x1b[2Jb\\nc"
    assert printable(b"stray \xff".decode("utf-8", "surrogateescape")).isprintable()


def test_numbers_are_shown_for_people() -> None:
    """With units, and no digits that mean nothing."""
    assert [size_text(n) for n in (0, 1023, 1536, 1 << 30)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "1.0 GiB",
    ]
    shown = [seconds_text(s) for s in (0.00025, 0.0035, 0.25, 2.5, 300, 10_000)]
    assert shown == ["250 us", "3.50 ms", "250 ms", "2.5 s", "5 min", "2.8 h"]
    assert time_text(1_000_000_000_999_999_999) == "2001-09-09 01:46:40"


def test_every_trouble_of_a_mount_is_said_first() -> None:
    """Nobody reads a table to find that nothing has been published for an hour."""
    fine = {
        "online": True,
        "read_only": "",
        "set_aside": "",
        "waiting_writers": 0,
        "commit": {"last_error": "", "interval_s": 30.0},
        "journal": {"disk_full": False},
        "lag": {"seconds": 29.0},
        "reclaim": {"problem": ""},
    }
    assert troubles(fine) == []
    bad = {
        "online": False,
        "read_only": "fenced by epoch 7",
        "set_aside": "/some/aside",
        "waiting_writers": 3,
        "commit": {"last_error": "timed out", "interval_s": 30.0},
        "journal": {"disk_full": True},
        "lag": {"seconds": 500.0},
        "reclaim": {"problem": "clocks differ"},
    }
    said = "\n".join(line for _, line in troubles(bad))
    for word in ("OFFLINE", "epoch 7", "/some/aside", "3 writers", "timed out", "FULL", "8 min"):
        assert word in said
    assert "clocks differ" in said
    for obstacle, word in {"refused": "REFUSED", "local": "HELD UP", "away": "OFFLINE"}.items():
        assert word in troubles(bad | {"obstacle": obstacle})[0][1]


def test_check_says_that_it_had_no_state_to_compare_with(tmp_path: Path) -> None:
    """Few findings must not be taken for little damage."""
    url = f"file://{tmp_path}"
    runner = CliRunner()
    assert runner.invoke(app, ["mkfs", url]).exit_code == 0
    sound = runner.invoke(app, ["check", url])
    assert sound.exit_code == 0
    assert "no state" not in sound.output
    store = LocalStore(tmp_path)
    store.write(log_key(1), b"no commit")
    assert "no state could be loaded" in runner.invoke(app, ["check", url]).output
    done = runner.invoke(app, ["check", url, "--json"])
    assert done.exit_code == ExitCode.DAMAGE
    told = json.loads(done.output)
    assert told["loaded"] is False
    assert [finding["key"] for finding in told["findings"]] == [log_key(1)]


@pytest.mark.parametrize("command", ["ls", "check"])
def test_a_temporary_directory_that_cannot_be_used_is_one_line(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The volume is well, and what helps is another directory."""
    (tmp_path / "volume").mkdir()
    url = f"file://{tmp_path / 'volume'}"
    assert run(["mkfs", url]) == 0
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    assert run([command, url]) == ExitCode.LOCAL
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))  # a disk that refuses
    try:
        assert run([command, url]) == ExitCode.LOCAL
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert all("TMPDIR" in line for line in said)
    assert run([command, url]) == 0
