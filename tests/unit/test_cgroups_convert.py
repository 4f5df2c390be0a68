"""The pure half of cgroups/: formulas, plans, device rules, and the eBPF program run by a small interpreter."""

from __future__ import annotations

import errno
import math
import sys
from struct import iter_unpack
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tare.cgroups import convert, devbpf
from tare.cgroups.convert import ALL, MKNOD, READ, WRITE


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        (0, 0),
        (1, 1),
        (2, 1),
        (3, 2),
        (512, 59),
        (1024, 100),
        (2048, 174),
        (262143, 10000),
        (262144, 10000),
        (10**9, 10000),
    ],
)
def test_weight_table(shares: int, expected: int) -> None:
    assert convert.weight(shares) == expected


def test_weight_is_the_quadratic_fit_everywhere() -> None:
    for shares in range(3, 262144, 7):
        exponent = math.log2(shares)
        assert convert.weight(shares) == math.ceil(10 ** ((exponent**2 + 125 * exponent) / 612 - 7 / 34))


@pytest.mark.parametrize(("blkio", "expected"), [(0, 0), (10, 1), (100, 910), (500, 4950), (1000, 10000)])
def test_io_weight(blkio: int, expected: int) -> None:
    assert convert.io_weight(blkio) == expected


@pytest.mark.parametrize(
    ("memory", "both", "expected"),
    [(0, 0, None), (100, 0, None), (-1, 0, -1), (100, -1, -1), (100, 100, 0), (100, 300, 200), (-1, 300, 300)],
)
def test_swap(memory: int, both: int, expected: int | None) -> None:
    assert convert.swap(memory, both) == expected


@pytest.mark.parametrize(("memory", "both"), [(0, 300), (300, 100)])
def test_swap_refuses_what_cannot_be_split(memory: int, both: int) -> None:
    with pytest.raises(OSError) as caught:
        convert.swap(memory, both)
    assert caught.value.errno == errno.EINVAL


def files(plan: list[convert.Write]) -> list[tuple[str, ...]]:
    """(controller, file, value, file, value, ...) per write."""
    return [(controller, *(word for pair in pairs for word in pair)) for controller, pairs, _ in plan]


THROTTLED = {"throttleReadBpsDevice": [{"major": 8, "minor": 1, "rate": 1000}, {"major": 8, "minor": 2, "rate": 0}]}

V1: list[tuple[dict[str, Any], list[tuple[str, ...]]]] = [
    ({}, []),
    (
        {"memory": {"limit": 100, "swap": 300, "reservation": 50, "swappiness": 0, "disableOOMKiller": True}},
        [
            ("memory", "memory.limit_in_bytes", "100"),
            ("memory", "memory.memsw.limit_in_bytes", "300"),
            ("memory", "memory.soft_limit_in_bytes", "50"),
            ("memory", "memory.swappiness", "0"),
            ("memory", "memory.oom_control", "1"),
        ],
    ),
    (
        {"memory": {"limit": -1, "swap": None}},
        [("memory", "memory.limit_in_bytes", "-1"), ("memory", "memory.memsw.limit_in_bytes", "-1")],
    ),
    (
        {"cpu": {"shares": 512, "quota": -1, "period": 1000, "realtimeRuntime": 5, "burst": 0, "idle": 1}},
        [
            ("cpu", "cpu.shares", "512"),
            ("cpu", "cpu.cfs_period_us", "1000"),
            ("cpu", "cpu.cfs_quota_us", "-1"),
            ("cpu", "cpu.rt_runtime_us", "5"),
            ("cpu", "cpu.cfs_burst_us", "0"),
            ("cpu", "cpu.idle", "1"),
        ],
    ),
    ({"pids": {"limit": 7}}, [("pids", "pids.max", "7")]),
    ({"pids": {"limit": -1}}, [("pids", "pids.max", "max")]),
    ({"pids": {"limit": 0}}, [("pids", "pids.max", "max")]),
    (
        {"blockIO": {"weight": 500, "weightDevice": [{"major": 8, "minor": 0, "weight": 10}], **THROTTLED}},
        [
            ("blkio", "blkio.weight", "500", "blkio.bfq.weight", "500"),
            ("blkio", "blkio.weight_device", "8:0 10", "blkio.bfq.weight_device", "8:0 10"),
            ("blkio", "blkio.throttle.read_bps_device", "8:1 1000"),
            ("blkio", "blkio.throttle.read_bps_device", "8:2 0"),
        ],
    ),
    (
        {"hugepageLimits": [{"pageSize": "2MB", "limit": 4}]},
        [("hugetlb", "hugetlb.2MB.limit_in_bytes", "4"), ("hugetlb", "hugetlb.2MB.rsvd.limit_in_bytes", "4")],
    ),
]

