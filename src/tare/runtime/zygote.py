"""A warm, sealed, single-threaded interpreter that forks shims and execs: it takes a job, forks, forgets.

Started by the daemon as `python -I -S zygote.py FD PACKAGE_ROOT`; lives and dies with it (end of file on FD). It keeps
nothing, so its death costs only the ability to start until the daemon has started another; shims do not notice.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # -I keeps the script's own directory off the path; the one entry that is needed comes as an argument.
    sys.path.insert(0, sys.argv[2])

import gc
import os
import signal
from contextlib import suppress

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
    """Until the daemon's end of file. A child is forked ahead and waits, so that a start does not wait for the fork."""
    spare = _spare(jobs, hierarchy)
    while True:
        try:
            received = jobs.recv()
        except ValueError:
            continue
        if received is None:
            return
        message, fds = received
        with suppress(OSError):  # no spare, or it was killed: closing the control socket below tells the daemon
            spare.send(message, fds)
        for fd in fds:
            os.close(fd)
        spare.close()
        spare = _spare(jobs, hierarchy)


def _spare(jobs: Channel, hierarchy: cgroups.Hierarchy) -> Channel:
    """Fork a child that takes one job from the channel returned; end of file on it ends the child."""
    ours, theirs = Channel.pair()
    with suppress(OSError):
        if clone.fork() == 0:
            ours.close()
            jobs.close()
            _child(theirs, hierarchy)
    theirs.close()
    return ours


def _child(job: Channel, hierarchy: cgroups.Hierarchy) -> NoReturn:
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        received = job.recv()
        job.close()
        if received is None:
            os._exit(0)
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
