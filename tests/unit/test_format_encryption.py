"""Sealed frames, blobs and footers: what is changed or moved does not decrypt.

Broken, whoever can write to the store writes into people's files, or reads them.
"""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from s3fs_banyan.errors import Corrupt, UnsupportedVersion
from s3fs_banyan.format.blob import decode_blob, delta_place, encode_blob, placements_place
from s3fs_banyan.format.checksum import xxh3
from s3fs_banyan.format.chunk import (
    Frame,
    decode_chunk_header,
    decode_frame,
    decode_frame_table,
    encode_chunk,
    frame_place,
    frame_seed,
)
from s3fs_banyan.format.commit import CommitFooter, commit_digest, decode_footer, encode_footer
from s3fs_banyan.format.encryption import SALT_BYTES, SEALED_EXTRA_BYTES, Cipher
from s3fs_banyan.model import FRAME_BYTES

KEY = bytes(range(32))
DOMAIN = bytes(range(50, 66))
CIPHER = Cipher(KEY, DOMAIN)
OTHERS = {
    "another key": Cipher(bytes(32), DOMAIN),
    "another volume": Cipher(KEY, bytes(16)),
}
CHUNK = 3 << 40 | 17
DATA = b"frame one " * 6554 + b"the second frame"

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
SECTIONS = b"iiiddp"


def frames_of(stored: bytes) -> list[tuple[Frame, bytes]]:
    """Return (row of the table, stored bytes) of each frame."""
    chunk, length, table = decode_chunk_header(stored, "k")
    frames = decode_frame_table(chunk, length, table)
    return [(frame, stored[frame.offset : frame.offset + frame.stored_length]) for frame in frames]


def with_checksum(frame: Frame, chunk: int, index: int, stored: bytes) -> Frame:
    """Return the row that an attacker would write: checksums have no key."""
    checksum = xxh3(stored, seed=frame_seed(chunk, index))
    return frame._replace(checksum=checksum, stored_length=len(stored))


def test_a_sealed_message_is_what_the_document_says() -> None:
    """Made again step by step from docs/format/encryption.md, for whoever needs to rescue data."""

    def sub_key(purpose: bytes) -> bytes:
        info = b"s3fs-banyan 1 " + purpose
        return HKDF(algorithm=SHA256(), length=32, salt=DOMAIN, info=info).derive(KEY)

    place = struct.pack("<8sQHBI", b"frame 1\0", CHUNK, 3, 1, 500)
    mac = HMAC(sub_key(b"frame salt"), SHA256())
    mac.update(struct.pack("<Q", len(place)) + place + b"plain text")
    salt = mac.finalize()[:16]
    message_key = HKDFExpand(SHA256(), 32, salt).derive(sub_key(b"frame key"))
    wanted = salt + AESGCM(message_key).encrypt(bytes(12), b"plain text", place)
    assert place == frame_place(CHUNK, 3, 1, 500)
    assert CIPHER.frames.seal(place, b"plain text") == wanted
    assert CIPHER.frames.open(place, wanted, "frame", "k") == b"plain text"


def test_frames_come_back_and_nothing_of_them_shows() -> None:
    """A chunk of two frames; the stored bytes hold neither the text nor its compressed form."""
    stored, table = encode_chunk(CHUNK, DATA, CIPHER)
    plain = encode_chunk(CHUNK, DATA)[0]
    parts = [
        decode_frame(CHUNK, index, frame, body, "k", CIPHER)
        for index, (frame, body) in enumerate(frames_of(stored))
    ]
    assert b"".join(parts) == DATA
    assert decode_chunk_header(stored, "k")[2] == table
    assert b"frame" not in stored
    assert len(stored) == len(plain) + 2 * SEALED_EXTRA_BYTES


