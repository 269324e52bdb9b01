"""docs/chaos.md lists exactly the faults that there are."""

from __future__ import annotations

import re

from tests.chaos.script import BLACKOUT_KINDS, DELAY, KINDS
from tests.hygiene import tree


def test_the_document_lists_every_kind() -> None:
    """What a campaign says that it has proved is read there."""
    text = (tree.ROOT / "docs" / "chaos.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE)
    assert listed == [*KINDS, DELAY, *BLACKOUT_KINDS]
