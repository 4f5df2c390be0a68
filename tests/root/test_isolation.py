"""What a container can see and do, beside Docker 28.5 (probe/), and images that try to get out while they are set up.

The names of the vulnerabilities are those of other runtimes: each test is the same attack on this one.
"""

from __future__ import annotations

import os
import re
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hostile
import pytest
from conftest import SLOW, Engine
from hostile import DIRECTORY, file, symlink
from probe import differences
from probe.differences import ABSENT, MODES

pytestmark = pytest.mark.root

PROBE = Path(__file__).parent / "probe"
V2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
NONE = ("--network", "none")
Values = dict[str, str]


# -- the probe -----------------------------------------------------------------------------------------------------


def values(text: str) -> Values:
    """ "key=value" lines -> values, without what differs from run to run."""
    pairs = (line.partition("=")[::2] for line in text.replace("\r", "").splitlines() if line[:1] not in ("#", ""))
    return {key: value for key, value in pairs if not key.startswith("info.")}


def run_probe(engine: Engine, *options: str) -> Values:
    script = f"{PROBE}/isolation-probe.sh:/probe.sh:ro"
    network = () if "--network" in options else NONE
    done = engine.docker("run", "--rm", *network, "-v", script, *options, "busybox", "sh", "/probe.sh", timeout=60 * SLOW)
    return values(done.stdout)


def exec_probe(engine: Engine) -> Values:
    script = f"{PROBE}/isolation-probe.sh:/probe.sh:ro"
    engine.docker("run", "-d", "--name", "probed", *NONE, "-v", script, "busybox", "sleep", "1000")
    done = engine.docker("exec", "-e", "PROBE_PID=self", "probed", "sh", "/probe.sh", timeout=60 * SLOW)
    engine.docker("rm", "-f", "probed")
    return values(done.stdout)


@pytest.fixture(scope="module")
def probes(engine: Engine) -> dict[str, Values]:
    """Mode -> what the probe says; "plain" without options."""
    with ThreadPoolExecutor(4) as at_once:
        running = {name: at_once.submit(run_probe, engine, *mode.options) for name, mode in MODES.items() if mode.options}
        running["plain"] = at_once.submit(run_probe, engine)
        running["exec"] = at_once.submit(exec_probe, engine)
        found = {name: future.result() for name, future in running.items()}
    assert all(probe["probe.end"] == "ok" and len(probe) > 270 for probe in found.values())
    return found


def changed(before: Values, after: Values) -> Values:
    """key -> new value."""
    return {
        key: after.get(key, ABSENT)
        for key in sorted(before.keys() | after.keys())
        if before.get(key, ABSENT) != after.get(key, ABSENT)
    }


def unexplained(changes: Values, rows: tuple[differences.Difference, ...]) -> Values:
    return {key: value for key, value in changes.items() if not any(row.explains(key, value) for row in rows)}


def test_container_looks_like_one_of_docker_but_for_what_is_explained(probes: dict[str, Values]) -> None:
    reference = values((PROBE / "docker-28.5.txt").read_text())
    found = changed(reference, probes["plain"])
    version = differences.V2 if V2 else differences.V1
    rows = differences.DELIBERATE + version + differences.NO_NETWORK + differences.IMAGE + differences.HOST
    assert unexplained(found, rows) == {}
    stale = [row.keys for row in differences.DELIBERATE if not any(row.explains(*change) for change in found.items())]
    assert stale == []


@pytest.mark.parametrize("name", sorted(MODES))
def test_mode_changes_only_what_it_is_for(probes: dict[str, Values], name: str) -> None:
    found = changed(probes["plain"], probes[name])
    assert unexplained(found, MODES[name].changes) == {}
    must = {row.keys for row in MODES[name].changes if not set("*?[") & set(row.keys)}
    assert must <= found.keys()


