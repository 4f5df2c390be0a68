"""The server against raw sockets: framing, limits, backpressure, departures, hijack. Loopback and temp dirs only."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
import stat
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tare.errors import Conflict, Denied, Invalid
from tare.http.message import Answer, Hijack, Request, Response, Stream, json_response
from tare.http.router import Router
from tare.http.server import Limits, Server
from tare.http.stream import json_lines

Talk = Callable[["Rig"], Awaitable[None]]
HOST = b"Host: docker\r\n"


class Rig:
    """A server on a unix socket with a few routes, and raw clients of it."""

    def __init__(self, directory: Path, limits: Limits | None = None) -> None:
        self.path = str(directory / "api.sock")
        self.router = Router()
        self.server = Server(self.router, error=self.error, limits=limits)
        self.closed = asyncio.Event()
        self.seen = asyncio.Event()
        self.hijacked: list[bytes] = []
        for method, path, handler in [
            ("GET", "/_ping", self.ping),
            ("HEAD", "/_ping", self.ping),
            ("POST", "/echo", self.echo),
            ("POST", "/small", self.small),
            ("POST", "/ignore", self.ping),
            ("GET", "/stream", self.stream),
            ("GET", "/ticks", self.ticks),
            ("GET", "/flood", self.flood),
            ("GET", "/late", self.late_failure),
            ("GET", "/early", self.early_failure),
            ("GET", "/fail", self.fail),
            ("GET", "/nothing", self.nothing),
            ("GET", "/depart", self.depart),
            ("POST", "/upload", self.upload),
            ("POST", "/hijack", self.hijack),
            ("POST", "/give", self.give),
        ]:
            self.router.add(method, path, handler)

    def error(self, exc: Exception) -> Response:
        return json_response({"message": str(exc)}, 400 if isinstance(exc, Invalid) else 500)

    async def ping(self, request: Request) -> Answer:
        return Response(200, b"OK" if request.method != "HEAD" else b"", {"Builder-Version": "2"}, "text/plain")

    async def echo(self, request: Request) -> Answer:
        return Response(200, await request.body())

    async def small(self, request: Request) -> Answer:
        return Response(200, await request.body(limit=10))

    async def nothing(self, request: Request) -> Answer:
        return Response(204)

    async def fail(self, request: Request) -> Answer:
        raise RuntimeError("it broke")

    async def stream(self, request: Request) -> Answer:
        async def source() -> AsyncIterator[bytes]:
            yield b"one"
            yield b""
            yield b"two"

        return Stream(source())

    async def ticks(self, request: Request) -> Answer:
        async def source() -> AsyncIterator[object]:
            try:
                yield {"tick": 1}
                await asyncio.Event().wait()
            finally:
                self.closed.set()

        return Stream(json_lines(source()))

    async def flood(self, request: Request) -> Answer:
        async def source() -> AsyncIterator[bytes]:
            try:
                for number in range(1000):
                    self.hijacked.append(b"%d" % number)
                    yield bytes(64 * 1024)
            finally:
                self.closed.set()

        return Stream(source())

    async def late_failure(self, request: Request) -> Answer:
        async def source() -> AsyncIterator[bytes]:
            yield b"one"
            raise RuntimeError("too late")

        return Stream(source())

    async def early_failure(self, request: Request) -> Answer:
        async def source() -> AsyncIterator[bytes]:
            raise Invalid("in time")
            yield b""

        return Stream(source(), flush_headers=False)

    async def depart(self, request: Request) -> Answer:
        self.seen.set()
        await request.disconnected()
        self.closed.set()
        return Response(200)

    async def upload(self, request: Request) -> Answer:
        self.seen.set()
        await self.closed.wait()
        size = 0
        async for piece in request.stream():
            size += len(piece)
        return Response(200, b"%d" % size)

    async def hijack(self, request: Request) -> Answer:
        async def run(sock: socket.socket, leftover: bytes) -> None:
            loop = asyncio.get_running_loop()
            data = leftover
            with sock:
                while piece := await loop.sock_recv(sock, 65536):
                    data += piece
                await loop.sock_sendall(sock, b"got:" + data)

        return Hijack(run)

    async def give(self, request: Request) -> Answer:
        """Gives the socket to a thread with blocking calls, as a shim would take it, and returns at once."""
        here, there = socket.socketpair()

        def shim() -> None:
            with there:
                _, control, _, _ = there.recvmsg(1, socket.CMSG_SPACE(4))
                fds = array.array("i")
                fds.frombytes(control[0][2])
                with socket.socket(fileno=fds[0]) as client:
                    client.setblocking(True)
                    client.sendall(b"from the shim:" + client.recv(100))

        threading.Thread(target=shim).start()

        async def run(sock: socket.socket, leftover: bytes) -> None:
            with here, sock:
                socket.send_fds(here, [b"x"], [sock.fileno()])

        return Hijack(run)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(self.path)

    async def talk(self, data: bytes) -> bytes:
        """Sends, waits for the server to close, returns everything."""
        reader, writer = await self.connect()
        writer.write(data)
        received = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        return received


def with_rig(directory: Path, talk: Talk, limits: Limits | None = None) -> None:
    async def main() -> None:
        rig = Rig(directory, limits)
        await rig.server.start_unix(rig.path)
        try:
            await asyncio.wait_for(talk(rig), 30)
        finally:
            await rig.server.close(grace=0)
        assert not os.path.exists(rig.path)

    asyncio.run(main())


async def head_of(reader: asyncio.StreamReader) -> bytes:
    return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)


def request(method: str, path: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: docker", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


CLOSE = "Connection: close"


def test_headers_of_every_answer(tmp_path: Path) -> None:
    async def talk(rig: Rig) -> None:
        for path in ("/_ping", "/v1.47/_ping", "/absent", "/v1.5/_ping"):
            got = await rig.talk(request("GET", path, CLOSE))
            assert b"\r\nApi-Version: 1.47\r\nOstype: linux\r\nServer: Docker" in got
            assert b"\r\nDate: " in got

    with_rig(tmp_path, talk)


def test_head_has_no_body(tmp_path: Path) -> None:
    async def talk(rig: Rig) -> None:
        got = await rig.talk(request("HEAD", "/_ping") + request("GET", "/_ping", CLOSE))
        first, second = got.split(b"HTTP/1.1 ")[1:]
        assert first.startswith(b"200 OK") and b"Content-Length: 0\r\n" in first and first.endswith(b"\r\n\r\n")
        assert second.endswith(b"\r\n\r\nOK")

    with_rig(tmp_path, talk)


def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    async def talk(rig: Rig) -> None:
        many = b"".join(request("POST", "/echo", body=b"<%d>" % n) for n in range(200))
        got = await rig.talk(many + request("GET", "/nothing", CLOSE))
        parts = got.split(b"HTTP/1.1 ")
        assert [p.split(b"\r\n\r\n")[1] for p in parts[1:-1]] == [b"<%d>" % n for n in range(200)]
        assert parts[-1].startswith(b"204 ") and b"Content-Length" not in parts[-1]

    with_rig(tmp_path, talk)


def test_request_in_single_bytes(tmp_path: Path) -> None:
    async def talk(rig: Rig) -> None:
        reader, writer = await rig.connect()
        for byte in request("POST", "/echo", CLOSE, body=b"hello"):
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        assert (await reader.read()).endswith(b"\r\n\r\nhello")
        writer.close()

    with_rig(tmp_path, talk)


def test_chunked_body(tmp_path: Path) -> None:
    async def talk(rig: Rig) -> None:
        start = b"POST /echo HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
        got = await rig.talk(start + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: r\r\n\r\n" + request("GET", "/_ping", CLOSE))
        assert b"\r\n\r\nabcdeHTTP/1.1 200 OK" in got
        got = await rig.talk(
            start + b"".join(b"1\r\nz\r\n" for _ in range(3000)) + b"0\r\n\r\n" + request("GET", "/_ping", CLOSE)
        )
        assert b"z" * 3000 + b"HTTP/1.1" in got

    with_rig(tmp_path, talk)


def test_expect_continue(tmp_path: Path) -> None:
    async def talk(rig: Rig) -> None:
        reader, writer = await rig.connect()
        writer.write(b"POST /echo HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert await head_of(reader) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"ok" + request("GET", "/_ping", CLOSE))
        assert b"okHTTP/1.1 200" in await reader.read()
        writer.close()

    with_rig(tmp_path, talk)


def test_expect_continue_is_not_said_when_the_body_is_not_wanted(tmp_path: Path) -> None:
    async def talk(rig: Rig) -> None:
        got = await rig.talk(b"POST /ignore HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert got.startswith(b"HTTP/1.1 200") and b"Connection: close" in got

    with_rig(tmp_path, talk)


def test_unread_body_does_not_spoil_the_next_request(tmp_path: Path) -> None:
    async def talk(rig: Rig) -> None:
        reader, writer = await rig.connect()
        writer.write(b"POST /ignore HTTP/1.1\r\n" + HOST + b"Content-Length: 16\r\n\r\nGET /fail")
        await asyncio.sleep(0.01)
        writer.write(b" HTTP/1" + request("GET", "/_ping", CLOSE))
        got = await reader.read()
        assert got.count(b"HTTP/1.1 200") == 2 and b"it broke" not in got
        writer.close()

    with_rig(tmp_path, talk)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
        (b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Length: 3, 3\r\n\r\nabc", 400),
        (b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: xchunked\r\n\r\n", 501),
        (b"GET /_ping HTTP/1.1\nHost: x\n\n", 400),
        (b"GET /_ping HTTP/1.1\r\nHost: x\n\r\n", 400),
        (b"GET /_ping HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"GET /_ping HTTP/1.1\r\n\r\n", 400),
        (b"GET /_ping HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET /_ping HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", 400),
        (b"GET /_ping\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET /_ping HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 70000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 70000, 431),
        (b"GET /a%00b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ],
)
def test_malformed_requests_are_refused_and_closed(tmp_path: Path, data: bytes, status: int) -> None:
    async def talk(rig: Rig) -> None:
        got = await rig.talk(data)
        assert got.startswith(b"HTTP/1.1 %d" % status)
        assert b"Connection: close" in got and b'{"message":"' in got

    with_rig(tmp_path, talk)


@pytest.mark.parametrize(
    "chunks", [b"-1\r\n", b"g\r\n", b"fffffffffffffffffffff\r\n", b"1;" + b"x" * 200000, b"1\r\nab"]
)
def test_malformed_chunks_are_refused_and_closed(tmp_path: Path, chunks: bytes) -> None:
    async def talk(rig: Rig) -> None:
        got = await rig.talk(b"POST /echo HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
        assert got.startswith(b"HTTP/1.1 400") and b"Connection: close" in got

    with_rig(tmp_path, talk)


def test_body_beyond_the_limit(tmp_path: Path) -> None:
    async def talk(rig: Rig) -> None:
        got = await rig.talk(request("POST", "/small", body=b"x" * 11))
        assert got.startswith(b"HTTP/1.1 413") and b"Connection: close" in got
        got = await rig.talk(
            b"POST /small HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nb\r\n" + b"x" * 11
        )
        assert got.startswith(b"HTTP/1.1 413")
        got = await rig.talk(request("POST", "/small", CLOSE, body=b"x" * 10))
        assert got.startswith(b"HTTP/1.1 200")

    with_rig(tmp_path, talk)


def test_errors_go_through_the_callback(tmp_path: Path) -> None:
    async def talk(rig: Rig) -> None:
        got = await rig.talk(request("GET", "/fail") + request("GET", "/early", CLOSE))
        assert got.startswith(b"HTTP/1.1 500") and b'{"message":"it broke"}' in got
        assert b"HTTP/1.1 400" in got and got.endswith(b'{"message":"in time"}\n')

    with_rig(tmp_path, talk)


def test_stream_is_chunked_and_keeps_the_connection(tmp_path: Path) -> None:
    async def talk(rig: Rig) -> None:
        got = await rig.talk(request("GET", "/stream") + request("GET", "/_ping", CLOSE))
        assert b"Transfer-Encoding: chunked\r\n" in got
        assert b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\nHTTP/1.1 200" in got

    with_rig(tmp_path, talk)


def test_stream_to_an_old_client_ends_with_the_connection(tmp_path: Path) -> None:
    async def talk(rig: Rig) -> None:
        got = await rig.talk(b"GET /stream HTTP/1.0\r\n\r\n")
        assert b"chunked" not in got and got.endswith(b"\r\n\r\nonetwo")

    with_rig(tmp_path, talk)


def test_stream_that_fails_late_is_cut_off(tmp_path: Path) -> None:
    async def talk(rig: Rig) -> None:
        got = await rig.talk(request("GET", "/late"))
        assert got.endswith(b"3\r\none\r\n")

    with_rig(tmp_path, talk)


def test_stream_is_closed_when_the_client_leaves(tmp_path: Path) -> None:
    async def talk(rig: Rig) -> None:
        reader, writer = await rig.connect()
        writer.write(request("GET", "/ticks"))
        assert b"200 OK" in await head_of(reader)
        assert await reader.readuntil(b"\n") and await reader.readuntil(b'{"tick":1}\r\n')
        writer.close()
        await asyncio.wait_for(rig.closed.wait(), 5)

    with_rig(tmp_path, talk)


def test_stream_waits_for_a_client_that_does_not_read(tmp_path: Path) -> None:
    async def talk(rig: Rig) -> None:
        reader, writer = await rig.connect()
        writer.write(request("GET", "/flood"))
        await head_of(reader)
        for _ in range(200):
            await asyncio.sleep(0)
        assert len(rig.hijacked) < 100, "64 MiB were buffered for a client that does not read"
        writer.transport.abort()
        await asyncio.wait_for(rig.closed.wait(), 5)

    with_rig(tmp_path, talk)


def test_handler_learns_that_the_client_left(tmp_path: Path) -> None:
    async def talk(rig: Rig) -> None:
        _, writer = await rig.connect()
        writer.write(request("GET", "/depart"))
        await rig.seen.wait()
        writer.close()
        await asyncio.wait_for(rig.closed.wait(), 5)

    with_rig(tmp_path, talk)


def test_departure_is_seen_behind_an_unread_backlog(tmp_path: Path) -> None:
    async def talk(rig: Rig) -> None:
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, rig.path)
        await asyncio.get_running_loop().sock_sendall(client, request("GET", "/depart"))
        await rig.seen.wait()
        with contextlib.suppress(BlockingIOError):
            while True:
                client.send(b"x" * 65536)
                await asyncio.sleep(0)
        client.close()
        await asyncio.wait_for(rig.closed.wait(), 10)

    with_rig(tmp_path, talk, Limits(sweep_s=0.05))


def test_upload_waits_for_the_handler(tmp_path: Path) -> None:
    size = 8 * 1024 * 1024

    async def talk(rig: Rig) -> None:
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, rig.path)
        await loop.sock_sendall(client, b"POST /upload HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % size)
        await rig.seen.wait()
        sent = idle = 0
        while idle < 50:
            try:
                sent += client.send(bytes(min(65536, size - sent)))
                idle = 0
            except BlockingIOError:
                idle += 1
            await asyncio.sleep(0)
        assert sent < 4 * 1024 * 1024, "the server read a body that nobody asked for"
        rig.closed.set()
        await loop.sock_sendall(client, bytes(size - sent))
        assert (await loop.sock_recv(client, 65536)).endswith(b"\r\n\r\n%d" % size)
        client.close()

    with_rig(tmp_path, talk)


def test_body_cut_off_ends_the_handler(tmp_path: Path) -> None:
    async def talk(rig: Rig) -> None:
        reader, writer = await rig.connect()
        writer.write(b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Length: 10\r\n\r\nabc")
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()

    with_rig(tmp_path, talk)


def test_half_closed_client_still_gets_its_answer(tmp_path: Path) -> None:
    async def talk(rig: Rig) -> None:
        reader, writer = await rig.connect()
        writer.write(request("POST", "/echo", body=b"abc"))
        writer.write_eof()
        assert (await reader.read()).endswith(b"\r\n\r\nabc")
        writer.close()

    with_rig(tmp_path, talk)


def test_half_closed_client_still_gets_its_stream_until_it_leaves(tmp_path: Path) -> None:
    async def talk(rig: Rig) -> None:
        reader, writer = await rig.connect()
        writer.write(request("GET", "/ticks"))
        writer.write_eof()
        await reader.readuntil(b'{"tick":1}\r\n')
        assert not rig.closed.is_set()
        writer.close()
        await asyncio.wait_for(rig.closed.wait(), 10)

    with_rig(tmp_path, talk, Limits(sweep_s=0.05))


@pytest.mark.parametrize("upgrade", [True, False])
@pytest.mark.parametrize("body", [b"", b'{"Detach":false}'])
def test_hijack_loses_nothing_sent_with_the_request(tmp_path: Path, upgrade: bool, body: bytes) -> None:
    async def talk(rig: Rig) -> None:
        reader, writer = await rig.connect()
        extra = ("Connection: Upgrade", "Upgrade: tcp") if upgrade else ()
        writer.write(request("POST", "/v1.47/hijack", *extra, body=body) + b"first;")
        got = await head_of(reader)
        assert b"Content-Type: application/vnd.docker.raw-stream\r\n" in got
        assert b"Transfer-Encoding" not in got and b"Content-Length" not in got
        if upgrade:
            assert got.startswith(b"HTTP/1.1 101 UPGRADED\r\n")
            assert b"\r\nConnection: Upgrade\r\n" in got and b"\r\nUpgrade: tcp\r\n" in got
        else:
            assert got.startswith(b"HTTP/1.1 200 OK\r\n")
        writer.write(b"GET /_ping HTTP/1.1\r\n\r\n")
        writer.write(bytes(300_000))
        writer.write_eof()
        assert await reader.read() == b"got:first;GET /_ping HTTP/1.1\r\n\r\n" + bytes(300_000)
        writer.close()

    with_rig(tmp_path, talk)


def test_hijack_of_a_client_that_already_half_closed(tmp_path: Path) -> None:
    async def talk(rig: Rig) -> None:
        reader, writer = await rig.connect()
        writer.write(request("POST", "/hijack", "Upgrade: tcp", "Connection: Upgrade") + b"all")
        writer.write_eof()
        assert (await reader.read()).endswith(b"\r\n\r\ngot:all")
        writer.close()

    with_rig(tmp_path, talk)


def test_hijack_with_a_chunked_body(tmp_path: Path) -> None:
    async def talk(rig: Rig) -> None:
        reader, writer = await rig.connect()
        writer.write(b"POST /hijack HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\nraw")
        writer.write_eof()
        assert (await reader.read()).endswith(b"\r\n\r\ngot:raw")
        writer.close()

    with_rig(tmp_path, talk)


def test_hijacked_socket_may_be_given_away(tmp_path: Path) -> None:
    async def talk(rig: Rig) -> None:
        reader, writer = await rig.connect()
        writer.write(request("POST", "/give"))
        await head_of(reader)
        for _ in range(20):
            await asyncio.sleep(0)
        writer.write(b"input")
        assert await asyncio.wait_for(reader.read(), 10) == b"from the shim:input"
        writer.close()

    with_rig(tmp_path, talk)


def test_silent_clients_are_dropped(tmp_path: Path) -> None:
    async def talk(rig: Rig) -> None:
        assert await rig.talk(b"") == b""
        assert (await rig.talk(b"GET /_pi")).startswith(b"HTTP/1.1 408")
        assert (await rig.talk(request("GET", "/_ping"))).endswith(b"\r\n\r\nOK")

    with_rig(tmp_path, talk, Limits(header_s=0.1, idle_s=0.1, linger_s=0.1, sweep_s=0.02))


def test_too_many_connections(tmp_path: Path) -> None:
    async def talk(rig: Rig) -> None:
        busy = []
        for _ in range(3):
            reader, writer = await rig.connect()
            writer.write(request("GET", "/depart"))
            await rig.seen.wait()
            rig.seen.clear()
            busy.append(writer)
        assert (await rig.talk(request("GET", "/_ping"))).startswith(b"HTTP/1.1 503")
        for writer in busy:
            writer.close()

    with_rig(tmp_path, talk, Limits(connections=3))


def test_an_idle_connection_gives_way_to_a_new_one(tmp_path: Path) -> None:
    async def talk(rig: Rig) -> None:
        idle = [await rig.connect() for _ in range(3)]
        for reader, writer in idle:
            writer.write(request("GET", "/_ping"))
            await head_of(reader)
        assert (await rig.talk(request("GET", "/_ping", CLOSE))).startswith(b"HTTP/1.1 200")
        assert await idle[0][0].read() == b"OK"
        for _, writer in idle:
            writer.close()

    with_rig(tmp_path, talk, Limits(connections=3))


def test_close_ends_streams_and_idle_connections(tmp_path: Path) -> None:
    async def talk(rig: Rig) -> None:
        reader, writer = await rig.connect()
        writer.write(request("GET", "/ticks"))
        await head_of(reader)
        idle_reader, idle_writer = await rig.connect()
        await asyncio.sleep(0)
        await rig.server.close(grace=1)
        assert rig.closed.is_set()
        await reader.read()
        with contextlib.suppress(ConnectionError):
            await idle_reader.read()
        writer.close()
        idle_writer.close()

    with_rig(tmp_path, talk)


def test_socket_is_private_from_the_first_moment(tmp_path: Path) -> None:
    async def talk(rig: Rig) -> None:
        mode = os.stat(rig.path).st_mode
        assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o660

    with_rig(tmp_path, talk)


def test_stale_socket_is_replaced_and_a_live_one_respected(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "api.sock"))

    async def talk(rig: Rig) -> None:
        second = Server(Router(), error=rig.error)
        with pytest.raises(Conflict, match="another process serves it"):
            await second.start_unix(rig.path)

    with_rig(tmp_path, talk)


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "api.sock").write_text("precious")

    async def main() -> None:
        with pytest.raises(Conflict, match="not a socket"):
            await Server(Router(), error=lambda e: Response()).start_unix(str(tmp_path / "api.sock"))

    asyncio.run(main())
    assert (tmp_path / "api.sock").read_text() == "precious"


def test_directory_that_everybody_may_change_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "open"
    directory.mkdir()
    directory.chmod(0o777)

    async def main() -> None:
        with pytest.raises(Denied, match="written by everybody"):
            await Server(Router(), error=lambda e: Response()).start_unix(str(directory / "s"))

    asyncio.run(main())


def test_inherited_descriptor(tmp_path: Path) -> None:
    async def main() -> None:
        rig = Rig(tmp_path)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(rig.path)
        listener.listen()
        await rig.server.from_fd(listener.detach())
        assert (await rig.talk(request("GET", "/_ping", CLOSE))).endswith(b"OK")
        await rig.server.close(grace=0)
        reader, writer = os.pipe()
        with pytest.raises(Invalid):
            await rig.server.from_fd(reader)
        os.close(reader)
        os.close(writer)

    asyncio.run(main())


def test_inherited_tcp_needs_tls(tmp_path: Path) -> None:
    async def main() -> None:
        rig = Rig(tmp_path)
        fd = socket.create_server(("127.0.0.1", 0)).detach()
        with pytest.raises(Invalid, match=f"listen on fd {fd}: TCP is refused without --tlsverify"):
            await rig.server.from_fd(fd)

    asyncio.run(main())
