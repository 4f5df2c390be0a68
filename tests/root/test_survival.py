"""What dies takes nothing else along: daemon, shim, zygote and client killed while containers run."""

from __future__ import annotations

import calendar
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import traces
from conftest import BIN, Engine
from traces import until

pytestmark = pytest.mark.root

COUNT = "i=0; while :; do echo $i; i=$((i+1)); usleep 3000; done"
BOTH = "i=0; while :; do echo $i; echo $i >&2; i=$((i+1)); usleep 3000; done"
QUIT = "trap 'echo last; exit 42' TERM; echo ready; while :; do usleep 10000; done"
POLITE = "trap 'echo bye; exit 9' TERM; echo ready; while :; do usleep 10000; done"
ECHO = 'while read -r line; do echo "got $line"; [ "$line" = end ] && exit 7; done'
WRITERS = ("w0", "w1", "w2", "w3", "both", "tty", "stock")
SLEEPERS = tuple(f"s{n}" for n in range(8))


def numbers(text: str) -> list[int]:
    """The whole lines of a writer's output as numbers."""
    whole = text[: text.rfind("\n") + 1]
    return [int(line) for line in whole.split()]


def assert_no_gap(found: list[int], first: int = 0) -> None:
    assert found == list(range(first, first + len(found))), "a line is missing, doubled or in the wrong place"


def nanoseconds(stamp: str) -> int:
    """"2026-01-02T03:04:05.000000006Z" -> ns since the epoch."""
    whole, _, fraction = stamp.rstrip("Z").partition(".")
    return calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) * 10**9 + int(fraction.ljust(9, "0"))


def log(engine: Engine, name: str, *options: str) -> str:
    return engine.docker("logs", *options, name).stdout


def remains(engine: Engine, container: str) -> list[str]:
    return traces.remains(container, engine.run_dir)


def shim_of(engine: Engine, container: str) -> int:
    return int((engine.run_dir / "containers" / container / "shim").read_text().split()[0])


