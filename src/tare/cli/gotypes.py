"""Values of Go that Python has none of, for templates: structs, typed nils, maps with a zero value, no value. Pure."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["MISSING", "Map", "Nil", "Record"]


class Record:
    """A struct: a field that is not there is an error. `go_type` stands in that error's text."""

    go_type = "struct"
    html = False
    """Whether its JSON has <, > and & escaped, as that of Go's json.Marshal."""

    def field(self, name: str) -> Any:
        """Raises KeyError."""
        raise KeyError(name)

    def method(self, name: str) -> Callable[..., Any] | None:
        """A method that takes arguments."""
        return None

    def json(self) -> Any:
        """What `json` writes of it."""
        raise NotImplementedError


class Nil(Record):
    """A typed nil, as `shown` by Go: "<nil>", "[]" or "map[]"."""

    def __init__(self, shown: str) -> None:
        self.shown = shown

    def __str__(self) -> str:
        return self.shown

    def json(self) -> None:
        return None


class Map(dict):  # type: ignore[type-arg]
    """A map whose type is known: `index` of a missing key gives `zero`. `keyed`: its keys are of a type of their own,
    so that neither `index` with a string nor a field finds anything (Go's nat.PortMap)."""

    zero: Any = None
    keyed = False


class _Missing:
    """No value: what a map gives for a key it does not have."""

    def __str__(self) -> str:
        return "<no value>"


MISSING = _Missing()
