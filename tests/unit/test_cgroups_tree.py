"""v1.py, v2.py, kernfs.py against a folder in which a small fake kernel fills and empties cgroup directories."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tare.cgroups import api, convert, kernfs, v1, v2

FILES = {
    "cpu": "cpu.shares cpu.cfs_period_us cpu.cfs_quota_us cpu.stat",
    "cpuacct": "cpuacct.usage cpuacct.usage_percpu cpuacct.stat",
    "cpuset": "cpuset.cpus cpuset.mems",
    "memory": "memory.limit_in_bytes memory.memsw.limit_in_bytes memory.usage_in_bytes memory.max_usage_in_bytes"
    " memory.failcnt memory.stat memory.oom_control cgroup.event_control memory.soft_limit_in_bytes",
    "devices": "devices.allow devices.deny devices.list",
    "freezer": "freezer.state",
    "blkio": "blkio.bfq.weight blkio.throttle.read_bps_device blkio.throttle.io_service_bytes_recursive",
    "pids": "pids.max pids.current",
    "systemd": "",
    "v2": "cgroup.controllers cgroup.subtree_control cgroup.freeze cgroup.events cgroup.kill memory.max memory.low"
    " memory.swap.max memory.current memory.events memory.stat cpu.weight cpu.max cpu.stat pids.max pids.current"
    " io.max io.bfq.weight io.stat cpu.pressure hugetlb.2MB.max",
}


class FakeKernel:
    """mkdir makes the files of the hierarchy, rmdir is EBUSY while processes or sub-cgroups are left; logs writes."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.log: list[tuple[str, str]] = []
        self.refuse: dict[str, list[int]] = {}
        self.signals: list[tuple[int, int]] = []
        self.mkdir, self.rmdir, self.write = os.mkdir, os.rmdir, kernfs.write
        monkeypatch.setattr(os, "mkdir", self._mkdir)
        monkeypatch.setattr(os, "rmdir", self._rmdir)
        monkeypatch.setattr(os, "kill", lambda pid, number: self.signals.append((pid, number)))
        monkeypatch.setattr(kernfs, "write", self._write)
        monkeypatch.setattr(kernfs, "DELETE_TIMEOUT_S", 0.02)
        monkeypatch.setattr(kernfs, "FREEZE_TIMEOUT_S", 0.02)

    def fill(self, directory: str) -> None:
        place = directory.removeprefix(str(self.root)).split("/")[1]
        known = [name for name in FILES if name in place.split(",")] or ["v2"]
        for name in ("cgroup.procs", "cgroup.clone_children", *(word for one in known for word in FILES[one].split())):
            Path(directory, name).touch()

    def _mkdir(self, target: str | Path, mode: int = 0o777) -> None:
        path = os.fspath(target)
        self.mkdir(path, mode)
        if not path.startswith(f"{self.root}/"):
            return
        self.fill(path)
        parent = os.path.dirname(path)
        if Path(path, "cpuset.cpus").exists() and Path(parent, "cgroup.clone_children").read_text() == "1":
            for name in ("cpuset.cpus", "cpuset.mems"):
                Path(path, name).write_text(Path(parent, name).read_text())
        if Path(path, "cgroup.controllers").exists():
            given = Path(parent, "cgroup.subtree_control").read_text()
            Path(path, "cgroup.controllers").write_text(given.replace("+", ""))

    def _rmdir(self, path: str) -> None:
        if not path.startswith(f"{self.root}/"):
            return self.rmdir(path)
        if not os.path.isdir(path):
            raise FileNotFoundError(errno.ENOENT, "rmdir", path)
        if kernfs.below(path) or Path(path, "cgroup.procs").read_text():
            raise OSError(errno.EBUSY, "rmdir", path)
        for file in Path(path).iterdir():
            file.unlink()
        return self.rmdir(path)

    def _write(self, path: str, *values: str) -> None:
        for value in values:
            errors = self.refuse.get(os.path.basename(path), [])
            if errors and (number := errors.pop(0)):
                raise OSError(number, "write", path)
            if not os.path.exists(path):
                raise FileNotFoundError(errno.ENOENT, "write", path)
            above = Path(os.path.dirname(os.path.dirname(path)), os.path.basename(path))
            if "/cpuset.c" in path and above.exists() and not above.read_text():
                raise PermissionError(errno.EACCES, "write", path)
            self.log.append((path.removeprefix(str(self.root)), value))
            Path(path).write_text(value)
            if path.endswith("/cgroup.freeze"):
                Path(os.path.dirname(path), "cgroup.events").write_text(f"populated 1\nfrozen {value}\n")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    directory = tmp_path / "proc"
    directory.mkdir()
    (directory / "stat").write_text("cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1\ncpu1 2\nintr 5\n")
    (directory / "meminfo").write_text("MemTotal:       1000 kB\n")
    return directory


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    root = tmp_path / "cg"
    root.mkdir()
    return FakeKernel(root, monkeypatch)


