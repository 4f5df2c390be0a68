"""Values of the flags of run and create, and the body they become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.cli import values
from tare.cli.createbody import ENDPOINT, HOST_CONFIG, body
from tare.cli.createflags import CREATE
from tare.cli.failure import Failure
from tare.cli.mounts import mount, volumes
from tare.cli.options import parse
from tare.cli.ports import exposed, published


def request(*argv: str) -> dict[str, Any]:
    return body(parse(CREATE, "tare create", [*argv, "hello"])[0])


def host(*argv: str) -> dict[str, Any]:
    got: dict[str, Any] = request(*argv)["HostConfig"]
    return got


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1024", 1024), ("1k", 1024), ("1KB", 1024), ("64KiB", 65536), ("1.5g", 3 << 29), ("5 m", 5 << 20),
     ("7b", 7), ("1P", 1 << 50), ("1e3", 1000), (".5k", 512)],
)  # fmt: skip
def test_size(text: str, size: int) -> None:
    assert values.size(text) == size


@pytest.mark.parametrize("text", ["", "abc", "1x", "1kbb", "-1", "1.2.3", "nan", "inf", " ", "1_0", "9" * 30])
def test_wrong_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"invalid|strconv"):
        values.size(text)


@pytest.mark.parametrize(
    ("text", "nanos"),
    [("1.5", 1500000000), ("3/2", 1500000000), (".5", 500000000), ("15e-1", 1500000000), ("-1", -(10**9))],
)
def test_cpus(text: str, nanos: int) -> None:
    assert values.cpus(text) == nanos


@pytest.mark.parametrize("text", ["", "x", "1.5.5", "1/0", "1e99999", "1.55555555555", "1/3"])
def test_wrong_cpus(text: str) -> None:
    with pytest.raises(ValueError, match=r"rational number|too precise"):
        values.cpus(text)


@pytest.mark.parametrize(
    ("text", "ns"),
    [("0", 0), ("5s", 5 * 10**9), ("1m30s", 90 * 10**9), ("1.5h", 5400 * 10**9), ("-2ms", -2 * 10**6), ("1us", 1000)],
)
def test_duration(text: str, ns: int) -> None:
    assert values.duration(text) == ns


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("5", "missing unit"),
        ("5x", "unknown unit"),
        ("x", "invalid duration"),
        ("", "invalid duration"),
        ("-", "invalid duration"),
        (".s", "invalid duration"),
    ],
)
def test_wrong_duration(text: str, cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        values.duration(text)


@given(st.text(max_size=30))
def test_parsers_raise_nothing_but_value_error(text: str) -> None:
    for parser in (values.size, values.cpus, values.duration, values.ulimit, values.record, values.network, values.gpus,
                   values.device, values.device_rule, values.extra_host, values.dns_search, mount):  # fmt: skip
        try:
            parser(text)
        except ValueError:
            pass
    for several in (published, exposed, volumes):
        try:
            several([text])
        except ValueError:
            pass


def test_record_with_quotes() -> None:
    assert values.record('a,"b,c",d') == ["a", "b,c", "d"]
    assert values.record('"a""b"') == ['a"b']
    for wrong in ('"a', '"a"b', 'a"b'):
        with pytest.raises(ValueError, match="parse error"):
            values.record(wrong)


def test_environment_takes_the_value_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TARE_TEST_VALUE", "v")
    monkeypatch.delenv("TARE_TEST_NONE", raising=False)
    assert values.environment("TARE_TEST_VALUE") == "TARE_TEST_VALUE=v"
    assert values.environment("TARE_TEST_NONE") == "TARE_TEST_NONE"
    assert values.environment("A=") == "A="


def test_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "env"
    file.write_bytes(b"\xef\xbb\xbfA=1\n# note\n\n  B= x y \nTARE_TEST_VALUE\nTARE_TEST_NONE\n")
    monkeypatch.setenv("TARE_TEST_VALUE", "v")
    assert values.key_values(str(file), look_up=True) == ["A=1", "B= x y ", "TARE_TEST_VALUE=v"]
    file.write_bytes(b"A B=1\n")
    with pytest.raises(ValueError, match="variable 'A B' contains whitespaces"):
        values.key_values(str(file), look_up=True)
    file.write_bytes(b"\xff=1\n")
    with pytest.raises(ValueError, match="invalid utf8 bytes at line 1"):
        values.key_values(str(file), look_up=True)
    with pytest.raises(ValueError, match="no such file or directory"):
        values.key_values(str(tmp_path / "none"), look_up=True)


def test_device() -> None:
    assert values.device("/dev/a:/dev/b:rw") == {
        "PathOnHost": "/dev/a", "PathInContainer": "/dev/b", "CgroupPermissions": "rw",
    }  # fmt: skip
    assert values.device("/dev/a:r")["PathInContainer"] == "/dev/a"
    with pytest.raises(ValueError, match="not an absolute path"):
        values.device("x")
    with pytest.raises(ValueError, match="bad mode specified: q"):
        values.device("/dev/a:/dev/b:q")


@pytest.mark.parametrize(
    ("spec", "bindings"),
    [
        ("80", {"80/tcp": [{"HostIp": "", "HostPort": ""}]}),
        ("8080:80/udp", {"80/udp": [{"HostIp": "", "HostPort": "8080"}]}),
        ("127.0.0.1::90", {"90/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}),
        ("[::1]:1:2", {"2/tcp": [{"HostIp": "::1", "HostPort": "1"}]}),
        ("4000-4010:80", {"80/tcp": [{"HostIp": "", "HostPort": "4000-4010"}]}),
        (
            "3000-3001:1-2",
            {"1/tcp": [{"HostIp": "", "HostPort": "3000"}], "2/tcp": [{"HostIp": "", "HostPort": "3001"}]},
        ),
        ("published=1,target=2,protocol=udp", {"2/udp": [{"HostIp": "", "HostPort": "1"}]}),
    ],
)
def test_published(spec: str, bindings: dict[str, Any]) -> None:
    assert published([spec]) == bindings


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("abc", "invalid containerPort: abc"),
        ("99999", "invalid containerPort: 99999"),
        ("x:80", "invalid hostPort: x"),
        ("80:80:80:80", "invalid IP address: 80:80"),
        ("80/foo", "invalid proto: foo"),
        ("10-20:30-35", "invalid ranges specified for container and host Ports: 30-35 and 10-20"),
        ("80:", "no port specified: 80:<empty>"),
    ],
)
def test_wrong_published(spec: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        published([spec])


def test_volumes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    binds, anonymous = volumes(["/a:/b:ro", "named:/c", "/anon", "./rel:/r", "/a:/b:ro"])
    assert binds == ["/a:/b:ro", "named:/c", f"{tmp_path}/rel:/r"]
    assert anonymous == {"/anon": {}}
    with pytest.raises(ValueError, match="invalid spec: /a::c: empty section between colons"):
        volumes(["/a::c"])


def test_mount() -> None:
    assert mount("type=bind,src=/x,dst=/y,ro") == {"Type": "bind", "Source": "/x", "Target": "/y", "ReadOnly": True}
    assert mount("type=tmpfs,dst=/t,tmpfs-mode=755,tmpfs-size=1m")["TmpfsOptions"] == {
        "SizeBytes": 1 << 20,
        "Mode": 0o755,
    }
    assert mount("type=bind,src=/x,dst=/y,bind-recursive=enabled") == {"Type": "bind", "Source": "/x", "Target": "/y"}
    for text, cause in (
        ("x", "invalid field 'x' must be a key=value pair"),
        ("type=bind,src=/x,dst=/y,bogus=1", "unknown option 'bogus'"),
        ("type=bind,src=/x,dst=/y,tmpfs-size=1", r"cannot mix 'tmpfs-\*' options with mount type 'bind'"),
        ("type=bind,src=,dst=/y", "invalid value for 'src': value is empty"),
        ("type=bind,src=/x,dst=/y,bind-recursive=writable", "requires 'readonly'"),
        ("type=bind,bind-recursive=foo", "invalid value for bind-recursive: foo"),
    ):
        with pytest.raises(ValueError, match=cause):
            mount(text)


def test_plain_body_is_dockers() -> None:
    """The body that Docker 28.2's client sends for `docker create hello`, but for ConsoleSize, which run.py sets."""
    assert request() == {
        "Hostname": "", "Domainname": "", "User": "", "AttachStdin": False, "AttachStdout": True, "AttachStderr": True,
        "Tty": False, "OpenStdin": False, "StdinOnce": False, "Env": None, "Cmd": None, "Image": "hello", "Volumes": {},
        "WorkingDir": "", "Entrypoint": None, "OnBuild": None, "Labels": {},
        "HostConfig": {**HOST_CONFIG, "LogConfig": {"Type": "", "Config": {}},
                       "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}},
        "NetworkingConfig": {"EndpointsConfig": {"default": ENDPOINT}},
    }  # fmt: skip


def test_members_of_the_body() -> None:
    got = request("-it", "-e", "A=1", "--stop-timeout", "5", "--entrypoint", "", "-p", "80", "--expose", "81/udp")
    assert (got["AttachStdin"], got["OpenStdin"], got["StdinOnce"], got["Tty"]) == (True, True, True, True)
    assert got["StopTimeout"] == 5
    assert got["Entrypoint"] == [""]
    assert got["ExposedPorts"] == {"80/tcp": {}, "81/udp": {}}
    assert host("--init=false")["Init"] is False
    assert "Init" not in host()
    assert host("--cap-add", "net_raw", "--cap-drop", "ALL")["CapAdd"] == ["CAP_NET_RAW"]
    assert host("--restart", "on-failure:3")["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
    assert host("--ulimit", "nproc=5", "--ulimit", "core=-1")["Ulimits"] == [
        {"Name": "core", "Hard": -1, "Soft": -1}, {"Name": "nproc", "Hard": 5, "Soft": 5},
    ]  # fmt: skip
    assert host("--pids-limit", "-1", "--memory-swap", "-1")["PidsLimit"] == -1
    assert host("--tmpfs", "/t:size=1m", "--tmpfs", "/u")["Tmpfs"] == {"/t": "size=1m", "/u": ""}


def test_network() -> None:
    got = request("--network", "host")
    assert got["HostConfig"]["NetworkMode"] == "host"
    assert got["NetworkingConfig"] == {"EndpointsConfig": {}}
    endpoints = request("--network", "mine", "--network-alias", "a", "--ip", "1.2.3.4")["NetworkingConfig"]
    assert endpoints["EndpointsConfig"]["mine"]["Aliases"] == ["a"]
    assert endpoints["EndpointsConfig"]["mine"]["IPAMConfig"] == {"IPv4Address": "1.2.3.4"}


def test_seccomp_file_is_read_by_the_client(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    file.write_text('{ "defaultAction": "SCMP_ACT_ALLOW" }')
    option = host("--security-opt", f"seccomp={file}")["SecurityOpt"][0]
    assert json.loads(option.removeprefix("seccomp=")) == {"defaultAction": "SCMP_ACT_ALLOW"}
    file.write_text("{")
    with pytest.raises(ValueError, match="compacting json for seccomp profile"):
        host("--security-opt", f"seccomp={file}")
    with pytest.raises(ValueError, match=r"opening seccomp profile \(/none\) failed: open /none: no such file"):
        host("--security-opt", "seccomp=/none")
    assert host("--security-opt", "systempaths=unconfined")["MaskedPaths"] == []


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--rm", "--restart", "always"], "conflicting options: cannot specify both --restart and --rm"),
        (["--memory-swappiness", "200"], "invalid value: 200. Valid memory swappiness range is 0-100"),
        (["--pid", "foo"], "--pid: invalid PID mode"),
        (["--cgroupns", "foo"], "--cgroupns: invalid CGROUP mode"),
        (["--no-healthcheck", "--health-cmd", "x"], r"--no-healthcheck conflicts with --health-\* options"),
        (["--health-interval=-5s"], "--health-interval cannot be negative"),
        (["--log-driver", "none", "--log-opt", "a=b"], "invalid logging opts for driver none"),
        (["--restart", "on-failure:x"], "maximum retry count must be an integer"),
        (["--network", "a", "--network", "host"], "cannot attach both user-defined and non-user-defined"),
        (["--network", "host", "--network-alias", "x"], "only supported for user-defined networks"),
        (["--mac-address", "zz"], "zz is not a valid mac address"),
        (["--storage-opt", "size"], "invalid storage option"),
    ],
)
def test_wrong_combinations(argv: list[str], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        request(*argv)


def test_a_flag_error_is_a_failure() -> None:
    with pytest.raises(Failure):
        request("--sysctl", "vm.x=1")
