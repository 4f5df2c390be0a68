"""HTTP as the client speaks and reads it; where the daemon is; JSON without the json module."""

from __future__ import annotations

import json
import math
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_fake_daemon import HANG_S, Exchange, FakeDaemon
from hypothesis import given
from hypothesis import strategies as st

from tare.cli import jsontext
from tare.cli.client import ApiError, Client, ProtocolError, escaped, query
from tare.cli.endpoint import ConnectError, Endpoint, choose
from tare.cli.failure import Failure

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    daemon = FakeDaemon(tmp_path / "sock")
    yield daemon
    daemon.close()


@pytest.fixture
def client(daemon: FakeDaemon) -> Iterator[Client]:
    client = Client(Endpoint("unix://" + daemon.path, chosen=True))
    yield client
    client.close()


def raw(data: bytes) -> Callable[[Exchange], str]:
    def handler(exchange: Exchange) -> str:
        exchange.sock.sendall(data)
        exchange.sock.shutdown(socket.SHUT_WR)
        return "close"

    return handler


def test_a_connection_is_used_again(daemon: FakeDaemon, client: Client) -> None:
    daemon.on["GET /a"] = lambda e: e.reply(200, {"n": 1})
    daemon.on["POST /b"] = lambda e: e.reply(204)
    assert client.get("/a") == {"n": 1}
    assert client.post("/b", {"x": [1]}) == b""
    assert client.get("/a") == {"n": 1}
    assert len({each.connection for each in daemon.log}) == 1
    assert daemon.log[1].json == {"x": [1]}
    assert daemon.log[1].headers["content-type"] == "application/json"


def test_a_connection_that_the_server_closed_is_replaced(daemon: FakeDaemon, client: Client) -> None:
    def once(exchange: Exchange) -> str:
        exchange.reply(200, {})
        exchange.sock.shutdown(socket.SHUT_RDWR)
        return "close"

    daemon.on["GET /a"] = once
    for _ in range(3):
        assert client.get("/a") == {}
    assert len(daemon.log) == 3


def test_chunked_body_in_odd_pieces(daemon: FakeDaemon, client: Client) -> None:
    def handler(exchange: Exchange) -> None:
        exchange.head()
        for byte in b'3;ext=1\r\n{"a\r\n4\r\n":1}\r\n0\r\nTrailer: x\r\n\r\n':
            exchange.sock.sendall(bytes((byte,)))

    daemon.on["GET /a"] = handler
    assert client.get("/a") == {"a": 1}
    assert client.get("/a") == {"a": 1}
    assert len({each.connection for each in daemon.log}) == 1


def test_body_to_the_end_of_the_connection(daemon: FakeDaemon, client: Client) -> None:
    daemon.on["GET /a"] = raw(b"HTTP/1.1 200 OK\r\n\r\nhello")
    assert client.request("GET", "/a").read() == b"hello"


def test_messages_come_one_by_one(daemon: FakeDaemon, client: Client) -> None:
    seen = threading.Event()

    def handler(exchange: Exchange) -> None:
        exchange.head()
        exchange.chunk(b'{"status":"one"}\r\n{"sta')
        assert seen.wait(HANG_S)
        exchange.chunk(b'tus":"two"}\r\n')
        exchange.end()

    daemon.on["GET /events"] = handler
    stream = client.request("GET", "/events").messages()
    assert next(stream) == {"status": "one"}
    seen.set()
    assert list(stream) == [{"status": "two"}]


def test_errors_carry_the_daemons_words(daemon: FakeDaemon, client: Client) -> None:
    daemon.on["GET /a"] = lambda e: e.error(404, "No such container: x")
    with pytest.raises(ApiError) as caught:
        client.get("/a")
    assert str(caught.value) == "Error response from daemon: No such container: x"
    assert (caught.value.code, caught.value.status) == (404, 1)
    daemon.on["GET /b"] = lambda e: e.reply(500, b"it broke")
    with pytest.raises(ApiError, match="it broke"):
        client.get("/b")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 abc X\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70000,
        b"HTTP/1.1 200 OK\r\n" + b"X: aaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 4000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{{{",
    ],
)
def test_what_is_no_http_or_no_json(daemon: FakeDaemon, client: Client, answer: bytes) -> None:
    daemon.on["GET /a"] = raw(answer)
    with pytest.raises(ProtocolError):
        client.get("/a")


def test_upload_and_answer(daemon: FakeDaemon, client: Client) -> None:
    daemon.on["POST /load"] = lambda e: e.reply(200, {"size": len(e.body)})
    pieces = (b"x" * 100_000 for _ in range(20))
    assert client.request("POST", "/load", upload=pieces).document() == {"size": 2_000_000}
    assert daemon.log[0].headers["transfer-encoding"] == "chunked"


