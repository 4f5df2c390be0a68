"""A terminal for the tests: one program on a pty of its own, with somebody at the keyboard."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from typing import Any


class Terminal:
    """`argv` runs with the pty as its controlling terminal. Use as a context manager: nothing outlives it."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], *, rows: int = 24, columns: int = 80) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(rows, columns)
        self.before = self.modes()
        self.screen = b""
        self._read_up_to = 0
        # setsid(1) makes the terminal the controlling one and becomes the program: the pid stays.
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *argv], stdin=self.slave, stdout=self.slave, stderr=self.slave, env=dict(env)
        )

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)

    def modes(self) -> list[Any]:
        """termios of the program's side."""
        return termios.tcgetattr(self.slave)

    def is_raw(self) -> bool:
        return not self.modes()[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    def resize(self, rows: int, columns: int) -> None:
        """As a window manager does: the kernel sends SIGWINCH to whoever is in the foreground."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: str | bytes) -> None:
        os.write(self.master, keys.encode() if isinstance(keys, str) else keys)

    def expect(self, text: str, seconds: float = 15) -> str:
        """Everything on the screen since the last expect, up to and with `text`."""
        deadline = time.monotonic() + seconds
        while (at := self.screen.find(text.encode(), self._read_up_to)) < 0:
            if not self._read(deadline) and self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode} without {text!r}: {self.screen!r}")
            if time.monotonic() > deadline:
                raise AssertionError(f"no {text!r} on the screen: {self.screen!r}")
        start, self._read_up_to = self._read_up_to, at + len(text.encode())
        return self.screen[start : self._read_up_to].decode(errors="replace")

    def wait(self, seconds: float = 15) -> int:
        """The exit status; the screen is complete after it."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                raise AssertionError(f"does not end: {self.screen!r}")
            self._read(time.monotonic() + 0.05)
        while self._read(time.monotonic()):
            pass
        return self.process.returncode

    def _read(self, deadline: float) -> bool:
        """Whether there was something to read within a twentieth of a second."""
        left = max(0.0, min(0.05, deadline - time.monotonic()))
        if not select.select([self.master], [], [], left)[0]:
            return False
        try:
            data = os.read(self.master, 65536)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return False
        self.screen += data
        return bool(data)
