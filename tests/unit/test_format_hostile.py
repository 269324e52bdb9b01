"""Well-sealed nonsense: bytes whose checksums are right and that no encoder of ours has made.

Whoever can write to the bucket makes them, or a defect does. They end as a named error, take no
memory that they do not justify, and nothing of them is used.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import apsw
import pytest
import snappy

from s3fs_banyan.commit.local import (
    LocalDirectory,
    load_epochs,
    load_identity,
    load_last_cut,
    load_local_keyring,
    load_local_volume,
)
from s3fs_banyan.commit.outbox import PackedChunk, PackRecord
from s3fs_banyan.errors import Corrupt, DataError
from s3fs_banyan.format import blob, chunk, commit, pack, record
from s3fs_banyan.format.checkpoint import CheckpointManifest, decode_manifest, encode_manifest
from s3fs_banyan.format.checksum import xxh3
from s3fs_banyan.format.compression import CODEC_SNAPPY
from s3fs_banyan.format.keyring import (
    DataKey,
    Keyring,
    Secret,
    decode_keyring,
    encode_keyring,
    unwrap,
    wrap,
)
from s3fs_banyan.format.keys import log_delta_key, pack_key
from s3fs_banyan.format.sealed_json import seal_json
from s3fs_banyan.format.volume import (
    Heartbeat,
    VolumeDescriptor,
    decode_heartbeat,
    decode_volume,
    encode_heartbeat,
    encode_volume,
)
from s3fs_banyan.meta.database import make_genesis
from s3fs_banyan.model import (
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
from s3fs_banyan.remote.multipart import PartDone, UploadState
from tests.unit.test_format_flips import CHUNK_DATA, CHUNK_ID, FOOTER

TRIES: Final = 800
"""Of each format, always the same ones."""


# --- commits -------------------------------------------------------------------------------


def sealed_footer(
    *,
    seq: int = 1,
    epoch: int = 1,
    op_seq: int = 1,
    time_ns: int = 1,
    kept_count: int = 0,
    delta_hash: bytes = b"",
) -> bytes:
    """Return a commit that is a footer only, with numbers that the encoder would not take."""
    fixed = commit._FIXED.pack(
        seq, epoch, b"w" * 16, commit.SCHEMA_LEVEL, bytes(32), 1, op_seq, time_ns, 1, 0, 0, 0,
        delta_hash, kept_count,
    )  # fmt: skip
    return commit._with_tail(fixed, commit.COMMIT_VERSION)


@pytest.mark.parametrize("count", [1, commit.KEPT_MAX + 1, 1 << 31, (1 << 32) - 1])
def test_a_footer_without_the_commits_that_it_counts_is_corrupt(count: int) -> None:
    """The count decides how much is read, and how much memory that takes."""
    with pytest.raises(Corrupt, match="kept"):
        commit.decode_footer(sealed_footer(kept_count=count), "log/1")


def test_a_footer_with_more_kept_commits_than_fit_is_corrupt() -> None:
    """No encoder writes them, so nothing was tried with so many."""
    body = sealed_footer(kept_count=commit.KEPT_MAX + 1)[: commit._FIXED.size]
    stored = commit._with_tail(body + bytes(8 * (commit.KEPT_MAX + 1)), commit.COMMIT_VERSION)
    with pytest.raises(Corrupt, match="kept"):
        commit.decode_footer(stored, "log/1")


@pytest.mark.parametrize(
    "delta_hash",
    [b"\xff" * 64, b"../../../../etc/passwd", b"a" * 63, b"A" * 64, b"a" * 32 + b"\0" * 32, b"\0a"],
    ids=repr,
)
def test_a_delta_hash_that_is_none_is_corrupt(delta_hash: bytes) -> None:
    """It becomes part of the key that is read next."""
    with pytest.raises(Corrupt, match="delta_hash"):
        commit.decode_footer(sealed_footer(delta_hash=delta_hash), "log/1")


@pytest.mark.parametrize(("epoch", "op_seq"), [(1 << 23, 1), (1 << 63, 1), (1, 1 << 63)])
def test_a_footer_whose_numbers_no_database_can_hold_is_corrupt(epoch: int, op_seq: int) -> None:
    """A mount that applied it would end, and so would every mount after it."""
    with pytest.raises(Corrupt, match="out of range"):
        commit.decode_footer(sealed_footer(epoch=epoch, op_seq=op_seq), "log/1")


@pytest.mark.parametrize("number", ["seq", "op_seq", "time_ns"])
def test_a_footer_that_leaves_no_room_for_the_next_commit_is_corrupt(number: str) -> None:
    """The next one counts on from it: applied, this would be the volume's last commit."""

    def decoded(count: int) -> commit.CommitFooter:
        numbers = {"seq": 1, "op_seq": 1, "time_ns": 1, number: count}
        return commit.decode_footer(
            sealed_footer(seq=numbers["seq"], op_seq=numbers["op_seq"], time_ns=numbers["time_ns"]),
            "log/1",
        )

    with pytest.raises(Corrupt, match="out of range"):
        decoded((1 << 63) - 1)
    room = (1 << 63) - (1 << 32) - 1
    assert getattr(decoded(room), number) == room


