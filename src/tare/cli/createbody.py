"""Flags of run and create -> the body of POST /containers/create, member for member as Docker's client sends it.

Pure but for what the flags name: env, label and seccomp files are read here, by the user's own rights.
Raises ValueError with Docker's words (docker/cli cli/command/container/opts.go).
"""

from __future__ import annotations

from tare.cli import values
from tare.cli.mounts import volumes
from tare.cli.options import quoted
from tare.cli.ports import exposed, published

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tare.cli.options import Flags

__all__ = ["body"]

SECCOMP_NAMES = ("builtin", "unconfined")
MAC_DIGITS = frozenset("0123456789abcdefABCDEF")
HOST_CONFIG: dict[str, Any] = {
    "Binds": None, "ContainerIDFile": "", "LogConfig": None, "NetworkMode": "default", "PortBindings": {},
    "RestartPolicy": None, "AutoRemove": False, "VolumeDriver": "", "VolumesFrom": None, "ConsoleSize": [0, 0],
    "CapAdd": None, "CapDrop": None, "CgroupnsMode": "", "Dns": [], "DnsOptions": [], "DnsSearch": [],
    "ExtraHosts": None, "GroupAdd": None, "IpcMode": "", "Cgroup": "", "Links": None, "OomScoreAdj": 0, "PidMode": "",
    "Privileged": False, "PublishAllPorts": False, "ReadonlyRootfs": False, "SecurityOpt": None, "UTSMode": "",
    "UsernsMode": "", "ShmSize": 0, "Isolation": "", "CpuShares": 0, "Memory": 0, "NanoCpus": 0, "CgroupParent": "",
    "BlkioWeight": 0, "BlkioWeightDevice": [], "BlkioDeviceReadBps": [], "BlkioDeviceWriteBps": [],
    "BlkioDeviceReadIOps": [], "BlkioDeviceWriteIOps": [], "CpuPeriod": 0, "CpuQuota": 0, "CpuRealtimePeriod": 0,
    "CpuRealtimeRuntime": 0, "CpusetCpus": "", "CpusetMems": "", "Devices": [], "DeviceCgroupRules": None,
    "DeviceRequests": None, "MemoryReservation": 0, "MemorySwap": 0, "MemorySwappiness": -1, "OomKillDisable": False,
    "PidsLimit": 0, "Ulimits": [], "CpuCount": 0, "CpuPercent": 0, "IOMaximumIOps": 0, "IOMaximumBandwidth": 0,
    "MaskedPaths": None, "ReadonlyPaths": None,
}  # fmt: skip
"""What is sent when no flag says otherwise."""
PLAIN = {
    "cidfile": "ContainerIDFile", "rm": "AutoRemove", "volume-driver": "VolumeDriver", "volumes-from": "VolumesFrom",
    "cgroupns": "CgroupnsMode", "dns": "Dns", "dns-search": "DnsSearch",
    "add-host": "ExtraHosts", "group-add": "GroupAdd", "ipc": "IpcMode", "link": "Links",
    "oom-score-adj": "OomScoreAdj", "pid": "PidMode", "privileged": "Privileged", "publish-all": "PublishAllPorts",
    "read-only": "ReadonlyRootfs", "uts": "UTSMode", "userns": "UsernsMode", "shm-size": "ShmSize",
    "isolation": "Isolation", "cpu-shares": "CpuShares", "memory": "Memory", "cpus": "NanoCpus",
    "cgroup-parent": "CgroupParent", "blkio-weight": "BlkioWeight", "blkio-weight-device": "BlkioWeightDevice",
    "device-read-bps": "BlkioDeviceReadBps", "device-write-bps": "BlkioDeviceWriteBps",
    "device-read-iops": "BlkioDeviceReadIOps", "device-write-iops": "BlkioDeviceWriteIOps", "cpu-period": "CpuPeriod",
    "cpu-quota": "CpuQuota", "cpu-rt-period": "CpuRealtimePeriod", "cpu-rt-runtime": "CpuRealtimeRuntime",
    "cpuset-cpus": "CpusetCpus", "cpuset-mems": "CpusetMems", "device-cgroup-rule": "DeviceCgroupRules",
    "memory-reservation": "MemoryReservation", "memory-swap": "MemorySwap", "memory-swappiness": "MemorySwappiness",
    "oom-kill-disable": "OomKillDisable", "pids-limit": "PidsLimit", "cpu-count": "CpuCount",
    "cpu-percent": "CpuPercent", "io-maxiops": "IOMaximumIOps", "io-maxbandwidth": "IOMaximumBandwidth",
    "runtime": "Runtime", "mount": "Mounts", "init": "Init",
}  # fmt: skip
"""Flag -> member of HostConfig that takes its value as it is."""
ENDPOINT: dict[str, Any] = {
    "IPAMConfig": None, "Links": None, "Aliases": None, "MacAddress": "", "DriverOpts": None, "GwPriority": 0,
    "NetworkID": "", "EndpointID": "", "Gateway": "", "IPAddress": "", "IPPrefixLen": 0, "IPv6Gateway": "",
    "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0, "DNSNames": None,
}  # fmt: skip


