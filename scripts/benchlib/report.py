"""The table for people and the JSON document for programs."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchlib.measures import FLOOR, OURS, PLAIN, Measure
from benchlib.mounts import Mount
from benchlib.rounds import Observation
from benchlib.summary import Ratio, Row, rate

JSON_VERSION = 1
WIDTH_MIN = 132

_COLOURS = {"ok": "green", "below": "red", "": "default"}


def machine(disk: Mount) -> dict[str, Any]:
    """Return what the numbers depend on."""
    return {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "disk": {"kind": disk.kind, "source": disk.source},
        "load_average": os.getloadavg()[0],
    }


def print_table(
    console: Console, rows: Sequence[Row], contenders: Sequence[str], caption: str
) -> None:
    """Print one line a measure: rates with p50 and p99 beneath, ratios with what is asked for."""
    table = Table(show_lines=True)
    table.add_column("measure", no_wrap=True)
    for contender in contenders:
        table.add_column(f"{contender}\np50 / p99", justify="right", no_wrap=True)
    pairs = [
        (contender, base)
        for contender in contenders
        if contender not in {FLOOR, PLAIN}
        for base in (FLOOR, PLAIN)
        if base in contenders
    ]
    for contender, base in pairs:
        head = f"{contender} / {base}" + ("\nneeded" if contender == OURS else "")
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        ratios = {(ratio.contender, ratio.base): ratio for ratio in row.ratios}
        table.add_row(
            f"{row.measure.title}\n[dim]{row.measure.name}[/dim]",
            *(_cell_text(row, contender) for contender in contenders),
            *(_ratio_text(ratios[pair]) for pair in pairs),
        )
    console.print(table)
    console.print(caption, highlight=False)


def _cell_text(row: Row, contender: str) -> str:
    cell = row.cells[contender]
    value = f"{cell.value:,.0f}" if cell.value >= 100 else f"{cell.value:.1f}"
    return f"{value} {row.measure.unit}\n[dim]{_time(cell.p50_us)} / {_time(cell.p99_us)}[/dim]"


def _time(microseconds: float) -> str:
    if microseconds < 1000:
        return f"{microseconds:.0f} us" if microseconds >= 10 else f"{microseconds:.1f} us"
    milliseconds = microseconds / 1000
    return f"{milliseconds:.0f} ms" if milliseconds >= 10 else f"{milliseconds:.1f} ms"


def _ratio_text(ratio: Ratio) -> str:
    if ratio.needed is None:
        return f"{ratio.ratio:.2f}"
    colour = _COLOURS[ratio.verdict]
    return f"{ratio.ratio:.2f}\n[{colour}]{ratio.needed:g} {ratio.verdict}[/{colour}]"


def document(
    rows: Sequence[Row],
    observations: Sequence[Observation],
    measures: Sequence[Measure],
    *,
    settings: dict[str, int],
    about: dict[str, Any],
) -> dict[str, Any]:
    """Return the run as plain values: the summary, and every single operation's time."""
    by_name = {measure.name: measure for measure in measures}
    return {
        "version": JSON_VERSION,
        "machine": about,
        "settings": settings,
        "measures": {row.measure.name: _row_values(row) for row in rows},
        "observations": [
            {
                "contender": entry.contender,
                "measure": entry.measure,
                "round": entry.round,
                "value": rate(by_name[entry.measure], entry),
                "operations": entry.operations,
                "bytes": entry.bytes_moved,
                "seconds": entry.seconds,
                "latencies_ns": list(entry.latencies_ns),
            }
            for entry in observations
        ],
    }


def _row_values(row: Row) -> dict[str, Any]:
    return {
        "title": row.measure.title,
        "unit": row.measure.unit,
        "contenders": {
            name: {"value": cell.value, "p50_us": cell.p50_us, "p99_us": cell.p99_us}
            for name, cell in row.cells.items()
        },
        "ratios": {
            f"{ratio.contender}/{ratio.base}": {
                "ratio": ratio.ratio,
                "needed": ratio.needed,
                "verdict": ratio.verdict,
            }
            for ratio in row.ratios
        },
    }
