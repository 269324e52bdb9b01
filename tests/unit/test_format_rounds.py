"""What is encoded is decoded again, equal; and what a newer release wrote is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3fs_banyan.errors import Corrupt, UnsupportedVersion
from s3fs_banyan.format.blob import decode_blob, encode_blob
from s3fs_banyan.format.checkpoint import CheckpointManifest, decode_manifest, encode_manifest
from s3fs_banyan.format.chunk import (
    Frame,
    decode_chunk_header,
    decode_frame,
    decode_frame_table,
    encode_chunk,
)
from s3fs_banyan.format.commit import (
    KEPT_MAX,
    CommitFooter,
    commit_sections,
    decode_footer,
    encode_footer,
)
from s3fs_banyan.format.keys import (
    checkpoint_key,
    checkpoint_piece_key,
    log_delta_key,
    log_key,
    pack_key,
    parse_checkpoint_key,
    parse_keyring_key,
    parse_log_delta_key,
    parse_log_key,
    parse_pack_key,
)
from s3fs_banyan.format.pack import PackEntry, decode_pack_tail, encode_pack_tail, tail_bytes
from s3fs_banyan.format.record import (
    SegmentHeader,
    data_verifies,
    decode_record,
    decode_segment_header,
    encode_record,
    encode_segment_header,
    head_continues,
    peek_record,
)
from s3fs_banyan.format.sealed_json import open_json, seal_json
from s3fs_banyan.format.volume import (
    Heartbeat,
    VolumeDescriptor,
    decode_heartbeat,
    decode_volume,
    encode_heartbeat,
    encode_volume,
)
from s3fs_banyan.model import (
    EPOCH_MAX,
    FRAME_BYTES,
    BeginEpoch,
    Cut,
    Link,
    Make,
    Operation,
    Reap,
    RemoveXattr,
    Rename,
    Rewrite,
    Rmdir,
    SetAttributes,
    SetXattr,
    Unlink,
    Write,
)
from s3fs_banyan.remote.base import check_path

U16 = st.integers(0, 2**16 - 1)
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
I63 = st.integers(0, 2**63 - 1)
"""What the databases of a volume can hold."""
TIME = st.integers(-(2**63), 2**63 - 1)
NAME = st.binary(min_size=1, max_size=255)
HASH = st.text("0123456789abcdef", min_size=64, max_size=64)

OPERATIONS: st.SearchStrategy[Operation] = st.one_of(
    st.builds(BeginEpoch, U64, st.binary(min_size=16, max_size=16)),
    st.builds(Cut, TIME),
    st.builds(Make, U64, NAME, U64, U32, U32, U32, U64, st.binary(max_size=4095), TIME),
    st.builds(Link, U64, U64, NAME, TIME),
    st.builds(Unlink, U64, NAME, TIME),
    st.builds(Rmdir, U64, NAME, TIME),
    st.builds(Rename, U64, NAME, U64, NAME, st.booleans(), TIME),
    st.builds(Write, U64, U64, st.booleans(), TIME, st.binary(max_size=9000)),
    st.builds(Rewrite, U64, U64, st.binary(max_size=9000)),
    st.builds(
        SetAttributes,
        U64,
        st.none() | U32,
        st.none() | U32,
        st.none() | U32,
        st.none() | U64,
        st.none() | TIME,
        st.none() | TIME,
        TIME,
    ),
    st.builds(SetXattr, U64, NAME, st.binary(max_size=9000), TIME),
    st.builds(RemoveXattr, U64, NAME, TIME),
    st.builds(Reap, U64, U32),
)


@given(op=OPERATIONS, op_seq=U64, tid=U32, synced=U64, chain=U64)
def test_every_operation_survives_its_record(
    op: Operation, op_seq: int, tid: int, synced: int, chain: int
) -> None:
    """A field that is lost here is lost by every restart."""
    head, data, checksum = encode_record(op, op_seq, tid, synced, chain)
    buffer = b"before" + head + bytes(data)
    peeked = peek_record(buffer, 6)
    assert peeked is not None
    assert head_continues(buffer, 6, peeked, chain)
    assert data_verifies(buffer, 6, peeked)
    record = decode_record(buffer, 6, peeked)
    assert record == (op, op_seq, tid, synced, checksum, len(buffer))
    assert type(record.op) is type(op)


@given(header=st.builds(SegmentHeader, U64, U64, U64, U64, st.binary(min_size=16, max_size=16)))
def test_segment_headers_come_back(header: SegmentHeader) -> None:
    """The numbers in them decide where a replay begins."""
    assert decode_segment_header(encode_segment_header(header)) == header


@given(raw=st.binary(max_size=3000) | st.binary(max_size=30).map(lambda b: b * 200))
def test_blobs_come_back(raw: bytes) -> None:
    """Deltas and checkpoints are nothing but blobs."""
    stored = encode_blob(raw)
    assert decode_blob(stored, "key") == raw
    assert len(stored) <= len(raw) + 36


def _decode_whole(chunk_id: int, length: int, stored: bytes, table: bytes) -> bytes:
    frames: list[Frame] = decode_frame_table(chunk_id, length, table)
    return b"".join(
        decode_frame(chunk_id, i, f, stored[f.offset : f.offset + f.stored_length], "key")
        for i, f in enumerate(frames)
    )


@settings(max_examples=30)
@given(
    chunk_id=U64,
    length=st.sampled_from([1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 16 * FRAME_BYTES]),
    pattern=st.binary(min_size=1, max_size=70_000),
)
def test_chunks_come_back_frame_by_frame(chunk_id: int, length: int, pattern: bytes) -> None:
    """At every border of a frame, compressible or not."""
    data = (pattern * (length // len(pattern) + 1))[:length]
    stored, table = encode_chunk(chunk_id, data)
    assert decode_chunk_header(stored, "key") == (chunk_id, length, table)
    assert _decode_whole(chunk_id, length, stored, table) == data
    last = decode_frame_table(chunk_id, length, table)[-1]
    assert last.offset + last.stored_length == len(stored)


@given(lengths=st.lists(st.tuples(U64, st.integers(1, 500), U32), max_size=20), extra=st.booleans())
def test_pack_indexes_come_back(lengths: list[tuple[int, int, int]], extra: bool) -> None:
    """A pack must be readable without the state: rescue has nothing else."""
    entries, offset = [], 0
    for chunk, stored, length in lengths:
        entries.append(PackEntry(chunk, offset, stored, length))
        offset += stored
    tail = encode_pack_tail(entries)
    assert len(tail) == tail_bytes(len(entries))
    given_tail = bytes(offset) + tail if extra else tail
    assert decode_pack_tail(given_tail, offset + len(tail), "key") == entries


COUNTED = st.integers(0, (1 << 63) - (1 << 32) - 1)
"""What leaves room for the commits that follow."""

FOOTERS = st.builds(
    CommitFooter,
    seq=COUNTED,
    epoch=st.integers(0, EPOCH_MAX),
    writer=st.binary(min_size=16, max_size=16),
    predecessor=st.binary(min_size=32, max_size=32),
    chain=U64,
    op_seq=COUNTED,
    time_ns=st.integers(-(1 << 63), (1 << 63) - (1 << 32) - 1),
    dense_from=COUNTED,
    kept=st.lists(U64, max_size=50).map(tuple),
    inline_length=st.integers(0, 30),
    delta_length=st.integers(0, 30),
    placements_length=st.integers(0, 30),
    delta_hash=st.just("") | HASH,
)


@given(footer=FOOTERS)
def test_commit_footers_come_back(footer: CommitFooter) -> None:
    """Fencing and recovery believe what it says."""
    inline = b"i" * footer.inline_length
    delta = b"d" * footer.delta_length
    placements = b"p" * footer.placements_length
    commit = inline + delta + placements + encode_footer(footer)
    assert decode_footer(commit, "key") == footer
    assert [bytes(part) for part in commit_sections(commit, footer)] == [delta, placements]
    assert footer.is_fence == (not footer.delta_length and not footer.delta_hash)


def test_a_footer_that_cannot_be_read_back_is_never_written() -> None:
    """Lengths are checked before the bytes leave, not when they come back."""
    base: dict[str, Any] = {
        "seq": 1, "epoch": 1, "writer": b"w" * 16, "predecessor": b"p" * 32, "chain": 1,
        "op_seq": 1, "time_ns": 1, "dense_from": 0, "kept": (), "inline_length": 0,
        "delta_length": 0, "placements_length": 0,
    }  # fmt: skip
    encode_footer(CommitFooter(**base))
    for change in (
        {"writer": b"w"}, {"predecessor": b""}, {"kept": tuple(range(KEPT_MAX + 1))},
        {"seq": 1 << 63}, {"op_seq": 1 << 63}, {"dense_from": 1 << 63}, {"epoch": EPOCH_MAX + 1},
        {"seq": (1 << 63) - (1 << 32)}, {"time_ns": (1 << 63) - 1},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"expected|at most"):
            encode_footer(CommitFooter(**(base | change)))


@given(
    manifest=st.builds(
        CheckpointManifest,
        seq=U64,
        digest=HASH,
        database_bytes=U64,
        database_hash=HASH,
        pieces=st.lists(HASH, max_size=5).map(tuple),
    )
)
def test_checkpoint_manifests_come_back(manifest: CheckpointManifest) -> None:
    """A cold start begins with one."""
    assert decode_manifest(encode_manifest(manifest), "key") == manifest


@given(
    volume=st.builds(
        VolumeDescriptor,
        volume_id=st.text("0123456789abcdef", min_size=32, max_size=32),
        created_ns=I63,
        pack_bytes=st.integers(1 << 20, 1 << 30),
        root_uid=U32,
        root_gid=U32,
        root_mode=st.integers(0, 0o7777),
        features_compatible=st.lists(st.text(max_size=9), max_size=3).map(tuple),
        features_read_only=st.lists(st.text(max_size=9), max_size=3).map(tuple),
    ),
    heartbeat=st.builds(
        Heartbeat, host=st.text(), pid=U32, epoch=U64, writer=st.text(), time_ns=U64
    ),
)
def test_descriptors_and_heartbeats_come_back(
    volume: VolumeDescriptor, heartbeat: Heartbeat
) -> None:
    """Without its descriptor a volume is a heap of objects."""
    assert decode_volume(encode_volume(volume), "key") == volume
    assert decode_heartbeat(encode_heartbeat(heartbeat), "key") == heartbeat


# --- newer releases, other volumes ---------------------------------------------------------

VOLUME = VolumeDescriptor(volume_id="0f" * 16, created_ns=1, pack_bytes=1 << 26)


def _changed(stored: bytes, **changes: object) -> bytes:
    """Return a sealed JSON object with other values and a right checksum."""
    body = json.loads(stored)
    del body["checksum"]
    return seal_json({name: v for name, v in (body | changes).items() if v is not ...})


@pytest.mark.parametrize("version", [2, 999])
def test_newer_objects_are_refused_by_name(version: int) -> None:
    """The operator must read "use a newer release", not "damaged"."""
    manifest = encode_manifest(
        CheckpointManifest(
            seq=1, digest="a" * 64, database_bytes=1, database_hash="b" * 64, pieces=()
        )
    )
    for call in (
        lambda: decode_volume(_changed(encode_volume(VOLUME), version=version), "volume.json"),
        lambda: decode_manifest(_changed(manifest, version=version), "checkpoint/1"),
        lambda: decode_manifest(_changed(manifest, schema=version), "checkpoint/1"),
    ):
        with pytest.raises(UnsupportedVersion, match=str(version)):
            call()


def test_a_feature_that_forbids_use_is_named() -> None:
    """A volume that needs what this release cannot do is refused, with the feature's name."""
    stored = _changed(encode_volume(VOLUME), features_refuse=["encryption"])
    with pytest.raises(UnsupportedVersion, match="encryption"):
        decode_volume(stored, "volume.json")


