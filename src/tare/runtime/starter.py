"""Takes one job, starts the process, hands it to its shim, and is gone: a forked child of the shim that waits.

Host root, one thread, blocking. The process that it clones is its sibling (CLONE_PARENT), so the shim is the one to
wait for it. Before Go a lost daemon undoes everything; after Go the container starts and its shim carries on.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from contextlib import suppress
from errno import EAGAIN, ECANCELED

from tare.cgroups import api as cgroups
from tare.linux import jsontext, libc, proc
from tare.linux.fds import Channel, send

from . import enter
from .launch import Launched, Stdio, abandon, launch
from .shim import write_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

__all__ = ["Pipes", "await_start", "main"]


class Pipes:
    """The three standard streams between a monitor and its process."""

    __slots__ = ("channel", "stdio", "tty", "_ours", "_sources", "_stdin")

    def __init__(self, *, tty: bool, stdin: bool) -> None:
        self.tty = tty
        self.channel: Channel | None = None
        self._sources: dict[int, int] = {}
        self._stdin = -1
        if tty:
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            self.channel, theirs = Channel.pair()
            self.stdio = Stdio(null, null, null, theirs)
            return
        if stdin:
            their_in, self._stdin = os.pipe2(os.O_CLOEXEC)
        else:
            their_in = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        out, their_out = os.pipe2(os.O_CLOEXEC)
        err, their_err = os.pipe2(os.O_CLOEXEC)
        self._sources = {out: 1, err: 2}
        self.stdio = Stdio(their_in, their_out, their_err)

    def close_theirs(self) -> None:
        for fd in {self.stdio.stdin, self.stdio.stdout, self.stdio.stderr}:
            os.close(fd)
        if self.stdio.tty:
            self.stdio.tty.close()

    def ours(self) -> tuple[dict[int, int], int]:
        """({descriptor: stream}, stdin or -1), once the process has started; a pty's master is both."""
        if self.channel is not None:
            received = self.channel.recv()
            if received is None or not received[1]:
                raise OSError(EAGAIN, "the terminal did not arrive")
            master = received[1][0]
            self.channel.close()
            return {master: 1}, master
        return self._sources, self._stdin


def await_start(status: int) -> dict[str, Any] | None:
    """Read init's report: None when execve closed it, else {step, errno, path, message}."""
    data = b""
    while chunk := os.read(status, 65536):
        data += chunk
    lines = data.splitlines()
    if not lines or lines == [b'{"at":"gate"}']:
        return {"step": "set up", "errno": 0, "path": "", "message": "the process was killed before it could start"}
    report = jsontext.loads(lines[-1] or b"{}")
    return report if "step" in report else None


def failure(step: str, error: BaseException) -> dict[str, Any]:
    """FAILED without its type for an error on our own side of the clone."""
    number = (error.errno or 0) if isinstance(error, OSError) else 0
    path = os.fsdecode(error.filename) if isinstance(error, OSError) and error.filename else ""
    text = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return {"step": step, "errno": number, "path": path, "message": text}


def main(jobs: Channel, hierarchy: cgroups.Hierarchy, waiting: int, wire: socket.socket) -> NoReturn:
    """Wait for a job from the daemon and do it. Without our shim there is nobody to start anything for."""
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    received = jobs.recv()
    if received is None:
        os._exit(0)
    wire.send(b"t")
    os.close(waiting)  # now the zygote forks the next pair
    jobs.close()
    message, fds = received
    control = Channel.from_fd(fds[0])
    job = Job(control, message["dir"], message.get("attach") or [], fds[1:], wire)
    try:
        if message["type"] == "run":
            job.run(hierarchy)
        elif message["type"] == "exec":
            job.execute(hierarchy, message["process"])
    except Refused as refused:
        report = refused.report
    except Exception as error:
        report = failure(job.step, error)
    else:
        os._exit(0)
    with suppress(OSError):
        control.send({"type": "failed", **report})
    os._exit(1)


class Refused(Exception):
    """init's own report of what went wrong."""

    def __init__(self, report: dict[str, Any]) -> None:
        super().__init__(report["message"])
        self.report = report


