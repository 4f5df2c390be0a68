"""The command on a real pty: raw mode and that it ends, detach keys, window size."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_fake_daemon import HANG_S, ID, Container, Exchange, FakeDaemon, command, environment

from tare.cli.terminal import printable

BASE = f"/containers/{ID}"


class Terminal:
    """A pty whose other side is the user."""

    def __init__(self) -> None:
        self.user, self.side = os.openpty()
        self.resize(24, 80)
        self.mode = termios.tcgetattr(self.side)
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.side, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    @property
    def raw(self) -> bool:
        return not termios.tcgetattr(self.side)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    @property
    def restored(self) -> bool:
        return termios.tcgetattr(self.side) == self.mode

    def expect(self, text: bytes) -> None:
        while text not in self.seen:
            self.seen += os.read(self.user, 4096)

    def type(self, data: bytes) -> None:
        os.write(self.user, data)

    def close(self) -> None:
        os.close(self.user)
        os.close(self.side)


class Shell(Container):
    """A container with a terminal: says "ready", then echoes in capitals until ctrl-d or its connection ends."""

    def __init__(self, daemon: FakeDaemon) -> None:
        super().__init__(daemon, self.shell, tty=True)
        self.typed = b""
        self.lost = threading.Event()

    def shell(self, sock: socket.socket) -> int:
        sock.sendall(b"ready\r\n")
        while data := sock.recv(4096):
            self.typed += data
            if b"\x04" in data:
                return 3
            sock.sendall(data.upper())
        self.lost.set()
        return 0


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    daemon = FakeDaemon(tmp_path / "sock")
    yield daemon
    daemon.close()


@pytest.fixture
def screen() -> Iterator[Terminal]:
    screen = Terminal()
    yield screen
    screen.close()


def begin(daemon: FakeDaemon, screen: Terminal, *words: str) -> subprocess.Popen[bytes]:
    side = screen.side
    return subprocess.Popen(command(*words), stdin=side, stdout=side, stderr=side, env=environment(daemon))


def test_raw_while_it_runs_and_restored_after(daemon: FakeDaemon, screen: Terminal) -> None:
    shell = Shell(daemon)
    process = begin(daemon, screen, "run", "-it", "x")
    screen.expect(b"ready\r\n")
    assert screen.raw
    screen.type(b"hello\x03")
    screen.expect(b"HELLO\x03")
    screen.type(b"\x04")
    assert process.wait(HANG_S) == 3
    assert screen.restored
    assert shell.typed == b"hello\x03\x04"
    create = daemon.log[0].json
    assert create["HostConfig"]["ConsoleSize"] == [24, 80]
    assert (create["Tty"], create["AttachStdin"]) == (True, True)


def test_window_size(daemon: FakeDaemon, screen: Terminal) -> None:
    Shell(daemon)
    process = begin(daemon, screen, "run", "-it", "x")
    daemon.wait_for(f"POST {BASE}/resize?h=24&w=80")
    screen.expect(b"ready")
    screen.resize(30, 100)
    process.send_signal(signal.SIGWINCH)
    daemon.wait_for(f"POST {BASE}/resize?h=30&w=100")
    screen.type(b"\x04")
    assert process.wait(HANG_S) == 3


def test_a_resize_that_comes_too_early_is_repeated(daemon: FakeDaemon, screen: Terminal) -> None:
    Shell(daemon)
    tries: list[Exchange] = []

    def resize(exchange: Exchange) -> None:
        tries.append(exchange)
        if len(tries) < 3:
            exchange.error(409, "not running")
        else:
            exchange.reply(200)

    daemon.on[f"POST {BASE}/resize"] = resize
    process = begin(daemon, screen, "run", "-it", "x")
    daemon.wait_for("/resize", 3)
    screen.type(b"\x04")
    assert process.wait(HANG_S) == 3
    assert len(tries) == 3


@pytest.mark.parametrize("pieces", [[b"\x10\x11"], [b"\x10", b"\x11"]])
def test_detach(daemon: FakeDaemon, screen: Terminal, pieces: list[bytes]) -> None:
    shell = Shell(daemon)
    process = begin(daemon, screen, "run", "-it", "x")
    screen.expect(b"ready")
    for piece in pieces:
        screen.type(piece)
    assert process.wait(HANG_S) == 0
    assert screen.restored
    assert shell.lost.wait(HANG_S)
    assert shell.typed == b""


def test_own_detach_keys(daemon: FakeDaemon, screen: Terminal) -> None:
    shell = Shell(daemon)
    process = begin(daemon, screen, "run", "-it", "--detach-keys", "ctrl-x,y", "x")
    screen.expect(b"ready")
    screen.type(b"a\x10\x11")
    screen.expect(b"A\x10\x11")
    screen.type(b"\x18y")
    assert process.wait(HANG_S) == 0
    assert shell.typed == b"a\x10\x11"
    assert "detachKeys=ctrl-x%2Cy" in daemon.wait_for("/attach").target


def test_detach_keys_of_the_config_file(daemon: FakeDaemon, screen: Terminal, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"detachKeys": "ctrl-z,z"}')
    Shell(daemon)
    process = begin(daemon, screen, "--config", str(tmp_path), "run", "-it", "x")
    screen.expect(b"ready")
    screen.type(b"\x1az")
    assert process.wait(HANG_S) == 0
    assert screen.restored


def test_detach_from_attach_says_so(daemon: FakeDaemon, screen: Terminal) -> None:
    shell = Shell(daemon)
    shell.started.set()
    process = begin(daemon, screen, "attach", "x")
    screen.expect(b"ready")
    assert screen.raw
    assert [each.target for each in daemon.log if "resize" in each.target] == [
        f"{BASE}/resize?h=25&w=81", f"{BASE}/resize?h=24&w=80",
    ]  # fmt: skip
    screen.type(b"\x10\x11")
    assert process.wait(HANG_S) == 1
    screen.expect(b"read escape sequence\r\n")
    assert screen.restored


def test_restored_when_the_start_fails(daemon: FakeDaemon, screen: Terminal) -> None:
    shell = Shell(daemon)

    def fail(exchange: Exchange) -> None:
        assert screen.raw
        exchange.error(400, "executable file not found in $PATH")
        shell.ended.set()
        shell.started.set()

    daemon.on[f"POST {BASE}/start"] = fail
    process = begin(daemon, screen, "run", "-it", "x")
    assert process.wait(HANG_S) == 127
    screen.expect(b"executable file not found in $PATH\r\n")
    assert screen.restored


def exec_shell(daemon: FakeDaemon, shell: Shell) -> None:
    shell.started.set()
    daemon.on["POST /containers/x/exec"] = lambda e: e.reply(201, {"Id": "e1"})
    daemon.on["POST /exec/e1/start"] = shell.attach
    daemon.on["POST /exec/e1/resize"] = lambda e: e.reply(200)
    daemon.on["GET /exec/e1/json"] = lambda e: e.reply(200, {"Running": False, "ExitCode": 5})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])
def test_restored_after_a_signal(daemon: FakeDaemon, screen: Terminal, number: signal.Signals) -> None:
    exec_shell(daemon, Shell(daemon))
    process = begin(daemon, screen, "exec", "-it", "x", "sh")
    screen.expect(b"ready")
    assert screen.raw
    process.send_signal(number)
    assert process.wait(HANG_S) == 128 + number
    assert screen.restored


def test_exec_on_a_terminal(daemon: FakeDaemon, screen: Terminal) -> None:
    exec_shell(daemon, Shell(daemon))
    process = begin(daemon, screen, "exec", "-it", "x", "sh")
    screen.expect(b"ready")
    screen.type(b"\x04")
    assert process.wait(HANG_S) == 5
    assert screen.restored
    assert daemon.wait_for("/exec/e1/start").json == {"Detach": False, "Tty": True, "ConsoleSize": [24, 80]}


def test_restored_when_the_connection_breaks(daemon: FakeDaemon, screen: Terminal) -> None:
    shell = Shell(daemon)
    shell.script = lambda sock: sock.sendall(b"ready") or 0  # type: ignore[func-returns-value]
    process = begin(daemon, screen, "run", "-it", "x")
    assert process.wait(HANG_S) == 0
    assert screen.restored


def test_restored_when_the_daemon_hangs_and_the_user_insists(daemon: FakeDaemon, screen: Terminal) -> None:
    """kill is never answered: the loop is stuck in it, and only the handler itself can still leave."""
    Shell(daemon)
    release = threading.Event()
    daemon.on[f"POST {BASE}/kill"] = lambda e: release.wait(HANG_S)
    process = begin(daemon, screen, "run", "-it", "x")
    screen.expect(b"ready")
    process.send_signal(signal.SIGTERM)
    daemon.wait_for("/kill")
    try:
        for _ in range(100):
            process.send_signal(signal.SIGTERM)
            try:
                assert process.wait(0.05) == 128 + signal.SIGTERM
                break
            except subprocess.TimeoutExpired:
                continue
        assert process.returncode == 128 + signal.SIGTERM
        assert screen.restored
    finally:
        release.set()
        process.kill()
        process.wait(HANG_S)


def test_restored_after_an_exception(daemon: FakeDaemon, screen: Terminal) -> None:
    """A reply that no code expects (StatusCode is a list) ends in a traceback, on a sane terminal."""
    shell = Shell(daemon)
    shell.code = [1]  # type: ignore[assignment]
    shell.script = lambda sock: [1]  # type: ignore[assignment, return-value]
    process = begin(daemon, screen, "run", "-it", "x")
    assert process.wait(HANG_S) == 1
    assert screen.restored


def test_no_raw_mode_without_stdin(daemon: FakeDaemon, screen: Terminal) -> None:
    shell = Shell(daemon)
    seen: list[Any] = []

    def look(sock: socket.socket) -> int:
        seen.append(screen.raw)
        return 0

    shell.script = look
    assert begin(daemon, screen, "run", "-t", "x").wait(HANG_S) == 0
    assert seen == [False]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é\n", "plain é\n"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("x\r\x07\x7f\x9b", "x\\x0d\\x07\\x7f\\x9b"),
        ("a\tb", "a\tb"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
