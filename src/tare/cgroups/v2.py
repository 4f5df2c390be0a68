"""cgroup v2: one leaf with all controllers (kernel admin-guide/cgroup-v2.rst). Runs in shim and daemon as root.

Also serves v1.py: on a hybrid host its tree has (nearly) no controllers but the core files. No systemd scopes here.
"""

from __future__ import annotations

import errno
import os

from . import convert, kernfs, stats

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .api import Resources, Stats

WANTED = frozenset(("cpu", "cpuset", "hugetlb", "io", "memory", "pids", "rdma", "misc"))
"""Enabled for every leaf, limited or not, as stats need them too."""
NEEDS = {
    "memory": "memory",
    "memory.reservation": "memory",
    "cpu": "cpu",
    "cpu.shares": "cpu",
    "cpu.quota": "cpu",
    "cpuset": "cpuset",
    "pids": "pids",
    "blkio.throttle": "io",
    "devices": "devices",
    "freezer": "freezer",
    "hugetlb": "hugetlb",
}
"""Feature -> controller, where the one implies the other."""
IN_MODIFY = 0x2
"""What kernfs_notify() raises."""
IN_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC


def mounted(root: str) -> bool:
    """Whether `root` is a v2 mount: only v2 directories hold this file."""
    return os.path.exists(f"{root}/cgroup.controllers")


class Hierarchy:
    """The v2 tree mounted at `root`; `proc` is replaced in tests."""

    version = 2

    def __init__(self, root: str, proc: str = "/proc", *, filters: bool = True) -> None:
        """`filters` = False: another hierarchy bounds the devices, so the eBPF assembler is not loaded."""
        if filters:
            # Here and not when it is first used: a shim imports nothing after the fork.
            from . import devbpf  # noqa: F401
        self.root = root
        self.proc = proc
        self.offered = frozenset(kernfs.read(f"{root}/cgroup.controllers").split())
        # Two that are no controllers on v2 but always there: eBPF since Linux 4.15, cgroup.freeze since 5.2.
        self.controllers = self.offered | {"devices", "freezer"}

    def cgroup(self, path: str) -> Cgroup:
        kernfs.components(path)
        return Cgroup(self, path, WANTED & self.offered)

    def tidy(self, path: str) -> None:
        kernfs.tidy([self.root], path)

    def supports(self, feature: str) -> bool:
        if feature == "memory.swap":
            found = self._in_some_leaf("memory.stat", "memory.swap.max")
            return "memory" in self.offered and (os.path.exists(f"{self.proc}/swaps") if found is None else found)
        if feature == "blkio.weight":
            found = self._in_some_leaf("io.stat", "io.weight") or self._in_some_leaf("io.stat", "io.bfq.weight")
            return "io" in self.offered and (found or os.path.exists(f"{self.root}/io.cost.qos"))
        return NEEDS.get(feature) in self.controllers

    def _in_some_leaf(self, enabled: str, file: str) -> bool | None:
        """Whether a leaf has `file`, which no root has; None if no leaf has the controller (`enabled`) to judge by."""
        own = ""
        for line in stats.text(f"{self.proc}/self/cgroup").splitlines():
            if line.startswith("0::/"):
                own = line[3:].rstrip("/")
        for path in (own, *(f"/{name}" for name in kernfs.below(self.root))):
            if path and os.path.exists(f"{self.root}{path}/{enabled}"):
                return os.path.exists(f"{self.root}{path}/{file}")
        return None


