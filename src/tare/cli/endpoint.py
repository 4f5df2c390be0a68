"""Where the daemon is: -H, TARE_HOST, DOCKER_HOST, else unix:///run/tare.sock; and how a socket to it is made.

No other module looks at these variables. TLS is imported when an endpoint asks for it, not before.
Deliberately absent: ssh:// and Docker's contexts; both end in a clear refusal.
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, SOCK_STREAM, socket

from tare.cli.failure import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from tare.cli.tls import TlsSocket

__all__ = ["DEFAULT_SOCKET", "ConnectError", "Endpoint", "choose"]

DEFAULT_SOCKET = "/run/tare.sock"
PLAIN_PORT = "2375"
TLS_PORT = "2376"
CONNECT_TIMEOUT_S = 30.0
WRONG = "Failed to initialize: unable to resolve docker endpoint: invalid bind address format: "


class ConnectError(Failure):
    """Nobody answers there. `absent`: no such socket, or nobody listens on it, so a daemon may be started."""

    def __init__(self, text: str, *, absent: bool = False) -> None:
        super().__init__(text)
        self.absent = absent


class Tls:
    """What a TLS connection needs: `verify` False accepts any server certificate (--tls without --tlsverify)."""

    def __init__(self, *, verify: bool, authority: str, certificate: str, key: str) -> None:
        self.verify = verify
        self.authority = authority
        self.certificate = certificate
        self.key = key


class Endpoint:
    """One address. `chosen` is False for the default socket, the only one a daemon is started for."""

    def __init__(self, url: str, *, chosen: bool, tls: Tls | None = None) -> None:
        self.url = url
        self.chosen = chosen
        self.tls = tls
        self.path = ""
        self.host = ""
        self.port = 0
        scheme, separator, rest = url.partition("://")
        if not separator:
            scheme, rest = "tcp", url
        if scheme == "unix":
            self.path = rest or DEFAULT_SOCKET
            self.chosen = chosen and self.path != DEFAULT_SOCKET  # DOCKER_HOST for the stock client may name it
            self.url = "unix://" + self.path
        elif scheme in ("tcp", "http", "https"):
            self._internet(rest.partition("/")[0])
        else:
            raise Failure(WRONG + url)

    def _internet(self, address: str) -> None:
        default = TLS_PORT if self.tls else PLAIN_PORT
        if address.startswith("["):
            host, _, port = address[1:].partition("]")
            port = port.lstrip(":")
        else:
            host, _, port = address.partition(":")
        if not (port or default).isdigit() or int(port or default) > 65535:
            raise Failure(WRONG + address)
        self.host, self.port = host or "127.0.0.1", int(port or default)
        self.url = f"tcp://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def header(self) -> str:
        """Value of the Host header."""
        return self.url[6:] if self.host else "tare"

    def connect(self) -> socket | TlsSocket:
        """A connected blocking socket. Raises ConnectError."""
        if self.path:
            return self._unix()
        return self._tcp()

    def _unix(self) -> socket:
        sock = socket(AF_UNIX, SOCK_STREAM)
        try:
            sock.connect(self.path)
        except PermissionError:
            sock.close()
            raise ConnectError(
                f"permission denied while trying to connect to the tare daemon socket at {self.url}"
            ) from None
        except OSError as error:
            sock.close()
            absent = isinstance(error, (FileNotFoundError, ConnectionRefusedError))
            raise ConnectError(_nobody(self.url), absent=absent) from None
        return sock

    def _tcp(self) -> socket | TlsSocket:
        from _socket import IPPROTO_TCP, TCP_NODELAY, gaierror, getaddrinfo

        try:
            addresses = getaddrinfo(self.host, self.port, 0, SOCK_STREAM)
        except gaierror as error:
            raise ConnectError(f"error during connect: lookup {self.host}: {error.strerror}") from None
        for family, kind, protocol, _name, address in addresses:
            sock = socket(family, kind, protocol)
            try:
                sock.settimeout(CONNECT_TIMEOUT_S)
                sock.connect(address)
                sock.settimeout(None)
                sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
            except OSError:
                sock.close()
                continue
            return self._secured(sock) if self.tls else sock
        raise ConnectError(_nobody(self.url))

    def _secured(self, plain: socket) -> TlsSocket:
        from tare.cli.tls import TlsSocket, context

        tls = self.tls
        assert tls is not None
        identified = tls.verify or os.access(tls.certificate, os.R_OK)
        try:
            made = context(
                verify=tls.verify,
                authority=tls.authority,
                certificate=tls.certificate if identified else "",
                key=tls.key,
            )
            return TlsSocket(plain, made, self.host)
        except OSError as error:
            plain.close()
            raise ConnectError(f"error during connect: TLS to {self.url}: {error}") from None


def _nobody(url: str) -> str:
    return f"Cannot connect to the tare daemon at {url}. Is the tare daemon running?"


def choose(flag: str, settings: Mapping[str, str], environment: Mapping[str, str]) -> Endpoint:
    """-H wins, then TARE_HOST, then DOCKER_HOST. `settings`: the global TLS flags by name ("1" = on)."""
    url = flag or environment.get("TARE_HOST", "") or environment.get("DOCKER_HOST", "")
    verify = settings.get("tlsverify") == "1" or bool(environment.get("DOCKER_TLS_VERIFY"))
    tls = None
    if (verify or settings.get("tls") == "1") and not url.startswith("unix://") and url:
        folder = environment.get("DOCKER_CERT_PATH") or os.path.join(environment.get("HOME", "/"), ".docker")
        tls = Tls(
            verify=verify,
            authority=settings.get("tlscacert") or os.path.join(folder, "ca.pem"),
            certificate=settings.get("tlscert") or os.path.join(folder, "cert.pem"),
            key=settings.get("tlskey") or os.path.join(folder, "key.pem"),
        )
    return Endpoint(url or "unix://" + DEFAULT_SOCKET, chosen=bool(url), tls=tls)
