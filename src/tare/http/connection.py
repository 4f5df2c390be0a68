"""One client's connection: HTTP/1.1 by h11 on asyncio.Protocol, one task per request.

Runs in the daemon's event loop. h11 parses, this file writes. Deliberately absent: HTTP/2, compression, ranges, and any
meaning of a request: routes and the mapping of errors belong to the server.

Life of a connection: IDLE -> (head complete) BUSY -> (answered) IDLE ... -> LINGER -> closed. A hijacked connection
(hijack.py) leaves this machine for good.
"""

from __future__ import annotations

import asyncio
import logging
import math
import select
import socket
import struct
from asyncio import Transport
from enum import Enum
from typing import TYPE_CHECKING, cast

import h11

from tare.http import head
from tare.http.hijack import hand_over
from tare.http.message import (
    Answer,
    Disconnected,
    Hijack,
    HttpError,
    Peer,
    Request,
    Response,
    Stream,
    json_response,
)
from tare.http.stream import LAST_CHUNK, Body, chunk

if TYPE_CHECKING:
    from tare.http.server import Server

__all__ = ["Connection", "Phase"]

log = logging.getLogger("tare.http")
_PIPELINE = 64 * 1024
"""Bytes of following requests kept while one is answered."""
_DISCARD = 256 * 1024
"""Bytes of an unread body that are thrown away to keep the connection, as Go's net/http does."""
_EVENTS = 256
"""Pieces of a body parsed before other connections have their turn."""
_TURN = 512 * 1024
"""Bytes of a Stream sent before other connections have their turn."""


