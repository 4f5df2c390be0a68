"""The user's terminal: its size, raw mode that is always undone, and text that cannot steer it.

A terminal left raw is a bug. Three ways lead out of raw mode: Raw.restore() by the session, restore_all() by main's
outermost handler, and the same from signals.py when somebody insists by a third signal.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Raw", "columns", "err", "is_terminal", "out", "printable", "restore_all", "size"]

DEFAULT_COLUMNS = 80
_raw: list[Raw] = []


def is_terminal(fd: int) -> bool:
    """False also for a descriptor that is closed."""
    try:
        return os.isatty(fd)
    except OSError:
        return False


def size(fd: int) -> tuple[int, int]:
    """(rows, columns); (0, 0) if `fd` is no terminal."""
    try:
        got = os.get_terminal_size(fd)
    except OSError:
        return 0, 0
    return got.lines, got.columns


def columns(fd: int) -> int:
    """Width for text that is wrapped."""
    return size(fd)[1] or DEFAULT_COLUMNS


class Raw:
    """`fd` in raw mode until restore(), as cfmakeraw(3) does it: echo, signals and line ends are made over there."""

    def __init__(self, fd: int) -> None:
        import termios as t

        self.fd = fd
        self.saved: list[Any] | None = t.tcgetattr(fd)
        mode = t.tcgetattr(fd)
        mode[0] &= ~(t.IGNBRK | t.BRKINT | t.PARMRK | t.ISTRIP | t.INLCR | t.IGNCR | t.ICRNL | t.IXON)
        mode[1] &= ~t.OPOST
        mode[2] = (mode[2] & ~(t.CSIZE | t.PARENB)) | t.CS8
        mode[3] &= ~(t.ECHO | t.ECHONL | t.ICANON | t.ISIG | t.IEXTEN)
        mode[6][t.VMIN], mode[6][t.VTIME] = 1, 0
        _raw.append(self)
        t.tcsetattr(fd, t.TCSANOW, mode)

    def restore(self) -> None:
        """Back to what it was; nothing the second time, nothing if the terminal is gone."""
        saved, self.saved = self.saved, None
        if saved is None:
            return
        import termios

        try:
            # TCSANOW: with TCSADRAIN a terminal stopped by ctrl-s would keep us here.
            termios.tcsetattr(self.fd, termios.TCSANOW, saved)
        except termios.error:
            pass
        _raw.remove(self)


def restore_all() -> None:
    """Undo every raw mode that is still on."""
    for raw in list(_raw):
        raw.restore()


def printable(text: str) -> str:
    """`text` with control bytes spelled out (\\x1b), but newline and tab: foreign words must not steer the terminal."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter in "\n\t" or not (letter < " " or "\x7f" <= letter < "\xa0") else f"\\x{ord(letter):02x}"
        for letter in text
    )


def _write(fd: int, text: str) -> None:
    data = memoryview(text.encode("utf-8", "surrogateescape"))
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            # Somebody who shares the terminal set it non-blocking.
            import select

            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()


def out(text: str) -> None:
    """Write to stdout, unbuffered. Raises OSError (EPIPE when the reader left)."""
    _write(1, text)


def err(text: str) -> None:
    """Write to stderr; a closed stderr is no reason to fail."""
    try:
        _write(2, text)
    except OSError:
        pass
