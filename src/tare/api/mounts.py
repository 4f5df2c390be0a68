"""Mounts between Docker's four spellings (Binds, Mounts, Tmpfs, MountPoint) and MountSpec.

Pure but for `check_sources`. Rules and texts of moby's volume/mounts/linux_parser.go. Deliberately absent: named
volumes, which this version refuses with one sentence.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable

from msgspec import field

from tare.engine.model import Container, MountSpec
from tare.errors import Invalid

from .wire import UNSET, Maybe, Wire, maybe

__all__ = ["Mount", "MountPoint", "bind", "check_sources", "from_mount", "points", "tmpfs", "to_mount"]

PROPAGATIONS = frozenset({"private", "rprivate", "slave", "rslave", "shared", "rshared"})
MODES = (
    frozenset({"ro", "rw"}),
    frozenset({"z", "Z"}),
    PROPAGATIONS,
    frozenset({"nocopy"}),
    frozenset({"consistent", "cached", "delegated"}),
)
"""The words behind the second colon of -v; one of each group at most."""
_FLAGS = (
    "defaults ro rw suid nosuid dev nodev exec noexec sync async dirsync remount mand nomand atime noatime diratime "
    "nodiratime relatime norelatime strictatime nostrictatime private rprivate shared rshared slave rslave"
)
TMPFS_FLAGS = frozenset(_FLAGS.split())
TMPFS_VALUES = frozenset({"size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol"})
UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


class BindOptions(Wire):
    propagation: Maybe[str] = UNSET
    non_recursive: Maybe[bool] = UNSET
    create_mountpoint: Maybe[bool] = UNSET
    read_only_non_recursive: Maybe[bool] = UNSET
    read_only_force_recursive: Maybe[bool] = UNSET


class VolumeOptions(Wire):
    no_copy: Maybe[bool] = UNSET
    subpath: Maybe[str] = UNSET


class TmpfsOptions(Wire):
    size_bytes: Maybe[int] = UNSET
    mode: Maybe[int] = UNSET
    options: Maybe[list[list[str]]] = UNSET


class Mount(Wire):
    """One entry of HostConfig.Mounts (--mount)."""

    type: Maybe[str] = UNSET
    source: Maybe[str] = UNSET
    target: Maybe[str] = UNSET
    read_only: Maybe[bool] = UNSET
    consistency: Maybe[str] = UNSET
    bind_options: Maybe[BindOptions] = UNSET
    volume_options: Maybe[VolumeOptions] = UNSET
    tmpfs_options: Maybe[TmpfsOptions] = UNSET


class MountPoint(Wire):
    """One entry of Mounts in inspect and ps: the mount as it is, whatever asked for it."""

    type: str
    source: str
    destination: str
    mode: str = ""
    rw: bool = field(default=True, name="RW")
    propagation: str = ""


def bind(raw: str) -> MountSpec:
    """An entry of -v, "source:target[:mode]"; "target" alone is a volume without a source. Raises Invalid."""
    parts = raw.split(":", 3)
    bad = f"invalid volume specification: '{raw}'"
    if not parts[0] or len(parts) > 3 or (len(parts) == 2 and valid_mode(parts[1])):
        raise Invalid(bad)
    source, target = ("", parts[0]) if len(parts) == 1 else (parts[0], parts[1])
    mode = parts[2] if len(parts) == 3 else ""
    if not valid_mode(mode):
        raise Invalid(f"invalid mode: {mode}")
    kind = "bind" if source.startswith("/") else "volume"
    try:
        check_target(target, kind)
    except Invalid as error:
        raise Invalid(f"{bad}: {error}") from None
    words = mode.split(",")
    if source and kind == "volume":
        raise Invalid(no_volume(source))
    return MountSpec(
        type=kind,
        target=posixpath.normpath(target),
        source=posixpath.normpath(source) if source else "",
        read_only="ro" in words,
        propagation=next((word for word in words if word in PROPAGATIONS), ""),
        create_source=kind == "bind",
        origin="binds",
    )


def valid_mode(mode: str) -> bool:
    """Whether the third part of -v is made of known words, none contradicting another; "" is valid."""
    if not mode:
        return True
    words = mode.split(",")
    known = frozenset().union(*MODES)
    return all(word in known for word in words) and all(sum(word in group for word in words) <= 1 for group in MODES)


def from_mount(mount: Mount, version: tuple[int, int]) -> MountSpec:
    """One --mount. Raises Invalid with Docker's texts."""
    kind, source, target = mount.type or "", mount.source or "", mount.target or ""
    check_options(mount, kind, version)
    check_target(target, kind)
    if kind == "volume":
        raise Invalid(no_volume(source))
    if kind == "bind":
        return bind_mount(mount, source, target, version)
    if kind == "tmpfs":
        if source:
            raise bad_mount(kind, "field Source must not be specified")
        return tmpfs_mount(mount, target)
    raise bad_mount(kind, "mount type unknown")


