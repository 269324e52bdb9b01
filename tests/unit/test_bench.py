"""The yardstick's arithmetic, its loads and its manners: a wrong ruler misleads every decision."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benchlib import cli, rounds
from benchlib.contenders import BenchError, Contender
from benchlib.loads import LOADS, Sample, by_many
from benchlib.measures import FLOOR, MEASURES, OURS, PLAIN, select
from benchlib.mounts import mounts_below
from benchlib.rounds import Observation, run_rounds
from benchlib.summary import percentile, summarise
from rich.console import Console

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"
TINY = {"files": 20, "size_mb": 2, "synced": 5, "synced_by_many": 32, "parts": 2}


def observation(
    contender: str, number: int, seconds: float, measure: str = "create"
) -> Observation:
    """Return 100 operations, 1 to 100 us each."""
    return Observation(
        contender=contender,
        measure=measure,
        round=number,
        operations=100,
        bytes_moved=409_600,
        seconds=seconds,
        latencies_ns=tuple(range(1000, 101_000, 1000)),
    )


# --- arithmetic --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([7], 0.99, 7),
        ([3, 1, 2], 0.5, 2),
        ([4, 1, 3, 2], 0.5, 2),
        (list(range(1, 101)), 0.99, 99),
        (list(range(1, 202)), 0.99, 199),
    ],
)
def test_percentile_is_the_nearest_rank(values: list[int], share: float, expected: int) -> None:
    """An index off by one would report the worst operation as the 99th percentile."""
    assert percentile(values, share) == expected


def test_ratios_are_taken_inside_a_round_and_then_their_median() -> None:
    """A machine twice as slow in one round must not move a ratio."""
    floor_seconds = (1.0, 2.0, 10.0)
    seen = [observation(FLOOR, number, value) for number, value in enumerate(floor_seconds)]
    seen += [observation(OURS, number, 2 * value) for number, value in enumerate(floor_seconds)]
    (row,) = summarise(seen, select(["create"]))
    (ratio,) = row.ratios
    assert (ratio.contender, ratio.base, ratio.ratio) == (OURS, FLOOR, 0.5)
    assert (ratio.needed, ratio.verdict) == (0.6, "below")
    assert row.cells[FLOOR].value == 50
    assert row.cells[FLOOR].p50_us == 50
    assert row.cells[FLOOR].p99_us == 99


def test_a_verdict_is_ok_from_the_needed_ratio_on_and_only_for_ours() -> None:
    """Another product beside ours is compared, not judged."""
    seen = [observation(FLOOR, 0, 0.6), observation(OURS, 0, 1.0), observation("peer", 0, 9.0)]
    (row,) = summarise(seen, select(["create"]))
    verdicts = {ratio.contender: ratio.verdict for ratio in row.ratios}
    assert verdicts == {OURS: "ok", "peer": ""}


def test_throughput_is_in_megabytes_of_a_million_bytes() -> None:
    """The sequential rows are bytes over time, not pieces over time."""
    seen = [observation(PLAIN, 0, 0.1, measure="write")]
    (row,) = summarise(seen, select(["write"]))
    assert row.cells[PLAIN].value == pytest.approx(4.096)


def test_the_needed_ratios_are_the_agreed_ones() -> None:
    """A lowered bar must show in a test, not only in a table."""
    needed = {(m.name, base): share for m in MEASURES for base, share in m.needed.items()}
    assert needed == {
        ("create", FLOOR): 0.6,
        ("read-first", FLOOR): 0.75,
        ("read-warm", FLOOR): 0.75,
        ("rename", FLOOR): 0.55,
        ("unlink", FLOOR): 0.55,
        ("write", FLOOR): 0.7,
        ("write-sync", FLOOR): 0.7,
        ("read-cold", FLOOR): 0.8,
        ("append-sync", PLAIN): 0.6,
        ("append-sync-16", PLAIN): 0.35,
        ("part-flush", PLAIN): 0.4,
    }


# --- loads and rounds --------------------------------------------------------------------


@pytest.mark.parametrize("load", LOADS)
def test_a_load_yields_its_measures_in_every_round(load: str, tmp_path: Path) -> None:
    """A missing measure or round would be noticed by nobody; large files must not add up."""
    contender = Contender(name=PLAIN, directory=tmp_path)
    measures = [measure for measure in MEASURES if measure.load == load]
    seen = run_rounds([contender], measures, tmp_path, rounds=2, settings=TINY, tell=lambda _: None)
    assert [(entry.measure, entry.round) for entry in seen] == [
        (measure.name, number) for number in range(2) for measure in measures
    ]
    assert all(len(entry.latencies_ns) == entry.operations > 0 for entry in seen)
    assert all(sum(entry.latencies_ns) > 0 and entry.seconds > 0 for entry in seen)
    assert max((e.stat().st_size for e in tmp_path.rglob("*") if e.is_file()), default=0) < 200_000


def test_contenders_take_turns_load_by_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A B C A B C: else a slow minute of the machine counts against one of them only."""
    turns: list[tuple[str, str]] = []

    def note(load: str, directory: Path, *_: object) -> dict[str, Any]:
        turns.append((load, directory.relative_to(tmp_path).parts[0]))
        return {}

    monkeypatch.setattr(rounds, "_run_load", note)
    contenders = [Contender(name=name, directory=tmp_path / name) for name in "ABC"]
    for contender in contenders:
        contender.directory.mkdir()
    run_rounds(
        contenders,
        select(["create", "append"]),
        tmp_path,
        rounds=2,
        settings=TINY,
        tell=lambda _: None,
    )
    one_round = [(load, name) for load in ("small", "append") for name in "ABC"]
    assert turns == one_round * 2


