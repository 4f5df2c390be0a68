"""merge, environment, bundle, exec_process: pure plans against golden JSON and single facts.

TARE_WRITE_GOLDEN=1 writes the golden files anew; read the difference before keeping it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from plan_host import FILES, ID, ROOTFS, FakeDevices, container, host

from tare.engine import capabilities, plan, plan_devices
from tare.engine.model import (
    Bundle,
    Container,
    ContainerSpec,
    Device,
    DeviceRate,
    ExecSpec,
    HealthCheck,
    LogConfig,
    MountSpec,
    Namespaces,
    Resources,
    Security,
    Ulimit,
)
from tare.errors import Invalid, Unsupported
from tare.oci.image import ContainerConfig, Healthcheck, ImageConfig, RootFs

GOLDEN = Path(__file__).parent / "plan_golden"


def image(os: str = "linux", **config: Any) -> ImageConfig:
    return ImageConfig(architecture="amd64", os=os, config=ContainerConfig(**config), rootfs=RootFs(type="layers"))


def spec(**fields: Any) -> ContainerSpec:
    return ContainerSpec(**{"image": "busybox", "command": ("sh",), **fields})


def bundle(asked: ContainerSpec, *, facts: Any = None, joins: dict[str, str] | None = None, **more: Any) -> Bundle:
    made: Container = container(asked, args=asked.command)
    return plan.bundle(
        made, image(), ROOTFS, facts or host(), FILES, "/run/c", "/c/log.json", joins or {}, "/cache/x.bpf",
        resolver=FakeDevices(), **more,
    )  # fmt: skip


def mounted(found: Bundle) -> dict[str, dict[str, Any]]:
    return {mount["destination"]: mount for mount in found.oci["mounts"]}


CASES: dict[str, Any] = {
    "default": lambda: bundle(spec()),
    "privileged": lambda: bundle(
        spec(security=Security(privileged=True), tty=True, open_stdin=True, console_size=(24, 80))
    ),
    "everything": lambda: bundle(
        spec(
            env=("A=1", "PATH=/bin", "TERM"),
            working_dir="/w",
            user="nobody:daemon",
            group_add=("audio", "7"),
            hostname="h",
            domainname="d",
            annotations={"a": "b"},
            read_only=True,
            init=True,
            shm_size=1 << 20,
            sysctls={
                "net/ipv4/ip_forward": "1",
                "net.ipv4.ip_unprivileged_port_start": "1024",
                "kernel.msgmax": "9000",
            },
            resources=Resources(
                memory=64 << 20,
                memory_swap=128 << 20,
                nano_cpus=1_500_000_000,
                cpu_shares=512,
                cpuset_cpus="0",
                pids_limit=0,
                blkio_weight=300,
                blkio_weight_device=(DeviceRate(path="/dev/sda1", rate=200),),
                device_read_bps=(DeviceRate(path="/dev/sda", rate=1 << 20),),
                devices=(
                    Device(host="/dev/fuse", container="/dev/fuse"),
                    Device(host="/dev/snd", container="/dev/sound", permissions="rw"),
                ),
                device_cgroup_rules=("c 10:* rw", "b *:1 m"),
                ulimits=(Ulimit(name="nofile", soft=100, hard=200), Ulimit(name="core", soft=-1, hard=-1)),
                cgroup_parent="/mine",
            ),
            security=Security(
                cap_add=("net_admin",),
                cap_drop=("CAP_MKNOD",),
                options=("no-new-privileges", "seccomp=unconfined"),
                oom_score_adj=5,
            ),
            mounts=(
                MountSpec(type="bind", source="/srv/x", target="/a/b/c", read_only=True, propagation="rshared"),
                MountSpec(type="bind", source="/h", target="/a/", non_recursive=True),
                MountSpec(type="tmpfs", target="/t", tmpfs_size=4096, tmpfs_mode=0o700, options=("exec", "uid=1000")),
                MountSpec(type="volume", source="data", target="/v"),
            ),
            log=LogConfig(options={"max-size": "10m", "max-file": "3"}),
            namespaces=Namespaces(cgroup="private"),
        ),
        volumes={"/v": "/volumes/data/_data"},
    ),
    "host": lambda: bundle(
        spec(namespaces=Namespaces(network="host", pid="host", ipc="host", uts="host", cgroup="host"))
    ),
    "joined": lambda: bundle(
        spec(namespaces=Namespaces(network="container:x", pid="container:x", ipc="container:x")),
        joins={"network": "/proc/9/ns/net", "pid": "/proc/9/ns/pid", "ipc": "/proc/9/ns/ipc"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bundle_is_golden(name: str) -> None:
    made = CASES[name]()
    found = {**json.loads(msgspec.json.encode(made)), "dockerenv": made.dockerenv}
    path = GOLDEN / f"{name}.json"
    if os.environ.get("TARE_WRITE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(path.read_text())


def test_default_capabilities_are_dockers_mask() -> None:
    found = bundle(spec()).oci["process"]["capabilities"]
    mask = sum(1 << capabilities.NAMES.index(name) for name in found["bounding"])
    assert mask == 0xA80425FB
    assert found["effective"] == found["permitted"] == found["bounding"]
    assert found["inheritable"] == found["ambient"] == []


def test_tun_is_not_open_to_everybody() -> None:
    rules = bundle(spec()).oci["linux"]["resources"]["devices"]
    opened = {(r.get("major"), r.get("minor")) for r in rules if r["allow"] and r["access"] != "m"}
    assert opened == {(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, None)}


# merge


@pytest.mark.parametrize(
    ("entrypoint", "command", "image_entrypoint", "image_command", "args"),
    [
        (None, (), None, ("c",), ("c",)),
        (None, (), ("e",), ("c",), ("e", "c")),
        (None, ("u",), ("e",), ("c",), ("e", "u")),
        (("x",), (), ("e",), ("c",), ("x",)),
        (("x",), ("u",), ("e",), ("c",), ("x", "u")),
        ((), (), ("e",), ("c",), ("c",)),
        (("",), ("u",), ("e",), ("c",), ("u",)),
    ],
)
def test_entrypoint_and_command(
    entrypoint: Any, command: Any, image_entrypoint: Any, image_command: Any, args: tuple[str, ...]
) -> None:
    asked = ContainerSpec(image="i", entrypoint=entrypoint, command=command)
    merged, found = plan.merge(asked, image(entrypoint=image_entrypoint, cmd=image_command))
    assert found == args
    assert (*(merged.entrypoint or ()), *merged.command) == args


@pytest.mark.parametrize(("entrypoint", "config"), [(None, {}), (("",), {"cmd": ("c",)})])
def test_no_command(entrypoint: Any, config: dict[str, Any]) -> None:
    with pytest.raises(Invalid, match=r"^no command specified$"):
        plan.merge(ContainerSpec(image="i", entrypoint=entrypoint), image(**config))


def test_merge_unites() -> None:
    asked = spec(
        env=("B=user", "C"), labels={"l": "user"}, exposed_ports=("80/tcp",), volumes=("/v",),
        healthcheck=HealthCheck(interval=5),
    )  # fmt: skip
    merged, _ = plan.merge(
        asked,
        image(
            env=("A=image", "B=image", "C=image", "novalue", "=x", "N=\0"), labels={"l": "image", "m": "image"},
            exposed_ports={"80/tcp": {}, "81/udp": {}}, volumes={"/v": {}, "/w": {}}, working_dir="/a/../b//c",
            user="u", stop_signal="SIGINT", healthcheck=Healthcheck(test=("CMD", "true"), interval=9, retries=2),
        ),
    )  # fmt: skip
    assert merged.env == ("B=user", "C", "A=image")
    assert merged.labels == {"l": "user", "m": "image"}
    assert merged.exposed_ports == ("80/tcp", "81/udp")
    assert merged.volumes == ("/v", "/w")
    assert (merged.working_dir, merged.user, merged.stop_signal) == ("/b/c", "u", "SIGINT")
    assert merged.healthcheck == HealthCheck(test=("CMD", "true"), interval=5, retries=2)


def test_foreign_operating_system() -> None:
    with pytest.raises(Invalid, match='image operating system "windows" cannot be used on this platform'):
        plan.merge(spec(), image(os="windows"))


def test_environment() -> None:
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert plan.environment((), "h", tty=False) == [path, "HOSTNAME=h"]
    assert plan.environment(("X=1", "X=2"), "h", tty=True) == [path, "HOSTNAME=h", "TERM=xterm", "X=2"]
    assert plan.environment(("PATH=/b", "TERM", "Y="), "h", tty=True) == ["PATH=/b", "HOSTNAME=h", "Y="]


def test_hostname() -> None:
    assert plan.hostname(container(), host()) == ID[:12]
    assert plan.hostname(container(spec(hostname="x")), host()) == "x"
    for modes in (Namespaces(network="host"), Namespaces(uts="host")):
        assert plan.hostname(container(spec(namespaces=modes)), host()) == "box"


# bundle


def test_shared_memory() -> None:
    for mode in ("", "private", "shareable"):
        found = mounted(bundle(spec(namespaces=Namespaces(ipc=mode))))["/dev/shm"]
        assert (found["type"], found["options"][-1]) == ("tmpfs", "size=67108864")
    assert "/dev/shm" not in mounted(bundle(spec(namespaces=Namespaces(ipc="none"))))
    shared = bundle(spec(namespaces=Namespaces(ipc="shareable")), shm="/run/c/shm")
    assert mounted(shared)["/dev/shm"]["source"] == "/run/c/shm"


def test_users_mounts_replace_the_fixed_ones() -> None:
    found = bundle(spec(mounts=(MountSpec(type="bind", source="/dev", target="/dev"),)))
    assert [d for d in mounted(found) if d.startswith("/dev")] == ["/dev"]
    assert mounted(found)["/dev"]["type"] == "bind"
    hosts = mounted(bundle(spec(mounts=(MountSpec(type="bind", source="/h", target="/etc//hosts"),))))
    assert hosts["/etc/hosts"]["source"] == "/h"


def test_a_parent_is_mounted_before_its_child() -> None:
    asked = tuple(MountSpec(type="tmpfs", target=target) for target in ("/a/b/c", "/a", "/a/b", "/etc"))
    order = [mount["destination"] for mount in bundle(spec(mounts=asked)).oci["mounts"]]
    assert order.index("/a") < order.index("/a/b") < order.index("/a/b/c")
    assert order.index("/etc") < order.index("/etc/hosts")


def test_read_only_binds_by_kernel() -> None:
    asked = spec(mounts=(MountSpec(type="bind", source="/h", target="/x", read_only=True),))
    assert mounted(bundle(asked))["/x"]["options"] == ["rbind", "rro", "rprivate"]
    assert mounted(bundle(asked, facts=host(kernel=(5, 11))))["/x"]["options"] == ["rbind", "ro", "rprivate"]
    flat = MountSpec(type="bind", source="/h", target="/x", read_only=True, read_only_non_recursive=True)
    assert mounted(bundle(spec(mounts=(flat,))))["/x"]["options"] == ["rbind", "ro", "rprivate"]
    forced = MountSpec(type="bind", source="/h", target="/x", read_only=True, read_only_force_recursive=True)
    with pytest.raises(Invalid, match=r"older than 5\.12"):
        bundle(spec(mounts=(forced,)), facts=host(kernel=(5, 11)))


def test_propagation_needs_a_source_that_spreads() -> None:
    asked = MountSpec(type="bind", source="/home", target="/x", propagation="rshared")
    with pytest.raises(Invalid, match="path /home is mounted on / but it is not a shared mount"):
        bundle(spec(mounts=(asked,)))
    slave = MountSpec(type="bind", source="/srv", target="/x", propagation="rslave")
    assert bundle(spec(mounts=(slave,))).oci["linux"]["rootfsPropagation"] == "rslave"
    assert "rootfsPropagation" not in bundle(spec()).oci["linux"]


def test_volume_without_a_directory() -> None:
    with pytest.raises(Unsupported, match="volume .data. at /v"):
        bundle(spec(mounts=(MountSpec(type="volume", source="data", target="/v"),)))


@pytest.mark.parametrize("word", ["foo", "size=", "size=1,exec", "uid", "mode=1\n", "mpol=a\0"])
def test_bad_tmpfs_option(word: str) -> None:
    with pytest.raises(Invalid, match="invalid tmpfs option"):
        bundle(spec(mounts=(MountSpec(type="tmpfs", target="/t", options=(word,)),)))


def test_init_only_in_a_process_namespace_of_its_own() -> None:
    assert bundle(spec(init=True)).init == "/usr/bin/tini-static"
    assert bundle(spec(init=True, namespaces=Namespaces(pid="host"))).init == ""
    with pytest.raises(Invalid, match="static init program"):
        bundle(spec(init=True), facts=host(init=""))


def test_paths_masked() -> None:
    linux = bundle(spec()).oci["linux"]
    assert "/proc/interrupts" in linux["maskedPaths"]
    assert "/sys/devices/system/cpu/cpu0/thermal_throttle" in linux["maskedPaths"]
    for security in (Security(privileged=True), Security(options=("systempaths=unconfined",)),
                     Security(masked_paths=(), readonly_paths=())):  # fmt: skip
        linux = bundle(spec(security=security)).oci["linux"]
        assert linux["maskedPaths"] == linux["readonlyPaths"] == []
    own = bundle(spec(security=Security(masked_paths=("/x",)))).oci["linux"]
    assert own["maskedPaths"] == ["/x"] and "/proc/sys" in own["readonlyPaths"]


def test_writable_cgroups() -> None:
    def options(security: Security) -> list[str]:
        found: list[str] = mounted(bundle(spec(security=security)))["/sys/fs/cgroup"]["options"]
        return found

    assert "ro" in options(Security())
    assert "ro" not in options(Security(privileged=True))
    assert "ro" not in options(Security(options=("writable-cgroups=true",)))
    assert "ro" in options(Security(privileged=True, options=("writable-cgroups=false",)))


def test_default_sysctls_that_this_kernel_lacks() -> None:
    linux = bundle(spec(), facts=host(sysctls=frozenset(["net.ipv4.ping_group_range"]))).oci["linux"]
    assert linux["sysctl"] == {"net.ipv4.ping_group_range": "0 2147483647"}


def test_small_cpu_shares_get_a_longer_period() -> None:
    cpu = bundle(spec(resources=Resources(nano_cpus=5_000_000))).oci["linux"]["resources"]["cpu"]
    assert cpu == {"quota": 5000, "period": 1_000_000}


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        (
            Resources(devices=(Device(host="/dev/nope", container="/dev/x"),)),
            'error gathering device information while adding custom device "/dev/nope": no such file or directory',
        ),
        (Resources(device_read_iops=(DeviceRate(path="/dev/no", rate=1),)), "stat /dev/no: no such file or directory"),
        (Resources(device_cgroup_rules=("c 1:2",)), "invalid device cgroup rule format: 'c 1:2'"),
    ],
)
def test_devices_that_are_none(resources: Resources, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        bundle(spec(resources=resources))


def test_update_lifts_the_swap_limit() -> None:
    asked = Resources(memory=1 << 30, memory_swap=-1)
    update = plan_devices.resources(asked, FakeDevices(), update=True)
    assert update == {"memory": {"limit": 1 << 30, "swap": -1}}
    assert plan_devices.resources(asked, FakeDevices())["memory"] == {"limit": 1 << 30}


# exec


def test_exec_process() -> None:
    inside = container(
        spec(env=("A=1",), user="u", group_add=("g",), working_dir="/w", security=Security(oom_score_adj=3))
    )
    found = plan.exec_process(inside, ExecSpec(args=("ls",), env=("A=2", "B=3"), tty=True), host(), "/x.bpf")
    assert found["env"][1:] == [f"HOSTNAME={ID[:12]}", "TERM=xterm", "A=2", "B=3"]
    assert found["user"] == "u" and found["cwd"] == "/w" and found["groups"] == ["g"]
    assert found["bpf"] == "/x.bpf" and found["oom_score_adj"] == 3 and found["cgroup"] == f"/tare/{ID}"
    assert len(found["capabilities"]["bounding"]) == 14
    assert found["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 20000}]


def test_privileged_exec() -> None:
    found = plan.exec_process(container(), ExecSpec(args=("ls",), privileged=True), host(), "/x.bpf")
    assert found["bpf"] == ""
    assert set(found["capabilities"]["bounding"]) == host().capabilities


def test_exec_refusals() -> None:
    with pytest.raises(Invalid, match="No exec command specified"):
        plan.exec_process(container(), ExecSpec(args=()), host())
    with pytest.raises(Invalid, match="needs to be an absolute path"):
        plan.exec_process(container(), ExecSpec(args=("a",), working_dir="x"), host())
    with pytest.raises(Invalid, match="invalid environment variable: =x"):
        plan.exec_process(container(), ExecSpec(args=("a",), env=("=x",)), host())
    with pytest.raises(Invalid, match="NUL bytes are not permitted"):
        plan.exec_process(container(), ExecSpec(args=("a\0",)), host())
