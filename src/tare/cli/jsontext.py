"""JSON by the C half of the json module: `import json` costs 9 ms (it pulls re and enum), `_json` 0.2 ms.

CPython's `_json` is private but has kept these three names since 3.1; where it is missing, json itself is used.
Deliberately absent: everything but reading and writing plain values.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

__all__ = ["dumps", "loads", "messages"]

LINE_LIMIT = 64 << 20
BLANKS = " \t\r\n"


class _Context:
    """What the C scanner reads its settings from: the attributes of json.JSONDecoder."""

    strict = False
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    memo: dict[str, str] = {}

    @staticmethod
    def parse_constant(name: str) -> float:
        raise ValueError(f"{name} is not JSON")


def _scanner() -> Callable[[str, int], tuple[Any, int]]:
    from _json import make_scanner

    return make_scanner(_Context)  # type: ignore[arg-type]


def loads(data: bytes | str) -> Any:
    """One JSON document. Raises ValueError for anything else, also for NaN and for trailing bytes."""
    text = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
    text = text.strip(BLANKS)
    try:
        scan = _scanner()
    except (ImportError, AttributeError, TypeError):
        import json

        return json.loads(text)
    try:
        value, end = scan(text, 0)
    except (StopIteration, SystemError, ValueError):
        # SystemError: the C scanner takes its exception class from json.decoder and finds that module not imported.
        raise ValueError("not a JSON document") from None
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    if end != len(text):
        raise ValueError("bytes after the JSON document")
    return value


def _refuse(value: object) -> object:
    raise TypeError(f"{type(value).__name__} has no JSON form")


def dumps(value: object) -> str:
    """Compact ASCII JSON. Bytes of a command line that are not UTF-8 become U+FFFD, as with Docker's client."""
    try:
        from _json import encode_basestring_ascii, make_encoder
    except ImportError:
        import json

        text = json.dumps(value, separators=(",", ":"))
    else:
        encode = make_encoder(None, _refuse, encode_basestring_ascii, None, ":", ",", False, False, False)
        text = "".join(encode(value, 0))
    return _without_surrogates(text) if "\\udc" in text else text


def _without_surrogates(text: str) -> str:
    """Replace each lone low surrogate (surrogateescape's mark of a stray byte); pairs are kept."""
    pieces = text.split("\\udc")
    out = [pieces[0]]
    for piece in pieces[1:]:
        paired = len(out[-1]) >= 6 and out[-1][-6:-2] in ("\\ud8", "\\ud9", "\\uda", "\\udb")
        out.append(("\\udc" + piece) if paired else "\\ufffd" + piece[2:])
    return "".join(out)


def messages(chunks: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """The objects of a progress or event stream: one a line, "\\n" or "\\r\\n", in chunks of any size."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > LINE_LIMIT:
            raise ValueError("a line of the stream is longer than 64 MiB")
        for line in lines:
            if line.strip():
                yield from _objects(line)
    if rest.strip():
        yield from _objects(rest)


def _objects(line: bytes) -> Iterator[dict[str, Any]]:
    value = loads(line)
    if isinstance(value, dict):
        yield value