def check_options(mount: Mount, kind: str, version: tuple[int, int]) -> None:
    """Options of another type are an error since API 1.42 and were ignored before."""
    if version < (1, 42):
        return
    for name, own, value in (
        ("VolumeOptions", "volume", mount.volume_options),
        ("BindOptions", "bind", mount.bind_options),
        ("TmpfsOptions", "tmpfs", mount.tmpfs_options),
    ):
        if value is not UNSET and kind != own:
            raise Invalid(f'{name} must not be specified on mount type "{kind}"')


def bind_mount(mount: Mount, source: str, target: str, version: tuple[int, int]) -> MountSpec:
    if not source:
        raise bad_mount("bind", "field Source must not be empty")
    if not source.startswith("/"):
        raise bad_mount("bind", f"invalid mount path: '{source}' mount path must be absolute")
    options = mount.bind_options or BindOptions()
    if options.propagation and options.propagation not in PROPAGATIONS:
        raise bad_mount("bind", f"invalid propagation mode: {options.propagation}")
    if options.read_only_force_recursive and version < (1, 44):
        raise Invalid("BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer")
    return MountSpec(
        type="bind",
        target=posixpath.normpath(target),
        source=posixpath.normpath(source),
        read_only=bool(mount.read_only),
        propagation=options.propagation or "",
        non_recursive=bool(options.non_recursive) and version >= (1, 40),
        # Before 1.44 every read-only mount was read-only at its top only.
        read_only_non_recursive=bool(options.read_only_non_recursive) or version < (1, 44),
        read_only_force_recursive=bool(options.read_only_force_recursive),
        create_source=bool(options.create_mountpoint) and version >= (1, 42),
        origin="mounts",
    )


def tmpfs_mount(mount: Mount, target: str) -> MountSpec:
    options = mount.tmpfs_options or TmpfsOptions()
    words: list[str] = []
    for pair in options.options or ():
        if len(pair) not in (1, 2):
            raise bad_mount("tmpfs", "invalid option array length")
        if pair[0] not in ("exec", "noexec"):
            raise bad_mount("tmpfs", f"invalid option: {pair[0]}")
        words.append("=".join(pair))
    if (options.size_bytes or 0) < 0:
        raise bad_mount("tmpfs", "SizeBytes must not be negative")
    return MountSpec(
        type="tmpfs",
        target=posixpath.normpath(target),
        read_only=bool(mount.read_only),
        tmpfs_size=options.size_bytes or 0,
        tmpfs_mode=options.mode or 0o1777,
        options=tuple(words),
        origin="mounts",
    )


