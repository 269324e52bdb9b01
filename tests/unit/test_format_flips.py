"""Every decoder against every flipped bit, every truncation, and absurd numbers.

A decoder that lets one of them through serves wrong bytes or dies of an exception that no caller
expects: EIO and a named object are the only acceptable answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from s3fs_banyan.errors import Corrupt, UnsupportedVersion
from s3fs_banyan.format.blob import decode_blob, encode_blob
from s3fs_banyan.format.checkpoint import CheckpointManifest, decode_manifest, encode_manifest
from s3fs_banyan.format.chunk import (
    decode_chunk_header,
    decode_frame,
    decode_frame_table,
    encode_chunk,
)
from s3fs_banyan.format.commit import CommitFooter, decode_footer, encode_footer
from s3fs_banyan.format.pack import PackEntry, decode_pack_tail, encode_pack_tail
from s3fs_banyan.format.record import (
    RECORD_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    SegmentHeader,
    data_verifies,
    decode_record,
    decode_segment_header,
    encode_record,
    encode_segment_header,
    head_continues,
    peek_record,
)
from s3fs_banyan.format.volume import (
    Heartbeat,
    VolumeDescriptor,
    decode_heartbeat,
    decode_volume,
    encode_heartbeat,
    encode_volume,
)
from s3fs_banyan.model import CHUNK_BYTES_MAX, FRAME_BYTES, SetAttributes, Write

CHUNK_ID = 3 << 40 | 17
CHUNK_DATA = b"the same again " * 20 + bytes(range(256))

FOOTER = CommitFooter(
    seq=7,
    epoch=2,
    writer=b"w" * 16,
    predecessor=b"p" * 32,
    chain=0xFEDCBA9876543210,
    op_seq=99,
    time_ns=1_700_000_000_000_000_000,
    dense_from=3,
    kept=(1, 2),
    inline_length=3,
    delta_length=2,
    placements_length=1,
)
COMMIT = b"iiiddp" + encode_footer(FOOTER)


def _whole_chunk(stored: bytes) -> bytes:
    """Decode a chunk by its header, as `check` and rescue do."""
    chunk_id, length, table = decode_chunk_header(stored, "key")
    frames = decode_frame_table(chunk_id, length, table)
    parts = [
        decode_frame(
            chunk_id, index, frame, stored[frame.offset : frame.offset + frame.stored_length], "key"
        )
        for index, frame in enumerate(frames)
    ]
    return b"".join(parts)


def _pack(stored: bytes) -> list[PackEntry]:
    return decode_pack_tail(stored, len(stored), "key")


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One format: a small sample, and what decodes it."""

    name: str
    sample: bytes
    decode: Callable[[bytes], object]


FORMATS = [
    Format(
        name="blob",
        sample=encode_blob(b"abcabcabcabcabcabcabcabcabcabc"),
        decode=lambda b: decode_blob(b, "key"),
    ),
    Format(name="raw blob", sample=encode_blob(b"\x01\x02"), decode=lambda b: decode_blob(b, "k")),
    Format(name="chunk", sample=encode_chunk(CHUNK_ID, CHUNK_DATA)[0], decode=_whole_chunk),
    Format(
        name="pack",
        sample=b"cc" + encode_pack_tail([PackEntry(5, 0, 1, 9), PackEntry(6, 1, 1, 8)]),
        decode=_pack,
    ),
    Format(name="commit", sample=COMMIT, decode=lambda b: decode_footer(b, "key")),
    Format(
        name="checkpoint",
        sample=encode_manifest(
            CheckpointManifest(
                seq=9,
                digest="a" * 64,
                database_bytes=4096,
                database_hash="b" * 64,
                pieces=("c" * 64,),
            )
        ),
        decode=lambda b: decode_manifest(b, "key"),
    ),
    Format(
        name="volume",
        sample=encode_volume(
            VolumeDescriptor(volume_id="0f" * 16, created_ns=1, pack_bytes=1 << 26)
        ),
        decode=lambda b: decode_volume(b, "key"),
    ),
    Format(
        name="heartbeat",
        sample=encode_heartbeat(Heartbeat(host="h", pid=1, epoch=2, writer="ab", time_ns=3)),
        decode=lambda b: decode_heartbeat(b, "key"),
    ),
]
EACH = pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)


