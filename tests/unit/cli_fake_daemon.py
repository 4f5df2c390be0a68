"""A scripted daemon on a unix socket, and ways to run the command against it. Used by the tests of the client only."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[2] / "src"
LAUNCH = "import sys; sys.path.append(sys.argv[1]); del sys.argv[:2]; from tare.cli.main import run; run()"
ID = "c0ffee" + "0" * 58
HANG_S = 30
"""Longer than anything here takes: reached only by a test that fails."""


class Exchange:
    """One request; the handler answers on it."""

    def __init__(self, sock: socket.socket, method: str, target: str, headers: dict[str, str], body: bytes) -> None:
        self.sock = sock
        self.method = method
        self.target = target
        self.headers = headers
        self.body = body
        self.connection = id(sock)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def reply(self, status: int = 200, body: object = None, headers: str = "") -> None:
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"HTTP/1.1 {status} X\r\n{headers}"
        if status not in (204, 304):
            head += f"Content-Length: {len(data)}\r\n"
        self.sock.sendall(head.encode() + b"\r\n" + data)

    def error(self, status: int, message: str) -> None:
        self.reply(status, {"message": message})

    def head(self) -> None:
        """Flush the head of a chunked reply, as wait does."""
        self.sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")

    def chunk(self, body: object) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.sock.sendall(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        self.sock.sendall(b"0\r\n\r\n")

    def upgrade(self) -> socket.socket:
        self.sock.sendall(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
        return self.sock


Handler = Callable[[Exchange], object]


def frame(stream: int, data: bytes) -> bytes:
    return bytes((stream, 0, 0, 0)) + len(data).to_bytes(4, "big") + data


class FakeDaemon:
    """`on` maps "METHOD /path" (query cut off) to a handler; every request is kept in `log` in order of arrival."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.on: dict[str, Handler] = {}
        self.log: list[Exchange] = []
        self.news = threading.Condition()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(64)
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(HANG_S)
        for sock in self._sockets:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in self._threads:
            thread.join(HANG_S)
        for sock in self._sockets:
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(sock)
            thread = threading.Thread(target=self._serve, args=(sock,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            with sock.makefile("rb") as file:
                while (exchange := self._read(sock, file)) is not None:
                    with self.news:
                        self.log.append(exchange)
                        self.news.notify_all()
                    handler = self.on.get(f"{exchange.method} {exchange.target.partition('?')[0]}")
                    if handler is None:
                        exchange.error(404, f"page not found: {exchange.target}")
                    elif handler(exchange) == "close":
                        break
        except OSError:
            pass

    @staticmethod
    def _read(sock: socket.socket, file: Any) -> Exchange | None:
        line = file.readline().split()
        if not line:
            return None
        headers = {}
        while row := file.readline().strip():
            name, _, value = row.partition(b":")
            headers[name.decode().lower()] = value.strip().decode()
        body = file.read(int(headers.get("content-length", "0")))
        if headers.get("transfer-encoding") == "chunked":
            while size := int(file.readline(), 16):
                body += file.read(size)
                file.readline()
            file.readline()
        return Exchange(sock, line[0].decode(), line[1].decode(), headers, body)

    def targets(self) -> list[str]:
        return [f"{each.method} {each.target}" for each in self.log]

    def wait_for(self, text: str, count: int = 1) -> Exchange:
        """The `count`th request whose "METHOD target" contains `text`."""

        def found() -> list[Exchange]:
            return [each for each in self.log if text in f"{each.method} {each.target}"]

        with self.news:
            assert self.news.wait_for(lambda: len(found()) >= count, HANG_S), f"no {text} in {self.targets()}"
            return found()[count - 1]


class Container:
    """The usual answers for one container: create, attach, wait, start. `script` is what its process does."""

    def __init__(self, daemon: FakeDaemon, script: Callable[[socket.socket], int], *, tty: bool = False) -> None:
        self.daemon = daemon
        self.script = script
        self.started = threading.Event()
        self.ended = threading.Event()
        self.code = 0
        base = f"/containers/{ID}"
        daemon.on["POST /containers/create"] = lambda e: e.reply(201, {"Id": ID, "Warnings": []})
        daemon.on[f"POST {base}/attach"] = self.attach
        daemon.on[f"POST {base}/wait"] = self.wait
        daemon.on[f"POST {base}/start"] = self.start
        daemon.on[f"POST {base}/kill"] = lambda e: e.reply(204)
        daemon.on[f"POST {base}/resize"] = lambda e: e.reply(200)
        state = {"Running": True, "Paused": False, "Restarting": False}
        found = {
            "Id": ID,
            "State": state,
            "Config": {"Tty": tty, "OpenStdin": True},
            "HostConfig": {"AutoRemove": False},
        }
        daemon.on[f"GET {base}/json"] = daemon.on["GET /containers/x/json"] = lambda e: e.reply(200, found)

    def attach(self, exchange: Exchange) -> str:
        sock = exchange.upgrade()
        assert self.started.wait(HANG_S)
        try:
            self.code = self.script(sock)
        finally:
            self.ended.set()
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        return "close"

    def wait(self, exchange: Exchange) -> None:
        exchange.head()
        assert self.ended.wait(HANG_S)
        exchange.chunk({"StatusCode": self.code})
        exchange.end()

    def start(self, exchange: Exchange) -> None:
        exchange.reply(204)
        self.started.set()


def command(*words: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", LAUNCH, str(SOURCE), "/nowhere/tare", *words]


def environment(daemon: FakeDaemon | None = None, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DOCKER_", "TARE_"))}
    kept |= {"HOME": "/nonexistent", "TARE_NO_AUTOSTART": "1"}
    if daemon is not None:
        kept["TARE_HOST"] = "unix://" + daemon.path
    return kept | more


def tare(daemon: FakeDaemon | None, *words: str, stdin: bytes = b"", **more: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command(*words), input=stdin, capture_output=True, env=environment(daemon, **more), timeout=HANG_S, check=False
    )
