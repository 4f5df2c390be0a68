"""From a bundle to a process that waits at its gate: cgroup, namespaces, id maps. Host root, one thread.

Shared by the shim and by `tare-oci create`: what starts the user's program is one byte on the gate, wherever that comes
from. The caller owns the descriptors it passes; the child gets copies by being cloned.
"""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress
from errno import EBADF, EBUSY, EINVAL, ENOSYS, EOPNOTSUPP

from tare.cgroups import api as cgroups
from tare.linux import clone, libc, proc
from tare.linux.fds import Channel

from . import init

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = ["NAMESPACES", "Launched", "Stdio", "abandon", "born_in", "keep_only", "launch", "read_bpf"]

NAMESPACES = {
    "user": libc.CLONE_NEWUSER,
    "mount": libc.CLONE_NEWNS,
    "pid": libc.CLONE_NEWPID,
    "network": libc.CLONE_NEWNET,
    "ipc": libc.CLONE_NEWIPC,
    "uts": libc.CLONE_NEWUTS,
    "cgroup": libc.CLONE_NEWCGROUP,
    "time": libc.CLONE_NEWTIME,
}
"""OCI linux.namespaces[].type -> clone(2) flag, user first: the others are owned by it."""


class Stdio:
    """0, 1, 2 of the container as descriptors of the caller; `tty` carries the master back, if there is to be one."""

    __slots__ = ("stderr", "stdin", "stdout", "tty")

    def __init__(self, stdin: int, stdout: int, stderr: int, tty: Channel | None = None) -> None:
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.tty = tty


class Launched:
    """A child at its gate. `pidfd` is the caller's to close."""

    __slots__ = ("cgroup", "pid", "pidfd", "warnings")

    def __init__(self, pid: int, pidfd: int, cgroup: cgroups.Cgroup, warnings: list[str]) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.cgroup = cgroup
        self.warnings = warnings


def abandon(launched: Launched) -> None:
    """Undo a launch whose program never started."""
    with suppress(OSError):
        signal.pidfd_send_signal(launched.pidfd, signal.SIGKILL)
    poll = select.poll()
    poll.register(launched.pidfd, select.POLLIN)
    poll.poll(10_000)
    with suppress(OSError):  # ECHILD: a sibling's parent reaps it
        os.waitid(os.P_PIDFD, launched.pidfd, os.WEXITED)
    with suppress(OSError):
        launched.cgroup.delete()


def read_bpf(path: str) -> bytes:
    """The compiled filter, read while names still mean the host's files."""
    if not path:
        return b""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1 << 20)
    finally:
        os.close(fd)


def launch(
    bundle: Mapping[str, Any],
    hierarchy: cgroups.Hierarchy,
    *,
    gate: int,
    status: int,
    stdio: Stdio,
    notify_gate: bool = False,
    sibling: bool = False,
) -> Launched:
    """Make the cgroup and clone init into it. OSError with the step in its text; nothing is left behind then.

    `gate`: read end that lets the program start; `status`: write end of a pipe for init's report (init.fail);
    `sibling`: init becomes our parent's child, which then waits for it.
    """
    linux = bundle["oci"].get("linux") or {}
    namespaces = {n["type"]: n.get("path") or "" for n in linux.get("namespaces") or []}
    bpf = read_bpf(bundle.get("bpf") or "")
    cgroup = hierarchy.cgroup(bundle["cgroup"])
    warnings = cgroup.create(linux.get("resources") or {})
    early: tuple[int, int] | None = None
    joins: list[tuple[int, int]] = []
    try:
        flags = _flags(namespaces) | (libc.CLONE_PARENT if sibling else 0)
        if flags & libc.CLONE_NEWUSER:
            early = os.pipe2(os.O_CLOEXEC)
        _before_clone(namespaces, linux)
        joins = _open_joins(namespaces)
        pid, pidfd, placed = born_in(flags & ~libc.CLONE_NEWCGROUP, cgroup)
        if pid == 0:
            # Nothing of the parent's frames is used again on this side.
            keep_only(
                0, 1, 2, gate, status, stdio.stdin, stdio.stdout, stdio.stderr, *(fd for fd, _ in joins),
                *(early or ()), *([stdio.tty.fileno()] if stdio.tty else []),
            )  # fmt: skip
            try:
                for fd, flag in joins:
                    libc.setns(fd, flag)
            except OSError as error:
                init.fail(status, "join a namespace", error)
            if early:
                os.close(early[1])
            init.main(
                init.Context(
                    bundle, bpf=bpf, cgroup=cgroup, placed=placed, gate=gate, early=early[0] if early else -1,
                    status=status, stdio=(stdio.stdin, stdio.stdout, stdio.stderr), tty=stdio.tty,
                    notify_gate=notify_gate,
                )
            )  # fmt: skip
    except BaseException:
        with suppress(OSError):
            cgroup.delete()
        raise
    finally:
        for fd, _ in joins:
            os.close(fd)
        if early:
            os.close(early[0])
    try:
        if early:
            cgroup.attach(pid)  # without rights on the host, init cannot enter it itself
            _write_maps(pid, linux)
            os.write(early[1], b"\n")
    except BaseException:
        abandon(Launched(pid, pidfd, cgroup, []))
        raise
    finally:
        if early:
            os.close(early[1])
    return Launched(pid, pidfd, cgroup, warnings)


