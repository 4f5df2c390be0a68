"""What the client may load: its start-up time is mostly imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cli_fake_daemon import HANG_S, ID, Container, FakeDaemon, command, environment, frame

FORBIDDEN = frozenset(
    "argparse socket json http.client typing dataclasses logging enum re pathlib collections functools subprocess "
    "asyncio urllib threading contextlib site signal selectors tempfile".split()
)
LIMIT = 80
TELL = (
    "import sys; sys.path.append(sys.argv[1]); del sys.argv[:2]; "
    "from tare.cli.main import main; main(sys.argv[1:]); "
    "sys.stderr.write('\\n@' + ' '.join(sys.modules))"
)


def loaded(daemon: FakeDaemon, *words: str) -> list[str]:
    argv = command(*words)
    argv[argv.index("-c") + 1] = TELL
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, env=environment(daemon), timeout=HANG_S, check=True
    )
    return done.stderr.decode().rpartition("@")[2].split()


def check(modules: list[str]) -> None:
    assert "tare.cli.main" in modules
    assert not FORBIDDEN & set(modules)
    assert len(modules) <= LIMIT, modules
    rooms = {name for name in modules if name.startswith("tare.") and not name.startswith("tare.cli")}
    assert not rooms


def test_run(tmp_path: Path) -> None:
    daemon = FakeDaemon(tmp_path / "sock")

    def process(sock: object) -> int:
        sock.sendall(frame(1, b"hello\n"))  # type: ignore[attr-defined]
        return 0

    Container(daemon, process)
    try:
        check(loaded(daemon, "run", "--rm", "-m", "64m", "x", "echo", "hello"))
        daemon.on[f"POST /containers/{ID}/exec"] = daemon.on["POST /containers/x/exec"] = lambda e: e.reply(
            201, {"Id": "e1"}
        )
        daemon.on["POST /exec/e1/start"] = lambda e: e.reply(200)
        check(loaded(daemon, "exec", "-d", "x", "true"))
        daemon.on["POST /containers/x/stop"] = lambda e: e.reply(204)
        check(loaded(daemon, "stop", "x"))
    finally:
        daemon.close()


@pytest.mark.skipif(not (Path(__file__).parents[2] / "src/tare/cli/ps.py").exists(), reason="no ps yet")
def test_ps(tmp_path: Path) -> None:
    daemon = FakeDaemon(tmp_path / "sock")
    daemon.on["GET /containers/json"] = lambda e: e.reply(
        200,
        [{"Id": ID, "Image": "busybox", "ImageID": "sha256:" + "0" * 64, "Command": "sh", "Created": 1700000000,
          "Ports": [], "Labels": {}, "State": "running", "Status": "Up 2 hours", "Names": ["/x"], "Mounts": [],
          "HostConfig": {"NetworkMode": "default"}, "NetworkSettings": {"Networks": {}}}],
    )  # fmt: skip
    try:
        check(loaded(daemon, "ps"))
        check(loaded(daemon, "ps", "-a", "-q"))
    finally:
        daemon.close()


def test_no_module_of_the_client_imports_them_at_its_top() -> None:
    """Each module alone, so that one which is loaded late is held to it too."""
    folder = Path(__file__).parents[2] / "src/tare/cli"
    for file in sorted(folder.glob("*.py")):
        # tls.py is there to import ssl, and is itself imported only for tcp:// with TLS.
        if file.stem in ("__main__", "tls"):
            continue
        text = f"import sys; sys.path.append(sys.argv[1]); import tare.cli.{file.stem}; print(*sys.modules)"
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", text, str(folder.parents[1])],
            capture_output=True,
            check=True,
            timeout=HANG_S,
        )
        slow = FORBIDDEN & set(done.stdout.decode().split())
        assert not slow, f"{file.name} loads {slow}"
