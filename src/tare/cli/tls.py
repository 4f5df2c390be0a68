"""TLS with the few methods of a socket that client.py and streams.py use. Loaded for tcp:// with TLS only.

OpenSSL works on memory here, not on the socket: SSLSocket.unwrap() reads while it closes, and application data that
comes at that moment ends the connection ("application data after close notify"). A half-close must leave the other
direction alone (RFC 8446 section 6.1), so everything decrypted is taken out before close_notify is made.
"""

from __future__ import annotations

import ssl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

__all__ = ["TlsSocket", "context"]

RECORD = 16 << 10
READ_SIZE = 64 << 10


def context(*, verify: bool, authority: str, certificate: str, key: str) -> ssl.SSLContext:
    """A client's context. Raises OSError (ssl.SSLError is one) for files that cannot be read."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if verify:
        made.load_verify_locations(authority)
    else:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    if certificate:
        made.load_cert_chain(certificate, key)
    return made


class TlsSocket:
    """An encrypted stream over the connected `plain`, handshake done. `flags` 0 or MSG_DONTWAIT as in recv(2)."""

    def __init__(self, plain: socket, made: ssl.SSLContext, host: str) -> None:
        self._plain = plain
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = made.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._decrypted = b""
        self._encrypted = b""
        self._accepted = 0
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._send_all()
                if not self._receive(0):
                    raise ConnectionResetError("the server left during the handshake") from None
            else:
                self._send_all()
                return

    def fileno(self) -> int:
        return self._plain.fileno()

    def close(self) -> None:
        self._plain.close()

    def _send_all(self) -> None:
        self._plain.sendall(self._outgoing.read())

    def _receive(self, flags: int) -> bool:
        data = self._plain.recv(READ_SIZE, flags)
        self._incoming.write(data)
        return bool(data)

    def pending(self) -> bool:
        """Whether recv may have something that poll(2) does not show."""
        return bool(self._decrypted or self._tls.pending() or self._incoming.pending)

    def recv(self, most: int, flags: int = 0) -> bytes:
        """1..most bytes, b"" at the end. Raises BlockingIOError with MSG_DONTWAIT."""
        while True:
            if self._decrypted:
                data, self._decrypted = self._decrypted[:most], self._decrypted[most:]
                return data
            try:
                return self._tls.read(most)
            except ssl.SSLWantReadError:
                if not self._receive(flags):
                    return b""
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""

    def send(self, data: bytes, flags: int = 0) -> int:
        """How many of `data` went out. After BlockingIOError call again with bytes that begin the same."""
        if not self._encrypted:
            self._accepted = self._tls.write(data[:RECORD])
            self._encrypted = self._outgoing.read()
        while self._encrypted:
            self._encrypted = self._encrypted[self._plain.send(self._encrypted, flags) :]
        return self._accepted

    def sendall(self, data: bytes) -> None:
        while data:
            data = data[self.send(data) :]

    def shutdown(self, _how: int) -> None:
        """close_notify: we send nothing more, but go on reading."""
        try:
            while True:
                self._decrypted += self._tls.read(READ_SIZE)
        except ssl.SSLError:
            pass
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass
        self._send_all()
