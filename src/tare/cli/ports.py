"""-p and --expose: text -> PortBindings and ExposedPorts. Raises ValueError in Docker's words (go-connections nat)."""

from __future__ import annotations

from tare.cli.values import address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["exposed", "published"]

HIGHEST = 65535


def _range(text: str) -> tuple[int, int]:
    """"80" or "80-90" -> (first, last)."""
    first, dash, last = text.partition("-")
    last = last if dash else first
    if not all(part.isascii() and part.isdigit() and len(part) < 9 for part in (first, last)):
        raise ValueError(text)
    low, high = int(first), int(last)
    if not low <= high <= HIGHEST:
        raise ValueError(text)
    return low, high


def _protocol(text: str) -> tuple[str, str]:
    """"80/udp" -> ("80", "udp")."""
    port, _, protocol = text.partition("/")
    protocol = protocol.lower() or "tcp"
    if protocol not in ("tcp", "udp", "sctp"):
        raise ValueError("invalid proto: " + protocol)
    return port, protocol


def _long(text: str) -> str:
    """"published=8080,target=80,protocol=udp" -> "8080:80/udp"."""
    fields = {"protocol": "tcp", "published": "", "target": ""}
    for field in text.split(","):
        key, equals, value = field.partition("=")
        if not equals or not key:
            raise ValueError(f"invalid publish opts format (should be name=value but got '{field}')")
        fields[key] = value
    return f"{fields['published']}:{fields['target']}/{fields['protocol']}"


def published(specs: Iterable[str]) -> dict[str, list[dict[str, str]]]:
    """All -p "[ip:][host port]:container port[/protocol]" -> PortBindings; ranges become single ports."""
    bindings: dict[str, list[dict[str, str]]] = {}
    for spec in specs:
        text = _long(spec) if "=" in spec else spec
        parts = text.rsplit(":", 2)
        ip, host, inside = [""] * (3 - len(parts)) + parts
        inside, protocol = _protocol(inside)
        bare = ip[1:-1] if ip.startswith("[") and ip.endswith("]") else ip
        if bare:
            try:
                address(bare)
            except ValueError:
                raise ValueError(f"invalid IP address: {ip}") from None
        if not inside:
            raise ValueError(f"no port specified: {text}<empty>")
        try:
            first, last = _range(inside)
        except ValueError:
            raise ValueError(f"invalid containerPort: {inside}") from None
        try:
            low, high = _range(host) if host else (0, 0)
        except ValueError:
            raise ValueError(f"invalid hostPort: {host}") from None
        if host and last - first != high - low and first != last:
            raise ValueError(f"invalid ranges specified for container and host Ports: {inside} and {host}")
        for offset in range(last - first + 1):
            outside = str(low + offset) if host else ""
            if host and first == last and low != high:
                outside = f"{low}-{high}"
            bindings.setdefault(f"{first + offset}/{protocol}", []).append({"HostIp": bare, "HostPort": outside})
    return bindings


def exposed(specs: Iterable[str]) -> dict[str, dict[str, str]]:
    """All --expose "80[-90][/protocol]" -> ExposedPorts."""
    ports: dict[str, dict[str, str]] = {}
    for spec in specs:
        port, protocol = _protocol(spec)
        try:
            first, last = _range(port)
        except ValueError:
            raise ValueError(f"invalid range format for --expose: {spec}") from None
        for number in range(first, last + 1):
            ports[f"{number}/{protocol}"] = {}
    return ports
