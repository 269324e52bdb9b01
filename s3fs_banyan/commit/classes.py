"""Which storage class a pack gets: the rules, what each class would cost, and why.

Pure decisions on plain values. A rule says where its data shall lie; the price table says whether
that pays. The store is asked for another class than STANDARD only if the pack, at its size and
for as long as it is expected to live, costs less there: storage with the class's minimum size and
minimum duration, the request that writes it, monitoring, and the reads that the rule expects.

How long: the rule's `life`; without one as long again as the data has lived already. Data just
written has no age, so a rule without `life` never moves it out of STANDARD.

Commits, checkpoints, deltas, the descriptor and the heartbeat never pass here: always STANDARD.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any, Final, NamedTuple

from s3fs_banyan.prices import EXAMPLE_PRICES, MONTH_DAYS, STANDARD, ClassPrice

DAY_S: Final = 86_400.0
_GIB: Final = float(1 << 30)
_READ_BYTES: Final = 8 << 20
"""The reader fetches an object in requests of about this size."""
_LIFE_DAYS_MAX: Final = 3650


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Data that matches all of these conditions is to lie in `storage_class`."""

    storage_class: str
    path: str = "**"
    size_min_bytes: int = 0
    size_max_bytes: int = 1 << 62
    age_s: float = 0.0
    life_s: float | None = None
    reads: float = 0.1
    """How often a month the data is expected to be read from the store."""

    def life_days(self, age_s: float) -> float:
        """Return for how many days data of this age is expected to live on."""
        return (age_s if self.life_s is None else self.life_s) / DAY_S


class Verdict(NamedTuple):
    """The class that a pack gets, and the numbers behind it, in the currency of the prices."""

    storage_class: str
    cost: float
    """Of the pack in the class that the rule wants, for its expected life."""
    standard_cost: float
    days: float
    why: str


class Subject(NamedTuple):
    """What the rules look at: a chunk's file, as far as it is known."""

    path: str | None
    """From the volume's root, without a slash in front; None: it has no name any more."""
    file_bytes: int
    age_s: float
    """Since the data was last written; 0 where the chunk is new."""


@dataclass(frozen=True, kw_only=True)
class ClassPolicy:
    """The rules of a mount, the prices, and the directories that die as one."""

    rules: tuple[Rule, ...] = ()
    prices: tuple[ClassPrice, ...] = EXAMPLE_PRICES
    separate: tuple[str, ...] = ("**/seg-*",)
    """A directory that matches is deleted as a whole, so compaction gives it packs of its own."""

    def plain(self) -> dict[str, Any]:
        """Return the policy as values that JSON can hold."""
        return {
            "rules": [asdict(rule) for rule in self.rules],
            "prices": [asdict(price) for price in self.prices],
            "separate": list(self.separate),
        }

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> ClassPolicy:
        """Make a policy of what `plain` returned; of nothing, one that has no rules."""
        if not values:
            return cls(separate=())
        return cls(
            rules=tuple(Rule(**rule) for rule in values["rules"]),
            prices=tuple(ClassPrice(**price) for price in values["prices"]),
            separate=tuple(values["separate"]),
        )

    @cached_property
    def price_of(self) -> dict[str, ClassPrice]:
        """The price of each class by its name."""
        return {price.name: price for price in self.prices}

    # --- rules ---------------------------------------------------------------------------

    def match(self, subject: Subject) -> int | None:
        """Return the number of the first rule that applies, or None."""
        for number, rule in enumerate(self.rules):
            if applies(rule, subject):
                return number
        return None

    def unit_of(self, directory: str | None) -> str:
        """Return the directory, at or above this one, that dies as a whole; else nothing."""
        if not directory:
            return ""
        parts = directory.split("/")
        for count in range(1, len(parts) + 1):
            above = "/".join(parts[:count])
            if any(glob_regex(glob).fullmatch(above) for glob in self.separate):
                return above
        return ""

    # --- money ---------------------------------------------------------------------------

    def judge(self, number: int | None, size: int, age_s: float) -> Verdict:
        """Decide on a pack of `size` bytes whose chunks all follow rule `number`."""
        if number is None:
            return Verdict(STANDARD, 0.0, 0.0, 0.0, "no rule applies")
        rule = self.rules[number]
        wanted, standard = self.price_of[rule.storage_class], self.price_of[STANDARD]
        days = rule.life_days(age_s)
        here = pack_cost(wanted, size, days, rule.reads)
        there = standard_cost(standard, size, days, rule.reads)
        if wanted.name == STANDARD:
            return Verdict(STANDARD, here, there, days, f"rule {number + 1} says so")
        if here < there:
            why = f"rule {number + 1}: it pays for {days:g} days at this size"
            return Verdict(wanted.name, here, there, days, why)
        why = f"rule {number + 1} wants {wanted.name}, which costs more: "
        return Verdict(STANDARD, here, there, days, why + self._obstacle(wanted, size, rule, days))

    def _obstacle(self, wanted: ClassPrice, size: int, rule: Rule, days: float) -> str:
        if days == 0:
            return "the data is new, and the rule gives it no life"
        if size < wanted.bytes_min:
            return f"{size} bytes are billed as {wanted.bytes_min}"
        least = break_even_days(wanted, self.price_of[STANDARD], size, rule.reads)
        if least is None:
            return f"at {rule.reads:g} reads a month it never pays"
        return f"it pays after {least} days, and {days:g} are expected"


