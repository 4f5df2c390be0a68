"""`tare container prune` and `image prune`: remove what nothing uses, after a question."""

from __future__ import annotations

from tare.cli import terminal
from tare.cli.client import query
from tare.cli.failure import Failure
from tare.cli.human import size
from tare.cli.images import deleted
from tare.cli.listing import filter_word, filters
from tare.cli.options import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.cli.main import Call

__all__ = ["containers", "images"]

FORCE = ("force", "f", "bool", "", "Do not prompt for confirmation")
FILTER = ("filter", "", "filter", "", 'Provide filter values (e.g. "until=<timestamp>")')
CONTAINERS = Command("[OPTIONS]", (FILTER, FORCE), most=0, checks={"filter": filter_word})
IMAGES = Command(
    "[OPTIONS]",
    (("all", "a", "bool", "", "Remove all unused images, not just dangling ones"), FILTER, FORCE),
    most=0,
    checks={"filter": filter_word},
)
SURE = "\nAre you sure you want to continue? [y/N] "


def _agreed(warning: str, noun: str) -> None:
    """Ask. Raises Failure unless the answer is y."""
    import sys

    terminal.out(f"WARNING! This will remove {warning}.{SURE}")
    if sys.stdin.readline().strip().lower() != "y":
        raise Failure(f"{noun} prune has been cancelled")


def containers(call: Call) -> int:
    flags = call.parse(CONTAINERS)
    if not flags.on("force"):
        _agreed("all stopped containers", "container")
    report = call.client.request("POST", "/containers/prune" + query(filters=filters(flags))).document()
    gone = report.get("ContainersDeleted") or ()
    _told("".join(f"{identity}\n" for identity in gone), "Containers", report)
    return 0


def images(call: Call) -> int:
    flags = call.parse(IMAGES)
    if not flags.on("force"):
        every = "all images without at least one container associated to them"
        _agreed(every if flags.on("all") else "all dangling images", "image")
    wanted = filters(flags, [("dangling", "false" if flags.on("all") else "true")])
    report = call.client.request("POST", "/images/prune" + query(filters=wanted)).document()
    _told(deleted(report.get("ImagesDeleted") or (), "untagged: ", "deleted: "), "Images", report)
    return 0


def _told(lines: str, noun: str, report: dict[str, int]) -> None:
    reclaimed = report.get("SpaceReclaimed", 0) if lines else 0
    head = f"Deleted {noun}:\n{lines}\n" if lines else ""
    terminal.out(terminal.printable(f"{head}Total reclaimed space: {size(reclaimed)}\n"))
