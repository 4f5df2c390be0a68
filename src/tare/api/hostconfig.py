"""HostConfig, Docker's larger half of a container: its wire form, and both ways to the engine's values. Pure.

Deliberately absent: limits and rights as such (engine/limits.py and engine/plan.py judge them); here only what is
wrong in Docker's own vocabulary is refused, with Docker's texts.
"""

from __future__ import annotations

from typing import Any

from msgspec import field

from tare.engine.model import (
    ContainerSpec,
    Device,
    DeviceRate,
    LogConfig,
    MountSpec,
    Namespaces,
    Resources,
    RestartPolicy,
    Security,
    Ulimit,
)
from tare.errors import Invalid

from . import mounts
from .wire import UNSET, Maybe, Wire, maybe

__all__ = ["HostConfig", "extra", "from_spec", "to_values"]

DEFAULT_SHM = 64 << 20
RUNTIMES = frozenset({"", "tare", "runc", "io.containerd.runc.v2"})
LOG_OPTIONS = frozenset(
    {"max-size", "max-file", "compress", "labels", "labels-regex", "env", "env-regex", "tag", "mode", "max-buffer-size"}
)


class LogConfigWire(Wire):
    type: str = ""
    config: dict[str, str] | None = None


class RestartPolicyWire(Wire):
    name: str = ""
    maximum_retry_count: int = 0


class PortBinding(Wire):
    host_ip: str = ""
    host_port: str = ""


class WeightDevice(Wire):
    path: str = ""
    weight: int = 0


class ThrottleDevice(Wire):
    path: str = ""
    rate: int = 0


class DeviceMapping(Wire):
    path_on_host: str = ""
    path_in_container: str = ""
    cgroup_permissions: str = ""


class DeviceRequest(Wire):
    driver: str = ""
    count: int = 0
    device_ids: list[str] | None = field(default=None, name="DeviceIDs")
    capabilities: list[list[str]] | None = None
    options: dict[str, str] | None = None


class UlimitWire(Wire):
    name: str = ""
    hard: int = 0
    soft: int = 0


class HostConfig(Wire):
    """api/types/container/hostconfig.go of API 1.47, in its order."""

    binds: list[str] | None = None
    container_id_file: str = field(default="", name="ContainerIDFile")
    log_config: LogConfigWire = field(default_factory=LogConfigWire)
    network_mode: str = ""
    port_bindings: dict[str, list[PortBinding] | None] | None = None
    restart_policy: RestartPolicyWire = field(default_factory=RestartPolicyWire)
    auto_remove: bool = False
    volume_driver: str = ""
    volumes_from: list[str] | None = None
    console_size: list[int] = field(default_factory=lambda: [0, 0])
    annotations: Maybe[dict[str, str | None]] = UNSET
    cap_add: str | list[str] | None = None
    cap_drop: str | list[str] | None = None
    cgroupns_mode: str = ""
    dns: list[str] | None = None
    dns_options: list[str] | None = None
    dns_search: list[str] | None = None
    extra_hosts: list[str] | None = None
    group_add: list[str] | None = None
    ipc_mode: str = ""
    cgroup: str = ""
    links: list[str] | None = None
    oom_score_adj: int = 0
    pid_mode: str = ""
    privileged: bool = False
    publish_all_ports: bool = False
    readonly_rootfs: bool = False
    security_opt: list[str] | None = None
    storage_opt: Maybe[dict[str, str]] = UNSET
    tmpfs: Maybe[dict[str, str | None]] = UNSET
    uts_mode: str = field(default="", name="UTSMode")
    userns_mode: str = ""
    shm_size: int = 0
    sysctls: Maybe[dict[str, str]] = UNSET
    runtime: Maybe[str] = UNSET
    isolation: str = ""
    cpu_shares: int = 0
    memory: int = 0
    nano_cpus: int = 0
    cgroup_parent: str = ""
    blkio_weight: int = 0
    blkio_weight_device: list[WeightDevice] | None = None
    blkio_device_read_bps: list[ThrottleDevice] | None = None
    blkio_device_write_bps: list[ThrottleDevice] | None = None
    blkio_device_read_iops: list[ThrottleDevice] | None = field(default=None, name="BlkioDeviceReadIOps")
    blkio_device_write_iops: list[ThrottleDevice] | None = field(default=None, name="BlkioDeviceWriteIOps")
    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_realtime_period: int = 0
    cpu_realtime_runtime: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    devices: list[DeviceMapping] | None = None
    device_cgroup_rules: list[str] | None = None
    device_requests: list[DeviceRequest] | None = None
    memory_reservation: int = 0
    memory_swap: int = 0
    memory_swappiness: int | None = None
    oom_kill_disable: bool | None = None
    pids_limit: int | None = None
    ulimits: list[UlimitWire] | None = None
    cpu_count: int = 0
    cpu_percent: int = 0
    io_maximum_iops: int = field(default=0, name="IOMaximumIOps")
    io_maximum_bandwidth: int = field(default=0, name="IOMaximumBandwidth")
    mounts: Maybe[list[mounts.Mount]] = UNSET
    masked_paths: list[str] | None = None
    readonly_paths: list[str] | None = None
    init: Maybe[bool] = UNSET


