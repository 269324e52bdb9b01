"""Storage classes: what a rule applies to, what a class costs, and that no choice costs more."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3fs_banyan.commit.classes import (
    DAY_S,
    ClassPolicy,
    Rule,
    Subject,
    applies,
    break_even_days,
    glob_regex,
    monthly_cost,
    pack_cost,
)
from s3fs_banyan.config import parse_size
from s3fs_banyan.prices import EXAMPLE_PRICES, STANDARD

PRICES = {price.name: price for price in EXAMPLE_PRICES}
MIB = 1 << 20
PACK = 64 * MIB
GIB = 1 << 30


def one_rule(storage_class: str, **conditions: float) -> ClassPolicy:
    """Return a policy of one rule."""
    return ClassPolicy(rules=(Rule(storage_class=storage_class, **conditions),))  # type: ignore[arg-type]  # numbers


# --- which rule --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("glob", "path", "matches"),
    [
        ("**", "a/b/c", True),
        ("**", "", True),
        ("measure/**", "measure/a/b", True),
        ("measure/**", "measures/a", False),
        ("**/seg-*", "seg-1", True),
        ("**/seg-*", "measure/data/g/seg-20260101", True),
        ("**/seg-*", "measure/data/g/seg-20260101/shard-0", False),
        ("**/*.bin", "x/y.bin", True),
        ("**/*.bin", "x/y.bins", False),
        ("a/*/c", "a/b/c", True),
        ("a/*/c", "a/b/b/c", False),
        ("a/?", "a/bb", False),
        ("a/**/c", "a/c", True),
        ("a/**/c", "a/b/b/c", True),
        ("a.b", "aXb", False),
        ("a/*", "a/b\nc", True),
        ("[ab]", "a", False),
    ],
)
def test_a_path_pattern_matches_whole_paths(glob: str, path: str, matches: bool) -> None:
    """A pattern that reaches too far puts hot data where each read is billed."""
    assert bool(glob_regex(glob).fullmatch(path)) == matches


@pytest.mark.parametrize(
    ("subject", "matches"),
    [
        (Subject("cold/f", 100, 7 * DAY_S), True),
        (Subject("cold/f", 99, 7 * DAY_S), False),
        (Subject("cold/f", 201, 7 * DAY_S), False),
        (Subject("cold/f", 100, 7 * DAY_S - 1), False),
        (Subject("hot/f", 100, 7 * DAY_S), False),
        (Subject(None, 100, 7 * DAY_S), False),
    ],
)
def test_every_condition_of_a_rule_must_be_met(subject: Subject, matches: bool) -> None:
    """One that is passed over moves data nobody meant."""
    rule = Rule(
        storage_class="GLACIER_IR", path="cold/**", size_min_bytes=100, size_max_bytes=200,
        age_s=7 * DAY_S,
    )  # fmt: skip
    assert applies(rule, subject) == matches


def test_the_first_rule_that_applies_decides() -> None:
    """So an exception is written before what it is an exception to."""
    rules = (Rule(storage_class=STANDARD, path="a/**"), Rule(storage_class="GLACIER_IR"))
    policy = ClassPolicy(rules=rules)
    assert policy.match(Subject("a/f", 1, 0.0)) == 0
    assert policy.match(Subject("b/f", 1, 0.0)) == 1
    assert ClassPolicy().match(Subject("b/f", 1, 0.0)) is None


@pytest.mark.parametrize(
    ("directory", "unit"),
    [
        ("measure/data/g/seg-1/shard-0/a", "measure/data/g/seg-1"),
        ("measure/data/g/seg-1", "measure/data/g/seg-1"),
        ("seg-1/seg-2", "seg-1"),
        ("measure/data/g", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_a_unit_is_the_highest_directory_that_matches(directory: str | None, unit: str) -> None:
    """What lies below a segment dies with it, whatever it is called."""
    assert ClassPolicy().unit_of(directory) == unit


def test_a_policy_crosses_to_the_worker_unchanged() -> None:
    """The worker decides, in another process."""
    rules = (Rule(storage_class="GLACIER_IR", path="a/**", life_s=5.0, reads=0.5),)
    policy = ClassPolicy(rules=rules, separate=("x/*",))
    assert ClassPolicy.from_plain(json.loads(json.dumps(policy.plain()))) == policy
    assert ClassPolicy.from_plain({}).rules == ()


# --- money -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "days", "reads", "cost"),
    [
        # storage alone: price x GiB x months, and one PUT
        ("STANDARD", GIB, 30, 0.0, 0.005e-3 + 0.023),
        ("STANDARD_IA", GIB, 30, 0.0, 0.01e-3 + 0.0125),
        # deleted on the first day, billed for the minimum
        ("STANDARD_IA", GIB, 1, 0.0, 0.01e-3 + 0.0125),
        ("GLACIER_IR", GIB, 1, 0.0, 0.02e-3 + 3 * 0.004),
        # a KiB is billed as 128
        ("STANDARD_IA", 1024, 30, 0.0, 0.01e-3 + 0.0125 / 8192),
        # read once a month: 128 requests of 8 MiB, and the retrieval
        ("STANDARD", GIB, 30, 1.0, 0.005e-3 + 0.023 + 128 * 0.0004e-3),
        ("GLACIER_IR", GIB, 90, 1.0, 0.02e-3 + 0.012 + 3 * (0.03 + 128 * 0.01e-3)),
        # tiers: 30 days at one price, 60 at the next, the rest at the last; monitored
        (
            "INTELLIGENT_TIERING", GIB, 120, 0.0,
            0.005e-3 + 0.023 + 2 * 0.0125 + 0.004 + 4 * 0.0025e-3,
        ),
        # read every month: it never moves down
        (
            "INTELLIGENT_TIERING", GIB, 120, 1.0,
            0.005e-3 + 4 * 0.023 + 4 * 0.0025e-3 + 4 * 128 * 0.0004e-3,
        ),
        # too small to be monitored, so never moved
        ("INTELLIGENT_TIERING", 1024, 120, 0.0, 0.005e-3 + 4 * 0.023 / MIB),
    ],
)  # fmt: skip
def test_the_cost_of_a_pack_is_what_the_provider_would_bill(
    name: str, size: int, days: float, reads: float, cost: float
) -> None:
    """Worked out by hand from the list of prices."""
    assert pack_cost(PRICES[name], size, days, reads) == pytest.approx(cost, rel=1e-9)


@pytest.mark.parametrize(
    ("storage_class", "life_days", "size", "reads", "chosen", "why"),
    [
        ("STANDARD_IA", 30, PACK, 0.1, "STANDARD_IA", "it pays for 30 days"),
        ("STANDARD_IA", 10, PACK, 0.1, STANDARD, "it pays after 18 days, and 10 are expected"),
        ("STANDARD_IA", 365, PACK, 2.0, STANDARD, "at 2 reads a month it never pays"),
        ("STANDARD_IA", 365, 4096, 0.1, STANDARD, "4096 bytes are billed as 131072"),
        ("GLACIER_IR", 365, PACK, 0.1, "GLACIER_IR", "it pays for 365 days"),
        ("GLACIER_IR", 10, PACK, 0.0, STANDARD, "it pays after 17 days, and 10 are expected"),
        ("INTELLIGENT_TIERING", 30, PACK, 0.1, STANDARD, "it pays after 31 days"),
        ("INTELLIGENT_TIERING", 90, PACK, 0.1, "INTELLIGENT_TIERING", "it pays for 90 days"),
        ("STANDARD", 90, PACK, 0.1, STANDARD, "rule 1 says so"),
    ],
)
def test_below_break_even_data_stays_in_the_standard_class(
    storage_class: str, life_days: float, size: int, reads: float, chosen: str, why: str
) -> None:
    """A rule must never cost more than it saves, and must say why it was not followed."""
    policy = one_rule(storage_class, life_s=life_days * DAY_S, reads=reads)
    verdict = policy.judge(0, size, 0.0)
    assert verdict.storage_class == chosen
    assert why in verdict.why


def test_without_a_life_data_is_expected_to_live_as_long_as_it_has() -> None:
    """New data mostly dies at once; what is old mostly stays."""
    policy = one_rule("STANDARD_IA")
    assert policy.judge(0, PACK, 0.0).storage_class == STANDARD
    assert "no life" in policy.judge(0, PACK, 0.0).why
    assert policy.judge(0, PACK, 40 * DAY_S).storage_class == "STANDARD_IA"


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(PRICES)),
    st.integers(1, GIB),
    st.floats(0, 400),
    st.floats(0, 3),
)
def test_no_verdict_costs_more_than_the_standard_class(
    storage_class: str, size: int, days: float, reads: float
) -> None:
    """Whatever a person writes, and the break-even that is told is where the verdict turns."""
    policy = one_rule(storage_class, life_s=days * DAY_S, reads=reads)
    verdict = policy.judge(0, size, 0.0)
    costs = [pack_cost(PRICES[n], size, days, reads) for n in (verdict.storage_class, STANDARD)]
    assert costs[0] <= costs[1]
    least = break_even_days(PRICES[storage_class], PRICES[STANDARD], size, reads)
    if verdict.storage_class != STANDARD:
        assert least is not None
        assert least <= days + 1
    elif storage_class != STANDARD and least is not None:
        assert days < least


def test_the_document_shows_the_break_even_points_of_the_price_table() -> None:
    """A person chooses a class by that table."""
    text = (Path(__file__).parents[2] / "docs" / "cost.md").read_text(encoding="utf-8")
    header = re.findall(r"^\| pack \| reads a month \| (.*) \|$", text, re.MULTILINE)
    assert [name.split(" | ") for name in header] == [[p.name for p in EXAMPLE_PRICES[1:]]]
    rows = re.findall(r"^\| (\d+ [KM]iB) \| ([\d.]+) \| (.*) \|$", text, re.MULTILINE)
    assert len(rows) == 12
    for size, reads, cells in rows:
        for price, cell in zip(EXAMPLE_PRICES[1:], cells.split(" | "), strict=True):
            days = break_even_days(price, PRICES[STANDARD], parse_size(size), float(reads))
            assert cell == ("never" if days is None else f"{days} days"), (size, reads, price.name)


def test_the_monthly_cost_counts_the_minimum_size() -> None:
    """A thousand small packs in a cold class are not cheap."""
    assert monthly_cost(PRICES["STANDARD_IA"], 1) == pytest.approx(0.0125 / 8192)
    assert monthly_cost(PRICES["STANDARD"], GIB) == pytest.approx(0.023)
    assert monthly_cost(PRICES["INTELLIGENT_TIERING"], GIB) == pytest.approx(0.023 + 0.0025e-3)
