"""Pseudoterminals of a given devpts instance, by descriptor only: no name below /dev is followed (CVE-2025-52565)."""

from __future__ import annotations

import fcntl
import os
import termios
from struct import pack

__all__ = ["get_size", "open_peer", "set_controlling", "set_size", "unlock"]

_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441


def unlock(master: int) -> None:
    """unlockpt(3)."""
    fcntl.ioctl(master, _TIOCSPTLCK, pack("i", 0))


def open_peer(master: int) -> int:
    """The slave side of `master`, opened by the kernel itself (ioctl_tty(2), TIOCGPTPEER). A new descriptor."""
    return fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)


def set_controlling(fd: int) -> None:
    """Make `fd` the controlling terminal of this session leader."""
    fcntl.ioctl(fd, termios.TIOCSCTTY, 0)


def set_size(fd: int, rows: int, columns: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, pack("HHHH", rows & 0xFFFF, columns & 0xFFFF, 0, 0))


def get_size(fd: int) -> tuple[int, int]:
    rows, columns = os.get_terminal_size(fd)[::-1]
    return rows, columns
