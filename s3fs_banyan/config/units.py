"""Sizes and durations as people write them: `10GiB`, `512MB`, `30s`, `1h30m`.

Used by the settings and by the commands' options. Messages never repeat the text they are about.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

KIB: Final = 1024
MIB: Final = 1024**2
GIB: Final = 1024**3
TIB: Final = 1024**4
PIB: Final = 1024**5

MINUTE_S: Final = 60.0
HOUR_S: Final = 3600.0
DAY_S: Final = 86400.0

_SIZE_UNITS: Final = {
    "": 1,
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgtp", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgtp", 1)},
}
_SIZE_SHAPE: Final = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,6})?) ?([A-Za-z]{0,3})")
_SIZE_HELP: Final = (
    "not a size: write a number of bytes, or a number and one of "
    "KiB, MiB, GiB, TiB (powers of 1024), kB, MB, GB, TB (powers of 1000)"
)

_TIME_UNITS: Final = {"d": DAY_S, "h": HOUR_S, "m": MINUTE_S, "s": 1.0, "ms": 0.001}
_TIME_PART: Final = r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|[dhms])"
_TIME_SHAPE: Final = re.compile(f"(?:{_TIME_PART})+")
_TIME_NUMBER: Final = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,6})?")
_TIME_HELP: Final = (
    "not a duration: write a number of seconds, or numbers with ms, s, m, h or d, such as 1h30m"
)


def parse_size(value: object) -> int:
    """Return the bytes meant by `10GiB`, `512MB` or a plain number; raise `ValueError`."""
    text = "" if isinstance(value, bool) else str(value).strip()
    shape = _SIZE_SHAPE.fullmatch(text)
    unit = _SIZE_UNITS.get(shape[2].lower()) if shape else None
    if shape is None or unit is None:
        raise ValueError(_SIZE_HELP)
    size = Fraction(shape[1]) * unit
    if size.denominator != 1:
        raise ValueError("not a whole number of bytes")
    return int(size)


def parse_seconds(value: object) -> float:
    """Return the seconds meant by `30s`, `5m`, `1h30m` or a number; raise `ValueError`."""
    text = "" if isinstance(value, bool) else str(value).strip()
    if _TIME_NUMBER.fullmatch(text):
        return float(text)
    if not _TIME_SHAPE.fullmatch(text):
        raise ValueError(_TIME_HELP)
    parts = re.findall(_TIME_PART, text)
    return float(sum(float(number) * _TIME_UNITS[unit] for number, unit in parts))


def format_size(size: int) -> str:
    """Return `size` bytes the way a person writes them in the file: `64MiB`, `1000`."""
    for power, letter in ((5, "P"), (4, "T"), (3, "G"), (2, "M"), (1, "K")):
        if size and size % 1024**power == 0:
            return f"{size // 1024**power}{letter}iB"
    return str(size)


def format_seconds(seconds: float) -> str:
    """Return a duration the way a person writes it in the file: `15m`, `0.5s`."""
    for unit in ("d", "h", "m"):
        if seconds and seconds % _TIME_UNITS[unit] == 0:
            return f"{seconds / _TIME_UNITS[unit]:.0f}{unit}"
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"
