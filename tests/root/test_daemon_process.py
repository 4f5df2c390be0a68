"""The daemon as a process: start, second daemon, signals, kill -9. Own data and exec roots in a temp dir."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]
SCRIPT = Path(__file__).parents[2] / "bin" / "tared"


class Daemon:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = str(directory / "api.sock")
        self.log = directory / "log"
        self.notifications = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notifications.bind(str(directory / "notify"))
        self.notifications.settimeout(30)
        self.output = open(self.log, "ab")
        self.processes: list[subprocess.Popen[bytes]] = []

    def command(self, *more: str, data: str = "data", run: str = "run") -> list[str]:
        d = self.directory
        options = {"data-root": d / data, "exec-root": d / run, "pidfile": d / "pid", "config-file": d / "daemon.json"}
        return [sys.executable, "-I", str(SCRIPT), *(f"--{name}={value}" for name, value in options.items()), *more]

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        """Returns when the daemon says that it is ready."""
        (self.directory / "daemon.json").touch()
        process = subprocess.Popen(
            self.command("-H", f"unix://{self.path}", *more),
            stderr=self.output,
            env={"NOTIFY_SOCKET": str(self.directory / "notify")},
        )
        self.processes.append(process)
        assert self.notifications.recv(100) == b"READY=1"
        return process

    def get(self, path: str) -> bytes:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(30)
            sock.connect(self.path)
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n".encode())
            return b"".join(iter(lambda: sock.recv(65536), b""))

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        self.notifications.close()
        self.output.close()


@pytest.fixture
def tared(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path)
    yield made
    made.close()


def test_serves_and_ends_in_order(tared: Daemon) -> None:
    process = tared.start()
    assert tared.get("/_ping").endswith(b"OK")
    mode = os.stat(tared.path).st_mode
    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o660
    assert stat.S_IMODE(os.stat(tared.directory / "data").st_mode) == 0o710
    assert stat.S_IMODE(os.stat(tared.directory / "run").st_mode) == 0o700
    assert (tared.directory / "pid").read_text() == f"{process.pid}\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert tared.notifications.recv(100) == b"STOPPING=1"
    assert not os.path.exists(tared.path) and not (tared.directory / "pid").exists()


def test_stream_does_not_hold_up_the_end(tared: Daemon) -> None:
    process = tared.start()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(tared.path)
        sock.settimeout(30)
        sock.sendall(b"GET /events HTTP/1.1\r\nHost: d\r\n\r\n")
        assert b"200 OK" in sock.recv(4096)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


@pytest.mark.parametrize(
    ("data", "run", "message"),
    [("data", "run2", "data is in use by another tared"), ("data2", "run", "run is in use by another tared")],
)
def test_second_daemon_is_refused(tared: Daemon, data: str, run: str, message: str) -> None:
    tared.start()
    done = subprocess.run(
        tared.command("-H", f"unix://{tared.directory}/other", data=data, run=run), capture_output=True, text=True
    )
    assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1
    assert tared.get("/_ping").endswith(b"OK")


def test_what_a_killed_daemon_leaves_is_taken_over(tared: Daemon) -> None:
    first = tared.start()
    first.kill()
    first.wait()
    assert os.path.exists(tared.path)
    # A reused pid: the file names a process that lives and is not ours.
    (tared.directory / "pid").write_text("1\n")
    second = tared.start()
    assert tared.get("/_ping").endswith(b"OK")
    assert (tared.directory / "pid").read_text() == f"{second.pid}\n"


def test_signal_storm(tared: Daemon) -> None:
    process = tared.start()
    (tared.directory / "daemon.json").write_text('{"log-level": "debug"}')
    for _ in range(300):
        process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGQUIT)
    assert tared.get("/_ping").endswith(b"OK")
    deadline = time.monotonic() + 30
    while b"most recent call first" not in (log := tared.log.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert b"most recent call first" in log
    assert b"log level debug" in log and b"Calling GET /_ping" in log
    (tared.directory / "daemon.json").write_text("{")
    process.send_signal(signal.SIGHUP)
    assert tared.get("/_ping").endswith(b"OK")


def test_idle_memory(tared: Daemon) -> None:
    process = tared.start()
    status = Path(f"/proc/{process.pid}/status").read_text()
    resident = int(status.split("VmRSS:")[1].split()[0])
    assert resident <= 35 * 1024, f"{resident} kB"


def test_own_limit_of_open_files_is_raised(tared: Daemon) -> None:
    process = tared.start()
    for line in Path(f"/proc/{process.pid}/limits").read_text().splitlines():
        if line.startswith("Max open files"):
            soft, hard = line.split()[3:5]
            assert soft == hard
            return
    pytest.fail("no line of open files")


def test_socket_activation(tared: Daemon) -> None:
    """As systemd does it: the listening socket is descriptor 3, LISTEN_PID the daemon's own pid."""
    (tared.directory / "daemon.json").touch()
    code = (
        "import os, socket, sys\n"
        f"s = socket.socket(socket.AF_UNIX); s.bind({tared.path!r}); s.listen()\n"
        "os.dup2(s.fileno(), 3); os.set_inheritable(3, True)\n"
        "env = {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1', 'NOTIFY_SOCKET': sys.argv[1]}\n"
        "os.execve(sys.argv[2], sys.argv[2:], env)\n"
    )
    argv = tared.command("-H", "fd://")
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tared.directory / "notify"), *argv], stderr=tared.output
    )
    tared.processes.append(process)
    assert tared.notifications.recv(100) == b"READY=1"
    assert tared.get("/_ping").endswith(b"OK")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert os.path.exists(tared.path), "the socket is its manager's to remove"
