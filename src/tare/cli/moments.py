"""--since and --until: what people write -> the unix stamp the API takes (docker's api/types/time GetTimestamp). Pure.

    10m, 1h30m              before now
    2024-05-06T07:08:09Z, 2024-05-06T07:08, 2024-05-06, with or without zone and fraction
    1715000000.5            a stamp already
"""

from __future__ import annotations

import time

from tare.cli.failure import Failure
from tare.cli.gotext import quoted
from tare.cli.values import duration

__all__ = ["moment", "stamp"]


def _number(text: str, least: int = 1) -> int:
    if not (text.isascii() and text.isdigit() and len(text) >= least):
        raise ValueError(text)
    return int(text)


def _days(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01. Raises ValueError for a day that is none."""
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    lengths = (31, 29 if leap else 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
    if not (1 <= month <= 12 and 1 <= day <= lengths[month - 1] and year >= 1):
        raise ValueError("no such day")
    before = year - 1
    return before * 365 + before // 4 - before // 100 + before // 400 - 719162 + sum(lengths[: month - 1]) + day - 1


def _zone(text: str) -> tuple[str, int | None]:
    """The text without its zone, and the zone's seconds east of Greenwich; None = local time."""
    if text[-1:] in ("Z", "z") and text:
        return text[:-1], 0
    position = max(text.rfind("+"), text.rfind("-") if text.count("-") == 3 else -1)
    if position < 0:
        return text, None
    hours, _, minutes = text[position + 1 :].partition(":")
    sign = -1 if text[position] == "-" else 1
    return text[:position], sign * (_number(hours, 2) * 3600 + _number(minutes, 2) * 60)


def moment(text: str) -> str:
    """A date, with a time or without -> "seconds.nanoseconds". Raises ValueError."""
    text, zone = _zone(text)
    day, clock, rest = text.partition("T")
    year, month, of_month = day.split("-")
    seconds = _days(_number(year, 4), _number(month, 2), _number(of_month, 2)) * 86400
    rest, dot, fraction = rest.partition(".")
    parts = [_number(part, 2) for part in rest.split(":")] if clock else []
    hour, minute, second, *more = [*parts, 0, 0, 0][: max(3, len(parts))]
    if more or hour > 23 or minute > 59 or second > 59:
        raise ValueError(text)
    seconds += hour * 3600 + minute * 60 + second
    if dot:
        _number(fraction)
    if zone is None:
        seconds = _local(seconds)
    else:
        seconds -= zone
    return f"{seconds}.{fraction[:9]:0<9}"


def _local(seconds: int) -> int:
    """A clock's reading in the local zone -> unix time, with the offset of now, as Docker does."""
    return seconds - (time.localtime().tm_gmtoff or 0)


def stamp(text: str, name: str) -> str | None:
    """The stamp for query field `name`; None for "". Raises Failure."""
    if not text:
        return None
    if text != "0":
        try:
            return str((time.time_ns() - duration(text)) // 10**9)
        except ValueError:
            pass
    try:
        return moment(text)
    except ValueError:
        whole, dot, fraction = text.partition(".")
        digits = whole.removeprefix("-")
        if digits.isascii() and digits.isdigit() and (not dot or (fraction.isascii() and fraction.isdigit())):
            return text
    raise Failure(f'invalid value for "{name}": failed to parse value as time or duration: {quoted(text)}')