KEPT = (
    ("Binds", "binds"),
    ("Tmpfs", "tmpfs"),
    ("ContainerIDFile", "container_id_file"),
    ("VolumeDriver", "volume_driver"),
    ("VolumesFrom", "volumes_from"),
    ("Cgroup", "cgroup"),
    ("Links", "links"),
    ("Isolation", "isolation"),
    ("CpuCount", "cpu_count"),
    ("CpuPercent", "cpu_percent"),
)
"""Kept as given, only to be shown: Docker's spelling, our attribute."""


def extra(wire: HostConfig) -> dict[str, Any]:
    """The members of `ContainerSpec.docker_extra` that stem from HostConfig; empty ones are left out."""
    members = {name: getattr(wire, attribute) for name, attribute in KEPT}
    return {name: value for name, value in members.items() if value is not UNSET and value}


def to_values(wire: HostConfig, version: tuple[int, int]) -> dict[str, Any]:
    """Keyword arguments for ContainerSpec. Raises Invalid."""
    check(wire)
    specs = [mounts.bind(raw) for raw in wire.binds or ()]
    specs += [mounts.from_mount(mount, version) for mount in wire.mounts or ()]
    specs += [mounts.tmpfs(target, text or "") for target, text in (wire.tmpfs or {}).items()]
    rows_columns = wire.console_size if version >= (1, 42) else [0, 0]
    if len(rows_columns) != 2 or min(rows_columns) < 0:
        raise Invalid("ConsoleSize must be [height, width]")
    return {
        "resources": resources(wire),
        "mounts": tuple(spec for spec in specs if not anonymous(spec)),
        "security": Security(
            privileged=wire.privileged,
            cap_add=words(wire.cap_add),
            cap_drop=words(wire.cap_drop),
            options=tuple(wire.security_opt or ()),
            masked_paths=None if wire.masked_paths is None else tuple(wire.masked_paths),
            readonly_paths=None if wire.readonly_paths is None else tuple(wire.readonly_paths),
            oom_score_adj=wire.oom_score_adj,
        ),
        "namespaces": namespaces(wire, version),
        "port_bindings": {
            port: tuple((binding.host_ip, binding.host_port) for binding in bindings or ())
            for port, bindings in (wire.port_bindings or {}).items()
        },
        "publish_all": wire.publish_all_ports,
        "annotations": texts(wire.annotations) if version >= (1, 43) else {},
        "group_add": tuple(wire.group_add or ()),
        "sysctls": dict(wire.sysctls or {}),
        "shm_size": wire.shm_size,
        "read_only": wire.readonly_rootfs,
        "init": None if wire.init is UNSET else wire.init,
        "auto_remove": wire.auto_remove,
        "restart": RestartPolicy(
            name=wire.restart_policy.name or "no", maximum_retry=wire.restart_policy.maximum_retry_count
        ),
        "log": LogConfig(driver=wire.log_config.type, options=dict(wire.log_config.config or {})),
        "runtime": wire.runtime or "",
        "dns": tuple(wire.dns or ()),
        "dns_search": tuple(wire.dns_search or ()),
        "dns_options": tuple(wire.dns_options or ()),
        "extra_hosts": tuple(wire.extra_hosts or ()),
        "console_size": (rows_columns[0], rows_columns[1]),
    }


def anonymous(spec: MountSpec) -> bool:
    """A -v with a target only: it goes to ContainerSpec.volumes."""
    return spec.type == "volume" and not spec.source


def words(value: str | list[str] | None) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


def texts(value: Any) -> dict[str, str]:
    """A map of strings; a null value is "", as Go decodes it."""
    return {key: text or "" for key, text in (value or {}).items()}


