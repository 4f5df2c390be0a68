"""`tare-oci`: an OCI runtime on a bundle, for podman, containerd, Slurm: the init of the engine without its daemon.

Host root, one short process per verb. It stays a descendant of its caller, whose subreaper (conmon, a containerd shim)
inherits init, so the zygote is not used: `create` seals itself, launches and leaves; init waits on a FIFO that `start`
writes one byte to. State is `<root>/<id>/{state.json,start}`, written tmp + rename, processes are named by pid *and*
start time. Specification: runtime-spec runtime.md; flags are runc's. Absent on purpose: the hooks that run inside the
container (createContainer, startContainer), checkpoint, events, intelRdt.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from errno import ENXIO
from typing import Any, NoReturn

from tare.cgroups import api as cgroups
from tare.linux import libc, proc
from tare.linux.fds import Channel
from tare.runtime import enter, launch, seal, shim, zygote

__all__ = ["main"]

VERSION = "1.2.0"
_USAGE = """usage: tare-oci [--root DIR] [--log FILE] [--log-format text|json] [--systemd-cgroup] COMMAND ...

  create [-b DIR] [--pid-file F] [--console-socket S] ID     make a container that waits for start
  start ID                                                   let its program run
  run [-b DIR] [-d] [--pid-file F] [--console-socket S] ID   create, start, wait (unless -d) and delete
  state ID          kill [-a] ID [SIGNAL]     delete [-f] ID     list [-q] [-f table|json]
  exec [-p FILE | -t -u UID[:GID] -w DIR -e K=V] [-d] [--pid-file F] [--console-socket S] ID [COMMAND ...]
  ps [-f table|json] ID      pause ID      resume ID      update [-r FILE|-] ID      features"""


class Failed(Exception):
    """One sentence for the user; `code` is the exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


# -- state ---------------------------------------------------------------------------------------------------------


class Record:
    """One container's state.json."""

    def __init__(self, root: str, identifier: str, data: dict[str, Any]) -> None:
        self.directory = f"{root}/{identifier}"
        self.id = identifier
        self.data = data

    @classmethod
    def load(cls, root: str, identifier: str) -> Record:
        _check_id(identifier)
        try:
            return cls(root, identifier, json.loads(proc.read(f"{root}/{identifier}/state.json")))
        except FileNotFoundError:
            raise Failed(f"container {identifier!r} does not exist") from None
        except ValueError:
            raise Failed(f"the state of container {identifier!r} is damaged: {root}/{identifier}/state.json") from None

    def save(self) -> None:
        shim.write_file(f"{self.directory}/state.json", json.dumps(self.data).encode())

    @property
    def pid(self) -> int:
        return int(self.data["pid"])

    def alive(self) -> bool:
        return proc.is_alive(self.pid, int(self.data["start_time"]))

    def cgroup(self) -> cgroups.Cgroup:
        return cgroups.detect().cgroup(self.data["cgroup"])

    def status(self) -> str:
        if not self.alive():
            return "stopped"
        if os.path.exists(f"{self.directory}/start"):
            return "created"
        with suppress(OSError):
            if self.cgroup().frozen():
                return "paused"
        return "running"

    def view(self) -> dict[str, Any]:
        """The answer to `state`, runtime-spec runtime.md#state."""
        status = self.status()
        return {
            "ociVersion": VERSION, "id": self.id, "status": status, "pid": self.pid if status != "stopped" else 0,
            "bundle": self.data["bundle"], "rootfs": self.data["rootfs"], "created": self.data["created"],
            "owner": "", "annotations": self.data["annotations"],
        }  # fmt: skip

    def require(self, *states: str) -> None:
        status = self.status()
        if status not in states:
            raise Failed(f"container {self.id!r} is {status}, not {' or '.join(states)}")


def _check_id(identifier: str) -> None:
    """Names a directory: runc's grammar, letters, digits and _ + - . @ only."""
    letters = {letter for letter in identifier if not (letter.isascii() and letter.isalnum())}
    if not identifier or identifier in (".", "..") or len(identifier) > 1024 or letters - set("_+-.@"):
        raise Failed(f"invalid container id {identifier!r}")