def body(flags: Flags) -> dict[str, Any]:
    """Config with HostConfig and NetworkingConfig inside."""
    swappiness = flags.number("memory-swappiness", -1)
    if not -1 <= swappiness <= 100:
        raise ValueError(f"invalid value: {swappiness}. Valid memory swappiness range is 0-100")
    networks = flags.many("network") + flags.many("net")
    request = _config(flags)
    request["HostConfig"] = host = _host_config(flags)
    host["Binds"], request["Volumes"] = volumes(flags.many("volume"))
    host["Binds"] = host["Binds"] or None
    host["PortBindings"] = published(flags.many("publish"))
    request["ExposedPorts"] = dict.fromkeys(host["PortBindings"], {}) | exposed(flags.many("expose"))
    if not request["ExposedPorts"]:
        del request["ExposedPorts"]
    host["NetworkMode"] = networks[0]["Name"] if networks else "default"
    request["NetworkingConfig"] = {"EndpointsConfig": _endpoints(flags, networks)}
    return request


def _pairs(words: list[str]) -> dict[str, str]:
    return {key: value for key, _, value in (word.partition("=") for word in words)}


def _lines(flags: Flags, file_flag: str, flag: str, *, look_up: bool) -> list[str]:
    lines: list[str] = []
    for path in flags.many(file_flag):
        lines += values.key_values(path, look_up=look_up)
    return lines + flags.many(flag)


def _config(flags: Flags) -> dict[str, Any]:
    attach = flags.many("attach")
    stdin = flags.on("interactive")
    config: dict[str, Any] = {
        "Hostname": flags.text("hostname"),
        "Domainname": flags.text("domainname"),
        "User": flags.text("user"),
        "AttachStdin": stdin or "stdin" in attach,
        "AttachStdout": not attach or "stdout" in attach,
        "AttachStderr": not attach or "stderr" in attach,
        "Tty": flags.on("tty"),
        "OpenStdin": stdin,
        "StdinOnce": stdin,
        "Env": _lines(flags, "env-file", "env", look_up=True) or None,
        "Cmd": flags.words[1:] or None,
        "Image": flags.words[0],
        "Volumes": {},
        "WorkingDir": flags.text("workdir"),
        "Entrypoint": [flags.text("entrypoint")] if flags.given("entrypoint") else None,
        "OnBuild": None,
        "Labels": _pairs(_lines(flags, "label-file", "label", look_up=False)),
    }
    if flags.text("stop-signal"):
        config["StopSignal"] = flags.text("stop-signal")
    if flags.given("stop-timeout"):
        config["StopTimeout"] = flags.number("stop-timeout")
    health = _health(flags)
    if health is not None:
        config["Healthcheck"] = health
    return config


