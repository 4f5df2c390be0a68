"""`tare load`, `save`, `import` and `logs`: streams through the client."""

from __future__ import annotations

import os
import pty
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_fake_daemon import HANG_S, Exchange, FakeDaemon, command, environment, frame, tare

from tare.cli.failure import Failure
from tare.cli.moments import stamp

BIG = os.urandom(1 << 20)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    daemon = FakeDaemon(tmp_path / "sock")
    yield daemon
    daemon.close()


def on_terminal(daemon: FakeDaemon, *words: str) -> tuple[str, int]:
    """Run with a terminal for all three streams: (output, status)."""
    master, slave = pty.openpty()
    try:
        process = subprocess.Popen(command(*words), stdin=slave, stdout=slave, stderr=slave, env=environment(daemon))
        status = process.wait(HANG_S)
        return os.read(master, 65536).decode().replace("\r\n", "\n"), status
    finally:
        os.close(master)
        os.close(slave)


def loaded(exchange: Exchange) -> None:
    exchange.reply(200, b'{"stream":"Loaded image: a:1\\n"}\r\n', "Content-Type: application/json\r\n")


def test_load(daemon: FakeDaemon, tmp_path: Path) -> None:
    daemon.on["POST /images/load"] = loaded
    done = tare(daemon, "load", stdin=BIG)
    assert (done.stdout, done.stderr, done.returncode) == (b"Loaded image: a:1\n", b"", 0)
    assert daemon.log[0].body == BIG and daemon.log[0].target == "/images/load?quiet=1"
    assert daemon.log[0].headers["content-type"] == "application/x-tar"
    (tmp_path / "a.tar").write_bytes(b"tar")
    assert tare(daemon, "load", "-q", "-i", str(tmp_path / "a.tar")).returncode == 0
    assert daemon.log[1].body == b"tar"


def test_load_failures(daemon: FakeDaemon) -> None:
    daemon.on["POST /images/load"] = lambda e: e.reply(
        200, b'{"errorDetail":{"message":"bad \\u001b tar"},"error":"bad tar"}\n', "Content-Type: application/json\r\n"
    )
    done = tare(daemon, "load", stdin=b"x")
    assert (done.stderr, done.returncode) == (b"bad \\x1b tar\n", 1)
    done = tare(daemon, "load", "-i", "/nonexistent")
    assert (done.stderr, done.returncode) == (b"open /nonexistent: no such file or directory\n", 1)
    assert on_terminal(daemon, "load") == ("requested load from stdin, but stdin is empty\n", 1)


def test_save(daemon: FakeDaemon, tmp_path: Path) -> None:
    def archive(exchange: Exchange) -> None:
        exchange.head()
        exchange.chunk(BIG)
        exchange.end()

    daemon.on["GET /images/get"] = archive
    done = tare(daemon, "save", "a", "b/c:1")
    assert done.stdout == BIG and daemon.log[0].target == "/images/get?names=a&names=b%2Fc%3A1"
    target = tmp_path / "out.tar"
    target.write_bytes(b"old")
    assert tare(daemon, "save", "-o", str(target), "a").returncode == 0
    assert target.read_bytes() == BIG and target.stat().st_mode & 0o777 == 0o600
    assert tare(daemon, "save", "-o", "/dev/null", "a").returncode == 0
    link = tmp_path / "link"
    link.symlink_to(target)
    assert tare(daemon, "save", "-o", str(link), "a").returncode == 0 and link.is_symlink()


def test_save_that_breaks_leaves_the_old_file(daemon: FakeDaemon, tmp_path: Path) -> None:
    def broken(exchange: Exchange) -> str:
        exchange.head()
        exchange.chunk(b"half")
        return "close"

    target = tmp_path / "dir" / "out.tar"
    target.parent.mkdir()
    target.write_bytes(b"old")
    daemon.on["GET /images/get"] = broken

    def hang_up(exchange: Exchange) -> str:
        broken(exchange)
        exchange.sock.shutdown(2)
        return "close"

    daemon.on["GET /images/get"] = hang_up
    done = tare(daemon, "save", "-o", str(target), "a")
    assert done.returncode == 1 and b"unexpected EOF" in done.stderr
    daemon.on["GET /images/get"] = lambda e: e.error(404, "No such image: a:latest")
    assert tare(daemon, "save", "-o", str(target), "a").stderr == b"Error response from daemon: No such image: a:latest\n"
    assert [path.name for path in target.parent.iterdir()] == ["out.tar"] and target.read_bytes() == b"old"


