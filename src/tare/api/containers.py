"""/containers but for its streams (streams.py): create, inspect, list, and every step of a container's life.

Runs in the daemon. Deliberately absent: any decision about a step; the engine raises, errors.py translates.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import msgspec

from tare.engine import files
from tare.engine.model import Container, ContainerSpec, MountSpec, State
from tare.errors import EngineError, Invalid, NotFound, Unsupported
from tare.http.message import Request, Response, json_response

from . import container_wire, decode, filters, inspect_wire, mounts, networks, times
from .backend import Engine
from .filters import Filters
from .inspect_wire import Place

__all__ = ["RUNNING", "Containers", "integer", "prune_until", "rows_columns"]

LIST_FILTERS = (
    "ancestor", "before", "exited", "expose", "health", "id", "is-task", "isolation", "label", "name", "network",
    "publish", "since", "status", "volume",
)  # fmt: skip
HEALTH = frozenset({"starting", "healthy", "unhealthy", "none"})
STATES = frozenset(state.value for state in State)
RUNNING = frozenset({State.RUNNING, State.PAUSED, State.RESTARTING})
NO_CONTENT = Response(status=204)


class Containers:
    """The handlers, and the rendered lines of the list: an immutable Container is rendered once per wire version."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._networks = networks.ids(engine.id)
        self._lines: dict[tuple[str, bool], tuple[Container, bytes]] = {}

    async def create(self, request: Request) -> Response:
        body = await decode.body(request, container_wire.CreateBody)
        if not body.image:
            raise Invalid("config cannot be empty in order to create a container")
        spec = container_wire.to_spec(body, request.version, request.query.get("platform"))
        spec = self._with_borrowed(spec, body.host_config.volumes_from or [])
        if any(mount.type == "bind" for mount in spec.mounts):
            await files.patiently(mounts.check_sources, spec.mounts)
        else:
            mounts.check_sources(spec.mounts)
        container = await self.engine.containers.create(request.query.get("name"), spec)
        warnings = [*container.warnings, *container_wire.warnings(spec)]
        return json_response({"Id": container.id, "Warnings": warnings}, 201)

    def _with_borrowed(self, spec: ContainerSpec, volumes_from: list[str]) -> ContainerSpec:
        """The mounts of --volumes-from."""
        own = {mount.target for mount in spec.mounts}
        borrowed: list[MountSpec] = []
        for entry in volumes_from:
            ref, _, mode = entry.partition(":")
            if mode not in ("", "ro", "rw", "z", "Z"):
                raise Invalid(f"invalid mode: {mode}")
            try:
                source = self.engine.containers.get(ref)
            except NotFound as error:
                # A 404 of create means "no such image" to clients: they would pull and try again.
                raise Invalid(str(error)) from None
            for mount in source.spec.mounts:
                if mount.type == "bind" and mount.target not in own:
                    own.add(mount.target)
                    read_only = mount.read_only or mode == "ro"
                    borrowed.append(msgspec.structs.replace(mount, read_only=read_only, origin=""))
        return msgspec.structs.replace(spec, mounts=(*spec.mounts, *borrowed)) if borrowed else spec

    async def inspect(self, request: Request) -> Response:
        container = self.engine.containers.get(request.params["id"])
        place = Place(
            directory=str(self.engine.containers.directory(container.id)),
            log_path=str(self.engine.containers.log_path(container.id)),
            host_name=os.uname().nodename,
            networks=self._networks,
            exec_ids=tuple(value.id for value in self.engine.execs.of(container.id)),
            size=await self.engine.containers.size(container) if request.query.flag("size") else None,
        )
        return json_response(inspect_wire.inspect(container, place, request.version))

    async def listing(self, request: Request) -> Response:
        query = request.query
        wanted = filters.parse(query.get("filters"), LIST_FILTERS)
        limit = integer(query.get("limit")) or 0
        chosen = self._select(wanted, everything=query.flag("all") or "status" in wanted, limit=limit)
        body = b",".join(await self.lines(chosen, request.version, sizes=query.flag("size")))
        return Response(body=b"[%b]\n" % body, content_type="application/json")

    async def lines(self, chosen: list[Container], version: tuple[int, int], *, sizes: bool) -> list[bytes]:
        """One JSON object per container."""
        now = time.time_ns()
        shown: dict[tuple[str, str], str] = {}
        result = []
        for container in chosen:
            key = (container.spec.image, container.image_id)
            if key not in shown:
                shown[key] = self._image_name(*key)
            size = await self.engine.containers.size(container) if sizes else None
            status = inspect_wire.status(container, now)
            result.append(inspect_wire.line(self._rendered(container, version), shown[key], status, size))
        return result

    def _rendered(self, container: Container, version: tuple[int, int]) -> bytes:
        key = (container.id, version >= (1, 46))
        known = self._lines.get(key)
        if known is not None and known[0] is container:
            return known[1]
        if len(self._lines) > 2 * len(self.engine.containers.all()) + 16:
            self._lines.clear()
        rendered = msgspec.json.encode(inspect_wire.summary(container, self._networks, version))
        self._lines[key] = (container, rendered)
        return rendered

    def _image_name(self, reference: str, image_id: str) -> str:
        """The reference while it still means that image, else the id."""
        try:
            return reference if self.engine.images.find(reference) == image_id else image_id
        except EngineError:
            return image_id

    def _select(self, wanted: Filters, *, everything: bool, limit: int) -> list[Container]:
        """Newest first; a limit counts stopped ones, too."""
        candidates = self.engine.containers.all()
        for ref in wanted.get("before"):
            after = self.engine.containers.get(ref)
            candidates = candidates[position(candidates, after) + 1 :]
        for ref in wanted.get("since"):
            candidates = candidates[: position(candidates, self.engine.containers.get(ref))]
        tests = list(self._tests(wanted))
        chosen = [
            container
            for container in candidates
            if (everything or limit > 0 or container.state in RUNNING) and all(test(container) for test in tests)
        ]
        return chosen[:limit] if limit > 0 else chosen

    def _tests(self, wanted: Filters) -> Iterator[Callable[[Container], bool]]:
        """One predicate per filter given. Raises Invalid for a value that is none."""
        for value in wanted.get("status"):
            if value not in STATES:
                raise Invalid(f"invalid filter 'status={value}'")
        for value in wanted.get("health"):
            if value not in HEALTH:
                raise Invalid(f"invalid filter 'health={value}'")
        codes = [filter_code(value) for value in wanted.get("exited")]
        if codes:
            yield lambda c: c.state not in RUNNING and c.started > 0 and c.exit.code in codes
        if "is-task" in wanted and wanted.flag("is-task", default=False):
            yield lambda c: False
        if "ancestor" in wanted:
            ancestors = self._ancestors(wanted.get("ancestor"))
            yield lambda c: c.image_id in ancestors
        for key in ("publish", "expose"):
            if key in wanted:
                ports = {port for value in wanted.get(key) for port in port_range(key, value)}
                yield port_test(key, ports)
        if "status" in wanted:
            yield lambda c: wanted.exact("status", c.state.value)
        if "health" in wanted:
            yield lambda c: wanted.exact("health", "none")
        if "id" in wanted:
            yield lambda c: wanted.prefix("id", c.id)
        if "name" in wanted:
            yield lambda c: wanted.search("name", c.name, f"/{c.name}")
        if "label" in wanted:
            yield lambda c: wanted.labels(c.spec.labels)
        if "volume" in wanted:
            yield lambda c: any(wanted.exact("volume", m.target, m.source) for m in c.spec.mounts)
        if "network" in wanted:
            yield lambda c: self._on_network(c, wanted)

    def _ancestors(self, references: tuple[str, ...]) -> set[str]:
        found = set()
        for reference in references:
            try:
                found.add(self.engine.images.find(reference))
            except EngineError:
                continue
        return found

    def _on_network(self, container: Container, wanted: Filters) -> bool:
        name = container.spec.namespaces.network
        return name in self._networks and (
            wanted.exact("network", name) or wanted.prefix("network", self._networks[name])
        )

    async def start(self, request: Request) -> Response:
        length = request.headers.get("content-length", "0")
        if "transfer-encoding" in request.headers or int(length) > 7:
            raise Invalid(
                "starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24"
            )
        if request.query.get("checkpoint"):
            raise Unsupported("checkpoints are not offered by this engine")
        await self.engine.containers.start(request.params["id"])
        return NO_CONTENT

    async def stop(self, request: Request) -> Response:
        await self.engine.containers.stop(request.params["id"], *stop_options(request))
        return NO_CONTENT

    async def restart(self, request: Request) -> Response:
        await self.engine.containers.restart(request.params["id"], *stop_options(request))
        return NO_CONTENT

    async def kill(self, request: Request) -> Response:
        ref = request.params["id"]
        try:
            await self.engine.containers.kill(ref, request.query.get("signal") or "KILL")
        except EngineError as error:
            raise type(error)(f"cannot kill container: {ref}: {error}") from error
        return NO_CONTENT

    async def pause(self, request: Request) -> Response:
        await self.engine.containers.pause(request.params["id"])
        return NO_CONTENT

    async def unpause(self, request: Request) -> Response:
        await self.engine.containers.unpause(request.params["id"])
        return NO_CONTENT

    async def rename(self, request: Request) -> Response:
        name = request.query.get("name")
        if not name:
            raise Invalid("Neither old nor new names may be empty")
        await self.engine.containers.rename(request.params["id"], name)
        return NO_CONTENT

    async def resize(self, request: Request) -> Response:
        await self.engine.containers.resize(request.params["id"], *rows_columns(request))
        return Response()

    async def remove(self, request: Request) -> Response:
        if request.query.flag("link"):
            raise Unsupported("links are not offered by this engine")
        await self.engine.containers.remove(
            request.params["id"], force=request.query.flag("force"), volumes=request.query.flag("v")
        )
        return NO_CONTENT

    async def prune(self, request: Request) -> Response:
        """Removes what does not run; one that cannot be removed is left, as in Docker."""
        wanted = filters.parse(request.query.get("filters"), ("label", "label!", "until"))
        limit_ns = prune_until(wanted)
        deleted, reclaimed = [], 0
        for container in self.engine.containers.all():
            old = limit_ns is None or container.created <= limit_ns
            labels = container.spec.labels
            if container.state in RUNNING or not old or not wanted.labels(labels) or not wanted.without_labels(labels):
                continue
            size = (await self.engine.containers.size(container))[0]
            try:
                await self.engine.containers.remove(container.id, force=False, volumes=False)
            except EngineError:
                continue
            deleted.append(container.id)
            reclaimed += size
        self.engine.events.emit("container", "prune", "", {"reclaimed": str(reclaimed)})
        return json_response({"ContainersDeleted": deleted or None, "SpaceReclaimed": reclaimed})