# --- what Snappy claims ----------------------------------------------------------------------


def varint(length: int) -> bytes:
    """Return a length as Snappy's data begins with it."""
    out = bytearray()
    while length > 127:
        out.append(length & 127 | 128)
        length >>= 7
    return bytes([*out, length])


def expanding(length: int) -> bytes:
    """Return sound Snappy data of `length` equal bytes, as dense as it can be."""
    whole, rest = divmod(length - 1, 64)
    copies = b"\xfe\x01\x00" * whole + (bytes([rest - 1 << 2 | 2]) + b"\x01\x00" if rest else b"")
    return varint(length) + b"\0a" + copies


def sealed_blob(packed: bytes, raw_length: int) -> bytes:
    """Return a blob of Snappy data with any length in its header."""
    head = (blob.BLOB_MAGIC, blob.BLOB_VERSION, CODEC_SNAPPY, 0, raw_length, len(packed))
    checksum = xxh3(packed, seed=xxh3(blob._HEAD.pack(*head, 0)))
    return blob._HEAD.pack(*head, checksum) + packed


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of what Snappy's decoder was given: then it takes the memory that they claim."""
    real, lengths = snappy.uncompress, list[int]()

    def uncompress(packed: bytes) -> bytes:
        lengths.append(len(packed))
        return bytes(real(packed))

    monkeypatch.setattr(snappy, "uncompress", uncompress)
    return lengths


@pytest.mark.parametrize(
    ("packed", "raw_length"),
    [
        (expanding(1 << 20), 10),
        (expanding(1 << 20), (1 << 20) - 1),
        (varint(1 << 20) + b"\x00a", 1 << 20),
        (varint(1 << 31) + b"\x00a" * 1000, 1 << 31),
        (varint((1 << 32) - 1) + b"\x00a", 10),
        (b"", 0),
        (b"\xff" * 10, 10),
    ],
    ids=["ten", "one less", "header alone", "2 GiB", "4 GiB", "nothing", "no length"],
)
def test_a_blob_is_not_decoded_unless_its_length_is_right(
    packed: bytes, raw_length: int, decoded: list[int]
) -> None:
    """The decoder believes its own header: 12 MB took half a GiB, and could take 4 GiB."""
    with pytest.raises(Corrupt, match="key"):
        blob.decode_blob(sealed_blob(packed, raw_length), "key")
    assert decoded == []


def test_the_densest_snappy_is_decoded(decoded: list[int]) -> None:
    """The bound refuses nothing that an encoder may make."""
    packed = expanding(1 << 20)
    assert blob.decode_blob(sealed_blob(packed, 1 << 20), "key") == b"a" * (1 << 20)
    assert decoded == [len(packed)]
    with pytest.raises(Corrupt, match="at most"):
        blob.decode_blob(sealed_blob(packed, 1 << 20), "key", raw_bytes_max=(1 << 20) - 1)
    assert decoded == [len(packed)]


