"""`make bench`: this engine beside docker, podman and the kernel's own limit, in one run on one machine.

usage: bench.py [--quick] [--rows run,start,...] [--json FILE]

Every engine runs privately on roots of its own (engines.py). All samples of a row are taken in turns, so that noise
hits everybody alike; compare within one run only. What is not installed is said and left out. Needs root, and an
installation that is not editable (`make bench` sees to it). Exit status 1 if this engine could not do what was asked.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from engines import IMAGE, Client, Docker, Engine, Limit, Missing, Podman, Tare
from memory import weight_mb
from rawhttp import Api
from samples import Row, elapsed, interleave, markdown, run_quietly

ROOT = Path(__file__).resolve().parents[2]
MANY = 50
ROWS = {
    "run": "`run --rm --network none IMAGE true`, whole process",
    "start": "POST /containers/ID/start until the 204",
    "exec": "`exec C true`, whole process",
    "execapi": "exec create + start until end of output, API",
    "ps": "`ps`, whole process",
    "version": "`version`, whole process",
    "shim": f"memory per idle container of {MANY}: PSS and page tables of its shim",
    "daemon": "memory of the daemons (tared, zygote, its spare; dockerd, containerd)",
}
COUNTS = {"run": 40, "start": 100, "exec": 40, "execapi": 60, "ps": 40, "version": 40, "shim": 3, "daemon": 3}
QUICK = {"run": 8, "start": 20, "exec": 8, "execapi": 12, "ps": 8, "version": 8, "shim": 1, "daemon": 1}


class Bench:
    """One run; `table` grows row by row."""

    def __init__(self, engines: list[Engine], counts: Mapping[str, int], wanted: set[str], data: Path) -> None:
        self.engines, self.counts, self.wanted, self.data = engines, counts, wanted, data
        self.table: list[Row] = []
        self.limit: Limit | None = None
        self.absent: list[str] = []
        self.failed = False

    def clients(self) -> Iterator[Client]:
        for engine in self.engines:
            yield from engine.clients

    def add(
        self, key: str, title: str, unit: str, contestants: Mapping[str, Callable[[], float]], **options: Any
    ) -> Row:
        began = time.monotonic()
        row = Row(key, title, unit, interleave(contestants, self.counts[key], **options))
        self.table.append(row)
        print(f"bench: {key} took {time.monotonic() - began:.0f} s", file=sys.stderr)
        return row

    def processes(self, key: str, title: str, words: Callable[[Client], list[str]]) -> None:
        """A row of whole processes, one contestant per client that can do it at all."""
        if key not in self.wanted:
            return
        able = {}
        for client in self.clients():
            argv = client.command(*words(client))
            try:
                elapsed(argv, client.environment)
            except RuntimeError as error:
                self.absent.append(f"{client.name}: {str(error).splitlines()[-1]}")
                self.failed |= client.name == "tare"
                continue
            able[client.name] = partial(elapsed, argv, client.environment)
        self.add(key, title, "ms", able)

    def run(self) -> None:
        for engine in self.engines:
            engine.idle(1)
        if "daemon" in self.wanted:
            self.daemons(1)
        self.processes("run", ROWS["run"], lambda c: [*c.run, "--rm", IMAGE, "true"])
        if "start" in self.wanted:
            self.starts()
        self.processes("exec", ROWS["exec"], lambda _: ["exec", "idle0", "true"])
        if "execapi" in self.wanted:
            served = {engine.name: engine.api() for engine in self.engines}
            found = {_served_by(name): partial(exec_api, api, "idle0") for name, api in served.items() if api}
            self.add("execapi", ROWS["execapi"], "ms", found)
        self.listings(1)
        if self.wanted & {"shim", "daemon", "ps", "version"}:
            for engine in self.engines:
                engine.idle(MANY)
            time.sleep(2)
            if "shim" in self.wanted:
                self.add("shim", ROWS["shim"], "MB", {_weighed(e): e.shim_mb for e in self.engines}, pause_s=1)
            if "daemon" in self.wanted:
                self.daemons(MANY)
            self.listings(MANY)

    def listings(self, count: int) -> None:
        containers = "1 container" if count == 1 else f"{count} containers"
        for key in ("ps", "version"):
            self.processes(key, f"{ROWS[key]}, {containers}", lambda _, word=key: [word])

    def daemons(self, count: int) -> None:
        found = {_weighed(e): partial(_weigh_daemons, e) for e in self.engines if not isinstance(e, Podman)}
        self.add("daemon", f"{ROWS['daemon']}, {count} idle", "MB", found, pause_s=1)

    def starts(self) -> None:
        """The API row with the limit as one more contestant, and the limit's other two numbers."""
        found: dict[str, Callable[[], float]] = {}
        for engine in self.engines:
            api = engine.api()
            if api is not None:
                found[_served_by(engine.name)] = partial(start_api, api)
        further: dict[str, list[float]] = {"clone3 to running": [], "request to gone": []}
        try:
            tare = next(engine for engine in self.engines if isinstance(engine, Tare))
            self.limit = Limit(self.data, tare.bundle())
            found["limit in C"] = partial(_limit, self.limit, further)
        except Missing as missing:
            self.absent.append(f"limit in C: {missing}")
        row = self.add("start", ROWS["start"], "ms", found)
        for title, values in further.items():
            if values:
                self.table.append(Row("limit", f"limit in C, {title}", "ms", {"limit in C": values[1:]}))
        print(f"bench: start: {row.figures('tared')['median']:.2f} ms", file=sys.stderr)


