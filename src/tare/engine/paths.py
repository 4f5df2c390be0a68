"""Which paths of /proc and /sys a container sees masked or read-only. Pure; Docker 28.5's lists."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["MASKED", "READ_ONLY", "masked"]

MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",  # keystroke timing side channel: GHSA-6fw5-f8r9-fgfm
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",  # power side channel: GHSA-jq35-85cj-fj4p
    "/sys/firmware",
)

READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def masked(thermal_throttle: Iterable[str] = ()) -> tuple[str, ...]:
    """The default list with this host's cpuN/thermal_throttle directories (GHSA-6fw5-f8r9-fgfm)."""
    return (*MASKED, *thermal_throttle)
