"""The only place that makes processes without exec: fork and clone3 from a single-threaded interpreter.

The interpreter must be told (PyOS_*Fork) as os.fork would, and the lock must be held across the call, hence PyDLL.
A threaded caller is refused: the child would inherit locks that nobody releases, and the kernel refuses user
namespaces to it anyway (EINVAL, clone(2)).
"""

from __future__ import annotations

import ctypes
import os
from errno import EINVAL, ENOSYS, EPERM
from signal import SIGCHLD
from struct import pack

from . import libc

__all__ = ["clone3", "fork"]

_NR_CLONE3 = 435
_NR_CLONE = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
_before, _parent, _child = (
    ctypes.pythonapi.PyOS_BeforeFork,
    ctypes.pythonapi.PyOS_AfterFork_Parent,
    ctypes.pythonapi.PyOS_AfterFork_Child,
)
for _function in (_before, _parent, _child):
    _function.restype = None
_pidfd = ctypes.c_int(-1)
_pidfd_address = ctypes.addressof(_pidfd)


def _assert_single_threaded() -> None:
    """Rule 1 of the fork path; RuntimeError otherwise."""
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise RuntimeError(f"refusing to fork a process with {threads} threads")


def fork() -> int:
    """os.fork for callers that hold the one-thread rule: pid in the parent, 0 in the child."""
    return os.fork()


def clone3(flags: int, cgroup: int | None = None) -> tuple[int, int]:
    """A child in new namespaces by one system call: (pid, pidfd) in the parent, (0, -1) in the child.

    `flags`: CLONE_NEW*, CLONE_PARENT; `cgroup`: descriptor of a cgroup v2 directory the child is born in. Where a
    seccomp filter around us answers ENOSYS (containers do), the older clone(2) is used; it takes no cgroup. OSError;
    RuntimeError for a caller with threads.
    """
    _assert_single_threaded()
    flags |= libc.CLONE_PIDFD
    into = 0
    if cgroup is not None:
        flags |= libc.CLONE_INTO_CGROUP
        into = cgroup
    # struct clone_args, 88 bytes: flags pidfd child_tid parent_tid exit_signal stack stack_size tls set_tid
    # set_tid_size cgroup. A sibling's exit signal is that of our own leader and must be 0 here.
    signal = 0 if flags & libc.CLONE_PARENT else SIGCHLD
    arguments = pack("11Q", flags, _pidfd_address, 0, 0, signal, 0, 0, 0, 0, 0, into)
    _before()
    try:
        pid = libc.syscall("clone3", _NR_CLONE3, arguments, len(arguments))
    except OSError as error:
        if error.errno not in (ENOSYS, EPERM, EINVAL) or cgroup is not None:
            _parent()
            raise
        try:
            pid = _clone(flags)
        except OSError:
            _parent()
            raise
    if pid == 0:
        _child()
        return 0, -1
    _parent()
    return pid, _pidfd.value


def _clone(flags: int) -> int:
    """clone(2) without a stack behaves as fork; CLONE_PIDFD stores through parent_tid."""
    return libc.syscall("clone", _NR_CLONE, flags | SIGCHLD, 0, _pidfd_address, 0, 0)