@pytest.mark.parametrize("name", ["plain", *sorted(MODES)])
def test_invariants_hold_in_every_mode(probes: dict[str, Values], name: str) -> None:
    probe = probes[name]
    always = {
        "cap.CapInh": "0" * 16, "cap.CapAmb": "0" * 16, "fd.pid1.count": "3", "fd.pid1.extra": "", "fd.dirs_open": "",
        "cwd.outside_root": "no", "umask": "0022", "sig.blocked": "0" * 16, "tracerpid": "0", "mnt.propagation": "",
        "mnt.root.propagation": "private", "files.docker_sock": "absent", "ns.mnt": "private", "ns.pid": "private",
        "ns.ipc": "private", "ns.uts": "private", "dev.null": "character special file 666 0:0 1:3",
    }  # fmt: skip
    assert {key: probe[key] for key in always} == always
    if name == "privileged":
        return
    confined = {
        "cap.CapBnd": "00000000a80425fb", "seccomp.mode": "2", "seccomp.filters": "1", "dmesg": "EPERM",
        "unshare.user": "EPERM", "unshare.mount": "EPERM", "unshare.net": "EPERM", "cgroup.unshare_escape": "EPERM",
        "sysctl.kernel/core_pattern.write": "EROFS", "cgroup.release_agent": "", "do.umount_sys": "EPERM",
    }  # fmt: skip
    assert {key: probe[key] for key in confined} == confined
    for key in ("devcg.mem_c1:1", "devcg.kmsg_c1:11", "devcg.vda_b254:0", "devcg.kvm_c10:232"):
        assert not probe[key].endswith("open:OK")
    for masked in ("kcore", "keys", "timer_list", "sched_debug", "latency_stats", "interrupts"):
        assert probe[f"proc.{masked}"] in ("ENOENT", "read:empty", "EACCES")


def test_table_of_the_documentation_is_the_one_that_is_tested() -> None:
    text = (PROBE.parents[2] / "docs" / "isolation.md").read_text()
    tables = (differences.DELIBERATE, differences.V1, differences.V2, differences.NO_NETWORK)
    rows = [row for table in tables for row in table] + [row for mode in MODES.values() for row in mode.changes]
    assert [row.keys for row in rows if f"`{row.keys}`" not in text] == []


def test_no_socket_of_the_engine_can_be_reached_from_the_network_of_the_host(engine: Engine) -> None:
    """CVE-2020-15257: abstract sockets belong to the network namespace, which --network host shares."""
    engine.docker("run", "-d", "--name", "shares", "--network", "host", "busybox", "sleep", "1000")
    names = engine.docker("exec", "shares", "cat", "/proc/net/unix").stdout
    assert "@" not in "".join(line for line in names.splitlines() if re.search("tare|shim|zygote", line))
    engine.docker("rm", "-f", "shares")


# -- images that try to get out ------------------------------------------------------------------------------------


class Attack:
    """Loads images above busybox and runs them; whatever comes out, nothing outside may have changed."""

    def __init__(self, engine: Engine, base: bytes, canary: hostile.Canary) -> None:
        self.engine = engine
        self.base = base
        self.canary = canary

    def image(self, *entries: tuple[object, ...], **config: object) -> None:
        config = {"Cmd": ["sh"], "Env": ["PATH=/bin:/usr/bin"], **config}
        self.engine.docker("load", input=hostile.image("evil:latest", [self.base, hostile.tar(*entries)], **config))

    def run(self, *arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        done = self.engine.docker("run", "--rm", *NONE, *options, "evil", *arguments, check=False, timeout=20 * SLOW)
        self.canary.check(done.stdout, done.stderr)
        return done

    def refused(self, sentence: str, *arguments: str, options: tuple[str, ...] = ()) -> None:
        done = self.run(*arguments, options=options)
        assert done.returncode in (125, 126, 127), done.stdout
        first = done.stderr.splitlines()[0]
        assert re.search(sentence, first), done.stderr
        assert self.engine.http("GET", "/_ping").stdout == "OK"


@pytest.fixture
def attack(engine: Engine, busybox_archive: Path, tmp_path: Path) -> Iterator[Attack]:
    outside = mounts_outside(engine)
    canary = hostile.Canary(tmp_path / "canary")
    yield Attack(engine, hostile.layer_of(busybox_archive), canary)
    engine.docker_rm_all()
    canary.check()
    assert mounts_outside(engine) == outside


def mounts_outside(engine: Engine) -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(engine.base) in line]