@pytest.mark.parametrize(
    "change",
    [
        {"volume_id": "short"}, {"volume_id": 7}, {"volume_id": ...}, {"pack_bytes": 1},
        {"pack_bytes": 1 << 40}, {"pack_bytes": True}, {"created_ns": "x"}, {"version": 0},
        {"version": ...}, {"version": "1"}, {"kind": "writer"}, {"kind": ["volume"]},
        {"features_refuse": [1]}, {"features_refuse": "x"}, {"created_ns": 1 << 63},
        {"volume_id": "../" * 10 + "ab"}, {"volume_id": "5E" * 16}, {"volume_id": "/" + "a" * 31},
        {"root_uid": 1 << 32}, {"root_gid": -1}, {"root_mode": 0o10000}, {"root_mode": -1},
        {"root_uid": 0.0}, {"root_gid": None}, {"created_ns": -1},
    ],
    ids=str,
)  # fmt: skip
def test_well_sealed_nonsense_is_corrupt(change: dict[str, object]) -> None:
    """A right checksum says that the bytes are whole, not that they make sense."""
    with pytest.raises(Corrupt):
        decode_volume(_changed(encode_volume(VOLUME), **change), "volume.json")


@pytest.mark.parametrize(
    "change",
    [
        {"host": ["x"]}, {"host": ...}, {"pid": "1"}, {"pid": True}, {"pid": -1}, {"epoch": None},
        {"epoch": 1.0}, {"writer": {}}, {"writer": ...}, {"time_ns": []}, {"time_ns": 1 << 64},
    ],
    ids=str,
)  # fmt: skip
def test_a_heartbeat_of_other_types_is_corrupt(change: dict[str, object]) -> None:
    """It is shown to a person, and compared: whoever does that must find what is written there."""
    stored = encode_heartbeat(Heartbeat(host="h", pid=1, epoch=2, writer="ab" * 16, time_ns=3))
    with pytest.raises(Corrupt):
        decode_heartbeat(_changed(stored, **change), "writer")