def flips(sample: bytes) -> Iterator[bytes]:
    """Give the sample with each single bit flipped."""
    for position in range(len(sample)):
        for bit in range(8):
            damaged = bytearray(sample)
            damaged[position] ^= 1 << bit
            yield bytes(damaged)


@EACH
def test_every_flipped_bit_is_noticed(fmt: Format) -> None:
    """Bits flip on disks and wires; each must end as a named error."""
    right = fmt.decode(fmt.sample)
    # The six bytes before a commit's footer are its sections, which have checksums of their own;
    # those before a pack's index are chunks, likewise.
    unprotected = {"commit": 6, "pack": 2}.get(fmt.name, 0)
    for index, damaged in enumerate(flips(fmt.sample)):
        if index < unprotected * 8:
            assert fmt.decode(damaged) == right
            continue
        with pytest.raises((Corrupt, UnsupportedVersion)):
            fmt.decode(damaged)


@EACH
def test_every_truncation_is_noticed(fmt: Format) -> None:
    """A short object is a damaged object, wherever it ends."""
    for length in range(len(fmt.sample)):
        if fmt.name in {"checkpoint", "volume", "heartbeat"} and length == len(fmt.sample) - 1:
            continue  # the newline at the end of a JSON object carries nothing
        with pytest.raises((Corrupt, UnsupportedVersion)):
            fmt.decode(fmt.sample[:length])


@EACH
def test_bytes_behind_the_end_are_noticed(fmt: Format) -> None:
    """Two objects in one are not the one that was written."""
    if fmt.name == "chunk":
        assert fmt.decode(fmt.sample + b"\0") == CHUNK_DATA  # its place says where it ends
        return
    with pytest.raises((Corrupt, UnsupportedVersion)):
        fmt.decode(fmt.sample + b"\0")


@EACH
@pytest.mark.parametrize("filling", [b"\0", b"\xff", b"{", b"["], ids=repr)
def test_what_is_something_else_is_refused(fmt: Format, filling: bytes) -> None:
    """A wrong object under a right key must not look like a defect of ours."""
    for length in (0, 1, 7, 64, 4096):
        with pytest.raises(Corrupt):
            fmt.decode(filling * length)


# --- the journal, where damage ends a replay instead of raising -----------------------------

OP = Write(2, 4096, True, 5, b"some bytes of a file")
CHAIN = 0x1122334455667788


def _verifies(buffer: bytes, chain: int = CHAIN) -> bool:
    head = peek_record(buffer, 0)
    return (
        head is not None
        and head_continues(buffer, 0, head, chain)
        and data_verifies(buffer, 0, head)
    )


def test_no_damaged_record_verifies() -> None:
    """The chain is the only thing that tells a record from what lies behind the end."""
    for op in (OP, SetAttributes(2, 0o644, None, 7, 9, None, -5, 11)):
        head, data, _ = encode_record(op, 12, 34, 11, CHAIN)
        whole = head + bytes(data)
        assert _verifies(whole)
        assert not _verifies(whole, CHAIN ^ 1)
        assert not any(_verifies(damaged) for damaged in flips(whole))
        assert not any(_verifies(whole[:length]) for length in range(len(whole)))


def test_absurd_lengths_are_no_record() -> None:
    """A length from noise must not make a reader allocate or seek far."""
    assert peek_record(b"\xff" * 200, 0) is None
    assert peek_record(bytes(200), 0) is None
    assert peek_record(b"x" * (RECORD_HEADER_BYTES - 1), 0) is None