V2: list[tuple[dict[str, Any], list[tuple[str, ...]]]] = [
    ({}, []),
    (
        {"memory": {"limit": 100, "swap": 300, "reservation": 50}},
        [("memory", "memory.swap.max", "200"), ("memory", "memory.max", "100"), ("memory", "memory.low", "50")],
    ),
    (
        {"memory": {"limit": 100, "swap": 100}},
        [("memory", "memory.swap.max", "0"), ("memory", "memory.max", "100")],
    ),
    ({"memory": {"limit": -1}}, [("memory", "memory.swap.max", "max"), ("memory", "memory.max", "max")]),
    ({"memory": {"swappiness": 10, "disableOOMKiller": True}}, [("memory",), ("memory",)]),
    ({"memory": {"disableOOMKiller": False}}, []),
    ({"cpu": {"shares": 1024, "quota": 5, "period": 10}}, [("cpu", "cpu.weight", "100"), ("cpu", "cpu.max", "5 10")]),
    ({"cpu": {"quota": 50000}}, [("cpu", "cpu.max", "50000")]),
    ({"cpu": {"quota": -1}}, [("cpu", "cpu.max", "max")]),
    ({"cpu": {"period": 10}}, [("cpu", "cpu.max", "max 10")]),
    ({"cpu": {"shares": 1024, "idle": 1}}, [("cpu", "cpu.idle", "1")]),
    ({"cpu": {"burst": 7, "realtimePeriod": 9}}, [("cpu", "cpu.max.burst", "7"), ("cpu",)]),
    (
        {"cpu": {"cpus": "0-1", "mems": "0"}},
        [("cpuset", "cpuset.cpus", "0-1"), ("cpuset", "cpuset.mems", "0")],
    ),
    (
        {"blockIO": {"weight": 1000, **THROTTLED}},
        [
            ("io", "io.bfq.weight", "1000", "io.weight", "10000"),
            ("io", "io.max", "8:1 rbps=1000"),
            ("io", "io.max", "8:2 rbps=max"),
        ],
    ),
]


@pytest.mark.parametrize(("resources", "expected"), V1)
def test_v1_plan(resources: dict[str, Any], expected: list[tuple[str, ...]]) -> None:
    assert files(convert.v1_plan(resources)) == expected


@pytest.mark.parametrize(("resources", "expected"), V2)
def test_v2_plan(resources: dict[str, Any], expected: list[tuple[str, ...]]) -> None:
    assert files(convert.v2_plan(resources)) == expected


def test_v2_update_is_completed_by_what_is_in_force() -> None:
    plan = convert.v2_plan({"memory": {"swap": 300}, "cpu": {"period": 10}}, 100, "5")
    assert files(plan) == [("memory", "memory.swap.max", "200"), ("cpu", "cpu.max", "5 10")]


def test_unified_writes_line_by_line_and_stays_in_the_directory() -> None:
    plan = convert.unified({"unified": {"io.max": "8:0 rbps=1\n8:1 rbps=2\n"}})
    assert files(plan) == [("", "io.max", "8:0 rbps=1"), ("", "io.max", "8:1 rbps=2")]
    for name in ("../x.y", "memory", ".x", "a/b.c"):
        with pytest.raises(OSError, match="CONTROLLER.PARAMETER"):
            convert.unified({"unified": {name: "1"}})


def test_page_size_is_no_path() -> None:
    with pytest.raises(OSError, match="page size"):
        convert.hugetlb({"hugepageLimits": [{"pageSize": "../2MB", "limit": 1}]}, "max")


DENY_ALL = {"allow": False, "access": "rwm"}


