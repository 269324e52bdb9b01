"""What a request is for: the one thing that pacing must be told and cannot see.

Most of it follows from the call. Large writes and parts are **uploads**: nobody waits for one of
them in particular. Reads are **demand**: somebody waits for the bytes. The rest is **control**:
listings, deletes, looks, small writes, and every create-if-absent, which is how a commit is
published. One sort of read differs: those of a process that serves nobody, the worker's
compaction, are **prefetch** (`reads` of `open_store`). What a mount reads ahead is demand:
whoever reads on in order waits for it next.
"""

from __future__ import annotations

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


def traffic_of(verb: str, bytes_sent: int, reads: Traffic) -> Traffic:
    """Return the class of a request; `reads` is that of this process's reads."""
    if verb == "read":
        return reads
    if verb in {"write", "upload_part"} and bytes_sent >= BULK_BYTES_MIN:
        return Traffic.UPLOAD
    return Traffic.CONTROL