def test_dev_that_is_a_symlink_gets_no_node_on_the_host(attack: Attack) -> None:
    """CVE-2019-18837, CVE-2026-41579. As in Docker, the container has its own /dev."""
    attack.image(symlink("dev", str(attack.canary)))
    done = attack.run("sh", "-c", "stat -c %t:%T /dev/null && grep -c /dev/shm /proc/mounts; echo x > /dev/shm/x")
    assert done.stdout.split() in (["1:3", "1"], ["1:3", "0"])


@pytest.mark.parametrize("name", ["proc", "sys"])
def test_kernel_file_system_behind_a_symlink_is_refused(attack: Attack, name: str) -> None:
    """CVE-2019-19921, CVE-2023-27561, CVE-2025-54867: labels and sysctls would go to files of the image."""
    attack.image(symlink(name, "/evil"), ("evil", DIRECTORY))
    attack.refused(f"/{name}.*must be mounted on an ordinary directory", "true")


def test_volume_over_proc_is_refused(attack: Attack, tmp_path: Path) -> None:
    """CVE-2019-16884."""
    attack.image()
    for target in ("/proc", "/proc/self/attr", "/x/../proc"):
        attack.refused("cannot be mounted because it is inside /proc", "true", options=("-v", f"{tmp_path}:{target}"))


def test_null_device_that_is_a_symlink_is_neither_used_nor_followed(attack: Attack) -> None:
    """CVE-2025-31133, CVE-2026-88265: it would be bound over what is to be masked, and chowned to the user."""
    links = [symlink(f"dev/{name}", f"{attack.canary}/secret") for name in ("null", "console", "shm", "pts", "mqueue")]
    attack.image(("dev", DIRECTORY), *links)
    script = "stat -c %t:%T /dev/null; cat /proc/keys /proc/timer_list /dev/null; stat -c %t:%T /proc/keys"
    assert attack.run("sh", "-c", script, options=("-u", "1000")).stdout.split() == ["1:3", "1:3"]
    assert attack.run("sh", "-c", "stat -c %t /dev/console", options=("-t",)).stdout.split() == ["88"]


def test_files_the_engine_puts_into_a_root_follow_no_link_out_of_it(attack: Attack) -> None:
    """CVE-2025-24965 and its kin: /.dockerenv, the three of /etc, a working directory and an init program."""
    names = (".dockerenv", "etc/hosts", "etc/hostname", "etc/resolv.conf", "sbin")
    attack.image(*[symlink(name, f"{attack.canary}/{name.replace('/', '_')}") for name in names], file("w/x"))
    done = attack.run("sh", "-c", "cat /etc/hosts; pwd", options=("--init", "-w", f"/../../{attack.canary}/w"))
    assert done.returncode == 0, done.stderr
    assert "localhost" in done.stdout and done.stdout.endswith(f"{attack.canary}/w\n")
    attack.image(symlink("etc/hosts", "/proc/self/fd/5"))
    attack.refused("/etc/hosts.*too many levels of symbolic links", "true")


@pytest.mark.parametrize("kind", ["bind", "tmpfs"])
def test_mount_through_a_link_of_the_image_stays_inside(attack: Attack, tmp_path: Path, kind: str) -> None:
    """CVE-2021-30465, CVE-2024-45310."""
    out = str(attack.canary)
    links = [symlink("v", out), symlink("relative", "../" * 8 + out[1:]), symlink("d/s", out)]
    attack.image(("d", DIRECTORY), *links)
    source = tmp_path / "source"
    source.mkdir()
    for target in ("/v", "/v/new", "/relative/new", "/d/s/x", "/d/../v/n"):
        option = ("-v", f"{source}:{target}") if kind == "bind" else ("--tmpfs", target)
        done = attack.run("sh", "-c", f"grep -c {out} /proc/self/mountinfo; touch {target}/made", options=option)
        assert done.returncode == 0 and int(done.stdout) >= 1, done.stderr
        made = [path.name for path in source.iterdir()]
        assert made == (["made"] if kind == "bind" else [])
        for name in made:
            (source / name).unlink()


