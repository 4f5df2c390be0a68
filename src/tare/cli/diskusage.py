"""`tare system df`: what images, containers, volumes and build cache take on disk."""

from __future__ import annotations

from tare.cli import terminal
from tare.cli.failure import Failure
from tare.cli.gotypes import Record
from tare.cli.human import ago, short_id, size
from tare.cli.images import TITLES as IMAGE_TITLES
from tare.cli.images import ImageRow
from tare.cli.listing import FORMAT_HELP, Row, show
from tare.cli.options import Command
from tare.cli.ps import TITLES as CONTAINER_TITLES
from tare.cli.ps import ContainerRow
from tare.cli.reference import familiar, split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from tare.cli.main import Call

__all__ = ["df"]

DF = Command(
    "[OPTIONS]",
    (
        ("format", "", "string", "", FORMAT_HELP),
        ("verbose", "v", "bool", "", "Show detailed information on space usage"),
    ),
    most=0,
)
TITLES = {
    "Type": "TYPE",
    "TotalCount": "TOTAL",
    "Active": "ACTIVE",
    "Size": "SIZE",
    "Reclaimable": "RECLAIMABLE",
}
VOLUME_TITLES = {"Name": "VOLUME NAME", "Links": "LINKS", "Size": "SIZE"}
CACHE_TITLES = {
    "ID": "CACHE ID",
    "CacheType": "CACHE TYPE",
    "Size": "SIZE",
    "CreatedSince": "CREATED",
    "LastUsedSince": "LAST USED",
    "UsageCount": "USAGE",
    "Shared": "SHARED",
}
IMAGE_COLUMNS = ("Repository", "Tag", "ID", "CreatedSince", "Size", "SharedSize", "UniqueSize", "Containers")
CONTAINER_COLUMNS = ("ID", "Image", "Command", "LocalVolumes", "Size", "RunningFor", "Status", "Names")
RAW = """type: {{.Type}}
total: {{.TotalCount}}
active: {{.Active}}
size: {{.Size}}
reclaimable: {{.Reclaimable}}
"""
RUNNING = frozenset(("running", "paused", "restarting"))


class UsageRow(Row):
    """One line of the summary."""

    go_type = "*formatter.diskUsageContext"

    def value_Type(self) -> str:
        return str(self.data["type"])

    def value_TotalCount(self) -> str:
        return str(self.data["total"])

    def value_Active(self) -> str:
        return str(self.data["active"])

    def value_Size(self) -> str:
        return size(self.data["size"])

    def value_Reclaimable(self) -> str:
        free, total = self.data["free"], self.data["size"]
        return f"{size(free)} ({free * 100 // total}%)" if total > 0 and self.data["share"] else size(free)


class VolumeRow(Row):
    """One volume of GET /system/df."""

    go_type = "*formatter.volumeContext"

    def _usage(self, name: str) -> Any:
        return (self.data.get("UsageData") or {}).get(name)

    def value_Name(self) -> str:
        return str(self.data.get("Name", ""))

    def value_Driver(self) -> str:
        return str(self.data.get("Driver", ""))

    def value_Links(self) -> str:
        count = self._usage("RefCount")
        return "N/A" if count is None else str(count)

    def value_Size(self) -> str:
        amount = self._usage("Size")
        return "N/A" if amount is None else size(amount)


class CacheRow(Row):
    """One record of the build cache."""

    go_type = "*formatter.buildCacheContext"

    def value_ID(self) -> str:
        identity = str(self.data.get("ID", ""))
        return (short_id(identity) if self.short else identity) + ("*" if self.data.get("InUse") else "")

    def value_CacheType(self) -> str:
        return str(self.data.get("Type", ""))

    def value_Size(self) -> str:
        return size(self.data.get("Size", 0), 3)

    def _since(self, name: str) -> str:
        from tare.cli.moments import moment

        try:
            return ago(float(moment(self.data.get(name) or "")))
        except ValueError:
            return ""

    def value_CreatedSince(self) -> str:
        return self._since("CreatedAt")

    def value_LastUsedSince(self) -> str:
        return self._since("LastUsedAt")

    def value_UsageCount(self) -> str:
        return str(self.data.get("UsageCount", 0))

    def value_InUse(self) -> str:
        return "true" if self.data.get("InUse") else "false"

    def value_Shared(self) -> str:
        return "true" if self.data.get("Shared") else "false"

    def value_Description(self) -> str:
        return str(self.data.get("Description", ""))


class _Everything(Record):
    """What a template sees with --verbose."""

    go_type = "*formatter.diskUsageContext"

    def __init__(self, parts: Mapping[str, Sequence[Row]]) -> None:
        self.parts = parts

    def field(self, name: str) -> Any:
        return list(self.parts[name])

    def json(self) -> Any:
        return dict(self.parts)


def _summary(usage: Mapping[str, Any]) -> list[UsageRow]:
    layers = usage.get("LayersSize") or 0
    used = sum(
        each["Size"] - each["SharedSize"]
        for each in usage["Images"]
        if each.get("Containers") and -1 not in (each["Size"], each["SharedSize"])
    )
    containers = usage["Containers"]
    stopped = sum(each.get("SizeRw") or 0 for each in containers if each.get("State") not in RUNNING)
    volumes = [each.get("UsageData") or {} for each in usage["Volumes"]]
    unused = sum(each["Size"] for each in volumes if each.get("Size", -1) > 0 and not each.get("RefCount"))
    cache = usage["BuildCache"]
    own = sum(each.get("Size", 0) for each in cache if not each.get("Shared"))
    busy = sum(each.get("Size", 0) for each in cache if each.get("InUse") and not each.get("Shared"))
    rows: list[tuple[str, int, int, int, int]] = [
        ("Images", len(usage["Images"]), sum((each.get("Containers") or 0) > 0 for each in usage["Images"]), layers,
         layers - used),
        ("Containers", len(containers), sum(each.get("State") in RUNNING for each in containers),
         sum(each.get("SizeRw") or 0 for each in containers), stopped),
        ("Local Volumes", len(volumes), sum((each.get("RefCount") or 0) > 0 for each in volumes),
         sum(max(0, each.get("Size", 0)) for each in volumes), unused),
        ("Build Cache", len(cache), sum(bool(each.get("InUse")) for each in cache), own, own - busy),
    ]  # fmt: skip
    return [
        UsageRow({"type": name, "total": total, "active": active, "size": amount, "free": free,
                  "share": name != "Build Cache"})
        for name, total, active, amount, free in rows
    ]  # fmt: skip


def _image_row(image: Mapping[str, Any], *, short: bool) -> ImageRow:
    """By its first name only."""
    name, tag, _ = split((image.get("RepoTags") or ["<none>:<none>"])[0])
    return ImageRow(image, familiar(name), tag, "", short=short)


def _parts(usage: Mapping[str, Any], *, short: bool) -> dict[str, Sequence[Row]]:
    return {
        "Images": [_image_row(each, short=short) for each in usage["Images"]],
        "Containers": [ContainerRow(each | {"SizeRootFs": 0}, short=short) for each in usage["Containers"]],
        "Volumes": [VolumeRow(each) for each in usage["Volumes"]],
        "BuildCache": [CacheRow(each, short=short) for each in usage["BuildCache"]],
    }


def _verbose(usage: Mapping[str, Any]) -> str:
    parts = _parts(usage, short=True)
    built = size(sum(each.get("Size", 0) for each in usage["BuildCache"] if not each.get("Shared")))
    return (
        "Images space usage:\n\n"
        + show("", parts["Images"], IMAGE_TITLES, IMAGE_COLUMNS)
        + "\nContainers space usage:\n\n"
        + show("", parts["Containers"], CONTAINER_TITLES, CONTAINER_COLUMNS)
        + "\nLocal Volumes space usage:\n\n"
        + show("", parts["Volumes"], VOLUME_TITLES, tuple(VOLUME_TITLES))
        + f"\nBuild cache usage: {built}\n\n"
        + show("", parts["BuildCache"], CACHE_TITLES, tuple(CACHE_TITLES))
    )


def df(call: Call) -> int:
    flags = call.parse(DF)
    form = flags.text("format")
    usage = call.client.get("/system/df")
    usage = {"LayersSize": usage.get("LayersSize")} | {
        name: usage.get(name) or [] for name in ("Images", "Containers", "Volumes", "BuildCache")
    }
    if not flags.on("verbose"):
        terminal.out(show(RAW if form == "raw" else form, _summary(usage), TITLES, tuple(TITLES)))
    elif form in ("", "table"):
        terminal.out(_verbose(usage))
    else:
        from tare.cli.listing import template_of
        from tare.cli.template import TemplateError

        try:
            text = template_of(form).render(_Everything(_parts(usage, short=form.startswith("table"))))
        except TemplateError as error:
            raise Failure(str(error)) from None
        terminal.out(terminal.printable(text))
    return 0