def position(candidates: list[Container], container: Container) -> int:
    """Where it stands in the list; at the end if an earlier filter took it away."""
    return next((index for index, other in enumerate(candidates) if other.id == container.id), len(candidates))


def stop_options(request: Request) -> tuple[int | None, str]:
    """Seconds to wait and the signal, which came with API 1.42."""
    return integer(request.query.get("t")), request.query.get("signal") if request.version >= (1, 42) else ""


def rows_columns(request: Request) -> tuple[int, int]:
    return (
        unsigned(request.query.get("h"), "invalid resize height"),
        unsigned(request.query.get("w"), "invalid resize width"),
    )


def integer(text: str) -> int | None:
    """A decimal number of a query, None if absent; Invalid with the text of Go's Atoi."""
    if not text:
        return None
    digits = text[1:] if text[0] in "+-" else text
    if not (digits.isascii() and digits.isdigit()):
        raise Invalid(f'strconv.Atoi: parsing "{text}": invalid syntax')
    if len(digits) > 18:
        raise Invalid(f'strconv.Atoi: parsing "{text}": value out of range')
    return int(text)


def unsigned(text: str, what: str) -> int:
    """A required number of 32 bits."""
    if not (text.isascii() and text.removeprefix("-").isdigit()):
        raise Invalid(f'{what} "{text}": invalid syntax')
    if text[0] == "-" or len(text) > 10 or int(text) >= 1 << 32:
        raise Invalid(f'{what} "{text}": value out of range')
    return int(text)


