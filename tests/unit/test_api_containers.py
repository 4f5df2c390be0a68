"""/containers and /exec against an engine of cardboard: shapes, statuses, queries, streams."""

from __future__ import annotations

import asyncio
import errno
import json
import time
from typing import Any

import pytest
from api_house import BODIES, IMAGE_ID, Body, ask, call, container, house, image, running, value

from tare import errors
from tare.api import errors as api_errors
from tare.api import routes
from tare.engine.model import ContainerSpec, Exec, ExecSpec, ExitStatus, MountSpec, Namespaces, State
from tare.http.message import Disconnected, Hijack, Request, Stream


def ids(answer: Any) -> list[int]:
    return [int(entry["Id"], 16) for entry in value(answer)]


def listed(engine: Any, wanted: dict[str, Any], query: str = "all=1", version: str = "") -> list[int]:
    from urllib.parse import quote

    answer = call(engine, "GET", f"{version}/containers/json?{query}&filters={quote(json.dumps(wanted))}")
    assert answer.status == 200, answer.body
    return ids(answer)


def test_list_entry() -> None:
    one = running(spec=ContainerSpec(image="alpine", labels={"a": "b"}, annotations={"k": "v"}))
    engine = house(one)
    entry = value(call(engine, "GET", "/containers/json"))[0]
    assert entry.pop("Status").startswith("Up ")
    assert entry == {
        "Id": f"{1:064x}",
        "Names": ["/box1"],
        "Image": "alpine",
        "ImageID": IMAGE_ID,
        "Command": "/bin/sh -c 'echo hi'",
        "Created": 1_700_000_001,
        "Ports": [],
        "Labels": {"a": "b"},
        "State": "running",
        "HostConfig": {"NetworkMode": "bridge", "Annotations": {"k": "v"}},
        "NetworkSettings": {"Networks": {}},
        "Mounts": [],
    }
    assert "Annotations" not in value(call(engine, "GET", "/v1.45/containers/json"))[0]["HostConfig"]
    sized = value(call(engine, "GET", "/containers/json?size=1"))[0]
    assert (sized["SizeRw"], sized["SizeRootFs"]) == (7, 1007)


def test_an_image_whose_name_moved_is_shown_by_id() -> None:
    engine = house(running(), images=(image(id="sha256:" + "9" * 64),))
    assert value(call(engine, "GET", "/containers/json"))[0]["Image"] == IMAGE_ID


def test_list_shows_a_changed_container_again() -> None:
    from tare.api.containers import Containers

    engine = house(running())
    handlers = Containers(engine)

    def state() -> str:
        line = asyncio.run(handlers.lines(engine.containers.all(), (1, 47), sizes=False))[0]
        return str(json.loads(line)["State"])

    assert state() == "running"
    engine.containers.values[f"{1:064x}"] = running(state=State.PAUSED)
    assert state() == "paused"


def test_only_what_runs_unless_asked() -> None:
    engine = house(running(1), container(2), running(3, state=State.PAUSED), container(4, state=State.EXITED))
    assert ids(call(engine, "GET", "/containers/json")) == [3, 1]
    assert ids(call(engine, "GET", "/containers/json?all=1")) == [4, 3, 2, 1]
    assert ids(call(engine, "GET", "/containers/json?all=False")) == [3, 1]
    assert ids(call(engine, "GET", "/containers/json?limit=2")) == [4, 3]
    answer = call(engine, "GET", "/containers/json?limit=x")
    assert (answer.status, value(answer)["message"]) == (400, 'strconv.Atoi: parsing "x": invalid syntax')


