"""HTTP/1.1 to the daemon, blocking, on plain sockets. http.client would cost 28 ms of import.

    request -> Reply (status, headers, body by length, in chunks or to the end); a connection whose reply was read to
    its end is used again. hijack: after 101 (or 200) the connection is a byte stream both ways.
    send() and Connection.reply() are the two halves of request(), for requests that overlap.

An upload is fed while its reply is read, so a server may answer before it has read everything.
What a server sends is capped: head 64 KiB, JSON body 64 MiB, chunk head 1 KiB. A stream has no cap and is never held.
"""

from __future__ import annotations

from _socket import MSG_DONTWAIT

from tare.cli.endpoint import ConnectError
from tare.cli.failure import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable, Iterator
    from typing import Any

    from tare.cli.endpoint import Endpoint
    from tare.cli.tls import TlsSocket

__all__ = ["ApiError", "Client", "Connection", "ProtocolError", "Reply", "escaped", "query"]

HEAD_LIMIT = 64 << 10
BODY_LIMIT = 64 << 20
CHUNK_HEAD_LIMIT = 1 << 10
READ_SIZE = 64 << 10
SAFE = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~")


class ApiError(Failure):
    """The daemon refused: `code` is the HTTP status, `message` the daemon's own words."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__("Error response from daemon: " + message)
        self.code = code
        self.message = message


class ProtocolError(Failure):
    """The bytes from the server are not the HTTP that was expected, or end too early."""


def escaped(text: str, keep: bytes = b"") -> str:
    """Percent-encode for one part of a path or query; `keep` lists further bytes to leave ("/:" for image names)."""
    out = []
    for byte in text.encode("utf-8", "surrogateescape"):
        out.append(chr(byte) if byte in SAFE or byte in keep else f"%{byte:02X}")
    return "".join(out)


def query(**fields: str | int | None) -> str:
    """"?a=1&b=x" of the fields that are not None, "" for none. A trailing underscore of a name is dropped."""
    parts = [f"{name.rstrip('_')}={escaped(str(value))}" for name, value in fields.items() if value is not None]
    return "?" + "&".join(parts) if parts else ""


class Reply:
    """Status line and headers of one reply; the body is read by exactly one of read, chunks, document, messages."""

    def __init__(
        self, connection: Connection, status: int, reason: str, headers: dict[str, str], *, bare: bool
    ) -> None:
        self.connection = connection
        self.status = status
        self.reason = reason
        self.headers = headers
        self._left: int | None = None
        self._chunked = headers.get("transfer-encoding", "").lower().endswith("chunked")
        length = headers.get("content-length", "")
        if bare or status in (204, 304) or 100 <= status < 200:
            self._chunked, self._left = False, 0
        elif not self._chunked and length:
            if not (length.isascii() and length.isdigit()):
                raise ProtocolError(f"the daemon sent a wrong Content-Length: {length!r}")
            self._left = int(length)
        self.keep = headers.get("connection", "").lower() != "close" and (self._chunked or self._left is not None)
        if self._left == 0:
            connection.free(self)

    def chunks(self) -> Iterator[bytes]:
        """The body as it comes, in pieces of any size."""
        if self._chunked:
            yield from self._by_chunk()
        elif self._left is None:
            while data := self.connection.take(READ_SIZE):
                yield data
        else:
            while self._left:
                data = self.connection.take(min(self._left, READ_SIZE))
                if not data:
                    raise ProtocolError("unexpected EOF")
                self._left -= len(data)
                yield data
        self.connection.free(self)

    def _by_chunk(self) -> Iterator[bytes]:
        while True:
            head = self.connection.line(CHUNK_HEAD_LIMIT).partition(b";")[0].strip()
            try:
                left = int(head, 16)
            except ValueError:
                raise ProtocolError("the daemon sent a wrong chunk length") from None
            if left == 0:
                while self.connection.line(HEAD_LIMIT):
                    pass
                return
            while left:
                data = self.connection.take(min(left, READ_SIZE))
                if not data:
                    raise ProtocolError("unexpected EOF")
                left -= len(data)
                yield data
            self.connection.line(CHUNK_HEAD_LIMIT)

    def read(self) -> bytes:
        """The whole body, at most 64 MiB."""
        parts = []
        size = 0
        for part in self.chunks():
            size += len(part)
            if size > BODY_LIMIT:
                raise ProtocolError("the daemon's reply is longer than 64 MiB")
            parts.append(part)
        return b"".join(parts)

    def document(self) -> Any:
        """The body as JSON."""
        from tare.cli.jsontext import loads

        data = self.read()
        try:
            return loads(data)
        except ValueError as error:
            raise ProtocolError(f"the daemon's reply is no JSON: {error}") from None

    def messages(self) -> Iterator[dict[str, Any]]:
        """The JSON objects of a progress or event stream, each as soon as its line is there."""
        from tare.cli.jsontext import messages

        try:
            yield from messages(self.chunks())
        except ValueError as error:
            raise ProtocolError(f"the daemon's stream is no JSON: {error}") from None

    def check(self) -> Reply:
        """Itself; raises ApiError with the daemon's message for a status of 400 and above."""
        if self.status < 400:
            return self
        from tare.cli.jsontext import loads

        text = self.read()
        try:
            message = str(loads(text)["message"])
        except (ValueError, KeyError, TypeError):
            message = text.decode("utf-8", "replace").strip() or f"{self.status} {self.reason}"
        raise ApiError(self.status, message)


