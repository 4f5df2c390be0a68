"""What may be asked of this host: bounds that Docker refuses, and bounds this kernel would refuse.

Pure but for `facts`, which the daemon calls once at its start, before it raises limits of its own. What is wrong in
itself raises Invalid with Docker's text (moby, daemon_unix.go); what this host merely cannot do is clamped or discarded
with a warning, as Docker does. Settings that are no quantities are judged in plan_settings.py.
"""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Sequence
from contextlib import suppress
from glob import glob

from msgspec import Struct
from msgspec.structs import replace

from tare.cgroups.api import Hierarchy, detect
from tare.engine import capabilities, plan_settings
from tare.engine.model import ContainerSpec, Resources, Ulimit
from tare.engine.seccomp import kernel_version
from tare.errors import Invalid
from tare.linux import proc

__all__ = ["RLIMITS", "HostFacts", "check", "check_resources", "facts", "find_init", "parse_list"]

MINIMUM_MEMORY = 6 << 20
DEFAULT_SHM_SIZE = 64 << 20
_MINIMUM_NANO_CPUS = 1_000_000
"""1 ms of the longest period, 1 s: the kernel grants no less (sched-bwc)."""
_LIST_MAXIMUM = 8192
"""Highest CPU or node number taken from a list: CONFIG_NR_CPUS at its largest (CVE-2018-20699)."""
_LIST_TEXT = 4096

RLIMITS = {
    "cpu": 0, "fsize": 1, "data": 2, "stack": 3, "core": 4, "rss": 5, "nproc": 6, "nofile": 7, "memlock": 8,
    "locks": 10, "sigpending": 11, "msgqueue": 12, "nice": 13, "rtprio": 14, "rttime": 15,
}  # fmt: skip
"""--ulimit names -> numbers of asm-generic/resource.h, which Docker's architectures share. RLIMIT_AS is left out as
Docker does: it would bound the runtime too."""

_SYSCTLS = ("net.ipv4.ping_group_range", "net.ipv4.ip_unprivileged_port_start")
_INITS = (
    "/usr/libexec/docker/docker-init",
    "/usr/local/libexec/docker/docker-init",
    "/usr/bin/docker-init",
    "/usr/local/bin/docker-init",
    "/usr/bin/tini-static",
    "/usr/bin/catatonit",
    "/usr/libexec/podman/catatonit",
)
_FEATURES = (
    "memory", "memory.swap", "memory.swappiness", "memory.oom_control", "memory.reservation", "cpu", "cpu.shares",
    "cpu.quota", "cpu.rt", "cpuset", "pids", "blkio.weight", "blkio.throttle", "devices", "freezer", "hugetlb",
)  # fmt: skip


class HostFacts(Struct, frozen=True, kw_only=True):
    """What the plans need to know of the host; plain values, so that a test can make up any host."""

    kernel: tuple[int, int]
    cgroup_version: int
    """1 (also hybrid) or 2."""
    features: frozenset[str]
    """Of cgroups: names of `Hierarchy.supports`."""
    ncpu: int
    memory_total: int
    """Bytes."""
    cpus: str = "0"
    """CPUs and memory nodes there are, in list format ("0-3,8")."""
    mems: str = "0"
    capabilities: frozenset[str] = frozenset(capabilities.NAMES)
    """The daemon's permitted set: more cannot be given."""
    cap_sys_resource: bool = True
    rlimit_soft: dict[str, int] = {}
    """The daemon's limits at its start; -1 is unlimited. Containers get this nofile if none is asked for."""
    rlimit_hard: dict[str, int] = {}
    nr_open: int = 1 << 20
    """fs.nr_open: no nofile limit may be above, whoever asks."""
    oom_score_adj_min: int = -1000
    """Lowest oom_score_adj a container can get."""
    hostname: str = "localhost"
    thermal_throttle: tuple[str, ...] = ()
    """Existing cpuN/thermal_throttle directories, to be masked."""
    sysctls: frozenset[str] = frozenset(_SYSCTLS)
    """Of the sysctls set by default, those this kernel has."""
    init: str = ""
    """Static program for --init, "" if there is none."""
    apparmor: bool = False
    selinux: bool = False