@pytest.mark.parametrize("claimed", [FRAME_BYTES * 21, FRAME_BYTES + 1, FRAME_BYTES - 1])
def test_a_frame_is_not_decoded_unless_its_length_is_right(
    claimed: int, decoded: list[int]
) -> None:
    """A read serves many frames at once."""
    packed = expanding(claimed)
    checksum = xxh3(packed, seed=chunk.frame_seed(1, 0))
    frame = chunk.Frame(0, len(packed), FRAME_BYTES, CODEC_SNAPPY, checksum)
    with pytest.raises(Corrupt, match="key"):
        chunk.decode_frame(1, 0, frame, packed, "key")
    assert decoded == []


# --- whatever it is, it is a named error -------------------------------------------------------

EXTREMES: Final = (0, 1, 0x7F, 0x80, 0xFF, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1)


def spoiled(rng: random.Random, sound: bytes) -> bytes:
    """Return bytes that were flipped, cut, extended, or got another number somewhere."""
    damaged = bytearray(sound)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(damaged) + 1)
        match rng.randrange(6):
            case 0:
                del damaged[at:]
            case 1:
                damaged[at:at] = rng.randbytes(rng.randint(1, 40))
            case 2:
                del damaged[at : at + rng.randint(1, 9)]
            case 3 if damaged:
                damaged[min(at, len(damaged) - 1)] ^= 1 << rng.randrange(8)
            case _:
                size = rng.choice((1, 2, 4, 8))
                value = rng.choice(EXTREMES) & (1 << 8 * size) - 1
                damaged[at : at + size] = value.to_bytes(size, "little")
    return bytes(damaged)


NONSENSE: Final[tuple[object, ...]] = (
    None, True, -1, 0, 1 << 31, 1 << 63, 1 << 64, 10**400, 1.5, 1e999, float("nan"), "", "1",
    "x" * 64, "0" * 64, "\ud800", "../" * 20, "\u0663" * 20, [], [[]], [1, 2, 3, 4, "zz"], {},
    {"a": 1}, ["", None],
)  # fmt: skip


def other_values(rng: random.Random, value: object) -> object:
    """Return a JSON value in which something, somewhere, is another thing or gone."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        changed = dict(value)
        name = rng.choice(sorted(changed))
        if rng.random() < 0.1:
            del changed[name]
        else:
            changed[name] = other_values(rng, changed[name])
        return changed
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [*value[:at], other_values(rng, value[at]), *value[at + 1 :]]
    return rng.choice(NONSENSE)


def spoiled_json(rng: random.Random, sound: bytes) -> bytes:
    """Return JSON with other values, or text that was spoiled."""
    if rng.random() < 0.3:
        return spoiled(rng, sound)
    return json.dumps(other_values(rng, json.loads(sound))).encode()


def reseal_json(text: bytes) -> bytes:
    """Return a JSON object with the checksum of what is in it now."""
    try:
        body = json.loads(text)
        del body["checksum"]
        return seal_json(body)
    except (ValueError, KeyError, TypeError):
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How to spoil a format, make its checksum right again, and do what its readers do."""

    name: str
    sound: bytes
    use: Callable[[bytes], object]
    seal: Callable[[bytes], bytes] = bytes
    spoil: Callable[[random.Random, bytes], bytes] = spoiled


def _seal_blob(spoilt: bytes) -> bytes:
    if len(spoilt) < blob._HEAD.size:
        return spoilt
    *head, _, _ = blob._HEAD.unpack_from(spoilt)
    packed = spoilt[blob._HEAD.size :]
    head.append(len(packed))
    checksum = xxh3(packed, seed=xxh3(blob._HEAD.pack(*head, 0)))
    return blob._HEAD.pack(*head, checksum) + packed


def _seal_pack(spoilt: bytes) -> bytes:
    at = len(spoilt) - pack.FOOTER_BYTES
    if at < 0:
        return spoilt
    count, version, flags, magic, _ = pack._FOOTER.unpack_from(spoilt, at)
    index = spoilt[max(0, at - count * pack._ENTRY.size) : at]
    footer = (count, version, flags, magic)
    checksum = xxh3(index + pack._FOOTER.pack(*footer, 0))
    return spoilt[:at] + pack._FOOTER.pack(*footer, checksum)