def test_dev_of_the_host_may_be_bound_and_masks_hold(attack: Attack, tmp_path: Path) -> None:
    attack.image()
    script = "stat -c %t:%T /proc/keys; cat /proc/keys /proc/timer_list | wc -c"
    assert attack.run("sh", "-c", script, options=("-v", "/dev:/dev")).stdout.split() == ["1:3", "0"]
    attack.refused("mask /proc/", "true", options=("-v", f"{tmp_path}:/dev"))


@pytest.mark.parametrize("number", [3, 5, 7, 8, 9])
def test_descriptor_is_no_working_directory(attack: Attack, number: int) -> None:
    """CVE-2024-21626."""
    path = f"/proc/self/fd/{number}"
    attack.image(symlink("w", path), WorkingDir=path)
    attack.refused(f"{path}.*(too many levels of symbolic links|no such file)", "pwd")
    attack.refused("/w.*(too many levels of symbolic links|no such file)", "pwd", options=("-w", "/w"))


def test_descriptor_is_no_working_directory_of_exec(attack: Attack) -> None:
    attack.image(symlink("w", "/proc/self/fd/7"))
    attack.engine.docker("run", "-d", "--name", "host", *NONE, "evil", "sleep", "1000")
    for path in ("/w", *[f"/proc/self/fd/{number}" for number in range(3, 12)]):
        done = attack.engine.docker("exec", "-w", path, "host", "ls", check=False, timeout=20 * SLOW)
        assert done.returncode in (126, 127) and "chdir to cwd" in done.stdout + done.stderr, (path, done)


# -- users ---------------------------------------------------------------------------------------------------------


def big_passwd(path: Path) -> Path:
    """A compressed root file system whose /etc/passwd is one line of 300 MB."""

    class Line:
        def read(self, size: int) -> bytes:
            return b"a" * size

    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        info = tarfile.TarInfo("etc/passwd")
        info.size = 300 << 20
        archive.addfile(info, Line())  # type: ignore[arg-type]
    return path


PASSWD: dict[str, tuple[Callable[[str], tuple[object, ...]], str]] = {
    "symlink": (lambda canary: symlink("etc/passwd", f"{canary}/secret"), "unable to find user nobody"),
    "fifo": (lambda _: ("etc/passwd", tarfile.FIFOTYPE), "not a regular file"),
    "device": (lambda _: ("etc/passwd", tarfile.CHRTYPE, {"devmajor": 1, "devminor": 5}), "not a regular file"),
    "directory": (lambda _: ("etc/passwd", DIRECTORY), "not a regular file"),
    "binary": (lambda _: file("etc/passwd", data=os.urandom(1 << 19)), "unable to find user nobody"),
}


@pytest.mark.parametrize("name", sorted(PASSWD))
def test_strange_passwd_ends_in_an_error_at_once(attack: Attack, name: str) -> None:
    """CVE-2024-9676: a FIFO there keeps Docker's start, inspect and rm waiting for ever."""
    entry, sentence = PASSWD[name]
    attack.image(entry(str(attack.canary)))
    start = time.monotonic()
    attack.refused(sentence, "id", options=("-u", "nobody"))
    attack.refused(sentence.replace("nobody", "root"), "id", options=("-u", "root:root"))
    attack.engine.docker("create", "--name", "kept", *NONE, "-u", "nobody", "evil", "id")
    attack.engine.docker("inspect", "kept")
    attack.engine.docker("rm", "-f", "kept")
    assert time.monotonic() - start < 10 * SLOW


