"""One process per container, between it and whatever daemon there is: output, input, exit code (conmon's list, A9).

Forked from the zygote, so it costs its private pages only; host root, own session, one thread, straight blocking code
up to Started and one epoll loop after it. It never forks once the container runs and never reads the container's files.
The daemon may go and come back at any time: facts are in `<dir>` (runtime/protocol.py).
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from errno import EAGAIN

from tare.cgroups import api as cgroups
from tare.linux import libc, proc, pty
from tare.linux.fds import Channel

from .launch import Launched, Stdio, launch
from .logfile import NoLog, open_log
from .streams import Streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

__all__ = [
    "Monitor",
    "Pipes",
    "await_start",
    "exit_status",
    "failure",
    "main",
    "report_failure",
    "supervise",
    "write_file",
]

_DRAIN_S = 2.0
"""How long output of an ended container may still come in: someone outside may hold its pipe. Guess."""
_LINGER_S = 600.0
"""How long an ended container's shim waits for an attached client to take what is left. Guess."""


def write_file(path: str, data: bytes) -> None:
    """tmp + rename: a reader sees all or nothing."""
    fd = os.open(path + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    os.write(fd, data)
    os.close(fd)
    os.rename(path + ".tmp", path)


def exit_status(pidfd: int, *, oom: bool = False) -> dict[str, Any]:
    """Reap the process and give EXITED of runtime/protocol.py."""
    info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    assert info is not None
    signalled = 0 if info.si_code == os.CLD_EXITED else info.si_status
    code = 128 + signalled if signalled else info.si_status
    return {"code": code, "signal": signalled, "oom": oom, "time_ns": time.time_ns()}


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

    @classmethod
    def inherited(cls, *, tty: bool) -> Pipes:
        """Our own 0, 1, 2 instead of pipes, for `tare-oci exec`."""
        pipes = cls(tty=True, stdin=False) if tty else cls.__new__(cls)
        if not tty:
            pipes.channel, pipes._sources, pipes._stdin, pipes.tty = None, {}, -1, False
            pipes.stdio = Stdio(os.dup(0), os.dup(1), os.dup(2))
        return pipes

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


class Monitor:
    """A running process with its streams and control connections: the loop of a shim and of an exec."""

    def __init__(
        self,
        *,
        pid: int,
        pidfd: int,
        streams: Streams,
        epoll: select.epoll,
        control: list[Channel],
        listener: socket.socket | None = None,
        cgroup: cgroups.Cgroup | None = None,
        terminal: int = -1,
    ) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.streams = streams
        self.epoll = epoll
        self.cgroup = cgroup
        self.terminal = terminal
        self.started_ns = time.time_ns()
        self._start_time = proc.start_time(pid)
        self._control = {channel.fileno(): channel for channel in control}
        self._listener = listener
        self._oom = cgroup.oom_fd() if cgroup else None
        for fd in (pidfd, *self._control, *((listener.fileno(),) if listener else ()),
                   *((self._oom,) if self._oom is not None else ())):  # fmt: skip
            epoll.register(fd, select.EPOLLIN | (select.EPOLLPRI if fd == self._oom else 0))

    def facts(self) -> dict[str, Any]:
        return {"pid": self.pid, "start_time": self._start_time}

    def tell(self, message: Mapping[str, Any]) -> None:
        """To every daemon connected; one that is gone is forgotten."""
        for fd, channel in list(self._control.items()):
            try:
                channel.send(message)
            except OSError:
                self._forget(fd)

    def run(self) -> None:
        """Until the process has ended."""
        while True:
            for fd, events in self.epoll.poll():
                if fd == self.pidfd:
                    return
                if self.streams.owns(fd):
                    self.streams.handle(fd, events)
                elif fd in self._control:
                    self._receive(fd)
                elif self._listener is not None and fd == self._listener.fileno():
                    self._accept()
                elif fd == self._oom:
                    self._oom_event(fd)
            self.streams.after()

    def _accept(self) -> None:
        assert self._listener is not None
        with suppress(OSError):
            channel = Channel(self._listener.accept()[0])
            self._control[channel.fileno()] = channel
            self.epoll.register(channel.fileno(), select.EPOLLIN)

    def _forget(self, fd: int) -> None:
        channel = self._control.pop(fd, None)
        if channel is not None:
            with suppress(OSError):
                self.epoll.unregister(fd)
            channel.close()

    def _oom_event(self, fd: int) -> None:
        with suppress(OSError):
            os.read(fd, 4096)
        self.tell({"type": "oom"})

    def _receive(self, fd: int) -> None:
        channel = self._control[fd]
        try:
            received = channel.recv()
        except (OSError, ValueError):
            received = None
        if received is None:
            self._forget(fd)
            return
        message, fds = received
        answer: dict[str, Any] = {"type": "ok", "seq": message.get("seq", 0)}
        try:
            answer.update(self._serve(message, fds) or {})
        except (OSError, TimeoutError, ValueError, KeyError) as error:
            answer = {
                "type": "error", "seq": message.get("seq", 0), "message": str(error),
                "errno": (error.errno or 0) if isinstance(error, OSError) else 0,
            }  # fmt: skip
        try:
            channel.send(answer)
        except OSError:
            self._forget(fd)

    def _serve(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any] | None:
        kind = message["type"]
        if kind == "attach":
            self.streams.attach(message["streams"], fds.pop())
        elif kind == "resize":
            if self.terminal >= 0:
                pty.set_size(self.terminal, message["rows"], message["columns"])
        elif kind == "kill":
            signal.pidfd_send_signal(self.pidfd, message["signal"])
            if message["signal"] == signal.SIGKILL and self.cgroup is not None and self.cgroup.frozen():
                self.cgroup.freeze(False)  # v1: a frozen task dies only when thawed
        elif kind == "freeze" and self.cgroup is not None:
            self.cgroup.freeze(message["on"])
        elif kind == "update" and self.cgroup is not None:
            return {"warnings": self.cgroup.update(message["resources"])}
        elif kind == "reopen":
            self.streams.log.reopen()
        elif kind == "state":
            frozen = self.cgroup.frozen() if self.cgroup is not None else False
            return {"type": "state", **self.facts(), "started_ns": self.started_ns, "frozen": frozen, "exited": None}
        else:
            raise ValueError(f"unknown message {kind!r}")
        for fd in fds:
            os.close(fd)
        return None

    def finish(self) -> None:
        """After the end was told: give attached clients time to take what is left of the output."""
        for fd in list(self._control):
            self._forget(fd)
        if self._listener is not None:
            self._listener.close()
        deadline = time.monotonic() + _LINGER_S
        while not self.streams.flush(1.0) and time.monotonic() < deadline:
            pass
        self.streams.close()


def await_start(status: int) -> dict[str, Any] | None:
    """Read init's report: None when it was closed by execve, else {step, errno, path, message}."""
    data = b""
    while chunk := os.read(status, 65536):
        data += chunk
    if not data:
        return None
    report = json.loads(data.splitlines()[-1])
    return report if "step" in report else None


def report_failure(control: Channel, report: Mapping[str, Any]) -> NoReturn:
    with suppress(OSError):
        control.send({"type": "failed", **report})
    os._exit(1)


def failure(step: str, error: BaseException) -> dict[str, Any]:
    """FAILED without its type for an error on our own side of the clone."""
    number = (error.errno or 0) if isinstance(error, OSError) else 0
    path = os.fsdecode(error.filename) if isinstance(error, OSError) and error.filename else ""
    text = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return {"step": step, "errno": number, "path": path, "message": text}


def _wait_go(control: Channel, launched: Launched) -> bool:
    """True at Go; False when the daemon went away. Init's early death shows in its report."""
    poll = select.poll()
    poll.register(control.fileno(), select.POLLIN)
    poll.register(launched.pidfd, select.POLLIN)
    for fd, _ in poll.poll():
        if fd == control.fileno():
            received = control.recv()
            return received is not None and received[0].get("type") == "go"
    return True


def main(
    hierarchy: cgroups.Hierarchy, directory: str, control: Channel, clients: Sequence[tuple[dict[str, Any], int]]
) -> NoReturn:
    """A forked child of the zygote becomes the shim of the container in `directory`. Ends with the container."""
    libc.set_name("tare-shim")
    with suppress(OSError):
        write_own("/proc/self/oom_score_adj", b"-998")
    bundle = json.loads(proc.read(f"{directory}/bundle.json", 1 << 26))
    step = "open the log"
    try:
        log = open_log(bundle.get("log") or {})
        step = "listen"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        there = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        listener.bind(f"/proc/self/fd/{there}/shim.sock")  # a socket's own name ends at 107 bytes, unix(7)
        os.close(there)
        listener.listen(8)
        write_file(f"{directory}/shim", b"%d %d\n" % (os.getpid(), proc.start_time(os.getpid())))
        pipes = Pipes(tty=bool(bundle.get("tty")), stdin=bool(bundle.get("stdin")))
        gate, open_gate = os.pipe2(os.O_CLOEXEC)
        status, their_status = os.pipe2(os.O_CLOEXEC)
        step = "create the container process"
        launched = launch(bundle, hierarchy, gate=gate, status=their_status, stdio=pipes.stdio)
    except Exception as error:
        report_failure(control, failure(step, error))
    os.close(gate)
    os.close(their_status)
    pipes.close_theirs()
    _start(bundle, directory, control, clients, launched, pipes, listener, log, open_gate, status)


def write_own(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _start(
    bundle: dict[str, Any],
    directory: str,
    control: Channel,
    clients: Sequence[tuple[dict[str, Any], int]],
    launched: Launched,
    pipes: Pipes,
    listener: socket.socket,
    log: NoLog,
    gate: int,
    status: int,
) -> NoReturn:
    """Ready, Go, Started; then the loop until the end."""
    try:
        control.send({"type": "ready", "pid": launched.pid})
        go = _wait_go(control, launched)
        if go:
            start_time = proc.start_time(launched.pid)
            write_file(f"{directory}/pid", b"%d %d\n" % (launched.pid, start_time))
            with suppress(BrokenPipeError):
                os.write(gate, b"\n")
        os.close(gate)
        report = await_start(status)
        os.close(status)
        if report is not None or not go:
            _abandon(launched)
            report_failure(control, report or {"step": "wait for Go", "errno": 0, "path": "", "message": "no daemon"})
    except Exception as error:
        _abandon(launched)
        report_failure(control, failure("start the container process", error))
    monitor = supervise(
        launched.pid, launched.pidfd, pipes, control, clients, log, stdin_once=bool(bundle.get("stdin_once")),
        tty=bool(bundle.get("tty")), warnings=launched.warnings, listener=listener, cgroup=launched.cgroup,
    )  # fmt: skip
    monitor.run()
    _end(monitor, launched, directory)


def supervise(
    pid: int,
    pidfd: int,
    pipes: Pipes,
    control: Channel,
    clients: Sequence[tuple[dict[str, Any], int]],
    log: NoLog,
    *,
    stdin_once: bool,
    tty: bool,
    warnings: list[str],
    listener: socket.socket | None = None,
    cgroup: cgroups.Cgroup | None = None,
) -> Monitor:
    """Streams and monitor of a process that has just started; tells the daemon so."""
    sources, stdin = pipes.ours()
    epoll = select.epoll()

    def detached(client: int) -> None:
        monitor.tell({"type": "detached", "client": client})

    streams = Streams(epoll, log, sources=sources, stdin=stdin, stdin_once=stdin_once, tty=tty, on_detach=detached)
    monitor = Monitor(
        pid=pid, pidfd=pidfd, streams=streams, epoll=epoll, control=[control], listener=listener, cgroup=cgroup,
        terminal=stdin if tty else -1,
    )  # fmt: skip
    monitor.tell({"type": "started", **monitor.facts(), "time_ns": monitor.started_ns, "warnings": warnings})
    for wanted, fd in clients:
        streams.attach(wanted, fd)
    return monitor


def _end(monitor: Monitor, launched: Launched, directory: str) -> NoReturn:
    """The order matters: out-of-memory is read before the cgroup goes, the exit file is there before anybody hears."""
    cgroup = launched.cgroup
    oom = False
    with suppress(OSError):
        oom = cgroup.oom_kills() > 0
    exited = exit_status(launched.pidfd, oom=oom)
    with suppress(OSError):
        cgroup.kill()  # with the host's pid namespace, others of the container may still run
    monitor.streams.drain(time.monotonic() + _DRAIN_S, time.monotonic)
    with suppress(OSError):
        write_file(f"{directory}/exit", json.dumps(exited).encode())
    monitor.tell({"type": "exited", **exited})
    with suppress(OSError):
        cgroup.delete()
    monitor.finish()
    os._exit(0)


def _abandon(launched: Launched) -> None:
    """Undo a launch whose program never started."""
    with suppress(OSError):
        signal.pidfd_send_signal(launched.pidfd, signal.SIGKILL)
    with suppress(OSError):
        os.waitid(os.P_PIDFD, launched.pidfd, os.WEXITED)
    with suppress(OSError):
        launched.cgroup.delete()
