"""Columns as Docker prints them: Go's text/tabwriter, cells ended by tabs, left-aligned, padded with blanks. Pure."""

from __future__ import annotations

from tare.cli.human import width

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["columns", "table"]


def table(rows: Sequence[Sequence[str]], *, least: int = 10, padding: int = 3) -> str:
    """Rows of equally many cells; the last cell of a row is not padded."""
    if not rows:
        return ""
    inner = len(rows[0]) - 1
    widths = [max(least, padding + max(width(row[column]) for row in rows)) for column in range(inner)]
    lines = []
    for row in rows:
        cells = [cell + " " * (wide - width(cell)) for cell, wide in zip(row, widths, strict=False)]
        lines.append("".join(cells) + row[inner] + "\n")
    return "".join(lines)


def columns(text: str, *, least: int = 10, padding: int = 3) -> str:
    """`text` with tabs. A column is a run of lines that all have it: lines without a tab part two tables."""
    lines = [line.split("\t") for line in text.split("\n")]
    out = [""] * len(lines)
    _column(lines, out, 0, range(len(lines)), least, padding)
    return "\n".join(out)


def _column(lines: list[list[str]], out: list[str], index: int, where: range, least: int, padding: int) -> None:
    """Write cell `index` of the lines in `where`, then, in runs, the cells after it."""
    run: list[int] = []
    for number in [*where, -1]:
        if number >= 0 and index < len(lines[number]) - 1:
            run.append(number)
            continue
        if run:
            wide = max(least, padding + max(width(lines[each][index]) for each in run))
            for each in run:
                cell = lines[each][index]
                out[each] += cell + " " * (wide - width(cell))
            _column(lines, out, index + 1, range(run[0], run[-1] + 1), least, padding)
            run = []
        if number >= 0:
            out[number] += lines[number][-1]
