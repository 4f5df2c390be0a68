"""What tared does around its rooms: log lines, locks, groups, socket activation, systemd, refusals. Temp dirs only."""

from __future__ import annotations

import logging
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tare import daemon, logline
from tare.errors import Conflict, Denied, Invalid, Unavailable
from tare.foothold import Foothold, activated, group_id, notify, private_directory

ROOT = Path(__file__).parents[2]


def line(message: str, *args: object, exc: BaseException | None = None) -> str:
    info = (type(exc), exc, exc.__traceback__) if exc else None
    record = logging.LogRecord("x", logging.WARNING, "", 0, message, args, info)
    return logline.Formatter().format(record)


def test_log_line() -> None:
    text = line("container %s died", "web")
    assert text.startswith('time="2') and text.endswith('level=warn msg="container web died"')


@pytest.mark.parametrize(
    "nasty", ["a\nlevel=info", "\x1b[31m", "\r", "\x00", "\x9b", "\u2028", "\u202e", "\ud800", '" x="']
)
def test_log_line_cannot_be_forged(nasty: str) -> None:
    text = line("name %s end", nasty)
    assert nasty not in text and text.isprintable() and text.count('"') - text.count('\\"') == 4


def test_log_line_holds_a_traceback() -> None:
    try:
        raise RuntimeError("two\nlines")
    except RuntimeError as error:
        text = line("it broke", exc=error)
    assert "\n" not in text and 'stack="Traceback' in text and "RuntimeError" in text


def test_log_line_with_wrong_arguments_is_still_a_line() -> None:
    assert "%d" in line("%d pieces", "no number")


def test_log_file_is_private_and_bounded(tmp_path: Path) -> None:
    path = tmp_path / "log"
    before = os.umask(0o022)
    logline.open_file(str(path)).close()
    os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    os.truncate(path, logline.MAX_FILE + 1)
    logline.open_file(str(path)).close()
    assert path.stat().st_size == 0 and (tmp_path / "log.1").exists()


def test_second_daemon_is_refused(tmp_path: Path) -> None:
    first, second = Foothold(), Foothold()
    first.lock(str(tmp_path))
    with pytest.raises(Conflict, match=rf"in use by another tared \(process {os.getpid()}\)"):
        second.lock(str(tmp_path))
    first.release()
    second.lock(str(tmp_path))
    second.release()


def test_stale_pid_file_is_taken_over_whatever_stands_in_it(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text("1\n")
    first, second = Foothold(), Foothold()
    first.write_pid(str(path))
    assert path.read_text() == f"{os.getpid()}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    with pytest.raises(Conflict, match="belongs to another tared"):
        second.write_pid(str(path))
    first.release()
    assert not path.exists()


def test_pid_file_does_not_follow_a_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "pid").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError):
        Foothold().write_pid(str(tmp_path / "pid"))
    assert (tmp_path / "victim").read_text() == "precious"


def test_private_directory(tmp_path: Path) -> None:
    before = os.umask(0o077)
    private_directory(str(tmp_path / "a/b/c"), 0o710)
    os.umask(before)
    assert stat.S_IMODE((tmp_path / "a/b/c").stat().st_mode) == 0o710
    assert stat.S_IMODE((tmp_path / "a/b").stat().st_mode) == 0o755
    (tmp_path / "a").chmod(0o777)
    with pytest.raises(Denied):
        private_directory(str(tmp_path / "a"), 0o710)


def test_group(tmp_path: Path) -> None:
    path = tmp_path / "group"
    path.write_text("root:x:0:\ntare:x:990:me\nbroken\nbad:x:-1:\n")
    assert group_id("", str(path)) == 990
    assert group_id("1234", str(path)) == 1234
    with pytest.raises(Invalid, match="group nobody-here not found"):
        group_id("nobody-here", str(path))
    with pytest.raises(Invalid):
        group_id("bad", str(path))
    path.write_text("tare:x:990:\ndocker:x:991:\n")
    assert group_id("", str(path)) == 991
    assert group_id("", str(tmp_path / "none")) == 0


def test_socket_activation() -> None:
    environment = {"LISTEN_PID": "7", "LISTEN_FDS": "3", "LISTEN_FDNAMES": "tared.socket:debug:debug"}
    assert activated(environment, 7) == [3, 4, 5]
    assert activated(environment, 7, "debug") == [4, 5]
    assert activated(environment, 7, "4") == [4]
    for wrong in ({}, {**environment, "LISTEN_PID": "8"}, {**environment, "LISTEN_FDS": "x"}):
        with pytest.raises(Unavailable, match="socket activation"):
            activated(wrong, 7)
    with pytest.raises(Unavailable):
        activated(environment, 7, "other")


def test_notify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        notify("READY=1")
        assert manager.recv(100) == b"READY=1"
    notify("nobody listens any more")
    monkeypatch.setenv("NOTIFY_SOCKET", "relative")
    notify("not a socket's name")


def test_version_help_and_validate(capsys: pytest.CaptureFixture[str]) -> None:
    assert daemon.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("tared version ")
    assert daemon.main(["--help"]) == 0
    assert "--data-root" in capsys.readouterr().out
    assert daemon.main(["--validate", "--config-file=/dev/null"]) == 0
    assert capsys.readouterr().out == "configuration OK\n"


def test_refusal_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert daemon.main(["--validate", "--config-file=/dev/null", "--log-level", "a\nb"]) == 1
    assert capsys.readouterr().err == "tared: invalid logging level: a\\nb\n"


def test_without_root(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert daemon.main(["--config-file=/dev/null"]) == 1
    err = capsys.readouterr().err
    assert "needs root" in err and err.count("\n") == 1


def test_script_runs_isolated() -> None:
    done = subprocess.run(
        [sys.executable, "-I", str(ROOT / "bin" / "tared"), "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("tared version ")


def test_start_imports_little() -> None:
    """--version and refusals do not load the rooms."""
    code = "import sys, tare.daemon; print([m for m in ('argparse', 'tare.engine', 'h11') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT / "src")}
    )
    assert done.stdout == "[]\n"
