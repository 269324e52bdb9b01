"""What documents, alerts and dashboards say about metrics agrees with what is exported."""

from __future__ import annotations

import pytest

from s3fs_banyan.observe.table import METRICS
from tests.hygiene import rules, tree

_DEPLOYMENT = ("s3fs_banyan", "deploy")


def test_every_metric_is_explained_and_every_named_metric_exists() -> None:
    """An alert on a metric that nobody exports never fires; one not explained helps nobody."""
    listed = {spec.full_name for spec in METRICS}
    readers = [
        path for path in tree.files() if path.suffix == ".md" or path.parts[:2] == _DEPLOYMENT
    ]
    faults = [
        f"{path}: {fault}"
        for path in readers
        for fault in rules.unlisted_metrics(tree.text(path), listed)
    ]
    explained = "\n".join(tree.text(path) for path in readers if path.parts[0] == "docs")
    faults += [f"docs: {name} is not explained" for name in listed if name not in explained]
    if faults:
        pytest.fail("\n".join(sorted(faults)), pytrace=False)