@pytest.mark.parametrize("depth", [33, 100, *range(850, 1100, 7), 5000, 100_000])
def test_deeply_nested_json_is_corrupt(depth: int) -> None:
    """Python's parser and encoder give up with an error that nobody expects."""
    stored = b'{"kind":"volume","version":1,"a":%b%b}' % (b"[" * depth, b"]" * depth)
    with pytest.raises(Corrupt, match="nested"):
        open_json(stored, "volume", 1, "k")


def test_a_sealed_object_has_one_form() -> None:
    """The checksum is over canonical text: the order of the fields does not matter."""
    assert seal_json({"kind": "x", "version": 1}) == seal_json({"version": 1, "kind": "x"})
    assert open_json(seal_json({"kind": "x", "version": 1, "a": [1, "b"]}), "x", 1, "k") == {
        "kind": "x",
        "version": 1,
        "a": [1, "b"],
    }


# --- keys --------------------------------------------------------------------------------


@given(seq=st.integers(0, 10**20 - 1), epoch=U64, pack=U64, content=HASH)
def test_keys_are_parsed_back_and_no_kind_is_taken_for_another(
    seq: int, epoch: int, pack: int, content: str
) -> None:
    """Reclaim deletes by these parsers: a key of one kind read as another is lost data."""
    keys = {
        parse_log_key: (log_key(seq), seq),
        parse_log_delta_key: (log_delta_key(seq, content), seq),
        parse_pack_key: (pack_key(epoch, pack, content), (epoch, pack)),
        parse_checkpoint_key: (checkpoint_key(seq), seq),
    }
    everything = [key for key, _ in keys.values()]
    everything += [checkpoint_piece_key(content), "volume.json", "writer", "", "log/", "pack/"]
    for key in everything[:-3]:
        check_path(key)
    for parse, (own, value) in keys.items():
        assert parse(own) == value
        assert [key for key in everything if parse(key) is not None] == [own]


