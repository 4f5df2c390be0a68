"""Runs as pid 1 inside the new namespaces until execve; host root with all capabilities until `security.become`.

One straight path, no decision of policy: what to mount, which rights to keep is in the bundle. Imports nothing lazily:
from `rootfs` on, the root is the image's, and an import could run the image's code as the host's root.
Failures go up the status pipe as one JSON object {step, errno, path, message}. A line end and then the end of file *is*
execve's success, because the pipe is O_CLOEXEC.
"""

from __future__ import annotations

import fcntl
import os
import signal
import stat
from contextlib import suppress
from errno import EACCES, EINVAL, ENOENT, ENOEXEC, ENOTDIR, EPERM, EROFS

from tare.cgroups import api as cgroups
from tare.linux import jsontext, libc, netlink, passwd, pty
from tare.linux.fds import Channel

from . import rootfs, security

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, NoReturn

__all__ = ["Context", "environment", "execute", "fail", "main", "reset_signals"]


_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD)
"""What Python and the zygote ignore, which execve would pass on; `reset_signals` has seen to the others."""


def reset_signals() -> None:
    """Once per zygote: whatever our starter ignored (nohup, a shell's background) is not the containers' business."""
    for number in range(1, signal.NSIG):
        if number not in (*_IGNORED, signal.SIGKILL, signal.SIGSTOP):
            libc.reset_signal(number)


class Context:
    """What init inherits: descriptors and values, nothing named by a path of the host it could confuse."""

    __slots__ = ("bpf", "bundle", "cgroup", "early", "gate", "notify_gate", "placed", "status", "stdio", "tty")

    def __init__(
        self,
        bundle: Mapping[str, Any],
        *,
        bpf: bytes,
        cgroup: cgroups.Cgroup,
        placed: bool,
        gate: int,
        early: int,
        status: int,
        stdio: tuple[int, int, int],
        tty: Channel | None,
        notify_gate: bool,
    ) -> None:
        self.bundle = bundle
        self.bpf = bpf
        self.cgroup = cgroup
        self.placed = placed
        self.gate = gate
        """One byte on it lets the user's program start; end of file means that nobody wants it any more."""
        self.early = early
        """-1, or (with a user namespace) one byte when id maps are written and we were put into the cgroup."""
        self.status = status
        self.stdio = stdio
        self.tty = tty
        """Where the pty's master goes; None without a terminal."""
        self.notify_gate = notify_gate
        """Report {"at": "gate"}: `tare-oci create` returns then."""


def fail(status: int, step: str, error: BaseException) -> NoReturn:
    """Report and end; the parent cleans up."""
    message = str(error)
    number = error.errno or 0 if isinstance(error, OSError) else 0
    path = os.fsdecode(error.filename) if isinstance(error, OSError) and error.filename else ""
    if isinstance(error, OSError):
        message = error.strerror or message
    report = {"step": step, "errno": number, "path": path, "message": message}
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        os.write(status, jsontext.dumps(report).encode())
    except OSError:  # after `tare-oci start` nobody reads it: the container's own stderr is left
        os.write(2, f"{step}: {path} {message}\n".encode())
    os._exit(1)


