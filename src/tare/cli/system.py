"""`tare version` and `info`; `events` and `system df` lead to their own modules."""

from __future__ import annotations

import os
import sys

from tare import __version__
from tare.cli import terminal
from tare.cli.endpoint import ConnectError
from tare.cli.failure import Failure
from tare.cli.inspect import FORMAT
from tare.cli.options import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tare.cli.main import Call

__all__ = ["df", "events", "info", "version"]

API_VERSION = "1.47"
"""What this client is written for."""
VERSION = Command("[OPTIONS]", (FORMAT,), most=0)
INFO = Command("[OPTIONS]", (FORMAT,), most=0, aliases="tare system info, tare info")
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386", "riscv64": "riscv64"}
"""uname -m -> Go's GOARCH."""


def events(call: Call) -> int:
    from tare.cli.events import events

    return events(call)


def df(call: Call) -> int:
    from tare.cli.diskusage import df

    return df(call)


def _client(negotiated: str = "") -> dict[str, Any]:
    uname = os.uname()
    found: dict[str, Any] = {"Version": __version__}
    if negotiated:
        found["ApiVersion"] = negotiated
    return found | {
        "DefaultAPIVersion": API_VERSION,
        "GitCommit": "",
        "GoVersion": "CPython " + ".".join(map(str, sys.version_info[:3])),
        "Os": "linux",
        "Arch": ARCHITECTURES.get(uname.machine, uname.machine),
        "BuildTime": "",
        "Context": "default",
    }


def _rows(indent: str, rows: list[tuple[str, Any]]) -> str:
    """"Name:\\tvalue" lines; what is not known (an empty text) gets none."""
    return "".join(f"\n{indent}{name}:\t{value}" for name, value in rows if value != "")


def _language(text: str) -> tuple[str, str]:
    """The row that Docker calls "Go version"."""
    return ("Go version" if text.startswith("go") else "Python version"), text


def _client_part(client: dict[str, Any]) -> str:
    version, default = client["ApiVersion"], client["DefaultAPIVersion"]
    if version != default:
        version += f" (downgraded from {default})"
    return "Client:" + _rows(
        " ",
        [
            ("Version", client["Version"]),
            ("API version", version),
            _language(client["GoVersion"]),
            ("OS/Arch", f"{client['Os']}/{client['Arch']}"),
            ("Context", client["Context"]),
        ],
    )


def _server_part(server: dict[str, Any]) -> str:
    name = (server.get("Platform") or {}).get("Name")
    text = "\n\nServer:" + (f" {name}" if name else "")
    for component in server.get("Components") or ():
        details = component.get("Details") or {}
        text += f"\n {component['Name']}:"
        if component["Name"] != "Engine":
            text += _rows("  ", [("Version", component["Version"]), *sorted(details.items())])
            continue
        minimum = details.get("MinAPIVersion", "")
        text += _rows(
            "  ",
            [
                ("Version", component["Version"]),
                ("API version", f"{details.get('ApiVersion', '')} (minimum version {minimum})"),
                _language(details.get("GoVersion", "")),
                ("Git commit", details.get("GitCommit", "")),
                ("Built", details.get("BuildTime", "")),
                ("OS/Arch", f"{details.get('Os', '')}/{details.get('Arch', '')}"),
                ("Experimental", details.get("Experimental", "")),
            ],
        )
    return text


def _lower(left: str, right: str) -> str:
    """The lower of two API versions; one that is none counts as the highest."""

    def key(text: str) -> tuple[int, ...]:
        parts = text.split(".")
        return tuple(map(int, parts)) if all(part.isascii() and part.isdigit() for part in parts) else (1 << 30,)

    return min(left, right, key=key)


def version(call: Call) -> int:
    """The client's part is shown without a daemon, too; then the status is 1."""
    flags = call.parse(VERSION)
    form = flags.text("format")
    template = None
    if form:
        from tare.cli.template import Template, TemplateError

        try:
            template = Template("{{json .}}" if form == "json" else form, "version")
        except TemplateError as error:
            raise Failure(f"template parsing error: {error}", 64) from None
    server, problem = None, ""
    try:
        server = call.client.get("/version")
    except Failure as error:
        problem = str(error)
    pinned = os.environ.get("DOCKER_API_VERSION", "").lstrip("v")
    client = _client(pinned or _lower(API_VERSION, (server or {}).get("ApiVersion", "")))
    if template is None:
        text = _client_part(client) + (_server_part(server) if server is not None else "")
    else:
        from tare.cli.template import TemplateError
        from tare.cli.typed import typed

        try:
            text = template.render(typed({"Client": client, "Server": server}, "system.versionInfo"))
        except TemplateError as error:
            text, problem = error.partial, problem or str(error)
    from tare.cli.table import columns

    terminal.out(terminal.printable(columns(text + "\n", least=20, padding=1)))
    if problem:
        raise Failure(problem)
    return 0


def info(call: Call) -> int:
    flags = call.parse(INFO)
    form = flags.text("format")
    debug = call.settings.on("debug")
    client = {"Debug": debug} | _client() | {"Plugins": []}
    found: dict[str, Any] = {}
    problem = lost = ""
    if form in ("", "json") or not _of_client(form, client):
        try:
            found = call.client.get("/info")
        except ConnectError as error:
            lost = str(error)
        except Failure as error:
            problem = str(error)
    if form:
        if problem:
            terminal.err(problem + "\n")
            found = {"ServerErrors": [problem]}
        return _formatted(form, {**found, "ClientInfo": client}, lost)
    from tare.cli.infotext import client_lines, server_lines

    text = "\n".join(client_lines(client)) + "\n\nServer:\n"
    if found:
        text += "\n".join(server_lines(found, debug=debug)) + "\n\n"
    terminal.out(terminal.printable(text))
    for warning in found.get("Warnings") or ():
        terminal.err(terminal.printable(str(warning)) + "\n")
    if lost:
        raise Failure(lost)
    if problem:
        raise Failure(f"ERROR: {problem}\nerrors pretty printing info")
    return 0


def _of_client(form: str, client: dict[str, Any]) -> bool:
    """Whether a template needs nothing from the daemon."""
    from tare.cli.template import Template, TemplateError
    from tare.cli.typed import typed

    if not any(dot == "." and letter.isalpha() for dot, letter in zip(form, form[1:], strict=False)):
        return False
    try:
        Template(form).render(typed({"ClientInfo": client, "ClientErrors": []}, "sparse"))
    except TemplateError:
        return False
    return True


def _formatted(form: str, document: dict[str, Any], lost: str) -> int:
    """`lost`: why the daemon's part is missing; told after what there is."""
    from tare.cli.template import Template, TemplateError
    from tare.cli.typed import typed

    try:
        template = Template("{{json .}}" if form == "json" else form)
    except TemplateError as error:
        raise Failure(f"template parsing error: {error}", 64) from None
    try:
        text = template.render(typed(document, "system.dockerInfo"))
    except TemplateError as error:
        text, lost = error.partial, lost or str(error)
    terminal.out(terminal.printable(text) + "\n")
    if lost:
        raise Failure(lost)
    return 0
