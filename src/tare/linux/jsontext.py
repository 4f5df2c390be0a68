"""JSON by the C half of the json module. The other half pulls re and eleven modules more into every shim.

CPython's `_json` is private but has kept these names since 3.1; where it lacks one, json itself is used. Everything is
resolved at import, because the fork path cannot import later. Plain values only, no options.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["dumps", "loads", "quote"]


class _Context:
    """What the C scanner reads its settings from: the attributes of json.JSONDecoder."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    memo: dict[str, str] = {}

    @staticmethod
    def parse_constant(name: str) -> float:
        raise ValueError(f"{name} is not JSON")


def _refuse(value: object) -> str:
    raise TypeError(f"{type(value).__name__} is not JSON")


quote: Callable[[str], str]
"""A JSON string, quotes included, other letters than ASCII kept."""
try:
    from _json import encode_basestring as quote  # type: ignore[no-redef,attr-defined,unused-ignore]
    from _json import encode_basestring_ascii, make_encoder, make_scanner

    _scan = make_scanner(_Context)  # type: ignore[arg-type]
    # markers, default, encoder, indent, key_separator, item_separator, sort_keys, skipkeys, allow_nan
    _encode = make_encoder(None, _refuse, encode_basestring_ascii, None, ":", ",", False, False, False)
except (ImportError, TypeError, AttributeError):
    import json
    from json.encoder import encode_basestring as quote  # type: ignore[no-redef,assignment,unused-ignore]

    _scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined,assignment,unused-ignore]
    _encode = json.JSONEncoder(separators=(",", ":")).iterencode  # type: ignore[assignment,unused-ignore]


def dumps(value: Any) -> str:
    """Compact, ASCII only. TypeError for what is not JSON."""
    return "".join(_encode(value, 0))


def loads(data: bytes) -> Any:
    """One document and nothing behind it. ValueError otherwise."""
    text = data.decode("utf-8", "surrogateescape").strip(" \t\r\n")
    try:
        value, end = _scan(text, 0)
    except (StopIteration, SystemError, ImportError, RecursionError) as error:
        # SystemError, ImportError: the scanner looks for its exception class in json.decoder, which is not there.
        raise ValueError("not a JSON document") from error
    if end != len(text):
        raise ValueError("bytes after the JSON document")
    return value
