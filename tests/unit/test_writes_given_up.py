"""A write that was given up may go on by itself: it sends its own bytes and no other pack's."""

from __future__ import annotations

import threading

import pytest

from s3fs_banyan.commit.pack_buffers import PackBuffer, PackBuffers
from s3fs_banyan.remote import latency
from s3fs_banyan.remote.hedging import HedgeLayer
from s3fs_banyan.remote.latency import ANSWERS_MIN, LatencyBook
from s3fs_banyan.remote.layers import RetryLayer
from tests.unit.scripted_http import Exchange, md5_of, s3_store

MIB = 1 << 20
SIZE = 16 * MIB
"""More than all buffers between the store and a script hold."""


def fill(buffer: PackBuffer, digit: bytes, size: int) -> None:
    """Make it a pack of so many times the same digit."""
    buffer.add(digit * size)
    buffer.finish()


@pytest.mark.parametrize("next_size", [SIZE, SIZE - 5])
def test_a_write_that_was_given_up_sends_nothing_of_the_next_pack(
    next_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may land last, and not every store compares what came with the MD5 that was sent."""
    monkeypatch.setattr(latency, "CUT_S_MIN", 0.3)
    puts: list[bytes] = []
    count = 0
    goes_on, landed = threading.Event(), threading.Event()

    def script(exchange: Exchange) -> None:
        nonlocal count
        count += 1
        is_first = count == 1
        data = exchange.rfile.read(MIB)
        if is_first:
            goes_on.wait(30)
        data += exchange.rfile.read(SIZE - len(data))
        puts.append(data)
        if is_first:
            landed.set()
        exchange.answer(200, ETag=f'"{md5_of(data)}"')

    book = LatencyBook()
    for _ in range(ANSWERS_MIN):
        book.answered("write", SIZE, 0.02)
    with s3_store(script, connect_timeout_s=60) as store:
        patient = RetryLayer(HedgeLayer(store, threads_max=8, book=book), deadline_s=60)
        buffers = PackBuffers()
        first = buffers.take()
        fill(first, b"1", SIZE)
        patient.write("pack/1/first", first)  # given up once, and written by another attempt
        assert not landed.is_set()
        buffers.give_back(first)
        fill(buffers.take(), b"2", next_size)
        goes_on.set()
        assert landed.wait(30)
    assert [data.count(b"1") for data in puts] == [SIZE] * len(puts)


def test_a_buffer_that_may_still_be_sent_from_is_not_taken_again() -> None:
    """Nobody knows when a request that was given up is through; the memory goes with it."""
    buffers = PackBuffers()
    sent, given_up = buffers.take(), buffers.take()
    given_up.abandoned = True
    buffers.give_back(sent)
    buffers.give_back(given_up)
    assert buffers.take() is sent
    again = buffers.take()
    assert again is not given_up
    assert not again.abandoned