class Job:
    """One start: of a container or of an exec."""

    def __init__(
        self, control: Channel, directory: str, streams: list[dict[str, Any]], clients: list[int], wire: socket.socket
    ) -> None:
        self.control = control
        self.directory = directory
        self.streams = streams
        self.clients = clients
        self.wire = wire
        self.step = "read the bundle"
        self.mounts = -1

    def run(self, hierarchy: cgroups.Hierarchy) -> None:
        """Run: Ready, Go, Started."""
        with suppress(OSError):
            proc.write(f"/proc/{os.getppid()}/oom_score_adj", b"-998")
        bundle = jsontext.loads(proc.read(f"{self.directory}/bundle.json", 1 << 26))
        self.step = "listen"
        listener = self._listen()
        log = bundle.get("log") or {}
        if log.get("driver") == "json-file":
            self.step = "open the log"  # here, where a refusal still is an answer
            os.close(os.open(log["path"], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640))
        pipes = Pipes(tty=bool(bundle.get("tty")), stdin=bool(bundle.get("stdin")))
        gate, open_gate = os.pipe2(os.O_CLOEXEC)
        status, theirs = os.pipe2(os.O_CLOEXEC)
        self.step = "create the container process"
        launched = launch(bundle, hierarchy, gate=gate, status=theirs, stdio=pipes.stdio, sibling=True)
        os.close(gate)
        os.close(theirs)
        pipes.close_theirs()
        try:
            with suppress(OSError):  # init may have failed and gone already: its report says why
                self.mounts = os.open(f"/proc/{launched.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            start_time = self._go(launched, open_gate, status)
            sources, stdin = pipes.ours()
            oom = launched.cgroup.oom_fd()
        except BaseException:
            abandon(launched)
            raise
        self._hand_over(
            launched.pid, launched.pidfd, start_time, pipes.tty, bundle.get("stdin_once"), bundle["cgroup"], log,
            sources, stdin, launched.warnings, self.directory, listener, oom,
        )  # fmt: skip

    def _listen(self) -> int:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        there = os.open(self.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        listener.bind(f"/proc/self/fd/{there}/shim.sock")  # a socket's own name ends at 107 bytes, unix(7)
        os.close(there)
        listener.listen(8)
        shim = os.getppid()
        write_file(f"{self.directory}/shim", b"%d %d\n" % (shim, proc.start_time(shim)))
        return listener.detach()

    def _go(self, launched: Launched, gate: int, status: int) -> int:
        """Ready, wait for Go, open the gate, wait for execve. init's start time."""
        self.control.send({"type": "ready", "pid": launched.pid})
        poll = select.poll()
        poll.register(self.control.fileno(), select.POLLIN)
        poll.register(launched.pidfd, select.POLLIN)
        self.step = "wait for Go"
        if any(fd == self.control.fileno() for fd, _ in poll.poll()):
            received = self.control.recv()
            if received is None or received[0].get("type") != "go":
                raise OSError(ECANCELED, "the daemon went away")
        self.step = "start the container process"
        start_time = proc.start_time(launched.pid)
        write_file(f"{self.directory}/pid", b"%d %d\n" % (launched.pid, start_time))
        with suppress(BrokenPipeError):
            os.write(gate, b"\n")
        os.close(gate)
        report = await_start(status)
        os.close(status)
        if report is not None:
            raise Refused(report)
        return start_time

    def execute(self, hierarchy: cgroups.Hierarchy, process: dict[str, Any]) -> None:
        """Exec: Started, without Ready and Go."""
        self.step = "find the container"
        pid, started = (int(word) for word in proc.read(f"{self.directory}/pid").split())
        container = enter.open_container(pid, started)
        self.step = "create the process"
        pipes = Pipes(tty=bool(process.get("tty")), stdin=bool(process.get("stdin")))
        cgroup, name = hierarchy.cgroup(process["cgroup"]), os.path.basename(self.directory)
        child, pidfd, status = enter.spawn(container, pid, process, cgroup, pipes.stdio, name, sibling=True)
        pipes.close_theirs()
        poll = select.poll()
        poll.register(status, select.POLLIN)
        poll.register(self.control.fileno(), 0)  # hang-up only: who gave up waiting must not find it run later
        if all(fd != status for fd, _ in poll.poll()):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            raise OSError(ECANCELED, "the daemon went away")
        report = await_start(status)
        if report is not None:
            raise Refused(report)
        sources, stdin = pipes.ours()
        self._hand_over(
            child, pidfd, proc.start_time(child), pipes.tty, True, process["cgroup"], {}, sources, stdin, []
        )

    def _hand_over(
        self, pid: int, pidfd: int, start_time: int, tty: bool, once: bool | None, cgroup: str, log: dict[str, Any],
        sources: dict[int, int], stdin: int, warnings: list[str], directory: str = "", listener: int = -1,
        oom: int | None = None,
    ) -> None:  # fmt: skip
        """Tell the daemon, then give everything to the shim (shim.main reads it)."""
        now = time.time_ns()
        letters, fds = "pc", [pidfd, self.control.fileno()]
        for letter, fd in (("l", listener), ("o", oom), ("m", self.mounts), ("i", -1 if tty else stdin)):
            if fd is not None and fd >= 0:
                letters += letter
                fds.append(fd)
        for fd, stream in sources.items():
            letters += str(stream)
            fds.append(fd)
        letters += "a" * len(self.clients)
        fields = (
            letters, str(pid), str(start_time), str(now), "1" if tty else "", "1" if once else "", cgroup, directory,
            log.get("driver") or "none", log.get("path") or "", str(log.get("max_size") or 0),
            str(log.get("max_file") or 1), jsontext.dumps(self.streams) if self.clients else "",
        )  # fmt: skip
        started = {"type": "started", "pid": pid, "start_time": start_time, "time_ns": now, "warnings": warnings}
        with suppress(OSError):
            self.control.send(started)
        send(self.wire, "\0".join(fields).encode(), fds + self.clients)
