"""The client over TLS, with the half-close of a hijacked stream. openssl(1) makes the certificate."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_fake_daemon import HANG_S, command, environment

from tare.cli.client import Client
from tare.cli.endpoint import ConnectError, choose
from tare.cli.signals import Signals
from tare.cli.streams import Duplex

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl(1) is not installed")
BIG = b"x" * (1 << 20)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ca.pem, cert.pem, key.pem: one self-signed certificate in three parts."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True, capture_output=True, timeout=HANG_S,
    )  # fmt: skip
    shutil.copy(folder / "cert.pem", folder / "ca.pem")
    return folder


class Server:
    """Serves one connection: /a answers JSON; /attach is a stream that says BIG, reads to the end, and says it back."""

    def __init__(self, certificates: Path) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
        self.context.load_verify_locations(certificates / "ca.pem")
        self.context.verify_mode = ssl.CERT_REQUIRED
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"tcp://127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        try:
            plain, _ = self.listener.accept()
            with plain, self.context.wrap_socket(plain, server_side=True) as sock:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += sock.recv(4096)
                if b"/attach" not in head:
                    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                    return
                sock.sendall(b"HTTP/1.1 101 UPGRADED\r\n\r\n" + BIG)
                got = b""
                while data := sock.recv(65536):
                    got += data
                sock.sendall(got[::-1])
        except OSError:
            pass

    def close(self) -> None:
        self.listener.close()
        self.thread.join(HANG_S)


@pytest.fixture
def server(certificates: Path) -> Iterator[Server]:
    server = Server(certificates)
    yield server
    server.close()


def test_verified(server: Server, certificates: Path) -> None:
    client = Client(choose(server.host, {"tlsverify": "1"}, {"DOCKER_CERT_PATH": str(certificates)}))
    assert client.get("/a") == {}
    client.close()


def test_refused_without_trust(server: Server, certificates: Path, tmp_path: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=other", "-keyout", tmp_path / "k.pem", "-out", tmp_path / "ca.pem"],
        check=True, capture_output=True, timeout=HANG_S,
    )  # fmt: skip
    shutil.copy(certificates / "cert.pem", tmp_path)
    shutil.copy(certificates / "key.pem", tmp_path)
    client = Client(choose(server.host, {"tlsverify": "1"}, {"DOCKER_CERT_PATH": str(tmp_path)}))
    with pytest.raises(ConnectError, match="error during connect: TLS to"):
        client.get("/a")


def test_by_environment(server: Server, certificates: Path) -> None:
    more = {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(certificates), "TARE_HOST": server.host}
    done = subprocess.run(
        command("start", "x"), env=environment(None, **more), capture_output=True, timeout=HANG_S, check=False
    )
    assert b"TLS" not in done.stderr
    assert (done.returncode, done.stdout) == (0, b"x\n")


def test_half_close(server: Server, certificates: Path) -> None:
    client = Client(choose(server.host, {"tlsverify": "1"}, {"DOCKER_CERT_PATH": str(certificates)}))
    stream = client.opened(client.hijack("/attach"))
    stdin, feed = os.pipe()
    output, stdout = os.pipe()
    os.write(feed, b"hello")
    os.close(feed)
    outputs: list[bytes] = []

    def read() -> None:
        while data := os.read(output, 65536):
            outputs.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    signals = Signals(())
    Duplex(stream, signals, lambda: None, stdin=stdin, stdout=stdout, stderr=None, framed=False).run()
    signals.close()
    os.close(stdout)
    reader.join(HANG_S)
    stream.close()
    for fd in (stdin, output):
        os.close(fd)
    got = b"".join(outputs)
    assert (len(got), got[-5:]) == (len(BIG) + 5, b"olleh")