# -- options -------------------------------------------------------------------------------------------------------


class Options:
    """Flags of one verb by runc's spelling, in any place before the container's command."""

    def __init__(
        self, arguments: Sequence[str], valued: Mapping[str, str], plain: Mapping[str, str], stop: int
    ) -> None:
        self.values: dict[str, list[str]] = {}
        self.words: list[str] = []
        rest = list(arguments)
        while rest:
            word = rest.pop(0)
            if len(self.words) >= stop or word == "--":
                self.words += rest if word == "--" else [word, *rest]
                break
            if not word.startswith("-") or word == "-":
                self.words.append(word)
                continue
            flag, equals, value = word.partition("=")
            name = flag.lstrip("-")
            if name in plain:
                if not equals or value in ("true", "1"):
                    self.values[plain[name]] = ["true"]
            elif name in valued:
                if not equals and not rest:
                    raise Failed(f"flag needs an argument: {flag}")
                self.values.setdefault(valued[name], []).append(value if equals else rest.pop(0))
            else:
                raise Failed(f"unknown flag: {flag}")

    def get(self, name: str, default: str = "") -> str:
        return self.values.get(name, [default])[-1]

    def has(self, name: str) -> bool:
        return name in self.values

    def one(self) -> str:
        if len(self.words) != 1:
            raise Failed("exactly one container id is needed")
        return self.words[0]


_CREATE = {"b": "bundle", "bundle": "bundle", "pid-file": "pid-file", "console-socket": "console-socket",
           "preserve-fds": "preserve-fds"}  # fmt: skip
_CREATE_FLAGS = {"no-pivot": "no-pivot", "no-new-keyring": "no-new-keyring", "no-subreaper": "no-subreaper",
                 "d": "detach", "detach": "detach", "keep": "keep"}  # fmt: skip


# -- create, start, run --------------------------------------------------------------------------------------------


def _bundle(directory: str, identifier: str, run_dir: str, cgroup_parent: str) -> dict[str, Any]:
    """config.json -> our Bundle (runtime/protocol.py), its seccomp profile compiled."""
    try:
        config = json.loads(proc.read(f"{directory}/config.json", 1 << 24))
        process, linux = config["process"], config.get("linux") or {}
        rootfs = os.path.join(directory, config["root"]["path"])
        if not isinstance(process["args"], list) or not process["args"]:
            raise Failed("process.args of config.json must not be empty")
    except FileNotFoundError as error:
        raise Failed(f"JSON specification file {error.filename} not found") from None
    except (ValueError, KeyError, TypeError) as error:
        raise Failed(f"{directory}/config.json is not a valid runtime configuration: {error!r}") from None
    if not os.path.isdir(rootfs):
        raise Failed(f"the root file system {rootfs} is not a directory")
    for point in ("createContainer", "startContainer"):
        if (config.get("hooks") or {}).get(point):
            raise Failed(f"hooks of {point} are not supported")
    bpf = ""
    if linux.get("seccomp"):
        bpf = f"{run_dir}/seccomp.bpf"
        shim.write_file(bpf, _seccomp(linux["seccomp"]))
    return {
        "id": identifier, "oci": config, "rootfs": {"path": os.path.realpath(rootfs)}, "bpf": bpf,
        "cgroup": _cgroup_path(linux.get("cgroupsPath") or "", identifier, cgroup_parent),
        "tty": bool(process.get("terminal")), "run_dir": run_dir,
    }  # fmt: skip


def _cgroup_path(path: str, identifier: str, parent: str) -> str:
    """linux.cgroupsPath; systemd's "slice:prefix:name" becomes the path that systemd itself would give the scope."""
    if path.count(":") == 2:
        part, prefix, name = path.split(":")
        scope = f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
        return f"/{part or 'system.slice'}/{scope}"
    path = path or f"{parent}/{identifier}"
    return path if path.startswith("/") else f"/{path}"