def background(engine: Engine, output: Path, *command: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    """A client of its own, its stdout in a file and its stderr in another beside it."""
    with output.open("wb") as file, output.with_suffix(".err").open("wb") as errors:
        return subprocess.Popen(command, stdin=stdin, stdout=file, stderr=errors, env=engine.environment())


class World:
    """Twenty containers over which the daemon was killed with SIGKILL and started again."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.clients: list[subprocess.Popen[bytes]] = []

    def live_through(self) -> None:
        engine = self.engine
        for name in SLEEPERS:
            engine.docker("run", "-d", "--name", name, "busybox", "sleep", "10000")
        for name in ("w0", "w1", "w2", "w3", "frozen"):
            engine.docker("run", "-d", "--name", name, "busybox", "sh", "-c", COUNT)
        engine.docker("run", "-d", "--name", "both", "busybox", "sh", "-c", BOTH)
        engine.docker("run", "-d", "-t", "--name", "tty", "busybox", "sh", "-c", COUNT)
        engine.docker("run", "-d", "--name", "quits", "busybox", "sh", "-c", QUIT)
        engine.docker("run", "-d", "--rm", "--name", "vanishes", "busybox", "sh", "-c", QUIT)
        engine.docker("run", "-d", "--name", "polite", "busybox", "sh", "-c", POLITE)
        tare = str(BIN / "tare")
        self.front = background(
            engine, self.output("front"), tare, "run", "-i", "--name", "front", "busybox", "sh", "-c", ECHO,
            stdin=subprocess.PIPE,
        )  # fmt: skip
        self.clients.append(self.front)
        self.clients.append(background(engine, self.output("stock"), "docker", "run", "--name", "stock", "busybox", "sh", "-c", COUNT))
        self.clients.append(
            background(engine, self.output("attached"), "docker", "attach", "--no-stdin", "--sig-proxy=false", "w3")
        )
        self.say("before")
        until(lambda: "got before" in self.said("front"), "the attached client is served")
        for name in ("stock", "attached"):
            until(lambda name=name: numbers(self.said(name)), f"output of {name}")  # type: ignore[misc]
        for name in ("quits", "vanishes", "polite"):
            until(lambda name=name: "ready" in log(engine, name), f"{name} is ready")  # type: ignore[misc]
        engine.docker("pause", "frozen")
        self.frozen_lines = numbers(log(engine, "frozen"))
        self.ids = {name: engine.inspect(name)["Id"] for name in self.names()}
        self.before = {name: engine.inspect(name) for name in self.names()}
        self.started_times = {name: traces.start_time(self.pid(name)) for name in self.names()}
        self.lines_before = {name: len(numbers(log(engine, name))) for name in WRITERS}
        self.since = time.time()
        self.died_ns, self.returned_ns = self._crash()

    def _crash(self) -> tuple[int, int]:
        """When the daemon was dead and when its successor answered."""
        died = time.time_ns()
        self.engine.kill()
        for name in ("quits", "vanishes"):
            os.kill(self.pid(name), signal.SIGTERM)
            until(lambda name=name: not traces.alive(self.pid(name)), f"{name} ends")  # type: ignore[misc]
        self.down = {name: len(numbers(self.said(name))) for name in ("stock", "attached")}
        for name, had in self.down.items():
            until(lambda name=name, had=had: len(numbers(self.said(name))) > had + 20, f"{name}: output with no daemon")  # type: ignore[misc]
        self.say("down")
        until(lambda: "got down" in self.said("front"), "the attached client is served without a daemon")
        self.engine.start()
        return died, time.time_ns()

    def names(self) -> tuple[str, ...]:
        return (*SLEEPERS, *WRITERS, "frozen", "quits", "vanishes", "polite", "front")

    def pid(self, name: str) -> int:
        return int(self.before[name]["State"]["Pid"])

    def output(self, name: str) -> Path:
        return self.engine.base / f"{name}.out"

    def said(self, name: str) -> str:
        return self.output(name).read_text()

    def say(self, line: str) -> None:
        assert self.front.stdin is not None
        self.front.stdin.write(f"{line}\n".encode())
        self.front.stdin.flush()

    def close(self) -> None:
        if self.engine.process is None:
            self.engine.start()
        for client in self.clients:
            client.kill()
            client.wait()
            if client.stdin is not None:
                client.stdin.close()


@pytest.fixture(scope="module")
def world(engine: Engine) -> Iterator[World]:
    made = World(engine)
    try:
        made.live_through()
        yield made
    finally:
        made.close()


def test_containers_live_on_with_the_same_process_and_start(world: World) -> None:
    assert len(world.names()) == 20
    for name in set(world.names()) - {"quits", "vanishes"}:
        now, then = world.engine.inspect(name), world.before[name]
        for key in ("Pid", "StartedAt", "Status", "Running", "Paused"):
            assert now["State"][key] == then["State"][key], (name, key)
        assert now["RestartCount"] == 0, name
        assert traces.start_time(world.pid(name)) == world.started_times[name] != 0, name


def test_exit_while_no_daemon_looked_is_known(world: World) -> None:
    state = world.engine.inspect("quits")["State"]
    assert (state["Status"], state["ExitCode"], state["Pid"], state["Error"]) == ("exited", 42, 0, "")
    assert world.died_ns <= nanoseconds(state["FinishedAt"]) <= world.returned_ns
    assert log(world.engine, "quits") == "ready\nlast\n"
    until(lambda: not remains(world.engine, world.ids["quits"]), "nothing is left of quits")


def test_rm_container_that_ended_meanwhile_is_removed(world: World) -> None:
    until(lambda: world.engine.docker("inspect", "vanishes", check=False).returncode, "vanishes is removed")
    assert not (world.engine.data / "containers" / world.ids["vanishes"]).exists()


def test_nothing_was_started_or_killed_by_the_new_daemon(world: World) -> None:
    stream = world.engine.docker(
        "events", "--since", f"{world.since:.9f}", "--until", f"{time.time():.9f}",
        "--format", "{{.Actor.Attributes.name}} {{.Action}}",
    )  # fmt: skip
    seen = [line for line in stream.stdout.splitlines() if line.split()[1] in ("start", "die", "kill", "restart", "destroy")]
    assert sorted(seen) == ["quits die", "vanishes destroy", "vanishes die"]


@pytest.mark.parametrize("name", WRITERS)
def test_log_has_every_line_once(world: World, name: str) -> None:
    found = until(
        lambda: (n := numbers(log(world.engine, name))) and len(n) > world.lines_before[name] + 50 and n, "more lines"
    )
    assert isinstance(found, list)
    assert_no_gap(found)
    if name == "both":
        assert_no_gap(numbers(world.engine.docker("logs", name).stderr))


def test_stock_clients_attached_before_get_every_line(world: World) -> None:
    for name in ("stock", "attached"):
        had = world.down[name]
        until(lambda name=name, had=had: len(numbers(world.said(name))) > had + 100, f"{name}: output goes on")  # type: ignore[misc]
        found = numbers(world.said(name))
        assert_no_gap(found, found[0])
    assert numbers(world.said("stock"))[0] == 0


def test_own_client_attached_before_gets_input_output_and_the_exit_code(world: World) -> None:
    world.say("after")
    until(lambda: "got after" in world.said("front"), "input reaches the container")
    world.say("end")
    assert world.front.wait(30) == 7
    assert world.said("front") == "got before\ngot down\ngot after\ngot end\n"
    assert world.engine.await_state("front", "exited")["ExitCode"] == 7


def test_paused_container_stays_paused_until_it_is_thawed(world: World) -> None:
    engine = world.engine
    assert engine.inspect("frozen")["State"]["Status"] == "paused"
    assert numbers(log(engine, "frozen")) == world.frozen_lines
    engine.docker("unpause", "frozen")
    found = until(lambda: (n := numbers(log(engine, "frozen"))) != world.frozen_lines and n, "it goes on")
    assert isinstance(found, list)
    assert_no_gap(found)


def test_exec_in_an_adopted_container(world: World) -> None:
    for name in ("s0", "w0", "tty"):
        done = world.engine.docker("exec", "-i", name, "sh", "-c", "cat; exit 5", input="word", check=False)
        assert (done.stdout, done.returncode) == ("word", 5), name


def test_logs_follow_an_adopted_container_to_its_end(world: World) -> None:
    client = background(world.engine, world.output("follow"), "docker", "logs", "-f", "w1")
    had = len(numbers(log(world.engine, "w1")))
    until(lambda: len(numbers(world.said("follow"))) > had, "new lines are followed")
    world.engine.docker("kill", "w1")
    assert client.wait(30) == 0
    assert numbers(world.said("follow")) == numbers(log(world.engine, "w1"))
    assert_no_gap(numbers(world.said("follow")))


def test_stop_and_start_of_an_adopted_container(world: World) -> None:
    engine = world.engine
    engine.docker("stop", "polite")
    assert engine.inspect("polite")["State"]["ExitCode"] == 9
    assert log(engine, "polite") == "ready\nbye\n"
    engine.docker("start", "polite")
    until(lambda: log(engine, "polite") == "ready\nbye\nready\n", "it runs again")


def test_wait_for_an_adopted_container(world: World) -> None:
    client = background(world.engine, world.output("wait"), "docker", "wait", "w2")
    world.engine.docker("kill", "-s", "TERM", "w2")  # pid 1 without a handler: ignored by the kernel
    world.engine.docker("kill", "w2")
    assert client.wait(30) == 0 and world.said("wait") == "137\n"


def test_forced_removal_of_an_adopted_container_leaves_nothing(world: World) -> None:
    for name in ("s1", "both"):
        world.engine.docker("rm", "-f", name)
        until(lambda name=name: not remains(world.engine, world.ids[name]), f"nothing is left of {name}")  # type: ignore[misc]


@pytest.mark.parametrize("daemon_lives", [True, False])
def test_killed_shim_takes_its_container_along(engine: Engine, daemon_lives: bool) -> None:
    container = engine.docker("run", "-d", "busybox", "sh", "-c", "sleep 1000 & sleep 1000").stdout.strip()
    pid = engine.inspect(container)["State"]["Pid"]
    until(lambda: len(traces.members(container)) >= 2, "both processes run")
    if not daemon_lives:
        engine.kill()
    os.kill(shim_of(engine, container), signal.SIGKILL)
    if not daemon_lives:
        engine.start()
    state = engine.await_state(container, "exited")
    assert state["ExitCode"] == 137 and state["Pid"] == 0
    until(lambda: not remains(engine, container), "no process and no cgroup is left")
    assert not traces.alive(pid)
    engine.docker("start", container)
    assert engine.inspect(container)["State"]["Running"]
    engine.docker("rm", "-f", container)


def test_container_that_ends_while_it_is_adopted_keeps_its_exit_code(engine: Engine) -> None:
    """Its shim is held up between the end and the exit file, so the new daemon finds neither word nor answer."""
    container = engine.docker("run", "-d", "busybox", "sh", "-c", QUIT).stdout.strip()
    until(lambda: "ready" in log(engine, container), "it runs")
    pid, shim = engine.inspect(container)["State"]["Pid"], shim_of(engine, container)
    engine.kill()
    os.kill(shim, signal.SIGSTOP)
    os.kill(pid, signal.SIGTERM)
    until(lambda: not traces.alive(pid), "the container ends")
    engine.start(wait=False)
    until(lambda: traces.knocking("shim.sock"), "the new daemon asks the shim")
    os.kill(shim, signal.SIGCONT)
    engine.await_ready()
    state = engine.await_state(container, "exited")
    assert (state["ExitCode"], state["Error"]) == (42, "")
    engine.docker("rm", container)


def test_killed_zygote_is_replaced_and_touches_no_container(engine: Engine) -> None:
    container = engine.docker("run", "-d", "busybox", "sh", "-c", COUNT).stdout.strip()
    before = engine.inspect(container)["State"]
    for _ in range(3):
        zygote = until(lambda: traces.zygote(engine.pid), "a zygote")
        spares = set(traces.children(zygote)) - {shim_of(engine, container)}
        os.kill(zygote, signal.SIGKILL)
        assert engine.docker("run", "--rm", "busybox", "echo", "hello").stdout == "hello\n"
        assert engine.docker("exec", container, "echo", "hello").stdout == "hello\n"
        until(lambda spares=spares: not [p for p in spares if traces.alive(p)], "its spare child leaves")  # type: ignore[misc]
    assert engine.inspect(container)["State"] == before
    assert_no_gap(numbers(log(engine, container)))
    engine.docker("rm", "-f", container)


@pytest.mark.parametrize("program", ["docker", str(BIN / "tare")])
def test_killed_client_leaves_its_container_running(engine: Engine, program: str) -> None:
    output = engine.base / "killed.out"
    client = background(engine, output, program, "run", "--rm", "--name", "kept", "busybox", "sh", "-c", COUNT)
    until(lambda: numbers(output.read_text()), "it runs")
    client.kill()
    client.wait()
    had = len(numbers(log(engine, "kept")))
    found = until(lambda: (n := numbers(log(engine, "kept"))) and len(n) > had + 50 and n, "it goes on")
    assert isinstance(found, list)
    assert_no_gap(found)
    container = engine.inspect("kept")["Id"]
    engine.docker("kill", "kept")
    until(lambda: engine.docker("inspect", container, check=False).returncode, "--rm removes it at its end")
    until(lambda: not remains(engine, container), "nothing is left")


def test_sigterm_ends_the_daemon_and_no_container(engine: Engine) -> None:
    container = engine.docker("run", "-d", "busybox", "sh", "-c", COUNT).stdout.strip()
    before = engine.inspect(container)["State"]
    engine.kill(signal.SIGTERM)
    assert traces.alive(before["Pid"])
    engine.start()
    assert engine.inspect(container)["State"] == before
    had = len(numbers(log(engine, container)))
    assert_no_gap(until(lambda: (n := numbers(log(engine, container)))[had:] and n, "it goes on"))  # type: ignore[arg-type]
    engine.docker("rm", "-f", container)


def test_second_daemon_is_refused_and_disturbs_nothing(engine: Engine) -> None:
    container = engine.docker("run", "-d", "busybox", "sleep", "1000").stdout.strip()
    before = engine.inspect(container)["State"]
    done = subprocess.run(
        [sys.executable, str(BIN / "tared"), "--data-root", str(engine.data), "--exec-root", str(engine.run_dir),
         "--pidfile", str(engine.base / "second.pid"), "-H", f"unix://{engine.base}/second.sock"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "in use by another tared" in done.stderr
    assert engine.inspect(container)["State"] == before and traces.alive(before["Pid"])
    assert engine.docker("exec", container, "echo", "hello").stdout == "hello\n"
    engine.docker("rm", "-f", container)


def test_row_of_another_boot_becomes_exited_and_its_pid_is_nobodys(engine: Engine) -> None:
    """After a reboot the pid in the row may be anybody's, even with the same start time: it must not be touched."""
    container = engine.docker("run", "-d", "busybox", "sleep", "1000").stdout.strip()
    shim, pid = shim_of(engine, container), engine.inspect(container)["State"]["Pid"]
    engine.kill()
    for process in (shim, pid):
        os.kill(process, signal.SIGKILL)
    until(lambda: not traces.members(container), "both are gone")
    for directory in traces.cgroups(container):
        os.rmdir(directory)
    shutil.rmtree(engine.run_dir / "containers" / container)
    with subprocess.Popen(["sleep", "1000"]) as innocent:
        with sqlite3.connect(engine.data / "state.db") as ledger:
            row = json.loads(ledger.execute("SELECT row FROM containers WHERE id = ?", (container,)).fetchone()[0])
            row.update(boot_id="another", pid=innocent.pid, start_time=traces.start_time(innocent.pid))
            ledger.execute("UPDATE containers SET row = ? WHERE id = ?", (json.dumps(row), container))
        ledger.close()
        engine.start()
        state = engine.inspect(container)["State"]
        engine.docker("rm", "-f", container)
        assert innocent.poll() is None
        innocent.kill()
    assert (state["Status"], state["ExitCode"], state["Pid"]) == ("exited", 255, 0)
    until(lambda: not remains(engine, container), "nothing is left")


@pytest.mark.parametrize("option", ["--rm=false", "--rm", "-t"])
def test_own_client_asks_the_new_daemon_for_the_exit_code(engine: Engine, option: str) -> None:
    output = engine.base / "asks.out"
    client = background(engine, output, str(BIN / "tare"), "run", option, "--name", "asked", "busybox", "sh", "-c", QUIT)
    until(lambda: "ready" in output.read_text(), "it runs")
    container = engine.inspect("asked")
    engine.restart()
    os.kill(container["State"]["Pid"], signal.SIGTERM)
    assert client.wait(30) == 42 and output.read_text().split() == ["ready", "last"]
    engine.docker("rm", "-f", "asked", check=False)
    until(lambda: not remains(engine, container["Id"]), "nothing is left")
