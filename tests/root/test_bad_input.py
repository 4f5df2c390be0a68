"""Mistakes of people and machines: each gets one clear sentence on stderr and Docker's exit code, from both clients.

Nowhere a traceback: not in a client's output, not in the daemon's log.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import socket
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import BIN, Engine

pytestmark = pytest.mark.root
Call = Callable[..., subprocess.CompletedProcess[str]]
FRAME = ("Usage:  ", "Run '", "See '", "Unable to find image ")
"""How both clients frame an error; what is left of stderr is the sentence."""


@pytest.fixture(params=["docker", "tare"])
def client(request: pytest.FixtureRequest, engine: Engine) -> Iterator[Call]:
    """Not `clean`: a mistake leaves nothing behind that could harm the next one, and there are many."""
    call: Call = getattr(engine, request.param)

    def checked(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
        done = call(*words, check=False, **options)
        assert "Traceback" not in done.stderr + done.stdout
        return done

    yield checked
    assert "Traceback" not in engine.log.read_text()


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that says what is wrong; a second one is a failure."""
    lines = [line for line in done.stderr.splitlines() if line and not line.startswith(FRAME)]
    assert len(lines) == 1, done.stderr
    return lines[0]


def docker_archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


# -- run -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "wanted"),
    [
        (("busybox", "nosuch"), 127, 'exec: "nosuch": executable file not found in $PATH'),
        (("busybox", "/nosuch"), 127, 'exec: "/nosuch": stat /nosuch: no such file or directory'),
        (("busybox", "/etc/passwd"), 126, 'exec: "/etc/passwd": permission denied'),
        (("busybox", "/etc"), 126, 'exec: "/etc": is a directory: permission denied'),
        (("--entrypoint", "", "busybox"), 125, "no command specified"),
        (("--pull", "never", "nosuch:1", "true"), 125, "No such image: nosuch:1"),
        (("Bad:1", "true"), 125, "invalid reference format: repository name (library/Bad) must be lowercase"),
        (("--nosuch", "busybox"), 125, "unknown flag: --nosuch"),
        (("-u", "nosuch", "busybox", "id"), 125, "unable to find user nosuch: no matching entries in passwd file"),
        (("--group-add", "nosuch", "busybox", "id"), 125, "unable to find group nosuch"),
        (("-w", "relative", "busybox", "pwd"), 125, "the working directory 'relative' is invalid"),
        (("-e", "=x", "busybox"), 125, "invalid environment variable: =x"),
        (("--env-file", "/nosuch", "busybox"), 125, "open /nosuch: no such file or directory"),
        (("--name", "a b", "busybox"), 125, "Invalid container name (a b), only [a-zA-Z0-9]"),
        (("--memory", "lots", "busybox"), 125, "invalid size: 'lots'"),
        (("--memory", "1m", "busybox"), 125, "Minimum memory limit allowed is 6MB"),
        (("--cpus", "1000", "busybox"), 125, "CPUs is from 0.01 to "),
        (
            ("--ulimit", "nofile=9:3", "busybox"),
            125,
            "ulimit soft limit must be less than or equal to hard limit: 9 > 3",
        ),
        (("--ulimit", "nosuch=1", "busybox"), 125, "invalid ulimit type: nosuch"),
        (("--shm-size", "-5", "busybox"), 125, "invalid size: '-5'"),
        (("--stop-signal", "FOO", "busybox"), 125, "nvalid signal: FOO"),
        (("--stop-timeout", "x", "busybox"), 125, 'parsing "x": invalid syntax'),
        (("--restart", "sometimes", "busybox"), 125, "unknown policy 'sometimes'"),
        (("--cap-add", "NOPE", "busybox"), 125, 'unknown capability: "CAP_NOPE"'),
        (("--security-opt", "foo=bar", "busybox"), 125, 'invalid --security-opt 2: "foo=bar"'),
        (("--security-opt", "seccomp=/nosuch", "busybox"), 125, "opening seccomp profile (/nosuch) failed"),
        (("--device", "/dev/nosuch", "busybox"), 127, 'adding custom device "/dev/nosuch": no such file or directory'),
        (("-v", "/a:relative", "busybox"), 125, "mount path must be absolute"),
        (("-v", "/a:/b:zz", "busybox"), 125, "invalid mode: zz"),
        (("-v", "/etc:/", "busybox"), 125, "destination can't be '/'"),
        (("--mount", "type=bind,src=/nosuch,dst=/m", "busybox"), 125, "bind source path does not exist: /nosuch"),
        (("--mount", "type=foo,dst=/m", "busybox"), 125, 'invalid mount config for type "foo": mount type unknown'),
        (("--tmpfs", "relative", "busybox"), 125, "mount path must be absolute"),
        (("--ipc", "foo", "busybox"), 125, "invalid IPC mode: foo"),
        (("--pid", "container:nosuch", "busybox"), 125, "No such container: nosuch"),
        (("--log-driver", "nosuch", "busybox"), 125, "no log driver named 'nosuch' is registered"),
        (("--runtime", "nosuch", "busybox"), 125, "unknown or invalid runtime name: nosuch"),
        (("-p", "80:99999", "busybox"), 125, "invalid containerPort: 99999"),
        (("-it", "busybox"), 1, "the input device is not a TTY"),
    ],
    ids=lambda value: "_".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_run_says_what_is_wrong(client: Call, words: tuple[str, ...], code: int, wanted: str) -> None:
    done = client("run", "--network", "none", *words)
    assert wanted in sentence(done)
    assert (done.returncode, done.stdout) == (code, "")


