"""What a request is for: the one thing that pacing must be told and cannot see.

Most of it follows from the call. Large writes and parts are **uploads**: nobody waits for one of
them in particular. Reads are **demand**: somebody waits for the bytes. The rest is **control**:
listings, deletes, looks, small writes, and every create-if-absent, which is how a commit is
published. Only two sorts of read differ and say so: the reads of a process that serves nobody
(the worker's compaction; `reads` of `open_store`), and reads ahead of what was asked for::

    with reading_ahead():
        store.read(...)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum
from typing import Final

BULK_BYTES_MIN: Final = 256 << 10
"""A write of fewer bytes is over before it could disturb anybody: control."""


class Traffic(StrEnum):
    """The classes that are paced apart; the values are the metrics' label."""

    UPLOAD = "upload"
    DEMAND = "demand"
    PREFETCH = "prefetch"
    CONTROL = "control"


_ahead: ContextVar[bool] = ContextVar("reading_ahead", default=False)


@contextmanager
def reading_ahead() -> Iterator[None]:
    """Mark the reads made in this context, and in threads that trio starts from it, as prefetch."""
    token = _ahead.set(True)
    try:
        yield
    finally:
        _ahead.reset(token)


def traffic_of(verb: str, bytes_sent: int, reads: Traffic) -> Traffic:
    """Return the class of a request; `reads` is that of a read which says nothing."""
    if verb == "read":
        return Traffic.PREFETCH if _ahead.get() else reads
    if verb in {"write", "upload_part"} and bytes_sent >= BULK_BYTES_MIN:
        return Traffic.UPLOAD
    return Traffic.CONTROL
