"""Pseudoterminals of a given devpts instance, by descriptor only: no name below /dev is followed (CVE-2025-52565)."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from struct import pack

from . import libc

__all__ = ["open_pair", "open_peer", "set_controlling", "set_size", "unlock"]

# asm-generic/ioctls.h; the module termios has some of them, and is one module more in every shim
_TIOCSCTTY = 0x540E
_TIOCSWINSZ = 0x5414
_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441


def unlock(master: int) -> None:
    """unlockpt(3)."""
    fcntl.ioctl(master, _TIOCSPTLCK, pack("i", 0))


def open_pair(root: int, rows: int, columns: int) -> tuple[int, int]:
    """(master, slave) of the devpts below `root`. OSError ENOTTY if its ptmx is not the device it should be (N3): a
    file system of the container's own could answer the calls below with any descriptor."""
    master = libc.open_in_root(root, "dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    found = os.fstat(master)
    if not stat.S_ISCHR(found.st_mode) or found.st_rdev != os.makedev(5, 2):
        raise OSError(errno.ENOTTY, "what is there is not the pty multiplexer", "/dev/pts/ptmx")
    os.set_blocking(master, True)
    unlock(master)
    slave = open_peer(master)
    if rows and columns:
        set_size(slave, rows, columns)
    return master, slave


def open_peer(master: int) -> int:
    """The slave side of `master`, opened by the kernel itself (ioctl_tty(2), TIOCGPTPEER). A new descriptor."""
    return fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)


def set_controlling(fd: int) -> None:
    """Make `fd` the controlling terminal of this session leader."""
    fcntl.ioctl(fd, _TIOCSCTTY, 0)


def set_size(fd: int, rows: int, columns: int) -> None:
    fcntl.ioctl(fd, _TIOCSWINSZ, pack("HHHH", rows & 0xFFFF, columns & 0xFFFF, 0, 0))
