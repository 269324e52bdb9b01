"""The alert rules: understood by Prometheus, firing when they should, explained to people."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from s3fs_banyan.cli.deploying import DEPLOY_FILES, deploy_text
from s3fs_banyan.errors import ExitCode, UsageError
from s3fs_banyan.observe.metrics import Metrics
from s3fs_banyan.observe.table import METRICS
from tests.hygiene import tree

_RULES = tree.ROOT / "s3fs_banyan" / "deploy" / "alerts.yml"
_TESTS = tree.ROOT / "tests" / "hygiene" / "alerts.test.yml"
_OPERATIONS = Path("docs/operations.md")
_SPECS = {spec.full_name: spec for spec in METRICS}
_NAME = re.compile(r"s3fs_banyan_\w+")
_OVER_TIME = re.compile(r"(?:rate|increase)\((s3fs_banyan_\w+)")
_LABELS_OF_A_SCRAPE = {"instance", "job"}


def _alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(_RULES.read_text(encoding="utf-8"))["groups"]
    return list(group["rules"])


_ALERTS = {rule["alert"]: rule for rule in _alerts()}


def _promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    kept = tree.ROOT / ".promtool_cache" / "promtool"
    program = kept if kept.exists() else shutil.which("promtool")
    assert program, "promtool is missing: scripts/test fetches it"
    return subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def _metric_of(name: str) -> str:
    """Return the metric that a name in a rule belongs to."""
    return name.removesuffix("_bucket") if name.endswith("_bucket") else name


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


# --- Prometheus --------------------------------------------------------------------------


def test_prometheus_takes_the_rules() -> None:
    """A file with a fault in it keeps Prometheus from starting."""
    done = _promtool("check", "rules", _RULES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_quiet_before_and_fires_after() -> None:
    """An alert that never fires is worse than none."""
    done = _promtool("test", "rules", _TESTS)
    assert done.returncode == 0, done.stdout + done.stderr
    tested = re.findall(r'alertname="(\w+)"', _TESTS.read_text(encoding="utf-8"))
    assert set(tested) == set(_ALERTS)


def test_the_rule_tests_notice_each_alert_that_does_not_fire(tmp_path: Path) -> None:
    """The tester is tested: with every rule dead, every alert is missed by its own test."""
    rules = yaml.safe_load(_RULES.read_text(encoding="utf-8"))
    for rule in rules["groups"][0]["rules"]:
        rule["expr"] = "vector(0) > 1"
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    tests = yaml.safe_load(_TESTS.read_text(encoding="utf-8"))
    tests["rule_files"] = ["rules.yml"]
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(tests), encoding="utf-8")
    done = _promtool("test", "rules", tmp_path / "tests.yml")
    assert done.returncode != 0
    missed = re.findall(r'expr: "ALERTS\{alertname=\\"(\w+)\\"', done.stdout + done.stderr)
    assert set(missed) == set(_ALERTS), done.stdout + done.stderr


# --- the code ----------------------------------------------------------------------------


@pytest.mark.parametrize("alert", _ALERTS)
def test_an_alert_asks_for_metrics_that_are_exported(alert: str) -> None:
    """With their labels, and as what they are: the rate of a gauge is nonsense."""
    rule = _ALERTS[alert]
    expression = rule["expr"]
    names = _NAME.findall(expression)
    assert names or expression.startswith("up{")
    over_time = set(_OVER_TIME.findall(expression))
    for name in names:
        spec = _SPECS[_metric_of(name)]
        assert (spec.kind == "histogram") is name.endswith("_bucket"), name
        assert (spec.kind == "gauge") is (name not in over_time), name
    for name, matchers in re.findall(r"(s3fs_banyan_\w+)\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)[=!]", matchers)) <= set(_SPECS[_metric_of(name)].labels)
    shown = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
    known = {label for name in names for label in _SPECS[_metric_of(name)].labels}
    assert shown <= known | _LABELS_OF_A_SCRAPE


def test_an_alert_sees_the_first_of_what_it_counts() -> None:
    """`increase()` of a series that begins with 1 is 0: each must be there before, as 0."""
    exported = Metrics().render()
    counted = re.compile(r"increase\((s3fs_banyan_\w+)(?:\{([^}]*)\})?\[")
    selectors = [found for rule in _ALERTS.values() for found in counted.findall(rule["expr"])]
    assert len(selectors) >= 8
    for name, matchers in selectors:
        for label, wanted in re.findall(r'(\w+)=~?"([^"]*)"', matchers):
            for value in wanted.split("|"):
                assert re.search(
                    rf'^{name}\{{.*{label}="{value}".*\}} 0\.0$', exported, re.MULTILINE
                ), value
        assert re.search(rf"^{name}(\{{.*\}})? 0\.0$", exported, re.MULTILINE), name


# --- people ------------------------------------------------------------------------------


@pytest.mark.parametrize("alert", _ALERTS)
def test_an_alert_says_what_to_do_and_where_to_read_on(alert: str) -> None:
    """Whoever is woken by it has never seen it before."""
    rule = _ALERTS[alert]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    document, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert document == str(_OPERATIONS)
    assert anchor in _anchors(tree.text(_OPERATIONS))


def test_the_document_lists_every_alert_with_its_metrics() -> None:
    """It is where a person looks for the name in the message."""
    text = tree.text(_OPERATIONS)
    rows = re.findall(r"^\| `(Banyan\w+)` \| (\w+) \| (.*) \|$", text, re.MULTILINE)
    assert [(name, severity) for name, severity, _ in rows] == [
        (name, rule["labels"]["severity"]) for name, rule in _ALERTS.items()
    ]
    for name, _, cells in rows:
        asked = {_metric_of(found) for found in _NAME.findall(_ALERTS[name]["expr"])}
        told = {_metric_of(found) for found in _NAME.findall(cells)}
        # A rule may ask for a second metric only to stay quiet.
        assert told <= asked, name
        assert told or not asked, name
        links = re.findall(r"\]\(#([\w-]+)\)", cells)
        assert links, name
        assert set(links) <= _anchors(text), name


# --- the command -------------------------------------------------------------------------


@pytest.mark.parametrize("what", DEPLOY_FILES)
def test_the_command_prints_the_file_as_it_is(what: str) -> None:
    """Whoever installed the package has no checkout to copy it from."""
    path = _RULES.parent / DEPLOY_FILES[what]
    assert deploy_text(what) == path.read_text(encoding="utf-8")


def test_every_file_for_deployment_can_be_printed() -> None:
    """A file that nobody can get at helps nobody."""
    assert sorted(DEPLOY_FILES.values()) == sorted(path.name for path in _RULES.parent.iterdir())


def test_a_name_that_is_none_is_refused_with_those_that_are() -> None:
    """The line says what can be typed."""
    with pytest.raises(UsageError, match="'grafana' is not one of alerts, systemd, fstab") as found:
        deploy_text("grafana")
    assert found.value.exit_code == ExitCode.USAGE