class Cgroup:
    """One leaf; `wanted` are the controllers to enable on the way to it."""

    __slots__ = ("directory", "hierarchy", "path", "placed", "wanted")

    def __init__(self, hierarchy: Hierarchy, path: str, wanted: frozenset[str]) -> None:
        self.hierarchy = hierarchy
        self.path = path
        self.directory = hierarchy.root + path
        self.wanted = wanted
        self.placed = False

    def create(self, resources: Resources) -> list[str]:
        made: list[str] = []
        try:
            return self.prepare(resources, made)
        except OSError:
            kernfs.unmake(made)
            raise

    def prepare(self, resources: Resources, made: list[str]) -> list[str]:
        """`create` without its undo: what was made is in `made` (v1.py undoes all hierarchies together)."""
        kernfs.make(self.hierarchy.root, self.path, made)
        if self.wanted:
            self._enable()
        warnings = kernfs.apply(self._leaf, convert.v2_plan(resources, disk=kernfs.whole_disk))
        return warnings + self._rest(resources)

    def _rest(self, resources: Resources) -> list[str]:
        """Device filter and raw files. No device list at all leaves the devices as they are."""
        if resources.get("devices"):
            from . import devbpf

            devbpf.attach(self.directory, convert.rules(resources["devices"]))
        return kernfs.apply(self._leaf, convert.unified(resources))

    def _leaf(self, controller: str) -> str:
        return self.directory

    def _enable(self) -> None:
        """Delegate the wanted controllers from the root down to the leaf, if it does not have them yet.

        A refusal (EBUSY: processes in the parent; EINVAL, EOPNOTSUPP: threaded) leaves the leaf without the
        controller's files, which `create` reports limit by limit.
        """
        if self.wanted <= set(kernfs.read(f"{self.directory}/cgroup.controllers").split()):
            return
        parent = self.hierarchy.root
        for name in kernfs.components(self.path):
            file = f"{parent}/cgroup.subtree_control"
            try:
                kernfs.write(file, " ".join(f"+{controller}" for controller in sorted(self.wanted)))
            except OSError:
                for controller in sorted(self.wanted):
                    try:
                        kernfs.write(file, f"+{controller}")
                    except OSError as error:
                        if error.errno not in (errno.EBUSY, errno.EINVAL, errno.ENOENT, errno.EOPNOTSUPP):
                            raise
            parent += f"/{name}"

    def fd(self) -> int | None:
        self.placed = True
        return os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def attach(self, pid: int) -> None:
        # clone3 may have been replaced by fork after fd(): reading the list costs a tenth of a needless move.
        if not (self.placed and str(pid) in kernfs.read(f"{self.directory}/cgroup.procs").split()):
            kernfs.attach(self.directory, pid)

    def enter(self, *, placed: bool = False) -> None:
        if not placed:
            kernfs.write(f"{self.directory}/cgroup.procs", "0")

    def update(self, resources: Resources) -> list[str]:
        memory, cpu = resources.get("memory") or {}, resources.get("cpu") or {}
        now, quota = 0, "max"
        if memory.get("swap") and not memory.get("limit"):
            top = stats.value(f"{self.directory}/memory.max")
            now = -1 if top == stats.UNLIMITED else top or 0
        if cpu.get("period") and not cpu.get("quota"):
            quota = (stats.text(f"{self.directory}/cpu.max").split() or ["max"])[0]
        if memory.get("checkBeforeUpdate") and (memory.get("limit") or 0) > 0:
            # v2 would rather kill than refuse: OCI's checkBeforeUpdate asks for v1's behaviour.
            used = stats.value(f"{self.directory}/memory.current") or 0
            if used >= memory["limit"]:
                raise OSError(
                    errno.EBUSY, f"memory limit {memory['limit']} is below the use of {used} bytes", self.directory
                )
        if self.wanted:
            self._enable()
        plan = convert.v2_plan(resources, now, quota, kernfs.whole_disk)
        return kernfs.apply(self._leaf, plan) + self._rest(resources)

    def freeze(self, on: bool) -> None:
        kernfs.write(f"{self.directory}/cgroup.freeze", "1" if on else "0")
        if not kernfs.wait(lambda: self.frozen() == on, kernfs.FREEZE_TIMEOUT_S):
            if on:
                kernfs.write(f"{self.directory}/cgroup.freeze", "0")
            raise TimeoutError(errno.ETIMEDOUT, "freeze" if on else "thaw", self.directory)

    def frozen(self) -> bool:
        return stats.keyed(f"{self.directory}/cgroup.events").get("frozen") == 1

    def kill(self, signal: int = 9) -> None:
        if signal == 9:
            try:
                return kernfs.write(f"{self.directory}/cgroup.kill", "1")
            except OSError as error:
                # The file or the leaf is gone (ENODEV: since it was opened), or a kernel before 5.14.
                if error.errno not in (errno.ENOENT, errno.ENODEV):
                    raise
        if os.path.isdir(self.directory):
            kernfs.signal_frozen(self, signal)
        return None

    def pids(self) -> list[int]:
        return kernfs.pids(self.directory)

    def stats(self) -> Stats:
        leaf, proc = self.directory, self.hierarchy.proc
        result: Stats = {
            "cpu_stats": stats.v2_cpu(leaf) | stats.system_cpu(proc),
            "memory_stats": stats.v2_memory(leaf, proc),
            "pids_stats": stats.pids(leaf, unlimited=True),
            "blkio_stats": stats.v2_blkio(leaf),
        }
        if pressure := stats.pressure(leaf):
            result["pressure"] = pressure
        return result

    def oom_fd(self) -> int | None:
        """inotify on memory.events, not blocking: also readable when a limit was merely hit, so read(fd, 4096) and
        compare `oom_kills()` after each wake-up."""
        file = f"{self.directory}/memory.events"
        if not os.path.exists(file):
            return None
        import ctypes  # loaded with devbpf

        libc = ctypes.CDLL(None, use_errno=True)
        fd: int = libc.inotify_init1(IN_NONBLOCK_CLOEXEC)
        if fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1", file)
        if libc.inotify_add_watch(fd, os.fsencode(file), IN_MODIFY) < 0:
            number = ctypes.get_errno()
            os.close(fd)
            raise OSError(number, "inotify_add_watch", file)
        return fd

    def oom_news(self, fd: int, seen: int) -> int:
        os.read(fd, 4096)
        return self.oom_kills()

    def oom_kills(self) -> int:
        return stats.keyed(f"{self.directory}/memory.events").get("oom_kill", 0)

    def mounts(self) -> list[tuple[str, str]]:
        return [("", self.directory)]

    def delete(self) -> None:
        kernfs.remove([self.directory])
