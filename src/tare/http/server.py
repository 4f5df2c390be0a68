"""The API server: listeners, the set of connections, their limits and one sweeper for all timeouts.

Runs in the daemon's event loop. While nobody is connected no timer runs. Deliberately absent: virtual hosts and
WebSocket framing; what a request means is the router's, what an exception means the `error` callback's business.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tare.errors import Invalid
from tare.http import head
from tare.http.connection import Connection, Phase
from tare.http.listen import bind_unix, inherit
from tare.http.message import Response
from tare.http.router import Router

if TYPE_CHECKING:
    import ssl as tls

__all__ = ["Limits", "Server"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds per server; times in seconds."""

    connections: int = 1024
    header_bytes: int = 64 * 1024
    header_s: float = 30.0
    idle_s: float = 75.0
    linger_s: float = 2.0
    sweep_s: float = 0.5


class Server:
    """The listeners and their connections. `error` turns what a handler raised into an answer.

    >>> server = Server(router, error=errors.answer)
    >>> await server.start_unix("/run/tare.sock", mode=0o660, gid=998)
    """

    def __init__(self, router: Router, *, error: Callable[[Exception], Response], limits: Limits | None = None) -> None:
        self.router = router
        self.error = error
        self.limits = limits or Limits()
        self.closing = False
        self.clock: Callable[[], float] = time.monotonic
        self._connections: dict[Connection, None] = {}
        """In the order of their arrival."""
        self._listeners: list[asyncio.Server] = []
        self._paths: list[tuple[str, int]] = []
        self._sweeper: asyncio.TimerHandle | None = None
        self._common = (0, b"")
        self._fixed = head.lines(router.headers)

    async def start_unix(self, path: str, mode: int = 0o660, gid: int = -1) -> None:
        """Listens on `path`, group `gid` (-1 = the process's). Raises Conflict, Denied, OSError as listen.bind_unix."""
        sock = bind_unix(path, mode, gid)
        self._paths.append((path, os.stat(path).st_ino))
        await self._listen(sock, None)

    async def start_tcp(self, host: str, port: int, context: tls.SSLContext) -> list[tuple[str, int]]:
        """Listens on every address of `host` ("" = all); returns the addresses bound. Raises OSError."""
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(
            lambda: Connection(self, tls=True),
            host or None,
            port,
            ssl=context,
            backlog=512,
        )
        self._listeners.append(listener)
        return [sock.getsockname()[:2] for sock in listener.sockets]

    async def from_fd(self, fd: int, context: tls.SSLContext | None = None) -> None:
        """Takes over a listening socket (socket activation). Raises Invalid if it is none, or TCP without `context`.

        A unix socket is served without TLS, as dockerd does: its permissions are its guard.
        """
        sock = inherit(fd)
        if sock.family == socket.AF_UNIX:
            context = None
        elif context is None:
            sock.close()
            raise Invalid(f"listen on fd {fd}: TCP is refused without --tlsverify, as whoever reaches it is root")
        await self._listen(sock, context)

    async def _listen(self, sock: socket.socket, context: tls.SSLContext | None) -> None:
        loop = asyncio.get_running_loop()
        create = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
        self._listeners.append(
            await create(
                lambda: Connection(self, tls=context is not None),
                sock=sock,
                ssl=context,
                backlog=512,
            )
        )

    async def close(self, grace: float = 5.0) -> None:
        """Stops accepting, ends streams and idle connections, gives other requests `grace` seconds to finish."""
        self.closing = True
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            for sock in listener.sockets:
                loop.remove_reader(sock.fileno())
        for _ in range(3):
            # What was accepted already becomes a Connection within two turns; a listener closed before that leaks it.
            await asyncio.sleep(0)
        for listener in self._listeners:
            listener.close()
        for path, inode in self._paths:
            try:
                if os.lstat(path).st_ino == inode:
                    os.unlink(path)
            except FileNotFoundError:
                pass
        waiting = []
        for connection in list(self._connections):
            if connection.task is None:
                connection.close()
            else:
                if connection.cancellable or connection.phase is Phase.HIJACKED:
                    connection.task.cancel()
                waiting.append(connection.task)
        if waiting:
            _done, late = await asyncio.wait(waiting, timeout=grace)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=1.0)
        for connection in list(self._connections):
            connection.transport.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()
        await asyncio.sleep(0)

    def common_lines(self) -> bytes:
        """The router's headers and Date, made once a second."""
        now = int(time.time())
        if self._common[0] != now:
            self._common = (now, self._fixed + head.date(now))
        return self._common[1]

    def admit(self, connection: Connection) -> bool:
        """Takes the connection in; False if there are too many and none is idle. The longest idle one gives way."""
        room = len(self._connections) < self.limits.connections
        if not room:
            victim = next((c for c in self._connections if c.phase is Phase.IDLE and not c.buffer), None)
            if victim is not None:
                victim.transport.abort()
                self.forget(victim)
                room = True
        self._connections[connection] = None
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(self.limits.sweep_s, self._sweep)
        return room

    def forget(self, connection: Connection) -> None:
        self._connections.pop(connection, None)

    def _sweep(self) -> None:
        """One timer for all connections; none runs while nobody is connected."""
        self._sweeper = None
        now = self.clock()
        for connection in list(self._connections):
            connection.sweep(now)
        if self._connections:
            self._sweeper = asyncio.get_running_loop().call_later(self.limits.sweep_s, self._sweep)
