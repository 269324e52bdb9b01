"""When a pack goes in parts, and what is known of the line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from s3fs_banyan.commit.outbox import Outbox, PackRecord
from s3fs_banyan.commit.pack_buffers import PackBuffer
from s3fs_banyan.commit.sending import Multipart, PackSender, SendPolicy
from s3fs_banyan.errors import Unavailable
from s3fs_banyan.format.keys import pack_key
from s3fs_banyan.remote.base import FileMeta
from s3fs_banyan.remote.transfers import InlineTransfers
from tests.unit.counting_store import CountingStore


class Line(CountingStore):
    """A store that takes time by the byte, and the clock that says so."""

    def __init__(self, bytes_per_s: float) -> None:
        super().__init__(clock=lambda: 0)
        self.now_s = 0.0
        self.bytes_per_s = bytes_per_s
        self.puts = 0
        self.parts = 0

    def write(
        self,
        path: str,
        data: bytes | bytearray | memoryview,
        *,
        if_absent: bool = False,
        storage_class: str = "",
    ) -> FileMeta:
        assert not storage_class
        self.puts += 1
        self.now_s += len(data) / self.bytes_per_s
        return super().write(path, data, if_absent=if_absent)

    def upload_part(self, path: str, upload_id: str, number: int, data: bytes | bytearray) -> str:
        self.parts += 1
        self.now_s += len(data) / self.bytes_per_s
        return super().upload_part(path, upload_id, number, data)

    def sender(self, directory: Path, *, multipart: Multipart = "auto") -> PackSender:
        return PackSender(
            self,
            Outbox(directory),
            policy=SendPolicy(multipart=multipart, part_bytes=1000),
            transfers=InlineTransfers(),
            clock=lambda: self.now_s,
        )


def _send(sender: PackSender, directory: Path, number: int, size: int = 8000) -> PackRecord:
    record = PackRecord(key=pack_key(1, number, f"{number:016x}"), size=size, chain=1)
    Outbox(directory).pack_path(record.key).write_bytes(bytes(size))
    if sender.goes_in_parts(record):
        sender.send_parts(record)
    else:
        pack = PackBuffer()
        pack.load(Outbox(directory).pack_path(record.key))
        sender.send_whole(record, pack)
    sender.note_sent(replace(record, chunks=()))
    return record


@pytest.mark.parametrize(
    ("bytes_per_s", "policy", "puts", "parts"),
    [
        (8000 / 19, "auto", 16, 0),
        (8000 / 21, "auto", 1, 120),
        (8000 / 19, "always", 0, 128),
        (8000 / 21, "never", 16, 0),
    ],
)
def test_a_pack_is_one_put_unless_the_line_is_slow(
    tmp_path: Path, bytes_per_s: float, policy: Multipart, puts: int, parts: int
) -> None:
    """Parts are billed one by one; a PUT that takes long is likely to be broken off."""
    line = Line(bytes_per_s)
    sender = line.sender(tmp_path, multipart=policy)
    for number in range(16):
        _send(sender, tmp_path, number)
    assert (line.puts, line.parts) == (puts, parts)


def test_the_next_life_knows_how_fast_the_line_is(tmp_path: Path) -> None:
    line = Line(100.0)
    _send(line.sender(tmp_path), tmp_path, 1)
    Outbox(tmp_path).tidy()
    _send(line.sender(tmp_path), tmp_path, 2)
    assert (line.puts, line.parts) == (1, 8)


def test_a_put_that_failed_is_repeated_in_parts(tmp_path: Path) -> None:
    """On a line that breaks, what got through shall stay."""
    line = Line(1e9)
    sender = line.sender(tmp_path)
    line.is_away = True
    with pytest.raises(Unavailable):
        _send(sender, tmp_path, 1)
    line.is_away = False
    _send(sender, tmp_path, 1)
    assert line.parts == 8


def test_a_small_pack_never_goes_in_parts(tmp_path: Path) -> None:
    line = Line(1.0)
    sender = line.sender(tmp_path, multipart="always")
    _send(sender, tmp_path, 1, size=1000)
    assert line.parts == 0


@pytest.mark.parametrize(
    ("bytes_per_s", "multipart", "is_quick"),
    [(0, "auto", False), (4000, "auto", False), (4001, "auto", True), (4001, "always", False)],
)
def test_a_pack_stays_in_memory_if_it_is_sent_within_two_seconds(
    tmp_path: Path, bytes_per_s: int, multipart: Multipart, is_quick: bool
) -> None:
    """Nobody knows how fast a line is that was never used."""
    Outbox(tmp_path).store_link(bytes_per_s)
    assert Line(1).sender(tmp_path, multipart=multipart).is_quick(8000) == is_quick
