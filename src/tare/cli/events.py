"""`tare events`: what happens in the engine, a line each, until --until or for ever."""

from __future__ import annotations

import time

from tare.cli import terminal
from tare.cli.client import query
from tare.cli.failure import Failure
from tare.cli.inspect import FORMAT_HELP
from tare.cli.listing import filter_word, filters
from tare.cli.moments import stamp
from tare.cli.options import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tare.cli.main import Call
    from tare.cli.template import Template

__all__ = ["events"]

EVENTS = Command(
    "[OPTIONS]",
    (
        ("filter", "f", "filter", "", "Filter output based on conditions provided"),
        ("format", "", "string", "", FORMAT_HELP),
        ("since", "", "string", "", "Show all events created since timestamp"),
        ("until", "", "string", "", "Stream events until this timestamp"),
    ),
    most=0,
    aliases="tare system events, tare events",
    checks={"filter": filter_word},
)
TYPE = "*events.Message"
EMPTY: dict[str, Any] = {"Type": "", "Action": "", "Actor": {"ID": "", "Attributes": {}}}


def _template(form: str) -> Template | None:
    """Checked on an empty event, so that a wrong field fails now and not at the first event."""
    if not form:
        return None
    from tare.cli.template import Template, TemplateError
    from tare.cli.typed import typed

    try:
        template = Template("{{json .}}" if form == "json" else form)
        template.render(typed(EMPTY, TYPE))
    except TemplateError as error:
        raise Failure(f"Error parsing format: {error}", 64) from None
    return template


def _local(ns: int) -> str:
    """RFC 3339 in local time with nine digits of a second."""
    seconds, fraction = divmod(ns, 10**9)
    moment = time.localtime(seconds)
    zone = time.strftime("%z", moment)
    zone = "Z" if zone == "+0000" else f"{zone[:3]}:{zone[3:]}"
    return time.strftime("%Y-%m-%dT%H:%M:%S", moment) + f".{fraction:09}{zone}"


def _line(event: dict[str, Any]) -> str:
    ns = event.get("timeNano") or (event.get("time") or 0) * 10**9
    actor = event.get("Actor") or {}
    line = f"{_local(ns)} " if ns else ""
    line += f"{event.get('Type', '')} {event.get('Action', '')} {actor.get('ID', '')}"
    attributes = actor.get("Attributes") or {}
    if attributes:
        line += f" ({', '.join(f'{name}={attributes[name]}' for name in sorted(attributes))})"
    return line


def events(call: Call) -> int:
    flags = call.parse(EVENTS)
    template = _template(flags.text("format"))
    path = "/events" + query(
        filters=filters(flags),
        since=stamp(flags.text("since"), "since"),
        until=stamp(flags.text("until"), "until"),
    )
    for event in call.client.request("GET", path).messages():
        if template is None:
            text = _line(event)
        else:
            from tare.cli.template import TemplateError
            from tare.cli.typed import typed

            try:
                text = template.render(typed(event, TYPE))
            except TemplateError as error:
                raise Failure(str(error)) from None
        terminal.out(terminal.printable(text) + "\n")
    return 0
