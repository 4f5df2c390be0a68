"""Config and the body of create, and their way to ContainerSpec. Pure; the way back is inspect_wire.py."""

from __future__ import annotations

import posixpath
from typing import Any

import msgspec
from msgspec import field

from tare.engine.model import ContainerSpec, HealthCheck
from tare.errors import Invalid

from . import hostconfig, mounts
from .decode import text_list
from .hostconfig import HostConfig
from .wire import UNSET, Maybe, Wire

__all__ = ["KEPT", "Config", "CreateBody", "Health", "to_spec", "warnings"]

MILLISECOND = 10**6
NETWORK_CONFLICTS = (
    ("Hostname", "conflicting options: hostname and the network mode"),
    (
        "Links",
        "conflicting options: container type network can't be used with links. This would result in undefined behavior",
    ),
    ("Dns", "conflicting options: dns and the network mode"),
    ("ExtraHosts", "conflicting options: custom host-to-IP mapping and the network mode"),
    ("Ports", "conflicting options: port publishing and the container type network mode"),
    ("ExposedPorts", "conflicting options: port exposing and the container type network mode"),
)
"""What a container that borrows another's network cannot have (moby runconfig/errors.go)."""


class Health(Wire):
    """Times in ns."""

    test: Maybe[list[str]] = UNSET
    interval: Maybe[int] = UNSET
    timeout: Maybe[int] = UNSET
    start_period: Maybe[int] = UNSET
    start_interval: Maybe[int] = UNSET
    retries: Maybe[int] = UNSET


class Config(Wire):
    """api/types/container/config.go of API 1.47, in its order; also the Config of an image."""

    hostname: str = ""
    domainname: str = ""
    user: str = ""
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    exposed_ports: Maybe[dict[str, Any]] = UNSET
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    env: list[str] | None = None
    cmd: str | list[str] | None = None
    healthcheck: Maybe[Health] = UNSET
    args_escaped: Maybe[bool] = UNSET
    image: str = ""
    volumes: dict[str, Any] | None = None
    working_dir: str = ""
    entrypoint: str | list[str] | None = None
    network_disabled: Maybe[bool] = UNSET
    mac_address: Maybe[str] = UNSET
    on_build: list[str] | None = None
    labels: dict[str, str | None] | None = None
    stop_signal: Maybe[str] = UNSET
    stop_timeout: Maybe[int] = UNSET
    shell: Maybe[list[str]] = UNSET


class NetworkingConfig(Wire):
    """Kept as given and shown to nobody yet: endpoints come with networks."""

    endpoints_config: dict[str, dict[str, Any] | None] | None = None


class CreateBody(Config):
    host_config: HostConfig = field(default_factory=HostConfig)
    networking_config: NetworkingConfig = field(default_factory=NetworkingConfig)


KEPT = (
    ("ArgsEscaped", "args_escaped"),
    ("NetworkDisabled", "network_disabled"),
    ("MacAddress", "mac_address"),
    ("OnBuild", "on_build"),
    ("Shell", "shell"),
)


def to_spec(body: CreateBody, version: tuple[int, int], platform: str = "") -> ContainerSpec:
    """What the user asked, in the engine's words; image defaults are merged by the engine. Raises Invalid."""
    check(body)
    values = hostconfig.to_values(body.host_config, version)
    extra = hostconfig.extra(body.host_config)
    for name, attribute in KEPT:
        if value := getattr(body, attribute):
            extra[name] = value
    if endpoints := given_endpoints(body.networking_config):
        extra["EndpointsConfig"] = endpoints
    if body.network_disabled and values["namespaces"].network == "bridge":
        values["namespaces"] = msgspec.structs.replace(values["namespaces"], network="none")
    bare = [mounts.bind(raw).target for raw in body.host_config.binds or () if ":" not in raw]
    return ContainerSpec(
        image=body.image,
        command=text_list(body.cmd) or (),
        entrypoint=text_list(body.entrypoint),
        env=tuple(body.env or ()),
        working_dir=posixpath.normpath(body.working_dir) if body.working_dir else "",
        user=body.user,
        hostname=body.hostname,
        domainname=body.domainname,
        labels={key: value or "" for key, value in (body.labels or {}).items()},
        tty=body.tty,
        open_stdin=body.open_stdin,
        stdin_once=body.stdin_once,
        attach_stdin=body.attach_stdin,
        attach_stdout=body.attach_stdout,
        attach_stderr=body.attach_stderr,
        exposed_ports=tuple(body.exposed_ports or ()),
        volumes=(*(body.volumes or ()), *bare),
        stop_signal=body.stop_signal or "",
        stop_timeout=None if body.stop_timeout is UNSET else body.stop_timeout,
        healthcheck=to_health(body.healthcheck, version),
        platform=platform if version >= (1, 41) else "",
        docker_extra=msgspec.to_builtins(extra),
        **values,
    )


