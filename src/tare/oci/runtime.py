"""The parts of the OCI runtime specification's config.json that rooms above the runtime read as values. Pure.

`runtime/` itself is stdlib only and works on the plain JSON; here the shape is checked once, at the door, when a
hand-written bundle comes in. Deliberately absent: sections that are passed on unread (hooks, seccomp, resources).
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from tare.errors import Invalid
from tare.oci.image import check_json

__all__ = ["Config", "LinuxNamespace", "Mount", "Process", "Root", "User", "decode"]


class _Section(Struct, frozen=True, rename="camel", omit_defaults=True):
    """Base of the sections."""


class User(_Section, frozen=True, kw_only=True):
    uid: int = 0
    gid: int = 0
    umask: int | None = None
    additional_gids: tuple[int, ...] = ()


class Process(_Section, frozen=True, kw_only=True):
    """`args` are the program and its arguments; `cwd` is absolute inside the root."""

    args: tuple[str, ...]
    cwd: str
    env: tuple[str, ...] = ()
    user: User = User()
    terminal: bool = False
    no_new_privileges: bool = False
    oom_score_adj: int | None = None
    capabilities: dict[str, tuple[str, ...]] | None = None
    apparmor_profile: str = ""
    selinux_label: str = ""


class Root(_Section, frozen=True, kw_only=True):
    path: str
    readonly: bool = False


class Mount(_Section, frozen=True, kw_only=True):
    """`destination` is absolute inside the root; `options` in fstab's spelling."""

    destination: str
    type: str = ""
    source: str = ""
    options: tuple[str, ...] = ()


class LinuxNamespace(_Section, frozen=True, kw_only=True):
    """`type` as in the specification ("mount", "network"); `path` joins an existing one."""

    type: str
    path: str = ""


class Linux(_Section, frozen=True, kw_only=True):
    namespaces: tuple[LinuxNamespace, ...] = ()
    cgroups_path: str = ""
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    rootfs_propagation: str = ""
    sysctl: dict[str, str] | None = None
    resources: dict[str, Any] | None = None
    seccomp: dict[str, Any] | None = None


class Config(_Section, frozen=True, kw_only=True):
    """A bundle's config.json: config.md of the runtime specification."""

    oci_version: str
    root: Root
    process: Process | None = None
    hostname: str = ""
    domainname: str = ""
    mounts: tuple[Mount, ...] = ()
    annotations: dict[str, str] | None = None
    hooks: dict[str, Any] | None = None
    linux: Linux | None = None


def decode(data: bytes) -> Config:
    """Read a config.json. Invalid, naming the path of the offending field."""
    check_json(data, "config.json")
    try:
        return msgspec.json.decode(data, type=Config)
    except msgspec.MsgspecError as error:
        raise Invalid(f"invalid config.json: {error}") from None
