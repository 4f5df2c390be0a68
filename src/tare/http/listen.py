"""Listening sockets of the API: unix sockets that only their group reaches, and sockets handed in by systemd.

Runs in the daemon before it serves; touches the file system only at the socket's own path. TCP listeners are made by
asyncio itself.
"""

from __future__ import annotations

import errno
import os
import socket
import stat

from tare.errors import Conflict, Denied, Invalid

__all__ = ["bind_unix", "inherit"]


def bind_unix(path: str, mode: int, gid: int) -> socket.socket:
    """A listening socket at `path` with `mode` from its first moment (CVE-2014-3499); `gid` -1 leaves the group.

    A socket nobody listens on is replaced. Conflict if somebody listens there or it is no socket, Denied if the
    directory can be changed by others, OSError from the kernel.
    """
    directory = os.stat(os.path.dirname(path) or ".")
    if directory.st_mode & stat.S_IWOTH and not directory.st_mode & stat.S_ISVTX:
        raise Denied(f"listen on {path}: its directory can be written by everybody")
    _clear(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        before = os.umask(0o777 & ~mode)
        try:
            sock.bind(path)
        except OSError as error:
            raise OSError(error.errno or errno.EINVAL, f"listen: {error.strerror or error}", path) from None
        finally:
            os.umask(before)
        if gid != -1:
            os.chown(path, -1, gid, follow_symlinks=False)
        sock.listen(512)
    except BaseException:
        sock.close()
        raise
    return sock


def inherit(fd: int) -> socket.socket:
    """The listening stream socket behind a descriptor that another process passed. Invalid if it is none."""
    try:
        listening = stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        raise Invalid(f"descriptor {fd} is not open") from None
    if listening:
        sock = socket.socket(fileno=fd)
        if sock.type == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            os.set_inheritable(fd, False)
            sock.setblocking(False)
            return sock
        sock.detach()
    raise Invalid(f"descriptor {fd} is not a listening stream socket")


def _clear(path: str) -> None:
    """Removes a socket that nobody listens on."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise Conflict(f"listen on {path}: it exists and is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass
    raise Conflict(f"listen on {path}: another process serves it")
