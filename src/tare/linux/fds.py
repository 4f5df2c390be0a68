"""Descriptors on their way between processes: SEQPACKET frames with SCM_RIGHTS, sealed memfds."""

from __future__ import annotations

import fcntl
import os
import socket
from array import array  # socket loads it anyway
from errno import EINVAL

from . import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

__all__ = ["Channel", "memfd_sealed", "receive", "send"]

_FRAME = 192 * 1024
_FDS = 64
_SPACE = socket.CMSG_SPACE(_FDS * 4)
_RIGHTS = (socket.SOL_SOCKET, socket.SCM_RIGHTS)
# Plain numbers: with the module's enums each "&" is a page of enum machinery made private in every shim (0.1 MB).
_CLOEXEC, _NOSIGNAL = int(socket.MSG_CMSG_CLOEXEC), int(socket.MSG_NOSIGNAL)
_PEEK = int(socket.MSG_PEEK) | int(socket.MSG_DONTWAIT)
_CUT = int(socket.MSG_TRUNC) | int(socket.MSG_CTRUNC)
_MFD_EXEC = 0x10
"""Linux 6.3: executable even where vm.memfd_noexec says that memfds are not."""
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Channel:
    """One end of a SEQPACKET socket that carries one JSON object and up to 64 descriptors per frame."""

    __slots__ = ("_sock",)

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        return cls(ours), cls(theirs)

    @classmethod
    def from_fd(cls, fd: int) -> Channel:
        """Takes the descriptor over."""
        return cls(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=fd))

    def fileno(self) -> int:
        return self._sock.fileno()

    def setblocking(self, blocking: bool) -> None:
        self._sock.setblocking(blocking)

    def send(self, message: Any, fds: Sequence[int] = ()) -> None:
        """One frame. The descriptors are duplicated by the kernel: the caller still owns its own.

        OSError EPIPE or ECONNRESET when the other side is gone, EMSGSIZE above the socket's buffer, BlockingIOError
        on a full non-blocking socket.
        """
        data = jsontext.dumps(message).encode()
        send(self._sock, data, fds)

    def recv(self) -> tuple[dict[str, Any], list[int]] | None:
        """The next frame with its descriptors (O_CLOEXEC, the caller's to close), None at the end of the stream.

        BlockingIOError on an empty non-blocking socket, ValueError for a frame that is no JSON object.
        """
        try:
            data, fds, whole = receive(self._sock)
        except ConnectionResetError:
            return None
        if not data:
            return None
        try:
            message = None if not whole else jsontext.loads(data)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            for fd in fds:
                os.close(fd)
            raise ValueError("a frame must be one whole JSON object")
        return message, fds

    def ended(self) -> bool:
        """Whether the other side has closed and nothing is left to receive; takes nothing away."""
        try:
            return not self._sock.recv(1, _PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        self._sock.close()

    def detach(self) -> int:
        """The bare descriptor, no longer owned by this object."""
        return self._sock.detach()


def send(sock: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    """One frame with copies of `fds` (unix(7), SCM_RIGHTS); no SIGPIPE."""
    sock.sendmsg([data], [(*_RIGHTS, array("i", fds))] if fds else [], _NOSIGNAL)


def receive(sock: socket.socket) -> tuple[bytes, list[int], bool]:
    """(data, descriptors with O_CLOEXEC, whether nothing was cut off) of a frame; no data at the end of the stream."""
    data, ancillary, flags, _ = sock.recvmsg(_FRAME, _SPACE, _CLOEXEC)
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if (level, kind) == _RIGHTS:
            fds += array("i", payload)
    return data, fds, not flags & _CUT


def memfd_sealed(name: str, data: bytes) -> int:
    """An anonymous file with `data` that nobody can change any more (memfd_create(2), F_SEAL_*). O_CLOEXEC."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create(name, flags | _MFD_EXEC)
    except OSError as error:
        if error.errno != EINVAL:
            raise
        fd = os.memfd_create(name, flags)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd
