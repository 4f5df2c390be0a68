"""The engines that are compared, each started privately: own data root, own socket, nothing of the machine's touched.

What they leave behind outside of their folders (cgroups, empty directories below /run, mounts) is taken away by `stop`.
Runs as root.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from memory import children, command_holds, name_of, weight_mb
from rawhttp import Api
from samples import run_quietly

__all__ = ["Client", "Docker", "Engine", "Limit", "Missing", "Podman", "Tare"]

BIN = Path(sys.executable).parent
HERE = Path(__file__).resolve().parent
IMAGE = "busybox"
DEFAULTS = ("/run/containerd/s", "/run/containerd", "/run/docker/plugins", "/run/docker", "/run/runc", "/run/crun")
"""What dockerd, containerd and podman make beside the folders they are given; in the order of rmdir."""


class Missing(Exception):
    """An engine cannot take part; the text says why."""


class Client:
    """A command line program and the engine that answers it."""

    def __init__(self, name: str, argv: list[str], environment: Mapping[str, str], run: list[str]) -> None:
        self.name, self.argv, self.environment = name, argv, environment
        self.run = ["run", *run]
        """`run` with the options that this engine needs."""

    def command(self, *words: str) -> list[str]:
        return [*self.argv, *words]

    def call(self, *words: str) -> str:
        return run_quietly(self.command(*words), self.environment)


class Engine:
    """`start` may raise Missing; `stop` is called in any case. `data` is on disk, `run` on a tmpfs."""

    name = ""

    def __init__(self, data: Path, run: Path) -> None:
        self.data, self.run = data / self.name, run / self.name
        self.data.mkdir()
        self.run.mkdir()
        self.cgroup = f"/tare-bench-{os.getpid()}-{self.name}"
        self.socket = self.run / "engine.sock"
        self.clients: list[Client] = []
        self.version = ""
        self._processes: list[subprocess.Popen[bytes]] = []
        self._before = {place for place in DEFAULTS if os.path.exists(place)}
        self._idle: list[str] = []

    def start(self) -> None:
        raise NotImplementedError

    def load(self, archive: Path) -> None:
        self.clients[0].call("load", "-i", str(archive))

    def idle(self, count: int) -> None:
        """Have `count` containers that do nothing."""
        client = self.clients[0]
        while len(self._idle) < count:
            name = f"idle{len(self._idle)}"
            client.call(*client.run, "-d", "--name", name, IMAGE, "sleep", "1000000")
            self._idle.append(name)

    def api(self) -> Api | None:
        return Api(str(self.socket)) if self.socket.exists() else None

    def shims(self) -> list[int]:
        """Processes that are there once per container, the container's own not counted."""
        raise NotImplementedError

    def daemons(self) -> list[int]:
        """Processes that are there once."""
        return []

    def shim_mb(self) -> float:
        found = self.shims()
        if len(found) < len(self._idle):
            raise RuntimeError(f"{self.name}: {len(found)} shims for {len(self._idle)} containers")
        return weight_mb(found) / len(found)

    def stop(self) -> None:
        try:
            if self._idle and self.clients:
                self.clients[0].call("rm", "-f", *self._idle)
        except RuntimeError as error:
            print(f"bench: {error}", file=sys.stderr)
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._unmount()
        self._remove_cgroups()
        for place in DEFAULTS:
            if place not in self._before and os.path.isdir(place) and not os.listdir(place):
                os.rmdir(place)

    def _remove_cgroups(self, seconds: float = 10) -> None:
        """Those of our own name; a process that was killed a moment ago may still be on its way out."""
        deadline = time.monotonic() + seconds
        tops = {line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if " cgroup" in line}
        for folder in [each for top in tops for each, _, _ in os.walk(f"{top}{self.cgroup}", topdown=False)]:
            while True:
                try:
                    os.rmdir(folder)
                    break
                except FileNotFoundError:
                    break
                except OSError as error:
                    if time.monotonic() > deadline:
                        print(f"bench: {self.name} leaves {folder}: {error.strerror}", file=sys.stderr)
                        break
                    time.sleep(0.1)

    def _unmount(self) -> None:
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for point in sorted(points, reverse=True):
            if point.startswith((f"{self.data}/", f"{self.run}/")):
                subprocess.run(["umount", "-l", point], check=False)

    def _spawn(self, argv: list[str]) -> subprocess.Popen[bytes]:
        with (self.data / f"{os.path.basename(argv[0])}.log").open("ab") as log:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._processes.append(process)
        return process

    def _await(
        self, what: str, done: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 30
    ) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            if process.poll() is not None or time.monotonic() > deadline:
                log = (self.data / f"{os.path.basename(str(process.args[0]))}.log").read_text()  # type: ignore[index]
                raise Missing(f"{what} does not start: {log.strip().splitlines()[-1:]}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            api = Api(str(self.socket))
        except OSError:
            return False
        try:
            return bool(api.call("GET", "/version"))
        finally:
            api.close()


def stock_client(engine: Engine, name: str, program: str | None, run: list[str]) -> list[Client]:
    if program is None:
        return []
    folder = engine.data / "client"
    folder.mkdir(exist_ok=True)
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(folder), "DOCKER_HOST": f"unix://{engine.socket}",
        "DOCKER_CONFIG": str(folder), "DOCKER_CLI_HINTS": "false", "LC_ALL": "C.UTF-8",
    }  # fmt: skip
    return [Client(name, [program], environment, ["--network", "none", *run])]


class Tare(Engine):
    """Ours, as installed beside this interpreter."""

    name = "tare"

    def start(self) -> None:
        tared = BIN / "tared"
        if not tared.exists():
            raise SystemExit(f"bench: {tared} is not there: run `make bench`")
        config = self.data / "daemon.json"
        config.write_text("{}")
        process = self._spawn(
            [str(tared), "--data-root", str(self.data / "root"), "--exec-root", str(self.run / "exec"), "--pidfile",
             str(self.run / "pid"), "-H", f"unix://{self.socket}", "--config-file", str(config)]
        )  # fmt: skip
        self.pid = process.pid
        self._await("tared", self._answers, process)
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.data), "TARE_HOST": f"unix://{self.socket}",
                       "DOCKER_CONFIG": str(self.data), "LC_ALL": "C.UTF-8"}  # fmt: skip
        self.clients = [Client("tare", [str(BIN / "tare")], environment, ["--network", "none"])]
        self.clients += stock_client(self, "docker, tared", shutil.which("docker"), [])
        self.version = run_quietly([str(tared), "--version"], environment).strip()

    def shims(self) -> list[int]:
        """By the files that the shims write themselves (runtime/protocol.py)."""
        files = (self.run / "exec" / "containers").glob("*/shim")
        return [int(file.read_text().split()[0]) for file in files]

    def daemons(self) -> list[int]:
        """The daemon, its zygote, and the zygote's child that waits for the next job."""
        zygotes = [pid for pid in children(self.pid) if name_of(pid) == "tare-zygote"]
        spares = [pid for zygote in zygotes for pid in children(zygote) if name_of(pid) == "tare-zygote"]
        if not zygotes or not spares:
            raise RuntimeError("tared has no zygote, or that no spare child")
        return [self.pid, *zygotes, *spares]

    def bundle(self) -> dict[str, object]:
        """What the runtime was told for one of the idle containers."""
        path = next((self.run / "exec" / "containers").glob("*/bundle.json"))
        found: dict[str, object] = json.loads(path.read_text())
        return found


class Docker(Engine):
    """dockerd with a containerd of its own; no bridge, no firewall rule, nothing of the host's network changed."""

    name = "docker"

    def start(self) -> None:
        programs = {name: shutil.which(name) for name in ("dockerd", "containerd", "runc", "docker")}
        absent = [name for name, path in programs.items() if path is None]
        if absent:
            raise Missing(f"not installed: {', '.join(absent)}")
        containerd = self._containerd(str(programs["containerd"]))
        (self.data / "daemon.json").write_text("{}")
        dockerd = self._spawn(
            [str(programs["dockerd"]), "--containerd", containerd, "--data-root", str(self.data / "root"),
             "--exec-root", str(self.run / "exec"), "--pidfile", str(self.run / "pid"), "-H", f"unix://{self.socket}",
             "--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--userland-proxy=false",
             "--cgroup-parent", self.cgroup, "--config-file", str(self.data / "daemon.json")]
        )  # fmt: skip
        self._await("dockerd", self._answers, dockerd)
        self.clients = stock_client(self, "docker, dockerd", programs["docker"], [])
        api = Api(str(self.socket))
        found, about = api.call("GET", "/version"), api.call("GET", "/info")
        api.close()
        parts = {each["Name"]: each["Version"] for each in found["Components"]}
        client = run_quietly([str(programs["docker"]), "--version"], self.clients[0].environment).split()[2]
        self.version = (
            f"docker client {client} dockerd {parts['Engine']}, containerd {parts.get('containerd')}, "
            f"runc {parts.get('runc')}, {about['Driver']}, {about['CgroupDriver']}"
        )

    def _containerd(self, program: str) -> str:
        """Its socket. Without the CRI plug-ins, as dockerd itself would start it."""
        address, config = f"{self.run}/containerd.sock", self.data / "containerd.toml"
        config.write_text(
            f'version = 2\nroot = "{self.data}/containerd"\nstate = "{self.run}/containerd"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", '
            '"io.containerd.cri.v1.runtime", "io.containerd.podsandbox.controller.v1.podsandbox"]\n'
            f'[grpc]\naddress = "{address}"\n[plugins."io.containerd.internal.v1.opt"]\npath = "{self.data}/opt"\n'
        )
        process = self._spawn([program, "-c", str(config)])
        self._await("containerd", lambda: os.path.exists(address), process)
        return address

    def shims(self) -> list[int]:
        return command_holds("containerd-shim-runc-v2", str(self.run))

    def daemons(self) -> list[int]:
        return [process.pid for process in self._processes]


class Podman(Engine):
    """Without a daemon: rows of the API are not for it."""

    name = "podman"

    def start(self) -> None:
        program = shutil.which("podman")
        if program is None:
            raise Missing("not installed")
        config = self.data / "containers.conf"
        # podman's own defaults exceed what a machine without CAP_SYS_RESOURCE may give.
        most = min(20_000, *(resource.getrlimit(kind)[1] for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC)))
        config.write_text(f'[containers]\ndefault_ulimits = ["nofile={most}:{most}", "nproc={most}:{most}"]\n')
        self._environment = {"PATH": os.environ["PATH"], "HOME": str(self.data), "CONTAINERS_CONF": str(config),
                             "PODMAN_IGNORE_CGROUPSV1_WARNING": "1", "LC_ALL": "C.UTF-8"}  # fmt: skip
        self._common = [
            program, "--root", str(self.data / "root"), "--runroot", str(self.run / "run"), "--tmpdir",
            str(self.run / "tmp"), "--cgroup-manager", "cgroupfs", "--events-backend", "file",
        ]  # fmt: skip
        self._use([])
        self.version = run_quietly([program, "--version"], self._environment).strip()

    def _use(self, further: list[str]) -> None:
        run = ["--network", "none", "--cgroup-parent", self.cgroup]
        self.clients = [Client("podman", [*self._common, *further], self._environment, run)]

    def load(self, archive: Path) -> None:
        super().load(archive)
        client = self.clients[0]
        runc = shutil.which("runc")
        try:
            client.call(*client.run, "--rm", IMAGE, "true")
            runtime = client.call("info", "--format", "{{.Host.OCIRuntime.Name}}").strip()
        except RuntimeError as error:
            if runc is None:
                raise Missing(f"cannot run a container here: {error}") from None
            self._use(["--runtime", runc, "--runtime-flag", f"root={self.run / 'runc'}"])
            try:
                self.clients[0].call(*self.clients[0].run, "--rm", IMAGE, "true")
            except RuntimeError as second:
                raise Missing(f"cannot run a container here: {error}; with runc: {second}") from None
            runtime = "runc"
        self.version += f", {runtime}"

    def shims(self) -> list[int]:
        return command_holds("conmon", str(self.run))

    def stop(self) -> None:
        if self.clients:
            # podman kills only after 10 s otherwise
            subprocess.run(self.clients[0].command("rm", "-f", "-a", "-t", "0"), env=self._environment,
                           capture_output=True, check=False)  # fmt: skip
            self._idle = []
        super().stop()


class Limit:
    """limit.c as a process that makes one start per line it is told."""

    def __init__(self, data: Path, bundle: Mapping[str, object]) -> None:
        """Missing without a compiler."""
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            raise Missing("no C compiler")
        base = data / "limit"
        base.mkdir()
        run_quietly([compiler, "-O2", "-o", str(base / "limit"), str(HERE / "limit.c")], os.environ)
        lower = bundle["rootfs"]["lower"]  # type: ignore[index]
        if len(lower) != 1:
            raise Missing("the image has more than one layer")
        self._process = subprocess.Popen(
            [str(base / "limit"), lower[0], str(base), str(bundle["bpf"]), f"tare-bench-{os.getpid()}-limit"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def start(self) -> tuple[float, float, float]:
        """ms from the request to running, from clone3 to running, from the request to gone."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"limit ended with {self._process.wait()}")
        whole, cloned, gone = (float(word) / 1000 for word in line.split())
        return whole, cloned, gone

    def stop(self) -> None:
        self._process.communicate()
