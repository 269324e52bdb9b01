"""The workload program end to end: runs, kills, resumes, failures, and planted damage.

If the checker missed damage, every crash campaign that uses it would prove nothing.
"""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from workload.index import decode_snapshot

SCRIPT = Path(__file__).parents[2] / "scripts" / "banyan-workload"
SMALL = ["--scale", "0.05", "--flush-interval-scale", "0.1", "--seed", "5"]
WAIT_S = 240.0
LATENCIES = (
    *("flush measure", "flush stream", "flush trace", "merge stream", "merge trace"),
    *("query", "property write", "reopen", "snapshot", "element index commit"),
)
COUNTS = ("link", "segments expired", "index merges", "parts removed", "page faults")


def run(*arguments: str | Path, code: int = 0) -> str:
    """Run the program to its end and return what it printed; the exit code must match."""
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start the program and wait until its load runs."""
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("ready after")
    return process


def wait_for_publications(log: Path, count: int) -> None:
    """Wait until the log holds so many published part lists more than now."""
    before = log.read_text().count(".snp.tmp ")
    deadline = time.monotonic() + WAIT_S
    while log.read_text().count(".snp.tmp ") < before + count:
        assert time.monotonic() < deadline, "the load makes no progress"
        time.sleep(0.05)


class Volume:
    """A copy of a finished run, to damage and check."""

    def __init__(self, source: Path, target: Path) -> None:
        subprocess.run(["cp", "-a", source, target], check=True)
        self.root = target / "volume"
        self.log = target / "log"

    def find(self, pattern: str, *, min_bytes: int = 1) -> Path:
        """Return the first file that matches and is large enough."""
        found = sorted(p for p in self.root.glob(pattern) if p.stat().st_size >= min_bytes)
        assert found, pattern
        return found[0]

    def verify(self, at_least: str = "answered", *, code: int = 1) -> str:
        """Check it and return the output."""
        return run(self.root, "--log", self.log, "--verify", "--at-least", at_least, code=code)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that met everything: merges, snapshots, rotation, storms."""
    base = tmp_path_factory.mktemp("finished")
    (base / "volume").mkdir()
    cycles: list[str | Path] = [
        "--snapshot-every",
        "1",
        "--rotate-every",
        "1.6",
        "--reopen-every",
        "0.7",
    ]
    cycles += ["--keep-snapshots", "1", "--keep-segments", "2"]
    cycles += ["--report", "json", "--json", base / "report.json"]
    for name in (*LATENCIES, *COUNTS):
        cycles += ["--meet", name]
    run(base / "volume", "--log", base / "log", "--duration", "8", *SMALL, *cycles)
    return base


@pytest.fixture
def volume(finished: Path, tmp_path: Path) -> Volume:
    """A fresh copy of the finished run."""
    return Volume(finished, tmp_path / "copy")


def test_run_meets_every_event_and_verifies(finished: Path, volume: Volume) -> None:
    """A short run must contain what it claims to replay, and leave a sound volume."""
    report = json.loads((finished / "report.json").read_text())
    assert report["failure"] is None
    for name in LATENCIES:
        assert report["latencies"][name]["count"] > 0, name
    for name in COUNTS:
        assert report["counts"][name] > 0, name
    for promise in ("answered", "synced", "none"):
        assert volume.verify(promise, code=0).startswith("0 violations")


def test_verify_finds_a_flipped_byte(volume: Volume) -> None:
    """Silent corruption in the middle of a column."""
    path = volume.find("stream/data/**/*.tf", min_bytes=100)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    expected = f"{path.relative_to(volume.root)}: wrong byte at {len(data) // 2}"
    assert expected in volume.verify("none")


def test_verify_finds_a_flipped_first_byte(volume: Volume) -> None:
    """The same where the content id is stamped, so the file no longer says what it is."""
    path = volume.find("measure/data/**/fv.bin")
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    assert f"{path.relative_to(volume.root)}: a file of" in volume.verify("none")


def test_verify_finds_a_truncated_file(volume: Volume) -> None:
    """A synced file that is short while later operations are there: rclone's failure."""
    path = volume.find("trace/data/**/spans.bin", min_bytes=100)
    with path.open("rb+") as stream:
        stream.truncate(50)
    output = volume.verify("none")
    assert "order: append" in output
    assert "lost: append" in volume.verify("synced")


def test_verify_finds_a_grown_file(volume: Volume) -> None:
    """Bytes nobody wrote."""
    path = volume.find("trace/data/**/spans.bin")
    with path.open("ab") as stream:
        stream.write(b"more")
    assert "are possible" in volume.verify("none")


def test_verify_finds_a_removed_file(volume: Volume) -> None:
    """A synced core file that is gone: the database would crash at each start."""
    path = volume.find("stream/data/**/primary.bin")
    path.unlink()
    assert f"order: create {path.relative_to(volume.root)}" in volume.verify("none")


def test_verify_finds_an_undone_rename(volume: Volume) -> None:
    """An old rename undone while later operations are kept: no prefix explains that."""
    path = volume.find("measure/data/**/metadata.json")
    path.rename(path.with_name("metadata.json.tmp"))
    assert f"order: rename {path.relative_to(volume.root)}.tmp" in volume.verify("none")


def test_verify_finds_a_half_done_rename(volume: Volume) -> None:
    """Both names at once is a state that rename never passes through."""
    path = volume.find("measure/data/**/metadata.json")
    shutil.copy(path, path.with_name("metadata.json.tmp"))
    assert "half done: rename" in volume.verify("none")


