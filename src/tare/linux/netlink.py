"""rtnetlink(7): messages as bytes, one socket, acknowledgements checked. Links only, so far."""

from __future__ import annotations

import os
import socket
from struct import calcsize, pack, unpack_from

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["attribute", "link_up", "message", "request"]

_NLM_F_REQUEST, _NLM_F_ACK = 0x1, 0x4
_NLMSG_ERROR = 2
_RTM_NEWLINK = 16
_IFF_UP = 1
_HEADER = "IHHII"


def attribute(kind: int, payload: bytes) -> bytes:
    """struct rtattr with its padding."""
    length = 4 + len(payload)
    return pack("HH", length, kind) + payload + bytes(-length % 4)


def message(kind: int, sequence: int, body: bytes, flags: int = 0) -> bytes:
    """struct nlmsghdr + body; an acknowledgement is always asked for."""
    length = calcsize(_HEADER) + len(body)
    return pack(_HEADER, length, kind, flags | _NLM_F_REQUEST | _NLM_F_ACK, sequence, 0) + body + bytes(-length % 4)


def request(sock: socket.socket, bodies: Sequence[tuple[int, bytes, int]]) -> None:
    """Send all (type, body, flags) in one batch and wait for each acknowledgement; the first error is raised."""
    sock.send(b"".join(message(kind, n, body, flags) for n, (kind, body, flags) in enumerate(bodies)))
    pending = len(bodies)
    while pending:
        data = sock.recv(65536)
        offset = 0
        while offset + 16 <= len(data):
            length, kind, _, sequence, _ = unpack_from(_HEADER, data, offset)
            if kind == _NLMSG_ERROR:
                (number,) = unpack_from("i", data, offset + 16)
                if number:
                    raise OSError(-number, f"netlink request {sequence}: {os.strerror(-number)}")
                pending -= 1
            offset += (length + 3) & ~3


def link_up(index: int) -> None:
    """Set IFF_UP on interface `index` of this network namespace; 1 is always lo."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as sock:
        # struct ifinfomsg: family, pad, type, index, flags, change
        request(sock, [(_RTM_NEWLINK, pack("BxHiII", 0, 0, index, _IFF_UP, _IFF_UP), 0)])
