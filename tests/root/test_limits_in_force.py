"""Limits as the kernel holds them: each test breaks one and reads the kernel's own counters, on cgroup v1 and v2."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import SLOW, Engine

pytestmark = pytest.mark.root

V2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
MIB = 1 << 20
NONE = ("--network", "none")
CAP_SYS_RESOURCE = 24
SPIN = "while :; do :; done"


class Leaf:
    """The cgroup directories of a running container, found by its first process."""

    def __init__(self, engine: Engine, container: str) -> None:
        self.directories: dict[str, Path] = {}
        for line in Path(f"/proc/{engine.inspect(container)['State']['Pid']}/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            for controller in controllers.split(","):
                mount = "/sys/fs/cgroup" if V2 else f"/sys/fs/cgroup/{controller.removeprefix('name=') or 'unified'}"
                self.directories["" if number == "0" else controller] = Path(mount + path)

    def read(self, v1: str, v2: str) -> str:
        """v1: "controller/file"; v2: the file."""
        if V2:
            return (self.directories[""] / v2).read_text().strip()
        controller, _, file = v1.partition("/")
        return (self.directories[controller] / file).read_text().strip()

    def field(self, v1: str, v2: str, name: str) -> int:
        """One line "name value" of a file."""
        return int(dict(line.split() for line in self.read(v1, v2).splitlines())[name])


def start(engine: Engine, name: str, *options: str, command: str = "exec sleep 1000") -> Leaf:
    engine.docker("run", "-d", "--name", name, *NONE, *options, "busybox", "sh", "-c", command)
    return Leaf(engine, name)


def until(done: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds * SLOW
    while not done():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def create_warnings(engine: Engine, **host_config: object) -> list[str]:
    body = {"Image": "busybox", "HostConfig": {"NetworkMode": "none", **host_config}}
    answer = json.loads(engine.http("POST", "/containers/create", body).stdout)
    engine.docker("rm", answer["Id"])
    found: list[str] = answer["Warnings"]
    return found


def may_raise_limits(engine: Engine) -> bool:
    status = Path(f"/proc/{engine.pid}/status").read_text()
    return bool(int(status.split("CapEff:")[1].split()[0], 16) & 1 << CAP_SYS_RESOURCE)


# -- memory --------------------------------------------------------------------------------------------------------


def actions(engine: Engine, container: str, since: float) -> list[str]:
    """Of the events of one container since a time."""
    arguments = ["--since", f"{since:.9f}", "--until", f"{time.time():.9f}", "--filter", f"container={container}"]
    return engine.docker("events", *arguments, "--format", "{{.Action}}").stdout.split()


def test_memory_limit_kills_who_passes_it_and_nobody_else(clean: Engine) -> None:
    since = time.time()
    start(clean, "bystander", "-m", "512m")
    other = clean.inspect("bystander")["State"]["Pid"]
    limits = ("-m", "512m", "--memory-swap", "512m")
    eats = ("dd", "if=/dev/zero", "of=/dev/null", "bs=600M", "count=1")
    done = clean.docker("run", "--name", "eater", *NONE, *limits, "busybox", *eats, check=False)
    assert done.returncode == 137
    state = clean.inspect("eater")["State"]
    assert (state["ExitCode"], state["OOMKilled"], state["Status"]) == (137, True, "exited")
    assert {"oom", "die"} <= set(actions(clean, "eater", since))
    state = clean.inspect("bystander")["State"]
    assert (state["Running"], state["OOMKilled"], state["Pid"]) == (True, False, other)
    assert "oom" not in actions(clean, "bystander", since)
    assert clean.docker("exec", "bystander", "echo", "alive").stdout == "alive\n"


def test_same_allocation_within_the_limit_is_left_alone(clean: Engine) -> None:
    eats = ("dd", "if=/dev/zero", "of=/dev/null", "bs=600M", "count=1")
    clean.docker("run", "--name", "eater", *NONE, "-m", "700m", "busybox", *eats)
    assert clean.inspect("eater")["State"]["OOMKilled"] is False


def test_container_outlives_the_child_that_was_killed(clean: Engine) -> None:
    since = time.time()
    script = "dd if=/dev/zero of=/dev/null bs=100M count=1; echo child $?; exit 3"
    done = clean.docker("run", "--name", "mother", *NONE, "-m", "64m", "--memory-swap", "64m", "busybox", "sh", "-c", script,
                        check=False)  # fmt: skip
    assert (done.returncode, done.stdout) == (3, "child 137\n")
    until(lambda: "oom" in actions(clean, "mother", since))


def test_memory_files_say_what_was_asked_for(clean: Engine) -> None:
    options = ("-m", "64m", "--memory-reservation", "32m", "--memory-swap", "96m")
    leaf = start(clean, "sized", *options)
    assert leaf.read("memory/memory.limit_in_bytes", "memory.max") == str(64 * MIB)
    assert leaf.read("memory/memory.soft_limit_in_bytes", "memory.low") == str(32 * MIB)
    # v1 counts memory and swap together, v2 swap alone.
    assert leaf.read("memory/memory.memsw.limit_in_bytes", "memory.swap.max") == str((32 if V2 else 96) * MIB)
    config = clean.inspect("sized")["HostConfig"]
    assert (config["Memory"], config["MemoryReservation"], config["MemorySwap"]) == (64 * MIB, 32 * MIB, 96 * MIB)


def test_swappiness_is_set_or_a_warning_says_that_it_is_not(clean: Engine) -> None:
    warnings = create_warnings(clean, Memory=64 * MIB, MemorySwappiness=10)
    if V2:
        assert len(warnings) == 1 and "swappiness discarded" in warnings[0]
        return
    assert warnings == []
    leaf = start(clean, "sticky", "-m", "64m", "--memory-swappiness", "10")
    assert leaf.read("memory/memory.swappiness", "") == "10"


def test_swap_without_a_word_is_as_much_again(clean: Engine) -> None:
    leaf = start(clean, "doubled", "-m", "64m")
    assert leaf.read("memory/memory.memsw.limit_in_bytes", "memory.swap.max") == str((64 if V2 else 128) * MIB)


@pytest.mark.parametrize("user", ["0", "1000"])
def test_program_can_read_its_own_limit(clean: Engine, user: str) -> None:
    """Java, Go and Node size themselves by it, whoever they run as."""
    file = "/sys/fs/cgroup/memory.max" if V2 else "/sys/fs/cgroup/memory/memory.limit_in_bytes"
    done = clean.docker("run", "--rm", *NONE, "-u", user, "-m", "64m", "busybox", "cat", file)
    assert done.stdout == f"{64 * MIB}\n"


# -- processors ----------------------------------------------------------------------------------------------------


def cpu_seconds(leaf: Leaf) -> float:
    if V2:
        return leaf.field("", "cpu.stat", "usage_usec") / 1e6
    return int(leaf.read("cpuacct/cpuacct.usage", "")) / 1e9


def test_half_a_processor_is_half_a_processor(clean: Engine) -> None:
    # A loop for each processor: on a busy machine one alone may not even get its half.
    loops = " ".join([f"({SPIN}) &"] * (os.cpu_count() or 1))
    leaf = start(clean, "spinner", "--cpus", "0.5", command=f"{loops} wait")
    assert leaf.read("cpu/cpu.cfs_quota_us", "cpu.max").split()[0] == "50000"
    until(lambda: cpu_seconds(leaf) > 0.3)
    for _ in range(2):
        used, struck, since = -cpu_seconds(leaf), -throttled(leaf), time.monotonic()
        time.sleep(4)
        elapsed = time.monotonic() - since
        used, struck = used + cpu_seconds(leaf), struck + throttled(leaf)
        if 0.47 <= used / elapsed <= 0.53:
            break
    assert used / elapsed <= 0.53
    # If it got less, others had the processors: each period in which the limit struck had given its 50 ms before.
    assert used / elapsed >= 0.47 or used >= 0.94 * 0.05 * struck
    assert throttled(leaf) > 0


def throttled(leaf: Leaf) -> int:
    """Periods of 100 ms that ended before their time."""
    return leaf.field("cpu/cpu.stat", "cpu.stat", "nr_throttled")


def test_cpuset_binds_to_one_processor(clean: Engine) -> None:
    last = (os.cpu_count() or 1) - 1
    leaf = start(clean, "bound", "--cpuset-cpus", str(last), "--cpuset-mems", "0")
    assert leaf.read("cpuset/cpuset.cpus", "cpuset.cpus") == str(last)
    allowed = clean.docker("exec", "bound", "sed", "-n", "s/^Cpus_allowed_list:.//p", "/proc/self/status")
    assert allowed.stdout.strip() == str(last)
    done = clean.docker("create", "--cpuset-cpus", "0-4000", "busybox", check=False)
    assert done.returncode != 0 and "Requested CPUs are not available" in done.stderr


def test_shares_are_written_as_this_kernel_wants_them(clean: Engine) -> None:
    leaf = start(clean, "weighty", "--cpu-shares", "512")
    found = int(leaf.read("cpu/cpu.shares", "cpu.weight"))
    assert 1 < found < 100 if V2 else found == 512


# -- processes -----------------------------------------------------------------------------------------------------


def test_fork_bomb_ends_at_its_limit_and_the_engine_answers(clean: Engine) -> None:
    bomb = "b() { while :; do b & done; }; b 2>/dev/null & exec sleep 1000"
    leaf = start(clean, "bomb", "--pids-limit", "64", command=bomb)
    until(lambda: leaf.field("pids/pids.events", "pids.events", "max") > 0)
    assert int(leaf.read("pids/pids.current", "pids.current")) <= 64
    assert leaf.read("pids/pids.max", "pids.max") == "64"
    assert "bomb" in clean.docker("ps", timeout=10 * SLOW).stdout
    assert clean.docker("run", "--rm", *NONE, "busybox", "echo", "neighbour", timeout=10 * SLOW).stdout == "neighbour\n"
    clean.docker("rm", "-f", "bomb", timeout=10 * SLOW)


def test_processes_are_limited_even_if_nobody_asked(clean: Engine) -> None:
    assert start(clean, "plain").read("pids/pids.max", "pids.max") == "4096"
    assert start(clean, "free", "--pids-limit", "-1").read("pids/pids.max", "pids.max") == "max"


# -- block devices -------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(engine: Engine) -> Iterator[tuple[str, str]]:
    """(node, "major:minor") of the disk that the data root is on."""
    device = os.stat(engine.data).st_dev
    entry = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    if not entry.exists():
        pytest.skip("the data root is on no block device")
    if (entry / "partition").exists():
        entry = entry.parent
    yield f"/dev/{entry.name}", (entry / "dev").read_text().strip()


def written(leaf: Leaf, number: str) -> int:
    """Bytes that went to the device."""
    if V2:
        found = re.search(rf"^{number} .*wbytes=(\d+)", leaf.read("", "io.stat"), re.MULTILINE)
    else:
        text = leaf.read("blkio/blkio.throttle.io_service_bytes", "")
        found = re.search(rf"^{number} Write (\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0


def test_write_limit_holds_for_direct_writes(clean: Engine, disk: tuple[str, str]) -> None:
    node, number = disk
    rate = 4 * MIB
    # Over and over the same 16 MiB: nothing fills up if the limit does not hold.
    writes = "while :; do dd if=/dev/zero of=/file bs=64k count=256 oflag=direct conv=notrunc 2>/dev/null || exit; done"
    leaf = start(clean, "writer", "--device-write-bps", f"{node}:4mb", command=writes)
    assert str(rate) in leaf.read("blkio/blkio.throttle.write_bps_device", "io.max")
    until(lambda: written(leaf, number) > rate)
    for _ in range(2):
        before, since = written(leaf, number), time.monotonic()
        until(lambda: written(leaf, number) > before + 3 * rate)  # noqa: B023
        measured = (written(leaf, number) - before) / (time.monotonic() - since)
        if 0.8 * rate <= measured <= 1.2 * rate:
            break
    assert 0.8 * rate <= measured <= 1.2 * rate


def test_every_rate_of_a_device_is_written(clean: Engine, disk: tuple[str, str]) -> None:
    node, number = disk
    rates = {"read-bps": "1mb", "write-bps": "2mb", "read-iops": "30", "write-iops": "40"}
    leaf = start(clean, "slow", *[word for name, rate in rates.items() for word in (f"--device-{name}", f"{node}:{rate}")])
    if V2:
        assert leaf.read("", "io.max") == f"{number} rbps={MIB} wbps={2 * MIB} riops=30 wiops=40"
        return
    for name, value in (("read_bps", MIB), ("write_bps", 2 * MIB), ("read_iops", 30), ("write_iops", 40)):
        assert leaf.read(f"blkio/blkio.throttle.{name}_device", "") == f"{number} {value}"


def test_weight_of_block_io_is_set_or_a_warning_says_that_it_is_not(clean: Engine) -> None:
    warnings = create_warnings(clean, BlkioWeight=300)
    leaf = start(clean, "heavy", "--blkio-weight", "300")
    if warnings:
        assert warnings == [
            "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded."
        ]
        assert clean.inspect("heavy")["HostConfig"]["BlkioWeight"] == 0
        return
    files = ("blkio.weight", "blkio.bfq.weight", "io.weight", "io.bfq.weight")
    directory = leaf.directories["" if V2 else "blkio"]
    assert any(re.search(r"\b(300|2930)\b", (directory / file).read_text()) for file in files if (directory / file).exists())


# -- limits of processes -------------------------------------------------------------------------------------------


def test_ulimit_above_what_this_host_permits_is_lowered_with_a_warning(clean: Engine) -> None:
    line = next(x for x in Path(f"/proc/{clean.pid}/limits").read_text().splitlines() if x.startswith("Max open files"))
    hard = int(line.split()[4])
    above = int(Path("/proc/sys/fs/nr_open").read_text()) if may_raise_limits(clean) else hard
    warnings = create_warnings(clean, Ulimits=[{"Name": "nofile", "Soft": above + 1, "Hard": above + 2}])
    assert len(warnings) == 1 and "nofile" in warnings[0] and f"lowered to {above}:{above}" in warnings[0]
    limit = f"nofile={above + 1}:{above + 2}"
    done = clean.docker("run", "--rm", *NONE, "--ulimit", limit, "busybox", "sh", "-c", "ulimit -Sn; ulimit -Hn")
    assert done.stdout.split() == [str(above), str(above)]
    assert create_warnings(clean, Ulimits=[{"Name": "nofile", "Soft": 512, "Hard": 1024}]) == []


def test_ulimits_are_those_of_the_first_process(clean: Engine) -> None:
    options = ("--ulimit", "nofile=512:1024", "--ulimit", "core=0", "--ulimit", "nproc=333")
    lines = clean.docker("run", "--rm", *NONE, *options, "busybox", "cat", "/proc/self/limits").stdout.splitlines()
    found = {line[:26].strip(): tuple(line[26:].split()[:2]) for line in lines}
    assert found["Max open files"] == ("512", "1024")
    assert found["Max core file size"] == ("0", "0")
    assert found["Max processes"] == ("333", "333")


def test_oom_score_that_this_host_does_not_permit_is_raised_with_a_warning(clean: Engine) -> None:
    own = int(Path(f"/proc/{clean.pid}/oom_score_adj").read_text())
    lowest = -500 if may_raise_limits(clean) else max(own, -500)
    warnings = create_warnings(clean, OomScoreAdj=-500)
    assert [("oom score adj" in warning) for warning in warnings] == [True] * (lowest != -500)
    for asked, expected in ((-500, lowest), (300, 300)):
        done = clean.docker(
            "run", "--rm", *NONE, "--oom-score-adj", str(asked), "busybox", "cat", "/proc/self/oom_score_adj"
        )
        assert int(done.stdout) == expected


# -- where ---------------------------------------------------------------------------------------------------------


def test_cgroup_parent_is_honoured(clean: Engine) -> None:
    parent = f"/tare-parent-{os.getpid()}"
    leaf = start(clean, "child", "--cgroup-parent", parent, "-m", "64m")
    container = clean.inspect("child")
    try:
        assert container["HostConfig"]["CgroupParent"] == parent
        used = [path for name, path in leaf.directories.items() if name or V2]
        assert used and all(str(path).endswith(f"{parent}/{container['Id']}") for path in used)
        assert leaf.read("memory/memory.limit_in_bytes", "memory.max") == str(64 * MIB)
        clean.docker("rm", "-f", "child")
        until(lambda: not any(path.exists() for path in used))
    finally:
        clean.docker("rm", "-f", "child", check=False)
        for path in leaf.directories.values():
            if path.parent.name == parent[1:] and path.parent.exists():
                path.parent.rmdir()