V1_POINTS = ["cpu,cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd"]


def v1_tree(kernel: FakeKernel, proc: Path, points: list[str], *, hybrid: bool) -> v1.Hierarchy:
    lines = ["1 0 0:1 / / rw - ext4 /dev/vda rw", f"2 1 0:2 / {kernel.root} rw - tmpfs none rw"]
    for number, name in enumerate([*points, *(["unified"] if hybrid else [])], 10):
        kernel.mkdir(str(kernel.root / name))
        kernel.fill(str(kernel.root / name))
        options = "name=systemd" if name == "systemd" else name
        kind, tail = ("cgroup2", "rw") if name == "unified" else ("cgroup", f"rw,xattr,{options}")
        lines.append(f"{number} 2 0:{number} / {kernel.root}/{name} rw - {kind} {kind} {tail}")
    if "cpuset" in points:
        (kernel.root / "cpuset/cpuset.cpus").write_text("0-3\n")
        (kernel.root / "cpuset/cpuset.mems").write_text("0\n")
    if hybrid:
        (kernel.root / "unified/cgroup.controllers").write_text("hugetlb\n")
    mountinfo = proc / "mountinfo"
    mountinfo.write_text("\n".join(lines) + "\n")
    return v1.Hierarchy(str(kernel.root), str(mountinfo), str(proc))


@pytest.fixture
def pure(kernel: FakeKernel, proc: Path) -> v1.Hierarchy:
    return v1_tree(kernel, proc, V1_POINTS, hybrid=False)


@pytest.fixture
def hybrid(kernel: FakeKernel, proc: Path) -> v1.Hierarchy:
    return v1_tree(kernel, proc, V1_POINTS, hybrid=True)


