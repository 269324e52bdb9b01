"""The settings about money: rules and prices stand in lists, whose faults name the element."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from s3fs_banyan.app.build import class_policy, engine_settings
from s3fs_banyan.commit.classes import Rule
from s3fs_banyan.prices import EXAMPLE_PRICES
from tests.unit.test_config import NO_SECTION, faults, load, nested

IN_LISTS = [
    ("storage.classes", "[{path: x}]", "[0].class", "is required"),
    ("storage.classes", "[5]", "[0]", NO_SECTION),
    (
        "storage.classes",
        "[{class: COLD}]",
        "[0].class",
        "expected 'STANDARD', 'STANDARD_IA', 'ONEZONE_IA', 'INTELLIGENT_TIERING' or 'GLACIER_IR'",
    ),
    (
        "storage.classes",
        "[{class: STANDARD}, {class: STANDARD, pth: a}]",
        "[1].pth",
        "unknown key, did you mean 'path'?",
    ),
    (
        "storage.classes",
        "[{class: STANDARD, size_min: 2, size_max: 1}]",
        "[0]",
        "'size_min' must not exceed 'size_max'",
    ),
    (
        "storage.separate",
        "[a/**b]",
        "[0]",
        "'**' stands for whole parts of a path: write it alone between slashes",
    ),
    (
        "storage.classes",
        "[{class: STANDARD, path: a//b}]",
        "[0].path",
        "not a path pattern: write parts between single slashes, such as measure/**/seg-*",
    ),
    ("cost.prices", "[{class: STANDARD, storage: -1}]", "[0].storage", "must be at least 0"),
]


@pytest.mark.parametrize(("given_key", "value", "inner", "why"), IN_LISTS)
def test_a_fault_in_a_list_names_its_element(
    tmp_path: Path, given_key: str, value: str, inner: str, why: str
) -> None:
    """A person has twenty rules and looks for one."""
    assert faults(tmp_path, nested(given_key, value)) == [f"{given_key}{inner}: {why}"]


def test_prices_of_the_file_lie_over_the_built_in_ones(tmp_path: Path) -> None:
    """Who gives one price must not lose the others, nor the minimum sizes and durations."""
    config = load(tmp_path, nested("cost.prices", "[{class: STANDARD_IA, storage: 0.02}]"))
    changed = {price.name: price for price in config.cost.table()}
    built_in = {price.name: price for price in EXAMPLE_PRICES}
    assert changed["STANDARD_IA"] == replace(built_in["STANDARD_IA"], storage=0.02)
    assert changed["GLACIER_IR"] == built_in["GLACIER_IR"]


def test_rules_reach_the_engine_as_they_were_written(tmp_path: Path) -> None:
    """A unit or a default lost on the way chooses another class."""
    text = nested(
        "storage.classes",
        "[{path: /a/**/, size_min: 1MiB, size_max: 1GiB, age: 7d, life: 90d, reads: 2,"
        " class: GLACIER_IR}, {class: STANDARD}]",
    )
    config = load(tmp_path, text + "budget: {requests_per_hour: 60, interval_max: 5m}\n")
    policy = class_policy(config)
    assert policy.rules == (
        Rule(
            storage_class="GLACIER_IR", path="a/**", size_min_bytes=1 << 20,
            size_max_bytes=1 << 30, age_s=7 * 86400, life_s=90 * 86400, reads=2.0,
        ),
        Rule(storage_class="STANDARD", size_max_bytes=policy.rules[1].size_max_bytes),
    )  # fmt: skip
    assert policy.rules[1].size_max_bytes >= 1 << 50
    assert policy.separate == ("**/seg-*",)
    settings = engine_settings(config)
    assert (settings.requests_per_hour, settings.budget_interval_max_s) == (60, 300.0)
    assert settings.policy == policy
