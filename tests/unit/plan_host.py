"""A made-up host and container for the tests of plans."""

from __future__ import annotations

from typing import Any

from tare.engine import capabilities
from tare.engine.limits import HostFacts
from tare.engine.model import Container, ContainerSpec
from tare.engine.plan_devices import Node
from tare.engine.plan_mounts import ContainerFiles

ID = "0123456789abcdef" * 4
FEATURES = frozenset(
    "memory memory.swap memory.swappiness memory.oom_control memory.reservation cpu cpu.shares cpu.quota cpuset pids "
    "blkio.weight blkio.throttle devices freezer".split()
)
FILES = ContainerFiles(hosts="/c/hosts", hostname="/c/hostname", resolv_conf="/c/resolv.conf")
ROOTFS = {"lower": ["/s/2/fs", "/s/1/fs"], "upper": "/s/3/fs", "work": "/s/3/work"}


def host(**changes: Any) -> HostFacts:
    facts: dict[str, Any] = {
        "kernel": (6, 18),
        "cgroup_version": 1,
        "features": FEATURES,
        "ncpu": 2,
        "memory_total": 8 << 30,
        "cpus": "0-1",
        "mems": "0",
        "capabilities": frozenset(capabilities.NAMES) - {"CAP_SYS_RESOURCE"},
        "cap_sys_resource": False,
        "rlimit_soft": {"nofile": 1024, "nproc": 5000, "core": 0},
        "rlimit_hard": {"nofile": 20000, "nproc": 5000, "core": -1},
        "oom_score_adj_min": 0,
        "hostname": "box",
        "thermal_throttle": ("/sys/devices/system/cpu/cpu0/thermal_throttle",),
        "init": "/usr/bin/tini-static",
    }
    return HostFacts(**{**facts, **changes})


def container(spec: ContainerSpec | None = None, **changes: Any) -> Container:
    spec = spec or ContainerSpec(image="busybox", command=("sh",))
    made: dict[str, Any] = {"id": ID, "name": "c", "spec": spec, "image_id": "sha256:" + "0" * 64, "args": ("sh",)}
    return Container(**{**made, **changes})


class FakeDevices:
    """A Resolver with one disk of two partitions, a sound directory and a shared /srv."""

    _NODES = {
        "/dev/fuse": [Node(path="/dev/fuse", type="c", major=10, minor=229, mode=0o666)],
        "/dev/snd": [
            Node(path="/dev/snd/seq", type="c", major=116, minor=1, mode=0o660, gid=29),
            Node(path="/dev/snd/timer", type="c", major=116, minor=33, mode=0o660, gid=29),
        ],
        "/dev/sda": [Node(path="/dev/sda", type="b", major=8, minor=0, mode=0o660, gid=6)],
    }

    def nodes(self, path: str) -> list[Node]:
        if path not in self._NODES:
            raise FileNotFoundError(2, "No such file or directory", path)
        return self._NODES[path]

    def all(self) -> list[Node]:
        return [*self._NODES["/dev/fuse"], *self._NODES["/dev/sda"]]

    def disk(self, path: str) -> tuple[int, int]:
        if path not in ("/dev/sda", "/dev/sda1"):
            raise FileNotFoundError(2, "No such file or directory", path)
        return 8, 0

    def propagation(self, path: str) -> tuple[str, str]:
        return ("/srv", "shared") if path.startswith("/srv") else ("/", "private")
