"""Docker's verbs on containers, as `api/` calls them: create, remove, rename, attach, logs, wait and the look-ups here;
start, stop and the like in lifecycle.py. Runs in the daemon's loop.

One user action is one transaction: a container has its name, its row and its snapshot, or none of them. Deliberately
absent: how things look in JSON (api/), what a bundle holds (plan.py), and processes (shims.py).
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING

from msgspec.structs import replace

from tare.engine import files, limits, names, plan, seccomp, state
from tare.engine.adopt import Adoption
from tare.engine.engine import Config
from tare.engine.events import Events
from tare.engine.lifecycle import Lifecycle, announce
from tare.engine.logs import Selection, Watches, read
from tare.engine.model import Bundle, Container, ContainerSpec, ExitStatus, LogConfig, State, Streams
from tare.engine.rows import Rows
from tare.engine.shims import Client, Shims, detach_sequence
from tare.errors import Conflict, EngineError, Invalid, NotFound, Unavailable, Unsupported
from tare.oci import platform

if TYPE_CHECKING:
    from tare.db import Database
    from tare.oci.image import ImageConfig
    from tare.store.images import Images
    from tare.store.paths import Layout
    from tare.store.snapshots import Snapshots

__all__ = ["Containers"]

NAME_ATTEMPTS = 6
_JOINED = {"network": "net", "pid": "pid", "ipc": "ipc"}
"""Namespaces that "container:<id>" can name, and their file below /proc/<pid>/ns."""


class Containers:
    """All containers of this engine. Made once, in the daemon's loop."""

    def __init__(
        self,
        db: Database,
        images: Images,
        snapshots: Snapshots,
        shims: Shims,
        events: Events,
        layout: Layout,
        config: Config,
        *,
        host: limits.HostFacts | None = None,
    ) -> None:
        self._db, self._images, self._snapshots = db, images, snapshots
        self._shims, self._events, self._layout, self._config = shims, events, layout, config
        host = host or limits.facts()
        self.host = replace(host, init=config.init_path) if config.init_path else host
        self._watches = Watches()
        self.rows = Rows(db)
        self.lifecycle = Lifecycle(
            self.rows, shims, events, config.run_root, prepare=self._bundle, remove=self._remove_ended
        )
        self.start = self.lifecycle.start
        self.stop = self.lifecycle.stop
        self.kill = self.lifecycle.kill
        self.restart = self.lifecycle.restart
        self.pause = self.lifecycle.pause
        self.unpause = self.lifecycle.unpause
        self.resize = self.lifecycle.resize
        self.get = self.rows.get
        self.all = self.rows.all
        self.wait = self.rows.wait

    async def adopt(self) -> None:
        """Once at start, before the first request: rows and facts become one again."""
        self._config.run_root.mkdir(mode=0o700, parents=True, exist_ok=True)
        await Adoption(self.rows, self._shims, self.lifecycle, self._config.run_root, self._finish_removal).run()

    async def close(self) -> None:
        """Let go of everything; containers keep running."""
        await self.lifecycle.settle()
        self.lifecycle.lobby.close()
        for container in self.rows.all():
            self.rows.live(container.id).close()
        self._watches.close()

    async def create(self, name: str, spec: ContainerSpec) -> Container:
        """`name` "" = one is found. NotFound for the image, Conflict for the name, Invalid for the rest."""
        given = names.check(name) if name else ""
        image = self._images.resolve(spec.image)
        _check_platform(spec, image.config)
        merged, args = plan.merge(spec, image.config)
        merged, warnings = limits.check(self._with_defaults(merged), self.host)
        container = Container(
            id=_new_id(),
            name=given,
            spec=self._pinned(merged),
            image_id=image.id,
            args=tuple(args),
            created=time_ns(),
            warnings=tuple(warnings),
        )
        if not given:
            container = replace(container, name=self._free_name(container.id))
        try:
            self._store(container, image.top)
        except OSError as error:
            # What the disk refused, whichever of the three it was.
            raise OSError(error.errno, "create container", f'"/{container.name}"') from error
        announce(self._events, container, "create")
        return container

    def _store(self, container: Container, top: str) -> None:
        """Folder, row and snapshot of a new container, or none of them."""
        directory = self._layout.container(container.id)
        try:
            directory.mkdir(mode=0o700)
            with self._db.transaction():
                self.rows.insert(container)
                self._snapshots.prepare(container.id, top)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        self.rows.added(container)

    async def remove(self, ref: str, force: bool = False, volumes: bool = False) -> None:
        """`force` kills it first. `volumes`: the anonymous ones too, of which there are none yet."""
        container = self.rows.get(ref)
        try:
            await self.lifecycle.whole(self._remove(container.id, force=force))
        except EngineError as error:
            if container.state is State.REMOVING:
                raise Conflict(f"removal of container {ref} is already in progress") from error
            raise type(error)(f'cannot remove container "/{container.name}": {error}') from error

    async def rename(self, ref: str, new: str) -> None:
        """Conflict if the name is taken, Invalid if it is none or the same (Docker's texts)."""
        ref, new = ref.strip(), new.strip()
        if not ref.removeprefix("/") or not new.removeprefix("/"):
            raise Invalid("Neither old nor new names may be empty")
        container_id = self.rows.get(ref).id
        async with self.rows.live(container_id).lock:
            container = self.rows.get(container_id)
            if new.removeprefix("/") == container.name:
                raise Invalid("Renaming a container with the same name as its current name")
            try:
                name = names.check(new)
                self.rows.claim(name)
            except EngineError as error:
                raise type(error)(f"Error when allocating new name: {error}") from error
            renamed = self.rows.save(replace(container, name=name))
        announce(self._events, renamed, "rename", {"oldName": "/" + container.name})

    def attachable(self, ref: str, detach_keys: str = "") -> Container:
        """To be asked before the answer is 101: Conflict for a paused container, Invalid for bad keys."""
        detach_sequence(detach_keys)
        container = self.rows.get(ref)
        if container.state is State.PAUSED:
            raise Conflict(f"container {ref} is paused, unpause the container before attach")
        if container.state is State.RESTARTING:
            raise Conflict(f"container {ref} is restarting, wait until the container is running")
        return container

    async def attach(
        self, ref: str, streams: Streams, sock: socket.socket, leftover: bytes, *, logs: bool, stream: bool
    ) -> None:
        """Takes the non-blocking `sock` over and returns when it is in other hands.

        `logs` sends first what the container has said so far. Before the start the client is kept until then.
        """
        try:
            container = self.attachable(ref, streams.detach_keys)
            if logs and container.spec.log.driver != "none":
                await self._replay(container, streams, sock)
            announce(self._events, container, "attach")
            if not stream:
                sock.close()
                return
            streams = replace(streams, stdin=streams.stdin and container.spec.open_stdin)
            client = Client(streams, sock, leftover, tty=container.spec.tty)
            live = self.rows.live(container.id)
            async with live.lock:
                if not state.is_live(self.rows.get(container.id)):
                    self.lifecycle.lobby.add(live, client)
                elif live.shim is not None:
                    await live.shim.attach(client)
                else:
                    raise Unavailable("the container's shim is gone")
        except BaseException:
            sock.close()
            raise

    def logs(
        self,
        ref: str,
        *,
        follow: bool = False,
        stdout: bool = True,
        stderr: bool = True,
        since_ns: int | None = None,
        until_ns: int | None = None,
        timestamps: bool = False,
        tail: int | None = None,
        details: bool = False,
    ) -> AsyncIterator[bytes]:
        """Framed unless the container has a terminal. Refusals are raised here, before the first byte."""
        if not stdout and not stderr:
            raise Invalid("You must choose at least one stream")
        container = self.rows.get(ref)
        if container.state in (State.REMOVING, State.DEAD):
            raise Conflict("can not get logs from container which is dead or marked for removal")
        if container.spec.log.driver == "none":
            raise Unsupported("configured logging driver does not support reading")
        selection = Selection(
            stdout=stdout,
            stderr=stderr,
            since_ns=since_ns,
            until_ns=until_ns,
            timestamps=timestamps,
            tail=tail if tail is None or tail >= 0 else None,
            details=details,
            mux=not container.spec.tty,
        )
        follow = follow and state.is_live(container)
        return read(
            str(self.log_path(container.id)),
            selection,
            ended=self.rows.wait(container.id) if follow else None,
            watches=self._watches if follow else None,
        )

    def log_path(self, container_id: str) -> Path:
        return self._layout.container(container_id) / f"{container_id}-json.log"

    def directory(self, container_id: str) -> Path:
        """Where hosts, hostname and resolv.conf of a container lie."""
        return self._layout.container(container_id)

    async def size(self, container: Container) -> tuple[int, int]:
        """Bytes of the writable layer, and of that and the image together."""
        written = (await self._snapshots.usage(container.id)).size
        try:
            return written, written + self._images.get(container.image_id).size
        except NotFound:
            return written, written

    async def _bundle(self, container: Container) -> Bundle:
        """Gather the facts that plan.bundle needs; the decisions are all there."""
        spec, host = container.spec, self.host
        _check_network(spec.namespaces.network)
        donors = {kind: self._donor(spec, kind) for kind in _JOINED if _donor_ref(spec, kind)}
        joins = {kind: f"/proc/{donor.pid}/ns/{_JOINED[kind]}" for kind, donor in donors.items()}
        lender = donors.get("network", container)
        if lender is container:
            files.write(spec, plan.hostname(container, host), self.directory(container.id))
        if any(mount.type == "bind" for mount in spec.mounts):
            await files.patiently(files.make_sources, spec)
        shown = self.directory(lender.id)
        bpf = seccomp.profile(
            spec.security.options,
            plan.granted(spec, host),
            str(self._layout.seccomp),
            privileged=spec.security.privileged,
        )
        try:
            image_config = self._images.get(container.image_id).config
        except NotFound:
            # Removed by force: the container has all that it needs of it.
            image_config = None
        return plan.bundle(
            container,
            image_config,
            self._snapshots.rootfs(container.id),
            host,
            plan.ContainerFiles(
                hosts=str(shown / "hosts"), hostname=str(shown / "hostname"), resolv_conf=str(shown / "resolv.conf")
            ),
            str(self.lifecycle.run_dir(container.id)),
            str(self.log_path(container.id)),
            joins,
            bpf,
            name=plan.hostname(lender, host),
        )

    def _donor(self, spec: ContainerSpec, kind: str) -> Container:
        """The running container whose namespace is joined (moby's texts)."""
        ref = _donor_ref(spec, kind)
        try:
            donor = self.rows.get(ref)
        except NotFound as error:
            if kind == "network":
                raise NotFound(f"joining network namespace of container: {error}") from None
            raise Invalid(f"failed to join {kind.upper()} namespace: {error}") from None
        if kind == "ipc" and donor.spec.namespaces.ipc in ("", "private", "none"):
            raise Invalid(
                f"failed to join IPC namespace: container {ref}: non-shareable IPC "
                "(hint: use IpcMode:shareable for the donor container)"
            )
        if state.is_live(donor) and donor.state is not State.RESTARTING:
            return donor
        if kind == "network":
            raise Conflict(
                "joining network namespace of container: cannot join network namespace of a non running container: "
                f"container {donor.name} is {donor.state}"
            )
        raise Conflict(f"failed to join {kind.upper()} namespace: container {ref} is not running")

    def _pinned(self, spec: ContainerSpec) -> ContainerSpec:
        """Modes "container:<name>" by the id it means now, so that a rename changes nothing."""
        pinned = {}
        for kind in _JOINED:
            ref = _donor_ref(spec, kind)
            if ref:
                try:
                    pinned[kind] = f"container:{self.rows.get(ref).id}"
                except NotFound:
                    continue  # said at start, as Docker does
        return replace(spec, namespaces=replace(spec.namespaces, **pinned)) if pinned else spec

    def _with_defaults(self, spec: ContainerSpec) -> ContainerSpec:
        """What the daemon was told to give containers that ask for nothing else: log bounds, ulimits, cgroup parent."""
        config, resources = self._config, spec.resources
        driver, options = spec.log.driver or config.log_driver, spec.log.options
        if driver == "json-file" and not options:
            options = config.log_options
        spec = replace(spec, log=LogConfig(driver=driver, options=options))
        asked = {limit.name for limit in resources.ulimits}
        ulimits = resources.ulimits + tuple(limit for limit in config.ulimits if limit.name not in asked)
        parent = resources.cgroup_parent
        if not parent and config.cgroup_parent != plan.CGROUP_PARENT:
            parent = config.cgroup_parent
        return replace(spec, resources=replace(resources, ulimits=ulimits, cgroup_parent=parent))

    def _free_name(self, container_id: str) -> str:
        for attempt in range(NAME_ATTEMPTS):
            name = names.suggest(attempt)
            if self.rows.owner(name) is None:
                return name
        return container_id[:12]

    async def _replay(self, container: Container, streams: Streams, sock: socket.socket) -> None:
        selection = Selection(
            stdout=streams.stdout, stderr=streams.stderr, mux=streams.multiplexed and not container.spec.tty
        )
        loop = asyncio.get_running_loop()
        async for piece in read(str(self.log_path(container.id)), selection):
            await loop.sock_sendall(sock, piece)

    async def _remove(self, container_id: str, *, force: bool) -> None:
        live = self.rows.live(container_id)
        async with live.lock:
            container = self.rows.get(container_id)
            if not state.is_live(container):
                self._end(container)
                return
            if not force:
                state.check(container, State.REMOVING)
        await self.lifecycle.kill_and_wait(container_id)
        async with live.lock:
            found = self.rows.find(container_id)
            if found is not None:  # --rm may have been quicker
                self._end(found)

    async def _remove_ended(self, container_id: str) -> None:
        """--rm, after the end."""
        live = self.rows.live(container_id)
        async with live.lock:
            container = self.rows.find(container_id)
            if container is not None and not state.is_live(container):
                self._end(container)

    async def _finish_removal(self, container_id: str) -> None:
        """A removal that a former daemon began."""
        async with self.rows.live(container_id).lock:
            self._drop(self.rows.get(container_id))

    def _end(self, container: Container) -> None:
        state.check(container, State.REMOVING)
        self._drop(self.rows.save(replace(container, state=State.REMOVING)))

    def _drop(self, container: Container) -> None:
        """Take away everything of a container in REMOVING. DEAD, with the reason, if something stays."""
        live = self.rows.live(container.id)
        self.lifecycle.lobby.dismiss(live)
        live.close()
        try:
            with self._db.transaction():
                self._snapshots.remove(container.id)
                self.rows.delete(container.id)
        except (EngineError, OSError) as error:
            self.rows.save(
                replace(
                    container,
                    state=State.DEAD,
                    exit=ExitStatus(code=container.exit.code, error=f"unable to remove filesystem: {error}"),
                )
            )
            raise
        # A folder without a row is garbage, which gc takes at the next start if this fails.
        shutil.rmtree(self.directory(container.id), ignore_errors=True)
        shutil.rmtree(self.lifecycle.run_dir(container.id), ignore_errors=True)
        self.rows.removed(container)
        announce(self._events, container, "destroy")


def _check_network(name: str) -> None:
    """Docker finds out at start, not at create, where a 404 would mean a missing image to clients."""
    if name not in ("", "default", "bridge", "none", "host") and not name.startswith("container:"):
        raise NotFound(f"network {name} not found")


def _donor_ref(spec: ContainerSpec, kind: str) -> str:
    mode = str(getattr(spec.namespaces, kind))
    return mode.removeprefix("container:") if mode.startswith("container:") else ""


def _check_platform(spec: ContainerSpec, config: ImageConfig) -> None:
    """NotFound in Docker's words if the image is not what --platform asks for, Invalid if that is no platform."""
    if not spec.platform:
        return
    offered = platform.Platform(config.os, config.architecture, config.variant)
    if platform.preference(platform.parse(spec.platform), offered) is None:
        raise NotFound(
            f"image with reference {spec.image} was found but does not provide the specified platform ({spec.platform})"
        )


def _new_id() -> str:
    """64 hex digits whose short form is no number: clients would take it for one (moby, stringid)."""
    while True:
        found = secrets.token_hex(32)
        if not found[:12].isdecimal():
            return found
