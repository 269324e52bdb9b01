"""What is measured, in which unit, and which ratio is asked for: the one table of measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

FLOOR = "floor"
PLAIN = "plain"
OURS = "ours"

Unit = Literal["/s", "MB/s"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One row of the table; every value is a rate, so more is better."""

    name: str
    title: str
    load: str
    """The load of `loads.py` that yields it."""
    unit: Unit = "/s"
    needed: Mapping[str, float] = field(default_factory=dict)
    """Contender -> the share of its rate that ours has to reach."""

    def value(self, *, operations: int, bytes_moved: int, seconds: float) -> float:
        """Return the rate in this measure's unit."""
        amount = operations if self.unit == "/s" else bytes_moved / 1e6
        return amount / seconds


MEASURES = (
    Measure(
        name="create",
        title="create + write 4 KiB + close",
        load="small",
        needed={FLOOR: 0.6},
    ),
    Measure(
        name="read-first",
        title="open + read 4 KiB + close, first time",
        load="small",
        needed={FLOOR: 0.75},
    ),
    Measure(
        name="read-warm",
        title="open + read 4 KiB + close, warm",
        load="small",
        needed={FLOOR: 0.75},
    ),
    Measure(name="stat", title="stat", load="small"),
    Measure(name="rename", title="rename", load="small", needed={FLOOR: 0.55}),
    Measure(name="unlink", title="unlink", load="small", needed={FLOOR: 0.55}),
    Measure(
        name="write",
        title="sequential write",
        load="sequential",
        unit="MB/s",
        needed={FLOOR: 0.7},
    ),
    Measure(
        name="write-sync",
        title="sequential write incl. fsync",
        load="sequential",
        unit="MB/s",
        needed={FLOOR: 0.7},
    ),
    Measure(
        name="read-cold",
        title="sequential read, pages dropped",
        load="sequential",
        unit="MB/s",
        needed={FLOOR: 0.8},
    ),
    Measure(
        name="append-sync",
        title="append 4 KiB + fsync",
        load="append",
        needed={PLAIN: 0.6},
    ),
    Measure(
        name="append-sync-16",
        title="append + fsync, 16 processes",
        load="append-many",
        needed={PLAIN: 0.35},
    ),
    Measure(name="create-sync", title="create + 4 KiB + fsync + close", load="create-sync"),
    Measure(
        name="create-sync-16",
        title="create + fsync, 16 processes",
        load="create-sync-many",
    ),
    Measure(
        name="part-flush",
        title="part flush (12 files, 14 fsyncs)",
        load="part-flush",
        needed={PLAIN: 0.4},
    ),
)


def select(names: list[str]) -> tuple[Measure, ...]:
    """Return the measures named, by their own name or their load's; all if none is.

    Raises `ValueError` on an unknown name.
    """
    known = {measure.name for measure in MEASURES} | {measure.load for measure in MEASURES}
    unknown = sorted(set(names) - known)
    if unknown:
        raise ValueError(f"unknown measure {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    return tuple(m for m in MEASURES if not names or m.name in names or m.load in names)
