"""`--change` of import and commit: Dockerfile instructions applied to an image's config. Pure; the daemon.

The accepted instructions and their effect are moby's (builder/dockerfile, BuildFromConfig): what changes the config and
no file. Words follow the Dockerfile's rules: quotes, backslash escapes, $NAME, ${NAME}, ${NAME:-word}, ${NAME:+word}
from the config's own ENV.

Deliberately absent: everything else of a Dockerfile; lines are capped at 64 KiB and the environment at 1 MiB, so that
doubling a variable ends in an error and not in the memory of the daemon.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import msgspec

from tare.errors import Invalid
from tare.oci.image import ContainerConfig, Healthcheck

__all__ = ["apply"]

_LINE_LIMIT = 64 << 10
_ENVIRONMENT_LIMIT = 1 << 20
_SHELL = ("/bin/sh", "-c")
_VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)(?::([-+])([^{}]*))?\})", re.ASCII)
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.ASCII | re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s|us|ns)", re.ASCII)
_UNITS = {"h": 3600 * 10**9, "m": 60 * 10**9, "s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}


def apply(config: ContainerConfig, lines: Iterable[str]) -> ContainerConfig:
    """The config after the instructions, in order. Invalid('x is not a valid change command') and the like."""
    command_set = False
    for text in chain.from_iterable(line.splitlines() for line in lines):
        line = text.strip()
        if not line or line.startswith("#"):
            continue
        if len(line) > _LINE_LIMIT:
            raise Invalid(f"change command is longer than {_LINE_LIMIT} bytes")
        word, _, rest = line.partition(" ")
        act = _ACTS.get(word.upper())
        if act is None:
            raise Invalid(f"{word[:100].lower()} is not a valid change command")
        if not rest.strip():
            raise Invalid(f"{word.upper()} requires at least one argument")
        config = act(config, rest.strip())
        command_set = command_set or word.upper() == "CMD"
        if word.upper() == "ENTRYPOINT" and not command_set:
            # The inherited command was meant for the inherited entry point.
            config = msgspec.structs.replace(config, cmd=None)
    return config


def _cmd(config: ContainerConfig, rest: str) -> ContainerConfig:
    return msgspec.structs.replace(config, cmd=_command(config, rest))


def _entrypoint(config: ContainerConfig, rest: str) -> ContainerConfig:
    return msgspec.structs.replace(config, entrypoint=_command(config, rest))


def _env(config: ContainerConfig, rest: str) -> ContainerConfig:
    environment = list(config.env or ())
    for name, value in _pairs(config, rest, "ENV"):
        kept = [entry for entry in environment if entry.partition("=")[0] != name]
        # A name keeps its place when it is set again.
        place = next((i for i, entry in enumerate(environment) if entry.partition("=")[0] == name), len(kept))
        environment = [*kept[:place], f"{name}={value}", *kept[place:]]
    if sum(map(len, environment)) > _ENVIRONMENT_LIMIT:
        raise Invalid(f"the environment is larger than {_ENVIRONMENT_LIMIT} bytes")
    return msgspec.structs.replace(config, env=tuple(environment))


def _label(config: ContainerConfig, rest: str) -> ContainerConfig:
    return msgspec.structs.replace(config, labels={**(config.labels or {}), **dict(_pairs(config, rest, "LABEL"))})


def _expose(config: ContainerConfig, rest: str) -> ContainerConfig:
    ports = dict(config.exposed_ports or {})
    for word in _words(config, rest):
        match = _PORT.fullmatch(word)
        if match is None:
            raise Invalid(f"invalid containerPort: {word[:100]}")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last <= 65535:
            raise Invalid(f"invalid containerPort: {word[:100]}")
        ports.update({f"{port}/{(match[3] or 'tcp').lower()}": {} for port in range(first, last + 1)})
    return msgspec.structs.replace(config, exposed_ports=ports)


def _volume(config: ContainerConfig, rest: str) -> ContainerConfig:
    paths = _json_strings(rest)
    if paths is None:
        paths = list(_words(config, rest))
    if not all(path.strip() for path in paths):
        raise Invalid("VOLUME specified can not be an empty string")
    return msgspec.structs.replace(config, volumes={**(config.volumes or {}), **{path: {} for path in paths}})


def _user(config: ContainerConfig, rest: str) -> ContainerConfig:
    return msgspec.structs.replace(config, user=_one(config, rest, "USER"))


def _stop_signal(config: ContainerConfig, rest: str) -> ContainerConfig:
    signal = _one(config, rest, "STOPSIGNAL")
    if not re.fullmatch(r"\d{1,2}|(?:SIG)?[A-Z0-9]{2,10}(?:[+-]\d{1,2})?", signal, re.ASCII | re.IGNORECASE):
        raise Invalid(f"invalid signal: {signal[:100]}")
    return msgspec.structs.replace(config, stop_signal=signal)


def _working_dir(config: ContainerConfig, rest: str) -> ContainerConfig:
    path = posixpath.normpath(posixpath.join("/", config.working_dir, _one(config, rest, "WORKDIR")))
    # POSIX lets two leading slashes stand; one is meant.
    return msgspec.structs.replace(config, working_dir="/" + path.lstrip("/"))


def _on_build(config: ContainerConfig, rest: str) -> ContainerConfig:
    trigger = rest.partition(" ")[0].upper()
    if trigger == "ONBUILD":
        raise Invalid("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if trigger in ("FROM", "MAINTAINER"):
        raise Invalid(f"{trigger} isn't allowed as an ONBUILD trigger")
    return msgspec.structs.replace(config, on_build=(*(config.on_build or ()), rest))


def _healthcheck(config: ContainerConfig, rest: str) -> ContainerConfig:
    options: dict[str, str] = {}
    while match := re.match(r"--([a-z-]+)=(\S+)\s+", rest):
        options[match[1]] = match[2]
        rest = rest[match.end() :]
    kind, _, command = rest.partition(" ")
    if kind.upper() == "NONE":
        return msgspec.structs.replace(config, healthcheck=Healthcheck(test=("NONE",)))
    if kind.upper() != "CMD" or not command.strip():
        raise Invalid(f'Unknown type "{kind[:100].upper()}" in HEALTHCHECK (try CMD)')
    words = _json_strings(command.strip())
    retries = options.pop("retries", "0")
    known = ("interval", "timeout", "start-period", "start-interval")
    if not retries.isascii() or not retries.isdigit() or not set(options) <= set(known):
        raise Invalid("unknown or malformed flag in HEALTHCHECK")
    check = Healthcheck(
        test=("CMD", *words) if words is not None else ("CMD-SHELL", command.strip()),
        retries=int(retries),
        **{name.replace("-", "_"): _duration(value) for name, value in options.items()},
    )
    return msgspec.structs.replace(config, healthcheck=check)


_ACTS: dict[str, Callable[[ContainerConfig, str], ContainerConfig]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _label,
    "ONBUILD": _on_build,
    "STOPSIGNAL": _stop_signal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _working_dir,
}


def _command(config: ContainerConfig, rest: str) -> tuple[str, ...]:
    """Exec form, or shell form behind the config's shell."""
    words = _json_strings(rest)
    return tuple(words) if words is not None else (*(config.shell or _SHELL), rest)


