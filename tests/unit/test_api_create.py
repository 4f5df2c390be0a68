"""POST /containers/create: bodies of the real docker CLI -> ContainerSpec -> inspect gives back what was asked."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from api_house import BODIES, call, house, value

from tare.api.mounts import bind, from_mount, tmpfs
from tare.engine.model import ContainerSpec, Device, DeviceRate, HealthCheck, LogConfig, MountSpec, Namespaces, Ulimit
from tare.errors import Invalid


def create(changes: dict[str, Any] | None = None, host: dict[str, Any] | None = None, version: str = "") -> Any:
    body = copy.deepcopy(BODIES["plain"])
    body.update(changes or {})
    body["HostConfig"].update(host or {})
    engine = house()
    answer = call(engine, "POST", f"{version}/containers/create", body)
    return engine, answer


def spec(changes: dict[str, Any] | None = None, host: dict[str, Any] | None = None, version: str = "") -> ContainerSpec:
    engine, answer = create(changes, host, version)
    assert answer.status == 201, answer.body
    return engine.containers.specs[0]  # type: ignore[no-any-return]


def refusal(changes: dict[str, Any] | None = None, host: dict[str, Any] | None = None, version: str = "") -> str:
    engine, answer = create(changes, host, version)
    assert answer.status == 400, (answer.status, answer.body)
    assert not engine.containers.specs
    return str(value(answer)["message"])


def full() -> dict[str, Any]:
    body = copy.deepcopy(BODIES["full"])
    del body["HostConfig"]["StorageOpt"]
    return body


def test_every_flag_reaches_the_engine() -> None:
    engine = house()
    answer = call(engine, "POST", "/v1.47/containers/create?name=full&platform=linux%2Famd64", full())
    assert answer.status == 201
    found = value(answer)
    assert found["Id"] == f"{99:064x}"
    assert "slow" in found["Warnings"]
    assert [w.split(" is ")[0] for w in found["Warnings"] if " is kept " in w] == ["The health check"]
    assert engine.containers.calls == [("create", "full")]
    given = engine.containers.specs[0]
    assert given.image == "alpine"
    assert (given.entrypoint, given.command) == (("/bin/sh",), ("-c", "echo hi"))
    assert (given.env, given.working_dir, given.user) == (("A=1", "B=2"), "/w", "1:2")
    assert (given.hostname, given.domainname, given.labels) == ("hh", "dd", {"a": "b"})
    assert given.tty and given.open_stdin and given.stdin_once and given.attach_stdin
    assert (given.stop_signal, given.stop_timeout, given.platform) == ("SIGINT", 3, "linux/amd64")
    assert given.exposed_ports == ("80/tcp",)
    assert given.healthcheck == HealthCheck(
        test=("CMD-SHELL", "echo ok"),
        interval=5 * 10**9,
        timeout=2 * 10**9,
        start_period=10**9,
        start_interval=5 * 10**8,
        retries=3,
    )
    r = given.resources
    assert (r.memory, r.memory_swap, r.memory_reservation, r.memory_swappiness) == (64 << 20, 128 << 20, 32 << 20, 10)
    assert (r.nano_cpus, r.cpu_shares, r.cpuset_cpus, r.cpuset_mems) == (1_500_000_000, 512, "0-1", "0")
    assert (r.pids_limit, r.blkio_weight, r.cgroup_parent, r.oom_kill_disable) == (100, 300, "/x", True)
    assert r.blkio_weight_device == (DeviceRate(path="/dev/sda", rate=200),)
    assert r.device_read_bps == (DeviceRate(path="/dev/sda", rate=1 << 20),)
    assert r.device_write_iops == (DeviceRate(path="/dev/sda", rate=100),)
    assert r.devices == (Device(host="/dev/fuse", container="/dev/fuse", permissions="rw"),)
    assert r.device_cgroup_rules == ("c 1:3 rwm",)
    assert r.ulimits == (Ulimit(name="nofile", soft=1024, hard=2048),)
    s = given.security
    assert (s.privileged, s.cap_add, s.cap_drop) == (True, ("CAP_NET_ADMIN",), ("ALL",))
    assert (s.options, s.masked_paths, s.readonly_paths, s.oom_score_adj) == (("no-new-privileges",), (), (), 100)
    assert given.namespaces == Namespaces(network="none", pid="host", ipc="host", user="host", cgroup="host")
    assert [(m.type, m.source, m.target, m.read_only, m.propagation, m.origin) for m in given.mounts] == [
        ("bind", "/tmp", "/t", True, "rprivate", "binds"),
        ("bind", "/a", "/b", False, "", "binds"),
        ("bind", "/tmp", "/m", True, "rslave", "mounts"),
        ("tmpfs", "", "/tm", False, "", "mounts"),
        ("tmpfs", "", "/run", False, "", "tmpfs"),
    ]
    assert [m.create_source for m in given.mounts[:3]] == [True, True, False]
    assert (given.mounts[3].tmpfs_size, given.mounts[3].tmpfs_mode) == (64 << 20, 0o1770)
    assert (given.mounts[4].tmpfs_size, given.mounts[4].options) == (64 << 20, ("rw", "noexec"))
    assert (given.shm_size, given.sysctls) == (128 << 20, {"net.ipv4.ip_forward": "1"})
    assert (given.read_only, given.init, given.auto_remove) == (True, True, True)
    assert (given.log.driver, given.log.options) == ("json-file", {"max-size": "10m"})
    assert (given.dns, given.dns_search, given.dns_options) == (("1.1.1.1",), ("x.y",), ("ndots:2",))
    assert (given.extra_hosts, given.group_add) == (("a:1.2.3.4",), ("7",))
    assert (given.annotations, given.runtime) == ({"k": "v"}, "runc")


def test_inspect_gives_back_what_was_asked() -> None:
    engine, body = house(), full()
    call(engine, "POST", "/containers/create?name=full", body)
    shown = value(call(engine, "GET", "/containers/full/json"))
    for name, given in body["HostConfig"].items():
        # What Docker itself shows otherwise: null for no list, and the driver's own defaults.
        assert shown["HostConfig"].get(name) == given or not given, name
    for name, given in body.items():
        if name not in ("HostConfig", "NetworkingConfig", "Cmd", "Entrypoint", "Volumes", "OnBuild"):
            assert shown["Config"][name] == given, name
    assert shown["Mounts"][0] == {
        "Type": "bind",
        "Source": "/tmp",
        "Destination": "/t",
        "Mode": "ro,rprivate",
        "RW": False,
        "Propagation": "rprivate",
    }
    assert [point["Destination"] for point in shown["Mounts"]] == ["/t", "/b", "/m", "/tm"]
    assert shown["NetworkSettings"]["Networks"]["none"]["NetworkID"]


def test_what_the_cli_sends_unasked_means_nothing() -> None:
    given = spec()
    assert given == ContainerSpec(
        image="alpine", command=("x",), namespaces=Namespaces(network="bridge"), log=LogConfig(driver="")
    )


def test_anonymous_volume_stays_and_named_is_refused() -> None:
    body = copy.deepcopy(BODIES["volumes"])
    body["HostConfig"].update(DeviceRequests=None, VolumesFrom=None)
    assert 'volume "named" cannot be mounted' in value(call(house(), "POST", "/containers/create", body))["message"]
    body["HostConfig"]["Binds"] = ["/bare"]
    engine = house()
    assert call(engine, "POST", "/containers/create", body).status == 201
    assert engine.containers.specs[0].volumes == ("/anon", "/bare")


def test_gpus_are_refused_with_dockers_text() -> None:
    assert refusal(host={"DeviceRequests": BODIES["volumes"]["HostConfig"]["DeviceRequests"]}) == (
        'could not select device driver "" with capabilities: [[gpu]]'
    )


def test_volumes_from_takes_the_binds() -> None:
    engine = house()
    call(engine, "POST", "/containers/create?name=one", full())
    body = copy.deepcopy(BODIES["plain"])
    body["HostConfig"]["VolumesFrom"] = ["one:ro"]
    assert call(engine, "POST", "/containers/create", body).status == 201
    assert [(m.target, m.read_only, m.origin) for m in engine.containers.specs[1].mounts] == [
        ("/t", True, ""),
        ("/b", True, ""),
        ("/m", True, ""),
    ]
    body["HostConfig"]["VolumesFrom"] = ["nobody"]
    answer = call(engine, "POST", "/containers/create", body)
    assert (answer.status, value(answer)["message"]) == (400, "No such container: nobody")


@pytest.mark.parametrize(
    ("changes", "host", "text"),
    [
        ({"WorkingDir": "x"}, {}, "the working directory 'x' is invalid, it needs to be an absolute path"),
        ({"Env": ["=x"]}, {}, "invalid environment variable: =x"),
        ({"Image": ""}, {}, "config cannot be empty in order to create a container"),
        ({"Healthcheck": {"Interval": 5}}, {}, "Interval in Healthcheck cannot be less than 1ms"),
        ({"Healthcheck": {"StartPeriod": 5}}, {}, "StartPeriod in Healthcheck cannot be less than 1ms"),
        ({"Hostname": "h"}, {"UTSMode": "host"}, "conflicting options: hostname and the UTS mode"),
        ({"Hostname": "h"}, {"NetworkMode": "container:x"}, "conflicting options: hostname and the network mode"),
        ({}, {"NetworkMode": "container:"}, "Invalid network mode: invalid container format container:<name|id>"),
        ({}, {"IpcMode": "odd"}, "invalid IPC mode: odd"),
        ({}, {"PidMode": "container:"}, "invalid PID mode: container:"),
        ({}, {"CgroupnsMode": "odd"}, "invalid cgroup namespace mode: odd"),
        ({}, {"Runtime": "kata"}, "unknown or invalid runtime name: kata"),
        ({}, {"LogConfig": {"Type": "syslog"}}, "logger: no log driver named 'syslog' is registered"),
        ({}, {"LogConfig": {"Type": "json-file", "Config": {"x": "1"}}}, "unknown log opt 'x' for json-file log driver"),
        (
            {},
            {"RestartPolicy": {"Name": "odd"}},
            "invalid restart policy: unknown policy 'odd'; "
            "use one of 'no', 'always', 'on-failure', or 'unless-stopped'",
        ),
        (
            {},
            {"RestartPolicy": {"Name": "always"}, "AutoRemove": True},
            "can't create 'AutoRemove' container with restart policy",
        ),
        (
            {},
            {"StorageOpt": {"size": "1G"}},
            "--storage-opt is supported only for overlay over xfs with 'pquota' mount option",
        ),
        (
            {},
            {"PortBindings": {"80/tcp": [{"HostPort": "8080"}]}},
            "publishing ports needs a bridge network, which this version does not offer yet; use --network host",
        ),
        ({}, {"Binds": ["/nowhere:/t", "/x:/t"]}, "Duplicate mount point: /t"),
        (
            {},
            {"Mounts": [{"Type": "bind", "Source": "/no/such/place", "Target": "/t"}]},
            'invalid mount config for type "bind": bind source path does not exist: /no/such/place',
        ),
        ({"Volumes": {"data": {}}}, {}, "invalid mount config for type \"volume\": invalid mount path: 'data' mount path must be absolute"),
        ({"Volumes": {"": {}}}, {}, 'invalid mount config for type "volume": field Target must not be empty'),
        ({"Cmd": 5}, {}, "Expected `str | array | null`, got `int` - at `$.Cmd`"),
        ({}, {"Memory": "1g"}, "Expected `int`, got `str` - at `$.HostConfig.Memory`"),
    ],
)
def test_refusals(changes: dict[str, Any], host: dict[str, Any], text: str) -> None:
    assert refusal(changes, host) == text


def test_published_ports_on_the_host_network_warn() -> None:
    _, answer = create(host={"NetworkMode": "host", "PortBindings": {"80/tcp": [{"HostPort": "80"}]}})
    assert value(answer)["Warnings"] == ["slow", "Published ports are discarded when using host network mode"]


def test_versions_differ() -> None:
    assert spec(host={"IpcMode": ""}, version="/v1.39").namespaces.ipc == "shareable"
    assert spec(host={"Annotations": {"a": "b"}}, version="/v1.42").annotations == {}
    assert spec(host={"ConsoleSize": [3, 4]}, version="/v1.41").console_size == (0, 0)
    assert spec(host={"ConsoleSize": [3, 4]}, version="/v1.42").console_size == (3, 4)
    old = {"Mounts": [{"Type": "bind", "Source": "/", "Target": "/t", "ReadOnly": True}]}
    assert spec(host=old, version="/v1.43").mounts[0].read_only_non_recursive
    assert not spec(host=old, version="/v1.44").mounts[0].read_only_non_recursive
    mixed = {"Mounts": [{"Type": "tmpfs", "Target": "/t", "BindOptions": {"Propagation": "shared"}}]}
    assert refusal(host=mixed) == 'BindOptions must not be specified on mount type "tmpfs"'
    assert spec(host=mixed, version="/v1.41").mounts[0].type == "tmpfs"


def test_unknown_fields_nulls_and_strings_are_accepted() -> None:
    given = spec(
        {"Cmd": "ls", "Entrypoint": "", "Tty": None, "NoSuchField": {"x": 1}}, {"Memory": None, "CapAdd": "ALL"}
    )
    assert (given.command, given.entrypoint, given.security.cap_add) == (("ls",), ("",), ("ALL",))


def test_content_types() -> None:
    for content_type, status in (("application/json; charset=utf-8", 201), ("text/plain", 400), ("", 400)):
        answer = call(house(), "POST", "/containers/create", BODIES["plain"], {"content-type": content_type})
        assert answer.status == status, content_type
    answer = call(house(), "POST", "/containers/create", BODIES["plain"], {"content-type": "text/plain"})
    assert value(answer)["message"] == "unsupported Content-Type header (text/plain): must be 'application/json'"
    assert "got EOF while reading request body" in value(call(house(), "POST", "/containers/create"))["message"]


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("", "invalid volume specification: ''"),
        ("/a:/b:/c:/d", "invalid volume specification: '/a:/b:/c:/d'"),
        ("/a:ro", "invalid volume specification: '/a:ro'"),
        ("/a:/b:odd", "invalid mode: odd"),
        ("/a:/b:ro,rw", "invalid mode: ro,rw"),
        (
            "/a:/",
            "invalid volume specification: '/a:/': invalid mount config for type \"bind\": "
            "invalid specification: destination can't be '/'",
        ),
        (
            "/a:b",
            "invalid volume specification: '/a:b': invalid mount config for type \"bind\": "
            "invalid mount path: 'b' mount path must be absolute",
        ),
        ("name:/b", 'volume "name" cannot be mounted: this version offers bind and tmpfs mounts only'),
    ],
)
def test_bad_binds(raw: str, text: str) -> None:
    with pytest.raises(Invalid) as caught:
        bind(raw)
    assert str(caught.value) == text


def test_binds_are_cleaned() -> None:
    assert bind("/a/../b/:/c//d/:ro,z") == MountSpec(
        type="bind", source="/b", target="/c/d", read_only=True, create_source=True, origin="binds"
    )


def test_tmpfs_options() -> None:
    mount = tmpfs("/t", "size=10k,mode=700,uid=5,exec,ro")
    assert (mount.tmpfs_size, mount.tmpfs_mode, mount.options, mount.read_only) == (
        10240,
        0o700,
        ("uid=5", "exec", "ro"),
        True,
    )
    for text in ("odd", "size=", "size=x", "mode=9", "lowerdir=/etc"):
        with pytest.raises(Invalid, match="Invalid tmpfs option"):
            tmpfs("/t", text)


def test_unknown_mount_type() -> None:
    from tare.api.mounts import Mount

    with pytest.raises(Invalid, match='invalid mount config for type "image": mount type unknown'):
        from_mount(Mount(type="image", target="/x"), (1, 47))
