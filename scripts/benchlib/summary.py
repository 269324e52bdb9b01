"""From observations to numbers: medians, percentiles, ratios and verdicts. Pure functions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchlib.measures import FLOOR, OURS, PLAIN, Measure
from benchlib.rounds import Observation


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One contender's line for one measure, each number the median over the rounds."""

    value: float
    p50_us: float
    p99_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """One contender's rate over another's: the median of the ratios inside each round."""

    contender: str
    base: str
    ratio: float
    needed: float | None
    """The share asked for; None where none is, and always for others than ours."""

    @property
    def verdict(self) -> str:
        """`ok` or `below`, empty if nothing is asked for."""
        if self.needed is None:
            return ""
        return "ok" if self.ratio >= self.needed else "below"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Everything about one measure."""

    measure: Measure
    cells: dict[str, Cell]
    ratios: tuple[Ratio, ...]


def percentile(values: Sequence[int], share: float) -> int:
    """Return the smallest value that at least `share` of all values do not exceed."""
    ordered = sorted(values)
    rank = -int(-share * len(ordered) // 1)
    return ordered[max(rank, 1) - 1]


def summarise(observations: Sequence[Observation], measures: Sequence[Measure]) -> list[Row]:
    """Return one row for each measure that was observed, in the order of `measures`."""
    by_measure: dict[str, dict[str, list[Observation]]] = defaultdict(lambda: defaultdict(list))
    for observation in observations:
        by_measure[observation.measure][observation.contender].append(observation)
    return [
        _row(measure, by_measure[measure.name])
        for measure in measures
        if measure.name in by_measure
    ]


def rate(measure: Measure, observation: Observation) -> float:
    """Return one observation's rate in the measure's unit."""
    return measure.value(
        operations=observation.operations,
        bytes_moved=observation.bytes_moved,
        seconds=observation.seconds,
    )


def _row(measure: Measure, by_contender: dict[str, list[Observation]]) -> Row:
    cells, rates = {}, {}
    for contender, seen in by_contender.items():
        rates[contender] = {entry.round: rate(measure, entry) for entry in seen}
        cells[contender] = Cell(
            value=median(rates[contender].values()),
            p50_us=median(percentile(entry.latencies_ns, 0.50) for entry in seen) / 1e3,
            p99_us=median(percentile(entry.latencies_ns, 0.99) for entry in seen) / 1e3,
        )
    ratios = tuple(
        _ratio(measure, contender, base, rates)
        for contender in rates
        if contender not in {FLOOR, PLAIN}
        for base in (FLOOR, PLAIN)
        if base in rates
    )
    return Row(measure=measure, cells=cells, ratios=ratios)


def _ratio(
    measure: Measure, contender: str, base: str, rates: dict[str, dict[int, float]]
) -> Ratio:
    shared = rates[contender].keys() & rates[base].keys()
    return Ratio(
        contender=contender,
        base=base,
        ratio=median(rates[contender][number] / rates[base][number] for number in shared),
        needed=measure.needed.get(base) if contender == OURS else None,
    )
