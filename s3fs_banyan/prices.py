"""What a storage class costs: plain values, and an example of a provider's list.

The numbers are those of Amazon S3 in us-east-1 as published in 2025, in US dollars: an example to
be replaced under `cost.prices`, not a promise. Sizes are bytes, storage is priced per GiB and
month of 30 days, requests per 1,000.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

StorageClass = Literal["STANDARD", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR"]
STANDARD: Final = "STANDARD"
MONTH_DAYS: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassPrice:
    """The prices of one storage class, and what it bills at least."""

    name: str
    storage: float
    """Per GiB and month."""
    put: float
    """Per 1,000 requests that write or list."""
    get: float
    """Per 1,000 requests that read."""
    retrieval: float = 0.0
    """Per GiB read."""
    monitoring: float = 0.0
    """Per 1,000 objects and month; objects below `bytes_min` are not monitored."""
    days_min: float = 0.0
    """An object deleted sooner is billed for so many days."""
    bytes_min: int = 0
    """A smaller object is billed as this large; where monitored, it never moves to a tier."""
    after_30d: float | None = None
    """Per GiB and month once it was not read for 30 days; None: as `storage`."""
    after_90d: float | None = None
    """The same for 90 days; None: as `after_30d`."""

    @property
    def has_tiers(self) -> bool:
        """Whether the provider moves what is not read to cheaper tiers by itself."""
        return self.after_30d is not None or self.after_90d is not None


EXAMPLE_PRICES: Final = (
    ClassPrice(name=STANDARD, storage=0.023, put=0.005, get=0.0004),
    ClassPrice(
        name="STANDARD_IA", storage=0.0125, put=0.01, get=0.001, retrieval=0.01,
        days_min=30, bytes_min=128 * 1024,
    ),
    ClassPrice(
        name="ONEZONE_IA", storage=0.01, put=0.01, get=0.001, retrieval=0.01,
        days_min=30, bytes_min=128 * 1024,
    ),
    ClassPrice(
        name="INTELLIGENT_TIERING", storage=0.023, put=0.005, get=0.0004, monitoring=0.0025,
        bytes_min=128 * 1024, after_30d=0.0125, after_90d=0.004,
    ),
    ClassPrice(
        name="GLACIER_IR", storage=0.004, put=0.02, get=0.01, retrieval=0.03,
        days_min=90, bytes_min=128 * 1024,
    ),
)  # fmt: skip