def _health(flags: Flags) -> dict[str, Any] | None:
    names = {"interval": "Interval", "timeout": "Timeout", "start-period": "StartPeriod",
             "start-interval": "StartInterval", "retries": "Retries"}  # fmt: skip
    given = {name: flags.number(f"health-{name}") for name in names if flags.number(f"health-{name}")}
    command = flags.text("health-cmd")
    if flags.on("no-healthcheck"):
        if given or command:
            raise ValueError("--no-healthcheck conflicts with --health-* options")
        return {"Test": ["NONE"]}
    if not given and not command:
        return None
    for name, number in given.items():
        if number < 0:
            raise ValueError(f"--health-{name} cannot be negative")
    health: dict[str, Any] = {names[name]: number for name, number in given.items()}
    if command:
        health["Test"] = ["CMD-SHELL", command]
    return health


def _host_config(flags: Flags) -> dict[str, Any]:
    host = dict(HOST_CONFIG)
    for flag, member in PLAIN.items():
        if flags.given(flag):
            host[member] = flags.values[flag]
    for flag, member in (("cap-add", "CapAdd"), ("cap-drop", "CapDrop")):
        host[member] = [_capability(word) for word in flags.many(flag)] or None
    host["DnsOptions"] = flags.many("dns-option") + flags.many("dns-opt")
    for flag, mode, wrong in (("pid", "container:", "--pid: invalid PID mode"), ("uts", "", "--uts: invalid UTS mode")):
        _namespace(flags.text(flag), mode, wrong)
    _namespace(flags.text("userns"), "", "--userns: invalid USER mode")
    if flags.text("cgroupns") not in ("", "host", "private"):
        raise ValueError("--cgroupns: invalid CGROUP mode")
    host["RestartPolicy"] = _restart(flags.text("restart", "no"))
    if flags.on("rm") and host["RestartPolicy"]["Name"] not in ("", "no"):
        raise ValueError("conflicting options: cannot specify both --restart and --rm")
    log_options = flags.many("log-opt")
    if flags.text("log-driver") == "none" and log_options:
        raise ValueError("invalid logging opts for driver none")
    host["LogConfig"] = {"Type": flags.text("log-driver"), "Config": _pairs(log_options)}
    limits = {limit["Name"]: limit for limit in flags.many("ulimit")}
    host["Ulimits"] = [limits[name] for name in sorted(limits)]
    tmpfs = {path: options for path, _, options in (word.partition(":") for word in flags.many("tmpfs"))}
    for member, value in (("Tmpfs", tmpfs), ("Sysctls", _pairs(flags.many("sysctl"))),
                          ("Annotations", _pairs(flags.many("annotation")))):  # fmt: skip
        if value:
            host[member] = value
    if flags.given("storage-opt"):
        if not all("=" in option for option in flags.many("storage-opt")):
            raise ValueError("invalid storage option")
        host["StorageOpt"] = _pairs(flags.many("storage-opt"))
    _devices(flags, host)
    _security(flags, host)
    return host


def _capability(word: str) -> str:
    """"net_raw" -> "CAP_NET_RAW"; which ones exist is the daemon's business."""
    word = word.strip().upper()
    return word if word == "ALL" or word.startswith("CAP_") else "CAP_" + word


def _devices(flags: Flags, host: dict[str, Any]) -> None:
    named = [word for word in flags.many("device") if values.qualified(word)]
    host["Devices"] = [values.device(word) for word in flags.many("device") if word not in named]
    requests = flags.many("gpus")
    if named:
        requests.append({"Driver": "cdi", "Count": 0, "DeviceIDs": named, "Capabilities": None, "Options": None})
    host["DeviceRequests"] = requests or None


def _namespace(mode: str, joined: str, wrong: str) -> None:
    if mode not in ("", "host") and not (joined and mode.startswith(joined) and len(mode) > len(joined)):
        raise ValueError(wrong)


def _restart(text: str) -> dict[str, Any]:
    """"on-failure:3" -> {Name, MaximumRetryCount}."""
    name, colon, count = text.partition(":")
    if colon and not name:
        raise ValueError("invalid restart policy format: no policy provided before colon")
    try:
        retries = int(count or "0")
    except ValueError:
        raise ValueError("invalid restart policy format: maximum retry count must be an integer") from None
    return {"Name": name, "MaximumRetryCount": retries}


