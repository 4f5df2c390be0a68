"""A Container -> what inspect and the list of containers show. Pure.

Docker's booleans of a state (Running stays true while paused or restarting) are computed here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import field

from tare.engine.model import Container, HealthCheck, State

from . import hostconfig, mounts, times
from .container_wire import KEPT, Config, Health
from .hostconfig import HostConfig
from .wire import UNSET, Maybe, Wire, maybe

__all__ = [
    "Endpoint",
    "Inspect",
    "Place",
    "Summary",
    "config",
    "inspect",
    "line",
    "state_words",
    "status",
    "summary",
]


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """What inspect tells of a container that is not in its value: paths on the host, and what depends on the host."""

    directory: str
    """Of hosts, hostname and resolv.conf."""
    log_path: str = ""
    host_name: str = ""
    networks: Mapping[str, str] = {}
    """Name -> id of the networks there are."""
    exec_ids: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    """Bytes written, bytes in all; None = not asked."""


class StateWire(Wire):
    status: str
    running: bool
    paused: bool
    restarting: bool
    oom_killed: bool = field(name="OOMKilled")
    dead: bool
    pid: int
    exit_code: int
    error: str
    started_at: str
    finished_at: str


class Endpoint(Wire):
    """One network of a container. Addresses come with bridge networks."""

    ipam_config: None = field(default=None, name="IPAMConfig")
    links: list[str] | None = None
    aliases: list[str] | None = None
    mac_address: str = ""
    driver_opts: dict[str, str] | None = None
    network_id: str = field(default="", name="NetworkID")
    endpoint_id: str = field(default="", name="EndpointID")
    gateway: str = ""
    ip_address: str = field(default="", name="IPAddress")
    ip_prefix_len: int = field(default=0, name="IPPrefixLen")
    ipv6_gateway: str = field(default="", name="IPv6Gateway")
    global_ipv6_address: str = field(default="", name="GlobalIPv6Address")
    global_ipv6_prefix_len: int = field(default=0, name="GlobalIPv6PrefixLen")
    dns_names: list[str] | None = field(default=None, name="DNSNames")


class NetworkSettings(Wire):
    bridge: str = ""
    sandbox_id: str = field(default="", name="SandboxID")
    sandbox_key: str = ""
    ports: dict[str, list[hostconfig.PortBinding] | None] = {}
    hairpin_mode: bool = False
    link_local_ipv6_address: str = field(default="", name="LinkLocalIPv6Address")
    link_local_ipv6_prefix_len: int = field(default=0, name="LinkLocalIPv6PrefixLen")
    secondary_ip_addresses: None = field(default=None, name="SecondaryIPAddresses")
    secondary_ipv6_addresses: None = field(default=None, name="SecondaryIPv6Addresses")
    endpoint_id: str = field(default="", name="EndpointID")
    gateway: str = ""
    global_ipv6_address: str = field(default="", name="GlobalIPv6Address")
    global_ipv6_prefix_len: int = field(default=0, name="GlobalIPv6PrefixLen")
    ip_address: str = field(default="", name="IPAddress")
    ip_prefix_len: int = field(default=0, name="IPPrefixLen")
    ipv6_gateway: str = field(default="", name="IPv6Gateway")
    mac_address: str = ""
    networks: dict[str, Endpoint] = {}


class GraphDriver(Wire):
    data: dict[str, str] | None = None
    name: str = "overlay2"


class Inspect(Wire, kw_only=True):
    """Answer of GET /containers/{id}/json."""

    id: str
    created: str
    path: str
    args: list[str]
    state: StateWire
    image: str
    resolv_conf_path: str
    hostname_path: str
    hosts_path: str
    log_path: str
    name: str
    restart_count: int
    driver: str = "overlay2"
    platform: str = "linux"
    mount_label: str = ""
    process_label: str = ""
    app_armor_profile: str = ""
    exec_ids: list[str] | None = field(name="ExecIDs")
    host_config: HostConfig
    graph_driver: GraphDriver = field(default_factory=GraphDriver)
    size_rw: Maybe[int] = UNSET
    size_root_fs: Maybe[int] = UNSET
    mounts: list[mounts.MountPoint]
    config: Config
    network_settings: NetworkSettings


def state_words(container: Container) -> StateWire:
    """Docker's booleans are not exclusive: a paused or restarting container is running, too."""
    state, status = container.state, container.exit
    alive = state in (State.RUNNING, State.PAUSED)
    return StateWire(
        status=state.value,
        running=alive or state is State.RESTARTING,
        paused=state is State.PAUSED,
        restarting=state is State.RESTARTING,
        oom_killed=status.oom_killed,
        dead=state is State.DEAD,
        pid=container.pid if alive else 0,
        exit_code=0 if alive else status.code,
        error=status.error,
        started_at=times.rfc3339(container.started),
        finished_at=times.rfc3339(container.finished),
    )


def status(container: Container, now_ns: int) -> str:
    """The STATUS column of ps: "Up 5 minutes (Paused)", "Exited (0) 2 hours ago"."""
    state = container.state
    since_end = times.ago(max(0, now_ns - container.finished))
    if state in (State.RUNNING, State.PAUSED):
        up = f"Up {times.ago(max(0, now_ns - container.started))}"
        return f"{up} (Paused)" if state is State.PAUSED else up
    if state is State.RESTARTING:
        return f"Restarting ({container.exit.code}) {since_end} ago"
    if state is State.REMOVING:
        return "Removal In Progress"
    if state is State.DEAD:
        return "Dead"
    if state is State.CREATED or not container.finished:
        return "Created"
    return f"Exited ({container.exit.code}) {since_end} ago"