@pytest.mark.parametrize(
    ("network", "wanted"), [("nosuch", "network nosuch not found"), ("container:no", "container: no")]
)
def test_unknown_network_also_with_rm(client: Call, clean: Engine, network: str, wanted: str) -> None:
    """With --rm clients wait for the removal: it has to come although nothing ever ran."""
    done = client("run", "--rm", "--network", network, "busybox", "true", timeout=20)
    assert done.returncode == 125
    assert wanted in done.stderr
    assert clean.docker("ps", "-aq").stdout == ""


def test_image_that_is_nowhere(client: Call) -> None:
    """Nobody listens at port 1."""
    done = client("run", "--network", "none", "localhost:1/nosuch:2", "true")
    assert done.returncode == 125 and sentence(done)
    assert done.stderr.startswith("Unable to find image 'localhost:1/nosuch:2' locally\n")


def test_name_that_is_taken(client: Call, clean: Engine) -> None:
    identity = client("create", "--network", "none", "--name", "box", "busybox").stdout.strip()
    done = client("run", "--network", "none", "--name", "box", "busybox", "true")
    assert done.returncode == 125
    assert f'The container name "/box" is already in use by container "{identity}"' in sentence(done)
    client("create", "--network", "none", "--name", "other", "busybox")
    done = client("rename", "other", "box")
    assert done.returncode == 1 and 'name "/box" is already in use' in done.stderr


def test_no_arguments_and_unknown_commands(client: Call) -> None:
    done = client("run")
    assert done.returncode == 1 and "requires at least 1 argument" in sentence(done)
    done = client("nosuch")
    assert done.returncode == 1 and "unknown command: " in sentence(done)


