"""`tare inspect`, `container inspect`, `image inspect`: documents of the API, whole or through a template."""

from __future__ import annotations

from tare.cli import terminal
from tare.cli.client import ApiError, escaped
from tare.cli.failure import Failure
from tare.cli.options import Command
from tare.cli.reference import image_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from tare.cli.client import Client
    from tare.cli.main import Call
    from tare.cli.template import Template

__all__ = ["FORMAT", "container", "image", "inspect"]

FORMAT_HELP = """Format output using a custom template:
'json':             Print in JSON format
'TEMPLATE':         Print output using the given Go template"""
FORMAT = ("format", "f", "string", "", FORMAT_HELP)
INSPECT = Command(
    "[OPTIONS] NAME|ID [NAME|ID...]",
    (
        FORMAT,
        ("size", "s", "bool", "", "Display total file sizes if the type is container"),
        ("type", "", "string", "", "Only inspect objects of the given type"),
    ),
    least=1,
)
CONTAINER = Command(
    "[OPTIONS] CONTAINER [CONTAINER...]",
    (FORMAT, ("size", "s", "bool", "", "Display total file sizes")),
    least=1,
)
IMAGE = Command("[OPTIONS] IMAGE [IMAGE...]", (FORMAT,), least=1)
PATHS = {
    "container": "/containers/{}/json",
    "image": "/images/{}/json",
    "network": "/networks/{}",
    "volume": "/volumes/{}",
    "service": "/services/{}?insertDefaults=true",
    "task": "/tasks/{}",
    "node": "/nodes/{}",
    "plugin": "/plugins/{}/json",
    "secret": "/secrets/{}",
    "config": "/configs/{}",
}
"""Kind of object -> where its document is, in the order in which they are tried."""
OF_SWARM = frozenset(("service", "task", "node", "secret", "config"))


def _document(client: Client, kind: str, name: str, *, sizes: bool) -> Any:
    if kind == "image":
        return client.get(image_path(name) + "/json")
    name = name.removeprefix("/") if kind == "container" else name
    if not name:
        raise Failure(f"invalid {kind} name or ID: value is empty")
    path = PATHS[kind].format(escaped(name))
    return client.get(path + ("?size=1" if sizes and kind == "container" else ""))


def _any(client: Client, name: str, *, sizes: bool) -> tuple[str, Any]:
    """The first kind of object that has this name. Raises Failure."""
    for kind in PATHS:
        if kind in OF_SWARM:
            continue
        try:
            found = _document(client, kind, name, sizes=sizes)
        except ApiError as error:
            text = error.message
            if error.code == 404 or "not supported" in text or "invalid reference format" in text:
                continue
            raise
        if sizes and kind != "container":
            terminal.err(f"WARNING: --size ignored for {kind}\n")
        return kind, found
    raise Failure(f"Error: No such object: {name}")


def _rendered(template: Template, kind: str, found: Any) -> str:
    """Over the typed document first, then over the plain one, where what is missing is an error; as Docker does."""
    from tare.cli.template import TemplateError
    from tare.cli.typed import typed

    try:
        return template.render(typed(found, kind)) + "\n"
    except TemplateError:
        pass
    try:
        return template.render(found, strict=True) + "\n"
    except TemplateError as error:
        raise Failure(f"template parsing error: {error}") from None


def _show(form: str, names: Sequence[str], find: Callable[[str], tuple[str, Any]]) -> int:
    template = None
    if form not in ("", "json"):
        from tare.cli.template import Template, TemplateError

        try:
            template = Template(form)
        except TemplateError as error:
            raise Failure(f"template parsing error: {error}", 64) from None
    documents: list[Any] = []
    rendered: list[str] = []
    problems: list[str] = []
    for name in names:
        try:
            kind, found = find(name)
            if template is not None:
                rendered.append(_rendered(template, kind, found))
            documents.append(found)
        except Failure as error:
            problems.append(str(error))
    if template is None:
        from tare.cli.gojson import encode

        output = encode(documents, "" if form == "json" else "    ") + "\n"
    else:
        output = "".join(rendered) or "\n"
        if terminal.is_terminal(1):
            # A script gets the very bytes, a person's terminal is not steered by them.
            output = terminal.printable(output)
    terminal.out(output)
    if problems:
        raise Failure("\n".join(problems))
    return 0


def inspect(call: Call) -> int:
    flags = call.parse(INSPECT)
    kind, sizes = flags.text("type"), flags.on("size")
    kinds = '", "'.join(sorted(PATHS))
    if flags.given("type") and not kind:
        raise Failure(f'type is empty: must be one of "{kinds}"')
    if kind and kind not in PATHS:
        raise Failure(f'unknown type: "{kind}": must be one of "{kinds}"')

    def find(name: str) -> tuple[str, Any]:
        if not kind:
            return _any(call.client, name, sizes=sizes)
        found = _document(call.client, kind, name, sizes=sizes)
        if sizes and kind != "container":
            terminal.err(f"WARNING: --size ignored for {kind}\n")
        return kind, found

    return _show(flags.text("format"), flags.words, find)


def container(call: Call) -> int:
    flags = call.parse(CONTAINER)
    return _show(
        flags.text("format"),
        flags.words,
        lambda name: ("container", _document(call.client, "container", name, sizes=flags.on("size"))),
    )


def image(call: Call) -> int:
    flags = call.parse(IMAGE)
    return _show(
        flags.text("format"), flags.words, lambda name: ("image", _document(call.client, "image", name, sizes=False))
    )
