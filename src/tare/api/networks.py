"""/networks: the two that need no network of ours, "host" and "none". Creating any comes with bridge networks."""

from __future__ import annotations

import hashlib
from typing import Any

from msgspec import field

from tare.engine.model import Container, State
from tare.errors import NotFound
from tare.http.message import Request, Response, json_response

from . import filters, times
from .backend import Engine
from .wire import Wire

__all__ = ["Networks", "ids"]

DRIVERS = {"host": "host", "none": "null"}
FILTERS = ("dangling", "driver", "id", "label", "name", "scope", "type")


class Ipam(Wire):
    driver: str = "default"
    options: None = None
    config: list[Any] = []


class Member(Wire):
    name: str
    endpoint_id: str = field(default="", name="EndpointID")
    mac_address: str = ""
    ipv4_address: str = field(default="", name="IPv4Address")
    ipv6_address: str = field(default="", name="IPv6Address")


class Network(Wire):
    """api/types/network/network.go of API 1.47."""

    name: str
    id: str
    created: str = times.ZERO
    scope: str = "local"
    driver: str = ""
    enable_ipv6: bool = field(default=False, name="EnableIPv6")
    ipam: Ipam = field(default_factory=Ipam, name="IPAM")
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    config_from: dict[str, str] = field(default_factory=lambda: {"Network": ""})
    config_only: bool = False
    containers: dict[str, Member] = {}
    options: dict[str, str] = {}
    labels: dict[str, str] = {}


def ids(engine_id: str) -> dict[str, str]:
    """Name -> id: 64 hex digits that stay the same for one installation and differ between two."""
    return {name: hashlib.sha256(f"{engine_id}/networks/{name}".encode()).hexdigest() for name in DRIVERS}


class Networks:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._ids = ids(engine.id)

    async def listing(self, request: Request) -> Response:
        wanted = filters.parse(request.query.get("filters"), FILTERS)
        dangling = wanted.flag("dangling", default=False)
        chosen = [
            self._network(name, detailed=request.version < (1, 28))
            for name, network_id in self._ids.items()
            if not dangling
            and wanted.exact("driver", DRIVERS[name])
            and wanted.prefix("id", network_id)
            and wanted.labels({})
            and wanted.search("name", name)
            and wanted.exact("scope", "local")
            and wanted.exact("type", "builtin")
        ]
        return json_response(chosen)

    async def inspect(self, request: Request) -> Response:
        """By name, id, or unique prefix of an id."""
        ref = request.params["id"]
        found = [name for name, network_id in self._ids.items() if ref == name or network_id.startswith(ref)]
        if len(found) != 1 or request.query.get("scope", "local") != "local":
            raise NotFound(f"network {ref} not found")
        return json_response(self._network(found[0], detailed=True))

    def _network(self, name: str, *, detailed: bool) -> Network:
        members = self._members(name) if detailed else {}
        return Network(name=name, id=self._ids[name], driver=DRIVERS[name], containers=members)

    def _members(self, name: str) -> dict[str, Member]:
        def joined(container: Container) -> bool:
            alive = container.state in (State.RUNNING, State.PAUSED)
            return alive and container.spec.namespaces.network == name

        return {c.id: Member(name=c.name) for c in self.engine.containers.all() if joined(c)}
