"""The workload's parts: content, merge rule, and the checker's soundness on true prefixes."""

from __future__ import annotations

import errno
import importlib
import os
import random
import subprocess
import sys
import zlib
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(autouse=True)
def _scripts_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


def module(name: str) -> ModuleType:
    """Import one of the workload's modules."""
    return importlib.import_module(f"workload.{name}")


def test_content_is_a_function_of_seed_id_and_offset() -> None:
    """Any slice equals the same slice of the whole, in any process, or checks would lie."""
    content = module("content").Content(7)
    whole = content.data(42, 0, 70_000)
    rng = random.Random(1)
    for _ in range(300):
        start = rng.randrange(70_000)
        length = rng.randrange(70_000 - start)
        assert content.data(42, start, length) == whole[start : start + length]
    assert module("content").Content(7).data(42, 0, 70_000) == whole
    assert module("content").Content(8).data(42, 0, 70_000) != whole


def test_content_blocks_are_distinct_and_mostly_incompressible() -> None:
    """A block in the wrong place must show, and compression must not flatter anybody."""
    content = module("content").Content(7)
    blocks = {content.data(fid, block * 4096, 4096) for fid in range(1, 30) for block in range(30)}
    assert len(blocks) == 29 * 30
    whole = content.data(3, 0, 1 << 20)
    assert 0.8 < len(zlib.compress(whole, 1)) / len(whole) < 0.95


@pytest.mark.parametrize(
    ("sizes", "fan_in", "free", "expected"),
    [
        ([10, 10, 10], 8, 1 << 40, []),  # 3 < 8 / 2
        ([10, 10, 10, 10], 8, 1 << 40, [0, 1, 2, 3]),
        ([10, 10, 10, 11], 8, 1 << 40, []),  # 41 / 11 is below 4
        ([10, 10, 10, 10], 8, 60, []),  # 40 does not fit into 60 / 1.7
        ([1000, 10, 11, 9, 10, 12], 8, 1 << 40, [3, 1, 4, 2, 5]),  # the large one stays out
        ([10] * 7, 15, 1 << 40, []),  # 7 < 15 / 2
        ([10] * 20, 15, 1 << 40, list(range(15))),  # the longest window wins
        ([], 8, 1 << 40, []),
    ],
)
def test_merge_rule(sizes: list[int], fan_in: int, free: int, expected: list[int]) -> None:
    """The load's part counts follow from this rule and from nothing else."""
    assert module("merging").select(sizes, fan_in=fan_in, free=free) == expected


LOG = """# banyan-workload log 1 seed 1 .
B 1 a mkdir property .
E 1 .
B 2 a create property/one 1 L6162 .
B 3 b create property/two 2 L6162 .
E 2 .
E 3 .
B 4 b create property/three 3 L6162 .
E 4 .
B 5 b fsync property/three .
E 5 .
B 6 a create property/four 4 L6162 .
B 7 a torn li"""


@pytest.mark.parametrize(
    ("names", "promise", "words"),
    [
        (["one", "two", "three", "four"], "none", ""),
        (["one"], "none", ""),  # one and two overlapped: either order
        (["two"], "none", ""),
        (["one", "three"], "none", "order: create property/two"),
        (["one", "two"], "synced", "lost: create property/three"),
        (["one", "two", "three"], "answered", ""),  # four was never answered
    ],
)
def test_cut_allows_overlaps_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: list[str], promise: str, words: str
) -> None:
    """Real-time order is required, the order of overlapping operations is not."""
    (tmp_path / "log").write_text(LOG)
    root = tmp_path / "volume"
    (root / "property").mkdir(parents=True)
    for name in names:
        (root / "property" / name).touch()
    code = module("verify").verify(root, tmp_path / "log", at_least=promise)
    assert code == (1 if words else 0)
    assert words in capsys.readouterr().out


