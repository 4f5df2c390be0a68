"""The container's file system as a list of values, each of which can say and do itself.

`ops(bundle)` is pure; `perform` runs in init, in the new mount namespace, before pivot_root. A place inside the root
is reached only through a descriptor of the root and openat2(RESOLVE_IN_ROOT), and what is mounted there is attached to
that descriptor: no name is looked up twice, so an image's symlinks or a racing neighbour cannot lead outside (N1;
CVE-2021-30465, CVE-2024-45310). Sources are host paths, opened with open_tree(2) before the root is left.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from errno import E2BIG, EEXIST, EINVAL, ENOENT, ENOTDIR

from tare.linux import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = ["Op", "Place", "known_options", "ops", "overlay", "place"]

_ATTRIBUTES = {
    "ro": libc.MOUNT_ATTR_RDONLY,
    "nosuid": libc.MOUNT_ATTR_NOSUID,
    "nodev": libc.MOUNT_ATTR_NODEV,
    "noexec": libc.MOUNT_ATTR_NOEXEC,
    "noatime": libc.MOUNT_ATTR_NOATIME,
    "strictatime": libc.MOUNT_ATTR_STRICTATIME,
    "nodiratime": libc.MOUNT_ATTR_NODIRATIME,
}
_CLEARS = {
    "rw": libc.MOUNT_ATTR_RDONLY,
    "suid": libc.MOUNT_ATTR_NOSUID,
    "dev": libc.MOUNT_ATTR_NODEV,
    "exec": libc.MOUNT_ATTR_NOEXEC,
}
_RECURSIVE = {"rro": "ro", "rnosuid": "nosuid", "rnodev": "nodev", "rnoexec": "noexec"}
_IGNORED = {
    "defaults", "relatime", "norelatime", "atime", "diratime", "nostrictatime", "bind", "rbind", "async", "loud",
    "copy", "tmpcopyup", "rrelatime", "rrw",
}  # fmt: skip
_PROPAGATION = {
    "private": (libc.MS_PRIVATE, False),
    "rprivate": (libc.MS_PRIVATE, True),
    "slave": (libc.MS_SLAVE, False),
    "rslave": (libc.MS_SLAVE, True),
    "shared": (libc.MS_SHARED, False),
    "rshared": (libc.MS_SHARED, True),
    "unbindable": (libc.MS_UNBINDABLE, False),
    "runbindable": (libc.MS_UNBINDABLE, True),
}
_NODES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))
_LINKS = (("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"),
          ("stderr", "/proc/self/fd/2"), ("ptmx", "pts/ptmx"))  # fmt: skip


def known_options() -> list[str]:
    """Every mount option that is not passed to the file system, for `tare-oci features`."""
    return sorted({*_ATTRIBUTES, *_CLEARS, *_RECURSIVE, *_PROPAGATION, *_IGNORED})


class Place:
    """Where ops work: the root's descriptor, and what earlier ops left for later ones."""

    __slots__ = ("null", "proc", "root")

    def __init__(self, root: int) -> None:
        self.root = root
        self.proc = -1
        """Our own procfs before anything covers it: sysctls and oom_score_adj go through it (N2)."""
        self.null = -1
        """Our own /dev/null, verified to be c1:3 (N3; CVE-2025-31133)."""


class Op:
    """One step; `target` is a path inside the root."""

    __slots__ = ("target",)

    def __init__(self, target: str) -> None:
        self.target = target

    def describe(self) -> str:
        return f"{type(self).__name__.lower()} {self.target}"

    def perform(self, at: Place) -> None:
        raise AssertionError(self.describe())


