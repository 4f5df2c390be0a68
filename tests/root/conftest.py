"""Real containers: one daemon of the tests' own (data root, exec root, socket, cgroup parent) and a ledger of leaks.

The stock `docker` client, `tare` and raw HTTP talk to it. Whatever a test makes, the ledger at the end of each module
finds again: mounts, cgroups, processes, run directories. TARE_MUST_RUN=1 (CI) turns the skips below into failures.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("TARE_BIN", Path(sys.executable).parent))
SLOW = float(os.environ.get("TARE_SLOW", "1"))
"""Stretches deadlines on an emulated machine."""
CACHE = ROOT / "tests" / ".cache"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    if os.environ.get("TARE_MUST_RUN"):
        pytest.exit("tests/root needs root, and TARE_MUST_RUN forbids to skip it", 1)
    for item in items:
        item.add_marker(pytest.mark.skip(reason="requires root"))


class Engine:
    """A daemon under test and its clients."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.data = base / "data"
        self.run_dir = base / "run"
        self.socket = base / "tare.sock"
        self.log = base / "tared.log"
        self.parent = f"/{base.name}"
        """Cgroups of its own: other daemons on this machine are not this ledger's business."""
        self.process: subprocess.Popen[bytes] | None = None

    # -- daemon ----------------------------------------------------------------------------------------------------

    def start(self, *options: str, wait: bool = True) -> None:
        command = [
            str(BIN / "tared"), "--data-root", str(self.data), "--exec-root", str(self.run_dir),
            "--pidfile", str(self.base / "tared.pid"), "-H", f"unix://{self.socket}",
            "--config-file", str(self.base / "daemon.json"), "--cgroup-parent", self.parent, *options,
        ]  # fmt: skip
        (self.base / "daemon.json").touch()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        if wait:
            self.await_ready()

    def await_ready(self, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds * SLOW
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"tared ended with {self.process.returncode}:\n{self.log.read_text()[-4000:]}")
            done = self.http("GET", "/_ping", check=False)
            if done.returncode == 0 and done.stdout == "OK":
                return
            time.sleep(0.02)
        raise AssertionError(f"tared does not answer:\n{self.log.read_text()[-4000:]}")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Signal the daemon and wait for its end."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(30)
        self.process = None

    def restart(self) -> None:
        """kill -9 and start again."""
        self.kill()
        self.start()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def stop(self) -> None:
        if self.process is not None:
            self.docker_rm_all()
            self.kill(signal.SIGTERM)

    # -- clients ---------------------------------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        address = f"unix://{self.socket}"
        return {**os.environ, "DOCKER_HOST": address, "TARE_HOST": address, "DOCKER_CONFIG": str(self.base / "docker"),
                "LC_ALL": "C.UTF-8", "DOCKER_CLI_HINTS": "false"}  # fmt: skip

    def _client(self, program: str, *arguments: str, check: bool, **options: Any) -> subprocess.CompletedProcess[str]:
        options.setdefault("timeout", 60 * SLOW)
        if "input" not in options and "stdin" not in options:
            options["stdin"] = subprocess.DEVNULL
        text = not isinstance(options.get("input"), bytes) and options.pop("text", True)
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=text, env=self.environment(), check=False, **options
        )
        if check and done.returncode:
            raise AssertionError(f"{program} {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def docker(self, *arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """The stock client. `input` as bytes gives bytes back."""
        return self._client("docker", *arguments, check=check, **options)

    def tare(self, *arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        return self._client(str(BIN / "tare"), *arguments, check=check, **options)

    def http(self, method: str, path: str, body: Any = None, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """curl -X METHOD http://d/PATH; the body as JSON. stdout is the answer's body."""
        command = ["curl", "-sS", "--max-time", "30", "-X", method, "--unix-socket", str(self.socket), f"http://d{path}"]
        if body is not None:
            command += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise AssertionError(done.stderr)
        return done

    def inspect(self, container: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.docker("inspect", container).stdout)[0]
        return found

    def docker_rm_all(self) -> None:
        ids = self.docker("ps", "-aq", check=False).stdout.split()
        if ids:
            self.docker("rm", "-f", "-v", *ids, check=False)

    def await_state(self, container: str, state: str, seconds: float = 15) -> dict[str, Any]:
        deadline = time.monotonic() + seconds * SLOW
        while (found := self.inspect(container)["State"])["Status"] != state:
            if time.monotonic() > deadline:
                raise AssertionError(f"{container} is {found}, not {state}")
            time.sleep(0.02)
        result: dict[str, Any] = found
        return result

    # -- ledger ----------------------------------------------------------------------------------------------------

    def ledger(self) -> dict[str, list[str]]:
        """What must be the same before and after: each value a sorted list, so that a difference names the leak."""
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        cgroups = subprocess.run(
            ["find", "/sys/fs/cgroup", "-mindepth", "3", "-path", f"*{self.parent}/*", "-type", "d"],
            capture_output=True, text=True, check=False,
        ).stdout.split()  # fmt: skip
        shims = [name for name in os.listdir("/proc") if name.isdigit() and _comm(name) == "tare-shim"]
        run = self.run_dir / "containers"
        return {
            "mounts": sorted(m for m in mounts if str(self.base) in m),
            "cgroups": sorted(cgroups),
            "processes": sorted(shim for shim in shims if self._watches_ours(shim)),
            "run": sorted(os.listdir(run)) if run.exists() else [],
        }

    def _watches_ours(self, shim: str) -> bool:
        """Whether a shim's pidfd is of a process in our cgroups, or of one that is gone."""
        try:
            for name in os.listdir(f"/proc/{shim}/fdinfo"):
                info = Path(f"/proc/{shim}/fdinfo/{name}").read_text()
                if "\nPid:" in info:
                    pid = info.split("\nPid:")[1].split()[0]
                    return pid == "-1" or f"{self.parent}/" in Path(f"/proc/{pid}/cgroup").read_text()
        except OSError:
            pass
        return False

    def settle(self, before: dict[str, list[str]], seconds: float = 10) -> None:
        """AssertionError naming what is still there after `seconds`."""
        deadline = time.monotonic() + seconds * SLOW
        while (now := self.ledger()) != before:
            if time.monotonic() > deadline:
                left = {key: sorted(set(now[key]) - set(before[key])) for key in now if now[key] != before[key]}
                raise AssertionError(f"left behind: {left}")
            time.sleep(0.05)


def _comm(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


@pytest.fixture(scope="session")
def busybox_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """docker-archive of busybox:latest, made from /bin/busybox."""
    path = tmp_path_factory.mktemp("images") / "busybox.tar"
    with path.open("wb") as file:
        subprocess.run([sys.executable, str(ROOT / "scripts" / "busybox-image")], stdout=file, check=True)
    return path


def debian_tar() -> Path:
    """A Debian root file system with Python as one tar (made once per machine, about 20 s)."""
    CACHE.mkdir(exist_ok=True)
    path = CACHE / "debian-python.tar"
    if not path.exists():
        draft = path.with_suffix(".draft.tar")
        subprocess.run(
            ["mmdebstrap", "--quiet", "--variant=minbase", "--include=python3-minimal,ca-certificates",
             "bookworm", str(draft)], check=True,
        )  # fmt: skip
        draft.rename(path)
    return path


def _new_engine() -> Engine:
    base = Path(tempfile.mkdtemp(prefix="tare-test-"))
    base.chmod(0o711)
    return Engine(base)


@pytest.fixture(scope="module")
def engine(busybox_archive: Path) -> Iterator[Engine]:
    """A running daemon with busybox loaded; at the end of the module everything must be as before."""
    made = _new_engine()
    try:
        made.start()
        made.docker("load", "-i", str(busybox_archive))
        before = made.ledger()
        yield made
        made.docker_rm_all()
        made.settle(before)
    finally:
        made.stop()
        shutil.rmtree(made.base, ignore_errors=True)


@pytest.fixture
def fresh_engine(busybox_archive: Path) -> Iterator[Engine]:
    """As `engine`, for one test alone: it may be killed and restarted."""
    made = _new_engine()
    try:
        made.start()
        made.docker("load", "-i", str(busybox_archive))
        yield made
        if made.process is None:
            made.start()
        made.docker_rm_all()
        made.settle({key: [] for key in made.ledger()})
    finally:
        made.stop()
        shutil.rmtree(made.base, ignore_errors=True)


@pytest.fixture
def clean(engine: Engine) -> Iterator[Engine]:
    """The module's daemon, without containers before and after."""
    engine.docker_rm_all()
    yield engine
    engine.docker_rm_all()
