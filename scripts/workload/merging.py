"""Which parts to merge: BanyanDB's selection rule, as a pure function."""

from __future__ import annotations

import math
from collections.abc import Sequence

MULTIPLIER = 1.7


def select(sizes: Sequence[int], *, fan_in: int, free: int) -> list[int]:
    """Return the indexes of the parts to merge now, or nothing.

    Parts are sorted by size; every contiguous window of n to m parts counts, where
    m = min(count, fan_in) and n = max(2, ceil(m / 2)), unless its smallest times its length
    is below its largest, or it would not fit (sum above free / 1.7). The window with the
    greatest sum / largest wins, if that is at least max(fan_in / 2, 1.7).
    """
    order = sorted(range(len(sizes)), key=lambda index: sizes[index])
    longest = min(len(order), fan_in)
    shortest = max(2, math.ceil(longest / 2))
    best: list[int] = []
    best_gain = 0.0
    for length in range(shortest, longest + 1):
        for start in range(len(order) - length + 1):
            window = order[start : start + length]
            largest = sizes[window[-1]]
            total = sum(sizes[index] for index in window)
            if largest == 0 or sizes[window[0]] * length < largest or total > free / MULTIPLIER:
                continue
            if total / largest > best_gain:
                best_gain = total / largest
                best = window
    return best if best_gain >= max(fan_in / 2, MULTIPLIER) else []