class Connection:
    """One socket; `buffer` holds what was received and not yet used (after a hijack: the first bytes of the stream)."""

    def __init__(self, sock: socket | TlsSocket) -> None:
        self.sock = sock
        self.buffer = b""
        self.open = True
        self.idle = True
        self.used = False
        self._bare = False
        self._upload: Iterator[bytes] | None = None
        self._pending = b""

    def close(self) -> None:
        self.open = self.idle = False
        self._upload = None
        self.sock.close()

    def begin(self, method: str, head: bytes, upload: Iterator[bytes] | None) -> None:
        """Send one request; an upload follows piece by piece while the reply is waited for."""
        self.idle = False
        self._bare = method == "HEAD"
        try:
            self.sock.sendall(head)
        except OSError:
            # The server closed before it read everything: either an answer is there already or reply() finds the end.
            upload = None
        self._upload = upload

    def free(self, reply: Reply) -> None:
        """The reply was read to its end."""
        if reply.keep and self._upload is None and reply.status != 101:
            self.idle = self.used = True
        elif reply.status != 101 and not self.idle:
            self.close()

    def _feed(self) -> None:
        """Send what the upload has until the server says something."""
        import select

        poll = select.poll()
        poll.register(self.sock.fileno(), select.POLLIN | select.POLLOUT)
        while self._upload is not None:
            events = poll.poll()[0][1]
            if events & (select.POLLIN | select.POLLHUP | select.POLLERR):
                return
            if not self._pending:
                piece = next(self._upload, None)
                if piece is None:
                    self._pending, self._upload = b"0\r\n\r\n", None
                elif piece:
                    self._pending = b"%x\r\n%b\r\n" % (len(piece), piece)
            self._push()
        while self._pending:
            poll.poll()
            self._push()

    def _push(self) -> None:
        try:
            self._pending = self._pending[self.sock.send(self._pending, MSG_DONTWAIT) :]
        except BlockingIOError:
            return
        except OSError:
            self._pending, self._upload = b"", None

    def _fill(self) -> bool:
        if self._upload is not None or self._pending:
            self._feed()
        try:
            data = self.sock.recv(READ_SIZE)
        except OSError:
            data = b""
        self.buffer += data
        return bool(data)

    def take(self, most: int) -> bytes:
        """1..most bytes, b"" at the end of the connection."""
        if not self.buffer and not self._fill():
            return b""
        data, self.buffer = self.buffer[:most], self.buffer[most:]
        return data

    def line(self, limit: int) -> bytes:
        """One line without its end."""
        while (end := self.buffer.find(b"\n")) < 0:
            if len(self.buffer) > limit:
                raise ProtocolError("the daemon sent a line that is too long")
            if not self._fill():
                raise ProtocolError("unexpected EOF")
        text, self.buffer = self.buffer[:end], self.buffer[end + 1 :]
        return text.rstrip(b"\r")

    def reply(self) -> Reply:
        """Wait for the reply's head."""
        while True:
            parts = self.line(HEAD_LIMIT).split(None, 2)
            if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
                raise ProtocolError("the daemon's reply is no HTTP")
            headers: dict[str, str] = {}
            left = HEAD_LIMIT
            while row := self.line(HEAD_LIMIT):
                left -= len(row)
                if left < 0:
                    raise ProtocolError("the daemon's reply has too long a head")
                name, _, value = row.partition(b":")
                headers[name.decode("latin-1").strip().lower()] = value.decode("latin-1").strip()
            status = int(parts[1])
            if status != 100:
                reason = parts[2].decode("latin-1") if len(parts) > 2 else ""
                return Reply(self, status, reason, headers, bare=self._bare)


