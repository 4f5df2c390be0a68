"""The seven rules of the fork path, each held by what a host or a container can see of it."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import traces
from conftest import BIN, Engine
from traces import until

import tare

pytestmark = pytest.mark.root

PACKAGES = Path(tare.__file__).parents[1]
STDLIB = Path(os.__file__).parent
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
TRAP = "import posix; posix.close(posix.open('/executed-by-the-engine', posix.O_CREAT | posix.O_WRONLY))\n"


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run as the zygote is run: isolated, without site, the package's place given."""
    head = f"import sys; sys.path.insert(0, {str(PACKAGES)!r})\n"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", head + code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def output(code: str) -> str:
    done = python(code)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- rule 1: one thread ------------------------------------------------------------------------------------------------


def test_fork_path_is_small_and_of_the_standard_library() -> None:
    loaded = output("import tare.runtime.zygote\nprint(*sys.modules)").split()
    assert "tare.runtime.zygote" in loaded and len(loaded) <= 85, (len(loaded), loaded)
    tops = {name.partition(".")[0] for name in loaded}
    assert tops <= {"tare", "__main__"} | sys.stdlib_module_names
    assert not tops & {"asyncio", "threading", "_thread_pool", "concurrent", "pwd", "grp", "logging", "subprocess"}
    rooms = {".".join(name.split(".")[:2]) for name in loaded if name.startswith("tare.")}
    assert rooms <= {"tare.runtime", "tare.linux", "tare.cgroups", "tare.jsonlog"}


THREADED = """
import _thread, os
from tare.linux import clone
lock = _thread.allocate_lock(); lock.acquire()
_thread.start_new_thread(lock.acquire, ())
while len(os.listdir("/proc/self/task")) < 2: pass
"""


def test_threaded_caller_may_not_clone() -> None:
    done = python(THREADED + "pid = clone.clone3(0)[0]\nprint('cloned'); os._exit(0)")
    assert "refusing to fork a process with 2 threads" in done.stderr and "cloned" not in done.stdout


def test_threaded_caller_may_not_launch_and_leaves_no_cgroup() -> None:
    name = f"tare-test-threaded-{os.getpid()}"
    code = THREADED + (
        "from tare.cgroups import api; from tare.runtime import launch\n"
        f"bundle = {{'oci': {{'process': {{'args': ['true']}}}}, 'cgroup': '/{name}', 'rootfs': {{'path': '/'}}}}\n"
        "launch.launch(bundle, api.detect(), gate=0, status=1, stdio=launch.Stdio(0, 1, 2))"
    )
    assert "refusing to fork a process with 2 threads" in python(code).stderr
    assert traces.cgroups(name) == []


def test_engine_forks_from_single_threads_only(engine: Engine) -> None:
    container = engine.docker("run", "-d", "busybox", "sleep", "1000").stdout.strip()
    zygote = until(lambda: traces.zygote(engine.pid), "a zygote")
    for pid in (zygote, *traces.children(zygote), *traces.shims(engine.base)):
        assert os.listdir(f"/proc/{pid}/task") == [str(pid)]
    engine.docker("rm", "-f", container)


# -- rule 2: no import after the warm-up -------------------------------------------------------------------------------


def test_nothing_can_be_imported_after_freeze() -> None:
    code = """
import tare.runtime.zygote
tare.runtime.zygote.freeze()
sys.path.insert(0, "/")
for name in ("warnings", "encodings.idna", "pwd", "decimal", "tare.errors"):
    if name in sys.modules:
        continue
    try:
        __import__(name)
        print("imported", name)
    except ImportError:
        print("refused", name)
"""
    answers = output(code).splitlines()
    assert answers and all(line.startswith("refused ") for line in answers)