def keep_only(*keep: int) -> None:
    """Close every other descriptor: a copy of the gate's write end, of the daemon's socket or of the shim's would keep
    its other side from ever seeing an end of file (N4)."""
    first = 0
    for fd in sorted(set(keep)):
        if fd > first:
            libc.close_range(first, fd - 1)
        first = fd + 1
    libc.close_range(first)


def _flags(namespaces: Mapping[str, str]) -> int:
    """New namespaces; time is entered by unshare (offsets must be written first), mount is always new."""
    flags = libc.CLONE_NEWNS
    for kind, path in namespaces.items():
        if not path and kind != "time":
            flags |= NAMESPACES[kind]
    return flags


def _before_clone(namespaces: Mapping[str, str], linux: Mapping[str, Any]) -> None:
    """pid and time namespaces take effect for children only: setns(2), time_namespaces(7)."""
    if namespaces.get("pid"):
        fd = os.open(namespaces["pid"], os.O_RDONLY | os.O_CLOEXEC)
        try:
            libc.setns(fd, libc.CLONE_NEWPID)
        finally:
            os.close(fd)
    if "time" in namespaces and not namespaces["time"]:
        libc.unshare(libc.CLONE_NEWTIME)
        offsets = linux.get("timeOffsets") or {}
        lines = [f"{clock} {o.get('secs', 0)} {o.get('nanosecs', 0)}\n" for clock, o in offsets.items()]
        if lines:
            proc.write("/proc/self/timens_offsets", "".join(lines).encode())


def _open_joins(namespaces: Mapping[str, str]) -> list[tuple[int, int]]:
    kinds = [kind for kind in NAMESPACES if kind not in ("pid", "mount") and namespaces.get(kind)]
    return [(os.open(namespaces[kind], os.O_RDONLY | os.O_CLOEXEC), NAMESPACES[kind]) for kind in kinds]


def born_in(flags: int, cgroup: cgroups.Cgroup) -> tuple[int, int, bool]:
    """(pid, pidfd, born in the cgroup): at once where the kernel can, else init enters by itself."""
    fd = cgroup.fd()
    if fd is not None:
        try:
            return *clone.clone3(flags, fd), True
        except OSError as error:
            if error.errno not in (EBADF, EBUSY, EINVAL, ENOSYS, EOPNOTSUPP):
                raise
        finally:
            os.close(fd)
    return *clone.clone3(flags), False


def _write_maps(pid: int, linux: Mapping[str, Any]) -> None:
    for name, key in (("uid_map", "uidMappings"), ("gid_map", "gidMappings")):
        lines = [f"{m['containerID']} {m['hostID']} {m['size']}\n" for m in linux.get(key) or []]
        # one write per file, user_namespaces(7)
        proc.write(f"/proc/{pid}/{name}", "".join(lines).encode())
