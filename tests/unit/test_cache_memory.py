"""The tiers in RAM: decoded frames, and the cache that keeps nothing."""

from __future__ import annotations

from s3fs_banyan.data.blocks import NullBlockCache
from s3fs_banyan.data.frames_ram import RamFrames
from s3fs_banyan.model import ChunkId

A = ChunkId(1)
B = ChunkId(2)
FRAME = bytes(64 * 1024)


def _room_for(count: int) -> RamFrames:
    frames = RamFrames(1 << 40)
    frames.put(A, 0, FRAME)
    return RamFrames(count * frames.used_bytes)


def test_the_least_recently_used_frame_goes_first() -> None:
    frames = _room_for(2)
    frames.put(A, 0, FRAME)
    frames.put(A, 1, FRAME)
    assert frames.get(A, 0) is FRAME
    frames.put(B, 0, FRAME)
    assert frames.get(A, 1) is None
    assert frames.get(A, 0) is FRAME
    assert frames.get(B, 0) is FRAME
    assert (frames.hits, frames.misses, frames.evictions) == (3, 1, 1)


def test_used_bytes_follow_replacing_and_dropping() -> None:
    frames = _room_for(8)
    frames.put(A, 0, FRAME)
    whole = frames.used_bytes
    frames.put(A, 0, FRAME[:100])
    assert frames.used_bytes == whole - len(FRAME) + 100
    frames.put(A, 5, FRAME)
    frames.put(B, 0, FRAME)
    frames.drop_chunk(A)
    frames.drop_chunk(ChunkId(77))
    assert (frames.get(A, 0), frames.get(A, 5), frames.get(B, 0)) == (None, None, FRAME)
    assert (len(frames), frames.used_bytes) == (1, whole)
    frames.clear()
    assert (len(frames), frames.used_bytes) == (0, 0)
    frames.put(A, 0, FRAME)
    assert frames.get(A, 0) is FRAME


def test_many_tiny_frames_are_bounded_too() -> None:
    """What Python keeps beside an empty value is RAM as well."""
    frames = RamFrames(100_000)
    for index in range(10_000):
        frames.put(A, index, b"")
    assert frames.used_bytes <= 100_000
    assert len(frames) + frames.evictions == 10_000


def test_a_frame_larger_than_the_limit_evicts_nothing() -> None:
    frames = _room_for(1)
    frames.put(A, 0, FRAME)
    frames.put(B, 0, FRAME * 2)
    assert frames.get(A, 0) is FRAME
    assert frames.get(B, 0) is None
    frames.put(A, 0, FRAME * 2)
    assert frames.get(A, 0) is None, "the older bytes must not stand in for the newer"
    assert (len(frames), frames.used_bytes) == (0, 0)


def test_the_null_cache_keeps_nothing() -> None:
    cache = NullBlockCache(block_bytes=4096)
    cache.put("a", 0, b"x")
    cache.put_object("a", b"xyz")
    cache.forget("a")
    cache.flush_use()
    assert cache.get("a", 0) is None
    assert (cache.block_bytes, cache.stats().entries, cache.stats().misses) == (4096, 0, 1)
    cache.close()
