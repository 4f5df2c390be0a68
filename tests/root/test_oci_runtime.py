"""`tare-oci` as others use it: by hand on a bundle that crun wrote, and as podman's runtime."""

from __future__ import annotations

import array
import fcntl
import glob
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import traces
from conftest import BIN
from traces import until

pytestmark = pytest.mark.root

SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
APPLETS = ("sh", "cat", "echo", "env", "id", "ls", "ps", "pwd", "sleep", "stty", "true", "tty", "usleep")
FOREVER = ["sh", "-c", "trap 'exit 43' TERM; echo ready; while :; do usleep 10000; done"]
CGROUP = f"tare-oci-test-{os.getpid()}"


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rootfs")
    root.chmod(0o755)
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp", "run"):
        (root / name).mkdir()
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nworker:x:1000:1000::/tmp:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "etc/text").write_text("no program\n")
    return root


class Runtime:
    """tare-oci with a state directory, a bundle directory and a cgroup parent of the test's own."""

    def __init__(self, base: Path, rootfs: Path) -> None:
        self.base, self.rootfs, self.root = base, rootfs, base / "state"
        self.bundle = base / "bundle"
        self.bundle.mkdir()
        self.output = base / "output"
        subprocess.run(["crun", "spec"], cwd=self.bundle, check=True)
        self.spec: dict[str, Any] = json.loads((self.bundle / "config.json").read_text())
        self.ids: set[str] = set()

    def write(self, name: str, *args: str, **process: Any) -> None:
        """config.json for a container called `name`."""
        spec = json.loads(json.dumps(self.spec))
        spec["process"].update({"terminal": False, "args": list(args), **process})
        spec["root"] = {"path": str(self.rootfs), "readonly": True}
        spec["linux"]["cgroupsPath"] = f"/{CGROUP}/{name}"
        (self.bundle / "config.json").write_text(json.dumps(spec))
        self.ids.add(name)

    def call(self, *arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Output goes through files, which a container that lives on may keep open."""
        options.setdefault("stdin", subprocess.DEVNULL) if "input" not in options else None
        with self.output.open("w+") as out, (self.base / "errors").open("w+") as err:
            done = subprocess.run(
                [str(BIN / "tare-oci"), "--root", str(self.root), *arguments],
                stdout=out, stderr=err, text=True, timeout=60, check=False, **options,
            )  # fmt: skip
            out.seek(0)
            err.seek(0)
            done.stdout, done.stderr = out.read(), err.read()
        assert done.returncode == 0 or not check, (arguments, done.returncode, done.stderr)
        return done

    def create(self, name: str, *args: str, **process: Any) -> str:
        self.write(name, *(args or FOREVER), **process)
        self.call("create", "-b", str(self.bundle), name)
        return name

    def running(self, name: str, *args: str, **process: Any) -> str:
        self.create(name, *args, **process)
        self.call("start", name)
        if not args:
            until(lambda: "ready" in self.said(), "its trap is set")
        return name

    def said(self) -> str:
        return self.output.read_text()

    def state(self, name: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.call("state", name).stdout)
        return answer

    def refused(self, *arguments: str, **options: Any) -> str:
        done = self.call(*arguments, check=False, **options)
        assert done.returncode == 1 and done.stderr.startswith("tare-oci: "), (done.returncode, done.stderr)
        assert "Traceback" not in done.stderr
        return done.stderr

    def close(self) -> None:
        for name in self.ids:
            self.call("delete", "--force", name, check=False)
        left = [path for name in self.ids for path in traces.cgroups(name)]
        for directory in glob.glob(f"/sys/fs/cgroup/*/{CGROUP}") + glob.glob(f"/sys/fs/cgroup/{CGROUP}"):
            os.rmdir(directory)
        assert left == [] and (not self.root.exists() or os.listdir(self.root) == [])


@pytest.fixture
def oci(tmp_path: Path, rootfs: Path) -> Iterator[Runtime]:
    made = Runtime(tmp_path, rootfs)
    yield made
    made.close()


def test_life_from_create_to_delete(oci: Runtime) -> None:
    name = oci.create("life")
    state = oci.state(name)
    assert (state["id"], state["status"], state["bundle"]) == (name, "created", str(oci.bundle))
    assert state["ociVersion"] and traces.alive(state["pid"])
    assert "usleep" not in traces.read(f"/proc/{state['pid']}/cmdline"), "the program runs before start"
    oci.call("start", name)
    until(lambda: "usleep" in traces.read(f"/proc/{state['pid']}/cmdline"), "the program runs")
    assert oci.state(name)["status"] == "running" and oci.state(name)["pid"] == state["pid"]
    oci.call("kill", name, "KILL")
    until(lambda: oci.state(name)["status"] == "stopped", "it is stopped")
    assert oci.state(name)["pid"] == 0
    oci.call("delete", name)
    assert f"container '{name}' does not exist" in oci.refused("state", name)
    assert traces.cgroups(name) == [] and not (oci.root / name).exists()


@pytest.mark.parametrize("name", ["a.b", "a.b_c-d+e@f", "..x", "0", "x" * 200])
def test_names_may_hold_dots_and_the_like(oci: Runtime, name: str) -> None:
    oci.write(name, "echo", "hello")
    assert oci.call("run", "-b", str(oci.bundle), name).stdout == "hello\n"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "a b", "a:b", "ä", "x" * 1025])
def test_names_that_are_none(oci: Runtime, name: str) -> None:
    oci.write("unused", "true")
    assert "invalid container id" in oci.refused("create", "-b", str(oci.bundle), name)
    assert not oci.root.exists() or os.listdir(oci.root) == []


def test_run_gives_input_output_and_exit_code(oci: Runtime) -> None:
    oci.write("once", "sh", "-c", "cat; id -u; pwd; echo $WORD >&2; exit 5", env=["PATH=/bin", "WORD=w"], cwd="/tmp")
    done = oci.call("run", "--bundle", str(oci.bundle), "once", check=False, input="typed\n")
    assert (done.stdout, done.stderr, done.returncode) == ("typed\n0\n/tmp\n", "w\n", 5)
    assert "does not exist" in oci.refused("state", "once")


def test_run_passes_signals_on_and_tells_a_death_by_signal(oci: Runtime) -> None:
    oci.write("signalled", *FOREVER)
    command = [str(BIN / "tare-oci"), "--root", str(oci.root), "run", "-b", str(oci.bundle), "signalled"]
    for number, code in ((signal.SIGTERM, 43), (signal.SIGKILL, 137)):
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as client:
            assert client.stdout is not None and client.stdout.readline() == "ready\n"
            if number == signal.SIGKILL:
                oci.call("kill", "signalled", "KILL")
            else:
                client.send_signal(number)
            assert client.wait(30) == code


def test_detached_run_and_pid_file(oci: Runtime) -> None:
    oci.write("behind", *FOREVER)
    oci.call("run", "-d", "--pid-file", str(oci.base / "pid"), "-b", str(oci.bundle), "behind")
    assert int((oci.base / "pid").read_text()) == oci.state("behind")["pid"]


def test_exec(oci: Runtime) -> None:
    name = oci.running("inside")
    done = oci.call("exec", "-e", "WORD=w", "--cwd", "/tmp", "-u", "1000:1000", name, "sh", "-c",
                    "cat; id -u; id -g; pwd; echo $WORD; exit 9", check=False, input="typed\n")  # fmt: skip
    assert (done.stdout, done.returncode) == ("typed\n1000\n1000\n/tmp\nw\n", 9)
    process = {**oci.spec["process"], "terminal": False, "args": ["sh", "-c", "echo $A; exit 3"], "env": ["PATH=/bin", "A=b"]}
    (oci.base / "process.json").write_text(json.dumps(process))
    done = oci.call("exec", "--process", str(oci.base / "process.json"), name, check=False)
    assert (done.stdout, done.returncode) == ("b\n", 3)
    oci.call("exec", "-d", "--pid-file", str(oci.base / "pid"), name, "sleep", "1000")
    pid = int((oci.base / "pid").read_text())
    assert traces.read(f"/proc/{pid}/cmdline") == "sleep\x001000\x00" and pid in traces.members(name)


def test_exec_that_cannot_start(oci: Runtime) -> None:
    name = oci.running("inside")
    for program, words in (("nope", "executable file not found in $PATH"), ("/bin/nope", "no such file or directory"),
                           ("/etc/text", "permission denied")):  # fmt: skip
        done = oci.call("exec", name, program, check=False)
        assert done.returncode == 255 and words in done.stderr
    oci.call("kill", name, "KILL")
    until(lambda: oci.state(name)["status"] == "stopped", "it is stopped")
    assert "is stopped" in oci.refused("exec", name, "true")


def test_ps_lists_the_processes_inside(oci: Runtime) -> None:
    name = oci.running("listed")
    pid = oci.state(name)["pid"]
    pids = json.loads(oci.call("ps", "-f", "json", name).stdout)
    assert pid in pids and set(pids) <= set(traces.members(name)) | set(pids)
    table = oci.call("ps", name).stdout.splitlines()
    assert "PID" in table[0].split() and str(pid) in table[1].split()


def test_pause_and_resume(oci: Runtime) -> None:
    name = oci.running("frozen")
    oci.call("pause", name)
    assert oci.state(name)["status"] == "paused"
    assert "is paused" in oci.refused("exec", name, "true")
    oci.call("resume", name)
    assert oci.state(name)["status"] == "running"
    oci.call("exec", name, "true")
    oci.call("pause", name)
    oci.call("kill", name, "KILL")
    until(lambda: oci.state(name)["status"] == "stopped", "a frozen container can be killed")


def limit(name: str, *files: str) -> str:
    """The first of these files that one of its cgroups has."""
    found = [path for directory in traces.cgroups(name) for file in files if os.path.exists(path := f"{directory}/{file}")]
    return Path(found[0]).read_text().strip() if found else ""


def test_update_changes_limits_of_a_running_container(oci: Runtime) -> None:
    name = oci.running("limited")
    oci.call("update", "--pids-limit", "17", "--memory", str(64 << 20), name)
    assert limit(name, "pids.max") == "17"
    assert limit(name, "memory.limit_in_bytes", "memory.max") == str(64 << 20)
    oci.call("update", "-r", "-", name, input=json.dumps({"pids": {"limit": 19}}))
    assert limit(name, "pids.max") == "19"
    assert "not valid JSON" in oci.refused("update", "-r", "-", name, input="{")


def test_features_are_those_of_the_specification(oci: Runtime) -> None:
    found = json.loads(oci.call("features").stdout)
    assert {"network", "pid", "user", "mount", "cgroup"} <= set(found["linux"]["namespaces"])
    assert "CAP_SYS_ADMIN" in found["linux"]["capabilities"] and "rbind" in found["mountOptions"]
    assert found["linux"]["seccomp"]["enabled"] and "SCMP_ACT_ERRNO" in found["linux"]["seccomp"]["actions"]
    assert found["ociVersionMin"] <= found["ociVersionMax"]


def test_list_in_three_forms(oci: Runtime) -> None:
    assert json.loads(oci.call("list", "-f", "json").stdout) == []
    for name in ("one", "two.2"):
        oci.create(name)
    assert oci.call("list", "-q").stdout.split() == ["one", "two.2"]
    listed = json.loads(oci.call("list", "--format", "json").stdout)
    assert [(entry["id"], entry["status"]) for entry in listed] == [("one", "created"), ("two.2", "created")]
    table = oci.call("list").stdout.splitlines()
    assert table[0].split()[:3] == ["ID", "PID", "STATUS"] and table[2].split()[0] == "two.2"


def test_errors_say_what_is_wrong(oci: Runtime) -> None:
    name = oci.running("clear")
    bundle = str(oci.bundle)
    assert "container with id exists: clear" in oci.refused("create", "-b", bundle, name)
    assert "is running, not created" in oci.refused("start", name)
    assert "not stopped: running" in oci.refused("delete", name)
    assert "unknown signal 'NOPE'" in oci.refused("kill", name, "NOPE")
    assert "unknown flag: --nope" in oci.refused("create", "--nope", name)
    assert "flag needs an argument" in oci.refused("create", "other", "--bundle")
    assert "unknown command 'nope'" in oci.refused("nope")
    assert "config.json not found" in oci.refused("create", "-b", str(oci.base), "other")
    oci.call("kill", name, "KILL")
    until(lambda: oci.state(name)["status"] == "stopped", "it is stopped")
    assert "container not running" in oci.refused("kill", name, "TERM")
    assert os.listdir(oci.root) == [name]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"args": ["nope"]}, 'exec: "nope": executable file not found in $PATH'),
        ({"args": ["/bin/nope"]}, 'exec: "/bin/nope": stat /bin/nope: no such file or directory'),
        ({"args": ["/etc/text"]}, 'exec: "/etc/text": permission denied'),
        ({"args": []}, "process.args"),
        ({"args": ["true"], "terminal": True}, "--console-socket"),
    ],
)
def test_create_that_fails_leaves_nothing(oci: Runtime, change: dict[str, Any], words: str) -> None:
    oci.write("failed", "true", **change)
    for verb in ("create", "run"):
        assert words in oci.refused(verb, "-b", str(oci.bundle), "failed")
        assert os.listdir(oci.root) == [] and traces.cgroups("failed") == []


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"process": {"args": "true"}, "root": {"path": "x"}}'])
def test_damaged_configuration_is_refused_in_one_line(oci: Runtime, text: str) -> None:
    (oci.bundle / "config.json").write_text(text)
    assert oci.refused("create", "-b", str(oci.bundle), "damaged").count("\n") == 1
    assert os.listdir(oci.root) == []


@pytest.mark.parametrize("form", ["json", "text"])
def test_log_holds_the_error(oci: Runtime, form: str) -> None:
    log = oci.base / "log"
    oci.refused("--log", str(log), f"--log-format={form}", "state", "absent")
    line = log.read_text()
    assert "container 'absent' does not exist" in line.replace("\\'", "'") and line.count("\n") == 1
    if form == "json":
        entry = json.loads(line)
        assert entry["level"] == "error" and entry["msg"] == "container 'absent' does not exist" and entry["time"]
    else:
        assert "level=" in line and "msg=" in line


def test_terminal_arrives_over_the_console_socket(oci: Runtime) -> None:
    oci.write("screen", "sh", "-c", "tty; stty size; cat", terminal=True, consoleSize={"height": 33, "width": 99})
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(oci.base / "console"))
        listener.listen()
        oci.call("create", "-b", str(oci.bundle), "--console-socket", str(oci.base / "console"), "screen")
        peer, _ = listener.accept()
        with peer:
            _, fds, _, _ = socket.recv_fds(peer, 4096, 4)
    (master,) = fds
    try:
        oci.call("start", "screen")
        seen = b""
        while b"33 99" not in seen:
            seen += os.read(master, 1000)
        assert seen.split()[0].startswith(b"/dev/")
        size = array.array("H", [40, 120, 0, 0])
        fcntl.ioctl(master, 0x5414, size)  # TIOCSWINSZ
        assert oci.call("exec", "screen", "stty", "-F", "/dev/console", "size").stdout == "40 120\n"
    finally:
        os.close(master)


def test_waiting_init_runs_from_a_sealed_copy_and_holds_no_stray_file(oci: Runtime) -> None:
    """Rules 3 and 4: what stands at the gate is already inside, as Python."""
    pid = oci.state(oci.create("sealed"))["pid"]
    fd = os.open(f"/proc/{pid}/exe", os.O_RDONLY)
    try:
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS == SEALS
    finally:
        os.close(fd)
    with pytest.raises(OSError):
        os.open(f"/proc/{pid}/exe", os.O_RDWR)
    oci.call("start", "sealed")
    until(lambda: "usleep" in traces.read(f"/proc/{pid}/cmdline"), "the program runs")
    assert sorted(os.listdir(f"/proc/{pid}/fd")) == ["0", "1", "2"]


def test_hooks_run_on_the_host_with_the_state(oci: Runtime) -> None:
    oci.write("hooked", "true")
    config = json.loads((oci.bundle / "config.json").read_text())
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f'echo "$NAME $(cat)" >>{oci.base}/hooks'], "env": ["NAME=x", "PATH=/bin"]}
    points = ("prestart", "createRuntime", "poststart", "poststop")
    config["hooks"] = {point: [{**hook, "env": [f"NAME={point}", "PATH=/bin"]}] for point in points}
    (oci.bundle / "config.json").write_text(json.dumps(config))
    oci.call("run", "-b", str(oci.bundle), "hooked")
    lines = [line.partition(" ") for line in (oci.base / "hooks").read_text().splitlines()]
    assert [name for name, _, _ in lines] == list(points)
    assert [json.loads(text)["status"] for _, _, text in lines] == ["creating", "creating", "running", "stopped"]
    assert {json.loads(text)["id"] for _, _, text in lines} == {"hooked"}
    config["hooks"] = {"prestart": [{"path": "/bin/false"}]}
    (oci.bundle / "config.json").write_text(json.dumps(config))
    assert "prestart hook /bin/false ended with 1" in oci.refused("create", "-b", str(oci.bundle), "hooked")
    assert traces.cgroups("hooked") == []


def test_default_cgroup_and_state_directory_are_left_empty(oci: Runtime) -> None:
    """Without cgroupsPath and --root."""
    oci.write("default", "true")
    config = json.loads((oci.bundle / "config.json").read_text())
    del config["linux"]["cgroupsPath"]
    (oci.bundle / "config.json").write_text(json.dumps(config))
    name = f"test-{os.getpid()}.default"
    done = subprocess.run(
        [str(BIN / "tare-oci"), "run", "-b", str(oci.bundle), name], stdin=subprocess.DEVNULL, timeout=60, check=False
    )
    assert done.returncode == 0 and traces.cgroups(name) == [] and not Path("/run/tare-oci", name).exists()


# -- under podman ------------------------------------------------------------------------------------------------------


class Podman:
    """podman with stores of its own and tare-oci as its runtime."""

    def __init__(self, base: Path, rootfs: Path) -> None:
        self.rootfs = rootfs
        self.options = ["podman", "--root", str(base / "root"), "--runroot", str(base / "run"), "--tmpdir", str(base / "tmp"),
                        "--cgroup-manager", "cgroupfs", "--events-backend", "none", "--runtime", str(BIN / "tare-oci")]  # fmt: skip
        self.parent = f"/{CGROUP}-podman"

    def run_command(self, *options: str, program: tuple[str, ...]) -> list[str]:
        return [*self.options, "run", "--cgroup-parent", self.parent, "--network", "none", *options, "--rootfs",
                str(self.rootfs), *program]  # fmt: skip

    def run(self, *options: str, program: tuple[str, ...], **more: Any) -> subprocess.CompletedProcess[str]:
        return self._call(self.run_command(*options, program=program), **more)

    def __call__(self, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        return self._call([*self.options, *arguments], **more)

    def _call(self, command: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
        if "input" not in more:
            more["stdin"] = subprocess.DEVNULL
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **more)


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory, rootfs: Path) -> Iterator[Podman]:
    before = set(os.listdir("/run/tare-oci")) if os.path.isdir("/run/tare-oci") else set()
    made = Podman(tmp_path_factory.mktemp("podman"), rootfs)
    yield made
    made("rm", "-f", "-a", "-t", "0")
    until(lambda: not _below(made.parent), "podman's cgroups are empty")
    for directory in glob.glob(f"/sys/fs/cgroup/*{made.parent}"):
        os.rmdir(directory)
    assert set(os.listdir("/run/tare-oci")) <= before


def _below(parent: str) -> list[str]:
    """Containers' cgroups; conmon's own are podman's business and are removed here when they are empty."""
    for directory in glob.glob(f"/sys/fs/cgroup/*{parent}/*conmon*"):
        try:
            os.rmdir(directory)
        except OSError:
            continue
    return [path for path in glob.glob(f"/sys/fs/cgroup/*{parent}/*") if os.path.isdir(path)]


def test_podman_run(podman: Podman) -> None:
    done = podman.run("--rm", "-i", "--hostname", "box", program=("sh", "-c", "cat; cat /proc/sys/kernel/hostname; exit 6"), input="in\n")
    assert (done.stdout, done.returncode) == ("in\nbox\n", 6), done.stderr


@pytest.mark.parametrize(("program", "code"), [(("nope",), 127), (("/bin/nope",), 127), (("/etc/text",), 126), (("/etc",), 126)])
def test_podman_exit_codes_of_what_cannot_start(podman: Podman, program: tuple[str, ...], code: int) -> None:
    done = podman.run("--rm", program=program)
    assert done.returncode == code, done.stderr


def test_podman_terminal(podman: Podman) -> None:
    command = podman.run_command("--rm", "-it", program=("sh", "-c", "'tty; exit 4'"))
    done = subprocess.run(
        ["script", "-qec", " ".join(command), "/dev/null"], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert "/dev/" in done.stdout and done.returncode == 4, done.stdout + done.stderr


def test_podman_container_that_runs_behind(podman: Podman) -> None:
    done = podman.run("-d", "--name", "behind", program=tuple(FOREVER))
    assert done.returncode == 0, done.stderr
    identifier = done.stdout.strip()
    until(lambda: "ready" in podman("logs", "behind").stdout, "it runs")
    done = podman("exec", "-i", "-e", "A=b", "behind", "sh", "-c", "cat; echo $A; exit 8", input="in\n")
    assert (done.stdout, done.returncode) == ("in\nb\n", 8), done.stderr
    assert podman("exec", "behind", "nope").returncode == 127
    assert podman("exec", "behind", "/etc/text").returncode == 126
    assert podman("pause", "behind").returncode == 0
    assert podman("inspect", "-f", "{{.State.Status}}", "behind").stdout == "paused\n"
    assert podman("unpause", "behind").returncode == 0
    assert podman("stop", "behind").returncode == 0
    assert podman("inspect", "-f", "{{.State.ExitCode}}", "behind").stdout == "43\n"
    assert podman("start", "behind").returncode == 0
    assert podman("rm", "-f", "-t", "0", "behind").returncode == 0
    assert not Path("/run/tare-oci", identifier).exists()
    assert not [pid for pid in traces.members(identifier) if traces.comm(pid) != "conmon"]


def test_runtime_is_the_installed_one(podman: Podman) -> None:
    """The control: podman did use tare-oci."""
    done = podman("info", "--format", "{{.Host.OCIRuntime.Path}}")
    assert done.stdout.strip() == str(BIN / "tare-oci"), done.stderr
