"""Proportional set sizes of process groups, by /proc."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["children", "command_holds", "name_of", "weight_mb"]


def weight_mb(pids: Iterable[int]) -> float:
    """PSS (smaps_rollup) and page tables (VmPTE) of the processes together, in MB of 1000 kB. RuntimeError for none."""
    total, count = 0, 0
    for pid in pids:
        count += 1
        for file, field in (("smaps_rollup", "Pss:"), ("status", "VmPTE:")):
            for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
                if line.startswith(field):
                    total += int(line.split()[1])
    if not count:
        raise RuntimeError("no process to weigh")
    return total * 1.024 / 1000


def _numbers() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def children(pid: int) -> list[int]:
    found = []
    for number in _numbers():
        try:
            stat = Path(f"/proc/{number}/stat").read_text()
        except OSError:
            continue
        if int(stat.rpartition(")")[2].split()[1]) == pid:
            found.append(number)
    return found


def command_holds(name: str, word: str) -> list[int]:
    """Processes with that program name whose command line contains `word`."""
    found = []
    for number in _numbers():
        try:
            words = Path(f"/proc/{number}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if os.path.basename(words[0]) == name and any(word in each for each in words[1:]):
            found.append(number)
    return found