class Flags:
    """Mount options split into what the mount, the file system and propagation take."""

    __slots__ = ("clear", "data", "propagation", "recursive", "recursive_set", "set")

    def __init__(self, options: list[str]) -> None:
        self.set = self.clear = self.recursive_set = 0
        self.recursive = "rbind" in options
        self.data: list[tuple[str, str]] = []
        self.propagation: list[tuple[int, bool]] = []
        for option in options:
            if option in _ATTRIBUTES:
                self.set |= _ATTRIBUTES[option]
                self.clear &= ~_ATTRIBUTES[option]
            elif option in _CLEARS:
                self.clear |= _CLEARS[option]
                self.set &= ~_CLEARS[option]
            elif option in _RECURSIVE:
                self.recursive_set |= _ATTRIBUTES[_RECURSIVE[option]]
            elif option in _PROPAGATION:
                self.propagation.append(_PROPAGATION[option])
            elif option not in _IGNORED:
                key, _, value = option.partition("=")
                self.data.append((key, value))
        if self.set & libc.MOUNT_ATTR__ATIME:
            self.clear |= libc.MOUNT_ATTR__ATIME  # mount_setattr(2): atime bits are changed as one field

    def apply(self, fd: int) -> None:
        """To an attached or detached mount of ours."""
        if self.set or self.clear:
            libc.mount_setattr(fd, self.set, self.clear)
        if self.recursive_set:
            libc.mount_setattr(fd, self.recursive_set, recursive=True)
        for kind, recursive in self.propagation:
            libc.mount_setattr(fd, propagation=kind, recursive=recursive)


def place(root: int, target: str, *, directory: bool, links: int = 40) -> int:
    """An O_PATH descriptor of `target` inside `root`, made if missing (directories 0755, an empty file 0644).

    What a dangling symlink names is made too, inside the root as well (an image's resolv.conf -> ../run/...): at most
    `links` of them. OSError EEXIST or ENOTDIR if something of another kind is in the way.
    """
    kind = os.O_DIRECTORY if directory else 0
    with suppress(FileNotFoundError):
        return libc.open_in_root(root, target, os.O_PATH | kind)
    parts = [part for part in target.split("/") if part not in ("", ".")]
    current, walked = os.dup(root), ""
    try:
        for index, part in enumerate(parts):
            parent, walked, rest = walked, f"{walked}/{part}", parts[index + 1 :]
            wanted = os.O_DIRECTORY if directory or rest else 0
            try:
                step = libc.open_in_root(root, walked, os.O_PATH | wanted)
            except FileNotFoundError:
                # `current` is the resolved parent: whatever this name is by now, it is made there or not at all
                if links and (link := _link(current, part)):
                    aim = "/".join((link if link[0] == "/" else f"{parent}/{link}", *rest))
                    return place(root, aim, directory=directory, links=links - 1)
                if wanted:
                    os.mkdir(part, 0o755, dir_fd=current)
                else:
                    flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_WRONLY
                    os.close(os.open(part, flags, 0o644, dir_fd=current))
                step = libc.openat2(current, part, os.O_PATH | os.O_NOFOLLOW | wanted)
            os.close(current)
            current = step
        return os.dup(current)
    finally:
        os.close(current)


def _link(directory: int, name: str) -> str:
    """What a symlink points to; "" for anything else."""
    with suppress(OSError):
        return os.readlink(name, dir_fd=directory)
    return ""


def _existing(root: int, target: str) -> int:
    """An O_PATH descriptor; -1 if there is no such path."""
    try:
        return libc.open_in_root(root, target, os.O_PATH)
    except OSError as error:
        if error.errno in (ENOENT, ENOTDIR):
            return -1
        raise


def _attach(at: Place, mounted: int, target: str, *, directory: bool = True) -> None:
    spot = place(at.root, target, directory=directory)
    try:
        libc.move_mount(mounted, spot)
    finally:
        os.close(spot)


class Fresh(Op):
    """A new file system instance: proc, sysfs, tmpfs, devpts, mqueue, cgroup2."""

    __slots__ = ("flags", "fstype", "source")

    def __init__(self, target: str, fstype: str, source: str, options: list[str]) -> None:
        super().__init__(target)
        self.fstype = fstype
        self.source = source
        self.flags = Flags(options)

    def describe(self) -> str:
        return f"mount a new {self.fstype} at {self.target}"

    def perform(self, at: Place) -> None:
        if self.fstype in ("proc", "sysfs"):
            _refuse_symlink(at.root, self.target, self.fstype)
        context = libc.fsopen(self.fstype)
        try:
            if self.source:
                libc.fsconfig_set_string(context, "source", self.source)
            for key, value in self.flags.data:
                if value:
                    libc.fsconfig_set_string(context, key, value)
                else:
                    libc.fsconfig_set_flag(context, key)
            libc.fsconfig_create(context)
            mounted = libc.fsmount(context, self.flags.set)
        finally:
            os.close(context)
        if self.fstype == "proc" and at.proc < 0:
            at.proc = os.dup(mounted)
        _attach(at, mounted, self.target)
        for kind, recursive in self.flags.propagation:
            libc.mount_setattr(mounted, propagation=kind, recursive=recursive)
        os.close(mounted)