def tmpfs(target: str, text: str) -> MountSpec:
    """One entry of HostConfig.Tmpfs (--tmpfs target:size=64m,mode=1770,noexec)."""
    check_target(target, "tmpfs")
    size, mode, words = 0, 0o1777, []
    for word in filter(None, text.split(",")):
        name, equals, value = word.partition("=")
        if not (name in TMPFS_VALUES and value if equals else name in TMPFS_FLAGS):
            raise Invalid(f'Invalid tmpfs option ["{word}"]')
        try:
            if name == "size" and not value.endswith("%"):
                size = int(value[:-1]) * UNITS[value[-1].lower()] if value[-1].lower() in UNITS else int(value)
            elif name == "mode":
                mode = int(value, 8)
            else:
                words.append(word)
        except ValueError:
            raise Invalid(f'Invalid tmpfs option ["{word}"]') from None
    return MountSpec(
        type="tmpfs",
        target=posixpath.normpath(target),
        read_only="ro" in words,
        tmpfs_size=size,
        tmpfs_mode=mode,
        options=tuple(words),
        origin="tmpfs",
    )


def check_target(target: str, kind: str) -> None:
    if not target:
        raise bad_mount(kind, "field Target must not be empty")
    if posixpath.normpath(target) in ("/", "//"):
        raise bad_mount(kind, "invalid specification: destination can't be '/'")
    if not target.startswith("/"):
        raise bad_mount(kind, f"invalid mount path: '{target}' mount path must be absolute")
    if "\0" in target:
        raise bad_mount(kind, "the mount path has a NUL byte")


def check_sources(mounts: Iterable[MountSpec]) -> None:
    """Raises Invalid for two mounts at one place, or a --mount bind whose source is missing on this host."""
    seen: set[str] = set()
    for mount in mounts:
        if mount.target in seen:
            raise Invalid(f"Duplicate mount point: {mount.target}")
        seen.add(mount.target)
        if mount.type == "bind" and not mount.create_source and "\0" in mount.source:
            raise bad_mount("bind", "the source path has a NUL byte")
        if mount.type == "bind" and not mount.create_source and not os.path.exists(mount.source):
            raise bad_mount("bind", f"bind source path does not exist: {mount.source}")


def to_mount(spec: MountSpec) -> Mount:
    """The --mount that `spec` came from."""
    if spec.type == "tmpfs":
        tmpfs_options = TmpfsOptions(
            size_bytes=maybe(spec.tmpfs_size),
            mode=UNSET if spec.tmpfs_mode == 0o1777 else spec.tmpfs_mode,
            options=maybe([word.split("=", 1) for word in spec.options]),
        )
        empty = tmpfs_options == TmpfsOptions()
        return Mount(
            type="tmpfs",
            target=spec.target,
            read_only=maybe(spec.read_only),
            tmpfs_options=UNSET if empty else tmpfs_options,
        )
    options = BindOptions(
        propagation=maybe(spec.propagation),
        non_recursive=maybe(spec.non_recursive),
        create_mountpoint=maybe(spec.create_source),
        read_only_non_recursive=maybe(spec.read_only_non_recursive),
        read_only_force_recursive=maybe(spec.read_only_force_recursive),
    )
    return Mount(
        type=spec.type,
        source=spec.source,
        target=spec.target,
        read_only=maybe(spec.read_only),
        bind_options=UNSET if options == BindOptions() else options,
    )


def points(container: Container) -> list[MountPoint]:
    """What inspect and ps list; --tmpfs entries are no mount points in Docker, tmpfs of --mount are."""
    modes = {}
    for raw in container.spec.docker_extra.get("Binds") or ():
        parts = raw.split(":")
        if len(parts) == 3:
            modes[posixpath.normpath(parts[1])] = parts[2]
    return [
        MountPoint(
            type=mount.type,
            source=mount.source,
            destination=mount.target,
            mode=modes.get(mount.target, "") if mount.origin == "binds" else "",
            rw=not mount.read_only,
            propagation=(mount.propagation or "rprivate") if mount.type == "bind" else "",
        )
        for mount in container.spec.mounts
        if mount.origin != "tmpfs"
    ]


def no_volume(source: str) -> str:
    name = f'volume "{source}"' if source else "a volume"
    return f"{name} cannot be mounted: this version offers bind and tmpfs mounts only"


def bad_mount(kind: str, why: str) -> Invalid:
    return Invalid(f'invalid mount config for type "{kind}": {why}')