def test_passwd_of_one_endless_line_is_not_read_into_memory(attack: Attack, tmp_path: Path) -> None:
    attack.engine.docker("import", str(big_passwd(tmp_path / "big.tar.gz")), "evil", timeout=120 * SLOW)
    (tmp_path / "big.tar.gz").unlink()
    before = high_water_kib(attack.engine)
    attack.refused("larger than", "id", options=("-u", "nobody"))
    assert high_water_kib(attack.engine) - before < 20 << 10
    attack.engine.docker("rmi", "evil")


def high_water_kib(engine: Engine) -> int:
    return int(Path(f"/proc/{engine.pid}/status").read_text().split("VmHWM:")[1].split()[0])


def test_number_of_a_user_is_never_looked_up_as_a_name(attack: Attack) -> None:
    """CVE-2016-3697, CVE-2026-46680."""
    passwd = file("etc/passwd", data=b"root:x:0:0::/root:/bin/sh\n1000:x:0:0::/root:/bin/sh\n")
    attack.image(passwd, file("etc/group", data=b"root:x:0:\n1000:x:0:root\nteam:x:77:1000,\n"))
    identities: dict[tuple[str, ...], str] = {
        ("-u", "1000"): "1000 0 0",
        ("-u", "1000:1000"): "1000 1000 1000",
        ("-u", "1001", "--group-add", "1000"): "1001 0 0 1000",
    }
    for options, expected in identities.items():
        assert attack.run("sh", "-c", "echo $(id -u) $(id -g) $(id -G)", options=options).stdout.strip() == expected


def test_user_that_is_no_small_number_and_no_name_is_refused(attack: Attack) -> None:
    """CVE-2024-40635: 2^32 wrapped to uid 0."""
    attack.image()
    for user in ("4294967296", "4294967295", "2147483648", "-1", "1e3", "0x0", " 0", "\t0", "٣", "1000:4294967296", "0:-1",
                 "a:b:c"):  # fmt: skip
        attack.refused("range 0-2147483647|unable to find (user|group)|invalid", "id", options=("-u", user))


def test_highest_number_is_a_user(attack: Attack) -> None:
    attack.image()
    assert attack.run("id", "-u", options=("-u", "2147483647")).stdout == "2147483647\n"


# -- what an image says about itself -------------------------------------------------------------------------------


def test_labels_of_an_image_are_only_shown(attack: Attack) -> None:
    """CVE-2026-53488, CVE-2026-94603: they chose log drivers, hooks and runtimes elsewhere."""
    labels = {
        "containerd.io/restart.loguri": f"binary:///bin/touch?{attack.canary}/x", "run.oci.handler": "krun",
        "io.podman.annotations.privileged": "TRUE", "org.tare.privileged": "1", "com.docker.restart": "always",
    }  # fmt: skip
    attack.image(Labels=labels)
    done = attack.run("sh", "-c", "sed -n 's/^CapEff:.//p' /proc/self/status", options=("--cap-drop", "ALL"))
    assert done.stdout.strip() == "0" * 16
    attack.engine.docker("run", "-d", "--name", "labelled", *NONE, "evil", "true")
    attack.engine.await_state("labelled", "exited")
    found: dict[str, Any] = attack.engine.inspect("labelled")
    assert labels.items() <= found["Config"]["Labels"].items()
    assert found["HostConfig"]["LogConfig"]["Type"] == "json-file" and not found["HostConfig"]["Privileged"]


def test_environment_of_the_daemon_stays_outside(attack: Attack) -> None:
    """CVE-2021-3602 and its kin; and an entry of the image that is no assignment does no harm."""
    attack.image(Env=["PATH=/bin", "HOME", "EMPTY=", "*", "LD_PRELOAD=/evil.so", "PYTHONPATH=/evil"])
    names = attack.run("env").stdout
    daemon = Path(f"/proc/{attack.engine.pid}/environ").read_bytes().decode().split("\0")
    foreign = {entry.partition("=")[0] for entry in daemon} - {"PATH", "HOME", "LD_PRELOAD", "PYTHONPATH", ""}
    assert foreign and not {line.partition("=")[0] for line in names.splitlines()} & foreign