def check(wire: HostConfig) -> None:
    """What Docker's API refuses before the engine is asked, and what this version does not offer. Raises Invalid."""
    for text, valid, name in (
        (wire.ipc_mode, ("", "none", "host", "private", "shareable"), "IPC"),
        (wire.pid_mode, ("", "host"), "PID"),
        (wire.uts_mode, ("", "host"), "UTS"),
        (wire.userns_mode, ("", "host"), "user namespace"),
        (wire.cgroupns_mode, ("", "private", "host"), "cgroup namespace"),
    ):
        joined = name in ("IPC", "PID") and text.startswith("container:") and text != "container:"
        if text not in valid and not joined:
            raise Invalid(f"invalid {name} mode: {text}")
    if wire.isolation.lower() not in ("", "default"):
        raise Invalid(f"Invalid isolation: \"{wire.isolation}\" - linux only supports 'default'")
    if wire.io_maximum_bandwidth:
        raise Invalid("Invalid QoS settings: linux does not support configuration of maximum bandwidth")
    if wire.io_maximum_iops:
        raise Invalid("Invalid QoS settings: linux does not support configuration of maximum IOPs")
    if (wire.runtime or "") not in RUNTIMES:
        raise Invalid(f"unknown or invalid runtime name: {wire.runtime}")
    if wire.storage_opt:
        raise Invalid("--storage-opt is supported only for overlay over xfs with 'pquota' mount option")
    for request in wire.device_requests or ():
        shown = " ".join("[" + " ".join(names) + "]" for names in request.capabilities or ())
        raise Invalid(f'could not select device driver "{request.driver}" with capabilities: [{shown}]')
    if wire.annotations and "" in wire.annotations:
        raise Invalid("invalid Annotations: the empty string is not permitted as an annotation key")
    check_log(wire.log_config)
    check_restart(wire)


def check_log(log: LogConfigWire) -> None:
    """Without a type the daemon's own driver judges the options, in the engine."""
    if log.type not in ("", "json-file", "none"):
        raise Invalid(f"logger: no log driver named '{log.type}' is registered")
    for key in log.config or ():
        if log.type == "json-file" and key not in LOG_OPTIONS:
            raise Invalid(f"unknown log opt '{key}' for json-file log driver")