# -- objects that do not exist, states that do not fit -------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        *(((*words.split(),), "No such container: nosuch") for words in (
            "rm nosuch", "rm -f nosuch", "stop nosuch", "kill nosuch", "pause nosuch", "unpause nosuch",
            "restart nosuch", "wait nosuch", "attach nosuch", "logs nosuch", "exec nosuch true", "exec -d nosuch true",
            "container inspect nosuch",
        )),
        *(((*words.split(),), "No such image: nosuch:latest") for words in (
            "rmi nosuch", "tag nosuch a:b", "save nosuch", "history nosuch", "image inspect nosuch",
        )),
        (("inspect", "nosuch"), "o such object: nosuch"),
        (("load", "-i", "/nosuch"), "open /nosuch: no such file or directory"),
        (("import", "/nosuch"), "open /nosuch: no such file or directory"),
        (("ps", "--filter", "foo=bar"), "invalid filter 'foo'"),
        (("ps", "--format", "{{.Nosuch}}"), "Nosuch"),
        (("ps", "--format", "{{"), "emplate"),
        (("images", "--filter", "foo=bar"), "invalid filter 'foo'"),
        (("events", "--until", "1", "--filter", "foo=bar"), "invalid filter 'foo'"),
        (("tag", "busybox", "BAD"), "must be lowercase"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_missing_objects_and_wrong_words_are_exit_1(client: Call, words: tuple[str, ...], wanted: str) -> None:
    done = client(*words)
    expected = 0 if words[:2] == ("rm", "-f") else 1
    assert done.returncode == expected, done.stderr
    assert wanted in sentence(done)


def test_states_that_do_not_fit(client: Call, clean: Engine) -> None:
    identity = client("create", "--network", "none", "--name", "box", "busybox", "sleep", "600").stdout.strip()
    for words in (("exec", "box", "true"), ("kill", "box"), ("pause", "box")):
        done = client(*words)
        assert done.returncode == 1 and f"ontainer {identity} is not running" in sentence(done)
    client("start", "box")
    done = client("rm", "box")
    assert done.returncode == 1 and 'cannot remove container "/box": container is running' in sentence(done)
    done = client("unpause", "box")
    assert done.returncode == 1 and "is not paused" in sentence(done)
    done = client("kill", "-s", "FOO", "box")
    assert done.returncode == 1 and "nvalid signal: FOO" in sentence(done)
    assert client("logs", "--since", "yesterdayish", "box").returncode == 1


def test_daemon_that_is_not_there(client: Call, tmp_path: Path) -> None:
    for words, code in ((("run", "busybox"), 125), (("ps",), 1), (("-H", "foo://x", "ps"), 1)):
        place = () if words[0] == "-H" else ("-H", f"unix://{tmp_path}/none.sock")
        done = client(*place, *words)
        assert done.returncode == code and done.stdout == ""
        assert sentence(done)


# -- archives ------------------------------------------------------------------------------------------------------


def _broken(kind: str, good: Path, to: Path) -> Path:
    """An archive with one fault."""
    path = to / kind
    data = good.read_bytes()
    with tarfile.open(good) as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]
    manifest = json.loads(members["manifest.json"])
    if kind == "random":
        path.write_bytes(os.urandom(5000))
    elif kind == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "cut.gz":
        packed = gzip.compress(data, 1)
        path.write_bytes(packed[: len(packed) // 2])
    elif kind == "no-manifest":
        del members["manifest.json"]
        docker_archive(path, members)
    elif kind == "no-layer":
        del members[manifest[0]["Layers"][0]]
        docker_archive(path, members)
    elif kind == "wrong-layer":
        docker_archive(path, {**members, manifest[0]["Layers"][0]: bytes(10240)})
    elif kind == "no-json":
        docker_archive(path, {**members, "manifest.json": b"{nonsense"})
    elif kind == "outside":
        manifest[0]["Config"] = "../../../../etc/passwd"
        docker_archive(path, {**members, "manifest.json": json.dumps(manifest).encode()})
    return path


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("random", "invalid tar header"),
        ("cut", "unexpected EOF"),
        ("cut.gz", "unexpected EOF in gzip data"),
        ("no-manifest", "archive holds no image"),
        ("no-layer", "is missing"),
        ("wrong-layer", "invalid diffID for layer"),
        ("no-json", "manifest.json is not valid JSON"),
        ("outside", 'archive member "../../../../etc/passwd" is missing'),
    ],
)
def test_load_of_a_broken_archive(
    client: Call, clean: Engine, busybox_archive: Path, tmp_path: Path, kind: str, wanted: str
) -> None:
    archive = _broken(kind, busybox_archive, tmp_path)
    clean.docker("rmi", "busybox")
    blobs = clean.data / "blobs" / "sha256"
    before = sorted(os.listdir(blobs))
    try:
        done = client("load", "-i", str(archive))
        assert done.returncode == 1 and wanted in sentence(done), done.stderr
        assert client("images", "-q").stdout == ""
        assert sorted(os.listdir(blobs)) == before and os.listdir(clean.data / "ingest") == []
    finally:
        clean.docker("load", "-i", str(busybox_archive))


@pytest.mark.parametrize(
    ("kind", "wanted"), [("random", "invalid tar header"), ("cut", "unexpected EOF"), ("cut.gz", "unexpected EOF")]
)
def test_import_of_a_broken_archive(
    client: Call, clean: Engine, busybox_archive: Path, tmp_path: Path, kind: str, wanted: str
) -> None:
    archive = _broken(kind, busybox_archive, tmp_path)
    done = client("import", str(archive), "broken:1")
    assert done.returncode == 1 and wanted in sentence(done)
    assert client("images", "-q", "broken").stdout == ""
    assert os.listdir(clean.data / "ingest") == []


# -- the daemon's start --------------------------------------------------------------------------------------------


def tared(base: Path, *options: str, before: tuple[str, ...] = (), **paths: Path) -> subprocess.CompletedProcess[str]:
    """A daemon that is expected to refuse to start."""
    places = {"data-root": base / "data", "exec-root": base / "run", "pidfile": base / "pid"}
    places.update({name.replace("_", "-"): path for name, path in paths.items()})
    words = [f"--{name}={path}" for name, path in places.items()]
    command = [*before, str(BIN / "tared"), *words, "-H", f"unix://{base}/sock", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20, stdin=subprocess.DEVNULL)


def refused(done: subprocess.CompletedProcess[str], wanted: str) -> None:
    errors = [line for line in done.stderr.splitlines() if "level=info" not in line]
    assert done.returncode == 1 and len(errors) == 1, done.stderr
    assert errors[0].startswith("tared: ") and wanted in errors[0]


def test_daemon_without_privileges_says_so(tmp_path: Path) -> None:
    nobody = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
    refused(tared(tmp_path, before=nobody), "the daemon needs root")
    assert not (tmp_path / "data").exists()
    bare_root = ("setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin")
    refused(tared(tmp_path, before=bare_root), "the daemon lacks the capability CAP_SYS_ADMIN")


