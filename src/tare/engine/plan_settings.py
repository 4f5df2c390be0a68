"""Whether a container's settings make sense together: modes, sysctls, mounts, options. Pure; raises Invalid only.

Texts are Docker's (moby: daemon/container.go, runconfig, volume/mounts) or runc's where Docker leaves the judgement to
it; here everything is judged at create. Quantities are limits.py's.
"""

from __future__ import annotations

import ipaddress
import json
import posixpath
import re
import signal
from collections.abc import Collection, Iterable, Mapping

from tare.engine import capabilities, plan_devices, seccomp
from tare.engine.model import ContainerSpec, HealthCheck, LogConfig, MountSpec, RestartPolicy
from tare.errors import Invalid

__all__ = ["SecurityOptions", "address", "check", "check_words", "log_size", "options", "stop_signal", "sysctl_key"]

_HOSTNAME_LIMIT = 64
_SYSCTL = re.compile(r"[A-Za-z0-9_-]+(?:[./][A-Za-z0-9_@:-]+)+", re.ASCII)
_SYSCTL_IPC = frozenset(
    "kernel.msgmax kernel.msgmnb kernel.msgmni kernel.sem kernel.shmall kernel.shmmax kernel.shmmni "
    "kernel.shm_rmid_forced".split()
)
_MOUNTABLE_PROC = frozenset(
    "/proc/cpuinfo /proc/diskstats /proc/meminfo /proc/stat /proc/swaps /proc/uptime /proc/loadavg /proc/slabinfo "
    "/proc/sys/kernel/ns_last_pid /proc/net/dev /proc/sys/crypto/fips_enabled".split()
)
"""What may be covered below /proc (runc, checkProcMount): files that only tell, which lxcfs replaces."""
_PROPAGATIONS = frozenset(["", "private", "rprivate", "shared", "rshared", "slave", "rslave"])
_LOG_OPTIONS = frozenset(
    "max-size max-file compress labels labels-regex env env-regex tag mode max-buffer-size".split()
)
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(?:tcp|udp|sctp))?", re.ASCII | re.IGNORECASE)
_MINIMUM_DURATION = 1_000_000
_TRUE = frozenset(["1", "t", "T", "true", "TRUE", "True"])
_FALSE = frozenset(["0", "f", "F", "false", "FALSE", "False"])
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s?([kmgtp]?)i?b?", re.ASCII | re.IGNORECASE)


class SecurityOptions:
    """--security-opt taken apart; seccomp's is read by engine/seccomp.py."""

    __slots__ = ("no_new_privileges", "system_paths", "writable_cgroups")

    def __init__(self) -> None:
        self.no_new_privileges = False
        self.writable_cgroups: bool | None = None
        self.system_paths = True
        """False: systempaths=unconfined, nothing of /proc and /sys is masked or read-only."""


def options(given: Iterable[str], *, apparmor: bool = False, selinux: bool = False) -> SecurityOptions:
    """Invalid for an unknown option, and for a profile or label that would silently not be applied here."""
    found = SecurityOptions()
    for option in given:
        if option == "no-new-privileges":
            found.no_new_privileges = True
            continue
        if option == "writable-cgroups":
            found.writable_cgroups = True
            continue
        if option == "disable":
            continue
        key, separator, value = option.partition("=" if "=" in option else ":")
        if not separator:
            raise Invalid(f'invalid --security-opt 1: "{option}"')
        if key in ("no-new-privileges", "writable-cgroups"):
            if value not in _TRUE | _FALSE:
                raise Invalid(f'invalid --security-opt 2: "{option}"')
            setattr(found, key.replace("-", "_"), value in _TRUE)
        elif key == "systempaths" and value == "unconfined":
            found.system_paths = False
        elif key == "apparmor" or key == "label":
            _labelled(key, value, apparmor=apparmor, selinux=selinux)
        elif key != "seccomp":
            raise Invalid(f'invalid --security-opt 2: "{option}"')
    return found


def _labelled(key: str, value: str, *, apparmor: bool, selinux: bool) -> None:
    if key == "apparmor" and value not in ("", "unconfined"):
        reason = "profiles are not offered by this engine" if apparmor else "AppArmor is not enabled on this host"
        raise Invalid(f"apparmor profile {json.dumps(value)} cannot be applied: {reason}")
    if key == "label" and value != "disable":
        reason = "labels are not offered by this engine" if selinux else "SELinux is not enabled on this host"
        raise Invalid(f"label option {json.dumps(value)} cannot be applied: {reason}")


