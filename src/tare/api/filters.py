"""The `filters` query: JSON {"key": ["value"]} or the older {"key": {"value": true}}. Pure.

Matching rules of moby's api/types/filters. Deliberately absent: what a key means; each resource decides that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from tare.errors import Invalid

from . import decode

__all__ = ["Filters", "parse"]

MAX_PATTERN = 1024


class Filters:
    """Values per key; a key that is absent matches everything.

    >>> Filters({"label": ("a=b",)}).labels({"a": "b"})
    True
    """

    def __init__(self, values: Mapping[str, tuple[str, ...]]) -> None:
        self.values = dict(values)

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def get(self, key: str) -> tuple[str, ...]:
        return self.values.get(key, ())

    def flag(self, key: str, default: bool) -> bool:
        """A boolean filter; several contradictory or unknown values are refused, as is an empty list."""
        if key not in self.values:
            return default
        values = set(self.values[key])
        true, false = bool(values & {"1", "true", "True"}), bool(values & {"0", "false", "False"})
        if true == false:
            shown = f"=[{' '.join(sorted(values))}]" if values else ""
            raise Invalid(f"invalid filter '{key}{shown}'")
        return true

    def exact(self, key: str, *sources: str) -> bool:
        """Whether one of `sources` is among the values."""
        values = self.values.get(key)
        return not values or any(source in values for source in sources)

    def search(self, key: str, *sources: str) -> bool:
        """Whether a value equals, or as a regular expression occurs in, one of `sources`."""
        values = self.values.get(key)
        if not values or any(source in values for source in sources):
            return True
        patterns = [compiled for value in values if (compiled := pattern(value))]
        return any(compiled.search(source) for compiled in patterns for source in sources)

    def prefix(self, key: str, *sources: str) -> bool:
        """Whether one of `sources` begins with a value."""
        values = self.values.get(key)
        return not values or any(source.startswith(values) for source in sources)

    def labels(self, labels: Mapping[str, str], key: str = "label") -> bool:
        """Whether every "name" is there and every "name=value" agrees."""
        for value in self.values.get(key, ()):
            name, equals, wanted = value.partition("=")
            if name not in labels or (equals and labels[name] != wanted):
                return False
        return True

    def without_labels(self, labels: Mapping[str, str]) -> bool:
        """The `label!` filter of prune: whether no such label is there."""
        return "label!" not in self.values or not self.labels(labels, "label!")


def parse(text: str, accepted: Iterable[str]) -> Filters:
    """Raises Invalid, Docker's texts: "invalid filter" for another shape, "invalid filter 'x'" for an unknown key."""
    if not text:
        return Filters({})
    try:
        given = decode.document(text)
    except Invalid:
        raise Invalid("invalid filter") from None
    if not isinstance(given, dict):
        raise Invalid("invalid filter")
    values: dict[str, tuple[str, ...]] = {}
    for key, entry in given.items():
        if isinstance(entry, dict):
            entry = [name for name, chosen in entry.items() if chosen]
        if not isinstance(entry, list) or not all(isinstance(item, str) for item in entry):
            raise Invalid("invalid filter")
        values[key] = tuple(entry)
    known = frozenset(accepted)
    for key in values:
        if key not in known:
            raise Invalid(f"invalid filter '{key}'")
    return Filters(values)


def pattern(value: str) -> re.Pattern[str] | None:
    """A value as a regular expression; None for what is none. Go's engine is linear, Python's is not: a value with a
    repeated group or more than two repetitions is taken literally."""
    if len(value) > MAX_PATTERN or re.search(r"\)[*+?{]", value) or len(re.findall(r"[*+{]", value)) > 2:
        value = re.escape(value)
    try:
        return re.compile(value)
    except re.error:
        return None