def _security(flags: Flags, host: dict[str, Any]) -> None:
    """A seccomp file is read here; systempaths=unconfined becomes empty lists of masked and read-only paths."""
    options = []
    for option in flags.many("security-opt"):
        name, separator, value = option.partition("=")
        if not separator and name != "no-new-privileges":
            name, separator, value = option.partition(":")
        if not value and name != "no-new-privileges":
            raise ValueError(f"invalid --security-opt: {quoted(option)}")
        if option == "systempaths=unconfined":
            host["MaskedPaths"], host["ReadonlyPaths"] = [], []
        elif name == "seccomp" and value not in SECCOMP_NAMES:
            options.append("seccomp=" + _seccomp(value))
        else:
            options.append(option)
    host["SecurityOpt"] = options if flags.given("security-opt") else None


def _seccomp(path: str) -> str:
    """The profile as compact JSON."""
    from tare.cli.jsontext import dumps, loads

    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        cause = (error.strerror or "").lower()
        raise ValueError(f"opening seccomp profile ({path}) failed: open {path}: {cause}") from None
    try:
        return dumps(loads(data))
    except ValueError as error:
        raise ValueError(f"compacting json for seccomp profile ({path}) failed: {error}") from None


def _user_defined(network: str) -> bool:
    return network not in ("default", "bridge", "host", "none") and not network.startswith("container:")


def _endpoints(flags: Flags, networks: list[dict[str, Any]]) -> dict[str, Any]:
    """EndpointsConfig; the flags --ip, --network-alias, ... belong to the first network."""
    chosen = [dict(network) for network in networks] or [{"Name": "default"}]
    kinds = {_user_defined(network["Name"]) for network in chosen}
    _first(flags, chosen[0])
    endpoints: dict[str, Any] = {}
    for network in chosen:
        name = network["Name"]
        if name in endpoints:
            raise ValueError(f"network {quoted(name)} is specified multiple times")
        endpoints[name] = _endpoint(name, network)
    if len(kinds) > 1:
        raise ValueError(
            "conflicting options: cannot attach both user-defined and non-user-defined network-modes"
        )
    if len(networks) == 1 and endpoints[chosen[0]["Name"]] == ENDPOINT:
        return {}
    return endpoints


def _first(flags: Flags, network: dict[str, Any]) -> None:
    aliases = flags.many("network-alias") + flags.many("net-alias")
    pieces = (
        ("Aliases", aliases, "--network-alias", "alias"),
        ("IPv4Address", flags.text("ip"), "--ip", "IPv4 address"),
        ("IPv6Address", flags.text("ip6"), "--ip6", "IPv6 address"),
        ("MacAddress", flags.text("mac-address"), "--mac-address", "MAC address"),
        ("LinkLocalIPs", flags.many("link-local-ip"), "--link-local-ip", "link-local IP addresses"),
    )
    for member, value, flag, noun in pieces:
        if value and network.get(member):
            raise ValueError(f"conflicting options: cannot specify both {flag} and per-network {noun}")
        if value:
            network[member] = value
    if flags.given("link") and _user_defined(network["Name"]):
        network["Links"] = flags.many("link")


def _endpoint(name: str, network: dict[str, Any]) -> dict[str, Any]:
    if not name.strip():
        raise ValueError("no name set for network")
    if not _user_defined(name) and network.get("Aliases"):
        raise ValueError("network-scoped aliases are only supported for user-defined networks")
    endpoint = dict(ENDPOINT)
    for member in ("Aliases", "Links", "DriverOpts", "GwPriority"):
        if network.get(member):
            endpoint[member] = network[member]
    addresses = {key: network[key] for key in ("IPv4Address", "IPv6Address", "LinkLocalIPs") if network.get(key)}
    if addresses:
        endpoint["IPAMConfig"] = addresses
    mac = network.get("MacAddress", "").strip()
    if mac:
        pairs = mac.replace("-", ":").split(":")
        if len(pairs) not in (6, 8, 20) or not all(len(pair) == 2 and set(pair) <= MAC_DIGITS for pair in pairs):
            raise ValueError(f"{mac} is not a valid mac address")
        endpoint["MacAddress"] = mac
    return endpoint