class Replay:
    """Applies a log's operations to a directory, one after the other, as a volume would."""

    def __init__(self, root: Path, history: object, seed: int) -> None:
        self.root = root
        self.content = module("content").Content(seed)
        self.lines = module("timeline").unfold(history)
        self.paths: dict[int, Path] = {}
        self.ids: dict[Path, int] = {}

    def apply(self, verb: str, words: list[str]) -> None:
        """Apply one operation."""
        first = self.root / words[0]
        if verb == "mkdir":
            first.mkdir()
        elif verb == "create":
            first.write_bytes(b"")
            self.paths[int(words[1])] = first
            self.ids[first] = int(words[1])
        elif verb == "append":
            for extent in words[0].split(","):
                fid, offset, length = map(int, extent.split(":"))
                known = self.lines.known(fid, offset + length)
                with self.paths[fid].open("ab") as stream:
                    stream.write(self.content.expect(known, offset, length))
        elif verb == "rename":
            target = self.root / words[1]
            first.rename(target)
            self.paths[self.ids.pop(first)] = target
            self.ids[target] = next(f for f, path in self.paths.items() if path == target)
        elif verb == "link":
            os.link(first, self.root / words[1])
        elif verb == "unlink":
            first.unlink()
        elif verb == "rmdir":
            first.rmdir()
        elif verb == "truncate":
            os.truncate(self.paths[int(words[0])], int(words[1]))


def test_every_true_prefix_is_accepted(tmp_path: Path) -> None:
    """A checker that rejects a sound volume is as useless as one that accepts a broken one."""
    source, log = tmp_path / "source", tmp_path / "log"
    source.mkdir()
    options = ["--duration", "2", "--scale", "0.02", "--flush-interval-scale", "0.1"]
    cycles = ["--snapshot-every", "0.6", "--rotate-every", "0.9", "--keep-segments", "2"]
    command = [sys.executable, str(SCRIPTS / "banyan-workload"), str(source), "--log", str(log)]
    subprocess.run([*command, *options, *cycles], check=True, capture_output=True, timeout=60)
    history = module("oplog").read_log(log)
    root = tmp_path / "replayed"
    root.mkdir()
    replay = Replay(root, history, history.seed)
    total = len(history.operations)
    assert total > 1000
    rng = random.Random(3)
    stops = sorted(rng.sample(range(total), 20))
    for number, operation in enumerate(history.operations):
        if number in stops:
            verifier = module("verify").Verifier(root, history)
            verifier.run("none")
            assert verifier.violations == []
            verifier.check_floor("synced")
            assert verifier.violations or number > total // 2, "the last fsync is not in it"
        replay.apply(operation.verb, operation.arguments)
    verifier = module("verify").Verifier(root, history)
    verifier.run("answered")
    assert verifier.violations == []


def test_unreadable_mapped_page_is_an_error(tmp_path: Path) -> None:
    """A page that cannot be read must end the run with a message, not kill it by SIGBUS."""
    content, stats = module("content").Content(1), module("stats").Stats()
    log = module("oplog").Log(tmp_path / "log", seed=1)
    (tmp_path / "volume" / "index").mkdir(parents=True)
    files = module("files").Files(
        tmp_path / "volume", log=log, content=content, stats=stats, buffer=4096, first_fid=1
    )
    index = module("index").Index(files, "index")
    index.open_writer()
    index.commit(100_000)
    segment = index.segments[0]
    index.touch(segment, 50_000)
    os.truncate(tmp_path / "volume" / segment.path, 0)
    with pytest.raises(OSError, match=os.strerror(errno.EFAULT)):
        index.touch(segment, 50_000)
    index.release()
    log.close()


def test_mapped_segment_refuses_removal_until_it_is_let_go(tmp_path: Path) -> None:
    """flock must work between two descriptions of one process: bluge's deletion rests on it."""
    content, stats = module("content").Content(1), module("stats").Stats()
    log = module("oplog").Log(tmp_path / "log", seed=1)
    (tmp_path / "volume" / "index").mkdir(parents=True)
    files = module("files").Files(
        tmp_path / "volume", log=log, content=content, stats=stats, buffer=4096, first_fid=1
    )
    index = module("index").Index(files, "index")
    index.open_writer()
    for _ in range(40):
        index.commit(2000)
    assert stats.totals()["flock EWOULDBLOCK"] > 0
    names = {entry.name for entry in (tmp_path / "volume" / "index").iterdir()}
    segments = {Path(segment.path).name for segment in (*index.segments, *index.obsolete)}
    assert segments == {name for name in names if name.endswith(".seg")}
    assert len([name for name in names if name.endswith(".snp")]) == 1
    index.release()
    log.close()
