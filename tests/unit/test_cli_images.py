"""`tare images`, `rmi`, `tag`, `history`, prune and system df against a scripted daemon."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_fake_daemon import FakeDaemon, tare

from tare.cli import prune
from tare.cli.main import Call
from tare.cli.options import Flags

NOW = int(time.time())
IMAGES: list[dict[str, Any]] = [
    {"Containers": -1, "Created": NOW - 100000, "Id": "sha256:" + "11" * 32, "SharedSize": -1, "Size": 187654321,
     "RepoDigests": ["nginx@sha256:" + "aa" * 32], "RepoTags": ["nginx:1.25", "docker.io/library/nginx:latest"]},
    {"Containers": 2, "Created": NOW - 200, "Id": "sha256:" + "22" * 32, "SharedSize": 1000, "Size": 5000,
     "RepoDigests": [], "RepoTags": ["localhost:5000/x/y:v1"]},
    {"Containers": -1, "Created": NOW - 10**8, "Id": "sha256:" + "33" * 32, "SharedSize": -1, "Size": 0,
     "RepoDigests": [], "RepoTags": []},
    {"Containers": 0, "Created": NOW - 200, "Id": "sha256:" + "44" * 32, "SharedSize": -1, "Size": 999,
     "RepoDigests": ["redis@sha256:" + "bb" * 32], "RepoTags": []},
]  # fmt: skip


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    daemon = FakeDaemon(tmp_path / "sock")
    daemon.on["GET /images/json"] = lambda e: e.reply(200, IMAGES)
    yield daemon
    daemon.close()


def test_table(daemon: FakeDaemon) -> None:
    assert tare(daemon, "images").stdout.decode() == (
        "REPOSITORY           TAG       IMAGE ID       CREATED         SIZE\n"
        "nginx                1.25      111111111111   28 hours ago    188MB\n"
        "nginx                latest    111111111111   28 hours ago    188MB\n"
        "localhost:5000/x/y   v1        222222222222   3 minutes ago   5kB\n"
        "<none>               <none>    333333333333   3 years ago     0B\n"
        "redis                <none>    444444444444   3 minutes ago   999B\n"
    )


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (["-q"], "111111111111\n111111111111\n222222222222\n333333333333\n444444444444\n"),
        (["--format", "{{.Repository}}:{{.Tag}}"],
         "nginx:1.25\nnginx:latest\nlocalhost:5000/x/y:v1\n<none>:<none>\nredis:<none>\n"),
        (["--format", "{{.Tag}} {{.Digest}}"],
         "1.25 sha256:" + "aa" * 32 + "\nlatest sha256:" + "aa" * 32 + "\nv1 <none>\n<none> <none>\n<none> \n"),
        (["--format", "{{.Containers}} {{.SharedSize}} {{.UniqueSize}} {{.VirtualSize}}"],
         "N/A N/A N/A 187.7MB\nN/A N/A N/A 187.7MB\n2 1kB 4kB 5kB\nN/A N/A N/A 0B\n0 N/A N/A 999B\n"),
    ],
)  # fmt: skip
def test_formats(daemon: FakeDaemon, words: list[str], output: str) -> None:
    assert tare(daemon, "images", *words).stdout.decode() == output


def test_digests_get_a_column(daemon: FakeDaemon) -> None:
    lines = tare(daemon, "images", "--digests").stdout.decode().splitlines()
    assert lines[0].split() == ["REPOSITORY", "TAG", "DIGEST", "IMAGE", "ID", "CREATED", "SIZE"]
    assert lines[-1].split()[:3] == ["redis", "<none>", "sha256:" + "bb" * 32]


def test_a_name_is_a_filter(daemon: FakeDaemon) -> None:
    daemon.on["GET /images/json"] = lambda e: e.reply(200, [])
    done = tare(daemon, "images", "-a", "-f", "dangling=false", "build")
    assert daemon.log[-1].target == (
        "/images/json?all=1&filters=%7B%22dangling%22%3A%7B%22false%22%3Atrue%7D%2C"
        "%22reference%22%3A%7B%22build%22%3Atrue%7D%7D"
    )
    assert done.stderr == b'\nNo images found matching "build": did you mean "tare image build"?\n'
    assert tare(daemon, "image", "ls", "build").stderr == b""


def test_rmi(daemon: FakeDaemon) -> None:
    daemon.on["DELETE /images/a:1"] = lambda e: e.reply(200, [{"Untagged": "a:1"}, {"Deleted": "sha256:ff"}])
    daemon.on["DELETE /images/busy"] = lambda e: e.error(409, "conflict")
    daemon.on["DELETE /images/x/y"] = lambda e: e.error(404, "No such image: x/y:latest")
    done = tare(daemon, "rmi", "--no-prune", "a:1")
    assert (done.stdout, done.returncode) == (b"Untagged: a:1\nDeleted: sha256:ff\n", 0)
    assert daemon.log[-1].target == "/images/a:1?noprune=1"
    done = tare(daemon, "rmi", "a:1", "busy", "x/y")
    assert done.returncode == 1 and done.stdout.startswith(b"Untagged: a:1\n")
    assert done.stderr == (
        b"Error response from daemon: conflict\nError response from daemon: No such image: x/y:latest\n"
    )
    done = tare(daemon, "rmi", "-f", "x/y")
    assert (done.returncode, done.stderr) == (0, b"Error response from daemon: No such image: x/y:latest\n")
    assert tare(daemon, "rmi", "-f", "x/y", "busy").returncode == 1
    assert tare(daemon, "rmi", "").stderr == b"invalid image name or ID: value is empty\n"


def test_tag(daemon: FakeDaemon) -> None:
    daemon.on["POST /images/img/tag"] = lambda e: e.reply(201)
    assert tare(daemon, "tag", "img", "localhost:5000/a:v1").returncode == 0
    assert daemon.log[-1].target == "/images/img/tag?repo=localhost%3A5000%2Fa&tag=v1"
    assert tare(daemon, "tag", "img", "b").returncode == 0
    assert daemon.log[-1].target == "/images/img/tag?repo=b&tag=latest"
    for wrong, text in (
        ("a:b:c", 'Error parsing reference: "a:b:c" is not a valid repository/tag: invalid reference format'),
        ("Foo", "invalid reference format: repository name (library/Foo) must be lowercase"),
        ("a@sha256:" + "0" * 64, "refusing to create a tag with a digest reference"),
    ):
        done = tare(daemon, "tag", "img", wrong)
        assert done.returncode == 1 and done.stderr.decode().endswith(text + "\n")


def test_history(daemon: FakeDaemon) -> None:
    steps = [
        {"Comment": "c", "Created": NOW - 5000, "Id": "sha256:" + "11" * 32, "Size": 7654321,
         "CreatedBy": '/bin/sh -c #(nop)  CMD ["nginx" "-g" "daemon off;"] and more'},
        {"Comment": "", "Created": 0, "CreatedBy": "ADD\tx\x1b", "Id": "<missing>", "Size": 0},
    ]  # fmt: skip
    daemon.on["GET /images/img/history"] = lambda e: e.reply(200, steps)
    assert tare(daemon, "history", "img").stdout.decode() == (
        "IMAGE          CREATED             CREATED BY                                      SIZE      COMMENT\n"
        '111111111111   About an hour ago   /bin/sh -c #(nop)  CMD ["nginx" "-g" "daemon…   7.65MB    c\n'
        "<missing>      N/A                 ADD x\\x1b                                       0B        \n"
    )
    assert tare(daemon, "history", "-q", "img").stdout == b"111111111111\n<missing>\n"
    output = tare(daemon, "history", "-H=false", "--no-trunc", "img", TZ="UTC").stdout.decode().splitlines()
    assert output[0].split()[1:3] == ["CREATED", "AT"]
    assert output[2].split() == ["<missing>", "1970-01-01T00:00:00Z", "ADD", "x\\x1b", "0"]


def pruned(daemon: FakeDaemon, function: Callable[[Call], int], *words: str) -> int:
    call = Call("tare image prune", "", words, Flags({"host": ["unix://" + daemon.path]}, []))
    try:
        return function(call)
    finally:
        for connection in call.client.connections:
            connection.close()


def test_prune(daemon: FakeDaemon, capfd: pytest.CaptureFixture[str]) -> None:
    report = {"ImagesDeleted": [{"Untagged": "a:1"}, {"Deleted": "sha256:1"}], "SpaceReclaimed": 12345}
    daemon.on["POST /images/prune"] = lambda e: e.reply(200, report)
    daemon.on["POST /containers/prune"] = lambda e: e.reply(200, {"ContainersDeleted": None, "SpaceReclaimed": 0})
    assert pruned(daemon, prune.images, "-f", "-a") == 0
    assert capfd.readouterr().out == (
        "Deleted Images:\nuntagged: a:1\ndeleted: sha256:1\n\nTotal reclaimed space: 12.35kB\n"
    )
    assert daemon.log[-1].target == "/images/prune?filters=%7B%22dangling%22%3A%7B%22false%22%3Atrue%7D%7D"
    assert pruned(daemon, prune.containers, "-f") == 0
    assert capfd.readouterr().out == "Total reclaimed space: 0B\n"


@pytest.mark.parametrize(("answer", "asked"), [("y\n", 1), (" Y \n", 1), ("n\n", 0), ("yes\n", 0), ("", 0)])
def test_prune_asks(
    daemon: FakeDaemon, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, answer: str, asked: int
) -> None:
    daemon.on["POST /containers/prune"] = lambda e: e.reply(200, {"ContainersDeleted": ["c"], "SpaceReclaimed": 1})
    pieces = iter([answer.encode(), b""])
    monkeypatch.setattr(prune.os, "read", lambda fd, size: next(pieces))
    assert pruned(daemon, prune.containers) == 0
    out = capfd.readouterr().out
    assert out.startswith("WARNING! This will remove all stopped containers.\nAre you sure you want to continue? [y/N] ")
    assert len(daemon.log) == asked


USAGE = {
    "LayersSize": 123456,
    "Images": IMAGES[:2],
    "Containers": [
        {"Id": "a" * 64, "Names": ["/up"], "State": "running", "SizeRw": 1000, "SizeRootFs": 5, "Created": NOW, "Mounts": []},
        {"Id": "b" * 64, "Names": ["/gone"], "State": "exited", "SizeRw": 3000, "Created": NOW, "Mounts": []},
    ],
    "Volumes": [
        {"Name": "v1", "Driver": "local", "UsageData": {"RefCount": 1, "Size": 5000}},
        {"Name": "v2", "Driver": "local", "UsageData": {"RefCount": 0, "Size": 2000}},
    ],
    "BuildCache": None,
}  # fmt: skip


def test_disk_usage(daemon: FakeDaemon) -> None:
    daemon.on["GET /system/df"] = lambda e: e.reply(200, USAGE)
    assert tare(daemon, "system", "df").stdout.decode() == (
        "TYPE            TOTAL     ACTIVE    SIZE      RECLAIMABLE\n"
        "Images          2         1         123.5kB   119.5kB (96%)\n"
        "Containers      2         1         4kB       3kB (75%)\n"
        "Local Volumes   2         1         7kB       2kB (28%)\n"
        "Build Cache     0         0         0B        0B\n"
    )
    rows = [json.loads(line) for line in tare(daemon, "system", "df", "--format", "json").stdout.splitlines()]
    assert rows[1] == {"Active": "1", "Reclaimable": "3kB (75%)", "Size": "4kB", "TotalCount": "2", "Type": "Containers"}
    verbose = tare(daemon, "system", "df", "-v").stdout.decode()
    assert "Local Volumes space usage:\n\nVOLUME NAME   LINKS     SIZE\nv1            1         5kB\n" in verbose
    assert verbose.count("\n\n") == 7 and "(virtual" not in verbose
    form = "{{range .Containers}}{{.Names}} {{.Size}};{{end}}{{range .Volumes}}{{.Name}}{{end}}"
    assert tare(daemon, "system", "df", "-v", "--format", form).stdout == b"up 1kB;gone 3kB;v1v2"
