"""The bytes of recent WRITE records, in RAM: BanyanDB reads young parts again within seconds."""

from __future__ import annotations

from collections import OrderedDict


class RecentRecords:
    """Least-recently-used map from operation number to its data; owned by the event loop."""

    def __init__(self, size_bytes: int) -> None:
        self._limit = size_bytes
        self._records: OrderedDict[int, bytes] = OrderedDict()
        self.used_bytes = 0

    def get(self, op_seq: int) -> bytes | None:
        """Return the data of an operation, if it is here."""
        data = self._records.get(op_seq)
        if data is not None:
            self._records.move_to_end(op_seq)
        return data

    def put(self, op_seq: int, data: bytes) -> None:
        """Keep the data of an operation; the least recently used goes."""
        if op_seq in self._records:
            return
        self._records[op_seq] = data
        self.used_bytes += len(data)
        while self.used_bytes > self._limit:
            _, gone = self._records.popitem(last=False)
            self.used_bytes -= len(gone)
