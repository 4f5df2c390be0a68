"""Every route of the API in one table. What a path means is in the file of its resource."""

from __future__ import annotations

from tare.http.message import Handler
from tare.http.router import Router

from . import volumes
from .backend import Engine
from .containers import Containers
from .exec import Execs
from .images import Images
from .networks import Networks
from .streams import ContainerStreams
from .system import MAXIMUM, MINIMUM, NOT_A_MANAGER, System, unavailable

__all__ = ["build"]


def build(engine: Engine) -> Router:
    """The router of one engine; paths that are not in the table are "page not found"."""
    router = Router(minimum=MINIMUM, maximum=MAXIMUM, server=f"Docker/{engine.version} (linux)")
    for method, pattern, handler in table(engine):
        router.add(method, pattern, handler)
    return router


def table(engine: Engine) -> list[tuple[str, str, Handler]]:
    containers, streams, execs = Containers(engine), ContainerStreams(engine), Execs(engine)
    images, networks = Images(engine), Networks(engine)
    system = System(engine, containers, images)
    return [
        ("GET", "/_ping", system.ping),
        ("HEAD", "/_ping", system.ping),
        ("GET", "/version", system.version),
        ("GET", "/info", system.info),
        ("GET", "/events", system.events),
        ("GET", "/system/df", system.disk_usage),
        ("GET", "/containers/json", containers.listing),
        ("POST", "/containers/create", containers.create),
        ("POST", "/containers/prune", containers.prune),
        ("GET", "/containers/{id}/json", containers.inspect),
        ("POST", "/containers/{id}/start", containers.start),
        ("POST", "/containers/{id}/stop", containers.stop),
        ("POST", "/containers/{id}/restart", containers.restart),
        ("POST", "/containers/{id}/kill", containers.kill),
        ("POST", "/containers/{id}/pause", containers.pause),
        ("POST", "/containers/{id}/unpause", containers.unpause),
        ("POST", "/containers/{id}/rename", containers.rename),
        ("POST", "/containers/{id}/resize", containers.resize),
        ("POST", "/containers/{id}/wait", streams.wait),
        ("POST", "/containers/{id}/attach", streams.attach),
        ("GET", "/containers/{id}/logs", streams.logs),
        ("DELETE", "/containers/{id}", containers.remove),
        ("POST", "/containers/{id}/exec", execs.create),
        ("POST", "/exec/{id}/start", execs.start),
        ("POST", "/exec/{id}/resize", execs.resize),
        ("GET", "/exec/{id}/json", execs.inspect),
        ("GET", "/images/json", images.listing),
        ("GET", "/images/get", images.get),
        ("POST", "/images/load", images.load),
        ("POST", "/images/create", images.create),
        ("POST", "/images/prune", images.prune),
        ("GET", "/images/{name:path}/json", images.inspect),
        ("GET", "/images/{name:path}/history", images.history),
        ("GET", "/images/{name:path}/get", images.get),
        ("POST", "/images/{name:path}/tag", images.tag),
        ("DELETE", "/images/{name:path}", images.remove),
        ("GET", "/networks", networks.listing),
        ("GET", "/networks/", networks.listing),
        ("GET", "/networks/{id}", networks.inspect),
        ("GET", "/volumes", volumes.listing),
        ("GET", "/volumes/{name}", volumes.inspect),
        ("GET", "/plugins", system.plugins),
        ("GET", "/plugins/{name:path}/json", system.plugin),
        *swarm(),
    ]


def swarm() -> list[tuple[str, str, Handler]]:
    """What an engine outside a swarm answers: 503 with Docker's text."""
    refuse = unavailable(NOT_A_MANAGER)
    routes: list[tuple[str, str, Handler]] = [
        ("GET", "/swarm", refuse),
        ("GET", "/swarm/unlockkey", refuse),
        ("POST", "/swarm/init", refuse),
        ("POST", "/swarm/join", refuse),
        ("POST", "/swarm/update", refuse),
        ("POST", "/swarm/unlock", refuse),
        ("POST", "/swarm/leave", unavailable("This node is not part of a swarm")),
    ]
    for noun in ("nodes", "services", "tasks", "secrets", "configs"):
        routes += [("GET", f"/{noun}", refuse), ("GET", f"/{noun}/{{id}}", refuse)]
        if noun != "tasks":
            routes += [("DELETE", f"/{noun}/{{id}}", refuse), ("POST", f"/{noun}/{{id}}/update", refuse)]
        if noun in ("services", "secrets", "configs"):
            routes.append(("POST", f"/{noun}/create", refuse))
    return routes
