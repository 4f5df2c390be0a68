"""Taking turns, counting, and the table: nothing here knows an engine."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Row", "elapsed", "interleave", "markdown", "run_quietly"]

PAUSE_S = 0.05
"""Between two samples: what an engine still does when its client has left (podman's clean-up, a shim's end) is over."""
_NULL = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)


@dataclass
class Row:
    """Samples of one quantity by contestant, in `unit`; ratios refer to `baseline`, if that took part."""

    key: str
    title: str
    unit: str
    samples: dict[str, list[float]] = field(default_factory=dict)
    baseline: str = "docker, dockerd"

    def figures(self, name: str) -> dict[str, Any]:
        values = sorted(self.samples[name])
        found: dict[str, Any] = {
            "row": self.key, "title": self.title, "contestant": name, "unit": self.unit, "n": len(values),
            "median": quantile(values, 0.5), "min": values[0], "p10": quantile(values, 0.1), "p90": quantile(values, 0.9),
            "samples": [round(value, 3) for value in self.samples[name]],
        }  # fmt: skip
        base = sorted(self.samples.get(self.baseline, ()))
        if base:
            found["ratio_median"] = quantile(base, 0.5) / found["median"] if found["median"] else None
            found["ratio_min"] = base[0] / found["min"] if found["min"] else None
        return found


def quantile(values: Sequence[float], share: float) -> float:
    """Of sorted values, between neighbours in proportion."""
    place = share * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)


def elapsed(argv: Sequence[str], environment: Mapping[str, str]) -> float:
    """ms from spawn to end of a process without terminal, its output thrown away. RuntimeError unless it ends with 0."""
    actions = [(os.POSIX_SPAWN_DUP2, _NULL, fd) for fd in (0, 1, 2)]
    begin = time.perf_counter_ns()
    pid = os.posix_spawn(argv[0], list(argv), dict(environment), file_actions=actions)
    _, status = os.waitpid(pid, 0)
    end = time.perf_counter_ns()
    if status:
        told = subprocess.run(argv, env=dict(environment), capture_output=True, text=True, check=False)
        code = os.waitstatus_to_exitcode(status)
        raise RuntimeError(f"{' '.join(argv)}: ended with {code}; once more: {told.returncode} {told.stderr.strip()}")
    return (end - begin) / 1e6


def run_quietly(argv: Sequence[str], environment: Mapping[str, str], **options: Any) -> str:
    """Standard output of a command that must succeed; RuntimeError with what it said on standard error."""
    done = subprocess.run(argv, env=dict(environment), capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise RuntimeError(f"{os.path.basename(argv[0])} {argv[-1]}: {done.stderr.strip()[-500:]}")
    return done.stdout


def interleave(
    contestants: Mapping[str, Callable[[], float]], count: int, *, pause_s: float = PAUSE_S
) -> dict[str, list[float]]:
    """`count` samples of each: one of everybody per turn, every turn in another order; the first turn is dropped.

    So a busy second on the machine hits all alike, and nobody always comes after the same neighbour.
    """
    order = random.Random(1)
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for turn in range(count + 1):
        order.shuffle(names)
        for name in names:
            time.sleep(pause_s)
            value = contestants[name]()
            if turn:
                samples[name].append(value)
    return samples


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def markdown(rows: Sequence[Row]) -> str:
    """One table of all rows; the last two columns say how many times docker's figure is ours."""
    lines = [
        "| what | by | N | median | min | p10 | p90 | docker / this, median | min |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        title = f"{row.title} [{row.unit}]"
        for name in row.samples:
            found = row.figures(name)
            cells = [
                title, name, str(found["n"]), _number(found["median"]), _number(found["min"]), _number(found["p10"]),
                _number(found["p90"]),
                _ratio(found.get("ratio_median")), _ratio(found.get("ratio_min")),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
            title = ""
    return "\n".join(lines)
