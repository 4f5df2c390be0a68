"""Requests and the three answers a handler may give: `Response`, `Stream`, `Hijack`. Pure values, no socket.

Runs in the daemon. Deliberately absent: cookies, forms, content negotiation, compression, anything about containers.

    async def handler(request: Request) -> Response | Stream | Hijack: ...

A handler that raises is answered by the server's `error` callback; `HttpError` is answered as it says.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qsl

import msgspec

from tare.errors import Invalid

__all__ = [
    "BODY_LIMIT",
    "Answer",
    "Disconnected",
    "Handler",
    "Hijack",
    "HttpError",
    "Peer",
    "Query",
    "Request",
    "Response",
    "Source",
    "Stream",
    "json_response",
]

BODY_LIMIT = 16 * 1024 * 1024
"""Bytes of a body taken as a whole."""
_BODY_TIMEOUT_S = 60.0
_MAX_FIELDS = 1000
_FALSE = frozenset({"", "0", "no", "false", "none"})
_encode = msgspec.json.encode


class HttpError(Exception):
    """A failure of the protocol itself: answered with `status` and {"message": text}, then the connection is closed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Disconnected(Exception):
    """The client went away while its body was being read; nobody is left to be answered."""


class Peer(NamedTuple):
    """SO_PEERCRED of a unix client (unix(7)); all -1 for other families."""

    pid: int = -1
    uid: int = -1
    gid: int = -1


UNKNOWN_PEER = Peer()


class Query:
    """The decoded query string. Names keep their order; a name may be repeated."""

    __slots__ = ("_values",)

    def __init__(self, raw: str = "") -> None:
        self._values: dict[str, list[str]] = {}
        if raw:
            try:
                pairs = parse_qsl(raw, keep_blank_values=True, max_num_fields=_MAX_FIELDS)
            except ValueError:
                raise Invalid(f"the query string has more than {_MAX_FIELDS} fields") from None
            for name, value in pairs:
                self._values.setdefault(name, []).append(value)

    def get(self, name: str, default: str = "") -> str:
        """The first value; `default` if the name is absent."""
        values = self._values.get(name)
        return values[0] if values else default

    def all(self, name: str) -> list[str]:
        """Every value in order, [] if absent."""
        return list(self._values.get(name, ()))

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Docker's rule: "", 0, no, false and none (any case) are false, all else is true. Absent = `default`."""
        values = self._values.get(name)
        return values[0].strip().lower() not in _FALSE if values else default

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)


class Source(Protocol):
    """Where a request's body and the news of the client's departure come from: the connection."""

    async def read(self) -> bytes:
        """The next bytes of the body, b"" at its end. Raises Disconnected."""

    async def disconnected(self) -> None:
        """Returns when the client closed or lost its connection; over TCP also when it shut its sending side down."""


class Request:
    """One request. `path` is decoded and, after routing, without the version prefix; `target` is as it came.

    `version` is the API version of the path's prefix, the router's maximum if the path has none. `headers` has
    lower-case names; repeated ones are joined with ", ". `params` are the pattern's names, decoded.
    """

    __slots__ = ("_query", "_raw_query", "_source", "headers", "method", "params", "path", "peer", "target", "version")

    def __init__(
        self,
        method: str,
        target: str,
        path: str,
        raw_query: str,
        headers: Mapping[str, str],
        source: Source,
        peer: Peer = UNKNOWN_PEER,
    ) -> None:
        self.method = method
        self.target = target
        self.path = path
        self.headers = headers
        self.peer = peer
        self.version: tuple[int, int] = (0, 0)
        self.params: dict[str, str] = {}
        self._raw_query = raw_query
        self._query: Query | None = None
        self._source = source

    @property
    def query(self) -> Query:
        """Parsed when first asked for. Raises Invalid if it has too many fields."""
        if self._query is None:
            self._query = Query(self._raw_query)
        return self._query

    async def body(self, limit: int = BODY_LIMIT) -> bytes:
        """The whole body. HttpError 413 beyond `limit` bytes, 408 if it comes too slowly, Disconnected if cut off."""
        parts: list[bytes] = []
        size = 0
        # h11 has checked that the length is a number of at most 20 digits.
        if int(self.headers.get("content-length", "0")) > limit:
            raise HttpError(413, f"request body is larger than {limit} bytes")
        try:
            async with asyncio.timeout(_BODY_TIMEOUT_S):
                while data := await self._source.read():
                    size += len(data)
                    if size > limit:
                        raise HttpError(413, f"request body is larger than {limit} bytes")
                    parts.append(data)
        except TimeoutError:
            raise HttpError(408, "request body did not arrive in time") from None
        return b"".join(parts)

    async def stream(self) -> AsyncIterator[bytes]:
        """The body in pieces as they arrive, without a limit. Raises Disconnected if it is cut off."""
        while data := await self._source.read():
            yield data

    async def disconnected(self) -> None:
        """Returns when the client went away; unread input, or a half-closed client, may delay the news by a second."""
        await self._source.disconnected()


@dataclass(slots=True)
class Response:
    """A complete answer. `content_type` "" = none if the body is empty, else application/octet-stream."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] | None = None
    content_type: str = ""


@dataclass(slots=True)
class Stream:
    """An answer of unknown length, sent in chunks as `source` yields them.

    When the client goes away the iteration is cancelled and `source.aclose()` awaited, if it has one. With
    `flush_headers` the status line leaves before the first chunk; without it, an exception before the first chunk is
    answered as an error. An exception later cuts the connection, so that the client sees a broken message.
    """

    source: AsyncIterator[bytes]
    status: int = 200
    headers: Mapping[str, str] | None = None
    flush_headers: bool = True
    content_type: str = "application/json"


@dataclass(slots=True)
class Hijack:
    """Take the connection over: 101 UPGRADED if the client asked for an upgrade, else 200, then `run(sock, leftover)`.

    `sock` is a non-blocking duplicate of the client's socket which `run` owns and closes; `leftover` is every byte
    that followed the request and was already read. `run` may give the socket away (SCM_RIGHTS) and return at once: the
    server releases its own descriptor after `run` without shutting the connection down. For a TLS client, `sock` is one
    end of a socket pair whose other end the server pumps.
    """

    run: Callable[[socket.socket, bytes], Awaitable[None]]
    content_type: str = "application/vnd.docker.raw-stream"
    headers: Mapping[str, str] | None = None


Answer = Response | Stream | Hijack
Handler = Callable[[Request], Awaitable[Answer]]


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`value` (Struct, dict, list, ...) as application/json with a final newline, as Docker sends it."""
    return Response(status, _encode(value) + b"\n", headers, "application/json")