def check(
    spec: ContainerSpec,
    *,
    cgroup_version: int,
    available: Collection[str],
    init: str,
    apparmor: bool = False,
    selinux: bool = False,
) -> None:
    """Everything about `spec` that is no quantity. `available` capabilities, `init` program or ""."""
    if len(spec.hostname.encode()) > _HOSTNAME_LIMIT:
        raise Invalid(f'hostname "{spec.hostname}" is too long (maximum {_HOSTNAME_LIMIT} bytes)')
    for text, what in ((spec.hostname, "hostname"), (spec.domainname, "domainname"), (spec.user, "user")):
        if any(ord(char) < 32 for char in text):
            raise Invalid(f"invalid {what}: control characters are not permitted")
    if spec.working_dir and not spec.working_dir.startswith("/"):
        raise Invalid(f"the working directory '{spec.working_dir}' is invalid, it needs to be an absolute path")
    check_words((*spec.command, *(spec.entrypoint or ()), spec.working_dir), spec.env)
    stop_signal(spec.stop_signal)
    _health(spec.healthcheck)
    _restart(spec.restart, auto_remove=spec.auto_remove)
    _log(spec.log)
    if "" in spec.annotations:
        raise Invalid("invalid Annotations: the empty string is not permitted as an annotation key")
    _namespaces(spec)
    capabilities.check(spec.security.cap_add, available, "CapAdd")
    capabilities.check(spec.security.cap_drop, available, "CapDrop")
    options(spec.security.options, apparmor=apparmor, selinux=selinux)
    text = seccomp.wanted(spec.security.options)
    if text not in ("unconfined", "builtin"):
        seccomp.parse(text)
    _sysctls(spec.sysctls, spec)
    _mounts(spec.mounts)
    _resolving(spec)
    for port in (*spec.exposed_ports, *spec.port_bindings):
        _port(port)
    for rule in spec.resources.device_cgroup_rules:
        plan_devices.rule(rule)
    if spec.init and not init:
        raise Invalid(
            "--init needs a static init program on the host, and none was found: install docker-init, "
            "tini (/usr/bin/tini-static) or catatonit"
        )
    parent = spec.resources.cgroup_parent
    if ".." in parent.split("/") or "\0" in parent:
        raise Invalid(f"invalid cgroup parent {json.dumps(parent)}: it must not lead upwards")


def check_words(words: Iterable[str], variables: Iterable[str]) -> None:
    """What execve(2) is to be given: no NUL anywhere, every variable with a name."""
    for entry in variables:
        if not entry or entry.startswith("=") or "\0" in entry:
            shown = json.dumps(entry) if "\0" in entry else entry
            raise Invalid(f"invalid environment variable: {shown}")
    if any("\0" in word for word in words):
        raise Invalid("invalid argument: NUL bytes are not permitted in a command or a path")


def address(text: str, entry: str) -> str:
    """`text` if it is an IP address. Invalid naming `entry`, what the user wrote."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise Invalid(f"invalid IP address in {json.dumps(entry)}") from None
    return text


def _resolving(spec: ContainerSpec) -> None:
    """What goes into /etc/hosts and /etc/resolv.conf: one word each, so that none can add lines of its own."""
    for texts, what in (
        (spec.dns, "DNS server"),
        (spec.dns_search, "DNS search domain"),
        (spec.dns_options, "DNS option"),
        (spec.extra_hosts, "extra host"),
    ):
        for text in texts:
            if not text or any(char.isspace() or ord(char) < 32 or ord(char) == 127 for char in text):
                raise Invalid(f"invalid {what} {json.dumps(text)}: it must be one word without control characters")
    for server in spec.dns:
        address(server, server)
    for entry in spec.extra_hosts:
        name, separator, target = entry.partition("=" if "=" in entry else ":")
        if not name or not separator:
            raise Invalid(f"bad format for add-host: {json.dumps(entry)}")
        if target != "host-gateway":
            address(target.strip("[]"), entry)


def _port(text: str) -> None:
    """"80", "80/tcp", "8000-8010/udp". Invalid with Docker's text."""
    found = _PORT.fullmatch(text)
    if not found or not int(found[1]) <= int(found[2] or found[1]) <= 65535:
        raise Invalid(f"invalid port specification: {json.dumps(text)}")