def _json_strings(text: str) -> list[str] | None:
    """A JSON array of strings, None for anything else (which is the shell form)."""
    try:
        value = json.loads(text) if text.startswith("[") else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) and all(isinstance(item, str) for item in value) else None


def _pairs(config: ContainerConfig, rest: str, instruction: str) -> Iterator[tuple[str, str]]:
    """NAME=value words, or the old form: NAME and the rest of the line."""
    head = re.match(r"[^\s=]+(?=\s)", rest)
    if head is not None:
        value = rest[head.end() :].strip()
        yield head[0], " ".join(_words(config, value, split=False))
        return
    for word in _words(config, rest):
        name, equals, value = word.partition("=")
        if not equals:
            raise Invalid(f"Syntax error - can't find = in {json.dumps(word[:100])}. Must be of the form: name=value")
        if not name:
            raise Invalid(f"{instruction} names can not be blank")
        yield name, value


def _one(config: ContainerConfig, rest: str, instruction: str) -> str:
    words = list(_words(config, rest, split=False))
    if not words or not words[0]:
        raise Invalid(f"{instruction} requires exactly one argument")
    return words[0]


def _words(config: ContainerConfig, text: str, *, split: bool = True) -> Iterator[str]:
    """Split at blanks outside quotes (or not at all), with quotes removed and variables put in."""
    environment = dict(entry.partition("=")[::2] for entry in config.env or ())
    word, quote, position, started, size = [], "", 0, False, 0
    while position < len(text):
        letter = text[position]
        match = _VARIABLE.match(text, position) if letter == "$" and quote != "'" else None
        if match is not None:
            piece = _value(environment, match)
            size += len(piece)
            if size > _ENVIRONMENT_LIMIT:
                raise Invalid(f"expanded variables are larger than {_ENVIRONMENT_LIMIT} bytes")
            word.append(piece)
            position, started = match.end(), True
            continue
        position += 1
        if letter == "\\" and quote != "'" and position < len(text):
            # Inside double quotes a backslash stays unless it protects something.
            word.append(text[position] if not quote or text[position] in '"\\$' else letter + text[position])
            position, started = position + 1, True
        elif letter == quote:
            quote = ""
        elif letter in "\"'" and not quote:
            quote, started = letter, True
        elif letter.isspace() and not quote and split:
            if started:
                yield "".join(word)
            word, started = [], False
        else:
            word.append(letter)
            started = True
    if quote:
        raise Invalid("unexpected end of statement while looking for matching quote")
    if started:
        yield "".join(word)


def _value(environment: dict[str, str], match: re.Match[str]) -> str:
    value = environment.get(match[1] or match[2], "")
    if match[3] == "-":
        return value or match[4]
    if match[3] == "+":
        return match[4] if value else ""
    return value


def _duration(text: str) -> int:
    """Go's notation ("1m30s") in ns; 0 or at least one millisecond, as Docker wants."""
    parts = list(_DURATION.finditer(text))
    total = int(sum(float(part[1]) * _UNITS[part[2]] for part in parts))
    if "".join(part[0] for part in parts) != text or 0 < total < 10**6:
        raise Invalid(f"invalid duration: {text[:100]}")
    return total
