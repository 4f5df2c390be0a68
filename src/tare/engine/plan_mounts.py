"""The mounts of a container as OCI values: Docker's own, the three files of /etc, the user's. Pure.

Order is the order of mounting: fixed ones first, then everything asked for by depth of its target, so that a parent
never covers a child. Nothing here says where the root file system comes from (Bundle.rootfs).
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from tare.engine.model import ContainerSpec, MountSpec
from tare.engine.plan_devices import Resolver
from tare.errors import Invalid, Unsupported

__all__ = ["ContainerFiles", "mounts", "tmpfs_options"]

_RECURSIVE_READ_ONLY = (5, 12)
"""mount_setattr(2)."""
_TMPFS_FLAGS = {
    "defaults": "", "ro": "ro", "rw": "ro", "suid": "suid", "nosuid": "suid", "dev": "dev", "nodev": "dev",
    "exec": "exec", "noexec": "exec", "sync": "sync", "async": "sync", "dirsync": "dirsync", "remount": "",
    "mand": "mand", "nomand": "mand", "atime": "atime", "noatime": "atime", "diratime": "diratime",
    "nodiratime": "diratime", "bind": "bind", "rbind": "bind", "relatime": "relatime", "norelatime": "relatime",
    "strictatime": "strictatime", "nostrictatime": "strictatime", "private": "propagation", "rprivate": "propagation",
    "shared": "propagation", "rshared": "propagation", "slave": "propagation", "rslave": "propagation",
    "unbindable": "propagation", "runbindable": "propagation",
}  # fmt: skip
"""Words --tmpfs takes -> what they decide; of two that decide the same the later counts (MergeTmpfsOptions)."""
_TMPFS_DROPPED = frozenset(["", "defaults", "remount", "bind", "rbind"])
_TMPFS_DATA = frozenset(["size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol"])
_STAYS_WRITABLE = frozenset(["/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"])


class ContainerFiles(Struct, frozen=True, kw_only=True):
    """Host paths of what the engine writes for the container; "" leaves the image's own file."""

    hosts: str = ""
    hostname: str = ""
    resolv_conf: str = ""