def test_rules_drop_what_a_later_all_voids_and_split_half_an_all() -> None:
    null = {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"}
    assert convert.rules([null, DENY_ALL, null]) == [(False, "a", -1, -1, ALL), (True, "c", 1, 3, READ | WRITE)]
    half = {"allow": True, "type": "a", "major": 10, "minor": -1, "access": "m"}
    assert convert.rules([half]) == [(True, "b", 10, -1, MKNOD), (True, "c", 10, -1, MKNOD)]


@pytest.mark.parametrize("bad", [{"type": "x"}, {"access": "rq"}, {"type": "c", "major": 1 << 31}])
def test_rules_refuse_nonsense(bad: dict[str, Any]) -> None:
    with pytest.raises(OSError, match="not valid"):
        convert.rules([{"allow": True, **bad}])


def test_exceptions() -> None:
    def rule(allow: bool, minor: int, bits: int) -> convert.Rule:
        return allow, "c", 1, minor, bits

    merged = [rule(True, 3, READ), rule(True, 3, WRITE), rule(True, 5, ALL), rule(False, 5, ALL)]
    assert convert.exceptions(merged) == (False, {("c", 1, 3): READ | WRITE})
    assert convert.exceptions([(True, "a", -1, -1, ALL), rule(False, 3, WRITE)]) == (True, {("c", 1, 3): WRITE})
    assert convert.exceptions([rule(True, 3, ALL), rule(False, -1, WRITE)]) == (False, {("c", 1, 3): READ | MKNOD})
    with pytest.raises(OSError, match="cuts a hole"):
        convert.exceptions([rule(True, -1, ALL), rule(False, 3, WRITE)])


def test_device_lines() -> None:
    assert convert.line(("c", 1, -1), READ | MKNOD) == "c 1:* rm"
    assert convert.line(("b", -1, -1), ALL) == "b *:* rwm"


def run(program: bytes, kind: int, major: int, minor: int, access: int) -> bool:
    """A CGROUP_DEVICE program on struct bpf_cgroup_dev_ctx; only the opcodes of devbpf are known."""
    registers = [0] * 11
    context = {0: kind | access << 16, 4: major, 8: minor}
    code = list(iter_unpack("=BBhi", program))
    at = 0
    while True:
        op, packed, offset, value = code[at]
        low, high = packed & 15, packed >> 4
        target, source = (low, high) if sys.byteorder == "little" else (high, low)
        at += 1
        if op == devbpf.LOAD_WORD:
            assert source == 1
            registers[target] = context[offset]
        elif op == devbpf.MOV_IMM:
            registers[target] = value
        elif op == devbpf.MOV_REG:
            registers[target] = registers[source]
        elif op == devbpf.AND_IMM:
            registers[target] &= value
        elif op == devbpf.SHIFT_RIGHT_IMM:
            registers[target] >>= value
        elif op == devbpf.JUMP_EQUAL:
            at += offset if registers[target] == value else 0
        elif op == devbpf.JUMP_NOT_EQUAL:
            at += offset if registers[target] != value else 0
        else:
            assert op == devbpf.EXIT
            return bool(registers[0])


def verdict(rules: list[convert.Rule], kind: str, major: int, minor: int, access: int) -> bool:
    """The meaning of a list, bit by bit: the last rule that names device and bit decides, none = refused."""
    for bit in (MKNOD, READ, WRITE):
        if access & bit:
            allowed = False
            for allow, one, first, second, bits in rules:
                if one in ("a", kind) and first in (-1, major) and second in (-1, minor) and bits & bit:
                    allowed = allow
            if not allowed:
                return False
    return True


RULE = st.fixed_dictionaries(
    {
        "allow": st.booleans(),
        "type": st.sampled_from("abc"),
        "major": st.sampled_from([-1, 1, 2]),
        "minor": st.sampled_from([-1, 3, 4]),
        "access": st.sampled_from(["r", "w", "m", "rw", "rm", "rwm", ""]),
    }
)


@settings(max_examples=200, deadline=None)
@given(st.lists(RULE, max_size=8))
def test_program_means_what_the_rules_mean(entries: list[dict[str, Any]]) -> None:
    rules = convert.rules(entries)
    program = devbpf.assemble(rules)
    for kind, number in (("b", 1), ("c", 2)):
        for major in (1, 2, 9):
            for minor in (3, 9):
                for access in range(1, 8):
                    expected = verdict(rules, kind, major, minor, access)
                    assert run(program, number, major, minor, access) == expected


@settings(max_examples=200, deadline=None)
@given(st.lists(RULE, max_size=8))
def test_v1_exceptions_mean_what_the_rules_mean(entries: list[dict[str, Any]]) -> None:
    rules = convert.rules(entries)
    try:
        default, found = convert.exceptions(rules)
    except OSError as error:
        assert error.errno == errno.EINVAL
        return
    for kind in "bc":
        for major in (1, 2, 9):
            for minor in (3, 9):
                for bit in (MKNOD, READ, WRITE):
                    hit = any(
                        key[0] == kind and key[1] in (-1, major) and key[2] in (-1, minor) and bits & bit
                        for key, bits in found.items()
                    )
                    assert (hit != default) == verdict(rules, kind, major, minor, bit)
