"""From what the user asked to what the runtime does: ContainerSpec -> Bundle. Pure: no I/O, tested by golden JSON.

What must be looked up on the host comes in as values (HostFacts) or behind a Resolver. What may be refused at create
was refused there by limits.check; here only what depends on the moment of the start raises.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from tare.engine import capabilities, paths, plan_devices, plan_mounts, plan_settings
from tare.engine.limits import HostFacts
from tare.engine.model import Bundle, Container, ContainerSpec, ExecSpec, HealthCheck, Ulimit
from tare.engine.plan_devices import HostDevices, Resolver
from tare.engine.plan_mounts import ContainerFiles
from tare.errors import Invalid
from tare.oci.image import ContainerConfig, ImageConfig

__all__ = [
    "CGROUP_PARENT", "ContainerFiles", "bundle", "cgroup_path", "environment", "exec_process", "granted", "hostname",
    "merge",
]  # fmt: skip

OCI_VERSION = "1.2.0"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CGROUP_PARENT = "/tare"
_INFINITY = (1 << 64) - 1
"""RLIM_INFINITY as OCI's unsigned number."""
_NAMESPACES = {"network": "net", "pid": "pid", "ipc": "ipc"}


def merge(spec: ContainerSpec, image_config: ImageConfig | None) -> tuple[ContainerSpec, tuple[str, ...]]:
    """The spec with the image's defaults filled in, and what will be executed. Docker's rules (moby, daemon/commit.go).

    A given entrypoint drops the image's command; [""] is "no entrypoint". Variables, labels, ports and volumes are
    united, the user's winning; his variables come first. Invalid("no command specified").
    """
    _check_platform(image_config)
    image = (image_config and image_config.config) or ContainerConfig()
    entrypoint, command = spec.entrypoint, spec.command
    if not entrypoint:
        command = command or tuple(image.cmd or ())
        if entrypoint is None:
            entrypoint = image.entrypoint
    if entrypoint == ("",):
        entrypoint = None
    args = (*(entrypoint or ()), *command)
    if not args:
        raise Invalid("no command specified")
    known = {_name(entry) for entry in spec.env}
    # Of an image only whole entries count: anything else would reach the daemon's own environment rules (N7)
    inherited = [entry for entry in image.env or () if _usable(entry) and _name(entry) not in known]
    working_dir = spec.working_dir or image.working_dir
    merged = replace(
        spec,
        entrypoint=entrypoint,
        command=command,
        env=(*spec.env, *inherited),
        working_dir=posixpath.normpath("/" + working_dir.lstrip("/")) if working_dir else "",
        user=spec.user or image.user,
        labels={**(image.labels or {}), **spec.labels},
        exposed_ports=tuple(dict.fromkeys([*spec.exposed_ports, *(image.exposed_ports or {})])),
        volumes=tuple(dict.fromkeys([*spec.volumes, *(image.volumes or {})])),
        stop_signal=spec.stop_signal or image.stop_signal,
        healthcheck=_healthcheck(spec.healthcheck, image),
    )
    return merged, args


def _name(entry: str) -> str:
    return entry.partition("=")[0]


def _usable(entry: str) -> bool:
    return entry.find("=") > 0 and "\0" not in entry


def _healthcheck(asked: HealthCheck | None, image: ContainerConfig) -> HealthCheck | None:
    """Each field the user left out is the image's."""
    if image.healthcheck is None:
        return asked
    asked, given = asked or HealthCheck(), image.healthcheck
    return HealthCheck(
        test=asked.test or tuple(given.test or ()),
        interval=asked.interval or given.interval,
        timeout=asked.timeout or given.timeout,
        start_period=asked.start_period or given.start_period,
        start_interval=asked.start_interval or given.start_interval,
        retries=asked.retries or given.retries,
    )


def hostname(container: Container, host: HostFacts) -> str:
    """As given; else the host's where the network or the UTS namespace is, else the first 12 of the id."""
    modes = container.spec.namespaces
    if container.spec.hostname:
        return container.spec.hostname
    return host.hostname if "host" in (modes.network, modes.uts) else container.id[:12]


def environment(entries: Sequence[str], name: str, *, tty: bool) -> list[str]:
    """PATH, HOSTNAME and, on a terminal, TERM, overridden in place and followed by `entries`. HOME is init's to add.

    An entry without "=" unsets the variable.
    """
    found = {"PATH": f"PATH={PATH}", "HOSTNAME": f"HOSTNAME={name}"}
    if tty:
        found["TERM"] = "TERM=xterm"
    for entry in entries:
        key, equals, _ = entry.partition("=")
        if equals:
            found[key] = entry
        else:
            found.pop(key, None)
    return list(found.values())


def granted(spec: ContainerSpec, host: HostFacts) -> tuple[str, ...]:
    """The bounding set of the container, which also decides its seccomp profile."""
    security = spec.security
    return capabilities.granted(
        security.cap_add, security.cap_drop, host.capabilities, privileged=security.privileged
    )


