"""create, start, run: from config.json to a container that waits, then to its program."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from errno import ENXIO
from typing import Any

from tare.cgroups import api as cgroups
from tare.linux import fds, libc, proc
from tare.linux.fds import Channel
from tare.runtime import launch, shim, starter, zygote

from .options import Options
from .record import PARENT, Failed, Record, check_id, delete, remove_directory, run_hooks

__all__ = ["CREATE", "CREATE_FLAGS", "console", "create", "run", "sentence", "start"]

CREATE = {"b": "bundle", "bundle": "bundle", "pid-file": "pid-file", "console-socket": "console-socket",
           "preserve-fds": "preserve-fds"}  # fmt: skip
CREATE_FLAGS = {"no-pivot": "no-pivot", "no-new-keyring": "no-new-keyring", "no-subreaper": "no-subreaper",
                 "d": "detach", "detach": "detach", "keep": "keep"}  # fmt: skip


# -- create, start, run --------------------------------------------------------------------------------------------


def _refuse_unsupported(config: Mapping[str, Any], process: Mapping[str, Any], linux: Mapping[str, Any]) -> None:
    """What would be a promise not kept, security above all."""
    for section, names in (
        (process, ("apparmorProfile", "selinuxLabel", "scheduler", "ioPriority")),
        (linux, ("mountLabel", "personality", "intelRdt", "netDevices", "memoryPolicy")),
    ):
        for name in names:
            if section.get(name):
                raise Failed(f"{name} is not supported")
    for mount in config.get("mounts") or []:
        if mount.get("uidMappings") or {"idmap", "ridmap"} & set(mount.get("options") or []):
            raise Failed(f"ID-mapped mounts are not supported: {mount['destination']}")
    if any(n["type"] == "mount" and n.get("path") for n in linux.get("namespaces") or []):
        raise Failed("joining a mount namespace is not supported")


_DEFAULT_DEVICES = [
    {"allow": True, "type": kind, "major": major, "minor": minor, "access": access}
    for kind, major, minor, access in (
        ("c", -1, -1, "m"), ("b", -1, -1, "m"), ("c", 1, 3, "rwm"), ("c", 1, 5, "rwm"), ("c", 1, 7, "rwm"),
        ("c", 1, 8, "rwm"), ("c", 1, 9, "rwm"), ("c", 5, 0, "rwm"), ("c", 5, 1, "rwm"), ("c", 5, 2, "rwm"),
        ("c", 136, -1, "rwm"),
    )
]  # fmt: skip
"""Always allowed, whatever the configuration denies (runtime-spec config-linux.md#default-devices; runc's list)."""


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
    _refuse_unsupported(config, process, linux)
    for point in ("createContainer", "startContainer"):
        if (config.get("hooks") or {}).get(point):
            raise Failed(f"hooks of {point} are not supported")
    devices = (linux.get("resources") or {}).get("devices")
    if devices:
        devices += _DEFAULT_DEVICES
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


def create(root: str, options: Options) -> tuple[Record, int, int]:
    """(record, pidfd of init, its status pipe)."""
    identifier = options.one()
    libc.prctl(libc.PR_SET_DUMPABLE, 0)  # in a joined pid namespace, neighbours could trace init before execve (N5)
    check_id(identifier)
    directory = f"{root}/{identifier}"
    source = os.path.realpath(options.get("bundle", "."))
    os.makedirs(root, 0o711, exist_ok=True)
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        raise Failed(f"container with id exists: {identifier}") from None
    try:
        bundle = _bundle(source, identifier, directory, PARENT)
        terminal = console(options.get("console-socket"), needed=bundle["tty"])
        os.mkfifo(f"{directory}/start", 0o600)
        # O_RDWR: a FIFO held open for both never reads as ended, so init simply waits until `start` comes
        gate = os.open(f"{directory}/start", os.O_RDWR | os.O_CLOEXEC)
        launched, status = _launch(bundle, gate, terminal)
        try:
            record = _record(root, identifier, source, bundle, launched.pid)
            record.save()
            run_hooks(record, "prestart", "createRuntime", status="creating")
            if options.has("pid-file"):
                shim.write_file(options.get("pid-file"), str(launched.pid).encode())
        except BaseException:
            _kill_launched(launched)
            raise
    except BaseException:
        remove_directory(directory)
        raise
    return record, launched.pidfd, status


def _record(root: str, identifier: str, source: str, bundle: dict[str, Any], pid: int) -> Record:
    oci = bundle["oci"]
    data = {
        "pid": pid, "start_time": proc.start_time(pid), "bundle": source, "rootfs": bundle["rootfs"]["path"],
        "cgroup": bundle["cgroup"], "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "annotations": oci.get("annotations") or {}, "process": oci["process"], "bpf": bundle["bpf"],
        "hooks": oci.get("hooks") or {},
    }  # fmt: skip
    return Record(root, identifier, data)


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
        raise Failed(f"unable to start container process: {sentence(report, bundle['oci']['process']['args'])}")
    try:
        if channel is not None and terminal is not None:
            received = channel.recv()
            if received is None:
                raise Failed("the terminal did not arrive")
            fds.send(terminal, b"/dev/ptmx", received[1])
            terminal.close()
    except BaseException:
        _kill_launched(launched)
        raise
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


def sentence(report: Mapping[str, Any], arguments: Sequence[str]) -> str:
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


def console(path: str, *, needed: bool) -> socket.socket | None:
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


def start(record: Record) -> None:
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
    run_hooks(record, "poststart", status="running")


def run(root: str, options: Options) -> int:
    record, pidfd, status = create(root, options)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda n, _: signal.pidfd_send_signal(pidfd, n))
    start(record)
    report = starter.await_start(status)
    if report is not None:
        delete(record, force=True)
        raise Failed(f"unable to start container process: {sentence(report, record.data['process']['args'])}")
    if options.has("detach"):
        return 0
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    while not poll.poll():
        pass
    code: int = shim.exit_status(pidfd)["code"]
    if not options.has("keep"):
        delete(record)
    return code