class Client:
    """Requests to one endpoint. `start` is called once when nobody listens there; True = try again."""

    def __init__(self, endpoint: Endpoint, *, version: str = "", start: Callable[[], bool] | None = None) -> None:
        self.endpoint = endpoint
        self.prefix = f"/v{version.lstrip('v')}" if version else ""
        self.start = start
        self.connections: list[Connection] = []

    def connect(self) -> Connection:
        """A new connection."""
        try:
            sock = self.endpoint.connect()
        except ConnectError as error:
            if not error.absent or self.start is None:
                raise
            start, self.start = self.start, None
            if not start():
                raise
            sock = self.endpoint.connect()
        return Connection(sock)

    def close(self) -> None:
        """Close every connection that is kept for further requests."""
        for connection in self.connections:
            connection.close()
        self.connections = []

    def _idle(self) -> Connection:
        for connection in self.connections:
            if connection.idle:
                return connection
        connection = self.connect()
        self.connections.append(connection)
        return connection

    def _head(self, method: str, path: str, data: bytes, headers: str, *, chunked: bool) -> bytes:
        head = f"{method} {self.prefix}{path} HTTP/1.1\r\nHost: {self.endpoint.header}\r\n"
        head += f"User-Agent: Tare-Client\r\n{headers}"
        if chunked:
            head += "Transfer-Encoding: chunked\r\n"
        elif data or method not in ("GET", "HEAD", "DELETE"):
            head += f"Content-Length: {len(data)}\r\n"
        return head.encode("latin-1") + b"\r\n" + data

    def send(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: str = "",
        upload: Iterator[bytes] | None = None,
        fresh: bool = False,
    ) -> Connection:
        """Send a request without waiting for the reply. `body` becomes JSON; `headers` are whole lines with CRLF.

        `fresh` takes a connection of its own, for a request that is answered late or never ends.
        """
        data = b""
        if body is not None:
            from tare.cli.jsontext import dumps

            data = dumps(body).encode("ascii")
            headers = "Content-Type: application/json\r\n" + headers
        connection = self.connect() if fresh else self._idle()
        connection.begin(method, self._head(method, path, data, headers, chunked=upload is not None), upload)
        return connection

    def request(
        self, method: str, path: str, body: object = None, *, headers: str = "", upload: Iterator[bytes] | None = None
    ) -> Reply:
        """Send and wait for the reply's head. Raises ApiError for a status of 400 and above.

        A kept connection that the server closed meanwhile is replaced once.
        """
        connection = self.send(method, path, body, headers=headers, upload=upload)
        used = connection.used
        try:
            return connection.reply().check()
        except ProtocolError:
            connection.close()
            if not used or connection.buffer or upload is not None:
                raise
        # If one was closed by the server, its idle neighbours were too.
        for each in [each for each in self.connections if each.idle]:
            each.close()
        self.connections = [each for each in self.connections if each.open]
        return self.send(method, path, body, headers=headers).reply().check()

    def get(self, path: str) -> Any:
        """The JSON document at `path`."""
        return self.request("GET", path).document()

    def post(self, path: str, body: object = None) -> bytes:
        """The reply's body; b"" for 204."""
        return self.request("POST", path, body).read()

    def hijack(self, path: str, body: object = None) -> Connection:
        """Send a request that turns its connection into a stream. Call opened() on the result before its first byte."""
        return self.send("POST", path, body, headers="Connection: Upgrade\r\nUpgrade: tcp\r\n", fresh=True)

    @staticmethod
    def opened(connection: Connection) -> Connection:
        """Wait until the server agreed to the stream. Raises ApiError."""
        try:
            reply = connection.reply().check()
            if reply.status not in (101, 200):
                raise ProtocolError(f"unable to upgrade to tcp, received {reply.status}")
        except Failure:
            connection.close()
            raise
        return connection