@pytest.mark.parametrize(
    "key",
    [
        "log/" + "\u0663" * 20, "checkpoint/" + "\u0663" * 20, "key/" + "\u0663" * 20,
        "delta/" + "\u0663" * 20 + "-" + "a" * 16, "pack/1/+000000000000001-" + "a" * 16,
        "pack/01/" + "0" * 16 + "-" + "a" * 16, "pack/1/0x00000000000001-" + "a" * 16,
        "pack/1/" + "0" * 17 + "-" + "a" * 16, "pack/1/" + "0" * 16 + "-" + "/" * 16,
        "pack/\u0663/" + "0" * 16 + "-" + "a" * 16, "pack/1/" + "0" * 16 + "-" + "A" * 16,
    ],
)  # fmt: skip
def test_a_key_that_is_written_otherwise_is_none_of_ours(key: str) -> None:
    """A second name of a commit would stand beside it in a listing and end who follows it."""
    parsers = (
        parse_log_key, parse_log_delta_key, parse_pack_key, parse_checkpoint_key,
        parse_keyring_key,
    )  # fmt: skip
    assert [parse(key) for parse in parsers] == [None] * len(parsers)


@given(low=st.integers(0, 10**20 - 1), high=st.integers(0, 10**20 - 1))
def test_log_keys_sort_as_their_numbers(low: int, high: int) -> None:
    """A listing after the last known commit must give exactly the newer ones."""
    assert (log_key(low) < log_key(high)) == (low < high)
