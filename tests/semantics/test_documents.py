"""What documents show and name is so: sessions, the crash table, the files for deployment."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

import s3fs_banyan.app.mount  # noqa: F401  # its imports register every failpoint
from s3fs_banyan.config import load_config
from s3fs_banyan.errors import ExitCode
from s3fs_banyan.kernel import mount_source
from s3fs_banyan.runtime import FAILPOINTS
from tests.hygiene import tree
from tests.semantics.console import Session, masked, steps_of

_DEPLOY = tree.ROOT / "s3fs_banyan" / "deploy"
_WITH_SESSIONS = [path for path in tree.documents() if "\n```console\n" in tree.text(path)]
_CRASH_COLUMNS = 7
_END_WITHIN_S = 60.0


@pytest.mark.parametrize("document", _WITH_SESSIONS, ids=str)
def test_a_session_shows_what_the_commands_print(document: Path) -> None:
    """A person in trouble types what stands there, and compares what comes."""
    with Session() as session:
        for step in steps_of(tree.text(document)):
            shown, _ = session.run(step.command)
            assert masked(shown) == masked("\n".join(step.expected)), step.command


def test_the_documents_that_need_sessions_have_them() -> None:
    """A session that is no longer marked as one would not be run any more."""
    assert {str(path) for path in _WITH_SESSIONS} >= {"README.md", "docs/operations.md"}


def test_the_crash_table_has_a_row_for_every_failpoint() -> None:
    """A step that nobody has thought through is where data is lost."""
    text = tree.text(Path("docs/architecture.md")).partition("## The crash table")[2]
    rows = re.findall(r"^\| `([\w-]+)` \|(.*)\|$", text.partition("\n## ")[0], re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(FAILPOINTS)
    for name, rest in rows:
        cells = [cell.strip() for cell in rest.split(" | ")]
        assert len(cells) == _CRASH_COLUMNS - 1, name
        assert all(cells), name


@pytest.mark.parametrize("document", ["README.md", "docs/configuration.md"])
def test_the_example_configuration_is_taken_as_it_stands(
    document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the first thing that is copied."""
    example = tree.text(Path(document)).partition("\n```yaml\n")[2].partition("\n```\n")[0]
    path = tmp_path / "example.yaml"
    path.write_text(example, encoding="utf-8")
    monkeypatch.setenv("AWS_ACCESS_KEY", "an id")
    monkeypatch.setenv("AWS_SECRET_KEY", "a key")
    remote = load_config(path, {}).storage.remote
    assert (remote.url, remote.region) == ("s3://skywalking-backup", "ap-northeast-1")


def test_decisions_are_numbered_without_a_gap() -> None:
    """A decision is cited by its number, so none is used twice or vanishes."""
    names = sorted(path.name for path in (tree.ROOT / "docs/decisions").glob("*.md"))
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
    for name in names:
        first = (tree.ROOT / "docs/decisions" / name).read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith(f"# {int(name[:4])}. ")


# --- deployment --------------------------------------------------------------------------


def test_the_unit_file_mounts_waits_and_unmounts() -> None:
    """Its commands are run as they stand: an option that is gone would be found at a reboot."""
    unit = (_DEPLOY / "s3fs-banyan@.service").read_text(encoding="utf-8")
    commands = dict(re.findall(r"^(Exec\w+)=(.*)$", unit.replace("%i", "bydb"), re.MULTILINE))
    with Session() as session:
        place = session.path("/mnt/bydb")
        place.mkdir()
        store = session.path("/srv/volume")
        _configure(session, store)
        daemon = session.start(commands["ExecStart"])
        try:
            assert session.run(_started(commands, daemon)) == ("", 0)
            assert mount_source(place) == f"file://{store}"
            (place / "file").write_bytes(b"kept")
            daemon.kill()
            daemon.wait()
            daemon = session.start(commands["ExecStart"])
            assert session.run(_started(commands, daemon)) == ("", 0)
            assert (place / "file").read_bytes() == b"kept"
            shown, code = session.run(commands["ExecStop"])
            assert code == 0, shown
            assert daemon.wait(_END_WITHIN_S) == 0
            assert session.run(_started(commands, daemon)) == ("", 1)
        finally:
            if daemon.poll() is None:
                daemon.kill()
                daemon.wait()


def _started(commands: dict[str, str], daemon: subprocess.Popen[bytes]) -> str:
    """Return ExecStartPost with what systemd puts into its environment."""
    return f"MAINPID={daemon.pid} timeout 60 {commands['ExecStartPost']}"


def test_the_unit_file_restarts_for_what_heals_and_for_nothing_else() -> None:
    """A store that is away heals; a wrong configuration started a thousand times does not."""
    unit = (_DEPLOY / "s3fs-banyan@.service").read_text(encoding="utf-8")
    listed = re.search(r"^RestartPreventExitStatus=(.*)$", unit, re.MULTILINE)
    assert listed is not None
    heals = {ExitCode.OK, ExitCode.INTERNAL, ExitCode.STORE, ExitCode.DAEMON}
    assert {int(code) for code in listed[1].split()} == set(ExitCode) - heals


def test_the_mount_helper_takes_what_mount_hands_over() -> None:
    """/etc/fstab: the order and the flags are those of mount(8) with an external helper."""
    with Session() as session:
        place = session.path("/mnt/bydb")
        place.mkdir()
        store = session.path("/srv/volume")
        config = _configure(session, store)
        helper = f"{_DEPLOY}/mount.s3fs-banyan file://{store} {place}"
        options = f"-o rw,_netdev,config={config}"
        assert session.run(f"{helper} -f {options}")[1] == 0
        assert mount_source(place) is None
        shown, code = session.run(f"{helper} -s -v {options}")
        assert code == 0, shown
        assert mount_source(place) == f"file://{store}"
        assert session.run(f"s3fs-banyan umount {place}")[1] == 0


def test_the_mount_helper_is_a_program() -> None:
    """A file without the bit is ignored by mount(8), which then says something else."""
    helper = _DEPLOY / "mount.s3fs-banyan"
    assert helper.stat().st_mode & 0o111
    subprocess.run(["sh", "-n", str(helper)], check=True)


def _configure(session: Session, store: Path) -> Path:
    """Make a volume and the configuration file of the unit; returns the file."""
    path = session.path("/etc/s3fs-banyan/bydb.yaml")
    values = {
        "storage": {"remote": {"type": "file", "directory": str(store)}},
        "cache": {"directory": str(session.path("/var/lib/s3fs-banyan"))},
    }
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    shown, code = session.run(f"s3fs-banyan mkfs --config {path}")
    assert code == 0, shown
    return path
