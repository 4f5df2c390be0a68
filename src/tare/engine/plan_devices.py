"""Devices and resource limits of a container as OCI values.

Pure but for `HostDevices`, the one place here that looks at the host: plans get it, or a made-up one, as `Resolver`.
"""

from __future__ import annotations

import os
import posixpath
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from msgspec import Struct

from tare.engine.model import Device, DeviceRate, Resources
from tare.errors import Invalid
from tare.linux import proc

__all__ = ["DEFAULT_PIDS", "DEFAULT_RULES", "HostDevices", "Node", "Resolver", "devices", "resources", "rule"]

DEFAULT_PIDS = 4096
"""Docker sets none; a fork bomb then takes the host's pid space along (security yardstick, cgroup row)."""
_CPU_PERIOD = 100_000
_LONG_PERIOD = 1_000_000
_MINIMUM_QUOTA = 1_000
"""Microseconds; the kernel refuses less (sched-bwc)."""
_NODE_LIMIT = 4096
_RULE = re.compile(r"([acb]) ([0-9]{1,10}|\*):([0-9]{1,10}|\*) ([rwm]{1,3})", re.ASCII)

_IMPLICIT = frozenset(f"/dev/{name}" for name in "null zero full random urandom tty console ptmx".split())
"""Made in every container (config-linux.md, default devices)."""
_NOT_DEVICES = frozenset(["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"])


def _rule(kind: str, major: int | None, minor: int | None, access: str, *, allow: bool = True) -> dict[str, Any]:
    numbers = {name: number for name, number in (("major", major), ("minor", minor)) if number is not None}
    return {"allow": allow, "type": kind, **numbers, "access": access}


DEFAULT_RULES: tuple[dict[str, Any], ...] = (
    _rule("a", None, None, "rwm", allow=False),
    _rule("c", None, None, "m"),
    _rule("b", None, None, "m"),
    *(_rule("c", 1, minor, "rwm") for minor in (3, 5, 7, 8, 9)),
    *(_rule("c", 5, minor, "rwm") for minor in (0, 1, 2)),
    _rule("c", 136, None, "rwm"),
)
"""Every node may be made, few opened: null, zero, full, random, urandom, tty, console, ptmx, ptys. Docker (runc) also
opens 10:200, /dev/net/tun, to everybody; here that takes --device /dev/net/tun."""

_ALL_DEVICES = {"allow": True, "type": "a", "access": "rwm"}


class Node(Struct, frozen=True, kw_only=True):
    """A device node of the host; `type` "b" or "c", `mode` permission bits."""

    path: str
    type: str
    major: int
    minor: int
    mode: int
    uid: int = 0
    gid: int = 0


class Resolver(Protocol):
    """What a plan asks about the host's files."""

    def nodes(self, path: str) -> list[Node]:
        """The node `path`, or those below it if it is a directory; symlinks of `path` itself are followed. OSError."""
        ...

    def all(self) -> list[Node]:
        """Every node of the host's /dev."""
        ...

    def disk(self, path: str) -> tuple[int, int]:
        """Major and minor of the whole disk that the block device `path` is (a part of). OSError."""
        ...

    def propagation(self, path: str) -> tuple[str, str]:
        """(mount point below which `path` lies, "private", "shared" or "slave"). OSError."""
        ...


class HostDevices:
    """Resolver of this host."""

    def nodes(self, path: str) -> list[Node]:
        resolved = os.path.realpath(path, strict=True)
        found = os.stat(resolved)
        if stat.S_ISDIR(found.st_mode):
            nodes = list(self._below(resolved))
            shown = [_moved(node, resolved, path) for node in nodes]
            if shown:
                return shown
        elif (node := _node(path, found)) is not None:
            return [node]
        raise OSError(0, "not a device node")

    def all(self) -> list[Node]:
        return [node for node in self._below("/dev") if node.path not in _IMPLICIT]

    def _below(self, directory: str) -> Iterator[Node]:
        count = 0
        for parent, directories, names in os.walk(directory):
            directories[:] = [name for name in directories if name not in _NOT_DEVICES]
            for name in names:
                path = posixpath.join(parent, name)
                try:
                    node = _node(path, os.lstat(path))
                except FileNotFoundError:
                    continue
                if node is not None:
                    count += 1
                    if count > _NODE_LIMIT:
                        raise OSError(0, f"more than {_NODE_LIMIT} devices", directory)
                    yield node

    def disk(self, path: str) -> tuple[int, int]:
        found = os.stat(path)
        if not stat.S_ISBLK(found.st_mode):
            raise OSError(0, "not a block device", path)
        number = found.st_rdev
        entry = f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"
        if os.path.exists(f"{entry}/partition"):
            # The throttle knows whole disks only; a partition's directory lies in its disk's (sysfs-block)
            major, _, minor = proc.read(f"{entry}/../dev").decode().strip().partition(":")
            return int(major), int(minor)
        return os.major(number), os.minor(number)

    def propagation(self, path: str) -> tuple[str, str]:
        resolved = os.path.realpath(path, strict=True)
        best = ("", "private")
        for line in proc.read("/proc/self/mountinfo", 1 << 26).decode("utf-8", "surrogateescape").splitlines():
            fields = line.split(" - ")[0].split(" ")
            point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
            if len(point) >= len(best[0]) and (resolved == point or resolved.startswith(point.rstrip("/") + "/")):
                words = [word.partition(":")[0] for word in fields[6:]]
                best = (point, "shared" if "shared" in words else "slave" if "master" in words else "private")
        return best


