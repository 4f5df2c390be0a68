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

from tare.cgroups import api as cgroups
from tare.linux import clone, libc
from tare.linux.fds import Channel
from tare.runtime import enter, init, seal, shim

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["freeze", "main", "serve"]


def freeze() -> None:
    """End of warm-up: nothing can be imported any more, and the pages of what was are shared for good.

    Rule 2: after pivot_root an import would be looked up in the image and run as the host's root (M11). Rule 7: a
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
    """Until the daemon's end of file: keep one child ahead that waits for a job, so that a start needs no fork.

    The child takes its job from `jobs` itself, and this process does next to nothing in between: every page that it
    wrote to would be one that its children no longer share (with a zygote that passes jobs on, 0.5 MB more each).
    """
    while True:
        taken, waiting = os.pipe2(os.O_CLOEXEC)
        if clone.fork() == 0:
            os.close(taken)
            _child(jobs, hierarchy, waiting)
        os.close(waiting)
        os.read(taken, 1)  # end of file: the child has its job, or is gone
        os.close(taken)
        if jobs.ended():
            return


def _child(jobs: Channel, hierarchy: cgroups.Hierarchy, waiting: int) -> NoReturn:
    """Wait for one job and become it. Without the zygote nobody would see that this child is the last: it goes too."""
    try:
        libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
        received = jobs.recv()
        libc.prctl(libc.PR_SET_PDEATHSIG, 0)
        if received is None:
            os._exit(0)
        os.close(waiting)
        jobs.close()
        os.setsid()
        _signal.signal(signal.SIGCHLD, _signal.SIG_DFL)
        message, fds = received
        control = Channel.from_fd(fds[0])
        clients = list(zip(message.get("attach") or [], fds[1:], strict=True))
        if message["type"] == "run":
            shim.main(hierarchy, message["dir"], control, clients)
        elif message["type"] == "exec":
            enter.main(hierarchy, message["dir"], message["process"], control, clients)
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
    jobs.send({"type": "ready", "pid": os.getpid()})
    serve(jobs, hierarchy)


if __name__ == "__main__":
    if not seal.is_sealed():
        seal.reexec(["-I", "-S", *sys.argv])
    main(int(sys.argv[1]))
