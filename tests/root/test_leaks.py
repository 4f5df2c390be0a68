"""Starts cut short, starts refused and many lives: nothing of them stays on the host."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import traces
from conftest import Engine
from traces import until

pytestmark = pytest.mark.root


def rows(engine: Engine) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(engine.http("GET", "/containers/json?all=1").stdout)
    return listed


def remains(engine: Engine, container: str) -> list[str]:
    return traces.remains(container, engine.run_dir)


def assert_whole(engine: Engine) -> dict[str, str]:
    """Rows and facts are one: {id: state}. A container runs and is shown so, or there is nothing of it on the host."""
    states = {row["Id"]: row["State"] for row in rows(engine)}
    running = {container for container, state in states.items() if state == "running"}
    assert {state for container, state in states.items() if container not in running} <= {"created", "exited"}
    for container in running:
        pid = json.loads(engine.http("GET", f"/containers/{container}/json").stdout)["State"]["Pid"]
        assert traces.alive(pid) and container in traces.read(f"/proc/{pid}/cgroup")
        assert "sleep" in traces.read(f"/proc/{pid}/cmdline"), "execve was never reached"
    for container in set(states) - running:
        until(lambda container=container: not remains(engine, container), "nothing of what does not run")  # type: ignore[misc]
    until(lambda: len(traces.shims(engine.base)) == len(running), "a shim for each")
    assert set(os.listdir(engine.run_dir / "containers")) == running
    return states


def test_daemon_killed_in_the_middle_of_starts_leaves_no_half_container(fresh_engine: Engine) -> None:
    engine, moment = fresh_engine, random.Random(2026)
    seen = set()
    for _ in range(20):
        clients = [
            subprocess.Popen(
                ["docker", "run", "-d", "busybox", "sleep", "1000"], env=engine.environment(),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )
            for _ in range(4)
        ]  # fmt: skip
        time.sleep(moment.uniform(0.02, 0.2))
        engine.kill()
        told = {client.communicate(timeout=30)[0].strip(): client.returncode for client in clients}
        engine.start()
        states = assert_whole(engine)
        seen |= set(states.values())
        for container, code in told.items():
            assert code or states[container] == "running", "success was reported for a container that does not run"
        engine.docker_rm_all()
    assert "running" in seen
    for number in engine.data.joinpath("snapshots").iterdir():
        assert number.name == "1", "a snapshot of no container is left"


class Tally:
    """What an engine holds on its host, as numbers that may not grow."""

    def __init__(self, engine: Engine, containers: list[str]) -> None:
        zygote = until(lambda: traces.zygote(engine.pid), "a zygote")
        processes = [engine.pid, zygote, *traces.children(zygote), *traces.shims(engine.base)]
        members = [pid for pid in traces.pids() if set(containers) & set(re.split("[/\n]", traces.read(f"/proc/{pid}/cgroup")))]
        self.numbers = {
            "descriptors": len(traces.open_files(engine.pid)),
            "descriptors of the zygote": len(traces.open_files(zygote)),
            "threads": len(os.listdir(f"/proc/{engine.pid}/task")),
            "processes": len([pid for pid in processes + members if traces.alive(pid)]),
            "children": len(traces.children(engine.pid)),
            "namespaces": len(traces.namespaces(processes)),
            "mounts": sum(str(engine.base) in line for line in traces.read("/proc/1/mountinfo").splitlines()),
            "cgroups": len(set(containers) & {os.path.basename(path) for path in traces.cgroups("*")}),
            "run directories": len(os.listdir(engine.run_dir / "containers")),
            "folders": len(os.listdir(engine.data / "containers")) + len(os.listdir(engine.data / "snapshots")),
            "trash": len(os.listdir(engine.data / "trash")),
        }


def disk(path: Path) -> int:
    """KiB below `path`."""
    return int(subprocess.run(["du", "-sk", str(path)], capture_output=True, text=True, check=True).stdout.split()[0])


def cycle(connection: http.client.HTTPConnection) -> str:
    """Create, start and remove one container over the kept connection; its id."""

    def ask(method: str, path: str, body: str = "") -> Any:
        connection.request(method, path, body or None, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        data = reply.read()
        assert reply.status < 300, (method, path, data)
        return json.loads(data) if data else None

    container: str = ask("POST", "/containers/create", '{"Image": "busybox", "Cmd": ["sleep", "1000"]}')["Id"]
    ask("POST", f"/containers/{container}/start")
    ask("DELETE", f"/containers/{container}?force=1")
    return container


def test_two_hundred_lives_leave_everything_as_it_was(fresh_engine: Engine) -> None:
    engine = fresh_engine
    connection = http.client.HTTPConnection("d", timeout=60)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(engine.socket))
    for _ in range(20):  # the pool of threads and the ledger's log reach their size
        cycle(connection)
    settled = until(lambda: not os.listdir(engine.data / "trash") and Tally(engine, []), "rest after the warm-up")
    assert isinstance(settled, Tally)
    before, used = settled.numbers, disk(engine.data)
    lives = [cycle(connection) for _ in range(200)]
    until(lambda: Tally(engine, lives).numbers == before, f"all as before: {before}", 15)
    until(lambda: disk(engine.data) <= used + 1024, f"at most 1 MiB more than {used} KiB on disk")
    connection.close()


def in_pid_namespace_of(pid: int) -> list[int]:
    """Other processes there, dead ones that nobody has reaped too."""
    wanted, found = os.readlink(f"/proc/{pid}/ns/pid"), []
    for other in traces.pids():
        try:
            if other != pid and os.readlink(f"/proc/{other}/ns/pid") == wanted:
                found.append(other)
        except OSError:
            continue
    return found


def test_refused_execs_leave_no_process_behind(engine: Engine) -> None:
    """One that nobody reaps would keep the container's pid namespace, and so its first process, from ending."""
    container = engine.docker("run", "-d", "busybox", "sleep", "1000").stdout.strip()
    pid = engine.inspect(container)["State"]["Pid"]
    for wrong in (("nope",), ("/etc",), ("/etc/passwd",)):
        assert engine.docker("exec", container, *wrong, check=False).returncode in (126, 127)
    assert engine.docker("exec", "-w", "/nowhere", container, "true", check=False).returncode
    assert engine.docker("exec", "-u", "nobody-here", container, "true", check=False).returncode
    until(lambda: not in_pid_namespace_of(pid), "only the first process is there", 1)
    engine.docker("rm", "-f", container)


