"""A warm, sealed, single-threaded interpreter that forks shims and execs: it takes a job, forks, forgets.

Started by the daemon as `python -I -S zygote.py FD PACKAGE_ROOT`; lives and dies with it (end of file on FD). It keeps
nothing, so its death costs only the ability to start until the daemon has started another; shims do not notice.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # -I keeps the script's own directory off the path; the one entry that is needed comes as an argument.
    sys.path.insert(0, sys.argv[2])

import _signal  # type: ignore[import-not-found]  # signal wraps each call in enum look-ups
import gc
import os
import signal
import socket

from tare.cgroups import api as cgroups
from tare.linux import clone, libc
from tare.linux.fds import Channel
from tare.runtime import init, seal, shim, starter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["freeze", "main", "serve"]


def freeze() -> None:
    """End of warm-up: nothing can be imported any more, and the pages of what was are shared for good.

    Rule 2: after pivot_root an import would be looked up in the image and run as the host's root. Rule 7: a
    collection in a child would touch every object and un-share its page (2.0 against 0.75 MB per shim).
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    sys.path[:] = []
    sys.meta_path[:] = []
    sys.path_hooks[:] = []
    sys.path_importer_cache.clear()


def serve(jobs: Channel, hierarchy: cgroups.Hierarchy) -> None:
    """Until the daemon's end of file: keep a pair of children ahead that waits for a job, so that no start forks.

    The starter takes the job from `jobs` itself, and this process does next to nothing in between: every page that it
    wrote to would be one that its children no longer share (0.5 MB each, if it received and passed on the jobs).
    """
    while True:
        taken, waiting = os.pipe2(os.O_CLOEXEC)
        if clone.fork() == 0:
            os.close(taken)
            _child(jobs, hierarchy, waiting)
        os.close(waiting)
        os.read(taken, 1)  # end of file: the pair has its job, or is gone
        os.close(taken)
        if jobs.ended():
            return


def _child(jobs: Channel, hierarchy: cgroups.Hierarchy, waiting: int) -> NoReturn:
    """A shim and its starter. Until they have a job they die with the zygote: nobody would fork the next pair."""
    try:
        libc.prctl(libc.PR_SET_PDEATHSIG, _signal.SIGKILL)
        os.setsid()
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        pid = clone.fork()
        if pid == 0:
            ours.close()
            starter.main(jobs, hierarchy, waiting, theirs)
        os.close(waiting)
        jobs.close()
        theirs.close()
        shim.main(ours, pid, hierarchy)
    except BaseException:  # the outermost frame of this process: report and leave, never return into the loop
        sys.excepthook(*sys.exc_info())
    os._exit(70)


def main(fd: int) -> None:
    """Seal, warm up, say ready, serve."""
    libc.prctl(libc.PR_SET_DUMPABLE, 0)  # before any namespace is joined: /proc/<pid>/{exe,fd,mem} stay closed (N5)
    libc.set_name("tare-zygote")
    os.setsid()
    os.umask(0o077)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are nobody's here: the kernel reaps them
    init.reset_signals()
    os.set_inheritable(fd, False)
    jobs = Channel.from_fd(fd)
    hierarchy = cgroups.detect()
    freeze()
    try:
        jobs.send({"type": "ready", "pid": os.getpid()})
    except (BrokenPipeError, ConnectionResetError):
        return  # the daemon was killed meanwhile
    serve(jobs, hierarchy)


if __name__ == "__main__":
    if not seal.is_sealed():
        seal.reexec(["-I", "-S", *sys.argv])
    main(int(sys.argv[1]))