def applies(rule: Rule, subject: Subject) -> bool:
    """Tell whether a rule's conditions are all met."""
    if not rule.size_min_bytes <= subject.file_bytes <= rule.size_max_bytes:
        return False
    if subject.age_s < rule.age_s:
        return False
    if rule.path == "**":
        return True
    return subject.path is not None and bool(glob_regex(rule.path).fullmatch(subject.path))


@lru_cache(maxsize=1024)
def glob_regex(glob: str) -> re.Pattern[str]:
    """Return the pattern of a path glob: `*` and `?` within a part, `**` for any parts."""
    text = ""
    parts = glob.split("/")
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if part == "**":
            text += ".*" if last else "(?:.*/)?"
            continue
        text += "".join(
            "[^/]*" if mark == "*" else "[^/]" if mark == "?" else re.escape(mark) for mark in part
        )
        text += "" if last else "/"
    return re.compile(text, re.DOTALL)


def pack_cost(price: ClassPrice, size: int, days: float, reads: float) -> float:
    """Return what a pack costs from its upload to its deletion after `days`.

    `reads` is how often a month all of it is read. With tiers, the part of the time in which it
    is not read moves down: 1 - reads of it, none from one read a month on.
    """
    gib = size / _GIB
    billed_days = max(days, price.days_min)
    monitored = price.has_tiers and size >= price.bytes_min
    billed_gib = gib if price.has_tiers else max(size, price.bytes_min) / _GIB
    storage = _storage_rate_days(price, billed_days, reads if monitored else 1.0) * billed_gib
    months = days / MONTH_DAYS
    watched = price.monitoring / 1000 * months if monitored else 0.0
    requests = math.ceil(size / _READ_BYTES) * price.get / 1000
    reading = reads * months * (gib * price.retrieval + requests)
    return price.put / 1000 + storage / MONTH_DAYS + watched + reading


def standard_cost(standard: ClassPrice, size: int, days: float, reads: float) -> float:
    """Return what the same bytes cost in STANDARD, without a request that writes them.

    What is little travels inside the commit there, for nothing; a pack of another class is one
    request more.
    """
    return pack_cost(standard, size, days, reads) - standard.put / 1000


def _storage_rate_days(price: ClassPrice, days: float, reads: float) -> float:
    """Return price per GiB and month, summed over days."""
    after_30d = price.storage if price.after_30d is None else price.after_30d
    after_90d = after_30d if price.after_90d is None else price.after_90d
    tiered = (
        min(days, 30.0) * price.storage
        + min(max(days - 30.0, 0.0), 60.0) * after_30d
        + max(days - 90.0, 0.0) * after_90d
    )
    unread = max(0.0, 1.0 - reads)
    return unread * tiered + (1.0 - unread) * days * price.storage


def break_even_days(
    wanted: ClassPrice, standard: ClassPrice, size: int, reads: float
) -> int | None:
    """Return from how many days of life on a class costs less than STANDARD; None: never.

    Where it begins to pay, it goes on to: behind the minimum duration and the last tier the
    difference grows by the same amount each day.
    """

    def pays(days: int) -> bool:
        return pack_cost(wanted, size, days, reads) < standard_cost(standard, size, days, reads)

    lives = range(1, _LIFE_DAYS_MAX + 1)
    return lives[bisect_left(lives, True, key=pays)] if pays(_LIFE_DAYS_MAX) else None


def monthly_cost(price: ClassPrice, size: int) -> float:
    """Return what `size` bytes cost a month in storage and monitoring, in a class's first tier."""
    if price.has_tiers:
        watched = price.monitoring / 1000 if size >= price.bytes_min else 0.0
        return size / _GIB * price.storage + watched
    return max(size, price.bytes_min) / _GIB * price.storage
