"""What released versions wrote is read by this one, and written again byte for byte.

Broken, an upgrade loses volumes. A golden file is never made anew: if one of these tests fails,
the code is wrong, or it needs a new version and a second decoder.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import get_args

import apsw
import pytest

from s3fs_banyan.format.blob import decode_blob, encode_blob
from s3fs_banyan.format.checkpoint import decode_manifest
from s3fs_banyan.format.chunk import decode_chunk_header, decode_frame, decode_frame_table
from s3fs_banyan.format.commit import commit_sections, decode_footer
from s3fs_banyan.format.keyring import decode_keyring, unwrap
from s3fs_banyan.format.pack import decode_pack_tail
from s3fs_banyan.format.record import (
    SEGMENT_HEADER_BYTES,
    data_verifies,
    decode_record,
    decode_segment_header,
    head_continues,
    peek_record,
)
from s3fs_banyan.format.volume import decode_heartbeat, decode_volume
from s3fs_banyan.meta.committed import check_commit, create_committed, restore_committed
from s3fs_banyan.meta.tables import STATE_COLUMNS
from s3fs_banyan.model import Operation
from tests.golden import make, samples

DIRECTORY = Path(__file__).parent
# Snappy may find a shorter form of the same bytes in a later release: these are only decoded.
REENCODED = [name for name in make.MAKERS if "snappy" not in name]


def golden(name: str) -> bytes:
    """Return the bytes of a golden file."""
    return (DIRECTORY / name).read_bytes()


def test_no_golden_file_has_changed() -> None:
    """They are what is in people's stores; the manifest and the files must agree, one to one."""
    lines = make.MANIFEST.read_text(encoding="ascii").splitlines()
    listed = {name: digest for digest, name in (line.split("  ") for line in lines)}
    found = {path.name: path for path in DIRECTORY.glob("v*-*")}
    assert set(listed) == set(found)
    for name, path in found.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == listed[name], name


def test_every_kind_of_operation_has_a_golden_record() -> None:
    """An operation without one could change its bytes and nobody would notice."""
    kinds = {type(op) for op in (*samples.OPERATIONS, *samples.REWRITES)}
    assert kinds == set(get_args(Operation))


@pytest.mark.parametrize("name", REENCODED)
def test_every_version_is_still_written_byte_for_byte(name: str) -> None:
    """Two releases on one volume must agree: packs are found by the hash of their bytes."""
    assert make.MAKERS[name]() == golden(name)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("v1-segment.bin", samples.OPERATIONS),
        ("v1-segment-rewrite.bin", samples.REWRITES),
    ],
)
def test_the_golden_segments_replay(name: str, wanted: tuple[Operation, ...]) -> None:
    """Records of every kind, in one chain."""
    segment = golden(name)
    assert decode_segment_header(segment[:SEGMENT_HEADER_BYTES]) == samples.SEGMENT
    position, chain = SEGMENT_HEADER_BYTES, samples.CHAIN
    ops: list[Operation] = []
    while (head := peek_record(segment, position)) is not None:
        assert head_continues(segment, position, head, chain)
        assert data_verifies(segment, position, head)
        record = decode_record(segment, position, head)
        assert record.tid == 100 + len(ops)
        assert record.op_seq == samples.FIRST_OP_SEQ + len(ops)
        ops.append(record.op)
        position, chain = record.end, record.checksum
    assert tuple(ops) == wanted
    assert position == len(segment)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("v1-chunk-plain.bin", samples.CHUNK_PLAIN),
        ("v1-chunk-snappy.bin", samples.CHUNK_COMPRESSIBLE),
        ("v2-chunk-sealed.bin", samples.CHUNK_PLAIN),
        ("v2-chunk-sealed-snappy.bin", samples.CHUNK_COMPRESSIBLE),
    ],
)
def test_golden_chunks_decode(name: str, data: bytes) -> None:
    """File data of every version, raw frames and compressed ones."""
    stored = golden(name)
    cipher = samples.CIPHER if name.startswith("v2") else None
    chunk_id, length, table = decode_chunk_header(stored, name)
    assert (chunk_id, length) == (samples.CHUNK_ID, len(data))
    parts = [
        decode_frame(
            chunk_id, index, f, stored[f.offset : f.offset + f.stored_length], name, cipher
        )
        for index, f in enumerate(decode_frame_table(chunk_id, length, table))
    ]
    assert b"".join(parts) == data


