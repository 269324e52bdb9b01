"""Makes the golden files of the format versions, once: `python -m tests.golden.make`.

A file that is there is never written again. Golden files are what released versions left in
people's stores; whoever changes one has changed the past.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from s3fs_banyan.format.blob import encode_blob
from s3fs_banyan.format.checkpoint import encode_manifest
from s3fs_banyan.format.chunk import encode_chunk
from s3fs_banyan.format.commit import CommitFooter, encode_footer
from s3fs_banyan.format.encryption import Cipher
from s3fs_banyan.format.keyring import encode_keyring
from s3fs_banyan.format.pack import encode_pack_tail
from s3fs_banyan.format.record import encode_record, encode_segment_header
from s3fs_banyan.format.volume import encode_heartbeat, encode_volume
from s3fs_banyan.meta.committed import PlacementRow, create_committed, write_placements
from s3fs_banyan.meta.delta import write_delta
from s3fs_banyan.meta.live import create_live
from s3fs_banyan.model import Operation
from tests.golden import samples

DIRECTORY: Final = Path(__file__).parent
MANIFEST: Final = DIRECTORY / "sha256sums"


def segment(ops: tuple[Operation, ...]) -> bytes:
    """Return a journal segment: header and one record for each operation."""
    parts = [encode_segment_header(samples.SEGMENT)]
    chain = samples.CHAIN
    for number, op in enumerate(ops):
        op_seq = samples.FIRST_OP_SEQ + number
        head, data, chain = encode_record(op, op_seq, 100 + number, op_seq - 1, chain)
        parts += [head, bytes(data)]
    return b"".join(parts)


def positions(ops: tuple[Operation, ...]) -> list[int]:
    """Return where each record of the golden segment begins."""
    found, position, chain = [], len(encode_segment_header(samples.SEGMENT)), samples.CHAIN
    for number, op in enumerate(ops):
        head, data, chain = encode_record(op, samples.FIRST_OP_SEQ + number, 0, 0, chain)
        found.append(position)
        position += len(head) + len(data)
    return found


def databases(root: Path) -> dict[str, bytes]:
    """Return the SQLite files of a commit: delta, placements, and committed.db after it."""
    committed = create_committed(root / "committed.db", vfs=None, volume=samples.VOLUME)
    live = create_live(
        root / "live.db", committed.writer(), op_seq=40, chain=1, boot_id="b", volume_id="v"
    )
    places = positions(samples.OPERATIONS)
    for number, op in enumerate(samples.OPERATIONS[:-1]):
        live.apply(op, samples.FIRST_OP_SEQ + number, number, 7, places[number])
    live.end_transaction()
    flip = live.flip_dirty()
    live.end_transaction()
    delta, seal = root / "delta.db", root / "seal.db"
    snapshot = live.prepare_snapshot(root / "committed.db", delta, seal, committed_vfs=None)
    snapshot.freeze()
    write_delta(snapshot, flip)
    live.close(keep=True)
    placements = root / "placements.db"
    chunk = 3 << 40
    stored, frames = encode_chunk(chunk, samples.METADATA)
    row = PlacementRow(chunk, 12 << 16, 0, len(stored), frames)
    packs = [(12 << 16, "log/00000000000000000012", "", len(stored))]
    write_placements(placements, packs, [row])
    committed.apply_commit(delta, placements, samples.COMMIT, b"d" * 32)
    committed.copy_to(root / "checkpoint.db")
    committed.close()
    return {
        f"v1-{name}.db": (root / f"{name}.db").read_bytes()
        for name in ("delta", "placements", "checkpoint")
    }


def _commit(sections: bytes, footer: CommitFooter, cipher: Cipher | None = None) -> bytes:
    return sections + encode_footer(footer, cipher)


def _sealed_chunk(data: bytes) -> bytes:
    return encode_chunk(samples.CHUNK_ID, data, samples.CIPHER)[0]


def _sealed_blob(data: bytes) -> bytes:
    return encode_blob(data, samples.CIPHER, place=samples.DELTA_PLACE)


MAKERS: Final[dict[str, Callable[[], bytes]]] = {
    "v1-segment.bin": lambda: segment(samples.OPERATIONS),
    "v1-segment-rewrite.bin": lambda: segment(samples.REWRITES),
    "v1-chunk-plain.bin": lambda: encode_chunk(samples.CHUNK_ID, samples.CHUNK_PLAIN)[0],
    "v1-chunk-snappy.bin": lambda: encode_chunk(samples.CHUNK_ID, samples.CHUNK_COMPRESSIBLE)[0],
    "v1-blob-plain.bin": lambda: encode_blob(samples.BLOB_PLAIN),
    "v1-blob-snappy.bin": lambda: encode_blob(samples.BLOB_COMPRESSIBLE),
    "v1-pack.bin": lambda: samples.PACK_CHUNKS + encode_pack_tail(samples.PACK_ENTRIES),
    "v1-commit.bin": lambda: _commit(samples.COMMIT_SECTIONS, samples.COMMIT),
    "v1-fence.bin": lambda: _commit(b"", samples.FENCE),
    "v1-checkpoint.json": lambda: encode_manifest(samples.MANIFEST),
    "v1-volume.json": lambda: encode_volume(samples.VOLUME),
    "v1-writer.json": lambda: encode_heartbeat(samples.HEARTBEAT),
    "v1-keyring.json": lambda: encode_keyring(samples.keyring()),
    "v2-chunk-sealed.bin": lambda: _sealed_chunk(samples.CHUNK_PLAIN),
    "v2-chunk-sealed-snappy.bin": lambda: _sealed_chunk(samples.CHUNK_COMPRESSIBLE),
    "v2-blob-sealed.bin": lambda: _sealed_blob(samples.BLOB_PLAIN),
    "v2-blob-sealed-snappy.bin": lambda: _sealed_blob(samples.BLOB_COMPRESSIBLE),
    "v2-commit.bin": lambda: _commit(samples.COMMIT_SECTIONS, samples.COMMIT, samples.CIPHER),
    "v2-fence.bin": lambda: _commit(b"", samples.FENCE, samples.CIPHER),
}


def main() -> int:
    """Write the files that are missing and add their hashes to the manifest."""
    with tempfile.TemporaryDirectory() as directory:
        made = {name: make() for name, make in MAKERS.items()} | databases(Path(directory))
    lines = MANIFEST.read_text(encoding="ascii").splitlines() if MANIFEST.exists() else []
    for name, data in sorted(made.items()):
        path = DIRECTORY / name
        if path.exists():
            continue
        path.write_bytes(data)
        lines.append(f"{hashlib.sha256(data).hexdigest()}  {name}")
    MANIFEST.write_text("".join(f"{line}\n" for line in sorted(lines)), encoding="ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main())
