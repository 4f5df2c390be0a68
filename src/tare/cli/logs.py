"""`tare logs`: what a container wrote."""

from __future__ import annotations

import os

from tare.cli.client import escaped, query
from tare.cli.failure import Failure
from tare.cli.moments import stamp
from tare.cli.options import Command
from tare.cli.streams import copy_frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.cli.main import Call

__all__ = ["logs"]

WHEN = 'timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)'
LOGS = Command(
    "[OPTIONS] CONTAINER",
    (
        ("details", "", "bool", "", "Show extra details provided to logs"),
        ("follow", "f", "bool", "", "Follow log output"),
        ("since", "", "string", "", f"Show logs since {WHEN}"),
        ("tail", "n", "string", '"all"', "Number of lines to show from the end of the logs"),
        ("timestamps", "t", "bool", "", "Show timestamps"),
        ("until", "", "string", "", f"Show logs before a {WHEN}"),
    ),
    least=1,
    most=1,
    aliases="tare container logs, tare logs",
)


def logs(call: Call) -> int:
    """Without a terminal the container's two outputs stay two."""
    flags = call.parse(LOGS)
    name = flags.words[0].removeprefix("/")
    if not name:
        raise Failure("invalid container name or ID: value is empty")
    client = call.client
    found = client.get(f"/containers/{escaped(name)}/json")
    path = f"/containers/{escaped(found['Id'])}/logs" + query(
        details=1 if flags.on("details") else None,
        follow=1 if flags.on("follow") else None,
        since=stamp(flags.text("since"), "since"),
        stderr=1,
        stdout=1,
        tail=flags.text("tail", "all"),
        timestamps=1 if flags.on("timestamps") else None,
        until=stamp(flags.text("until"), "until"),
    )
    chunks = client.request("GET", path).chunks()
    if not found["Config"]["Tty"]:
        copy_frames(chunks)
        return 0
    for chunk in chunks:
        data = memoryview(chunk)
        while data:
            data = data[os.write(1, data) :]
    return 0
