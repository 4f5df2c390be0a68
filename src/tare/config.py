"""What the daemon is told: options of `tared` as data, its command line, and daemon.json with the same names.

Runs once in the daemon's start, before anything is touched. Option names, short forms and keys are dockerd's wherever
dockerd has them. An option given on both sides is refused as dockerd does. Deliberately absent: environment variables,
and any effect: daemon.py acts on the `Settings`.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from ipaddress import ip_interface
from typing import Any, NamedTuple

from tare import __version__
from tare.errors import Invalid

__all__ = ["DEFAULT_FILE", "VERSION", "Host", "Settings", "load", "usage"]

VERSION = __version__
DEFAULT_FILE = "/etc/tare/daemon.json"
LEVELS = ("debug", "info", "warn", "error", "fatal")
DRIVERS = ("json-file", "none")
_MAX_FILE = 1024 * 1024


class Option(NamedTuple):
    """One option. `kind`: text, number, flag, list, map or limits; `key` is its name in daemon.json ("" = none)."""

    name: str
    kind: str
    key: str
    help: str
    short: str = ""

    @property
    def attribute(self) -> str:
        return self.name.replace("-", "_")


OPTIONS = (
    Option("bip", "text", "bip", "Address and prefix of the default bridge (not offered yet)"),
    Option("bridge", "text", "bridge", "none: no bridge; others are not offered yet"),
    Option("cgroup-parent", "text", "cgroup-parent", "Parent cgroup of all containers"),
    Option("config-file", "text", "", "Configuration file"),
    Option("data-root", "text", "data-root", "Directory of images, containers and their data"),
    Option("debug", "flag", "debug", "Log everything", "D"),
    Option("default-ulimit", "limits", "default-ulimits", "Default ulimit of containers: name=soft[:hard]"),
    Option("exec-root", "text", "exec-root", "Directory of facts about live processes; on a tmpfs"),
    Option("group", "text", "group", "Group that may use the unix socket", "G"),
    Option("help", "flag", "", "Print this text"),
    Option("host", "list", "hosts", "Address to listen on: unix://, tcp:// or fd://", "H"),
    Option("init-path", "text", "init-path", "Static reaper for containers that ask for --init"),
    Option("label", "list", "labels", "key=value shown by `info`"),
    Option("log-driver", "text", "log-driver", "Default log driver of containers: json-file or none"),
    Option("log-file", "text", "", "Write the daemon's log here instead of stderr"),
    Option("log-level", "text", "log-level", "debug, info, warn, error or fatal", "l"),
    Option("log-opt", "map", "log-opts", "Default log option of containers: name=value"),
    Option("pidfile", "text", "pidfile", "File for the daemon's process id", "p"),
    Option("shutdown-timeout", "number", "shutdown-timeout", "Seconds that requests have to finish at the end"),
    Option("tlscacert", "text", "tlscacert", "Trust client certificates signed by this CA"),
    Option("tlscert", "text", "tlscert", "Certificate of the daemon"),
    Option("tlskey", "text", "tlskey", "Key of the certificate"),
    Option("tlsverify", "flag", "tlsverify", "Serve TLS and demand client certificates"),
    Option("validate", "flag", "", "Check the configuration and exit"),
    Option("version", "flag", "", "Print the version and exit", "v"),
)
_BY_NAME = {f"--{o.name}": o for o in OPTIONS} | {f"-{o.short}": o for o in OPTIONS if o.short}
_BY_KEY = {o.key: o for o in OPTIONS if o.key}


class Host(NamedTuple):
    """One address to listen on. `scheme`: unix (`path`), tcp (`path` host, `port`) or fd (`path` name or "")."""

    scheme: str
    path: str
    port: int = 0


@dataclass(kw_only=True)
class Settings:
    """Every option with its default; read only once `load` has returned it."""

    bip: str = ""
    bridge: str = ""
    cgroup_parent: str = "/tare"
    config_file: str = DEFAULT_FILE
    data_root: str = "/var/lib/tare"
    debug: bool = False
    default_ulimit: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Name -> (soft, hard); -1 is unlimited."""
    exec_root: str = "/run/tare"
    group: str = ""
    """"" = docker, else tare, else root."""
    help: bool = False
    host: list[str] = field(default_factory=list)
    init_path: str = ""
    label: list[str] = field(default_factory=list)
    log_driver: str = "json-file"
    log_file: str = ""
    log_level: str = "info"
    log_opt: dict[str, str] = field(default_factory=dict)
    pidfile: str = "/run/tared.pid"
    shutdown_timeout: int = 15
    tlscacert: str = ""
    tlscert: str = ""
    tlskey: str = ""
    tlsverify: bool = False
    validate: bool = False
    version: bool = False

    @property
    def hosts(self) -> list[Host]:
        return [parse_host(text) for text in self.host] or [Host("unix", "/run/tare.sock")]

    @property
    def level(self) -> str:
        return "debug" if self.debug else self.log_level