def config(container: Container, place: Place, version: tuple[int, int]) -> Config:
    """The Config of inspect: given values merged with the image's."""
    spec = container.spec
    entrypoint, command = split_args(container)
    shared = spec.namespaces.network == "host" or spec.namespaces.uts == "host"
    hostname = spec.hostname or (place.host_name if shared else container.id[:12])
    result = Config(
        hostname="" if spec.namespaces.network.startswith("container:") else hostname,
        domainname=spec.domainname,
        user=spec.user,
        attach_stdin=spec.attach_stdin,
        attach_stdout=spec.attach_stdout,
        attach_stderr=spec.attach_stderr,
        exposed_ports=maybe({port: {} for port in spec.exposed_ports}),
        tty=spec.tty,
        open_stdin=spec.open_stdin,
        stdin_once=spec.stdin_once,
        env=list(spec.env),
        cmd=command,
        healthcheck=UNSET if spec.healthcheck is None else from_health(spec.healthcheck, version),
        image=spec.image,
        volumes={target: {} for target in spec.volumes} or None,
        working_dir=spec.working_dir,
        entrypoint=entrypoint,
        labels=dict(spec.labels),
        stop_signal=maybe(spec.stop_signal),
        stop_timeout=UNSET if spec.stop_timeout is None else spec.stop_timeout,
    )
    for name, attribute in KEPT:
        if name in spec.docker_extra:
            setattr(result, attribute, spec.docker_extra[name])
    return result


def split_args(container: Container) -> tuple[list[str] | None, list[str] | None]:
    """What is executed, as entrypoint and command; None for an empty one, as Docker shows it."""
    entrypoint = list(container.spec.entrypoint or ())
    args = list(container.args) or [*entrypoint, *container.spec.command]
    if args[: len(entrypoint)] == entrypoint:
        args = args[len(entrypoint) :]
    return entrypoint or None, args or None


def from_health(health: HealthCheck, version: tuple[int, int]) -> Health:
    return Health(
        test=maybe(list(health.test)),
        interval=maybe(health.interval),
        timeout=maybe(health.timeout),
        start_period=maybe(health.start_period),
        start_interval=maybe(health.start_interval) if version >= (1, 44) else UNSET,
        retries=maybe(health.retries),
    )


def endpoints(container: Container, networks: Mapping[str, str]) -> dict[str, Endpoint]:
    """The networks a container is part of: those of the engine; a borrowed network is the other container's."""
    name = container.spec.namespaces.network
    return {name: Endpoint(network_id=networks[name])} if name in networks else {}


def inspect(container: Container, place: Place, version: tuple[int, int]) -> Inspect:
    spec = container.spec
    args = list(container.args) or [*(spec.entrypoint or ()), *spec.command]
    sizes = place.size
    return Inspect(
        id=container.id,
        created=times.rfc3339(container.created),
        path=args[0] if args else "",
        args=args[1:],
        state=state_words(container),
        image=container.image_id,
        resolv_conf_path=f"{place.directory}/resolv.conf",
        hostname_path=f"{place.directory}/hostname",
        hosts_path=f"{place.directory}/hosts",
        log_path=place.log_path if spec.log.driver == "json-file" else "",
        name=f"/{container.name}",
        restart_count=container.restart_count,
        exec_ids=list(place.exec_ids) or None,
        host_config=hostconfig.from_spec(spec),
        size_rw=UNSET if sizes is None else sizes[0],
        size_root_fs=UNSET if sizes is None else sizes[1],
        mounts=mounts.points(container),
        config=config(container, place, version),
        network_settings=NetworkSettings(networks=endpoints(container, place.networks)),
    )


class SummaryHost(Wire):
    network_mode: Maybe[str] = UNSET
    annotations: Maybe[dict[str, str]] = UNSET


class SummaryNetworks(Wire):
    networks: dict[str, Endpoint]


class Summary(Wire, kw_only=True):
    """The part of an entry of GET /containers/json that changes with the container only; the rest is `line`'s."""

    id: str
    names: list[str]
    image_id: str = field(name="ImageID")
    command: str
    created: int
    ports: list[Any]
    labels: dict[str, str]
    state: str
    host_config: SummaryHost
    network_settings: SummaryNetworks
    mounts: list[mounts.MountPoint]


def summary(container: Container, networks: Mapping[str, str], version: tuple[int, int]) -> Summary:
    spec = container.spec
    args = container.args or (*(spec.entrypoint or ()), *spec.command)
    return Summary(
        id=container.id,
        names=[f"/{container.name}"],
        image_id=container.image_id,
        command=" ".join([*args[:1], *(f"'{word}'" if " " in word else word for word in args[1:])]),
        created=container.created // 10**9,
        ports=[],
        labels=spec.labels,
        state=container.state.value,
        host_config=SummaryHost(
            network_mode=spec.namespaces.network or "bridge",
            annotations=maybe(spec.annotations) if version >= (1, 46) else UNSET,
        ),
        network_settings=SummaryNetworks(networks=endpoints(container, networks)),
        mounts=mounts.points(container),
    )


def line(rendered: bytes, image: str, status: str, size: tuple[int, int] | None) -> bytes:
    """A rendered Summary completed: the image's name (its id once the name means another image), status and sizes."""
    sizes = b""
    if size is not None:
        # Go leaves a zero out.
        sizes = b"".join(b',"%b":%d' % pair for pair in zip((b"SizeRw", b"SizeRootFs"), size, strict=True) if pair[1])
    text = msgspec.json.encode
    return b'%b,"Image":%b,"Status":%b%b}' % (rendered[:-1], text(image), text(status), sizes)
