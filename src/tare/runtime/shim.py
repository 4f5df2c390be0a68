"""One process per container, between it and whatever daemon there is: output, input, exit code.

Forked from the zygote, so it costs its private pages only; that is why another process, its child, does the start
(starter.py): every object that code touches is a page un-shared for good. Host root, own session, one thread, one epoll
loop. It never forks once the container runs and never reads the container's files. The daemon may go and come back at
any time: facts are in `<dir>` (runtime/protocol.py). An exec is monitored by the same loop.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from contextlib import suppress

from tare.cgroups import api as cgroups
from tare.jsonlog import open_log
from tare.linux import jsontext, libc, pty
from tare.linux.fds import Channel, receive

from .streams import Streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, NoReturn

__all__ = ["Monitor", "exit_status", "main", "write_file"]

_DRAIN_S = 2.0
"""How long output of an ended container may still come in: someone outside may hold its pipe. Guess."""
_HANG_UP_S = 5.0
"""How long a client that got the end of file may take to close. Guess."""
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


class Monitor:
    """A running process with its streams and control connections: the loop of a shim and of an exec."""

    def __init__(
        self,
        pid: int,
        start_time: int,
        started_ns: int,
        pidfd: int,
        streams: Streams,
        epoll: select.epoll,
        cgroup: cgroups.Cgroup | None,
        terminal: int,
        *,
        control: int,
        listener: int,
        oom: int,
    ) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.streams = streams
        self.epoll = epoll
        self.cgroup = cgroup
        self.terminal = terminal
        self.started_ns = started_ns
        self._start_time = start_time
        self._control: dict[int, Channel | None] = {control: None}
        self._listener = listener
        self._oom = oom
        self._kills = 0
        streams.on_detach = self._detached
        for fd in (pidfd, control, listener, oom):
            if fd >= 0:
                epoll.register(fd, select.EPOLLIN)

    def _detached(self, client: int) -> None:
        self.tell({"type": "detached", "client": client})

    def _channel(self, fd: int) -> Channel:
        """The connection on `fd`, as an object from its first message on."""
        channel = self._control[fd]
        if channel is None:
            channel = self._control[fd] = Channel.from_fd(fd)
        return channel

    def facts(self) -> dict[str, Any]:
        return {"pid": self.pid, "start_time": self._start_time}

    def tell(self, message: Mapping[str, Any]) -> None:
        """To every daemon connected; one that is gone is forgotten."""
        for fd in list(self._control):
            try:
                self._channel(fd).send(message)
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
                elif fd == self._listener:
                    self._accept()
                elif fd == self._oom:
                    self._oom_event(fd)
            self.streams.after()

    def _accept(self) -> None:
        with suppress(OSError), socket.socket(fileno=os.dup(self._listener)) as listener:
            fd = listener.accept()[0].detach()
            self._control[fd] = None
            self.epoll.register(fd, select.EPOLLIN)

    def _forget(self, fd: int) -> None:
        if fd in self._control:
            with suppress(OSError):
                self.epoll.unregister(fd)
            self._channel(fd).close()
            del self._control[fd]

    def _oom_event(self, fd: int) -> None:
        with suppress(OSError):
            kills = self.cgroup.oom_news(fd, self._kills) if self.cgroup else 0
            if kills > self._kills:
                self._kills = kills
                self.tell({"type": "oom"})

    def _receive(self, fd: int) -> None:
        channel = self._channel(fd)
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
        if self._listener >= 0:
            os.close(self._listener)
        deadline = time.monotonic() + _LINGER_S
        while not self.streams.flush(1.0) and time.monotonic() < deadline:
            pass
        self.streams.close(_HANG_UP_S)


def main(wire: socket.socket, starter: int, hierarchy: cgroups.Hierarchy) -> NoReturn:
    """Wait for a started process from `starter` (a pid, our child), monitor it, and end with it.

    The message is not JSON, and names no more than is needed: what an idle container's shim never executes, it never
    makes its own pages of (0.3 MB for a first json.loads).
    """
    wire.recv(1)  # the starter has its job: from now on we may outlive the zygote
    libc.prctl(libc.PR_SET_PDEATHSIG, 0)
    data, fds, _ = receive(wire)
    wire.close()
    os.waitpid(starter, 0)
    if not data:
        with suppress(ChildProcessError):
            os.wait()  # what was not started is ours to reap: until then its container's pid namespace cannot end
        os._exit(1)
    libc.set_name("tare-shim")
    idle = select.poll()
    for fd, letter in zip(fds, data):  # noqa: B905  # the letters come first in it
        if letter != 109:  # "m": always readable
            idle.register(fd, select.POLLIN)
    if b"a" not in data.partition(b"\0")[0]:  # a client's first bytes may have come along
        idle.poll()  # nothing below is made before something happens: 0.6 MB less for a container that is silent
    fields = data.decode().split("\0")
    letters, pid, start_time, started, tty, once, path, directory, driver, log_path, size, files = fields[:12]
    named = dict(zip(letters, fds, strict=False))
    sources = {named[letter]: int(letter) for letter in "12" if letter in named}
    stdin = named["1"] if tty else named.get("i", -1)
    cgroup = hierarchy.cgroup(path) if path else None
    epoll = select.epoll()
    streams = Streams(
        epoll, open_log(driver, log_path, int(size), int(files)), sources=sources, stdin=stdin,
        stdin_once=bool(once), tty=bool(tty),
    )  # fmt: skip
    monitor = Monitor(
        int(pid), int(start_time), int(started), named["p"], streams, epoll, cgroup, stdin if tty else -1,
        control=named["c"], listener=named.get("l", -1), oom=named.get("o", -1),
    )  # fmt: skip
    if fields[12]:
        for streams_of, fd in zip(jsontext.loads(fields[12].encode()), fds[letters.index("a") :], strict=True):
            streams.attach(streams_of, fd)
    monitor.run()
    _end(monitor, directory, named.get("m", -1))


def _end(monitor: Monitor, directory: str, mounts: int) -> NoReturn:
    """The order matters: out-of-memory is read before the cgroup goes, the exit file is there before anybody hears.

    An exec has no directory of its own; its cgroup is the container's and stays.
    """
    cgroup = monitor.cgroup if directory else None
    oom = False
    if cgroup is not None:
        with suppress(OSError):
            oom = cgroup.oom_kills() > 0
    exited = exit_status(monitor.pidfd, oom=oom)
    if cgroup is not None:
        with suppress(OSError):
            cgroup.kill()  # with the host's pid namespace, others of the container may still run
    # What an exec leaves running may hold its pipes for ever: only what is in them now is read.
    monitor.streams.drain(time.monotonic() + (_DRAIN_S if directory else 0), time.monotonic)
    if directory:
        with suppress(OSError):
            write_file(f"{directory}/exit", jsontext.dumps(exited).encode())
    monitor.tell({"type": "exited", **exited})
    if mounts >= 0:
        os.close(mounts)  # held until here: tearing the mounts down takes some ms, and pid 1 would end only after it
    if cgroup is not None:
        with suppress(OSError):
            cgroup.delete()
    monitor.finish()
    os._exit(0)
