"""run, create, start, attach, exec and their neighbours against a scripted daemon; each test runs the real command."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_fake_daemon import HANG_S, ID, Container, Exchange, FakeDaemon, command, environment, frame, tare

BASE = f"/containers/{ID}"
HELP = "\n\nRun 'tare run --help' for more information\n"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    daemon = FakeDaemon(tmp_path / "sock")
    yield daemon
    daemon.close()


def talk(sock: socket.socket) -> int:
    sock.sendall(frame(1, b"out\n") + frame(2, b"err\n"))
    return 7


def start(daemon: FakeDaemon, *words: str, **more: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command(*words), env=environment(daemon), **more)  # type: ignore[call-overload, no-any-return]


def test_foreground(daemon: FakeDaemon) -> None:
    Container(daemon, talk)
    done = tare(daemon, "run", "--name", "n", "busybox", "sh", "-c", "true")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    targets = daemon.targets()
    assert targets[0] == "POST /containers/create?name=n"
    assert set(targets[1:3]) == {
        f"POST {BASE}/attach?stderr=1&stdout=1&stream=1",
        f"POST {BASE}/wait?condition=next-exit",
    }
    assert targets[3:] == [f"POST {BASE}/start"]
    assert daemon.log[0].connection == daemon.log[3].connection
    assert daemon.log[0].json["Cmd"] == ["sh", "-c", "true"]
    assert daemon.log[0].json["HostConfig"]["ConsoleSize"] == [0, 0]


def test_rm_waits_for_the_removal(daemon: FakeDaemon) -> None:
    Container(daemon, talk)
    assert tare(daemon, "run", "--rm", "busybox").returncode == 7
    daemon.wait_for("wait?condition=removed")
    assert daemon.log[0].json["HostConfig"]["AutoRemove"] is True


def test_detached(daemon: FakeDaemon) -> None:
    Container(daemon, talk)
    done = tare(daemon, "run", "-dit", "busybox")
    assert (done.returncode, done.stdout, done.stderr) == (0, ID.encode() + b"\n", b"")
    assert daemon.targets() == ["POST /containers/create", f"POST {BASE}/start"]
    body = daemon.log[0].json
    assert (body["AttachStdin"], body["AttachStdout"], body["StdinOnce"], body["OpenStdin"]) == (
        False,
        False,
        False,
        True,
    )
    assert tare(daemon, "run", "-d", "-a", "stdout", "x").returncode == 1


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ('exec: "frob": executable file not found in $PATH: unknown', 127),
        ('exec: "/frob": stat /frob: no such file or directory: unknown', 127),
        ('exec: "/etc": permission denied', 126),
        ('exec: "/etc": is a directory', 126),
        ("something else", 125),
    ],
)
@pytest.mark.parametrize("detached", [False, True])
def test_start_fails(daemon: FakeDaemon, message: str, code: int, detached: bool) -> None:
    container = Container(daemon, talk)
    daemon.on[f"POST {BASE}/start"] = lambda e: (e.error(400, message), container.ended.set(), container.started.set())
    done = tare(daemon, "run", *(["-d"] if detached else []), "busybox", "frob")
    assert done.returncode == code
    assert done.stderr.decode() == f"tare: Error response from daemon: {message}{HELP}"


@pytest.mark.parametrize("detached", [False, True])
def test_rm_and_a_start_that_fails_waits_for_the_removal(daemon: FakeDaemon, detached: bool) -> None:
    container = Container(daemon, talk)
    removed = threading.Event()

    def wait(exchange: Exchange) -> None:
        exchange.head()
        assert container.started.wait(HANG_S)
        exchange.chunk({"StatusCode": 127, "Error": {"Message": "no such thing"}})
        removed.set()  # before the client can hear of it
        exchange.end()
        container.ended.set()

    daemon.on[f"POST {BASE}/wait"] = wait
    daemon.on[f"POST {BASE}/start"] = lambda e: (e.error(500, "no"), container.started.set())
    done = tare(daemon, "run", "--rm", *(["-d"] if detached else []), "busybox")
    assert (done.returncode, done.stderr.decode()) == (125, f"tare: Error response from daemon: no{HELP}")
    assert removed.is_set()


def test_create_fails(daemon: FakeDaemon) -> None:
    daemon.on["POST /containers/create"] = lambda e: e.error(409, "Conflict. The container name is in use")
    done = tare(daemon, "run", "busybox")
    assert done.returncode == 125
    assert done.stderr.decode() == f"tare: Error response from daemon: Conflict. The container name is in use{HELP}"
    done = tare(daemon, "create", "busybox")
    assert (done.returncode, done.stderr) == (
        1,
        b"Error response from daemon: Conflict. The container name is in use\n",
    )


def test_no_daemon(tmp_path: Path) -> None:
    host = f"unix://{tmp_path}/none"
    done = tare(None, "-H", host, "run", "x")
    assert done.returncode == 125
    text = f"tare: Cannot connect to the tare daemon at {host}. Is the tare daemon running?{HELP}"
    assert done.stderr.decode() == text
    assert tare(None, "-H", host, "stop", "x").returncode == 1


def test_missing_image_is_pulled(daemon: FakeDaemon) -> None:
    Container(daemon, talk)
    good = daemon.on["POST /containers/create"]
    pulled = threading.Event()

    def create(exchange: Exchange) -> object:
        return good(exchange) if pulled.is_set() else exchange.error(404, "No such image: q:latest")

    def pull(exchange: Exchange) -> None:
        pulled.set()
        exchange.head()
        exchange.chunk(b'{"status":"Pulling from library/q","id":"latest"}\r\n')
        exchange.chunk(b'{"status":"Downloading","id":"abc","progressDetail":{"current":1,"total":2}}\r\n')
        exchange.chunk(b'{"status":"Status: Downloaded newer image for q:latest"}\r\n')
        exchange.end()

    daemon.on["POST /containers/create"] = create
    daemon.on["POST /images/create"] = pull
    done = tare(daemon, "run", "q")
    assert (done.returncode, done.stdout) == (7, b"out\n")
    assert done.stderr.decode() == (
        "Unable to find image 'q:latest' locally\nlatest: Pulling from library/q\n"
        "Status: Downloaded newer image for q:latest\nerr\n"
    )
    assert daemon.targets()[1] == "POST /images/create?fromImage=q&tag=latest"


def test_pull_flags(daemon: FakeDaemon) -> None:
    daemon.on["POST /containers/create"] = lambda e: e.error(404, "No such image: q:latest")
    done = tare(daemon, "run", "--pull", "never", "q")
    assert (done.returncode, daemon.targets()) == (125, ["POST /containers/create"])
    daemon.on["POST /images/create"] = lambda e: e.reply(
        200, b'{"errorDetail":{"message":"denied"},"error":"denied"}\n'
    )
    done = tare(daemon, "run", "--pull", "always", "-q", "q:1")
    assert done.returncode == 125
    assert done.stderr.decode() == f"tare: denied{HELP}"
    assert daemon.targets()[1:] == ["POST /images/create?fromImage=q&tag=1"]


def test_warnings_go_to_stderr(daemon: FakeDaemon) -> None:
    daemon.on["POST /containers/create"] = lambda e: e.reply(201, {"Id": ID, "Warnings": ["swap \x1bis off"]})
    done = tare(daemon, "create", "q")
    assert (done.stdout, done.stderr) == (ID.encode() + b"\n", b"WARNING: swap \\x1bis off\n")


def test_cidfile(daemon: FakeDaemon, tmp_path: Path) -> None:
    Container(daemon, talk)
    file = tmp_path / "cid"
    assert tare(daemon, "create", "--cidfile", str(file), "q").returncode == 0
    assert file.read_text() == ID
    done = tare(daemon, "create", "--cidfile", str(file), "q")
    assert done.returncode == 1
    assert done.stderr.startswith(b"container ID file found")
    daemon.on["POST /containers/create"] = lambda e: e.error(500, "no")
    assert tare(daemon, "create", "--cidfile", str(tmp_path / "other"), "q").returncode == 1
    assert not (tmp_path / "other").exists()


def test_stdin_and_its_end(daemon: FakeDaemon) -> None:
    def cat(sock: socket.socket) -> int:
        got = b""
        while data := sock.recv(65536):
            got += data
        sock.sendall(frame(1, got.upper()))
        return 0

    Container(daemon, cat)
    done = tare(daemon, "run", "-i", "busybox", "cat", stdin=b"hello" * 100_000)
    assert (done.returncode, done.stdout) == (0, b"HELLO" * 100_000)
    assert "stdin=1" in daemon.wait_for("/attach").target


def test_stdin_may_be_closed(daemon: FakeDaemon) -> None:
    def ended(sock: socket.socket) -> int:
        return 3 if sock.recv(10) == b"" else 4

    Container(daemon, ended)
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *command("run", "-i", "x")],
        env=environment(daemon),
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 3


def test_only_stdin_attached_ends_with_the_container(daemon: FakeDaemon) -> None:
    container = Container(daemon, talk)

    def hold(sock: socket.socket) -> int:
        container.code = 5
        container.ended.set()
        sock.recv(1)
        return 5

    container.script = hold
    process = start(daemon, "run", "-i", "-a", "stdin", "x", stdin=subprocess.PIPE)
    assert process.wait(HANG_S) == 5
    assert process.stdin is not None
    process.stdin.close()


def test_signals_are_passed_on(daemon: FakeDaemon) -> None:
    container = Container(daemon, talk)
    killed = threading.Event()

    def until_killed(sock: socket.socket) -> int:
        sock.sendall(frame(1, b"ready\n"))
        assert killed.wait(HANG_S)
        return 42

    container.script = until_killed
    daemon.on[f"POST {BASE}/kill"] = lambda e: (e.reply(204), killed.set() if e.target.endswith("=TERM") else None)
    process = start(daemon, "run", "x", stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGUSR1)
    daemon.wait_for("kill?signal=USR1")
    process.send_signal(signal.SIGWINCH)
    process.send_signal(signal.SIGTERM)
    assert process.wait(HANG_S) == 42
    process.stdout.close()
    assert not [each for each in daemon.targets() if "WINCH" in each]


def test_signals_end_the_client_when_they_are_not_passed_on(daemon: FakeDaemon) -> None:
    container = Container(daemon, talk)

    def hold(sock: socket.socket) -> int:
        sock.sendall(frame(1, b"ready\n"))
        sock.recv(1)
        return 0

    container.script = hold
    for number in (signal.SIGTERM, signal.SIGINT):
        container.started.clear()
        process = start(daemon, "run", "--sig-proxy=false", "x", stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.wait(HANG_S) == 128 + number
        process.stdout.close()
    assert not [each for each in daemon.targets() if "kill" in each]


def test_a_reader_that_leaves(daemon: FakeDaemon) -> None:
    def yes(sock: socket.socket) -> int:
        while True:
            try:
                sock.sendall(frame(1, b"y\n" * 1000))
            except OSError:
                return 0

    Container(daemon, yes)
    process = start(daemon, "run", "x", stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdout.readline() == b"y\n"
    process.stdout.close()
    assert process.wait(HANG_S) == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()


def test_a_daemon_that_dies_and_comes_back(daemon: FakeDaemon) -> None:
    """The shim keeps the output flowing; the next daemon is asked for the status while the container still runs."""
    container = Container(daemon, talk)
    first = threading.Event()
    usual = container.wait

    def wait(exchange: Exchange) -> object:
        if not first.is_set():
            first.set()
            exchange.head()
            assert container.started.wait(HANG_S)
            exchange.sock.shutdown(socket.SHUT_RDWR)
            return "close"
        return usual(exchange)

    def process(sock: socket.socket) -> int:
        daemon.wait_for("/wait", 2)
        return talk(sock)

    container.script = process
    daemon.on[f"POST {BASE}/wait"] = wait
    done = tare(daemon, "run", "--rm", "x")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    assert daemon.targets()[-1] == f"POST {BASE}/wait?condition=removed"


def test_a_daemon_that_comes_back_after_the_end(daemon: FakeDaemon) -> None:
    container = Container(daemon, talk)
    waits: list[Exchange] = []

    def wait(exchange: Exchange) -> object:
        waits.append(exchange)
        if len(waits) < 4:
            if len(waits) == 1:
                exchange.head()
            exchange.sock.shutdown(socket.SHUT_RDWR)
            return "close"
        return container.wait(exchange)

    daemon.on[f"POST {BASE}/wait"] = wait
    assert tare(daemon, "run", "x").returncode == 7
    assert [each.target.partition("?")[2] for each in waits] == ["condition=next-exit", "", "", ""]


def test_an_error_frame(daemon: FakeDaemon) -> None:
    def broken(sock: socket.socket) -> int:
        sock.sendall(frame(1, b"a") + frame(3, b"the log is gone"))
        return 0

    Container(daemon, broken)
    done = tare(daemon, "run", "x")
    assert done.returncode == 1
    assert done.stderr == b"error from daemon in stream: the log is gone\n"


def test_tty_needs_a_terminal(daemon: FakeDaemon) -> None:
    done = tare(daemon, "run", "-it", "x")
    assert (done.returncode, done.stderr) == (1, b"the input device is not a TTY\n")
    assert daemon.targets() == []


def test_start_and_attach(daemon: FakeDaemon) -> None:
    Container(daemon, talk)
    done = tare(daemon, "start", "-a", "x")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    assert daemon.targets()[0] == "GET /containers/x/json"
    assert daemon.targets()[-1] == f"POST {BASE}/start"
    done = tare(daemon, "start", "-a", "x", "y")
    assert done.stderr == b"you cannot start and attach multiple containers at once\n"


def test_start_many(daemon: FakeDaemon) -> None:
    daemon.on["POST /containers/a/start"] = lambda e: e.reply(204)
    daemon.on["POST /containers/b/start"] = lambda e: e.reply(304)
    daemon.on["POST /containers/c/start"] = lambda e: e.error(404, "No such container: c")
    done = tare(daemon, "start", "a", "b", "c")
    assert (done.returncode, done.stdout) == (1, b"a\nb\n")
    assert done.stderr == b"Error response from daemon: No such container: c\nError: failed to start containers: c\n"


def test_attach(daemon: FakeDaemon) -> None:
    container = Container(daemon, talk)
    container.started.set()
    done = tare(daemon, "attach", "x")
    assert (done.returncode, done.stdout) == (7, b"out\n")
    found = {"Id": ID, "State": {"Running": False}, "Config": {"Tty": False, "OpenStdin": False}}
    daemon.on["GET /containers/x/json"] = lambda e: e.reply(200, found)
    done = tare(daemon, "attach", "x")
    assert (done.returncode, done.stderr) == (1, b"cannot attach to a stopped container, start it first\n")


def test_exec(daemon: FakeDaemon) -> None:
    polls = []

    def inspect(exchange: Exchange) -> None:
        polls.append(1)
        running = len(polls) < 3
        exchange.reply(200, {"Running": running, "ExitCode": None if running else 9})

    def serve(exchange: Exchange) -> str:
        sock = exchange.upgrade()
        sock.sendall(frame(1, b"hi\n"))
        sock.shutdown(socket.SHUT_RDWR)
        return "close"

    daemon.on["POST /containers/x/exec"] = lambda e: e.reply(201, {"Id": "e1"})
    daemon.on["POST /exec/e1/start"] = serve
    daemon.on["GET /exec/e1/json"] = inspect
    done = tare(daemon, "exec", "-e", "A=1", "-w", "/tmp", "x", "ls", "-la")
    assert (done.returncode, done.stdout) == (9, b"hi\n")
    body = daemon.log[0].json
    assert (body["Cmd"], body["Env"], body["WorkingDir"], body["AttachStdin"]) == (
        ["ls", "-la"],
        ["A=1"],
        "/tmp",
        False,
    )
    assert daemon.log[1].json == {"Detach": False, "Tty": False}
    assert len(polls) == 3


def test_exec_in_the_background(daemon: FakeDaemon) -> None:
    daemon.on["POST /containers/x/exec"] = lambda e: e.reply(201, {"Id": "e1"})
    daemon.on["POST /exec/e1/start"] = lambda e: e.reply(200)
    done = tare(daemon, "exec", "-d", "x", "true")
    assert (done.returncode, done.stdout) == (0, b"")
    assert daemon.log[1].json["Detach"] is True
    assert daemon.log[0].json["AttachStdout"] is False


def test_stop_many_at_once_told_in_order(daemon: FakeDaemon) -> None:
    """All requests are out before the first reply: `b` is answered only after `a` has been asked too, and so on."""
    names = ["a", "b", "c"]
    for name in names:
        daemon.on[f"POST /containers/{name}/stop"] = lambda e: (daemon.wait_for("stop", len(names)), e.reply(204))
    done = tare(daemon, "stop", "-t", "5", "-s", "INT", *names)
    assert (done.returncode, done.stdout) == (0, b"a\nb\nc\n")
    assert sorted(daemon.targets()) == [f"POST /containers/{name}/stop?signal=INT&t=5" for name in names]


@pytest.mark.parametrize(
    ("words", "target"),
    [
        (["stop", "x"], "POST /containers/x/stop"),
        (["stop", "--time", "0", "x"], "POST /containers/x/stop?t=0"),
        (["restart", "x"], "POST /containers/x/restart"),
        (["kill", "x"], "POST /containers/x/kill"),
        (["kill", "-s", "HUP", "/x"], "POST /containers/x/kill?signal=HUP"),
        (["rm", "x"], "DELETE /containers/x"),
        (["container", "remove", "-fv", "x"], "DELETE /containers/x?force=1&v=1"),
        (["pause", "x"], "POST /containers/x/pause"),
        (["unpause", "x"], "POST /containers/x/unpause"),
        (["rm", "../x y"], "DELETE /containers/..%2Fx%20y"),
    ],
)
def test_requests(daemon: FakeDaemon, words: list[str], target: str) -> None:
    daemon.on[target.partition("?")[0]] = lambda e: e.reply(204)
    done = tare(daemon, *words)
    assert daemon.targets() == [target]
    assert (done.returncode, done.stdout) == (0, words[-1].encode() + b"\n")


def test_failures_of_single_commands(daemon: FakeDaemon) -> None:
    daemon.on["DELETE /containers/x"] = lambda e: e.error(404, "No such container: x")
    done = tare(daemon, "rm", "x")
    assert (done.returncode, done.stderr) == (1, b"Error response from daemon: No such container: x\n")
    done = tare(daemon, "rm", "-f", "x")
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr == b"Error response from daemon: No such container: x\n"
    done = tare(daemon, "stop", "--time", "1", "--timeout", "2", "x")
    assert done.stderr.endswith(b"conflicting options: cannot specify both --timeout and --time\n")
    done = tare(daemon, "rm", "")
    assert (done.returncode, done.stderr) == (1, b"invalid container name or ID: value is empty\n")
    daemon.on["POST /containers/a/rename"] = lambda e: e.error(409, "in use")
    done = tare(daemon, "rename", "a", "b")
    assert done.returncode == 1
    assert done.stderr == b"Error response from daemon: in use\nError: failed to rename container named a\n"
    assert daemon.targets()[-1] == "POST /containers/a/rename?name=b"


def test_wait(daemon: FakeDaemon) -> None:
    daemon.on["POST /containers/a/wait"] = lambda e: e.reply(200, {"StatusCode": 3})
    done = tare(daemon, "wait", "a", "b")
    assert (done.returncode, done.stdout) == (1, b"3\n")


def test_stdout_may_be_closed(daemon: FakeDaemon) -> None:
    """Output is lost, but not into a socket that took the number 1."""
    Container(daemon, talk)
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command("run", "x")],
        env=environment(daemon), stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=HANG_S, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (7, b"err\n")


def test_stdout_that_is_full(daemon: FakeDaemon) -> None:
    Container(daemon, talk)
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command("run", "x"),
            env=environment(daemon), stdout=full, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=HANG_S,
            check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, b"write /dev/stdout: no space left on device\n")