def test_save_refuses(daemon: FakeDaemon, tmp_path: Path) -> None:
    words = "cowardly refusing to save to a terminal. Use the -o flag or redirect\n"
    assert on_terminal(daemon, "save", "a") == (words, 1)
    done = tare(daemon, "save", "-o", str(tmp_path), "a")
    assert done.stderr == b"failed to save image: cannot write to a directory\n"
    done = tare(daemon, "save", "-o", "/nonexistent/x", "a")
    assert done.stderr == b"failed to save image: invalid output path: stat /nonexistent: no such file or directory\n"
    assert daemon.log == []


def test_import(daemon: FakeDaemon, tmp_path: Path) -> None:
    daemon.on["POST /images/create"] = lambda e: e.reply(
        200, b'{"status":"sha256:abc"}\r\n', "Content-Type: application/json\r\n"
    )
    words = ["import", "-c", 'CMD ["x"]', "-c", "ENV a=b", "-m", "hello", "-", "foo:bar"]
    done = tare(daemon, *words, stdin=BIG)
    assert (done.stdout, done.returncode) == (b"sha256:abc\n", 0)
    assert daemon.log[0].body == BIG
    assert daemon.log[0].target == (
        "/images/create?fromSrc=-&message=hello&repo=foo%3Abar&changes=CMD%20%5B%22x%22%5D&changes=ENV%20a%3Db"
    )
    (tmp_path / "fs.tar").write_bytes(b"tar")
    assert tare(daemon, "import", str(tmp_path / "fs.tar")).returncode == 0
    assert (daemon.log[1].target, daemon.log[1].body) == ("/images/create?fromSrc=-", b"tar")
    assert tare(daemon, "import", "http://host/x.tar", "y").returncode == 0
    assert daemon.log[2].target == "/images/create?fromSrc=http%3A%2F%2Fhost%2Fx.tar&repo=y"


def test_logs(daemon: FakeDaemon) -> None:
    found = {"Id": "f" * 64, "Config": {"Tty": False}}
    daemon.on["GET /containers/web/json"] = lambda e: e.reply(200, found)
    raw = frame(1, b"out\x1b\n") + frame(2, b"err\n") + frame(1, BIG)
    daemon.on[f"GET /containers/{found['Id']}/logs"] = lambda e: e.reply(200, raw)
    done = tare(daemon, "logs", "/web")
    assert (done.stdout, done.stderr, done.returncode) == (b"out\x1b\n" + BIG, b"err\n", 0)
    assert daemon.log[-1].target == f"/containers/{found['Id']}/logs?stderr=1&stdout=1&tail=all"
    words = ["-f", "-t", "--details", "-n", "5", "--since", "2024-05-06T07:08:09Z", "--until", "1715000000"]
    assert tare(daemon, "logs", *words, "web").returncode == 0
    assert daemon.log[-1].target.partition("?")[2] == (
        "details=1&follow=1&since=1714979289.000000000&stderr=1&stdout=1&tail=5&timestamps=1&until=1715000000"
    )
    found["Config"] = {"Tty": True}
    daemon.on[f"GET /containers/{found['Id']}/logs"] = lambda e: e.reply(200, b"raw\r\n")
    assert tare(daemon, "logs", "web").stdout == b"raw\r\n"
    done = tare(daemon, "logs", "--since", "x", "web")
    assert done.returncode == 1
    assert done.stderr == b'invalid value for "since": failed to parse value as time or duration: "x"\n'
    assert tare(daemon, "logs", "").stderr == b"invalid container name or ID: value is empty\n"


@pytest.fixture
def in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "XXX-2")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("in_berlin")
@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:00Z", "0.000000000"),
        ("2024-02-29T12:00:00.123456789Z", "1709208000.123456789"),
        ("2024-05-06T07:08:09.5+02:00", "1714972089.500000000"),
        ("2024-05-06T07:08:09-05:00", "1714997289.000000000"),
        ("2024-05-06T07:08Z", "1714979280.000000000"),
        ("2024-05-06Z", "1714953600.000000000"),
        ("2024-05-06", "1714946400.000000000"),
        ("2024-05-06T07", "1714971600.000000000"),
        ("2024-05-06T07:08:09", "1714972089.000000000"),
        ("1715000000", "1715000000"),
        ("1715000000.25", "1715000000.25"),
        ("0", "0"),
    ],
)
def test_moments(text: str, seconds: str) -> None:
    assert stamp(text, "since") == seconds


def test_moments_before_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1_000_000 * 10**9)
    assert [stamp(text, "since") for text in ("1h30m", "10m", "1s", "-1s", "")] == [
        "994600", "999400", "999999", "1000001", None,
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["x", "2024-13-01", "2023-02-29", "2024-05-06T25:00", "2024-5-6", "1.2.3", "2024-05-06T"])
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(Failure, match='invalid value for "until"'):
        stamp(text, "until")
