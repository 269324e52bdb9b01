"""The storage classes of simulated worlds."""

from __future__ import annotations

from typing import Final

from s3fs_banyan.commit.classes import ClassPolicy, Rule
from s3fs_banyan.prices import EXAMPLE_PRICES, ClassPrice

CLASSES: Final = ClassPolicy(
    rules=(
        Rule(storage_class="ONEZONE_IA", age_s=3.0),
        Rule(storage_class="STANDARD_IA", path="**", size_min_bytes=1_000, life_s=60.0),
    ),
    prices=(
        EXAMPLE_PRICES[0],
        ClassPrice(name="ONEZONE_IA", storage=0.0, put=0.0, get=0.0),
        ClassPrice(name="STANDARD_IA", storage=0.0, put=0.0, get=0.0),
    ),
    separate=("*",),
)
"""Classes that always pay, so that small worlds have packs of each."""
