"""The kinds of values that sections of the settings are made of, and what all sections share."""

from __future__ import annotations

from typing import NoReturn

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from s3fs_banyan.config.units import (
    DAY_S,
    format_seconds,
    format_size,
    parse_seconds,
    parse_size,
)


def fail(why: str) -> NoReturn:
    """Raise the error that pydantic turns into a fault with the text `why`."""
    raise PydanticCustomError("fault", "{why}", {"why": why})


def size(*, least: int = 0, most: int = 1 << 62) -> BeforeValidator:
    """Make the validator of a size within [least, most]."""

    def check(value: object) -> int:
        try:
            size = parse_size(value)
        except ValueError as error:
            fail(str(error))
        if size < least:
            fail(f"must be at least {format_size(least)}")
        if size > most:
            fail(f"must be at most {format_size(most)}")
        return size

    return BeforeValidator(check)


def seconds(*, least: float = 0.0, most: float = 3650 * DAY_S) -> BeforeValidator:
    """Make the validator of a duration within [least, most]."""

    def check(value: object) -> float:
        try:
            seconds = parse_seconds(value)
        except ValueError as error:
            fail(str(error))
        if seconds < least:
            fail(f"must be at least {format_seconds(least)}")
        if seconds > most:
            fail(f"must be at most {format_seconds(most)}")
        return seconds

    return BeforeValidator(check)


class Section(BaseModel):
    """What all sections share: frozen, no unknown keys, an empty value is one not given."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=True
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, given: object) -> object:
        """Read `key:` and `key: ""` as a key that is not there."""
        if given is None:
            return {}
        if not isinstance(given, dict):
            return given
        known = set(key_names(cls))
        return {k: v for k, v in given.items() if not (k in known and v in (None, ""))}


def key_names(section: type[BaseModel]) -> tuple[str, ...]:
    """Return the keys of a section as they stand in the file."""
    return tuple(field.alias or name for name, field in section.model_fields.items())