def _seccomp(section: Mapping[str, Any]) -> bytes:
    """OCI linux.seccomp -> BPF."""
    from tare.linux import seccomp

    def action(name: str, number: int | None) -> int:
        if name == "SCMP_ACT_ERRNO":
            return seccomp.errno_action(1 if number is None else number)
        if name == "SCMP_ACT_TRACE":
            return seccomp.trace_action(number or 0)
        if name not in seccomp.ACTIONS:
            raise Failed(f"unknown seccomp action {name!r}")
        return seccomp.ACTIONS[name]

    rules = [
        seccomp.Rule(
            name,
            action(entry["action"], entry.get("errnoRet")),
            tuple(
                seccomp.Condition(a["index"], seccomp.OPERATORS[a["op"]], a["value"], a.get("valueTwo") or 0)
                for a in entry.get("args") or []
            ),
        )
        for entry in section.get("syscalls") or []
        for name in entry["names"]
    ]
    default = action(section["defaultAction"], section.get("defaultErrnoRet"))
    return seccomp.compile(default, rules, section.get("architectures") or [])


def _create(root: str, options: Options) -> tuple[Record, int, int]:
    """(record, pidfd of init, its status pipe)."""
    identifier = options.one()
    _check_id(identifier)
    directory = f"{root}/{identifier}"
    source = os.path.realpath(options.get("bundle", "."))
    os.makedirs(root, 0o711, exist_ok=True)
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        raise Failed(f"container with id exists: {identifier}") from None
    try:
        bundle = _bundle(source, identifier, directory, "/tare-oci")
        terminal = _console(options.get("console-socket"), needed=bundle["tty"])
        os.mkfifo(f"{directory}/start", 0o600)
        # O_RDWR: a FIFO held open for both never reads as ended, so init simply waits until `start` comes
        gate = os.open(f"{directory}/start", os.O_RDWR | os.O_CLOEXEC)
        launched, status = _launch(bundle, gate, terminal)
        record = Record(
            root, identifier,
            {
                "pid": launched.pid, "start_time": proc.start_time(launched.pid), "bundle": source,
                "rootfs": bundle["rootfs"]["path"], "cgroup": bundle["cgroup"],
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "annotations": bundle["oci"].get("annotations") or {}, "process": bundle["oci"]["process"],
                "bpf": bundle["bpf"], "hooks": bundle["oci"].get("hooks") or {},
            },
        )  # fmt: skip
        record.save()
        try:
            _hooks(record, "prestart", "createRuntime", status="creating")
            if options.has("pid-file"):
                shim.write_file(options.get("pid-file"), str(launched.pid).encode())
        except BaseException:
            _kill_launched(launched)
            raise
    except BaseException:
        _remove_directory(directory)
        raise
    return record, launched.pidfd, status


def _launch(bundle: dict[str, Any], gate: int, terminal: socket.socket | None) -> tuple[launch.Launched, int]:
    """Clone init with our own standard streams and wait until it stands at its gate."""
    status, theirs = os.pipe2(os.O_CLOEXEC)
    channel: Channel | None = None
    stdio = launch.Stdio(0, 1, 2)
    if terminal is not None:
        channel, stdio.tty = Channel.pair()
    hierarchy = cgroups.detect()
    if bundle["oci"].get("hooks"):
        import subprocess  # noqa: F401  # now: after freeze() nothing can be imported any more
    zygote.freeze()
    launched = launch.launch(bundle, hierarchy, gate=gate, status=theirs, stdio=stdio, notify_gate=True)
    os.close(theirs)
    for warning in launched.warnings:
        print(f"tare-oci: {warning}", file=sys.stderr)
    report = _until_gate(status)
    if report is not None:
        _kill_launched(launched)
        raise Failed(f"unable to start container process: {_sentence(report, bundle['oci']['process']['args'])}")
    if channel is not None and terminal is not None:
        received = channel.recv()
        if received is None:
            raise Failed("the terminal did not arrive")
        socket.send_fds(terminal, [b"/dev/ptmx"], received[1])
        terminal.close()
    return launched, status


