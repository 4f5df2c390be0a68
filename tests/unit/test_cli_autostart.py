"""Starting the daemon when nobody listens; the daemon is a small script, every path is the test's own."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from cli_fake_daemon import HANG_S

from tare.cli.autostart import Starter, wanted
from tare.cli.client import Client
from tare.cli.endpoint import Endpoint
from tare.cli.failure import Failure

GOOD = """
    import json, os, signal, socket, sys
    print("listening", flush=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind({path!r})
    listener.listen()
    facts = {{"pid": os.getpid(), "sid": os.getsid(0), "environment": dict(os.environ),
              "stdin": os.readlink("/proc/self/fd/0"),
              "pipe": open("/proc/self/status").read().split("SigIgn:")[1].split()[0]}}
    while True:
        sock, _ = listener.accept()
        while data := sock.recv(4096):
            body = b"OK" if b"/_ping" in data else json.dumps(facts).encode()
            sock.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n%b" % (len(body), body))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tare").touch()
    return tmp_path


def daemon(folder: Path, text: str) -> None:
    script = folder / "tared"
    script.write_text(f"#!{sys.executable} -IS\n" + textwrap.dedent(text.format(path=str(folder / "sock"))))
    script.chmod(0o755)


def starter(folder: Path) -> Starter:
    endpoint = Endpoint(f"unix://{folder}/sock", chosen=False)
    return Starter(endpoint, str(folder / "tare"), log=str(folder / "log"), lock=str(folder / "lock"))


def test_started_once_and_clean(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon(folder, GOOD)
    monkeypatch.setenv("LD_PRELOAD_TEST", "x")
    monkeypatch.setenv("TARE_DATA_ROOT", "/kept")
    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.append(starter(folder)())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_S)
    assert results == [True, True, True]
    client = Client(Endpoint(f"unix://{folder}/sock", chosen=False))
    facts = client.get("/facts")
    client.close()
    os.kill(facts["pid"], signal.SIGKILL)
    os.waitpid(facts["pid"], 0)
    assert capfd.readouterr().err == (
        f"tare: started the daemon (tared, pid {facts['pid']}); --no-autostart or TARE_NO_AUTOSTART=1 turns this off\n"
    )
    assert facts["sid"] == facts["pid"]
    assert facts["stdin"] == "/dev/null"
    assert facts["environment"]["TARE_DATA_ROOT"] == "/kept"
    assert "LD_PRELOAD_TEST" not in facts["environment"]
    assert int(facts["pipe"], 16) & 1 << signal.SIGHUP - 1 == 0
    assert (folder / "log").read_text() == "listening\n"
    assert (folder / "log").stat().st_mode & 0o777 == 0o600


def test_a_daemon_that_fails_is_told_with_its_log(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "log").write_text("from an earlier life\n")
    daemon(folder, 'import sys; sys.exit("no such storage driver")')
    with pytest.raises(Failure) as caught:
        starter(folder)()
    assert str(caught.value) == (
        f"the daemon ended with status 1 before it answered; the end of {folder}/log:\n  no such storage driver"
    )
    capfd.readouterr()


def test_no_daemon_to_start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder / "nothing"))
    with pytest.raises(Failure, match="no tared in"):
        starter(folder)()


def test_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    default = Endpoint("unix:///run/tare.sock", chosen=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.delenv("TARE_NO_AUTOSTART", raising=False)
    assert wanted(default, refused=False)
    assert not wanted(default, refused=True)
    assert wanted(Endpoint("unix:///run/tare.sock", chosen=True), refused=False), "named, but the default all the same"
    assert not wanted(Endpoint("unix:///run/other.sock", chosen=True), refused=False)
    monkeypatch.setenv("TARE_NO_AUTOSTART", "1")
    assert not wanted(default, refused=False)
    monkeypatch.delenv("TARE_NO_AUTOSTART")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert not wanted(default, refused=False)