def _served_by(name: str) -> str:
    return {"tare": "tared", "docker": "docker, dockerd"}[name]


def _weighed(engine: Engine) -> str:
    return {"tare": "tare", "docker": "docker, dockerd", "podman": "podman"}[engine.name]


def _weigh_daemons(engine: Engine) -> float:
    return weight_mb(engine.daemons())


def _limit(limit: Limit, further: Mapping[str, list[float]]) -> float:
    whole, cloned, gone = limit.start()
    further["clone3 to running"].append(cloned)
    further["request to gone"].append(gone)
    return whole


def start_api(api: Api) -> float:
    """ms of the start alone; create before and removal after are not counted."""
    body = {"Image": IMAGE, "Cmd": ["true"], "HostConfig": {"NetworkMode": "none"}}
    identity = api.call("POST", "/containers/create", body)["Id"]
    message = api.message("POST", f"/containers/{identity}/start")
    begin = time.perf_counter_ns()
    api.sock.sendall(message)
    status, data = api.answer()
    end = time.perf_counter_ns()
    if status != 204:
        raise RuntimeError(f"start: {status} {data.decode(errors='replace')}")
    ended = api.call("POST", f"/containers/{identity}/wait")
    if ended["StatusCode"]:
        raise RuntimeError(f"the container ended with {ended}")
    api.call("DELETE", f"/containers/{identity}")
    return (end - begin) / 1e6


def exec_api(api: Api, container: str) -> float:
    """ms from the request that creates the exec to the end of its output, on a second connection opened before."""
    body = {"Cmd": ["true"], "AttachStdout": True, "AttachStderr": True}
    with api.connect() as stream:
        begin = time.perf_counter_ns()
        identity = api.call("POST", f"/containers/{container}/exec", body)["Id"]
        stream.sendall(api.message("POST", f"/exec/{identity}/start", {"Detach": False, "Tty": False}))
        data = b""
        while piece := stream.recv(65536):
            data += piece
        end = time.perf_counter_ns()
    if b" 200 " not in data.split(b"\r\n", 1)[0]:
        raise RuntimeError(f"exec: {data[:500]!r}")
    found = api.call("GET", f"/exec/{identity}/json")
    if found["ExitCode"] != 0:
        raise RuntimeError(f"the exec ended with {found['ExitCode']}")
    return (end - begin) / 1e6