def _until_gate(status: int) -> dict[str, Any] | None:
    """None once init waits; else its report."""
    data = b""
    while not data.endswith(b'{"at":"gate"}\n'):
        chunk = os.read(status, 65536)
        if not chunk:
            return json.loads(data) if data else {"step": "set up", "errno": 0, "path": "", "message": "init died"}
        data += chunk
    return None


def _sentence(report: Mapping[str, Any], arguments: Sequence[str]) -> str:
    """init's report in the words that callers of an OCI runtime match."""
    if report["step"] == "execve":
        name = arguments[0]
        if report["errno"] == 2 and "/" not in name:
            return f'error during container init: exec: "{name}": executable file not found in $PATH'
        if report["errno"] == 2:
            return f'error during container init: exec: "{name}": stat {name}: no such file or directory'
        return f'error during container init: exec: "{name}": {report["message"].lower()}'
    where = f" {report['path']}" if report["path"] else ""
    return f"error during container init: {report['step']}:{where} {report['message']}"


def _kill_launched(launched: launch.Launched) -> None:
    with suppress(OSError):
        signal.pidfd_send_signal(launched.pidfd, signal.SIGKILL)
        os.waitid(os.P_PIDFD, launched.pidfd, os.WEXITED)
    with suppress(OSError):
        launched.cgroup.delete()


def _console(path: str, *, needed: bool) -> socket.socket | None:
    if not needed:
        if path:
            raise Failed("cannot use console socket if process.terminal is false")
        return None
    if not path:
        raise Failed("cannot allocate tty without setting --console-socket")
    terminal = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        terminal.connect(path)
    except OSError as error:
        raise Failed(f"connect to the console socket {path}: {error.strerror}") from None
    return terminal


def _start(record: Record) -> None:
    record.require("created")
    try:
        gate = os.open(f"{record.directory}/start", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == ENXIO:
            raise Failed(f"container {record.id!r} died before its start") from None
        raise
    os.unlink(f"{record.directory}/start")
    os.write(gate, b"\n")
    os.close(gate)
    _hooks(record, "poststart", status="running")


def _run(root: str, options: Options) -> int:
    record, pidfd, status = _create(root, options)
    _start(record)
    report = shim.await_start(status)
    if report is not None:
        _delete(record, force=True)
        raise Failed(f"unable to start container process: {_sentence(report, record.data['process']['args'])}")
    if options.has("detach"):
        return 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda n, _: signal.pidfd_send_signal(pidfd, n))
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    while not poll.poll():
        pass
    code: int = shim.exit_status(pidfd)["code"]
    if not options.has("keep"):
        _delete(record)
    return code


# -- the other verbs -----------------------------------------------------------------------------------------------


def _kill(record: Record, name: str, *, everyone: bool) -> None:
    number = _signal(name)
    if everyone:
        record.cgroup().kill(number)
        return
    if not record.alive():
        raise Failed("container not running")
    pidfd = enter.open_container(record.pid, int(record.data["start_time"]))
    signal.pidfd_send_signal(pidfd, number)
    os.close(pidfd)
    if number == signal.SIGKILL:
        with suppress(OSError):
            cgroup = record.cgroup()
            if cgroup.frozen():
                cgroup.freeze(False)  # v1: a frozen task dies only when thawed


def _signal(name: str) -> int:
    if name.isdigit() and 0 < int(name) < signal.NSIG:
        return int(name)
    plain = name.upper().removeprefix("SIG")
    base, plus, offset = plain.partition("+")
    number = getattr(signal, f"SIG{base}", None)
    if number is None or (plus and not offset.isdigit()):
        raise Failed(f"unknown signal {name!r}")
    return int(number) + (int(offset) if plus else 0)


def _delete(record: Record, *, force: bool = False) -> None:
    status = record.status()
    if status != "stopped":
        if not force and status != "created":
            raise Failed(f"cannot delete container {record.id} that is not stopped: {status}")
        with suppress(OSError):
            record.cgroup().kill(signal.SIGKILL)
        deadline = time.monotonic() + 10
        while record.alive() and time.monotonic() < deadline:
            time.sleep(0.01)
    record.cgroup().delete()
    _remove_directory(record.directory)
    with suppress(Failed):
        _hooks(record, "poststop", status="stopped")


