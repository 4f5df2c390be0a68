"""`tare version`, `info`, `events`, `daemon` against a scripted daemon."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_fake_daemon import HANG_S, FakeDaemon, command, environment, tare

DETAILS = {"ApiVersion": "1.45", "MinAPIVersion": "1.24", "GoVersion": "CPython 3.12.1", "Os": "linux", "Arch": "amd64",
           "Experimental": "false", "GitCommit": "", "BuildTime": ""}  # fmt: skip
VERSION = {
    "Platform": {"Name": "Tare Engine"},
    "Components": [{"Name": "Engine", "Version": "0.9", "Details": DETAILS}],
    "Version": "0.9",
    "ApiVersion": "1.45",
    "MinAPIVersion": "1.24",
}
INFO: dict[str, Any] = {
    "ID": "i", "Containers": 3, "ContainersRunning": 1, "ContainersPaused": 0, "ContainersStopped": 2, "Images": 4,
    "ServerVersion": "0.9", "Driver": "overlay2", "DriverStatus": [["Supports d_type", "true"]], "CgroupVersion": "2",
    "Plugins": {"Volume": ["local"], "Network": ["host"], "Authorization": None, "Log": ["json-file"]},
    "Swarm": {"LocalNodeState": "inactive"}, "Runtimes": {"runc": {"path": "x"}}, "DefaultRuntime": "runc",
    "OSType": "linux", "InitBinary": "docker-init", "ContainerdCommit": {"ID": ""}, "RuncCommit": {"ID": "r"},
    "InitCommit": {"ID": ""}, "SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless"],
    "KernelVersion": "6.18", "NCPU": 2, "MemTotal": 8123456789, "Name": "h\x1b", "DockerRootDir": "/d", "Debug": False,
    "NFd": 9, "HttpsProxy": "http://p", "Labels": ["a=b"], "ExperimentalBuild": False, "LiveRestoreEnabled": True,
    "RegistryConfig": {"InsecureRegistryCIDRs": ["127.0.0.0/8"], "IndexConfigs": {}, "Mirrors": []},
    "Warnings": ["WARNING: w"], "CpuCfsQuota": True,
}  # fmt: skip


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    daemon = FakeDaemon(tmp_path / "sock")
    daemon.on["GET /version"] = lambda e: e.reply(200, VERSION)
    daemon.on["GET /info"] = lambda e: e.reply(200, INFO)
    yield daemon
    daemon.close()


def test_version(daemon: FakeDaemon) -> None:
    text = tare(daemon, "version").stdout.decode()
    client, _, server = text.partition("\n\nServer: ")
    assert client.startswith("Client:\n Version:           ")
    assert "\n API version:       1.45 (downgraded from 1.47)\n" in client
    assert client.endswith("\n Context:           default")
    assert server == (
        "Tare Engine\n Engine:\n  Version:          0.9\n  API version:      1.45 (minimum version 1.24)\n"
        "  Python version:   CPython 3.12.1\n  OS/Arch:          linux/amd64\n  Experimental:     false\n"
    )


@pytest.mark.parametrize(
    ("form", "output"),
    [
        ("{{.Server.Version}}", "0.9\n"),
        ("{{.Client.APIVersion}} {{.Server.APIVersion}} {{.Client.DefaultAPIVersion}}", "1.45 1.45 1.47\n"),
        ("{{(index .Server.Components 0).Details.Arch}}", "amd64\n"),
    ],
)
def test_version_formats(daemon: FakeDaemon, form: str, output: str) -> None:
    assert tare(daemon, "version", "--format", form).stdout.decode() == output


def test_version_as_json(daemon: FakeDaemon) -> None:
    found = json.loads(tare(daemon, "version", "-f", "json").stdout)
    assert found["Server"] == VERSION and found["Client"]["Context"] == "default"


def test_version_without_daemon(tmp_path: Path) -> None:
    done = tare(None, "version", TARE_HOST=f"unix://{tmp_path}/none")
    assert done.returncode == 1
    assert done.stdout.startswith(b"Client:\n Version:") and b"Server" not in done.stdout
    assert done.stderr.startswith(b"Cannot connect to the tare daemon at unix://")


def test_version_errors(daemon: FakeDaemon) -> None:
    done = tare(daemon, "version", "-f", "{{.Foo")
    assert (done.stderr, done.returncode) == (b"template parsing error: template: version:1: unclosed action\n", 64)
    done = tare(daemon, "version", "-f", "a{{.Server.Foo}}")
    assert (done.stdout, done.returncode) == (b"a\n", 1)
    assert done.stderr == (
        b'template: version:1:10: executing "version" at <.Server.Foo>: '
        b"can't evaluate field Foo in type *types.Version\n"
    )


def test_info(daemon: FakeDaemon) -> None:
    done = tare(daemon, "info")
    assert (done.stderr, done.returncode) == (b"WARNING: w\n", 0)
    text = done.stdout.decode()
    assert text.startswith("Client:\n Version:    ") and "\n\nServer:\n Containers: 3\n  Running: 1\n" in text
    for part in (
        " Storage Driver: overlay2\n  Supports d_type: true\n Cgroup Version: 2\n Plugins:\n  Volume: local\n",
        " Runtimes: runc\n Default Runtime: runc\n Init Binary: docker-init\n containerd version: \n runc version: r\n",
        " Security Options:\n  seccomp\n   Profile: builtin\n  rootless\n Kernel Version: 6.18\n",
        " CPUs: 2\n Total Memory: 7.566GiB\n Name: h\\x1b\n ID: i\n Docker Root Dir: /d\n Debug Mode: false\n",
        " HTTPS Proxy: http://p\n Labels:\n  a=b\n Experimental: false\n Insecure Registries:\n  127.0.0.0/8\n",
    ):
        assert part in text
    assert text.endswith(" Live Restore Enabled: true\n\n")
    assert "  File Descriptors: 9\n" not in text
    assert "  File Descriptors: 9\n" in tare(daemon, "-D", "info").stdout.decode()


def test_info_formats(daemon: FakeDaemon) -> None:
    assert tare(daemon, "info", "-f", "{{.Driver}} {{.NCPU}} {{.CPUCfsQuota}} {{.ServerErrors}}").stdout == (
        b"overlay2 2 true []\n"
    )
    assert json.loads(tare(daemon, "info", "--format", "{{json .}}").stdout)["Name"] == "h\x1b"
    before = len(daemon.log)
    assert tare(daemon, "info", "-f", "{{.ClientInfo.Context}}").stdout == b"default\n"
    assert len(daemon.log) == before
    done = tare(daemon, "info", "-f", "{{.Foo}}")
    assert done.returncode == 1 and done.stderr.endswith(b"can't evaluate field Foo in type system.dockerInfo\n")


def test_info_of_a_daemon_that_fails(daemon: FakeDaemon) -> None:
    daemon.on["GET /info"] = lambda e: e.error(500, "broken")
    done = tare(daemon, "info")
    assert done.returncode == 1 and done.stdout.endswith(b"\n\nServer:\n")
    assert done.stderr == b"ERROR: Error response from daemon: broken\nerrors pretty printing info\n"
    done = tare(daemon, "info", "-f", "{{.ServerErrors}}")
    assert done.returncode == 0 and done.stdout == b"[Error response from daemon: broken]\n"


EVENTS: list[dict[str, Any]] = [
    {"status": "start", "id": "c1", "from": "nginx", "Type": "container", "Action": "start", "scope": "local",
     "Actor": {"ID": "c1", "Attributes": {"name": "web", "image": "ngi\x1bnx"}}, "timeNano": 1700000000123456789,
     "time": 1700000000},
    {"Type": "network", "Action": "create", "Actor": {"ID": "n", "Attributes": {}}, "time": 1700000001},
]  # fmt: skip


def test_events(daemon: FakeDaemon) -> None:
    daemon.on["GET /events"] = lambda e: e.reply(200, b"".join(json.dumps(each).encode() + b"\n" for each in EVENTS))
    done = tare(daemon, "events", "--since", "1700000000", "--until", "2024-01-01T00:00:00Z", "-f", "type=x", TZ="UTC")
    assert done.stdout.decode() == (
        "2023-11-14T22:13:20.123456789Z container start c1 (image=ngi\\x1bnx, name=web)\n"
        "2023-11-14T22:13:21.000000000Z network create n\n"
    )
    assert daemon.log[-1].target == (
        "/events?filters=%7B%22type%22%3A%7B%22x%22%3Atrue%7D%7D&since=1700000000&until=1704067200.000000000"
    )
    form = "{{.Type}} {{.Status}} {{.ID}} {{.Actor.Attributes.name}} {{.TimeNano}}"
    assert tare(daemon, "events", "--format", form).stdout == (
        b"container start c1 web 1700000000123456789\nnetwork   <no value> 0\n"
    )
    lines = tare(daemon, "events", "--format", "json").stdout.splitlines()
    assert [json.loads(line) for line in lines] == EVENTS
    done = tare(daemon, "events", "--format", "{{.Foo}}")
    assert (done.returncode, done.stdout) == (64, b"")
    assert done.stderr == (
        b'Error parsing format: template: :1:2: executing "" at <.Foo>: '
        b"can't evaluate field Foo in type *events.Message\n"
    )


def test_events_are_shown_as_they_come(daemon: FakeDaemon) -> None:
    def stream(exchange: Any) -> str:
        exchange.head()
        exchange.chunk(json.dumps(EVENTS[0]).encode() + b"\n")
        with daemon.news:
            daemon.news.wait(HANG_S)
        return "close"

    daemon.on["GET /events"] = stream
    process = subprocess.Popen(
        command("events", "--format", "{{.Action}}"), stdout=subprocess.PIPE, env=environment(daemon)
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"start\n"
    finally:
        process.kill()
        process.communicate()
        with daemon.news:
            daemon.news.notify_all()


def test_daemon_becomes_tared(tmp_path: Path) -> None:
    program = tmp_path / "tared"
    program.write_text('#!/bin/sh\necho "$$ $@"\n')
    program.chmod(0o755)
    argv = command("daemon", "--data-root", "/x", "--help")
    argv[argv.index("/nowhere/tare")] = str(tmp_path / "tare")
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment())
    out, _ = process.communicate(timeout=HANG_S)
    assert out.decode() == f"{process.pid} --data-root /x --help\n"


def test_no_tared() -> None:
    done = tare(None, "daemon", PATH="/nonexistent")
    assert done.returncode == 1 and b"no tared in /nowhere or on PATH" in done.stderr
