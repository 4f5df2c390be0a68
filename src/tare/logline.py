"""The daemon's own log: one line per event, `time=... level=... msg="..."`, whatever the event's text holds.

Runs in the daemon. Names, labels and errors come from containers and clients: control characters are escaped so that
none of them forges a line or drives a terminal. Deliberately absent: containers' output (engine/logs.py).
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
import traceback
from typing import TextIO

__all__ = ["Formatter", "open_file", "set_level", "start"]

MAX_FILE = 10 * 1024 * 1024
_LEVELS = {"debug": 10, "info": 20, "warn": 30, "error": 40, "fatal": 50}
_NAMES = {number: name for name, number in _LEVELS.items()}
_SPECIAL = re.compile('[\x00-\x1f"\\\\\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]')
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\"}


class Formatter(logging.Formatter):
    """logfmt, as dockerd's log; an exception's traceback goes into the same line as stack="..."."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        level = _NAMES.get(record.levelno, "info")
        try:
            text = record.getMessage()
        except (TypeError, ValueError):
            text = f"{record.msg!r} {record.args!r}"
        line = f'time="{moment}.{int(record.msecs):03d}Z" level={level} msg="{escape(text)}"'
        if record.exc_info and record.exc_info[0] is not None:
            line += f' stack="{escape("".join(traceback.format_exception(*record.exc_info)))}"'
        return line


def escape(text: str) -> str:
    """Text for a quoted value: no line end, control character or bidirectional override is left."""
    return _SPECIAL.sub(lambda m: _SHORT.get(m[0]) or f"\\u{ord(m[0]):04x}", text)


def start(level: str, file: TextIO | None = None) -> None:
    """Sends every logger's events of `level` and above to `file` or stderr."""
    handler = logging.StreamHandler(file or sys.stderr)
    handler.setFormatter(Formatter())
    root = logging.getLogger()
    for former in root.handlers[:]:
        root.removeHandler(former)
    root.addHandler(handler)
    # A full disk or a closed pipe must not stop the daemon.
    logging.raiseExceptions = False
    set_level(level)


def set_level(level: str) -> None:
    logging.getLogger().setLevel(_LEVELS[level])


def open_file(path: str) -> TextIO:
    """The log file for appending, 0640; one of more than 10 MiB becomes <path>.1. Raises OSError."""
    try:
        if os.stat(path).st_size > MAX_FILE:
            os.replace(path, f"{path}.1")
    except FileNotFoundError:
        pass
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
    return open(fd, "a", buffering=1, encoding="utf-8", errors="backslashreplace")