def _remove_directory(directory: str) -> None:
    with suppress(FileNotFoundError):
        for name in os.listdir(directory):
            os.unlink(f"{directory}/{name}")
        os.rmdir(directory)


def _hooks(record: Record, *points: str, status: str) -> None:
    """Host-side hooks, the container's state on their standard input (runtime-spec config.md#posix-platform-hooks)."""
    if not any(record.data["hooks"].get(point) for point in points):
        return
    import subprocess

    state = json.dumps({**record.view(), "status": status, "pid": record.pid}).encode()
    for point in points:
        for hook in record.data["hooks"].get(point) or []:
            environment = dict(e.partition("=")[::2] for e in hook.get("env") or [])
            try:
                done = subprocess.run(
                    hook.get("args") or [hook["path"]], executable=hook["path"], input=state, env=environment,
                    timeout=hook.get("timeout"), capture_output=True, check=False,
                )  # fmt: skip
            except (OSError, subprocess.SubprocessError) as error:
                raise Failed(f"{point} hook {hook['path']}: {error}") from None
            if done.returncode:
                text = done.stderr.decode(errors="replace").strip()
                raise Failed(f"{point} hook {hook['path']} ended with {done.returncode}: {text}")


def _exec(root: str, arguments: Sequence[str]) -> int:
    options = Options(
        arguments,
        {"p": "process", "process": "process", "u": "user", "user": "user", "w": "cwd", "cwd": "cwd", "e": "env",
         "env": "env", "pid-file": "pid-file", "console-socket": "console-socket", "preserve-fds": "preserve-fds",
         "cgroup": "cgroup", "cap": "cap", "g": "group", "additional-gids": "group"},
        {"t": "tty", "tty": "tty", "d": "detach", "detach": "detach", "no-new-privs": "nnp", "ignore-paused": "ip"},
        stop=1,
    )  # fmt: skip
    if not options.words:
        raise Failed("a container id is needed")
    record = Record.load(root, options.words[0])
    record.require("running", "created")
    process = _exec_process(record, options)
    if not process["args"]:
        raise Failed("a command is needed")
    terminal = _console(options.get("console-socket"), needed=bool(process["tty"]))
    libc.prctl(libc.PR_SET_DUMPABLE, 0)
    cgroup = record.cgroup()
    container = enter.open_container(record.pid, int(record.data["start_time"]))
    pipes = shim.Pipes.inherited(tty=terminal is not None)
    zygote.freeze()
    child, pidfd, status = enter.spawn(container, record.pid, process, cgroup, pipes, record.id)
    report = shim.await_start(status)
    if report is not None:
        raise Failed(f"exec failed: unable to start container process: {_sentence(report, process['args'])}", 255)
    if terminal is not None:
        master = next(iter(pipes.ours()[0]))
        socket.send_fds(terminal, [b"/dev/ptmx"], [master])
    if options.has("pid-file"):
        shim.write_file(options.get("pid-file"), str(child).encode())
    if options.has("detach"):
        return 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, lambda n, _: signal.pidfd_send_signal(pidfd, n))
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    while not poll.poll():
        pass
    return int(shim.exit_status(pidfd)["code"])


def _exec_process(record: Record, options: Options) -> dict[str, Any]:
    """EXEC of runtime/protocol.py from --process or from flags over the container's own process."""
    base = record.data["process"]
    if options.has("process"):
        try:
            base = json.loads(proc.read(options.get("process"), 1 << 24))
        except (OSError, ValueError) as error:
            raise Failed(f"process file {options.get('process')}: {error}") from None
        arguments, terminal = base["args"], bool(base.get("terminal"))
    else:
        arguments, terminal = options.words[1:], options.has("tty")
    user = base.get("user") or {}
    size = base.get("consoleSize") or {}
    return {
        "args": arguments, "env": [*(base.get("env") or []), *options.values.get("env", [])],
        "cwd": options.get("cwd") or base.get("cwd") or "/",
        "user": options.get("user") or f"{user.get('uid', 0)}:{user.get('gid', 0)}",
        "groups": [str(g) for g in user.get("additionalGids") or []],
        "tty": terminal, "rows": size.get("height", 0), "columns": size.get("width", 0),
        "capabilities": base.get("capabilities") or {}, "rlimits": base.get("rlimits") or [],
        "no_new_privileges": bool(base.get("noNewPrivileges")) or options.has("nnp"),
        "bpf": record.data["bpf"],
    }  # fmt: skip