def test_verify_finds_a_returned_name(volume: Volume) -> None:
    """An unlink undone: an older part list is back beside the newest."""
    newest = volume.find("stream/data/*/*/shard-0/*.snp")
    older = newest.with_name(f"{int(newest.stem, 16) - 1:016x}.snp")
    line = next(
        line
        for line in volume.log.read_text().splitlines()
        if f" create {older.relative_to(volume.root)}.tmp " in line
    )
    older.write_bytes(bytes.fromhex(line.split(" ")[6][1:]))
    assert f"order: unlink {older.relative_to(volume.root)}" in volume.verify("none")


def test_verify_finds_foreign_names(volume: Volume) -> None:
    """A directory of the file system's own inside the tree: BanyanDB would delete it."""
    shard = volume.find("stream/data/*/*/shard-0/*.snp").parent
    (shard / ".hidden").mkdir()
    output = volume.verify("none")
    assert "/.hidden: never made by this load" in output
    assert "/.hidden: a directory that would be deleted" in output


def test_verify_finds_empty_segment_metadata(volume: Volume) -> None:
    """The file that is never synced, empty while later ones are there: a lost segment."""
    path = volume.find("stream/data/*/*/metadata")
    path.write_bytes(b"")
    assert "the segment would be deleted" in volume.verify("none")


def test_verify_finds_a_broken_part_list(volume: Volume) -> None:
    """A torn part list, which a rename must never publish."""
    path = volume.find("measure/data/*/*/shard-1/*.snp")
    path.write_bytes(path.read_bytes()[:-3])
    assert "an unreadable part list" in volume.verify("none")


def test_verify_finds_a_missing_index_segment(volume: Volume) -> None:
    """An index whose snapshot names a segment that is not there does not open."""
    snapshot = volume.find("stream/data/*/*/shard-0/idx/*.snp")
    names = decode_snapshot(snapshot.read_bytes())
    assert names
    name = names[0]
    (snapshot.parent / name).unlink()
    assert f"names {name}: not there" in volume.verify("none")


def test_verify_finds_a_broken_hard_link(volume: Volume) -> None:
    """A snapshot's file with the right bytes in an inode of its own is no link."""
    # Of any kind of data: on a slow machine one kind may have merged away all that it linked.
    held = sorted(path for path in volume.root.glob("*/snapshots/**/*") if path.is_file())
    path = next(path for path in held if path.stat().st_nlink > 1)
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    assert "with another inode" in volume.verify("none")


def test_verify_tells_the_promises_apart(volume: Volume) -> None:
    """Nothing at all is a prefix, but not one that holds what was synced."""
    shutil.rmtree(volume.root)
    volume.root.mkdir()
    volume.verify("none", code=0)
    assert "lost: " in volume.verify("synced")
    assert "lost: " in volume.verify("answered")


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_load_ends_verifies_and_resumes(tmp_path: Path, ending: signal.Signals) -> None:
    """After a kill at any moment the log is valid, and a run goes on from the tree; twice."""
    root, log = tmp_path / "volume", tmp_path / "log"
    root.mkdir()
    arguments: list[str | Path] = [root, "--log", log, "--duration", "50", *SMALL]
    arguments += ["--rotate-every", "1", "--keep-segments", "2", "--snapshot-every", "0.7"]
    for resume in ([], ["--resume"], ["--resume"]):
        process = start(*arguments, *resume)
        try:
            wait_for_publications(log, 30)
            process.send_signal(ending)
            assert process.wait(WAIT_S) == (0 if ending == signal.SIGTERM else -ending)
        finally:
            process.kill()
            process.communicate()
        output = run(root, "--log", log, "--verify", "--at-least", "answered")
        assert output.startswith("0 violations")


def test_resume_continues_a_lost_tail(volume: Volume) -> None:
    """A volume that lost its tail (here: everything) is a new beginning of the same log."""
    shutil.rmtree(volume.root)
    volume.root.mkdir()
    run(volume.root, "--log", volume.log, "--resume", "--duration", "1", *SMALL)
    volume.verify("answered", code=0)


def test_stop_file_ends_the_run(tmp_path: Path) -> None:
    """A campaign ends a run by a file, within the run's bounded waits."""
    root = tmp_path / "volume"
    root.mkdir()
    stop = tmp_path / "stop"
    stop.touch()
    run(root, "--duration", "50", "--stop-file", stop, "--mix", "property", *SMALL)
    assert run(root, "--verify").startswith("0 violations")


def test_failing_volume_is_exit_code_3(tmp_path: Path) -> None:
    """A volume that refuses a write ends the run clearly, and the log still checks."""
    root, log = tmp_path / "volume", tmp_path / "log"
    root.mkdir()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (96 << 10, 96 << 10))

    command = [sys.executable, str(SCRIPT), str(root), "--log", str(log), "--mix", "measure"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=WAIT_S, check=False, preexec_fn=limit
    )
    assert done.returncode == 3, done.stderr
    assert "banyan-workload: the volume failed: File too large" in done.stderr
    assert " !EFBIG ." in log.read_text()
    assert run(root, "--log", log, "--verify").startswith("0 violations")


def log_inside(base: Path) -> list[str | Path]:
    """A log on the volume under test."""
    return [base / "volume", "--log", base / "volume" / "log"]


def log_in_use(base: Path) -> list[str | Path]:
    """A log that another run wrote."""
    (base / "log").write_text("old\n")
    return [base / "volume", "--log", base / "log"]


def foreign_log(base: Path) -> list[str | Path]:
    """A log of something else."""
    return [*log_in_use(base), "--verify"]


@pytest.mark.parametrize("misuse", [log_inside, log_in_use, foreign_log])
def test_misuse_is_exit_code_2(misuse: Callable[[Path], list[str | Path]], tmp_path: Path) -> None:
    """A wrong log must not be overwritten, believed, or lie on the volume that may be lost."""
    (tmp_path / "volume").mkdir()
    assert "banyan-workload: " in run(*misuse(tmp_path), code=2)
