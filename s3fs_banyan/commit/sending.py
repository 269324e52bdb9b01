"""Sending a pack: as one PUT, or in parts where the line is slow.

A pack is one request as long as that is wise: every part is billed. It goes in parts if one PUT
of it would take longer than 20 s at the rate of recent transfers, if a PUT of it failed (on a
line that breaks, what got through shall stay), or if an upload in parts was begun before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, Literal, TypeVar

from s3fs_banyan.commit.outbox import Outbox, PackRecord
from s3fs_banyan.commit.pack_buffers import PackBuffer
from s3fs_banyan.errors import (
    Misconfigured,
    ObjectMissing,
    StoreError,
    TransferCorrupt,
    Unavailable,
)
from s3fs_banyan.remote.base import RemoteFileSystem
from s3fs_banyan.remote.layers import multipart_of
from s3fs_banyan.remote.multipart import UploadState, upload_file_multipart
from s3fs_banyan.remote.transfers import Transfers

log = logging.getLogger(__name__)
T = TypeVar("T")

Multipart = Literal["auto", "always", "never"]

SINGLE_PUT_S_MAX: Final = 20.0
"""What takes longer is likely to be broken off, and then all of it is sent again."""
QUICK_S_MAX: Final = 2.0
"""What takes no longer is sent from RAM."""
_NEWEST_WEIGHT: Final = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class SendPolicy:
    """When a pack goes in parts, and how large they are."""

    multipart: Multipart = "auto"
    part_bytes: int = 8 << 20


class PackSender:
    """Sends packs; used by several threads at once, each with a pack of its own."""

    def __init__(
        self,
        store: RemoteFileSystem,
        outbox: Outbox,
        *,
        policy: SendPolicy,
        transfers: Transfers,
        clock: Callable[[], float],
    ) -> None:
        """`clock` gives monotonic seconds."""
        self._store = store
        self._outbox = outbox
        self._policy = policy
        self._transfers = transfers
        self._clock = clock
        self._rate = outbox.load_link()
        self._newest: dict[str, PackRecord] = {}
        self._attempted: set[str] = set()
        self._failed: set[str] = set()
        self._resumed: list[int] = []
        self.refused: set[str] = set()
        """Packs that lie in the standard class, since the store does not know theirs."""

    @property
    def parts_resumed(self) -> int:
        """Parts that were in the store already when an upload went on."""
        return sum(self._resumed)

    def expect(self, key: str) -> None:
        """An earlier life may have sent this pack: look before it is sent again."""
        self._attempted.add(key)

    def is_quick(self, size: int) -> bool:
        """Tell whether a pack of `size` bytes is likely to be sent before anything happens.

        Then it need not be on the disk first: a death costs sealing and sending it once more.
        """
        return self._policy.multipart != "always" and size < self._rate * QUICK_S_MAX

    def goes_in_parts(self, record: PackRecord) -> bool:
        """Tell whether a pack of the outbox is to be sent in parts."""
        record = self._newest.get(record.key, record)
        return record.upload is not None or self._wants_parts(record)

    def send_whole(self, record: PackRecord, pack: PackBuffer) -> None:
        """Send a pack from RAM as one PUT; durable on return. Raises the store's errors."""
        if not self._is_there(record.key, lambda: pack.md5):
            self._put(record, pack)

    def send_parts(self, record: PackRecord) -> None:
        """Send a pack from the outbox in parts; durable on return. Raises the store's errors.

        The same call may be made again, in this life or the next one: it goes on where it was.
        """
        record = self._newest.get(record.key, record)
        path = self._outbox.pack_path(record.key)
        if record.upload is not None or not self._is_there(record.key, partial(_md5_of, path)):
            self._in_class(record, partial(self._send_parts, record))

    def _send_parts(self, record: PackRecord, storage_class: str) -> None:
        uploaded = upload_file_multipart(
            self._store,
            record.key,
            self._outbox.pack_path(record.key),
            part_size=self._policy.part_bytes,
            save_state=partial(self._save, record),
            state=record.upload,
            transfers=self._transfers,
            timed=self._timed,
            storage_class=storage_class,
        )
        self._resumed.append(uploaded.parts_resumed)

    def _in_class(self, record: PackRecord, send: Callable[[str], None]) -> None:
        """Send a pack; a store that does not know its class must not stop the commit."""
        try:
            send(record.storage_class)
        except Misconfigured as error:
            if not record.storage_class:
                raise
            send("")
            self.refused.add(record.key)
            log.warning(
                "the store does not take storage class %s, %s lies in its standard one: %s",
                record.storage_class,
                record.key,
                error,
            )

    def note_sent(self, record: PackRecord) -> None:
        """Keep the record of a pack that is in the store; no upload of it is left.

        A full disk costs the pack sent again after a crash.
        """
        self._newest.pop(record.key, None)
        try:
            self._outbox.store(replace(record, upload=None))
            if self._policy.multipart != "always":
                self._outbox.store_link(self._rate)
        except OSError as error:
            log.warning("that %s is in the store cannot be noted: %s", record.key, error)

    def give_up(self, record: PackRecord) -> None:
        """Abort the multipart upload of a pack that nobody wants any more, if there is one.

        A store that does not answer now is no matter: reclaim finds the upload later.
        """
        if record.upload is None:
            return
        try:
            multipart_of(self._store).abort_upload(record.key, record.upload.upload_id)
        except StoreError as error:
            log.info("the upload of %s is left to reclaim: %s", record.key, error)

    def _wants_parts(self, record: PackRecord) -> bool:
        policy = self._policy
        if policy.multipart == "never" or not self._store.capabilities.multipart:
            return False
        if record.size <= max(policy.part_bytes, self._store.capabilities.part_size_min):
            return False
        is_slow = bool(self._rate) and record.size / self._rate > SINGLE_PUT_S_MAX
        return policy.multipart == "always" or is_slow or record.key in self._failed

    def _put(self, record: PackRecord, data: PackBuffer) -> None:
        """Send all of it in one request, in its turn among all transfers."""

        def send(storage_class: str) -> None:
            write = partial(self._store.write, record.key, data, storage_class=storage_class)
            for _ in self._transfers.results([lambda: self._timed(write, len(data))]):
                pass

        self._attempted.add(record.key)
        try:
            self._in_class(record, send)
        except (Unavailable, TransferCorrupt):
            self._failed.add(record.key)
            raise

    def _is_there(self, key: str, md5_of_pack: Callable[[], bytes]) -> bool:
        """Tell whether an attempt whose answer was lost, or wrong, left the right bytes there.

        Its size would prove nothing: what arrived wrong is as long.
        """
        if key not in self._attempted or not self._store.capabilities.etag_is_md5:
            return False
        try:
            etag = self._store.stat(key).etag
        except ObjectMissing:
            return False
        return etag == md5_of_pack().hex()

    def _save(self, record: PackRecord, state: UploadState) -> None:
        """Keep how far an upload is. A full disk costs parts sent again after a crash."""
        self._newest[record.key] = replace(record, upload=state)
        try:
            self._outbox.store(self._newest[record.key])
        except OSError as error:
            log.warning("how far the upload of %s is cannot be noted: %s", record.key, error)

    def _timed(self, transfer: Callable[[], T], size: int) -> T:
        """Carry out a transfer of `size` bytes, and learn from it how fast the line is."""
        begin_s = self._clock()
        result = transfer()
        spent_s = max(self._clock() - begin_s, 1e-6)
        rate = size / spent_s
        self._rate += _NEWEST_WEIGHT * (rate - self._rate) if self._rate else rate
        return result


def _md5_of(path: Path) -> bytes:
    pack = PackBuffer()
    pack.load(path)
    return pack.md5
