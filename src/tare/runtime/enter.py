"""A further process in a running container (docker exec).

The starter joins the container's pid namespace for its child only and stays outside of everything; the child joins the
rest through a pidfd, so that a recycled pid cannot be entered, and then walks the last steps of init. Host root until
`security.become`; the same rules as init: nothing is imported or looked up by NSS after setns (rule 2).
"""

from __future__ import annotations

import os
from contextlib import suppress
from errno import ESRCH

from tare.cgroups import api as cgroups
from tare.linux import libc, passwd, proc, pty
from tare.linux.fds import Channel

from . import init
from .launch import Stdio, born_in, keep_only, read_bpf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

__all__ = ["open_container", "spawn"]

_ALL = (
    libc.CLONE_NEWNS | libc.CLONE_NEWIPC | libc.CLONE_NEWUTS | libc.CLONE_NEWNET | libc.CLONE_NEWCGROUP
)  # fmt: skip


def open_container(pid: int, started: int) -> int:
    """A pidfd of exactly that process: opened first, then compared by start time (crun, libcrun_kill_linux)."""
    pidfd = os.pidfd_open(pid)
    try:
        if proc.start_time(pid) != started:
            raise ProcessLookupError(ESRCH, f"process {pid} is not the container's any more")
    except BaseException:
        os.close(pidfd)
        raise
    return pidfd


def _namespaces(pid: int) -> int:
    """CLONE_NEW* of what differs from ours: joining one's own user namespace is refused (setns(2), EINVAL)."""
    flags = _ALL
    ours, theirs = os.stat("/proc/self/ns/user"), os.stat(f"/proc/{pid}/ns/user")
    if ours.st_ino != theirs.st_ino:
        flags |= libc.CLONE_NEWUSER
    return flags


def spawn(
    container: int,
    pid: int,
    process: dict[str, Any],
    cgroup: cgroups.Cgroup,
    stdio: Stdio,
    name: str,
    *,
    sibling: bool = False,
) -> tuple[int, int, int]:
    """Clone the entering child: (pid, pidfd, read end of its status pipe). `stdio` stays the caller's to close."""
    flags = _namespaces(pid)
    bpf = read_bpf(process.get("bpf") or "")
    status, their_status = os.pipe2(os.O_CLOEXEC)
    libc.setns(container, libc.CLONE_NEWPID)
    # Entering a v2 leaf later would wait for an RCU grace period: up to 10 ms (cgroup_procs_write_start)
    child, pidfd, placed = born_in(libc.CLONE_PARENT if sibling else 0, cgroup)
    if child == 0:
        _child(container, flags, process, bpf, cgroup, their_status, stdio, name, placed)
    os.close(their_status)
    return child, pidfd, status


def _child(
    container: int,
    flags: int,
    process: dict[str, Any],
    bpf: bytes,
    cgroup: cgroups.Cgroup,
    status: int,
    stdio: Stdio,
    name: str,
    placed: bool,
) -> NoReturn:
    step = "enter the container"
    tty = stdio.tty.fileno() if stdio.tty else 0
    keep_only(0, 1, 2, container, status, stdio.stdin, stdio.stdout, stdio.stderr, tty)
    try:
        cgroup.enter(placed=placed)
        if process.get("oom_score_adj") is not None:
            with suppress(PermissionError):  # before setns: /proc is still the host's (N2)
                proc.write("/proc/self/oom_score_adj", str(process["oom_score_adj"]).encode())
        os.setsid()
        libc.setns(container, flags)  # also makes the container's root ours: setns(2)
        if flags & libc.CLONE_NEWUSER:
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
        root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        step = "resolve the user"
        identity = passwd.resolve_user(root, process.get("user") or "", list(process.get("groups") or []))
        environment = init.environment(process, identity.home)
        step = "open the terminal"
        streams = (stdio.stdin, stdio.stdout, stdio.stderr)
        if stdio.tty is not None:
            slave = _terminal(root, process, stdio.tty)
            streams = (slave, slave, slave)
        os.close(root)
    except BaseException as error:
        init.fail(status, step, error)
    init.execute(
        _oci(process), list(process["args"]), environment, identity,
        bpf=bpf, stdio=streams, status=status, keyring=name,
    )  # fmt: skip


def _oci(process: dict[str, Any]) -> dict[str, Any]:
    """EXEC's spelling -> OCI's process, as far as `init.execute` reads it."""
    return {
        "capabilities": process.get("capabilities") or {},
        "noNewPrivileges": process.get("no_new_privileges", False),
        "rlimits": process.get("rlimits") or [],
        "cwd": process.get("cwd") or "/",
    }


def _terminal(root: int, process: dict[str, Any], channel: Channel) -> int:
    master, slave = pty.open_pair(root, process.get("rows") or 0, process.get("columns") or 0)
    channel.send({"type": "terminal"}, [master])
    os.close(master)
    pty.set_controlling(slave)
    return slave