def facts(hierarchy: Hierarchy | None = None) -> HostFacts:
    """Look at this host. OSError if no cgroups are mounted."""
    hierarchy = hierarchy or detect()
    permitted = frozenset(capabilities.named(int(proc.status("self", "CapPrm"), 16)))
    mighty = "CAP_SYS_RESOURCE" in permitted
    limits = {name: resource.getrlimit(number) for name, number in RLIMITS.items()}
    return HostFacts(
        kernel=kernel_version(platform.release()),
        cgroup_version=hierarchy.version,
        features=frozenset(name for name in _FEATURES if hierarchy.supports(name)),
        ncpu=len(os.sched_getaffinity(0)),
        memory_total=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        cpus=_line("/sys/devices/system/cpu/online", "0"),
        mems=_line("/sys/devices/system/node/has_memory", "0"),
        capabilities=permitted,
        cap_sys_resource=mighty,
        rlimit_soft={name: soft for name, (soft, _) in limits.items()},
        rlimit_hard={name: hard for name, (_, hard) in limits.items()},
        nr_open=int(_line("/proc/sys/fs/nr_open", str(1 << 20))),
        # Without the capability an own value is the floor: oom_score_adj_min is not shown anywhere (fs/proc/base.c)
        oom_score_adj_min=-1000 if mighty else int(_line("/proc/self/oom_score_adj", "0")),
        hostname=os.uname().nodename,
        thermal_throttle=tuple(sorted(glob("/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle"))),
        sysctls=frozenset(name for name in _SYSCTLS if os.path.exists("/proc/sys/" + name.replace(".", "/"))),
        init=find_init(),
        apparmor=_line("/sys/module/apparmor/parameters/enabled", "N") == "Y",
        selinux=os.path.exists("/sys/fs/selinux/enforce"),
    )


def _line(path: str, missing: str) -> str:
    with suppress(OSError):
        return proc.read(path).decode().strip() or missing
    return missing


def find_init(candidates: Sequence[str] = _INITS) -> str:
    """The first candidate that is a static program: it runs in any root file system. "" if there is none."""
    return next((path for path in candidates if os.access(path, os.X_OK) and _static(path)), "")


def _static(path: str) -> bool:
    """Whether a little-endian 64-bit ELF file has no PT_INTERP (elf(5)). Other files count as not static."""
    try:
        with open(path, "rb") as file:
            head = file.read(64)
            if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":
                return False
            offset, size, count = (int.from_bytes(head[a:b], "little") for a, b in ((32, 40), (54, 56), (56, 58)))
            if size != 56:
                return False
            file.seek(offset)
            table = file.read(size * count)
    except OSError:
        return False
    interpreter = 3
    kinds = [int.from_bytes(table[at : at + 4], "little") for at in range(0, len(table), size)]
    return bool(kinds) and interpreter not in kinds


def check(spec: ContainerSpec, host: HostFacts) -> tuple[ContainerSpec, list[str]]:
    """The spec as this host can do it, with the defaults Docker writes down at create, and warnings. Invalid."""
    plan_settings.check(
        spec,
        cgroup_version=host.cgroup_version,
        available=host.capabilities,
        init=host.init,
        apparmor=host.apparmor,
        selinux=host.selinux,
    )
    warnings: list[str] = []
    resources, found = check_resources(spec.resources, host)
    warnings += found
    namespaces = spec.namespaces
    if namespaces.network == "host" and spec.port_bindings:
        warnings.append("Published ports are discarded when using host network mode")
    cgroup = namespaces.cgroup or ("private" if host.cgroup_version == 2 else "host")
    namespaces = replace(namespaces, ipc=namespaces.ipc or "private", cgroup=cgroup)
    adjustment = spec.security.oom_score_adj
    if not -1000 <= adjustment <= 1000:
        raise Invalid(f"Invalid value {adjustment}, range for oom score adj is [-1000, 1000]")
    if adjustment < host.oom_score_adj_min:
        warnings.append(
            f"This host does not permit an oom score adj below {host.oom_score_adj_min} (no CAP_SYS_RESOURCE). "
            f"Value {adjustment} raised."
        )
        adjustment = host.oom_score_adj_min
    if spec.shm_size < 0:
        raise Invalid("SHM size can not be less than 0")
    changed = replace(
        spec,
        resources=resources,
        namespaces=namespaces,
        security=replace(spec.security, oom_score_adj=adjustment),
        shm_size=spec.shm_size or DEFAULT_SHM_SIZE,
    )
    return changed, warnings


def check_resources(asked: Resources, host: HostFacts, *, update: bool = False) -> tuple[Resources, list[str]]:
    """Quantities only; also for an update of a running container. Invalid with Docker's texts."""
    warnings: list[str] = []
    checked = _memory(asked, host, warnings, update=update)
    checked = _cpu(checked, host, warnings)
    checked = _cpuset(checked, host, warnings)
    checked = _blkio(checked, host, warnings)
    if checked.pids_limit is not None and "pids" not in host.features:
        if checked.pids_limit > 0:
            warnings.append(_unsupported("PIDs limit capabilities", "PIDs limit discarded."))
        checked = replace(checked, pids_limit=None)
    return replace(checked, ulimits=_ulimits(checked.ulimits, host, warnings)), warnings


