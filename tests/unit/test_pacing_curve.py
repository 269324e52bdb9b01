"""The judgement of `scripts/pacing-curve`, and its store: a judge must be able to fail."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from pacinglib.judge import Answer, Phase, Row, faults_of, row_of
from pacinglib.store import Capacity, ScriptedStore

from s3fs_banyan.errors import Throttled

MB = 1_000_000


def answers(rate: Sequence[float], *, refused: int = 0) -> list[Answer]:
    """Return uploads of `rate[n]` MB in second n, and some refusals in each second."""
    made = []
    for second, share in enumerate(rate):
        sizes = [(MB, False)] * round(share) + [(MB, True)] * refused
        made += [
            Answer(end_s=second + 0.5, seconds=0.1, size=size, is_demand=False, is_refused=no)
            for size, no in sizes
        ]
    return made


def reads(begin_s: float, seconds: float) -> list[Answer]:
    return [
        Answer(end_s=begin_s + n, seconds=seconds, size=1, is_demand=True, is_refused=False)
        for n in range(5)
    ]


def judged(
    rate: Sequence[float], *, refused: int = 0, idle_s: float = 0.03, busy_s: float = 0.03
) -> tuple[Row, list[str]]:
    seen = answers(rate, refused=refused) + reads(100, idle_s) + reads(200, busy_s)
    phases = [
        Phase(name="p", begin_s=0, end_s=20, best_bytes=100 * MB),
        Phase(name="idle", begin_s=100, end_s=105, best_bytes=1, has_uploads=False),
        Phase(name="busy", begin_s=200, end_s=205, best_bytes=1, has_uploads=False),
    ]
    rows = [row_of(phase, seen) for phase in phases]
    return rows[0], faults_of(rows, idle="idle", busy="busy")


def test_what_is_promised_passes() -> None:
    row, faults = judged([10] * 5 + [90] * 15, refused=1)
    assert faults == []
    assert row.share == pytest.approx(0.9)
    assert row.settle_s == 5
    assert row.refused == pytest.approx(1 / 91)


@pytest.mark.parametrize(
    ("rate", "changes", "fault"),
    [
        ([90] * 10 + [80] * 10, {}, "p: 80% of the capacity"),
        ([90] * 20, {"refused": 3}, "p: 3.2% of the requests were refused"),
        ([90] * 20, {"busy_s": 0.07}, "demand reads took 2.3 times as long under upload"),
    ],
)
def test_what_is_not_as_promised_is_told(
    rate: list[float], changes: dict[str, float], fault: str
) -> None:
    assert judged(rate, **changes)[1] == [fault]  # type: ignore[arg-type]


def test_run_without_demand_reads_is_no_pass() -> None:
    row = row_of(Phase(name="idle", begin_s=0, end_s=5, best_bytes=1), [])
    assert faults_of([row], idle="idle", busy="busy") == ["no demand read was answered"]


def test_scripted_store_takes_its_time_and_refuses_what_is_too_much() -> None:
    """Its capacity is the yardstick: a store that did not keep to it would flatter the layer."""
    store = ScriptedStore()
    store.capacity = Capacity(total_bytes=10 * MB, rate_bytes=10 * MB, latency_s=0.0, slots=2)
    began_s = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(store.write, "x", bytes(MB)) for _ in range(2)]:
            done.result()
    took_s = time.monotonic() - began_s
    assert took_s > 0.9 * 2 * MB / store.capacity.total_bytes
    store.capacity = Capacity(is_storm=True)
    with pytest.raises(Throttled):
        store.write("x", b"")
    store.close()
    assert Capacity(slots=4, latency_s=0.1, rate_bytes=MB).best_bytes(MB) == pytest.approx(
        4 * MB / 1.1
    )
