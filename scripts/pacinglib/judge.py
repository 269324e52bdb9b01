"""What a run has shown, phase by phase, and whether it is what the project promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

SETTLE_S = 10.0
SHARE_MIN = 0.85
REFUSED_MAX = 0.02
DEMAND_FACTOR_MAX = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One request: when it ended, how long it took, what became of it."""

    end_s: float
    seconds: float
    size: int
    is_demand: bool
    is_refused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of the run with one capacity; `best_bytes` 0: nothing can be expected."""

    name: str
    begin_s: float
    end_s: float
    best_bytes: float
    has_uploads: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table; None where a phase tells nothing."""

    name: str
    best_bytes: float
    settled_bytes: float | None
    share: float | None
    settle_s: float | None
    """From when on all the rest of the phase, taken together, is at the promised share."""
    refused: float | None
    demand_s: float | None


def row_of(phase: Phase, answers: Sequence[Answer]) -> Row:
    """Sum one phase up."""
    within = [a for a in answers if phase.begin_s <= a.end_s < phase.end_s]
    settled = [a for a in within if a.end_s >= phase.begin_s + SETTLE_S]
    reads = [a.seconds for a in within if a.is_demand and not a.is_refused]
    rate = share = settle_s = refused = None
    if phase.has_uploads and phase.best_bytes and phase.end_s - phase.begin_s > SETTLE_S:
        rate = _sent(settled) / (phase.end_s - phase.begin_s - SETTLE_S)
        share = rate / phase.best_bytes
        settle_s = _settle_s(phase, within)
        refused = sum(a.is_refused for a in settled) / max(1, len(settled))
    return Row(
        name=phase.name,
        best_bytes=phase.best_bytes,
        settled_bytes=rate,
        share=share,
        settle_s=settle_s,
        refused=refused,
        demand_s=median(reads) if reads else None,
    )


def _sent(answers: Sequence[Answer]) -> int:
    return sum(a.size for a in answers if not a.is_refused and not a.is_demand)


def _settle_s(phase: Phase, within: Sequence[Answer]) -> float | None:
    """Return the first second whose next two seconds reach the promised share."""
    for second in range(int(phase.end_s - phase.begin_s) - 2):
        begin_s = phase.begin_s + second
        sent = _sent([a for a in within if begin_s <= a.end_s < begin_s + 2])
        if sent >= SHARE_MIN * phase.best_bytes * 2:
            return float(second)
    return None


def faults_of(rows: Sequence[Row], *, idle: str, busy: str) -> list[str]:
    """Return what is not as promised, one line each; `idle` and `busy` name the demand phases."""
    faults = []
    for row in rows:
        if row.share is not None and row.share < SHARE_MIN:
            faults.append(f"{row.name}: {row.share:.0%} of the capacity")
        if row.refused is not None and row.refused >= REFUSED_MAX:
            faults.append(f"{row.name}: {row.refused:.1%} of the requests were refused")
    demand = {row.name: row.demand_s for row in rows}
    before_s, under_s = demand.get(idle), demand.get(busy)
    if before_s is None or under_s is None:
        faults.append("no demand read was answered")
    elif under_s > DEMAND_FACTOR_MAX * before_s:
        faults.append(f"demand reads took {under_s / before_s:.1f} times as long under upload")
    return faults