def given_endpoints(networking: NetworkingConfig) -> dict[str, dict[str, Any]]:
    """Only what was said: clients send every member of every endpoint, mostly empty."""
    endpoints = networking.endpoints_config or {}
    said = {name: {key: value for key, value in (given or {}).items() if value} for name, given in endpoints.items()}
    return {name: given for name, given in said.items() if given}


def to_health(health: Maybe[Health], version: tuple[int, int]) -> HealthCheck | None:
    """Raises Invalid for times below a millisecond; StartInterval came with API 1.44."""
    if health is UNSET:
        return None
    for name in ("Interval", "Timeout", "StartPeriod", "StartInterval"):
        value = getattr(health, "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_"))
        if value and value < MILLISECOND:
            raise Invalid(f"{name} in Healthcheck cannot be less than 1ms")
    if (health.retries or 0) < 0:
        raise Invalid("Retries in Healthcheck cannot be negative")
    return HealthCheck(
        test=tuple(health.test or ()),
        interval=health.interval or 0,
        timeout=health.timeout or 0,
        start_period=health.start_period or 0,
        start_interval=(health.start_interval or 0) if version >= (1, 44) else 0,
        retries=health.retries or 0,
    )


def check(body: CreateBody) -> None:
    """What is wrong between members of the body. Raises Invalid with Docker's texts."""
    host = body.host_config
    if body.working_dir and not body.working_dir.startswith("/"):
        raise Invalid(f"the working directory '{body.working_dir}' is invalid, it needs to be an absolute path")
    for entry in body.env or ():
        if not entry or entry.startswith("="):
            raise Invalid(f"invalid environment variable: {entry}")
        if "\0" in entry:
            raise Invalid("an environment variable has a NUL byte")
    for target in body.volumes or ():
        mounts.check_target(target, "volume")
    if host.uts_mode == "host" and body.hostname:
        raise Invalid("conflicting options: hostname and the UTS mode")
    published = any(host.port_bindings.values()) if host.port_bindings else False
    if host.network_mode.startswith("container:"):
        there = {
            "Hostname": body.hostname,
            "Links": host.links,
            "Dns": host.dns,
            "ExtraHosts": host.extra_hosts,
            "Ports": host.port_bindings or host.publish_all_ports,
            "ExposedPorts": body.exposed_ports,
        }
        for name, text in NETWORK_CONFLICTS:
            if there[name]:
                raise Invalid(text)
    elif host.network_mode == "host" and host.links:
        raise Invalid(
            "conflicting options: host type networking can't be used with links. "
            "This would result in undefined behavior"
        )
    elif host.network_mode in ("", "default", "bridge") and (published or host.publish_all_ports):
        raise Invalid(
            "publishing ports needs a bridge network, which this version does not offer yet; use --network host"
        )


def warnings(spec: ContainerSpec) -> list[str]:
    """What the user should know about a request that is granted all the same."""
    found = []
    if spec.namespaces.network == "host" and (spec.port_bindings or spec.publish_all):
        found.append("Published ports are discarded when using host network mode")
    if spec.restart.name not in ("", "no"):
        found.append("The restart policy is kept and shown, but this version does not restart containers.")
    if spec.healthcheck is not None and spec.healthcheck.test[:1] not in ((), ("NONE",)):
        found.append("The health check is kept and shown, but this version does not run it.")
    if spec.volumes:
        found.append("Anonymous volumes are not offered by this version: the data stays in the container's own layer.")
    return found