@pytest.fixture(scope="module")
def trapped(engine: Engine) -> Iterator[str]:
    """An image with busybox and, wherever Python might look, files named like modules that leave a mark when they run."""
    names = sorted(name for name in sys.stdlib_module_names if not name.startswith("__"))
    places = {"", "work/", f"{STDLIB}/".lstrip("/"), f"{PACKAGES}/".lstrip("/"), f"{STDLIB}/lib-dynload/".lstrip("/")}
    files = {f"{place}{name}.py": TRAP for place in places for name in names}
    files |= {f"{place}encodings/{name}.py": TRAP for place in places for name in ("__init__", "utf_8", "idna", "ascii")}
    files |= {f"{PACKAGES}/tare/{name}.py".lstrip("/"): TRAP for name in ("__init__", "errors", "linux/proc", "runtime/init")}
    files |= {f"{place}sitecustomize.py": TRAP for place in places}
    files["etc/passwd"] = "root:x:0:0:root:/root:/bin/sh\nworker:x:1000:1000::/work:/bin/sh\n"
    files["etc/group"] = "root:x:0:\nworker:x:1000:\n"
    files["etc/nsswitch.conf"] = "passwd: evil\ngroup: evil\n"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, text in {**files, "bin/busybox": ""}.items():
            data = Path("/bin/busybox").read_bytes() if path == "bin/busybox" else text.encode()
            info = tarfile.TarInfo(path)
            info.size, info.mode = len(data), 0o755
            tar.addfile(info, io.BytesIO(data))
        for applet in ("sh", "ls", "cat", "sleep", "true"):
            info = tarfile.TarInfo(f"bin/{applet}")
            info.type, info.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(info)
    archive = engine.base / "trapped.tar"
    archive.write_bytes(buffer.getvalue())
    engine.docker("import", "--change", "WORKDIR /work", str(archive), "trapped:latest")
    yield "trapped"
    engine.docker_rm_all()


def marks(engine: Engine) -> list[Path]:
    """In the writable layers, so no container may have been removed yet; and on the host."""
    return [*engine.data.glob("snapshots/*/fs/executed-by-the-engine"), *Path("/").glob("executed-by-the-engine")]


def test_trap_would_spring(engine: Engine, trapped: str) -> None:
    """The control: an interpreter that does look there runs the file."""
    for number in engine.data.glob("snapshots/*/fs/work/warnings.py"):
        text = number.read_text().replace("/executed-by-the-engine", str(engine.base / "sprung"))
        done = subprocess.run([sys.executable, "-I", "-S", "-c", text], check=False)
        assert done.returncode == 0 and (engine.base / "sprung").exists()
        return
    pytest.fail("the image has no trap")


@pytest.mark.parametrize("workdir", ["/", "/work", "/new/directory"])
def test_image_cannot_supply_a_module(engine: Engine, trapped: str, workdir: str) -> None:
    """On the straight path and on each way out of it, where an error has to be put into words."""
    engine.docker_rm_all()
    run = ("run", "-w", workdir)
    assert engine.docker(*run, trapped, "/bin/cat", "/etc/group").returncode == 0
    assert engine.docker(*run, "-t", "-u", "worker:worker", trapped, "/bin/true").returncode == 0
    for wrong, code in (
        (("trapped", "/bin/nope"), 127),
        (("trapped", "nope"), 127),
        (("trapped", "/etc/group"), 126),
        (("trapped", "/work"), 126),
        (("-u", "nobody-here", "trapped", "/bin/true"), 125),
        (("--group-add", "nobody-here", "trapped", "/bin/true"), 125),
        (("-v", "/etc/hostname:/work", "trapped", "/bin/true"), 125),
        (("--sysctl", "net.ipv4.no_such_key=1", "trapped", "/bin/true"), 125),
        (("-w", "/etc/group", "trapped", "/bin/true"), 126),
    ):
        done = engine.docker(*run, *wrong, check=False)
        assert done.returncode in (code, 125, 126, 127) and done.returncode, (wrong, done.stderr)
    assert len(list(engine.data.glob("snapshots/*/work"))) >= 11, "the control: all layers are still there"
    assert marks(engine) == []


def test_image_cannot_supply_a_module_to_an_exec(engine: Engine, trapped: str) -> None:
    container = engine.docker("run", "-d", trapped, "/bin/sleep", "1000").stdout.strip()
    for options in ((), ("-t",), ("-u", "worker"), ("-w", "/"), ("-d",)):
        assert engine.docker("exec", *options, container, "/bin/true").returncode == 0
    for options in (("nope",), ("/bin/nope",), ("/etc/group",), ("-u", "nobody-here"), ("-w", "/nowhere")):
        command = options if not options[0].startswith("-") else ()
        flags = options if not command else ()
        assert engine.docker("exec", *flags, container, *(command or ("/bin/true",)), check=False).returncode
    assert marks(engine) == []
    engine.docker("rm", "-f", container)


# -- rule 3: a sealed self ---------------------------------------------------------------------------------------------


def assert_sealed(pid: int) -> None:
    """/proc/<pid>/exe is a memfd that nobody can change any more."""
    assert os.readlink(f"/proc/{pid}/exe").startswith("/memfd:"), traces.comm(pid)
    fd = os.open(f"/proc/{pid}/exe", os.O_RDONLY)
    try:
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS == SEALS
    finally:
        os.close(fd)
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
        with pytest.raises(OSError):
            os.close(os.open(f"/proc/{pid}/exe", flags))