def test_golden_blobs_and_packs_decode() -> None:
    """Deltas and checkpoints are blobs; a pack is readable on its own."""
    assert decode_blob(golden("v1-blob-plain.bin"), "k") == samples.BLOB_PLAIN
    assert decode_blob(golden("v1-blob-snappy.bin"), "k") == samples.BLOB_COMPRESSIBLE
    assert decode_blob(encode_blob(samples.BLOB_COMPRESSIBLE), "k") == samples.BLOB_COMPRESSIBLE
    pack = golden("v1-pack.bin")
    assert tuple(decode_pack_tail(pack, len(pack), "k")) == samples.PACK_ENTRIES


def test_golden_objects_of_an_encrypted_volume_decode() -> None:
    """Keyring, blobs, a commit and a fence: with the key, and only with it."""
    for secret in (samples.PASSPHRASE, samples.KEY_FILE):
        keyring = decode_keyring(golden("v1-keyring.json"), "k")
        assert unwrap(keyring, [secret]) == samples.DATA_KEY
    for name, raw in (
        ("v2-blob-sealed.bin", samples.BLOB_PLAIN),
        ("v2-blob-sealed-snappy.bin", samples.BLOB_COMPRESSIBLE),
    ):
        assert decode_blob(golden(name), "k", samples.CIPHER, place=samples.DELTA_PLACE) == raw
    for name, footer in (("v2-commit.bin", samples.COMMIT), ("v2-fence.bin", samples.FENCE)):
        assert decode_footer(golden(name), "k", samples.CIPHER) == footer


def test_golden_commits_decode() -> None:
    """A commit with its sections, and a fence."""
    commit, fence = golden("v1-commit.bin"), golden("v1-fence.bin")
    assert decode_footer(commit, "k") == samples.COMMIT
    assert decode_footer(fence, "k") == samples.FENCE
    assert decode_footer(fence, "k").is_fence
    assert b"|".join(commit_sections(commit, samples.COMMIT)) == b"dddd|ppp"


def test_golden_json_objects_decode() -> None:
    """Manifest, descriptor, heartbeat."""
    assert decode_manifest(golden("v1-checkpoint.json"), "k") == samples.MANIFEST
    assert decode_volume(golden("v1-volume.json"), "k") == samples.VOLUME
    assert decode_heartbeat(golden("v1-writer.json"), "k") == samples.HEARTBEAT


def test_a_golden_commit_is_applied_and_equals_the_golden_checkpoint(tmp_path: Path) -> None:
    """Delta, placements and checkpoint of version 1 still mean the same state."""
    delta, placements, checkpoint = tmp_path / "d", tmp_path / "p", tmp_path / "c"
    delta.write_bytes(golden("v1-delta.db"))
    placements.write_bytes(golden("v1-placements.db"))
    checkpoint.write_bytes(golden("v1-checkpoint.db"))
    check_commit(delta, placements, "log/12")
    applied = create_committed(tmp_path / "applied.db", vfs=None, volume=samples.VOLUME)
    head = applied.apply_commit(delta, placements, samples.COMMIT, b"d" * 32)
    restored = restore_committed(
        tmp_path / "restored.db",
        checkpoint,
        vfs=None,
        volume_id=samples.VOLUME.volume_id,
        key="checkpoint/12",
    )
    assert restored.head == head
    for table in (*STATE_COLUMNS, "pack", "place", "head"):
        rows = _rows(applied.reader(), table)
        assert rows == _rows(restored.reader(), table)
        assert rows or table == "xattr", table
    applied.close()
    restored.close()


def _rows(connection: apsw.Connection, table: str) -> list[tuple[object, ...]]:
    return sorted(connection.execute(f"SELECT * FROM {table}").fetchall())  # noqa: S608