def _oci(destination: str, kind: str, source: str, options: Sequence[str]) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def _fixed(spec: ContainerSpec, *, writable_cgroups: bool) -> list[dict[str, Any]]:
    """What Docker mounts in every container."""
    read_only = [] if spec.security.privileged else ["ro"]
    cgroup = [] if writable_cgroups else ["ro"]
    found = [
        _oci("/proc", "proc", "proc", ["nosuid", "noexec", "nodev"]),
        _oci("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _oci("/dev/pts", "devpts", "devpts",
             ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        _oci("/sys", "sysfs", "sysfs", ["nosuid", "noexec", "nodev", *read_only]),
        _oci("/sys/fs/cgroup", "cgroup", "cgroup", [*cgroup, "nosuid", "noexec", "nodev"]),
        _oci("/dev/mqueue", "mqueue", "mqueue", ["nosuid", "noexec", "nodev"]),
    ]  # fmt: skip
    if spec.namespaces.ipc in ("", "private", "shareable"):
        size = spec.shm_size or 64 << 20
        found.append(_oci("/dev/shm", "tmpfs", "shm", ["nosuid", "noexec", "nodev", "mode=1777", f"size={size}"]))
    return found


def _shared_memory(spec: ContainerSpec, joins: Mapping[str, str], shm: str) -> str:
    """Source of /dev/shm where it is somebody else's; "" where it is not.

    Without a host directory given, another container's is reached through its first process (proc(5), root).
    """
    mode = spec.namespaces.ipc
    if mode == "host":
        return "/dev/shm"
    if mode == "shareable":
        return shm
    if mode.startswith("container:"):
        return shm or joins["ipc"].removesuffix("/ns/ipc") + "/root/dev/shm"
    return ""


def mounts(
    spec: ContainerSpec,
    kernel: tuple[int, int],
    files: ContainerFiles,
    joins: Mapping[str, str],
    volumes: Mapping[str, str],
    resolver: Resolver,
    *,
    shm: str = "",
    writable_cgroups: bool = False,
) -> tuple[list[dict[str, Any]], str]:
    """(OCI mounts, linux.rootfsPropagation or ""). `volumes`: target -> host directory. Invalid, Unsupported.

    A target of the user's replaces the fixed mount there, and his /dev everything below it too.
    """
    asked: list[tuple[str, dict[str, Any]]] = []
    propagation = ""
    for mount in spec.mounts:
        entry, spread = _asked(mount, kernel, volumes, resolver)
        propagation = _wider(propagation, spread)
        asked.append((entry["destination"], entry))
    taken = {destination for destination, _ in asked}
    for target, source in volumes.items():
        destination = posixpath.normpath(target)
        if destination not in taken:
            asked.append((destination, _oci(destination, "bind", source, ["rbind", "rprivate"])))
            taken.add(destination)
    if (source := _shared_memory(spec, joins, shm)) and "/dev/shm" not in taken:
        asked.append(("/dev/shm", _oci("/dev/shm", "bind", source, ["rbind", "rprivate"])))
    read_only = ["ro"] if spec.read_only else []
    for destination, source in (
        ("/etc/resolv.conf", files.resolv_conf),
        ("/etc/hostname", files.hostname),
        ("/etc/hosts", files.hosts),
    ):
        if source and destination not in taken:
            asked.append((destination, _oci(destination, "bind", source, ["rbind", *read_only, "rprivate"])))
    asked.sort(key=lambda pair: pair[0].count("/"))
    taken = {destination for destination, _ in asked}
    fixed = [
        entry
        for entry in _fixed(spec, writable_cgroups=writable_cgroups)
        if entry["destination"] not in taken and not ("/dev" in taken and entry["destination"].startswith("/dev/"))
    ]
    if spec.read_only:
        for entry in fixed:
            if entry["destination"] not in _STAYS_WRITABLE and "ro" not in entry["options"]:
                entry["options"].append("ro")
    return fixed + [entry for _, entry in asked], propagation


def _wider(one: str, other: str) -> str:
    """The root must let through what any mount needs: shared > rslave > nothing."""
    return "shared" if "shared" in (one, other) else one or other


def _asked(
    mount: MountSpec, kernel: tuple[int, int], volumes: Mapping[str, str], resolver: Resolver
) -> tuple[dict[str, Any], str]:
    destination = posixpath.normpath("/" + mount.target.lstrip("/"))
    if mount.type == "tmpfs":
        return _oci(destination, "tmpfs", "tmpfs", tmpfs_options(mount)), ""
    source = mount.source
    if mount.type == "volume":
        source = volumes.get(mount.target) or volumes.get(destination, "")
        if not source:
            raise Unsupported(f"no directory is known for the volume {json.dumps(mount.source)} at {destination}")
    spread = _spread(mount, source, resolver)
    options = ["bind" if mount.non_recursive else "rbind"]
    if mount.read_only:
        recursive = kernel >= _RECURSIVE_READ_ONLY and not mount.read_only_non_recursive
        if mount.read_only_force_recursive and not recursive:
            raise Invalid("kernel is older than 5.12 and cannot make a mount recursively read-only")
        options.append("rro" if recursive else "ro")
    options.append(mount.propagation or "rprivate")
    return _oci(destination, "bind", source, options), spread


def _spread(mount: MountSpec, source: str, resolver: Resolver) -> str:
    """What the root's propagation must be for this mount; Invalid if the source does not spread by itself."""
    if mount.propagation not in ("shared", "rshared", "slave", "rslave"):
        return ""
    shared = mount.propagation in ("shared", "rshared")
    try:
        point, found = resolver.propagation(source)
    except OSError as error:
        raise Invalid(f"{mount.propagation} mount of {source}: {error.strerror or error}") from None
    if found not in (("shared",) if shared else ("shared", "slave")):
        needed = "a shared" if shared else "a shared or slave"
        raise Invalid(f"path {source} is mounted on {point} but it is not {needed} mount")
    return "shared" if shared else "rslave"


def tmpfs_options(mount: MountSpec) -> list[str]:
    """Docker's defaults with the user's words over them. Invalid('invalid tmpfs option "x"')."""
    words = ["noexec", "nosuid", "nodev", "rprivate"]
    if mount.read_only:
        words.append("ro")
    if mount.tmpfs_size:
        words.append(f"size={mount.tmpfs_size}")
    if mount.tmpfs_mode != 0o1777:
        words.append(f"mode={mount.tmpfs_mode:o}")
    chosen: dict[str, str] = {}
    for word in (*words, *mount.options):
        name, equals, value = word.partition("=")
        if word in _TMPFS_FLAGS or not word:
            key = _TMPFS_FLAGS.get(word, "")
        elif equals and name in _TMPFS_DATA and value and not set(value) & set(",\0\n"):
            key = name
        else:
            raise Invalid(f'invalid tmpfs option "{word}"')
        if word not in _TMPFS_DROPPED:
            chosen.pop(key, None)
            chosen[key] = word
    return list(chosen.values())