def _use_commit(stored: bytes) -> None:
    footer = commit.decode_footer(stored, "key")
    commit.commit_sections(stored, footer)
    commit.commit_digest(stored)
    if footer.delta_hash:
        check_path(log_delta_key(footer.seq, footer.delta_hash))
    without = replace(footer, inline_length=0)
    assert commit.decode_footer(commit.encode_footer(without), "k") == without


def _seal_chunk(spoilt: bytes) -> bytes:
    """Seal the header, whatever it counts, and each frame that is there."""
    if len(spoilt) < chunk._HEAD.size:
        return spoilt
    *_, count, chunk_id, _ = chunk._HEAD.unpack_from(spoilt)
    end = chunk._HEAD.size + count * chunk._FRAME.size
    whole = bytearray(spoilt)
    offset = end + chunk._SUM.size
    for index in range(count):
        row = chunk._HEAD.size + index * chunk._FRAME.size
        if row + chunk._FRAME.size > len(whole):
            return bytes(whole)
        stored_length, codec, cipher, spare, _ = chunk._FRAME.unpack_from(whole, row)
        checksum = xxh3(
            bytes(whole[offset : offset + stored_length]), seed=chunk.frame_seed(chunk_id, index)
        )
        chunk._FRAME.pack_into(whole, row, stored_length, codec, cipher, spare, checksum)
        offset += stored_length
    if end + chunk._SUM.size <= len(whole):
        chunk._SUM.pack_into(whole, end, xxh3(bytes(whole[:end])))
    return bytes(whole)


def _use_chunk(stored: bytes) -> None:
    chunk_id, length, table = chunk.decode_chunk_header(stored, "key")
    for index, frame in enumerate(chunk.decode_frame_table(chunk_id, length, table)):
        body = stored[frame.offset : frame.offset + frame.stored_length]
        chunk.decode_frame(chunk_id, index, frame, body, "key")


def _use_table(table: bytes) -> None:
    stored, _ = chunk.encode_chunk(CHUNK_ID, CHUNK_DATA)
    for index, frame in enumerate(chunk.decode_frame_table(CHUNK_ID, len(CHUNK_DATA), table)):
        body = stored[frame.offset : frame.offset + frame.stored_length]
        chunk.decode_frame(CHUNK_ID, index, frame, body, "key")


def _use_record(stored: bytes) -> None:
    head = record.peek_record(stored, 0)
    if head is not None and record.head_continues(stored, 0, head, 0):
        record.decode_record(stored, 0, head)


def _seal_record(spoilt: bytes) -> bytes:
    head = record.peek_record(spoilt, 0)
    if head is None:
        return spoilt
    size = record._HEADER.size
    body = spoilt[record.RECORD_HEADER_BYTES : record.RECORD_HEADER_BYTES + head.body_length]
    checksum = record._CHECKSUM.pack(xxh3(spoilt[:size] + body))
    return spoilt[:size] + checksum + spoilt[record.RECORD_HEADER_BYTES :]


def _seal_segment(spoilt: bytes) -> bytes:
    size = record._SEGMENT.size
    return spoilt[:size] + record._CHECKSUM.pack(xxh3(spoilt[:size])) + spoilt[size + 8 :]


def _seal_outbox(spoilt: bytes) -> bytes:
    return f"{xxh3(spoilt):016x}\n".encode() + spoilt


OPERATIONS: Final[tuple[Operation, ...]] = (
    BeginEpoch(3, bytes(16)), Cut(5), Make(1, b"a", 2, 0o100644, 0, 0, 0, b"target", 5),
    Link(2, 1, b"b", 5), Unlink(1, b"b", 5), Rmdir(1, b"c", 5), Rename(1, b"a", 1, b"b", False, 5),
    Write(2, 0, False, 5, b"data"), Rewrite(2, 0, b"data"),
    SetAttributes(2, 1, None, 1, 1, 1, None, 5), SetXattr(2, b"user.a", b"v", 5),
    RemoveXattr(2, b"user.a", 5), Reap(2, 5),
)  # fmt: skip


def _use_volume(stored: bytes) -> None:
    volume = decode_volume(stored, "key")
    at = Path("/cache") / volume.volume_id
    assert at.resolve().parent == Path("/cache")
    connection = apsw.Connection(":memory:")
    make_genesis(connection, volume)
    connection.close()