def _node(path: str, found: os.stat_result) -> Node | None:
    kind = "b" if stat.S_ISBLK(found.st_mode) else "c" if stat.S_ISCHR(found.st_mode) else ""
    if not kind:
        return None
    return Node(
        path=path,
        type=kind,
        major=os.major(found.st_rdev),
        minor=os.minor(found.st_rdev),
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
    )


def _moved(node: Node, old: str, new: str) -> Node:
    return Node(
        path=new.rstrip("/") + node.path[len(old) :], type=node.type, major=node.major, minor=node.minor,
        mode=node.mode, uid=node.uid, gid=node.gid,
    )  # fmt: skip


def rule(text: str) -> dict[str, Any]:
    """--device-cgroup-rule "c 10:229 rwm" as OCI; Invalid with Docker's text."""
    found = _RULE.fullmatch(text)
    if not found:
        raise Invalid(f"invalid device cgroup rule format: '{text}'")
    major, minor = (None if number == "*" else int(number) for number in (found[2], found[3]))
    return _rule(found[1], major, minor, found[4])


def devices(
    asked: Sequence[Device], rules: Iterable[str], resolver: Resolver, *, privileged: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(linux.devices, linux.resources.devices). Invalid if a device cannot be found.

    Privileged: every node of the host and no rule but "all"; the permissions of --device then count for nothing.
    """
    nodes: dict[str, dict[str, Any]] = {}
    if privileged:
        nodes.update((node.path, _oci(node, node.path)) for node in resolver.all())
    allowed: list[dict[str, Any]] = []
    for device in asked:
        try:
            found = resolver.nodes(device.host)
        except OSError as error:
            raise Invalid(
                f'error gathering device information while adding custom device "{device.host}": '
                f"{(error.strerror or str(error)).lower()}"
            ) from None
        for node in found:
            path = posixpath.normpath((device.container or device.host).rstrip("/") + node.path[len(device.host) :])
            nodes[path] = _oci(node, path)
            allowed.append(_rule(node.type, node.major, node.minor, device.permissions))
    if privileged:
        return list(nodes.values()), [dict(_ALL_DEVICES)]
    return list(nodes.values()), [*map(dict, DEFAULT_RULES), *allowed, *(rule(text) for text in rules)]


def _oci(node: Node, path: str) -> dict[str, Any]:
    return {
        "path": path, "type": node.type, "major": node.major, "minor": node.minor, "fileMode": node.mode,
        "uid": node.uid, "gid": node.gid,
    }  # fmt: skip


def resources(
    asked: Resources, resolver: Resolver, *, default_pids: int = DEFAULT_PIDS, update: bool = False
) -> dict[str, Any]:
    """OCI linux.resources but for its device rules. Only what was asked for is in it.

    `update`: for a running container: pids only if asked for, and -1 for a swap limit that is to be lifted, which at
    the start is the kernel's own default. Invalid for a device that is none.
    """
    found: dict[str, Any] = {}
    for name, section in (
        ("memory", _memory(asked, update=update)),
        ("cpu", _cpu(asked)),
        ("blockIO", _block_io(asked, resolver)),
    ):
        if section:
            found[name] = section
    limit = default_pids if asked.pids_limit is None and not update else asked.pids_limit
    if limit is not None:
        found["pids"] = {"limit": limit if limit > 0 else -1}
    return found


def _memory(asked: Resources, *, update: bool) -> dict[str, Any]:
    section: dict[str, Any] = {}
    if asked.memory > 0:
        section["limit"] = asked.memory
    if asked.memory_reservation > 0:
        section["reservation"] = asked.memory_reservation
    if asked.memory_swap > 0 or (update and asked.memory_swap == -1):
        section["swap"] = asked.memory_swap
    if asked.memory_swappiness is not None:
        section["swappiness"] = asked.memory_swappiness
    if asked.oom_kill_disable:
        section["disableOOMKiller"] = True
    return section


def _cpu(asked: Resources) -> dict[str, Any]:
    period, quota = asked.cpu_period, asked.cpu_quota
    if asked.nano_cpus > 0:
        period = _CPU_PERIOD
        quota = asked.nano_cpus * period // 1_000_000_000
        if quota < _MINIMUM_QUOTA:
            period = _LONG_PERIOD
            quota = max(asked.nano_cpus * period // 1_000_000_000, _MINIMUM_QUOTA)
    section = {
        "shares": asked.cpu_shares,
        "quota": quota,
        "period": period,
        "realtimeRuntime": asked.cpu_rt_runtime,
        "realtimePeriod": asked.cpu_rt_period,
        "cpus": asked.cpuset_cpus,
        "mems": asked.cpuset_mems,
    }
    return {name: value for name, value in section.items() if value}


def _block_io(asked: Resources, resolver: Resolver) -> dict[str, Any]:
    section: dict[str, Any] = {"weight": asked.blkio_weight} if asked.blkio_weight else {}
    for name, key, rates in (
        ("weightDevice", "weight", asked.blkio_weight_device),
        ("throttleReadBpsDevice", "rate", asked.device_read_bps),
        ("throttleWriteBpsDevice", "rate", asked.device_write_bps),
        ("throttleReadIOPSDevice", "rate", asked.device_read_iops),
        ("throttleWriteIOPSDevice", "rate", asked.device_write_iops),
    ):
        if rates:
            section[name] = [_rated(device, key, resolver) for device in rates]
    return section


def _rated(device: DeviceRate, key: str, resolver: Resolver) -> dict[str, Any]:
    try:
        major, minor = resolver.disk(device.path)
    except OSError as error:
        raise Invalid(f"stat {device.path}: {(error.strerror or str(error)).lower()}") from None
    return {"major": major, "minor": minor, key: device.rate}
