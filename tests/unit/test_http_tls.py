"""TLS with client certificates: the hijacked connection is pumped. openssl(1) makes the certificates."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess

import pytest

from tare import daemon
from tare.config import Settings
from tare.errors import Unavailable
from tare.http.message import Answer, Hijack, Request, Response
from tare.http.router import Router
from tare.http.server import Server

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl(1) is not installed")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """One self-signed certificate that serves as CA, server and client."""
    directory = tmp_path_factory.mktemp("tls")
    key, cert = str(directory / "key.pem"), str(directory / "cert.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        + ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", cert],
        check=True,
        capture_output=True,
    )
    return cert, key


def client_context(cert: str, key: str, *, identify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=cert)
    if identify:
        context.load_cert_chain(cert, key)
    return context


async def ping(request: Request) -> Answer:
    return Response(200, b"OK")


async def shout(request: Request) -> Answer:
    async def run(sock: socket.socket, leftover: bytes) -> None:
        loop = asyncio.get_running_loop()
        size = len(leftover)
        with sock:
            await loop.sock_sendall(sock, leftover.upper())
            while size < 1_000_000:
                data = await loop.sock_recv(sock, 65536)
                size += len(data)
                await loop.sock_sendall(sock, data.upper())

    return Hijack(run)


@pytest.mark.parametrize("handed_in", [False, True])
def test_tls(certificate: tuple[str, str], handed_in: bool) -> None:
    cert, key = certificate
    router = Router()
    router.add("GET", "/_ping", ping)
    router.add("POST", "/shout", shout)

    async def main() -> None:
        server = Server(router, error=lambda error: Response(500))
        settings = Settings(tlsverify=True, tlscacert=cert, tlscert=cert, tlskey=key)
        context = daemon._tls(settings)
        if handed_in:
            listener = socket.create_server(("127.0.0.1", 0))
            host, port = listener.getsockname()
            await server.from_fd(listener.detach(), context)
        else:
            ((host, port),) = await server.start_tcp("127.0.0.1", 0, context)

        async def connect(*, identify: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            context = client_context(cert, key, identify=identify)
            return await asyncio.open_connection(host, port, ssl=context, server_hostname="localhost")

        reader, writer = await connect(identify=True)
        writer.write(b"GET /_ping HTTP/1.1\r\nHost: any.example\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\nOK")).startswith(b"HTTP/1.1 200")
        writer.write(b"POST /shout HTTP/1.1\r\nHost: x\r\nUpgrade: tcp\r\nConnection: Upgrade\r\n\r\nfirst")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 UPGRADED")
        writer.write(b"z" * (1_000_000 - 5))
        assert await asyncio.wait_for(reader.readexactly(1_000_000), 20) == b"FIRST" + b"Z" * (1_000_000 - 5)
        assert await reader.read() == b""
        writer.close()

        with pytest.raises((ssl.SSLError, ConnectionError)):
            reader, writer = await connect(identify=False)
            writer.write(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await reader.read() == b""
            raise ConnectionResetError
        writer.close()
        await server.close(grace=0)
        for _ in range(5):
            await asyncio.sleep(0)

    asyncio.run(main())


def test_bad_certificate_is_one_sentence(certificate: tuple[str, str]) -> None:
    cert, key = certificate
    with pytest.raises(Unavailable, match="TLS certificates"):
        daemon._tls(Settings(tlsverify=True, tlscacert=key, tlscert=cert, tlskey=cert))
    with pytest.raises(OSError):
        daemon._tls(Settings(tlsverify=True, tlscacert=cert, tlscert=cert, tlskey="/nonexistent"))