def check_restart(wire: HostConfig) -> None:
    """Texts of moby's ValidateRestartPolicy."""
    name, count = wire.restart_policy.name, wire.restart_policy.maximum_retry_count
    if name in ("always", "unless-stopped", "no") and count:
        tail = " and cannot be negative" if count < 0 else ""
        raise Invalid(f"invalid restart policy: maximum retry count can only be used with 'on-failure'{tail}")
    if name == "on-failure" and count < 0:
        raise Invalid("invalid restart policy: maximum retry count cannot be negative")
    if name not in ("", "no", "always", "unless-stopped", "on-failure"):
        raise Invalid(
            f"invalid restart policy: unknown policy '{name}'; "
            "use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        )
    if wire.auto_remove and name not in ("", "no"):
        raise Invalid("can't create 'AutoRemove' container with restart policy")


def namespaces(wire: HostConfig, version: tuple[int, int]) -> Namespaces:
    """Network "default" is "bridge"; IPC was shareable by default before API 1.40."""
    network = "bridge" if wire.network_mode in ("", "default") else wire.network_mode
    if network == "container:":
        raise Invalid("Invalid network mode: invalid container format container:<name|id>")
    ipc = "shareable" if version < (1, 40) and not wire.ipc_mode else wire.ipc_mode
    return Namespaces(
        network=network, pid=wire.pid_mode, ipc=ipc, uts=wire.uts_mode, user=wire.userns_mode, cgroup=wire.cgroupns_mode
    )


def resources(wire: HostConfig) -> Resources:
    """Docker's clients send 0 for "no pids limit given" and -1 for "no swappiness given": both are None here."""
    return Resources(
        memory=wire.memory,
        memory_swap=wire.memory_swap,
        memory_reservation=wire.memory_reservation,
        memory_swappiness=None if wire.memory_swappiness == -1 else wire.memory_swappiness,
        oom_kill_disable=bool(wire.oom_kill_disable),
        nano_cpus=wire.nano_cpus,
        cpu_shares=wire.cpu_shares,
        cpu_period=wire.cpu_period,
        cpu_quota=wire.cpu_quota,
        cpu_rt_period=wire.cpu_realtime_period,
        cpu_rt_runtime=wire.cpu_realtime_runtime,
        cpuset_cpus=wire.cpuset_cpus,
        cpuset_mems=wire.cpuset_mems,
        pids_limit=None if not wire.pids_limit else max(wire.pids_limit, -1),
        blkio_weight=wire.blkio_weight,
        blkio_weight_device=tuple(DeviceRate(path=d.path, rate=d.weight) for d in wire.blkio_weight_device or ()),
        device_read_bps=rates(wire.blkio_device_read_bps),
        device_write_bps=rates(wire.blkio_device_write_bps),
        device_read_iops=rates(wire.blkio_device_read_iops),
        device_write_iops=rates(wire.blkio_device_write_iops),
        devices=tuple(
            Device(
                host=device.path_on_host,
                container=device.path_in_container or device.path_on_host,
                permissions=device.cgroup_permissions or "rwm",
            )
            for device in wire.devices or ()
        ),
        device_cgroup_rules=tuple(wire.device_cgroup_rules or ()),
        ulimits=tuple(Ulimit(name=limit.name, soft=limit.soft, hard=limit.hard) for limit in wire.ulimits or ()),
        cgroup_parent=wire.cgroup_parent,
    )


def rates(devices: list[ThrottleDevice] | None) -> tuple[DeviceRate, ...]:
    return tuple(DeviceRate(path=device.path, rate=device.rate) for device in devices or ())


def throttles(rates: tuple[DeviceRate, ...]) -> list[ThrottleDevice]:
    return [ThrottleDevice(path=rate.path, rate=rate.rate) for rate in rates]


def from_spec(spec: ContainerSpec) -> HostConfig:
    """What inspect shows: everything that was given, defaults filled in where Docker fills them in."""
    r, security, names = spec.resources, spec.security, spec.namespaces
    given = [mounts.to_mount(mount) for mount in spec.mounts if mount.origin == "mounts"]
    host = HostConfig(
        log_config=LogConfigWire(type=spec.log.driver, config=spec.log.options),
        network_mode=names.network or "bridge",
        port_bindings={
            port: [PortBinding(host_ip=ip, host_port=number) for ip, number in bindings]
            for port, bindings in spec.port_bindings.items()
        },
        restart_policy=RestartPolicyWire(name=spec.restart.name, maximum_retry_count=spec.restart.maximum_retry),
        auto_remove=spec.auto_remove,
        console_size=list(spec.console_size),
        annotations=maybe({**spec.annotations}),
        cap_add=list(security.cap_add) or None,
        cap_drop=list(security.cap_drop) or None,
        cgroupns_mode=names.cgroup,
        dns=list(spec.dns),
        dns_options=list(spec.dns_options),
        dns_search=list(spec.dns_search),
        extra_hosts=list(spec.extra_hosts) or None,
        group_add=list(spec.group_add) or None,
        ipc_mode=names.ipc or "private",
        oom_score_adj=security.oom_score_adj,
        pid_mode=names.pid,
        privileged=security.privileged,
        publish_all_ports=spec.publish_all,
        readonly_rootfs=spec.read_only,
        security_opt=list(security.options) or None,
        uts_mode=names.uts,
        userns_mode=names.user,
        shm_size=spec.shm_size or DEFAULT_SHM,
        sysctls=maybe(spec.sysctls),
        runtime=spec.runtime or "runc",
        mounts=maybe(given),
        masked_paths=None if security.masked_paths is None else list(security.masked_paths),
        readonly_paths=None if security.readonly_paths is None else list(security.readonly_paths),
        init=UNSET if spec.init is None else spec.init,
        **limits(r),
    )
    for name, attribute in KEPT:
        if name in spec.docker_extra:
            setattr(host, attribute, spec.docker_extra[name])
    return host


def limits(r: Resources) -> dict[str, Any]:
    """The members of HostConfig that Go's struct Resources holds."""
    return {
        "cpu_shares": r.cpu_shares,
        "memory": r.memory,
        "nano_cpus": r.nano_cpus,
        "cgroup_parent": r.cgroup_parent,
        "blkio_weight": r.blkio_weight,
        "blkio_weight_device": [WeightDevice(path=d.path, weight=d.rate) for d in r.blkio_weight_device],
        "blkio_device_read_bps": throttles(r.device_read_bps),
        "blkio_device_write_bps": throttles(r.device_write_bps),
        "blkio_device_read_iops": throttles(r.device_read_iops),
        "blkio_device_write_iops": throttles(r.device_write_iops),
        "cpu_period": r.cpu_period,
        "cpu_quota": r.cpu_quota,
        "cpu_realtime_period": r.cpu_rt_period,
        "cpu_realtime_runtime": r.cpu_rt_runtime,
        "cpuset_cpus": r.cpuset_cpus,
        "cpuset_mems": r.cpuset_mems,
        "devices": [
            DeviceMapping(path_on_host=d.host, path_in_container=d.container, cgroup_permissions=d.permissions)
            for d in r.devices
        ],
        "device_cgroup_rules": list(r.device_cgroup_rules) or None,
        "memory_reservation": r.memory_reservation,
        "memory_swap": r.memory_swap,
        "memory_swappiness": r.memory_swappiness,
        "oom_kill_disable": r.oom_kill_disable,
        "pids_limit": r.pids_limit if r.pids_limit and r.pids_limit > 0 else None,
        "ulimits": [UlimitWire(name=u.name, soft=u.soft, hard=u.hard) for u in r.ulimits],
    }
