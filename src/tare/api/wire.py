"""What all wire structs share: Docker's spelling, and members that are left out when empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias, TypeVar

from msgspec import UNSET, Struct, UnsetType

__all__ = ["UNSET", "Maybe", "Wire", "maybe"]

T = TypeVar("T")
Maybe: TypeAlias = T | UnsetType
"""A member with Go's "omitempty": UNSET is not written at all."""


class Wire(Struct, rename="pascal", kw_only=True):
    """Base of Docker's JSON objects; a field whose spelling is not plain Pascal case names it by field(name=...)."""


def maybe(value: T) -> T | UnsetType:
    """UNSET for Go's empty values (None, "", 0, False, no members), else the value itself."""
    if value is None or value is False or value == 0 or value == "":
        return UNSET
    if isinstance(value, (Mapping, Sequence)) and not value:
        return UNSET
    return value
