"""Bytes from a client -> Struct: the one door for JSON bodies.

Stricter than Go's decoder where that costs no real client anything: duplicate keys, more than
64 levels, NaN, infinities, integers beyond 64 bits, lone surrogates and a second document are refused. As lenient as
Go's where clients rely on it: unknown members are ignored, and a null member leaves its field at the default.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, TypeVar

import msgspec

from tare.errors import Invalid
from tare.http.message import Request

__all__ = ["MAX_BODY", "MAX_DEPTH", "body", "document", "text_list"]

MAX_BODY = 16 << 20
MAX_DEPTH = 64

T = TypeVar("T")

FIELD = re.compile(r"[A-Z][A-Za-z0-9]*\Z")
"""How Docker spells its fields; keys of maps (labels, paths, ports) hardly ever look like this."""
STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


async def body(request: Request, kind: type[T], *, empty: T | None = None) -> T:
    """The request's JSON body as `kind`; `empty` is what no body at all means, None that one is needed.

    Content types as Docker's ReadJSON: application/json with any parameters; none is fine only without a body.
    """
    raw = await request.body(MAX_BODY)
    content_type = request.headers.get("content-type", "")
    if raw or content_type:
        name = content_type.partition(";")[0].strip().lower()
        if not name:
            raise Invalid("malformed Content-Type header (): mime: no media type")
        if name != "application/json" and (raw or empty is None):
            raise Invalid(f"unsupported Content-Type header ({content_type}): must be 'application/json'")
    if not raw.strip():
        if empty is None:
            raise Invalid("invalid JSON: got EOF while reading request body")
        return empty
    return msgspec.convert(document(raw), kind)


def document(raw: bytes | str) -> Any:
    """One JSON document as plain values. Raises Invalid."""
    try:
        text = raw.decode() if isinstance(raw, bytes) else raw
    except UnicodeDecodeError as error:
        raise Invalid(f"invalid JSON: byte {error.start} is not UTF-8") from None
    check_depth(text)
    try:
        value = json.loads(
            text, object_pairs_hook=members, parse_int=integer, parse_float=number, parse_constant=constant
        )
        if SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            raise Invalid("unexpected content after JSON") from None
        raise Invalid(f"invalid JSON: {error.msg} at byte {error.pos}") from None
    except UnicodeEncodeError:
        raise Invalid("invalid JSON: a \\u escape is half of a surrogate pair") from None
    return value


def check_depth(text: str) -> None:
    """Refuses what nests deeper than MAX_DEPTH before the recursive parser sees it; strings do not count."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for character in STRING.sub("", text):
        if character in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise Invalid(f"invalid JSON: exceeded max depth of {MAX_DEPTH}")
        elif character in "]}":
            depth -= 1


def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's members without null fields. Go leaves those at their zero value; absent means the same here."""
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise Invalid(f"invalid JSON: duplicate key {json.dumps(twice)}")
    for key, value in pairs:
        if value is None and FIELD.match(key):
            del result[key]
    return result


def integer(text: str) -> int:
    """A JSON integer that fits in 64 bits; longer ones never reach int(), whose cost is quadratic."""
    if len(text) <= 20:
        value = int(text)
        if -(1 << 63) <= value < 1 << 64:
            return value
    raise Invalid(f"invalid JSON: number {text[:24]} is out of range")


def number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise Invalid(f"invalid JSON: number {text[:24]} is out of range")
    return value


def constant(text: str) -> float:
    raise Invalid(f"invalid JSON: {text} is not a number of JSON")


def text_list(value: str | list[str] | None) -> tuple[str, ...] | None:
    """Docker's StrSlice: a list, or a string that is a list of one (also ""); None stays None."""
    if value is None:
        return None
    if isinstance(value, str):
        return (value,)
    return tuple(value)