def load(argv: Sequence[str]) -> Settings:
    """Command line over file over defaults, checked. Invalid with one sentence."""
    given = parse_arguments(argv)
    settings = Settings(**given)
    if settings.help or settings.version:
        return settings
    values = read_file(settings.config_file, required="config_file" in given)
    twice = sorted(_BY_KEY[key].name for key in values if _BY_KEY[key].attribute in given)
    if twice:
        raise Invalid(
            f"unable to configure the daemon with file {settings.config_file}: the following directives are specified "
            f"both as a flag and in the configuration file: {', '.join(twice)}"
        )
    for key, value in values.items():
        setattr(settings, _BY_KEY[key].attribute, value)
    check(settings)
    return settings


def parse_arguments(argv: Sequence[str]) -> dict[str, Any]:
    """Arguments -> attribute to value, by pflag's rules: "--name value", "--name=value", "-n value", "--flag=false"."""
    given: dict[str, Any] = {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        option = _BY_NAME.get(name)
        if option is None and word[:1] == "-" and word[:2] != "--" and len(word) > 2:
            # -Dunix and the like: a short form directly followed by its value.
            option, equals, value = _BY_NAME.get(word[:2]), "=", word[2:]
            if option is not None and option.kind == "flag":
                rest.insert(0, f"-{word[2:]}")
                equals, value = "", ""
        if option is None:
            what = "unknown flag" if word.startswith("-") else "unexpected argument"
            raise Invalid(f"{what}: {word}")
        if option.kind == "flag":
            value = value if equals else "true"
        elif not equals:
            if not rest:
                raise Invalid(f"flag needs an argument: {name}")
            value = rest.pop(0)
        _take(given, option, value)
    return given


def _take(given: dict[str, Any], option: Option, value: str) -> None:
    """Adds one value from the command line; list, map and limits may be repeated."""
    name = option.attribute
    if option.kind == "flag":
        given[name] = _flag(option, value)
    elif option.kind == "number":
        if not value.isascii() or not value.isdigit() or len(value) > 9:
            raise Invalid(f'invalid argument "{value}" for --{option.name}: not a number')
        given[name] = int(value)
    elif option.kind == "list":
        given.setdefault(name, []).append(value)
    elif option.kind == "map":
        key, equals, text = value.partition("=")
        if not equals or not key:
            raise Invalid(f'invalid argument "{value}" for --{option.name}: not of the form name=value')
        given.setdefault(name, {})[key] = text
    elif option.kind == "limits":
        key, soft, hard = _limit(value)
        given.setdefault(name, {})[key] = (soft, hard)
    else:
        given[name] = value


def _flag(option: Option, value: str) -> bool:
    if value.lower() in {"1", "t", "true"}:
        return True
    if value.lower() in {"0", "f", "false"}:
        return False
    raise Invalid(f'invalid argument "{value}" for --{option.name}: neither true nor false')


def _limit(text: str) -> tuple[str, int, int]:
    """name=soft[:hard] -> (name, soft, hard)."""
    name, equals, value = text.partition("=")
    soft, colon, hard = value.partition(":")
    try:
        low = int(soft)
        high = int(hard) if colon else low
    except ValueError:
        raise Invalid(f"invalid ulimit argument: {text}") from None
    if not equals or not name.islower():
        raise Invalid(f"invalid ulimit argument: {text}")
    if high != -1 and (low == -1 or low > high):
        raise Invalid(f"ulimit soft limit must be less than or equal to hard limit: {low} > {high}")
    return name, low, high


def read_file(path: str, *, required: bool) -> dict[str, Any]:
    """daemon.json -> key to value, types checked; {} if it is absent and not `required`. Invalid with one sentence."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(_MAX_FILE + 1)
    except FileNotFoundError:
        if not required:
            return {}
        raise Invalid(f"read {path}: no such file or directory") from None
    except OSError as error:
        raise Invalid(f"read {path}: {os.strerror(error.errno or 0).lower()}") from None
    if stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IWOTH:
        raise Invalid(f"read {path}: everybody may write to it")
    if len(data) > _MAX_FILE:
        raise Invalid(f"read {path}: larger than {_MAX_FILE} bytes")
    if not data.strip():
        return {}
    try:
        document = json.loads(data, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"read {path}: {str(error) or 'nested too deeply'}") from None
    if not isinstance(document, dict):
        raise Invalid(f"read {path}: not a JSON object")
    unknown = sorted(key for key in document if key not in _BY_KEY)
    if unknown:
        raise Invalid(
            f"read {path}: the following directives don't match any configuration option: {', '.join(unknown)}"
        )
    return {key: _from_json(path, _BY_KEY[key], value) for key, value in document.items()}


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands there twice")
    return result


def _from_json(path: str, option: Option, value: Any) -> Any:
    checks: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "text": ("a string", lambda v: isinstance(v, str)),
        "flag": ("true or false", lambda v: isinstance(v, bool)),
        "number": ("a number", lambda v: isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 10**9),
        "list": ("a list of strings", lambda v: isinstance(v, list) and all(isinstance(i, str) for i in v)),
        "map": ("an object of strings", lambda v: isinstance(v, dict) and all(isinstance(i, str) for i in v.values())),
        "limits": ("an object of ulimits", lambda v: isinstance(v, dict)),
    }
    wanted, fits = checks[option.kind]
    if not fits(value):
        raise Invalid(f"read {path}: {option.key} is not {wanted}")
    if option.kind != "limits":
        return value
    limits: dict[str, tuple[int, int]] = {}
    for name, limit in value.items():
        # dockerd's form: {"nofile": {"Name": "nofile", "Soft": 1024, "Hard": 2048}}
        try:
            text = f"{name}={int(limit['Soft'])}:{int(limit['Hard'])}"
        except (KeyError, TypeError, ValueError):
            raise Invalid(f"read {path}: {option.key}: {name} needs Soft and Hard") from None
        key, soft, hard = _limit(text)
        limits[key] = (soft, hard)
    return limits


def check(settings: Settings) -> None:
    """What can be known to be wrong before anything is touched. Invalid with one sentence."""
    for name in ("data_root", "exec_root", "pidfile", "init_path", "log_file"):
        path = getattr(settings, name)
        if path and (not path.startswith("/") or "\0" in path):
            raise Invalid(f"--{name.replace('_', '-')} {path}: not an absolute path")
    if settings.log_level not in LEVELS:
        raise Invalid(f"invalid logging level: {settings.log_level}")
    if settings.log_driver not in DRIVERS:
        raise Invalid(f"log driver {settings.log_driver} is not offered: use {' or '.join(DRIVERS)}")
    if not settings.cgroup_parent.startswith("/") or ".." in settings.cgroup_parent.split("/"):
        raise Invalid(f"--cgroup-parent {settings.cgroup_parent}: not an absolute cgroup path")
    if settings.bip:
        try:
            ip_interface(settings.bip)
        except ValueError:
            raise Invalid(f"--bip {settings.bip}: not an address with a prefix length") from None
        if settings.bridge:
            raise Invalid("--bridge and --bip exclude each other: an existing bridge keeps its address")
    for label in settings.label:
        if not label.partition("=")[0]:
            raise Invalid(f"--label {label}: not of the form key=value")
    certificates = settings.tlscacert and settings.tlscert and settings.tlskey
    if settings.tlsverify and not certificates:
        raise Invalid("--tlsverify needs --tlscacert, --tlscert and --tlskey")
    for host in settings.hosts:
        if host.scheme == "tcp" and not settings.tlsverify:
            raise Invalid(
                f"listen on tcp://{host.path}:{host.port}: refused without --tlsverify, as whoever reaches it is root"
            )


def parse_host(text: str) -> Host:
    """ "unix:///run/x.sock", "tcp://127.0.0.1:2375", "fd://" -> Host. Invalid for anything else."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = ("unix", text) if text.startswith("/") else ("tcp", text)
    if scheme == "fd":
        return Host("fd", rest.strip("*"))
    if scheme == "unix":
        path = rest or "/run/tare.sock"
        if not path.startswith("/"):
            raise Invalid(f"invalid host {text}: the socket's path is not absolute")
        return Host("unix", path)
    if scheme != "tcp":
        raise Invalid(f"invalid host {text}: only unix://, tcp:// and fd:// are served")
    name, _, number = rest.rstrip("/").rpartition(":")
    if not number.isascii() or not number.isdigit() or int(number) > 65535:
        raise Invalid(f"invalid host {text}: no port")
    return Host("tcp", name.strip("[]"), int(number))


def usage() -> str:
    """The text of --help."""
    defaults = {f.name: f.default for f in fields(Settings)}
    rows = []
    for option in OPTIONS:
        short = f"-{option.short}, " if option.short else "    "
        kind = "" if option.kind == "flag" else f" {'string' if option.kind == 'text' else option.kind}"
        default = defaults[option.attribute]
        shown = f' (default "{default}")' if isinstance(default, str) and default else ""
        rows.append(f"  {short}--{option.name + kind:<28} {option.help}{shown}")
    return "Usage: tared [OPTIONS]\n\nThe daemon of the tare container engine.\n\nOptions:\n" + "\n".join(rows) + "\n"
