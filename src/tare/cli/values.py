"""Values of single flags: text -> what Docker's API takes. Each raises ValueError with the words of Docker's client.

Pure but for environment look-ups of `-e NAME`. Mounts and volumes are in mounts.py, ports in ports.py.
"""

from __future__ import annotations

import os

from tare.cli.options import integer, quoted, unsigned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "address", "cpus", "device", "device_rate", "device_rule", "device_weight", "dns_search", "duration",
    "environment", "extra_host", "gpus", "key_values", "label", "link", "network", "qualified", "record", "size",
    "stream", "swap_size", "sysctl", "ulimit",
]  # fmt: skip

ULIMITS = frozenset(
    "core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack".split()
)
SYSCTLS = frozenset(
    f"kernel.{name}" for name in "msgmax msgmnb msgmni sem shmall shmmax shmmni shm_rmid_forced".split()
)
UNITS_NS = {"ns": 1, "us": 1000, "µs": 1000, "μs": 1000, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
POWERS = {"k": 10, "m": 20, "g": 30, "t": 40, "p": 50}


def size(text: str) -> int:
    """"512m", "1.5 GiB", "1024" -> bytes, in powers of 1024 (docker/go-units size.go)."""
    cut = max(text.rfind(letter) for letter in "0123456789. ")
    if cut < 0:
        raise ValueError(f"invalid size: '{text}'")
    number, suffix = (text[:cut] if text[cut] == " " else text[: cut + 1]), text[cut + 1 :].lower()
    try:
        value = float(number)
        if not (number[0].isdigit() or number[0] in ".+-") or "_" in number:
            raise ValueError
    except (ValueError, IndexError):
        raise ValueError(f"strconv.ParseFloat: parsing {quoted(number)}: invalid syntax") from None
    if value < 0:
        raise ValueError(f"invalid size: '{text}'")
    if suffix in ("", "b"):
        factor = 1
    elif suffix[0] in POWERS and suffix[1:] in ("", "b", "ib"):
        factor = 1 << int(POWERS[suffix[0]])
    else:
        raise ValueError(f"invalid suffix: '{suffix}'")
    if value * factor >= 1 << 63:
        raise ValueError(f"invalid size: '{text}'")
    return int(value * factor)


def swap_size(text: str) -> int:
    """As size(), and "-1" for unlimited."""
    return -1 if text == "-1" else size(text)


def cpus(text: str) -> int:
    """"1.5", "3/2", "15e-1" -> 1e-9 CPUs. Whole nanos only."""
    wrong = ValueError(f"failed to parse {text} as a rational number")
    above, slash, below = text.partition("/")
    mantissa, _, power = above.lower().partition("e")
    whole, _, fraction = mantissa.lstrip("+-").partition(".")
    digits = whole + fraction
    if not (digits.isascii() and digits.isdigit()) or len(text) > 40:
        raise wrong
    if slash and not (below.isascii() and below.isdigit() and int(below)):
        raise wrong
    try:
        exponent = 9 - len(fraction) + (int(power) if power else 0)
    except ValueError:
        raise wrong from None
    if abs(exponent) > 60:
        raise wrong
    above_line: int = int(digits) * 10 ** max(exponent, 0)
    below_line: int = (int(below) if slash else 1) * 10 ** max(-exponent, 0)
    nanos, rest = divmod(above_line, below_line)
    if rest:
        raise ValueError("value is too precise")
    return -nanos if mantissa.startswith("-") else nanos


def duration(text: str) -> int:
    """"1h30m", "1.5s", "0" -> nanoseconds (Go's time.ParseDuration)."""
    sign = -1 if text.startswith("-") else 1
    rest = text[1:] if text[:1] in ("+", "-") else text
    if rest == "0":
        return 0
    wrong = ValueError(f"time: invalid duration {quoted(text)}")
    if not rest:
        raise wrong
    total = 0
    while rest:
        end = next((index for index, letter in enumerate(rest) if letter not in "0123456789."), len(rest))
        number, rest = rest[:end], rest[end:]
        whole, _, fraction = number.partition(".")
        if not (whole + fraction).isdigit() or len(number) > 30:
            raise wrong
        end = next((index for index, letter in enumerate(rest) if letter in "0123456789."), len(rest))
        unit, rest = rest[:end], rest[end:]
        if not unit:
            raise ValueError(f"time: missing unit in duration {quoted(text)}")
        if unit not in UNITS_NS:
            raise ValueError(f"time: unknown unit {quoted(unit)} in duration {quoted(text)}")
        total += int(whole or "0") * UNITS_NS[unit] + int(fraction or "0") * UNITS_NS[unit] // 10 ** len(fraction)
    if total >= 1 << 63:
        raise wrong
    return sign * total


def record(text: str) -> list[str]:
    """One line of CSV (RFC 4180) -> fields: a field that holds a comma stands in double quotes, whole."""
    fields = []
    rest = text
    while True:
        if rest.startswith('"'):
            field = ""
            rest = rest[1:]
            while True:
                part, quote, rest = rest.partition('"')
                if not quote:
                    raise ValueError('parse error: extraneous or missing " in quoted-field')
                field += part
                if not rest.startswith('"'):
                    break
                field, rest = field + '"', rest[1:]
            if rest and not rest.startswith(","):
                raise ValueError('parse error: extraneous or missing " in quoted-field')
            comma, rest = rest[:1], rest[1:]
        else:
            field, comma, rest = rest.partition(",")
            if '"' in field:
                raise ValueError('parse error: bare " in non-quoted-field')
        fields.append(field)
        if not comma:
            return fields


def environment(text: str) -> str:
    """-e: "A=1" as it is, "A" with the value it has here, if any."""
    name, equals, _ = text.partition("=")
    if not name:
        raise ValueError("invalid environment variable: " + text)
    if not equals and name in os.environ:
        return f"{name}={os.environ[name]}"
    return text


def label(text: str) -> str:
    """-l: "key=value" or "key"."""
    key = text.partition("=")[0].lstrip(" \t")
    if not key:
        raise ValueError(f"invalid label '{text}': empty name")
    if " " in key or "\t" in key:
        raise ValueError(f"label '{key}' contains whitespaces")
    return text


def key_values(path: str, *, look_up: bool) -> list[str]:
    """Lines of an --env-file or --label-file; `look_up`: a bare name takes its value from here or is left out."""
    lines = []
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise ValueError(f"open {path}: {(error.strerror or '').lower()}") from None
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            line = raw.removesuffix(b"\r").decode("utf-8").lstrip()
        except UnicodeDecodeError:
            raise ValueError(f"invalid env file ({path}): invalid utf8 bytes at line {number}") from None
        if not line or line.startswith("#"):
            continue
        name, equals, _ = line.partition("=")
        if not name:
            raise ValueError(f"invalid env file ({path}): no variable name on line '{line}'")
        if " " in name or "\t" in name:
            raise ValueError(f"invalid env file ({path}): variable '{name}' contains whitespaces")
        if equals:
            lines.append(line)
        elif look_up and name in os.environ:
            lines.append(f"{name}={os.environ[name]}")
    return lines


def ulimit(text: str) -> dict[str, Any]:
    """"nofile=1024:2048" -> {Name, Hard, Soft}; -1 is unlimited."""
    name, equals, values = text.partition("=")
    if not equals:
        raise ValueError(f"invalid ulimit argument: {text}")
    if name not in ULIMITS:
        raise ValueError(f"invalid ulimit type: {name}")
    parts = values.split(":")
    if len(parts) > 2:
        raise ValueError(f"too many limit value arguments - {values}, can only have up to two, `soft[:hard]`")
    soft = integer(parts[0])
    hard = integer(parts[1]) if len(parts) == 2 else soft
    if hard != -1 and soft == -1:
        raise ValueError(
            f"ulimit soft limit must be less than or equal to hard limit: soft: -1 (unlimited), hard: {hard}"
        )
    if hard != -1 and soft > hard:
        raise ValueError(f"ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}")
    return {"Name": name, "Hard": hard, "Soft": soft}


def _device_number(text: str) -> tuple[str, str]:
    path, colon, number = text.partition(":")
    if not colon or not path:
        raise ValueError(f"bad format: {text}")
    if not path.startswith("/dev/"):
        raise ValueError(f"bad format for device path: {text}")
    return path, number


def device_weight(text: str) -> dict[str, Any]:
    """"/dev/sda:500" -> {Path, Weight}; 0 or 10..1000."""
    path, number = _device_number(text)
    try:
        weight = unsigned(number, 16)
        if weight and not 10 <= weight <= 1000:
            raise ValueError
    except ValueError:
        raise ValueError(f"invalid weight for device: {text}") from None
    return {"Path": path, "Weight": weight}


def device_rate(text: str, *, unit: bool) -> dict[str, Any]:
    """"/dev/sda:1mb" -> {Path, Rate}; `unit`: bytes with a suffix, else a plain count."""
    path, number = _device_number(text)
    try:
        rate = size(number) if unit else unsigned(number)
    except ValueError:
        form, more = ("[<unit>]", ". Unit is optional and can be kb, mb, or gb") if unit else ("", "")
        raise ValueError(
            f"invalid rate for device: {text}. The correct format is <device-path>:<number>{form}. "
            f"Number must be a positive integer{more}"
        ) from None
    return {"Path": path, "Rate": rate}


def device_rule(text: str) -> str:
    """"c 10:229 rwm" (cgroup v1 devices controller)."""
    parts = text.split(" ")
    numbers = parts[1].split(":") if len(parts) == 3 else []
    good = len(numbers) == 2 and parts[0] in ("a", "b", "c") and 1 <= len(parts[2]) <= 3
    if not good or not all(n == "*" or (n.isascii() and n.isdigit()) for n in numbers) or set(parts[2]) - set("rwm"):
        raise ValueError(f"invalid device cgroup format '{text}'")
    return text


def _mode(text: str) -> bool:
    return bool(text) and set(text) <= set("rwm") and len(set(text)) == len(text)


def device(text: str) -> dict[str, str]:
    """"/dev/x[:/dev/y][:rwm]" -> {PathOnHost, PathInContainer, CgroupPermissions}."""
    parts = text.split(":")
    if len(parts) > 3 or not parts[0]:
        raise ValueError(f"bad format for path: {text}")
    host, inside, permissions = parts[0], "", "rwm"
    if len(parts) == 3:
        inside, permissions = parts[1], parts[2]
        if not _mode(permissions):
            raise ValueError(f"bad mode specified: {permissions}")
    elif len(parts) == 2 and _mode(parts[1]):
        permissions = parts[1]
    elif len(parts) == 2:
        inside = parts[1]
    if not (inside or host).startswith("/"):
        raise ValueError(f"{inside or host} is not an absolute path")
    if len(parts) == 2 and inside:
        inside = _clean(inside)
    elif len(parts) < 3:
        host = _clean(host)
    return {"PathOnHost": host, "PathInContainer": inside or host, "CgroupPermissions": permissions}


def _clean(path: str) -> str:
    return "/" + os.path.normpath(path).lstrip("/")


def qualified(text: str) -> bool:
    """Whether --device names a CDI device ("vendor.com/class=name") and no path."""
    kind, equals, name = text.partition("=")
    vendor, slash, class_ = kind.partition("/")
    return bool(equals and slash and vendor and class_ and name) and not vendor.startswith("/")


def address(text: str) -> str:
    """An IPv4 or IPv6 address in its canonical form."""
    from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton

    for family in (AF_INET, AF_INET6):
        try:
            return inet_ntop(family, inet_pton(family, text.strip()))
        except OSError:
            continue
    raise ValueError(f"IP address is not correctly formatted: {text}")


def extra_host(text: str) -> str:
    """"name:ip", "name=ip", "name:[::1]", "name:host-gateway" -> "name:ip"."""
    name, separator, target = text.partition("=" if "=" in text else ":")
    if not separator or not name or ":" in name:
        raise ValueError(f"bad format for add-host: {quoted(text)}")
    if target != "host-gateway":
        if len(target) > 2 and target[0] == "[" and target[-1] == "]":
            target = target[1:-1]
        try:
            address(target)
        except ValueError:
            raise ValueError(f"invalid IP address in add-host: {quoted(target)}") from None
    return f"{name}:{target}"


def dns_search(text: str) -> str:
    """A search domain, or "." for none."""
    text = text.strip(" ")
    if text == ".":
        return text
    labels = text.removesuffix(".").split(".")
    if not any(letter.isalpha() for letter in text) or len(text) > 255 or not text.isascii():
        raise ValueError(f"{text} is not a valid domain")
    for word in labels:
        if not word.replace("-", "").isalnum() or word[0] == "-" or word[-1] == "-":
            raise ValueError(f"{text} is not a valid domain")
    return ".".join(labels)


def sysctl(text: str) -> str:
    """"net.x=1" and the namespaced kernel.* ones."""
    name, equals, _ = text.partition("=")
    if not equals or not (name in SYSCTLS or name.startswith(("net.", "fs.mqueue."))):
        raise ValueError(f"sysctl '{text}' is not allowed")
    return text


def link(text: str) -> str:
    """"container:alias"."""
    if not text:
        raise ValueError("empty string specified for links")
    if text.count(":") > 1:
        raise ValueError("bad format for links: " + text)
    return text


def stream(text: str) -> str:
    """-a: stdin, stdout or stderr."""
    if text.lower() not in ("stdin", "stdout", "stderr"):
        raise ValueError("valid streams are STDIN, STDOUT and STDERR")
    return text.lower()


def network(text: str) -> dict[str, Any]:
    """--network: a name, or "name=x,alias=y,ip=..." -> the members given, with Docker's names of an endpoint."""
    if "=" not in text:
        return {"Name": text}
    got: dict[str, Any] = {"Name": ""}
    for field in record(text):
        key, equals, value = (part.strip() for part in field.lower().partition("="))
        if not equals or not key:
            raise ValueError(f"invalid field {field}")
        if key == "name":
            got["Name"] = value
        elif key == "alias":
            got.setdefault("Aliases", []).append(value)
        elif key in ("ip", "ip6"):
            got["IPv4Address" if key == "ip" else "IPv6Address"] = address(value)
        elif key == "mac-address":
            got["MacAddress"] = value
        elif key == "link-local-ip":
            got.setdefault("LinkLocalIPs", []).append(address(value))
        elif key == "driver-opt":
            option, equals, setting = value.partition("=")
            if not equals or not option:
                raise ValueError("invalid key value pair format in driver options")
            got.setdefault("DriverOpts", {})[option.strip()] = setting.strip()
        elif key == "gw-priority":
            try:
                got["GwPriority"] = int(value)
            except ValueError:
                raise ValueError(f"invalid gw-priority ({value}): invalid syntax") from None
        else:
            raise ValueError("invalid field key " + key)
    if not got["Name"]:
        raise ValueError("network name/id is not specified")
    return got


def gpus(text: str) -> dict[str, Any]:
    """--gpus: "all", a number, or "device=...,capabilities=..." -> a DeviceRequest."""
    request: dict[str, Any] = {"Driver": "", "Count": 0, "DeviceIDs": None, "Capabilities": [["gpu"]], "Options": {}}
    seen = set()
    for field in record(text):
        key, equals, value = field.partition("=")
        if not equals:
            key, value = "count", field
        if key in seen:
            raise ValueError(f"gpu request key '{key}' can be specified only once")
        seen.add(key)
        if key == "count":
            try:
                request["Count"] = -1 if value == "all" else int(value)
            except ValueError:
                raise ValueError(
                    f'invalid count ({value}): value must be either "all" or an integer: invalid syntax'
                ) from None
        elif key == "driver":
            request["Driver"] = value
        elif key == "device":
            request["DeviceIDs"] = value.split(",")
        elif key == "capabilities":
            request["Capabilities"] = [[*value.split(","), "gpu"]]
        elif key == "options":
            request["Options"] = dict(part.partition("=")[::2] for part in record(value))
        else:
            raise ValueError(f"unexpected key '{key}' in '{field}'")
    if "count" not in seen and request["DeviceIDs"] is None:
        request["Count"] = 1
    return request
