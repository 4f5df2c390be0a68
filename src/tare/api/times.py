"""Times between the engine's nanoseconds, Docker's RFC 3339 texts and the unix stamps of query strings. Pure."""

from __future__ import annotations

import datetime as dt
import json
import re

from tare.errors import Invalid

__all__ = ["ZERO", "ago", "rfc3339", "stamp", "until"]

ZERO = "0001-01-01T00:00:00Z"
"""Go's zero time: "never"."""
STAMP = re.compile(r"(-?\d{1,12})(?:\.(\d{1,9})\d*)?\Z", re.ASCII)
DURATION = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)(ns|us|µs|ms|s|m|h)", re.ASCII)
UNIT_NS = {"ns": 1, "us": 1000, "µs": 1000, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


def rfc3339(ns: int) -> str:
    """RFC3339Nano as Go prints it in UTC: no trailing zeros in the fraction; 0 is ZERO."""
    if ns == 0:
        return ZERO
    seconds, fraction = divmod(ns, 10**9)
    text = (dt.datetime(1970, 1, 1) + dt.timedelta(seconds=seconds)).isoformat()
    return text + (f".{fraction:09}".rstrip("0") if fraction else "") + "Z"


def stamp(text: str, name: str) -> int:
    """A unix stamp "seconds[.nanoseconds]" of a query -> ns; "" is 0. Clients convert dates and durations."""
    if not text:
        return 0
    match = STAMP.match(text)
    if not match:
        raise Invalid(f'invalid value for "{name}": {text} is not a unix timestamp')
    seconds, fraction = match.groups()
    return int(seconds) * 10**9 + int((fraction or "").ljust(9, "0"))


def until(text: str, now_ns: int) -> int:
    """The `until` filter of prune and image lists: a duration before now ("10m", "1h30m"), a date or a stamp -> ns."""
    if DURATION.sub("", text) == "" and text:
        return now_ns - sum(int(float(count) * UNIT_NS[unit]) for count, unit in DURATION.findall(text))
    if STAMP.match(text):
        return stamp(text, "until")
    try:
        date = dt.datetime.fromisoformat(text)
        if date.tzinfo is None:
            date = date.astimezone()
        return int(date.timestamp()) * 10**9 + date.microsecond * 1000
    except (ValueError, OverflowError):
        raise Invalid(f"failed to parse value as time or duration: {json.dumps(text)}") from None


def ago(ns: int) -> str:
    """A duration for people, as Docker's lists print it (go-units HumanDuration)."""
    seconds = ns // 10**9
    minutes, hours = seconds // 60, int(seconds / 3600 + 0.5)
    if seconds < 1:
        return "Less than a second"
    if seconds < 60:
        return "1 second" if seconds == 1 else f"{seconds} seconds"
    if minutes < 60:
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    if hours < 48:
        return "About an hour" if hours == 1 else f"{hours} hours"
    if hours < 24 * 7 * 2:
        return f"{hours // 24} days"
    if hours < 24 * 30 * 2:
        return f"{hours // 24 // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{hours // 24 // 30} months"
    return f"{seconds // 3600 // 24 // 365} years"