def test_one_failing_process_of_many_fails_the_load(tmp_path: Path) -> None:
    """Fifteen processes on an idle file system would look faster than sixteen on a loaded one."""

    def work(directory: str, worker: int, count: int) -> Sample:
        if worker == 3:
            raise OSError(28, "No space left on device")
        return Sample(count, 0, 0.0, [1] * count)

    with pytest.raises(RuntimeError, match=r"1 of 16 processes failed: .*No space left"):
        by_many(str(tmp_path), work, 32)


@pytest.mark.parametrize(
    ("program", "complaint"),
    [
        ("raise OSError(5, 'Input/output error')", "small on it failed: OSError.*Input/output"),
        ("import time; time.sleep(100)", "small on it failed: it took over"),
    ],
)
def test_a_load_that_fails_or_hangs_ends_the_run(
    program: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed operation counted as a fast one would make the worst file system the best."""
    script = tmp_path / "program.py"
    script.write_text(program, encoding="utf-8")
    monkeypatch.setattr(rounds, "LOADS_PROGRAM", script)
    monkeypatch.setattr(rounds, "LOAD_TIMEOUT_S", 2)
    contender = Contender(name="it", directory=tmp_path)
    with pytest.raises(BenchError, match=complaint):
        run_rounds(
            [contender], select(["small"]), tmp_path, rounds=1, settings=TINY, tell=lambda _: None
        )


def test_a_contender_that_is_gone_ends_the_run(tmp_path: Path) -> None:
    """A daemon that died is reported by name, not by a traceback."""
    contender = Contender(name="it", directory=tmp_path / "gone")
    with pytest.raises(BenchError, match=r"small on it failed: .*No such file"):
        run_rounds(
            [contender], select(["small"]), tmp_path, rounds=1, settings=TINY, tell=lambda _: None
        )


# --- the program -------------------------------------------------------------------------


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    return subprocess.run(
        [sys.executable, BENCH, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def assert_clean(work: Path) -> None:
    """Fail if a run left a mount or a file."""
    assert mounts_below(work) == []
    assert list(work.iterdir()) == []


def test_a_run_prints_one_table_and_writes_every_number(tmp_path: Path) -> None:
    """The whole way once: floor mounted, a given directory as ours, all gone afterwards."""
    work, given, target = tmp_path / "work", tmp_path / "given", tmp_path / "out.json"
    work.mkdir()
    given.mkdir()
    (given / "kept").touch()
    done = bench(
        "--contenders", "floor,plain", "--ours-dir", given, "--rounds", 1, "--scale", 0.02,
        "--size-mb", 2, "--work-dir", work, "--json", target,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert all(measure.title in done.stdout for measure in MEASURES)
    heading = [done.stdout.find(text) for text in ("ours", "floor", "plain", "ours / floor")]
    assert heading == sorted(heading)
    assert heading[0] >= 0
    values = json.loads(target.read_text(encoding="utf-8"))
    assert set(values["measures"]) == {measure.name for measure in MEASURES}
    assert set(values["measures"]["create"]["ratios"]) == {"ours/floor", "ours/plain"}
    assert values["measures"]["part-flush"]["ratios"]["ours/plain"]["needed"] == 0.4
    assert len(values["observations"]) == len(MEASURES) * 3
    assert_clean(work)
    assert [entry.name for entry in given.iterdir()] == ["kept"]


def test_a_mount_that_fails_is_reported_and_nothing_stays(tmp_path: Path) -> None:
    """The floor is mounted already when ours fails: it must go, too."""
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\n[ "$1" = mkfs ] || { echo no such store; exit 9; }\n')
    program.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    done = bench("--contenders", "floor,ours", "--program", program, "--work-dir", work)
    assert done.returncode == cli.EXIT_FAILED
    assert "no such store" in done.stderr
    assert "Traceback" not in done.stderr
    assert_clean(work)


@pytest.mark.parametrize("start", ["exec", "setsid -f"])
def test_ours_is_made_mounted_measured_and_unmounted(start: str, tmp_path: Path) -> None:
    """With a stand-in for the product, in the foreground or not: the commands are these."""
    program = tmp_path / "program"
    program.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >> {tmp_path}/calls\n'
        f'[ "$1" = mkfs ] || {start} {sys.executable} {BENCH.with_name("floorfs")} "$3" "$5"\n',
        encoding="utf-8",
    )
    program.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    done = bench(
        "--contenders", "ours", "--program", program, "--store", "s3://bucket/prefix",
        "--work-dir", work, "--only", "create,part-flush", "--rounds", 1, "--scale", 0.01,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    calls = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    assert calls[0] == "mkfs s3://bucket/prefix"
    assert calls[1].startswith("mount s3://bucket/prefix /")
    assert "sequential" not in done.stdout
    assert_clean(work)


@pytest.mark.parametrize(
    ("ours_seconds", "options", "expected"),
    [
        (1.0, ["--fail-below"], 0),
        (9.0, ["--fail-below"], cli.EXIT_BELOW),
        (9.0, [], 0),
    ],
)
def test_a_ratio_below_what_is_needed_can_fail_the_run(
    ours_seconds: float,
    options: list[str],
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A gate that asks for it must not pass a slower product, and nobody else is disturbed."""
    seen = [
        observation(OURS, 0, ours_seconds, measure="part-flush"),
        observation(PLAIN, 0, 1.0, measure="part-flush"),
    ]
    monkeypatch.setattr(cli, "run_rounds", lambda *_, **__: seen)
    given = ["--contenders", "plain", "--ours-dir", str(tmp_path), "--only", "part-flush"]
    parsed = cli.parse([*given, "--work-dir", str(tmp_path), *options])
    text = io.StringIO()
    assert cli.run(parsed, Console(file=text, width=150), Console(file=io.StringIO())) == expected
    assert ("0.4 ok" if ours_seconds == 1.0 else "0.4 below") in text.getvalue()


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Wait while the process lives until the condition holds."""
    while not condition():
        assert process.poll() is None
        time.sleep(0.02)


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_leaves_nothing(tmp_path: Path, ending: signal.Signals) -> None:
    """An impatient person must not find mounts and gigabytes later."""
    command = [sys.executable, str(BENCH), "--contenders", "floor", "--work-dir", str(tmp_path)]
    # A shell's background jobs ignore SIGINT, and so would what is started from them.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        wait_until(lambda: bool(list(tmp_path.glob("*/floor/mnt/small-*"))), process)
        process.send_signal(ending)
        process.communicate(timeout=60)
        assert process.returncode == 128 + ending
        assert_clean(tmp_path)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--only", "nothing"],
        ["--contenders", "floor,nobody"],
        ["--contender", "ours"],
        ["--contender", "floor=/tmp"],
        ["--rounds", "0"],
    ],
)
def test_wrong_usage_is_refused(arguments: list[str]) -> None:
    """A misspelt name must not silently measure something else."""
    with pytest.raises(SystemExit) as caught:
        cli.parse(arguments)
    assert caught.value.code == cli.EXIT_USAGE