def main(context: Context) -> NoReturn:
    """From clone3's return to execve. The order of steps is the contract; each line says why it stands there."""
    bundle = context.bundle
    oci: dict[str, Any] = bundle["oci"]
    process, linux = oci["process"], oci.get("linux") or {}
    new = {n["type"] for n in linux.get("namespaces") or [] if not n.get("path")}
    arguments = list(process["args"])
    if bundle.get("init"):
        arguments = ["/sbin/docker-init", "--", *arguments]
    step = "set up"
    try:
        os.umask(0)  # modes below are meant as written
        if context.early < 0:
            context.cgroup.enter(placed=context.placed)
        elif os.read(context.early, 1) != b"\n":
            os._exit(1)
        if "user" in new:
            os.setresgid(0, 0, 0)  # ids are mapped now; before, we were the overflow id
            os.setresuid(0, 0, 0)
        if "cgroup" in new:
            libc.unshare(libc.CLONE_NEWCGROUP)  # its root is where we are now: after the cgroup was entered
        os.setsid()

        step = "mount the root file system"
        _propagation(linux.get("rootfsPropagation") or "rprivate")  # else our mounts would show on the host (rule 6)
        root = _mount_root(bundle)
        at = rootfs.Place(root)
        steps = rootfs.ops(
            oci, context.cgroup.mounts(), init=bundle.get("init") or "", dockerenv=bool(bundle.get("dockerenv"))
        )
        for op in steps:
            step = op.describe()
            if isinstance(op, rootfs.ReadOnly) and at.proc >= 0:
                _proc_settings(at.proc, linux, process)  # once, while /proc/sys is not yet read-only
                os.close(at.proc)
                at.proc = -2
            op.perform(at)
        if at.proc != -2:
            step = "set sysctls"
            _proc_settings(_private_proc() if at.proc < 0 else at.proc, linux, process)

        step = "resolve the user"
        identity = _identity(root, bundle, process)
        variables = environment(process, identity.home)
        step = "open the terminal"
        stdio = _terminal(context, root, process) if context.tty else context.stdio
        if "network" in new:
            step = "bring up the loopback interface"
            netlink.link_up(1)

        step = "pivot_root"
        if (oci.get("root") or {}).get("readonly"):
            libc.mount_setattr(root, libc.MOUNT_ATTR_RDONLY)  # last: mount points had to be made in it
        os.fchdir(root)
        libc.pivot_root(".", ".")  # the old root now lies over the new one: pivot_root(2), NOTES
        libc.umount2(".", libc.MNT_DETACH)
        os.chdir("/")
        os.close(root)
        if "uts" in new:
            step = "set the host name"
            for set_name, name in ((libc.sethostname, "hostname"), (libc.setdomainname, "domainname")):
                if oci.get(name):
                    set_name(oci[name])

        if context.notify_gate:
            step = "execve"
            look_up(arguments, variables, process.get("cwd") or "/")
            step = "wait for the start"
            os.write(context.status, b'{"at":"gate"}\n')
        if os.read(context.gate, 1) == b"":
            os._exit(1)  # the shim or its daemon went away before Go: no half-started container exists
    except BaseException as error:
        fail(context.status, step, error)
    execute(
        process, arguments, variables, identity,
        bpf=context.bpf, stdio=stdio, status=context.status, keyring=bundle["id"],
    )  # fmt: skip


def _propagation(word: str) -> None:
    flags = {
        "private": libc.MS_PRIVATE, "rprivate": libc.MS_PRIVATE | libc.MS_REC,
        "slave": libc.MS_SLAVE, "rslave": libc.MS_SLAVE | libc.MS_REC,
        "shared": libc.MS_SHARED, "rshared": libc.MS_SHARED | libc.MS_REC,
        "unbindable": libc.MS_PRIVATE, "runbindable": libc.MS_PRIVATE | libc.MS_REC,
    }  # fmt: skip
    libc.mount("none", "/", "", flags[word])


def _mount_root(bundle: Mapping[str, Any]) -> int:
    """The root attached somewhere private to this namespace; a readable directory descriptor of it."""
    layers = bundle["rootfs"]
    _isolate(os.path.realpath(layers.get("path") or bundle["run_dir"]))
    if "path" in layers:
        tree = libc.open_tree(libc.AT_FDCWD, layers["path"], libc.OPEN_TREE_CLONE | libc.AT_RECURSIVE)
        spot = os.open(layers["path"], os.O_PATH | os.O_CLOEXEC)
        libc.move_mount(tree, spot)
        os.close(spot)
        mounted = tree
    else:
        mounted = rootfs.overlay(layers, bundle["run_dir"])
    # What follows must not spread even if the host's tree is shared and the bundle asks for it (runc, rootfs_linux.go)
    libc.mount_setattr(mounted, propagation=libc.MS_PRIVATE)
    root = libc.openat2(mounted, ".", os.O_RDONLY | os.O_DIRECTORY)
    os.close(mounted)
    return root