def _refuse_symlink(root: int, target: str, fstype: str) -> None:
    """A procfs behind a symlink would leave /proc itself to the image (CVE-2019-19921, CVE-2023-27561)."""
    try:
        os.close(libc.open_in_root(root, target, os.O_PATH, resolve=libc.RESOLVE_NO_SYMLINKS))
    except FileNotFoundError:
        pass
    except OSError:
        raise OSError(ENOTDIR, f"file system {fstype} must be mounted on an ordinary directory", target) from None


class Bind(Op):
    """A host file or directory shown inside."""

    __slots__ = ("flags", "source")

    def __init__(self, target: str, source: str, options: list[str]) -> None:
        super().__init__(target)
        self.source = source
        self.flags = Flags(options)

    def describe(self) -> str:
        return f"bind {self.source} at {self.target}"

    def perform(self, at: Place) -> None:
        flags = libc.OPEN_TREE_CLONE | (libc.AT_RECURSIVE if self.flags.recursive else 0)
        parts = self.source.split("/", 4)  # "/proc/<pid>/root/<path>": another container's, for --ipc container:x
        if len(parts) == 5 and (parts[1], parts[3]) == ("proc", "root"):
            tree = _borrow(parts[2], parts[4])
        else:
            tree = libc.open_tree(libc.AT_FDCWD, self.source, flags)
        try:
            directory = stat.S_ISDIR(os.fstat(tree).st_mode)
            _attach(at, tree, self.target, directory=directory)
            self.flags.apply(tree)
        finally:
            os.close(tree)


def _borrow(pid: str, path: str) -> int:
    """A detached copy of a mount in the namespace of `pid`, found by that process's own root (N1).

    The kernel clones mounts of one's own namespace only, so it is entered for a moment (open_tree(2), EINVAL).
    """
    ours = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    theirs = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    libc.setns(theirs, libc.CLONE_NEWNS)
    try:
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        spot = libc.open_in_root(root, path, os.O_PATH)
        os.close(root)
        tree = libc.open_tree(spot, "", libc.OPEN_TREE_CLONE | libc.AT_EMPTY_PATH)
        os.close(spot)
    finally:
        libc.setns(ours, libc.CLONE_NEWNS)
        os.close(ours)
        os.close(theirs)
    return tree


class Devices(Op):
    """The default nodes and links of /dev, in the tmpfs just mounted there."""

    __slots__ = ()

    def perform(self, at: Place) -> None:
        dev = place(at.root, self.target, directory=True)
        try:
            for name, major, minor in _NODES:
                _node(dev, name, stat.S_IFCHR | 0o666, os.makedev(major, minor), f"/dev/{name}")
            for name, points_to in _LINKS:
                with suppress(FileExistsError):
                    os.symlink(points_to, name, dir_fd=dev)
            at.null = _null(dev)
        finally:
            os.close(dev)


def _null(directory: int) -> int:
    """The null device in `directory`. OSError EEXIST if what has its name is none."""
    fd = libc.openat2(directory, "null", os.O_PATH | os.O_NOFOLLOW)
    found = os.fstat(fd)
    if not stat.S_ISCHR(found.st_mode) or found.st_rdev != os.makedev(1, 3):
        raise OSError(EEXIST, "what is there is not the null device", "/dev/null")
    return fd


def _node(directory: int, name: str, mode: int, device: int, host: str) -> bool:
    """mknod, or where that is forbidden (user namespace) a bind of the host's node. Whether it was made here."""
    try:
        os.mknod(name, mode, device, dir_fd=directory)  # umask is 0
    except FileExistsError:
        return False
    except PermissionError:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=directory))
        spot = libc.openat2(directory, name, os.O_PATH | os.O_NOFOLLOW)
        tree = libc.open_tree(libc.AT_FDCWD, host, libc.OPEN_TREE_CLONE)
        libc.move_mount(tree, spot)
        os.close(tree)
        os.close(spot)
    return True


