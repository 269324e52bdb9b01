"""What lies in the outbox and is none of ours: told by name, and made again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from s3fs_banyan.commit.outbox import Outbox, PackRecord
from s3fs_banyan.errors import Corrupt
from s3fs_banyan.format.checksum import xxh3
from tests.unit.test_commit_outbox import RECORD


@pytest.mark.parametrize(
    "change",
    [
        {"key": "volume.json"}, {"key": 7}, {"size": -1}, {"size": 1.5}, {"chain": 1 << 64},
        {"chain": "1"}, {"chunks": [[1, 2, 3, 4, 5]]}, {"chunks": ["12345"]}, {"chunks": [[]]},
        {"chunks": [[True, 0, 1, 1, "00"]]}, {"chunks": [["1", 0, 1, 1, "00"]]}, {"upload": 1},
        {"upload": "{}"}, {"upload": "[" * 5000}, {"version": [1]}, {"version": float("inf")},
        {"size": float("inf")},
    ],
    ids=lambda change: str(change)[:40],
)  # fmt: skip
def test_a_record_of_other_types_is_corrupt(change: dict[str, object]) -> None:
    """Its checksum is right. `tidy` removes it; any other error would end the mount."""
    body = json.loads(RECORD.encode().partition(b"\n")[2]) | change
    data = json.dumps(body).encode()
    with pytest.raises(Corrupt, match="record"):
        PackRecord.decode(f"{xxh3(data):016x}\n".encode() + data, "record")


@pytest.mark.parametrize("text", ["inf", "nan", "-1", "x", "\xff"])
def test_a_line_of_no_known_speed_is_one_that_nobody_knows(tmp_path: Path, text: str) -> None:
    """An endless one would take every pack for one that is sent at once."""
    (tmp_path / "link").write_text(text, encoding="latin-1")
    assert Outbox(tmp_path).load_link() == 0