def _memory(asked: Resources, host: HostFacts, warnings: list[str], *, update: bool) -> Resources:
    memory, swap, reservation = asked.memory, asked.memory_swap, asked.memory_reservation
    if memory != 0 and memory < MINIMUM_MEMORY:
        raise Invalid("Minimum memory limit allowed is 6MB")
    if memory > 0 and swap == 0 and not update:
        swap = 2 * memory
    if memory > 0 and "memory" not in host.features:
        warnings.append(_unsupported("memory limit capabilities", "Limitation discarded."))
        memory, swap = 0, -1
    if memory > 0 and swap not in (0, -1) and "memory.swap" not in host.features:
        warnings.append(_unsupported("swap limit capabilities", "Memory limited without swap."))
        swap = -1
    if swap < -1:
        raise Invalid(f"Invalid value: {swap}, memory swap is -1 (unlimited) or a number of bytes")
    if memory > 0 and 0 < swap < memory:
        raise Invalid("Minimum memoryswap limit should be larger than memory limit, see usage")
    if memory == 0 and swap > 0 and not update:
        raise Invalid("You should always set the Memory limit when using Memoryswap limit, see usage")
    swappiness = asked.memory_swappiness
    if swappiness == -1:
        swappiness = None  # Docker's old word for "unset"
    if swappiness is not None and "memory.swappiness" not in host.features:
        warnings.append(_unsupported("memory swappiness capabilities", "Memory swappiness discarded."))
        swappiness = None
    if swappiness is not None and not 0 <= swappiness <= 100:
        raise Invalid(f"Invalid value: {swappiness}, valid memory swappiness range is 0-100")
    if reservation > 0 and "memory.reservation" not in host.features:
        warnings.append(_unsupported("memory soft limit capabilities", "Limitation discarded."))
        reservation = 0
    if reservation < 0 or 0 < reservation < MINIMUM_MEMORY:
        raise Invalid("Minimum memory reservation allowed is 6MB")
    if 0 < memory < reservation:
        raise Invalid("Minimum memory limit can not be less than memory reservation limit, see usage")
    disable = asked.oom_kill_disable
    if disable and "memory.oom_control" not in host.features:
        warnings.append("Your kernel does not support OomKillDisable. OomKillDisable discarded.")
        disable = False
    if disable and memory == 0:
        warnings.append(
            "OOM killer is disabled for the container, but no memory limit is set, this can result in the system "
            "running out of resources."
        )
    return replace(
        asked, memory=memory, memory_swap=swap, memory_reservation=reservation, memory_swappiness=swappiness,
        oom_kill_disable=disable,
    )  # fmt: skip


def _unsupported(what: str, consequence: str) -> str:
    return f"Your kernel does not support {what} or the cgroup is not mounted. {consequence}"


