"""Each rule finds a planted fault and lets the good neighbour pass.

A rule that finds nothing any more would keep the tree's tests green for ever.
"""

from __future__ import annotations

import pytest

from tests.hygiene import rules


def test_long_functions_are_found() -> None:
    """The limit itself still fits."""
    body = "    x = 1\n"
    fits = "def fits():\n" + body * (rules.FUNCTION_LINES_MAX - 1)
    long = "class C:\n  async def long(self):\n" + body * rules.FUNCTION_LINES_MAX
    assert list(rules.long_functions(fits)) == []
    assert list(rules.long_functions(long)) == [
        f"line 2: long has {rules.FUNCTION_LINES_MAX + 1} lines"
    ]


def test_long_files_are_found() -> None:
    """The limit itself still fits."""
    assert list(rules.long_file("x\n" * rules.FILE_LINES_MAX)) == []
    assert list(rules.long_file("x\n" * (rules.FILE_LINES_MAX + 1))) != []


@pytest.mark.parametrize(
    "line",
    [
        "see https://" + "py" + "pi.org/project/x",
        "--index-" + "url=http://example.test/",
        "--find-" + "links /opt/x",
        "http://mirror.example.test/" + "simple/",
        "open('/" + "work/main')",
        "cd /" + "root/x",
        "cd /" + "home/ann/x",
    ],
)
def test_forbidden_text_is_found(line: str) -> None:
    """Wherever in a file it stands."""
    assert len(list(rules.forbidden_text(f"fine\n{line}\nfine"))) == 1


@pytest.mark.parametrize(
    "line",
    ["cd framework/main", "http://127.0.0.1:8333", "/var/lib/x/work/y", "a simple/plain one"],
)
def test_innocent_text_passes(line: str) -> None:
    """Words that only look like it."""
    assert list(rules.forbidden_text(line)) == []


def test_loose_requirements_are_found() -> None:
    """Version without hash, and no version at all."""
    digest = "0" * 64
    good = f"trio==1.0 ; python_version > '3' \\\n    --hash=sha256:{digest}\n    # via x\n"
    assert list(rules.unhashed_requirements(good)) == []
    assert list(rules.unhashed_requirements("trio==1.0\n# via x\n")) == ["trio==1.0"]
    loose = f"trio>=1.0 \\\n    --hash=sha256:{digest}\n"
    assert list(rules.unhashed_requirements(loose)) == ["trio>=1.0"]


def test_addresses_are_found() -> None:
    """A direct reference takes a package from wherever it says."""
    assert len(list(rules.addresses("a==1\nb @ https://example.test/b.whl\n"))) == 1


def test_strangers_in_the_root_are_found() -> None:
    """Files and directories alike."""
    paths = ["README.md", "docs/a.md", ".ci/run", "notes.txt", "deploy/x.yaml"]
    assert list(rules.unknown_top_level(paths)) == ["deploy", "notes.txt"]


def test_dead_links_are_found() -> None:
    """Links outside the repository are not looked at, nor is what stands in a code block."""
    text = "[a](a.md) [b](b.md#x) [w](https://example.test/) [s](#x)\n```\n[c](c.md)\n```\n"
    assert list(rules.missing_links(text, lambda target: target == "a.md")) == ["link to b.md"]


def test_dead_anchors_are_found() -> None:
    """A renamed heading breaks the links to it."""
    text = "# One two\n[a](#one-two) [b](#three) [c](c.md#four) [d](c.md#five)\n"
    faults = rules.missing_anchors(text, lambda target: "## Four\n")
    assert list(faults) == ["link to #three", "link to c.md#five"]


def test_dead_paths_are_found() -> None:
    """In prose and comments by suffix, in code spans also without one."""
    text = "see tests/none.py and `scripts/gone --quick` and `docs/*.md` and `docs/<name>`"
    assert list(rules.missing_paths(text, lambda path: False)) == ["mentions tests/none.py"]
    faults = rules.missing_code_span_paths(text, lambda path: False)
    assert list(faults) == ["mentions scripts/gone"]


def test_unlisted_metrics_are_found() -> None:
    """A dashboard that draws a metric nobody exports stays flat and looks healthy."""
    text = "rate(s3fs_banyan_a_seconds_bucket[5m]) s3fs_banyan_b_total s3fs_banyan/x.py"
    faults = rules.unlisted_metrics(text, ["s3fs_banyan_a_seconds"])
    assert list(faults) == ["metric s3fs_banyan_b_total"]


def test_failpoints_are_found() -> None:
    """By constant, by literal, and with the module in front."""
    source = (
        "CUT = register_failpoint('cut', 'after the cut')\n"
        "SEAL: Final = runtime.register_failpoint('seal', 'after sealing')\n"
        "def f(world):\n"
        "    world.failpoint(CUT)\n"
        "    world.failpoint('seal')\n"
        "    world.failpoint(other.PUT)\n"
    )
    assert sorted(rules.declared_failpoints(source)) == [("cut", "CUT"), ("seal", "SEAL")]
    assert sorted(rules.passed_failpoints(source)) == ["'seal'", "CUT", "PUT"]
