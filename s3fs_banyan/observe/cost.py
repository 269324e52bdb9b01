"""What the requests to the store cost: counted requests by kind, and prices, give money.

An estimate: an attempt that the store did not answer, or refused for the moment, is not billed;
a listing counts as one request however many pages it takes; reads are priced as those of the
STANDARD class, without retrieval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from s3fs_banyan.observe.table import COST_KINDS
from s3fs_banyan.prices import ClassPrice

KIND_OF_VERB: Final[Mapping[str, str]] = {
    "write": "put",
    "create": "put",
    "begin_upload": "put",
    "upload_part": "put",
    "complete_upload": "put",
    "list": "list",
    "list_parts": "list",
    "list_uploads": "list",
    "read": "get",
    "stat": "get",
    "delete": "delete",
    "abort_upload": "delete",
}
"""How providers bill the verbs of the contract; deleting is free."""
_NOT_BILLED: Final = frozenset({"throttled", "unavailable"})
_GIB: Final = float(1 << 30)


class KindTotal(NamedTuple):
    """The requests of one kind, so far."""

    requests: float
    sent_bytes: float
    received_bytes: float
    cost: float


class StoreRequests:
    """Sums over the counters of requests; may be asked by any thread."""

    def __init__(
        self,
        requests: Callable[[], Mapping[tuple[str, ...], float]],
        sent: Callable[[], Mapping[tuple[str, ...], float]],
        received: Callable[[], Mapping[tuple[str, ...], float]],
    ) -> None:
        """Each argument returns its counters by label values: (verb, outcome), or (verb,)."""
        self._requests = requests
        self._sent = sent
        self._received = received
        self._prices: dict[str, float] = dict.fromkeys(COST_KINDS, 0.0)
        self._egress = 0.0

    def use_prices(self, standard: ClassPrice, egress: float) -> None:
        """Estimate by these from now on; `egress` is per GiB received."""
        put, get = standard.put / 1000, standard.get / 1000
        self._prices = {"put": put, "list": put, "get": get, "delete": 0.0}
        self._egress = egress / _GIB

    def by_kind(self) -> dict[str, KindTotal]:
        """Return the requests that are billed, by kind."""
        counts = dict.fromkeys(COST_KINDS, 0.0)
        for (verb, outcome), count in self._requests().items():
            if outcome not in _NOT_BILLED:
                counts[KIND_OF_VERB[verb]] += count
        sent, received = _by_kind(self._sent()), _by_kind(self._received())
        return {
            kind: KindTotal(
                requests=counts[kind],
                sent_bytes=sent[kind],
                received_bytes=received[kind],
                cost=counts[kind] * self._prices[kind] + received[kind] * self._egress,
            )
            for kind in COST_KINDS
        }

    def cost_of(self, kind: str) -> Callable[[], float]:
        """Return what a counter of this kind's cost reads at each scrape."""
        return lambda: self.by_kind()[kind].cost

    def paced(self) -> float:
        """Return the requests that a longer commit interval makes fewer: all but reads."""
        found = self.by_kind()
        return sum(found[kind].requests for kind in ("put", "list", "delete"))


def _by_kind(totals: Mapping[tuple[str, ...], float]) -> dict[str, float]:
    sums = dict.fromkeys(COST_KINDS, 0.0)
    for (verb,), total in totals.items():
        sums[KIND_OF_VERB[verb]] += total
    return sums
