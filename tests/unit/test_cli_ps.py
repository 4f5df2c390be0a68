"""`tare ps` against a scripted daemon; layouts recorded from Docker 28's client."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cli_fake_daemon import FakeDaemon, tare

from tare.cli.human import ago, binary_size, duration, ellipsis, safe, size, width
from tare.cli.main import Call
from tare.cli.options import Flags
from tare.cli.port import port
from tare.cli.ps import ContainerRow, displayed_ports
from tare.cli.reference import familiar, split, valid
from tare.cli.table import columns

IMAGE_ID = "sha256:" + "ab" * 32


def summary(number: int, **more: Any) -> dict[str, Any]:
    found = {
        "Id": f"{0xABCDEF01 + number:08x}" * 8,
        "Names": [f"/n{number}"],
        "Image": "nginx:1.25",
        "ImageID": IMAGE_ID,
        "Command": "nginx -g 'daemon off;'",
        "Created": int(time.time()) - 200,
        "Ports": [],
        "Labels": {},
        "State": "running",
        "Status": "Up 3 minutes",
        "NetworkSettings": {"Networks": {"bridge": {}}},
        "Mounts": [],
    }
    return found | more


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    daemon = FakeDaemon(tmp_path / "sock")
    rows = [
        summary(0, Ports=[{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}], Labels={"a.b-c": "1"}),
        summary(1, Names=["/n0/alias", "/real"], Image=IMAGE_ID, Command="sh\x1b[31m", Status="Exited (0) 2 weeks ago",
                State="exited"),
    ]  # fmt: skip
    daemon.on["GET /containers/json"] = lambda e: e.reply(200, rows)
    yield daemon
    daemon.close()


def test_table(daemon: FakeDaemon) -> None:
    done = tare(daemon, "ps")
    assert done.stderr == b"" and done.returncode == 0
    assert done.stdout.decode() == (
        "CONTAINER ID   IMAGE          COMMAND                  CREATED         STATUS                   PORTS"
        "                  NAMES\n"
        'abcdef01abcd   nginx:1.25     "nginx -g \'daemon of…"   3 minutes ago   Up 3 minutes             '
        "0.0.0.0:8080->80/tcp   n0\n"
        'abcdef02abcd   abababababab   "sh\\x1b[31m"             3 minutes ago   Exited (0) 2 weeks ago'
        "                          real\n"
    )


def test_table_of_nothing_is_its_titles(daemon: FakeDaemon) -> None:
    daemon.on["GET /containers/json"] = lambda e: e.reply(200, [])
    assert tare(daemon, "ps").stdout == (
        b"CONTAINER ID   IMAGE     COMMAND   CREATED   STATUS    PORTS     NAMES\n"
    )
    assert tare(daemon, "ps", "-q").stdout == b""


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (["-q"], "abcdef01abcd\nabcdef02abcd\n"),
        (["-q", "--no-trunc"], "abcdef01" * 8 + "\n" + "abcdef02" * 8 + "\n"),
        (["--format", "{{.Names}}"], "n0\nreal\n"),
        (["--no-trunc", "--format", "{{.Names}} {{.Image}}"], f"n0 nginx:1.25\nn0/alias,real {IMAGE_ID}\n"),
        (["--format", "table {{.ID}}\\t{{.Names}}"], "CONTAINER ID   NAMES\nabcdef01abcd   n0\nabcdef02abcd   real\n"),
        (["--format", 'table {{upper .Names}}\\t{{.Label "a.b-c"}}'], "NAMES     b c\nN0        1\nREAL      \n"),
        (["--format", "{{.State}}\\n{{.Networks}}"], "running\nbridge\nexited\nbridge\n"),
        (["--format", "{{slice .ID 0 4}}"], "abcd\nabcd\n"),
    ],
)
def test_formats(daemon: FakeDaemon, words: list[str], output: str) -> None:
    done = tare(daemon, "ps", *words)
    assert (done.stdout.decode(), done.stderr, done.returncode) == (output, b"", 0)


def test_json_has_every_column(daemon: FakeDaemon) -> None:
    rows = [json.loads(line) for line in tare(daemon, "ps", "--format", "json").stdout.splitlines()]
    assert list(rows[0]) == sorted(
        "Command CreatedAt ID Image Labels LocalVolumes Mounts Names Networks Platform Ports RunningFor Size State "
        "Status".split()
    )
    assert rows[0]["Labels"] == "a.b-c=1" and rows[0]["Platform"] is None and rows[1]["Names"] == "real"


def queries(daemon: FakeDaemon) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(daemon.log[-1].target).query).items()}


@pytest.mark.parametrize(
    ("words", "query"),
    [
        ([], {}),
        (["-a"], {"all": "1"}),
        (["-l"], {"limit": "1"}),
        (["-n", "3", "-l"], {"limit": "3"}),
        (["-s"], {"size": "1"}),
        (["--format", "{{.Size}}"], {"size": "1"}),
        (["--format", "{{json .}}"], {"size": "1"}),
        (["--size=false", "--format", "{{.Size}}"], {}),
        (["-q", "--format", "{{.Size}}"], {}),
        (["-f", "status=exited", "-f", "NAME= x", "--filter", "name=y"],
         {"filters": '{"status":{"exited":true},"name":{"x":true,"y":true}}'}),
        (["-f", ""], {}),
    ],
)  # fmt: skip
def test_query(daemon: FakeDaemon, words: list[str], query: dict[str, str]) -> None:
    assert tare(daemon, "ps", *words).returncode == 0
    assert queries(daemon) == query


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--format", "{{.Foo"], "failed to parse template: template: :1: unclosed action\n"),
        (
            ["--format", "{{.Foo}}"],
            'failed to execute template: template: :1:2: executing "" at <.Foo>: '
            "can't evaluate field Foo in type *formatter.ContainerContext\n",
        ),
    ],
)
def test_wrong_formats_never_reach_the_daemon(daemon: FakeDaemon, words: list[str], text: str) -> None:
    done = tare(daemon, "ps", *words)
    assert (done.stdout, done.stderr.decode(), done.returncode) == (b"", text, 1)
    assert daemon.log == []


def test_wrong_filter(daemon: FakeDaemon) -> None:
    done = tare(daemon, "ps", "-f", "foo")
    assert done.returncode == 125
    assert done.stderr.startswith(b'invalid argument "foo" for "-f, --filter" flag: bad format of filter (expected')


def test_format_of_the_settings_of_the_client(daemon: FakeDaemon, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"psFormat": "{{.State}}"}')
    assert tare(daemon, "ps", DOCKER_CONFIG=str(tmp_path)).stdout == b"running\nexited\n"
    assert tare(daemon, "--config", str(tmp_path), "ps").stdout == b"running\nexited\n"
    assert tare(daemon, "ps", "-q", DOCKER_CONFIG=str(tmp_path)).stdout == b"abcdef01abcd\nabcdef02abcd\n"


def test_sizes(daemon: FakeDaemon) -> None:
    row = ContainerRow(summary(0, SizeRw=1234, SizeRootFs=98765432))
    assert row.value_Size() == "1.23kB (virtual 98.8MB)"
    assert tare(daemon, "ps", "-s").stdout.splitlines()[0].endswith(b"NAMES     SIZE")


@pytest.mark.parametrize(
    ("image", "shown"),
    [
        ("docker.io/library/redis:7@sha256:" + "cd" * 32, "redis:7"),
        ("localhost:5000/a/b", "localhost:5000/a/b"),
        ("", "<no image>"),
        (IMAGE_ID, "abababababab"),
        ("Bad Image", "Bad Image"),
    ],
)
def test_image_column(image: str, shown: str) -> None:
    assert ContainerRow(summary(0, Image=image)).value_Image() == shown


def published(private: int, public: int, kind: str = "tcp", ip: str = "0.0.0.0") -> dict[str, Any]:
    return {"IP": ip, "PrivatePort": private, "PublicPort": public, "Type": kind}


def test_ports_column() -> None:
    ports = [
        published(80, 8080),
        published(80, 8080, ip="::"),
        {"PrivatePort": 444, "Type": "tcp"},
        {"PrivatePort": 443, "Type": "tcp"},
        published(90, 90, "udp"),
        published(91, 91, "udp"),
        published(99, 99, "udp"),
    ]
    assert displayed_ports(ports) == (
        "0.0.0.0:90-91->90-91/udp, 0.0.0.0:99->99/udp, 443-444/tcp, 0.0.0.0:8080->80/tcp, [::]:8080->80/tcp"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "Less than a second"),
        (1.9, "1 second"),
        (59, "59 seconds"),
        (60, "About a minute"),
        (119, "About a minute"),
        (46 * 60, "46 minutes"),
        (3599, "59 minutes"),
        (3600, "About an hour"),
        (5400, "2 hours"),
        (47 * 3600, "47 hours"),
        (48 * 3600, "2 days"),
        (13 * 86400, "13 days"),
        (14 * 86400, "2 weeks"),
        (59 * 86400, "8 weeks"),
        (60 * 86400, "2 months"),
        (729 * 86400, "24 months"),
        (730 * 86400, "2 years"),
        (-5, "Less than a second"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_words_for_people() -> None:
    assert [size(number) for number in (0, 999, 1000, 1234567, 10**24)] == ["0B", "999B", "1kB", "1.235MB", "1YB"]
    assert size(98765432, 3) == "98.8MB"
    assert binary_size(8123456789) == "7.566GiB"
    assert ellipsis("a" * 20, 20) == "a" * 20 and ellipsis("a" * 21, 20) == "a" * 19 + "…"
    assert ellipsis("日本語テキスト", 9) == "日本語テ…"
    assert (width("日本"), width("é"), width("e\u0301"), width("abc")) == (4, 1, 1, 3)
    assert safe("a\x1b\n\x9bé") == "a\\x1b\\x0a\\x9bé"
    assert ago(time.time() - 61) == "About a minute ago"


def test_columns_part_at_lines_without_a_tab() -> None:
    assert columns("head\n a:\t1\n bbbb:\t2\nnext\n c:\t3", least=3, padding=1) == (
        "head\n a:    1\n bbbb: 2\nnext\n c: 3"
    )
    assert columns("a\tb\tc\nlonger\t\td\n", least=2, padding=1) == "a      b c\nlonger   d\n"


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("nginx", True),
        ("nginx:1.25", True),
        ("a/b_c/d__e-f--g:T", True),
        ("localhost:5000/x", True),
        ("[::1]:5000/x", True),
        ("Reg.Example/x", True),
        ("x@sha256:" + "0" * 64, True),
        ("a" * 64, False),
        ("Foo", False),
        ("a:b:c", False),
        ("a..b", False),
        ("a/", False),
        ("-a", False),
        ("a:", False),
        ("a:-b", False),
        ("x@sha256:0", False),
        ("", False),
    ],
)
def test_references(text: str, good: bool) -> None:
    assert valid(text) is good


def test_parts_of_references() -> None:
    assert split("host:5000/a:1@sha256:0") == ("host:5000/a", "1", "sha256:0")
    assert split("host:5000/a") == ("host:5000/a", "", "")
    assert familiar("docker.io/library/nginx") == "nginx" and familiar("docker.io/a/b") == "a/b"


def test_port(daemon: FakeDaemon, capfd: pytest.CaptureFixture[str]) -> None:
    def binding(host: str, number: str) -> dict[str, str]:
        return {"HostIp": host, "HostPort": number}

    ports = {"80/tcp": [binding("0.0.0.0", "8080"), binding("::", "8080")], "9/udp": [binding("127.0.0.1", "9")]}
    daemon.on["GET /containers/x/json"] = lambda e: e.reply(200, {"NetworkSettings": {"Ports": ports | {"1/tcp": None}}})

    def call(*words: str) -> str:
        settings = Flags({"host": ["unix://" + daemon.path]}, [])
        made = Call("tare port", "", words, settings)
        try:
            assert port(made) == 0
        finally:
            made.client.connections[0].close()
        return capfd.readouterr().out

    assert call("x") == "9/udp -> 127.0.0.1:9\n80/tcp -> 0.0.0.0:8080\n80/tcp -> [::]:8080\n"
    assert call("x", "80") == "0.0.0.0:8080\n[::]:8080\n"
    assert call("x", "9/udp") == "127.0.0.1:9\n"
    with pytest.raises(Exception, match="Error: No public port '1' published for x"):
        call("x", "1")
    with pytest.raises(Exception, match=r"Error: invalid port \(foo\)"):
        call("x", "foo")