def test_zygote_shim_and_exec_run_from_a_sealed_copy(engine: Engine) -> None:
    container = engine.docker("run", "-d", "busybox", "sleep", "1000").stdout.strip()
    client = subprocess.Popen(["docker", "exec", container, "sleep", "77"], env=engine.environment())
    try:
        # the whole command: before execve it is the zygote's, with numbers of its own in it
        pids = until(
            lambda: [p for p in traces.members(container) if traces.read(f"/proc/{p}/cmdline") == "sleep\x0077\x00"],
            "the exec",
        )
        monitor = int(traces.stat(pids[0])[1])
        zygote = until(lambda: traces.zygote(engine.pid), "a zygote")
        shims = until(lambda: s if len(s := traces.shims(engine.base)) == 2 else None, "both shims")
        assert monitor in shims
        for pid in (zygote, *traces.children(zygote), *shims):
            assert_sealed(pid)
        assert os.readlink(f"/proc/{pids[0]}/exe") == "/bin/sleep"
    finally:
        engine.docker("rm", "-f", container)
        client.wait(30)


def test_container_cannot_write_the_engine_through_its_own_first_process(engine: Engine) -> None:
    """CVE-2019-5736: `/proc/self/exe` as the program is the engine's interpreter, in a script's first line too."""
    done = engine.docker("run", "--rm", "--entrypoint", "/proc/self/exe", "busybox", "-c", "print(6 * 7)", check=False)
    assert done.returncode and "42" not in done.stdout
    zygote = until(lambda: traces.zygote(engine.pid), "a zygote")
    assert_sealed(zygote)


def test_zygote_is_not_dumpable_before_it_serves() -> None:
    code = """
import os, socket
from tare.linux import libc
from tare.runtime import zygote
zygote.serve = lambda jobs, hierarchy: print(libc.prctl(3))  # PR_GET_DUMPABLE
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
zygote.main(theirs.detach())
"""
    assert output(code) == "0\n"


# -- rule 4: no stray descriptors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("-i",), ("-t",), ("-i", "-t")], ids=["plain", "i", "t", "it"])
def test_program_has_three_descriptors(engine: Engine, options: tuple[str, ...]) -> None:
    """As it sees them (the fourth is the directory that ls reads) and as the host does."""
    container = engine.docker("create", *options, "busybox", "sh", "-c", "ls /proc/self/fd; exec sleep 1000").stdout.strip()
    engine.docker("start", container)
    until(lambda: len(engine.docker("logs", container).stdout.split()) >= 4, "ls ends")
    assert engine.docker("logs", container).stdout.split() == ["0", "1", "2", "3"]
    pid = engine.inspect(container)["State"]["Pid"]
    assert sorted(os.listdir(f"/proc/{pid}/fd")) == ["0", "1", "2"]
    master, slave = os.openpty()
    try:
        done = subprocess.run(
            ["docker", "exec", *options, container, "ls", "/proc/self/fd"], env=engine.environment(), stdin=slave,
            stdout=subprocess.PIPE, text=True, check=True, timeout=60,
        )  # fmt: skip
    finally:
        os.close(master)
        os.close(slave)
    assert done.stdout.split() == ["0", "1", "2", "3"]
    engine.docker("rm", "-f", container)


@pytest.fixture(scope="module")
def secret(engine: Engine) -> Path:
    """A file of the host that a container without mounts must not reach."""
    path = engine.base / "secret"
    path.write_text("the host's\n")
    return path


@pytest.mark.parametrize("number", range(3, 21))
def test_working_directory_in_a_leaked_descriptor_is_no_way_out(engine: Engine, secret: Path, number: int) -> None:
    """CVE-2024-21626 for run, for exec, and through a link in the container."""
    engine.tare("rm", "-f", "victim", check=False)
    script = f"cat ../../../../../../..{secret}; cat {secret}; cat ../../proc/1/root{secret}"
    for workdir in (f"/proc/self/fd/{number}", f"/proc/thread-self/fd/{number}/../.."):
        done = engine.tare("run", "--rm", "-w", workdir, "busybox", "sh", "-c", script, check=False)
        assert "the host's" not in done.stdout
        assert done.returncode, "cat of the host's file worked"
    engine.tare("run", "-d", "--name", "victim", "busybox", "sh", "-c", f"ln -s /proc/self/fd/{number} /link; sleep 1000")
    until(lambda: engine.tare("exec", "victim", "test", "-L", "/link", check=False).returncode == 0, "the link")
    for workdir in (f"/proc/self/fd/{number}", "/link", f"/proc/1/fd/{number}"):
        done = engine.tare("exec", "-w", workdir, "victim", "sh", "-c", script, check=False)
        assert "the host's" not in done.stdout
        assert done.returncode, "cat of the host's file worked"
    engine.tare("rm", "-f", "victim")