def _cpu(asked: Resources, host: HostFacts, warnings: list[str]) -> Resources:
    nano, shares, period, quota = asked.nano_cpus, asked.cpu_shares, asked.cpu_period, asked.cpu_quota
    if nano > 0 and period > 0:
        raise Invalid("Conflicting options: Nano CPUs and CPU Period cannot both be set")
    if nano > 0 and quota > 0:
        raise Invalid("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
    if nano > 0 and "cpu.quota" not in host.features:
        raise Invalid(
            "NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler or the cgroup is not mounted"
        )
    if nano and not _MINIMUM_NANO_CPUS <= nano <= host.ncpu * 1_000_000_000:
        raise Invalid(
            f"range of CPUs is from 0.01 to {host.ncpu}.00, as there are only {host.ncpu} CPUs available"
        )
    if shares < 0:
        raise Invalid(f"invalid CPU shares ({shares}): value must be a positive integer")
    if shares > 0 and "cpu.shares" not in host.features:
        warnings.append("Your kernel does not support CPU shares or the cgroup is not mounted. Shares discarded.")
        shares = 0
    if (period or quota) and "cpu.quota" not in host.features:
        warnings.append("Your kernel does not support CPU CFS scheduler. CPU period/quota discarded.")
        period = quota = 0
    if period and not 1_000 <= period <= 1_000_000:
        raise Invalid("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
    if 0 < quota < 1_000:
        raise Invalid("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    if (asked.cpu_rt_period or asked.cpu_rt_runtime) and "cpu.rt" not in host.features:
        raise Invalid("invalid option: kernel does not support CPU real-time scheduler")
    if asked.cpu_rt_period and asked.cpu_rt_runtime > asked.cpu_rt_period:
        raise Invalid("invalid option: cpu real-time runtime cannot be higher than cpu real-time period")
    return replace(asked, cpu_shares=shares, cpu_period=period, cpu_quota=quota)


def parse_list(text: str, maximum: int) -> set[int]:
    """"0-2,5" -> {0, 1, 2, 5}. ValueError with Docker's words; nothing is expanded before its end is in bounds."""
    numbers: set[int] = set()
    if len(text) > _LIST_TEXT:
        raise ValueError(f"invalid format: longer than {_LIST_TEXT} characters")
    for part in text.split(",") if text else ():
        first, dash, last = part.partition("-")
        if not (first.isascii() and first.isdigit()) or (dash and not (last.isascii() and last.isdigit())):
            raise ValueError(f"invalid format: {text}")
        low, high = int(first), int(last or first)
        if high < low:
            raise ValueError(f"invalid format: {text}")
        if high > maximum:
            raise ValueError(f"value of out range, maximum is {maximum}")
        numbers.update(range(low, high + 1))
    return numbers


def _cpuset(asked: Resources, host: HostFacts, warnings: list[str]) -> Resources:
    if not asked.cpuset_cpus and not asked.cpuset_mems:
        return asked
    if "cpuset" not in host.features:
        warnings.append("Your kernel does not support cpuset or the cgroup is not mounted. Cpuset discarded.")
        return replace(asked, cpuset_cpus="", cpuset_mems="")
    for text, available, field, noun in (
        (asked.cpuset_cpus, host.cpus, "cpus", "CPUs"),
        (asked.cpuset_mems, host.mems, "mems", "memory nodes"),
    ):
        try:
            wanted = parse_list(text, _LIST_MAXIMUM)
        except ValueError as error:
            raise Invalid(f"Invalid value {text[:64]} for cpuset {field}: {error}") from None
        if not wanted <= parse_list(available, _LIST_MAXIMUM):
            raise Invalid(f"Requested {noun} are not available - requested {text}, available: {available}")
    return asked


def _blkio(asked: Resources, host: HostFacts, warnings: list[str]) -> Resources:
    weight, devices = asked.blkio_weight, asked.blkio_weight_device
    if weight > 0 and "blkio.weight" not in host.features:
        warnings.append(_unsupported("Block I/O weight", "Weight discarded."))
        weight = 0
    if devices and "blkio.weight" not in host.features:
        warnings.append(_unsupported("Block I/O weight_device", "Weight-device discarded."))
        devices = ()
    if any(number != 0 and not 10 <= number <= 1000 for number in (weight, *(device.rate for device in devices))):
        raise Invalid("Range of blkio weight is from 10 to 1000")
    lists = {
        "device_read_bps": ("BPS Block I/O read limit", "Block I/O BPS read limit discarded."),
        "device_write_bps": ("BPS Block I/O write limit", "Block I/O BPS write limit discarded."),
        "device_read_iops": ("IOPS Block read limit", "Block I/O IOPS read limit discarded."),
        "device_write_iops": ("IOPS Block write limit", "Block I/O IOPS write limit discarded."),
    }
    discarded: dict[str, tuple[()]] = {}
    for field, (what, consequence) in lists.items():
        rates = getattr(asked, field)
        if rates and "blkio.throttle" not in host.features:
            warnings.append(_unsupported(what, consequence))
            discarded[field] = ()
        elif any(device.rate < 0 for device in rates):
            raise Invalid(f"invalid rate for device {rates[0].path}: value must be a positive integer")
    return replace(asked, blkio_weight=weight, blkio_weight_device=devices, **discarded)


def _ulimits(asked: Sequence[Ulimit], host: HostFacts, warnings: list[str]) -> tuple[Ulimit, ...]:
    """The last one of a name counts; what this host's kernel would refuse is lowered to what it permits."""
    checked: dict[str, Ulimit] = {}
    for limit in asked:
        if limit.name not in RLIMITS:
            raise Invalid(f"invalid ulimit type: {limit.name}")
        if min(limit.soft, limit.hard) < -1:
            raise Invalid(f"invalid ulimit {limit.name}: values are -1 (unlimited) or not negative")
        if limit.hard != -1 and (limit.soft == -1 or limit.soft > limit.hard):
            shown = "soft: -1 (unlimited), hard: " if limit.soft == -1 else f"{limit.soft} > "
            raise Invalid(f"ulimit soft limit must be less than or equal to hard limit: {shown}{limit.hard}")
        ceiling = -1 if host.cap_sys_resource else host.rlimit_hard.get(limit.name, -1)
        if limit.name == "nofile":
            ceiling = _lower(ceiling, host.nr_open)
        hard, soft = _lower(limit.hard, ceiling), _lower(limit.soft, ceiling)
        if (soft, hard) != (limit.soft, limit.hard):
            warnings.append(
                f"This host does not permit a {limit.name} ulimit above {ceiling}. "
                f"Limit {limit.soft}:{limit.hard} lowered to {soft}:{hard}."
            )
        checked[limit.name] = Ulimit(name=limit.name, soft=soft, hard=hard)
    return tuple(checked.values())


def _lower(one: int, other: int) -> int:
    """The smaller of two limits, -1 being unlimited."""
    return max(one, other) if -1 in (one, other) else min(one, other)
