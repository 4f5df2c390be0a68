"""OCI `linux.resources` as lists of writes, for v1 and v2. Pure: no file is opened here, so tables can test it.

A plan is a list of `Write`: (controller, alternatives, sentence). `alternatives` are (file, value) pairs of which the
first existing file is written; `sentence` is the warning if none exists ("" = nobody needs to know). The order is the
order of writing; interdependent files (period and quota) may still be refused one by one with EINVAL, which
`kernfs.apply` settles. Formulas: opencontainers/cgroups utils.go; files: kernel admin-guide cgroup-v1/*, cgroup-v2.rst.
"""

from __future__ import annotations

import errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

Write = tuple[str, tuple[tuple[str, str], ...], str]
Rule = tuple[bool, str, int, int, int]
"""Device rule: allow, type "a" "b" "c", major, minor (-1 = all), access bits."""

MKNOD, READ, WRITE = 1, 2, 4
"""BPF_DEVCG_ACC_*; the letters m, r, w."""
ALL = MKNOD | READ | WRITE
LETTERS = {"r": READ, "w": WRITE, "m": MKNOD}

NO_MEMORY = "Your kernel does not support memory limit capabilities or the cgroup is not mounted. Limitation discarded."
NO_SWAP = (
    "Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap."
)
NO_SWAPPINESS = (
    "Your kernel does not support memory swappiness capabilities or the cgroup is not mounted."
    " Memory swappiness discarded."
)
NO_RESERVATION = (
    "Your kernel does not support memory soft limit capabilities or the cgroup is not mounted. Limitation discarded."
)
NO_OOM_CONTROL = "Your kernel does not support OomKillDisable. OomKillDisable discarded."
NO_PIDS = "Your kernel does not support PIDs limit capabilities or the cgroup is not mounted. PIDs limit discarded."
NO_SHARES = "Your kernel does not support CPU shares or the cgroup is not mounted. Shares discarded."
NO_QUOTA = "Your kernel does not support CPU CFS scheduler. CPU period/quota discarded."
NO_BURST = "Your kernel does not support CPU burst or the cgroup is not mounted. CPU burst discarded."
NO_IDLE = "Your kernel does not support cpu.idle or the cgroup is not mounted. CPU idle discarded."
NO_RT = "Your kernel does not support CPU real-time scheduler. CPU real-time period/runtime discarded."
NO_CPUSET = "Your kernel does not support cpuset or the cgroup is not mounted. Cpuset discarded."
NO_WEIGHT = "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded."
NO_WEIGHT_DEVICE = (
    "Your kernel does not support Block I/O weight_device or the cgroup is not mounted. Weight-device discarded."
)
NO_DEVICES = "Your kernel does not support the devices cgroup or it is not mounted. Device rules discarded."
NO_HUGETLB = "Your kernel does not support hugepage limits or the cgroup is not mounted. Limitation discarded."

THROTTLES = (
    ("throttleReadBpsDevice", "read_bps", "rbps", "BPS Block I/O read limit", "BPS read"),
    ("throttleWriteBpsDevice", "write_bps", "wbps", "BPS Block I/O write limit", "BPS write"),
    ("throttleReadIOPSDevice", "read_iops", "riops", "IOPS Block read limit", "IOPS read"),
    ("throttleWriteIOPSDevice", "write_iops", "wiops", "IOPS Block write limit", "IOPS write"),
)
"""OCI key, v1 file part, v2 io.max key, two parts of Docker's warning."""


