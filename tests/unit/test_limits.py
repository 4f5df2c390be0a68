"""What is refused, and with which words; what is clamped or discarded, and with which warning."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from plan_host import FEATURES, host

from tare.engine import limits
from tare.engine.model import (
    ContainerSpec,
    DeviceRate,
    HealthCheck,
    LogConfig,
    MountSpec,
    Namespaces,
    Resources,
    RestartPolicy,
    Security,
    Ulimit,
)
from tare.errors import Invalid

MIB = 1 << 20


def spec(**fields: Any) -> ContainerSpec:
    return ContainerSpec(**{"image": "busybox", "command": ("sh",), **fields})


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"memory": MIB}, "Minimum memory limit allowed is 6MB"),
        ({"memory": -5}, "Minimum memory limit allowed is 6MB"),
        ({"memory": 9 * MIB, "memory_swap": 8 * MIB}, "Minimum memoryswap limit should be larger than memory limit"),
        ({"memory_swap": 8 * MIB}, "You should always set the Memory limit when using Memoryswap limit, see usage"),
        ({"memory_swappiness": 101}, "Invalid value: 101, valid memory swappiness range is 0-100"),
        ({"memory_reservation": MIB}, "Minimum memory reservation allowed is 6MB"),
        ({"memory": 7 * MIB, "memory_reservation": 8 * MIB}, "can not be less than memory reservation limit"),
        ({"nano_cpus": 1, "cpu_period": 1000}, "Conflicting options: Nano CPUs and CPU Period cannot both be set"),
        ({"nano_cpus": 1, "cpu_quota": 1000}, "Conflicting options: Nano CPUs and CPU Quota cannot both be set"),
        ({"nano_cpus": 3 * 10**9}, "range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available"),
        ({"nano_cpus": -1}, "range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available"),
        ({"cpu_shares": -1}, "invalid CPU shares (-1): value must be a positive integer"),
        ({"cpu_period": 999}, "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"),
        ({"cpu_period": 1000001}, "CPU cfs period can not be less than 1ms"),
        ({"cpu_quota": 999}, "CPU cfs quota can not be less than 1ms (i.e. 1000)"),
        ({"cpu_rt_runtime": 5}, "kernel does not support CPU real-time scheduler"),
        ({"cpuset_cpus": "0-2"}, "Requested CPUs are not available - requested 0-2, available: 0-1"),
        ({"cpuset_mems": "1"}, "Requested memory nodes are not available - requested 1, available: 0"),
        ({"cpuset_cpus": "1-"}, "Invalid value 1- for cpuset cpus: invalid format: 1-"),
        ({"cpuset_cpus": "-1"}, "Invalid value -1 for cpuset cpus: invalid format: -1"),
        ({"cpuset_cpus": "1,,0"}, "invalid format"),
        ({"cpuset_cpus": "٣"}, "invalid format"),
        ({"cpuset_cpus": "0-2147483647"}, "value of out range, maximum is 8192"),
        ({"cpuset_mems": "0-9223372036854775807"}, "value of out range, maximum is 8192"),
        ({"cpuset_cpus": ",".join(["0"] * 10**6)}, "invalid format: longer than 4096 characters"),
        ({"blkio_weight": 9}, "Range of blkio weight is from 10 to 1000"),
        ({"blkio_weight_device": (DeviceRate(path="/dev/sda", rate=1001),)}, "Range of blkio weight is from 10 to"),
        ({"device_read_bps": (DeviceRate(path="/dev/sda", rate=-1),)}, "must be a positive integer"),
        ({"ulimits": (Ulimit(name="foo", soft=1, hard=1),)}, "invalid ulimit type: foo"),
        ({"ulimits": (Ulimit(name="as", soft=1, hard=1),)}, "invalid ulimit type: as"),
        ({"ulimits": (Ulimit(name="nofile", soft=2, hard=1),)}, "must be less than or equal to hard limit: 2 > 1"),
        ({"ulimits": (Ulimit(name="nofile", soft=-1, hard=1),)}, "hard limit: soft: -1 (unlimited), hard: 1"),
        ({"ulimits": (Ulimit(name="nofile", soft=-2, hard=1),)}, "values are -1 (unlimited) or not negative"),
        ({"cgroup_parent": "/a/../../b"}, "must not lead upwards"),
    ],
)  # fmt: skip
def test_quantities_refused(resources: dict[str, Any], message: str) -> None:
    with pytest.raises(Invalid, match=re.escape(message)):
        limits.check(spec(resources=Resources(**resources)), host())


def bind(**fields: Any) -> dict[str, Any]:
    return {"mounts": (MountSpec(**{"type": "bind", "source": "/s", "target": "/t", **fields}),)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hostname": "x" * 65}, "is too long (maximum 64 bytes)"),
        ({"hostname": "a\nb"}, "invalid hostname: control characters are not permitted"),
        ({"working_dir": "x"}, "the working directory 'x' is invalid, it needs to be an absolute path"),
        ({"env": ("=x",)}, "invalid environment variable: =x"),
        ({"env": ("A=\0",)}, 'invalid environment variable: "A=\\u0000"'),
        ({"dns": ("1.1.1.1\nnameserver 2.2.2.2",)}, 'invalid DNS server "1.1.1.1\\nnameserver 2.2.2.2": it must be one word'),
        ({"dns": ("fe80::1%a\nb",)}, "invalid DNS server"),
        ({"dns": ("example.org",)}, 'invalid IP address in "example.org"'),
        ({"dns_search": ("a b",)}, "invalid DNS search domain"),
        ({"dns_options": ("ndots:1\x7f",)}, "invalid DNS option"),
        ({"extra_hosts": ("a:1.1.1.1\n2.2.2.2 b",)}, "invalid extra host"),
        ({"extra_hosts": ("a:1.1.1",)}, 'invalid IP address in "a:1.1.1"'),
        ({"extra_hosts": (":1.1.1.1",)}, 'bad format for add-host: ":1.1.1.1"'),
        ({"extra_hosts": ("a",)}, 'bad format for add-host: "a"'),
        ({"exposed_ports": ("http",)}, 'invalid port specification: "http"'),
        ({"exposed_ports": ("70000/tcp",)}, 'invalid port specification: "70000/tcp"'),
        ({"exposed_ports": ("90-80/tcp",)}, 'invalid port specification: "90-80/tcp"'),
        ({"port_bindings": {"80/icmp": ()}}, 'invalid port specification: "80/icmp"'),
        ({"resources": Resources(device_cgroup_rules=("c 1:2",))}, "invalid device cgroup rule format: 'c 1:2'"),
        ({"command": ("a\0b",)}, "NUL bytes are not permitted"),
        ({"stop_signal": "SIGFOO"}, "Invalid signal: SIGFOO"),
        ({"stop_signal": "99"}, "Invalid signal: 99"),
        ({"stop_signal": "_DFL"}, "Invalid signal: _DFL"),
        ({"healthcheck": HealthCheck(interval=10)}, "Interval in Healthcheck cannot be less than 1ms"),
        ({"healthcheck": HealthCheck(retries=-1)}, "Retries in Healthcheck cannot be negative"),
        ({"restart": RestartPolicy(name="often")}, "invalid restart policy: unknown policy 'often'; use one of 'no', "
                                                   "'always', 'on-failure', or 'unless-stopped'"),
        ({"restart": RestartPolicy(name="always", maximum_retry=1)}, "can only be used with 'on-failure'"),
        ({"restart": RestartPolicy(name="on-failure", maximum_retry=-1)}, "maximum retry count cannot be negative"),
        ({"restart": RestartPolicy(name="always"), "auto_remove": True},
         "can't create 'AutoRemove' container with restart policy"),
        ({"log": LogConfig(driver="syslog")}, "logger: no log driver named 'syslog' is registered"),
        ({"log": LogConfig(options={"foo": "1"})}, "unknown log opt 'foo' for json-file log driver"),
        ({"log": LogConfig(options={"max-file": "0"})}, "max-file cannot be less than 1"),
        ({"log": LogConfig(options={"max-size": "0"})}, "max-size must be a positive number"),
        ({"log": LogConfig(options={"max-size": "ten"})}, "invalid size: 'ten'"),
        ({"namespaces": Namespaces(pid="x")}, "invalid PID mode: x"),
        ({"namespaces": Namespaces(ipc="container:")}, "invalid IPC mode: container:"),
        ({"namespaces": Namespaces(uts="x")}, "invalid UTS mode: x"),
        ({"namespaces": Namespaces(cgroup="x")}, "invalid cgroup namespace mode: x"),
        ({"namespaces": Namespaces(uts="host"), "hostname": "h"}, "conflicting options: hostname and the UTS mode"),
        ({"namespaces": Namespaces(network="container:a"), "hostname": "h"},
         "conflicting options: hostname and the network mode"),
        ({"security": Security(cap_add=("foo",))}, 'invalid CapAdd: unknown capability: "CAP_FOO"'),
        ({"security": Security(cap_drop=("CAP_FOO",))}, 'invalid CapDrop: unknown capability: "CAP_FOO"'),
        ({"security": Security(cap_add=("SYS_RESOURCE",))},
         "invalid CapAdd: capability not supported by your kernel or not available in the current environment: "
         '"CAP_SYS_RESOURCE"'),
        ({"security": Security(options=("foo",))}, 'invalid --security-opt 1: "foo"'),
        ({"security": Security(options=("foo=bar",))}, 'invalid --security-opt 2: "foo=bar"'),
        ({"security": Security(options=("no-new-privileges=maybe",))}, "invalid --security-opt 2"),
        ({"security": Security(options=("apparmor=mine",))}, "AppArmor is not enabled on this host"),
        ({"security": Security(options=("label=type:x",))}, "SELinux is not enabled on this host"),
        ({"security": Security(options=("seccomp={",))}, "Decoding seccomp profile failed"),
        ({"security": Security(oom_score_adj=1001)}, "Invalid value 1001, range for oom score adj is [-1000, 1000]"),
        ({"shm_size": -1}, "SHM size can not be less than 0"),
        ({"sysctls": {"kernel.panic": "1"}}, 'sysctl "kernel.panic" is not in a separate kernel namespace'),
        ({"sysctls": {"kernel/core_pattern": "|/x"}}, 'sysctl "kernel.core_pattern" is not in a separate'),
        ({"sysctls": {"net.ipv4.ip_forward": "1\nx"}}, "are not permitted"),
        ({"sysctls": {"net.ipv4.ip_forward": "1+kernel.core_pattern=x"}}, "are not permitted"),
        ({"sysctls": {"net.ipv4.ip_forward": "1\0"}}, "are not permitted"),
        ({"sysctls": {"net.ipv4+kernel.panic": "1"}}, "is not a valid name"),
        ({"sysctls": {"net/../kernel/panic": "1"}}, "is not a valid name"),
        ({"sysctls": {"net": "1"}}, "is not a valid name"),
        ({"sysctls": {"kernel.hostname": "x"}}, 'as it conflicts with the OCI "hostname" field'),
        ({"sysctls": {"net.ipv4.ip_forward": "1"}, "namespaces": Namespaces(network="host")},
         'sysctl "net.ipv4.ip_forward" not allowed in host network namespace'),
        ({"sysctls": {"fs.mqueue.msg_max": "1"}, "namespaces": Namespaces(ipc="host")},
         'sysctl "fs.mqueue.msg_max" is not allowed in the hosts ipc namespace'),
        (bind(target="x"),
         "invalid mount config for type \"bind\": invalid mount path: 'x' mount path must be absolute"),
        (bind(target="/a/.."), "destination can't be '/'"),
        (bind(source=""), "field Source must not be empty"),
        (bind(source="rel"), "invalid mount path: 'rel' mount path must be absolute"),
        (bind(propagation="odd"), "invalid propagation mode: odd"),
        (bind(target="/proc/self/attr"), '"/proc/self/attr" cannot be mounted because it is inside /proc'),
        (bind(target="/proc"), '"/proc" cannot be mounted because it is inside /proc'),
        (bind(read_only_non_recursive=True, read_only_force_recursive=True), "mount options conflict"),
        ({"mounts": (*bind()["mounts"], *bind(target="/t/")["mounts"])}, "Duplicate mount point: /t"),
        ({"mounts": (MountSpec(type="npipe", target="/x"),)}, "mount type unknown"),
    ],
)  # fmt: skip
def test_settings_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(Invalid, match=re.escape(message)):
        limits.check(spec(**fields), host())


def test_init_needs_a_program() -> None:
    with pytest.raises(Invalid, match="--init needs a static init program"):
        limits.check(spec(init=True), host(init=""))


@pytest.mark.parametrize(
    "fields",
    [
        {"sysctls": {"net.ipv4.ip_forward": "1", "kernel.shmmax": "5", "net/ipv4/conf/eth0.1/rp_filter": "0"}},
        {"stop_signal": "rtmin+3"},
        {"stop_signal": "9"},
        {"stop_signal": "SigTerm"},
        bind(target="/proc/cpuinfo"),
        bind(target="/proc", source="/proc"),
        {"security": Security(options=("seccomp:unconfined", "apparmor=unconfined", "label=disable", "disable"))},
        {"security": Security(cap_add=("ALL", "cap_chown"), cap_drop=("all",))},
        {"log": LogConfig(options={"max-size": "1.5G", "max-file": "2"})},
    ],
)
def test_settings_accepted(fields: dict[str, Any]) -> None:
    assert limits.check(spec(**fields), host())[1] == []


def test_defaults_written_down() -> None:
    found, warnings = limits.check(spec(resources=Resources(memory=8 * MIB)), host())
    assert found.resources.memory_swap == 16 * MIB
    assert (found.shm_size, found.namespaces.ipc, found.namespaces.cgroup) == (64 * MIB, "private", "host")
    assert limits.check(spec(), host(cgroup_version=2))[0].namespaces.cgroup == "private"
    assert warnings == []


@pytest.mark.parametrize(
    ("lacking", "asked", "kept", "words"),
    [
        ("memory", {"memory": 8 * MIB}, {"memory": 0}, "does not support memory limit capabilities"),
        ("memory.swap", {"memory": 8 * MIB}, {"memory_swap": -1}, "Memory limited without swap."),
        ("memory.swappiness", {"memory_swappiness": 5}, {"memory_swappiness": None}, "Memory swappiness discarded."),
        ("memory.reservation", {"memory_reservation": 8 * MIB}, {"memory_reservation": 0}, "memory soft limit"),
        ("memory.oom_control", {"oom_kill_disable": True, "memory": 8 * MIB}, {"oom_kill_disable": False},
         "OomKillDisable discarded."),
        ("cpu.shares", {"cpu_shares": 5}, {"cpu_shares": 0}, "Shares discarded."),
        ("cpu.quota", {"cpu_quota": 5000, "cpu_period": 5000}, {"cpu_quota": 0, "cpu_period": 0},
         "CPU period/quota discarded."),
        ("cpuset", {"cpuset_cpus": "0"}, {"cpuset_cpus": ""}, "Cpuset discarded."),
        ("pids", {"pids_limit": 5}, {"pids_limit": None}, "PIDs limit discarded."),
        ("blkio.weight", {"blkio_weight": 50}, {"blkio_weight": 0}, "Weight discarded."),
        ("blkio.throttle", {"device_write_iops": (DeviceRate(path="/dev/sda", rate=5),)}, {"device_write_iops": ()},
         "Block I/O IOPS write limit discarded."),
    ],
)  # fmt: skip
def test_what_the_host_cannot_do_is_discarded(
    lacking: str, asked: dict[str, Any], kept: dict[str, Any], words: str
) -> None:
    checked, warnings = limits.check_resources(Resources(**asked), host(features=FEATURES - {lacking}))
    assert {name: getattr(checked, name) for name in kept} == kept
    assert len(warnings) == 1 and words in warnings[0]
    unharmed, none = limits.check_resources(Resources(**asked), host())
    assert none == [] and {name: getattr(unharmed, name) for name in kept} != kept


def test_ulimits_are_lowered_to_what_is_permitted() -> None:
    asked = (Ulimit(name="nofile", soft=30000, hard=40000), Ulimit(name="core", soft=-1, hard=-1))
    found, warnings = limits.check_resources(Resources(ulimits=asked), host())
    assert found.ulimits[0] == Ulimit(name="nofile", soft=20000, hard=20000)
    assert found.ulimits[1] == asked[1]
    assert len(warnings) == 1 and "30000:40000 lowered to 20000:20000" in warnings[0]
    mighty = host(cap_sys_resource=True)
    assert limits.check_resources(Resources(ulimits=asked), mighty) == (Resources(ulimits=asked), [])
    endless = Resources(ulimits=(Ulimit(name="nofile", soft=-1, hard=-1),))
    assert limits.check_resources(endless, mighty)[0].ulimits[0].hard == 1 << 20
    twice = Resources(ulimits=(Ulimit(name="core", soft=1, hard=1), Ulimit(name="core", soft=2, hard=2)))
    assert limits.check_resources(twice, host())[0].ulimits == (Ulimit(name="core", soft=2, hard=2),)


def test_oom_score_is_raised_to_what_is_permitted() -> None:
    found, warnings = limits.check(spec(security=Security(oom_score_adj=-500)), host())
    assert found.security.oom_score_adj == 0 and len(warnings) == 1
    found, warnings = limits.check(spec(security=Security(oom_score_adj=-500)), host(oom_score_adj_min=-1000))
    assert found.security.oom_score_adj == -500 and warnings == []


def test_warnings_of_docker() -> None:
    asked = spec(namespaces=Namespaces(network="host"), port_bindings={"80/tcp": (("", "80"),)})
    assert limits.check(asked, host())[1] == ["Published ports are discarded when using host network mode"]
    alone = Resources(oom_kill_disable=True)
    assert "no memory limit is set" in limits.check_resources(alone, host())[1][0]


def test_update_may_set_swap_alone() -> None:
    assert limits.check_resources(Resources(memory_swap=-1), host(), update=True)[1] == []
    assert limits.check_resources(Resources(memory_swap=9 * MIB), host(), update=True)[0].memory_swap == 9 * MIB


@pytest.mark.parametrize(
    ("text", "numbers"), [("", set()), ("7", {7}), ("0,3-4,4,03", {0, 3, 4}), ("0-0", {0}), ("8192", {8192})]
)
def test_lists(text: str, numbers: set[int]) -> None:
    assert limits.parse_list(text, 8192) == numbers


def elf(kinds: list[int]) -> bytes:
    head = b"\x7fELF\x02\x01" + bytes(26) + (64).to_bytes(8, "little") + bytes(14)
    head += (56).to_bytes(2, "little") + len(kinds).to_bytes(2, "little") + bytes(6)
    return head + b"".join(kind.to_bytes(4, "little") + bytes(52) for kind in kinds)


def test_find_init_takes_only_static_programs(tmp_path: Path) -> None:
    files = {"missing": None, "script": b"#!/bin/sh\n" + bytes(100), "dynamic": elf([6, 3, 1]), "static": elf([1, 1])}
    for name, content in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
            (tmp_path / name).chmod(0o755)
    candidates = [str(tmp_path / name) for name in files]
    assert limits.find_init(candidates) == str(tmp_path / "static")
    assert limits.find_init(candidates[:3]) == ""
    (tmp_path / "static").chmod(0o644)
    assert limits.find_init(candidates) == ""


def test_facts_of_this_host() -> None:
    class Nothing:
        version = 2
        controllers: frozenset[str] = frozenset()

        def cgroup(self, path: str) -> Any:
            raise AssertionError(path)

        def supports(self, feature: str) -> bool:
            return feature == "pids"

    found = limits.facts(Nothing())
    assert found.cgroup_version == 2 and found.features == {"pids"}
    assert found.ncpu >= 1 and found.kernel >= (4, 0) and found.memory_total > 1 << 20
    assert limits.parse_list(found.cpus, 8192) and limits.parse_list(found.mems, 8192)
    assert found.rlimit_hard["nofile"] == -1 or found.rlimit_hard["nofile"] >= found.rlimit_soft["nofile"]