def _use_keyring(stored: bytes) -> None:
    ring = decode_keyring(stored, "key")
    if all(slot.scrypt_n * slot.scrypt_r * slot.scrypt_p < 1 << 12 for slot in ring.slots):
        unwrap(ring, [Secret(passphrase="another horse battery"), Secret(key_file=bytes(41))])


def _record(op: Operation) -> bytes:
    head, data, _ = record.encode_record(op, 1, 0, 0, 0)
    return head + bytes(data)


def _keyring() -> bytes:
    key = DataKey(key=bytes(32), domain=bytes(16))
    secrets = (Secret(passphrase="correct horse battery"), Secret(key_file=bytes(40)))
    slots = tuple(wrap(key, secret, lambda count: bytes(count), scrypt_n=2) for secret in secrets)
    ring = Keyring(volume_id="5e" * 16, domain="00" * 16, generation=1, created_ns=1, slots=slots)
    return encode_keyring(ring)


PACK_KEY: Final = pack_key(3, 5, "ab" * 8)
UPLOAD: Final = UploadState(
    path=PACK_KEY, upload_id="u", file_size=1000, part_size=600,
    parts=(PartDone(number=1, size=600, md5="m", etag="e"),),
)  # fmt: skip
OUTBOX: Final = PackRecord(
    key=PACK_KEY, size=1000, chain=1, upload=UPLOAD,
    chunks=(PackedChunk(2, 0, 900, 65_536, b"\0\xff"),),
)  # fmt: skip
FORMATS: Final = [
    Format(
        name="blob", sound=blob.encode_blob(b"abc" * 99), seal=_seal_blob,
        use=lambda b: blob.decode_blob(b, "key"),
    ),
    Format(
        name="chunk", sound=chunk.encode_chunk(CHUNK_ID, CHUNK_DATA)[0], seal=_seal_chunk,
        use=_use_chunk,
    ),
    Format(name="frame table", sound=chunk.encode_chunk(CHUNK_ID, CHUNK_DATA)[1], use=_use_table),
    Format(
        name="pack", seal=_seal_pack,
        sound=b"cc" + pack.encode_pack_tail([pack.PackEntry(5, 0, 1, 9)] * 2),
        use=lambda b: pack.decode_pack_tail(b, len(b), "key"),
    ),
    Format(
        name="commit", use=_use_commit, seal=lambda b: commit._with_tail(b, commit.COMMIT_VERSION),
        sound=commit._body(
            replace(FOOTER, inline_length=0, delta_length=0, placements_length=0), FOOTER.chain
        ),
    ),
    Format(
        name="checkpoint", seal=reseal_json, spoil=spoiled_json,
        sound=encode_manifest(
            CheckpointManifest(
                seq=9, digest="a" * 64, database_bytes=1, database_hash="b" * 64, pieces=("c" * 64,)
            )
        ),
        use=lambda b: decode_manifest(b, "key"),
    ),
    Format(
        name="volume", seal=reseal_json, spoil=spoiled_json,
        sound=encode_volume(
            VolumeDescriptor(volume_id="0f" * 16, created_ns=1, pack_bytes=1 << 26)
        ),
        use=_use_volume,
    ),
    Format(
        name="heartbeat", seal=reseal_json, spoil=spoiled_json,
        sound=encode_heartbeat(Heartbeat(host="h", pid=1, epoch=2, writer="ab", time_ns=3)),
        use=lambda b: decode_heartbeat(b, "key"),
    ),
    Format(
        name="keyring", seal=reseal_json, spoil=spoiled_json, sound=_keyring(),
        use=_use_keyring,
    ),
    Format(
        name="segment", seal=_seal_segment, use=record.decode_segment_header,
        sound=record.encode_segment_header(record.SegmentHeader(3, 400, 7, 390, b"v" * 16))[:80],
    ),
    Format(
        name="outbox", seal=_seal_outbox, spoil=spoiled_json,
        sound=OUTBOX.encode().partition(b"\n")[2], use=lambda b: PackRecord.decode(b, "name"),
    ),
    Format(
        name="upload", spoil=spoiled_json, sound=UPLOAD.encode(),
        use=lambda b: UploadState.decode(b, "name"),
    ),
    *(
        Format(
            name=type(op).__name__, sound=_record(op), seal=_seal_record, use=_use_record,
        )
        for op in OPERATIONS
    ),
]  # fmt: skip


