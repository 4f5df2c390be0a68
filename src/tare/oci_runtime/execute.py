"""exec: a further process in a running container, with our own standard streams or a console socket."""

from __future__ import annotations

import json
import select
import signal
from collections.abc import Sequence
from typing import Any

from tare.linux import fds, libc, proc
from tare.runtime import enter, launch, shim, starter, zygote

from .create import console, sentence
from .options import Options
from .record import Failed, Record

__all__ = ["execute"]


def execute(root: str, arguments: Sequence[str]) -> int:
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
    terminal = console(options.get("console-socket"), needed=bool(process["tty"]))
    libc.prctl(libc.PR_SET_DUMPABLE, 0)
    cgroup = record.cgroup()
    container = enter.open_container(record.pid, int(record.data["start_time"]))
    pipes = starter.Pipes(tty=True, stdin=False) if terminal else None
    stdio = pipes.stdio if pipes else launch.Stdio(0, 1, 2)
    zygote.freeze()
    child, pidfd, status = enter.spawn(container, record.pid, process, cgroup, stdio, record.id)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, lambda n, _: signal.pidfd_send_signal(pidfd, n))
    report = starter.await_start(status)
    if report is not None:
        shim.exit_status(pidfd)  # a zombie would keep the container's pid namespace from ending
        raise Failed(f"exec failed: unable to start container process: {sentence(report, process['args'])}", 255)
    if terminal is not None and pipes is not None:
        master = next(iter(pipes.ours()[0]))
        fds.send(terminal, b"/dev/ptmx", [master])
    if options.has("pid-file"):
        shim.write_file(options.get("pid-file"), str(child).encode())
    if options.has("detach"):
        return 0
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
        "bpf": record.data["bpf"], "oom_score_adj": base.get("oomScoreAdj"),
    }  # fmt: skip


