"""The sections about money: storage classes by rule, prices, a budget of requests.

Owns the shape and the limits of these keys; what a rule means is decided in `commit.classes`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from s3fs_banyan.config.kinds import Section, fail, seconds, size
from s3fs_banyan.config.units import DAY_S, MINUTE_S, TIB
from s3fs_banyan.prices import EXAMPLE_PRICES, ClassPrice, StorageClass

Price = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


def check_glob(pattern: str) -> str:
    """Return a path pattern without slashes at its ends; `**` stands alone between slashes."""
    stripped = pattern.strip("/")
    parts = stripped.split("/")
    if not stripped or any(part in {"", ".", ".."} for part in parts):
        fail("not a path pattern: write parts between single slashes, such as measure/**/seg-*")
    if any("**" in part and part != "**" for part in parts):
        fail("'**' stands for whole parts of a path: write it alone between slashes")
    return stripped


Glob = Annotated[str, AfterValidator(check_glob)]


class ClassRule(Section):
    """Data that matches all of these conditions is to lie in this storage class."""

    path: Glob = "**"
    size_min_bytes: Annotated[int, size()] = Field(default=0, alias="size_min")
    size_max_bytes: Annotated[int, size()] = Field(default=1024 * TIB, alias="size_max")
    age_s: Annotated[float, seconds()] = Field(default=0.0, alias="age")
    storage_class: StorageClass = Field(alias="class")
    life_s: Annotated[float, seconds()] | None = Field(default=None, alias="life")
    reads: Annotated[float, Field(ge=0, le=10_000, allow_inf_nan=False)] = 0.1

    @model_validator(mode="after")
    def _check_sizes(self) -> ClassRule:
        if self.size_min_bytes > self.size_max_bytes:
            fail("'size_min' must not exceed 'size_max'")
        return self


class PriceRow(Section):
    """Changes to the prices of one storage class; what is not given stays as built in."""

    storage_class: StorageClass = Field(alias="class")
    storage: Price | None = None
    put: Price | None = None
    get: Price | None = None
    retrieval: Price | None = None
    monitoring: Price | None = None
    days_min: Price | None = None
    bytes_min: Annotated[int, size()] | None = None
    after_30d: Price | None = None
    after_90d: Price | None = None


class Cost(Section):
    """What the store charges: for estimates, and for the choice of a storage class."""

    currency: Annotated[str, Field(pattern=r"^[A-Za-z]{1,8}$")] = "USD"
    egress: Price = 0.0
    prices: tuple[PriceRow, ...] = ()

    def table(self) -> tuple[ClassPrice, ...]:
        """Return the prices of all classes: the built-in ones with the rows of the file on top."""
        found = {price.name: price for price in EXAMPLE_PRICES}
        for row in self.prices:
            given = row.model_dump(exclude={"storage_class"}, exclude_none=True)
            found[row.storage_class] = replace(found[row.storage_class], **given)
        return tuple(found.values())


class Budget(Section):
    """How many requests an hour the commits may cost; 0 sets no limit."""

    requests_per_hour: int = Field(default=0, ge=0, le=10_000_000)
    interval_max_s: Annotated[float, seconds(least=1.0, most=DAY_S)] = Field(
        default=15 * MINUTE_S, alias="interval_max"
    )