def use(fmt: Format, stored: bytes) -> bool:
    """Do what readers do; tells whether it was refused, by an error that they expect."""
    try:
        fmt.use(stored)
    except DataError:
        return True
    return False


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_spoiled_bytes_with_a_right_checksum_are_refused_by_name(fmt: Format) -> None:
    """Anything else is a traceback for the operator, or the end of a mount that could go on."""
    assert not use(fmt, fmt.seal(fmt.sound))
    rng = random.Random(fmt.name)
    refused = [use(fmt, fmt.seal(fmt.spoil(rng, fmt.sound))) for _ in range(TRIES)]
    assert any(refused) or fmt.name == "segment"


# --- files of the local directory ------------------------------------------------------------

FILES: Final[dict[str, tuple[bytes, Callable[[LocalDirectory], object]]]] = {
    "identity.json": (
        json.dumps({"volume_id": "5e" * 16, "writer": "ab" * 16, "directory_ino": 7}).encode(),
        load_identity,
    ),
    "epochs.json": (b'["123", "18446744073709551615"]', load_epochs),
    "last-cut": (b"4711", load_last_cut),
    "volume.json": (
        encode_volume(VolumeDescriptor(volume_id="0f" * 16, created_ns=1, pack_bytes=1 << 26)),
        load_local_volume,
    ),
    "keyring.json": (_keyring(), load_local_keyring),
}


@pytest.mark.parametrize("name", FILES)
def test_spoiled_local_files_are_refused_by_name(tmp_path: Path, name: str) -> None:
    """They have been on somebody's disk for years."""
    local = LocalDirectory(root=tmp_path)
    sound, load = FILES[name]
    rng = random.Random(name)
    (tmp_path / name).write_bytes(sound)
    load(local)
    for _ in range(TRIES // 3):
        spoil = spoiled if name == "last-cut" else spoiled_json
        text = spoil(rng, sound)
        (tmp_path / name).write_bytes(reseal_json(text) if rng.random() < 0.5 else text)
        with contextlib.suppress(DataError):
            load(local)


@pytest.mark.parametrize(
    "change",
    [
        {"volume_id": "../" * 10 + "ab"}, {"volume_id": 7}, {"writer": "x" * 32}, {"writer": None},
        {"directory_ino": "7"}, {"directory_ino": -1},
    ],
    ids=str,
)  # fmt: skip
def test_an_identity_of_other_types_is_corrupt(tmp_path: Path, change: dict[str, object]) -> None:
    """The writer's id goes into every footer, so a wrong one would end the mount much later."""
    body = {**json.loads(FILES["identity.json"][0]), **change}
    (tmp_path / "identity.json").write_bytes(json.dumps(body).encode())
    with pytest.raises(Corrupt, match=r"identity\.json"):
        load_identity(LocalDirectory(root=tmp_path))


@pytest.mark.parametrize(
    "content", [b"7", b'{"1": 2}', b"[1]", b'["x"]', b'["-1"]', b"[" * 5000, b"\xff", b""], ids=repr
)
def test_a_list_of_epochs_that_is_none_is_corrupt(tmp_path: Path, content: bytes) -> None:
    """It says whose history this is: that is never guessed."""
    (tmp_path / "epochs.json").write_bytes(content)
    with pytest.raises(Corrupt, match=r"epochs\.json"):
        load_epochs(LocalDirectory(root=tmp_path))


@pytest.mark.parametrize("content", [b"\xff", b"-1", b"9" * 5000, "\u0663".encode(), b""], ids=repr)
def test_a_last_cut_that_is_none_is_none(tmp_path: Path, content: bytes) -> None:
    """Then no cut is known to be published, and the journal must show it."""
    (tmp_path / "last-cut").write_bytes(content)
    assert load_last_cut(LocalDirectory(root=tmp_path)) == 0
