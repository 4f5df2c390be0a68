"""Clients that attached before the start: kept with their sockets until there is a shim to hand them to.

Runs in the daemon's loop. A client that goes away meanwhile is dropped; one that only shut down its writing side (end
of its input) is not. Deliberately absent: streams of a running container, which bypass the daemon.
"""

from __future__ import annotations

import asyncio
import select

from tare.engine.rows import Live
from tare.engine.shims import Client

__all__ = ["Lobby"]


class Lobby:
    """Who waits, watched for hang-ups by an epoll of its own: the loop's cannot ask for a hang-up alone."""

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        self._waiting: dict[int, tuple[Live, Client]] = {}

    def add(self, live: Live, client: Client) -> None:
        """The client's socket belongs to the lobby until it is taken."""
        if self._epoll is None:
            self._epoll = select.epoll()
            asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._hung_up)
        live.pending.append(client)
        self._waiting[client.sock.fileno()] = (live, client)
        # No events asked for: EPOLLHUP and EPOLLERR are always reported (epoll_ctl(2)).
        self._epoll.register(client.sock.fileno(), 0)

    def take(self, live: Live) -> list[Client]:
        """All who wait for this container; they are the caller's now."""
        clients, live.pending = live.pending, []
        for client in clients:
            self._forget(client.sock.fileno())
        return clients

    def dismiss(self, live: Live) -> None:
        """Hang up on all who wait for this container."""
        for client in self.take(live):
            client.close()

    def close(self) -> None:
        for live, _ in list(self._waiting.values()):
            self.dismiss(live)
        if self._epoll is not None:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def _forget(self, fd: int) -> None:
        del self._waiting[fd]
        if self._epoll is not None:
            self._epoll.unregister(fd)

    def _hung_up(self) -> None:
        if self._epoll is None:
            return
        for fd, _ in self._epoll.poll(0):
            live, client = self._waiting[fd]
            live.pending.remove(client)
            self._forget(fd)
            client.close()
