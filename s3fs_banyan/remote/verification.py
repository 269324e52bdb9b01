"""By what an upload was believed, whoever the store is, and the MD5 that Azure and Google answer.

Both services check Content-MD5 and answer with the MD5 of what they stored. Where an answer has
none (a gateway, an emulator), an object is read back. A part cannot be: there the service's own
check stands alone, and is counted as what it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from s3fs_banyan.errors import TransferCorrupt
from s3fs_banyan.remote.answers import md5_of

How = Literal["etag", "checksum", "read_back", "content_md5"]
"""By what an upload was verified; the label of the metric."""


class VerificationObserver(Protocol):
    """Who wants to know by what each upload was verified; called in the thread that made it."""

    def verified(self, how: How, *, good: bool) -> None: ...


class AnsweredMd5:
    """Believes uploads by the MD5 that the store answers with. Safe in several threads."""

    def __init__(self, url: str, observer: VerificationObserver | None) -> None:
        self._url = url
        self._observer = observer

    def check(
        self,
        stored: bytes | None,
        here: bytes,
        what: str,
        read_back: Callable[[], bytes] | None = None,
    ) -> None:
        """Compare the MD5 of an answer with ours; raises `TransferCorrupt`.

        Where the answer has none, what `read_back` returns decides; raises what that raises.
        """
        how: How = "checksum"
        if not stored:
            if read_back is None:
                self._note("content_md5", good=True)
                return
            how, stored = "read_back", md5_of(read_back())
        self._note(how, good=stored == here)
        self.compare(stored, here, what)

    def compare(self, stored: bytes, here: bytes, what: str) -> None:
        """Raise `TransferCorrupt` if two MD5s differ, also for a read; counts nothing."""
        if stored != here:
            raise TransferCorrupt(
                f"{self._url}: {what}: MD5 {here.hex()} here, {stored.hex()} in the store"
            )

    def _note(self, how: How, *, good: bool) -> None:
        if self._observer is not None:
            self._observer.verified(how, good=good)