def _isolate(path: str) -> None:
    """Make the mount that holds `path` private."""
    while True:
        try:
            return libc.mount("none", path, "", libc.MS_PRIVATE)
        except OSError as error:
            if error.errno != EINVAL or path == "/":
                raise
        path = os.path.dirname(path)


def _private_proc() -> int:
    context = libc.fsopen("proc")
    libc.fsconfig_create(context)
    mounted = libc.fsmount(context)
    os.close(context)
    return mounted


def _proc_settings(proc: int, linux: Mapping[str, Any], process: Mapping[str, Any]) -> None:
    """sysctls and oom_score_adj through our own procfs (N2, CVE-2025-52881)."""
    for key, value in (linux.get("sysctl") or {}).items():
        # sysctl(8): dots and slashes change places, so that "net.ipv4.conf.eth0/1.forwarding" names eth0.1
        _write(proc, "sys/" + key.translate({46: "/", 47: "."}), str(value))
    adjustment = process.get("oomScoreAdj")
    if adjustment is not None:
        with suppress(PermissionError):  # below the inherited value without CAP_SYS_RESOURCE: the plan warned
            _write(proc, "self/oom_score_adj", str(adjustment))


def _write(proc: int, name: str, value: str) -> None:
    resolve = libc.RESOLVE_BENEATH | libc.RESOLVE_NO_XDEV | libc.RESOLVE_NO_MAGICLINKS
    fd = libc.openat2(proc, name, os.O_WRONLY, resolve=resolve)
    try:
        os.write(fd, value.encode())
    except OSError as error:
        raise OSError(error.errno, f"write {value!r}: {error.strerror}", f"/proc/{name}") from None
    finally:
        os.close(fd)


def _identity(root: int, bundle: Mapping[str, Any], process: Mapping[str, Any]) -> passwd.Identity:
    user = bundle.get("user") or ""
    given = process.get("user") or {}
    if user or "uid" not in given:
        return passwd.resolve_user(root, user, list(bundle.get("groups") or []))
    # OCI: numbers are final; HOME comes from the entry with this uid, as runc does
    home = passwd.resolve_user(root, str(given["uid"]), []).home
    return passwd.Identity(given["uid"], given.get("gid", 0), list(given.get("additionalGids") or []), home)


def environment(process: Mapping[str, Any], home: str) -> dict[str, str]:
    """process.env as a mapping, the last of duplicates wins; HOME from passwd unless given."""
    variables: dict[str, str] = {}
    for entry in process.get("env") or []:
        name, equals, value = entry.partition("=")
        if equals and name:
            variables[name] = value
    variables.setdefault("HOME", home)
    return variables


def _terminal(context: Context, root: int, process: Mapping[str, Any]) -> tuple[int, int, int]:
    """A pty of the container's own devpts; its master goes to the shim, its slave becomes /dev/console and 0, 1, 2."""
    size = process.get("consoleSize") or {}
    master, slave = pty.open_pair(root, size.get("height") or 0, size.get("width") or 0)
    with suppress(FileNotFoundError):
        spot = rootfs.place(root, "dev/console", directory=False)
        tree = libc.open_tree(slave, "", libc.OPEN_TREE_CLONE | libc.AT_EMPTY_PATH)
        libc.move_mount(tree, spot)
        os.close(tree)
        os.close(spot)
    assert context.tty is not None
    context.tty.send({"type": "terminal"}, [master])
    os.close(master)
    pty.set_controlling(slave)
    return slave, slave, slave


