"""The Engine API over one keep-alive UNIX socket, with as little of our own time in it as Python allows."""

from __future__ import annotations

import json
import socket
from typing import Any

__all__ = ["Api"]

VERSION = "/v1.41"


class Api:
    """A connection that stays open between requests; RuntimeError for an answer that was not expected."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.sock = self.connect()
        self._rest = b""

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(60)
        sock.connect(self.path)
        return sock

    def close(self) -> None:
        self.sock.close()

    @staticmethod
    def message(method: str, path: str, body: Any = None) -> bytes:
        data = b"" if body is None else json.dumps(body).encode()
        kind = "" if body is None else "Content-Type: application/json\r\n"
        return (
            f"{method} {VERSION}{path} HTTP/1.1\r\nHost: bench\r\n{kind}Content-Length: {len(data)}\r\n\r\n".encode()
            + data
        )

    def call(self, method: str, path: str, body: Any = None, *, expect: tuple[int, ...] = (200, 201, 204)) -> Any:
        """The decoded answer, None without a body."""
        self.sock.sendall(self.message(method, path, body))
        status, data = self.answer()
        if status not in expect:
            raise RuntimeError(f"{method} {path}: {status} {data.decode(errors='replace')[:500]}")
        return json.loads(data) if data else None

    def answer(self) -> tuple[int, bytes]:
        """The next answer on the connection, whole."""
        head = self._until(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if line)
        if status == 204 or fields.get(b"content-length", b"").strip() == b"0":
            return status, b""
        if b"content-length" in fields:
            return status, self._take(int(fields[b"content-length"]))
        data = b""
        while size := int(self._until(b"\r\n").split(b";")[0], 16):
            data += self._take(size)
            self._take(2)
        self._until(b"\r\n")
        return status, data

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._rest:
            self._receive()
        head, _, self._rest = self._rest.partition(mark)
        return head

    def _take(self, size: int) -> bytes:
        while len(self._rest) < size:
            self._receive()
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def _receive(self) -> None:
        piece = self.sock.recv(65536)
        if not piece:
            raise RuntimeError(f"{self.path}: the connection was closed")
        self._rest += piece