def test_filters() -> None:
    bound = ContainerSpec(
        image="alpine",
        labels={"a": "b"},
        mounts=(MountSpec(type="bind", source="/src", target="/dst"),),
        exposed_ports=("80/tcp",),
        namespaces=Namespaces(network="host"),
    )
    engine = house(
        running(1, spec=bound, name="web"),
        container(2, state=State.EXITED, started=1, finished=2, exit=ExitStatus(code=3)),
        container(3, image_id="sha256:" + "7" * 64),
    )
    network_id = value(call(engine, "GET", "/networks/host"))["Id"]
    for wanted, expected in [
        ({"status": {"exited": True}}, [2]),
        ({"status": ["running", "created"]}, [3, 1]),
        ({"exited": ["3"]}, [2]),
        ({"exited": ["0"]}, []),
        ({"label": ["a"]}, [1]),
        ({"label": ["a=c"]}, []),
        ({"name": ["^/we"]}, [1]),
        ({"name": ["b$"]}, [1]),
        ({"id": [f"{2:064x}"[:64]]}, [2]),
        ({"ancestor": ["alpine"]}, [2, 1]),
        ({"ancestor": ["nope"]}, []),
        ({"volume": ["/dst"]}, [1]),
        ({"volume": ["/src"]}, [1]),
        ({"volume": ["/other"]}, []),
        ({"network": ["host"]}, [1]),
        ({"network": [network_id[:10]]}, [1]),
        ({"network": ["none"]}, []),
        ({"expose": ["79-81/tcp"]}, [1]),
        ({"expose": ["80/udp"]}, []),
        ({"publish": ["80"]}, []),
        ({"health": ["none"]}, [3, 2, 1]),
        ({"health": ["healthy"]}, []),
        ({"is-task": ["true"]}, []),
        ({"before": ["box3"]}, [2, 1]),
        ({"since": ["web"]}, [3, 2]),
        ({"before": ["box3"], "since": ["web"]}, [2]),
    ]:
        assert listed(engine, wanted) == expected, wanted
    assert listed(engine, {"status": ["exited"]}, query="") == [2]


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ({"colour": ["red"]}, "invalid filter 'colour'"),
        ({"status": ["odd"]}, "invalid filter 'status=odd'"),
        ({"health": ["odd"]}, "invalid filter 'health=odd'"),
        ({"exited": ["x"]}, "invalid filter 'exited=x': strconv.Atoi: parsing \"x\": invalid syntax"),
        ({"publish": ["1:2"]}, "filter for 'publish' should not contain ':': 1:2"),
    ],
)
def test_bad_filters(wanted: dict[str, Any], text: str) -> None:
    from urllib.parse import quote

    answer = call(house(), "GET", f"/containers/json?filters={quote(json.dumps(wanted))}")
    assert (answer.status, value(answer)["message"]) == (400, text)


@pytest.mark.parametrize(
    ("state", "true", "pid", "status"),
    [
        (State.CREATED, set(), 0, "Created"),
        (State.RUNNING, {"Running"}, 42, "Up "),
        (State.PAUSED, {"Running", "Paused"}, 42, "(Paused)"),
        (State.RESTARTING, {"Running", "Restarting"}, 0, "Restarting (3) "),
        (State.EXITED, set(), 0, "Exited (3) "),
        (State.REMOVING, set(), 0, "Removal In Progress"),
        (State.DEAD, {"Dead"}, 0, "Dead"),
    ],
)
def test_booleans_of_a_state(state: State, true: set[str], pid: int, status: str) -> None:
    values: dict[str, Any] = (
        {"started": 1, "finished": 2, "exit": ExitStatus(code=3)} if state is not State.CREATED else {}
    )
    engine = house(running(state=state, **{"started": 0, **values}))
    shown = value(call(engine, "GET", "/containers/box1/json"))["State"]
    assert {name for name, flag in shown.items() if flag is True} == true
    assert (shown["Status"], shown["Pid"]) == (state.value, pid)
    line = value(call(engine, "GET", "/containers/json?all=1"))[0]
    assert status in line["Status"]


def test_inspect_of_a_container() -> None:
    engine = house(running(started=1_700_000_000_120_000_000))
    shown = value(call(engine, "GET", "/containers/000/json?size=1"))
    assert (shown["Id"], shown["Name"], shown["Path"], shown["Args"]) == (
        f"{1:064x}",
        "/box1",
        "/bin/sh",
        ["-c", "echo hi"],
    )
    assert shown["State"]["StartedAt"] == "2023-11-14T22:13:20.12Z"
    assert shown["State"]["FinishedAt"] == "0001-01-01T00:00:00Z"
    assert shown["HostsPath"] == f"/data/containers/{1:064x}/hosts"
    assert (shown["SizeRw"], shown["SizeRootFs"]) == (7, 1007)
    assert shown["Config"]["Hostname"] == f"{1:064x}"[:12]
    assert shown["HostConfig"]["ShmSize"] == 64 << 20
    assert shown["HostConfig"]["IpcMode"] == "private"
    assert "SizeRw" not in value(call(engine, "GET", "/containers/box1/json"))


def test_command_of_inspect_is_what_follows_the_entrypoint() -> None:
    one = container(spec=ContainerSpec(image="alpine", entrypoint=("/bin/sh",)))
    shown = value(call(house(one), "GET", "/containers/box1/json"))["Config"]
    assert (shown["Entrypoint"], shown["Cmd"]) == (["/bin/sh"], ["-c", "echo hi"])


