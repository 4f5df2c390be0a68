"""`tare container prune` and `image prune`: remove what nothing uses, after a question."""

from __future__ import annotations

import os

from tare.cli import terminal
from tare.cli.client import query
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
ANSWER_LIMIT = 1 << 10
SURE = "\nAre you sure you want to continue? [y/N] "


def _agreed(warning: str) -> bool:
    """Ask; only "y" is a yes."""
    terminal.out(f"WARNING! This will remove {warning}.{SURE}")
    answer = b""
    while not answer.endswith(b"\n") and len(answer) < ANSWER_LIMIT and (data := os.read(0, ANSWER_LIMIT)):
        answer += data
    return answer.partition(b"\n")[0].strip().lower() == b"y"


def containers(call: Call) -> int:
    flags = call.parse(CONTAINERS)
    if not flags.on("force") and not _agreed("all stopped containers"):
        return 0
    report = call.client.request("POST", "/containers/prune" + query(filters=filters(flags))).document()
    gone = report.get("ContainersDeleted") or ()
    _told("".join(f"{identity}\n" for identity in gone), "Containers", report)
    return 0


def images(call: Call) -> int:
    flags = call.parse(IMAGES)
    every = "all images without at least one container associated to them"
    if not flags.on("force") and not _agreed(every if flags.on("all") else "all dangling images"):
        return 0
    wanted = filters(flags, [("dangling", "false" if flags.on("all") else "true")])
    report = call.client.request("POST", "/images/prune" + query(filters=wanted)).document()
    _told(deleted(report.get("ImagesDeleted") or (), "untagged: ", "deleted: "), "Images", report)
    return 0


def _told(lines: str, noun: str, report: dict[str, int]) -> None:
    reclaimed = report.get("SpaceReclaimed", 0) if lines else 0
    head = f"Deleted {noun}:\n{lines}\n" if lines else ""
    terminal.out(terminal.printable(f"{head}Total reclaimed space: {size(reclaimed)}\n"))