def test_no_damaged_segment_header_counts() -> None:
    """A header that does not verify makes the file a free one, never a wrong number."""
    header = SegmentHeader(3, 400, CHAIN, 390, b"v" * 16)
    page = encode_segment_header(header)
    assert len(page) == SEGMENT_HEADER_BYTES
    assert decode_segment_header(page) == header
    used = len(page.rstrip(b"\0"))
    assert all(decode_segment_header(damaged) is None for damaged in flips(page[:used]))
    assert all(decode_segment_header(page[:length]) is None for length in range(72))


def test_a_record_of_a_newer_release_is_refused_by_name() -> None:
    """An upgrade drains the journal first; who did not is told so, and nothing is lost."""
    head, data, _ = encode_record(OP, 1, 0, 0, 0)
    peeked = peek_record(head + bytes(data), 0)
    assert peeked is not None
    for newer in (peeked._replace(version=2), peeked._replace(kind=99)):
        with pytest.raises(UnsupportedVersion):
            decode_record(head + bytes(data), 0, newer)


def test_a_verified_record_whose_fields_disagree_is_corrupt() -> None:
    """A body that does not parse is damage with a name, no exception of the struct module."""
    head, data, _ = encode_record(OP, 1, 0, 0, 0)
    peeked = peek_record(head + bytes(data), 0)
    assert peeked is not None
    for kind in range(1, 13):
        for length in (0, 1, 3):
            with pytest.raises(Corrupt):
                decode_record(head + bytes(data), 0, peeked._replace(kind=kind, body_length=length))


# --- frames ------------------------------------------------------------------------------


def test_a_frame_of_another_chunk_or_number_is_noticed() -> None:
    """Its bytes are intact, but they are not the ones that were asked for."""
    data = b"z" * (FRAME_BYTES * 2)
    stored, table = encode_chunk(CHUNK_ID, data)
    first, second = decode_frame_table(CHUNK_ID, len(data), table)
    body = stored[first.offset : first.offset + first.stored_length]
    assert decode_frame(CHUNK_ID, 0, first, body, "k") == data[:FRAME_BYTES]
    for chunk_id, index, frame in (
        (CHUNK_ID + 1, 0, first),
        (CHUNK_ID, 1, first),
        (CHUNK_ID, 0, second),
    ):
        with pytest.raises(Corrupt):
            decode_frame(chunk_id, index, frame, body, "k")


def test_no_flipped_bit_of_a_frame_table_gives_other_bytes() -> None:
    """The table beside a place has no checksum of its own: the frames must notice."""
    stored, table = encode_chunk(CHUNK_ID, CHUNK_DATA)
    for damaged in flips(table):
        try:
            (frame,) = decode_frame_table(CHUNK_ID, len(CHUNK_DATA), damaged)
            body = stored[frame.offset : frame.offset + frame.stored_length]
            assert decode_frame(CHUNK_ID, 0, frame, body, "k") == CHUNK_DATA
        except (Corrupt, UnsupportedVersion):
            continue


@pytest.mark.parametrize("length", [0, -1, FRAME_BYTES + 1, CHUNK_BYTES_MAX + 1, 1 << 60])
def test_a_frame_table_of_another_length_is_refused(length: int) -> None:
    """A length from a damaged row must not shift every frame behind it."""
    _, table = encode_chunk(CHUNK_ID, CHUNK_DATA)
    with pytest.raises(Corrupt):
        decode_frame_table(CHUNK_ID, length, table)


def test_a_pack_tail_asks_for_more_when_it_is_too_short() -> None:
    """A ranged read of the end may not reach the index: that is no damage."""
    entries = [PackEntry(number, number * 10, 10, 20) for number in range(40)]
    pack = b"c" * 400 + encode_pack_tail(entries)
    with pytest.raises(ValueError, match="must be at least"):
        decode_pack_tail(pack[-100:], len(pack), "key")
    assert decode_pack_tail(pack[400:], len(pack), "key") == entries
