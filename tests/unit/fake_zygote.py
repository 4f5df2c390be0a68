"""Speaks runtime/protocol.py as zygote and shims do, without namespaces, so that no root is needed.

What a container does is its first argument: see `_behave`. Run as `python -I fake_zygote.py FD PACKAGE_ROOT`.
"""

from __future__ import annotations

import sys

sys.path.insert(0, sys.argv[2])

import json
import os
import select
import signal
import socket
import struct
import time
from pathlib import Path

from tare.linux import proc
from tare.linux.fds import Channel


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    jobs = Channel.from_fd(int(sys.argv[1]))
    jobs.send({"type": "ready"})
    while (received := jobs.recv()) is not None:
        job, fds = received
        marker = Path(job["dir"]).parent / "kill-zygote"
        if marker.exists():
            marker.unlink()
            os._exit(1)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            jobs.close()
            os.setsid()
            Shim(job, Channel.from_fd(fds[0]), list(zip(job["attach"], fds[1:], strict=True))).main()
            os._exit(0)
        for fd in fds:
            os.close(fd)


class Shim:
    def __init__(self, job: dict, control: Channel, clients: list) -> None:
        self.dir, self.control, self.clients = Path(job["dir"]), control, clients
        self.is_exec = job["type"] == "exec"
        if self.is_exec:
            self.args = job["process"]["args"]
        else:
            self.args = json.loads((self.dir / "bundle.json").read_text())["oci"]["process"]["args"]
        self.daemons = {control.fileno(): control}
        self.sizes: list = []
        self.frozen = False

    def main(self) -> None:
        behaviour = self.args[0]
        if behaviour == "lost-before-ready":
            return
        if not self.is_exec:
            self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            os.chdir(self.dir)  # sun_path holds 107 bytes
            self.listener.bind("shim.sock")
            self.listener.listen(4)
        child = os.fork()
        if child == 0:
            os.close(self.control.detach())
            if behaviour == "trap":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                signal.pause()
        self.pid, self.pidfd = child, os.pidfd_open(child)
        if not self.is_exec:
            self.control.send({"type": "ready", "pid": child})
            if behaviour == "never-started":
                while self.control.recv() is not None:
                    pass
                os.kill(child, signal.SIGKILL)
                os._exit(1)
            received = self.control.recv()
            if received is None:
                os.kill(child, signal.SIGKILL)
                os._exit(1)
            assert received[0] == {"type": "go"}
        if behaviour == "fail":
            os.kill(child, signal.SIGKILL)
            step, number, path, message = self.args[1], int(self.args[2]), self.args[3], self.args[4]
            self.control.send({"type": "failed", "step": step, "errno": number, "path": path, "message": message})
            os._exit(1)
        self.started_ns = time.time_ns()
        self.start_time = proc.start_time(child)
        self.control.send(
            {"type": "started", "pid": child, "start_time": self.start_time, "time_ns": self.started_ns, "warnings": []}
        )
        for streams, fd in self.clients:
            self.greet(streams, fd)
        self.behave(behaviour)
        self.serve()

    def behave(self, behaviour: str) -> None:
        if behaviour == "exit":
            self.end(int(self.args[1]))
        elif behaviour == "exit-unheard":
            (self.dir / "exit").write_text(json.dumps(self.exited(int(self.args[1]))))
            os.kill(self.pid, signal.SIGKILL)
            os._exit(0)
        elif behaviour == "oom":
            self.control.send({"type": "oom"})
        elif behaviour == "detach":
            self.control.send({"type": "detached", "client": 1})
        elif behaviour == "vanish":
            os.kill(self.pid, signal.SIGKILL)
            os._exit(1)

    def greet(self, streams: dict, fd: int) -> None:
        """A client hears its own request."""
        text = json.dumps(streams).encode()
        os.write(fd, struct.pack(">BxxxL", 1, len(text)) + text if streams["mux"] else text)

    def exited(self, code: int, number: int = 0) -> dict:
        return {"code": code, "signal": number, "oom": False, "time_ns": time.time_ns()}

    def end(self, code: int, number: int = 0) -> None:
        os.kill(self.pid, signal.SIGKILL)
        exited = self.exited(code, number)
        if not self.is_exec:
            (self.dir / "exit").write_text(json.dumps(exited))
        for daemon in list(self.daemons.values()):
            try:
                daemon.send({"type": "exited", **exited})
            except OSError:
                pass
        os._exit(0)

    def serve(self) -> None:
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        poll.register(self.control.fileno(), select.POLLIN)
        if not self.is_exec:
            poll.register(self.listener.fileno(), select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self.pidfd:
                    number = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED).si_status
                    self.pid = os.fork() or os._exit(0)
                    self.end(128 + number, number)
                elif fd in self.daemons:
                    self.receive(fd, poll)
                else:
                    channel = Channel(self.listener.accept()[0])
                    self.daemons[channel.fileno()] = channel
                    poll.register(channel.fileno(), select.POLLIN)

    def receive(self, fd: int, poll: select.poll) -> None:
        channel = self.daemons[fd]
        received = channel.recv()
        if received is None:
            poll.unregister(fd)
            self.daemons.pop(fd).close()
            return
        message, fds = received
        answer = {"type": "ok", "seq": message["seq"]}
        match message["type"]:
            case "deaf":
                return
            case "attach":
                self.greet(message["streams"], fds[0])
                os.close(fds[0])
            case "kill":
                if message["signal"] == signal.SIGHUP:
                    answer = {"type": "error", "seq": message["seq"], "message": "gone", "errno": 3}
                elif message["signal"] == signal.SIGUSR1:
                    os._exit(1)
                else:
                    signal.pidfd_send_signal(self.pidfd, message["signal"])
            case "freeze":
                self.frozen = message["on"]
            case "resize":
                self.sizes.append([message["rows"], message["columns"]])
            case "state":
                answer |= {
                    "type": "state", "pid": self.pid, "start_time": self.start_time, "started_ns": self.started_ns,
                    "frozen": self.frozen, "exited": None, "sizes": self.sizes,
                }  # fmt: skip
        channel.send(answer)


main()
