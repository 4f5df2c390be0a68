"""Signals as data for the copy loop: handlers queue numbers, a pipe wakes poll(2).

`import signal` would pull enum; `_signal` is its C half. Nothing but a session (session.py) installs handlers.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os

from tare.cli import terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

__all__ = ["ENDING", "FORWARDED", "SIGWINCH", "Signals", "name"]

SIGWINCH = 28
ENDING = (1, 2, 3, 15)
"""HUP, INT, QUIT, TERM: what ends a client that forwards nothing."""
KEPT = frozenset((4, 5, 7, 8, 9, 11, 13, 17, 19, 21, 22, 23, SIGWINCH, 31, 32, 33))
"""Never forwarded: faults, KILL, STOP, PIPE, CHLD, TTIN, TTOU, URG, glibc's own; WINCH becomes a resize (httpd takes a
forwarded WINCH for "stop gracefully")."""
FORWARDED = tuple(number for number in range(1, 65) if number not in KEPT)
PATIENCE = 3


def name(number: int) -> str:
    """15 -> "TERM", as the API takes it; the number itself for real-time signals."""
    for word, value in vars(_signal).items():
        if value == number and word.startswith("SIG") and "_" not in word and not word.startswith("SIGRT"):
            return str(word[3:])
    return str(number)


class Signals:
    """Catch `numbers` until close(). `fd` is readable while something is queued."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self.fd, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._queue: list[int] = []
        self._unheard = 0
        self._old: dict[int, Any] = {}
        self._old_fd = _signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        for number in numbers:
            self._old[number] = _signal.signal(number, self._caught)

    def _caught(self, number: int, _frame: object) -> None:
        self._queue.append(number)
        if number in ENDING:
            self._unheard += 1
            if self._unheard >= PATIENCE:
                # The loop is stuck (a daemon that does not answer) and the user insists.
                terminal.restore_all()
                os._exit(128 + number)

    def take(self) -> list[int]:
        """What came since the last call, oldest first."""
        try:
            os.read(self.fd, 4096)
        except BlockingIOError:
            pass
        queue, self._queue, self._unheard = self._queue, [], 0
        return queue

    def close(self) -> None:
        """Put the old handlers back."""
        _signal.set_wakeup_fd(self._old_fd, warn_on_full_buffer=False)
        for number, handler in self._old.items():
            if handler is not None:
                _signal.signal(number, handler)
        self._old.clear()
        os.close(self.fd)
        os.close(self._write_end)
