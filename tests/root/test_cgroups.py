"""cgroups/ on the running kernel, v1, hybrid or v2: everything happens below /tare-test-<pid>, which is removed."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tare.cgroups import api, convert, devbpf, kernfs, v1, v2

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

MEMORY = {"limit": 64 << 20, "swap": 64 << 20}
"""Every leaf with processes is bounded, whatever a test does in it."""
CHILDREN: list[int] = []
"""Forked and not yet reaped."""


@pytest.fixture
def hierarchy() -> api.Hierarchy:
    return api.detect()


@pytest.fixture
def base(hierarchy: api.Hierarchy) -> Iterator[str]:
    path = f"/tare-test-{os.getpid()}"
    yield path
    top = hierarchy.cgroup(path)
    top.kill()
    while CHILDREN:
        code(CHILDREN[0])
    top.delete()


@pytest.fixture
def cgroup(hierarchy: api.Hierarchy, base: str) -> api.Cgroup:
    return hierarchy.cgroup(f"{base}/leaf")


def child(cgroup: api.Cgroup, work: Callable[[], int]) -> int:
    """Fork a process that waits until it is in the leaf, then exits with the result of `work`."""
    gate, opener = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(opener)
        try:
            os.read(gate, 1)
            os._exit(work())
        finally:
            os._exit(99)
    CHILDREN.append(pid)
    os.close(gate)
    try:
        cgroup.attach(pid)
    finally:
        os.close(opener)
    return pid


def sleeper() -> int:
    signal.pause()
    return 0


def code(pid: int) -> int:
    """Reap; as Popen.returncode."""
    CHILDREN.remove(pid)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def opens(path: str) -> Callable[[], int]:
    """0 if `path` can be opened for reading, else the errno."""

    def work() -> int:
        try:
            os.close(os.open(path, os.O_RDONLY))
        except OSError as error:
            return error.errno or 98
        return 0

    return work


def directories(cgroup: api.Cgroup) -> list[str]:
    found = [directory for _, directory in cgroup.mounts()]
    if isinstance(cgroup, v1.Cgroup) and cgroup.unified:
        found.append(cgroup.unified.directory)
    return found


def test_a_life(cgroup: api.Cgroup, base: str) -> None:
    resources = {"memory": MEMORY, "pids": {"limit": 20}, "cpu": {"shares": 512, "quota": 50000, "period": 100000}}
    assert cgroup.create(resources) == []
    assert cgroup.create(resources) == []
    assert all(map(os.path.isdir, directories(cgroup)))
    pid = child(cgroup, sleeper)
    assert cgroup.pids() == [pid]
    with open(f"/proc/{pid}/cgroup", encoding="ascii") as file:
        lines = file.read().splitlines()
    inside = [line for line in lines if line.endswith(f":{base}/leaf")]
    assert len(inside) == len(directories(cgroup))
    stats = cgroup.stats()
    assert stats["memory_stats"]["limit"] == MEMORY["limit"]
    assert stats["pids_stats"] == {"current": 1, "limit": 20}
    assert stats["cpu_stats"]["cpu_usage"]["total_usage"] > 0
    assert stats["cpu_stats"]["system_cpu_usage"] > 0 and stats["cpu_stats"]["online_cpus"] == os.cpu_count()
    cgroup.kill()
    assert code(pid) == -signal.SIGKILL
    cgroup.delete()
    cgroup.delete()
    assert not any(map(os.path.exists, directories(cgroup)))


def test_descriptor_is_the_v2_leaf(cgroup: api.Cgroup) -> None:
    cgroup.create({"memory": MEMORY})
    fd = cgroup.fd()
    if fd is None:
        pytest.skip("pure v1")
    try:
        assert not os.get_inheritable(fd)
        assert os.readlink(f"/proc/self/fd/{fd}") == directories(cgroup)[-1]
    finally:
        os.close(fd)
    # Not placed by clone3: attach has to notice and do it all.
    pid = child(cgroup, sleeper)
    assert cgroup.pids() == [pid]
    assert kernfs.pids(directories(cgroup)[0]) == [pid]


def test_pids_limit_holds(cgroup: api.Cgroup) -> None:
    cgroup.create({"memory": MEMORY, "pids": {"limit": 1}})

    def work() -> int:
        try:
            if os.fork() == 0:
                os._exit(0)
        except OSError as error:
            return error.errno or 98
        return 0

    assert code(child(cgroup, work)) == errno.EAGAIN
    assert cgroup.update({"pids": {"limit": -1}}) == []
    assert code(child(cgroup, work)) == 0


def test_memory_goes_up_and_down(cgroup: api.Cgroup) -> None:
    cgroup.create({"memory": MEMORY})
    child(cgroup, sleeper)
    for size in (256 << 20, 32 << 20, 128 << 20):
        assert cgroup.update({"memory": {"limit": size, "swap": 2 * size}}) == []
        assert cgroup.stats()["memory_stats"]["limit"] == size


def test_oom_kill_is_told(cgroup: api.Cgroup) -> None:
    cgroup.create({"memory": {"limit": 32 << 20, "swap": 32 << 20}})
    event = cgroup.oom_fd()
    assert event is not None
    try:
        assert not os.get_inheritable(event) and not os.get_blocking(event)
        assert select.select([event], [], [], 0)[0] == [] and cgroup.oom_kills() == 0

        def work() -> int:
            hoard = bytearray()
            while True:
                hoard += b"x" * (1 << 20)

        assert code(child(cgroup, work)) == -signal.SIGKILL
        assert select.select([event], [], [], 5)[0] == [event]
        assert os.read(event, 4096)
        assert cgroup.oom_kills() == 1
    finally:
        os.close(event)


def test_freeze_and_kill(cgroup: api.Cgroup, hierarchy: api.Hierarchy) -> None:
    cgroup.create({"memory": MEMORY})
    pid = child(cgroup, sleeper)
    assert not cgroup.frozen()
    cgroup.freeze(True)
    assert cgroup.frozen()
    cgroup.freeze(False)
    assert not cgroup.frozen()
    cgroup.freeze(True)
    cgroup.kill()
    assert code(pid) == -signal.SIGKILL
    pid = child(cgroup, lambda: signal.sigwait([signal.SIGUSR1]))
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    cgroup.freeze(False)
    cgroup.kill(signal.SIGTERM)
    assert code(pid) == -signal.SIGTERM


def test_v1_freezer(cgroup: api.Cgroup) -> None:
    """The way of hosts without a v2 tree, also for what somebody else froze below."""
    if not isinstance(cgroup, v1.Cgroup) or "freezer" not in cgroup.hierarchy.where:
        pytest.skip("no v1 freezer")
    cgroup.create({"memory": MEMORY})
    pid = child(cgroup, sleeper)
    kept, cgroup.unified = cgroup.unified, None
    cgroup.freeze(True)
    assert cgroup.frozen()
    cgroup.kill()
    assert code(pid) == -signal.SIGKILL and not cgroup.frozen()
    cgroup.unified = kept
    pid = child(cgroup, sleeper)
    kernfs.write(f"{cgroup.hierarchy.where['freezer']}{cgroup.path}/freezer.state", "FROZEN")
    cgroup.kill()
    assert code(pid) == -signal.SIGKILL


DENY_ALL = {"allow": False, "access": "rwm"}
NULL = {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"}
ZERO = {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "r"}


def test_devices(cgroup: api.Cgroup) -> None:
    assert cgroup.create({"memory": MEMORY, "devices": [DENY_ALL, NULL]}) == []
    assert code(child(cgroup, opens("/dev/null"))) == 0
    assert code(child(cgroup, opens("/dev/zero"))) == errno.EPERM
    assert cgroup.update({"devices": [DENY_ALL, ZERO]}) == []
    assert code(child(cgroup, opens("/dev/null"))) == errno.EPERM
    assert code(child(cgroup, opens("/dev/zero"))) == 0
    assert cgroup.update({"devices": [{"allow": True, "access": "rwm"}]}) == []
    assert code(child(cgroup, opens("/dev/null"))) == 0


def test_device_program(cgroup: api.Cgroup, hierarchy: api.Hierarchy) -> None:
    """The v2 filter itself, also on a hybrid host, where it works beside the devices controller."""
    cgroup.create({"memory": MEMORY})
    two = cgroup if isinstance(cgroup, v2.Cgroup) else getattr(cgroup, "unified", None)
    if two is None:
        pytest.skip("no v2 tree")
    fd = os.open(two.directory, os.O_RDONLY)
    try:
        devbpf.attach(two.directory, convert.rules([DENY_ALL, NULL]))
        first = devbpf.query(fd)
        assert len(first) == 1
        assert code(child(cgroup, opens("/dev/null"))) == 0
        assert code(child(cgroup, opens("/dev/zero"))) == errno.EPERM
        devbpf.attach(
            two.directory, convert.rules([DENY_ALL, NULL, {**ZERO, "access": "rwm"}, {**NULL, "allow": False}])
        )
        second = devbpf.query(fd)
        assert len(second) == 1 and second != first
        assert code(child(cgroup, opens("/dev/null"))) == errno.EPERM
        assert code(child(cgroup, opens("/dev/zero"))) == 0
        devbpf.attach(two.directory, convert.rules([DENY_ALL, ZERO]))

        def write() -> int:
            try:
                os.open("/dev/zero", os.O_WRONLY)
            except OSError as error:
                return error.errno or 98
            return 0

        assert code(child(cgroup, opens("/dev/zero"))) == 0
        assert code(child(cgroup, write)) == errno.EPERM
        devbpf.attach(two.directory, convert.rules([{"allow": True, "access": "rwm"}]))
        assert devbpf.query(fd) == []
    finally:
        os.close(fd)


def test_verifier_takes_every_shape(cgroup: api.Cgroup) -> None:
    entries: list[dict[str, Any]] = [
        {"allow": allow, "type": kind, "major": major, "minor": minor, "access": access}
        for allow in (True, False)
        for kind in "abc"
        for major in (-1, 1)
        for minor in (-1, 3)
        for access in ("r", "wm", "rwm")
    ]
    lists: list[list[dict[str, Any]]] = [[], entries, [DENY_ALL, *entries], [*entries, {"allow": True}]]
    for rules in lists:
        os.close(devbpf.load(devbpf.assemble(convert.rules(rules))))
    with pytest.raises(OSError, match="load device program"):
        devbpf.load(devbpf.instruction(devbpf.EXIT, 0))


def test_cpuset(cgroup: api.Cgroup, hierarchy: api.Hierarchy) -> None:
    if not hierarchy.supports("cpuset"):
        pytest.skip("no cpuset")
    cgroup.create({"memory": MEMORY, "cpu": {"cpus": "0"}})
    assert code(child(cgroup, lambda: 0 if os.sched_getaffinity(0) == {0} else 1)) == 0
    second = hierarchy.cgroup(f"{cgroup.path}-second")
    second.create({"memory": MEMORY})
    assert code(child(second, lambda: len(os.sched_getaffinity(0)))) == os.cpu_count()


def test_block_io(cgroup: api.Cgroup, hierarchy: api.Hierarchy) -> None:
    if not hierarchy.supports("blkio.throttle"):
        pytest.skip("no throttle")
    with open("/proc/partitions", encoding="ascii") as file:
        rows = [line.split() for line in file.read().splitlines()[2:]]
    disks = [row for row in rows if not os.path.exists(f"/sys/class/block/{row[3]}/partition") and row[2] != "0"]
    if not disks:
        pytest.skip("no disk")
    entry = [{"major": int(disks[0][0]), "minor": int(disks[0][1]), "rate": 1 << 20}]
    block = {"throttleReadBpsDevice": entry, "throttleWriteIOPSDevice": entry}
    assert cgroup.create({"memory": MEMORY, "blockIO": block}) == []


def test_refusal_leaves_nothing(cgroup: api.Cgroup) -> None:
    with pytest.raises(OSError) as caught:
        cgroup.create({"memory": MEMORY, "cpu": {"cpus": "4000"}})
    assert "cpuset.cpus" in str(caught.value.filename)
    assert not any(map(os.path.exists, directories(cgroup)))


def test_delete_waits_then_tells(cgroup: api.Cgroup, hierarchy: api.Hierarchy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernfs, "DELETE_TIMEOUT_S", 0.05)
    cgroup.create({"memory": MEMORY})
    deep = hierarchy.cgroup(f"{cgroup.path}/a/b")
    deep.create({"memory": MEMORY})
    pid = child(deep, sleeper)
    assert cgroup.pids() == [pid]
    with pytest.raises(OSError) as caught:
        cgroup.delete()
    assert caught.value.errno == errno.EBUSY
    cgroup.kill()
    assert code(pid) == -signal.SIGKILL
    cgroup.delete()
    assert not any(map(os.path.exists, directories(cgroup)))


SHIM = """
import sys
sys.path.insert(0, sys.argv[1])
from tare.cgroups.api import detect
hierarchy = detect()
sys.path[:], sys.meta_path[:] = [], []
cgroup = hierarchy.cgroup(sys.argv[2])
null = {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"}
block = {"throttleReadBpsDevice": [], "weight": 100}
cgroup.create({"memory": {"limit": 1 << 26}, "cpu": {"shares": 700}, "devices": [null], "blockIO": block})
cgroup.update({"pids": {"limit": 9}, "devices": [null]})
cgroup.stats(), cgroup.oom_fd(), cgroup.fd(), cgroup.freeze(True), cgroup.kill(), cgroup.delete()
print(*sorted(name for name in sys.modules if name.partition(".")[0] not in sys.stdlib_module_names))
"""


def test_a_shim_imports_nothing_after_detect(cgroup: api.Cgroup) -> None:
    """The root may be the image's by then, and an image could supply the module (rule 2 of the fork path)."""
    source = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(api.__file__))))
    line = [sys.executable, "-I", "-S", "-c", SHIM, source, cgroup.path]
    loaded = subprocess.run(line, check=True, capture_output=True, text=True).stdout.split()
    assert {name.partition(".")[0] for name in loaded} == {"__main__", "tare"}
    if isinstance(cgroup, v1.Cgroup) and "devices" in cgroup.hierarchy.where:
        assert "tare.cgroups.devbpf" not in loaded
