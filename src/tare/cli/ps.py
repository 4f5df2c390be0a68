"""`tare ps`: the list of containers. Its start-up time is watched: templates are loaded only for a --format."""

from __future__ import annotations

from tare.cli import terminal
from tare.cli.client import query
from tare.cli.failure import Failure
from tare.cli.human import ago, date, ellipsis, short_id, size
from tare.cli.listing import FORMAT_HELP, Row, configured, filter_word, filters, show
from tare.cli.options import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from tare.cli.main import Call
    from tare.cli.options import Flags

__all__ = ["TITLES", "ContainerRow", "displayed_ports", "ps"]

PS = Command(
    "[OPTIONS]",
    (
        ("all", "a", "bool", "", "Show all containers (default shows just running)"),
        ("filter", "f", "filter", "", "Filter output based on conditions provided"),
        ("format", "", "string", "", FORMAT_HELP),
        ("last", "n", "int", "-1", "Show n last created containers (includes all states)"),
        ("latest", "l", "bool", "", "Show the latest created container (includes all states)"),
        ("no-trunc", "", "bool", "", "Don't truncate output"),
        ("quiet", "q", "bool", "", "Only display container IDs"),
        ("size", "s", "bool", "", "Display total file sizes"),
    ),
    most=0,
    aliases="tare container ls, tare container list, tare container ps, tare ps",
    checks={"filter": filter_word},
)
TITLES = {
    "ID": "CONTAINER ID",
    "Names": "NAMES",
    "Image": "IMAGE",
    "Command": "COMMAND",
    "CreatedAt": "CREATED AT",
    "RunningFor": "CREATED",
    "Ports": "PORTS",
    "State": "STATE",
    "Status": "STATUS",
    "Size": "SIZE",
    "Labels": "LABELS",
    "Mounts": "MOUNTS",
    "LocalVolumes": "LOCAL VOLUMES",
    "Networks": "NETWORKS",
    "Platform": "PLATFORM",
}
DEFAULT = ("ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names")
RAW = """container_id: {{.ID}}
image: {{.Image}}
command: {{.Command}}
created_at: {{.CreatedAt}}
state: {{- pad .State 1 0}}
status: {{- pad .Status 1 0}}
names: {{.Names}}
labels: {{- pad .Labels 1 0}}
ports: {{- pad .Ports 1 0}}
"""


class ContainerRow(Row):
    """One container of GET /containers/json, the columns as docker/cli's formatter computes them."""

    go_type = "*formatter.ContainerContext"
    asked: set[str] | None = None
    """Names of the columns used, if somebody wants to know."""

    def method(self, name: str) -> Callable[..., Any] | None:
        return self.label if name == "Label" else None

    def value_ID(self) -> str:
        identity = str(self.data.get("Id", ""))
        return short_id(identity) if self.short else identity

    def value_Names(self) -> str:
        names = [name[1:] for name in self.data.get("Names") or ()]
        if self.short:
            names = next(([name] for name in names if "/" not in name), names)
        return ",".join(names)

    def value_Image(self) -> str:
        image = str(self.data.get("Image", ""))
        if not image:
            return "<no image>"
        if not self.short:
            return image
        identity = short_id(str(self.data.get("ImageID", "")))
        if identity == short_id(image):
            return identity
        from tare.cli.reference import familiar, split, valid

        if not valid(image):
            return image
        name, tag, _digest = split(image)
        return familiar(name) + (":" + tag if tag else "")

    def value_Command(self) -> str:
        command = str(self.data.get("Command", ""))
        from tare.cli.gotext import quoted

        return quoted(ellipsis(command, 20) if self.short else command)

    def value_CreatedAt(self) -> str:
        return date(self.data.get("Created", 0))

    def value_RunningFor(self) -> str:
        return ago(self.data.get("Created", 0))

    def value_Platform(self) -> Any:
        from tare.cli.gotypes import Nil

        platform = (self.data.get("ImageManifestDescriptor") or {}).get("platform")
        if not platform:
            return Nil("<nil>")
        words = [platform.get("os") or "unknown", platform.get("architecture"), platform.get("variant")]
        return "/".join(word for word in words if word)

    def value_Ports(self) -> str:
        return displayed_ports(self.data.get("Ports") or ())

    def value_State(self) -> str:
        return str(self.data.get("State", ""))

    def value_Status(self) -> str:
        return str(self.data.get("Status", ""))

    def value_Size(self) -> str:
        if self.asked is not None:
            self.asked.add("Size")
        written = size(self.data.get("SizeRw") or 0, 3)
        total = self.data.get("SizeRootFs") or 0
        return f"{written} (virtual {size(total, 3)})" if total > 0 else written

    def value_Labels(self) -> str:
        return ",".join(sorted(f"{name}={value}" for name, value in self.labels().items()))

    def value_Mounts(self) -> str:
        names = [mount.get("Name") or mount.get("Source", "") for mount in self.data.get("Mounts") or ()]
        return ",".join(ellipsis(name, 15) if self.short else name for name in names)

    def value_LocalVolumes(self) -> str:
        return str(sum(mount.get("Driver") == "local" for mount in self.data.get("Mounts") or ()))

    def value_Networks(self) -> str:
        return ",".join((self.data.get("NetworkSettings") or {}).get("Networks") or ())