def cgroup_path(container: Container, parent: str = CGROUP_PARENT) -> str:
    """<parent>/<id>, the parent as the user or the daemon's configuration has it."""
    return posixpath.normpath(f"/{container.spec.resources.cgroup_parent or parent}/{container.id}").replace("//", "/")


def bundle(
    container: Container,
    image_config: ImageConfig | None,
    rootfs: dict[str, Any],
    host: HostFacts,
    files: ContainerFiles,
    run_dir: str,
    log_path: str,
    joins: Mapping[str, str],
    bpf: str,
    *,
    resolver: Resolver | None = None,
    volumes: Mapping[str, str] | None = None,
    parent: str = CGROUP_PARENT,
    shm: str = "",
    name: str = "",
) -> Bundle:
    """Everything the runtime needs. `container.spec` is merged and checked.

    `joins`: {"network" | "pid" | "ipc": "/proc/<pid>/ns/..."} for the modes container:<id>. `bpf`: path of the compiled
    filter or "". `volumes`: target -> host directory. `shm`: host directory behind a shareable /dev/shm. `name`: host
    name if another container's is shared. Invalid for what the host turns out not to have.
    """
    spec = container.spec
    _check_platform(image_config)
    cgroup = cgroup_path(container, parent)
    oci = _configuration(
        container, host, name or hostname(container, host), joins, resolver or HostDevices(), files=files,
        volumes=volumes or {}, shm=shm, cgroup=cgroup,
    )  # fmt: skip
    return Bundle(
        id=container.id,
        oci=oci,
        rootfs=rootfs,
        cgroup=cgroup,
        bpf=bpf,
        user=spec.user,
        groups=spec.group_add,
        init=_init(spec, host),
        tty=spec.tty,
        stdin=spec.open_stdin,
        stdin_once=spec.stdin_once,
        console_size=spec.console_size,
        log=_log(spec, log_path),
        run_dir=run_dir,
        dockerenv=True,
    )


def _check_platform(image_config: ImageConfig | None) -> None:
    if image_config is not None and image_config.os not in ("", "linux"):
        raise Invalid(f'image operating system "{image_config.os}" cannot be used on this platform')


def _configuration(
    container: Container,
    host: HostFacts,
    name: str,
    joins: Mapping[str, str],
    resolver: Resolver,
    *,
    files: ContainerFiles,
    volumes: Mapping[str, str],
    shm: str,
    cgroup: str,
) -> dict[str, Any]:
    """Bundle.oci: an OCI runtime configuration."""
    spec = container.spec
    options = plan_settings.options(spec.security.options, apparmor=host.apparmor, selinux=host.selinux)
    writable = options.writable_cgroups
    mounts, propagation = plan_mounts.mounts(
        spec, host.kernel, files, joins, volumes, resolver, shm=shm,
        writable_cgroups=spec.security.privileged if writable is None else writable,
    )  # fmt: skip
    linux = _linux(spec, host, joins, resolver, cgroup, options)
    if propagation:
        linux["rootfsPropagation"] = propagation
    oci: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "process": _process(container, host, name, options),
        "root": {"path": "rootfs", "readonly": spec.read_only},
        "mounts": mounts,
        "linux": linux,
    }
    if spec.namespaces.uts != "host":
        oci["hostname"] = name
        if spec.domainname:
            oci["domainname"] = spec.domainname
    if spec.annotations:
        oci["annotations"] = dict(spec.annotations)
    return oci


def _init(spec: ContainerSpec, host: HostFacts) -> str:
    """Only in a process namespace of its own: elsewhere there is an init already."""
    if not spec.init or spec.namespaces.pid not in ("", "private"):
        return ""
    if not host.init:
        raise Invalid("--init needs a static init program on the host: docker-init, tini-static or catatonit")
    return host.init


def _log(spec: ContainerSpec, path: str) -> dict[str, Any]:
    if spec.log.driver == "none":
        return {"driver": "none"}
    found: dict[str, Any] = {"driver": "json-file", "path": path}
    size = plan_settings.log_size(spec.log.options.get("max-size", ""))
    if size > 0:
        found["max_size"] = size
        found["max_file"] = int(spec.log.options.get("max-file", "1"))
    return found


def _process(
    container: Container, host: HostFacts, name: str, options: plan_settings.SecurityOptions
) -> dict[str, Any]:
    spec = container.spec
    process: dict[str, Any] = {
        "terminal": spec.tty,
        "args": list(container.args),
        "env": environment(spec.env, name, tty=spec.tty),
        "cwd": spec.working_dir or "/",
        "capabilities": _capabilities(granted(spec, host)),
        "rlimits": _rlimits(spec.resources.ulimits, host),
        "noNewPrivileges": options.no_new_privileges,
        "oomScoreAdj": spec.security.oom_score_adj,
    }
    if spec.tty and any(spec.console_size):
        process["consoleSize"] = {"height": spec.console_size[0], "width": spec.console_size[1]}
    return process


def _capabilities(names: Sequence[str]) -> dict[str, list[str]]:
    """Inheritable and ambient stay empty for everybody (CVE-2022-24769)."""
    return {
        "bounding": list(names), "effective": list(names), "permitted": list(names), "inheritable": [], "ambient": [],
    }  # fmt: skip