def execute(
    process: Mapping[str, Any],
    arguments: list[str],
    environment: dict[str, str],
    identity: passwd.Identity,
    *,
    bpf: bytes,
    stdio: tuple[int, int, int],
    status: int,
    keyring: str,
) -> NoReturn:
    """The last steps, the same for init and exec: descriptors, limits, rights, execve."""
    step = "set up standard streams"
    try:
        stdio = tuple(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in stdio)  # type: ignore[assignment]
        for number, fd in enumerate(stdio):
            _own(fd, identity)
            os.dup2(fd, number, inheritable=True)
        step = "join a session keyring"
        with suppress(OSError):  # no keyrings in this kernel, or the quota is spent: the filter still refuses them
            libc.keyctl_join_session(f"_ses.{keyring}")
        step = "set rlimits"
        security.set_rlimits(process.get("rlimits") or [])
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        step = "close descriptors"
        libc.close_range(3, flags=libc.CLOSE_RANGE_CLOEXEC)  # rule 4, N4
        step = "drop privileges"
        security.become(identity, process, bpf)
        step = "change the working directory"
        _chdir(process.get("cwd") or "/")
        os.umask(int((process.get("user") or {}).get("umask") or 0o022))
        step = "execve"
        _execve(arguments, environment, status)
    except BaseException as error:
        fail(status, step, error)


def _own(fd: int, identity: passwd.Identity) -> None:
    """The user may reopen /dev/stdout; a null device stays root's (CVE-2026-88265 is its chown)."""
    found = os.fstat(fd)
    if found.st_uid == identity.uid or (stat.S_ISCHR(found.st_mode) and found.st_rdev == os.makedev(1, 3)):
        return
    try:
        os.fchown(fd, identity.uid, -1)
    except OSError as error:
        if error.errno not in (EPERM, EROFS, EINVAL):
            raise


def _chdir(path: str) -> None:
    """As the user; a directory outside of the root, reached by a descriptor of the host's, is refused (CVE-2024-21626).

    Not by openat2: the user's filter is in force and may not know it. No directory is open by now.
    """
    os.chdir(path)
    if not os.getcwd().startswith("/"):
        raise OSError(ENOENT, "the working directory lies outside the container's root", path)


def _candidates(arguments: list[str], variables: Mapping[str, str]) -> list[str]:
    name = arguments[0] if arguments else ""
    if "/" in name:
        return [name]
    return [f"{directory or '.'}/{name}" for directory in variables.get("PATH", "").split(":")]


def look_up(arguments: list[str], variables: Mapping[str, str], cwd: str) -> None:
    """Whether there is something to execute at all, for `tare-oci create`, which reports it before the start."""
    telling = OSError(ENOENT, os.strerror(ENOENT), arguments[0] if arguments else "")
    for candidate in _candidates(arguments, variables):
        with suppress(FileNotFoundError, NotADirectoryError):
            mode = os.stat(os.path.join(cwd, candidate)).st_mode
            if stat.S_ISREG(mode) and mode & 0o111:
                return
            telling = OSError(EACCES, os.strerror(EACCES), arguments[0])
    raise telling


def _execve(arguments: list[str], variables: dict[str, str], status: int) -> NoReturn:
    """execvp(3) in the container's PATH. OSError with errno of the most telling candidate and the name as typed."""
    name = arguments[0] if arguments else ""
    telling = OSError(ENOENT, os.strerror(ENOENT), name)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_DFL)
    with suppress(OSError):
        os.write(status, b"\n")  # an end of file without it is a process that was killed on the way
    for candidate in _candidates(arguments, variables):
        try:
            if stat.S_ISDIR(os.stat(candidate).st_mode):
                raise OSError(EACCES, "is a directory" if "/" in name else os.strerror(EACCES), name)
            os.execve(candidate, arguments, variables)
        except OSError as error:
            if error.errno == ENOEXEC:
                raise OSError(ENOEXEC, os.strerror(ENOEXEC), name) from None
            if error.errno not in (ENOENT, ENOTDIR):
                telling = OSError(error.errno, error.strerror, name)
    raise telling
