"""-v and --mount: text -> Binds, Volumes and Mounts of a create request. Each raises ValueError in Docker's words."""

from __future__ import annotations

import os

from tare.cli.options import quoted
from tare.cli.values import record, size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

__all__ = ["mount", "volumes"]

BARE = frozenset(("readonly", "ro", "volume-nocopy", "bind-nonrecursive", "bind-create-src"))
RECURSION = {"disabled": "NonRecursive", "writable": "ReadOnlyNonRecursive", "readonly": "ReadOnlyForceRecursive"}
OPTIONS_OF = {"bind": "BindOptions", "volume": "VolumeOptions", "image": "ImageOptions", "tmpfs": "TmpfsOptions"}


def _boolean(key: str, value: str, *, bare: bool) -> bool:
    if bare or value in ("1", "true"):
        return True
    if value in ("0", "false"):
        return False
    raise ValueError(
        f"invalid value for '{key}': invalid boolean value ({quoted(value)}): "
        'must be one of "true", "1", "false", or "0" (default "true")'
    )


def _field(field: str) -> tuple[str, str, bool]:
    """"key=value" -> (key, value, bare)."""
    key, equals, value = field.partition("=")
    if key != key.strip():
        raise ValueError(f"invalid option '{key.strip()}' in '{field}': option should not have whitespace")
    if equals and not value.strip():
        raise ValueError(f"invalid value for '{key}': value is empty")
    if value != value.strip():
        raise ValueError(f"invalid value for '{key}' in '{field}': value should not have whitespace")
    key = key.lower()
    if not equals and key not in BARE:
        raise ValueError(f"invalid field '{field}' must be a key=value pair")
    return key, value, not equals


def mount(text: str) -> dict[str, Any]:
    """--mount "type=bind,src=/a,dst=/b,ro" -> one of HostConfig.Mounts. The type is "volume" unless said."""
    if not text.strip():
        raise ValueError("value is empty")
    got: dict[str, Any] = {"Type": "volume"}
    for field in record(text.strip()):
        key, value, bare = _field(field)
        if key == "type":
            got["Type"] = value.lower()
        elif key in ("source", "src"):
            got["Source"] = os.path.abspath(value) if value.startswith(".") else value
        elif key in ("target", "dst", "destination"):
            got["Target"] = value
        elif key in ("readonly", "ro"):
            got["ReadOnly"] = _boolean(key, value, bare=bare)
        elif key == "consistency":
            got["Consistency"] = value.lower()
        elif key.startswith(("bind-", "volume-", "image-", "tmpfs-")):
            _typed(got, key, value, bare=bare)
        else:
            raise ValueError(f"unknown option '{key}' in '{field}'")
    _consistent(got)
    if not got.get("ReadOnly"):
        got.pop("ReadOnly", None)
    return got


def _typed(got: dict[str, Any], key: str, value: str, *, bare: bool) -> None:
    """Options that belong to one type of mount."""
    kind = key.partition("-")[0]
    if key == "bind-nonrecursive":
        raise ValueError("bind-nonrecursive is deprecated, use bind-recursive=disabled instead")
    if key == "bind-recursive" and value == "enabled":
        return
    options = got.setdefault(OPTIONS_OF[kind], {})
    if key == "bind-propagation":
        options["Propagation"] = value.lower()
    elif key == "bind-recursive":
        if value not in RECURSION:
            raise ValueError(
                f'invalid value for {key}: {value} (must be "enabled", "disabled", "writable", or "readonly")'
            )
        options[RECURSION[value]] = True
    elif key == "bind-create-src":
        if _boolean(key, value, bare=bare):
            options["CreateMountpoint"] = True
    elif key in ("volume-subpath", "image-subpath"):
        options["Subpath"] = value
    elif key == "volume-nocopy":
        if _boolean(key, value, bare=bare):
            options["NoCopy"] = True
    elif key == "volume-label":
        _pair(options.setdefault("Labels", {}), value)
    elif key == "volume-driver":
        options.setdefault("DriverConfig", {})["Name"] = value
    elif key == "volume-opt":
        _pair(options.setdefault("DriverConfig", {}).setdefault("Options", {}), value)
    elif key == "tmpfs-size":
        try:
            options["SizeBytes"] = size(value)
        except ValueError:
            raise ValueError(f"invalid value for {key}: {value}") from None
    elif key == "tmpfs-mode":
        if not value.isascii() or not value.isdigit() or set(value) & set("89") or int(value, 8) >= 1 << 32:
            raise ValueError(f"invalid value for {key}: {value}")
        options["Mode"] = int(value, 8)
    else:
        raise ValueError(f"unknown option '{key}' in '{key}={value}'")


def _pair(target: dict[str, str], text: str) -> None:
    key, _, value = text.partition("=")
    if key:
        target[key] = value


def _consistent(got: dict[str, Any]) -> None:
    """Options must fit the type and each other."""
    for kind, member in OPTIONS_OF.items():
        if member in got and got["Type"] != kind:
            raise ValueError(f"cannot mix '{kind}-*' options with mount type '{got['Type']}'")
    bind = got.get("BindOptions", {})
    if bind.get("ReadOnlyNonRecursive") and not got.get("ReadOnly"):
        raise ValueError("option 'bind-recursive=writable' requires 'readonly' to be specified in conjunction")
    if bind.get("ReadOnlyForceRecursive"):
        if not got.get("ReadOnly"):
            raise ValueError("option 'bind-recursive=readonly' requires 'readonly' to be specified in conjunction")
        if bind.get("Propagation") != "rprivate":
            raise ValueError(
                "option 'bind-recursive=readonly' requires 'bind-propagation=rprivate' to be specified in conjunction"
            )


def _checked(spec: str) -> str:
    """The source of a -v, "" for an anonymous volume."""
    if not spec:
        raise ValueError("invalid empty volume spec")
    if len(spec) <= 2:
        return ""
    parts = spec.split(":")
    if not all(parts):
        raise ValueError(f"invalid spec: {spec}: empty section between colons")
    if len(parts) > 3:
        raise ValueError(f"invalid spec: {spec}: too many colons")
    return parts[0] if len(parts) > 1 else ""


def volumes(specs: Iterable[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """All -v of a command -> (Binds, Volumes): what has a source is a bind, relative paths made absolute here."""
    binds: dict[str, None] = {}
    anonymous: dict[str, dict[str, Any]] = {}
    for spec in specs:
        source = _checked(spec)
        if not source:
            anonymous[spec] = {}
        elif source.startswith("."):
            binds[os.path.abspath(source) + spec[len(source) :]] = None
        else:
            binds[spec] = None
    return list(binds), anonymous
