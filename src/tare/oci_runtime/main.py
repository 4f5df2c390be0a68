"""The command `tare-oci`: global flags, the table of verbs, and how a failure is said."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from tare import __version__
from tare.linux import proc
from tare.runtime import enter, launch, seal

from .create import CREATE, CREATE_FLAGS, create, run, start
from .execute import execute
from .options import Options
from .record import VERSION, Failed, Record, delete

__all__ = ["main"]

_USAGE = """usage: tare-oci [--root DIR] [--log FILE] [--log-format text|json] [--systemd-cgroup] COMMAND ...

  create [-b DIR] [--pid-file F] [--console-socket S] ID     make a container that waits for start
  start ID                                                   let its program run
  run [-b DIR] [-d] [--pid-file F] [--console-socket S] ID   create, start, wait (unless -d) and delete
  state ID          kill [-a] ID [SIGNAL]     delete [-f] ID     list [-q] [-f table|json]
  exec [-p FILE | -t -u UID[:GID] -w DIR -e K=V] [-d] [--pid-file F] [--console-socket S] ID [COMMAND ...]
  ps [-f table|json] ID      pause ID      resume ID      update [-r FILE|-] ID      features"""


def kill(record: Record, name: str, *, everyone: bool) -> None:
    number = signal_number(name)
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


def signal_number(name: str) -> int:
    if name.isdigit() and 0 < int(name) < signal.NSIG:
        return int(name)
    plain = name.upper().removeprefix("SIG")
    base, plus, offset = plain.partition("+")
    number = getattr(signal, f"SIG{base}", None)
    if number is None or (plus and not offset.isdigit()):
        raise Failed(f"unknown signal {name!r}")
    return int(number) + (int(offset) if plus else 0)


def ps(record: Record, form: str) -> None:
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


def update(record: Record, arguments: Options) -> None:
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


def features() -> dict[str, Any]:
    """The answer to `features`, in the shape that runtime-spec gives it."""
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


def list_all(root: str, options: Options) -> None:
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
        return execute(root, arguments)
    if verb == "run":
        return run(root, parse(CREATE, CREATE_FLAGS))
    if verb == "kill":
        options = parse({}, {"a": "all", "all": "all"})
        identifier, name = (*options.words, "TERM")[:2] if options.words else ("", "")
        kill(Record.load(root, identifier), name, everyone=options.has("all"))
    elif verb == "delete":
        options = parse({}, {"f": "force", "force": "force"})
        try:
            delete(record(options), force=options.has("force"))
        except Failed as error:
            if not (options.has("force") and "does not exist" in str(error)):
                raise
    elif verb == "update":
        names = ("memory", "memory-swap", "memory-reservation", "cpu-quota", "cpu-period", "cpu-share", "cpuset-cpus",
                 "cpuset-mems", "pids-limit", "blkio-weight")  # fmt: skip
        options = parse({"r": "resources", "resources": "resources", **{n: n for n in names}})
        update(record(options), options)
    elif verb == "ps":
        options = parse(form, stop=1)
        ps(Record.load(root, options.words[0] if options.words else ""), options.get("format", "table"))
    else:
        simple: dict[str, Callable[[], object]] = {
            "create": lambda: create(root, parse(CREATE, CREATE_FLAGS)),
            "start": lambda: start(record()),
            "state": lambda: print(json.dumps(record().view(), indent=2)),
            "pause": lambda: record().cgroup().freeze(True),
            "resume": lambda: record().cgroup().freeze(False),
            "features": lambda: print(json.dumps(features(), indent=2)),
            "list": lambda: list_all(root, parse(form, {"q": "quiet", "quiet": "quiet"})),
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
            print(f"tare-oci version {__version__}\nspec: {VERSION}")
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
        seal.reexec(["-I", "-S", "-c", _BOOT, _SOURCE, *arguments])
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


_SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); sys.argv[:2] = ['tare-oci']; "
    "from tare.oci_runtime.main import main; main(sys.argv[1:])"
)


def _complain(message: str, settings: Mapping[str, str]) -> None:
    print(f"tare-oci: {message}", file=sys.stderr)
    if settings["log"]:
        entry = {"level": "error", "msg": message, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        text = " ".join(f"{key}={value!r}" for key, value in entry.items())
        line = json.dumps(entry) if settings["log-format"] == "json" else text
        with suppress(OSError), open(settings["log"], "a", encoding="utf-8") as file:
            file.write(line + "\n")


