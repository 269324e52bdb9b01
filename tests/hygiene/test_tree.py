"""The repository keeps its own rules."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from tests import lanes
from tests.hygiene import rules, tree


def _report(faults: Iterable[str]) -> None:
    """Fail with all faults, one a line."""
    if lines := sorted(set(faults)):
        pytest.fail("\n".join(lines), pytrace=False)


def _broken(paths: Iterable[Path], rule: Callable[[str], Iterator[str]]) -> list[str]:
    return [f"{path}: {fault}" for path in paths for fault in rule(tree.text(path))]


def _exists_from(document: Path) -> Callable[[str], bool]:
    """Return a test whether a relative link of this document leads to a file or directory."""
    return lambda target: (tree.ROOT / document.parent / target).exists()


def _exists(path: str) -> bool:
    return (tree.ROOT / path).exists()


def test_functions_fit_on_a_screen() -> None:
    """A function that does not fit is read in parts, and its faults lie between the parts."""
    _report(_broken(tree.python_files(), rules.long_functions))


def test_files_do_one_thing() -> None:
    """A file that keeps growing ends up as the place where everything happens."""
    sources = [
        path
        for path in tree.files()
        if path.parts[0] in {"s3fs_banyan", "tests", "scripts"}
        and (tree.is_python(path) or path.suffix in {"", ".sh", ".sql"})
    ]
    _report(_broken(sources, rules.long_file))


def test_nothing_names_a_package_index_or_a_machine() -> None:
    """Such an address works for one person only, and it may tell what it should not."""
    _report(_broken(tree.files(), rules.forbidden_text))


def test_lock_files_pin_by_version_and_hash() -> None:
    """An unpinned package is another program on another day."""
    locks = [path for path in tree.files() if path.suffix == ".lock"]
    assert {path.name for path in locks} >= {"build.lock", "runtime.lock", "dev.lock"}
    _report(_broken(locks, rules.unhashed_requirements))
    _report(_broken(locks, rules.addresses))


def test_the_lock_file_of_node_pins_by_version_and_hash() -> None:
    """The same for the one tool of the tests that comes from another registry."""
    path = Path("scripts/locks/azurite/package-lock.json")
    packages = json.loads(tree.text(path))["packages"]
    assert packages.pop("")["dependencies"] == {"azurite": "3.35.0"}
    loose = [f"{name} has no hash" for name, found in packages.items() if "integrity" not in found]
    _report([*loose, *rules.addresses(tree.text(path))])


def test_the_root_holds_only_what_belongs_there() -> None:
    """The root is the first thing that a newcomer sees."""
    _report(rules.unknown_top_level(str(path) for path in tree.files()))


def test_links_between_documents_lead_somewhere() -> None:
    """A dead link sends an operator away in the middle of an incident."""
    faults = []
    for document in tree.documents():
        exists = _exists_from(document)

        def headings_of(target: str, document: Path = document) -> str | None:
            linked = (tree.ROOT / document.parent / target).resolve()
            return linked.read_text(encoding="utf-8") if linked.suffix == ".md" else None

        text = tree.text(document)
        dead = list(rules.missing_links(text, exists))
        dead += [] if dead else list(rules.missing_anchors(text, headings_of))
        faults += [f"{document}: {fault}" for fault in dead]
    _report(faults)


def test_named_files_are_there() -> None:
    """Documents and comments name files; a moved file takes its mentions along."""
    faults = [
        f"{document}: {fault}"
        for document in tree.documents()
        for fault in rules.missing_code_span_paths(tree.text(document), _exists)
    ]
    for path in tree.files():
        # The rules' own test names files that do not exist, on purpose.
        if path.suffix in {".md", ".py", ".sql", ".toml", ""} and path.name != "test_rules.py":
            faults += [
                f"{path}: {fault}" for fault in rules.missing_paths(tree.text(path), _exists)
            ]
    _report(faults)


def test_every_failpoint_is_declared_once_and_passed() -> None:
    """A crash test that names a failpoint which no code passes tests nothing."""
    sources = [path for path in tree.python_files() if path.parts[0] == "s3fs_banyan"]
    declared: Counter[str] = Counter()
    constants: dict[str, str] = {}
    passed: set[str] = set()
    for path in sources:
        for name, constant in rules.declared_failpoints(tree.text(path)):
            declared[name] += 1
            constants[constant or repr(name)] = name
        passed |= set(rules.passed_failpoints(tree.text(path)))
    names_passed = {constants.get(argument, argument.strip("'\"")) for argument in passed}
    assert [name for name, count in declared.items() if count > 1] == []
    assert names_passed == set(declared)


def test_modules_whose_tests_share_a_mount_stay_together() -> None:
    """Taken apart, every worker of a parallel run would make a mount for one test after the other.

    The other way round, a module that need not stay together holds a worker up to the end.
    """
    shares = re.compile(r"^def test_\w+\([^)]*\b(shared|tree): ", re.MULTILINE)
    found = {
        str(path)
        for path in tree.python_files()
        if path.parts[0] == "tests" and path.parts[1] in lanes.ONE_BY_ONE
        if shares.search(tree.text(path))
    }
    assert found == lanes.TOGETHER
    assert {lanes.unit_of_work(f"{path}::test_it[a::b]") for path in found} == found
    quick, slow = "tests/unit/test_cli.py", "tests/sim/test_disk.py::test_it"
    assert lanes.unit_of_work(f"{quick}::test_it") == quick
    assert lanes.unit_of_work(slow) == slow