def _address(host: str, port: str) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _group(key: tuple[str, str], first: int, last: int) -> str:
    host, protocol = key
    ports = str(first) if first == last else f"{first}-{last}"
    return f"{_address(host, ports)}->{ports}/{protocol}" if host else f"{ports}/{protocol}"


def displayed_ports(ports: Iterable[dict[str, Any]]) -> str:
    """"0.0.0.0:80->9090/tcp, 9988-9990/tcp": runs of ports that map to themselves are put together."""
    groups: dict[tuple[str, str], tuple[int, int]] = {}
    ended: list[str] = []
    mapped: list[str] = []
    rows = [
        (each.get("PrivatePort", 0), each.get("IP", ""), each.get("PublicPort", 0), each.get("Type", ""))
        for each in ports
    ]
    for private, host, public, protocol in sorted(rows):
        if host and public != private:
            mapped.append(f"{_address(host, str(public))}->{private}/{protocol}")
            continue
        key = (host, protocol)
        group = groups.get(key)
        if group is not None and private != group[1] + 1:
            ended.append(_group(key, *group))
            group = None
        groups[key] = (private, private) if group is None else (group[0], private)
    return ", ".join(ended + [_group(key, *group) for key, group in groups.items()] + mapped)


def _wants_sizes(form: str, *, quiet: bool) -> bool:
    """Check a --format on an empty row, as Docker does: unknown fields fail early, .Size makes the daemon count."""
    from tare.cli.template import Template, TemplateError, UnknownField

    try:
        template = Template(form)
    except TemplateError as error:
        raise Failure(f"failed to parse template: {error}") from None
    row = ContainerRow({})
    row.asked = set()
    try:
        template.render(row)
    except UnknownField as error:
        raise Failure(f"failed to execute template: {error}") from None
    except TemplateError:
        # It may fail on an empty row only: {{slice .ID 0 4}}.
        pass
    return not quiet and "Size" in row.asked


def _path(flags: Flags, sizes: bool) -> str:
    limit = flags.number("last", -1)
    if flags.on("latest") and limit == -1:
        limit = 1
    return "/containers/json" + query(
        all=1 if flags.on("all") else None,
        filters=filters(flags),
        limit=limit if limit > 0 else None,
        size=1 if sizes else None,
    )


def ps(call: Call) -> int:
    flags = call.parse(PS)
    form = flags.text("format")
    quiet = flags.on("quiet")
    sizes = flags.on("size")
    if not form:
        form = configured("psFormat", call.settings.text("config"))
    elif quiet:
        terminal.err("WARNING: Ignoring custom format, because both --format and --quiet are set.\n")
    if form and _wants_sizes(form, quiet=quiet) and not flags.given("size"):
        sizes = True
    found = call.client.get(_path(flags, sizes))
    rows = [ContainerRow(each, short=not flags.on("no-trunc")) for each in found]
    if quiet:
        terminal.out("".join(terminal.printable(row.value_ID()) + "\n" for row in rows) if rows else "")
        return 0
    if form == "raw":
        form = RAW + ("size: {{.Size}}\\n" if sizes else "")
    terminal.out(show(form, rows, TITLES, (*DEFAULT, "Size") if sizes else DEFAULT))
    return 0
