"""How lists are shown: a table, JSON, or a template per row (docker/cli cli/command/formatter). Filters of lists.

    --format ""  or "table"      the command's own columns
    --format "table {{.A}}\\t{{.B}}"  these columns, with titles
    --format json                 an object per row
    anything else                 a template per row
"""

from __future__ import annotations

import os

from tare.cli.failure import Failure
from tare.cli.gotypes import Record
from tare.cli.human import safe
from tare.cli.table import columns, table
from tare.cli.terminal import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    from tare.cli.options import Flags
    from tare.cli.template import Template

__all__ = ["FORMAT_HELP", "Row", "configured", "filter_word", "filters", "show", "template_of"]

FORMAT_HELP = """Format output using a custom template:
'table':            Print output in table format with column headers (default)
'table TEMPLATE':   Print output in table format using the given Go template
'json':             Print in JSON format
'TEMPLATE':         Print output using the given Go template"""


class Row(Record):
    """A row of a list as templates see it. Column "X" is computed by `value_X`."""

    html = True

    def __init__(self, data: Mapping[str, Any], *, short: bool = True) -> None:
        self.data = data
        self.short = short

    def field(self, name: str) -> Any:
        function: Callable[[], Any] | None = getattr(self, "value_" + name, None)
        if function is None:
            raise KeyError(name)
        return function()

    def json(self) -> Any:
        names = sorted(name[6:] for name in dir(self) if name.startswith("value_"))
        return {name: self.field(name) for name in names}

    def labels(self) -> dict[str, str]:
        return dict(self.data.get("Labels") or {})

    def label(self, name: str) -> str:
        """The method .Label of rows that have labels."""
        return self.labels().get(name, "")


class _Header(Record):
    """What a template sees when a table's first line is made: titles for fields, a readable word for .Label "a.b"."""

    def __init__(self, titles: Mapping[str, str]) -> None:
        self.titles = titles

    def field(self, name: str) -> Any:
        return self.titles.get(name, "<no value>")

    def method(self, name: str) -> Callable[..., Any] | None:
        return _label_title if name == "Label" else None


def _label_title(name: str) -> str:
    return name.rpartition(".")[2].replace("-", " ").replace("_", " ")


def template_of(form: str) -> Template:
    """The template of a --format without its "table". Raises Failure."""
    if form.startswith("table"):
        form = form[len("table") :]
    elif form == "json":
        form = "{{json .}}"
    from tare.cli.template import Template, TemplateError

    form = form.strip(" ").replace("\\t", "\t").replace("\\n", "\n")
    try:
        return Template(form)
    except TemplateError as error:
        raise Failure(f"template parsing error: {error}") from None


def show(form: str, rows: Iterable[Row], titles: Mapping[str, str], default: Sequence[str]) -> str:
    """All rows in the given format; `default` names the columns of the plain table. Raises Failure."""
    if form in ("", "table"):
        cells = [[safe(str(row.field(name))) for name in default] for row in rows]
        return table([[titles[name] for name in default], *cells])
    from tare.cli.template import TemplateError

    template = template_of(form)
    try:
        body = printable("".join([template.render(row) + "\n" for row in rows]))
    except TemplateError as error:
        raise Failure(f"template parsing error: {error}") from None
    if not form.startswith("table"):
        return body
    return columns(template.header(_Header(titles)) + "\n" + body)


def filter_word(text: str) -> tuple[str, str] | None:
    """One --filter "name=value"; None for "". Raises ValueError."""
    if not text:
        return None
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError("bad format of filter (expected name=value)")
    return name.strip().lower(), value.strip()


def filters(flags: Flags, more: Iterable[tuple[str, str]] = ()) -> str | None:
    """The `filters` query: JSON {"name": {"value": true}}; None without any."""
    found: dict[str, dict[str, bool]] = {}
    for pair in (*flags.many("filter"), *more):
        if pair is not None:
            found.setdefault(pair[0], {})[pair[1]] = True
    if not found:
        return None
    from tare.cli.jsontext import dumps

    return dumps(found)


def configured(name: str, folder: str) -> str:
    """A text of Docker's client settings (psFormat, imagesFormat); "" if there is none. `folder` from --config."""
    folder = folder or os.environ.get("DOCKER_CONFIG") or os.path.join(os.environ.get("HOME", "/"), ".docker")
    try:
        with open(os.path.join(folder, "config.json"), "rb") as file:
            data = file.read()
    except OSError:
        return ""
    from tare.cli.jsontext import loads

    try:
        value = loads(data).get(name, "")
    except (ValueError, AttributeError):
        return ""
    return value if isinstance(value, str) else ""
