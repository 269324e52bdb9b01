"""The byte tables of `docs/format` say what the code does: they are read back and compared.

Whoever rescues data with a hex editor has nothing but these tables.
"""

from __future__ import annotations

import importlib
import re
import struct
from dataclasses import fields
from pathlib import Path
from typing import Final

import pytest

from s3fs_banyan.format import record
from s3fs_banyan.format.checkpoint import CheckpointManifest
from s3fs_banyan.format.chunk import CHUNK_MAGIC, header_bytes
from s3fs_banyan.format.keyring import Keyring, KeySlot
from s3fs_banyan.format.volume import Heartbeat, VolumeDescriptor
from s3fs_banyan.meta.tables import STATE_COLUMNS, STATE_KEYS

DOCS: Final = Path(__file__).parents[2] / "docs" / "format"
_LAYOUT = re.compile(r"^Layout of `(\w+)\.(\w+)`, (\d+) bytes.*?:\n\n((?:\|.*\n)+)", re.MULTILINE)
_CODES: Final = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "i64": "q"}
EXPECTED: Final = {
    "record._SEGMENT", "record._HEADER", "chunk._HEAD", "chunk._FRAME", "pack._ENTRY",
    "pack._FOOTER", "commit._FIXED", "commit._TAIL", "blob._HEAD", "chunk._PLACE",
}  # fmt: skip


def layouts() -> dict[str, tuple[int, list[list[str]]]]:
    """Return struct -> (size as told, rows of its table) of all documents."""
    found = {}
    for path in sorted(DOCS.glob("*.md")):
        for module, name, size, table in _LAYOUT.findall(path.read_text(encoding="utf-8")):
            lines = table.strip().splitlines()[2:]
            rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
            found[f"{module}.{name}"] = (int(size), rows)
    return found


def test_every_struct_has_its_table() -> None:
    """A format without a table is known to one person only."""
    assert set(layouts()) == EXPECTED


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_table_is_the_struct(name: str) -> None:
    """Offsets, sizes, types and the sum, against the struct that encodes and decodes."""
    size, rows = layouts()[name]
    position, code = 0, "<"
    for offset, length, kind, *_ in rows:
        assert int(offset) == position, f"{name}: offset {offset}"
        position += int(length)
        part = f"{length}s" if kind == "bytes" else _CODES[kind]
        assert struct.calcsize("<" + part) == int(length)
        code += part
    module, attribute = name.split(".")
    real = getattr(importlib.import_module(f"s3fs_banyan.format.{module}"), attribute)
    assert position == size == real.size
    assert re.sub(r"\s", "", code) == real.format


def test_every_operation_is_listed_with_its_number() -> None:
    """A record's kind is for ever: the list must neither lack one nor call it otherwise."""
    text = (DOCS / "journal.md").read_text(encoding="utf-8")
    listed = {
        int(n): name for n, name in re.findall(r"^\| (\d+) \| ([A-Z]+) \|", text, re.MULTILINE)
    }
    renamed = {"BEGINEPOCH": "EPOCH", "SETATTRIBUTES": "SETATTR"}
    kinds = {
        kind: renamed.get(cls.__name__.upper(), cls.__name__.upper())
        for cls, (kind, _) in record._ENCODERS.items()
    }
    assert listed == kinds


def test_json_fields_are_listed() -> None:
    """Manifest, descriptor and heartbeat: every field of the class, and none besides."""
    common = {"kind", "version", "checksum"}
    for document, cls, extra in (
        ("checkpoint.md", CheckpointManifest, {"schema"}),
        ("volume.md", VolumeDescriptor, set[str]()),
        ("volume.md", Heartbeat, set[str]()),
        ("keyring.md", Keyring, set[str]()),
    ):
        text = (DOCS / document).read_text(encoding="utf-8")
        tables = re.findall(r"^\| field \| type .*\n((?:\|.*\n)+)", text, re.MULTILINE)
        wanted = {field.name for field in fields(cls)} | common | extra
        listed = [
            {
                name
                for line in table.splitlines()
                for name in re.findall(r"`(\w+)`", line.split("|")[1])
            }
            for table in tables
        ]
        assert wanted in listed


def test_the_fields_of_a_key_slot_are_listed() -> None:
    """Without them nobody unwraps a key by hand."""
    text = (DOCS / "keyring.md").read_text(encoding="utf-8")
    table = re.search(r"^A slot:\n\n\| field .*\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert table is not None
    listed = {
        n for line in table[1].splitlines() for n in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert listed == {field.name for field in fields(KeySlot)}


def test_the_tables_of_a_delta_are_listed() -> None:
    """Column by column, in order: it is part of the format level."""
    text = (DOCS / "commit.md").read_text(encoding="utf-8")
    for table, columns in STATE_COLUMNS.items():
        row = re.search(rf"^\| `{table}` \| (.*) \| (.*) \|$", text, re.MULTILINE)
        assert row is not None, table
        assert tuple(row[1].split(", ")) == STATE_KEYS[table]
        assert tuple(row[1].split(", ")) + tuple(row[2].split(", ")) == columns


def test_fixed_numbers_in_the_text_are_those_of_the_code() -> None:
    """The prose names sizes, too."""
    journal = (DOCS / "journal.md").read_text(encoding="utf-8")
    assert f"{record.SEGMENT_HEADER_BYTES:,} bytes" in journal
    assert f"at most {record.BODY_BYTES_MAX:,}" in journal
    assert f"at most {record.DATA_BYTES_MAX:,}" in journal
    assert f"At offset {record.RECORD_HEADER_BYTES} follow the fields" in journal
    chunk = (DOCS / "chunk.md").read_text(encoding="utf-8")
    assert CHUNK_MAGIC.decode() in chunk
    assert header_bytes(1) == 20 + 16 + 8