# -- rule 5: everything decided before, paths inside the root by descriptors -------------------------------------------


def test_links_of_an_image_do_not_lead_a_mount_outside(engine: Engine) -> None:
    """A mount below a link that points out of the root lands inside the root (CVE-2021-30465)."""
    outside, source = engine.base / "outside", engine.base / "source"
    outside.mkdir()
    source.mkdir()
    (source / "file").write_text("mounted\n")
    script = f"ln -s ../../../../../../..{engine.base} /up; ln -s {outside} /abs; mkdir /plain"
    container = engine.docker("create", "-v", f"{source}:/up/outside/a", "-v", f"{source}:/abs/b", "busybox", "sleep", "1000")
    name = container.stdout.strip()
    prepared = engine.docker("run", "-d", "busybox", "sh", "-c", f"{script}; sleep 1000").stdout.strip()
    until(lambda: engine.docker("exec", prepared, "ls", "-d", "/plain", check=False).returncode == 0, "the links")
    upper = [path for path in engine.data.glob("snapshots/*/fs") if (path / "up").is_symlink()]
    mine = json.loads((engine.run_dir / "containers" / prepared / "bundle.json").read_text())["rootfs"]["upper"]
    assert [str(path) for path in upper] == [mine]
    engine.docker("rm", "-f", prepared)
    number = max(int(path.parent.name) for path in engine.data.glob("snapshots/*/fs") if path.parent.name != "1")
    root = engine.data / "snapshots" / str(number) / "fs"
    os.symlink(f"../../../../../../..{engine.base}", root / "up")
    os.symlink(outside, root / "abs")
    engine.docker("start", name)
    done = engine.docker("exec", name, "cat", "/up/outside/a/file", "/abs/b/file")
    assert done.stdout == "mounted\nmounted\n"
    assert list(outside.iterdir()) == []
    engine.docker("rm", "-f", name)


# -- rule 6: the root is mounted in the container's own namespace ------------------------------------------------------


def mount_tables(engine: Engine) -> list[str]:
    zygote = traces.zygote(engine.pid)
    pids = [1, os.getpid(), engine.pid, zygote, *traces.shims(engine.base)]
    return [line for pid in pids for line in traces.read(f"/proc/{pid}/mountinfo").splitlines()]


def test_host_never_sees_a_container_root(engine: Engine) -> None:
    """Sampled all through twenty starts and ends, and looked at while one runs."""
    mine, stop, seen = re.compile(re.escape(str(engine.base))), threading.Event(), set()

    def watch() -> None:
        while not stop.is_set():
            seen.update(line for line in mount_tables(engine) if mine.search(line))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(20):
            engine.tare("run", "--rm", "busybox", "true")
        container = engine.docker("run", "-d", "busybox", "sleep", "1000").stdout.strip()
        inside = traces.read(f"/proc/{engine.inspect(container)['State']['Pid']}/mountinfo")
        engine.docker("rm", "-f", container)
    finally:
        stop.set()
        watcher.join()
    assert mine.search(inside), "the control: the container itself does see it"
    assert seen == set()


def test_shared_host_mounts_do_not_spread_a_container_root(fresh_engine: Engine) -> None:
    """A daemon in a mount namespace whose whole tree is shared, as systemd makes it."""
    engine = fresh_engine
    engine.kill()
    arguments = [str(BIN / "tared"), "--data-root", str(engine.data), "--exec-root", str(engine.run_dir), "--pidfile",
                 str(engine.base / "tared.pid"), "-H", f"unix://{engine.socket}"]  # fmt: skip
    with engine.log.open("ab") as log:
        engine.process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "shared", *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    engine.await_ready()
    assert "shared:" in traces.read(f"/proc/{engine.pid}/mountinfo").splitlines()[0]
    container = engine.docker("run", "-d", "busybox", "sleep", "1000").stdout.strip()
    pid = engine.inspect(container)["State"]["Pid"]
    assert str(engine.base) in traces.read(f"/proc/{pid}/mountinfo")
    assert [line for line in mount_tables(engine) if str(engine.base) in line] == []
    assert "shared:" not in traces.read(f"/proc/{pid}/mountinfo")
    engine.docker("rm", "-f", container)


# -- rule 7: cheap pages -----------------------------------------------------------------------------------------------


def test_collector_is_off_and_what_lives_is_frozen() -> None:
    code = """
import gc
import tare.runtime.zygote
before = gc.get_freeze_count()
tare.runtime.zygote.freeze()
print(before, gc.get_freeze_count() > 5000, gc.isenabled(), len(gc.get_objects()) < 100)
"""
    assert output(code) == "0 True False True\n"