@pytest.mark.parametrize(
    ("method", "target", "called"),
    [
        ("POST", "/containers/box1/start", ("start", "box1")),
        ("POST", "/containers/box1/stop", ("stop", "box1", None, "")),
        ("POST", "/containers/box1/stop?t=-1&signal=INT", ("stop", "box1", -1, "INT")),
        ("POST", "/v1.41/containers/box1/stop?t=3&signal=INT", ("stop", "box1", 3, "")),
        ("POST", "/containers/box1/restart?t=3", ("restart", "box1", 3, "")),
        ("POST", "/containers/box1/kill", ("kill", "box1", "KILL")),
        ("POST", "/containers/box1/kill?signal=9", ("kill", "box1", "9")),
        ("POST", "/containers/box1/pause", ("pause", "box1")),
        ("POST", "/containers/box1/unpause", ("unpause", "box1")),
        ("POST", "/containers/box1/rename?name=new", ("rename", "box1", "new")),
        ("DELETE", "/containers/box1?force=1&v=true", ("remove", "box1", True, True)),
    ],
)
def test_steps(method: str, target: str, called: tuple[Any, ...]) -> None:
    engine = house(container())
    answer = call(engine, method, target)
    assert (answer.status, answer.body) == (204, b"")
    assert engine.containers.calls == [called]


def test_resize() -> None:
    engine = house(container())
    assert call(engine, "POST", "/containers/box1/resize?h=24&w=80").status == 200
    assert engine.containers.calls == [("resize", "box1", 24, 80)]
    for query, text in (
        ("h=&w=80", 'invalid resize height "": invalid syntax'),
        ("h=24&w=-1", 'invalid resize width "-1": value out of range'),
        ("h=24&w=4294967296", 'invalid resize width "4294967296": value out of range'),
    ):
        assert value(call(engine, "POST", f"/containers/box1/resize?{query}"))["message"] == text


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (errors.NotFound("No such container: box1"), 404),
        (errors.Conflict("no"), 409),
        (errors.Unchanged("already"), 304),
        (errors.Invalid("no"), 400),
        (errors.Denied("no"), 403),
        (errors.Unavailable("no"), 503),
        (errors.Unsupported("no"), 501),
        (OSError(28, "write the log", "/x"), 500),
    ],
)
def test_kinds_of_failure(failure: Exception, status: int) -> None:
    engine = house(container())
    engine.containers.failure = failure
    answer = call(engine, "POST", "/containers/box1/start")
    assert answer.status == status
    if status == 304:
        assert answer.body == b""
    elif status == 500:
        assert value(answer) == {"message": "write the log /x: no space left on device"}
    else:
        assert value(answer) == {"message": str(failure)}


def test_kill_says_what_it_could_not() -> None:
    engine = house(container())
    engine.containers.failure = errors.Conflict("container x is not running")
    answer = call(engine, "POST", "/containers/box1/kill")
    assert (answer.status, value(answer)["message"]) == (
        409,
        "cannot kill container: box1: container x is not running",
    )


def test_start_refuses_a_body() -> None:
    engine = house(container())
    assert call(engine, "POST", "/containers/box1/start", b"null").status == 204
    answer = call(engine, "POST", "/containers/box1/start", {"Binds": []})
    assert answer.status == 400
    assert "starting container with non-empty request body" in value(answer)["message"]
    assert call(engine, "POST", "/containers/box1/start", None, {"transfer-encoding": "chunked"}).status == 400


def test_paths_that_are_not_there() -> None:
    engine = house(container())
    for target in ("/containers/box1/changes", "/containers/box1/nothing", "/v1.47/nothing"):
        answer = call(engine, "GET", target)
        assert (answer.status, value(answer)) == (404, {"message": "page not found"})
    assert call(engine, "GET", "/v1.23/containers/json").status == 400
    assert call(engine, "GET", "/v1.48/containers/json").status == 400


def test_wait_flushes_headers_before_it_waits() -> None:
    async def run() -> None:
        engine = house(running())
        answer = await ask(engine, "POST", "/v1.47/containers/box1/wait?condition=next-exit")
        assert isinstance(answer, Stream) and answer.flush_headers
        assert answer.content_type == "application/json"
        assert engine.containers.calls == [("wait", "box1", "next-exit")]
        engine.containers.waiting.set_result(ExitStatus(code=7))
        assert [piece async for piece in answer.source] == [b'{"StatusCode":7}\n']

    asyncio.run(run())