def test_every_changed_bit_of_a_sealed_message_is_noticed() -> None:
    """Salt, ciphertext and tag alike, whoever repairs the checksums."""
    place = frame_place(CHUNK, 0, 0, 20)
    sealed = CIPHER.frames.seal(place, b"twenty bytes of text")
    for at in range(len(sealed) * 8):
        changed = bytearray(sealed)
        changed[at // 8] ^= 1 << at % 8
        with pytest.raises(Corrupt, match="does not decrypt"):
            CIPHER.frames.open(place, bytes(changed), "frame", "k")
    for length in range(len(sealed)):
        with pytest.raises(Corrupt):
            CIPHER.frames.open(place, sealed[:length], "frame", "k")


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_a_frame_of_another_volume_does_not_decrypt(other: str) -> None:
    """Objects swapped between two volumes of one bucket."""
    (frame, body), _ = frames_of(encode_chunk(CHUNK, DATA, OTHERS[other])[0])
    with pytest.raises(Corrupt, match="does not decrypt"):
        decode_frame(CHUNK, 0, frame, body, "k", CIPHER)


@pytest.mark.parametrize(("chunk", "index"), [(CHUNK + 1, 0), (CHUNK, 1)])
def test_a_frame_in_another_place_does_not_decrypt(chunk: int, index: int) -> None:
    """An attacker repairs the checksum, which has no key; the tag cannot be repaired."""
    (frame, body), _ = frames_of(encode_chunk(CHUNK, DATA, CIPHER)[0])
    moved = with_checksum(frame, chunk, index, body)
    with pytest.raises(Corrupt, match="does not decrypt"):
        decode_frame(chunk, index, moved, body, "k", CIPHER)


@pytest.mark.parametrize("change", [{"codec": 0}, {"raw_length": FRAME_BYTES - 1}], ids=str)
def test_what_a_frame_table_says_is_bound_to_the_frame(change: dict[str, int]) -> None:
    """Else compressed bytes could be served as they are, or a frame be cut short."""
    (frame, body), _ = frames_of(encode_chunk(CHUNK, DATA, CIPHER)[0])
    with pytest.raises(Corrupt, match="does not decrypt"):
        decode_frame(CHUNK, 0, frame._replace(**change), body, "k", CIPHER)


def test_plain_and_encrypted_are_not_taken_for_each_other() -> None:
    """A plain frame in an encrypted volume was put there by someone else."""
    (plain, plain_body), _ = frames_of(encode_chunk(CHUNK, DATA)[0])
    (sealed, sealed_body), _ = frames_of(encode_chunk(CHUNK, DATA, CIPHER)[0])
    with pytest.raises(Corrupt, match="is not encrypted"):
        decode_frame(CHUNK, 0, plain, plain_body, "k", CIPHER)
    with pytest.raises(Corrupt, match="is encrypted"):
        decode_frame(CHUNK, 0, sealed, sealed_body, "k")
    with pytest.raises(UnsupportedVersion, match="cipher"):
        decode_frame(CHUNK, 0, sealed._replace(cipher=2), sealed_body, "k", CIPHER)
    place = delta_place(1)
    with pytest.raises(Corrupt, match="not encrypted"):
        decode_blob(encode_blob(b"rows"), "k", CIPHER, place=place)
    with pytest.raises(Corrupt, match="is encrypted"):
        decode_blob(encode_blob(b"rows", CIPHER, place=place), "k")
    with pytest.raises(Corrupt, match="not of an encrypted"):
        decode_footer(SECTIONS + encode_footer(FOOTER), "k", CIPHER)
    with pytest.raises(Corrupt, match="of an encrypted"):
        decode_footer(SECTIONS + encode_footer(FOOTER, CIPHER), "k")


def test_a_key_and_nonce_serve_one_message_only() -> None:
    """Chunk ids rewind after a power cut; the salt, and so the key, follows the bytes."""
    salts: dict[bytes, tuple[int, int, bytes]] = {}
    for chunk in range(CHUNK, CHUNK + 40):
        for version in range(5):
            data = b"%d" % version * 10
            ((_, body),) = frames_of(encode_chunk(chunk, data, CIPHER)[0])
            salts[body[:SALT_BYTES]] = (chunk, version, body)
    assert len(salts) == 40 * 5
    for chunk, version, body in salts.values():
        again = encode_chunk(chunk, b"%d" % version * 10, CIPHER)[0]
        assert frames_of(again)[0][1] == body


def test_equal_files_do_not_look_equal() -> None:
    """Only the same place shows that it holds the same bytes again."""
    bodies = {frames_of(encode_chunk(n, b"equal", CIPHER)[0])[0][1][SALT_BYTES:] for n in (1, 2)}
    assert len(bodies) == 2


def test_blobs_are_bound_to_what_they_are() -> None:
    """A delta replayed as a later one would bring deleted files back."""
    delta = encode_blob(b"rows " * 100, CIPHER, place=delta_place(7))
    assert decode_blob(delta, "k", CIPHER, place=delta_place(7)) == b"rows " * 100
    assert b"rows" not in delta
    for place in (delta_place(8), placements_place(7), "checkpoint piece"):
        with pytest.raises(Corrupt, match="does not decrypt"):
            decode_blob(delta, "k", CIPHER, place=place)
    for other in OTHERS.values():
        with pytest.raises(Corrupt, match="does not decrypt"):
            decode_blob(delta, "k", other, place=delta_place(7))
    with pytest.raises(ValueError, match="place"):
        encode_blob(b"rows", CIPHER)


def test_equal_pieces_are_equal_blobs() -> None:
    """Or every checkpoint would send the whole database again."""
    first, second = (encode_blob(b"page" * 99, CIPHER, place="checkpoint piece") for _ in "ab")
    assert first == second


def test_a_footer_comes_back_and_hides_the_checksum_of_the_journal() -> None:
    """`chain` has no key: in the clear it would let a reader of the store test guesses."""
    commit = SECTIONS + encode_footer(FOOTER, CIPHER)
    assert decode_footer(commit, "k", CIPHER) == FOOTER
    assert FOOTER.chain.to_bytes(8, "little") not in commit
    assert len(commit_digest(commit)) == 32


@pytest.mark.parametrize(
    "change",
    [{"seq": 8}, {"epoch": 9}, {"kept": (1,)}, {"predecessor": b"q" * 32}, {"dense_from": 7}],
    ids=str,
)
def test_a_changed_footer_is_noticed(change: dict[str, object]) -> None:
    """An attacker repairs checksum and length; the MAC is still that of the true footer."""
    mac = encode_footer(FOOTER, CIPHER)[-24 - 32 : -24]
    forged = encode_footer(replace(FOOTER, **change), CIPHER)  # type: ignore[arg-type]
    body = forged[: -24 - 32] + mac
    tail = struct.Struct("<QII8s")
    _, length, version, magic = tail.unpack(forged[-24:])
    checksum = xxh3(body + tail.pack(0, length, version, magic))
    with pytest.raises(Corrupt, match="MAC"):
        decode_footer(SECTIONS + body + tail.pack(checksum, length, version, magic), "k", CIPHER)


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_a_footer_of_another_volume_is_noticed(other: str) -> None:
    """A whole log copied over from another volume."""
    with pytest.raises(Corrupt, match="MAC"):
        decode_footer(SECTIONS + encode_footer(FOOTER, OTHERS[other]), "k", CIPHER)


def test_hashes_of_plain_text_are_keyed() -> None:
    """And still tell one database from another."""
    first, second = "ab" * 32, "cd" * 32
    assert len({first, second, CIPHER.hash_hex(first), CIPHER.hash_hex(second)}) == 4
    assert CIPHER.hash_hex(first) != OTHERS["another key"].hash_hex(first)


def test_a_cipher_does_not_show_its_key() -> None:
    """A traceback with local variables, a log line, an assertion that failed."""
    assert KEY.hex() not in repr(CIPHER) + str(CIPHER)
    assert "data_key" not in repr(CIPHER)
    again = Cipher.from_plain_values(CIPHER.plain_values())
    assert again.frames.seal(b"p", b"x") == CIPHER.frames.seal(b"p", b"x")
