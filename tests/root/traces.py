"""What a container leaves on the host, found without asking the engine: processes, cgroups, run directory, mounts."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
HANG_S = 30.0


def until(probe: Callable[[], T], what: str, seconds: float = HANG_S) -> T:
    """The first true answer of `probe`; AssertionError with the last one after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := probe()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what} (last seen: {found!r})")
        time.sleep(0.02)
    return found


def read(path: str | Path) -> str:
    """The text of a file of /proc or /sys, "" if it is gone."""
    try:
        return Path(path).read_text(errors="replace")
    except (OSError, ValueError):
        return ""


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def stat(pid: int) -> list[str]:
    """Fields of /proc/<pid>/stat from the state on; [] if there is no such process."""
    return read(f"/proc/{pid}/stat").rpartition(")")[2].split()


def start_time(pid: int) -> int:
    """Clock ticks since boot, 0 if there is no such process; with the pid it names one process."""
    fields = stat(pid)
    return int(fields[19]) if fields else 0


def alive(pid: int) -> bool:
    return (stat(pid) or ["X"])[0] not in ("Z", "X")


def comm(pid: int) -> str:
    return read(f"/proc/{pid}/comm").strip()


def children(pid: int) -> list[int]:
    return [int(word) for word in read(f"/proc/{pid}/task/{pid}/children").split()]


def open_files(pid: int) -> list[str]:
    """Where its descriptors lead, in order of their numbers; [] if it is gone."""
    found = []
    try:
        numbers = sorted(int(name) for name in os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return []
    for number in numbers:
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{number}"))
        except OSError:
            continue
    return found


def shims(base: Path) -> list[int]:
    """Monitors of containers and execs of the engine below `base`: their stderr is still that of its daemon."""
    mine = [pid for pid in pids() if comm(pid) == "tare-shim" and alive(pid)]
    return [pid for pid in mine if any(path.startswith(f"{base}/") for path in open_files(pid))]


def zygote(daemon: int) -> int:
    """The daemon's zygote; 0 if there is none."""
    found = [pid for pid in children(daemon) if comm(pid) == "tare-zygote" and alive(pid)]
    return found[0] if found else 0


def cgroups(name: str) -> list[str]:
    """Directories whose name is or matches `name`, two to four levels below the mount point of all hierarchies."""
    levels = ("*", "*/*", "*/*/*")
    found = [path for level in levels for path in glob.glob(f"/sys/fs/cgroup/{level}/{name}/")]
    return sorted(path.rstrip("/") for path in found)


def members(container: str) -> list[int]:
    """Processes that are in a cgroup named after the container."""
    return [pid for pid in pids() if alive(pid) and container in read(f"/proc/{pid}/cgroup")]


def remains(container: str, run_dir: Path) -> list[str]:
    """Everything of a full container id that exists on the host besides its row and its files; [] when it is gone."""
    found = [f"process {pid} ({comm(pid)})" for pid in members(container)]
    found += cgroups(container)
    if (run_dir / "containers" / container).exists():
        found.append("run directory")
    return found + [line for line in read("/proc/self/mountinfo").splitlines() if container in line]


def namespaces(processes: list[int]) -> set[str]:
    """Distinct "net:[4026531840]", "mnt:[...]" and the like of these processes."""
    found = set()
    for pid in processes:
        for kind in ("net", "mnt", "pid", "ipc", "uts", "cgroup"):
            try:
                found.add(os.readlink(f"/proc/{pid}/ns/{kind}"))
            except OSError:
                continue
    return found


def knocking(name: str) -> bool:
    """Whether a connection to a unix socket of that file name waits to be accepted (its inode is still 0)."""
    rows = (line.split() for line in read("/proc/net/unix").splitlines())
    return any(len(row) == 8 and row[6] == "0" and row[7].endswith(f"/{name}") for row in rows)