def test_wait_that_nobody_reads_is_cancelled() -> None:
    async def run() -> None:
        engine = house(running())
        answer = await ask(engine, "POST", "/containers/box1/wait")
        assert isinstance(answer, Stream)
        reading = asyncio.ensure_future(anext(answer.source))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        assert engine.containers.waiting.cancelled()

    asyncio.run(run())


def test_a_wait_of_old_ends_with_its_client() -> None:
    async def run() -> None:
        engine = house(running())
        body = Body(b"")
        left = asyncio.Event()
        body.disconnected = left.wait  # type: ignore[method-assign, assignment]
        request = Request("POST", "/v1.29/containers/box1/wait", "/v1.29/containers/box1/wait", "", {}, body)
        waiting = asyncio.ensure_future(routes.build(engine).match(request)(request))
        await asyncio.sleep(0)
        left.set()
        with pytest.raises(Disconnected):
            await waiting
        assert engine.containers.waiting.cancelled()

    asyncio.run(run())


def test_a_full_disk_leaves_no_trace_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    for number, traces in ((errno.ENOSPC, 0), (errno.EDQUOT, 0), (errno.EIO, 1)):
        caplog.clear()
        answer = api_errors.response(OSError(number, "create container", '"/box"'))
        assert answer.status == 500 and b'create container \\"/box\\": ' in answer.body
        assert [bool(record.exc_info) for record in caplog.records] == [bool(traces)]


def test_wait_conditions() -> None:
    answer = call(house(running()), "POST", "/containers/box1/wait?condition=odd")
    assert (answer.status, value(answer)["message"]) == (400, 'invalid condition: "odd"')


def test_wait_tells_of_an_error() -> None:
    async def run() -> None:
        engine = house(running())
        answer = await ask(engine, "POST", "/containers/box1/wait")
        assert isinstance(answer, Stream)
        engine.containers.waiting.set_result(ExitStatus(code=255, error="lost"))
        (piece,) = [piece async for piece in answer.source]
        assert json.loads(piece) == {"StatusCode": 255, "Error": {"Message": "lost"}}

    asyncio.run(run())


RAW, MULTIPLEXED = "application/vnd.docker.raw-stream", "application/vnd.docker.multiplexed-stream"


@pytest.mark.parametrize(
    ("version", "tty", "upgrade", "content_type"),
    [
        ("/v1.47", False, True, MULTIPLEXED),
        ("/v1.47", True, True, RAW),
        ("/v1.41", False, True, RAW),
        ("/v1.47", False, False, RAW),
    ],
)
def test_attach(version: str, tty: bool, upgrade: bool, content_type: str) -> None:
    async def run() -> None:
        engine = house(running(spec=ContainerSpec(image="a", tty=tty)))
        headers = {"connection": "Upgrade", "upgrade": "tcp"} if upgrade else {}
        target = f"{version}/containers/box1/attach?stream=1&stdin=1&stdout=1&stderr=1&detachKeys=ctrl-a"
        answer = await ask(engine, "POST", target, None, headers)
        assert isinstance(answer, Hijack) and answer.content_type == content_type
        await answer.run(None, b"early")  # type: ignore[arg-type]
        assert engine.containers.calls == [("attach", f"{1:064x}", b"early", False, True)]
        streams = engine.containers.attached[0]
        assert (streams.stdin, streams.stdout, streams.stderr) == (False, True, True)
        assert (streams.multiplexed, streams.detach_keys) == (not tty, "ctrl-a")

    asyncio.run(run())


def test_attach_is_refused_before_the_upgrade() -> None:
    engine = house(running(state=State.PAUSED))
    answer = call(engine, "POST", "/containers/box1/attach?stream=1")
    assert answer.status == 409
    assert call(engine, "POST", "/containers/nobody/attach").status == 404


def test_logs() -> None:
    engine = house(running())
    answer = call(engine, "GET", "/containers/box1/logs?stdout=1&since=5&until=6.5&tail=3&follow=1&timestamps=true")
    assert (answer.status, answer.content_type, answer.body) == (200, MULTIPLEXED, b"hello\n")
    assert engine.containers.calls[0][2] == {
        "follow": True,
        "stdout": True,
        "stderr": False,
        "since_ns": 5 * 10**9,
        "until_ns": 6_500_000_000,
        "timestamps": True,
        "tail": 3,
        "details": False,
    }
    call(engine, "GET", "/containers/box1/logs?stderr=1&tail=all")
    assert (engine.containers.calls[1][2]["tail"], engine.containers.calls[1][2]["since_ns"]) == (None, None)
    answer = call(engine, "GET", "/containers/box1/logs")
    assert (answer.status, value(answer)["message"]) == (
        400,
        "must specify at least one of 'stdout' or 'stderr'",
    )
    assert call(engine, "GET", "/v1.41/containers/box1/logs?stdout=1").content_type == RAW


