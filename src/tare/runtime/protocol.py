"""The words between daemon, zygote, shim and init: JSON frames over SEQPACKET, descriptors by SCM_RIGHTS.

```
daemon                     zygote                shim                      init (pid 1 of the container)
  |                          |-- fork, ahead ---->|
  |-- Run{dir} + fds ---------------------------->|
  |                                               |-- cgroup, clone3 ------->| mounts, user look-up
  |<----------------------- Ready{pid} -----------|                          |
  |  (network, firewall)                          |                          |
  |------------------------ Go ------------------>|-- one byte on the gate ->| pivot, caps, seccomp, execve
  |<----------------------- Started | Failed -----|<-- status pipe: EOF | {step, errno, path}
  |------------------------ Attach, Resize, ... ->|
  |<----------------------- Exited ---------------|<-- pidfd
```
A lost socket before Go makes the shim kill init and leave; after Go it carries on without a daemon. A daemon that
starts later connects to `<dir>/shim.sock` and asks for State. An exec is the same without Ready and Go. Every frame is
one JSON object with a "type" and fits
in MAX_FRAME; what may be larger (the bundle) is a file in `<dir>`.

Daemon -> zygote (descriptor order is the order of the list)
  {"type": "run", "dir": D, "attach": [STREAMS, ...]}     fds: control socket, one client per STREAMS
  {"type": "exec", "dir": D, "process": EXEC, "attach": [STREAMS, ...]}     fds: the same
Daemon -> shim or exec (each answered by {"type": "ok"|"error", "seq": N, "message"?})
  {"type": "go"}                                           not answered: Started or Failed follows
  {"type": "attach", "seq": N, "streams": STREAMS}         fds: the client; its bytes already read in STREAMS.leftover
  {"type": "resize", "seq": N, "rows": R, "columns": C}
  {"type": "kill", "seq": N, "signal": S}                  errno ESRCH in the answer when it has ended
  {"type": "freeze", "seq": N, "on": bool}
  {"type": "update", "seq": N, "resources": OCI linux.resources}     answer carries "warnings"
  {"type": "reopen", "seq": N}                             log file, after rotation or truncation by others
  {"type": "state", "seq": N}                              answered by State
Shim or exec -> daemon
  {"type": "ready", "pid": P}
  {"type": "started", "pid": P, "start_time": T, "time_ns": NS, "warnings": [..]}
  {"type": "failed", "step": "execve", "errno": 2, "path": "/x", "message": "..."}
  {"type": "state", "seq": N, "pid": P, "start_time": T, "started_ns": NS, "frozen": bool, "exited": EXITED|null}
  {"type": "oom"}                                          each time the kernel reports one
  {"type": "detached", "client": N}                        detach keys of the client with STREAMS.client N
  {"type": "exited", "code": 0..255, "signal": 0|n, "oom": bool, "time_ns": NS}   = EXITED; then end of file
STREAMS = {"client": N, "stdin": b, "stdout": b, "stderr": b, "mux": b, "detach_keys": [16, 17],
           "leftover": latin-1}
EXEC = {"args", "env": ["K=V"], "cwd", "user": "name[:group]", "tty", "rows", "columns", "stdin": b, "capabilities":
        OCI process.capabilities, "no_new_privileges": b, "bpf": path|"", "rlimits": OCI, "groups": [..],
        "oom_score_adj": n|null, "cgroup": path}

Files in <dir> = <exec-root>/containers/<id> (tmpfs: facts about live processes, gone after a reboot as they are)
  bundle.json   Bundle, written by the daemon before Run
  pid           "PID STARTTIME\\n", written by the shim before Started
  shim          "PID STARTTIME\\n" of the shim itself, written before Ready
  shim.sock     control socket of the shim (SEQPACKET, 0600)
  exit          EXITED as JSON, written tmp + rename when the container has ended

Bundle (engine/model.py:Bundle as JSON; absent = default)
  id        container id
  oci       OCI runtime configuration 1.2: process{args, env, cwd, capabilities, rlimits, noNewPrivileges,
            oomScoreAdj, consoleSize}, root{readonly}, hostname, domainname, mounts, linux{namespaces, resources,
            maskedPaths, readonlyPaths, sysctl, devices, rootfsPropagation, uidMappings, gidMappings, timeOffsets}.
            process.user counts only if `user` is "". linux.seccomp is not read here: see `bpf`.
  rootfs    {"lower": [top .. base], "upper": path, "work": path}: an overlay mounted by init in its own mount
            namespace; or {"path": directory}: bound as it is
  cgroup    path below each controller's root: "/tare/<id>"
  bpf       file with the compiled seccomp program (array of struct sock_filter), "" = none
  user      "", "name", "uid", "name:group", "uid:gid": resolved by init from the image's passwd and group; HOME is
            added to the environment from there when process.env has none
  groups    further groups by name or number (--group-add)
  init      host path of a static reaper, bound at /sbin/docker-init and put before args; "" = none
  tty, stdin, stdin_once, console_size [rows, columns]
  log       {"driver": "json-file", "path": file, "max_size": bytes, "max_file": n} or {"driver": "none"}
  run_dir   <dir>
  dockerenv create an empty /.dockerenv
Mounts are OCI's {destination, type, source, options}; beyond the spec, type "cgroup" shows the container's own leaf
only (per controller on v1), and option "create-source" is never needed: the daemon made the source.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from tare.linux import jsontext

__all__ = ["MAX_FRAME", "Exited", "StreamsWire", "encode"]

MAX_FRAME = 160 * 1024
"""Below net.core.wmem_default (212,992) minus the kernel's bookkeeping, so that a frame always fits in one send."""


class StreamsWire(TypedDict):
    """STREAMS above."""

    client: int
    stdin: bool
    stdout: bool
    stderr: bool
    mux: bool
    detach_keys: NotRequired[list[int]]
    leftover: NotRequired[str]


class Exited(TypedDict):
    """EXITED above; `code` is 128 + signal for a signalled process."""

    code: int
    signal: int
    oom: bool
    time_ns: int


def encode(message: Any) -> bytes:
    """One frame; ValueError if it would not fit."""
    data = jsontext.dumps(message).encode()
    if len(data) > MAX_FRAME:
        raise ValueError(f"message of {len(data)} bytes exceeds the frame limit of {MAX_FRAME}")
    return data

