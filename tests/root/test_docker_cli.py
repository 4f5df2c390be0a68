"""What people type: the stock `docker` client and our `tare`, side by side, against the same daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import BIN, Engine
from terminal import Terminal

pytestmark = pytest.mark.root
ALONE = ("--network", "none")
PROMPT = "/ # "


class Client:
    """One of the two programs; called with a command line it runs it and fails if that fails."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine, self.name = engine, name
        self.program = "docker" if name == "docker" else str(BIN / "tare")

    def __call__(self, *words: str, **options: object) -> subprocess.CompletedProcess[str]:
        call: Callable[..., subprocess.CompletedProcess[str]] = getattr(self.engine, self.name)
        return call(*words, **options)

    def run(self, *words: str, **options: object) -> str:
        """`run --rm` without a network: what it wrote to stdout."""
        return self("run", "--rm", *ALONE, *words, **options).stdout

    def sleeper(self, *words: str, name: str = "box") -> str:
        """A container that sleeps until SIGTERM; its id."""
        return self("run", "-d", *ALONE, "--init", "--name", name, *words, "busybox", "sleep", "600").stdout.strip()

    def popen(self, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [self.program, *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self.engine.environment(),
        )  # fmt: skip

    def terminal(self, *words: str, rows: int = 24, columns: int = 80) -> Terminal:
        return Terminal([self.program, *words], self.engine.environment(), rows=rows, columns=columns)


@pytest.fixture(params=["docker", "tare"])
def client(request: pytest.FixtureRequest, engine: Engine) -> Iterator[Client]:
    """As `clean`, but it looks first: many a test leaves nothing, and a client costs 0.1 s."""
    yield Client(engine, request.param)
    if engine.http("GET", "/containers/json?all=1").stdout.strip() != "[]":
        engine.docker_rm_all()
    assert "Traceback" not in engine.log.read_text()


def eventually(question: Callable[[], bool], what: str, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not question():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def resized(terminal: Terminal, rows: int, columns: int) -> None:
    """Change our size, then wait until `stty size` at the shell inside says it."""
    terminal.type(f"until [ \"$(stty size)\" = '{rows} {columns}' ]; do :; done; echo se''en\r")
    terminal.resize(rows, columns)
    deadline = time.monotonic() + 15
    while True:
        try:
            terminal.expect("seen", 0.5)
            return
        except AssertionError:
            # docker asks for the signal only after the first size was sent: it may have come too early.
            assert time.monotonic() < deadline, f"no {rows} {columns}: {terminal.screen!r}"
            terminal.process.send_signal(signal.SIGWINCH)


def capabilities(status: str) -> int:
    return int(next(line for line in status.splitlines() if line.startswith("CapEff")).split()[1], 16)


# -- run -----------------------------------------------------------------------------------------------------------


def test_run_gives_exit_code_and_separate_streams(client: Client) -> None:
    done = client("run", "--rm", *ALONE, "busybox", "sh", "-c", "echo out; echo err >&2; exit 7", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert client("ps", "-aq").stdout == ""


def test_stdin_reaches_the_container_only_with_i(client: Client) -> None:
    data = os.urandom(300_000)
    assert client("run", "--rm", "-i", *ALONE, "busybox", "cat", input=data).stdout == data
    assert client("run", "--rm", *ALONE, "busybox", "cat", input=b"unseen").stdout == b""


def test_output_flows_on_after_stdin_was_closed(client: Client) -> None:
    with client.popen("run", "--rm", "-i", *ALONE, "busybox", "sh", "-c", "cat; echo after") as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"before\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"before\n"
        process.stdin.close()
        assert process.stdout.read() == b"after\n"
        assert process.wait(15) == 0


def test_signals_of_the_client_reach_the_container(client: Client) -> None:
    script = "trap 'echo got; exit 3' TERM; echo ready; while :; do sleep 0.05; done"
    with client.popen("run", "--rm", *ALONE, "busybox", "sh", "-c", script) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == b"got\n"
        assert process.wait(15) == 3


def test_terminal_has_the_size_of_ours_and_is_given_back_as_it_was(client: Client) -> None:
    with client.terminal("run", "--rm", "-it", *ALONE, "busybox", rows=31, columns=101) as terminal:
        terminal.expect(PROMPT)
        eventually(terminal.is_raw, "the terminal is not raw")
        for rows, columns in ((31, 101), (47, 133), (20, 60)):
            resized(terminal, rows, columns)
        terminal.type("tty; exit 5\r")
        terminal.expect("/dev/pts/0")
        assert terminal.wait() == 5
        assert terminal.modes() == terminal.before


def test_ctrl_c_is_the_containers(client: Client) -> None:
    with client.terminal("run", "--rm", "-it", *ALONE, "busybox") as terminal:
        terminal.expect(PROMPT)
        # The shell's child says it: by then the terminal's signals are its own.
        terminal.type("sh -c 'echo run\"\"ning; exec sleep 60'\r")
        terminal.expect("running")
        terminal.type("\x03")
        terminal.expect(PROMPT)
        terminal.type("echo code=$?\r")
        terminal.expect("code=130")
        terminal.expect(PROMPT)
        terminal.type("\x04")
        assert terminal.wait() == 0


@pytest.mark.parametrize(("option", "keys"), [((), "\x10\x11"), (("--detach-keys", "ctrl-a,x"), "\x01x")])
def test_detach_keys_leave_the_container_running_and_attach_comes_back(
    client: Client, option: tuple[str, ...], keys: str
) -> None:
    with client.terminal("run", "-it", *option, *ALONE, "--name", "box", "busybox") as terminal:
        terminal.expect(PROMPT)
        terminal.type("word=kept\r")
        terminal.expect(PROMPT)
        terminal.type(keys)
        assert terminal.wait() == 0
        assert terminal.modes() == terminal.before
    assert client.engine.inspect("box")["State"]["Running"]
    with client.terminal("attach", "box") as terminal:
        terminal.type("echo still $word\r")
        terminal.expect("still kept")
        terminal.type("exit 4\r")
        assert terminal.wait() == 4
        assert terminal.modes() == terminal.before


def test_terminal_is_restored_when_the_daemon_cannot_start_the_program(client: Client) -> None:
    with client.terminal("run", "--rm", "-it", *ALONE, "busybox", "nosuch") as terminal:
        assert terminal.wait() == 127
        assert terminal.modes() == terminal.before
        terminal.expect("executable file not found")


def test_detached_run_prints_the_id(client: Client) -> None:
    identity = client.sleeper()
    assert len(identity) == 64 and client.engine.inspect("box")["Id"] == identity
    assert client.engine.inspect("box")["State"]["Running"]


# -- listing -------------------------------------------------------------------------------------------------------


def test_ps_lists_formats_and_filters(client: Client) -> None:
    identity = client.sleeper("--label", "kind=a", name="up")
    client("run", *ALONE, "--name", "down", "--label", "kind=b", "busybox", "sh", "-c", "exit 3", check=False)
    head, row = client("ps").stdout.splitlines()
    assert head.split() == ["CONTAINER", "ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"]
    assert row.startswith(identity[:12]) and '"sleep 600"' in row and " Up " in row and row.endswith("up")
    lines = client("ps", "-a", "--format", '{{.Names}} {{.Image}} {{.State}} {{.Label "kind"}}').stdout.splitlines()
    assert lines == ["down busybox exited b", "up busybox running a"]
    assert client("ps", "-q", "--no-trunc").stdout == identity + "\n"
    documents = [json.loads(line) for line in client("ps", "-a", "--format", "json").stdout.splitlines()]
    assert [d["Names"] for d in documents] == ["down", "up"] and documents[0]["Status"].startswith("Exited (3) ")
    for given, names in (
        ("status=exited", ["down"]), ("status=running", ["up"]), ("label=kind=a", ["up"]), ("label=kind", ["down", "up"]),
        ("name=^do", ["down"]), ("exited=3", ["down"]), ("ancestor=busybox", ["down", "up"]), (f"id={identity}", ["up"]),
        ("before=down", ["up"]), ("since=up", ["down"]), ("exited=4", []),
    ):  # fmt: skip
        found = client("ps", "-a", "--filter", given, "--format", "{{.Names}}").stdout.split()
        assert found == names, given
    assert client("ps", "-aln1", "--format", "{{.Names}}").stdout == "down\n"


def test_inspect_templates(client: Client) -> None:
    identity = client.sleeper("-e", "A=1", "--label", "k=v")
    template = '{{.Id}} {{.Name}} {{.State.Running}} {{.HostConfig.NetworkMode}} {{index .Config.Labels "k"}}'
    assert client("inspect", "-f", template, "box").stdout == f"{identity} /box true none v\n"
    assert client("inspect", "-f", "{{range .Config.Env}}{{println .}}{{end}}", "box").stdout.startswith("A=1\n")
    assert json.loads(client("inspect", "-f", "{{json .Config.Cmd}}", identity[:8]).stdout) == ["sleep", "600"]
    both = json.loads(client("inspect", "box", "busybox").stdout)
    assert both[0]["Id"] == identity and "busybox:latest" in both[1]["RepoTags"]
    assert client("inspect", "--type", "image", "-f", "{{.Os}}", "busybox").stdout == "linux\n"
    assert client("inspect", "-s", "-f", "{{.SizeRw}}", "box").stdout.strip().isdigit()


# -- logs ----------------------------------------------------------------------------------------------------------


def test_logs_by_tail_time_and_stream(client: Client) -> None:
    client("run", *ALONE, "--name", "box", "busybox", "sh", "-c", "echo a; echo b >&2; sleep 0.05; echo c")
    done = client("logs", "box")
    assert (done.stdout, done.stderr) == ("a\nc\n", "b\n")
    assert client("logs", "--tail", "1", "box").stdout == "c\n"
    assert client("logs", "-n0", "box").stdout == ""
    lines = client("logs", "-t", "box").stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["a", "c"]
    last = lines[1].split()[0]
    assert last.endswith("Z") and "T" in last
    assert client("logs", "--since", last, "box").stdout == "c\n"
    assert client("logs", "--until", last, "--since", "1h", "box").stdout.startswith("a\n")
    assert client("logs", "--since", "2099-01-01", "box").stdout == ""


def test_logs_follow_until_the_container_ends(client: Client) -> None:
    script = "echo first; read x; echo $x"
    client("run", "-d", "-i", *ALONE, "--name", "box", "busybox", "sh", "-c", script)
    with client.popen("logs", "-f", "box") as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == b"first\n"
        client("attach", "box", input="second\n")
        assert follower.stdout.read() == b"second\n"
        assert follower.wait(15) == 0


# -- exec ----------------------------------------------------------------------------------------------------------


def test_exec_streams_codes_and_options(client: Client) -> None:
    client.sleeper()
    done = client("exec", "box", "sh", "-c", "echo out; echo err >&2; exit 9", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (9, "out\n", "err\n")
    assert client("exec", "-i", "box", "cat", input="in").stdout == "in"
    script = "echo $A; pwd; id -u"
    done = client("exec", "-e", "A=1", "-w", "/tmp", "-u", "nobody", "box", "sh", "-c", script)
    assert done.stdout == "1\n/tmp\n65534\n"
    for program, code in (("nosuch", 127), ("/etc/passwd", 126)):
        assert client("exec", "box", program, check=False).returncode == code
    assert client("exec", "box", "sh", "-c", "kill -9 $$", check=False).returncode == 137


def test_exec_detached_goes_on_by_itself(client: Client) -> None:
    client.sleeper()
    assert client("exec", "-d", "box", "sh", "-c", "echo done >/tmp/mark").stdout == ""
    eventually(lambda: client("exec", "box", "cat", "/tmp/mark", check=False).stdout == "done\n", "it never ran")


def test_exec_on_a_terminal(client: Client) -> None:
    client.sleeper()
    with client.terminal("exec", "-it", "box", "sh", rows=33, columns=99) as terminal:
        terminal.expect(PROMPT)
        resized(terminal, 33, 99)
        resized(terminal, 44, 111)
        terminal.type("exit 6\r")
        assert terminal.wait() == 6
        assert terminal.modes() == terminal.before


# -- life ----------------------------------------------------------------------------------------------------------


def test_stop_sends_the_stop_signal_and_kills_after_the_timeout(client: Client) -> None:
    script = "trap 'exit 8' USR1; echo ready; while :; do sleep 0.05; done"
    shell = ("busybox", "sh", "-c", script)
    client("run", "-d", *ALONE, "--name", "polite", "--stop-signal", "USR1", *shell)
    client("run", "-d", *ALONE, "--name", "deaf", "--stop-timeout", "0", "busybox", "sleep", "600")
    eventually(lambda: client.engine.docker("logs", "polite").stdout == "ready\n", "no trap is set")
    assert client("stop", "polite", "deaf").stdout.split() == ["polite", "deaf"]
    assert client.engine.inspect("polite")["State"]["ExitCode"] == 8
    assert client.engine.inspect("deaf")["State"]["ExitCode"] == 137
    assert client("stop", "polite").stdout == "polite\n"


def test_kill_sends_any_signal(client: Client) -> None:
    script = "trap 'echo usr2' USR2; echo ready; while :; do sleep 0.05; done"
    client("run", "-d", *ALONE, "--name", "box", "busybox", "sh", "-c", script)
    eventually(lambda: client.engine.docker("logs", "box").stdout == "ready\n", "no trap is set")
    client("kill", "-s", "SIGUSR2", "box")
    eventually(lambda: client.engine.docker("logs", "box").stdout.endswith("usr2\n"), "the signal did not arrive")
    assert client.engine.inspect("box")["State"]["Running"]
    client("kill", "box")
    assert client.engine.await_state("box", "exited")["ExitCode"] == 137


def test_wait_prints_codes_and_attach_returns_them(client: Client) -> None:
    client("run", "-d", "-i", *ALONE, "--name", "box", "busybox", "sh", "-c", "read x; echo got $x; exit 11")
    with client.popen("wait", "box") as waiter:
        assert waiter.stdout is not None
        done = client("attach", "box", input="it\n", check=False)
        assert (done.returncode, done.stdout) == (11, "got it\n")
        assert waiter.stdout.read() == b"11\n"
    assert client("wait", "box").stdout == "11\n"


def test_create_start_rename_restart_and_remove(client: Client) -> None:
    identity = client("create", *ALONE, "--init", "--name", "one", "busybox", "sleep", "600").stdout.strip()
    assert client.engine.inspect("one")["State"]["Status"] == "created"
    assert client("start", "one").stdout == "one\n"
    client("rename", "one", "two")
    pid = client.engine.inspect("two")["State"]["Pid"]
    assert client("restart", "-t", "5", "two").stdout == "two\n"
    state = client.engine.inspect("two")["State"]
    assert state["Running"] and state["Pid"] != pid
    assert client("rm", identity, check=False).returncode == 1
    assert client("rm", "-f", identity).stdout == identity + "\n"
    assert client("ps", "-aq").stdout == ""


def test_start_attached_again_and_again(client: Client) -> None:
    client("create", "-i", *ALONE, "--name", "box", "busybox", "sh", "-c", "cat; exit 12")
    for text in ("once\n", "twice\n"):
        done = client("start", "-ai", "box", input=text, check=False)
        assert (done.returncode, done.stdout) == (12, text)


def test_pause_freezes_and_unpause_thaws(client: Client) -> None:
    client.sleeper()
    assert client("pause", "box").stdout == "box\n"
    assert client("ps", "--format", "{{.Status}}").stdout.endswith("(Paused)\n")
    refused = client("exec", "box", "true", check=False)
    assert refused.returncode == 1 and "is paused, unpause the container before exec" in refused.stderr
    client("unpause", "box")
    assert client("exec", "box", "echo", "awake").stdout == "awake\n"


def test_events_tell_the_life_of_a_container(client: Client) -> None:
    since, name = str(int(time.time())), f"events-{client.name}"
    with client.popen("events", "--since", since, "--filter", f"container={name}", "--format", "{{json .}}") as watcher:
        assert watcher.stdout is not None
        client("run", "--rm", *ALONE, "--name", name, "--label", "k=v", "busybox", "sh", "-c", "exit 3", check=False)
        seen = []
        while not seen or seen[-1]["Action"] != "destroy":
            seen.append(json.loads(watcher.stdout.readline()))
        watcher.terminate()
    assert [event["Action"] for event in seen if event["Type"] == "container"] == [
        "create", "attach", "start", "die", "destroy"
    ]  # fmt: skip
    died = seen[-2]["Actor"]["Attributes"]
    assert (died["exitCode"], died["name"], died["image"], died["k"]) == ("3", name, "busybox", "v")
    lines = client("events", "--since", since, "--until", str(int(time.time()) + 1), "--filter", "event=die").stdout
    assert "container die" in lines and "exitCode=3" in lines


# -- images --------------------------------------------------------------------------------------------------------


def test_images_are_tagged_saved_removed_and_loaded_with_the_same_id(client: Client, tmp_path: Path) -> None:
    identity = client("images", "-q", "--no-trunc", "busybox").stdout.strip()
    assert identity.startswith("sha256:")
    client("tag", "busybox", "example.com/copy:v1")
    rows = client("images", "--format", "{{.Repository}} {{.Tag}} {{.ID}}").stdout.splitlines()
    assert sorted(rows) == [f"busybox latest {identity[7:19]}", f"example.com/copy v1 {identity[7:19]}"]
    archive = tmp_path / "copy.tar"
    client("save", "-o", str(archive), "example.com/copy:v1", "busybox")
    piped = client("save", "busybox", input=b"").stdout
    removed = client("rmi", "example.com/copy:v1", "busybox").stdout
    assert removed.startswith("Untagged: example.com/copy:v1\nUntagged: busybox:latest\n")
    assert f"Deleted: {identity}\n" in removed
    assert client("images", "-q").stdout == ""
    assert client("load", "-q", input=piped).stdout == b"Loaded image: busybox:latest\n"
    loaded = client("load", "-i", str(archive)).stdout.splitlines()
    assert sorted(loaded) == ["Loaded image: busybox:latest", "Loaded image: example.com/copy:v1"]
    assert set(client("images", "-q", "--no-trunc").stdout.split()) == {identity}
    assert client.run("example.com/copy:v1", "echo", "alive") == "alive\n"
    assert client("rmi", "example.com/copy:v1").stdout == "Untagged: example.com/copy:v1\n"


def test_image_in_use_is_not_removed(client: Client) -> None:
    client.sleeper()
    refused = client("rmi", "busybox", check=False)
    assert refused.returncode == 1 and "conflict: unable to " in refused.stderr
    assert client("images", "-q", "busybox").stdout


# -- flags of run --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "script", "wanted"),
    [
        (("-e", "A=1 2", "-e", "LC_ALL", "-e", "UNSET_HERE"), "echo $A,$LC_ALL,${UNSET_HERE-none}", "1 2,C.UTF-8,none"),
        (("-w", "/var/new/place"), "pwd", "/var/new/place"),
        (("-u", "nobody"), "id -u; id -g", "65534\n65534"),
        (("-u", "1234:4321"), "id -u; id -g; id -G", "1234\n4321\n4321"),
        (("-h", "box.example"), "hostname; cat /etc/hostname", "box.example\nbox.example"),
        (("--add-host", "db:10.1.2.3"), "grep db /etc/hosts | tr '\\t' ' '", "10.1.2.3 db"),
        (("--group-add", "1234", "--group-add", "nogroup"), "id -G", "0 1234 65534"),
        (("--ulimit", "nofile=100:200"), "ulimit -n; ulimit -Hn", "100\n200"),
        (("--shm-size", "16m"), "df -k /dev/shm | awk 'NR==2{print $2}'", "16384"),
        (("--tmpfs", "/t:size=2m,mode=700"), "df -k /t | awk 'NR==2{print $1,$2}'; stat -c %a /t", "tmpfs 2048\n700"),
        (("--read-only", "--tmpfs", "/t"), "touch /t/x && ! touch /x 2>/dev/null && echo ro", "ro"),
        (("--security-opt", "no-new-privileges"), "awk '/NoNewPrivs/{print $2}' /proc/self/status", "1"),
        ((), "awk '/NoNewPrivs/||/^Seccomp:/{print $2}' /proc/self/status", "0\n2"),
        (("--security-opt", "seccomp=unconfined"), "awk '/^Seccomp:/{print $2}' /proc/self/status", "0"),
        (("--init",), "cat /proc/1/comm; [ $$ != 1 ] && echo child", "docker-init\nchild"),
        ((), "ls /sys/class/net", "lo"),
    ],
)
def test_run_flag_shows_inside(client: Client, flags: tuple[str, ...], script: str, wanted: str) -> None:
    assert client.run(*flags, "busybox", "sh", "-c", script) == wanted + "\n"


def test_env_file_labels_entrypoint_and_cidfile(client: Client, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("# comment\nA=1\nB=two words\nLC_ALL\n")
    (tmp_path / "labels").write_text("from=file\n")
    flags = ("--env-file", str(tmp_path / "env"), "--entrypoint", "/bin/sh", "--cidfile", str(tmp_path / "cid"))
    labels = ("-l", "k=v", "-l", "bare", "--label-file", str(tmp_path / "labels"))
    done = client("run", *ALONE, "--name", "box", *flags, *labels, "busybox", "-c", "echo $A,$B,$LC_ALL")
    assert done.stdout == "1,two words,C.UTF-8\n"
    found = client.engine.inspect("box")
    assert found["Config"]["Labels"] == {"k": "v", "bare": "", "from": "file"}
    assert found["Config"]["Entrypoint"] == ["/bin/sh"] and found["Id"] == (tmp_path / "cid").read_text()


def test_bind_mounts_read_write_and_read_only(client: Client, tmp_path: Path) -> None:
    (tmp_path / "seen").write_text("from outside")
    assert client.run("-v", f"{tmp_path}:/m", "busybox", "sh", "-c", "cat /m/seen; echo in >/m/made") == "from outside"
    assert (tmp_path / "made").read_text() == "in\n"
    for flags in (("-v", f"{tmp_path}:/m:ro"), ("--mount", f"type=bind,src={tmp_path},dst=/m,readonly")):
        assert client.run(*flags, "busybox", "sh", "-c", "! touch /m/x 2>/dev/null && cat /m/seen") == "from outside"
    assert not (tmp_path / "x").exists()


def test_host_network_is_the_hosts(client: Client) -> None:
    own = os.readlink("/proc/self/ns/net")
    assert client("run", "--rm", "--network", "host", "busybox", "readlink", "/proc/self/ns/net").stdout == own + "\n"
    assert client.run("busybox", "readlink", "/proc/self/ns/net") != own + "\n"


def test_capabilities_are_added_dropped_and_all_given(client: Client) -> None:
    status = ("busybox", "cat", "/proc/self/status")
    usual = capabilities(client.run(*status))
    chown, net_admin = 1 << 0, 1 << 12
    assert usual & chown and not usual & net_admin
    assert (
        capabilities(client.run("--cap-add", "NET_ADMIN", "--cap-drop", "chown", *status)) == usual ^ chown ^ net_admin
    )
    assert capabilities(client.run("--cap-drop", "ALL", "--cap-add", "CAP_CHOWN", *status)) == chown
    everything = client.run("--privileged", *status)
    assert capabilities(everything) == capabilities(Path("/proc/self/status").read_text())
    assert "Seccomp:\t0" in everything


def test_devices_are_shown_with_their_permissions(client: Client) -> None:
    script = "test -c /dev/mine && (: >/dev/mine) 2>/dev/null && echo written || echo refused"
    assert client.run("busybox", "sh", "-c", "ls /dev/kmsg 2>/dev/null || echo none") == "none\n"
    assert client.run("--device", "/dev/kmsg:/dev/mine", "busybox", "sh", "-c", script) == "written\n"
    assert client.run("--device", "/dev/kmsg:/dev/mine:r", "busybox", "sh", "-c", script) == "refused\n"
    assert client.run("--privileged", "busybox", "sh", "-c", "test -c /dev/kmsg && echo there") == "there\n"
