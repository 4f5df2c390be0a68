"""`tare inspect` and its two sisters against a scripted daemon."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_fake_daemon import FakeDaemon, tare

WEB = {"Id": "c" * 64, "Name": "/web", "State": {"Pid": 7}, "Config": {"Env": ["A=\x1b<b>é"], "Labels": {}}, "Args": []}
IMAGE = {"Id": "sha256:" + "1" * 64, "RepoTags": ["img:1"], "Metadata": {"LastTagTime": "2024-01-02T03:04:05.5Z"}}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    daemon = FakeDaemon(tmp_path / "sock")
    daemon.on["GET /containers/web/json"] = lambda e: e.reply(200, WEB)
    daemon.on["GET /images/a/img:1/json"] = lambda e: e.reply(200, IMAGE)
    daemon.on["GET /networks/host"] = lambda e: e.reply(200, {"Name": "host", "Id": "n1", "Labels": {}})
    yield daemon
    daemon.close()


def test_documents(daemon: FakeDaemon) -> None:
    done = tare(daemon, "inspect", "web", "host")
    assert json.loads(done.stdout) == [WEB, {"Name": "host", "Id": "n1", "Labels": {}}]
    assert done.stdout.decode().startswith('[\n    {\n        "Id": "ccc')
    assert '            "Env": [\n                "A=\\u001b<b>é"\n            ],\n            "Labels": {}\n' in (
        done.stdout.decode()
    )
    assert '"Args": []\n    },\n' in done.stdout.decode()


def test_what_is_not_there(daemon: FakeDaemon) -> None:
    done = tare(daemon, "inspect", "nope")
    assert (done.stdout, done.stderr, done.returncode) == (b"[]\n", b"Error: No such object: nope\n", 1)
    assert daemon.targets() == [
        "GET /containers/nope/json", "GET /images/nope/json", "GET /networks/nope", "GET /volumes/nope",
        "GET /plugins/nope/json",
    ]  # fmt: skip
    done = tare(daemon, "inspect", "-f", "{{.Name}}", "nope", "web")
    assert (done.stdout, done.stderr, done.returncode) == (b"/web\n", b"Error: No such object: nope\n", 1)
    assert tare(daemon, "inspect", "-f", "{{.Name}}", "nope").stdout == b"\n"


def test_a_daemon_that_fails_is_no_missing_object(daemon: FakeDaemon) -> None:
    daemon.on["GET /containers/web/json"] = lambda e: e.error(500, "broken")
    done = tare(daemon, "inspect", "web")
    assert (done.stdout, done.stderr) == (b"[]\n", b"Error response from daemon: broken\n")
    assert len(daemon.log) == 1


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (["-f", "{{.State.Pid}}", "web"], "7\n"),
        (["-f", "{{.Id}}", "web", "host"], "c" * 64 + "\nn1\n"),
        (["--format", "json", "host"], '[{"Name":"host","Id":"n1","Labels":{}}]\n'),
        (["-f", "{{.Config.Healthcheck}} {{.State.Health}}", "web"], "<nil> <nil>\n"),
        (["-f", "{{index .Config.Env 0}}", "web"], "A=\x1b<b>é\n"),
        (["--type", "container", "-f", "{{.Name}}", "/web"], "/web\n"),
        (["-f", "{{.RepoTags}} {{.Metadata.LastTagTime}}", "a/img:1"], "[img:1] 2024-01-02 03:04:05.5 +0000 UTC\n"),
    ],
)
def test_formats(daemon: FakeDaemon, words: list[str], output: str) -> None:
    done = tare(daemon, "inspect", *words)
    assert (done.stdout.decode(), done.stderr, done.returncode) == (output, b"", 0)


@pytest.mark.parametrize(
    ("words", "text", "status"),
    [
        (["-f", "{{.Foo", "web"], "template parsing error: template: :1: unclosed action", 64),
        (
            ["-f", "{{.State.Health.Status}}", "web"],
            'template parsing error: template: :1:8: executing "" at <.State.Health.Status>: '
            'map has no entry for key "Health"',
            1,
        ),
        (
            ["-f", '{{(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort}}', "web"],
            'template parsing error: template: :1:32: executing "" at <.NetworkSettings.Ports>: '
            'map has no entry for key "NetworkSettings"',
            1,
        ),
        (
            ["--type", "foo", "web"],
            'unknown type: "foo": must be one of "config", "container", "image", "network", "node", "plugin", "secret", '
            '"service", "task", "volume"',
            1,
        ),
        (["--type", "image", "web"], "Error response from daemon: page not found: /images/web/json", 1),
        (["--type", "volume", ""], "invalid volume name or ID: value is empty", 1),
    ],
)
def test_failures(daemon: FakeDaemon, words: list[str], text: str, status: int) -> None:
    done = tare(daemon, "inspect", *words)
    assert (done.stderr.decode(), done.returncode) == (text + "\n", status)


def test_sizes(daemon: FakeDaemon) -> None:
    assert tare(daemon, "inspect", "-s", "web").returncode == 0
    assert daemon.log[-1].target == "/containers/web/json?size=1"
    assert tare(daemon, "inspect", "-s", "host").stderr == b"WARNING: --size ignored for network\n"


def test_of_one_kind_only(daemon: FakeDaemon) -> None:
    assert tare(daemon, "container", "inspect", "-f", "{{.Name}}", "web").stdout == b"/web\n"
    assert tare(daemon, "image", "inspect", "-f", "{{.RepoTags}}", "a/img:1").stdout == b"[img:1]\n"
    done = tare(daemon, "image", "inspect", "web")
    assert (done.stdout, done.returncode) == (b"[]\n", 1)
    assert daemon.log[-1].target == "/images/web/json" and len(daemon.log) == 3