def facts() -> dict[str, Any]:
    """What the figures depend on."""
    processor = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    mounts = Path("/proc/mounts").read_text()
    kinds = {"v1": " cgroup rw" in mounts, "v2": " cgroup2 " in mounts}
    return {
        "cores": os.cpu_count(), "processor": processor, "kernel": platform.release(),
        "python": platform.python_version(), "cgroup": "hybrid" if all(kinds.values()) else next(name for name in kinds if kinds[name]),
    }  # fmt: skip


def file_system(path: Path) -> str:
    return run_quietly(["stat", "-f", "-c", "%T", str(path)], os.environ).strip()


@contextlib.contextmanager
def private(prefix: str, where: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=where))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _tmpfs() -> Path:
    return next(
        (place for place in (Path("/run"), Path("/dev/shm")) if file_system(place) == "tmpfs"), Path("/var/tmp")
    )


def begin(engines: list[Engine], archive: Path, absent: list[str]) -> list[Engine]:
    """Those that could be started, with the image in them."""
    able = []
    for engine in engines:
        try:
            engine.start()
            engine.load(archive)
            able.append(engine)
        except Missing as missing:
            absent.append(f"{engine.name}: {missing}")
            engine.clients = []
    if not shutil.which("docker"):
        absent.append("docker client: not installed")
    return able


def end(bench: Bench, everybody: list[Engine]) -> None:
    """Stop all, the last first; one that resists keeps no other from being stopped."""
    with contextlib.ExitStack() as stack:
        for engine in everybody:
            stack.callback(engine.stop)
        if bench.limit is not None:
            stack.callback(bench.limit.stop)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="tare beside docker, podman and the limit in C")
    parser.add_argument("--quick", action="store_true", help="a fifth of the samples")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"some of {','.join(ROWS)}")
    parser.add_argument("--json", metavar="FILE", help="write facts, figures and all samples there")
    found = parser.parse_args()
    unknown = set(found.rows.split(",")) - set(ROWS)
    if unknown:
        parser.error(f"unknown rows: {', '.join(sorted(unknown))}")
    if os.geteuid() != 0:
        parser.error("containers need root")
    return found


def main() -> None:
    options = arguments()
    about = {**facts(), "load before": os.getloadavg()}
    with private("tare-bench-", Path("/var/tmp")) as data, private("tare-bench-", _tmpfs()) as run:
        archive = data / "busybox.tar"
        with archive.open("wb") as file:
            subprocess.run([sys.executable, str(ROOT / "scripts" / "busybox-image")], stdout=file, check=True)
        everybody: list[Engine] = [Tare(data, run), Docker(data, run), Podman(data, run)]
        bench = Bench([], QUICK if options.quick else COUNTS, set(options.rows.split(",")), data)
        try:
            bench.engines = begin(everybody, archive, bench.absent)
            about |= {
                "versions": [e.version for e in bench.engines],
                "data": file_system(data),
                "run": file_system(run),
            }
            bench.run()
            about["load after"] = os.getloadavg()
            report(about, bench, options.json)
        finally:
            end(bench, everybody)
    sys.exit(bench.failed)


def report(about: Mapping[str, Any], bench: Bench, path: str | None) -> None:
    before, after = (" ".join(f"{value:.1f}" for value in about[f"load {when}"]) for when in ("before", "after"))
    print(
        f"\n{about['cores']} x {about['processor']}, Linux {about['kernel']}, cgroup {about['cgroup']}, "
        f"Python {about['python']}"
    )
    print(f"load before {before}, after {after}; data on {about['data']}, sockets and run files on {about['run']}")
    print("\n".join(about["versions"]))
    for line in bench.absent:
        print(f"not here: {line}")
    print(f"\n{markdown(bench.table)}")
    if path:
        rows = [row.figures(name) for row in bench.table for name in row.samples]
        Path(path).write_text(json.dumps({"facts": about, "absent": bench.absent, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