def _ps(record: Record, form: str) -> None:
    import subprocess

    pids = record.cgroup().pids()
    if form == "json":
        print(json.dumps(pids))
        return
    listing = subprocess.run(["/bin/ps", "-ef"], capture_output=True, text=True, check=True).stdout.splitlines()
    column = listing[0].split().index("PID")
    print(listing[0])
    for line in listing[1:]:
        if int(line.split()[column]) in pids:
            print(line)


def _update(record: Record, arguments: Options) -> None:
    source = arguments.get("resources")
    text = sys.stdin.read() if source == "-" else proc.read(source).decode() if source else "{}"
    try:
        resources = json.loads(text)
    except ValueError as error:
        raise Failed(f"resources are not valid JSON: {error}") from None
    places = {"memory": ("memory", "limit"), "memory-swap": ("memory", "swap"), "cpu-quota": ("cpu", "quota"),
              "memory-reservation": ("memory", "reservation"), "cpu-period": ("cpu", "period"),
              "cpu-share": ("cpu", "shares"), "pids-limit": ("pids", "limit")}  # fmt: skip
    for flag, (section, key) in places.items():
        if arguments.has(flag):
            resources.setdefault(section, {})[key] = int(arguments.get(flag))
    for flag, key in (("cpuset-cpus", "cpus"), ("cpuset-mems", "mems")):
        if arguments.has(flag):
            resources.setdefault("cpu", {})[key] = arguments.get(flag)
    for warning in record.cgroup().update(resources):
        print(f"tare-oci: {warning}", file=sys.stderr)


def _features() -> dict[str, Any]:
    """runtime-spec features.md."""
    from tare.linux import seccomp
    from tare.runtime import rootfs, security

    return {
        "ociVersionMin": "1.0.0", "ociVersionMax": VERSION,
        "hooks": ["prestart", "createRuntime", "poststart", "poststop"],
        "mountOptions": rootfs.known_options(),
        "linux": {
            "namespaces": sorted(launch.NAMESPACES),
            "capabilities": [f"CAP_{name}" for name in security.CAPABILITIES],
            "cgroup": {"v1": True, "v2": True, "systemd": False, "systemdUser": False, "rdma": False},
            "seccomp": {"enabled": True, "actions": sorted(seccomp.ACTIONS), "operators": sorted(seccomp.OPERATORS),
                        "archs": sorted(seccomp.ARCHITECTURES)},
            "apparmor": {"enabled": False}, "selinux": {"enabled": False}, "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": False}},
        },
        "annotations": {},
    }  # fmt: skip


def _list(root: str, options: Options) -> None:
    names = sorted(os.listdir(root)) if os.path.isdir(root) else []
    records = [Record.load(root, name) for name in names if os.path.exists(f"{root}/{name}/state.json")]
    if options.has("quiet"):
        print("\n".join(record.id for record in records))
    elif options.get("format") == "json":
        print(json.dumps([record.view() for record in records]))
    else:
        print(f"{'ID':<24}{'PID':<12}{'STATUS':<12}{'BUNDLE':<32}CREATED")
        for record in records:
            view = record.view()
            print(f"{record.id:<24}{view['pid']:<12}{view['status']:<12}{view['bundle']:<32}{view['created']}")


_NONE: Mapping[str, str] = {}