class Device(Op):
    """One node of linux.devices."""

    __slots__ = ("gid", "mode", "number", "uid")

    def __init__(self, entry: Mapping[str, Any]) -> None:
        super().__init__(str(entry["path"]))
        kind = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}[entry["type"]]
        self.mode = kind | int(entry.get("fileMode") or 0o666)
        self.number = os.makedev(int(entry.get("major", 0)), int(entry.get("minor", 0)))
        self.uid, self.gid = int(entry.get("uid") or 0), int(entry.get("gid") or 0)

    def perform(self, at: Place) -> None:
        parent, _, name = self.target.rpartition("/")
        directory = place(at.root, parent or "/", directory=True)
        try:
            if _node(directory, name, self.mode, self.number, self.target):
                os.chown(name, self.uid, self.gid, dir_fd=directory, follow_symlinks=False)
        finally:
            os.close(directory)


class Mask(Op):
    """Hide a path: a file under our null device, a directory under an empty read-only tmpfs. Absent is fine."""

    __slots__ = ()

    def perform(self, at: Place) -> None:
        spot = _existing(at.root, self.target)
        if spot < 0:
            return
        try:
            if stat.S_ISDIR(os.fstat(spot).st_mode):
                context = libc.fsopen("tmpfs")
                libc.fsconfig_set_string(context, "nr_blocks", "1")
                libc.fsconfig_set_string(context, "nr_inodes", "1")
                libc.fsconfig_create(context)
                cover = libc.fsmount(context, libc.MOUNT_ATTR_RDONLY)
                os.close(context)
            else:
                if at.null < 0:  # /dev is the user's bind, and the null device in it is the only one at hand
                    dev = libc.open_in_root(at.root, "/dev", os.O_PATH | os.O_DIRECTORY)
                    at.null = _null(dev)
                    os.close(dev)
                cover = libc.open_tree(at.null, "", libc.OPEN_TREE_CLONE | libc.AT_EMPTY_PATH)
            libc.move_mount(cover, spot)
            os.close(cover)
        finally:
            os.close(spot)


class ReadOnly(Op):
    """Make a path read-only by a bind of itself. Absent is fine."""

    __slots__ = ()

    def perform(self, at: Place) -> None:
        spot = _existing(at.root, self.target)
        if spot < 0:
            return
        flags = libc.OPEN_TREE_CLONE | libc.AT_EMPTY_PATH | libc.AT_RECURSIVE
        tree = libc.open_tree(spot, "", flags)
        libc.mount_setattr(tree, libc.MOUNT_ATTR_RDONLY, recursive=True)
        libc.move_mount(tree, spot)
        os.close(tree)
        os.close(spot)


class Directory(Op):
    """A directory that must exist: the working directory."""

    __slots__ = ()

    def perform(self, at: Place) -> None:
        os.close(place(at.root, self.target, directory=True))


class Marker(Op):
    """An empty executable file that programs look for: /.dockerenv. What the image has there is left alone."""

    __slots__ = ()

    def perform(self, at: Place) -> None:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW
        with suppress(FileExistsError):
            os.close(libc.open_in_root(at.root, self.target, flags, 0o755))


