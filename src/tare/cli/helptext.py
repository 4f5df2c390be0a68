"""Help in the layout of Docker's client (cobra's template, pflag's columns). Loaded only when somebody asks for it."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tare.cli.options import Command, Row

__all__ = ["command_help", "group_help", "root_help", "wrapped"]

SLOP = 5
"""Letters a line may run over instead of leaving an orphan word, as pflag does."""
NARROWEST = 24
SHORT_NAMES = {"bool": "", "int64": "int", "uint64": "uint"}


def _split(text: str, width: int) -> tuple[str, str]:
    """Cut `text` at the last blank before `width`, or at a line end before that."""
    if width + SLOP > len(text):
        return text, ""
    blank = max(text.rfind(letter, 0, width) for letter in " \t\n")
    if blank <= 0:
        return text, ""
    line_end = text.rfind("\n", 0, width)
    if 0 < line_end < blank:
        blank = line_end
    return text[:blank], text[blank + 1 :]


def wrapped(indent: int, width: int, text: str) -> str:
    """`text` in lines of about `width` columns, all but the first indented; block style if the column is too narrow."""
    out = ""
    column = width - indent
    if column < NARROWEST:
        indent = 16
        column = width - indent
        out = "\n" + " " * indent
    if column < NARROWEST:
        return text.replace("\n", out)
    margin = "\n" + " " * indent
    line, text = _split(text, column - SLOP)
    out += line.replace("\n", margin)
    while text:
        line, text = _split(text, column - SLOP)
        out += margin + line.replace("\n", margin)
    return out


def _options(rows: Sequence[Row], width: int) -> str:
    shown = sorted((row for row in rows if row[4]), key=lambda row: row[0])
    if not any(row[0] == "help" for row in rows) and any(row[1] == "h" for row in rows):
        shown = sorted([*shown, ("help", "", "bool", "", "Print usage")], key=lambda row: row[0])
    heads = []
    for long, short, kind, _default, _text in shown:
        head = f"  -{short}, --{long}" if short else f"      --{long}"
        kind = SHORT_NAMES.get(kind, kind)
        heads.append(f"{head} {kind}" if kind else head)
    widest = max((len(head) for head in heads), default=0)
    lines = []
    for head, row in zip(heads, shown, strict=True):
        text = row[4] + (f" (default {row[3]})" if row[3] else "")
        lines.append(head + " " * (widest - len(head) + 3) + wrapped(widest + 3, width, text))
    return "\n".join(lines)


def command_help(command: Command, path: str, short: str, width: int) -> str:
    """Help of one command for a terminal of `width` columns."""
    out = [f"Usage:  {path} {command.usage}".rstrip(), short]
    if command.aliases:
        out.append("Aliases:\n  " + command.aliases)
    if any(row[4] for row in command.rows):
        out.append("Options:\n" + _options(command.rows, width - 1))
    return "\n\n".join(out) + "\n"


def _list(entries: Mapping[str, str]) -> str:
    widest = max(len(name) for name in entries)
    return "\n".join(f"  {name:<{max(widest, 11)}} {text}" for name, text in entries.items())


def group_help(path: str, short: str, commands: Mapping[str, str]) -> str:
    """Help of `tare container` and its like: `commands` maps each name to its one line."""
    return (
        f"Usage:  {path} COMMAND\n\n{short}\n\nCommands:\n{_list(dict(sorted(commands.items())))}\n\n"
        f"Run '{path} COMMAND --help' for more information on a command.\n"
    )


def root_help(
    common: Mapping[str, str], groups: Mapping[str, str], commands: Mapping[str, str], rows: Sequence[Row], width: int
) -> str:
    """Help of `tare` itself: the common commands first, then the groups, then the rest in order of the alphabet."""
    return (
        "Usage:  tare [OPTIONS] COMMAND\n\nA container engine that weighs almost nothing\n\n"
        f"Common Commands:\n{_list(common)}\n\n"
        f"Management Commands:\n{_list(groups)}\n\n"
        f"Commands:\n{_list(dict(sorted(commands.items())))}\n\n"
        f"Global Options:\n{_options(rows, width - 1)}\n\n"
        "Run 'tare COMMAND --help' for more information on a command.\n"
    )
