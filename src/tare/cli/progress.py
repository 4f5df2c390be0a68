"""Progress of pull and load: the JSON messages of the API as lines, in place on a terminal."""

from __future__ import annotations

import os

from tare.cli import terminal
from tare.cli.failure import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

__all__ = ["show"]

BAR = 20


def _bytes(number: float) -> str:
    """1234567 -> "1.235MB" (powers of 1000, four digits, as Docker shows them)."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.4g}{unit}"
        number /= 1000
    return f"{number:.4g}TB"


def _bar(detail: dict[str, Any]) -> str:
    current, total = detail.get("current") or 0, detail.get("total") or 0
    if not current or not isinstance(current, int) or not isinstance(total, int):
        return ""
    if total <= 0:
        return f" {_bytes(current)}"
    done = min(BAR, BAR * current // total)
    return f" [{'=' * done}>{' ' * (BAR - done)}]  {_bytes(current)}/{_bytes(total)}"


def show(messages: Iterable[dict[str, Any]], *, fd: int = 1, quiet: bool = False) -> None:
    """Write every message to `fd`. Raises Failure with the text of an error message, which ends the stream."""
    write = terminal.err if fd == 2 else terminal.out
    live = terminal.is_terminal(fd) and os.environ.get("TERM") not in (None, "", "dumb")
    rows: dict[str, int] = {}
    for message in messages:
        problem = message.get("errorDetail") or message.get("error")
        if problem:
            text = problem.get("message", "") if isinstance(problem, dict) else str(problem)
            raise Failure(str(text))
        if quiet:
            continue
        if message.get("stream"):
            write(terminal.printable(str(message["stream"])))
            continue
        if "status" not in message:
            continue
        identity = terminal.printable(str(message.get("id") or ""))
        status = terminal.printable(str(message["status"]))
        bar = _bar(message.get("progressDetail") or {})
        if bar and not live:
            continue
        line = (f"{identity}: " if identity else "") + status + bar
        if live and identity:
            _in_place(write, rows, identity, line)
        else:
            write(line + "\n")
            rows.clear()


def _in_place(write: Any, rows: dict[str, int], identity: str, line: str) -> None:
    """One line per id; the cursor rests below the last."""
    if identity not in rows:
        rows[identity] = len(rows)
        write("\n")
    up = len(rows) - rows[identity]
    write(f"\x1b[{up}A\r\x1b[2K{line}\x1b[{up}B\r")
