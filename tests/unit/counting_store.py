"""A store in memory that counts the packs which it is sent."""

from __future__ import annotations

from collections.abc import Callable

from s3fs_banyan.errors import Unavailable
from s3fs_banyan.format.keys import PACK_PREFIX
from s3fs_banyan.remote.base import FileMeta
from s3fs_banyan.remote.memory import MemoryStore


class CountingStore(MemoryStore):
    """Notes the bytes of every pack and part that is sent, and breaks off when told to."""

    def __init__(self, clock: Callable[[], int]) -> None:
        super().__init__(clock=clock)
        self.sent: list[tuple[str, int]] = []
        self.parts_left = -1
        self.is_away = False

    def write(
        self,
        path: str,
        data: bytes | bytearray | memoryview,
        *,
        if_absent: bool = False,
        storage_class: str = "",
    ) -> FileMeta:
        if path.startswith(PACK_PREFIX):
            if self.is_away:
                raise Unavailable("the store is away")
            self.sent.append((path, len(data)))
        return super().write(path, data, if_absent=if_absent, storage_class=storage_class)

    def upload_part(self, path: str, upload_id: str, number: int, data: bytes | bytearray) -> str:
        if self.parts_left == 0:
            raise Unavailable("the line broke")
        self.parts_left -= 1
        self.sent.append((path, len(data)))
        return super().upload_part(path, upload_id, number, data)

    @property
    def pack_bytes_sent(self) -> int:
        return sum(size for _, size in self.sent)

    def packs(self) -> list[str]:
        """Return the keys of the packs that are there."""
        return [meta.path for meta in self.list(PACK_PREFIX)]
