"""JSON documents of the API seen as Docker's Go types, so that a --format behaves as with Docker's client.

The API leaves out fields that are empty, and tells a struct from a map no more; templates notice both. Here a member is
a map if its name is in MAPS, a struct otherwise; what may be left out stands in OPTIONAL. Member names may also be
written as Go's fields are (.ID for "Id"). A value that no type explains is taken as it came.
"""

from __future__ import annotations

from tare.cli.gotypes import Map, Nil, Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Struct", "typed"]

POINTER, LIST, MAP = Nil("<nil>"), Nil("[]"), Nil("map[]")
EMPTY = Map()
PORTS = Map()
MAPS: dict[str, Any] = {
    "Annotations": "", "Attributes": "", "AuxiliaryAddresses": "", "AuxAddress": "", "Containers": EMPTY, "Data": "",
    "Details": "", "DriverOpts": "", "ExposedPorts": PORTS, "IndexConfigs": POINTER, "Labels": "", "Networks": POINTER,
    "Options": "", "PortBindings": PORTS, "Ports": PORTS, "Runtimes": EMPTY, "StorageOpt": "", "Sysctls": "",
    "Tmpfs": "", "Volumes": EMPTY,
}  # fmt: skip
"""Member name -> what `index` gives for a missing key; PORTS: the keys are ports, which no text is."""
POINTERS = frozenset((
    "Config", "ContainerConfig", "Health", "Healthcheck", "HostConfig", "IPAMConfig", "Init", "MemorySwappiness",
    "OomKillDisable", "PidsLimit", "Platform", "SizeRootFs", "SizeRw", "Server", "State", "StopTimeout", "UsageData",
))  # fmt: skip
"""Members that are "<nil>" when null; other nulls are empty lists."""
OPTIONAL: dict[str, dict[str, Any]] = {
    "container": {"SizeRw": POINTER, "SizeRootFs": POINTER, "ImageManifestDescriptor": POINTER},
    "image": {
        "Comment": "", "Config": POINTER, "Container": "", "ContainerConfig": POINTER, "Created": "", "OsVersion": "",
        "Parent": "", "Variant": "", "VirtualSize": 0,
    },
    "network": {"ConfigOnly": False, "Peers": LIST, "Services": MAP},
    "volume": {"ClusterVolume": POINTER, "CreatedAt": "", "Status": MAP, "UsageData": POINTER},
    "State": {"Health": POINTER},
    "Config": {
        "ArgsEscaped": False, "ExposedPorts": MAP, "Healthcheck": POINTER, "MacAddress": "", "NetworkDisabled": False,
        "Shell": LIST, "StopSignal": "", "StopTimeout": POINTER,
    },
    "HostConfig": {
        "Annotations": MAP, "Init": POINTER, "Mounts": LIST, "StorageOpt": MAP, "Sysctls": MAP, "Tmpfs": MAP,
    },
    "Mounts": {"Type": "", "Name": "", "Driver": ""},
    "RootFS": {"Layers": LIST},
    "*events.Message": {"Status": "", "ID": "", "From": "", "Scope": "", "Time": 0, "TimeNano": 0},
    "system.dockerInfo": {
        "ClientErrors": LIST, "Containerd": POINTER, "DefaultAddressPools": LIST, "DiscoveredDevices": LIST,
        "FirewallBackend": POINTER, "ProductLicense": "", "ServerErrors": LIST, "SystemStatus": LIST,
    },
    "ClientInfo": {"Platform": POINTER, "Warnings": LIST},
    "Client": {"Platform": POINTER},
}  # fmt: skip
"""Name of the struct (of the member it is in) -> fields that the API leaves out, and what they then are."""
ORDER = {
    "Mounts": tuple("Type Name Source Destination Driver Mode RW Propagation".split()),
    "Config": tuple((
        "Hostname Domainname User AttachStdin AttachStdout AttachStderr ExposedPorts Tty OpenStdin StdinOnce Env Cmd "
        "Healthcheck ArgsEscaped Image Volumes WorkingDir Entrypoint NetworkDisabled MacAddress OnBuild Labels "
        "StopSignal StopTimeout Shell"
    ).split()),
}  # fmt: skip
"""Order of the fields where one may be missing in between."""
GO_TYPES = {"Server": "*types.Version", "Client": "system.clientVersion", "ClientInfo": "*system.clientInfo"}
"""Names of types in errors that people see (inspect's come from its second, untyped run)."""
TIMES = frozenset((("Metadata", "LastTagTime"), ("network", "Created")))
"""(struct, field) of the few times that Docker's client reads as such: they are printed in Go's way."""


class Time(Record):
    """An RFC 3339 time, as Go prints a time.Time."""

    go_type = "time.Time"

    def __init__(self, text: str) -> None:
        self.text = text

    def json(self) -> str:
        return self.text

    def __str__(self) -> str:
        day, _, clock = self.text.partition("T")
        if clock.endswith("Z"):
            return f"{day} {clock[:-1]} +0000 UTC"
        zone = clock[-6:].replace(":", "")
        return f"{day} {clock[:-6]} {zone} {zone}"


def typed(value: Any, name: str) -> Any:
    """`value` as the type that a member `name` has ("container", "image", ... at the top)."""
    if isinstance(value, list):
        return [typed(each, name) for each in value]
    if value is None:
        return POINTER if name in POINTERS else MAP if name in MAPS else LIST
    if not isinstance(value, dict):
        return value
    if name not in MAPS:
        return Struct(value, name)
    zero = MAPS[name]
    found = Map({key: _inside(each, zero, name) for key, each in value.items()})
    found.zero = zero
    found.keyed = zero is PORTS
    return found


def _inside(value: Any, zero: Any, name: str) -> Any:
    """A map's value: a struct, or a list of them, of a type that has no name of its own."""
    if value is None:
        return LIST if zero is PORTS else zero
    return typed(value, name + " of") if isinstance(value, dict | list) else value


class Struct(Record):
    """One JSON object as a struct."""

    def __init__(self, data: dict[str, Any], name: str) -> None:
        self.data = data
        self.name = name
        self.go_type = GO_TYPES.get(name, name)

    def field(self, name: str) -> Any:
        if not name[:1].isupper():
            raise KeyError(name)
        key = self._key(name)
        if key is None:
            return OPTIONAL[self.name][name]
        return self._member(key)

    def _member(self, key: str) -> Any:
        value = self.data[key]
        if (self.name, key) in TIMES and isinstance(value, str):
            return Time(value)
        # The options of a log driver have the name of a container's Config.
        return Map(value) if self.name == "LogConfig" and isinstance(value, dict) else typed(value, key)

    def _key(self, name: str) -> str | None:
        """The member's name: itself, or the same but for case (Go's ID is "Id")."""
        if name in self.data:
            return name
        lower = name.lower()
        return next((key for key in self.data if key.lower() == lower), None)

    def json(self) -> Any:
        return {key: self._member(key) for key in self.data}

    def __str__(self) -> str:
        """Go's %v: the fields without their names."""
        from tare.cli.gotext import text

        optional = OPTIONAL.get(self.name, {})
        names = ORDER.get(self.name) or (*self.data, *(name for name in optional if name not in self.data))
        return "{" + " ".join(text(self.field(name)) for name in names if name in self.data or name in optional) + "}"