def stop_signal(name: str) -> int:
    """"SIGTERM", "term", "15", "RTMIN+3" -> number; 0 for "". Invalid("Invalid signal: x")."""
    if not name:
        return 0
    if name.isascii() and name.isdigit() and len(name) < 4:
        number = int(name)
        if 0 < number < signal.NSIG:
            return number
        raise Invalid(f"Invalid signal: {name}")
    short = name.upper().removeprefix("SIG")
    base, sign, offset = short.partition("+" if "+" in short else "-")
    if base in ("RTMIN", "RTMAX") and (not sign or (offset.isascii() and offset.isdigit() and len(offset) < 3)):
        number = int(signal.SIGRTMIN if base == "RTMIN" else signal.SIGRTMAX)
        number += int(offset or 0) * (-1 if sign == "-" else 1)
        if signal.SIGRTMIN <= number <= signal.SIGRTMAX:
            return number
    elif short.isascii() and short.isalnum() and (found := getattr(signal.Signals, "SIG" + short, None)) is not None:
        return int(found)
    raise Invalid(f"Invalid signal: {name}")


def _health(health: HealthCheck | None) -> None:
    if health is None:
        return
    for value, name in (
        (health.interval, "Interval"),
        (health.timeout, "Timeout"),
        (health.start_period, "StartPeriod"),
        (health.start_interval, "StartInterval"),
    ):
        if value != 0 and value < _MINIMUM_DURATION:
            raise Invalid(f"{name} in Healthcheck cannot be less than 1ms")
    if health.retries < 0:
        raise Invalid("Retries in Healthcheck cannot be negative")


def _restart(policy: RestartPolicy, *, auto_remove: bool) -> None:
    known = ("no", "always", "on-failure", "unless-stopped")
    if auto_remove and policy.name not in ("", "no"):
        raise Invalid("can't create 'AutoRemove' container with restart policy")
    if policy.name not in ("", *known):
        choices = ", ".join(f"'{name}'" for name in known[:3]) + f", or '{known[3]}'"
        raise Invalid(f"invalid restart policy: unknown policy '{policy.name}'; use one of {choices}")
    if policy.name == "on-failure" and policy.maximum_retry < 0:
        raise Invalid("invalid restart policy: maximum retry count cannot be negative")
    if policy.name not in ("", "on-failure") and policy.maximum_retry != 0:
        negative = " and cannot be negative" if policy.maximum_retry < 0 else ""
        raise Invalid(f"invalid restart policy: maximum retry count can only be used with 'on-failure'{negative}")


def _log(log: LogConfig) -> None:
    if log.driver not in ("", "json-file", "none"):
        raise Invalid(f"logger: no log driver named '{log.driver}' is registered")
    if log.driver == "none":
        return
    for name in log.options:
        if name not in _LOG_OPTIONS:
            raise Invalid(f"unknown log opt '{name}' for json-file log driver")
    if log_size(log.options.get("max-size", "-1")) == 0:
        raise Invalid("max-size must be a positive number")
    files = log.options.get("max-file", "1")
    if not (files.isascii() and files.isdigit() and len(files) < 6):
        raise Invalid(f"invalid max-file {json.dumps(files)}: it must be a number")
    if int(files) < 1:
        raise Invalid("max-file cannot be less than 1")


def log_size(text: str) -> int:
    """"10m" -> 10,000,000 as Docker's json-file counts; -1 unlimited. Invalid("invalid size: 'x'")."""
    if text in ("", "-1"):
        return -1
    found = _SIZE.fullmatch(text)
    if not found:
        raise Invalid(f"invalid size: '{text}'")
    return int(float(found[1]) * 1000 ** " kmgtp".index(found[2].lower() or " "))


def _namespaces(spec: ContainerSpec) -> None:
    modes = spec.namespaces
    if modes.pid not in ("", "private", "host") and not _joined(modes.pid):
        raise Invalid(f"invalid PID mode: {modes.pid}")
    if modes.ipc not in ("", "private", "shareable", "none", "host") and not _joined(modes.ipc):
        raise Invalid(f"invalid IPC mode: {modes.ipc}")
    if modes.uts not in ("", "host"):
        raise Invalid(f"invalid UTS mode: {modes.uts}")
    if modes.user not in ("", "host"):
        raise Invalid(f"invalid USER mode: {modes.user}")
    if modes.cgroup not in ("", "private", "host"):
        raise Invalid(f"invalid cgroup namespace mode: {modes.cgroup}")
    if modes.uts == "host" and spec.hostname:
        raise Invalid("conflicting options: hostname and the UTS mode")
    if modes.network == "container" or modes.network.startswith("container:"):
        if not _joined(modes.network):
            raise Invalid("invalid network mode: invalid container format container:<name|id>")
        for wrong, what in (
            (spec.hostname, "hostname and the network mode"),
            (spec.dns, "dns and the network mode"),
            (spec.extra_hosts, "custom host-to-IP mapping and the network mode"),
            (spec.port_bindings or spec.publish_all, "port publishing and the container type network mode"),
        ):
            if wrong:
                raise Invalid(f"conflicting options: {what}")


