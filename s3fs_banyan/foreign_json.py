"""JSON that came from elsewhere, parsed so that whatever is wrong with it is one error.

The standard parser raises `RecursionError` for deep nesting, which no caller expects, or lets
through what the encoder then cannot write again. Nothing of ours is nested deeply.
"""

from __future__ import annotations

import json
from typing import Final

JSON_DEPTH_MAX: Final = 32


def parse_json(text: bytes | bytearray | str) -> object:
    """Return the value; raises `ValueError` for anything that is no JSON, or too deep."""
    try:
        value: object = json.loads(text)
    except RecursionError:
        raise _too_deep() from None
    level = [value]
    for _ in range(JSON_DEPTH_MAX):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return value
    raise _too_deep()


def _too_deep() -> ValueError:
    return ValueError(f"it is nested more than {JSON_DEPTH_MAX} deep")
