"""What one daemon holds on its host while it lives: locks, pid file, directories, limits, sockets handed in by systemd.

Runs in the daemon's start, as root. A lock that the kernel drops with its holder tells a stale pid file from a live
one, whatever pid stands in it (a reused pid once kept dockerd from starting). Deliberately absent: containers.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import socket
import stat
import sys
from collections.abc import Mapping

from tare.errors import Conflict, Denied, Invalid, Unavailable

__all__ = ["Foothold", "activated", "group_id", "notify", "private_directory", "raise_nofile", "watch_children"]

_GROUP_FILE_LIMIT = 1024 * 1024
_FIRST_FD = 3
"""SD_LISTEN_FDS_START of sd_listen_fds(3)."""


class Foothold:
    """The locks of one daemon, kept until `release` or its death. Taken before anything below them is touched."""

    def __init__(self) -> None:
        self._fds: list[int] = []
        self._pidfile = ""

    def lock(self, directory: str) -> None:
        """Claims `directory` for this process. Conflict if another daemon has it; OSError."""
        self._hold(f"{directory}/lock", f"{directory} is in use by another tared")

    def write_pid(self, path: str) -> None:
        """The pid file; a stale one is taken over. Conflict if its owner lives; OSError."""
        self._hold(path, f"pid file {path} belongs to another tared", mode=0o644)
        self._pidfile = path

    def release(self) -> None:
        """Removes the pid file and gives the locks back."""
        if self._pidfile:
            try:
                os.unlink(self._pidfile)
            except OSError:
                pass
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def _hold(self, path: str, conflict: str, *, mode: int = 0o600) -> None:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        except OSError as error:
            raise OSError(error.errno or 0, "open", path) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).strip().decode("ascii", "replace")
            os.close(fd)
            raise Conflict(f"{conflict} (process {holder})" if holder.isdigit() else conflict) from None
        self._fds.append(fd)
        os.fchmod(fd, mode)
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)


def private_directory(path: str, mode: int) -> None:
    """Makes `path` with `mode`, ancestors with 0755 whatever the umask. Denied if it is another user's; OSError."""
    missing = []
    parent = path.rstrip("/")
    while not os.path.lexists(parent):
        missing.append(parent)
        parent = os.path.dirname(parent) or "/"
    try:
        for directory in reversed(missing):
            os.mkdir(directory, mode)
            os.chmod(directory, mode if directory == missing[0] else 0o755)
    except OSError as error:
        raise OSError(error.errno or 0, "create directory", path) from None
    status = os.stat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise Denied(f"{path} is not a directory")
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Denied(f"{path} belongs to, or can be written by, another user")


def raise_nofile() -> None:
    """Own soft limit of open files to the hard one; children get it back lowered by their own settings."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        # An unlimited hard limit above fs.nr_open; the soft limit stays as it is.
        pass


def group_id(name: str, path: str = "/etc/group") -> int:
    """Number of the group that may use the socket: `name`, a number, or for "" docker, else tare, else 0.

    Invalid for a group that is not there. The file is read directly, as everywhere here (CVE-2019-14271).
    """
    if name.isascii() and name.isdigit() and len(name) < 10:
        return int(name)
    try:
        with open(path, "rb") as file:
            lines = file.read(_GROUP_FILE_LIMIT).decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        lines = []
    known: dict[str, int] = {}
    for line in lines:
        fields = line.split(":")
        if len(fields) >= 3 and fields[2].isascii() and fields[2].isdigit() and len(fields[2]) < 11:
            known.setdefault(fields[0], int(fields[2]))
    if name:
        if name not in known:
            raise Invalid(f"group {name} not found")
        return known[name]
    return known.get("docker", known.get("tare", 0))


def activated(environment: Mapping[str, str], pid: int, name: str = "") -> list[int]:
    """Descriptors passed by socket activation (sd_listen_fds(3)); all, or those called or numbered `name`.

    Unavailable if there are none for this process.
    """
    count = environment.get("LISTEN_FDS", "")
    fds: list[int] = []
    if environment.get("LISTEN_PID") == str(pid) and count.isascii() and count.isdigit() and len(count) < 5:
        fds = list(range(_FIRST_FD, _FIRST_FD + int(count)))
    if name:
        names = environment.get("LISTEN_FDNAMES", "").split(":")
        fds = [fd for index, fd in enumerate(fds) if str(fd) == name or names[index : index + 1] == [name]]
    if not fds:
        raise Unavailable("no sockets found via socket activation: make sure the service was started by systemd")
    return fds


def notify(message: str) -> None:
    """Tells systemd, if it asked (sd_notify(3)); never fails."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in {"/", "@"}:
        return
    target = "\0" + address[1:] if address[0] == "@" else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto(message.encode(), target)
    except OSError:
        pass


def watch_children() -> None:
    """Children are waited for by pidfd; CPython 3.11 would start a thread for each, 3.12 and later do it this way."""
    if sys.version_info < (3, 12):
        asyncio.set_child_watcher(asyncio.PidfdChildWatcher())
