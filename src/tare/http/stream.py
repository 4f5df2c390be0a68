"""Bytes on their way: a request body with backpressure, JSON lines, and chunk framing. Runs in the daemon's loop.

Deliberately absent: sockets (server.py) and what the lines mean (api/).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from tare.http.message import Disconnected

__all__ = ["LAST_CHUNK", "Body", "chunk", "json_lines"]

HIGH_WATER = 256 * 1024
"""Bytes of a body kept for a handler that does not read; above it the connection is not read any more."""
LAST_CHUNK = b"0\r\n\r\n"
_encode = msgspec.json.encode


def chunk(data: bytes) -> bytes:
    """One chunk of the chunked transfer coding (RFC 9112, 7.1); `data` must not be empty."""
    return b"%x\r\n%b\r\n" % (len(data), data)


async def json_lines(values: AsyncIterator[Any], end: bytes = b"\r\n") -> AsyncIterator[bytes]:
    """Each value as one JSON document and `end`; Docker's progress uses "\\r\\n", its events "\\n"."""
    try:
        async for value in values:
            yield _encode(value) + end
    finally:
        close = getattr(values, "aclose", None)
        if close is not None:
            await close()


class Body:
    """What has arrived of a request body and was not read yet. One reader at a time.

    `demand` is called when the reader waits or has made room: the connection then parses and reads on.
    """

    __slots__ = ("_demand", "_error", "_parts", "_size", "_waiter", "complete")

    def __init__(self, demand: Callable[[], None]) -> None:
        self._demand = demand
        self._parts: deque[bytes] = deque()
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self.complete = False
        """The end of the message was parsed (it may still have to be read here)."""

    @property
    def full(self) -> bool:
        return self._size >= HIGH_WATER

    @property
    def waiting(self) -> bool:
        """A reader wants bytes that have not come."""
        return self._waiter is not None

    def feed(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        self._wake()

    def finish(self) -> None:
        self.complete = True
        self._wake()

    def fail(self, error: Exception) -> None:
        """The next read past what has arrived raises `error`; the first error counts."""
        if not self.complete and self._error is None:
            self._error = error
            self._wake()

    async def read(self) -> bytes:
        """What has arrived, b"" at the end. Raises what `fail` was given; RuntimeError for a second reader."""
        while not self._parts:
            if self.complete:
                return b""
            if self._error is not None:
                raise self._error
            if self._waiter is not None:
                raise RuntimeError("a request body has one reader")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                self._demand()
                await self._waiter
            finally:
                self._waiter = None
        data = self._parts.popleft() if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        if not self.complete:
            self._demand()
        return data

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def lose(self) -> None:
        """The client went away."""
        self.fail(Disconnected("the client closed the connection within the request body"))