class Phase(Enum):
    IDLE = "idle"
    BUSY = "busy"
    LINGER = "linger"
    HIJACKED = "hijacked"


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, server: Server, *, tls: bool) -> None:
        self.server = server
        self.tls = tls
        self.transport: Transport = cast(Transport, None)
        self.phase = Phase.IDLE
        self.deadline = math.inf
        self.buffer = bytearray()
        """What was received and belongs to no parsed request yet."""
        self.body = Body(self._demand)
        self.task: asyncio.Task[None] | None = None
        self.cancellable = False
        """The task serves only the client's wish to read on: a Stream."""
        self.gone = False
        self.peer = Peer()
        self._family = socket.AF_UNSPEC
        self._scanned = 0
        self._parser: h11.Connection | None = None
        self._expects = False
        self._keep = True
        self._head_only = False
        self._chunks = True
        self._paused = False
        self._eof = False
        self._blocked: asyncio.Future[None] | None = None
        self._leaving: asyncio.Future[None] | None = None

    # -- what asyncio calls ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(Transport, transport)
        sock = transport.get_extra_info("socket")
        self._family = sock.family
        if self._family == socket.AF_UNIX:
            self.peer = Peer(*struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)))
        self.deadline = self.server.clock() + self.server.limits.header_s
        if not self.server.admit(self):
            self._refuse(HttpError(503, "too many connections"))

    def data_received(self, data: bytes) -> None:
        if self.phase is Phase.IDLE:
            self.buffer += data
            self._next()
        elif self.phase is Phase.BUSY:
            if self._parser is not None:
                self._parser.receive_data(data)
                self._parse_body()
            else:
                self.buffer += data
                self.regulate()
        elif self.phase is Phase.HIJACKED:
            self.body.feed(data)
            self.regulate()

    def eof_received(self) -> bool:
        self._eof = True
        if self.phase is Phase.HIJACKED:
            self.body.finish()
            return not self.tls
        if self.phase is not Phase.BUSY:
            return False
        if self._parser is not None:
            self._parser.receive_data(b"")
            self._parse_body()
        # A unix client that only shut its sending side down (nc -N, a script) may still read; over TCP nobody can tell.
        if self._family != socket.AF_UNIX or self._hung_up():
            self._depart()
        return not self.tls

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.forget(self)
        self.deadline = math.inf
        self._keep = False
        self.body.lose()
        self.resume_writing()
        self._depart()

    def pause_writing(self) -> None:
        if self._blocked is None:
            self._blocked = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._blocked is not None:
            if not self._blocked.done():
                self._blocked.set_result(None)
            self._blocked = None

    # -- the request's side ------------------------------------------------------------------------------------------

    async def read(self) -> bytes:
        """Source.read: the next bytes of the body; asks a waiting client to send it."""
        if self._expects and not self.body.complete:
            self._expects = False
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return await self.body.read()

    async def disconnected(self) -> None:
        """Source.disconnected."""
        if not self.gone:
            if self._leaving is None:
                self._leaving = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._leaving)

    async def drain(self) -> None:
        """Returns when the client has read enough for more to be written. Raises Disconnected."""
        if self._blocked is not None:
            await asyncio.shield(self._blocked)
        if self.transport.is_closing():
            raise Disconnected("the client closed the connection")

    def sweep(self, now: float) -> None:
        """Called twice a second by the server: timeouts, and departures seen by nobody because nothing is read."""
        if now >= self.deadline:
            self._expire()
        elif (self._paused or self._eof) and self.phase is Phase.BUSY and not self.gone and self._hung_up():
            self.body.lose()
            self._depart()

    def close(self) -> None:
        """Ends the connection as soon as what was written has left; within linger_s in any case."""
        self._keep = False
        if self.transport.is_closing():
            self.transport.abort()
            return
        self.phase = Phase.LINGER
        self.deadline = self.server.clock() + self.server.limits.linger_s
        self.transport.close()

    # -- parsing -----------------------------------------------------------------------------------------------------

    def _next(self) -> None:
        """Starts the request at the front of the buffer if its head is complete."""
        buffer, limit = self.buffer, self.server.limits.header_bytes
        while buffer[:2] == b"\r\n":
            # RFC 9112, 2.2: an empty line before the request line is to be ignored.
            del buffer[:2]
        if not buffer:
            return
        end = buffer.find(b"\r\n\r\n", max(0, self._scanned - 3))
        if not self._scanned:
            self.deadline = self.server.clock() + self.server.limits.header_s
        try:
            if end > limit or (end < 0 and len(buffer) > limit):
                raise HttpError(431, f"request header is larger than {limit} bytes")
            if end < 0:
                head.check_lines(buffer, self._scanned)
                self._scanned = len(buffer)
                return
            self._begin(bytes(buffer[: end + 4]))
        except HttpError as error:
            self._refuse(error)
        except h11.RemoteProtocolError as error:
            status = 501 if error.error_status_hint == 501 else 400
            self._refuse(HttpError(status, f"malformed request: {error}"))

    def _begin(self, raw: bytes) -> None:
        head.check(raw)
        parser = h11.Connection(h11.SERVER, self.server.limits.header_bytes)
        parser.receive_data(raw)
        event = parser.next_event()
        if not isinstance(event, h11.Request):
            raise HttpError(400, "malformed request: no request line")
        if event.http_version not in (b"1.1", b"1.0"):
            raise HttpError(505, "only HTTP/1.1 is spoken here")
        headers = head.header_map(event.headers)
        target = event.target.decode("ascii")
        path, query = head.decode_target(target)
        method = event.method.decode("ascii")
        request = Request(method, target, path, query, headers, self, self.peer)

        del self.buffer[: len(raw)]
        self._scanned = 0
        self.deadline = math.inf
        self.phase = Phase.BUSY
        self._head_only = method == "HEAD"
        self._chunks = event.http_version == b"1.1"
        self._keep = self._chunks and "close" not in headers.get("connection", "").lower()
        self._expects = parser.they_are_waiting_for_100_continue
        self.body = Body(self._demand)
        if "transfer-encoding" in headers or headers.get("content-length", "0").strip("0"):
            self._parser = parser
            if self.buffer:
                # h11 takes an empty piece for the end of the connection.
                parser.receive_data(bytes(self.buffer))
                self.buffer.clear()
            self._parse_body()
        else:
            self.body.complete = True
            self.regulate()
        self.task = asyncio.get_running_loop().create_task(self._serve(request))

    def _parse_body(self) -> None:
        """Moves what has arrived from h11 into the body until that is full, then stops reading."""
        parser = self._parser
        count = 0
        try:
            while parser is not None and not self.body.full:
                event = parser.next_event()
                if isinstance(event, h11.Data):
                    self.body.feed(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    self.buffer += parser.trailing_data[0]
                    self._parser = parser = None
                    self.body.finish()
                else:
                    break
                count += 1
                if count == _EVENTS and parser is not None:
                    asyncio.get_running_loop().call_soon(self._parse_body)
                    break
        except h11.RemoteProtocolError as error:
            self._parser = None
            self._keep = False
            if self._eof:
                self.body.lose()
            else:
                self.body.fail(HttpError(400, f"malformed request body: {error}"))
        self.regulate()

    def _demand(self) -> None:
        if self._parser is not None:
            self._parse_body()
        else:
            self.regulate()

    def regulate(self) -> None:
        """Reads from the socket as long as somebody takes what comes."""
        full = self.body.full or len(self.buffer) > _PIPELINE
        if full and not self._paused:
            self._paused = True
            self.transport.pause_reading()
        elif self._paused and not full:
            self._paused = False
            self.transport.resume_reading()

    # -- answering ---------------------------------------------------------------------------------------------------

    async def _serve(self, request: Request) -> None:
        try:
            answer = await self._answer(request)
            if isinstance(answer, Hijack):
                await self._hijack(request, answer)
                return
            if isinstance(answer, Stream):
                await self._send_stream(answer)
            else:
                await self._send(answer)
            self._finish()
        except Disconnected:
            self.transport.abort()
        except asyncio.CancelledError:
            self.transport.abort()
            if not self.gone:
                raise
        except Exception:
            log.exception("answer %s %s", request.method, request.path)
            self.transport.abort()
        finally:
            self.task = None

    async def _answer(self, request: Request) -> Answer:
        try:
            log.debug("Calling %s %s", request.method, request.target)
            return await self.server.router.match(request)(request)
        except Disconnected:
            raise
        except HttpError as error:
            self._keep = False
            return json_response({"message": str(error)}, error.status)
        except Exception as error:
            return self.server.error(error)

    async def _send(self, answer: Response) -> None:
        if self._keep and not self.body.complete:
            await self._discard_body()
        bodyless = answer.status in (204, 304)
        parts = [head.status_line(answer.status), self.server.common_lines()]
        if answer.body or answer.content_type:
            parts.append(head.lines({"Content-Type": answer.content_type or "application/octet-stream"}))
        if answer.headers:
            parts.append(head.lines(answer.headers))
        if not bodyless:
            parts.append(b"Content-Length: %d\r\n" % len(answer.body))
        parts.append(b"\r\n" if self._keep else b"Connection: close\r\n\r\n")
        if not bodyless and not self._head_only:
            parts.append(answer.body)
        self.transport.write(b"".join(parts))
        self.deadline = self.server.clock() + self.server.limits.idle_s
        await self.drain()

    async def _send_stream(self, answer: Stream) -> None:
        """Chunks as they come; the source is closed whatever happens."""
        self.cancellable = True
        try:
            if self.gone:
                raise Disconnected("the client closed the connection")
            await self._pour(answer)
        finally:
            self.cancellable = False
            close = getattr(answer.source, "aclose", None)
            if close is not None:
                await close()

    async def _pour(self, answer: Stream) -> None:
        source = aiter(answer.source)
        first = b""
        if not answer.flush_headers:
            try:
                first = await anext(source, b"")
            except (Disconnected, asyncio.CancelledError):
                raise
            except Exception as error:
                await self._send(self.server.error(error))
                return
        chunked = self._chunks
        extra = dict(answer.headers or {})
        extra.setdefault("Content-Type", answer.content_type)
        parts = [head.status_line(answer.status), self.server.common_lines(), head.lines(extra)]
        parts.append(b"Transfer-Encoding: chunked\r\n" if chunked else b"")
        parts.append(b"\r\n" if self._keep else b"Connection: close\r\n\r\n")
        self.transport.write(b"".join(parts))
        if self._head_only:
            return
        sent = self._write_piece(first, chunked=chunked)
        async for data in source:
            sent += self._write_piece(data, chunked=chunked)
            await self.drain()
            if sent > _TURN:
                sent = 0
                await asyncio.sleep(0)
        if chunked:
            self.transport.write(LAST_CHUNK)
        await self.drain()

    def _write_piece(self, data: bytes, *, chunked: bool) -> int:
        """Writes one piece; its weight in bytes, small pieces counting more than they are."""
        if data:
            self.transport.write(chunk(data) if chunked else data)
        return len(data) + 256

    async def _hijack(self, request: Request, answer: Hijack) -> None:
        await self._discard_body()
        if not self.body.complete:
            await self._send(json_response({"message": "the request body is not complete"}, 400))
            self._finish()
            return
        self.phase = Phase.HIJACKED
        self.deadline = math.inf
        # What a TLS client sends from now on; a plain one's is not read any more.
        self.body = Body(self.regulate)
        leftover = bytes(self.buffer)
        self.buffer.clear()
        await hand_over(self, request, answer, leftover, self.server.common_lines())

    async def _discard_body(self) -> None:
        """Throws the unread rest of the body away if that is little and comes soon, so that the connection can stay."""
        if self._expects or self.gone:
            self._keep = self._keep and self.body.complete
            return
        size = 0
        try:
            async with asyncio.timeout(1.0):
                while size <= _DISCARD and (data := await self.body.read()):
                    size += len(data)
        except (TimeoutError, HttpError, Disconnected):
            pass
        self._keep = self._keep and self.body.complete

    def _finish(self) -> None:
        """After an answer: the next request, or the end."""
        self.task = None
        if not self._keep or not self.body.complete or self.transport.is_closing():
            self._leave()
            return
        self.phase = Phase.IDLE
        self._scanned = 0
        self.deadline = self.server.clock() + self.server.limits.idle_s
        self.regulate()
        if self.buffer:
            self._next()
        if self.server.closing or (self._eof and self.phase is Phase.IDLE):
            self.close()

    def _refuse(self, error: HttpError) -> None:
        """Answers what could not become a request."""
        self._keep = False
        answer = json_response({"message": str(error)}, error.status)
        self.transport.write(
            b"%b%bContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
            % (head.status_line(answer.status), self.server.common_lines(), len(answer.body), answer.body)
        )
        self.body.complete = False
        self._leave()

    def _leave(self) -> None:
        """Closes; if the client may still be sending, first lets it read the answer.

        A socket closed with unread input resets the connection, and the answer may be lost with it (RFC 9112, 9.6).
        """
        if self._eof or self.transport.is_closing() or (self.body.complete and not self.buffer):
            self.close()
            return
        self.phase = Phase.LINGER
        self.deadline = self.server.clock() + self.server.limits.linger_s
        self.buffer.clear()
        self._parser = None
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._paused = False
        self.transport.resume_reading()

    # -- departures --------------------------------------------------------------------------------------------------

    def _depart(self) -> None:
        """The client went away: tell who asked, stop what only serves it."""
        self.gone = True
        if self._leaving is not None and not self._leaving.done():
            self._leaving.set_result(None)
        if self.cancellable and self.task is not None:
            self.task.cancel()

    def _hung_up(self) -> bool:
        """True if the peer closed both directions, even if bytes of it are still unread (poll(2), POLLHUP)."""
        sock = self.transport.get_extra_info("socket")
        poll = select.poll()
        poll.register(sock.fileno(), 0)
        return bool(poll.poll(0))

    def _expire(self) -> None:
        if self.phase is Phase.IDLE and self.buffer:
            self._refuse(HttpError(408, "the request did not arrive in time"))
        elif self.phase is Phase.IDLE:
            self.close()
        else:
            self.transport.abort()