def test_prune() -> None:
    engine = house(
        running(1), container(2, spec=ContainerSpec(image="a", labels={"keep": ""})), container(3), container(4)
    )
    answer = call(engine, "POST", '/containers/prune?filters={"label!":["keep"]}')
    assert value(answer) == {"ContainersDeleted": [f"{4:064x}", f"{3:064x}"], "SpaceReclaimed": 14}
    assert sorted(engine.containers.values) == [f"{1:064x}", f"{2:064x}"]
    answer = call(engine, "POST", f'/containers/prune?filters={{"until":["{1_700_000_000}"]}}')
    assert value(answer) == {"ContainersDeleted": None, "SpaceReclaimed": 0}


def test_exec_create() -> None:
    engine = house(running())
    answer = call(engine, "POST", "/containers/box1/exec", BODIES["exec"])
    assert (answer.status, value(answer)) == (201, {"Id": "e" * 64})
    assert engine.execs.get("e" * 64).spec == ExecSpec(
        args=("ls",), env=("X=1",), working_dir="/x", user="5", privileged=True, attach_stdout=True, attach_stderr=True
    )
    answer = call(engine, "POST", "/containers/box1/exec", {"Cmd": []})
    assert (answer.status, value(answer)["message"]) == (400, "No exec command specified")


def test_exec_start() -> None:
    async def run() -> None:
        engine = house(running())
        engine.execs.create("box1", ExecSpec(args=("ls",)))
        target = f"/v1.47/exec/{'e' * 64}/start"
        answer = await ask(engine, "POST", target, {"Detach": False, "Tty": False}, {"upgrade": "tcp"})
        assert isinstance(answer, Hijack) and answer.content_type == MULTIPLEXED
        sock: Any = object()
        await answer.run(sock, b"x")
        assert engine.execs.calls == [("e" * 64, False, False, (0, 0), sock, b"x")]
        engine.execs.calls.clear()
        body = {"Detach": True, "Tty": True, "ConsoleSize": [3, 4]}
        answer = await ask(engine, "POST", target, body)
        assert not isinstance(answer, (Hijack, Stream)) and answer.status == 200
        assert engine.execs.calls == [("e" * 64, True, True, (3, 4), None, b"")]

    asyncio.run(run())


def test_exec_start_of_an_unknown_exec() -> None:
    answer = call(house(), "POST", "/exec/nope/start", {})
    assert (answer.status, value(answer)["message"]) == (404, "No such exec instance: nope")


def test_exec_inspect_and_resize() -> None:
    engine = house(running())
    engine.execs.values["x"] = Exec(
        id="x", container="c", spec=ExecSpec(args=("ls", "-l"), tty=True, user="u"), running=True, pid=9
    )
    assert value(call(engine, "GET", "/exec/x/json")) == {
        "ID": "x",
        "Running": True,
        "ExitCode": None,
        "ProcessConfig": {"tty": True, "entrypoint": "ls", "arguments": ["-l"], "privileged": False, "user": "u"},
        "OpenStdin": False,
        "OpenStderr": False,
        "OpenStdout": False,
        "CanRemove": False,
        "ContainerID": "c",
        "DetachKeys": None,
        "Pid": 9,
    }
    assert call(engine, "POST", "/exec/x/resize?h=1&w=2").status == 200
    assert engine.execs.calls == [("resize", "x", 1, 2)]


def test_a_list_of_a_hundred_is_rendered_once() -> None:
    """Not a timing test: the second listing must not build a single Summary."""
    from tare.api import inspect_wire
    from tare.api.containers import Containers

    engine = house(*(running(number) for number in range(1, 101)))
    handlers = Containers(engine)

    async def run() -> list[bytes]:
        return await handlers.lines(engine.containers.all(), (1, 47), sizes=False)

    first = asyncio.run(run())
    original, inspect_wire.summary = inspect_wire.summary, None  # type: ignore[assignment]
    try:
        second = asyncio.run(run())
    finally:
        inspect_wire.summary = original
    assert len(first) == len(second) == 100
    assert json.loads(second[0])["Id"] == f"{100:064x}"
    assert inspect_wire.status(engine.containers.all()[0], time.time_ns()) == json.loads(second[0])["Status"]
