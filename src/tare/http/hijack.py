"""Hands a client's socket over to a handler: nothing lost, nothing read behind its back, nothing shut down.

Runs in the daemon's event loop. After `hand_over` asyncio neither reads from nor writes to a plain socket again; its
own descriptor is only closed, and close(2) of a duplicate does not end the connection for the others.
A TLS client cannot be handed over, as its records need the daemon's keys: it is pumped through a socket pair.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import TYPE_CHECKING

from tare.http import head
from tare.http.message import Disconnected, Hijack, Request
from tare.http.stream import Body

if TYPE_CHECKING:
    from tare.http.connection import Connection

__all__ = ["hand_over"]

log = logging.getLogger("tare.http")
_PIECE = 64 * 1024


async def hand_over(connection: Connection, request: Request, answer: Hijack, leftover: bytes, common: bytes) -> None:
    """Answers 101 or 200, then runs `answer.run`. The connection is closed on our side when this returns.

    Raises Disconnected if the client left before the answer was sent.
    """
    transport = connection.transport
    plain = not connection.tls
    if plain:
        transport.pause_reading()
        # With a limit of 0 `drain` returns only when the kernel has every byte of the answer.
        transport.set_write_buffer_limits(high=0)
    transport.write(_response_head(request, answer, common))
    await connection.drain()
    pump: asyncio.Task[None] | None = None
    if plain:
        sock = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        sock.setblocking(False)
    else:
        sock, pump = _start_pump(connection)
    try:
        await answer.run(sock, leftover)
        if pump is not None:
            await pump
    except Exception:
        # The head is out: the only answer left is the end of the connection.
        log.exception("hijacked %s %s", request.method, request.path)
        sock.close()
    except asyncio.CancelledError:
        sock.close()
        raise
    finally:
        if pump is not None:
            pump.cancel()
        transport.abort()


def _response_head(request: Request, answer: Hijack, common: bytes) -> bytes:
    """The lines moby sends (api/server/router/container/container_routes.go, postContainersAttach)."""
    extra = {"Content-Type": answer.content_type, **(answer.headers or {})}
    wanted = request.headers.get("upgrade")
    if not wanted:
        return b"HTTP/1.1 200 OK\r\n" + common + head.lines(extra) + b"\r\n"
    extra |= {"Connection": "Upgrade", "Upgrade": "h2c" if wanted.lower() == "h2c" else "tcp"}
    return b"HTTP/1.1 101 UPGRADED\r\n" + common + head.lines(extra) + b"\r\n"


def _start_pump(connection: Connection) -> tuple[socket.socket, asyncio.Task[None]]:
    """One end of a socket pair for the handler; the task carries bytes between the other end and the TLS transport."""
    theirs, ours = socket.socketpair()
    theirs.setblocking(False)
    ours.setblocking(False)
    return theirs, asyncio.get_running_loop().create_task(_pump(connection, ours))


async def _pump(connection: Connection, ours: socket.socket) -> None:
    inward = asyncio.get_running_loop().create_task(_pump_inward(connection.body, ours))
    loop = asyncio.get_running_loop()
    try:
        while data := await loop.sock_recv(ours, _PIECE):
            connection.transport.write(data)
            await connection.drain()
    except (Disconnected, ConnectionError):
        pass
    finally:
        inward.cancel()
        ours.close()


async def _pump_inward(body: Body, ours: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    try:
        while data := await body.read():
            await loop.sock_sendall(ours, data)
        ours.shutdown(socket.SHUT_WR)
    except (Disconnected, OSError):
        # A lost client ends the handler's input and output alike.
        try:
            ours.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