def filter_code(value: str) -> int:
    try:
        code = integer(value)
    except Invalid as error:
        raise Invalid(f"invalid filter 'exited={value}': {error}") from None
    if code is None:
        raise Invalid("invalid filter 'exited='")
    return code


def prune_until(wanted: Filters) -> int | None:
    """The moment before which something must have been made, ns; None without that filter."""
    values = wanted.get("until")
    if not values:
        return None
    if len(values) > 1:
        raise Invalid("more than one until filter specified")
    return times.until(values[0], time.time_ns())


def port_range(key: str, value: str) -> Iterator[str]:
    """All ports of "80", "80/udp" or "80-90/tcp", each as "80/tcp"."""
    if ":" in value:
        raise Invalid(f"filter for '{key}' should not contain ':': {value}")
    numbers, _, protocol = value.partition("/")
    first, _, last = numbers.partition("-")
    try:
        low, high = int(first), int(last or first)
    except ValueError:
        raise Invalid(f"error while looking up for {key} {value}: invalid port") from None
    if not 0 <= low <= high <= 65535:
        raise Invalid(f"error while looking up for {key} {value}: invalid port")
    for number in range(low, high + 1):
        yield f"{number}/{protocol.lower() or 'tcp'}"


def port_test(key: str, ports: set[str]) -> Callable[[Container], bool]:
    """Nothing is published without a bridge network."""
    if key == "publish":
        return lambda c: False
    return lambda c: not ports.isdisjoint(c.spec.exposed_ports)