def test_upload_that_is_refused_early(tmp_path: Path) -> None:
    """The server answers 400 and closes before it has read 50 MB: the answer is what counts."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()

    def serve() -> None:
        sock, _ = listener.accept()
        sock.recv(1000)
        sock.sendall(b'HTTP/1.1 400 X\r\nConnection: close\r\nContent-Length: 17\r\n\r\n{"message":"bad"}')
        sock.shutdown(socket.SHUT_WR)
        sock.close()

    thread = threading.Thread(target=serve)
    thread.start()
    client = Client(Endpoint(f"unix://{tmp_path}/s", chosen=True))
    with pytest.raises(ApiError, match="bad"):
        client.request("POST", "/load", upload=(b"x" * 100_000 for _ in range(500)))
    thread.join(HANG_S)
    listener.close()


def test_hijack_keeps_the_first_bytes(daemon: FakeDaemon, client: Client) -> None:
    answer = b"HTTP/1.1 101 UPGRADED\r\nUpgrade: tcp\r\nConnection: Upgrade\r\n\r\nfirst"
    daemon.on["POST /attach"] = raw(answer)
    connection = client.opened(client.hijack("/attach"))
    assert connection.buffer or connection.sock.recv(10)
    assert daemon.log[0].headers["upgrade"] == "tcp"
    connection.close()
    daemon.on["POST /attach"] = lambda e: e.error(409, "paused")
    with pytest.raises(ApiError, match="paused"):
        client.opened(client.hijack("/attach"))


def test_version_prefix(daemon: FakeDaemon) -> None:
    daemon.on["GET /v1.43/a"] = lambda e: e.reply(200, {})
    client = Client(Endpoint("unix://" + daemon.path, chosen=True), version="1.43")
    assert client.get("/a") == {}
    client.close()


def test_nobody_listens(tmp_path: Path) -> None:
    path = tmp_path / "none"
    with pytest.raises(ConnectError) as caught:
        Client(Endpoint(f"unix://{path}", chosen=True)).get("/a")
    assert str(caught.value) == f"Cannot connect to the tare daemon at unix://{path}. Is the tare daemon running?"
    assert caught.value.absent


def test_start_is_asked_once(daemon: FakeDaemon, tmp_path: Path) -> None:
    calls = []
    client = Client(Endpoint(f"unix://{tmp_path}/none", chosen=False), start=lambda: bool(calls.append(1)))
    for _ in range(2):
        with pytest.raises(ConnectError):
            client.get("/a")
    assert calls == [1]


def test_choose() -> None:
    here = {"TARE_HOST": "unix:///tare", "DOCKER_HOST": "unix:///docker"}
    assert choose("unix:///flag", {}, here).path == "/flag"
    assert choose("", {}, here).path == "/tare"
    assert choose("", {}, {"DOCKER_HOST": "unix:///docker"}).path == "/docker"
    default = choose("", {}, {})
    assert (default.path, default.chosen) == ("/run/tare.sock", False)
    tcp = choose("tcp://example.com", {}, {})
    assert (tcp.host, tcp.port, tcp.tls) == ("example.com", 2375, None)
    secured = choose("tcp://[::1]", {}, {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": "/certs"})
    assert (secured.host, secured.port, secured.url) == ("::1", 2376, "tcp://[::1]:2376")
    assert secured.tls is not None
    assert secured.tls.authority == "/certs/ca.pem"
    for wrong in ("foo://bar", "ssh://host", "tcp://a:b", "tcp://a:99999"):
        with pytest.raises(Failure, match="invalid bind address format"):
            choose(wrong, {}, {})


def test_tcp(daemon: FakeDaemon) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    daemon.on["GET /a"] = lambda e: e.reply(200, {"host": e.headers["host"]})

    def serve() -> None:
        sock, _ = listener.accept()
        daemon._serve(sock)
        sock.close()

    thread = threading.Thread(target=serve)
    thread.start()
    port = listener.getsockname()[1]
    client = Client(choose(f"tcp://127.0.0.1:{port}", {}, {}))
    assert client.get("/a") == {"host": f"127.0.0.1:{port}"}
    client.close()
    thread.join(HANG_S)
    listener.close()


def test_escaped_and_query() -> None:
    assert escaped("../x y/é") == "..%2Fx%20y%2F%C3%A9"
    assert escaped("a/b:1", b"/:") == "a/b:1"
    assert query(a=1, b=None, from_="x&y") == "?a=1&from=x%26y"
    assert query(a=None) == ""


@given(VALUES)
def test_json_is_json(value: object) -> None:
    text = jsontext.dumps(value)
    if "\\ufffd" not in text:
        assert json.loads(text) == value
    assert jsontext.loads(json.dumps(value)) == value


@pytest.mark.parametrize(
    "text", ["", "{", "[1]x", "NaN", '{"a":1,}', "[" * 100_000, '"a', "-", "tru", "{1:2}", '"\\u12"']
)
def test_what_is_no_json(text: str) -> None:
    with pytest.raises(ValueError, match="JSON"):
        jsontext.loads(text)


def test_stray_bytes_become_the_replacement_character() -> None:
    assert jsontext.dumps("a\udc80b") == '"a\\ufffdb"'
    assert jsontext.dumps("\U0001d4b3\udc80") == '"\\ud835\\udcb3\\ufffd"'
    assert not math.isnan(jsontext.loads("1e5"))