def overlay(layers: Mapping[str, Any], target: str) -> int:
    """Mount bundle.rootfs {"lower", "upper", "work"} at the host directory `target`. Descriptor of the mount.

    Layers are passed one by one (lowerdir+, Linux 6.5): mount(2) cuts its options at one page without a word, which
    with 200 layers would drop the last ones. On older kernels they are named relative to their common directory, and
    what does not fit a page is refused.
    """
    lower, upper = list(layers["lower"]), layers.get("upper")
    try:
        context = libc.fsopen("overlay")
    except OSError as error:
        raise OSError(error.errno, "this kernel has no overlay file system (CONFIG_OVERLAY_FS)") from None
    try:
        for path in lower:
            libc.fsconfig_set_string(context, "lowerdir+", path)
        if upper:
            libc.fsconfig_set_string(context, "upperdir", upper)
            libc.fsconfig_set_string(context, "workdir", layers["work"])
        libc.fsconfig_set_string(context, "source", "overlay")
        libc.fsconfig_create(context)
        mounted = libc.fsmount(context)
    except OSError as error:
        # EINVAL for an unknown word comes at once from 6.5 on, but before (legacy_parse_param) only from CREATE,
        # E2BIG/EINVAL when the words together exceed a page.
        if error.errno != EINVAL:
            raise
        return _overlay_by_page(layers, target)
    finally:
        os.close(context)
    spot = os.open(target, os.O_PATH | os.O_CLOEXEC)
    libc.move_mount(mounted, spot)
    os.close(spot)
    return mounted


def _overlay_by_page(layers: Mapping[str, Any], target: str) -> int:
    """mount(2) with names relative to the directory all layers share. OSError E2BIG above a page."""
    paths = [*layers["lower"], *([layers["upper"], layers["work"]] if layers.get("upper") else [])]
    common = os.path.commonpath(paths)
    short = [os.path.relpath(path, common) for path in paths]
    count = len(layers["lower"])
    data = "lowerdir=" + ":".join(short[:count])
    if layers.get("upper"):
        data += f",upperdir={short[count]},workdir={short[count + 1]}"
    if len(data) > 4095:
        raise OSError(E2BIG, f"{count} layers do not fit one page of mount options; Linux 6.5 or later takes them")
    os.chdir(common)
    libc.mount("overlay", target, "overlay", 0, data)
    return os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _mount(entry: Mapping[str, Any], leaf: list[tuple[str, str]]) -> list[Op]:
    target, fstype, source = entry["destination"], entry.get("type") or "bind", entry.get("source", "")
    options = list(entry.get("options") or [])
    if fstype == "cgroup":
        return _cgroup(target, options, leaf)
    if fstype in ("bind", "none", "") or "bind" in options or "rbind" in options:
        return [Bind(target, source, options)]
    steps: list[Op] = [Fresh(target, fstype, source or fstype, options)]
    if target == "/dev" and fstype == "tmpfs":
        steps.append(Devices(target))
    return steps


def _cgroup(target: str, options: list[str], leaf: list[tuple[str, str]]) -> list[Op]:
    """The container's own leaf and nothing above it: v2 as it is, v1 one directory per controller in a tmpfs."""
    options = [option for option in options if option != "rbind"]
    if len(leaf) == 1 and not leaf[0][0]:
        return [Bind(target, leaf[0][1], options)]
    cover = [option for option in options if option != "ro"]
    steps: list[Op] = [Fresh(target, "tmpfs", "tmpfs", [*cover, "mode=755"])]
    return steps + [Bind(f"{target}/{name}", directory, options) for name, directory in leaf]


def ops(oci: Mapping[str, Any], leaf: list[tuple[str, str]], *, init: str = "", dockerenv: bool = False) -> list[Op]:
    """The whole list in order: mounts as given, devices, further files, then read-only and masked paths last.

    `leaf`: cgroups.api.Cgroup.mounts() of this container. `init`: host path of the reaper bound at /sbin/docker-init.
    """
    linux = oci.get("linux") or {}
    steps: list[Op] = []
    for entry in oci.get("mounts") or []:
        steps += _mount(entry, leaf)
    # A bound /dev is the user's, perhaps the host's own: nothing is made in it
    if not any(isinstance(step, Bind) and step.target == "/dev" for step in steps):
        steps += [Device(entry) for entry in linux.get("devices") or []]
    if dockerenv:
        steps.append(Marker("/.dockerenv"))
    if init:
        steps.append(Bind("/sbin/docker-init", init, ["ro", "nosuid", "nodev"]))
    cwd = (oci.get("process") or {}).get("cwd") or "/"
    if cwd != "/":
        steps.append(Directory(cwd))
    steps += [ReadOnly(path) for path in linux.get("readonlyPaths") or []]
    steps += [Mask(path) for path in linux.get("maskedPaths") or []]
    return steps
