"""What people read: sizes, durations, dates, shortened ids and texts, as Docker's client writes them. Pure."""

from __future__ import annotations

import time

__all__ = ["ago", "binary_size", "date", "duration", "ellipsis", "safe", "short_id", "size", "width"]

DECIMAL = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")
BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB")


def _scaled(number: float, base: float, units: tuple[str, ...], precision: int) -> str:
    index = 0
    while number >= base and index < len(units) - 1:
        number /= base
        index += 1
    shown = f"{number:.{precision}g}"
    return shown + units[index]


def size(number: float, precision: int = 4) -> str:
    """1234567 -> "1.235MB": powers of 1000 (go-units HumanSize)."""
    return _scaled(number, 1000.0, DECIMAL, precision)


def binary_size(number: float) -> str:
    """1048576 -> "1MiB": powers of 1024 (go-units BytesSize)."""
    return _scaled(number, 1024.0, BINARY, 4)


def duration(seconds: float) -> str:
    """go-units HumanDuration: "About a minute", "4 hours"."""
    whole = int(seconds)
    minutes, hours = whole // 60, int(seconds / 3600 + 0.5)
    if whole < 1:
        return "Less than a second"
    if whole < 60:
        return "1 second" if whole == 1 else f"{whole} seconds"
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
    return f"{whole // 3600 // 24 // 365} years"


def ago(stamp: float) -> str:
    """Of a unix time: "3 minutes ago"."""
    return duration(time.time() - stamp) + " ago"


def date(stamp: int) -> str:
    """A unix time in local time, as Go's time.Time prints itself: "2024-05-06 07:08:09 +0200 CEST"."""
    return time.strftime("%Y-%m-%d %H:%M:%S %z %Z", time.localtime(stamp))


def short_id(text: str) -> str:
    """"sha256:0123456789abcdef" -> "0123456789ab"."""
    return text[text.find(":") + 1 :][:12]


def safe(text: str) -> str:
    """`text` with every control byte spelled out (\\x1b), newline and tab too: it goes into a line of a table."""
    if text.isprintable():
        return text
    return "".join(
        f"\\x{ord(letter):02x}" if letter < " " or "\x7f" <= letter < "\xa0" else letter for letter in text
    )


def _letter_width(letter: str) -> int:
    import unicodedata

    if unicodedata.combining(letter) or unicodedata.category(letter) in ("Mn", "Me", "Cf", "Cc"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def width(text: str) -> int:
    """Columns that `text` takes on a terminal."""
    return len(text) if text.isascii() else sum(map(_letter_width, text))


def ellipsis(text: str, columns: int) -> str:
    """`text` cut to `columns`, the last of them an ellipsis."""
    if len(text) * 2 <= columns or width(text) <= columns:
        return text
    used = 0
    for index, letter in enumerate(text):
        used += 1 if letter.isascii() else _letter_width(letter)
        if used > columns - 1:
            return text[:index] + "…"
    return text
