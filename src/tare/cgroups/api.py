"""The one interface to cgroups; v1 and v2 are never told apart by a caller.

Resources are OCI runtime-spec `linux.resources` (config-linux.md) as plain JSON: memory{limit, reservation, swap,
swappiness, disableOOMKiller}, cpu{shares, quota, period, burst, realtimeRuntime, realtimePeriod, cpus, mems, idle},
pids{limit}, blockIO{weight, weightDevice, throttleReadBpsDevice, throttleWriteBpsDevice, throttleReadIOPSDevice,
throttleWriteIOPSDevice}, devices[{allow, type, major, minor, access}], hugepageLimits, unified{file: value}.
Loaded into every shim: nothing but os and errno is imported, and only the implementation in use.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Protocol
else:
    Protocol = object  # the module typing is a third of a megabyte in every shim

__all__ = ["Cgroup", "Hierarchy", "Resources", "Stats", "detect"]

if TYPE_CHECKING:
    Resources = Mapping[str, Any]
    Stats = dict[str, Any]


class Cgroup(Protocol):
    """One leaf (on v1: the same path under every controller). `path` is absolute within the hierarchy: "/tare/<id>"."""

    path: str

    def create(self, resources: Resources) -> list[str]:
        """Make the leaf and its missing parents and write all limits before any process is in it. Returns warnings.

        A nil return means "the leaf exists with these limits", not "this call made it". A file that is absent here
        (blkio.weight without BFQ) or refused for want of CAP_SYS_RESOURCE is a warning; every other refusal is an
        OSError with the file's path, after what was made has been removed again.
        """

    def fd(self) -> int | None:
        """Directory descriptor for clone3's CLONE_INTO_CGROUP (O_CLOEXEC, the caller closes it); None on pure v1."""

    def attach(self, pid: int) -> None:
        """Move `pid` into the leaf; where `fd()` was used for clone3 only the rest (the v1 controllers) is written."""

    def enter(self, *, placed: bool = False) -> None:
        """Move the calling process, which must have one thread, into the leaf. `placed`: clone3 with `fd()` already did
        what it can.

        On v1 by "0" in each tasks file: for oneself the kernel takes no global lock, while a pid in cgroup.procs may
        wait for an RCU grace period of up to 10 ms (cgroup_procs_write_start).
        """

    def update(self, resources: Resources) -> list[str]:
        """Change limits while processes run in it (memory before memsw or after, as the direction needs). Warnings."""

    def freeze(self, on: bool) -> None:
        """Stop or continue every process; returns when the kernel reports it done, TimeoutError after 10 s."""

    def frozen(self) -> bool: ...

    def kill(self, signal: int = 9) -> None:
        """Signal every process below: by cgroup.kill, else freeze, signal, thaw; what is v1-frozen is thawed."""

    def pids(self) -> list[int]:
        """All processes below, host pids."""

    def stats(self) -> Stats:
        """Current use, in the JSON shape of Docker's GET /containers/{id}/stats (cpu_stats, memory_stats, pids_stats,
        blkio_stats), on the running kernel's own version of it, plus "pressure" where PSI is offered."""

    def oom_fd(self) -> int | None:
        """A descriptor that turns readable at an OOM kill, and perhaps else: read 4096 bytes and compare `oom_kills()`.
        Not blocking; None if the kernel offers none; the caller closes it."""

    def oom_news(self, fd: int, seen: int) -> int:
        """After a wake-up of `oom_fd()`: how many kills there are to tell of, given those told (`seen`)."""

    def oom_kills(self) -> int:
        """How many processes the OOM killer took so far; read it before `delete`."""

    def mounts(self) -> list[tuple[str, str]]:
        """What a container sees: [(name below /sys/fs/cgroup, host directory of the leaf)]; v2: [("", directory)]."""

    def delete(self) -> None:
        """Remove the leaf with sub-cgroups; absent is fine. OSError EBUSY after 2 s of retries if processes stay."""


class Hierarchy(Protocol):
    """What this host mounts. `version` is 1 (also hybrid) or 2."""

    version: int
    controllers: frozenset[str]

    def cgroup(self, path: str) -> Cgroup:
        """Handle for a leaf, which need not exist. ValueError for a relative path, "..", NUL or an empty component."""

    def tidy(self, path: str) -> None:
        """Remove a parent that nothing is below or in any more, wherever it is; every other stays."""

    def supports(self, feature: str) -> bool:
        """Whether a limit can be set on this host: "memory", "memory.swap", "memory.swappiness", "memory.oom_control",
        "memory.reservation", "cpu", "cpu.shares", "cpu.quota", "cpu.rt", "cpuset", "pids", "blkio.weight",
        "blkio.throttle", "devices", "freezer", "hugetlb"."""


def detect(root: str = "/sys/fs/cgroup") -> Hierarchy:
    """Decide once per process by what is mounted at `root`; OSError(ENOSYS) with a hint if no cgroups are."""
    from . import v1, v2

    return v2.Hierarchy(root) if v2.mounted(root) else v1.Hierarchy(root)