def _joined(mode: str) -> bool:
    return mode.startswith("container:") and len(mode) > len("container:")


def sysctl_key(name: str) -> str:
    """sysctl(8)'s two spellings -> the one with dots ("net/ipv4/conf/eth0.1/x" -> "net.ipv4.conf.eth0/1.x"). Invalid.

    Whichever separator comes first is the separator.
    """
    if len(name) > 255 or not _SYSCTL.fullmatch(name):
        raise Invalid(f"sysctl {json.dumps(name[:255])} is not a valid name")
    first = min((at for at in (name.find("."), name.find("/")) if at >= 0), default=-1)
    return name.translate(str.maketrans("./", "/.")) if name[first] == "/" else name


def _sysctls(sysctls: Mapping[str, str], spec: ContainerSpec) -> None:
    """Only keys of namespaces that are the container's own; values of one line (CVE-2022-0811)."""
    modes = spec.namespaces
    for name, value in sysctls.items():
        key = sysctl_key(name)
        if len(value) > 4096 or "+" in value or any(ord(char) < 32 and char != "\t" for char in value):
            raise Invalid(f'invalid value for sysctl "{key}": control characters and "+" are not permitted')
        if key in _SYSCTL_IPC or key.startswith("fs.mqueue."):
            if modes.ipc == "host":
                raise Invalid(f'sysctl "{key}" is not allowed in the hosts ipc namespace')
            if _joined(modes.ipc):
                raise Invalid(f'sysctl "{key}" is not allowed in the ipc namespace of another container')
        elif key.startswith("net."):
            if modes.network == "host":
                raise Invalid(f'sysctl "{key}" not allowed in host network namespace')
            if _joined(modes.network):
                raise Invalid(f'sysctl "{key}" not allowed in the network namespace of another container')
        elif key == "kernel.hostname" and modes.uts != "host":
            raise Invalid(f'sysctl "{key}" is not allowed as it conflicts with the OCI "hostname" field')
        elif key != "kernel.domainname" or modes.uts == "host":
            raise Invalid(f'sysctl "{key}" is not in a separate kernel namespace')


def _mounts(mounts: Iterable[MountSpec]) -> None:
    seen: set[str] = set()
    for mount in mounts:
        try:
            _mount(mount)
        except ValueError as error:
            raise Invalid(f'invalid mount config for type "{mount.type}": {error}') from None
        target = posixpath.normpath(mount.target)
        if target in seen:
            raise Invalid(f"Duplicate mount point: {target}")
        seen.add(target)


def _mount(mount: MountSpec) -> None:
    if mount.type not in ("bind", "tmpfs", "volume"):
        raise ValueError("mount type unknown")
    if not mount.target:
        raise ValueError("field Target must not be empty")
    if "\0" in mount.target or "\0" in mount.source:
        raise ValueError("invalid mount path: NUL bytes are not permitted")
    if not mount.target.startswith("/"):
        raise ValueError(f"invalid mount path: '{mount.target}' mount path must be absolute")
    target = posixpath.normpath("/" + mount.target.lstrip("/"))
    if target == "/":
        raise ValueError("invalid specification: destination can't be '/'")
    inside = target == "/proc" or target.startswith("/proc/")
    whole = target == "/proc" and mount.type == "bind" and posixpath.normpath(mount.source or ".") == "/proc"
    if inside and not whole and target not in _MOUNTABLE_PROC:
        raise ValueError(f'"{target}" cannot be mounted because it is inside /proc')
    if mount.propagation not in _PROPAGATIONS:
        raise ValueError(f"invalid propagation mode: {mount.propagation}")
    if mount.type == "bind":
        if not mount.source:
            raise ValueError("field Source must not be empty")
        if not mount.source.startswith("/"):
            raise ValueError(f"invalid mount path: '{mount.source}' mount path must be absolute")
    if mount.type == "tmpfs" and mount.source:
        raise ValueError("field Source must not be specified")
    if mount.read_only_non_recursive and mount.read_only_force_recursive:
        raise ValueError("mount options conflict: ReadOnlyNonRecursive && ReadOnlyForceRecursive")
    if mount.tmpfs_size < 0 or not 0 <= mount.tmpfs_mode <= 0o7777:
        raise ValueError("invalid size or mode of a tmpfs")