def _rlimits(asked: Sequence[Ulimit], host: HostFacts) -> list[dict[str, Any]]:
    """The user's, and the number of files as the daemon found it: it raises its own later."""
    limits = {limit.name: (limit.soft, limit.hard) for limit in asked}
    if "nofile" not in limits and "nofile" in host.rlimit_hard:
        hard = host.rlimit_hard["nofile"]
        limits["nofile"] = (host.rlimit_soft.get("nofile", hard), hard)
    return [
        {"type": "RLIMIT_" + name.upper(), "soft": _unsigned(soft), "hard": _unsigned(hard)}
        for name, (soft, hard) in limits.items()
    ]


def _unsigned(limit: int) -> int:
    return _INFINITY if limit == -1 else limit


def _linux(
    spec: ContainerSpec,
    host: HostFacts,
    joins: Mapping[str, str],
    resolver: Resolver,
    cgroup: str,
    options: plan_settings.SecurityOptions,
) -> dict[str, Any]:
    security = spec.security
    nodes, rules = plan_devices.devices(
        spec.resources.devices, spec.resources.device_cgroup_rules, resolver, privileged=security.privileged
    )
    masked, read_only = security.masked_paths, security.readonly_paths
    bare = security.privileged or not options.system_paths
    if masked is None:
        masked = () if bare else paths.masked(host.thermal_throttle)
    if read_only is None:
        read_only = () if bare else paths.READ_ONLY
    return {
        "namespaces": _namespaces(spec, joins),
        "resources": {**plan_devices.resources(spec.resources, resolver), "devices": rules},
        "cgroupsPath": cgroup,
        "devices": nodes,
        "sysctl": _sysctls(spec, host),
        "maskedPaths": list(masked),
        "readonlyPaths": list(read_only),
    }


def _namespaces(spec: ContainerSpec, joins: Mapping[str, str]) -> list[dict[str, str]]:
    """No entry: the host's. KeyError if a namespace to be joined is not in `joins`."""
    modes = spec.namespaces
    found = [{"type": "mount"}]
    for kind, short in _NAMESPACES.items():
        mode = getattr(modes, kind)
        if mode.startswith("container:"):
            found.append({"type": kind, "path": joins.get(kind) or joins[short]})
        elif mode != "host":
            found.append({"type": kind})
    if modes.uts != "host":
        found.append({"type": "uts"})
    if modes.cgroup == "private":
        found.append({"type": "cgroup"})
    return found


def _sysctls(spec: ContainerSpec, host: HostFacts) -> dict[str, str]:
    """Docker's two defaults, only in a network namespace that is made new, under the user's own."""
    found: dict[str, str] = {}
    if spec.namespaces.network != "host" and not spec.namespaces.network.startswith("container:"):
        # ICMP echo without CAP_NET_RAW, low ports without CAP_NET_BIND_SERVICE
        for key, value in (("net.ipv4.ping_group_range", "0 2147483647"), ("net.ipv4.ip_unprivileged_port_start", "0")):
            if key in host.sysctls:
                found[key] = value
    for key, value in spec.sysctls.items():
        found[plan_settings.sysctl_key(key)] = value
    return found


def exec_process(
    container: Container, spec: ExecSpec, host: HostFacts, bpf: str = "", *, parent: str = CGROUP_PARENT
) -> dict[str, Any]:
    """EXEC of runtime/protocol.py for one more process in a running container. `bpf` is the container's filter.

    Privileged: every capability of the host's root and no filter. Invalid without a command, with a relative path to
    work in, or for words execve(2) cannot take.
    """
    if not spec.args:
        raise Invalid("No exec command specified")
    plan_settings.check_words((*spec.args, spec.working_dir), spec.env)
    cwd = spec.working_dir or container.spec.working_dir or "/"
    if not cwd.startswith("/"):
        raise Invalid(f"the working directory '{cwd}' is invalid, it needs to be an absolute path")
    names = granted(container.spec, host)
    if spec.privileged:
        names = capabilities.granted((), (), host.capabilities, privileged=True)
    options = plan_settings.options(container.spec.security.options, apparmor=host.apparmor, selinux=host.selinux)
    return {
        "args": list(spec.args),
        "env": environment((*container.spec.env, *spec.env), hostname(container, host), tty=spec.tty),
        "cwd": posixpath.normpath(cwd),
        "user": spec.user or container.spec.user,
        "tty": spec.tty,
        "rows": spec.console_size[0],
        "columns": spec.console_size[1],
        "stdin": spec.attach_stdin,
        "capabilities": _capabilities(names),
        "no_new_privileges": options.no_new_privileges,
        "bpf": "" if spec.privileged else bpf,
        "rlimits": _rlimits(container.spec.resources.ulimits, host),
        "groups": list(container.spec.group_add),
        "oom_score_adj": container.spec.security.oom_score_adj,
        "cgroup": cgroup_path(container, parent),
    }
