"""Values -> JSON as Docker's client writes it: compact (the `json` function) or indented (inspect).

Control characters of every kind are escaped, so that what an image or a container says cannot steer the terminal.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["encode"]

ESCAPED = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), 0x2028, 0x2029)}
HTML = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&"}
"""These stand in JSON only inside strings."""


def _string(text: str) -> str:
    try:
        from _json import encode_basestring
    except ImportError:
        from json.encoder import encode_basestring
    quoted: str = encode_basestring(text)
    if quoted.isascii() and "\x7f" not in quoted:
        return quoted
    return quoted.translate(ESCAPED).encode("utf-8", "replace").decode()


def encode(value: Any, indent: str = "") -> str:
    """JSON of plain values and of objects with a json() method. `indent` "    " writes a member a line."""
    parts: list[str] = []
    _write(parts, value, indent, "\n" if indent else "")
    return "".join(parts)


def _write(parts: list[str], value: Any, indent: str, line: str) -> None:
    if isinstance(value, str):
        parts.append(_string(value))
    elif value is None or value is True or value is False:
        parts.append("null" if value is None else "true" if value else "false")
    elif isinstance(value, int | float):
        parts.append(repr(value))
    elif isinstance(value, dict):
        # A map (a subclass of dict, here) is sorted, as in Go; a plain one keeps the order in which it came.
        keys = list(value) if type(value) is dict else sorted(value)
        _members(parts, [(_string(key) + (": " if indent else ":"), value[key]) for key in keys], "{}", indent, line)
    elif isinstance(value, list | tuple):
        _members(parts, [("", each) for each in value], "[]", indent, line)
    elif hasattr(value, "json"):
        start = len(parts)
        _write(parts, value.json(), indent, line)
        if value.html:
            parts[start:] = [part.translate(HTML) for part in parts[start:]]
    else:
        parts.append("null")


def _members(parts: list[str], members: list[tuple[str, Any]], brackets: str, indent: str, line: str) -> None:
    if not members:
        parts.append(brackets)
        return
    inner = line + indent
    separator = brackets[0] + inner
    for key, value in members:
        parts.append(separator + key)
        _write(parts, value, indent, inner)
        separator = "," + inner
    parts.append(line + brackets[1])
