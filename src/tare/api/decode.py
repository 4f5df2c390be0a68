"""Bytes from a client -> Struct: the one door for JSON bodies.

Stricter than Go's decoder where that costs no real client anything: duplicate keys, more than
64 levels, NaN, infinities, integers beyond int64, lone surrogates and a second document are refused. As lenient as
Go's where clients rely on it: names of members count in any case, unknown ones are ignored, and a null member leaves
its field at the default. A large body is decoded in a thread.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from functools import cache
from typing import Any, TypeVar, get_args, get_origin

import msgspec

from tare.errors import Invalid
from tare.http.message import Request

__all__ = ["MAX_BODY", "MAX_DEPTH", "body", "document", "text_list"]

MAX_BODY = 1 << 20
"""Bytes. The largest part of a real one is a seccomp profile, some 20 KB."""
THREAD_FROM = 64 << 10
"""Bytes of a body that are decoded outside the event loop: 1 MiB takes 20 to 100 ms."""
MAX_DEPTH = 64

T = TypeVar("T")

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
    return await asyncio.to_thread(decoded, raw, kind) if len(raw) > THREAD_FROM else decoded(raw, kind)


def decoded(raw: bytes, kind: type[T]) -> T:
    return msgspec.convert(lenient(document(raw), kind), kind)


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
    """An object's members, each key once."""
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise Invalid(f"invalid JSON: duplicate key {json.dumps(twice)}")
    return result


def lenient(value: Any, kind: Any) -> Any:
    """`value` as strict decoding to `kind` wants it where Go's decoder is lenient: null leaves a field at its default,
    the names of fields count in any case, and a null among strings is "". Keys of maps stay as they are."""
    if value is None and kind is str:
        return ""
    for option in get_args(kind) if get_origin(kind) not in (list, dict) else ():
        if isinstance(value, get_origin(option) or ()) or (isinstance(value, dict) and fields(option)):
            return lenient(value, option)
    if isinstance(value, list) and get_origin(kind) is list:
        return [lenient(entry, get_args(kind)[0]) for entry in value]
    if not isinstance(value, dict):
        return value
    if get_origin(kind) is dict:
        return {key: lenient(entry, get_args(kind)[1]) for key, entry in value.items()}
    known = fields(kind)
    result = {}
    for key, entry in value.items():
        name, inner = known.get(key.lower(), ("", None))
        if name in result:
            raise Invalid(f"invalid JSON: duplicate key {json.dumps(key)}")
        if name and entry is not None:
            result[name] = lenient(entry, inner)
    return result if known else value


@cache
def fields(kind: Any) -> dict[str, tuple[str, Any]]:
    """A Struct's fields: name in lower case -> name on the wire, type. Nothing for any other type."""
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return {}
    return {field.encode_name.lower(): (field.encode_name, field.type) for field in msgspec.structs.fields(kind)}


def integer(text: str) -> int:
    """A JSON integer that fits in an int64; longer ones never reach int(), whose cost is quadratic."""
    if len(text) <= 20:
        value = int(text)
        if -(1 << 63) <= value < 1 << 63:
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