def _dispatch(root: str, verb: str, arguments: Sequence[str]) -> int:
    def parse(valued: Mapping[str, str] = _NONE, plain: Mapping[str, str] = _NONE, stop: int = 99) -> Options:
        return Options(arguments, valued, plain, stop)

    def record(options: Options | None = None) -> Record:
        return Record.load(root, (options or parse()).one())

    form = {"f": "format", "format": "format"}
    if verb == "exec":
        return _exec(root, arguments)
    if verb == "run":
        return _run(root, parse(_CREATE, _CREATE_FLAGS))
    if verb == "kill":
        options = parse({}, {"a": "all", "all": "all"})
        identifier, name = (*options.words, "TERM")[:2] if options.words else ("", "")
        _kill(Record.load(root, identifier), name, everyone=options.has("all"))
    elif verb == "delete":
        options = parse({}, {"f": "force", "force": "force"})
        try:
            _delete(record(options), force=options.has("force"))
        except Failed as error:
            if not (options.has("force") and "does not exist" in str(error)):
                raise
    elif verb == "update":
        names = ("memory", "memory-swap", "memory-reservation", "cpu-quota", "cpu-period", "cpu-share", "cpuset-cpus",
                 "cpuset-mems", "pids-limit", "blkio-weight")  # fmt: skip
        options = parse({"r": "resources", "resources": "resources", **{n: n for n in names}})
        _update(record(options), options)
    elif verb == "ps":
        options = parse(form, stop=1)
        _ps(Record.load(root, options.words[0] if options.words else ""), options.get("format", "table"))
    else:
        simple: dict[str, Callable[[], object]] = {
            "create": lambda: _create(root, parse(_CREATE, _CREATE_FLAGS)),
            "start": lambda: _start(record()),
            "state": lambda: print(json.dumps(record().view(), indent=2)),
            "pause": lambda: record().cgroup().freeze(True),
            "resume": lambda: record().cgroup().freeze(False),
            "features": lambda: print(json.dumps(_features(), indent=2)),
            "list": lambda: _list(root, parse(form, {"q": "quiet", "quiet": "quiet"})),
        }
        if verb not in simple:
            raise Failed(f"unknown command {verb!r}\n{_USAGE}")
        simple[verb]()
    return 0


def main(arguments: Sequence[str]) -> NoReturn:
    """The command. Never returns; what it prints on failure is one line, also as JSON in --log."""
    rest = list(arguments)
    settings = {"root": "/run/tare-oci", "log": "", "log-format": "text"}
    while rest and rest[0].startswith("-"):
        flag, equals, value = rest.pop(0).partition("=")
        name = flag.lstrip("-")
        if name in ("version", "v"):
            print(f"tare-oci version 0.1.0\nspec: {VERSION}")
            sys.exit(0)
        if name in ("help", "h"):
            print(_USAGE)
            sys.exit(0)
        if name in settings or name in ("criu", "rootless"):
            settings[name] = value if equals else (rest.pop(0) if rest else "")
    if not rest:
        print(_USAGE, file=sys.stderr)
        sys.exit(1)
    verb = rest.pop(0)
    if verb in ("create", "run", "exec") and not seal.is_sealed():
        seal.reexec(["-I", "-S", "-c", _BOOT, os.path.dirname(os.path.dirname(os.path.abspath(__file__))), *arguments])
    code = 1
    try:
        if os.geteuid():
            raise Failed("tare-oci needs root")
        code = _dispatch(settings["root"], verb, rest)
    except Failed as error:
        code = error.code
        _complain(str(error), settings)
    except (OSError, ValueError) as error:
        _complain(f"{verb}: {error}", settings)
    except KeyboardInterrupt:
        code = 130
    with suppress(BrokenPipeError):
        sys.stdout.flush()
    os._exit(code)


_BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); sys.argv[:2] = ['tare-oci']; "
    "from tare.oci_runtime import main; main(sys.argv[1:])"
)


def _complain(message: str, settings: Mapping[str, str]) -> None:
    print(f"tare-oci: {message}", file=sys.stderr)
    if settings["log"]:
        entry = {"level": "error", "msg": message, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        text = " ".join(f"{key}={value!r}" for key, value in entry.items())
        line = json.dumps(entry) if settings["log-format"] == "json" else text
        with suppress(OSError), open(settings["log"], "a", encoding="utf-8") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
