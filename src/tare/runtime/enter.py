"""A further process in a running container (docker exec): a zygote child that monitors, and its child that enters.

The monitor joins the container's pid namespace for its child only and stays outside of everything; the child joins the
rest through a pidfd, so that a recycled pid cannot be entered, and then walks the last steps of init. Host root until
`security.become`; the same rules as init: nothing is imported or looked up by NSS after setns (rule 2).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from errno import ESRCH

from tare.cgroups import api as cgroups
from tare.linux import clone, libc, proc, pty
from tare.linux.fds import Channel

from . import init, security
from .launch import read_bpf
from .logfile import NoLog
from .shim import Pipes, await_start, exit_status, failure, report_failure, supervise

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

__all__ = ["main", "open_container", "spawn"]

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
    container: int, pid: int, process: dict[str, Any], cgroup: cgroups.Cgroup, pipes: Pipes, name: str
) -> tuple[int, int, int]:
    """Clone the entering child: (pid, pidfd, read end of its status pipe)."""
    flags = _namespaces(pid)
    bpf = read_bpf(process.get("bpf") or "")
    status, their_status = os.pipe2(os.O_CLOEXEC)
    libc.setns(container, libc.CLONE_NEWPID)
    clone.assert_single_threaded()
    child, pidfd = clone.clone3(0)
    if child == 0:
        _child(container, flags, process, bpf, cgroup, their_status, pipes, name)
    os.close(their_status)
    pipes.close_theirs()
    return child, pidfd, status


def _child(
    container: int,
    flags: int,
    process: dict[str, Any],
    bpf: bytes,
    cgroup: cgroups.Cgroup,
    status: int,
    pipes: Pipes,
    name: str,
) -> NoReturn:
    step = "enter the container"
    try:
        cgroup.enter()
        os.setsid()
        libc.setns(container, flags)  # also makes the container's root ours: setns(2)
        if flags & libc.CLONE_NEWUSER:
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
        root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        step = "resolve the user"
        identity = security.resolve_user(root, process.get("user") or "", list(process.get("groups") or []))
        environment = init.environment(process, identity.home)
        step = "open the terminal"
        stdio = (pipes.stdio.stdin, pipes.stdio.stdout, pipes.stdio.stderr)
        if pipes.stdio.tty is not None:
            slave = _terminal(root, process, pipes.stdio.tty)
            stdio = (slave, slave, slave)
        os.close(root)
    except BaseException as error:
        init.fail(status, step, error)
    init.execute(
        _oci(process), list(process["args"]), environment, identity,
        bpf=bpf, stdio=stdio, status=status, keyring=name,
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
    master = libc.open_in_root(root, "dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY)
    pty.unlock(master)
    slave = pty.open_peer(master)
    if process.get("rows") and process.get("columns"):
        pty.set_size(slave, process["rows"], process["columns"])
    channel.send({"type": "terminal"}, [master])
    os.close(master)
    pty.set_controlling(slave)
    return slave


def main(
    hierarchy: cgroups.Hierarchy,
    directory: str,
    process: dict[str, Any],
    control: Channel,
    clients: Sequence[tuple[dict[str, Any], int]],
) -> NoReturn:
    """A forked child of the zygote becomes the monitor of one exec. Ends with it."""
    libc.set_name("tare-exec")
    step = "find the container"
    try:
        pid, started = (int(word) for word in proc.read(f"{directory}/pid").split())
        container = open_container(pid, started)
        step = "create the process"
        pipes = Pipes(tty=bool(process.get("tty")), stdin=bool(process.get("stdin")))
        cgroup = hierarchy.cgroup(process["cgroup"])
        child, pidfd, status = spawn(container, pid, process, cgroup, pipes, os.path.basename(directory))
        os.close(container)
        report = await_start(status)
        os.close(status)
        if report is not None:
            with suppress(OSError):
                os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            report_failure(control, report)
    except Exception as error:
        report_failure(control, failure(step, error))
    monitor = supervise(
        child, pidfd, pipes, control, clients, NoLog(), stdin_once=True, tty=bool(process.get("tty")), warnings=[]
    )
    monitor.run()
    exited = exit_status(pidfd)
    monitor.streams.drain(time.monotonic(), time.monotonic)
    monitor.tell({"type": "exited", **exited})
    monitor.finish()
    os._exit(0)
