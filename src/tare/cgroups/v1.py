"""cgroup v1: the same path under every mounted controller, and on hybrid hosts one v2 leaf beside them.

Runs in shim and daemon as root. Limits go to the v1 leaves; the v2 leaf gives what v1 lacks: CLONE_INTO_CGROUP,
cgroup.kill, a freezer that SIGKILL passes, PSI; and the limits of controllers that only v2 has here. Paths are below
the mount points: in a container these already show its own part. Files: kernel admin-guide/cgroup-v1/*.
"""

from __future__ import annotations

import errno
import os

from . import convert, kernfs, stats

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import v2
    from .api import Resources, Stats

SECTIONS = {"memory": "memory", "cpu": "cpu", "pids": "pids", "blockIO": "io", "hugepageLimits": "hugetlb"}
"""OCI section -> v2 controller, for what a hybrid host offers on v2 only."""
FEATURES = {
    "memory": "memory/memory.limit_in_bytes",
    "memory.swap": "memory/memory.memsw.limit_in_bytes",
    "memory.swappiness": "memory/memory.swappiness",
    "memory.oom_control": "memory/memory.oom_control",
    "memory.reservation": "memory/memory.soft_limit_in_bytes",
    "cpu": "cpu/cpu.shares",
    "cpu.shares": "cpu/cpu.shares",
    "cpu.quota": "cpu/cpu.cfs_quota_us",
    "cpu.rt": "cpu/cpu.rt_runtime_us",
    "cpuset": "cpuset/cpuset.cpus",
    "pids": "pids/cgroup.procs",
    # In the root BFQ shows no weight, only its counters.
    "blkio.weight": "blkio/blkio.weight blkio/blkio.bfq.io_service_bytes",
    "blkio.throttle": "blkio/blkio.throttle.read_bps_device",
    "devices": "devices/devices.allow",
    "freezer": "freezer/cgroup.procs",
    "hugetlb": "hugetlb/cgroup.procs",
}
"""Feature -> controller/file in the root that proves it; alternatives are separated by a blank."""
NO_CONTROLLERS = frozenset(("rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "favordynmods"))
"""Words of the mount options that name no controller (cgroup1_show_options)."""

_mounts: dict[tuple[str, str], tuple[dict[str, str], str]] = {}
"""Read once per process: mountinfo of a busy host has thousands of lines, and a shim inherits the zygote's."""


def mounts(root: str, mountinfo: str) -> tuple[dict[str, str], str]:
    """({controller or "name=x": mount point}, mount point of a writable v2 tree or "") at or below `root`; proc(5)."""
    known = _mounts.get((root, mountinfo))
    if known is None:
        found: dict[str, str] = {}
        unified = ""
        for line in kernfs.read(mountinfo).splitlines():
            if " - cgroup" not in line:
                continue
            left, _, right = line.partition(" - ")
            point = _unescape(left.split()[4])
            kind, _, options = right.split(" ", 2)
            if not point.startswith(f"{root}/"):
                continue
            # Not by the options: a bind mount may be read-only while its file system is not.
            if kind == "cgroup2" and not unified and os.access(point, os.W_OK):
                unified = point
            elif kind == "cgroup":
                for word in options.split(","):
                    if word.startswith("name=") or ("=" not in word and word not in NO_CONTROLLERS):
                        found.setdefault(word, point)
        known = _mounts[root, mountinfo] = (found, unified)
    return known


def _unescape(text: str) -> str:
    """mountinfo writes blank, tab, newline and backslash as three octal digits."""
    head, *rest = text.split("\\")
    return head + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)


class Hierarchy:
    """All v1 mounts below `root`; `mountinfo` and `proc` are replaced in tests."""

    version = 1

    def __init__(self, root: str, mountinfo: str = "/proc/self/mountinfo", proc: str = "/proc") -> None:
        self.root = root
        self.proc = proc
        self.where, unified = mounts(root, mountinfo)
        if not self.where:
            raise OSError(errno.ENOSYS, "no cgroups are mounted (hint: mount -t cgroup2 none /sys/fs/cgroup)", root)
        self.points = list(dict.fromkeys(self.where.values()))
        self.unified: v2.Hierarchy | None = None
        if unified:
            from . import v2

            self.unified = v2.Hierarchy(unified, proc, filters="devices" not in self.where)
        own = {name for name in self.where if not name.startswith("name=")}
        self.controllers = frozenset(own | (self.unified.offered if self.unified else set()))

    def cgroup(self, path: str) -> Cgroup:
        kernfs.components(path)
        return Cgroup(self, path)

    def tidy(self, path: str) -> None:
        kernfs.tidy([*self.points, *([self.unified.root] if self.unified else ())], path)

    def supports(self, feature: str) -> bool:
        for proof in FEATURES.get(feature, "").split():
            controller, _, file = proof.partition("/")
            if controller in self.where and os.path.exists(f"{self.where[controller]}/{file}"):
                return True
        return self.unified is not None and self.unified.supports(feature)


class Cgroup:
    """The leaves of one path."""

    __slots__ = ("hierarchy", "path", "unified")

    def __init__(self, hierarchy: Hierarchy, path: str) -> None:
        self.hierarchy = hierarchy
        self.path = path
        self.unified: v2.Cgroup | None = None
        if hierarchy.unified:
            # No controllers but on demand: each one enabled costs memory and time at every leaf.
            self.unified = hierarchy.unified.cgroup(path)
            self.unified.wanted = frozenset()

    def _leaf(self, controller: str) -> str | None:
        point = self.hierarchy.where.get(controller)
        return None if point is None else point + self.path

    def _leaves(self) -> list[str]:
        return [point + self.path for point in self.hierarchy.points]

    def create(self, resources: Resources) -> list[str]:
        made: list[str] = []
        try:
            for point in self.hierarchy.points:
                kernfs.make(point, self.path, made)
            if "cpuset" in self.hierarchy.where:
                self._fill_cpuset(resources.get("cpu") or {}, made)
            mine, theirs = self._split(resources)
            warnings = []
            if self.unified:
                warnings = self.unified.prepare(theirs, made)
            return warnings + self._limit(mine, new=True)
        except OSError:
            kernfs.unmake(made)
            raise

    def _split(self, resources: Resources) -> tuple[Resources, Resources]:
        """What goes to the v1 leaves, and what to the v2 leaf as v1 has no such controller here."""
        if not self.unified or not self.hierarchy.unified:
            return resources, {}
        own, offered = self.hierarchy.where, self.hierarchy.unified.offered
        theirs = {
            key: resources[key]
            for key, controller in SECTIONS.items()
            if key in resources and controller.replace("io", "blkio") not in own and controller in offered
        }
        self.unified.wanted = frozenset(SECTIONS[key] for key in theirs)
        for key in ("unified", *(() if "devices" in own else ("devices",))):
            if key in resources:
                theirs[key] = resources[key]
        return {key: section for key, section in resources.items() if key not in theirs}, theirs

    def _limit(self, resources: Resources, *, new: bool) -> list[str]:
        """All writes but a fresh leaf's cpuset. Warnings."""
        plan = convert.v1_plan(resources, kernfs.whole_disk)
        if not new or "cpuset" not in self.hierarchy.where:
            plan += convert.cpuset(resources)
        if resources.get("unified"):
            plan += [("", (), sentence) for _, _, sentence in convert.unified(resources)]
        if resources.get("devices"):
            default, found = convert.exceptions(convert.rules(resources["devices"]))
            if directory := self._leaf("devices"):
                if new:
                    _reset_devices(directory, default, found)
                else:
                    _change_devices(directory, default, found)
            else:
                plan.append(("", (), convert.NO_DEVICES))
        return kernfs.apply(self._leaf, plan)

    def _fill_cpuset(self, cpu: Resources, made: list[str]) -> None:
        """A v1 cpuset is empty when made and takes no process (ENOSPC) before both files are set.

        Parents that we made copy theirs to each new child (cgroup.clone_children): that saves two reads and two slow
        writes at every start (87 of 560 us). A parent of others is left alone.
        """
        point = self.hierarchy.where["cpuset"]
        leaf, parent = point + self.path, self.path[: self.path.rindex("/")]
        if point + parent in made:
            kernfs.write(f"{point}{parent}/cgroup.clone_children", "1")
        empty = leaf in made and not kernfs.read(f"{leaf}/cpuset.cpus").strip()
        for key in ("cpus", "mems"):
            value = str(cpu.get(key) or "")
            if empty:
                # Also for a value of the leaf's own: below an empty parent it is refused (EACCES).
                inherited = _inherited(point, parent, f"cpuset.{key}")
                value = value or inherited
            if value:
                kernfs.write(f"{leaf}/cpuset.{key}", value)

    def fd(self) -> int | None:
        return self.unified.fd() if self.unified else None

    def attach(self, pid: int) -> None:
        if self.unified:
            self.unified.attach(pid)
        for directory in self._leaves():
            kernfs.attach(directory, pid)

    def enter(self, *, placed: bool = False) -> None:
        if self.unified:
            self.unified.enter(placed=placed)
        for directory in self._leaves():
            kernfs.write(f"{directory}/tasks", "0")

    def update(self, resources: Resources) -> list[str]:
        mine, theirs = self._split(resources)
        return (self.unified.update(theirs) if self.unified and theirs else []) + self._limit(mine, new=False)

    def freeze(self, on: bool) -> None:
        if self.unified:
            return self.unified.freeze(on)
        directory = self._leaf("freezer")
        if directory is None:
            raise OSError(errno.EOPNOTSUPP, "freeze: the freezer cgroup is not mounted", self.path)
        file = f"{directory}/freezer.state"
        if not on:
            return kernfs.write(file, "THAWED")
        count = 0

        def reached() -> bool:
            nonlocal count
            count += 1
            # A process that forks faster than it is frozen escapes for good unless all are let go now and then
            # (kernel cgroup-v1/freezer-subsystem.rst: "retry").
            kernfs.write(file, *(("THAWED", "FROZEN") if count % 50 == 0 else ("FROZEN",)))
            return self.frozen()

        if not kernfs.wait(reached, kernfs.FREEZE_TIMEOUT_S):
            kernfs.write(file, "THAWED")
            raise TimeoutError(errno.ETIMEDOUT, "freeze", directory)
        return None

    def frozen(self) -> bool:
        if self.unified:
            return self.unified.frozen()
        directory = self._leaf("freezer")
        return directory is not None and stats.text(f"{directory}/freezer.state").strip() == "FROZEN"

    def kill(self, signal: int = 9) -> None:
        if self.unified and signal == 9:
            self.unified.kill(signal)
        elif any(map(os.path.isdir, self._leaves())):
            kernfs.signal_frozen(self, signal)
        freezer = self._leaf("freezer")
        if signal == 9 and freezer is not None:
            _thaw(freezer)

    def pids(self) -> list[int]:
        return self.unified.pids() if self.unified else kernfs.pids(self._leaves()[0])

    def stats(self) -> Stats:
        proc = self.hierarchy.proc
        cpuacct, memory, pids, blkio = map(self._leaf, ("cpuacct", "memory", "pids", "blkio"))
        result: Stats = {"cpu_stats": {}, "memory_stats": {}, "pids_stats": {}, "blkio_stats": {}}
        if self.unified:
            result = self.unified.stats()
        if cpuacct:
            result["cpu_stats"] = stats.v1_cpu(cpuacct, self._leaf("cpu")) | stats.system_cpu(proc)
        if memory:
            result["memory_stats"] = stats.v1_memory(memory, proc)
        if pids:
            result["pids_stats"] = stats.pids(pids, unlimited=False)
        if blkio:
            result["blkio_stats"] = stats.v1_blkio(blkio)
        return result

    def oom_fd(self) -> int | None:
        """eventfd by cgroup.event_control, not blocking: readable when the limit is hit for good, just before the kill,
        and when the leaf is removed; so read(fd, 4096) and compare `oom_kills()` after each wake-up."""
        directory = self._leaf("memory")
        if directory is None:
            return self.unified.oom_fd() if self.unified else None
        try:
            control = os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            kernfs.write(f"{directory}/cgroup.event_control", f"{event} {control}")
        except FileNotFoundError:
            # Not built in (CONFIG_MEMCG_V1 off) or CONFIG_PREEMPT_RT.
            os.close(event)
            return None
        except OSError:
            os.close(event)
            raise
        finally:
            os.close(control)
        return event

    def oom_news(self, fd: int, seen: int) -> int:
        if self._leaf("memory") is None and self.unified:
            return self.unified.oom_news(fd, seen)
        os.read(fd, 4096)
        return seen + 1  # the eventfd comes just before the kill is counted

    def oom_kills(self) -> int:
        directory = self._leaf("memory")
        if directory is None:
            return self.unified.oom_kills() if self.unified else 0
        return stats.keyed(f"{directory}/memory.oom_control").get("oom_kill", 0)

    def mounts(self) -> list[tuple[str, str]]:
        """v1 controllers only, as Docker shows them on a hybrid host: programs take a v2 mount for limits."""
        cut = len(self.hierarchy.root) + 1
        return [(point[cut:], point + self.path) for point in self.hierarchy.points]

    def delete(self) -> None:
        kernfs.remove([*self._leaves(), *([self.unified.directory] if self.unified else ())])


def _inherited(point: str, path: str, file: str) -> str:
    """The parent's cpus or mems; an empty parent is filled first, from the top of the tree down."""
    directory = point + path
    value = kernfs.read(f"{directory}/{file}").strip()
    if not value and path:
        value = _inherited(point, path[: path.rindex("/")], file)
        kernfs.write(f"{directory}/{file}", value)
    return value


def _reset_devices(directory: str, default: bool, found: dict[tuple[str, int, int], int]) -> None:
    """The whole list at once: "a" empties it and sets what is not named, the rest are exceptions from that."""
    first, second = ("devices.allow", "devices.deny") if default else ("devices.deny", "devices.allow")
    kernfs.write(f"{directory}/{first}", "a")
    if found:
        kernfs.write(f"{directory}/{second}", *(convert.line(key, bits) for key, bits in found.items()))


def _change_devices(directory: str, default: bool, found: dict[tuple[str, int, int], int]) -> None:
    """From the list in force to the new one without a moment in which a device of both is refused."""
    now: dict[tuple[str, int, int], int] = {}
    for words in map(str.split, kernfs.read(f"{directory}/devices.list").splitlines()):
        major, _, minor = words[1].partition(":")
        key = words[0], -1 if major == "*" else int(major), -1 if minor == "*" else int(minor)
        now[key] = sum(convert.LETTERS[letter] for letter in words[2])
    # A list that allows by default shows its exceptions to nobody.
    if default or any(key[0] == "a" for key in now):
        return _reset_devices(directory, default, found)
    more = [convert.line(key, bits) for key, bits in found.items() if bits & ~now.get(key, 0)]
    less = [convert.line(key, bits & ~found.get(key, 0)) for key, bits in now.items() if bits & ~found.get(key, 0)]
    if more:
        kernfs.write(f"{directory}/devices.allow", *more)
    if less:
        kernfs.write(f"{directory}/devices.deny", *less)
    return None


def _thaw(directory: str) -> None:
    """THAWED for the leaf and all below: a SIGKILL waits in a v1-frozen task until then."""
    try:
        kernfs.write(f"{directory}/freezer.state", "THAWED")
        for name in kernfs.below(directory):
            _thaw(f"{directory}/{name}")
    except OSError as error:
        # Gone meanwhile; ENODEV: between open and write.
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise
