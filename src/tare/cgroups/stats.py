"""Cgroup files as Docker's stats members (moby daemon/stats_unix.go, api/types/container/stats.go). Read only.

Members of files that are not there are left out; times are nanoseconds, sizes bytes.
"""

from __future__ import annotations

from .kernfs import read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

UNLIMITED = (1 << 64) - 1
TICK_NS = 10_000_000
"""One USER_HZ tick; 100 Hz on every Linux architecture Python runs on."""
EMPTY_BLKIO = (
    "io_service_bytes_recursive",
    "io_serviced_recursive",
    "io_queue_recursive",
    "io_service_time_recursive",
    "io_wait_time_recursive",
    "io_merged_recursive",
    "io_time_recursive",
    "sectors_recursive",
)


def text(path: str) -> str:
    """The file's content, "" if it is not offered here (also EOPNOTSUPP: PSI switched off)."""
    try:
        return read(path)
    except OSError:
        return ""


def value(path: str) -> int | None:
    """A file with one number; "max" is UNLIMITED, an absent file None."""
    word = text(path).strip()
    if word == "max":
        return UNLIMITED
    return int(word) if word else None


def keyed(path: str) -> dict[str, int]:
    """A flat-keyed file, "name number" per line."""
    found = {}
    for line in text(path).splitlines():
        name, _, word = line.partition(" ")
        if word.isdigit():
            found[name] = int(word)
    return found


def member(target: dict[str, Any], name: str, number: int | None) -> None:
    """Set where the kernel offered it."""
    if number is not None:
        target[name] = number


def system_cpu(proc: str) -> dict[str, int]:
    """{"system_cpu_usage": ns of all CPUs since boot, "online_cpus": n}, by Docker's sum of the first seven fields."""
    total, count = 0, 0
    for line in text(f"{proc}/stat").splitlines():
        if not line.startswith("cpu"):
            break
        words = line.split()
        if words[0] == "cpu":
            total = sum(map(int, words[1:8])) * TICK_NS
        else:
            count += 1
    return {"system_cpu_usage": total, "online_cpus": count}


def machine_memory(proc: str) -> int:
    """MemTotal in bytes, 0 if unknown."""
    first = text(f"{proc}/meminfo").partition("\n")[0].split()
    return int(first[1]) * 1024 if len(first) > 1 else 0


def bound(number: int | None, proc: str) -> int:
    """A memory limit as Docker shows it: no more than the machine has."""
    machine = machine_memory(proc)
    return min(UNLIMITED if number is None else number, machine or UNLIMITED)


def pressure(directory: str) -> dict[str, dict[str, dict[str, float]]]:
    """PSI: {"cpu": {"some": {"avg10", "avg60", "avg300": percent, "total": us}, "full": ...}, "memory", "io"}."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in ("cpu", "memory", "io"):
        for line in text(f"{directory}/{name}.pressure").splitlines():
            kind, *pairs = line.split()
            split = [pair.partition("=") for pair in pairs]
            found.setdefault(name, {})[kind] = {
                key: int(word) if key == "total" else float(word) for key, _, word in split
            }
    return found


def v1_cpu(cpuacct: str | None, cpu: str | None) -> dict[str, Any]:
    """cpu_stats from the leaves of the two controllers."""
    result: dict[str, Any] = {}
    if cpuacct is not None:
        ticks = keyed(f"{cpuacct}/cpuacct.stat")
        result["cpu_usage"] = {
            "total_usage": value(f"{cpuacct}/cpuacct.usage") or 0,
            "percpu_usage": [int(word) for word in text(f"{cpuacct}/cpuacct.usage_percpu").split()],
            "usage_in_kernelmode": ticks.get("system", 0) * TICK_NS,
            "usage_in_usermode": ticks.get("user", 0) * TICK_NS,
        }
    if cpu is not None:
        result["throttling_data"] = throttling(keyed(f"{cpu}/cpu.stat"), "throttled_time", 1)
    return result


def throttling(stat: dict[str, int], name: str, factor: int) -> dict[str, int]:
    return {
        "periods": stat.get("nr_periods", 0),
        "throttled_periods": stat.get("nr_throttled", 0),
        "throttled_time": stat.get(name, 0) * factor,
    }


def v2_cpu(directory: str) -> dict[str, Any]:
    """cpu_stats of a v2 leaf; there is no use per CPU."""
    stat = keyed(f"{directory}/cpu.stat")
    return {
        "cpu_usage": {
            "total_usage": stat.get("usage_usec", 0) * 1000,
            "usage_in_kernelmode": stat.get("system_usec", 0) * 1000,
            "usage_in_usermode": stat.get("user_usec", 0) * 1000,
        },
        "throttling_data": throttling(stat, "throttled_usec", 1000),
    }


def v1_memory(directory: str, proc: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    member(result, "usage", value(f"{directory}/memory.usage_in_bytes"))
    member(result, "max_usage", value(f"{directory}/memory.max_usage_in_bytes"))
    result["stats"] = keyed(f"{directory}/memory.stat")
    member(result, "failcnt", value(f"{directory}/memory.failcnt"))
    result["limit"] = bound(value(f"{directory}/memory.limit_in_bytes"), proc)
    return result


def v2_memory(directory: str, proc: str) -> dict[str, Any]:
    """memory_stats; {} where the controller is not enabled. failcnt is "oom" of memory.events, as Docker's."""
    usage = value(f"{directory}/memory.current")
    if usage is None:
        return {}
    result: dict[str, Any] = {"usage": usage, "stats": keyed(f"{directory}/memory.stat")}
    member(result, "failcnt", keyed(f"{directory}/memory.events").get("oom"))
    result["limit"] = bound(value(f"{directory}/memory.max"), proc)
    return result


def pids(directory: str, *, unlimited: bool) -> dict[str, int]:
    """pids_stats; `unlimited` keeps a limit of "max" as 2^64-1 (Docker on v2), else it is left out (on v1)."""
    result: dict[str, int] = {}
    member(result, "current", value(f"{directory}/pids.current"))
    top = value(f"{directory}/pids.max")
    if unlimited or top != UNLIMITED:
        member(result, "limit", top)
    return result


def v1_blkio(directory: str) -> dict[str, Any]:
    """Counters of the throttle layer, which sees every I/O scheduler; the lists of CFQ's time are empty."""
    result: dict[str, Any] = {name: [] for name in EMPTY_BLKIO}
    for name in EMPTY_BLKIO[:2]:
        lines = text(f"{directory}/blkio.throttle.{name}").splitlines()
        for words in map(str.split, lines):
            # "254:0 Read 4096"; the last line, "Total 4096", has no device.
            if len(words) == 3:
                major, _, minor = words[0].partition(":")
                entry = {"major": int(major), "minor": int(minor), "op": words[1], "value": int(words[2])}
                result[name].append(entry)
    return result


def v2_blkio(directory: str) -> dict[str, Any]:
    """io.stat "254:0 rbytes=1 wbytes=2 rios=3 wios=4 ..." as Docker's lists."""
    result: dict[str, Any] = dict.fromkeys(EMPTY_BLKIO)
    for line in text(f"{directory}/io.stat").splitlines():
        name, *pairs = line.split()
        major, _, minor = name.partition(":")
        found = {key: word for key, _, word in (pair.partition("=") for pair in pairs)}
        for target, suffix in zip(EMPTY_BLKIO[:2], ("bytes", "ios"), strict=True):
            for op in ("read", "write"):
                word = found.get(op[0] + suffix, "")
                if word.isdigit() and minor.isdigit():
                    entry = {"major": int(major), "minor": int(minor), "op": op, "value": int(word)}
                    result[target] = [*(result[target] or []), entry]
    return result
