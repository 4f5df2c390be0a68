"""The head of a message as bytes: checks before h11 sees a request, and the lines of a response. Pure: no I/O.

h11 is lenient in places where another program on the way might read the same bytes differently; `check` refuses them
(request smuggling): bare LF, obs-fold, Content-Length twice or together with Transfer-Encoding.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from urllib.parse import unquote_to_bytes

from tare.http.message import HttpError

__all__ = ["check", "check_lines", "date", "decode_target", "header_map", "lines", "status_line"]

_LENGTH = re.compile(rb"\r\ncontent-length[ \t]*:([^\r]*)", re.IGNORECASE)
_FOLD = re.compile(rb"\r\n[ \t]")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ABSOLUTE = re.compile(r"https?://[^/?]*", re.IGNORECASE)
_STATUS = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def check_lines(received: bytes | bytearray, start: int = 0) -> None:
    """Refuses lines that no head may hold, in what arrived from `start` on; it need not be complete. HttpError 400."""
    if received[0] < 0x21:
        raise HttpError(400, "malformed request: no request line")
    if _BARE_LF.search(received, start):
        raise HttpError(400, "malformed request: a line ends in a bare line feed")
    if _FOLD.search(received, max(0, start - 2)):
        raise HttpError(400, "malformed request: folded header line")


def check(head: bytes) -> None:
    """Refuses what h11 would let pass in a whole head. HttpError 400."""
    check_lines(head)
    lengths = _LENGTH.findall(head)
    if len(lengths) > 1 or (lengths and b"," in lengths[0]):
        raise HttpError(400, "malformed request: more than one Content-Length")


def header_map(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """h11's list -> lower-case name to value; repeated names joined with ", ". HttpError 400 for CL with TE."""
    result: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        result[name] = f"{result[name]}, {value}" if name in result else value
    if "transfer-encoding" in result and "content-length" in result:
        raise HttpError(400, "malformed request: both Content-Length and Transfer-Encoding")
    return result


def decode_target(target: str) -> tuple[str, str]:
    """Request target -> (decoded path, raw query). HttpError 400 for control bytes or a path that is not UTF-8."""
    if not target.startswith("/"):
        target = _ABSOLUTE.sub("", target, count=1) if _ABSOLUTE.match(target) else target
    path, _, query = target.partition("?")
    if "%" in path:
        try:
            path = unquote_to_bytes(path).decode()
        except UnicodeDecodeError:
            raise HttpError(400, "malformed request: the path is not UTF-8") from None
        if _CONTROL.search(path):
            raise HttpError(400, "malformed request: control character in the path")
    return path or "/", query


def status_line(status: int) -> bytes:
    """The first line of a response with its line end."""
    return _STATUS.get(status) or b"HTTP/1.1 %d \r\n" % status


def lines(headers: Mapping[str, str]) -> bytes:
    """Header lines with line ends. ValueError if a value could start another header line."""
    text = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if text.count("\r") != len(headers) or text.count("\n") != len(headers) or "\0" in text:
        raise ValueError("a response header holds a line end or NUL")
    return text.encode("latin-1")


def date(now: float) -> bytes:
    """The Date header line (RFC 9110, 5.6.7), free of the locale."""
    t = time.gmtime(now)
    return (
        f"Date: {_DAYS[t.tm_wday]}, {t.tm_mday:02d} {_MONTHS[t.tm_mon - 1]} {t.tm_year} "
        f"{t.tm_hour:02d}:{t.tm_min:02d}:{t.tm_sec:02d} GMT\r\n"
    ).encode()