def test_refused_starts_leave_nothing_behind(engine: Engine) -> None:
    shims = len(traces.shims(engine.base))
    for wrong in (("busybox", "nope"), ("busybox", "/etc"), ("-u", "nobody-here", "busybox"), ("-v", "/etc/hostname:/bin", "busybox")):
        container = engine.docker("create", *wrong).stdout.strip()
        done = engine.docker("start", container, check=False)
        assert done.returncode and engine.inspect(container)["State"]["Status"] == "created"
        assert remains(engine, container) == []
        engine.docker("rm", container)
    # "<=": at the beginning one of an earlier test may still have been on its way out
    until(lambda: len(traces.shims(engine.base)) <= shims, "their shims are gone")
    zygote = traces.zygote(engine.pid)
    until(lambda: len(traces.children(zygote)) == 1, "one child waits")


def test_start_is_repeated_when_its_starter_is_killed_half_way(engine: Engine) -> None:
    """It is held up where it opens the log, which is a pipe that nobody reads: its socket and its names exist by then."""
    container = engine.docker("create", "busybox", "sleep", "1000").stdout.strip()
    pipe = engine.data / "containers" / container / f"{container}-json.log"
    os.mkfifo(pipe)
    with subprocess.Popen(["docker", "start", container], env=engine.environment(), stdout=subprocess.DEVNULL) as client:
        shim = int(until(lambda: traces.read(engine.run_dir / "containers" / container / "shim"), "its shim").split()[0])
        starter = until(lambda: traces.children(shim), "its starter")[0]
        until(lambda: traces.stat(starter)[0] == "S", "it waits")
        pipe.unlink()
        os.kill(starter, signal.SIGKILL)
        assert client.wait(30) == 0
    assert engine.inspect(container)["State"]["Running"]
    engine.docker("rm", "-f", container)
    until(lambda: not remains(engine, container) and not traces.alive(shim), "nothing is left")


@pytest.mark.parametrize(("count", "byte"), [(24_000, b"x"), (24_000, b"\x01"), (24_000, b"\xff")])
def test_bytes_sent_ahead_of_the_start_reach_the_program(engine: Engine, count: int, byte: bytes) -> None:
    """They travel through three processes in one message, in which each may take six times its place."""
    body = {"Image": "busybox", "Cmd": ["wc", "-c"], "OpenStdin": True, "StdinOnce": True, "AttachStdin": True}
    container = json.loads(engine.http("POST", "/containers/create", body).stdout)["Id"]
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(engine.socket))
        head = f"POST /containers/{container}/attach?stream=1&stdin=1 HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp"
        client.sendall(head.encode() + b"\r\n\r\n" + byte * count)
        assert b"101" in client.recv(4096)
        engine.docker("start", container)
        client.shutdown(socket.SHUT_WR)
        assert engine.await_state(container, "exited")["ExitCode"] == 0
    assert engine.docker("logs", container).stdout == f"{count}\n"
    engine.docker("rm", container)