@pytest.fixture
def two(kernel: FakeKernel, proc: Path) -> v2.Hierarchy:
    for name in FILES["v2"].split():
        if name.startswith("cgroup."):
            (kernel.root / name).touch()
    (kernel.root / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    return v2.Hierarchy(str(kernel.root), str(proc))


def leaf(kernel: FakeKernel, name: str, path: str = "/tare/x") -> Path:
    return Path(f"{kernel.root}/{name}{path}")


@pytest.mark.parametrize("path", ["tare", "", "/", "/a//b", "/a/", "/a/../b", "/a/./b", "/a\0b"])
def test_bad_paths(pure: v1.Hierarchy, path: str) -> None:
    with pytest.raises(ValueError, match="cgroup path"):
        pure.cgroup(path)


def test_v1_sees_co_mounted_and_named_hierarchies(pure: v1.Hierarchy, kernel: FakeKernel) -> None:
    assert pure.where["cpu"] == pure.where["cpuacct"] == f"{kernel.root}/cpu,cpuacct"
    assert pure.where["name=systemd"] == f"{kernel.root}/systemd"
    assert pure.controllers == {"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids"}
    assert pure.unified is None and pure.version == 1


def test_nothing_mounted(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text("1 0 0:1 / / rw - ext4 /dev/vda rw\n")
    with pytest.raises(OSError, match="hint: mount") as caught:
        v1.Hierarchy(str(tmp_path), str(tmp_path / "mountinfo"))
    assert caught.value.errno == errno.ENOSYS


def test_escaped_mount_points(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text(r"3 2 0:3 / /a\040b/cpu rw - cgroup cgroup rw,cpu" + "\n")
    assert v1.Hierarchy("/a b", str(tmp_path / "mountinfo")).where == {"cpu": "/a b/cpu"}


def test_v1_create_attach_delete(pure: v1.Hierarchy, kernel: FakeKernel) -> None:
    cgroup = pure.cgroup("/tare/x")
    assert cgroup.create({"memory": {"limit": 100, "swap": 200}, "pids": {"limit": 5}}) == []
    assert leaf(kernel, "memory").joinpath("memory.memsw.limit_in_bytes").read_text() == "200"
    assert leaf(kernel, "pids").joinpath("pids.max").read_text() == "5"
    assert [path for path, _ in kernel.log if "memory" in path] == [
        "/memory/tare/x/memory.limit_in_bytes",
        "/memory/tare/x/memory.memsw.limit_in_bytes",
    ]
    assert cgroup.fd() is None
    cgroup.attach(77)
    for name in V1_POINTS:
        assert leaf(kernel, name).joinpath("cgroup.procs").read_text() == "77"
        leaf(kernel, name).joinpath("cgroup.procs").write_text("")
    cgroup.delete()
    cgroup.delete()
    assert not any(leaf(kernel, name).exists() for name in V1_POINTS)


def test_v1_cpuset_is_filled_from_the_top(pure: v1.Hierarchy, kernel: FakeKernel) -> None:
    pure.cgroup("/a/b/x").create({})
    for path in ("/a", "/a/b", "/a/b/x"):
        assert leaf(kernel, "cpuset", path).joinpath("cpuset.cpus").read_text() == "0-3"
        assert leaf(kernel, "cpuset", path).joinpath("cpuset.mems").read_text() == "0"
    assert leaf(kernel, "cpuset", "/a/b").joinpath("cgroup.clone_children").read_text() == "1"
    kernel.log.clear()
    pure.cgroup("/a/b/y").create({})
    assert leaf(kernel, "cpuset", "/a/b/y").joinpath("cpuset.cpus").read_text() == "0-3"
    assert not [path for path, _ in kernel.log if "cpuset" in path]
    pure.cgroup("/fresh/z").create({"cpu": {"cpus": "1"}})
    assert leaf(kernel, "cpuset", "/fresh").joinpath("cpuset.cpus").read_text() == "0-3"
    pure.cgroup("/a/b/z").create({"cpu": {"cpus": "1"}})
    assert leaf(kernel, "cpuset", "/a/b/z").joinpath("cpuset.cpus").read_text() == "1"
    assert leaf(kernel, "cpuset", "/a/b/z").joinpath("cpuset.mems").read_text() == "0"


def test_v1_devices_are_denied_first(pure: v1.Hierarchy, kernel: FakeKernel) -> None:
    null = {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"}
    devices: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}, null, {**null, "minor": None, "access": "m"}]
    cgroup = pure.cgroup("/tare/x")
    cgroup.create({"devices": devices})
    assert [(path[16:], value) for path, value in kernel.log if "devices" in path] == [
        ("devices.deny", "a"),
        ("devices.allow", "c 1:3 rwm"),
        ("devices.allow", "c 1:* m"),
    ]
    kernel.log.clear()
    leaf(kernel, "devices").joinpath("devices.list").write_text("c 1:3 rwm\nc 1:* m\n")
    cgroup.update({"devices": [devices[0], {**null, "access": "rw"}, {**null, "minor": 5}]})
    assert [(path[16:], value) for path, value in kernel.log] == [
        ("devices.allow", "c 1:5 rwm"),
        ("devices.deny", "c 1:3 m"),
        ("devices.deny", "c 1:* m"),
    ]


def test_refused_order_is_tried_again(pure: v1.Hierarchy, kernel: FakeKernel) -> None:
    cgroup = pure.cgroup("/tare/x")
    cgroup.create({})
    kernel.log.clear()
    kernel.refuse = {"memory.limit_in_bytes": [errno.EINVAL], "cpu.cfs_period_us": [errno.EINVAL]}
    assert cgroup.update({"memory": {"limit": 300, "swap": 400}, "cpu": {"period": 10, "quota": 5}}) == []
    assert [os.path.basename(path) for path, _ in kernel.log] == [
        "memory.memsw.limit_in_bytes",
        "cpu.cfs_quota_us",
        "memory.limit_in_bytes",
        "cpu.cfs_period_us",
    ]
    kernel.refuse = {"memory.limit_in_bytes": [errno.EINVAL, errno.EINVAL]}
    with pytest.raises(OSError) as caught:
        cgroup.update({"memory": {"limit": 300}})
    assert caught.value.errno == errno.EINVAL


def test_failure_removes_what_was_made(pure: v1.Hierarchy, kernel: FakeKernel) -> None:
    pure.cgroup("/tare/other").create({})
    kernel.refuse = {"pids.max": [errno.EIO]}
    with pytest.raises(OSError) as caught:
        pure.cgroup("/tare/deep/x").create({"pids": {"limit": 5}})
    assert caught.value.errno == errno.EIO
    for name in V1_POINTS:
        assert not leaf(kernel, name, "/tare/deep").exists()
        assert leaf(kernel, name, "/tare/other").exists()


def test_absent_files_are_warnings(kernel: FakeKernel, proc: Path) -> None:
    hierarchy = v1_tree(kernel, proc, ["cpu,cpuacct", "memory"], hybrid=False)
    cgroup = hierarchy.cgroup("/tare/x")
    block = {"weight": 500, "throttleReadBpsDevice": [{"major": 999, "minor": 0, "rate": 1}] * 2}
    warnings = cgroup.create(
        {"memory": {"swappiness": 5}, "cpu": {"cpus": "0", "idle": 1}, "pids": {"limit": 1}, "blockIO": block}
    )
    assert warnings == [
        convert.NO_SWAPPINESS,
        convert.NO_IDLE,
        convert.NO_PIDS,
        "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.",
        "Your kernel does not support BPS Block I/O read limit or the cgroup is not mounted."
        " Block I/O BPS read limit discarded.",
        convert.NO_CPUSET,
    ]
    assert cgroup.create({"devices": [{"allow": False, "access": "rwm"}]}) == [convert.NO_DEVICES]
    assert not hierarchy.supports("pids") and not hierarchy.supports("freezer") and hierarchy.supports("memory.swap")


def test_bfq_weight_stands_in(pure: v1.Hierarchy, kernel: FakeKernel) -> None:
    assert pure.cgroup("/tare/x").create({"blockIO": {"weight": 300}}) == []
    assert leaf(kernel, "blkio").joinpath("blkio.bfq.weight").read_text() == "300"


def test_eperm_without_the_capability_is_a_warning(
    pure: v1.Hierarchy, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernfs, "capable", lambda capability: False)
    kernel.refuse = {"cpu.shares": [errno.EPERM]}
    (warning,) = pure.cgroup("/tare/x").create({"cpu": {"shares": 5}})
    assert warning.startswith("cpu.shares cannot be set without CAP_SYS_RESOURCE")
    monkeypatch.setattr(kernfs, "capable", lambda capability: True)
    kernel.refuse = {"cpu.shares": [errno.EPERM]}
    with pytest.raises(PermissionError):
        pure.cgroup("/tare/x").update({"cpu": {"shares": 5}})


def test_capable(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name:\tx\nCapEff:\t0000000001000000\n")
    assert kernfs.capable(24, str(tmp_path / "status"))
    assert not kernfs.capable(23, str(tmp_path / "status"))


def test_whole_disk(tmp_path: Path) -> None:
    partition = tmp_path / "devices/sda/sda1"
    partition.mkdir(parents=True)
    (partition / "partition").write_text("1\n")
    (tmp_path / "devices/sda/dev").write_text("8:0\n")
    (tmp_path / "dev/block").mkdir(parents=True)
    (tmp_path / "dev/block/8:1").symlink_to(partition)
    (tmp_path / "dev/block/8:0").symlink_to(tmp_path / "devices/sda")
    assert kernfs.whole_disk(8, 1, str(tmp_path)) == "8:0"
    assert kernfs.whole_disk(8, 0, str(tmp_path)) == "8:0"
    assert kernfs.whole_disk(9, 9, str(tmp_path)) == "9:9"


def test_update_of_a_lost_leaf_is_an_error(pure: v1.Hierarchy) -> None:
    with pytest.raises(FileNotFoundError, match="no such cgroup"):
        pure.cgroup("/tare/gone").update({"pids": {"limit": 1}})


def test_v1_kill_freezes_signals_and_thaws(pure: v1.Hierarchy, kernel: FakeKernel) -> None:
    cgroup = pure.cgroup("/tare/x")
    cgroup.kill()
    cgroup.create({})
    pure.cgroup("/tare/x/sub").create({})
    leaf(kernel, pure.points[0].rpartition("/")[2]).joinpath("cgroup.procs").write_text("5\n0\n6\n")
    leaf(kernel, "cpu,cpuacct", "/tare/x/sub").joinpath("cgroup.procs").write_text("7\n")
    assert cgroup.pids() == [5, 6, 7]
    kernel.log.clear()
    cgroup.kill()
    assert sorted(kernel.signals) == [(5, 9), (6, 9), (7, 9)]
    states = [(path, value) for path, value in kernel.log if path.endswith("freezer.state")]
    assert states[0] == ("/freezer/tare/x/freezer.state", "FROZEN")
    assert ("/freezer/tare/x/sub/freezer.state", "THAWED") in states
    assert not cgroup.frozen()
    cgroup.freeze(True)
    kernel.log.clear()
    cgroup.kill(signal.SIGTERM)
    assert cgroup.frozen() and not kernel.log


def test_v1_freeze_gives_up_thawed(pure: v1.Hierarchy, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    cgroup = pure.cgroup("/tare/x")
    cgroup.create({})
    monkeypatch.setattr(v1.Cgroup, "frozen", lambda self: False)
    with pytest.raises(TimeoutError) as caught:
        cgroup.freeze(True)
    assert caught.value.errno == errno.ETIMEDOUT
    assert leaf(kernel, "freezer").joinpath("freezer.state").read_text() == "THAWED"


def test_delete_goes_deep_and_reports_who_stays(pure: v1.Hierarchy, kernel: FakeKernel) -> None:
    cgroup = pure.cgroup("/tare/x")
    cgroup.create({})
    pure.cgroup("/tare/x/a/b").create({})
    leaf(kernel, "memory", "/tare/x/a").joinpath("cgroup.procs").write_text("5\n")
    with pytest.raises(OSError) as caught:
        cgroup.delete()
    assert (caught.value.errno, caught.value.filename) == (errno.EBUSY, str(leaf(kernel, "memory")))
    assert not leaf(kernel, "pids").exists() and not leaf(kernel, "memory", "/tare/x/a/b").exists()
    leaf(kernel, "memory", "/tare/x/a").joinpath("cgroup.procs").write_text("")
    cgroup.delete()
    assert not leaf(kernel, "memory").exists() and leaf(kernel, "memory", "/tare").exists()


def test_hybrid_uses_the_v2_leaf(hybrid: v1.Hierarchy, kernel: FakeKernel) -> None:
    assert hybrid.version == 1 and "hugetlb" in hybrid.controllers
    cgroup = hybrid.cgroup("/tare/x")
    assert cgroup.create({"memory": {"limit": 5}, "hugepageLimits": [{"pageSize": "2MB", "limit": 4}]}) == []
    assert leaf(kernel, "memory").joinpath("memory.limit_in_bytes").read_text() == "5"
    assert leaf(kernel, "unified").joinpath("memory.max").read_text() == ""
    assert leaf(kernel, "unified").joinpath("hugetlb.2MB.max").read_text() == "4"
    assert (kernel.root / "unified/cgroup.subtree_control").read_text() == "+hugetlb"
    fd = cgroup.fd()
    assert fd is not None and not os.get_inheritable(fd)
    assert os.path.samestat(os.fstat(fd), os.stat(leaf(kernel, "unified")))
    os.close(fd)
    leaf(kernel, "unified").joinpath("cgroup.procs").write_text("77\n")
    kernel.log.clear()
    cgroup.attach(77)
    assert not [path for path, _ in kernel.log if "unified" in path]
    cgroup.attach(78)
    assert ("/unified/tare/x/cgroup.procs", "78") in kernel.log
    cgroup.freeze(True)
    assert cgroup.frozen() and leaf(kernel, "unified").joinpath("cgroup.freeze").read_text() == "1"
    cgroup.kill()
    assert leaf(kernel, "unified").joinpath("cgroup.kill").read_text() == "1"
    assert leaf(kernel, "freezer").joinpath("freezer.state").read_text() == "THAWED"
    assert [name for name, _ in cgroup.mounts()] == V1_POINTS


def test_hybrid_raw_files(hybrid: v1.Hierarchy) -> None:
    cgroup = hybrid.cgroup("/tare/x")
    assert cgroup.create({"unified": {"memory.low": "3"}}) == []
    (warning,) = cgroup.update({"unified": {"memory.oom.group": "1"}})
    assert "memory.oom.group" in warning


def test_v1_stats_in_dockers_shape(hybrid: v1.Hierarchy, kernel: FakeKernel) -> None:
    cgroup = hybrid.cgroup("/tare/x")
    cgroup.create({})
    for name, file, content in (
        ("cpu,cpuacct", "cpuacct.usage", "900\n"),
        ("cpu,cpuacct", "cpuacct.usage_percpu", "400 500 \n"),
        ("cpu,cpuacct", "cpuacct.stat", "user 2\nsystem 3\n"),
        ("cpu,cpuacct", "cpu.stat", "nr_periods 4\nnr_throttled 5\nthrottled_time 6\n"),
        ("memory", "memory.usage_in_bytes", "70\n"),
        ("memory", "memory.max_usage_in_bytes", "80\n"),
        ("memory", "memory.failcnt", "1\n"),
        ("memory", "memory.stat", "cache 3\ntotal_inactive_file 2\n"),
        ("memory", "memory.limit_in_bytes", "9223372036854771712\n"),
        ("pids", "pids.current", "2\n"),
        ("pids", "pids.max", "max\n"),
        ("blkio", "blkio.throttle.io_service_bytes_recursive", "254:0 Read 4096\nTotal 4096\n"),
        ("unified", "cpu.pressure", "some avg10=1.50 avg60=0.00 avg300=0.00 total=7\n"),
    ):
        leaf(kernel, name).joinpath(file).write_text(content)
    stats = cgroup.stats()
    assert stats["cpu_stats"] == {
        "cpu_usage": {
            "total_usage": 900,
            "percpu_usage": [400, 500],
            "usage_in_kernelmode": 30_000_000,
            "usage_in_usermode": 20_000_000,
        },
        "system_cpu_usage": 280_000_000,
        "online_cpus": 2,
        "throttling_data": {"periods": 4, "throttled_periods": 5, "throttled_time": 6},
    }
    assert stats["memory_stats"] == {
        "usage": 70,
        "max_usage": 80,
        "stats": {"cache": 3, "total_inactive_file": 2},
        "failcnt": 1,
        "limit": 1_024_000,
    }
    assert stats["pids_stats"] == {"current": 2}
    entry = {"major": 254, "minor": 0, "op": "Read", "value": 4096}
    assert stats["blkio_stats"]["io_service_bytes_recursive"] == [entry]
    assert stats["blkio_stats"]["sectors_recursive"] == []
    assert stats["pressure"] == {"cpu": {"some": {"avg10": 1.5, "avg60": 0.0, "avg300": 0.0, "total": 7}}}


def test_v1_oom_kills(pure: v1.Hierarchy, kernel: FakeKernel) -> None:
    cgroup = pure.cgroup("/tare/x")
    cgroup.create({})
    leaf(kernel, "memory").joinpath("memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    assert cgroup.oom_kills() == 3
    event = cgroup.oom_fd()
    assert event is not None
    control = leaf(kernel, "memory").joinpath("cgroup.event_control").read_text().split()
    assert control[0] == str(event) and len(control) == 2
    os.close(event)
    leaf(kernel, "memory").joinpath("cgroup.event_control").unlink()
    assert cgroup.oom_fd() is None


def test_v1_supports(pure: v1.Hierarchy, kernel: FakeKernel) -> None:
    assert pure.supports("memory") and pure.supports("devices") and pure.supports("freezer")
    assert not pure.supports("cpu.rt") and not pure.supports("hugetlb") and not pure.supports("nonsense")
    assert not pure.supports("blkio.weight")
    (kernel.root / "blkio/blkio.bfq.io_service_bytes").touch()
    assert pure.supports("blkio.weight")


def test_detect_takes_v2_by_its_file(two: v2.Hierarchy, kernel: FakeKernel) -> None:
    found = api.detect(str(kernel.root))
    assert isinstance(found, v2.Hierarchy) and found.version == 2
    assert found.controllers == {"cpuset", "cpu", "io", "memory", "pids", "devices", "freezer"}


def test_v2_create(two: v2.Hierarchy, kernel: FakeKernel) -> None:
    cgroup = two.cgroup("/tare/x")
    resources = {
        "memory": {"limit": 100, "swap": 300, "swappiness": 1},
        "cpu": {"shares": 1024},
        "blockIO": {"weight": 100},
        "unified": {"memory.low": "7"},
    }
    assert cgroup.create(resources) == [convert.NO_SWAPPINESS]
    directory = kernel.root / "tare/x"
    values = {name: (directory / name).read_text() for name in ("memory.max", "memory.swap.max", "cpu.weight")}
    assert values == {"memory.max": "100", "memory.swap.max": "200", "cpu.weight": "100"}
    assert (directory / "io.bfq.weight").read_text() == "100" and (directory / "memory.low").read_text() == "7"
    for parent in (kernel.root, kernel.root / "tare"):
        assert (parent / "cgroup.subtree_control").read_text() == "+cpu +cpuset +io +memory +pids"
    assert (directory / "cgroup.subtree_control").read_text() == ""
    kernel.log.clear()
    two.cgroup("/tare/y").create({})
    assert kernel.log == []
    assert cgroup.mounts() == [("", str(directory))]
    cgroup.delete()
    assert not directory.exists()


def test_v2_controllers_that_cannot_be_enabled_are_warnings(two: v2.Hierarchy, kernel: FakeKernel) -> None:
    kernel.refuse = {"cgroup.subtree_control": [errno.EBUSY] * 20}
    real = kernel.fill

    def bare(directory: str) -> None:
        real(directory)
        Path(directory, "pids.max").unlink()

    kernel.fill = bare  # type: ignore[method-assign]
    assert two.cgroup("/tare/x").create({"pids": {"limit": 5}}) == [convert.NO_PIDS]


def test_v2_update(two: v2.Hierarchy, kernel: FakeKernel) -> None:
    cgroup = two.cgroup("/tare/x")
    cgroup.create({"memory": {"limit": 100}})
    directory = kernel.root / "tare/x"
    (directory / "cpu.max").write_text("5000 100000\n")
    assert cgroup.update({"memory": {"swap": 150}, "cpu": {"period": 7000}}) == []
    assert (directory / "memory.swap.max").read_text() == "50" and (directory / "cpu.max").read_text() == "5000 7000"
    (directory / "memory.current").write_text("90\n")
    with pytest.raises(OSError, match="below the use") as caught:
        cgroup.update({"memory": {"limit": 80, "checkBeforeUpdate": True}})
    assert caught.value.errno == errno.EBUSY


def test_v2_kill_without_cgroup_kill(two: v2.Hierarchy, kernel: FakeKernel) -> None:
    cgroup = two.cgroup("/tare/x")
    cgroup.kill()
    cgroup.create({})
    directory = kernel.root / "tare/x"
    (directory / "cgroup.kill").unlink()
    (directory / "cgroup.procs").write_text("4\n5\n")
    cgroup.kill()
    assert sorted(kernel.signals) == [(4, 9), (5, 9)]
    assert [value for path, value in kernel.log if path.endswith("cgroup.freeze")] == ["1", "0"]


def test_v2_stats(two: v2.Hierarchy, kernel: FakeKernel) -> None:
    cgroup = two.cgroup("/tare/x")
    cgroup.create({})
    for file, content in (
        ("cpu.stat", "usage_usec 9\nuser_usec 4\nsystem_usec 5\nnr_periods 1\nnr_throttled 2\nthrottled_usec 3\n"),
        ("memory.current", "70\n"),
        ("memory.max", "max\n"),
        ("memory.stat", "inactive_file 2\n"),
        ("memory.events", "low 0\nmax 4\noom 2\noom_kill 1\n"),
        ("pids.current", "2\n"),
        ("pids.max", "max\n"),
        ("io.stat", "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n"),
    ):
        (kernel.root / "tare/x" / file).write_text(content)
    stats = cgroup.stats()
    assert stats["cpu_stats"]["cpu_usage"] == {
        "total_usage": 9000,
        "usage_in_kernelmode": 5000,
        "usage_in_usermode": 4000,
    }
    assert stats["cpu_stats"]["throttling_data"] == {"periods": 1, "throttled_periods": 2, "throttled_time": 3000}
    assert stats["memory_stats"] == {"usage": 70, "stats": {"inactive_file": 2}, "failcnt": 2, "limit": 1_024_000}
    assert stats["pids_stats"] == {"current": 2, "limit": 2**64 - 1}
    assert [entry["value"] for entry in stats["blkio_stats"]["io_service_bytes_recursive"]] == [1, 2]
    assert cgroup.oom_kills() == 1


def test_v2_oom_fd_reports_a_change_of_memory_events(two: v2.Hierarchy, kernel: FakeKernel) -> None:
    cgroup = two.cgroup("/tare/x")
    cgroup.create({})
    events = kernel.root / "tare/x/memory.events"
    fd = cgroup.oom_fd()
    assert fd is not None and not os.get_inheritable(fd)
    with pytest.raises(BlockingIOError):
        os.read(fd, 4096)
    with events.open("a") as file:
        file.write("oom_kill 1\n")
    assert os.read(fd, 4096)
    os.close(fd)
    events.unlink()
    assert cgroup.oom_fd() is None


def test_v2_supports(two: v2.Hierarchy, kernel: FakeKernel, proc: Path) -> None:
    assert two.supports("memory") and two.supports("devices") and two.supports("freezer") and two.supports("cpu.quota")
    assert not two.supports("memory.swappiness") and not two.supports("cpu.rt") and not two.supports("hugetlb")
    assert not two.supports("memory.swap")
    (proc / "swaps").touch()
    assert two.supports("memory.swap")
    two.cgroup("/tare").create({})
    assert two.supports("memory.swap") and two.supports("blkio.weight")
    (kernel.root / "tare/memory.swap.max").unlink()
    assert not two.supports("memory.swap")