def weight(shares: int) -> int:
    """cpu.shares 2..262144 (v1, default 1024) -> cpu.weight 1..10000 (v2, default 100); 0 = unset -> 0.

    Quadratic fit through minimum, default and maximum, not the older linear one: ceil(10^((l^2+125l)/612 - 7/34)),
    l = log2(shares); opencontainers/cgroups ConvertCPUSharesToCgroupV2Value.
    """
    if shares <= 0:
        return 0
    if shares <= 2:
        return 1
    if shares >= 262144:
        return 10000
    # log2 by repeated squaring, exact for powers of two: `math` is a shared object that a shim need not load.
    exponent = float(shares.bit_length() - 1)
    rest, digit = shares / (1 << shares.bit_length() - 1), 0.5
    while digit > 1e-16 and rest != 1:
        rest *= rest
        if rest >= 2:
            rest, exponent = rest / 2, exponent + digit
        digit /= 2
    return -int(-(10 ** ((exponent * exponent + 125 * exponent) / 612 - 7 / 34)) // 1)


def io_weight(blkio: int) -> int:
    """blkio.weight 10..1000 (v1) -> io.weight 1..10000 (v2), linear; 0 = unset -> 0."""
    return 1 + (blkio - 10) * 9999 // 990 if blkio > 0 else 0


def swap(memory: int, memory_swap: int) -> int | None:
    """OCI memory.swap (memory + swap together, bytes) -> memory.swap.max; None = leave it, -1 = "max".

    OSError(EINVAL) for a sum below `memory`, or for a sum without a memory limit to take from it.
    """
    if memory_swap == 0:
        # An unlimited memory asked for on v1 also frees the sum, which could not be below it.
        return -1 if memory == -1 else None
    if memory_swap == -1 or memory == -1:
        return memory_swap
    if memory <= 0:
        raise OSError(errno.EINVAL, "memory+swap limit needs a memory limit")
    if memory_swap < memory:
        raise OSError(errno.EINVAL, f"memory+swap limit {memory_swap} is below the memory limit {memory}")
    return memory_swap - memory


def limit(value: int) -> str:
    """-1 -> "max" (v2's word)."""
    return "max" if value < 0 else str(value)


def number(section: Mapping[str, Any], key: str) -> int:
    """Absent or null -> 0."""
    return int(section.get(key) or 0)


def device(major: int, minor: int) -> str:
    """The default of the `disk` parameters below: the device as it is."""
    return f"{major}:{minor}"


if TYPE_CHECKING:
    Disk = Callable[[int, int], str]


def v1_plan(resources: Mapping[str, Any], disk: Disk = device) -> list[Write]:
    """All writes of `resources` but devices and cpuset (which have rules of their own) for a v1 leaf."""
    plan: list[Write] = []

    def put(controller: str, file: str, value: int | str, sentence: str) -> None:
        plan.append((controller, ((file, str(value)),), sentence))

    memory = resources.get("memory") or {}
    if bound := number(memory, "limit"):
        put("memory", "memory.limit_in_bytes", bound, NO_MEMORY)
    both = number(memory, "swap") or (-1 if bound == -1 else 0)
    if both:
        put("memory", "memory.memsw.limit_in_bytes", both, NO_SWAP if both > 0 else "")
    if soft := number(memory, "reservation"):
        put("memory", "memory.soft_limit_in_bytes", soft, NO_RESERVATION)
    if memory.get("swappiness") is not None and int(memory["swappiness"]) >= 0:
        put("memory", "memory.swappiness", int(memory["swappiness"]), NO_SWAPPINESS)
    if memory.get("disableOOMKiller") is not None:
        put("memory", "memory.oom_control", int(memory["disableOOMKiller"]), NO_OOM_CONTROL)
    cpu = resources.get("cpu") or {}
    for key, file, sentence in (
        ("shares", "cpu.shares", NO_SHARES),
        ("period", "cpu.cfs_period_us", NO_QUOTA),
        ("quota", "cpu.cfs_quota_us", NO_QUOTA),
        ("realtimePeriod", "cpu.rt_period_us", NO_RT),
        ("realtimeRuntime", "cpu.rt_runtime_us", NO_RT),
    ):
        if value := number(cpu, key):
            put("cpu", file, value, sentence)
    for key, file, sentence in (("burst", "cpu.cfs_burst_us", NO_BURST), ("idle", "cpu.idle", NO_IDLE)):
        if cpu.get(key) is not None:
            put("cpu", file, int(cpu[key]), sentence)
    plan += pids(resources)
    if block := resources.get("blockIO"):
        plan += _v1_block(block, disk)
    plan += hugetlb(resources, "limit_in_bytes")
    return plan


def _v1_block(block: Mapping[str, Any], disk: Disk) -> list[Write]:
    # blkio.weight went with CFQ (Linux 5.0); BFQ brings its own name for the same range.
    plan: list[Write] = []
    if value := number(block, "weight"):
        plan.append(("blkio", (("blkio.weight", str(value)), ("blkio.bfq.weight", str(value))), NO_WEIGHT))
    for entry in block.get("weightDevice") or ():
        if value := number(entry, "weight"):
            line = f"{disk(int(entry['major']), int(entry['minor']))} {value}"
            files = (("blkio.weight_device", line), ("blkio.bfq.weight_device", line))
            plan.append(("blkio", files, NO_WEIGHT_DEVICE))
    for key, file, _, first, second in THROTTLES:
        for entry in block.get(key) or ():
            line = f"{disk(int(entry['major']), int(entry['minor']))} {number(entry, 'rate')}"
            plan.append(("blkio", ((f"blkio.throttle.{file}_device", line),), _no_throttle(first, second)))
    return plan


def v2_plan(
    resources: Mapping[str, Any], memory_now: int = 0, quota_now: str = "max", disk: Disk = device
) -> list[Write]:
    """All writes of `resources` but devices for a v2 leaf.

    `memory_now` (bytes, -1 unlimited, 0 unknown) and `quota_now` complete an update that names only memory+swap or
    only the period, as one v2 file holds what v1 has in two. OSError(EINVAL) as `swap`.
    """
    plan: list[Write] = []

    def put(controller: str, file: str, value: int | str, sentence: str) -> None:
        plan.append((controller, ((file, str(value)),), sentence))

    memory = resources.get("memory") or {}
    bound = number(memory, "limit")
    rest = swap(bound or memory_now, number(memory, "swap")) if bound or number(memory, "swap") else None
    if rest is not None:
        # No swap support means that there is none to use: then neither 0 nor "max" needs a warning.
        put("memory", "memory.swap.max", limit(rest), NO_SWAP if rest > 0 else "")
    if bound:
        put("memory", "memory.max", limit(bound), NO_MEMORY)
    if soft := number(memory, "reservation"):
        put("memory", "memory.low", limit(soft), NO_RESERVATION)
    if memory.get("swappiness") is not None and int(memory["swappiness"]) >= 0:
        plan.append(("memory", (), NO_SWAPPINESS))
    if memory.get("disableOOMKiller"):
        plan.append(("memory", (), NO_OOM_CONTROL))
    if cpu := resources.get("cpu"):
        plan += _v2_cpu(cpu, quota_now)
    plan += cpuset(resources)
    plan += pids(resources)
    if block := resources.get("blockIO"):
        plan += _v2_block(block, disk)
    plan += hugetlb(resources, "max")
    return plan


def _v2_cpu(cpu: Mapping[str, Any], quota_now: str) -> list[Write]:
    plan: list[Write] = []
    idle = cpu.get("idle")
    if idle is not None:
        plan.append(("cpu", (("cpu.idle", str(int(idle))),), NO_IDLE))
    # The kernel refuses a weight for an idle cgroup (sched_group_set_shares: EINVAL).
    if (shares := number(cpu, "shares")) and not idle:
        plan.append(("cpu", (("cpu.weight", str(weight(shares))),), NO_SHARES))
    quota, period = number(cpu, "quota"), number(cpu, "period")
    if quota or period:
        words = limit(quota) if quota else quota_now
        plan.append(("cpu", (("cpu.max", f"{words} {period}" if period else words),), NO_QUOTA))
    if cpu.get("burst") is not None:
        plan.append(("cpu", (("cpu.max.burst", str(int(cpu["burst"]))),), NO_BURST))
    if number(cpu, "realtimePeriod") or number(cpu, "realtimeRuntime"):
        plan.append(("cpu", (), NO_RT))
    return plan


def _v2_block(block: Mapping[str, Any], disk: Disk) -> list[Write]:
    plan: list[Write] = []
    if value := number(block, "weight"):
        plan.append(("io", (("io.bfq.weight", str(value)), ("io.weight", str(io_weight(value)))), NO_WEIGHT))
    for entry in block.get("weightDevice") or ():
        if value := number(entry, "weight"):
            name = disk(int(entry["major"]), int(entry["minor"]))
            files = (("io.bfq.weight", f"{name} {value}"), ("io.weight", f"{name} {io_weight(value)}"))
            plan.append(("io", files, NO_WEIGHT_DEVICE))
    for key, _, word, first, second in THROTTLES:
        for entry in block.get(key) or ():
            # v1 takes 0 for "no limit", v2 refuses it and wants the word.
            line = f"{disk(int(entry['major']), int(entry['minor']))} {word}={number(entry, 'rate') or 'max'}"
            plan.append(("io", (("io.max", line),), _no_throttle(first, second)))
    return plan


def _no_throttle(first: str, second: str) -> str:
    return f"Your kernel does not support {first} or the cgroup is not mounted. Block I/O {second} limit discarded."


def cpuset(resources: Mapping[str, Any]) -> list[Write]:
    """cpuset.cpus and cpuset.mems where asked for; the same files on both versions."""
    cpu = resources.get("cpu") or {}
    return [("cpuset", ((f"cpuset.{key}", str(cpu[key])),), NO_CPUSET) for key in ("cpus", "mems") if cpu.get(key)]


def pids(resources: Mapping[str, Any]) -> list[Write]:
    """pids.max; 0 and below = "max"."""
    bound = (resources.get("pids") or {}).get("limit")
    if bound is None:
        return []
    return [("pids", (("pids.max", str(int(bound)) if int(bound) > 0 else "max"),), NO_PIDS)]


def hugetlb(resources: Mapping[str, Any], suffix: str) -> list[Write]:
    """hugepageLimits [{pageSize: "2MB", limit: bytes}]: use and reservation (the latter since Linux 5.7)."""
    plan: list[Write] = []
    for entry in resources.get("hugepageLimits") or ():
        size, bound = str(entry["pageSize"]), str(int(entry["limit"]))
        if not size.isalnum():
            raise OSError(errno.EINVAL, f"page size {size!r} is no file name part")
        plan.append(("hugetlb", ((f"hugetlb.{size}.{suffix}", bound),), NO_HUGETLB))
        plan.append(("hugetlb", ((f"hugetlb.{size}.rsvd.{suffix}", bound),), ""))
    return plan


def unified(resources: Mapping[str, Any]) -> list[Write]:
    """The raw v2 files of `unified`; a value of several lines is one write per line (io.max)."""
    plan: list[Write] = []
    for file, value in (resources.get("unified") or {}).items():
        if "/" in file or "." not in file or file.startswith("."):
            raise OSError(errno.EINVAL, f"unified resource {file!r} must be a file name CONTROLLER.PARAMETER")
        sentence = f"Your kernel does not offer the cgroup file {file} or its controller is missing. Setting discarded."
        plan += [("", ((file, line),), sentence) for line in str(value).splitlines() if line.strip()]
    return plan


def rules(devices: Iterable[Mapping[str, Any]]) -> list[Rule]:
    """OCI linux.resources.devices in their order, reduced to what counts; the last match wins, no match = denied.

    Type "" or "a" with no number and all of "rwm" means everything and voids all rules before it. With a number it is
    split into "b" and "c", because v1 takes any "a" line for *everything*. OSError(EINVAL) for an unknown type or
    letter, or a number beyond 31 bits.
    """
    result: list[Rule] = []
    for entry in devices:
        kind = entry.get("type") or "a"
        major, minor = (-1 if entry.get(key) is None else int(entry[key]) for key in ("major", "minor"))
        letters = entry.get("access")
        bits = ALL if letters is None else 0
        for letter in letters or "":
            bits |= LETTERS.get(letter, ALL + 1)
        if kind not in ("a", "b", "c", "u") or bits > ALL or max(major, minor) >= 1 << 31:
            raise OSError(errno.EINVAL, f"device rule {dict(entry)!r} is not valid")
        major, minor = max(major, -1), max(minor, -1)
        allow = bool(entry.get("allow"))
        if kind == "a" and bits == ALL and major < 0 and minor < 0:
            result = [(allow, "a", -1, -1, ALL)]
        elif bits:
            result += [(allow, one, major, minor, bits) for one in ("bc" if kind == "a" else kind.replace("u", "c"))]
    return result


def exceptions(given: Iterable[Rule]) -> tuple[bool, dict[tuple[str, int, int], int]]:
    """`rules` in the v1 kernel's own form: (allowed by default, {(type, major, minor): access bits of the exception}).

    v1 ignores a rule that would cut a hole into a wider exception ("allow c 1:*, deny c 1:3"), which would leave the
    device open: such a list is OSError(EINVAL), as in runc.
    """
    default = False
    found: dict[tuple[str, int, int], int] = {}
    for allow, kind, major, minor, bits in given:
        if kind == "a":
            default, found = allow, {}
        elif allow != default:
            found[kind, major, minor] = found.get((kind, major, minor), 0) | bits
        else:
            for key, have in list(found.items()):
                if key[0] != kind or not have & bits or not _meet(key[1], major) or not _meet(key[2], minor):
                    continue
                if (major >= 0 and key[1] < 0) or (minor >= 0 and key[2] < 0):
                    raise OSError(
                        errno.EINVAL, f"device rule for {kind} {major}:{minor} cuts a hole into a wider one: not on v1"
                    )
                if have & ~bits:
                    found[key] = have & ~bits
                else:
                    del found[key]
    return default, found


def _meet(one: int, other: int) -> bool:
    return one < 0 or other < 0 or one == other


def line(key: tuple[str, int, int], bits: int) -> str:
    """One line of devices.allow, devices.deny or devices.list: "c 1:3 rwm"."""
    kind, major, minor = key
    letters = ("r" if bits & READ else "") + ("w" if bits & WRITE else "") + ("m" if bits & MKNOD else "")
    return f"{kind} {'*' if major < 0 else major}:{'*' if minor < 0 else minor} {letters}"