def test_daemon_without_libseccomp_says_what_to_install(tmp_path: Path) -> None:
    """Hidden in a mount namespace of its own: an empty file lies over the library."""
    listed = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    libraries = {line.split(" => ")[1] for line in listed.splitlines() if "libseccomp.so" in line and " => " in line}
    assert libraries
    hide = "".join(f"mount --bind /dev/null {os.path.realpath(library)} && " for library in libraries)
    refused(tared(tmp_path, before=("unshare", "-m", "sh", "-c", hide + 'exec "$@"', "sh")), "libseccomp")


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (("--nosuch",), "unknown flag: --nosuch"),
        (("word",), "unexpected argument: word"),
        (("--log-level", "loud"), "invalid logging level: loud"),
        (("-H", "foo://x"), "invalid host foo://x"),
        (("-H", "tcp://127.0.0.1:99999"), "no port"),
        (("--pidfile", "/nosuch/pid"), "open /nosuch/pid: no such file or directory"),
        (("--data-root", "/etc/passwd"), "/etc/passwd is not a directory"),
        (("--config-file", "/nosuch"), "read /nosuch: no such file or directory"),
        (('{"nosuch": 1}',), "don't match any configuration option: nosuch"),
        (('{"debug": "yes"}',), "debug is not true or false"),
        (("[]",), "not a JSON object"),
        (("{",), "daemon.json: "),
    ],
)
def test_daemon_with_wrong_options(tmp_path: Path, options: tuple[str, ...], wanted: str) -> None:
    if options[0][0] in "{[":
        (tmp_path / "daemon.json").write_text(options[0])
        options = ("--config-file", str(tmp_path / "daemon.json"))
    refused(tared(tmp_path, *options), wanted)


def test_second_daemon_in_one_place_is_refused_and_the_first_unharmed(clean: Engine, tmp_path: Path) -> None:
    refused(tared(tmp_path, data_root=clean.data), f"{clean.data} is in use by another tared")
    refused(tared(tmp_path, exec_root=clean.run_dir), f"{clean.run_dir} is in use by another tared")
    refused(tared(tmp_path, pidfile=clean.base / "tared.pid"), "belongs to another tared")
    done = tared(tmp_path, "-H", f"unix://{clean.socket}")
    refused(done, f"listen on {clean.socket}: another process serves it")
    assert clean.docker("run", "--rm", "--network", "none", "busybox", "echo", "unharmed").stdout == "unharmed\n"


def test_foreign_file_in_the_sockets_place_is_kept(tmp_path: Path) -> None:
    (tmp_path / "sock").write_text("mine")
    refused(tared(tmp_path), str(tmp_path / "sock"))
    assert (tmp_path / "sock").read_text() == "mine"


def test_stale_pidfile_and_socket_are_taken_over(fresh_engine: Engine) -> None:
    fresh_engine.kill()
    assert fresh_engine.socket.is_socket() and (fresh_engine.base / "tared.pid").exists()
    for command, code in ((("run", "busybox"), 125), (("ps",), 1)):
        for call in (fresh_engine.docker, fresh_engine.tare):
            done = call(*command, check=False)
            assert done.returncode == code and "Cannot connect to the " in sentence(done)
    # The number of somebody who lives and is no daemon.
    (fresh_engine.base / "tared.pid").write_text(f"{os.getpid()}\n")
    fresh_engine.start()
    assert (fresh_engine.base / "tared.pid").read_text() == f"{fresh_engine.pid}\n"
    assert fresh_engine.docker("images", "-q").stdout
    assert "Traceback" not in fresh_engine.log.read_text()


def test_zygote_whose_daemon_died_leaves_without_a_word() -> None:
    """A daemon killed right after its start leaves a zygote that has nobody to be ready for."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    packages = next((BIN.parent / "lib").glob("python3*/site-packages/tare")).parent
    with theirs:
        ours.close()
        zygote = [str(packages / "tare" / "runtime" / "zygote.py"), str(theirs.fileno()), str(packages)]
        done = subprocess.run(
            [str(BIN / "python"), "-I", "-S", *zygote],
            capture_output=True, text=True, check=False, timeout=20, pass_fds=[theirs.fileno()],
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_noise_on_the_socket_harms_nobody(clean: Engine) -> None:
    for noise in (
        b"\x00" * 100,
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        bytes(range(256)) * 16,
    ):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(15)
            sock.connect(str(clean.socket))
            sock.sendall(noise)
            sock.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda sock=sock: sock.recv(65536), b""))
        assert not answer or answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 505")), answer
    assert clean.http("GET", "/_ping").stdout == "OK"
    assert "Traceback" not in clean.log.read_text()
